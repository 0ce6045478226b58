"""A lock on a run's folder that holds on one host and on several with one file system.

    with held("mini/hopper-medium-0.01/lamo/seed0", folder, stage="train") as (lock, left): ...

writes  FOLDER/running.json: host, process, stage, since when. Its date is the heartbeat.

Whoever finds the lock of a process that works waits. A lock that its process left behind is taken over, and
a line says so: on the same host as soon as the process is gone, from another one when the heartbeat is older
than LOST seconds, by the file system's own clock. Locks are made by link and replaced by rename, which
network file systems do as a whole. A process that finds that its lock was taken over (the machine slept)
ends. Standard library only.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path

from kit import seals
from kit.seals import read_report

BEAT = 20.0   # seconds between two heartbeats
LOST = 300.0  # without one for so long, a process on another host is gone
POLL = 1.0    # between two looks at another one's lock


# --- whose it is -------------------------------------------------------------------------------

def born(pid):
    """When a process was started, in ticks since the machine was, "" where /proc does not say; None if it is
    gone. A process id alone may be another's by now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        return "" if not Path("/proc/self/stat").exists() else None


def clock():
    return time.strftime("%Y-%m-%d %H:%M:%S")


def who(owner):
    return f"process {owner.get('pid')} on {owner.get('host')}"


def is_gone(owner, age):
    """Whether whoever wrote this lock, and the stage that it started, no longer run."""
    if owner.get("place") != seals.here():
        return age > LOST
    return all(born(pid) != ticks for pid, ticks in owner.get("processes", []))


# --- taking it ---------------------------------------------------------------------------------

@contextlib.contextmanager
def held(name, folder, stage):
    """Wait until the folder is ours. Yields a Lock, and the record of one that was left behind, or None."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "stage": stage, "since": clock(),
             "place": seals.here(), "processes": [(os.getpid(), born(os.getpid()))],
             "token": f"{seals.here()} {os.getpid()} {time.time()}", "began": time.time()}
    lock = Lock(folder / "running.json", owner)
    left = take(name, lock.path, owner)
    remove_leftovers(folder)
    try:
        yield lock, left
    finally:
        lock.stopped.set()
        if lock.is_ours():
            lock.path.unlink()


class Lock:
    """One that is held."""

    def __init__(self, path, owner):
        self.path, self.owner, self.stopped = path, owner, threading.Event()

    def is_ours(self):
        return read_report(self.path).get("token") == self.owner["token"]

    def is_anothers(self):
        """Whether it was taken over; not that it cannot be read just now, or is gone with its folder."""
        return read_report(self.path).get("token", self.owner["token"]) != self.owner["token"]

    def covers(self, pid, **more):
        """Another process that the work is done by, and what others may read about it."""
        self.owner["processes"].append((pid, born(pid)))
        seals.write_whole(self.path, seals.json_text(self.owner | more))

    def beat_until_released(self, lost):
        """Touch it in a thread; call lost() if another one has taken it over."""
        threading.Thread(target=self.beat, args=(lost,), daemon=True).start()

    def beat(self, lost):
        while not self.stopped.wait(BEAT):
            if self.is_anothers():
                return lost()
            with contextlib.suppress(OSError):  # the folder was moved away, or the server is slow
                os.utime(self.path)


def remove_leftovers(folder):
    """What whoever had the lock before left half-written, and the claims of those that are gone."""
    seals.remove_leftovers(folder)
    for claim in folder.glob(f".claim.{seals.here()}.*"):
        pid = claim.name.rpartition(".")[2]
        if pid.isdigit() and born(int(pid)) is None:
            claim.unlink(missing_ok=True)


def take(name, lock, owner):
    """Wait until the lock is ours; returns the record of the one that left it behind, or None."""
    claim, said = lock.with_name(f".claim.{seals.here()}.{os.getpid()}"), False
    claim.write_text(seals.json_text(owner))
    try:
        while True:
            with contextlib.suppress(FileExistsError):
                os.link(claim, lock)
                return None
            os.utime(claim)  # the file system's clock, which made the heartbeat's date, too
            if left := take_over(lock, claim):
                print(f"{name}: taken over from {who(left)}, which is gone", flush=True)
                return left
            if not said and (other := read_report(lock)):
                print(f"{name}: waits for {who(other)}, which has been at it ({other.get('stage')}) since "
                      f"{other.get('since')}", flush=True)
                said = True
            time.sleep(POLL)
    finally:
        claim.unlink(missing_ok=True)


def take_over(lock, claim):
    """Put our claim in the place of a lock whose owner is gone, and return that lock's record; None if it
    is not. Of two that find the same one, flock lets the second see that it has been replaced."""
    try:
        with open(lock) as file:
            with contextlib.suppress(OSError):  # a file system without flock: the heartbeat finds it out
                fcntl.flock(file, fcntl.LOCK_EX)
            now = os.stat(lock)
            if not os.path.samestat(os.fstat(file.fileno()), now):
                return None
            owner = read_report(lock)
            if not is_gone(owner, claim.stat().st_mtime - now.st_mtime):
                return None
            os.replace(claim, lock)
            return owner | {"beat": now.st_mtime}
    except FileNotFoundError:  # released meanwhile
        return None


def tidy(name, folder):
    """Remove what a process left that was killed at its very end, so that no other one has to come here."""
    if (folder / "running.json").exists() and alive(folder) is None:
        with held(name, folder, "gathering"):
            (folder / "progress.json").unlink(missing_ok=True)


def alive(folder):
    """The record of the process that works on it; None if there is none, {} if it is not whole yet."""
    lock = folder / "running.json"
    try:
        age = time.time() - lock.stat().st_mtime
    except OSError:
        return None
    owner = read_report(lock)
    return None if is_gone(owner, age) else owner
