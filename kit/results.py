"""What the figures and tables read: a cell's episodes, and the paper's numbers.

    rows = load_results("mini/hopper-medium-0.01")             # of results/PROFILE/CELL.csv
    published()                                                # of paper/scores.csv
"""

import csv
import math
from pathlib import Path

import tasks
from kit import artifacts, fail, settings

PAPER_SCORES = Path(__file__).parent.parent / "paper" / "scores.csv"


def load_results(cell):
    """Rows of results/PROFILE/CELL.csv; one line and exit if they are not those of the cell."""
    settings.parse_cell(cell)
    path = artifacts.results_path(cell)
    if not path.exists():
        fail(f"{path} is not there; make it: python evaluate.py --collect {cell}")
    return load_cell(path, cell)


def files_of(folder):
    """The CSV files of a folder, gzipped or not, and nothing that is called otherwise, such as copies, and
    what somebody is writing."""
    return sorted(path for path in folder.glob("[!.]*.csv*") if path.name.endswith((".csv", ".csv.gz")))


def of_one_subset(folder):
    """["results/mini/hopper-medium-0.01-d3.csv is ...", ...]: what no report is of, in a line each."""
    cells = {path: settings.split_subset(path.name.partition(".csv")[0]) for path in files_of(folder)}
    return [f"{path} is of subset {subset} alone; a report is of {cell}.csv and {cell}-dN.csv"
            for path, (cell, subset) in cells.items() if subset not in (0, "N")]


def load_cell(path, cell):
    """Rows of a file, wherever it lies; one line and exit if they are not those of PROFILE/CELL, or of CELL
    in one profile."""
    rows = load_file(path)
    own = cell if "/" in cell else f"{rows[0]['profile'] if rows else 'mini'}/{cell}"
    if {(row["profile"], row["task"], row["ratio"]) for row in rows} != {settings.parse_cell(own)}:
        fail(f"{path} is empty or holds rows of another cell, or of two profiles; make it again")
    return rows


def load_file(path):
    """Rows of a cell's file, wherever it lies, with numbers as numbers; one line and exit if it is damaged,
    or if a method's seeds were made with different settings."""
    rows = artifacts.read_csv(path, artifacts.RESULT_COLUMNS)
    if rows and not {"score_window", "changed"} <= {*rows[0]}:
        fail(f"{path} holds no cell's rows but a run's; make it: python evaluate.py --collect PROFILE/CELL")
    try:
        for row in rows:
            for name in ("seed", "step", "episode", "length", "data_episodes", "score_window"):
                row[name] = int(row[name])
            for name in ("ratio", "return", "normalized_score"):
                row[name] = float(row[name])
                if not math.isfinite(row[name]):
                    raise ValueError(f"{name} {row[name]}")
            row["data_score"], row["subset"] = float(row["data_score"] or "nan"), int(row.get("subset") or 0)
            # empty where there is nothing to measure
            for name in ("heldout_loss", "heldout_floor", "train_loss", "bits_per_byte", "heldout_decisions"):
                row[name] = float(row.get(name) or "nan")
            row["target_return"] = float(row["target_return"]) if row["target_return"] else None
            if row["score_window"] < 1:
                raise ValueError(f"score_window {row['score_window']}")
    except ValueError as error:
        fail(f"{path} holds something that is no number or out of range ({error}); make it again")
    made = {}
    for row in rows:
        if row["method"] not in tasks.METHODS:
            fail(f"{path} holds method {row['method']!r}, which tasks.py does not have; make it again")
        own = f"{row['changed']} score_window={row['score_window']}".strip()
        if made.setdefault(row["method"], own) != own:
            fail(f"{path} holds seeds of {row['method']} with different settings ({made[row['method']]}; "
                 f"{own}); move away the runs you do not want, then: python evaluate.py --collect "
                 f"{row['profile']}/{path.name.partition('.csv')[0]}")
    check_episodes(path, rows)
    return rows


def check_episodes(path, rows):
    """One line and exit unless each seed of a method has each of the method's episodes once."""
    played = {}
    for row in rows:
        episode = row["step"], row["target_return"], row["episode"]
        played.setdefault(row["method"], {}).setdefault(row["seed"], []).append(episode)
    for method, seeds in played.items():
        every = set().union(*seeds.values())
        for seed, own in seeds.items():
            if len(own) != len(every) or {*own} != every:
                fail(f"{path} holds an episode of {method}, seed {seed}, twice, or lacks one that another "
                     "seed has; make it again")


def data_score(rows):
    """The mean score of the episodes that were trained on; over subsets, the mean of theirs."""
    return sum(scores := {row.get("subset", 0): row["data_score"] for row in rows}.values()) / len(scores)


def published():
    """The paper's scores, in its order: dicts of table "1", task, ratio, method, mean and std, which is None
    where it prints none."""
    try:
        with open(PAPER_SCORES, newline="", encoding="utf-8") as file:
            return [row | {"ratio": float(row["ratio"]), "mean": float(row["mean"]),
                           "std": float(row["std"]) if row["std"] else None} for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        fail(f"{PAPER_SCORES} holds a row that is none ({error!r}); mend it, or restore it with git checkout")


def paper_scores(task, ratio):
    """{method: "52.0±4.6"} for a cell, as the paper prints them."""
    return {row["method"]: f"{row['mean']:.1f}" + ("" if row["std"] is None else f"±{row['std']:.1f}")
            for row in published() if row["task"] == task and row["ratio"] == ratio}
