"""SIGTERM, SIGINT and SIGHUP: one line, the exit code of a shell, and the same command loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import KIT

from kit import artifacts

CELL, RUN = "mini/reacher2d-medium-0.1", "mini/reacher2d-medium-0.1/bc/seed0"
TOY = ("--steps", "300", "--eval_every", "150", "--log_every", "7", "--batch_size", "4", "--episodes", "16",
       "--at_once", "2")
NAMES = {signal.SIGTERM: ("SIGTERM", 143), signal.SIGINT: ("SIGINT", 130), signal.SIGHUP: ("SIGHUP", 129)}


def start(folder, *command, python=sys.executable):
    return subprocess.Popen([python, *command], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, start_new_session=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})


def wait_until(process, what):
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def catches(process):
    """Whether it has said what it does at SIGTERM."""
    line = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                if line.startswith("SigCgt"))
    return int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def stop(process, number):
    """Signal its whole group, as a terminal does, twice; returns the one line that it says."""
    for _ in range(2):
        os.killpg(process.pid, number)
        time.sleep(0.01)
    out, err = process.communicate(timeout=60)
    name, code = NAMES[number]
    assert process.returncode == code, (out, err)
    assert err.count("\n") == 1 and f"stopped by {name}; " in err and "the same command goes on" in err
    with pytest.raises(ProcessLookupError):  # nobody is left behind
        for _ in range(500):
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    return err


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux whether a signal is caught")
@pytest.mark.parametrize("stage, number", [
    ("train.py", signal.SIGINT), ("baselines.py", signal.SIGTERM), ("evaluate.py", signal.SIGINT),
    ("prepare_data.py", signal.SIGHUP)])
def test_a_signal_while_a_stage_is_loaded(kit, stage, number):
    process = start(kit.folder, stage, CELL if stage == "prepare_data.py" else RUN)
    wait_until(process, lambda: catches(process))
    stop(process, number)
    assert not (kit.folder / "runs").exists() and not list(kit.folder.glob("data/**/*.npz"))


def test_every_stage_stopped_and_asked_again_is_one_that_nobody_stopped(kit):
    data, folder = kit.folder / f"data/{CELL}.npz", kit.folder / "runs" / RUN
    warm = kit.words(("baselines.py",))[0]
    process = start(kit.folder, "prepare_data.py", CELL, "--workers", "2")
    wait_until(process, lambda: workers(process) == 2)
    stop(process, signal.SIGINT)
    assert not list(data.parent.glob("*.npz"))
    kit("prepare_data.py", CELL)

    kit("baselines.py", RUN, *TOY)
    kit("evaluate.py", RUN, *TOY)
    once = files(folder)
    for path in folder.iterdir():
        path.unlink()

    process = start(kit.folder, "baselines.py", RUN, *TOY, python=warm)
    wait_until(process, (folder / "train.csv").exists)
    said = stop(process, signal.SIGTERM)
    _, metadata = artifacts.load_tensors(folder / "state.safetensors")
    assert f"the state of step {metadata['step']} is saved" in said and metadata["step"] >= 7
    assert f"resuming at step {metadata['step']};" in kit("baselines.py", RUN, *TOY).stdout

    process = start(kit.folder, "evaluate.py", RUN, *TOY, python=warm)
    wait_until(process, lambda: rows(folder) >= 2)
    stop(process, signal.SIGTERM)
    assert 2 <= rows(folder) < 32 and rows(folder) % 2 == 0 and "eval.csv" not in files(folder)
    kit("evaluate.py", RUN, *TOY)
    assert files(folder) == once


def workers(process):
    """How many processes it has forked."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return len(children.read_text().split()) if children.exists() else 2


def rows(folder):
    """How many episodes an evaluation that is not finished has written."""
    return sum(len(path.read_text().splitlines()) - 1 for path in folder.glob("eval.*.csv"))


@pytest.mark.parametrize("words", [("kit.settings",), ("kit.settings", RUN),
                                   ("paper.claims", "tests/paper/synthetic/paper")])
def test_a_reader_that_has_seen_enough_ends_what_prints_without_a_word(words):
    process = start(KIT, "-m", *words)
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == -signal.SIGPIPE and said == "", said
