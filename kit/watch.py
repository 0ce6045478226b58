"""Stands before a stage that works on one run or one cell: one process at a time, with a log and its cost.

    python -m kit.watch train.py mini/hopper-medium-0.01/lamo/seed0 --steps 50
    python -m kit.watch prepare_data.py paper/hopper-medium-0.01 --data /d4rl

reads   $GPUS, how many GPUs this machine has: the stage gets one that is free, as $CUDA_VISIBLE_DEVICES
writes  runs/NAME/log.txt       all that was printed, of every call, and its exit code
        runs/NAME/cost.json     wall and CPU seconds, peak memory in bytes, steps a second, over all calls
        runs/NAME/running.json  the lock, while it runs (kit/lock.py). Whoever finds one waits, and then the
                                stage finds its work done.
        runs/NAME/progress.json what kit.progress says, while it runs
Of a cell's data log.txt stays only when they failed.

Signals are passed on. Where a terminal watches, the stage's bars see one, too.
"""

import contextlib
import fcntl
import functools
import os
import pty
import resource
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from kit import fail, in_one_line, seals
from kit.lock import clock, held, who
from kit.seals import read_report
from kit.settings import parse_cell, parse_run, run_name
from kit.signals import die_with_parent
from tasks import PROFILES

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STAGES = {"train": "training", "baselines": "training", "evaluate": "evaluation", "prepare_data": "data"}
POLL = 0.5  # seconds between two looks for a free GPU


# --- a GPU -------------------------------------------------------------------------------------

@contextlib.contextmanager
def a_gpu(wanted):
    """(what CUDA_VISIBLE_DEVICES has to be, the file whose flock holds it), of this machine's GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = (visible.split(",") if visible else [str(n) for n in range(wanted)])[:wanted]
    folder = Path(tempfile.gettempdir()) / f"lamo-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        for name in names:
            with open(folder / name.strip().replace("/", "-"), "a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield name.strip(), file
                return
        time.sleep(POLL)


# --- the stage -----------------------------------------------------------------------------------

class Log:
    """log.txt: whole lines of both streams; of a bar that is drawn over and over, what it was at last."""

    def __init__(self, path):
        self.file, self.pending, self.lost = open(path, "ab", buffering=0), {}, False
        self.began = time.monotonic()

    def say(self, text):
        self.write([f"--- {text}\n".encode()])

    def write(self, lines):
        """A log that cannot be written, on a full disk, stops no run; it says so, once."""
        try:
            self.file.writelines(lines)
        except OSError as error:
            if not self.lost:
                print(f"{self.file.name} has no more lines: {error.strerror}", file=sys.stderr, flush=True)
            self.lost = True

    def add(self, stream, data):
        *lines, rest = (self.pending.get(stream, b"") + data).split(b"\n")
        self.write([b"".join(line.rstrip(b"\r").rpartition(b"\r")[2] + b"\n" for line in lines)])
        self.pending[stream] = rest[max(rest.rstrip(b"\r").rfind(b"\r"), 0):]

    def close(self, text):
        """With a last line of ours."""
        self.write([rest.strip(b"\r") + b"\n" for rest in self.pending.values() if rest])
        self.say(text)
        self.file.close()


def streams():
    """(read end, write end) for the stage's stderr: a terminal if ours is one, else a pipe."""
    if not sys.stderr.isatty():
        return os.pipe()
    ours, theirs = pty.openpty()
    modes = termios.tcgetattr(theirs)
    modes[1] &= ~termios.OPOST  # the true terminal does that
    termios.tcsetattr(theirs, termios.TCSANOW, modes)
    size = fcntl.ioctl(sys.stderr, termios.TIOCGWINSZ, bytes(8))
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    return ours, theirs


def start(command, environment, kept_open):
    """The stage, and {what is read of it: where that goes}."""
    (out, out_end), (err, err_end) = os.pipe(), streams()
    process = subprocess.Popen([sys.executable, *command], env=os.environ | environment, stdout=out_end,
                               stderr=err_end, pass_fds=kept_open,  # no run goes on unwatched:
                               preexec_fn=functools.partial(die_with_parent, signal.SIGTERM))
    os.close(out_end)
    os.close(err_end)
    return process, {out: 1, err: 2}


def copy(process, ends, log):
    """All that the stage prints to our streams and to the log, until it has ended."""
    with selectors.DefaultSelector() as selector:
        for end in ends:
            selector.register(end, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(0.5)
            if not ready and process.poll() is not None:
                break  # what it started and left behind has the other end
            for key, _ in ready:
                try:
                    data = os.read(key.fd, 1 << 16)
                except OSError:  # so a terminal's other end says that nobody has it any more
                    data = b""
                if not data:
                    selector.unregister(key.fd)
                    continue
                log.add(key.fd, data)
                with contextlib.suppress(OSError):  # whoever watched has gone: the run goes on
                    os.write(ends[key.fd], data)
    return process.wait()


# --- what it took ------------------------------------------------------------------------------

def add_cost(folder, stage, more):
    """Add a call to runs/NAME/cost.json: to its stage, and to the run. One that is damaged stops no run."""
    path, cost = folder / "cost.json", {}
    try:
        cost = seals.read_json(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        print(f"{path} is not readable ({error}); what the run takes is counted anew", flush=True)
    for total in (cost, cost.setdefault(stage, {})):
        for name in ("wall", "cpu", "calls"):
            total[name] = round(total.get(name, 0) + more[name], 3)
        total["peak_memory"] = max(total.get("peak_memory", 0), more["peak_memory"])
    part = cost[stage]
    part["steps"] = part.get("steps", 0) + more["steps"]
    part["seconds"] = round(part.get("seconds", 0) + more["seconds"], 3)
    part["steps_per_second"] = round(part["steps"] / part["seconds"], 4) if part["seconds"] else None
    cost["last"] = {name: more[name] for name in ("exit", "ended", "host")} | {"stage": stage}
    try:
        seals.write_whole(path, seals.json_text(cost))
    except OSError as error:
        print(f"{path} could not be written ({error.strerror}), so this call is not counted", flush=True)


def steps_of(folder):
    """How many steps the loop has made, in how many seconds, without its start."""
    progress = read_report(folder / "progress.json")
    return {"steps": progress.get("done", 0) - progress.get("first", 0),
            "seconds": round(progress.get("seconds", 0.0), 3)}


def took(began):
    """What the call took, as add_cost wants it."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    return {"wall": time.monotonic() - began, "cpu": usage.ru_utime + usage.ru_stime, "calls": 1,
            "peak_memory": usage.ru_maxrss * unit}


def code_of(returncode):
    """(what a shell would say, in words)."""
    if returncode >= 0:
        return returncode, f"exit code {returncode}"
    return 128 - returncode, f"exit code {128 - returncode} ({signal.Signals(-returncode).name})"


# --- all of it -----------------------------------------------------------------------------------

def on_signals(numbers, handler):
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)


def give_up(number, _):
    sys.exit(128 + number)


def watched(command, folder, gpus, lock, log):
    """Run the stage with the lock held; returns its exit code as subprocess has it."""
    process = None

    def lost():
        log.say(f"another process has taken {folder} over; this one ends")
        if process:
            process.terminate()
        else:  # it waits for a GPU
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        lock.beat_until_released(lost)
        environment, kept_open = {"PYTHONUNBUFFERED": "1", "LAMO_PROGRESS": str(folder / "progress.json")}, ()
        if gpus and lock.owner["stage"] != "data":
            environment["CUDA_VISIBLE_DEVICES"], file = stack.enter_context(a_gpu(gpus))
            environment["LAMO_GPU"] = environment["CUDA_VISIBLE_DEVICES"]  # which has to be there
            kept_open = (file.fileno(),)
        if lock.is_anothers():  # while the machine slept
            lost()
        log.began = time.monotonic()  # the wait for a GPU is no time of the run's
        process, ends = start(command, environment, kept_open)
        # a stage does not mind that a terminal has sent it Ctrl-C, too
        on_signals(PASSED_ON, lambda number, _: process.send_signal(number))
        lock.covers(process.pid, gpu=environment.get("CUDA_VISIBLE_DEVICES"))
        return copy(process, ends, log)


def remember_the_lost(left, folder, log):
    """An attempt that could not write down its own end: when its heart beat last is known."""
    log.say(f"{who(left)} is gone and left no exit code")
    wall = max(0.0, left["beat"] - left.get("began", left["beat"]))
    add_cost(folder, left.get("stage", "training"), steps_of(folder) | {
        "wall": wall, "cpu": 0, "peak_memory": 0, "calls": 1, "exit": None, "ended": clock(),
        "host": left.get("host")})


def work_of(command):
    """(its words, the name of what it works on, the stage); one line and exit if it is no command of make's,
    so that nothing is written outside of runs/."""
    if "--args" in command[:-1]:
        at = command.index("--args")
        try:
            command = [*command[:at], *shlex.split(command[at + 1]), *command[at + 2:]]
        except ValueError as error:
            fail(f"--args {command[at + 1]!r} cannot be read ({error})")
    if len(command) < 2 or not command[0].endswith(".py"):
        fail("give a stage and what it works on: python -m kit.watch train.py PROFILE/CELL/METHOD/seedN")
    name = run_name(command[1])
    if name.count("/") > 1:
        parse_run(name)
    elif name not in [f"{profile}/text" for profile in PROFILES]:
        parse_cell(name)
    return command, name, STAGES.get(Path(command[0]).stem, "data")


def main(command, gpus):
    command, name, stage = work_of(command)
    if gpus and not (gpus.isascii() and gpus.isdigit() and int(gpus)):
        fail(f"GPUS={gpus} is no number of GPUs")
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    on_signals(PASSED_ON, give_up)  # until the stage is there
    with held(name, folder, stage) as (lock, left):
        log = Log(folder / "log.txt")
        if left:
            remember_the_lost(left, folder, log)
        log.say(f"{clock()}, process {os.getpid()} on {lock.owner['host']}: {shlex.join(command)}")
        progress = folder / "progress.json"
        progress.unlink(missing_ok=True)
        try:
            try:
                code = watched(command, folder, int(gpus or 0), lock, log)
            except SystemExit as stop:  # a signal before the stage was there
                code, log.began = stop.code, time.monotonic()
            code, said = code_of(code)
            log.close(f"{said} after {time.monotonic() - log.began:.1f} s, {clock()}")
            if code == 128 + signal.SIGKILL:  # which the stage itself could not say
                print(f"{name}: killed (SIGKILL), by the system where memory is short: --batch_size, or in "
                      "evaluation --at_once, asks for less; the same command goes on", file=sys.stderr)
            add_cost(folder, stage, took(log.began) | steps_of(folder) | {
                "exit": code, "ended": clock(), "host": lock.owner["host"]})
        finally:
            progress.unlink(missing_ok=True)
        if stage == "data" and code == 0:
            for file in ("log.txt", "cost.json"):
                (folder / file).unlink(missing_ok=True)
    return code


if __name__ == "__main__":
    sys.excepthook = in_one_line
    sys.exit(main(sys.argv[1:], os.environ.get("GPUS", "").strip()))
