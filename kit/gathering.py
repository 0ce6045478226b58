"""The runs of a cell in one file, for plot.py: `python evaluate.py --collect PROFILE/CELL`.

reads   runs/PROFILE/CELL/*/seed*/: config.json, eval.json, eval.csv
writes  results/PROFILE/CELL.csv, with each run's score_window, and the settings in which it differs from
        what its name stands for
"""

import re

from kit import artifacts, fail, settings
from tasks import METHODS


def collect(cell):
    """results/PROFILE/CELL.csv: every evaluated run of the cell, methods in the table's order."""
    settings.parse_cell(cell)
    methods, rows, first = list(METHODS), [], {}
    # a folder of another name, "seed0.old" or that of a method that is gone, is somebody's own
    files = [path for path in artifacts.run_folder(cell).glob("*/seed*/eval.csv")
             if path.parts[-3] in methods and re.fullmatch("seed(0|[1-9][0-9]*)", path.parts[-2])]
    files.sort(key=lambda path: (methods.index(path.parts[-3]), int(path.parts[-2][4:])))
    for path in files:
        run = settings.run_name(str(path.parent))
        config = artifacts.load_config(run)
        config |= artifacts.read_json(path.parent / "eval.json", f"evaluate again: python evaluate.py {run}")
        data = {name: config[name] for name in ("data", "data_sha256")}
        refuse_to_mix(first.setdefault("any method", (run, data)), run, data)
        alike = {name: value for name, value in config.items() if name not in OF_ONE_RUN}
        refuse_to_mix(first.setdefault(config["method"], (run, alike)), run, alike)
        more = {"score_window": config["score_window"], "changed": settings.changed(run, config)}
        rows += [row | more for row in artifacts.read_csv(path, artifacts.RESULT_COLUMNS)]
    if not rows:
        fail(f"runs/{cell} holds no evaluated run; make one: make {cell.split('/')[1]}")
    path = artifacts.results_path(cell)
    columns = artifacts.RESULT_COLUMNS + artifacts.EXTRA_COLUMNS
    # asked at every call of make, it leaves a file alone that says the same, so that figures stay, too
    if not path.exists() or path.read_text(encoding="utf-8") != artifacts.csv_text(columns, rows):
        artifacts.write_csv(path, columns, rows)


# In what the seeds of a method may differ: a random trunk and what is frozen of it are the seed's.
OF_ONE_RUN = ("seed", "frozen_sha256", "resumed", *settings.MACHINE, *settings.KEEPING)


def refuse_to_mix(first, run, config):
    """One line and exit if a table would average runs of other data or settings."""
    other, theirs = first
    if differs := settings.differences(theirs, dict.fromkeys(theirs) | settings.UNSAID | config):
        fail(f"a table does not mix runs: in runs/{other} {settings.some(differs)} as in runs/{run}; move "
             "one of them out of runs/, or make it again with REPLACE=1")
