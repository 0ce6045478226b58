"""paper/: the report's numbers beside those computed here from the CSVs alone, and what is missing."""

import base64
import collections
import csv
import errno
import html.parser
import itertools
import math
import os
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from conftest import evaluated_as, one_line
from test_plot import make_rows

from kit import artifacts, settings
from kit.results import files_of, published
from paper import grid, report, tables
from paper.provenance import warnings_of

SYNTHETIC = Path(__file__).parent / "synthetic"
STUDENT = {2: 12.7062, 3: 4.30265}  # 97.5 % of Student's t with n - 1 degrees of freedom
PAPER = {(f"{row['task']}-{row['ratio']:g}", row["method"]): row["mean"] for row in published()}


def write_report(folder, profile="paper", figures=False):
    """The page's text, made in `folder` from its results/; without figures, which take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if not figures:
            patch.setattr(report, "draw_all", lambda cells, profile: {})
        failed = report.main(report.OPTIONS.parse_args([profile]))
    return (folder / f"report/{profile}.html").read_text(), failed


class Page(html.parser.HTMLParser):
    """tables: {id: [[["line", ...] a cell] a row]}; tags: how many of each."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.rows, self.tags, self.inside = {}, None, collections.Counter(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags[tag] += 1
        self.inside = tag == "span"
        if tag == "table":
            self.rows = self.tables[dict(attributes)["id"].removesuffix("-table")] = []
        elif tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append([])
        elif tag == "span":
            self.rows[-1][-1].append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1][-1] += data


def rows_of(page, name):
    return [row for row in page.tables[name] if row]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(SYNTHETIC, folder / "results")
    text, failed = write_report(folder)
    assert not failed
    return Page(text)


# --- computed here -----------------------------------------------------------------------------

def seed_scores(cell, method, target=None):
    """The mean of the last two evaluations of each seed, with nothing of the kit; target: of the largest."""
    with open(SYNTHETIC / f"paper/{cell}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == method]
    targets = sorted({float(row["target_return"] or 0) for row in rows})
    wanted = targets[-1] if target is None else target
    seeds = {}
    for row in rows:
        if float(row["target_return"] or 0) == wanted and int(row["step"]) > 100:
            seeds.setdefault(row["seed"], []).append(float(row["normalized_score"]))
    return [statistics.fmean(values) for _, values in sorted(seeds.items())]


def best_scores(cell, method, targets):
    return max((seed_scores(cell, method, target) for target in targets), key=statistics.fmean)


def said(value):
    return f"{value + 0.0:.1f}"


def said_interval(values):
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"[{said(statistics.fmean(values) - half)}, {said(statistics.fmean(values) + half)}]"


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+\.\d", text)]


@pytest.mark.parametrize("table, cell, method, column, targets", [
    ("table-3", "hopper-medium-1", "lamo", 2, (3600, 1800)), ("table-3", "hopper-medium-1", "iql", 6, None),
    ("table-3", "hopper-medium-1", "dt", 3, (3600, 1800)),
    ("table-3", "hopper-medium-0.01", "dt", 3, (3600, 1800)),
    ("table-1", "kitchen-complete-1", "lamo", 2, (5, 4)),
    ("table-1", "reacher2d-medium-1", "dt", 3, (76, 40))])
def test_a_score_is_the_mean_of_its_seeds_beside_the_papers(page, table, cell, method, column, targets):
    task, _, ratio = cell.rpartition("-")
    lines, = (row[column] for row in rows_of(page, table) if row[0] == [task] and row[1] == [ratio])
    values = seed_scores(cell, method)
    assert lines[0] == f"{said(statistics.fmean(values))} ± {said(statistics.stdev(values))}"
    assert np.allclose(numbers(lines[1]), numbers(said_interval(values)), atol=0.11)
    assert lines[1].endswith(f" {len(values)} seeds")
    if targets:
        best = best_scores(cell, method, targets)
        mean, deviation = said(statistics.fmean(best)), said(statistics.stdev(best))
        assert lines[2].startswith(f"best {mean} ± {deviation} at ")
    assert lines[-1].startswith(f"paper {PAPER[cell, method]:.1f}") and len(lines) == (4 if targets else 3)


def test_the_tables_have_the_papers_rows_and_columns(page):
    heads = {number: tables.paper_table({}, number).columns for number in "123"}
    assert heads["1"] == heads["3"]
    assert heads["1"] == ["task", "ratio", "LaMo", "DT", "Wiki-RL", "CQL", "IQL", "TD3+BC", "BC"]
    assert heads["2"][2:] == ["LaMo", "DT", "Wiki-RL", "CQL", "BCQ", "NFQ", "BC"]
    cells = [f"{row[0][0]}-{row[1][0]}" for number in "123" for row in rows_of(page, f"table-{number}")
             if row[1] != [""]]
    assert sorted(cells) == sorted(settings.cells())
    assert cells[:3] == ["kitchen-partial-1", "kitchen-complete-1", "reacher2d-medium-1"]


def test_with_nothing_run_every_cell_is_missing_and_the_papers_averages_stand():
    printed = {"1": ((47.9, 36.5, 23.8, 10.6, 35.4, 13.3, 5.0), (31.1, 16.7, 17.9, 11.0, 17.7, 10.7, 3.9)),
               "3": ((63.3, 57.9, 61.6, 63.1, 64.1, 63.6, 49.2), (57.4, 39.4, 51.4, 51.3, 44.9, 35.9, 45.7))}
    for number, wanted in printed.items():
        for group, averages in zip(tables.paper_table({}, number).groups, wanted, strict=True):
            assert all(cell.lines[0] == ("missing", "missing") for row in group.rows for cell in row[2:])
            below, = group.below
            paper = [numbers(cell.lines[-1][1])[0] for cell in below[2:]]
            assert np.allclose(paper, averages, atol=0.2)
            assert all(cell.lines[0] == ("missing", "missing") for cell in below[2:])
            assert all(cell.lines[1][1] == f"0 of {len(group.rows)} cells" for cell in below[2:])


def test_the_papers_figure_1_is_the_mean_over_a_domains_cells():
    for domain, wanted in (("Kitchen", (42, 29, 20, 3, 2)), ("Atari", (165, 117, 45, 134, 67)),
                           ("MuJoCo and Reacher2d", (52, 37, 46, 48, 39))):
        names = [cell for cell in settings.cells() if grid.domain_of(cell) == domain]
        means = [np.mean([PAPER[cell, method] for cell in names])
                 for method in ("lamo", "dt", "wiki", "cql", "bc")]
        assert tuple(int(mean) for mean in means) == wanted


def average(cells, method):
    return statistics.fmean(statistics.fmean(seed_scores(cell, method)) for cell in cells)


def test_a_complete_average_and_one_that_says_what_it_covers(page):
    sparse = ["kitchen-partial-1", "kitchen-complete-1", "reacher2d-medium-1"]
    full = next(row for row in rows_of(page, "table-1") if row[0] == ["average, all data"])
    for column, method, paper in ((2, "lamo", "47.9"), (3, "dt", "36.5")):
        assert full[column][0] == said(average(sparse, method))
        assert full[column][-2:] == ["3 of 3 cells", f"paper {paper}"]
    assert full[4] == ["missing", "0 of 3 cells", "paper 23.8 (3 cells)"]
    targets = dict(zip(sparse, ((5, 4), (5, 4), (76, 40)), strict=True))
    best = statistics.fmean(statistics.fmean(best_scores(cell, "lamo", of)) for cell, of in targets.items())
    assert full[2][1] == f"best {said(best)}" != f"best {full[2][0]}"

    rows = rows_of(page, "table-3")
    place = next(n for n, row in enumerate(rows) if row[0] == ["average, all data"])
    mean, same, shared = rows[place:place + 3]
    both = ["hopper-medium-1", "walker2d-medium-1"]
    assert mean[2][0] == said(average(both, "lamo"))
    assert mean[2][-2:] == ["2 of 3 cells", "paper 63.3 (3 cells)"]
    assert same[2][0] == mean[2][0] and same[2][-1] == f"paper {said((74.1 + 73.3) / 2)}"
    assert same[3][0] == said(average(["hopper-medium-1"], "dt")) and same[3][-1] == "paper 60.9"
    assert shared[0] == ["over the 1 of 3 cells that all have"]
    assert shared[2][0] == said(average(["hopper-medium-1"], "lamo")) and shared[2][-1] == "paper 74.1"


def test_statistics_over_cells(page):
    """Mean, interquartile mean and probability of improvement over the two cells of Kitchen."""
    cells = ["kitchen-partial-1", "kitchen-complete-1"]
    row, = (row for row in rows_of(page, "statistics") if row[:2] == [["Kitchen"], ["DT"]])
    assert row[2:4] == [["2 of 6"], ["3"]]
    runs = {method: [seed_scores(cell, method) for cell in cells] for method in ("lamo", "dt")}

    def middle(values):  # of six, rliable's rule cuts one at each end
        return statistics.fmean(sorted(values)[1:-1])

    pairs = [[(one > other) + (one == other) / 2 for one in ours for other in theirs]
             for ours, theirs in zip(runs["lamo"], runs["dt"], strict=True)]
    assert row[4][0].split()[0] == said(average(cells, "dt"))
    assert row[5][0].split()[0] == said(middle(itertools.chain(*runs["dt"])))
    assert row[6][0].split()[0] == said(middle(itertools.chain(*runs["lamo"])))
    assert row[7][0].split()[0] == said(100 * statistics.fmean(map(statistics.fmean, pairs)))

    # all 27 x 27 resamples of the seeds within their cells are equally likely
    every = [[*first, *second] for first in itertools.product(runs["dt"][0], repeat=3)
             for second in itertools.product(runs["dt"][1], repeat=3)]
    for cell, statistic in ((row[4][0], statistics.fmean), (row[5][0], middle)):
        exact = np.percentile([statistic(values) for values in every], (2.5, 97.5))
        assert np.allclose(numbers(cell)[1:], exact, atol=0.08 * np.ptp(exact) + 0.05)


def test_statistics_over_all_cells(page):
    names = [path.stem for path in (SYNTHETIC / "paper").glob("*.csv") if ",lamo," in path.read_text()]
    row, = (row for row in rows_of(page, "statistics") if row[:2] == [["all"], ["LaMo"]])
    assert row[2] == [f"{len(names)} of 27"] and row[4][0].split()[0] == said(average(names, "lamo"))


def test_a_curve_has_the_steps_that_every_seed_has():
    rows = make_rows({1: [10.0], 2: [20.0]}) + make_rows({1: [30.0]}, seed=1)
    assert grid.curve(rows) == [(0.5, 20.0, pytest.approx(200 ** 0.5))]


def test_one_seed_has_no_deviation_and_no_interval_over_cells(page):
    lines = next(row for row in rows_of(page, "table-2") if row[0] == ["pong-medium"] and row[1] == ["1"])[2]
    assert lines[0] == said(statistics.fmean(seed_scores("pong-medium-1", "lamo")))
    assert lines[1].endswith("1 seed's episodes")
    row, = (row for row in rows_of(page, "statistics") if row[:2] == [["Atari"], ["LaMo"]])
    assert row[5][0].endswith("no interval")


# --- what is missing ---------------------------------------------------------------------------

def test_missing_cells_say_why(page):
    rows = {(row[0][0], row[1][0]): row for row in rows_of(page, "table-2")}
    assert rows["qbert-medium", "1"][2] == ["missing", "paper 79.0 ± 13.1"]
    assert rows["pong-medium", "1"][6][0] == "not in this kit"
    assert rows["pong-medium", "1"][3][0] == "missing"


def test_an_ablation_that_is_lamo_there_is_lamo(page):
    columns = tables.ablation_table({"hopper-medium-0.01": {"lamo-mlp": None}}).columns
    assert columns == ["task", "ratio", "LaMo", "lamo-random", "lamo-mlp"]
    lines = next(row for row in rows_of(page, "ablation-scores") if row[:2] == [["hopper-medium"], ["0.01"]])
    values = seed_scores("hopper-medium-0.01", "lamo-random")
    assert lines[3][0].startswith(said(statistics.fmean(values))) and lines[3][-1] == "paper 46.0 ± 3.1"
    assert grid.is_lamo("paper", "hopper-medium-0.01", "lamo-linear")
    assert not grid.is_lamo("paper", "walker2d-medium-0.01", "lamo-linear")
    assert grid.is_lamo("mini", "kitchen-complete-1", "lamo-lm0.1")
    assert not grid.is_lamo("mini", "pong-medium-1", "bcq")


def test_provenance_has_a_row_a_cell_and_method(page):
    rows = {(row[0][0], row[1][0]): row for row in rows_of(page, "provenance")}
    assert len(rows) == 17
    assert rows["hopper-medium-1", "lamo"][2:6] == [["hopper-medium@0123abcd", "21 episodes"],
                                                    ["gpt2@6c3e9d12"], ["0 1 2"], ["300"]]
    assert rows["hopper-medium-1", "lamo"][-1] == [""]
    assert rows["hopper-medium-1", "iql"][-1] == ["without seed 2, which others have",
                                                 "2 seeds, fewer than the paper's 3"]


def test_what_runs_recorded_and_what_to_be_wary_of(tmp_path):
    shutil.copytree(SYNTHETIC, tmp_path / "results")
    rows = artifacts.read_csv(SYNTHETIC / "paper/hopper-medium-1.csv", ("profile",))
    for seed, code in enumerate(("aaaa", "aaaa", "bbbb-dirty", "aaaa")):
        folder = tmp_path / f"runs/paper/hopper-medium-1/lamo/seed{seed}"
        artifacts.write_json(folder / "config.json", {"code": code, "torch": "2.13.0", "numpy": "2.4.6",
                                                      "device": "cuda", "data_sha256": "f00d" * 16})
        own = [row for row in rows if row["method"] == "lamo" and row["seed"] == str(seed)]
        evaluated_as(folder, own or rows[:1])
        artifacts.write_json(folder / "cost.json", {
            "wall": 1800.0, "cpu": 900, "peak_memory": 5e8 * (seed + 1), "training": {"wall": 9e9}})
    (folder.parent / "seed2/cost.json").write_text("{")
    text, failed = write_report(tmp_path)
    row, = (row for row in rows_of(Page(text), "provenance") if row[:2] == [["hopper-medium-1"], ["lamo"]])
    assert row[2][2] == "SHA-256 f00df00df00d" and row[9] == ["aaaa, bbbb-dirty"]
    assert row[8] == ["torch 2.13.0 numpy 2.4.6 device cuda"]
    assert row[10] == ["wall 1.00 h", "CPU 0.50 h", "peak 1.0 GB", "2 of 3 runs"]
    assert row[-1] == ["run of seed 3 not in the results", "mixed commits: aaaa, bbbb-dirty",
                       "files differed from the commit"]
    assert failed and "seed2/cost.json is not readable" in text
    assert "2 took 1.0 hours (0.5 of CPU) together" in text


def test_each_subset_has_data_of_its_own_which_is_nothing_to_be_wary_of():
    line = {"seeds": [0, 1, 2], "records": {seed: {"data_sha256": f"{seed}" * 64} for seed in range(3)},
            "evaluations": 2, "window": 2, "changed": "", "over": "subsets"}
    assert warnings_of(line, {0, 1, 2}) == []
    assert "mixed data: 0000" in warnings_of(line | {"over": "seeds"}, {0, 1, 2})[0]


def test_a_file_that_may_not_be_read_hides_no_other():
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    troubles = []
    assert grid.attempt(troubles, refused, Path("a.csv")) is None and troubles == ["a.csv: Permission denied"]


def test_what_somebody_is_writing_is_no_result_and_no_film(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("results/paper/.pong-medium-1.vm-1.99.part.csv", "results/paper/pong-medium-1.csv",
                 "videos/paper/pong-medium-1/dt/.seed0.vm-1.99.part.gif",
                 "videos/paper/pong-medium-1/dt/seed0.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in files_of(Path("results/paper"))] == ["pong-medium-1.csv"]
    assert [*report.films_of("paper").files] == ["pong-medium-1/dt/seed0"]


def test_a_subset_alone_is_named_and_no_failure(tmp_path, capsys):
    rows = artifacts.read_csv(SYNTHETIC / "paper/hopper-medium-1.csv", ("profile",))
    alone = tmp_path / "results/paper/hopper-medium-1-d3.csv"
    artifacts.write_csv(alone, tuple(rows[0]), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert not report.main(report.OPTIONS.parse_args(["paper"]))
    assert "hopper-medium-1-d3.csv is of subset 3 alone" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()
    shutil.copy(SYNTHETIC / "paper/pong-medium-1.csv", alone.parent)
    assert not write_report(tmp_path)[1] and "-d3.csv is of subset 3 alone" in capsys.readouterr().err


def test_a_folders_name_may_hold_dots(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw_all", lambda cells, profile: {})
    monkeypatch.chdir(tmp_path)
    shutil.copytree(SYNTHETIC / "paper", "old/v1.2")
    report.main(report.OPTIONS.parse_args(["paper", "--results", "old/v1.2"]))
    assert Path("report/old-v1.2.html").exists() and Path("report/old-v1.2.md").exists()
    # never in the root of the file system, nor called by a dot
    monkeypatch.setattr(os.path, "abspath", lambda path: f"/{Path(path).name}")
    report.main(report.OPTIONS.parse_args(["paper", "--results", "old/v1.2"]))
    assert Path("report/v1.2.html").exists()


def test_cells_outside_of_the_papers_tables(tmp_path):
    rows = artifacts.read_csv(SYNTHETIC / "paper/hopper-medium-1.csv", ("profile",))
    artifacts.write_csv(tmp_path / "results/paper/hopper-medium-0.2.csv", tuple(rows[0]),
                        [row | {"ratio": "0.2"} for row in rows])
    page = Page(write_report(tmp_path)[0])
    other = rows_of(page, "other")
    assert other[0][:2] == [["hopper-medium"], ["0.2"]] and other[1][0] == ["average"]


def test_a_cell_that_others_published_is_beside_the_papers_tables(tmp_path, monkeypatch):
    more = {"task": "hopper-medium", "ratio": 0.2, "method": "lamo", "mean": 29.4, "std": None, "table": "8"}
    monkeypatch.setattr(tables, "published", lambda: [*published(), more])
    rows = artifacts.read_csv(SYNTHETIC / "paper/hopper-medium-1.csv", ("profile",))
    artifacts.write_csv(tmp_path / "results/paper/hopper-medium-0.2.csv", tuple(rows[0]),
                        [row | {"ratio": "0.2"} for row in rows])
    text = write_report(tmp_path)[0]
    assert any("29.4" in line for line in rows_of(Page(text), "other")[0][2])
    assert re.search("0 of the paper\\S+ 27 cells have results", text)


def test_a_damaged_file_is_named_and_hides_nothing_else(tmp_path):
    shutil.copytree(SYNTHETIC, tmp_path / "results")
    (tmp_path / "results/paper/pong-medium-1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "results/paper/no-such-task-1.csv").write_text("a,b\n1,2\n")
    text, failed = write_report(tmp_path)
    assert failed and "pong-medium-1.csv is not readable" in text and "no-such-task" in text
    page = Page(text)
    assert rows_of(page, "table-1")[0][2][0] != "missing"
    assert all(row[2][0] == "missing" for row in rows_of(page, "table-2"))


def test_the_agents_that_were_filmed_are_in_the_page(tmp_path):
    shutil.copytree(SYNTHETIC, tmp_path / "results")
    assert "image/gif" not in write_report(tmp_path)[0]
    film = tmp_path / "videos/paper/pong-medium-1/dt/seed2.gif"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"GIF89a of Pong")
    text = write_report(tmp_path)[0]
    data = base64.b64encode(film.read_bytes()).decode()
    assert text.count(f"<img src='data:image/gif;base64,{data}' alt='pong-medium-1/dt/seed2'>") == 1
    assert "image/gif" in text.partition("The agents at play</h2>")[2]
    link, = re.findall(r"!\[pong-medium-1/dt/seed2\]\((.*?)\)", (tmp_path / "report/paper.md").read_text())
    assert (tmp_path / "report" / link).samefile(film)


def test_no_results_are_one_line(kit):
    line = one_line(kit("-m", "paper.report", "mini", check=False))
    assert "results/mini holds no results" in line and "make hopper-medium-0.01" in line
    assert "invalid choice" in one_line(kit("-m", "paper.report", "big", check=False))


