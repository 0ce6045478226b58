"""The paper's claims as one figure: what two methods differ by in each cell, a line each.

    picture(found, "mini")       found: {(profile, cell): [rows of a file, ...]} of paper.claims.read
                                 -> (title, matplotlib figure, caption), as paper.figures has them, or None
    picture(found, "mini", every=False)      cells only where there is no mean over tasks

At the left the difference in score; at the right that in imitation, by how many per cent of the second
method's held-out loss the first one's is lower. A diamond is a mean over tasks.
"""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from paper.claims import CLAIMS, FEWEST, OVER_RATIOS, comparisons, holds, means_of, of_second, told
from paper.figures import LOOKS, grid_lines, of_profile, stamp
from paper.grid import name_of

FOR, AGAINST, OPEN = "#009E73", "#D55E00", "#777777"
ROW = 0.165                # inches
ROOM = 1.25                # how much further than the largest difference a panel goes


def picture(found, profile, every=True):
    """Of the profile's cells and of what FEWEST replications have, whose intervals are printed, too."""
    drawn = {claim: lines for claim, pairs in CLAIMS
             if (lines := compared(found, profile, pairs, every))}
    if not drawn:
        return None
    return "The claims, one by one", draw(drawn, profile), (
        "What the first method differs by from the second, over the replications that both have; right of 0 "
        "speaks for the first. Lines are 95 % intervals, coloured where one leaves 0 out; then the mark is "
        "filled, a score's if the same is told at the smallest target, at the last checkpoint and from other "
        "starts. An arrow stands where a line goes on. Per cent are of the second's mean loss. Diamonds are "
        "means over tasks, each at its lowest ratio, or of what that differs by from the next ratio. "
        f"{of_profile(profile)}")


def compared(found, profile, pairs, every):
    """[(what is compared, Comparison), ...] of a claim; of two methods the mean over tasks comes last."""
    lines = []
    for first, second in pairs:
        own = comparisons(found, first, second)
        means = [*means_of(own, (first, second) in OVER_RATIOS)]
        lines += [(f"{name_of(first)} - {name_of(second)}, {cell}  ({comparison.over}"
                   f"{', changed settings' * bool(comparison.changed)})", comparison)
                  for (of, cell), comparison in (means if means and not every else own + means)
                  if of == profile and comparison.count >= FEWEST]
    return lines


@matplotlib.rc_context(LOOKS)
def draw(drawn, profile):
    """drawn: {claim: its lines of `compared`}."""
    rows = [(text, pair) for claim, lines in drawn.items() for text, pair in ((claim, None), *lines)]
    figure = Figure((9.5, 1.2 + ROW * len(rows)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for y, (_, pair) in enumerate(rows):
        if pair is not None:
            marker = "D" if pair.per_cent else "o"
            draw_line(axes[0], y, pair.pairs["score"], 1, marker, holds(pair))
            draw_line(axes[1], y, pair.pairs["heldout_loss"], per_cent(pair), marker)
    axes[0].set_yticks(range(len(rows)), [text for text, _ in rows], fontsize=7.5)
    for label, (_, pair) in zip(axes[0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if pair is None else "normal")
    for axis, title in zip(axes, ("score: points higher", "held-out loss: per cent lower"), strict=True):
        axis.set_title(title)
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.tick_params(axis="x", labeltop=True)
        axis.axvline(0, color="black", lw=0.8)
        clip(axis)
        axis.set_xlabel("for the second  <  0  >  for the first", fontsize=8)
        grid_lines(axis, "x")
    stamp(figure, profile, "The claims: paired differences with 95 % intervals")
    return figure


def per_cent(comparison):
    """What makes a difference in held-out loss per cent of the second method's mean loss, less being more."""
    if comparison.per_cent:
        return -1
    mean = of_second(comparison, "heldout_loss") if comparison.pairs["heldout_loss"] else 0
    return -100 / mean if mean else 0


def draw_line(axis, y, pair, scale, marker, filled=True):
    """A Paired times `scale`; nothing where there is none, or nothing to measure it by. filled: its mark, if
    it tells."""
    if pair is None or not scale:
        return
    difference = scale * pair.difference
    ends = sorted(scale * end for end in pair.interval) if len(pair.seeds) >= FEWEST else None
    colour = OPEN if not told(pair) else FOR if difference > 0 else AGAINST
    if ends:
        width = 1.6 if marker == "o" else 2.4
        axis.plot(ends, (y, y), color=colour, lw=width, solid_capstyle="butt", gid="interval")
    axis.plot(difference, y, marker, ms=4.5, color=colour, zorder=3,
              mfc=colour if filled and told(pair) else "white")


def clip(axis):
    """Limits by the differences, and arrows where intervals go beyond."""
    marks = [line for line in axis.lines if line.get_marker() in ("o", "D")]
    if not marks:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", backgroundcolor="white")
    limit = ROOM * max((abs(float(line.get_xdata()[0])) for line in marks), default=1) or 1
    for line in [line for line in axis.lines if line.get_gid() == "interval"]:
        (low, high), y = line.get_xdata(), line.get_ydata()[0]
        for beyond, end, marker in ((low < -limit, -limit, "<"), (high > limit, limit, ">")):
            if beyond:
                axis.plot(end, y, marker, ms=4, color=line.get_color(), clip_on=False)
        line.set_xdata(np.clip((low, high), -limit, limit))
    axis.set_xlim(-limit, limit)
