"""The paper's claims and their rival explanations, one by one: what LaMo and another method differ by.

    make claims                             # of results/$(PROFILE); where it is empty, of the rows that ship
    make claims RESULTS="results/mini results/shipped/mini"      # folders of cells' CSV files, .gz or not

reads   every CELL.csv and CELL-dN.csv of the folders; of a cell's files the one that has more replications of
        both methods counts
prints  for each claim, pair of methods and cell: the difference, first less second, with its 95 % interval
        over the replications that both have (kit/statistics.py), of the score at the largest target, of the
        held-out action loss over the same checkpoints, of its least, and of the bits per byte that the
        language models take for prose; then what is missing. Nothing is trained.

A score that is higher, and a loss that is lower, speak for the first method; + and - stand where the interval
leaves 0 out. Where the two methods are one, LaMo's own settings being an ablation's, there is no line.
"""

from pathlib import Path
from typing import NamedTuple

from kit import settings, signals

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("folders", nargs="+", type=Path, help="of CSV files, one a cell")
if __name__ == "__main__":
    signals.end_with_reader()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a second

import numpy as np

from kit import fail
from kit.results import load_file
from kit.statistics import of_subsets, paired, replications
from paper.grid import attempt, is_lamo
from tasks import TASKS

# the claim, the method that it speaks for, those that it is compared with
CLAIMS = (
    ("pre-training helps", "lamo", ("lamo-random", "lamo-random-corpus", "lamo-early", "lamo-markov")),
    ("pre-training helps, SmolLM2's first 2 blocks", "lamo-smollm2-2", ("lamo-smollm2-2-random",)),
    ("pre-training helps, its first 8 blocks", "lamo-smollm2-8", ("lamo-smollm2-8-random",)),
    ("LoRA rather than fine-tuning", "lamo", ("lamo-full", "lamo-frozen")),
    ("MLP embeddings", "lamo-mlp", ("lamo-linear",)),
    ("the language loss", "lamo-lm0.1", ("lamo-lm0", "lamo-lm1")),
    ("few data: the difference at each ratio", "lamo", ("dt",)),
    ("beside the other baselines", "lamo", ("wiki", "bc", "td3bc", "iql", "cql")),
)
MEASURES = (("score", "{:+.1f}", "score"), ("heldout_loss", "{:+.4f}", "held-out loss"),
            ("lowest_heldout_loss", "{:+.4f}", "its least"), ("bits_per_byte", "{:+.3f}", "bits per byte"))


def read(folders):
    """({cell: [rows of a file]}, what could not be read), cells in the order of tasks.py and of ratios."""
    found, troubles = {}, []
    for path in sorted(path for folder in folders for path in folder.glob("*.csv*")):
        cell, subset = settings.split_subset(path.name.partition(".csv")[0])
        if subset in (0, "N") and (rows := attempt(troubles, load_cell, path, cell)):
            found.setdefault((rows[0]["profile"], cell), []).append(rows)
    order = [*TASKS]
    return dict(sorted(found.items(), key=lambda item: (
        order.index(item[1][0][0]["task"]), item[1][0][0]["ratio"]))), troubles


def load_cell(path, cell):
    """The rows of a file; one line and exit if they are not those of the cell that it is named after."""
    rows = load_file(path)
    _, task, ratio = settings.parse_cell(f"{rows[0]['profile'] if rows else 'mini'}/{cell}")
    if {(row["task"], row["ratio"]) for row in rows} != {(task, ratio)}:
        fail(f"{path} is empty or holds rows of another cell; make it again")
    return rows


def method_rows(profile, cell, rows, method):
    """A method's rows in a cell's file; LaMo's, where its settings there are the method's own."""
    own = [row for row in rows if row["method"] == method]
    if not own and is_lamo(profile, cell, method):
        own = [row for row in rows if row["method"] == "lamo"]
    return own


class Comparison(NamedTuple):
    count: int         # replications that both methods have a score of
    over: str          # "5 subsets"
    pairs: dict        # {what of MEASURES: kit.statistics.Paired, or None where it was not measured}
    beside: float      # the second method's mean held-out loss over the replications that both have, or nan
    lm: str            # the language models of both

    def texts(self):
        """What a line of the table says, without the cell."""
        return [self.over, *(say(self.pairs[what], form) for what, form, _ in MEASURES), self.lm]


def compare(profile, cell, files, first, second):
    """The Comparison of two methods in a cell, of the file with most replications of both; None if one of
    the methods is not there, or if they are the same."""
    if is_lamo(profile, cell, first) and is_lamo(profile, cell, second):
        return None
    best = None
    for rows in files:
        ours, theirs = (method_rows(profile, cell, rows, method) for method in (first, second))
        pairs = {what: paired(replications(ours, what), replications(theirs, what)) for what, *_ in MEASURES}
        if pairs["score"] is not None and (best is None or len(pairs["score"].seeds) > best.count):
            count, losses = len(pairs["score"].seeds), replications(theirs, "heldout_loss")
            both = pairs["heldout_loss"].seeds if pairs["heldout_loss"] else []
            best = Comparison(
                count, f"{count} {'subset' if of_subsets(ours) else 'seed'}{'s' * (count > 1)}", pairs,
                float(np.mean([losses[seed] for seed in both])) if both else np.nan,
                ", ".join(sorted({row["lm"] for row in ours + theirs} - {"none"})))
    return best


def say(pair, form):
    """"+3.1 [+0.4, +5.8] +": the difference, its interval, and its sign if the interval leaves 0 out."""
    if pair is None:
        return "not measured"
    said = form.format(pair.difference)
    if pair.interval is None:
        return said
    low, high = pair.interval
    sign = " +" if low > 0 else " -" if high < 0 else ""
    return f"{said} [{form.format(low)}, {form.format(high)}]{sign}"


def report(found):
    """The lines of the table, and then of what is missing."""
    head = ["cell", "over", *(title for *_, title in MEASURES), "language models"]
    missing = []
    for claim, first, others in CLAIMS:
        yield f"\n{claim}"
        for second in others:
            rows, without = [], []
            for (profile, cell), files in found.items():
                found_here = compare(profile, cell, files, first, second)
                task = cell.rpartition("-")[0]
                if found_here:
                    rows.append([f"{profile}/{cell}", *found_here.texts()])
                elif not any(settings.missing(task, method) for method in (first, second)) and not (
                        is_lamo(profile, cell, first) and is_lamo(profile, cell, second)):
                    without.append(f"{profile}/{cell}")
            if rows:
                yield from table([[f"{first} - {second}", *head[1:]], *rows])
            if without:
                missing.append(f"  {first} and {second}: {', '.join(without)}")
    if missing:
        yield from ("\nmissing, of one or both of", *missing)


def table(rows):
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, wide, strict=True)).rstrip()


def main(args):
    found, troubles = read(args.folders)
    if not found and not troubles:
        fail(f"{', '.join(map(str, args.folders))} holds no CSV of a cell; make one: make hopper-medium-0.01")
    print(f"of the rows in {' and '.join(map(str, args.folders))}")
    print(*report(found), sep="\n")
    for trouble in troubles:
        print(f"not in it: {trouble}")


if __name__ == "__main__":
    main(ARGS)
