"""The rows of a run's evaluation, and those of a cell's runs in one file, for plot.py.

    part, rows, by = begin_evaluation(folder, how, config, machine, fresh)  # what is there already
    finish_evaluation(part, record, fresh)                                  # eval.csv and eval.json
    collect("mini/hopper-medium-0.01")                                      # evaluate.py --collect mini/...

reads   runs/PROFILE/CELL/*/seed*/: config.json, eval.json, eval.csv
writes  results/PROFILE/CELL.csv, with the number of each run's subset, its score_window, the settings in
        which it differs from what its name stands for, and the losses of its checkpoints, if measured

CELL-dN gathers replications of everything: seed 0 of CELL, seed 1 of CELL-d1, seed 2 of CELL-d2 and so on.
Seeds that share a subset are in CELL, or CELL-d3, alone, so that no table has two runs of a method and seed.
"""

import hashlib
import json
import os
import re

from kit import artifacts, fail, lock, seals, settings
from tasks import METHODS

# --- an evaluation that goes on --------------------------------------------------------------------

def begin_evaluation(folder, how, config, machine, fresh):
    """(file for rows, rows that are there, by what they and those to come are played) of an evaluation.

    how         the options on which it depends which episodes are played, and how precisely
    machine     what plays now, as kit.runs.machine says; beside it stands what played rows that are there
    """
    part, by = folder / f"eval.{digest_of(how)}.csv", [machine]
    set_aside(folder, how)
    if fresh:
        part.unlink(missing_ok=True)
    rows = []
    for path in () if fresh else (folder / "eval.csv", part):  # part: of a killed call, or one before others
        if path.exists() and not rows:
            rows = load_rows(path, config, whole=path != part)
            before = seals.read_report(path.with_suffix(".json")).get("played_by", [{"code": "unknown"}])
            by = before + [machine] * (machine not in before)
    artifacts.write_json(part.with_suffix(".json"), how | {"played_by": by})
    return part, rows, by


def finish_evaluation(part, record, fresh):
    """Give a whole evaluation its names. eval.json says how eval.csv was played, and another make may gather
    both at any moment: so it comes first, beside no rows, or such as were played in the same way."""
    done = part.with_name("eval.csv")
    if fresh:
        done.unlink(missing_ok=True)
    artifacts.write_json(done.with_suffix(".json"), record)
    os.replace(part, done)
    part.with_suffix(".json").unlink(missing_ok=True)


def set_aside(folder, how):
    """Give eval.csv and its record another name, under which they are found again, unless it was played in
    this way. Without a record of how, it is nobody's."""
    if not (folder / "eval.json").exists():
        (folder / "eval.csv").unlink(missing_ok=True)
    elif (folder / "eval.csv").exists():
        record = artifacts.read_json(folder / "eval.json", "delete it and evaluate again")
        played = {name: record.get(name) for name in how}
        if played != how:
            aside = folder / f"eval.{digest_of(played)}.csv"
            artifacts.write_json(aside.with_suffix(".json"), record)
            os.replace(folder / "eval.csv", aside)


def digest_of(how):
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:8]


def made_by(config, evaluation):
    """{name: "a1b2+c3d4"}: by what a run was trained and played, of settings.MACHINE and precision; each
    value once, in that order. config, evaluation: config.json and eval.json"""
    parts = [config, *config.get("resumed", []), evaluation, *evaluation.get("played_by", [])]
    return {name: "+".join(dict.fromkeys(str(part[name]) for part in parts if part.get(name) is not None))
            for name in (*settings.MACHINE, "dtype")}


def is_of(rows, folder):
    """Whether rows of results/, as text or with numbers, are of the evaluation that lies in a run's folder
    now: the run may have been trained or played anew since they were gathered."""
    path = folder / "eval.csv"
    own = artifacts.read_csv(path, artifacts.RESULT_COLUMNS) if path.exists() else []
    return bool(own) and sorted(map(episode_of, own)) == sorted(map(episode_of, rows))


def episode_of(row):
    """(step, target, episode, return, length), as numbers."""
    target = row["target_return"]
    return (int(row["step"]), float("-inf") if target in (None, "") else float(target), int(row["episode"]),
            float(row["return"]), int(row["length"]))


# --- the runs of a cell ----------------------------------------------------------------------------

def collect(cell):
    """results/PROFILE/CELL.csv: every evaluated run of the cell, methods in the table's order."""
    settings.parse_cell(cell)
    methods, rows, first, changed = list(METHODS), [], {}, {}
    for path in evaluated(cell, methods):
        run = settings.run_name(str(path.parent))
        lock.tidy(run, path.parent)
        config = artifacts.load_config(run)
        config |= artifacts.read_json(path.parent / "eval.json", f"evaluate again: python evaluate.py {run}")
        subset = settings.split_subset(config["cell"])[1]
        data = {name: config[name] for name in ("data", "data_sha256")}
        refuse_to_mix(first.setdefault(f"subset {subset}", (run, data)), run, data)
        twin = first.setdefault(data["data_sha256"], (run, subset))
        if twin[1] != subset:
            fail(f"runs/{twin[0]} and runs/{run} were trained on the same episodes, which {cell} would count "
                 "as two subsets; move one of them out of runs/")
        alike = {name: value for name, value in config.items() if name not in OF_ONE_RUN}
        if settings.split_subset(cell)[1] == "N":
            alike = {name: value for name, value in alike.items() if name not in OF_ONE_SUBSET}
            alike["data"] = artifacts.source_name(config["data"])
        refuse_to_mix(first.setdefault(config["method"], (run, alike)), run, alike)
        more = {"subset": subset, "score_window": config["score_window"],
                # a language model may have two names, and a method in a table has one
                "changed": changed.setdefault(config["method"], settings.changed(run, config))}
        own = load_rows(path, config)
        for measured in {row.get("heldout_data") for row in own} - {None, ""}:
            refuse_to_mix(first.setdefault(f"held out {subset}", (run, {"heldout_data": measured})), run,
                          {"heldout_data": measured})
        unknown = dict.fromkeys(artifacts.LOSS_COLUMNS, "")  # rows that were played without them
        rows += [unknown | row | more for row in own]
    if not rows:
        profile, name = cell.split("/")
        plain, subset = settings.split_subset(name)
        how = f"{plain} SUBSETS=seed" if subset == "N" else name
        fail(f"runs/{cell} holds no evaluated run; make one: make PROFILE={profile} {how}")
    path = artifacts.results_path(cell)
    seals.remove_leftovers(path.parent, path.stem)
    columns = artifacts.RESULT_COLUMNS + artifacts.EXTRA_COLUMNS
    # asked at every call of make, it leaves a file alone that says the same, so that figures stay, too
    if not path.exists() or path.read_bytes() != artifacts.csv_text(columns, rows).encode():
        artifacts.write_csv(path, columns, rows)


def of_run(config):
    """What all rows of a run's eval.csv have in common, as they are read back."""
    return {"profile": config["profile"], "data": config["data"], "lm": config["lm_id"],
            "task": config["task"], "ratio": str(config["ratio"]), "method": config["method"],
            "seed": str(config["seed"]), "data_episodes": str(len(config["data_episodes"]))}


def row_of(config, step, target, episode, total, length):
    """A row of eval.csv: RESULT_COLUMNS."""
    low, high = config["reference_min"], config["reference_max"]

    def normalized(total):
        return "" if total is None else f"{100 * (total - low) / (high - low):.4f}"

    return of_run(config) | {
        "step": step, "target_return": "" if target is None else f"{target:g}",
        "episode": episode, "return": f"{total:.4f}", "length": length,
        "normalized_score": normalized(total), "data_score": normalized(config["data_return_mean"])}


def episodes_of(config):
    """(step, target_return, episode) of all that a run's evaluation plays, in order, as rows have them."""
    return [(str(step), "" if target is None else f"{target:g}", str(episode))
            for step in artifacts.checkpoint_steps(config)
            for target in config.get("target_returns", (None,)) for episode in range(config["episodes"])]


def load_rows(path, config, whole=True):
    """Rows of an eval.csv; one line and exit if they are another run's, or not each episode once. Without
    `whole`, episodes may be missing.

    config  the run's, with what its evaluation changed
    """
    rows, own = artifacts.read_csv(path, artifacts.RESULT_COLUMNS), of_run(config)
    remedy = f"delete it and play the run again: python evaluate.py {settings.run_name(str(path.parent))}"
    known = {*artifacts.RESULT_COLUMNS, *artifacts.LOSS_COLUMNS}
    if more := next((name for row in rows[:1] for name in row if name not in known), None):
        fail(f"{path} has a column {more}, which is none of the kit's; take it out, and seal the file "
             f"again: python -m kit.seals {path}")
    if strange := next((name for row in rows for name in own if row[name] != own[name]), None):
        fail(f"{path} holds rows of another run: {strange} is not {own[strange]}; {remedy}")
    wanted = dict.fromkeys(episodes_of(config), 0)
    for row in rows:
        key = row["step"], row["target_return"], row["episode"]
        if wanted.get(key, 1):
            fail(f"{path} holds step {key[0]}, target {key[1] or 'none'}, episode {key[2]} twice, or where "
                 f"none was asked for; {remedy}")
        wanted[key] = 1
    if whole and not all(wanted.values()):
        fail(f"{path} holds {len(rows)} of {len(wanted)} episodes; {remedy}")
    return rows


def evaluated(cell, methods):
    """The eval.csv of each run of a cell. A folder of another name, "seed0.old" or that of a method that is
    gone, is somebody's own."""
    plain, subset = settings.split_subset(cell)
    folders = [artifacts.run_folder(plain), *artifacts.run_folder(plain).parent.glob(
        f"{plain.split('/')[1]}-d*")] if subset == "N" else [artifacts.run_folder(cell)]
    files = [path for folder in folders for path in folder.glob("*/seed*/eval.csv")
             if path.parts[-3] in methods and re.fullmatch("seed(0|[1-9][0-9]*)", path.parts[-2])]
    if subset == "N":
        files = [path for path in files
                 if path.parts[-4] == settings.of_seed(f"{plain.split('/')[1]}-dN", path.parts[-2][4:])]
    return sorted(files, key=lambda path: (methods.index(path.parts[-3]), int(path.parts[-2][4:])))


# In what the seeds of a method may differ: a random trunk and what is frozen of it are the seed's.
OF_ONE_RUN = ("seed", "frozen_sha256", "resumed", "played_by", *settings.MACHINE, *settings.KEEPING)
# And in what they may, besides, where each has a subset of its own.
OF_ONE_SUBSET = ("cell", "data_sha256", "data_episodes", "data_return_mean", "state_mean", "state_std")


def refuse_to_mix(first, run, config):
    """One line and exit if a table would average runs of other data or settings."""
    other, theirs = first
    if differs := settings.differences(theirs, dict.fromkeys(theirs) | settings.UNSAID | config):
        fail(f"a table does not mix runs: in runs/{other} {settings.some(differs)} as in runs/{run}; move "
             "one of them out of runs/, or make it again with REPLACE=1")
