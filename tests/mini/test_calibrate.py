"""mini/calibrate.py: the search, that it goes on, its table, and one training for real."""

from pathlib import Path

import numpy as np
import pytest
from conftest import KIT

import evaluate
import prepare_data
import train
from kit import artifacts, imitation, settings
from mini import calibrate


def run(*arguments):
    calibrate.main(calibrate.OPTIONS.parse_args(list(map(str, arguments))))


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """search(...): a search whose trainings cost nothing: lr 0.001 is best, 80 steps a batch, and a short
    context is better. search.asked holds what was trained."""
    monkeypatch.chdir(tmp_path)

    def measure(run, changes):
        search.asked.append((run, changes))
        seed = settings.parse_run(run)[4]
        loss = (abs(np.log2(changes["lr"] / 0.001)) + 0.1 * (changes["batch_size"] * changes["context"] != 80)
                + 0.01 * changes["context"] + 0.001 * seed)
        every = changes["eval_every"]
        return {every: loss + 0.5, 2 * every: loss, 3 * every: loss + 0.2}, {
            "lm": "none", "code": "c", "heldout_data": search.episodes, "dtype": "float32", "train_loss": 0.5}

    def search(*more):
        run("reacher2d-medium", "--methods", "lamo", "--csv", "found.csv", "--subsets", 100, 101,
            "--batch_size", 64, 16, "--context", 5, 1, "--lr", 0.002, 0.001, 0.004, *more)
        return artifacts.read_csv(tmp_path / "found.csv", calibrate.COLUMNS)

    monkeypatch.setattr(calibrate, "measure", measure)
    search.asked, search.episodes = [], "d"
    return search


def test_one_setting_after_the_other_with_the_best_of_those_before(searched):
    rows = searched("--steps", 1000, "--checkpoints", 10)
    tried = [(int(row["batch_size"]), float(row["lr"]), int(row["context"])) for row in rows[::2]]
    assert tried == [(64, 0.002, 5), (16, 0.002, 5), (16, 0.001, 5), (16, 0.004, 5), (80, 0.001, 1)]
    assert [row["subset"] for row in rows] == ["100", "101"] * 5
    assert searched.asked[0] == ("mini/reacher2d-medium-0.1-d100/lamo/seed100", {
        "lr": 0.002, "batch_size": 64, "context": 5, "schedule": "cosine", "dropout": 0.0, "quick_init": True,
        "steps": 1000, "eval_every": 100})
    row = rows[4]
    assert (row["loss"], row["best_step"], row["last_loss"]) == ("0.15", "200", "0.35")
    assert row["curve"] == "100:0.65 200:0.15 300:0.35" and row["heldout_data"] == "d"


def test_a_search_goes_on_where_it_was_stopped(searched):
    whole, asked = searched("--steps", 1000), len(searched.asked)
    artifacts.write_csv("found.csv", calibrate.COLUMNS, whole[:5])
    assert searched("--steps", 1000) == whole and len(searched.asked) == asked + len(whole) - 5
    assert searched("--steps", 1000) == whole and len(searched.asked) == asked + len(whole) - 5
    more = searched("--steps", 1000, "--subsets", 100, 101, 102)
    assert len(more) == len(whole) * 1.5
    assert len(searched("--steps", 500)) > len(more)  # another training


def test_losses_on_other_episodes_are_not_compared(searched):
    """The held-out episodes have changed since: what is compared with a new candidate is measured again."""
    old = searched("--steps", 1000)
    searched.episodes, asked = "e", len(searched.asked)
    rows = searched("--steps", 1000, "--lr", 0.002, 0.001, 0.008)
    new = rows[len(old):]
    assert rows[:len(old)] == old and {row["heldout_data"] for row in new} == {"e"}
    # the new rate, those beside it, and the context after them; batches, of which all are old, are not
    assert [(row["batch_size"], row["lr"], row["context"]) for row in new[::2]] == [
        ("16", "0.008", "5"), ("16", "0.002", "5"), ("16", "0.001", "5"), ("80", "0.001", "1")]
    assert len(new) == 8 == len(searched.asked) - asked
    assert len([line for line in calibrate.table(rows) if line.startswith("| `")]) == 5 + 4


def test_both_starts_are_compared(searched):
    rows = searched("--steps", 1000, "--quick_init", "False", "True")
    assert [row["quick_init"] for row in rows] == ["False"] * 10 + ["True"] * 2


def test_settings_are_not_chosen_on_reported_subsets_or_by_values(searched):
    for words, said in ((("--subsets", 100, 3), "--subsets 3: settings are not chosen"),
                        (("--methods", "iql"), "iql does not imitate")):
        with pytest.raises(SystemExit, match=said):
            searched(*words)
    for words, said in (((), "or --table"), (("hopper",), "no task 'hopper'")):
        with pytest.raises(SystemExit, match=said):
            run(*words)
    assert not searched.asked


def test_discrete_cql_is_searched_too(searched, monkeypatch):
    about = {"lm": "none", "code": "c", "heldout_data": "d", "dtype": "float32", "train_loss": None}
    monkeypatch.setattr(calibrate, "measure", lambda run, changes: ({300: changes["lr"]}, about))
    run("pong-medium", "--methods", "cql", "--lr", 1e-3, 5e-4, "--csv", "found.csv")
    rows = artifacts.read_csv("found.csv", calibrate.COLUMNS)
    assert [(row["method"], row["loss"]) for row in rows] == [("cql", "0.001"), ("cql", "0.0005")]


def test_a_continuous_baseline_is_searched_by_its_actors_rate(searched, monkeypatch):
    asked = []
    about = {"lm": "none", "code": "c", "heldout_data": "d", "dtype": "float32", "train_loss": None}
    monkeypatch.setattr(calibrate, "measure", lambda run, changes: (
        asked.append(changes["actor_lr"]) or {10: changes["actor_lr"]}, about))
    run("kitchen-complete", "--methods", "bc", "--steps", 20, "--csv", "found.csv", "--subsets", 100)
    assert asked == [1.5e-4, 3e-4, 6e-4]
    config = settings.configuration("mini/kitchen-complete-1/bc/seed0")
    assert calibrate.of_search(config)["lr"] == config["actor_lr"] == 3e-4 and "lr" not in config


def test_the_table_has_what_was_tried_the_best_first(searched):
    rows = searched("--steps", 1200)
    head, line, best, *others = calibrate.table(rows)
    assert {text.count("|") for text in (head, line, best, *others)} == {14} and len(others) == 4
    name = "| `reacher2d-medium` 0.1 | `lamo` |"
    assert best == (f"{name} 80 | 0.001 | 1 | cosine | 0.0 | True | 0.1105 | 200, 200 of 1,200 | 0.3105 | 2 "
                    "| |")
    now, = (text for text in others if "yes" in text)
    assert now.startswith(f"{name} 16 | 0.002 | 5 | cosine | 0.0 | True | 1.1505 | 200, 200 of 1,200 |")
    Path("page.md").write_text("a\n" + "\n".join(calibrate.MARKERS) + "\nb\n")
    for _ in range(2):
        run("--table", "--csv", "found.csv", "--document", "page.md")
        text = Path("page.md").read_text()
        assert best in text.splitlines() and text.startswith("a\n") and text.endswith("\nb\n")
        assert text.count(best) == 1
    Path("page.md").write_text("a")
    with pytest.raises(SystemExit, match="page.md has no line"):
        run("--table", "--csv", "found.csv", "--document", "page.md")


def test_the_shipped_table_is_of_the_shipped_rows():
    page, rows = KIT / "docs/calibration.md", calibrate.rows_of(KIT / "mini/calibration.csv")
    text = page.read_text()
    assert artifacts.filled(text, calibrate.MARKERS, calibrate.table(rows), page) == text


def test_a_candidate_is_what_the_stages_compute(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("reacher2d-medium", "--methods", "dt", "--lr", 3e-4, "--steps", 4,
        "--checkpoints", 2, "--csv", "f.csv")
    rows = artifacts.read_csv(tmp_path / "f.csv", calibrate.COLUMNS)
    row = rows[0]
    monkeypatch.chdir(tmp_path / "build/calibrate")
    name, cell = "mini/reacher2d-medium-0.1-d100/dt/seed100", "mini/reacher2d-medium-0.1-d100"
    assert not artifacts.run_folder(name).exists() and artifacts.dataset_path(cell).exists()
    prepare_data.prepare(prepare_data.OPTIONS.parse_args([cell]))
    train.train(name, steps=4, eval_every=2, lr=float(row["lr"]), batch_size=int(row["batch_size"]))
    config, model, checkpoints = evaluate.load_run(name)
    data, provenance = imitation.load_heldout(config)
    losses = {evaluate.load_checkpoint(model, path, config):
              imitation.loss_of(*imitation.predictions(model, config, data), config) for path in checkpoints}
    assert row["curve"] == " ".join(f"{step}:{loss:.4g}" for step, loss in losses.items())
    assert float(row["loss"]) == pytest.approx(min(losses.values()), rel=1e-5)
    assert row["heldout_data"] == provenance["sha256"][:8] and float(row["train_loss"]) > 0
