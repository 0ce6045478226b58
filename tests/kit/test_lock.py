"""One process a run: on one host, on two, after deaths; and two that find the same dead one."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import KIT

from kit import lock, seals

HOLD = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    from kit import lock
    lock.POLL = 0.02
    folder = Path(sys.argv[1])
    with lock.held("a/run", folder, "training"):
        with open(folder / "inside", "x"):     # fails if another one is there
            pass
        time.sleep(float(sys.argv[2]))
        (folder / "inside").unlink()
    print("was here")
""")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, "POLL", 0.02)


def hold(folder, seconds):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(seconds)], cwd=KIT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not happen"
        time.sleep(0.01)


def leave(folder, **owner):
    """A lock as a process leaves it that was killed."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    record = {"host": "here", "pid": dead.pid, "stage": "training", "since": "2025-01-01 10:00:00",
              "place": seals.here(), "processes": [[dead.pid, "77"]], "token": "old",
              "began": time.time() - 50}
    (folder / "running.json").write_text(seals.json_text(record | owner))


def test_one_at_a_time_and_the_second_waits_with_one_line(tmp_path):
    first = hold(tmp_path, 0.5)
    until((tmp_path / "running.json").exists)
    others = [hold(tmp_path, 0.05) for _ in range(3)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in (first, *others)]
    assert said[0] == ["was here"]
    for lines in said[1:]:
        assert lines[-1] == "was here" and len(lines) <= 2
        assert all("a/run: waits for process" in line and "training" in line for line in lines[:-1])
    assert any(len(lines) == 2 for lines in said[1:])
    assert not list(tmp_path.iterdir())  # nothing is left


def test_a_dead_process_is_taken_over_at_once_and_said_so(tmp_path, capsys):
    leave(tmp_path)
    with lock.held("a/run", tmp_path, "training") as (_, left):
        assert left["token"] == "old" and lock.alive(tmp_path)["pid"] == os.getpid()
    assert "a/run: taken over from process" in capsys.readouterr().out
    assert not (tmp_path / "running.json").exists()


def test_a_process_id_that_is_another_ones_by_now_is_no_life(tmp_path):
    leave(tmp_path, processes=[[os.getpid(), "1"]])
    assert lock.alive(tmp_path) is None
    leave(tmp_path, processes=[[2 ** 22 + 5, "1"], [os.getpid(), lock.born(os.getpid())]])
    assert lock.alive(tmp_path)["token"] == "old"  # its watcher is dead, the stage is not


def test_another_host_is_believed_until_its_heart_has_stopped_for_long(tmp_path, monkeypatch, capsys):
    leave(tmp_path, place="elsewhere", host="elsewhere")
    assert lock.alive(tmp_path)["host"] == "elsewhere"
    taken = []

    def take():
        with lock.held("a/run", tmp_path, "training") as (_, left):
            taken.append(left["host"])

    waiting = threading.Thread(target=take)
    waiting.start()
    late = time.time() - 10 * lock.BEAT  # a host that is busy for ten beats is not gone
    os.utime(tmp_path / "running.json", (late, late))
    time.sleep(0.3)
    assert not taken
    old = time.time() - lock.LOST - 1
    os.utime(tmp_path / "running.json", (old, old))
    waiting.join(20)
    assert taken == ["elsewhere"]
    said = capsys.readouterr().out
    assert said.count("waits for") == 1 and said.count("taken over from") == 1


def test_of_many_that_find_the_same_dead_one_one_takes_it_over(tmp_path):
    leave(tmp_path)
    many = [hold(tmp_path, 0.05) for _ in range(6)]
    said = "".join(process.communicate(timeout=60)[0] for process in many)
    assert said.count("was here") == 6 and said.count("taken over") == 1, said


def test_the_heart_beats_and_finds_that_it_was_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    lost = threading.Event()
    with lock.held("a/run", tmp_path, "training") as (held, _):
        path = tmp_path / "running.json"
        os.utime(path, (1, 1))
        held.beat_until_released(lost.set)
        until(lambda: path.stat().st_mtime > 1)
        assert not lost.is_set()
        leave(tmp_path, token="theirs")
        assert lost.wait(20)
    assert json.loads(path.read_text())["token"] == "theirs"  # which is left to them


def test_whoever_takes_it_removes_what_killed_writes_left(tmp_path):
    leave(tmp_path)
    gone = seals.read_json(tmp_path / "running.json")["pid"]
    left = [f".eval.1a2b.{seals.here()}.{gone}.part.csv", ".tmpAb1xYz", f".claim.{seals.here()}.{gone}"]
    kept = [f".claim.{seals.here()}.{os.getppid()}", f".claim.elsewhere.{gone}", "eval.csv"]
    for name in left + kept:
        (tmp_path / name).touch()
    with lock.held("a/run", tmp_path, "training"):
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "running.json"])


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"place": "here", "processes": 7}'])
def test_a_damaged_lock_is_another_hosts(tmp_path, content):
    (tmp_path / "running.json").write_text(content)
    assert lock.alive(tmp_path) == {}
    os.utime(tmp_path / "running.json", (1, 1))
    assert lock.alive(tmp_path) is None
