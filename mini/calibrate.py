"""Choose the mini profile's settings by held-out loss, never by returns, on subsets of no reported number.

    .venv/bin/python -m mini.calibrate reacher2d-medium                 # goes on where it was stopped
    .venv/bin/python -m mini.calibrate hopper-medium --methods dt --steps 1000 --batch_size 16 --lr 3e-4 1e-3
    .venv/bin/python -m mini.calibrate --table                          # writes docs/calibration.md's table

reads   tasks.py for where a search begins: the settings that are there now
writes  a row a training to mini/calibration.csv, in which --table and the next call look; data and runs in
        build/calibrate/, of which the runs are removed

One setting after the other, in the order of SEARCH: each of its values with the best of all before it, and
the first of all after it. A setting without values stays what it is. A context of a quarter comes with a
batch four times as large, so that candidates differ in what they see and not in how much. A candidate's loss
is the least of its checkpoints', the mean over subsets; where it lies says how many steps to take, so that
steps cost no search of their own. Episodes are never played but to make data. Subset N is drawn with seed N,
trained with seed N, and measured on the task's held-out episodes, which are no training data; candidates
that were measured on other episodes than the newest of those compared are trained again. Of buttons,
most of which repeat the one before, the share counts that is missed where another one is pressed: also by
discrete CQL, whose largest value is what it presses, and whose penalty keeps that near the data.
"""

from pathlib import Path

from kit import fail, settings, signals
from tasks import CHOICES, DEFAULTS, METHODS, RANGES, SEQUENCE, TASKS

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("tasks", nargs="*", metavar="TASK")
OPTIONS.add_argument("--methods", nargs="+", default=["lamo", "dt"], choices=[*METHODS], metavar="METHOD")
OPTIONS.add_argument("--subsets", nargs="+", type=settings.ANY_SEED, default=[100], help="100 and up")
OPTIONS.add_argument("--ratio", help="of the data; the paper's lowest else")
OPTIONS.add_argument("--steps", type=settings.number(int, RANGES["steps"]),
                     help="how far each training goes; twice the task's else")
OPTIONS.add_argument("--checkpoints", type=settings.COUNT, default=12, help="at which a training is measured")
for name, said in (("batch_size", "values to try, here and below"),
                   ("lr", "half, once and twice what it is else"), ("context", None), ("dropout", None)):
    OPTIONS.add_argument(f"--{name}", nargs="+", help=said, default=(), type=settings.number(
        type(SEQUENCE.get(name, DEFAULTS.get(name))), RANGES[name]))
OPTIONS.add_argument("--schedule", nargs="+", choices=CHOICES["schedule"], default=())
OPTIONS.add_argument("--quick_init", nargs="+", choices=(True, False), default=(),
                     type={"True": True, "False": False}.get)
OPTIONS.add_argument("--csv", type=Path, default=Path("mini/calibration.csv"))
OPTIONS.add_argument("--document", type=Path, default=Path("docs/calibration.md"))
OPTIONS.add_argument("--table", action="store_true", help="write the table of what was found")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds

import contextlib
import shutil
import time

import numpy as np

import baselines
import prepare_data
import train
from evaluate import load_checkpoint, load_run, merged
from kit import artifacts
from kit.imitation import episodes_of, imitates, loss_of, missed, predictions, training_loss
from sources.download import locked

FIRST = 100  # subsets below are for numbers that are reported
SEARCH = ("batch_size", "lr", "context", "schedule", "dropout", "quick_init")
KEY = ("task", "ratio", "method", *SEARCH, "steps", "checkpoints", "subset")
COLUMNS = (*KEY, "lm", "loss", "best_step", "last_loss", "train_loss", "seconds", "heldout_data", "code",
           "dtype", "curve")  # dtype: empty in rows from before it was noted
MARKERS = ("<!-- calibration: begin, of python -m mini.calibrate --table -->", "<!-- calibration: end -->")
BUILD = Path("build/calibrate")


# --- one training ------------------------------------------------------------------------------

def measure(run, changes):
    """Train a run and measure its checkpoints: ({step: held-out loss}, what its record and train.csv say)."""
    profile, cell, method, _ = run.split("/")
    config = settings.configuration(run, **changes)
    BUILD.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(BUILD), locked(Path(f"{run.replace('/', '-')}.search")):  # a candidate at a time
        prepare_data.prepare(prepare_data.OPTIONS.parse_args([f"{profile}/{cell}"]))
        if config.get("lm_weight"):
            words = [f"{profile}/text", "--lm", config["lm"]]
            prepare_data.text.prepare(prepare_data.OPTIONS.parse_args(words))
        (baselines if settings.is_baseline(method) else train).train(run, fresh=True, **changes)
        config, model, checkpoints = load_run(run)
        data, provenance = episodes_of(config)
        curve = {load_checkpoint(model, path, config): badness(merged(model, config), config, data)
                 for path in checkpoints}
        about = {"lm": config["lm_id"], "code": config["code"], "heldout_data": provenance["sha256"][:8],
                 "dtype": config.get("dtype", "float32"),
                 "train_loss": training_loss(config, min(curve, key=curve.get))}
        shutil.rmtree(artifacts.run_folder(run))
    return curve, about


def badness(model, config, data):
    """The held-out loss; of buttons, the share of decisions that are missed."""
    predicted, actions = predictions(model, config, data)
    return float(missed(predicted, actions, data) if config["discrete"] else
                 loss_of(predicted, actions, config))


def row_of(key):
    """The row of a candidate, which is trained for it."""
    start, run = time.time(), "mini/{task}-{ratio}-d{subset}/{method}/seed{subset}".format(**key)
    every = max(1, key["steps"] // key["checkpoints"])
    changes = {name: key[name] for name in (*SEARCH, "steps")}
    if settings.is_baseline(key["method"]):
        changes |= {"actor_lr": key["lr"]}
    curve, about = measure(run, changes | {"eval_every": every})
    best = min(curve, key=curve.get)
    return key | about | {
        "loss": f"{curve[best]:.6g}", "best_step": best, "last_loss": f"{curve[max(curve)]:.6g}",
        "seconds": round(time.time() - start),
        "curve": " ".join(f"{step}:{loss:.4g}" for step, loss in curve.items())}


# --- the search --------------------------------------------------------------------------------

def search(task, method, args):
    """Try every candidate of a task and method that the CSV does not have yet."""
    ratio = args.ratio or TASKS[task]["ratios"][0]
    now = settings.configuration(f"mini/{task}-{ratio}/{method}/seed0")
    if not (imitates(now) or now["discrete"]):
        fail(f"{method} does not imitate, so it has no held-out loss")
    searched = {name: value for name, value in of_search(now).items() if value != ""}
    key = {"task": task, "ratio": ratio, "method": method, **of_search(now),
           "steps": args.steps or 2 * now["steps"], "checkpoints": args.checkpoints}
    key |= {name: getattr(args, name)[0] for name in searched if getattr(args, name)}
    for name in searched:
        values = getattr(args, name) or [searched[name]]
        if name == "lr" and not args.lr:
            values = [float(f"{searched['lr'] * factor:.3g}") for factor in (0.5, 1, 2)]
        candidates = [key | {name: value} for value in values]
        if name == "context":
            candidates = [candidate | {"batch_size": key["batch_size"] * key["context"] // value}
                          for candidate, value in zip(candidates, values, strict=True)]
        if len(values) == 1 and name != "lr":
            key = candidates[0]
            continue
        losses = losses_of(candidates, args)
        key = candidates[int(np.argmin(losses))]
        print(f"{task} {method}: {name} {key[name]}, loss {min(losses):.4f}", flush=True)


def losses_of(candidates, args):
    """The mean loss of each over the subsets, all measured on the same episodes."""
    keys = [candidate | {"subset": subset} for candidate in candidates for subset in args.subsets]
    rows = [found(key, args) for key in keys]
    while len({row["heldout_data"] for row in rows}) > 1:
        newest = [row for row in rows_of(args.csv) if row in rows][-1]["heldout_data"]
        print(f"trained again, to be measured on the episodes {newest} like the newest", flush=True)
        rows = [found(key, args, newest) for key in keys]
    return np.reshape([float(row["loss"]) for row in rows], (len(candidates), -1)).mean(1)


def of_search(config):
    """The settings of a configuration that are searched; empty where it has none. A baseline that acts
    continuously has its actor's learning rate."""
    actor = settings.is_baseline(config["method"]) and not config["discrete"]
    return {name: config.get("actor_lr" if actor and name == "lr" else name, "") for name in SEARCH}


def found(key, args, episodes=None):
    """The newest row of a candidate in the CSV; it is trained and appended, if it is not there. episodes: the
    digest of those that it has to be measured on."""
    for row in reversed(rows_of(args.csv)):
        if all(row[name] == str(key[name]) for name in KEY) and episodes in (None, row["heldout_data"]):
            return row
    row = {name: str(value) for name, value in row_of(key).items()}
    with locked(args.csv):  # another task's search may write, too
        artifacts.write_csv(args.csv, COLUMNS, [*rows_of(args.csv), row])
    return found(key, args)


def rows_of(path):
    return artifacts.read_csv(path, COLUMNS, empty=True) if path.exists() else []


# --- the table ---------------------------------------------------------------------------------

def table(rows):
    """Lines of Markdown: for each task, ratio and method what was tried, the best first, of the same held-out
    episodes."""
    head = ("task, ratio", "method", "batch", "learning rate", "context", "schedule", "dropout",
            "`quick_init`", "held-out loss", "lowest at step", "at the last step", "subsets", "in `tasks.py`")
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for (task, ratio, method, _), group in grouped(rows, ("task", "ratio", "method", "heldout_data")):
        config = settings.configuration(f"mini/{task}-{ratio}/{method}/seed0")
        now = tuple(map(str, of_search(config).values()))
        tried = sorted((np.mean([float(row["loss"]) for row in line]), own, line)
                       for own, line in grouped(group, KEY[3:-1]))
        for loss, (*own, steps, _), line in tried:
            lowest = ", ".join(f"{int(row['best_step']):,}" for row in line)
            last = np.mean([float(row["last_loss"]) for row in line])
            yes = " yes" if tuple(own) == now and int(steps) == config["steps"] else ""
            yield (f"| `{task}` {ratio} | `{method}` | {' | '.join(own)} | {loss:.4f} | {lowest} of "
                   f"{int(steps):,} | {last:.4f} | {len(line)} |{yes} |")


def grouped(rows, names):
    """(values, rows) of rows that are equal in these columns, in the order of their first ones."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups.items()


def main(args):
    if low := [subset for subset in args.subsets if subset < FIRST]:
        fail(f"--subsets {low[0]}: settings are not chosen on subsets below {FIRST}, which are for results")
    if strange := {*args.tasks} - {*TASKS}:
        fail(f"no task {strange.pop()!r}; there are {', '.join(TASKS)}")
    if not args.tasks and not args.table:
        fail(f"name a task, of {', '.join(TASKS)}, or --table")
    for task in args.tasks:
        for method in args.methods:
            search(task, method, args)
    if args.table:
        artifacts.fill_document(args.document, MARKERS, table(rows_of(args.csv)))


if __name__ == "__main__":
    main(ARGS)
