"""What is known of each cell and method of a profile.

    cells, troubles = gather("mini", Path("results/mini"))    # -dN counts as its cell, before one subset's
    cells["hopper-medium-0.01"]["lamo"]["score"]

reads   a folder's CSV files, gzipped or not; runs/PROFILE/*/*/seedN/config.json and cost.json, where they are
        there and rows do not say themselves what they were made by (paper/shipped.py)

A line is what kit.statistics.summarise says of a method in a cell, and beside it
    values, best_values   a score a seed, at the largest target and at the authors' best one
    deviation             over the seeds' scores (n - 1); None for one seed
    curve                 (share of the training, mean score, deviation or None) for each evaluation
    profile, data, data_episodes, data_score, episodes    of its rows; episodes of an evaluation and target
    records               {seed: config.json}, as far as the runs are there, and by what they were played
"""

import functools
from pathlib import Path

import numpy as np

import tasks
from kit import artifacts, settings
from kit.gathering import is_of, made_by
from kit.results import data_score, files_of, load_cell
from kit.statistics import summarise

MAIN = ("lamo", "dt", "wiki", "cql", "iql", "td3bc", "bc")  # the columns of the paper's tables
NAMES = {"lamo": "LaMo", "dt": "DT", "wiki": "Wiki-RL", "cql": "CQL", "iql": "IQL", "td3bc": "TD3+BC",
         "bc": "BC", "bcq": "BCQ", "nfq": "NFQ"}
DOMAINS = {"Kitchen": ("kitchen",), "MuJoCo and Reacher2d": ("mujoco", "reacher2d"),
           "Atari": ("atari",)}  # of the paper's figure 1


def name_of(method):
    """As the paper prints it; ablations as one types them."""
    return NAMES.get(method, method)


def domain_of(cell):
    suite = tasks.TASKS[cell.rpartition("-")[0]]["suite"]
    return next(domain for domain, suites in DOMAINS.items() if suite in suites)


def gather(profile, folder):
    """({cell: {method: line}}, ["what could not be read", ...]), cells in the order of tasks.py."""
    cells, troubles = {}, []
    for path in sorted(files_of(folder), key=lambda path: "-dN." in path.name):
        name = path.name.partition(".csv")[0]
        plain, subset = settings.split_subset(name)
        if subset not in (0, "N"):  # kit.results.of_one_subset says so
            continue
        rows = attempt(troubles, load_cell, path, f"{profile}/{name}")
        for line in summarise(rows or []):
            lines = cells.setdefault(plain, {})
            if line["method"] not in lines or line["over"] == "subsets":
                lines[line["method"]] = line | more_of(line, rows, troubles)
    order = list(tasks.TASKS)
    return dict(sorted(cells.items(), key=lambda item: (order.index(item[0].rpartition("-")[0]),
                                                        float(item[0].rpartition("-")[2])))), troubles


def attempt(troubles, function, *arguments):
    """function(*arguments); None, and its message in troubles, if it ends the program, or the machine refuses
    it a file: one file shall not hide what all others say."""
    try:
        return function(*arguments)
    except (SystemExit, OSError) as stop:
        said = stop.strerror or str(stop) if isinstance(stop, OSError) else str(stop.code).partition(": ")[2]
        files = [one for one in arguments if isinstance(one, Path)]
        troubles.append("".join(f"{path}: " for path in files if str(path) not in said) + said)


def more_of(line, rows, troubles):
    """What the module's docstring names, for a line of the table and the rows of its cell."""
    rows = [row for row in rows if row["method"] == line["method"]]
    first, own = rows[0], [row for row in rows if row["target_return"] == line["target"]]
    values = {target: scores if line["over"] != "episodes" else [float(np.mean(scores))]
              for target, scores in line["scores"].items()}
    ours, best = values[line["target"]], values[line["best_target"]]
    cell = Path("runs", first["profile"], f"{first['task']}-{first['ratio']:g}")
    return {"values": np.array(ours), "best_values": np.array(best),
            "deviation": deviation(ours), "best_deviation": deviation(best),
            "curve": curve(own), "episodes": len({row["episode"] for row in own}),
            **{name: first[name] for name in ("profile", "data_episodes")}, "data_score": data_score(rows),
            "data": ", ".join(sorted({row["data"] for row in rows})),
            "records": said_by(rows) or records(cell, rows, troubles)}


def said_by(rows):
    """What shipped rows say of their runs, as `records`; empty for rows that say nothing."""
    names = ("data_sha256", "code", "torch", "numpy", "device")
    return {row["seed"]: {name: row[name] for name in names} for row in rows if row.get("code")}


def deviation(values):
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def curve(rows):
    """[(share of the training, mean score, deviation), ...] at the steps that every seed has."""
    scores = {}
    for row in rows:
        scores.setdefault(row["step"], {}).setdefault(row["seed"], []).append(row["normalized_score"])
    seeds, last = {row["seed"] for row in rows}, max(max(scores), 1)
    points = []
    for step in sorted(scores):
        if set(scores[step]) == seeds:
            means = [float(np.mean(values)) for values in scores[step].values()]
            points.append((step / last, float(np.mean(means)), deviation(means)))
    return points


def records(cell, rows, troubles):
    """{seed: config.json, with what cost.json says as "cost"} of the runs of a method's rows, if these are
    still theirs, and of others that are there; where rows are of subsets, of each the one of its seed."""
    found, every = {}, f"{cell.name}-dN" if any(row["subset"] for row in rows) else cell.name
    paths = cell.parent.glob(f"{every.replace('-dN', '*')}/{rows[0]['method']}/seed*/config.json")
    for path in sorted(paths):
        seed = path.parent.name[4:]
        if not seed.isdigit() or path.parts[-4] != settings.of_seed(every, seed):
            continue
        own = [row for row in rows if row["seed"] == int(seed)]
        if own and not attempt(troubles, is_of, own, path.parent):
            troubles.append(f"{path.parent} was trained or played anew since its rows were gathered; the "
                            "report does not say what made them: type its make again")
            continue
        record = attempt(troubles, artifacts.read_json, path, "the report does without it")
        cost, evaluation = path.with_name("cost.json"), path.with_name("eval.json")
        if record is not None:
            if evaluation.exists():
                how = attempt(troubles, artifacts.read_json, evaluation, "the report does without it")
                record |= made_by(record, how or {})
            if cost.exists():
                record["cost"] = attempt(troubles, artifacts.read_json, cost, "the report does without it")
            found[int(path.parent.name[4:])] = record
    return found


def cost_of(line):
    """What a line's runs took together, as far as cost.json says so: {"runs" that do, "wall" and "cpu"
    seconds, "peak_memory" bytes of the largest}."""
    costs = [line["records"].get(seed, {}).get("cost") for seed in line["seeds"]]
    costs = [cost for cost in costs if isinstance(cost, dict) and isinstance(cost.get("wall"), int | float)]

    def values(name):
        return [cost[name] for cost in costs if isinstance(cost.get(name), int | float)]

    return {"runs": len(costs), "wall": sum(values("wall")), "cpu": sum(values("cpu")),
            "peak_memory": max(values("peak_memory"), default=0)}


def line_for(cells, cell, method):
    """The line of a method in a cell. An ablation that was not run, because LaMo's settings are its own
    there, is LaMo's line; None if there is neither."""
    lines = cells.get(cell, {})
    if method not in lines and "lamo" in lines and is_lamo(lines["lamo"]["profile"], cell, method):
        return lines["lamo"]
    return lines.get(method)


@functools.cache
def is_lamo(profile, cell, method):
    """Whether a method's settings in a cell are LaMo's: lamo-linear on Hopper."""
    if method not in tasks.METHODS or settings.missing(cell.rpartition("-")[0], method):
        return False
    own, lamo = (settings.configuration(f"{profile}/{cell}/{name}/seed0") for name in (method, "lamo"))
    return own | {"method": "lamo"} == lamo


def facts(lines):
    """What a caption says of the lines shown: seeds, episodes, data."""
    lines = list(lines)
    seeds = sorted({seed for line in lines for seed in line["seeds"]})
    counts = sorted({len(line["seeds"]) for line in lines})
    episodes, data = sorted({line["episodes"] for line in lines}), sorted({line["data"] for line in lines})
    shown = ", ".join(data[:3]) + (f" and {len(data) - 3} more" if len(data) > 3 else "")
    said = "" if len(counts) == 1 else f" ({counts[0]} to {counts[-1]} of them a method and cell)"
    return (f"Seed{'s' * (len(seeds) != 1)} {' '.join(map(str, seeds))}{said}; "
            f"{' or '.join(map(str, episodes))} episode{'s' * (episodes != [1])} an evaluation; "
            f"data {shown}.")
