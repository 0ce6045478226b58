"""plot.py: the paper's numbers as printed, the score's rule, the intervals, the table, the figure."""

import contextlib

import numpy as np
import pytest
from conftest import one_line

import plot
import tasks
from kit import artifacts, seals, settings
from kit.results import PAPER_SCORES, published
from kit.statistics import summarise

CELL = "mini/hopper-medium-0.01"
METHODS = list(tasks.METHODS)


def averages(methods, table, low):
    """Mean over the cells of one of the paper's tables: at ratio 1, or at all smaller ratios."""
    rows = [row for row in published() if row["table"] == table and (row["ratio"] < 1) == low]
    return [np.mean([row["mean"] for row in rows if row["method"] == method]) for method in methods]


@pytest.mark.parametrize("table, low, printed", [
    ("1", False, (47.9, 36.5, 23.8, 10.6, 35.4, 13.3, 5.0)),
    ("1", True, (31.1, 16.7, 17.9, 11.0, 17.7, 10.7, 3.9)),
    ("3", False, (63.3, 57.9, 61.6, 63.1, 64.1, 63.6, 49.2)),
    ("3", True, (57.4, 39.4, 51.4, 51.3, 44.9, 35.9, 45.7))])
def test_transcribed_scores_give_the_averages_the_paper_prints(table, low, printed):
    ours = averages(("lamo", "dt", "wiki", "cql", "iql", "td3bc", "bc"), table, low)
    assert np.allclose(ours, printed, atol=0.2)


def test_every_cell_has_the_papers_scores():
    for cell in settings.cells():
        _, task, ratio = settings.parse_cell(f"paper/{cell}")
        assert {"lamo", "dt"} <= set(plot.paper_scores(task, ratio)), cell
    assert plot.paper_scores("hopper-medium", 0.01)["lamo"] == "52.0±4.6"


def test_no_published_score_is_missing_or_listed_twice():
    rows = [(row["task"], row["ratio"], row["method"], row["table"]) for row in published()]
    assert len(rows) == len(set(rows)) == 7 * (9 + 6 + 12) + 21
    # as it was compared with the paper; nothing else looks at most deviations
    assert seals.sha256(PAPER_SCORES).startswith("a1c16562f3074a50")


# --- the score and its interval ----------------------------------------------------------------

def make_rows(scores, method="lamo", target=3600.0, **more):
    """Rows of one run from {step: [score of each episode]}, as load_results returns them."""
    row = {"profile": "mini", "data": "d@1", "lm": "mini@1", "task": "hopper-medium", "ratio": 0.01,
           "method": method, "seed": 0, "target_return": target, "return": 0.0, "length": 1,
           "data_score": 37.0, "data_episodes": 21, "score_window": 2, "changed": "", "subset": 0,
           **dict.fromkeys(artifacts.LOSS_COLUMNS, float("nan")), "heldout_data": ""} | more
    return [row | {"step": step, "episode": episode, "normalized_score": score}
            for step, values in scores.items() for episode, score in enumerate(values)]


# --- what the words say ------------------------------------------------------------------------

def printed(capsys, rows, cell=CELL):
    plot.print_table(cell, rows, summarise(rows))
    return capsys.readouterr().out


def test_the_table_says_what_was_averaged(capsys):
    many, few = {step: [1.0, 2.0] for step in range(1, 10)}, {1: [1.0, 2.0], 2: [1.0, 2.0]}
    out = printed(capsys, make_rows(many, score_window=8) + make_rows(many, "wiki", score_window=8))
    assert "score: mean over the last 8 evaluations at target return 3600\n" in out and "not 8" not in out
    out = printed(capsys, make_rows(many, score_window=8) + make_rows(few, "dt", score_window=8)
                  + make_rows({9: [1.0]}, "bc", None, score_window=8))
    assert "the last 8 (lamo), 2 (dt), 1 (bc) evaluations at target return 3600\n" in out
    assert "\ndt: 2 evaluations, not 8\n" in out and "\nbc: 1 evaluation, not 8\n" in out


def test_targets_that_differ_are_told_apart(capsys):
    out = printed(capsys, make_rows({1: [1.0]}) + make_rows({1: [1.0]}, "dt", 1800.0))
    assert "at target return 3600 (lamo), 1800 (dt)\n" in out


def test_changed_settings_are_named_in_table_and_figure(capsys):
    cell, scores = "paper/hopper-medium-0.01", {1: [1.0, 2.0], 2: [1.0, 2.0]}
    own = make_rows(scores, profile="paper") + make_rows(scores, "dt", profile="paper")
    title = plot.draw(cell, own, summarise(own)).get_suptitle()
    assert "(the paper's settings)" in title and "changed" not in title + printed(capsys, own, cell)

    changed = (make_rows(scores, profile="paper", changed="steps=6 lm=/toy")
               + make_rows(scores, "dt", profile="paper", changed="steps=6")
               + make_rows(scores, "bc", None, profile="paper", changed="steps=6"))
    title = plot.draw(cell, changed, summarise(changed)).get_suptitle()
    out = printed(capsys, changed, cell)
    assert "(not the paper's settings)" in title
    for note in ("lamo: settings changed: steps=6 lm=/toy", "dt, bc: settings changed: steps=6"):
        assert note in title.splitlines() and note in out.splitlines()


def test_the_footnote_has_the_papers_own_number_of_steps(capsys):
    assert "100K steps" in printed(capsys, make_rows({1: [1.0]}))
    assert " 50K steps" in printed(capsys, make_rows({1: [1.0]}, task="breakout-medium"),
                                   "mini/breakout-medium-1")


# --- the figure --------------------------------------------------------------------------------

def many_methods(count, profile="mini"):
    rng = np.random.default_rng(0)
    return [row for place, method in enumerate(METHODS[:count])
            for target in ((None,) if settings.is_baseline(method) else (3600.0, 1800.0))
            for row in make_rows({step: rng.normal(40 - place, 5, 5) for step in (1, 2, 3)}, method, target,
                                 profile=profile, lm="lm-with-a-rather-long-name@12345678")]


def labels(axis):
    return [label.get_text().strip() for label in axis.get_yticklabels()]


@pytest.mark.parametrize("count", [2, 7, 20, len(METHODS)])
def test_the_legend_covers_nothing_and_is_not_cut_off(count):
    rows = many_methods(count)
    figure = plot.draw(CELL, rows, summarise(rows))
    figure.draw_without_rendering()
    legend, = figure.legends
    box = legend.get_window_extent()
    for axis in figure.axes:
        assert not box.overlaps(axis.get_tightbbox()) and axis.get_window_extent().height > 200
    assert not figure.axes[0].get_tightbbox().overlaps(figure.axes[1].get_tightbbox())
    assert figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) and box.y0 > 0
    names = [text.get_text().split(" ")[0] for text in legend.get_texts()]
    assert names == [*METHODS[:count], "mean"]
    ticks = [label.get_window_extent() for label in figure.axes[1].get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in zip(ticks, ticks[1:], strict=False))


def test_a_method_looks_the_same_wherever_it_is_drawn():
    looks = [plot.style(method) for method in METHODS]
    assert len({(look["color"], look["marker"]) for look in looks}) == len(METHODS)
    first = looks[:7]  # those of the paper's tables differ in both
    assert len({look["color"] for look in first}) == len({look["marker"] for look in first}) == 7
    rows = many_methods(8)
    for drawn in (rows, [row for row in rows if row["method"] in ("wiki", "lamo-random")]):
        figure = plot.draw(CELL, drawn, summarise(drawn))
        lines = {line.get_label().split(" ")[0]: line for line in figure.axes[0].get_lines()}
        for method in ("wiki", "lamo-random"):
            look = plot.style(method)
            assert lines[method].get_color() == look["color"] and lines[method].get_marker() == look["marker"]
            assert any(line.get_color() == look["color"] and line.get_marker() == look["marker"]
                       for line in figure.axes[1].get_lines())


def test_the_papers_scores_stand_hollow_beside_paper_runs_only():
    for profile in ("mini", "paper"):
        rows = many_methods(3, profile)
        axis = plot.draw(f"{profile}/hopper-medium-0.01", rows, summarise(rows)).axes[1]
        hollow = [line.get_xdata()[0] for line in axis.get_lines() if line.get_markerfacecolor() == "white"]
        assert hollow == ([52.0, 41.9, 50.2] if profile == "paper" else [])
        if profile == "paper":  # with what the paper prints behind its ±
            ends = axis.containers[0].lines[2][0].get_segments()[0][:, 0]
            assert [*ends] == pytest.approx([52.0 - 4.6, 52.0 + 4.6])
        assert labels(axis)[:3] == ["lamo at 3600", "at 1800", "the paper" if profile == "paper" else
                                    "dt at 3600"]


def test_over_subsets_words_say_so(capsys):
    def seeds(of):
        return [row for seed in range(3) for row in make_rows(
            {1: [30.0 + seed, 32.0]}, seed=seed, subset=of(seed), data_score=40.0 + of(seed))]
    for of, word, mean in ((lambda seed: 0, "seed", 40.0), (lambda seed: seed, "subset", 41.0)):
        rows = seeds(of)
        figure, out = plot.draw(f"{CELL}-dN", rows, summarise(rows)), printed(capsys, rows, f"{CELL}-dN")
        assert f"3 {word}s" in out and f"a dot is a {word}" in figure.axes[1].get_title()
        assert ("subset and seeds 0 1 2" in figure.get_suptitle()) == (word == "subset")
        assert f"{mean:.1f}" in next(line for line in out.splitlines() if line.startswith("data mean"))
        line, = summarise(rows)
        assert line["over"] == f"{word}s" and line["scores"][3600.0] == [31.0, 31.5, 32.0]
        assert line["interval"] == pytest.approx((31.5 - 1.242, 31.5 + 1.242), abs=1e-3)


def test_what_a_script_played_has_a_digest_a_subset(capsys):
    rows = [row for seed in range(2) for row in make_rows(
        {1: [30.0]}, seed=seed, subset=seed, data=f"pong-script@{seed}")]
    out, figure = printed(capsys, rows, f"{CELL}-dN"), plot.draw(f"{CELL}-dN", rows, summarise(rows))
    assert "data pong-script, 2 subsets, " in out and "data pong-script, 2 subsets " in figure.get_suptitle()


def test_losses_have_a_panel_where_they_were_measured():
    rows = [row for method, low in (("lamo", 0.1), ("dt", 0.2), ("cql", float("nan")))
            for step, seed in ((1, 0), (2, 0), (1, 1), (2, 1))
            for row in make_rows({step: [1.0, 2.0]}, method, seed=seed, train_loss=low / 2,
                                 heldout_loss=low + 0.1 * seed + 0.01 * step, heldout_episodes="20",
                                 heldout_floor=0.03)]
    figure = plot.draw(CELL, rows, summarise(rows))
    panel = figure.axes[1]
    drawn = {tuple(np.round(line.get_ydata(), 3)): line for line in panel.get_lines()
             if len(line.get_ydata()) == 2}
    assert {*drawn} == {(0.16, 0.17), (0.05, 0.05), (0.26, 0.27), (0.1, 0.1), (0.03, 0.03)}
    for held, trained, method in (((0.16, 0.17), (0.05, 0.05), "lamo"), ((0.26, 0.27), (0.1, 0.1), "dt")):
        assert drawn[held].get_color() == drawn[trained].get_color() == plot.style(method)["color"]
        assert (drawn[held].get_linestyle(), drawn[trained].get_linestyle()) == ("-", ":")
    assert "20 held-out episodes" in panel.get_title()
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "dotted: the loss in training" in words and "floor: the player's own mean action" in words
    assert len(plot.draw(CELL, many_methods(2), summarise(many_methods(2))).axes) == 2


def test_marks_and_curves_are_means():
    rows = [row for seed, score in enumerate((10.0, 20.0, 60.0)) for row in make_rows(
        {1: [score - 8, score - 4], 2: [score, score + 6]}, seed=seed, score_window=1)]
    curves, scores = plot.draw(CELL, rows, summarise(rows)).axes
    assert [*curves.get_lines()[0].get_ydata()] == pytest.approx([24, 33])
    marks = [line.get_xdata()[0] for line in scores.get_lines()
             if line.get_marker() == plot.style("lamo")["marker"] and len(line.get_xdata()) == 1]
    assert marks == pytest.approx([33])
    # one dot a seed, and Student's interval of three: t is 4.303
    dots, = [line for line in scores.get_lines() if len(line.get_xdata()) == 3]
    assert [*dots.get_xdata()] == [13, 23, 63]
    half = 4.303 * np.std([10, 20, 60], ddof=1) / np.sqrt(3)
    ends, = [line for line in scores.get_lines() if line.get_marker() == "|"]
    assert [*ends.get_xdata()] == pytest.approx([33 - half, 33 + half], rel=1e-3)
    assert [*curves.get_lines()[0].get_xdata()] == [0.5, 1.0]
    band, = curves.collections
    edges = band.get_paths()[0].vertices
    for share, mean in ((0.5, 24), (1.0, 33)):
        found = edges[edges[:, 0] == share, 1]
        assert (found.min(), found.max()) == pytest.approx((mean - half, mean + half), rel=1e-3)


def test_text_from_the_results_is_shown_as_text(tmp_path):
    rows = make_rows({1: [1.0, 2.0], 2: [1.0, 2.0]}, lm=r"/models/$x_{$\frac@1", data="/data/$a$_$@1",
                     changed="text=$HOME/$b^")
    figure = plot.draw(CELL, rows, summarise(rows))
    figure.savefig(tmp_path / "figure.png")  # as mathematics these would not parse
    shown = [figure._suptitle, *figure.legends[0].get_texts()]
    assert not any(text.get_parse_math() for text in shown)
    assert "data /data/$a$_$@1" in shown[0].get_text() and r"(/models/$x_{$\frac@1)" in shown[1].get_text()


# --- the command -------------------------------------------------------------------------------

def write(kit, rows, columns=(*artifacts.RESULT_COLUMNS, *artifacts.EXTRA_COLUMNS)):
    path = kit.folder / artifacts.results_path(CELL)
    artifacts.write_csv(path, columns, [{name: row[name] for name in columns} for row in rows])
    return path


@pytest.fixture
def plotted(kit):
    rng = np.random.default_rng(0)
    kit.rows = [row for method, lm, mean in (("lamo", "mini@12345678", 38), ("dt", "none", 30))
                for target in (3600.0, 1800.0)
                for row in make_rows({step: rng.normal(mean, 5, 20).round(2).tolist()
                                      for step in (125, 250, 375, 500)}, method, target, lm=lm,
                                     score_window=3)]
    kit.results = write(kit, kit.rows)
    return kit


def test_the_table_and_the_figure(plotted):
    out = plotted("plot.py", CELL).stdout
    lamo = next(line for line in out.splitlines() if line.startswith("lamo"))
    assert "52.0±4.6" in lamo and "mini@12345678" in lamo and "20 episodes" in lamo
    assert "39.1 [38.2, 40.1]" in lamo and "39.1 at 3600" in lamo
    dt = next(line for line in out.splitlines() if line.startswith("dt"))
    assert "41.9±5.2" in dt and "29.1 [27.6, 30.5]" in dt
    assert "37.0" in next(line for line in out.splitlines() if line.startswith("data mean"))
    assert "not comparable" in out
    figure = plotted.folder / "figures/mini/hopper-medium-0.01.png"
    once = figure.read_bytes()
    assert once.startswith(b"\x89PNG") and len(once) > 20_000
    plotted("plot.py", CELL)
    assert figure.read_bytes() == once
    figure.unlink()
    assert "lamo" in plotted("plot.py", f"{CELL}/", "--table").stdout and not figure.exists()


def test_damaged_results_end_in_one_line(plotted, monkeypatch):
    monkeypatch.chdir(plotted.folder)
    path = plotted.results
    whole = path.read_text()
    for damaged in ("", "a,b\n1,2\n", whole.replace("mini,d@1", "paper,d@1"), whole[:-20],
                    whole.replace(",500,", ",x,"), whole.replace(",0.01,", ",0.1,"), whole.splitlines()[0],
                    whole.replace(",dt,", ",dx,"), whole.replace(",3,,", ",0,,"),
                    whole.replace(",score_window,changed", "")):
        assert damaged != whole
        for sealed in (False, True):
            path.write_text(damaged)
            if sealed:  # as if it was meant
                with contextlib.suppress(ValueError):
                    seals.seal(path)
            with pytest.raises(SystemExit, match="hopper-medium-0.01.csv") as stop:
                plot.load_results(CELL)
            assert len(str(stop.value).splitlines()) == 1
    write(plotted, plotted.rows, artifacts.RESULT_COLUMNS)  # a single run's columns
    assert "hopper-medium-0.01.csv" in one_line(plotted("plot.py", CELL, check=False))


def test_each_seed_has_each_episode_once(plotted, monkeypatch):
    monkeypatch.chdir(plotted.folder)
    for rows, said in ((plotted.rows + plotted.rows[:1], "lamo, seed 0, twice"),
                       (plotted.rows + make_rows({500: [1.0]}, seed=1, score_window=3), "lamo, seed 1,"),
                       ([plotted.rows[0] | {"normalized_score": "nan"}, *plotted.rows[1:]], "score nan"),
                       ([plotted.rows[0] | {"return": "inf"}, *plotted.rows[1:]], "return inf")):
        write(plotted, rows)
        with pytest.raises(SystemExit, match=said) as stop:
            plot.load_results(CELL)
        assert "hopper-medium-0.01.csv" in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("other", [{"changed": "steps=6"}, {"score_window": 2}])
def test_seeds_with_different_settings_are_refused_in_one_line(plotted, other):
    write(plotted, plotted.rows + make_rows({500: [1.0]}, seed=1, **{"score_window": 3} | other))
    line = one_line(plotted("plot.py", CELL, check=False))
    assert "seeds of lamo with different settings" in line and "--collect" in line


def test_no_result_is_one_line(kit):
    assert "--collect" in one_line(kit("plot.py", CELL, check=False))
    assert "no task" in one_line(kit("plot.py", "mini/hopper-0.01", "--table", check=False))
