"""Stage 4: a cell's results as a figure and a table.

    python plot.py mini/hopper-medium-0.01            # writes the figure, prints the table
    python plot.py mini/hopper-medium-0.01 --table    # prints the table alone

reads   results/PROFILE/CELL.csv and paper/scores.csv
writes  figures/PROFILE/CELL.png

The score of a run is its mean normalised score over its last `score_window` evaluations (the paper,
p. 6: over the last 20K of 100K steps, 8 evaluations) at the largest target return. The authors report
the best of several targets, chosen on the test returns themselves (srzer/LaMo-2023#1): that number
stands beside ours, under its own name.

Brackets are 95 % intervals of the mean. Over several seeds, or subsets with a seed each (CELL-dN): Student's
t, each being one value. Seeds of one subset say nothing about other subsets. With
one seed: a bootstrap over its episodes, whatever their number, which says nothing about other seeds and
is narrow when episodes are few (of normal values it covers the mean 91 times in 100 with 20 episodes,
83 times with Atari's 5).
"""

import textwrap

import tasks
from kit import settings, signals

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("cell", type=lambda name: name.strip("/"), help="PROFILE/CELL")
OPTIONS.add_argument("--table", action="store_true", help="print the table only")
if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a second

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kit import artifacts, seals
from kit.looks import style
from kit.losses import draw_losses, measured
from kit.results import data_score, load_results, paper_scores
from kit.statistics import interval, of_subsets, samples, summarise

SCALE = {"mujoco": "a random policy, 100 D4RL's expert", "kitchen": "no sub-task, 100 all four",
         "reacher2d": "never at the target, 100 always", "atari": "a random player, 100 a human"}
MOST_BANDS = 4  # methods whose bands the eye can tell apart


def common(table, name):
    """"8", if all methods have this value, else "8 (lamo, wiki), 2 (dt)"; None is left out."""
    methods = {}
    for line in table:
        if line[name] is not None:
            methods.setdefault(f"{line[name]:g}", []).append(line["method"])
    if len(methods) < 2:
        return "".join(methods)
    return ", ".join(f"{value} ({', '.join(names)})" for value, names in methods.items())


def evaluations(table):
    averaged = common(table, "averaged")
    return f"{averaged} evaluation{'s' * (averaged != '1')}"


def notes(table):
    """["dt, wiki: 2 evaluations, not 8", "lamo: settings changed: steps=6"]: where runs are not what their
    names stand for."""
    methods = {}
    for line in table:
        have, window = line["evaluations"], line["window"]
        if have < window:
            note = f"{have} evaluation{'s' * (have > 1)}, not {window}"
            methods.setdefault(note, []).append(line["method"])
        if line["changed"]:
            methods.setdefault(f"settings changed: {line['changed']}", []).append(line["method"])
    return [f"{', '.join(names)}: {note}" for note, names in methods.items()]


def data_name(rows):
    """With a digest, if all rows have one: subsets that a script played are a file each."""
    names = sorted({row["data"] for row in rows})
    return names[0] if len(names) == 1 else f"{artifacts.source_name(names[0])}, {len(names)} subsets"


def print_table(cell, rows, table):
    profile, task, ratio = settings.parse_cell(cell)
    paper = paper_scores(task, ratio)
    first = rows[0]
    print(f"\n{cell}: data {data_name(rows)}, {first['data_episodes']} episodes")
    targets = common(table, "target")
    print(f"score: mean over the last {evaluations(table)}"
          + (f" at target return {targets}" if targets else ""))
    print(f"       0 is {SCALE[tasks.TASKS[task]['suite']]}\n")
    wide = max(11, *(len(line["method"]) for line in table))
    lm_wide = max(21, *(len(line["lm"]) for line in table))
    seeds_wide = max(5, *(len(" ".join(map(str, line["seeds"]))) for line in table))
    head = (f"{'method':{wide}} {'language model':{lm_wide}} {'steps':>7} {'seeds':>{seeds_wide}} "
            f"{'score [95 % interval]':>22} {'over':>11} {'best target':>13} | {'the paper*':>10}")
    print(f"{head}\n{'-' * len(head)}")
    for line in table:
        low, high = line["interval"] or (None, None)
        score = f"{line['score']:.1f}" + (f" [{low:.1f}, {high:.1f}]" if line["interval"] else "")
        seeds, over = " ".join(map(str, line["seeds"])), f"{line['n']} {line['over']}"
        best = "no targets" if line["target"] is None else f"{line['best']:.1f} at {line['best_target']:>4g}"
        print(f"{line['method']:{wide}} {line['lm']:{lm_wide}} {line['steps']:>7,} {seeds:>{seeds_wide}} "
              f"{score:>22} {over:>11} {best:>13} | {paper.get(line['method'], '-'):>10}")
    if np.isfinite(data_score(rows)):
        print(f"{'data mean':{wide + lm_wide + seeds_wide + 10}} {data_score(rows):>22.1f} {'':25} |")
    for note in notes(table):
        print(note)
    if profile == "mini":
        steps = settings.configuration(f"paper/{task}-{ratio:g}/lamo/seed0")["steps"]
        print(f"* the paper's own score for this cell: its data, GPT-2, {steps // 1000}K steps, 3 seeds. "
              "Mini numbers\n"
              "  come from other data, a small LM and a short training; they are not comparable with it.")
    else:
        print("* the paper's score for this cell: mean ± deviation, 3 seeds, best of several targets.")


def draw_curves(axis, rows, table):
    """Score against the share of training, because methods differ in their steps; returns the lines."""
    lines = []
    for line in table:
        own = [row for row in rows
               if row["method"] == line["method"] and row["target_return"] == line["target"]]
        steps = sorted({row["step"] for row in own})
        measured = [samples([row for row in own if row["step"] == step], 1, line["over"]) for step in steps]
        course, means = np.array(steps) / max(steps[-1], 1), [np.mean(values) for values in measured]
        look, every = style(line["method"]), 1 + len(steps) // 12
        label = line["method"] + (f" ({line['lm']})" if line["lm"] != "none" else "")
        lines += axis.plot(course, means, **look, ms=5, mec="white", mew=0.4,
                           markevery=((len(steps) - 1) % every, every),  # the last has one
                           label=textwrap.fill(f"{label}, {line['steps']:,} steps", 52))
        if len(table) <= MOST_BANDS:
            bounds = [interval(values, line["over"]) or (values[0], values[0]) for values in measured]
            axis.fill_between(course, *zip(*bounds, strict=True), color=look["color"], alpha=0.15, lw=0)
    axis.set_xlabel("share of the training steps")
    axis.set_xlim(0, 1.02)
    axis.set_ylabel("normalised score")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    return lines


def draw_scores(axis, table, paper):
    """A row a method and target, the largest first: values, their mean and interval; beneath them, hollow,
    the method's score in `paper`."""
    y, ticks = 0.0, {}
    for line in table:
        look = style(line["method"]) | {"ls": "-"}
        for target, scores in line["scores"].items():
            spread = np.random.default_rng(0).uniform(-0.28, 0.28, len(scores))
            axis.plot(scores, y + spread, "o", color=look["color"], alpha=0.35, ms=3.5, mew=0)
            bounds = interval(scores, line["over"])
            if bounds:
                axis.plot(bounds, (y, y), "|-", color=look["color"], lw=2, ms=9, mew=1.5)
            axis.plot(np.mean(scores), y, **look, ms=7, mec="white", mew=0.4)
            ticks[y] = ((line["method"] if target == line["target"] else "")
                        + ("" if target is None else f" at {target:g}"))
            y += 1
        if line["method"] in paper:
            mean, _, deviation = paper[line["method"]].partition("±")
            axis.errorbar(float(mean), y, xerr=float(deviation or 0), **look, mfc="white", ms=7, lw=1)
            ticks[y] = " the paper"
            y += 1
        y += 0.5
    axis.set_ylim(y - 0.5, -1)
    axis.set_yticks(list(ticks), ticks.values(), fontsize=8)
    for label in axis.get_yticklabels():
        label.set_color("grey" if label.get_text().startswith(" ") else "black")
    axis.set_xlabel("normalised score")


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a path is a $
def draw(cell, rows, table):
    """The figure: curves at the left, scores at the right, the legend beneath both."""
    profile, task, ratio = settings.parse_cell(cell)
    paper = paper_scores(task, ratio) if profile == "paper" else {}  # never beside mini numbers
    seeds = sorted({row["seed"] for row in rows})
    kind = "small LM, own data: not the paper's numbers" if profile == "mini" else (
        "not the paper's settings" if any(line["changed"] for line in table) else "the paper's settings")
    title = [f"{task}, ratio {ratio:g}   |   profile {profile} ({kind})   |   data {data_name(rows)}"
             f"   |   {'subset and ' * of_subsets(rows)}seed{'s' * (len(seeds) > 1)} "
             f"{' '.join(map(str, seeds))}", *notes(table)]
    places = sum(len(line["scores"]) + (line["method"] in paper) + 0.8 for line in table)
    widths = (3, 2, 2) if measured(rows) else (3, 2)  # with losses in the middle
    height = max(4.2, 1.5 + 0.2 * places) + 0.15 * len(title)
    figure = Figure((3 + 4 * len(widths), height), layout="constrained")
    figure.suptitle("\n".join(textwrap.fill(text, 150) for text in title), fontsize=9)
    curves, *third, scores = figure.subplots(1, len(widths), width_ratios=widths)
    handles = draw_curves(curves, rows, table)
    for axis in third:
        handles += draw_losses(axis, rows, style)
    draw_scores(scores, table, paper)
    mean = data_score(rows)
    if np.isfinite(mean):
        curves.axhline(mean, color="grey", ls="--", lw=1)
        handles.append(scores.axvline(mean, color="grey", ls="--", lw=1, label="mean of the data"))
    if paper:
        handles.append(Line2D([], [], color="grey", marker="o", mfc="white", lw=1,
                              label="hollow: the paper, mean ± deviation, best target"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7, handlelength=3.5)
    targets = common(table, "target")
    heads = [f"target return {targets}"] if targets else []
    heads += ["bands are 95 % intervals"] if len(table) <= MOST_BANDS else []
    dots = " or ".join(dict.fromkeys(f"a{'n' * (line['over'] == 'episodes')} {line['over'][:-1]}"
                                     for line in table))
    curves.set_title(textwrap.fill("; ".join(heads), 90), fontsize=9)
    scores.set_title(textwrap.fill(f"last {evaluations(table)}: mean, 95 % interval", 60)
                     + f"\na dot is {dots}", fontsize=9)
    for axis in figure.axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main(args):
    rows = load_results(args.cell)
    table = summarise(rows)
    if not args.table:
        figure = draw(args.cell, rows, table)
        path = artifacts.figure_path(args.cell)
        seals.remove_leftovers(path.parent, path.stem)
        artifacts.write_whole(path, lambda part: figure.savefig(part, dpi=150))
    print_table(args.cell, rows, table)
    print(f"\nrows {artifacts.results_path(args.cell)}   figure {artifacts.figure_path(args.cell)}")


if __name__ == "__main__":
    main(ARGS)
