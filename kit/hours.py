"""How long runs take: from the times of those that run or have run, which kit.watch wrote beside them.

    times = measured()
    seconds = seconds_left(config, times, trained=0, now={})        # None: none of its kind has been measured

reads   runs/RUN/: cost.json, progress.json, config.json, eval.json, eval.csv

A run's kind is its profile, task and method, else profile, suite and method, with the same sizes of batch and
network. Standard library only.
"""

import collections
import contextlib
import csv
import math
import statistics
from pathlib import Path

from kit.seals import read_report

# what a step's time depends on, beside profile, task and method
COSTLY = ("batch_size", "context", "lm", "lm_layers", "trunk", "train", "lora_rank", "lm_weight",
          "lm_batch_size", "lm_block", "hidden", "hidden_layers")


def episodes_of(config):
    """Of its whole evaluation."""
    return math.ceil(config["steps"] / config["eval_every"]) * len(
        config.get("target_returns") or (None,)) * config["episodes"]


def kinds(config):
    """What a run's time is looked up by, the closest first."""
    costly = tuple(str(config.get(name)) for name in COSTLY)
    return [(config["profile"], config[scope], config["method"], *costly) for scope in ("task", "suite")]


def measured():
    """{(stage, kind): [(seconds until its first step, seconds a training step or an episode)]}, of the
    trainings that have made steps, those included that run or were killed, and of the evaluations that have
    ended."""
    times = collections.defaultdict(list)
    for path in Path("runs").glob("*/*/*/seed*/config.json"):
        # another kit's
        with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError, OSError):
            config = read_report(path) | read_report(path.parent / "eval.json")
            for stage, sample in samples(path.parent, config):
                for kind in kinds(config):
                    times[stage, kind].append(sample)
    return times


def samples(folder, config):
    """(stage, (start, unit)) of a run's training and evaluation, as far as they are known."""
    cost, now = read_report(folder / "cost.json"), read_report(folder / "progress.json")
    training, evaluation = cost.get("training", {}), cost.get("evaluation")
    if training.get("steps"):
        yield "training", ((training["wall"] - training["seconds"]) / training["calls"],
                           training["seconds"] / training["steps"])
    elif now.get("unit") == "step" and now["done"] > now["first"]:
        yield "training", (0.0, now["seconds"] / (now["done"] - now["first"]))
    if evaluation and (folder / "eval.csv").exists():
        yield "evaluation", ((evaluation["wall"] - evaluation["seconds"]) / evaluation["calls"],
                             evaluation["seconds"] / played(folder, evaluation, config))


def played(folder, evaluation, config):
    """How many episodes all calls of an evaluation have played: others may have asked for more or fewer."""
    if evaluation["calls"] == 1:
        return episodes_of(config)
    with open(folder / "eval.csv", newline="", encoding="utf-8") as file:
        lengths = [int(row["length"]) for row in csv.DictReader(file)]
    return evaluation["steps"] * len(lengths) / sum(lengths)


def median(times, stage, config):
    """The middle (start, unit) of the closest kind; None if there is none."""
    samples = next((times[stage, kind] for kind in kinds(config) if (stage, kind) in times), None)
    return samples and tuple(map(statistics.median, zip(*samples, strict=True)))


def seconds_left(config, times, trained=0, now=None):
    """What is left of a run of which `trained` steps are done, None if that is not known. The evaluation of
    a run still to be trained is not counted where it is not known.
    now: the progress.json of one that runs."""
    training, evaluation = (median(times, stage, config) for stage in ("training", "evaluation"))
    playing = evaluation and evaluation[0] + evaluation[1] * episodes_of(config)
    if now and now["unit"] != "step":
        return playing if now["left"] is None else now["left"]
    if trained == config["steps"]:
        return playing
    if not training:
        return None
    start, step = training
    left = step * (config["steps"] - now["done"]) if now else start + step * (config["steps"] - trained)
    return left + (playing or 0.0)


def spell(seconds):
    """"42 s", "7.8 min", "3.1 h", "2.4 days"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
