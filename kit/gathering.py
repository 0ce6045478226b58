"""The runs of a cell in one file, for plot.py: `python evaluate.py --collect PROFILE/CELL`.

reads   runs/PROFILE/CELL/*/seed*/: config.json, eval.json, eval.csv
writes  results/PROFILE/CELL.csv, with the number of each run's subset, its score_window, the settings in
        which it differs from what its name stands for, and the losses of its checkpoints, if measured

CELL-dN gathers replications of everything: seed 0 of CELL, seed 1 of CELL-d1, seed 2 of CELL-d2 and so on.
Seeds that share a subset are in CELL, or CELL-d3, alone, so that no table has two runs of a method and seed.
"""

import re

from kit import artifacts, fail, lock, seals, settings
from tasks import METHODS


def collect(cell):
    """results/PROFILE/CELL.csv: every evaluated run of the cell, methods in the table's order."""
    settings.parse_cell(cell)
    methods, rows, first = list(METHODS), [], {}
    for path in evaluated(cell, methods):
        run = settings.run_name(str(path.parent))
        lock.tidy(run, path.parent)
        config = artifacts.load_config(run)
        config |= artifacts.read_json(path.parent / "eval.json", f"evaluate again: python evaluate.py {run}")
        subset = settings.split_subset(config["cell"])[1]
        data = {name: config[name] for name in ("data", "data_sha256")}
        refuse_to_mix(first.setdefault(f"subset {subset}", (run, data)), run, data)
        alike = {name: value for name, value in config.items() if name not in OF_ONE_RUN}
        if settings.split_subset(cell)[1] == "N":
            alike = {name: value for name, value in alike.items() if name not in OF_ONE_SUBSET}
            alike["data"] = artifacts.source_name(config["data"])
        refuse_to_mix(first.setdefault(config["method"], (run, alike)), run, alike)
        more = {"subset": subset, "score_window": config["score_window"],
                "changed": settings.changed(run, config)}
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
OF_ONE_RUN = ("seed", "frozen_sha256", "resumed", *settings.MACHINE, *settings.KEEPING)
# And in what they may, besides, where each has a subset of its own.
OF_ONE_SUBSET = ("cell", "data_sha256", "data_episodes", "data_return_mean", "state_mean", "state_std")


def refuse_to_mix(first, run, config):
    """One line and exit if a table would average runs of other data or settings."""
    other, theirs = first
    if differs := settings.differences(theirs, dict.fromkeys(theirs) | settings.UNSAID | config):
        fail(f"a table does not mix runs: in runs/{other} {settings.some(differs)} as in runs/{run}; move "
             "one of them out of runs/, or make it again with REPLACE=1")
