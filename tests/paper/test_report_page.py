"""paper/: the figures, hostile text, grids of one cell, and the page in a browser."""

import html
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import evaluated_as
from test_report import SYNTHETIC, Page, average, rows_of, seed_scores, write_report

from kit import artifacts
from kit.looks import hatch, style
from paper import figures, grid


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the synthetic results and their report."""
    folder = tmp_path_factory.mktemp("report")
    shutil.copytree(SYNTHETIC, folder / "results")
    assert not write_report(folder, figures=True)[1]
    return folder


# --- figures -----------------------------------------------------------------------------------

def test_figures_are_written(made):
    names = {"bars", "ratios", "claims", "profiles", "ablations",
             *(f"curves-{suite}" for suite in figures.SUITES)}
    files = {path.name: path.stat().st_size for path in (made / "report/paper").iterdir()}
    assert {*files} == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert min(files.values()) > 5000
    markdown = (made / "report/paper.md").read_text()
    assert {*re.findall(r"\]\(paper/(.*?)\.png\)", markdown)} == names


def test_equal_results_give_equal_bytes(tmp_path):
    (tmp_path / "results/paper").mkdir(parents=True)
    shutil.copy(SYNTHETIC / "paper/kitchen-complete-1.csv", tmp_path / "results/paper")
    found = []
    for _ in range(2):
        write_report(tmp_path, figures=True)
        found.append({path: path.read_bytes() for path in (tmp_path / "report").rglob("*.*")})
        shutil.rmtree(tmp_path / "report")
    assert found[0] == found[1] and len(found[0]) > 8


@pytest.fixture(scope="module")
def cells(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        return grid.gather("paper", Path("results/paper"))[0]


@pytest.fixture(scope="module")
def drawn(cells):
    return {profile: figures.draw_all(cells, profile) for profile in ("paper", "mini")}


def hollow(figure):
    return [line for axis in figure.axes for line in axis.get_lines()
            if line.get_markerfacecolor() == "white"]


def test_the_papers_values_are_hollow_and_in_the_paper_profile_alone(drawn):
    for profile, pictures in drawn.items():
        assert all(hollow(figure) == [] for name, (_, figure, _) in pictures.items()
                   if profile == "mini" or name.startswith(("curves", "profiles")))
        for _, figure, caption in pictures.values():
            assert all(word in caption for word in ("Seed", "episodes", "data ", f"the {profile} profile"))
            assert f"profile {profile}" in figure.get_suptitle()
            assert ("not the paper's numbers" in figure.get_suptitle()) == (profile == "mini")
    marks = hollow(drawn["paper"]["ratios"][1])
    assert [*marks[0].get_ydata()] == [57.0, 52.0, 73.7, 74.1]
    assert marks[0].get_marker() == style("lamo")["marker"]


def test_bars_are_the_means_over_the_cells_that_are_there(drawn):
    figure = drawn["paper"]["bars"][1]
    kitchen = figure.axes[0].patches
    both = ["kitchen-partial-1", "kitchen-complete-1"]
    assert kitchen[0].get_height() == pytest.approx(average(both, "lamo"))
    assert kitchen[0].get_alpha() == 0.45 and kitchen[2].get_alpha() == 1  # 2 of 6 cells; 2 of 2
    assert kitchen[2].get_height() == pytest.approx(average(both, "lamo"))
    assert "2 of 6" in [text.get_text() for text in figure.axes[0].texts]
    assert kitchen[0].get_hatch() == hatch("lamo") != kitchen[1].get_hatch() == hatch("dt")


def test_profiles_and_chances_are_those_of_the_seeds(drawn):
    axes = drawn["paper"]["profiles"][1].axes
    row = next(n for n, axis in enumerate(axes) if axis.get_title().startswith("Kitchen"))
    share = axes[row].get_lines()[0].get_ydata()
    assert share[0] == 1 and share[-1] == 0 and sorted(share, reverse=True) == share.tolist()
    both = ["kitchen-partial-1", "kitchen-complete-1"]
    pairs = [[(one > other) + (one == other) / 2 for one in seed_scores(cell, "lamo")
              for other in seed_scores(cell, "dt")] for cell in both]
    marks = [line.get_xdata()[0] for line in axes[row + 2].get_lines() if len(line.get_xdata()) == 1]
    assert marks[0] == pytest.approx(statistics.fmean(map(statistics.fmean, pairs)))
    assert marks[0] != 0.5  # or it could be drawn the other way round


def test_an_ablations_mark_is_the_mean_of_its_cells(drawn):
    for axis in drawn["paper"]["ablations"][1].axes:
        cells = [line.get_ydata() for line in axis.get_lines() if line.get_color() == "grey"]
        marks = [line.get_ydata()[0] for line in axis.get_lines()
                 if len(line.get_xdata()) == 1 and line.get_markerfacecolor() != "white"]
        assert marks == pytest.approx(np.mean(cells, 0).tolist())
        said = [float(text.get_text()) for text in axis.texts]
        assert said == pytest.approx(marks, abs=0.051) and len(cells) > 0


def test_curves_are_means_over_seeds(made, cells):
    line = cells["hopper-medium-1"]["iql"]
    rows = [row for row in artifacts.read_csv(made / "results/paper/hopper-medium-1.csv", ("profile",))
            if row["method"] == "iql" and row["step"] == "200"]
    seeds = [statistics.fmean(float(row["normalized_score"]) for row in rows if row["seed"] == seed)
             for seed in "01"]
    assert line["curve"][1] == pytest.approx((2 / 3, statistics.fmean(seeds), statistics.stdev(seeds)))


def test_the_data_of_a_curve_are_those_of_the_method_with_most_seeds(cells):
    of_cell = {method: line | {"data_score": 30.0 if method == "dt" else 50.0, "seeds": [0, 1, 2][:count]}
               for (method, line), count in zip(cells["hopper-medium-1"].items(), (1, 2, 2, 2, 2, 2, 2, 2),
                                                strict=False)}
    of_cell["dt"]["seeds"] = [0, 1, 2]
    _, figure, _ = figures.curves({"hopper-medium-1": of_cell}, "paper", "mujoco")
    (line,) = [line for line in figure.axes[0].get_lines() if line.get_gid() == "data"]
    assert {*line.get_ydata()} == {30.0}


# --- grids of one cell, and text from files ----

@pytest.mark.parametrize("cell, methods", [
    ("pong-medium-1", ("bc",)), ("hopper-medium-1", ("iql", "dt")), ("kitchen-complete-1", ("lamo",)),
    ("hopper-medium-0.01", ("lamo-random",))])
def test_a_grid_of_one_cell(tmp_path, cell, methods):
    rows = [row for row in artifacts.read_csv(SYNTHETIC / f"paper/{cell}.csv", ("profile",))
            if row["method"] in methods and row["seed"] == "0"]
    for profile in ("mini", "paper"):
        artifacts.write_csv(tmp_path / f"results/{profile}/{cell}.csv", tuple(rows[0]),
                            [row | {"profile": profile} for row in rows])
        # drawing takes a second, and is the same for both but for hollow marks
        text, failed = write_report(tmp_path, profile, figures=profile == "paper")
        page = Page(text)
        assert not failed and {"table-1", "table-2", "table-3", "provenance"} <= {*page.tables}
        assert len(rows_of(page, "provenance")) == len(methods)
        assert ("These are not the paper&#x27;s numbers" in text) == (profile == "mini")


HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)> | `b` **c** $x_{$ ' \" & é"


def test_hostile_text_is_shown_as_text(tmp_path):
    for name in ("hopper-medium-1", "pong-medium-1"):
        rows = artifacts.read_csv(SYNTHETIC / f"paper/{name}.csv", ("profile",))
        artifacts.write_csv(tmp_path / f"results/paper/{name}.csv", tuple(rows[0]), [
            row | {"lm": HOSTILE, "data": f"{HOSTILE}\n@1", "changed": f"lm={HOSTILE}"} for row in rows])
    artifacts.write_json(tmp_path / "runs/paper/hopper-medium-1/lamo/seed0/config.json",
                         {"code": HOSTILE, "torch": HOSTILE, "data_sha256": [HOSTILE], "cost": HOSTILE})
    evaluated_as(tmp_path / "runs/paper/hopper-medium-1/lamo/seed0", [
        row for row in artifacts.read_csv(tmp_path / "results/paper/hopper-medium-1.csv", ("profile",))
        if row["method"] == "lamo" and row["seed"] == "0"])
    (tmp_path / "results/paper/<img src=x>.csv").write_text("a\n")
    text, _ = write_report(tmp_path, figures=True)
    page = Page(text)
    assert page.tags["script"] == 1 and page.tags["table"] == len(page.tables) and "<img src=x" not in text
    assert page.tags["img"] == text.count("data:image/svg+xml")
    row = next(row for row in rows_of(page, "provenance") if row[1] == ["lamo"])
    assert row[3] == [HOSTILE] and row[2][0] == f"{HOSTILE} @1" and row[9] == [HOSTILE]
    assert "Settings that are not those of the runs" in text
    markdown = (tmp_path / "report/paper.md").read_text()
    assert "<script" not in markdown and "<img" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


# --- the page in a browser ---------------------------------------------------------------------

PROBE = """<script>
addEventListener("load", () => {
const pictures = [...document.images].map((image) => image.complete && image.naturalWidth > 300);
const tables = [...document.querySelectorAll("table")].map((table) => table.getBoundingClientRect().height);
const column = (table, n) => [...table.tBodies[0].rows].map((row) => row.cells[n].children[0].textContent);
const table = document.querySelector("#table-1-table"), before = column(table, 0);
table.tHead.rows[0].cells[2].click();
const up = column(table, 2);
table.tHead.rows[0].cells[2].click();
document.title = JSON.stringify({ before, up, down: column(table, 2), pictures, tables });
});
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_in_a_browser(made, tmp_path):
    """Chromium shows every table and picture, sorts, and complains of nothing."""
    text = (made / "report/paper.html").read_text()
    probe = tmp_path / "probe.html"
    probe.write_text(text.replace("</body>", PROBE + "</body>"))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update",
         f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--virtual-time-budget=10000",
         "--dump-dom", probe.as_uri()],
        capture_output=True, text=True, timeout=60)
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.S).group(1)))
    assert len(seen["pictures"]) == 9 and all(seen["pictures"])
    assert len(seen["tables"]) == len(Page(text).tables) == 6 and all(seen["tables"])
    assert seen["before"] == ["kitchen-partial", "kitchen-complete", "reacher2d-medium"]
    scores = [float(score.split()[0]) for score in seen["up"]]
    assert scores == sorted(scores) and seen["down"] == seen["up"][::-1]
