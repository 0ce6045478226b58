"""The score of a method in a cell, and how sure one can be of it; docs/methods.md says what is averaged.

    table = summarise(rows)         # rows of results/, with numbers as numbers
    paired(replications(lamo, "score"), replications(dt, "score"))      # the difference of two methods
    interquartile_mean(cells)       # and what else is said over many cells, with stratified_interval
"""

from typing import NamedTuple

import numpy as np
from scipy import stats


def interval(values, over):
    """95 % interval of the mean of independent values: (low, high), or None for fewer than two or where one
    is no number. over: "seeds" or "subsets" (Student's t), or "episodes" (percentile bootstrap)."""
    values = np.asarray(values, float)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0:
        return values[0], values[0]
    if over != "episodes":
        return stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    found = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile",
                            rng=np.random.default_rng(0))
    return found.confidence_interval.low, found.confidence_interval.high


def of_subsets(rows):
    """Whether the seeds of these rows differ in the episodes they trained on, too."""
    return len({row.get("subset", 0) for row in rows}) > 1


def samples(rows, window, over):
    """Independent measurements of one method at one target over each seed's last `window` evaluations: the
    seeds' means (over "subsets", each of a subset of its own), or, over "episodes", the only seed's
    episodes."""
    values = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        last = sorted({row["step"] for row in own})[-window:]
        episodes = {}
        for row in own:
            if row["step"] in last:
                episodes.setdefault(row["episode"], []).append(row["normalized_score"])
        values[seed] = [float(np.mean(scores)) for scores in episodes.values()]
    if over != "episodes":
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
        over = "episodes" if len(seeds) < 2 else "subsets" if of_subsets(own) else "seeds"
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


# --- two methods over the same replications ------------------------------------------------------

class Paired(NamedTuple):
    difference: float       # the mean of first - second
    interval: tuple | None  # 95 %, (low, high); None for one replication, which has no deviation
    seeds: list             # that both have


SCORES = ("score", "smallest_target_score", "last_score")


def at_target(rows, target):
    return [row for row in rows if (row["target_return"] or 0) == target]


def replications(rows, what):
    """{seed: value} of one method's rows.

    what    "score": the mean normalised score over the last evaluations at the largest target, as summarise;
            "smallest_target_score": at the smallest target, of methods that have several targets or none;
            "last_score": at the largest target, of the last evaluation alone;
            "heldout_loss", "heldout_decisions", "bits_per_byte": the mean over the same checkpoints;
            "lowest_heldout_loss": the least of all checkpoints, where a run would have been stopped. Runs
            without it are left out.
    """
    found = {}
    for seed in sorted({row["seed"] for row in rows}):
        own = [row for row in rows if row["seed"] == seed]
        if what in SCORES:
            targets = sorted({row["target_return"] or 0 for row in own})
            if what != "smallest_target_score" or len(targets) > 1 or own[0]["target_return"] is None:
                target = targets[0 if what == "smallest_target_score" else -1]
                found[seed], = samples(at_target(own, target),
                                       1 if what == "last_score" else own[0]["score_window"], "seeds")
            continue
        name = "heldout_loss" if what == "lowest_heldout_loss" else what
        losses = {row["step"]: row.get(name, np.nan) for row in own}
        if what == "lowest_heldout_loss":
            found[seed] = float(np.min([*losses.values()]))
        else:
            found[seed] = float(np.mean([losses[step] for step in sorted(losses)[-own[0]["score_window"]:]]))
    return {seed: value for seed, value in found.items() if np.isfinite(value)}


def paired(first, second):
    """What {seed: value} of two methods differ by, over the seeds that both have; None if there are none.

    Runs of a seed share their subset, and the starts of their episodes, so that differences vary less than
    the values do: Student's t over the differences. That of one seed alone stands without an interval.
    """
    seeds = sorted({*first} & {*second})
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    return Paired(float(np.mean(differences)), interval(differences, "seeds"), seeds)


def paired_over_starts(first, second):
    """The Paired of two methods' rows, in score, with an interval that also covers other starts of episodes;
    None unless two seeds or more have played the same two starts or more.

    Episode i has the same start for each method, seed and checkpoint, as in the mini profile. Seeds x starts
    is a table of differences with two random effects: the variance of its mean is (MS_seeds + MS_starts -
    MS_rest) / cells, with Satterthwaite's degrees of freedom, at least the seeds'. The interval over seeds
    counts if it is wider, or if starts differ no more than what is left over.
    """
    ours, theirs = (scores_by_start(rows) for rows in (first, second))
    seeds = sorted({seed for seed, _ in ours} & {seed for seed, _ in theirs})
    starts = sorted({start for _, start in (*ours, *theirs)})
    pairs = [(seed, start) for seed in seeds for start in starts]
    if min(len(seeds), len(starts)) < 2 or not {*pairs} <= {*ours} & {*theirs}:
        return None
    table = np.reshape([ours[pair] - theirs[pair] for pair in pairs], (len(seeds), len(starts)))
    (n, m), mean = table.shape, table.mean()
    of_seeds, of_starts = table.mean(1), table.mean(0)
    rest = ((table - of_seeds[:, None] - of_starts + mean) ** 2).sum() / ((n - 1) * (m - 1))
    parts = np.array([m * of_seeds.var(ddof=1), n * of_starts.var(ddof=1), -rest])
    low, high = interval(of_seeds, "seeds")
    if parts[1:].sum() > 0:
        freedom = max(parts.sum() ** 2 / (parts**2 / [n - 1, m - 1, (n - 1) * (m - 1)]).sum(), n - 1)
        half = max(stats.t.ppf(0.975, freedom) * np.sqrt(parts.sum() / (n * m)), (high - low) / 2)
        low, high = mean - half, mean + half
    return Paired(float(mean), (low, high), seeds)


def scores_by_start(rows):
    """{(seed, episode): the mean score over the last evaluations at the largest target}."""
    rows = at_target(rows, max(row["target_return"] or 0 for row in rows))
    found = {}
    for seed in {row["seed"] for row in rows}:
        own = [row for row in rows if row["seed"] == seed]
        last = sorted({row["step"] for row in own})[-own[0]["score_window"]:]
        for row in own:
            if row["step"] in last:
                found.setdefault((seed, row["episode"]), []).append(row["normalized_score"])
    return {pair: float(np.mean(scores)) for pair, scores in found.items()}


def mean_over_tasks(tasks):
    """The Paired of a mean over tasks, each a {seed: value}, over the seeds that all have; None without one.

    The interval covers other seeds of these tasks, and is the wider of two. That of the seeds' means has few
    degrees of freedom: by luck they lie close, though the tasks' own values are wide apart. That of the
    tasks' own deviations (Welch's degrees of freedom) takes runs of one seed as independent, though they
    share random numbers, such as the first weights.
    """
    seeds = sorted(set.intersection(*map(set, tasks)))
    if not seeds:
        return None
    values = np.array([[of_task[seed] for seed in seeds] for of_task in tasks])  # (tasks, seeds)
    means = values.mean(0)
    intervals = [interval(means, "seeds")]
    parts = values.var(1, ddof=1) / len(seeds) / len(tasks) ** 2 if len(seeds) > 1 else np.zeros(1)
    if parts.any():
        freedom = (len(seeds) - 1) * parts.sum() ** 2 / (parts**2).sum()
        intervals.append(stats.t.interval(0.95, freedom, means.mean(), np.sqrt(parts.sum())))
    return Paired(float(means.mean()), max(intervals, key=np.ptp) if len(seeds) > 1 else None, seeds)


# --- over many cells: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice" ----------
# cells: a list of arrays, one a cell, of its seeds' scores (..., seeds). Leading axes are resamples.

def mean_of_cells(cells):
    """The mean of the cells' means, as the paper averages."""
    return np.mean([np.mean(values, -1) for values in cells], 0)


def interquartile_mean(cells):
    """The mean of the middle half of all runs; each run counts the same."""
    return stats.trim_mean(np.concatenate(cells, -1), 0.25, axis=-1)


def improvement(ours, theirs):
    """The probability that a run of ours scores higher than one of theirs in the same cell, a tie being
    half; the mean over cells."""
    chances = []
    for one, other in zip(ours, theirs, strict=True):
        one, other = np.asarray(one)[..., :, None], np.asarray(other)[..., None, :]
        chances.append(np.mean((one > other) + (one == other) / 2, (-2, -1)))
    return np.mean(chances, 0)


def performance_profile(cells, thresholds):
    """The share of runs above each threshold, (..., thresholds); the mean over cells."""
    return np.mean([np.mean(np.asarray(values)[..., None] > thresholds, -2) for values in cells], 0)


def stratified_interval(statistic, *groups, rng, resamples=2000):
    """95 % interval of statistic(*groups), groups being lists of cells: (low, high), or None where a cell
    has fewer than two seeds. Percentile bootstrap in which cells are the strata: the seeds of each are drawn
    anew, and no cell is ever left out. Narrow when seeds are few: of normal values in 27 cells it covers the
    mean 89 times in 100 with 3 seeds a cell, 93 times with 10."""
    if not all(map(len, groups)) or any(len(values) < 2 for cells in groups for values in cells):
        return None
    drawn = [[np.asarray(values)[rng.integers(len(values), size=(resamples, len(values)))]
              for values in cells] for cells in groups]
    return tuple(np.percentile(statistic(*drawn), (2.5, 97.5), axis=0))
