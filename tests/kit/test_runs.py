"""What a run goes on from: stopped, killed or damaged at any step, it ends in the same bytes."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import gone_before
from toy import FOLDER, STEPS, Killed, killed, train

from kit import artifacts, runs, seals, settings, signals


def files():
    return {path.name: path.read_bytes() for path in FOLDER.iterdir()}


@pytest.fixture
def once(tmp_path, monkeypatch):
    """The files of a run that nothing happened to; the folder is empty again."""
    monkeypatch.chdir(tmp_path)
    train()
    kept = files()
    assert set(kept) == {"config.json", "train.csv", "final.safetensors", "step-0000004.safetensors",
                         "step-0000008.safetensors"}
    for path in FOLDER.iterdir():
        path.unlink()
    return kept


def resumed(capsys):
    """Where the run of the same words goes on; it ends in the same bytes as one that nothing happened to."""
    capsys.readouterr()
    train()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "; toy" in line)
    return line.removeprefix("mini/toy-1/toy/seed3: ").removesuffix("; toy")


def same(files, once):
    return {**files, "config.json": b""} == {**once, "config.json": b""}  # which names state_every


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_at_any_step_loses_none(once, monkeypatch, capfd, number, code):
    for step in range(1, STEPS):
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
            train({step: lambda patched=patched: patched.setattr(signals, "first", number)})
        assert stop.value.code == code
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and number.name in said and f"the state of step {step} is saved" in said
        assert resumed(capfd) == f"resuming at step {step}"
        assert files() == once, step
        for path in FOLDER.iterdir():
            path.unlink()


def test_draws_are_of_the_seed_and_of_the_step():
    def draws(seed, step):
        return runs.seeded(lambda step, rng: (int(rng.integers(2**40)), torch.rand(1).item()),
                           {"seed": seed}, step)
    found = [draws(seed, step) for seed in (0, 1) for step in (0, 1)]
    assert len({batch for batch, _ in found}) == len({dropped for _, dropped in found}) == 4
    assert draws(1, 1) == found[3]


def test_a_signal_in_the_last_step_loses_nothing(once, monkeypatch):
    with pytest.raises(SystemExit) as stop:
        train({STEPS: lambda: monkeypatch.setattr(signals, "first", signal.SIGTERM)})
    assert stop.value.code == 143 and files() == once


def test_the_state_is_saved_when_minutes_have_passed_and_not_at_checkpoints_alone(once, monkeypatch, capsys):
    now = [1000.0]

    def minutes_pass():
        now[0] += 301
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(time, "monotonic", lambda: now[0])
        train({2: minutes_pass, 4: killed})
    assert resumed(capsys) == "resuming at step 2" and files() == once
    for path in FOLDER.iterdir():
        path.unlink()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(time, "monotonic", lambda: now[0])
        train({1: lambda: now.__setitem__(0, now[0] + 299), 3: killed})  # five minutes have not
    assert resumed(capsys) == "training"


def test_killed_while_it_is_replaced_a_finished_run_is_whole_or_not_finished(once, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda file: None)
    train()
    (FOLDER / "cost.json").write_text("{}")
    number = 0
    while gone_before(number, lambda: train(replace=True, log_every=2)) and (
            FOLDER / "final.safetensors").exists():
        assert {name: content for name, content in files().items() if name in once} == once
        number += 1
    assert number > 2 and {*files()} >= {*once} - {"final.safetensors"}  # which goes first
    train(replace=True, log_every=2)
    assert not (FOLDER / "cost.json").exists()  # which was another run's


def test_how_often_is_no_other_run(once, capsys):
    with pytest.raises(Killed):
        train({7: killed}, state_every=0.0)
    assert resumed(capsys) == "resuming at step 6" and same(files(), once)


def test_killed_after_its_last_weights_it_leaves_no_state_behind(once, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(runs, "remove_states", lambda folder: killed())
        train({}, state_every=0.0)
    assert (FOLDER / "state.safetensors").exists() and (FOLDER / "final.safetensors").exists()
    train()
    assert not list(FOLDER.glob("state*")) and same(files(), once)


def test_killed_before_any_of_its_file_operations_it_ends_in_the_same_bytes(once, monkeypatch):
    monkeypatch.setattr(artifacts.Log, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # 10 ms, which change nothing for who is killed
    number = 0
    while gone_before(number, train):
        train()
        assert files() == once, number
        for path in FOLDER.iterdir():
            path.unlink()
        number += 1
    assert number > 30


def damage(name):
    path = FOLDER / name
    whole = bytearray(path.read_bytes())
    whole[-3] ^= 1
    path.write_bytes(whole)


def test_a_state_that_the_machine_does_not_let_be_read_is_kept(once, monkeypatch, capsys):
    """safetensors says of it that it is not there."""
    with pytest.raises(Killed):
        train({6: killed}, state_every=0.0)

    def refusing(path, *mode):
        if "state.safetensors" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *mode)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "open", refusing, raising=False)
        with pytest.raises(PermissionError):
            train()
    assert {"state.safetensors", "state-before.safetensors"} <= {path.name for path in FOLDER.iterdir()}
    capsys.readouterr()
    assert resumed(capsys) == "resuming at step 5" and same(files(), once)


@pytest.mark.parametrize("at, before", [(3, 1), (6, 4), (9, 7)])
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(once, capsys, at, before):
    with pytest.raises(Killed):
        train({at: killed}, state_every=0.0)
    damage("state.safetensors")
    capsys.readouterr()
    with pytest.raises(Killed):
        train({before + 1: killed})
    said = capsys.readouterr().out
    assert "/state.safetensors is damaged" in said and "goes on from state-before.safetensors" in said
    assert resumed(capsys) == f"resuming at step {before}" and same(files(), once)  # still the last sound one


def test_two_damaged_states_are_one_line(once):
    with pytest.raises(Killed):
        train({5: killed}, state_every=0.0)
    damage("state.safetensors")
    damage("state-before.safetensors")
    with pytest.raises(SystemExit, match="state-before.safetensors is damaged"):
        train()


def test_killed_between_two_savings_it_goes_on_from_the_one_that_is_there(once, capsys):
    with pytest.raises(Killed):
        train({6: killed}, state_every=0.0)
    (FOLDER / "state.safetensors").rename(FOLDER / "state-before.safetensors")
    assert resumed(capsys) == "resuming at step 5" and same(files(), once)


def test_each_change_of_what_computes_is_recorded_also_back_to_the_first(once):
    for step, threads in ((3, "1"), (5, "2"), (7, "1"), (8, "1")):
        with pytest.raises(Killed):
            train({step: killed}, state_every=0.0, threads=threads)
    record = seals.read_json(FOLDER / "config.json")
    assert record["threads"] == "1"
    assert record["resumed"] == [{"step": 2, "threads": "2"}, {"step": 4, "threads": "1"}]


def test_fresh_also_helps_where_the_record_is_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "mini/hopper-medium-0.01/dt/seed0"
    config, folder = settings.configuration(run), Path("runs") / run
    folder.mkdir(parents=True)
    for name in ("config.json", "final.safetensors", "eval.csv"):
        (folder / name).touch()
    with pytest.raises(SystemExit) as stop:  # what is there cannot be compared
        runs.begin(folder, config, {}, [], replace=True, fresh=False)
    assert "config.json is not readable" in str(stop.value) and "--fresh" in str(stop.value)
    runs.begin(folder, config, {}, [], replace=False, fresh=True)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert seals.read_json(folder / "config.json")["steps"] == config["steps"]


def test_the_code_of_a_run_is_a_commit_and_rows_that_ship_are_no_code(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True)

    monkeypatch.setattr(runs, "__file__", str(tmp_path / "kit" / "runs.py"))
    (tmp_path / "kit").mkdir()
    assert runs.code_version() == "unknown"
    rows, code = tmp_path / "results" / "shipped" / "rows.csv.gz", tmp_path / "train.py"
    rows.parent.mkdir(parents=True)
    for path in (rows, code, tmp_path / "kit" / "runs.py"):
        path.write_text("before")
    git("init", "-q")
    git("add", "train.py")
    git("commit", "-qm", "somebody's own")
    assert runs.code_version() == "unknown"  # of what lies around the kit
    git("add", "-A")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    assert runs.code_version() == commit
    rows.write_text("after")
    (tmp_path / "new.txt").write_text("nobody's")
    assert runs.code_version() == commit
    code.write_text("after")
    assert runs.code_version() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "/nowhere")
    assert runs.code_version() == "unknown"
