"""Full disks, folders that cannot be written, numbers that are none, what killed writes leave, and an
installation that was interrupted: one line, and nothing lost."""

import contextlib
import errno
import os
import resource
import shutil
import sys
import types

import numpy as np
import pytest
import torch
from conftest import save_cell
from toy import FOLDER, STEPS, Killed, killed, train

import baselines
import evaluate
import kit
from kit import artifacts, installed, policy, runs, seals, settings, watch
from train import training_step

SIZES = [int(1.6 ** n) for n in range(20)]  # bytes that fit on the disk: 1 .. 7,555


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):  # capsys: its streams are no files, which could not grow either
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond it; the system answers as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def one_line(call):
    """What it ended with; None if it did not."""
    try:
        call()
    except SystemExit as stop:
        assert isinstance(stop.code, str) and "\n" not in stop.code, stop.code
        return stop.code


def files():
    return {path.name: path.read_bytes() for path in FOLDER.iterdir()}


def test_a_training_on_a_disk_that_is_full_at_any_write_ends_in_the_same_bytes(here):
    train()
    once = files()
    shutil.rmtree("runs")
    with pytest.raises(Killed):
        train({6: killed}, state_every=0.0)
    shutil.move("runs", "killed")
    said = []
    for size in SIZES:
        shutil.copytree("killed", "runs")
        before = files()
        with full_disk(size):
            said.append(one_line(train))
        after = files()
        for name in before.keys() - {"train.csv", "config.json", *runs.STATES}:
            assert after[name] == before[name]
        assert {*runs.STATES} & {*after} or said[-1] is None
        assert not [name for name in after if name.startswith(".")]
        train()
        assert {**files(), "config.json": b""} == {**once, "config.json": b""}, size
        shutil.rmtree("runs")
    assert sum("could not be written" in (line or "") for line in said) >= 10 and said[-1] is None


def test_each_format_on_a_full_disk_is_one_line_and_what_was_there_stays(here):
    large, path = {"x": torch.arange(4000.0)}, here / "a"
    writers = {".json": lambda path, n: artifacts.write_json(path, {"a": [n] * 2000}),
               ".csv": lambda path, n: artifacts.write_csv(path, ("a",), [{"a": n}] * 2000),
               ".npz": lambda path, n: artifacts.save_arrays(path, {"n": n}, {"x": np.arange(4000) + n}),
               ".safetensors": lambda path, n: artifacts.save_tensors(path, large, step=n)}
    for suffix, write in writers.items():
        path = here / f"a{suffix}"
        write(path, 1)
        whole = path.read_bytes()
        for size in SIZES:
            with full_disk(size):
                said = one_line(lambda write=write, path=path: write(path, 2))
            assert f"a{suffix} could not be written" in said and "nothing that was there is lost" in said
            assert path.read_bytes() == whole
    assert sorted(path.suffix for path in here.iterdir()) == sorted(writers)


def test_a_folder_that_cannot_be_written_is_one_line(here, monkeypatch):
    (here / "file").touch()
    said = one_line(lambda: artifacts.write_json(here / "file/a.json", {}))
    assert "file/a.json could not be written" in said
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "Read-only")))
    assert "a.csv could not be written" in one_line(lambda: artifacts.write_csv("a.csv", ("a",), [{"a": 1}]))
    assert not [*here.glob(".*")]


def test_what_the_machine_refuses_is_one_line_and_what_is_our_fault_is_not(capsys, monkeypatch):
    monkeypatch.setattr(sys, "__excepthook__", lambda *_: print("a traceback", file=sys.stderr))
    kit.in_one_line(OSError, OSError(errno.ENOSPC, "No space left on device", "data/a.npz"), None)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "data/a.npz: No space left on device; nothing that was there" in said
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried ..."),
                  RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ...")):
        kit.in_one_line(type(error), error, None)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "out of memory; lower --batch_size" in said
    for error in (FileNotFoundError(errno.ENOENT, "none", "a"), ValueError("7")):
        kit.in_one_line(type(error), error, None)
        assert capsys.readouterr().err == "a traceback\n"


def test_a_log_that_is_full_stops_no_run_and_says_so_once(here, capsys):
    with full_disk(100):
        log = watch.Log(here / "log.txt")
        for n in range(50):
            log.add(1, f"line {n}\n".encode())
        log.close("exit code 0")
        watch.add_cost(here, "training", {"wall": 1.0, "cpu": 1.0, "calls": 1, "peak_memory": 1, "steps": 3,
                                          "seconds": 1.0, "exit": 0, "ended": "now", "host": "here"})
    said = capsys.readouterr()
    assert said.err.count("has no more lines") == 1 and "cost.json could not be written" in said.out
    assert (here / "log.txt").read_bytes().startswith(b"line 0\nline 1\n")
    assert [path.name for path in here.iterdir()] == ["log.txt"]


def test_a_damaged_cost_stops_no_run_and_says_so(here, capsys):
    (here / "cost.json").write_text("{")
    watch.add_cost(here, "training", {"wall": 1.0, "cpu": 1.0, "calls": 1, "peak_memory": 1, "steps": 3,
                                      "seconds": 1.0, "exit": 0, "ended": "now", "host": "here"})
    assert "counted anew" in capsys.readouterr().out and seals.read_json(here / "cost.json")["calls"] == 1


# --- numbers that are none -----------------------------------------------------------------------

def test_a_run_that_diverges_in_its_last_step_is_not_done(here):
    """Its loss was finite; one more step shows it."""
    def diverged():
        raise FloatingPointError("the loss became nan")
    said = one_line(lambda: train({STEPS + 1: diverged}))
    assert f"the loss became nan at step {STEPS + 1}" in said
    assert not (FOLDER / "final.safetensors").exists() and (FOLDER / "state.safetensors").exists()


def test_a_baseline_that_diverges_in_its_only_step_is_not_done(here, monkeypatch):
    save_cell(here)
    run = "paper/hopper-medium-0.1/bc/seed0"
    config = settings.configuration(run, steps=1, batch_size=8) | {"actor_lr": 1e30}  # out of its range
    monkeypatch.setattr(settings, "configuration", lambda *_, **__: config)
    said = one_line(lambda: baselines.train(run))
    assert "the loss became" in said and "lower --actor_lr," in said
    assert not (artifacts.run_folder(run) / "final.safetensors").exists()


def test_a_gradient_that_is_no_number_makes_no_update():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, actions, attention_mask):
            return torch.sqrt(self.weight).expand(2, 3, 1)  # whose slope at 0 is infinite
    model = Model()
    config = {"discrete": False, "lm_weight": 0.0, "grad_clip": 1.0}
    batch, mask = {"actions": torch.ones(2, 3, 1)}, torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(FloatingPointError, match="the gradient became"):
        training_step(model, torch.optim.SGD(model.parameters(), lr=1.0), config, batch, mask)
    assert model.weight.item() == 0


def test_a_network_that_has_diverged_is_one_line_at_play():
    config = settings.configuration("mini/hopper-medium-0.01/bc/seed0") | {
        "state_mean": [0.0] * 11, "state_std": [1.0] * 11}
    actor = baselines.build_actor(config)
    for p in actor.parameters():
        p.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="no number"):
        policy.Policy(actor, config).act(np.zeros(11))
    agent, env = policy.Policy(actor, config), types.SimpleNamespace(reset=lambda seed: (np.zeros(11), {}))
    said = one_line(lambda: evaluate.play_together(agent, config, [env], [(None, 0)], None))
    assert "mini/hopper-medium-0.01/bc/seed0" in said and "smaller --actor_lr" in said


# --- an installation -----------------------------------------------------------------------------

def test_what_was_not_installed_whole_is_found(tmp_path):
    def package(name, *lines, files=("a.py",)):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        for file in files:
            (tmp_path / file).touch()
        (folder / "METADATA").touch()
        if lines:
            (folder / "RECORD").write_text("\n".join(lines) + "\n")

    own = ("a.py,sha256=1,0", "whole-1.0.dist-info/METADATA,sha256=1,0", "__pycache__/a.pyc,,")
    package("whole", *own, "whole-1.0.dist-info/INSTALLER,sha256=1,4")
    (tmp_path / "whole-1.0.dist-info/INSTALLER").touch()
    package("unlisted")
    package("as-it-came", *own)  # pip's own list names INSTALLER
    package("lost", *own, "whole-1.0.dist-info/INSTALLER,sha256=1,4", "gone.py,sha256=1,0")
    package("cut", "a.py")
    assert [path.name for path in installed.broken(tmp_path)] == [
        f"{name}-1.0.dist-info" for name in ("as-it-came", "cut", "lost", "unlisted")]
