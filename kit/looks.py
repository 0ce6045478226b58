"""How a method looks, the same in every figure: style(method), hatch(method).

Colours are told apart by colour-blind eyes; markers, kinds of line and hatches by grey ones.
"""

import tasks

# Okabe and Ito's colours without their yellow. 7 colours and 8 markers: no pair comes back among the first
# 56 methods.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^v>X<"
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "|||", "---", "+++")  # of bars


def style(method):
    """A method's colour, marker and kind of line, as matplotlib's words for a line."""
    place = list(tasks.METHODS).index(method)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)],
            "ls": LINES[place // len(COLOURS) % len(LINES)]}


def hatch(method):
    """What fills a method's bar."""
    return HATCHES[list(tasks.METHODS).index(method) % len(HATCHES)]
