"""Stage 4: a cell's results as a figure and a table.

    python plot.py mini/hopper-medium-0.01            # writes the figure, prints the table
    python plot.py mini/hopper-medium-0.01 --table    # prints the table alone

reads   results/PROFILE/CELL.csv and paper/scores.csv
writes  figures/PROFILE/CELL.png

The score of a run is its mean normalised score over the last `score_window` evaluations (the paper,
p. 6: over the last 20K of 100K steps, 8 evaluations) at the largest target return. The authors
report the best of several targets, chosen on the test returns themselves (srzer/LaMo-2023#1): that
number stands beside ours, under its own name. Brackets are 95 % intervals: Student's t over seeds
when there are several, else a bootstrap over the episodes of the only seed, which says nothing
about other seeds.
"""

import argparse
import csv
import sys
import warnings
from pathlib import Path

import numpy as np

import tasks
from evaluate import read_rows

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("cell", help="PROFILE/CELL")
OPTIONS.add_argument("--table", action="store_true", help="print the table only")

SCALE = {"mujoco": "a random policy, 100 D4RL's expert", "kitchen": "no sub-task, 100 all four",
         "reacher2d": "never at the target, 100 always", "atari": "a random player, 100 a human"}
PAPER_SCORES = Path(__file__).parent / "paper" / "scores.csv"


def interval(values):
    """95 % interval of the mean of independent values: (low, high), or None for fewer than two."""
    from scipy import stats

    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return values[0], values[0]
    if len(values) < 10:  # seeds
        return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy warns where the method does not apply
        found = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile",
                                rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def load_results(cell):
    """Rows of results/PROFILE/CELL.csv with numbers as numbers."""
    path = Path("results") / f"{cell}.csv"
    if not path.exists():
        sys.exit(f"plot: {path} is not there; make it: python evaluate.py --collect {cell}")
    rows = read_rows(path)
    try:
        for row in rows:
            for name in ("seed", "step", "episode", "length", "data_episodes"):
                row[name] = int(row[name])
            for name in ("return", "normalized_score"):
                row[name] = float(row[name])
            row["data_score"] = float(row["data_score"] or "nan")
            row["target_return"] = float(row["target_return"]) if row["target_return"] else None
    except ValueError as error:
        sys.exit(f"plot: {path} holds something that is no number ({error}); make it again")
    if not rows or {row["profile"] for row in rows} != {cell.split("/")[0]}:
        sys.exit(f"plot: {path} is empty or holds rows of another profile; make it again")
    return rows


def samples(rows, window):
    """Independent measurements of one method at one target: the per-seed means if there are several
    seeds, else the only seed's episodes, each averaged over the last `window` evaluations."""
    seeds = sorted({row["seed"] for row in rows})
    values = {}
    for seed in seeds:
        own = [row for row in rows if row["seed"] == seed]
        last = sorted({row["step"] for row in own})[-window:]
        episodes = {}
        for row in own:
            if row["step"] in last:
                episodes.setdefault(row["episode"], []).append(row["normalized_score"])
        values[seed] = [float(np.mean(scores)) for scores in episodes.values()]
    if len(seeds) > 1:
        return [float(np.mean(scores)) for scores in values.values()]
    return values[seeds[0]]


def paper_scores(task, ratio):
    """{method: "52.0±4.6"} for a cell, from the paper's tables."""
    with open(PAPER_SCORES, newline="") as file:
        return {row["method"]: row["mean"] + (f"±{row['std']}" if row["std"] else "")
                for row in csv.DictReader(file)
                if row["task"] == task and float(row["ratio"]) == ratio}


def summarise(rows, window):
    """One dict a method: seeds, LM, score and interval at the largest target, and the best target.
    Baselines have no target: None stands for it."""
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        scores = {target: samples([row for row in own if row["target_return"] == target], window)
                  for target in sorted({row["target_return"] for row in own}, key=lambda t: -(t or 0))}
        largest = next(iter(scores))
        best = max(scores, key=lambda target: np.mean(scores[target]))
        seeds = sorted({row["seed"] for row in own})
        table.append({"method": method, "lm": ", ".join(sorted({row["lm"] for row in own})),
                      "seeds": seeds, "steps": max(row["step"] for row in own),
                      "target": largest, "score": float(np.mean(scores[largest])),
                      "interval": interval(scores[largest]), "n": len(scores[largest]),
                      "best": float(np.mean(scores[best])), "best_target": best,
                      "scores": scores})
    return table


def print_table(cell, rows, table, window):
    profile, task, ratio = tasks.parse_cell(cell)
    paper = paper_scores(task, ratio)
    first = rows[0]
    print(f"\n{cell}: data {first['data']}, {first['data_episodes']} episodes")
    targets = [line["target"] for line in table if line["target"]]
    at = f" at target return {targets[0]:g}" if targets else ""
    print(f"score: mean over the last {window} evaluations{at}")
    print(f"       0 is {SCALE[tasks.TASKS[task]['suite']]}\n")
    wide = max(11, *(len(line["method"]) for line in table))
    head = (f"{'method':{wide}} {'language model':21} {'steps':>7} {'seeds':>5} "
            f"{'score [95 % interval]':>22} {'over':>11} {'best target':>13} | {'the paper*':>10}")
    print(head)
    print("-" * len(head))
    for line in table:
        bounds = line["interval"]
        score = f"{line['score']:.1f}" + (f" [{bounds[0]:.1f}, {bounds[1]:.1f}]" if bounds else "")
        over = f"{line['n']} {'seeds' if len(line['seeds']) > 1 else 'episodes'}"
        seeds = " ".join(map(str, line["seeds"]))
        best = f"{line['best']:.1f} at {line['best_target']:>4g}" if line["target"] else "no targets"
        print(f"{line['method']:{wide}} {line['lm']:21} {line['steps']:>7,} {seeds:>5} {score:>22} "
              f"{over:>11} {best:>13} | {paper.get(line['method'], '-'):>10}")
    if np.isfinite(first["data_score"]):
        print(f"{'data mean':{wide + 36}} {first['data_score']:>22.1f} {'':>11} {'':>13} |")
    if profile == "mini":
        print("* the paper's own score for this cell: its data, GPT-2, 100K steps, 3 seeds. Mini numbers\n"
              "  come from other data, a small LM and a short training; they are not comparable with it.")
    else:
        print("* the paper's score for this cell: mean ± deviation, 3 seeds, best of several targets.")


def draw(cell, rows, table, window, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from prepare_data import write_whole

    profile, task, ratio = tasks.parse_cell(cell)
    paper = paper_scores(task, ratio)
    methods = list(tasks.METHODS)
    targets = sorted({target for line in table for target in line["scores"] if target}, reverse=True)
    figure, (curves, points) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 2), sharey=True,
                                            layout="constrained")
    # columns of points: a group a target, a column a method; baselines, without targets, join the first
    groups = {target: [line["method"] for line in table if target in line["scores"]
                       or line["target"] is None and target == targets[0]] for target in targets}
    groups = groups or {None: [line["method"] for line in table]}
    places = [(target, method) for target in groups for method in [*groups[target], ""]]
    for line in table:
        place = methods.index(line["method"]) if line["method"] in methods else -1
        colour = plt.get_cmap("tab10" if 0 <= place < 10 else "tab20b")(place % 20)
        own = [row for row in rows if row["method"] == line["method"]
               and row["target_return"] == line["target"]]
        steps = sorted({row["step"] for row in own})
        measured = [samples([row for row in own if row["step"] == step], 1) for step in steps]
        means = [np.mean(values) for values in measured]
        bounds = [interval(values) or (mean, mean) for values, mean in zip(measured, means, strict=True)]
        label = line["method"] + (f" ({line['lm']})" if line["lm"] != "none" else "")
        # methods differ in their number of steps: the curves share the course of training
        course = [step / steps[-1] for step in steps]
        curves.plot(course, means, "o-", ms=4, color=colour, label=f"{label}, {steps[-1]:,} steps")
        curves.fill_between(course, *zip(*bounds, strict=True), color=colour, alpha=0.15, lw=0)
        if profile == "paper" and line["method"] in paper:  # never beside mini numbers
            curves.axhline(float(paper[line["method"]].split("±")[0]), color=colour, ls=":", lw=1.2,
                           label=f"{line['method']} in the paper")
        for target, scores in line["scores"].items():
            x = places.index((target if target in groups else next(iter(groups)), line["method"]))
            spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(scores))
            points.plot(x + spread, scores, ".", color=colour, alpha=0.5, ms=5)
            low, high = interval(scores) or (np.mean(scores), np.mean(scores))
            points.plot([x, x], [low, high], color=colour, lw=3, alpha=0.9)
            points.plot(x, np.mean(scores), "_", color="black", ms=14, mew=2)
    data_score = rows[0]["data_score"]
    for axis in (curves, points):
        if np.isfinite(data_score):
            axis.axhline(data_score, color="grey", ls="--", lw=1)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    if np.isfinite(data_score):
        curves.annotate("mean of the data", (0.01, data_score), xycoords=("axes fraction", "data"),
                        textcoords="offset points", xytext=(0, 3), fontsize=8, color="grey")
    none = " (baselines: none)" if any(line["target"] is None for line in table) else ""
    points.set_xticks([places.index((target, group[0])) + (len(group) - 1) / 2
                       for target, group in groups.items() if target],
                      [f"target {target:g}{none if target == targets[0] else ''}" for target in targets])
    several = any(len(line["seeds"]) > 1 for line in table)
    points.set_title(f"last {window} evaluations; a dot is a{' seed' if several else 'n episode'}",
                     fontsize=9)
    curves.set_title((f"target return {targets[0]:g}; " if targets else "") + "bands are 95 % intervals",
                     fontsize=9)
    curves.set_xlabel("share of the training steps")
    curves.set_ylabel("normalised score")
    curves.set_ylim(bottom=min(0, curves.get_ylim()[0]))
    curves.legend(fontsize=7 if len(table) > 4 else 8, loc="best")
    seeds = sorted({row["seed"] for row in rows})
    note = "small LM, own data: not the paper's numbers" if profile == "mini" else "the paper's settings"
    figure.suptitle(f"{task}, ratio {ratio:g}   |   profile {profile} ({note})   |   data {rows[0]['data']}"
                    f"   |   seed{'s' if len(seeds) > 1 else ''} {' '.join(map(str, seeds))}", fontsize=9)
    write_whole(path, lambda part: figure.savefig(part, dpi=150))
    plt.close(figure)


def main(cell, table_only):
    profile, task, ratio = tasks.parse_cell(cell)
    rows = load_results(cell)
    window = tasks.configuration(f"{cell}/lamo/seed0")["score_window"]
    table = summarise(rows, window)
    if not table_only:
        path = Path("figures") / f"{cell}.png"
        draw(cell, rows, table, window, path)
    print_table(cell, rows, table, window)
    print(f"\nrows results/{cell}.csv   figure figures/{cell}.png")


if __name__ == "__main__":
    args = OPTIONS.parse_args()
    main(args.cell, args.table)
