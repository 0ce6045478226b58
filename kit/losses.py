"""The panel of a cell's figure that shows its losses: on held-out episodes, in training, and their floor.

    if measured(rows):
        handles = draw_losses(axis, rows, style)        # rows of results/, with numbers as numbers
"""

import numpy as np


def measured(rows):
    return [row for row in rows if np.isfinite(row.get("heldout_loss", np.nan))]


def draw_losses(axis, rows, style):
    """Losses against the share of training, means over seeds. style: method -> how its line looks. Returns
    the lines that a legend has to explain."""
    rows, handles = measured(rows), []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        steps = sorted({row["step"] for row in own})
        course = np.array(steps) / max(steps[-1], 1)
        for name, look in (("heldout_loss", style(method) | {"ms": 5, "mec": "white", "mew": 0.4}),
                           ("train_loss", style(method) | {"ls": ":", "lw": 1, "ms": 3})):
            axis.plot(course, [np.mean([row[name] for row in own if row["step"] == step])
                               for step in steps], **look)
    handles += axis.plot([], [], color="grey", ls=":", lw=1, label="dotted: the loss in training")
    floors = {row["heldout_floor"] for row in rows if np.isfinite(row["heldout_floor"])}
    if floors:
        handles.append(axis.axhline(np.mean([*floors]), color="grey", ls="-.", lw=1,
                                    label="floor: the player's own mean action"))
    axis.set_xlabel("share of the training steps")
    axis.set_xlim(0, 1.02)
    axis.set_ylabel("action loss")
    axis.set_ylim(bottom=0)
    episodes = ", ".join(sorted({str(row["heldout_episodes"]) for row in rows}))
    axis.set_title(f"action loss on {episodes} held-out episodes", fontsize=9)
    return handles
