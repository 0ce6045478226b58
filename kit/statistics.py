"""The score of a method in a cell, and how sure one can be of it; docs/methods.md says what is averaged.

    table = summarise(rows)         # rows of results/, with numbers as numbers
"""

import numpy as np
from scipy import stats


def interval(values, over):
    """95 % interval of the mean of independent values: (low, high), or None for fewer than two or where one
    is no number. over: "seeds" (Student's t) or "episodes" (percentile bootstrap)."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0:
        return values[0], values[0]
    if over == "seeds":
        return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    found = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile",
                            rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def samples(rows, window, over):
    """Independent measurements of one method at one target over each seed's last `window` evaluations: the
    seeds' means, or, over "episodes", the only seed's episodes."""
    values = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        last = sorted({row["step"] for row in own})[-window:]
        episodes = {}
        for row in own:
            if row["step"] in last:
                episodes.setdefault(row["episode"], []).append(row["normalized_score"])
        values[seed] = [float(np.mean(scores)) for scores in episodes.values()]
    if over == "seeds":
        return [float(np.mean(scores)) for scores in values.values()]
    (episodes,) = values.values()
    return episodes


def summarise(rows):
    """One dict a method: LM, seeds, score and interval at the largest target, and the best target.
    Baselines have no target: None stands for it."""
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        seeds, window = sorted({row["seed"] for row in own}), own[0]["score_window"]
        over = "seeds" if len(seeds) > 1 else "episodes"
        targets = sorted({row["target_return"] for row in own}, key=lambda target: -(target or 0))
        scores = {target: samples([row for row in own if row["target_return"] == target], window, over)
                  for target in targets}
        largest, best = targets[0], max(targets, key=lambda target: np.mean(scores[target]))
        evaluations = min(len({row["step"] for row in own if row["seed"] == seed}) for seed in seeds)
        table.append({"method": method, "lm": ", ".join(sorted({row["lm"] for row in own})),
                      "seeds": seeds, "over": over, "steps": max(row["step"] for row in own),
                      "window": window, "evaluations": evaluations, "averaged": min(window, evaluations),
                      "changed": own[0]["changed"], "scores": scores, "target": largest,
                      "score": float(np.mean(scores[largest])), "n": len(scores[largest]),
                      "interval": interval(scores[largest], over),
                      "best": float(np.mean(scores[best])), "best_target": best})
    return table
