"""The report's tables of scores, as rows of cells that paper/page.py prints: the paper's tables 1 to 3,
ablations, statistics over cells.

A cell is lines of (kind, text) and a value to sort by. Kinds: "ours", "paper", "small", "missing", "warning".
Missing cells are shown as missing; an average says how many of how many cells it covers, and where that is
not all, ours and the paper's stand once more over the same cells.
"""

from typing import NamedTuple

import numpy as np

from kit import settings
from kit.results import published
from kit.statistics import improvement, interquartile_mean, mean_of_cells, stratified_interval
from paper.grid import DOMAINS, MAIN, domain_of, line_for, name_of
from tasks import METHODS, TASKS

TITLES = {"1": "Table 1: sparse rewards", "2": "Table 2: Atari", "3": "Table 3: dense rewards"}


class Cell(NamedTuple):
    lines: tuple          # of (kind, text)
    order: float | str | None  # what its column is sorted by; None stays last


class Group(NamedTuple):
    rows: list            # of lists of Cell, which can be sorted
    below: list           # of the same, which stay beneath them


class Table(NamedTuple):
    name: str             # of the heading's anchor
    title: str
    note: str
    columns: list         # of str
    groups: list          # of Group


def plain(text, order=None, kind="small"):
    return Cell(((kind, str(text)),), str(text) if order is None else order)


# --- the paper's tables ------------------------------------------------------------------------

def of_the_paper():
    """{(cell, method): row of paper/scores.csv}."""
    return {(cell_of(row), row["method"]): row for row in published()}


def of_the_tables():
    """The cells of the paper's tables 1 to 3; paper/scores.csv also has others."""
    return {cell_of(row) for row in published() if row["table"] in TITLES}


def cell_of(row):
    return f"{row['task']}-{row['ratio']:g}"


def short(number):
    """With one digit, and no minus before a zero."""
    return f"{round(number, 1) + 0.0:.1f}"


def plus_minus(mean, deviation):
    return short(mean) + ("" if deviation is None else f" ± {short(deviation)}")


def brackets(bounds):
    return "no interval" if bounds is None else f"[{short(bounds[0])}, {short(bounds[1])}]"


def score_cell(cell, method, line, paper):
    """Ours with its interval and number of seeds, the best target, the paper's."""
    if line is None:
        lines, order = [("missing", why_missing(cell, method))], None
    else:
        seeds = f"{len(line['seeds'])} {line['over']}" if line["over"] != "episodes" else "1 seed's episodes"
        lines = [("ours", plus_minus(line["score"], line["deviation"])),
                 ("small", f"{brackets(line['interval'])} {seeds}")]
        if line["target"] is not None:
            best = plus_minus(line["best"], line["best_deviation"])
            lines.append(("small", f"best {best} at {line['best_target']:g}"))
        if line["method"] != method:
            lines.append(("small", "is LaMo's own setting here"))
        order = line["score"]
    if paper:
        lines.append(("paper", f"paper {plus_minus(paper['mean'], paper['std'])}"))
    return Cell(tuple(lines), order)


def why_missing(cell, method):
    if method not in METHODS or cell.rpartition("-")[0] not in TASKS:
        return "not in this kit"
    return "no such method here" if settings.missing(cell.rpartition("-")[0], method) else "missing"


def average_cell(cells, names, method, paper, of):
    """The mean over those of `names` where the method has a score, and the paper's over all of
    `names`. of: the cells of the whole group."""
    lines = [line for line in (line_for(cells, cell, method) for cell in names) if line]
    theirs = [paper[cell, method]["mean"] for cell in names if (cell, method) in paper]
    if lines:
        said = [("ours", short(np.mean([line["score"] for line in lines])))]
        if lines[0]["target"] is not None:
            said.append(("small", f"best {short(np.mean([line['best'] for line in lines]))}"))
    else:
        said = [("missing", "missing")]
    said.append(("small", f"{len(lines)} of {of} cells"))
    if theirs:
        over = f" ({len(theirs)} cells)" if len(theirs) != len(lines) else ""
        said.append(("paper", f"paper {short(np.mean(theirs))}{over}"))
    return Cell(tuple(said), None)


def averages(cells, names, methods, paper, label):
    """The rows beneath a group: the average over what is there; where that is not everything, over the same
    cells for ours and the paper's; and over the cells that all methods that were run have."""
    have = {method: [cell for cell in names if line_for(cells, cell, method)] for method in methods}
    rows = [[plain(label, kind="ours"), *(average_cell(cells, names, method, paper, len(names))
                                          for method in methods)]]
    ran = [method for method in methods if have[method]]
    if any(len(have[method]) < len(names) for method in ran):
        rows.append([plain("ours and the paper's over the same cells"),
                     *(average_cell(cells, have[method], method, paper, len(names)) if have[method]
                       else plain("") for method in methods)])
        shared = [cell for cell in names if all(cell in have[method] for method in ran)]
        if shared and len(ran) > 1 and any(have[method] != shared for method in ran):
            rows.append([plain(f"over the {len(shared)} of {len(names)} cells that all have"),
                         *(average_cell(cells, shared, method, paper, len(names)) if have[method]
                           else plain("") for method in methods)])
    return rows


def group(cells, names, methods, paper, label):
    rows = [[plain(cell.rpartition("-")[0], kind="ours"), plain(cell.rpartition("-")[2],
                                                                float(cell.rpartition("-")[2])),
             *(score_cell(cell, method, line_for(cells, cell, method), paper.get((cell, method)))
               for method in methods)] for cell in names]
    below = [[row[0], plain(""), *row[1:]] for row in averages(cells, names, methods, paper, label)]
    return Group(rows, below)


def paper_table(cells, number):
    """Table 1, 2 or 3 with its rows, columns and averages."""
    rows, paper = [row for row in published() if row["table"] == number], of_the_paper()
    methods = list(dict.fromkeys(row["method"] for row in rows))
    names = list(dict.fromkeys(cell_of(row) for row in rows))
    full = [cell for cell in names if cell.endswith("-1")]
    low = [cell for cell in names if not cell.endswith("-1")]
    return Table(f"table-{number}", TITLES[number], SCORES, ["task", "ratio", *map(name_of, methods)],
                 [group(cells, full, methods, paper, "average, all data"),
                  group(cells, low, methods, paper, "average, less data")])


SCORES = ("Ours: normalised score at the largest target return, mean ± deviation over seeds, and the 95 % "
          "interval of the mean (docs/methods.md). Best: at the target with the best score, chosen on "
          "the test returns, as the authors report theirs (of more targets). Paper: mean ± what it prints.")


def ablation_table(cells):
    """Every ablation that was run, and the one of tables 15 and 16, beside LaMo."""
    ran = [method for method in METHODS if method not in MAIN
           and (method == "lamo-random" or any(method in lines for lines in cells.values()))]
    columns = ["lamo", *ran]
    paper = of_the_paper()
    names = [cell for cell in {**dict.fromkeys(settings.cells()), **cells}
             if any(method in cells.get(cell, {}) or (cell, method) in paper for method in ran)]
    note = f"{SCORES} The paper's without pre-training: its tables 15 and 16."
    return Table("ablation-scores", "Ablations: scores", note,
                 ["task", "ratio", *map(name_of, columns)],
                 [group(cells, names, columns, paper, "average")])


def other_table(cells):
    """Cells that the paper's tables do not have, with what others published; None if there are none."""
    known = of_the_tables()
    names = [cell for cell in cells if cell not in known]
    methods = [method for method in MAIN if any(method in cells[cell] for cell in names)]
    if not names or not methods:
        return None
    return Table("other", "Cells outside of the paper's tables", SCORES,
                 ["task", "ratio", *map(name_of, methods)],
                 [group(cells, names, methods, of_the_paper(), "average")])


# --- statistics --------------------------------------------------------------------------------

def statistics_table(cells):
    """Each method against LaMo, over the cells that both have."""
    groups = []
    for domain in (*DOMAINS, "all"):
        every = [cell for cell in settings.cells() if domain in (domain_of(cell), "all")]
        rows = []
        for method in MAIN:
            names = [cell for cell in every if {"lamo", method} <= {*cells.get(cell, {})}]
            exist = [cell for cell in every if not settings.missing(cell.rpartition("-")[0], method)]
            if names:
                rows.append(statistics_row(cells, domain, method, names, len(exist)))
        if rows:
            groups.append(Group(rows, []))
    return Table("statistics", "Statistics over cells", STATISTICS,
                 ["domain", "method", "cells", "seeds", "mean", "interquartile mean", "LaMo's, same cells",
                  "P(LaMo > method)"], groups)


STATISTICS = ("After Agarwal et al. (2021). Each row is taken over the cells that the method and LaMo both "
              "have: how many of how many. Intervals of 95 %: 2,000 stratified bootstraps, in which the "
              "seeds of each cell are drawn anew; there is none where a cell has one seed, and with 3 seeds "
              "a cell they cover a mean 89 times in 100, not 95. P: the chance that a "
              "run of LaMo scores higher than one of the method in the same cell.")


def statistics_row(cells, domain, method, names, exist):
    theirs = [cells[cell][method]["values"] for cell in names]
    ours = [cells[cell]["lamo"]["values"] for cell in names]

    def say(statistic, *groups, unit=""):
        value = float(statistic(*groups))
        bounds = stratified_interval(statistic, *groups, rng=np.random.default_rng(0))
        return plain(f"{short(value)}{unit} {brackets(bounds)}", value, "ours")

    counts = sorted({len(values) for values in theirs})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    chance = Cell((("small", ""),), None) if method == "lamo" else say(
        lambda ours, theirs: 100 * improvement(ours, theirs), ours, theirs, unit=" %")
    return [plain(domain), plain(name_of(method), kind="ours"), plain(f"{len(names)} of {exist}", len(names)),
            plain(seeds, counts[0]), say(mean_of_cells, theirs), say(interquartile_mean, theirs),
            say(interquartile_mean, ours), chance]
