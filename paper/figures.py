"""The report's figures: {name: (title, matplotlib figure, caption)}.

    draw_all(cells, "mini")

bars        figure 1: the mean over the cells of a domain, and over those with all and with less data
ratios      figure 3: score against the share of the data
curves-...  score against the share of the training, a panel a cell
ablations   each variant beside LaMo, a panel a question
profiles    performance profiles, interquartile means, and the probability that LaMo is better

Ours is the score at the largest target return. The paper's values are hollow, and stand in the paper
profile alone. A method has its colour, marker and hatch from kit/looks.py everywhere.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

import tasks
from kit import settings
from kit.looks import hatch, style
from kit.statistics import (
    improvement,
    interquartile_mean,
    mean_of_cells,
    performance_profile,
    stratified_interval,
)
from paper.grid import DOMAINS, MAIN, domain_of, facts, line_for, name_of
from paper.tables import of_the_paper

ABLATIONS = {
    "pre-training": ("lamo", "lamo-early", "lamo-random-corpus", "lamo-random"),
    "LoRA or not": ("lamo", "lamo-full", "lamo-frozen"),
    "embeddings": ("lamo-mlp", "lamo-linear"),
    "language loss": ("lamo-lm0", "lamo-lm0.1", "lamo-lm1"),
    "LoRA's rank": ("lamo-rank4", "lamo", "lamo-rank64"),
}
LOOKS = {"text.parse_math": False, "svg.hashsalt": "lamo-kit", "font.size": 9, "axes.titlesize": 9,
         "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6, "axes.axisbelow": True}
SUITES = {"kitchen": "Kitchen", "reacher2d": "Reacher2d", "mujoco": "MuJoCo", "atari": "Atari"}
HOLLOW = {"mfc": "white", "ls": "none", "ms": 6, "mew": 1.2, "zorder": 4}


@matplotlib.rc_context(LOOKS)  # a $ in a name is a $, and equal results are equal bytes
def draw_all(cells, profile):
    paper = of_the_paper() if profile == "paper" else {}  # never beside mini numbers
    found = {"bars": bars(cells, profile, paper), "ratios": ratios(cells, profile, paper)}
    for suite in SUITES:
        found[f"curves-{suite}"] = curves(cells, profile, suite)
    found |= {"ablations": ablations(cells, profile, paper), "profiles": profiles(cells, profile)}
    return {name: entry for name, entry in found.items() if entry}


def caption(text, profile, lines, paper=()):
    hollow = " Hollow: the paper, at its best target." if paper else ""
    return f"{text} {facts(lines)} {of_profile(profile)}{hollow}"


def of_profile(profile):
    return "Of the paper profile." if profile == "paper" else (
        "Of the mini profile: small data and a small language model of our own, not the paper's numbers.")


def stamp(figure, profile, title):
    """What a figure is, in the figure itself, for where it stands without its caption."""
    figure.suptitle(f"{title}   |   profile {profile}"
                    + ("" if profile == "paper" else ": not the paper's numbers"), fontsize=9.5)


def methods_of(cells, names, wanted=MAIN):
    return [method for method in wanted if any(method in cells.get(cell, {}) for cell in names)]


def legend(figure, methods, paper=(), lines=True):
    handles = [Line2D([], [], **style(method), ms=5, label=name_of(method)) if lines else
               Patch(facecolor=style(method)["color"], hatch=hatch(method), edgecolor="white",
                     label=name_of(method)) for method in methods]
    if paper:
        handles.append(Line2D([], [], color="grey", marker="o", **HOLLOW, label="hollow: the paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8.5,
                  frameon=False, handlelength=2.6)


def label_edges(figure, panels, columns, below, beside):
    """Labels at the left and beneath, and no empty panels."""
    for place, axis in enumerate(figure.axes):
        if place >= panels:
            axis.remove()
        if place % columns == 0:
            axis.set_ylabel(beside)
        if panels - columns <= place < panels:
            axis.set_xlabel(below)


def grid_lines(axis, which="both"):
    axis.grid(axis=which, alpha=0.25, lw=0.6)


# --- figure 1 ----------------------------------------------------------------------------------

def bars(cells, profile, paper):
    domains = {domain: [cell for cell in settings.cells() if domain_of(cell) == domain] for domain in DOMAINS}
    drawn = {domain: methods for domain, names in domains.items() if (methods := methods_of(cells, names))}
    if not drawn:
        return None
    figure = Figure((11, 4), layout="constrained")
    for axis, domain in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        names = domains[domain]
        groups = {"all cells": names, "all data": [cell for cell in names if cell.endswith("-1")],
                  "less data": [cell for cell in names if not cell.endswith("-1")]}
        for place, group in enumerate(groups.values()):
            draw_bars(axis, place, cells, group, drawn[domain], paper)
        axis.set_xticks(range(len(groups)), [f"{label}\n({len(group)})" for label, group in groups.items()])
        axis.set_title(domain)
        axis.axhline(0, color="black", lw=0.8)
        axis.margins(y=0.12)
        grid_lines(axis, "y")
    figure.axes[0].set_ylabel("normalised score, mean over cells")
    methods = [method for method in MAIN if any(method in row for row in drawn.values())]
    legend(figure, methods, paper, lines=False)
    stamp(figure, profile, "Score by domain and amount of data")
    lines = [cells[cell][method] for cell in cells for method in methods if method in cells[cell]]
    return "Figure 1: by domain and amount of data", figure, caption(
        "A bar is the mean over the cells of a domain, beneath it their number; a pale one with \"k of n\" "
        "covers k of n cells, and is not to be compared with others. Whiskers: 95 % stratified bootstrap "
        "over seeds, where each cell has two.", profile, lines, paper)


def draw_bars(axis, place, cells, names, methods, paper):
    width = 0.84 / len(methods)
    for n, method in enumerate(methods):
        x = place + (n - (len(methods) - 1) / 2) * width
        have = [cell for cell in names if method in cells.get(cell, {})]
        exist = [cell for cell in names if not settings.missing(cell.rpartition("-")[0], method)]
        tops = [0.0]
        if have:
            values = [cells[cell][method]["values"] for cell in have]
            mean = float(mean_of_cells(values))
            part = len(have) < len(exist)
            axis.bar(x, mean, width * 0.92, color=style(method)["color"], hatch=hatch(method),
                     edgecolor="white", lw=0, alpha=0.45 if part else 1)
            tops.append(mean)
            if bounds := stratified_interval(mean_of_cells, values, rng=np.random.default_rng(0)):
                axis.plot((x, x), bounds, color="#333333", lw=1)
                tops.append(bounds[1])
        theirs = [paper[cell, method]["mean"] for cell in have or names if (cell, method) in paper]
        if theirs:
            axis.plot(x, np.mean(theirs), color=style(method)["color"], marker=style(method)["marker"],
                      **HOLLOW)
            tops.append(np.mean(theirs))
        if have:
            axis.annotate(f"{round(mean)}", (x, max(tops)), (0, 5 if theirs else 2), ha="center",
                          va="bottom", textcoords="offset points", fontsize=6.5, zorder=6)
        if have and part:
            axis.annotate(f"{len(have)} of {len(exist)}", (x, 0), (0, 4), textcoords="offset points",
                          ha="center", va="bottom", rotation=90, fontsize=6, zorder=5,
                          bbox={"facecolor": "white", "alpha": 0.85, "lw": 0, "pad": 0.8})


# --- figure 3 ----------------------------------------------------------------------------------

def ratios(cells, profile, paper):
    of_task = {task: [cell for cell in cells if cell.rpartition("-")[0] == task] for task in tasks.TASKS}
    drawn = {task: names for task, names in of_task.items() if methods_of(cells, names)}
    if not drawn:
        return None
    columns = min(3, len(drawn))
    deep = -(-len(drawn) // columns)
    figure = Figure((11, 0.9 + 2.5 * deep), layout="constrained")
    axes = figure.subplots(deep, columns, squeeze=False).flat
    for axis, (task, names) in zip(axes, drawn.items(), strict=False):
        ticks = sorted({float(cell.rpartition("-")[2]) for cell in names}
                       | {float(ratio) for ratio in tasks.TASKS[task]["ratios"]})
        for method in methods_of(cells, names):
            draw_ratios(axis, cells, task, ticks, method, paper)
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
        axis.set_title(task)
        grid_lines(axis)
    label_edges(figure, len(drawn), columns, "share of the data, log scale", "normalised score")
    methods = methods_of(cells, cells)
    legend(figure, methods, paper)
    stamp(figure, profile, "Score against the share of the data")
    lines = [cells[cell][method] for cell in cells for method in methods if method in cells[cell]]
    return "Figure 3: by the share of the data", figure, caption(
        "A line a method, broken where a cell is missing; a band of ± one deviation over seeds, none with "
        "one seed.", profile, lines, paper)


def draw_ratios(axis, cells, task, ticks, method, paper):
    look = style(method)
    found = [cells.get(f"{task}-{tick:g}", {}).get(method) for tick in ticks]
    scores = np.array([line["score"] if line else np.nan for line in found])
    spread = np.array([line["deviation"] or 0 if line else np.nan for line in found])
    axis.plot(ticks, scores, **look, ms=5, lw=1.4, mec="white", mew=0.4, zorder=3)
    if np.nansum(spread):
        axis.fill_between(ticks, scores - spread, scores + spread, color=look["color"], alpha=0.1, lw=0)
    theirs = sorted((row["ratio"], row["mean"]) for (_, name), row in paper.items()
                    if name == method and row["task"] == task)
    if theirs:
        axis.plot(*zip(*theirs, strict=True), color=look["color"], marker=look["marker"], **HOLLOW)


# --- learning curves ---------------------------------------------------------------------------

def curves(cells, profile, suite):
    names = [cell for cell in cells if tasks.TASKS[cell.rpartition("-")[0]]["suite"] == suite]
    names = [cell for cell in names if methods_of(cells, [cell])]
    if not names:
        return None
    columns = min(4 if len(names) > 6 else 3, len(names))
    deep = -(-len(names) // columns)
    figure = Figure((11, 0.9 + 2.3 * deep), layout="constrained")
    axes = figure.subplots(deep, columns, squeeze=False, sharex=True).flat
    for axis, cell in zip(axes, names, strict=False):
        own = [cells[cell][method] for method in methods_of(cells, [cell])]
        for line in own:
            draw_curve(axis, line)
        mean = max(own, key=lambda line: len(line["seeds"]))["data_score"]  # of most subsets
        if np.isfinite(mean):
            axis.axhline(mean, color="grey", ls=(0, (1, 2)), lw=1, gid="data")
        axis.set_title(cell)
        axis.set_xlim(0, 1.03)
        grid_lines(axis)
        axis.xaxis.set_tick_params(labelbottom=True)
    label_edges(figure, len(names), columns, "share of the training steps", "normalised score")
    methods = methods_of(cells, names)
    legend(figure, methods)
    stamp(figure, profile, f"Learning curves: {SUITES[suite]}")
    lines = [cells[cell][method] for cell in names for method in methods if method in cells[cell]]
    return f"Learning curves: {SUITES[suite]}", figure, caption(
        "Every evaluation at the largest target; a band of ± one deviation over seeds, none with one seed; "
        "dotted: the mean of the data. Methods differ in their steps, which the table of provenance has.",
        profile, lines)


def draw_curve(axis, line):
    look, points = style(line["method"]), line["curve"]
    if not points:  # no evaluation that every seed has
        return
    x, means = np.array([point[0] for point in points]), np.array([point[1] for point in points])
    every = 1 + len(points) // 8
    axis.plot(x, means, **look, ms=4, lw=1.2, mec="white", mew=0.3,
              markevery=((len(points) - 1) % every, every))
    if points[0][2] is not None:
        spread = np.array([point[2] for point in points])
        axis.fill_between(x, means - spread, means + spread, color=look["color"], alpha=0.1, lw=0)


# --- ablations ---------------------------------------------------------------------------------

def ablations(cells, profile, paper):
    """A panel a question: variants side by side, a line a cell, and the mean over the cells that all
    variants of the panel have."""
    panels = {}
    for question, variants in ABLATIONS.items():
        ran = [method for method in variants if any(line_for(cells, cell, method) for cell in cells)]
        names = [cell for cell in cells if all(line_for(cells, cell, method) for method in ran)]
        if len(ran) > 1 and names and any(method != "lamo" and method in cells[cell]
                                          for cell in cells for method in ran):
            panels[question] = (ran, names)
    if not panels:
        return None
    figure = Figure((11, 3.9), layout="constrained")
    sizes = [len(ran) for ran, _ in panels.values()]
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=sizes, sharey=True)[0]
    for axis, (question, (ran, names)) in zip(axes, panels.items(), strict=True):
        draw_variants(axis, cells, ran, names, paper)
        axis.set_title(f"{question}\n{len(names)} cell{'s' * (len(names) > 1)}")
    axes[0].set_ylabel("normalised score")
    stamp(figure, profile, "Ablations")
    if paper:
        handle = Line2D([], [], color="grey", marker="o", **HOLLOW, label="hollow: the paper, same cells")
        figure.legend(handles=[handle], loc="outside lower center", fontsize=8.5, frameon=False)
    lines = [line_for(cells, cell, method) for ran, names in panels.values()
             for method in ran for cell in names]
    return "Ablations", figure, caption(
        "A grey line is a cell, a filled mark the mean over the cells of its panel, which are those that all "
        "of its variants have. Where LaMo's own settings are a variant's (linear embeddings on Hopper), it "
        "is LaMo.", profile, lines, paper)


def draw_variants(axis, cells, ran, names, paper):
    scores = np.array([[line_for(cells, cell, method)["score"] for method in ran] for cell in names])
    for row in scores:
        axis.plot(row, color="grey", alpha=0.45, lw=0.8, marker=".", ms=3)
    for place, method in enumerate(ran):
        look = style(method) | {"ls": "none"}
        mean = scores[:, place].mean()
        axis.plot(place, mean, **look, ms=9, mec="white", mew=0.8, zorder=3)
        axis.annotate(f"{mean:.1f}", (place, mean), (8, 0), textcoords="offset points", va="center",
                      fontsize=8, fontweight="bold", zorder=5,
                      bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 0.6})
        theirs = [paper[cell, method]["mean"] for cell in names if (cell, method) in paper]
        if len(theirs) == len(names):
            axis.plot(place, np.mean(theirs), color=look["color"], marker=look["marker"], **HOLLOW)
    labels = [name_of(method).removeprefix("lamo-").replace("random-corpus", "random\ncorpus")
              for method in ran]
    axis.set_xticks(range(len(ran)), labels)
    axis.set_xlim(-0.4, len(ran) - 0.4)
    grid_lines(axis, "y")


# --- statistics over cells ---------------------------------------------------------------------

def profiles(cells, profile):
    """A row a domain: performance profiles, interquartile means, probabilities of improvement."""
    rows = {domain: found for domain in (*DOMAINS, "all domains") if (found := comparable(cells, domain))}
    if len({tuple(names) for names, _ in rows.values()}) < len(rows):
        rows.pop("all domains", None)  # one domain alone is all
    if not rows:
        return None
    figure = Figure((11, 0.9 + 2.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(5, 3, 3))
    for row, (domain, (names, methods)) in zip(axes, rows.items(), strict=True):
        values = {method: [cells[cell][method]["values"] for cell in names] for method in methods}
        draw_profile(row[0], values)
        every = sum(domain in (domain_of(cell), "all domains") for cell in settings.cells())
        row[0].set_title(f"{domain}: {len(names)} of {every} cells")
        draw_estimates(row[1], {method: (interquartile_mean, runs) for method, runs in values.items()})
        draw_estimates(row[2], {method: (improvement, values["lamo"], runs)
                                for method, runs in values.items() if method != "lamo"})
        row[2].axvline(0.5, color="grey", ls=":", lw=1)
        row[2].set_xlim(-0.02, 1.02)
    for axis, label in zip(axes[-1], ("normalised score τ", "interquartile mean", "P(LaMo > method)"),
                           strict=True):
        axis.set_xlabel(label)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of runs above τ")
    drawn = [method for method in MAIN if any(method in methods for _, methods in rows.values())]
    legend(figure, drawn)
    stamp(figure, profile, "Performance profiles, interquartile means, probability of improvement")
    lines = [cells[cell][method] for names, methods in rows.values() for cell in names for method in methods]
    return "Performance profiles and statistics over cells", figure, caption(
        "After Agarwal et al. (2021), for the methods that exist in all of LaMo's cells and have at "
        "least half of them, over the cells that all of these have. Bands and whiskers: 95 % stratified "
        "bootstrap over seeds, none where a cell has one seed.", profile, lines)


def comparable(cells, domain):
    """(cells, methods) to compare LaMo in: the methods that have at least half of LaMo's cells, and the
    cells that all of them have; None if there is nothing to compare."""
    own = [cell for cell in settings.cells() if domain in (domain_of(cell), "all domains")
           and "lamo" in cells.get(cell, {})]
    methods = [method for method in MAIN if 2 * sum(method in cells[cell] for cell in own) >= len(own) > 0
               and not any(settings.missing(cell.rpartition("-")[0], method) for cell in own)]
    names = [cell for cell in own if all(method in cells[cell] for method in methods)]
    return (names, methods) if names and len(methods) > 1 else None


def draw_profile(axis, values):
    scores = np.concatenate([runs for method in values.values() for runs in method])
    thresholds = np.linspace(min(0, scores.min()) - 1, scores.max() + 1, 150)
    for method, runs in values.items():
        look = style(method)
        share = performance_profile(runs, thresholds)
        axis.plot(thresholds, share, **look, ms=4, lw=1.3, mec="white", mew=0.3, markevery=15)
        bounds = stratified_interval(lambda drawn: performance_profile(drawn, thresholds), runs,
                                     rng=np.random.default_rng(0), resamples=500)
        if bounds is not None:
            axis.fill_between(thresholds, *bounds, color=look["color"], alpha=0.1, lw=0)
    axis.set_ylim(-0.02, 1.02)
    grid_lines(axis)


def draw_estimates(axis, estimates):
    """A row a method: (statistic, groups of cells) with its interval."""
    for y, (method, (statistic, *groups)) in enumerate(estimates.items()):
        look, value = style(method) | {"ls": "-"}, float(statistic(*groups))
        if bounds := stratified_interval(statistic, *groups, rng=np.random.default_rng(0)):
            axis.plot(bounds, (y, y), color=look["color"], lw=2.2, alpha=0.6, solid_capstyle="butt")
        axis.plot(value, y, **look, ms=6, mec="white", mew=0.4)
    axis.set_yticks(range(len(estimates)), [name_of(method) for method in estimates])
    axis.set_ylim(len(estimates) - 0.4, -0.6)
    grid_lines(axis, "x")
