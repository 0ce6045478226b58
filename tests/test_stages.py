"""Every task of the paper through every stage at toy size: by the stages' own functions, and by the
commands their users type for the paper profile's files."""

import csv
import json

import numpy as np
import pytest
from conftest import kitchen_arrays, replay_arrays, write_d4rl, write_replay

import baselines
import evaluate
import plot
import prepare_data
import sources
import tasks
import train
from kit import settings

SETTINGS = {"steps": 2, "eval_every": 2, "log_every": 1, "batch_size": 3, "context": 4, "episodes": 1,
            "lm_block": 16}
# two short episodes each, whatever they earn; the rest of every row stays
EPISODES = {"horizon": 25, "player_horizon": 25, "trajectories": 2, "minimum_return": -1e9,
            "max_timestep": 60, "context": 4}


def results(folder, cell):
    with open(folder / f"results/{cell}.csv", newline="") as file:
        return list(csv.DictReader(file))


EVERY = ("lamo", "dt", "wiki", "bc", "td3bc", "iql", "cql")


@pytest.fixture
def stages(tmp_path, monkeypatch, capsys):
    """stages(cell, methods, data, **settings): what make runs for a cell, in this process and in an empty
    folder. Returns what the table says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "HELDOUT", 1)
    for task, row in tasks.TASKS.items():
        monkeypatch.setitem(tasks.TASKS, task, row | EPISODES | {"mini": row.get("mini", {}) | EPISODES})
    (tmp_path / "text.txt").write_text("The cat sat on the mat, and the dog did not. " * 300)

    def run(cell, methods, data=(), lm="mini"):
        prepare_data.prepare(prepare_data.OPTIONS.parse_args([cell, *data]))
        prepare_data.text.prepare(prepare_data.OPTIONS.parse_args(
            [f"{cell.split('/')[0]}/text", "--text", "text.txt", "--lm", lm]))
        for method in methods:
            baseline = settings.is_baseline(method)
            changed = SETTINGS if baseline or lm == "mini" else SETTINGS | {"lm": lm}
            (baselines if baseline else train).train(f"{cell}/{method}/seed0", "cpu", **changed)
            evaluate.evaluate(f"{cell}/{method}/seed0", "cpu", episodes=1)
        evaluate.collect(cell)
        capsys.readouterr()
        plot.main(plot.OPTIONS.parse_args([cell]))
        return capsys.readouterr().out

    run.folder = tmp_path
    return run


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_goes_through_every_stage(stages, task):
    cell = f"mini/{task}-1"
    first = ("hopper-medium", "reacher2d-medium", "kitchen-complete", "breakout-medium")  # of their suites
    every = EVERY if task in first else ("lamo", "dt", "bc")
    methods = [method for method in every if not settings.missing(task, method)]
    out, tmp_path = stages(cell, methods), stages.folder

    published = plot.paper_scores(task, 1.0)
    for method in methods:  # one table with all of them beside the paper's column
        line, = (line for line in out.splitlines() if line.split(" ")[0] == method)
        assert line.endswith(published[method]), line
        assert ("no targets" in line) == settings.is_baseline(method)
    assert "data mean" in out and "the paper*" in out
    assert (tmp_path / f"figures/{cell}.png").stat().st_size > 10_000
    rows = results(tmp_path, cell)
    config = settings.configuration(f"{cell}/lamo/seed0")
    targets = {f"{target:g}" for target in config["target_returns"]}
    assert {r["target_return"] for r in rows if not settings.is_baseline(r["method"])} == targets
    assert {r["target_return"] for r in rows if settings.is_baseline(r["method"])} == {""}
    assert {r["task"] for r in rows} == {task} and {r["method"] for r in rows} == set(methods)
    assert {r["lm"].split("@")[0] for r in rows} == {"mini", "none"}
    assert all(0 < int(r["length"]) <= 25 for r in rows)
    recorded = json.loads((tmp_path / f"runs/{cell}/lamo/seed0/config.json").read_text())
    low, high = recorded["reference_min"], recorded["reference_max"]
    for r in rows:  # the normalised score is that of the row's own return
        assert float(r["normalized_score"]) == pytest.approx(
            100 * (float(r["return"]) - low) / (high - low), abs=1e-3)
    for r in rows:  # what imitates is measured on episodes that nothing trained on
        measured = r["method"] not in ("td3bc", "iql", "cql")
        assert (r["heldout_episodes"] == "1" and float(r["heldout_loss"]) > 0) if measured else (
            r["heldout_loss"] == r["heldout_episodes"] == "")
    for method in methods:
        with open(tmp_path / f"runs/{cell}/{method}/seed0/train.csv", newline="") as file:
            log = list(csv.DictReader(file))
        assert len(log) == 2
        numbers = [value for r in log for name, value in r.items() if value and name != "seal"]
        assert np.isfinite(np.array(numbers, float)).all()
        if method == "lamo":
            assert (float(log[0]["language_loss"]) > 1) == (config["lm_weight"] > 0)
            assert 0 < float(log[0]["action_loss"]) < 10


def test_the_paper_profile_on_the_kitchens_file(stages, tiny_gpt2):
    path = write_d4rl(stages.folder / "kitchen_microwave_kettle_light_slider-v0.hdf5", kitchen_arrays())
    cell = "paper/kitchen-partial-1"
    out = stages(cell, ("lamo", "lamo-released"), ("--data", str(path)), str(tiny_gpt2))
    assert path.name in out and "100 all four" in out
    configs = [json.loads((stages.folder / f"runs/{cell}/{m}/seed0/config.json").read_text())
               for m in ("lamo", "lamo-released")]
    assert [(c["released"], c["dropout"], c["data"] == configs[0]["data"]) for c in configs] == [
        (False, 0.1, True), (True, 0.1, True)]
    logs = []  # the released code counts rewards and places text otherwise
    for method in ("lamo", "lamo-released"):
        with open(stages.folder / f"runs/{cell}/{method}/seed0/train.csv", newline="") as file:
            logs.append(next(csv.DictReader(file)))
    assert all(logs[0][name] != logs[1][name] for name in ("action_loss", "language_loss"))
    rows = results(stages.folder, cell)
    assert {r["data_score"] for r in rows} == {"100.0000"}     # four sub-tasks a demonstration, not a count


def test_the_paper_profile_on_dqn_replay(stages, tiny_gpt2):
    write_replay(stages.folder / "Breakout/1/replay_logs", replay_arrays(actions=4)[0])
    cell = "paper/breakout-medium-1"
    out = stages(cell, ("lamo", "lamo-released", "cql"), ("--data", str(stages.folder)), str(tiny_gpt2))
    assert "dqn-replay-Breakout-1-10@" in out and "100 a human" in out and "data mean" not in out
    configs = [json.loads((stages.folder / f"runs/{cell}/{m}/seed0/config.json").read_text())
               for m in ("lamo", "lamo-released")]
    assert [(c["released"], c["dropout"]) for c in configs] == [(False, 0.1), (True, 0.0)]
    assert {r["data_score"] for r in results(stages.folder, cell)} == {""}
