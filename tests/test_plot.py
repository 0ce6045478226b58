"""plot.py: the paper's numbers as printed, the score's rule, the intervals, the table."""

import csv

import numpy as np
import pytest
from conftest import one_line

import evaluate
import plot
import tasks


def paper():
    with open(plot.PAPER_SCORES, newline="") as file:
        return list(csv.DictReader(file))


def averages(methods, table, low):
    """Mean over the cells of one of the paper's tables: at ratio 1, or at all smaller ratios."""
    rows = [row for row in paper() if row["table"] == table and (float(row["ratio"]) < 1) == low]
    return [np.mean([float(row["mean"]) for row in rows if row["method"] == method]) for method in methods]


@pytest.mark.parametrize("table, low, printed", [
    ("1", False, (47.9, 36.5, 23.8, 10.6, 35.4, 13.3, 5.0)),
    ("1", True, (31.1, 16.7, 17.9, 11.0, 17.7, 10.7, 3.9)),
    ("3", False, (63.3, 57.9, 61.6, 63.1, 64.1, 63.6, 49.2)),
    ("3", True, (57.4, 39.4, 51.4, 51.3, 44.9, 35.9, 45.7))])
def test_transcribed_scores_give_the_averages_the_paper_prints(table, low, printed):
    ours = averages(("lamo", "dt", "wiki", "cql", "iql", "td3bc", "bc"), table, low)
    assert np.allclose(ours, printed, atol=0.2)


def test_every_cell_has_the_papers_scores():
    for cell in tasks.cells():
        _, task, ratio = tasks.parse_cell(f"paper/{cell}")
        assert {"lamo", "dt"} <= set(plot.paper_scores(task, ratio)), cell
    assert plot.paper_scores("hopper-medium", 0.01)["lamo"] == "52.0±4.6"


def make_rows(scores, method="lamo", seed=0, target=3600.0, lm="mini@1"):
    """Rows of one run from {step: [score of each episode]}."""
    return [{"profile": "mini", "data": "d@1", "lm": lm, "task": "hopper-medium", "ratio": "0.01",
             "method": method, "seed": seed, "step": step, "target_return": target, "episode": episode,
             "return": 0.0, "length": 1, "normalized_score": score, "data_score": 37.0, "data_episodes": 21}
            for step, values in scores.items() for episode, score in enumerate(values)]


def test_the_score_is_the_mean_of_the_last_evaluations_at_the_largest_target():
    rows = make_rows({1: [90.0, 90.0], 2: [10.0, 20.0], 3: [30.0, 60.0]})
    rows += make_rows({1: [0.0, 0.0], 2: [50.0, 50.0], 3: [50.0, 50.0]}, target=1800.0)
    line, = plot.summarise(rows, window=2)
    assert line["score"] == pytest.approx((10 + 20 + 30 + 60) / 4) and line["target"] == 3600
    assert line["best"] == 50 and line["best_target"] == 1800
    assert line["scores"][3600.0] == [20.0, 40.0]  # an episode's mean over the window


def test_with_several_seeds_a_seed_is_the_sample():
    rows = [row for seed, score in enumerate((10.0, 20.0, 60.0)) for row in
            make_rows({1: [score - 5, score + 5]}, seed=seed)]
    line, = plot.summarise(rows, window=1)
    assert line["scores"][3600.0] == [10.0, 20.0, 60.0] and line["n"] == 3
    # Student's t with 2 degrees of freedom: mean 30, standard error 15.275
    assert line["interval"] == pytest.approx((30 - 4.3027 * 15.2753, 30 + 4.3027 * 15.2753), rel=1e-3)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    for size, rounds in ((3, 400), (20, 100)):
        hits = 0
        for _ in range(rounds):
            low, high = plot.interval(rng.normal(5, 2, size))
            hits += low <= 5 <= high
        assert 0.87 < hits / rounds <= 0.99, size
    assert plot.interval([3.0]) is None and plot.interval([3.0, 3.0]) == (3.0, 3.0)


@pytest.fixture
def plotted(kit):
    rng = np.random.default_rng(0)
    rows = [row for method, lm, mean in (("lamo", "mini@12345678", 38), ("dt", "none", 30))
            for target in (3600.0, 1800.0)
            for row in make_rows({step: rng.normal(mean, 5, 20).round(2).tolist()
                                  for step in (125, 250, 375, 500)}, method=method, lm=lm, target=target)]
    path = kit.folder / "results/mini/hopper-medium-0.01.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, evaluate.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return kit


def test_the_table_and_the_figure(plotted):
    out = plotted("plot.py", "mini/hopper-medium-0.01").stdout
    lamo = next(line for line in out.splitlines() if line.startswith("lamo"))
    assert "52.0±4.6" in lamo and "mini@12345678" in lamo and "20 episodes" in lamo
    assert "41.9±5.2" in next(line for line in out.splitlines() if line.startswith("dt"))
    assert "37.0" in next(line for line in out.splitlines() if line.startswith("data mean"))
    assert "not comparable" in out
    figure = plotted.folder / "figures/mini/hopper-medium-0.01.png"
    once = figure.read_bytes()
    assert once.startswith(b"\x89PNG") and len(once) > 20_000
    plotted("plot.py", "mini/hopper-medium-0.01")
    assert figure.read_bytes() == once


def test_damaged_results_end_in_one_line(plotted):
    path = plotted.folder / "results/mini/hopper-medium-0.01.csv"
    whole = path.read_text()
    for damaged in ("", "a,b\n1,2\n", whole.replace("mini,d@1", "paper,d@1"), whole[:-20],
                    whole.replace(",500,", ",x,")):
        path.write_text(damaged)
        line = one_line(plotted("plot.py", "mini/hopper-medium-0.01", check=False))
        assert "hopper-medium-0.01.csv" in line


def test_no_result_is_one_line(kit):
    assert "--collect" in one_line(kit("plot.py", "mini/hopper-medium-0.01", check=False))


def test_no_published_score_is_missing_or_listed_twice():
    rows = [(row["task"], row["ratio"], row["method"], row["table"]) for row in paper()]
    assert len(rows) == len(set(rows)) == 7 * (9 + 6 + 12) + 21
