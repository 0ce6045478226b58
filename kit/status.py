"""What a grid of runs is doing, and how long it will take. Looks at files; starts and changes nothing.

    make plan       what `make all` would do with these METHODS SEEDS PROFILE, what is done, the hours to come
    make status     done, running, failed, waiting, on one screen; WATCH=1 stays
    python3 -m kit.status CELL... [--plan | --failed | --watch]       what make calls

reads   make's variables from the environment; PROFILE may name both profiles here
        runs/RUN/: config.json, eval.json, and what kit.watch leaves: running.json, progress.json, cost.json,
        log.txt

The hours are those of runs of the same kind (kit/hours.py): a training counts as soon as it has made some
steps. A kind that has never run is "unknown", and is counted apart. Standard library only.
"""

import collections
import contextlib
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

from kit import plan, settings
from kit.hours import measured, median, seconds_left, spell
from kit.lock import alive, who
from kit.seals import read_report

STOPPED = (129, 130, 143)  # SIGHUP, SIGINT, SIGTERM: somebody wanted it
STATES = ("done", "running", "failed", "stopped", "differs", "waiting")
EVERY = 5.0  # seconds between two looks of --watch


class Run(NamedTuple):
    name: str
    state: str          # one of STATES
    config: dict
    steps: int          # trained so far
    trained: bool
    why: str = ""       # it failed, stopped or differs


# --- one run -----------------------------------------------------------------------------------

def folder_of(name):
    return Path("runs") / name


def look(name, overrides, make, request):
    config, folder = settings.configuration(name, **overrides), folder_of(name)
    trained = (folder / "final.safetensors").exists()
    numbers = [path.stem[5:] for path in folder.glob("step-*.safetensors")]  # others are somebody's own
    steps = max((int(number) for number in numbers if number.isascii() and number.isdigit()), default=0)
    if alive(folder) is not None:
        return Run(name, "running", config, steps, trained)
    anew, why = make["REPLACE"] or make["FRESH"], ""
    try:
        plan.refuse_other_seeds(name, overrides, request)
        if not folder.exists():
            return Run(name, "waiting", config, 0, False)
        if trained or any(folder.glob("state*.safetensors")):
            why = settings.some(plan.why_another(folder, config))
        if why and not anew:
            return Run(name, "differs", config, steps, trained, f"{why}; REPLACE=1 makes it anew")
        if why or make["FRESH"]:
            steps, trained = 0, False
        elif trained and plan.played(folder, config):
            return Run(name, "done", config, config["steps"], True)
    except SystemExit as stop:
        return Run(name, "differs", config, steps, trained, str(stop.code))
    state, why = how_it_ended(folder)
    return Run(name, state, config, steps, trained, why)


def how_it_ended(folder):
    """(state, why) of what is not done and not running."""
    if (owner := read_report(folder / "running.json")):
        return "failed", f"{who(owner)}, since {owner.get('since')}, is gone and left no exit code"
    last = read_report(folder / "cost.json").get("last", {})
    if not last.get("exit"):
        return "waiting", ""
    why = f"{last.get('stage')}, exit code {last['exit']}, {last.get('ended')} on {last.get('host')}"
    return "stopped" if last["exit"] in STOPPED else "failed", why


def end_of_log(folder, count):
    """The last lines that a run printed, without the log's own."""
    try:
        with open(folder / "log.txt", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 5000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("--- ")][-count:]


# --- all of them -------------------------------------------------------------------------------

def grid(cells, make):
    """A Run for each that `make all` is asked for."""
    plan.check_words(make)  # PROFILE may be two
    found = []
    for profile in make["PROFILE"].split():
        asked = plan.asked(cells, True, make | {"PROFILE": profile})
        request = plan.requested(cells, asked, make)
        found += [look(name, overrides, make, request)
                  for of_cell in asked.values() for name, overrides in of_cell.items()]
    return found


def preparations(found):
    """{PROFILE/CELL or PROFILE/text: (state, why)} of data that are being made, or could not be made, for
    runs that are not done."""
    names = dict.fromkeys(name for run in found if run.state != "done" for name in (
        "/".join(run.name.split("/")[:2]), f"{run.name.split('/')[0]}/text"))
    states = {}
    for name in names:
        folder = folder_of(name)
        if alive(folder) is not None:
            states[name] = "running", ""
        elif (folder / "log.txt").exists():
            states[name] = how_it_ended(folder)
    return states


# --- how long, in words ------------------------------------------------------------------------

def left_of(run, times):
    now = read_report(folder_of(run.name) / "progress.json") if run.state == "running" else {}
    return seconds_left(run.config, times, run.config["steps"] if run.trained else run.steps, now)


def in_all(found, times):
    """"3.1 h", and how much of it is not known."""
    to_do = [run for run in found if run.state not in ("done", "differs")]
    left = [left_of(run, times) for run in to_do]
    unknown = left.count(None)
    if not left:
        return "nothing"
    if unknown == len(left):
        return (f"unknown; none of the {unknown} runs is of a kind that has been measured here, which its "
                "first training steps do")
    partly = any(seconds is not None and not median(times, "evaluation", run.config)
                 for run, seconds in zip(to_do, left, strict=True))
    said = f"{'at least ' * partly}{spell(sum(filter(None, left)))}, one run at a time"
    return said + (f", and {unknown} runs of kinds that have not been measured here" if unknown else "")


# --- make plan ---------------------------------------------------------------------------------

def say_plan(found, make):
    times, lines = measured(), [headline(found, make), ""]
    many = len(make["PROFILE"].split()) > 1
    for title, of in (("method", lambda run: run.config["method"]), ("task", lambda run: run.config["task"])):
        rows = collections.defaultdict(list)
        for run in found:
            rows[f"{run.config['profile']}/{of(run)}" if many else of(run)].append(run)
        lines.append(f"{title:28} {'runs':>6} {'done':>6} {'to do':>6} {'a run':>9} {'to come':>9}   unknown")
        lines += [row_of_plan(name, runs, times) for name, runs in rows.items()] + [""]
    cells = dict.fromkeys("/".join(run.name.split("/")[:2]) for run in found)
    there = sum((Path("data") / f"{cell}.npz").exists() for cell in cells)
    lines += [f"to come: {in_all(found, times)}",
              f"data: {there} of {len(cells)} cells are there; making the others is not counted"]
    return lines + said_differ(found)


def row_of_plan(name, runs, times):
    to_do = [run for run in runs if run.state not in ("done", "differs")]
    left = [left_of(run, times) for run in to_do]
    known = [seconds for seconds in left if seconds is not None]
    mean, total = (spell(statistics.mean(known)), spell(sum(known))) if known else ("", "")
    done = sum(run.state == "done" for run in runs)
    return (f"{name:28} {len(runs):6} {done:6} {len(to_do):6} {mean:>9} {total:>9}   "
            f"{left.count(None) or ''}").rstrip()


def headline(found, make):
    count = collections.Counter(run.state for run in found)
    said = ", ".join(f"{count[state]} {state.replace('differs', 'differ')}" for state in STATES
                     if count[state] or state in ("done", "waiting"))
    return (f"{len(found)} runs, {said}, of PROFILE={make['PROFILE']} METHODS=\"{make['METHODS']}\" "
            f"SEEDS=\"{make['SEEDS']}\"")


# --- make status -------------------------------------------------------------------------------

def say_status(found, make, height, width):
    states = preparations(found)
    names = {run.name for run in found}
    others = [settings.run_name(str(path.parent)) for path in Path("runs").glob("*/*/*/seed*/running.json")]
    running = [name for name, (state, _) in states.items() if state == "running"]
    running += [run.name for run in found if run.state == "running"]
    running += [name for name in others if name not in names and alive(folder_of(name)) is not None]
    failed = failures(found, states)
    lines = [headline(found, make), f"to come: {in_all(found, measured())}"]
    differ = said_differ(found)
    room = height - len(lines) - 4 - 2 * bool(running) - 2 * bool(failed) - 2 * bool(differ)
    half = max(room - min(len(failed) * 2, room // 2), 1)
    lines += section("running", [said_running(name) for name in running], half)
    each = 3 if len(failed) * 3 <= room - min(len(running), half) else 2
    said = [said_failed(name, why, each - 1) for name, why in failed]
    kept = max((room - min(len(running), half)) // each, 1)
    lines += section("failed", [line for of_run in said[:kept] for line in of_run], None)
    lines += [f"  ... and {len(said) - kept} more"] * (len(said) > kept)
    if waiting := [run for run in found if run.state in ("waiting", "stopped")]:
        begun = [run for run in waiting
                 if run.steps or run.trained or any(folder_of(run.name).glob("state*.safetensors"))]
        lines += ["", f"waiting: {len(waiting)}, {len(begun)} of them begun; next {waiting[0].name}"]
    lines += ["", *differ] if differ else []
    return [line[:width] for line in lines]


def said_differ(found):
    """A line on the runs that are not what is asked for, in a list; [] if there is none."""
    differ = [run for run in found if run.state == "differs"]
    return [f"{len(differ)} differ from what is asked, and make refuses that; the first: "
            f"{run.name}: {run.why}" for run in differ[:1]]


def section(title, lines, most):
    if not lines:
        return []
    more = len(lines) - (most or len(lines))
    return ["", title, *lines[:most], *[f"  ... and {more} more"] * (more > 0)]


def said_running(name):
    """Where, since when, at which step, how long still."""
    folder = folder_of(name)
    owner, now = alive(folder) or {}, read_report(folder / "progress.json")
    where = f"{owner.get('host', '?')} {owner.get('pid', '?')}" + (
        f" GPU {owner['gpu']}" if owner.get("gpu") else "")
    at = owner.get("stage", "starts")
    if now:
        at += "" if now["unit"] == "step" else f", {now['unit']}"
        at += f" {now['done']:,}" + (f" of {now['total']:,}" if now["total"] else "")
        at += f", {spell(now['left'])} left" if now["left"] is not None else ""
    return f"  {name:46} {where}, since {owner.get('since', '?')[5:16]}, {at}"


def failures(found, states):
    """[(name, why)]: data first, because runs wait for them."""
    return [*((name, why) for name, (state, why) in states.items() if state == "failed"),
            *((run.name, run.why) for run in found if run.state == "failed")]


def said_failed(name, why, tail):
    folder = folder_of(name)
    return [f"  {name:46} {why}", *(f"    | {line}" for line in end_of_log(folder, tail))]


def say_failures(found):
    """At the end of make: what failed, in one line each, and the command to see why."""
    failed = failures(found, preparations(found))
    count = collections.Counter(run.state for run in found)
    others = [f"{count[state]} {state}" for state in ("stopped", "waiting") if count[state]]
    lines = ["", ", ".join([f"{len(failed) or 'none'} failed", *others]) + ":" * bool(failed)]
    for name, why in failed[:30]:
        said = end_of_log(folder_of(name), 1)
        lines += [f"  {name}: {said[0] if said else why}", f"      tail {folder_of(name)}/log.txt"]
    if len(failed) > 30:
        lines.append(f"  ... and {len(failed) - 30} more")
    if count["waiting"] and not failed:
        lines.append("none of them left a log of its own: what make printed above says why")
    return [*lines, f"{count['done']} of {len(found)} runs are done; `make status` shows the others, and the "
            "same make tries again what is missing"]


# --- the command -------------------------------------------------------------------------------

def main(args):
    make = plan.of_make()
    plan.check_places(make)
    if not args.watch:
        found, size = grid(args.cells, make), shutil.get_terminal_size((140, 40))
        lines = (say_plan(found, make) if args.plan else say_failures(found) if args.failed
                 else say_status(found, make, size.lines, size.columns))
        print("\n".join(lines))
        return
    while True:
        size = shutil.get_terminal_size((140, 40))
        lines = say_status(grid(args.cells, make), make, size.lines - 1, size.columns)
        clear = "\033[H\033[J" if sys.stdout.isatty() else "\n"
        print(clear + "\n".join([*lines, f"{time.strftime('%H:%M:%S')}, Ctrl-C ends"]), flush=True)
        time.sleep(EVERY)


if __name__ == "__main__":
    OPTIONS = settings.Options(__doc__)
    OPTIONS.add_argument("cells", nargs="*", default=settings.cells(), metavar="CELL", help="default: all")
    for word, said in (("plan", "the hours to come"), ("failed", "only what failed"), ("watch", "stay")):
        OPTIONS.add_argument(f"--{word}", action="store_true", help=said)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        main(OPTIONS.parse_args())
