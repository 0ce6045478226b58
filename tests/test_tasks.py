"""Every task of the paper through every stage at toy size, by the commands its users type."""

import csv
import json

import numpy as np
import pytest
from conftest import kitchen_arrays, one_line, replay_arrays, write_d4rl, write_replay

import tasks

SHORT = "ARGS=--steps 2 --eval_every 2 --log_every 1 --batch_size 3 --context 4 --episodes 1 --lm_block 16"
# Two short episodes each, whatever they earn; the rest of every row stays.
TOY = '''
for _row in TASKS.values():
    for _part in (_row, _row["mini"]) if "mini" in _row else (_row,):
        _part |= {"horizon": 25, "trajectories": 2, "minimum_return": -1e9, "max_timestep": 30}


METHODS = {'''


@pytest.fixture
def toy(kit):
    table = kit.folder / "tasks.py"
    text = table.read_text()
    assert text.count("\nMETHODS = {") == 1
    table.write_text(text.replace("\nMETHODS = {", TOY))
    return kit


def results(folder, cell):
    with open(folder / f"results/{cell}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("task", tasks.TASKS)
def test_every_task_goes_through_every_stage(toy, task):
    cell = f"{task}-1"
    out = toy("make", cell, SHORT, f"METHODS={'lamo dt' if task == 'pong-medium' else 'lamo'}").stdout
    row = tasks.configuration(f"mini/{cell}/lamo/seed0")
    assert "data mean" in out and "the paper*" in out
    folder = toy.folder
    assert (folder / f"figures/mini/{cell}.png").stat().st_size > 10_000
    rows = results(folder, f"mini/{cell}")
    targets = {f"{target:g}" for target in row["target_returns"]}
    assert {r["target_return"] for r in rows} == targets and {r["task"] for r in rows} == {task}
    assert {r["lm"].split("@")[0] for r in rows} <= {"mini", "none"}
    assert all(0 < int(r["length"]) <= 25 for r in rows)
    config = json.loads((folder / f"runs/mini/{cell}/lamo/seed0/config.json").read_text())
    low, high = config["reference_min"], config["reference_max"]
    for r in rows:  # the normalised score is that of the row's own return
        assert float(r["normalized_score"]) == pytest.approx(
            100 * (float(r["return"]) - low) / (high - low), abs=1e-3)
    with open(folder / f"runs/mini/{cell}/lamo/seed0/train.csv", newline="") as file:
        log = list(csv.DictReader(file))
    assert len(log) == 2 and all(np.isfinite(float(r["action_loss"])) for r in log)
    assert (float(log[0]["language_loss"]) > 1) == (row["lm_weight"] > 0)
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
