"""A grid as Slurm job arrays: `make sbatch` hands in the runs that are missing or failed, and none twice.

    make sbatch PROFILE=paper SEEDS="0 1 2" THREADS=4 SBATCH="--partition=gpu --gres=gpu:1 --time=8:00:00"
    python -m kit.slurm CELL...                               # what make calls, where sbatch is
    python -m kit.slurm --element build/slurm/NAME.jsonl      # what a job calls, where it computes
    python -m kit.slurm --queue                               # what is queued: ARRAY_INDEX, state, name

One element of an array is one run, its training and then its evaluation: both want the same machine, and
nobody else waits for the first. The data of a cell and the text for a tokenizer are elements of an array of
their own. Runs that wait for the same of these (afterok) are one array, in pieces of at most ARRAY.

A job that gets SIGTERM while it runs (pre-emption, or two minutes before --time is over) passes it on. The
run saves its state, the job queues itself again, and goes on there. A job that was cancelled stays so, and so
does one that failed; what waits for it is cancelled, too. The next `make sbatch` hands them in again.

reads   make's variables PROFILE METHODS SEEDS SUBSETS LM DATA TEXT ARGS REPLACE FRESH TENSORBOARD, and
            THREADS  processors of a job; 1 if it is empty
            SBATCH   more options of sbatch, as its manual has them
            ARRAY    the largest array; if it is empty 1,000, or what Slurm allows if that is less
        squeue, whose comment names the file of a job
writes  build/slurm/NAME.jsonl      a line an element: {"name": a run, "commands": [[word, ...], ...]}
        build/slurm/NAME-INDEX.txt  what an element printed; a run's log.txt has the same

A job has its run's name as soon as it runs; until then it is ARRAY_INDEX, and --queue prints which run that
is. Standard library only.
"""

import collections
import contextlib
import fcntl
import functools
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from kit import fail, seals, settings
from kit.lock import alive, who
from kit.plan import check_places, of_make, plan
from kit.status import grid

FOLDER = Path("build/slurm")
# What SBATCH= may change, and, behind it, what it may not: the rest of this file relies on that.
DEFAULTS = ("--requeue", "--open-mode=append", "--signal=B:TERM@120")
QUEUED = "%F|%K|%T|%k"  # of squeue: array, index, state, comment


# --- what is to be done --------------------------------------------------------------------------

def jobs_of(cells, make):
    """({name: commands} of data and texts, {run: (commands, names of the data and texts it waits for)},
    how many runs are done). A command is a stage and its words. What make status calls done is not asked for,
    also where train.py would be, as whether TEXT= is the text of then."""
    done = {run.name for run in grid(cells, make) if run.state == "done"}
    words = dict.fromkeys(tuple(word.split(":", 1)) for word in plan(cells, True, make))
    runs = [name for what, name in words if what == "run"]
    anew = ["--fresh"] if make["FRESH"] else ["--replace"] if make["REPLACE"] else []
    events = ["--tensorboard"] if os.environ.get("TENSORBOARD") else []
    given = ["--data", make["DATA"]] if make["DATA"] else []
    before = {cell: [["prepare_data.py", cell, *given, *anew]] for what, cell in words if what == "data"}
    missing = {}
    for run in runs:
        if run in done:
            continue
        profile, _, _, method, _ = settings.parse_run(run)
        lm = ["--lm", make["LM"]] if make["LM"] and settings.takes_lm(profile, method) else []
        options = [*lm, *shlex.split(make["ARGS"]), *anew, *events]
        training = ["baselines.py" if settings.is_baseline(method) else "train.py", run, *options]
        evaluation = ["evaluate.py", run, *shlex.split(make["ARGS"])]
        cell = run.rsplit("/", 2)[0]
        needs = [cell] if cell in before else []
        if ("text", run) in words:
            name, command = text_of(profile, method, lm, make["TEXT"], anew)
            before[name] = [command]
            needs.append(name)
        if ("train", run) in words:
            missing[run] = [training, evaluation], needs
        elif ("evaluate", run) in words:
            missing[run] = [evaluation], []
    return before, missing, len(runs) - len(missing)


def text_of(profile, method, lm, given, anew):
    """(a name, the command) of the text that a run reads: one for all that have the same tokenizer's LM."""
    own = settings.own_lm(profile, method)
    lm = lm or (["--lm", own] if own else [])
    name = f"{profile}/text" + "".join(f"-{word.replace('/', '-')}" for word in lm[1:])
    return name, ["prepare_data.py", f"{profile}/text", *lm, *(["--text", given] if given else []), *anew]


# --- what is queued ------------------------------------------------------------------------------

def ask(*command, remedy, text=None):
    """What one of Slurm's programs answers; one line and exit if it does not."""
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True)
    except OSError:
        fail(f"{command[0]} is not here; make sbatch is for a machine that hands jobs in to Slurm")
    if done.returncode:
        fail(f"{command[0]} answered: {' '.join(done.stderr.split())[:300]}; {remedy}")
    return done.stdout


def queued():
    """{name: (ARRAY_INDEX, state, commands)} of this folder's elements that wait or run."""
    found = {}
    for line in ask("squeue", "-h", "-r", "-u", str(os.getuid()), "-o", QUEUED,
                    remedy="nothing was handed in").splitlines():
        array, index, state, comment = line.split("|", 3)
        path = FOLDER / Path(comment.strip()).name
        if index.isdigit() and comment.strip() == str(path) and path.is_file():
            job = read(path)[int(index)]
            found[job["name"]] = f"{array}_{index}", state, job["commands"]
    return found


@functools.cache  # squeue names it once for each element
def read(path):
    """The elements of an array."""
    try:
        return [seals.parse_json(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        fail(f"{path} is not readable ({error}); cancel its jobs, delete it, and hand the runs in again")


# --- handing in ----------------------------------------------------------------------------------

def hand_in(before, missing, sbatch, largest):
    """Call sbatch, as it is given, for what is not queued yet; returns how many runs are. `before` and
    `missing` are jobs_of's."""
    there, groups = queued(), collections.defaultdict(list)
    for name, commands in (before | {run: commands for run, (commands, _) in missing.items()}).items():
        if name in there:
            check_same(name, commands, there)
    for run, (_, needs) in missing.items():
        if run in there:
            continue
        if (owner := alive(Path("runs") / run)) and owner.get("place") == seals.here():
            print(f"{run}: {who(owner)} is at it, outside of Slurm; it was not handed in")
        else:
            groups[tuple(needs)].append(run)
    ids = {name: job for name, (job, _, _) in there.items()}
    first = {name: None for needs in groups for name in needs if name not in ids}
    ids |= submit([*first], before, (), sbatch, largest)
    for needs, runs in groups.items():
        commands = {run: missing[run][0] for run in runs}
        submit(runs, commands, [ids[name] for name in needs], sbatch, largest)
    return sum(run in there for run in missing)


def check_same(name, commands, there):
    """One line and exit if it is queued with other words than it is asked for now. Of a run that has been
    trained meanwhile only the evaluation is missing."""
    job, _, theirs = there[name]
    if theirs[-len(commands):] != commands:
        old, new = (" && ".join(map(shlex.join, of)) for of in (theirs, commands))
        fail(f"{name} is queued as {job} with other words, {old!r} and not {new!r}; scancel {job} first")


def submit(names, commands, needs, sbatch, largest):
    """Hand names in as arrays; returns {name: ARRAY_INDEX}."""
    ids = {}
    for first in range(0, len(names), largest):
        part = names[first:first + largest]
        path = FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.jsonl"
        lines = [json.dumps(seals.sealed({"name": name, "commands": commands[name]})) for name in part]
        path.write_text("\n".join(lines) + "\n")
        after = [f"--dependency=afterok:{':'.join(needs)}"] if needs else []
        try:
            answer = ask(*sbatch, f"--job-name={title(part)}", f"--output={path.with_suffix('')}-%a.txt",
                         f"--array=0-{len(part) - 1}", f"--comment={path}", "--parsable",
                         "--kill-on-invalid-dep=yes", *after, text=script(path),
                         remedy="what was handed in before it is queued; the same command goes on")
        except SystemExit:
            path.unlink()
            raise
        array = answer.strip().split(";")[0]
        ids |= {name: f"{array}_{index}" for index, name in enumerate(part)}
        print(f"{array}_[0-{len(part) - 1}]:", " ... ".join(dict.fromkeys((part[0], part[-1]))),
              *(["after", *needs] if needs else []), flush=True)
    return ids


def title(names):
    """What an array is called until its elements run: what they have in common."""
    return os.path.commonprefix([f"{name}/" for name in names]).rpartition("/")[0] or "lamo"


def script(path):
    """What sbatch keeps, and runs: exec, so that signals for the batch shell reach this module."""
    return f"#!/bin/sh\nexec {shlex.join([sys.executable, '-m', 'kit.slurm', '--element', str(path)])}\n"


def number(name, default):
    """Of a variable of make."""
    wanted = os.environ.get(name) or str(default)
    if not (wanted.isascii() and wanted.isdigit() and int(wanted)):
        fail(f"{name}={wanted} is no number above 0")
    return int(wanted)


def largest_array():
    said = ask("scontrol", "show", "config", remedy="nothing was handed in")
    allowed = [int(line.split("=")[1]) for line in said.splitlines() if line.startswith("MaxArraySize")]
    if 0 in allowed:
        fail("this Slurm allows no job arrays (MaxArraySize = 0), which make sbatch hands runs in as")
    return min([*allowed, number("ARRAY", 1000)])


# --- a job ---------------------------------------------------------------------------------------

def element(path):
    """Run this element's commands, one after the other; returns the exit code."""
    if "SLURM_ARRAY_JOB_ID" not in os.environ or not path.is_file():
        fail(f"--element {path} is for an array's job, and a file of {FOLDER}/")
    array, index = os.environ["SLURM_ARRAY_JOB_ID"], os.environ["SLURM_ARRAY_TASK_ID"]
    # not SLURM_JOB_ID, which in the last element to start is the array's and means all of them
    me, job = f"{array}_{index}", read(path)[int(index)]
    os.environ["OMP_NUM_THREADS"] = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    tell("scontrol", "update", f"JobId={me}", f"JobName={job['name']}")
    stopped, running = [], []

    def stop(number, _):
        stopped.append(number)
        for process in running:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    for command in job["commands"]:
        if stopped:
            break
        running[:] = [subprocess.Popen([sys.executable, "-m", "kit.watch", *once(command, path)])]
        code = running[0].wait()
        running.clear()
        if code:
            break
    if not stopped:
        return code if code >= 0 else 128 - code
    if tell("squeue", "-h", "-j", me, "-o", "%T") == "RUNNING":  # else it was cancelled, or is queued again
        tell("scontrol", "requeue", me)
    return 128 + signal.SIGTERM


def once(command, path):
    """Without --fresh if this job has begun the run already, before it was queued again."""
    config = Path("runs") / command[1] / "config.json"
    if "--fresh" in command and config.exists() and config.stat().st_mtime >= path.stat().st_mtime:
        return [word for word in command if word != "--fresh"]
    return command


def tell(*command):
    """A word with Slurm that the job can do without; what went wrong is in its output."""
    with contextlib.suppress(OSError):
        return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


# --- the command line ----------------------------------------------------------------------------

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("cells", nargs="*", metavar="CELL")
OPTIONS.add_argument("--element", type=Path, metavar="FILE", help="do what the array's file says")
OPTIONS.add_argument("--queue", action="store_true", help="what waits or runs")


def main(args):
    if args.element:
        return element(args.element)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if args.queue:
        for name, (job, state, _) in queued().items():
            print(job, state, name)
        return 0
    for name in ("LAUNCH", "GPUS"):
        if os.environ.get(name):
            fail(f"{name}= is for make on this machine; give sbatch's options as SBATCH=")
    try:
        options = shlex.split(os.environ.get("SBATCH", ""))
    except ValueError as error:
        fail(f"SBATCH={os.environ['SBATCH']!r} cannot be read ({error})")
    sbatch = ["sbatch", f"--cpus-per-task={number('THREADS', 1)}", *DEFAULTS, *options]
    with open(FOLDER / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would hand the same in twice
        before, missing, done = jobs_of(args.cells, of_make())
        check_places(of_make())
        old = hand_in(before, missing, sbatch, largest_array())
    print(f"{done} runs are done, {old} were queued already")
    return 0


if __name__ == "__main__":
    sys.exit(main(OPTIONS.parse_args()))
