"""The paper's claims and their rival explanations, one by one: what LaMo and another method differ by.

    make claims                             # of results/$(PROFILE); where it is empty, of the rows that ship
    make claims RESULTS="results/mini results/shipped/mini"      # folders of cells' CSV files, .gz or not

reads   every CELL.csv and CELL-dN.csv of the folders; of a cell's files the one that has more replications of
        both methods counts, the first of equals
prints  for each claim, pair of methods and cell: the difference, first less second, with its 95 % interval
        over the replications that both have (kit/statistics.py), of the score at the largest target, which
        also stands there at the smallest target, at the last checkpoint alone, and over other starts; of the
        held-out action loss over the same checkpoints, of its least, of Atari's decisions missed, and of
        the bits per byte that the language models take for prose; of OVER_RATIOS also what the difference
        differs by between two ratios, of losses where both are of the same held-out episodes; the mean over
        tasks of all this; then what is missing. Nothing is trained.

A mean over tasks is of each task's lowest ratio that has at least FEWEST replications, losses in per cent of
the second method's. Seed N of all tasks together is one replication, because seeds share random numbers. Its
interval covers other seeds and subsets, not other tasks.

A score that is higher, and a loss that is lower, speak for the first method; + and - stand where the interval
leaves 0 out. Fewer than FEWEST replications have no interval. Where the two methods are one, LaMo's own
settings being an ablation's, there is no line.
"""

import functools
import sys
from pathlib import Path
from typing import NamedTuple

from kit import settings, signals

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("folders", nargs="+", type=Path, help="of CSV files, one a cell")
OPTIONS.add_argument("--otherwise", type=Path, help="a folder to read where those hold nothing")
if __name__ == "__main__":
    signals.catch()
    signals.end_with_reader()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a second

import numpy as np

from kit import fail
from kit.results import files_of, load_cell, of_one_subset
from kit.statistics import mean_over_tasks, of_subsets, paired, paired_over_starts, replications
from paper.grid import attempt, is_lamo
from tasks import PROFILES, TASKS


def beside(first, *others):
    return tuple((first, other) for other in others)


# the claim, and the methods that it speaks for, each with one that it is compared with
CLAIMS = (
    ("pre-training helps", beside("lamo", "lamo-random", "lamo-random-corpus", "lamo-early", "lamo-markov")),
    ("what of pre-training helps", (("lamo-early", "lamo-random"), ("lamo-markov", "lamo-random"),
                                    ("lamo-random-corpus", "lamo-random"))),
    ("pre-training helps, SmolLM2's first 2 blocks", beside("lamo-smollm2-2", "lamo-smollm2-2-random")),
    ("pre-training helps, SmolLM2's first 8 blocks", beside("lamo-smollm2-8", "lamo-smollm2-8-random")),
    ("pre-training helps, SmolLM2 whole", beside("lamo-smollm2", "lamo-smollm2-random")),
    ("LoRA rather than fine-tuning", beside("lamo", "lamo-full", "lamo-frozen")),
    ("LoRA's rank", beside("lamo", "lamo-rank4", "lamo-rank64")),
    ("MLP embeddings", beside("lamo-mlp", "lamo-linear")),
    ("the language loss", beside("lamo-lm0.1", "lamo-lm0", "lamo-lm1")),
    ("few data: the difference at each ratio", beside("lamo", "dt")),
    ("beside the other baselines", beside("lamo", "wiki", "bc", "td3bc", "iql", "cql")),
)
# the paper: LaMo gains on DT as data get fewer; and is it pre-training that does?
OVER_RATIOS = (("lamo", "dt"), ("lamo", "lamo-random"))
MEASURES = (("score", "{:+.1f}", "score"), ("smallest_target_score", "{:+.1f}", "at the smallest target"),
            ("last_score", "{:+.1f}", "at the last checkpoint"), ("starts", "{:+.1f}", "with other starts"),
            ("heldout_loss", "{:+.4f}", "held-out loss"),
            ("lowest_heldout_loss", "{:+.4f}", "its least"),
            ("heldout_decisions", "{:+.3f}", "decisions missed"),
            ("bits_per_byte", "{:+.3f}", "bits per byte"))
WAYS = ("smallest_target_score", "last_score", "starts")  # in which a score may come out otherwise
LOSSES = ("heldout_loss", "lowest_heldout_loss")
HELD_OUT = (*LOSSES, "heldout_decisions")
FEWEST = 3  # replications that an interval is said of: that of two says next to nothing


# --- the rows ----------------------------------------------------------------------------------

def read(folders):
    """({(profile, cell): [rows of a file]}, what could not be read), in the order of `in_order`."""
    found, troubles = {}, []
    for path in (path for folder in folders for path in files_of(folder)):
        cell, subset = settings.split_subset(path.name.partition(".csv")[0])
        if subset in (0, "N") and (rows := attempt(troubles, load_cell, path, cell)):
            found.setdefault((rows[0]["profile"], cell), []).append(rows)
    return in_order(found), troubles


def in_order(found):
    """Profile by profile, cells in the order of tasks.py, and then of ratios."""
    profiles, tasks = [*PROFILES], [*TASKS]
    return dict(sorted(found.items(), key=lambda item: (
        profiles.index(item[0][0]), tasks.index(item[1][0][0]["task"]), item[1][0][0]["ratio"])))


def method_rows(profile, cell, rows, method):
    """A method's rows in a cell's file; LaMo's, where its settings there are the method's own."""
    own = [row for row in rows if row["method"] == method]
    if not own and is_lamo(profile, cell, method):
        own = [row for row in rows if row["method"] == "lamo"]
    return own


# --- what two methods differ by ----------------------------------------------------------------

class Comparison(NamedTuple):
    count: int         # replications that both methods have a score of
    over: str          # "5 subsets"
    changed: list      # settings that are not those of the methods' names, "dt steps=50"
    pairs: dict        # {what of MEASURES: kit.statistics.Paired, or None where it was not measured}
    values: dict       # {what: ({seed: value}, {seed: value})}, of both methods
    lm: str            # the language models of both
    per_cent: bool = False  # whether losses are per cent of the second method's
    heldout: dict = {}  # {seed: digest of the episodes that its losses are over}

    def texts(self):
        """What a line of the table says, without the cell."""
        return ["; ".join([self.over, *self.changed]), *self.said(), self.lm]

    def said(self):
        return [say(self.pairs[what], form, self.count) for what, form in self.forms().items()]

    def forms(self):
        return {what: "{:+.1f} %" if self.per_cent and what in LOSSES else form for what, form, _ in MEASURES}


def compare(profile, cell, files, first, second):
    """The Comparison of two methods in a cell, of the file with most replications of both; None if one of
    the methods is not there, or if they are the same."""
    if is_lamo(profile, cell, first) and is_lamo(profile, cell, second):
        return None
    found = [compare_file(rows, *(method_rows(profile, cell, rows, method) for method in (first, second)))
             for rows in files]
    return max(filter(None, found), key=lambda comparison: comparison.count, default=None)


def compare_file(rows, ours, theirs):
    values = {what: (replications(ours, what), replications(theirs, what)) for what, *_ in MEASURES}
    pairs = {what: paired(*both) for what, both in values.items()}
    if pairs["score"] is None:
        return None
    shared = rows[0]["profile"] == "mini"  # else each seed and checkpoint has starts of its own (kit/envs.py)
    pairs["starts"] = paired_over_starts(ours, theirs) if shared else None
    measured = {(row["seed"], row["heldout_data"]) for row in ours + theirs if row.get("heldout_data")}
    if len(measured) > len({seed for seed, _ in measured}):  # each over other episodes
        pairs |= dict.fromkeys(HELD_OUT)
    if any(map(is_penalised, ours + theirs)):  # which keeps logits small: decisions tell discrete BC apart
        pairs |= dict.fromkeys(LOSSES)
    changed = sorted({f"{row['method']} {row['changed']}" for row in ours + theirs if row.get("changed")})
    count = len(pairs["score"].seeds)
    return Comparison(count, over(count, rows), changed, pairs, values,
                      ", ".join(sorted({row["lm"] for row in ours + theirs} - {"none"})),
                      heldout=dict(measured))


def is_penalised(row):
    return row["method"] == "bc" and np.isfinite(row.get("heldout_decisions", np.nan))


def over(count, rows):
    return f"{count} {'subset' if of_subsets(rows) else 'seed'}{'s' * (count != 1)}"


def differences(comparison, what, per_cent=False):
    """{seed: first less second}, if asked for in per cent of the second's mean; empty if not measured."""
    (ours, theirs), pair = comparison.values[what], comparison.pairs[what]
    if pair is None or what == "starts":
        return {}  # which are no values of seeds
    unit = of_second(comparison, what) / 100 if per_cent else 1
    return {seed: (ours[seed] - theirs[seed]) / unit for seed in pair.seeds} if unit else {}


def of_second(comparison, what):
    """The second method's mean over the seeds that both have."""
    return float(np.mean([comparison.values[what][1][seed] for seed in comparison.pairs[what].seeds]))


def shift(lower, higher):
    """By how much the difference of two methods is larger in the Comparison `lower` than in `higher`, over
    the replications of both: subset N of the lower ratio is part of subset N of the higher one."""
    pairs = {what: paired(differences(lower, what), differences(higher, what)) for what, *_ in MEASURES}
    if pairs["score"] is None:
        return None
    if not comparable(lower, higher):
        pairs |= dict.fromkeys(HELD_OUT)
    count = len(pairs["score"].seeds)
    changed = sorted({*lower.changed, *higher.changed})
    return Comparison(count, f"{count} of both", changed, pairs, {}, lower.lm)


def comparable(lower, higher):
    """Whether the losses of two Comparisons are over the same episodes; or each replication's over its own,
    which the interval over replications then covers."""
    both = [(lower.heldout[seed], higher.heldout[seed]) for seed in lower.heldout if seed in higher.heldout]
    each_its_own = len(both) > 1 and all(len({*sets}) == len(both) for sets in zip(*both, strict=True))
    return all(here == there for here, there in both) or each_its_own


def means_of(lines, shifted=False):
    """Of `comparisons`, the mean over each profile's tasks, ((profile, "mean of 9 tasks"), Comparison);
    shifted: also that of what each task's lowest ratio differs by from the next."""
    profiles = {}
    for (profile, cell), comparison in lines:
        if comparison.count >= FEWEST:
            tasks = profiles.setdefault(profile, {})
            tasks.setdefault(cell.rpartition("-")[0], []).append(comparison)
    for profile, tasks in profiles.items():
        found = [("", [ratios[:1] for ratios in tasks.values()])]
        if shifted:
            both = [ratios[:2] for ratios in tasks.values() if ratios[1:]]
            found.append((", lowest less next ratio", both))
        for more, members in found:
            if len(members) > 1 and (mean := mean_over(members)):
                yield (profile, f"mean of {len(members)} tasks{more}"), mean


def mean_over(members):
    """The Comparison of a mean over tasks, of each the Comparison at one ratio, or those at two, of which the
    second is taken off; None if no seed has all."""
    pairs = {}
    for what, *_ in MEASURES:
        each = [functools.reduce(less, (differences(ratio, what, what in LOSSES) for ratio in ratios))
                for ratios in members]
        told = what not in HELD_OUT or all(comparable(*ratios) for ratios in members if ratios[1:])
        pairs[what] = mean_over_tasks(each) if told else None
    if pairs["score"] is None:
        return None
    count, every = len(pairs["score"].seeds), [ratio for ratios in members for ratio in ratios]
    changed = sorted({setting for comparison in every for setting in comparison.changed})
    return Comparison(count, f"{count} of each", changed, pairs, {}, every[0].lm, per_cent=True)


def less(ours, theirs):
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def say(pair, form, count):
    """"+3.1 [+0.4, +5.8] +": the difference, its interval, and its sign if the interval leaves 0 out; how
    many replications it is over, if they are not as many as the score's."""
    if pair is None:
        return "not measured"
    said = form.format(pair.difference) + f" of {len(pair.seeds)}" * (len(pair.seeds) != count)
    if len(pair.seeds) < FEWEST:
        return said
    low, high = pair.interval
    return f"{said} [{form.format(low)}, {form.format(high)}]{('', ' +', ' -')[told(pair)]}"


def told(pair):
    """1 or -1 where a Paired's interval leaves 0 out, and its sign; else 0, also of fewer than FEWEST."""
    low, high = pair.interval if len(pair.seeds) >= FEWEST else (0, 0)
    return 1 if low > 0 else -1 if high < 0 else 0


def holds(comparison):
    """Whether the score tells, and the same in each other way of WAYS in which it was measured."""
    signs = {told(comparison.pairs[what]) for what in ("score", *WAYS) if comparison.pairs.get(what)}
    return signs in ({1}, {-1})


# --- the table ---------------------------------------------------------------------------------

def comparisons(found, first, second):
    """[((profile, cell), Comparison), ...] of the cells that have both methods."""
    return [((profile, cell), comparison) for (profile, cell), files in found.items()
            if (comparison := compare(profile, cell, files, first, second))]


def shifts_of(lines):
    """Of `comparisons`, each ratio of a task beside the next one, ((profile, "hopper-medium-0.01 less 0.1"),
    Comparison)."""
    for (place, lower), (beyond, higher) in zip(lines, lines[1:], strict=False):
        profile, cell = place
        if (profile, cell.rpartition("-")[0]) == (beyond[0], beyond[1].rpartition("-")[0]):
            if shifted := shift(lower, higher):
                yield (profile, f"{cell} less {beyond[1].rpartition('-')[2]}"), shifted


def report(found):
    """The lines of the table, and then of what is missing."""
    head, missing = ["over", *(title for *_, title in MEASURES), "language models"], []
    for claim, pairs in CLAIMS:
        yield f"\n{claim}"
        for first, second in pairs:
            lines = comparisons(found, first, second)
            if lines:
                lines += beyond_cells((first, second), lines)
                yield from table([[f"{first} - {second}", *head],
                                  *(["/".join(place), *comparison.texts()] for place, comparison in lines)])
            without = [place for place in found
                       if place not in dict(lines) and wanted(*place, first, second)]
            if without:
                more = f" and {len(without) - 3} more" * (len(without) > 3)
                missing.append(f"  {first} and {second}: {', '.join(map('/'.join, without[:3]))}{more}")
    if missing:
        yield from ("\nmissing, of one or both of", *missing)


def beyond_cells(methods, lines):
    """What is said of several of `comparisons` of two methods at once."""
    few = methods in OVER_RATIOS
    return [*(shifts_of(lines) if few else ()), *means_of(lines, few)]


def wanted(profile, cell, first, second):
    """Whether a cell could have both methods, as two."""
    return not any(settings.missing(cell.rpartition("-")[0], method) for method in (first, second)) and not (
        is_lamo(profile, cell, first) and is_lamo(profile, cell, second))


def table(rows):
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(text.ljust(width) for text, width in zip(row, wide, strict=True)).rstrip()


def main(args):
    folders = args.folders
    gone = [folder for folder in folders if not folder.is_dir()]
    if gone and args.otherwise is None:
        fail(f"{gone[0]} is not a folder that is there; make it, or leave it out")
    found, troubles = read(folders)
    if not found and not troubles and args.otherwise:
        folders = [args.otherwise]
        found, troubles = read(folders)
    notes = [note for folder in args.folders for note in of_one_subset(folder)]
    if not found and not troubles:
        for place in (place for folder in args.folders for place in sorted(folder.glob("*/"))):
            if files_of(place):
                fail(f"{place.parent} holds no CSV of a cell, and {place} does; name that")
        paper = " PROFILE=paper" * (args.folders[0].name == "paper")
        fail(f"{', '.join(map(str, args.folders))} holds no CSV of a cell; make one: make "
             f"hopper-medium-0.01{paper}{''.join(f'; {note}' for note in notes[:1])}")
    print(f"of the rows in {' and '.join(map(str, folders))}")
    print(*report(found), sep="\n")
    for trouble in troubles + notes:
        print(f"not in it: {trouble}")
    return bool(troubles)


if __name__ == "__main__":
    sys.exit(main(ARGS))
