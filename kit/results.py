"""What the figures and tables read: a cell's episodes, and the paper's numbers.

    rows = load_results("mini/hopper-medium-0.01")             # of results/PROFILE/CELL.csv
    published()                                                # of paper/scores.csv
"""

import csv
from pathlib import Path

import tasks
from kit import artifacts, fail, settings

PAPER_SCORES = Path(__file__).parent.parent / "paper" / "scores.csv"


def load_results(cell):
    """Rows of results/PROFILE/CELL.csv with numbers as numbers; one line and exit if they are not those of
    the cell, or if a method's seeds were made with different settings."""
    wanted, path = settings.parse_cell(cell), artifacts.results_path(cell)
    if not path.exists():
        fail(f"{path} is not there; make it: python evaluate.py --collect {cell}")
    rows = artifacts.read_csv(path, (*artifacts.RESULT_COLUMNS, *artifacts.EXTRA_COLUMNS))
    try:
        for row in rows:
            for name in ("seed", "step", "episode", "length", "data_episodes", "score_window"):
                row[name] = int(row[name])
            for name in ("ratio", "return", "normalized_score"):
                row[name] = float(row[name])
            row["data_score"] = float(row["data_score"] or "nan")
            row["target_return"] = float(row["target_return"]) if row["target_return"] else None
            if row["score_window"] < 1:
                raise ValueError(f"score_window {row['score_window']}")
    except ValueError as error:
        fail(f"{path} holds something that is no number or out of range ({error}); make it again")
    if {(row["profile"], row["task"], row["ratio"]) for row in rows} != {wanted}:
        fail(f"{path} is empty or holds rows of another cell; make it again")
    made = {}
    for row in rows:
        if row["method"] not in tasks.METHODS:
            fail(f"{path} holds method {row['method']!r}, which tasks.py does not have; make it again")
        own = f"{row['changed']} score_window={row['score_window']}".strip()
        if made.setdefault(row["method"], own) != own:
            fail(f"{path} holds seeds of {row['method']} with different settings ({made[row['method']]}; "
                 f"{own}); move away the runs you do not want, then: python evaluate.py --collect {cell}")
    return rows


def published():
    """The paper's scores, in its order: dicts of table "1", task, ratio, method, mean and std, which is None
    where it prints none."""
    with open(PAPER_SCORES, newline="") as file:
        return [row | {"ratio": float(row["ratio"]), "mean": float(row["mean"]),
                       "std": float(row["std"]) if row["std"] else None} for row in csv.DictReader(file)]


def paper_scores(task, ratio):
    """{method: "52.0±4.6"} for a cell, as the paper prints them."""
    return {row["method"]: f"{row['mean']:.1f}" + ("" if row["std"] is None else f"±{row['std']:.1f}")
            for row in published() if row["task"] == task and row["ratio"] == ratio}
