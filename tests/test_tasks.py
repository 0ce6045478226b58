"""Every task of the paper through every stage at toy size: by the stages' own functions, and by the
commands their users type for the paper profile's files."""

import csv
import json
import multiprocessing
import multiprocessing.pool

import numpy as np
import pytest
from conftest import kitchen_arrays, one_line, replay_arrays, write_d4rl, write_replay

import baselines
import evaluate
import plot
import prepare_data
import tasks
import train

SETTINGS = {"steps": 2, "eval_every": 2, "log_every": 1, "batch_size": 3, "context": 4, "episodes": 1,
            "lm_block": 16}
SHORT = "ARGS=" + " ".join(f"--{name} {value}" for name, value in SETTINGS.items())
EPISODES = {"horizon": 25, "trajectories": 2, "minimum_return": -1e9, "max_timestep": 30}
# Two short episodes each, whatever they earn; the rest of every row stays.
TOY = f"""
for _row in TASKS.values():
    for _part in (_row, _row["mini"]) if "mini" in _row else (_row,):
        _part |= {EPISODES}


# Each method states"""


@pytest.fixture
def toy(kit):
    table = kit.folder / "tasks.py"
    text = table.read_text()
    assert text.count("\n# Each method states") == 1
    table.write_text(text.replace("\n# Each method states", TOY))
    return kit


def results(folder, cell):
    with open(folder / f"results/{cell}.csv", newline="") as file:
        return list(csv.DictReader(file))


EVERY = ("lamo", "dt", "wiki", "bc", "td3bc", "iql", "cql")


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_goes_through_every_stage(task, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multiprocessing, "Pool", multiprocessing.pool.ThreadPool)
    row = tasks.TASKS[task]
    monkeypatch.setitem(tasks.TASKS, task, row | EPISODES | {"mini": row.get("mini", {}) | EPISODES})
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog did not. " * 50)
    cell = f"mini/{task}-1"
    prepare_data.prepare(prepare_data.OPTIONS.parse_args([cell]))
    prepare_data.prepare_text(prepare_data.OPTIONS.parse_args(["mini/text", "--text", "text.txt"]))
    methods = [method for method in EVERY if not tasks.missing(task, method)]
    for method in methods:
        stage = baselines if tasks.is_baseline(method) else train
        stage.train(f"{cell}/{method}/seed0", "cpu", **SETTINGS)
        evaluate.evaluate(f"{cell}/{method}/seed0", "cpu")
    evaluate.collect(cell)
    capsys.readouterr()
    plot.main(cell, False)
    out = capsys.readouterr().out

    published = plot.paper_scores(task, 1.0)
    for method in methods:  # one table with all of them beside the paper's column
        line, = (line for line in out.splitlines() if line.split(" ")[0] == method)
        assert line.endswith(published[method]), line
        assert ("no targets" in line) == tasks.is_baseline(method)
    assert "data mean" in out and "the paper*" in out
    assert (tmp_path / f"figures/{cell}.png").stat().st_size > 10_000
    rows = results(tmp_path, cell)
    config = tasks.configuration(f"{cell}/lamo/seed0")
    targets = {f"{target:g}" for target in config["target_returns"]}
    assert {r["target_return"] for r in rows if not tasks.is_baseline(r["method"])} == targets
    assert {r["target_return"] for r in rows if tasks.is_baseline(r["method"])} == {""}
    assert {r["task"] for r in rows} == {task} and {r["method"] for r in rows} == set(methods)
    assert {r["lm"].split("@")[0] for r in rows} == {"mini", "none"}
    assert all(0 < int(r["length"]) <= 25 for r in rows)
    recorded = json.loads((tmp_path / f"runs/{cell}/lamo/seed0/config.json").read_text())
    low, high = recorded["reference_min"], recorded["reference_max"]
    for r in rows:  # the normalised score is that of the row's own return
        assert float(r["normalized_score"]) == pytest.approx(
            100 * (float(r["return"]) - low) / (high - low), abs=1e-3)
    for method in methods:
        with open(tmp_path / f"runs/{cell}/{method}/seed0/train.csv", newline="") as file:
            log = list(csv.DictReader(file))
        assert len(log) == 2
        assert all(np.isfinite(float(value)) for r in log for value in r.values() if value)
        if method == "lamo":
            assert (float(log[0]["language_loss"]) > 1) == (config["lm_weight"] > 0)
            assert 0 < float(log[0]["action_loss"]) < 10


def test_the_paper_profile_on_the_kitchens_file(toy, tiny_gpt2, tmp_path):
    path = write_d4rl(tmp_path / "kitchen_microwave_kettle_light_slider-v0.hdf5", kitchen_arrays())
    text = tmp_path / "wiki.train.raw"
    text.write_text("The cat sat on the mat , and the dog did not .\n" * 300)
    given = ("PROFILE=paper", f"DATA={tmp_path}", f"LM={tiny_gpt2}", f"TEXT={text}",
             SHORT.replace("ARGS=", "ARGS=--steps 3 "))
    out = toy("make", "kitchen-partial-1", *given, "METHODS=lamo lamo-released").stdout
    assert path.name in out and "100 all four" in out
    configs = [json.loads((toy.folder / f"runs/paper/kitchen-partial-1/{m}/seed0/config.json").read_text())
               for m in ("lamo", "lamo-released")]
    assert [(c["kitchen_reward"], c["lm_positions"], c["data"] == configs[0]["data"]) for c in configs] == [
        ("sparse", True, True), ("dataset", False, True)]
    rows = results(toy.folder, "paper/kitchen-partial-1")
    assert {r["data_score"] for r in rows} == {"100.0000"}     # four sub-tasks a demonstration, not a count


def test_the_paper_profile_on_dqn_replay(toy, tiny_gpt2, tmp_path):
    write_replay(tmp_path / "Breakout/1/replay_logs", replay_arrays(actions=4)[0])
    given = ("PROFILE=paper", f"DATA={tmp_path}", f"LM={tiny_gpt2}", SHORT)
    out = toy("make", "breakout-medium-1", *given, "METHODS=lamo lamo-released").stdout
    assert "dqn-replay-Breakout-1-10@" in out and "100 a human" in out and "data mean" not in out
    configs = [json.loads((toy.folder / f"runs/paper/breakout-medium-1/{m}/seed0/config.json").read_text())
               for m in ("lamo", "lamo-released")]
    assert [(c["schedule"], c["squash_logits"], c["returns"], c["dropout"]) for c in configs] == [
        ("cosine", False, "inclusive", 0.1), ("tokens", True, "exclusive", 0.0)]
    assert {r["data_score"] for r in results(toy.folder, "paper/breakout-medium-1")} == {""}


def test_a_released_variant_is_refused_where_it_would_be_plain_lamo(kit):
    line = one_line(kit("tasks.py", "mini/hopper-medium-1/lamo-released/seed0", check=False))
    assert "lamo-released" in line and "plain lamo" in line
