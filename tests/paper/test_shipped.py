"""paper/shipped.py: what is to be run, what of it is shipped, and that the documents say what rows say."""

import re
from pathlib import Path

import pytest
from conftest import KIT, evaluated_as
from PIL import Image
from test_claims import runs
from test_plot import make_rows

from kit import artifacts, settings
from kit.statistics import summarise
from paper import grid, shipped
from tasks import METHODS, TASKS

CELL = "hopper-medium-0.01"
LOSS = {"heldout_floor": float("nan"), "train_loss": 0.1, "score_window": 2, "changed": ""}


@pytest.fixture
def there(tmp_path, monkeypatch):
    """there(method, [a score a seed], ...): results/mini of these runs, each with its record."""
    monkeypatch.chdir(tmp_path)
    rows = []

    def run_all(method, scores, loss=0.15, code="abc", last=None, heldout="h1", data="", played=None,
                **other):
        last = last or settings.configuration(f"mini/{CELL}/{method}/seed0")["steps"]
        target = None if method == "bc" else 3600.0
        for seed, score in enumerate(scores):
            rows[:] = [row for row in rows if (row["method"], row["seed"]) != (method, seed)]
            rows.extend(make_rows({last // 2: [score], last: [score - 1, score + 1]}, method, target,
                                  seed=seed, subset=seed, heldout_loss=loss + seed / 1000,
                                  heldout_data=heldout, **LOSS))
            run = f"mini/{CELL}{f'-d{seed}' * (seed > 0)}/{method}/seed{seed}"
            folder = artifacts.run_folder(run)
            folder.mkdir(parents=True, exist_ok=True)
            artifacts.write_json(folder / "config.json", settings.configuration(run) | {
                "steps": last, "data_sha256": (data or f"{seed}") * 64, "code": code, "torch": "2",
                "numpy": "3", "device": "cpu", "threads": 1} | other)
            artifacts.write_json(folder / "eval.json", played or {})
            evaluated_as(folder, [row for row in rows if (row["method"], row["seed"]) == (method, seed)])
        columns = artifacts.RESULT_COLUMNS + artifacts.EXTRA_COLUMNS
        path = artifacts.results_path(f"mini/{CELL}-dN")
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_csv(path, columns, [{name: row.get(name, "") for name in columns} for row in rows])
        shipped.recorded.cache_clear()

    return run_all


def run(*words):
    shipped.main(shipped.OPTIONS.parse_args(words))


def missing():
    return list(shipped.missing())


def test_what_is_missing_is_words_for_make(there):
    before = missing()
    assert before[0] == f'{CELL} "METHODS=lamo dt lamo-random" "SEEDS=0 1 2 3 4" SUBSETS=seed'
    assert f'{CELL} "METHODS=wiki bc td3bc iql cql" "SEEDS=0 1 2" SUBSETS=seed' in before
    for line in before:
        cell, task = line.split()[0], line.split()[0].rpartition("-")[0]
        assert cell in settings.cells() and line.endswith("SUBSETS=seed") != cell.endswith("-1")
        assert "iql" not in line or not TASKS[task].get("discrete")  # which Atari has not
        assert (" lamo-linear" in line) <= (cell != CELL), "linear embeddings are LaMo's own on Hopper"
    assert any("lamo-linear" in line for line in before)
    there("lamo", [40, 41])
    there("dt", [30])
    assert missing() == before  # until they are taken
    run("--take")
    assert missing()[:3] == [f'{CELL} "METHODS=lamo" "SEEDS=2 3 4" SUBSETS=seed',
                             f'{CELL} "METHODS=dt" "SEEDS=1 2 3 4" SUBSETS=seed',
                             f'{CELL} "METHODS=lamo-random" "SEEDS=0 1 2 3 4" SUBSETS=seed']


def test_rows_are_shipped_with_what_made_them_and_stay(there, capsys):
    there("lamo", [40, 41])
    run("--take")
    path = shipped.shipped_path(CELL)
    assert f"{path}: 6 rows of 2 runs" in capsys.readouterr().out
    rows = artifacts.read_csv(path, shipped.COLUMNS)
    assert {(row["seed"], row["code"], row["data_sha256"], row["torch"], row["dtype"]) for row in rows} == {
        ("0", "abc", "0" * 8, "2", "float32"), ("1", "abc", "1" * 8, "2", "float32")}
    once = path.read_bytes()
    run("--take")
    assert path.read_bytes() == once and not capsys.readouterr().out
    # another checkout, which has but one of them, made by another commit
    artifacts.results_path(f"mini/{CELL}-dN").unlink()
    there("lamo", [45], code="def")
    there("dt", [30])
    artifacts.write_csv(artifacts.results_path(f"mini/{CELL}-dN"), shipped.COLUMNS[:-len(shipped.MADE_BY)], [
        row for row in artifacts.read_csv(artifacts.results_path(f"mini/{CELL}-dN"), ())
        if row["seed"] == "0"])
    run("--take")
    rows = artifacts.read_csv(path, shipped.COLUMNS)
    assert list(dict.fromkeys((row["method"], row["seed"], row["code"]) for row in rows)) == [
        ("lamo", "0", "def"), ("lamo", "1", "abc"), ("dt", "0", "abc")]
    cells, troubles = grid.gather("mini", shipped.FOLDER)
    line = cells[CELL]["lamo"]
    assert not troubles and line["records"][0]["code"] == "def" and line["records"][1]["code"] == "abc"


def test_rows_of_a_run_that_was_trained_anew_since_are_not_shipped_as_its_own(there):
    there("lamo", [40, 41])
    path = artifacts.results_path(f"mini/{CELL}-dN")
    before = path.read_bytes()
    there("lamo", [40, 45], code="def", last=1200)
    folder = artifacts.run_folder(f"mini/{CELL}-d1/lamo/seed1")
    evaluated_as(folder, [row | {"length": 2} for row in artifacts.read_csv(folder / "eval.csv", ())])
    path.write_bytes(before)  # as they were gathered
    line = f"runs/mini/{CELL}-d1/lamo/seed1 was trained or played anew .* --collect mini/{CELL}-dN"
    with pytest.raises(SystemExit, match=line):
        run("--take")
    (folder / "eval.csv").unlink()  # it is being trained
    with pytest.raises(SystemExit, match=line):
        run("--take")
    assert not shipped.shipped_path(CELL).exists()


def test_a_row_names_all_that_trained_and_played_its_run(there):
    """One run went on under another commit, and was played by a third, in another precision."""
    machine = {"torch": "2", "numpy": "3", "device": "cpu", "threads": 1}
    there("lamo", [40], dtype="float32", resumed=[{"step": 7, "code": "def", "threads": 2}], played={
        "dtype": "bfloat16", "played_by": [machine | {"code": "abc"}, machine | {"code": "ghi"}]})
    run("--take")
    row, *_ = artifacts.read_csv(shipped.shipped_path(CELL), shipped.COLUMNS)
    assert {name: row[name] for name in shipped.MADE_BY[1:]} == {
        "code": "abc+def+ghi", "torch": "2", "numpy": "3", "device": "cpu", "threads": "1+2",
        "dtype": "float32+bfloat16"}
    assert "dtype" not in shipped.of_settings(CELL)["lamo"]  # which rows say


def test_a_kill_between_rows_and_settings_makes_no_row_current(there, monkeypatch):
    there("dt", [40, 41])
    run("--take")
    assert not any("dt" in line and "SEEDS=0" in line for line in missing() if line.startswith(f"{CELL} "))
    monkeypatch.setitem(METHODS, "dt", METHODS["dt"] | {"mini": {"lr": 7e-3}})  # what is shipped is of others
    artifacts.results_path(f"mini/{CELL}-dN").unlink()
    there("dt", [42])
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("--take")
    assert not shipped.shipped_rows(CELL)
    run("--take")
    assert {row["seed"] for row in shipped.shipped_rows(CELL)} == {"0"}
    for path in (shipped.shipped_path(CELL), shipped.settings_path(CELL)):
        path.unlink()
    with monkeypatch.context() as patch:  # of a new cell
        patch.setattr(artifacts, "write_whole", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run("--take")
    assert missing() and not shipped.shipped_rows(CELL)
    run("--take")
    assert {row["seed"] for row in shipped.shipped_rows(CELL)} == {"0"}
    monkeypatch.setattr(shipped, "METHODS", {name: METHODS[name] for name in METHODS if name != "dt"})
    assert not shipped.shipped_rows(CELL), "of a method that is gone"


@pytest.mark.parametrize("other", [{"last": 100_000}, {"last": 600}, {"lr": 7e-3}])
def test_runs_of_other_settings_are_not_shipped(other, there, capsys):
    there("lamo", [40, 41])
    there("dt", [30], **other)
    run("--take")
    assert {row["method"] for row in artifacts.read_csv(shipped.shipped_path(CELL), shipped.COLUMNS)} == {
        "lamo"}
    assert "METHODS=dt lamo-random" in missing()[1]


def test_make_shipped_fails_when_what_is_missing_cannot_be_told(kit):
    (kit.folder / shipped.FOLDER).mkdir(parents=True)
    (kit.folder / shipped.FOLDER / f"{CELL}-dN.csv.gz").write_bytes(b"no")
    assert f"{CELL}-dN" in kit("make", "shipped", check=False).stderr
    assert kit("make", "shipped", check=False).returncode


def test_rows_of_settings_that_have_changed_since_are_missing(there, monkeypatch):
    there("lamo", [40, 41])
    there("dt", [30, 31])
    run("--take")
    assert not any("dt" in line and CELL in line and "SEEDS=0" in line for line in missing())
    path, had = shipped.shipped_path(CELL), shipped.shipped_path(CELL).read_bytes()
    monkeypatch.setitem(METHODS, "dt", METHODS["dt"] | {"mini": {"lr": 7e-3}})
    assert missing()[1] == f'{CELL} "METHODS=dt lamo-random" "SEEDS=0 1 2 3 4" SUBSETS=seed'
    assert path.read_bytes() == had  # until others are taken, also where the runs of these are still there
    there("lamo", [40, 41, 42])
    run("--take")
    assert {row["method"] for row in artifacts.read_csv(path, shipped.COLUMNS)} == {"lamo"}
    assert list(artifacts.read_json(shipped.settings_path(CELL), "")) == ["lamo"]
    shipped.settings_path(CELL).unlink()
    with pytest.raises(SystemExit, match="restore it with git checkout"):
        missing()


def test_what_was_played_with_other_words_is_not_shipped_and_replaces_nothing(there):
    there("lamo", [40])
    run("--take")
    had = shipped.shipped_path(CELL).read_bytes()
    path = artifacts.results_path(f"mini/{CELL}-dN")
    columns = shipped.COLUMNS[:-len(shipped.MADE_BY)]
    artifacts.write_csv(path, columns, [
        {name: row[name] for name in columns} | {"changed": "episodes=2", "normalized_score": "99"}
        for row in artifacts.read_csv(path, ())])
    run("--take")  # its config.json is as tasks.py has it
    assert shipped.shipped_path(CELL).read_bytes() == had


def test_rows_of_other_data_do_not_stay(there, capsys):
    def take_another(**made):  # another checkout's, which has DT alone
        there("dt", [30, 31], heldout="h2", **made)
        path = artifacts.results_path(f"mini/{CELL}-dN")
        rows = [row for row in artifacts.read_csv(path, ()) if row["method"] == "dt"]
        artifacts.write_csv(path, shipped.COLUMNS[:-len(shipped.MADE_BY)], rows)
        run("--take")
        return {row["method"] for row in artifacts.read_csv(shipped.shipped_path(CELL), shipped.COLUMNS)}

    there("lamo", [40, 41])
    there("bc", [20], heldout="")
    run("--take")
    assert take_another() == {"dt", "bc"}  # bc's has no held-out episodes, but the same subset
    out = capsys.readouterr().out
    assert "2 runs of other data are left out, which git checkout restores: lamo 0, lamo 1" in out
    assert take_another(data="9") == {"dt"}


@pytest.mark.parametrize("data, stay", [("d@1", {"0", "1"}), ("mini-pong-script@2", {"1"})])
def test_an_agents_other_subsets_may_be_played_on_another_cpu(data, stay, there):
    there("lamo", [40, 41])
    run("--take")
    path, columns = artifacts.results_path(f"mini/{CELL}-dN"), shipped.COLUMNS[:-len(shipped.MADE_BY)]
    rows = [row | {"heldout_data": "h2", "data": data} for row in artifacts.read_csv(path, ())
            if row["seed"] == "1"]
    artifacts.write_csv(path, columns, [{name: row[name] for name in columns} for row in rows])
    run("--take")
    assert {row["seed"] for row in artifacts.read_csv(shipped.shipped_path(CELL), shipped.COLUMNS)} == stay


def test_the_documents_tables(there):
    there("lamo", [40, 44, 48])
    there("dt", [30, 38, 34], loss=0.17)
    there("bc", [20])
    there("lamo-random", [20, 22])
    run("--take")
    cells = shipped.load()
    front, every, methods = ("\n".join(lines(cells)) for lines in shipped.DOCUMENTS.values())
    assert front.startswith("|  | LaMo | DT | random weights | data mean | LaMo - DT: score<br>")
    row = f"| `{CELL}`, 3 subsets | {shipped.score(summarise(cells[CELL])[0])} | 34.2 [24.3, 44.2] |"
    assert f"{row} 21.2 (2 subsets) |" in front and "| 44.2 [34.3, 54.2] |" in front
    # differences 10, 6, 14 and three times -0.02; t of two degrees of freedom is 4.303
    assert "| **+10.0 [+0.1, +19.9]**<br>**-0.0200 [-0.0200, -0.0200]** | +21.0<br>+0.0000 |" in front
    assert f"| `{CELL}` |" in every and "| 34.2 [24.3, 44.2] |" in every
    assert "| `bc` | 20.2 (1 run) |" in methods and "`cql`" not in methods
    claim = f"| few data: the difference at each ratio | `lamo` - `dt` | `{CELL}` | 3 subsets |"
    told = "+10.0 [+0.1, +19.9] +"
    assert f"{claim} {told} | not measured | {told} | {told} | -0.0200 [-0.0200, -0.0200] - |" in methods
    assert "`lamo` - `bc`" not in methods  # of one replication
    there("lamo", [40, 44, 48, 44])  # now the others have one replication less, and say so
    run("--take")
    cells = shipped.load()
    front, every, _ = ("\n".join(lines(cells)) for lines in shipped.DOCUMENTS.values())
    for table in (front, every):
        assert "| 34.2 [24.3, 44.2] (3 subsets) | 21.2 (2 subsets) |" in table and "4 subsets" in table
    for name in shipped.DOCUMENTS:
        artifacts.write_whole(Path(name), lambda part: part.write_text("\n".join(shipped.MARKERS)))
    run("--write")
    assert front in Path("README.md").read_text()
    assert Image.open(shipped.FIGURE).text["Description"] == shipped.drawn_of(CELL)
    for figure in shipped.CLAIMED_FIGURES:
        assert Image.open(figure).text["Description"] == shipped.claims_drawn(cells)


def test_the_mean_over_tasks_is_of_the_seeds_that_a_method_has_everywhere():
    few = {f"{task}-medium-0.01": [
        row for method, scores in (("lamo", lamo), ("dt", [0.0] * 3), *((("lamo-random", [7.0] * 3),) * more))
        for row in runs(method, scores, [0.1] * len(scores), task=f"{task}-medium", heldout_data="h")]
        for task, lamo, more in (("hopper", [1.0, 2.0, 3.0], True),
                                 ("walker2d", [1.0, 4.0, 7.0, 99.0], False))}
    row = [*shipped.front(few)][-3]
    # LaMo's means over both tasks are 1, 3, 5: 4.303 * 2 / sqrt(3) is 4.97; Walker2d lacks random weights
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["mean over tasks, 3 of each", "3.0 [-2.0, 8.0]", "0.0 [0.0, 0.0]", ""]
    assert cells[5:] == ["+3.0 [-2.0, +8.0]<br>+0.0 % [+0.0 %, +0.0 %]", ""]
    few["hopper-medium-0.01"] = [row for row in few["hopper-medium-0.01"]
                                 if (row["method"], row["seed"]) != ("dt", 2)]
    row = [*shipped.front(few)][-3]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:3] == ["mean over tasks, 3 of each", "3.0 [-2.0, 8.0]", "0.0 (2 of each)"]
    few["hopper-medium-0.01"] = [row for row in few["hopper-medium-0.01"] if row["method"] == "lamo-random"]
    assert [*shipped.front(few)][-3].startswith("| mean over tasks, none |")


# --- what is shipped ---------------------------------------------------------------------------

@pytest.fixture(scope="module")
def cells():
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(KIT)
        yield shipped.load()


@pytest.mark.parametrize("name", shipped.DOCUMENTS)
def test_the_documents_are_of_the_shipped_rows(name, cells):
    text = (KIT / name).read_text()
    assert artifacts.filled(text, shipped.MARKERS, shipped.DOCUMENTS[name](cells), name) == text, (
        "make shipped-report")


def test_the_figures_are_of_the_shipped_rows(cells, monkeypatch):
    monkeypatch.chdir(KIT)
    for figure, drawn in ((shipped.FIGURE, shipped.drawn_of(next(iter(cells)))),
                          *((figure, shipped.claims_drawn(cells)) for figure in shipped.CLAIMED_FIGURES)):
        assert Image.open(figure).text["Description"] == drawn, "make shipped-report"


def test_every_shipped_row_is_of_todays_settings(cells, monkeypatch):
    monkeypatch.chdir(KIT)
    for cell, rows in cells.items():
        assert len(shipped.shipped_rows(cell)) == len(rows), f"{cell}: make shipped trains what is missing"


def test_every_shipped_row_can_be_traced(cells):
    assert cells
    for cell, rows in cells.items():
        for row in rows:
            assert row["profile"] == "mini" and "@" in row["data"] and row["torch"] and row["numpy"]
            assert re.fullmatch("[0-9a-f]{12}", row["code"]), (cell, row["code"])  # of a clean tree
            assert re.fullmatch(r"none|random-mini|random-smollm2(:\d)?|[\w-]+@[0-9a-f]{8}(:\d)?", row["lm"])
            assert row["dtype"] in ("", "float32") or (  # "": from before it was noted
                row["dtype"] == "bfloat16" and "smollm2" in row["method"]), (cell, row["dtype"])
