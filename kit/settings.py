"""A run's name -> its configuration; the stages' command line; what the Makefile has to know.

    python3 -m kit.settings                                       # every cell, as `make list` prints it
    python3 -m kit.settings paper/hopper-medium-0.01/lamo/seed0   # one run's configuration, as JSON
    python3 -m kit.settings --make                                # the Makefile's variables

Reads tasks.py alone, and needs the standard library alone, so that make can ask before anything is installed.
"""

import argparse
import functools
import json
import os
import re
import sys

from kit import fail, in_one_line, signals
from tasks import BASELINE, CHOICES, DEFAULTS, METHODS, MINI, PROFILES, RANGES, SEQUENCE, TASKS

# What a finished run can be played with anew; everything else makes another run.
EVALUATION = ("episodes", "at_once", "target_returns", "score_window")
# What may change when a killed run goes on elsewhere.
MACHINE = ("code", "torch", "numpy", "device", "threads")
# How a run is kept while it trains, which changes nothing of it.
KEEPING = ("state_every",)
# What a task or a method is, and nobody sets.
NATURE = ("kind", "pixels", "discrete", "released")
# What holds of a setting that a record does not have, because it is newer than the record.
UNSAID = BASELINE | SEQUENCE | DEFAULTS
# Names of settings that only some rows of tasks.py have; a record holds other names beside them.
OF_ROWS = {*RANGES, *CHOICES,
           *(name for row in [*TASKS.values(), *METHODS.values()] for name in row)} - {*UNSAID}


# --- names -------------------------------------------------------------------------------------

def cells():
    """Every cell of the paper's tables: ["hopper-medium-0.005", ...]."""
    return [f"{task}-{ratio}" for task, row in TASKS.items() for ratio in row["ratios"]]


# A cell may carry the number of its subset, which is drawn with that seed: hopper-medium-0.01-d3; without one
# it is subset 0. -dN names a table, of runs in which the number of the subset is the seed's.
SUBSET = re.compile("(.+)-d([1-9][0-9]{0,8}|N)")
SEED = "(0|[1-9][0-9]{0,8})"


def split_subset(cell):
    """"hopper-medium-0.01-d3" -> ("hopper-medium-0.01", 3); "N" for a table's; 0 where no subset is named."""
    found = SUBSET.fullmatch(cell)
    return (cell, 0) if not found else (found[1], found[2] if found[2] == "N" else int(found[2]))


def of_seed(cell, seed):
    """The cell that a seed's run is in: "hopper-medium-0.01-dN" and 3 -> "hopper-medium-0.01-d3"."""
    plain, subset = split_subset(cell)
    return cell if subset != "N" else plain if int(seed) == 0 else f"{plain}-d{seed}"


def table_of(cell):
    """What SUBSETS=seed calls a cell's table; the cell itself where all subsets are the same episodes."""
    return cell if cell.endswith("-1") else f"{cell}-dN"


def parse_cell(name):
    """"mini/hopper-medium-0.01" -> ("mini", "hopper-medium", 0.01), whatever its subset is."""
    profile, _, cell = name.strip("/").partition("/")
    task, _, ratio = split_subset(cell)[0].rpartition("-")
    if profile not in PROFILES:
        fail(f"no profile {profile!r} in {name!r}; there are {', '.join(PROFILES)}")
    if found := re.fullmatch("(.+)-d(0[0-9]*)", cell):
        fail(f"{name!r}: subset 0 is the cell itself, and no number begins with 0; write "
             f"{found[1]}{f'-d{int(found[2])}' if int(found[2]) else ''}")
    if task not in TASKS:
        fail(f"no task {task or cell!r} in {name!r}; a cell is TASK-RATIO or "
             f"TASK-RATIO-dSUBSET with TASK one of {', '.join(TASKS)}, for example {cells()[0]}")
    try:
        number = float(ratio)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1 or ratio != f"{number:g}":  # 0.10 would be another name of 0.1
        fail(f"{ratio!r} in {name!r} is no ratio; give a number above 0 and at most 1, as short as it can be "
             "written")
    return profile, task, number


def parse_run(name):
    """"mini/hopper-medium-0.01/lamo/seed0" -> ("mini", "hopper-medium", 0.01, "lamo", 0)."""
    parts = run_name(name).split("/")
    # seed00 would be another name of seed0
    if len(parts) != 4 or not re.fullmatch(f"seed{SEED}", parts[3]):
        fail(f"{name!r} is no run; a run is PROFILE/CELL/METHOD/seedN, "
             "for example mini/hopper-medium-0.01/lamo/seed0")
    profile, task, ratio = parse_cell("/".join(parts[:2]))
    if split_subset(parts[1])[1] == "N":
        fail(f"{name!r} is no run: -dN names a table of many subsets, and a run has one; write its number")
    if parts[2] not in METHODS:
        fail(f"no method {parts[2]!r}; there are {', '.join(METHODS)}")
    return profile, task, ratio, parts[2], int(parts[3][4:])


def run_name(path):
    """A run's name from its name or its folder: "./runs/mini/.../seed0/" -> "mini/.../seed0"."""
    return os.path.normpath(path).strip("/").removeprefix("runs/")


def is_baseline(method):
    return METHODS[method].get("kind") == "baseline"


def missing(task, method):
    """Why a method does not exist on a task, or None."""
    suite = TASKS[task]["suite"]
    if suite in METHODS[method].get("suites", (suite,)):
        return None
    if is_baseline(method):
        return f"{method} needs continuous actions, and those of {task} are buttons; use bc or cql"
    return f"on {task} {method} would be plain lamo; use that"


# --- configurations ----------------------------------------------------------------------------

def configuration(run, **overrides):
    """The flat dict of settings that a run's name stands for. Overrides that are None are ignored, and
    those that the method has no use for."""
    profile, task, ratio, method, seed = parse_run(run)
    if missing(task, method):
        fail(missing(task, method))
    config = DEFAULTS | SEQUENCE | (MINI if profile == "mini" else {})
    suite = TASKS[task]["suite"]
    for row in (TASKS[task], METHODS[method]):
        config |= {name: value for name, value in row.items() if not isinstance(value, dict)}
        for part in (suite, task, profile, f"{profile}-{suite}", f"{profile}-{task}"):
            config |= row.get(part, {})
    for name in ("ratios", "suites"):
        config.pop(name, None)
    if is_baseline(method):
        for name in ({*SEQUENCE} - {*BASELINE}) | {"target_returns", "return_scale"}:
            del config[name]
    else:
        config.setdefault("max_timestep", config["horizon"])
    config |= {key: value for key, value in overrides.items() if value is not None and key in config}
    if config.get("trunk") == "dt":  # it has no words
        config |= {"lm": None, "lm_layers": 0, "lm_weight": 0.0}
    if "adapter" in config and config["train"] != "lora":
        config["adapter"] = ""  # nothing would load it
    if config.get("update") == "bc" and not config["discrete"]:
        del config["lr"]  # it has an actor alone, which learns at actor_lr
    check(task, config)
    for name in ("lm", "adapter"):
        if config.get(name):
            config[name] = config[name].rstrip("/") or "/"
    return {"profile": profile, "cell": run_name(run).split("/")[1], "task": task, "ratio": ratio,
            "method": method, "seed": seed} | config


# --- ranges ------------------------------------------------------------------------------------

@functools.cache
def bounds(interval):
    """"(0, 10]" -> (0.0, 10.0)."""
    low, high = interval[1:-1].split(",")
    return float(low), float(high)


def inside(value, interval):
    """Whether a number is in an interval, whose square brackets belong to it; nan is in none."""
    low, high = bounds(interval)
    above = low <= value if interval[0] == "[" else low < value
    return above and (value <= high if interval[-1] == "]" else value < high)


def wanted(name):
    """What a setting has to be, in words."""
    if name in CHOICES:
        return f"one of {', '.join(CHOICES[name])}"
    if isinstance(UNSAID.get(name), bool):
        return "True or False"
    if name in RANGES:
        return f"a {'whole ' * isinstance(UNSAID.get(name, 1.0), int)}number in {RANGES[name]}"
    return "the name of a language model" if name == "lm" else "the name of a folder"


def fits(name, value):
    """Whether a setting may have a value. A setting without a default or a range may have any."""
    default = UNSAID.get(name)
    if name in CHOICES:
        return value in CHOICES[name]
    if isinstance(default, bool):
        return isinstance(value, bool)
    if name in RANGES:
        kinds = (int,) if isinstance(default, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool) and inside(value, RANGES[name])
    if name == "lm":  # None: the method has none
        return value is None or isinstance(value, str) and bool(value.strip())
    return not isinstance(default, str) or isinstance(value, str)


def check(task, config):
    """One line and exit if a setting is not in its range."""
    for name, value in config.items():
        if name == "target_returns":
            bad = [target for target in value if not fits(name, target)]
            if bad or not value or len(value) > len({f"{target:g}" for target in value}):  # as rows name it
                fail(f"{name} is {short(list(value))}; give each once, {wanted(name)}")
        elif not fits(name, value):
            fail(f"{name} is {value!r}; it has to be {wanted(name)}")
    if config.get("context", 1) > config["horizon"]:
        fail(f"context is {config['context']}, and an episode of {task} is over after {config['horizon']} "
             f"steps; it has to be a whole number in [1, {config['horizon']}]")


def number(kind, interval):
    """A type for argparse: int or float, in digits that everybody can read, in an interval."""
    def read(text):
        try:
            value = kind(text if text.isascii() and "_" not in text else "")
        except ValueError:
            value = float("nan")
        if not inside(value, interval):
            whole = "whole " * (kind is int)
            raise argparse.ArgumentTypeError(f"{text!r} is no {whole}number in {interval}")
        return value
    return read


def cores():
    """How many this process may use, as a job or taskset gives them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# what programs ask beside the settings
COUNT = number(int, "[1, 1e9]")
THREADS = number(int, "[1, 1024]")
ANY_SEED = number(int, "[0, 1e9)")
SECONDS = number(float, "(0, 1e6]")


def device(text):
    """A type for argparse: a device's name; kit.quick knows whether it is there."""
    if not re.fullmatch("auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda, cuda:1, mps")
    return text


# --- what stands in tasks.py, and what differs ---------------------------------------------------

def own_lm(profile, method):
    """The language model that a method's row names itself; None if it names none."""
    row = METHODS[method]
    return (row | row.get(profile, {})).get("lm")


def takes_lm(profile, method):
    """Whether LM= is for a method: it has a language model, and its row does not say which."""
    without = is_baseline(method) or METHODS[method].get("trunk") == "dt"
    return not without and own_lm(profile, method) is None


def short(value):
    """A value in a message; of a long list, its beginning."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:40]} ..."


def differences(recorded, wanted, without=()):
    """["steps is 500, not 4", ...]: where settings that were recorded are not those wanted now, which are a
    whole configuration if they name a task."""
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in a record
    said = []
    for name, value in (wanted | (gone(recorded, wanted) if "task" in wanted else {})).items():
        had = recorded.get(name, UNSAID.get(name))
        if name in BY_CONTENT:
            had, value = BY_CONTENT[name](had or {}), BY_CONTENT[name](value or {})
        auto = name == "dtype" and value == "auto"  # recorded is what that came to
        if had == value or name in without or auto or name in ("lm", "adapter") and same_place(had, value):
            continue
        if isinstance(had, dict) and isinstance(value, dict):  # the one thing of many
            key = next(key for key in {**had, **value} if had.get(key) != value.get(key))
            name, had, value = f"{name}[{key}]", had.get(key), value.get(key)
        said.append(f"{name} is {short(had)}, not {short(value)}")
    return said


def gone(recorded, wanted):
    """{name: None} of the settings that were recorded and that nothing sets any more."""
    return {name: None for name, value in recorded.items()
            if name in OF_ROWS and name not in wanted and value is not None}


def by_file(inputs):
    """{file's name: digests} of {path: digest}: a kit that was moved finds the same files elsewhere."""
    names = {}
    for path, digest in sorted(inputs.items()):
        names.setdefault(os.path.basename(path), []).append(digest)
    return {name: "+".join(sorted(digests)) for name, digests in names.items()}


# Of these a record is of the same if they hold the same. A text's tokens are those of a tokenizer, whichever
# language model was asked for it.
BY_CONTENT = {"inputs": by_file, "text": lambda text: {name: text[name] for name in text if name != "lm"}}


def some(differs):
    """Three of the differences, in a message."""
    return "; ".join(differs[:3]) + " and more" * (len(differs) > 3)


def same_place(one, other):
    """Whether two names of a language model are one folder or file: /models/gpt2 and ../models/gpt2."""
    return all(name and os.path.exists(name) for name in (one, other)) and os.path.samefile(one, other)


def changed(run, recorded):
    """"steps=6 lm=/toy": the settings in which a run differs from what its name stands for."""
    meant = json.loads(json.dumps(configuration(run)))
    told = UNSAID | recorded
    meant |= gone(recorded, meant)
    lm, from_hub = told.get("lm"), run.startswith("paper/")
    if lm and from_hub and os.path.basename(lm) == meant.get("lm"):
        told["lm"] = meant["lm"]  # a copy in a folder of its name; rows have its digest
    return " ".join(f"{name}={json.dumps(told.get(name)).strip(chr(34))}" for name, value in meant.items()
                    if told.get(name) != value and name not in KEEPING  # the machine's, and so is this:
                    and not (name == "dtype" and "auto" in (value, told.get(name))))


# --- the command line --------------------------------------------------------------------------

class Options(argparse.ArgumentParser):
    """argparse, but a wrong word is answered in one line, and no word is guessed from its beginning."""

    def __init__(self, manual):
        super().__init__(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter,
                         allow_abbrev=False)

    def parse_args(self, *words):
        """In a program, before its packages are imported: one that is not there is one line, too."""
        given = super().parse_args(*words)
        for action in self._actions:  # argparse makes an empty list of --steps=--
            if action.option_strings and getattr(given, action.dest, None) == []:
                self.error(f"argument {action.option_strings[0]}: expected one argument")
        if not words:
            sys.excepthook = without_package
        return given

    def error(self, message):
        fail(f"{message}; see --help")


def without_package(kind, error, trace):
    """sys.excepthook of a program."""
    if not issubclass(kind, ModuleNotFoundError):
        in_one_line(kind, error, trace)
        return
    try:
        fail(f"the package {error.name} is not installed in {sys.executable}; make setup installs what is "
             "needed into .venv: call .venv/bin/python")
    except SystemExit as stop:
        print(stop.code, file=sys.stderr)


def options(manual, run="one"):
    """The command line of the stages that know a run: every setting can be overridden there. One that the
    method or the stage has no use for (DT's lora_rank) is ignored, so that one ARGS= serves all.
    run="none": without the run, to read ARGS= alone; run="maybe": it may be left out."""
    parser = Options(manual)
    if run != "none":
        parser.add_argument("run", type=run_name, nargs="?" if run == "maybe" else None,
                            help="PROFILE/CELL/METHOD/seedN")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--replace", action="store_true", help="what is there, if its settings differ")
    parser.add_argument("--fresh", action="store_true", help="replace what is there in any case")
    parser.add_argument("--tensorboard", action="store_true", help="train.csv's rows as event files too")
    parser.add_argument("--target_returns", type=number(float, RANGES["target_returns"]), nargs="+",
                        help="instead of the task's")
    for name, value in (BASELINE | SEQUENCE | DEFAULTS).items():
        if name in NATURE or isinstance(value, dict):
            continue
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
        else:
            kind = number(type(value), RANGES[name]) if name in RANGES else str
            parser.add_argument(f"--{name}", type=kind, choices=CHOICES.get(name),
                                **({} if name in CHOICES else {"metavar": str(value) or "''"}))
    return parser


# --- for make ----------------------------------------------------------------------------------

def axes():
    """What the Makefile needs to know, as make variables."""
    baselines = [method for method in METHODS if is_baseline(method)]
    runs = [(profile, method) for profile in PROFILES for method in METHODS]
    no_lm = [f"{profile}/{method}" for profile, method in runs if not takes_lm(profile, method)]
    own = [f"LM_{profile}/{method} := {own_lm(profile, method)}" for profile, method in runs
           if own_lm(profile, method)]
    return "\n".join([
        f"TASKS := {' '.join(TASKS)}", f"CELLS := {' '.join(cells())}",
        f"ALL_METHODS := {' '.join(METHODS)}", f"BASELINES := {' '.join(baselines)}",
        f"NO_LM := {' '.join(no_lm)}", *own])  # of PROFILE/METHOD that LM= is not for


def listing():
    lines = [f"{'cell':24} {'environment':23} {'dataset':22} targets"]
    for task, row in TASKS.items():
        for ratio in row["ratios"]:
            targets = ", ".join(f"{target:g}" for target in row["target_returns"])
            lines.append(f"{task + '-' + ratio:24} {row['env']:23} {row['dataset']:22} {targets}")
    return "\n".join([*lines, f"\nmethods:  {' '.join(METHODS)}", f"profiles: {' '.join(PROFILES)}"])


if __name__ == "__main__":
    signals.catch()
    signals.end_with_reader()
    if len(sys.argv) > 2:
        fail(f"one run is asked for, and not {' '.join(sys.argv[1:])!r}; see --help")
    if len(sys.argv) < 2:
        print(listing())
    elif sys.argv[1] in ("-h", "--help"):
        print(f"usage: python3 -m kit.settings [RUN]\n\n{__doc__}")
    elif sys.argv[1] == "--make":
        print(axes())
    else:
        print(json.dumps(configuration(sys.argv[1]), indent=1))
