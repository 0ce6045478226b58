"""How long runs take: from the times of finished ones, which kit.watch wrote beside them.

    times = measured()
    seconds = seconds_left(config, times, trained=0, now={})        # None: none of its kind has been finished

reads   runs/RUN/: cost.json, config.json, eval.json

A run's kind is its profile, task and method, else profile, suite and method, with the same sizes of batch and
network. Standard library only.
"""

import collections
import contextlib
import math
import statistics
from pathlib import Path

from kit.lock import read_json

# what a step's time depends on, beside profile, task and method
COSTLY = ("batch_size", "context", "lm", "trunk", "train", "lora_rank", "lm_weight", "lm_batch_size",
          "lm_block", "hidden", "hidden_layers")


def episodes_of(config):
    """Of its whole evaluation."""
    return math.ceil(config["steps"] / config["eval_every"]) * len(
        config.get("target_returns") or (None,)) * config["episodes"]


def kinds(config):
    """What a run's time is looked up by, the closest first."""
    costly = tuple(str(config.get(name)) for name in COSTLY)
    return [(config["profile"], config[scope], config["method"], *costly) for scope in ("task", "suite")]


def measured():
    """{kind: [(a start, a training step, a start of evaluation, an episode)]}, seconds of finished runs."""
    times = collections.defaultdict(list)
    for path in Path("runs").glob("*/*/*/seed*/cost.json"):
        cost, config = read_json(path), read_json(path.parent / "config.json")
        training, evaluation = cost.get("training", {}), cost.get("evaluation", {})
        played = evaluation.get("calls") and (path.parent / "eval.csv").exists()
        if not training.get("steps") or not played:
            continue
        with contextlib.suppress(KeyError, TypeError):  # another kit's
            episodes = episodes_of(config | read_json(path.parent / "eval.json"))
            sample = ((training["wall"] - training["seconds"]) / training["calls"],
                      training["seconds"] / training["steps"],
                      (evaluation["wall"] - evaluation["seconds"]) / evaluation["calls"],
                      evaluation["seconds"] / episodes)
            for kind in kinds(config):
                times[kind].append(sample)
    return times


def seconds_left(config, times, trained=0, now=None):
    """What is left of a run of which `trained` steps are done, None if that is not known.
    now: the progress.json of one that runs."""
    samples = next((times[kind] for kind in kinds(config) if kind in times), None)
    if not samples:
        return None
    start, step, evaluation, episode = map(statistics.median, zip(*samples, strict=True))
    playing = evaluation + episode * episodes_of(config)
    if now and now["unit"] != "step":
        return playing if now["left"] is None else now["left"]
    if now:
        return step * (config["steps"] - now["done"]) + playing
    return (0.0 if trained == config["steps"] else start + step * (config["steps"] - trained)) + playing


def spell(seconds):
    """"42 s", "7.8 min", "3.1 h", "2.4 days"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
