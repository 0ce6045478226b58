"""kit/statistics.py: the score's rule and the intervals."""

import itertools

import numpy as np
import pytest
from scipy import stats
from test_plot import make_rows

from kit.statistics import (
    improvement,
    interquartile_mean,
    interval,
    mean_of_cells,
    mean_over_tasks,
    paired,
    paired_over_starts,
    performance_profile,
    replications,
    stratified_interval,
    summarise,
)


def test_the_score_is_the_mean_of_the_last_evaluations_at_the_largest_target():
    rows = make_rows({1: [90.0, 90.0], 2: [10.0, 20.0], 3: [30.0, 60.0]})
    rows += make_rows({1: [0.0, 0.0], 2: [50.0, 50.0], 3: [50.0, 50.0]}, target=1800.0)
    line, = summarise(rows)
    assert line["score"] == pytest.approx((10 + 20 + 30 + 60) / 4) and line["target"] == 3600
    assert line["best"] == 50 and line["best_target"] == 1800
    assert line["scores"][3600.0] == [20.0, 40.0]  # an episode's mean over the window


def test_each_method_is_scored_over_its_own_window():
    scores = {1: [10.0, 10.0], 2: [20.0, 20.0], 3: [60.0, 60.0]}
    table = summarise([row for method, window in (("lamo", 1), ("bc", 2), ("dt", 3))
                            for row in make_rows(scores, method, score_window=window)])
    assert [line["score"] for line in table] == [60.0, 40.0, 30.0]


def test_with_several_seeds_a_seed_is_the_sample():
    rows = [row for seed, score in enumerate((10.0, 20.0, 60.0)) for row in
            make_rows({1: [score - 5, score + 5]}, seed=seed)]
    line, = summarise(rows)
    assert line["scores"][3600.0] == [10.0, 20.0, 60.0] and line["n"] == 3 and line["over"] == "seeds"
    # Student's t with 2 degrees of freedom: mean 30, standard error 15.275
    assert line["interval"] == pytest.approx((30 - 4.3027 * 15.2753, 30 + 4.3027 * 15.2753), rel=1e-3)


def test_five_episodes_of_one_seed_are_bootstrapped_and_twelve_seeds_are_not():
    episodes = [0.0, 0.0, 0.0, 0.0, 50.0]
    line, = summarise(make_rows({1: episodes}))
    low, high = line["interval"]
    assert line["over"] == "episodes" and line["n"] == 5
    assert (low, high) == (0.0, 30.0)  # means of five of these values; Student's t would begin below 0
    seeds = np.random.default_rng(0).normal(30, 5, 12)
    line, = summarise([row for seed, score in enumerate(seeds)
                            for row in make_rows({1: [score, score]}, seed=seed)])
    assert line["interval"] == pytest.approx(stats.t.interval(0.95, 11, seeds.mean(), stats.sem(seeds)))


def test_intervals_cover_the_mean_as_often_as_the_manual_says():
    rng = np.random.default_rng(0)
    for over, size, rounds, least in (("seeds", 3, 400, 0.92), ("episodes", 20, 100, 0.87),
                                      ("episodes", 5, 200, 0.77)):
        hits = 0
        for _ in range(rounds):
            low, high = interval(rng.normal(5, 2, size), over)
            hits += low <= 5 <= high
        assert least < hits / rounds <= 0.99, (over, size)
    for over in ("seeds", "episodes"):
        assert interval([3.0], over) is None and interval([3.0, np.nan], over) is None
        assert interval([3.0, 3.0], over) == (3.0, 3.0)


def test_a_mean_over_tasks_takes_the_wider_of_two_intervals():
    # seeds' means are equal by luck: Welch's interval, of which scipy knows two samples
    one, other = [1.0, 5.0, 3.0], [14.0, 6.0, 10.0]
    welch = stats.ttest_ind(one, [-value for value in other], equal_var=False).confidence_interval()
    found = mean_over_tasks([dict(enumerate(values)) for values in (one, [*other, 99.0])])
    assert found.difference == 6.5 and found.seeds == [0, 1, 2]
    assert found.interval == pytest.approx((welch.low / 2, welch.high / 2)) and np.ptp(found.interval) > 7
    # what a seed does in one task it does in the other: Student's t over the seeds' means
    found = mean_over_tasks([dict(enumerate(one)), dict(enumerate(one))])
    assert found.interval == pytest.approx(interval(one, "seeds"))
    assert mean_over_tasks([{0: 1.0}, {0: 3.0, 1: 5.0}]) == (2.0, None, [0])
    assert mean_over_tasks([{0: 1.0, 1: 1.0}, {0: 3.0, 1: 3.0}]).interval == (2.0, 2.0)
    assert mean_over_tasks([{0: 1.0}, {1: 3.0}]) is None


@pytest.mark.parametrize("shared", (0, 1, 4))
def test_a_mean_over_tasks_is_covered_whatever_seeds_share(shared):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(0, 1, (9, 3)) * rng.uniform(0.2, 5, (9, 1)) + shared * rng.normal(0, 1, 3)
        low, high = mean_over_tasks([dict(enumerate(task)) for task in values]).interval
        hits += low <= 0 <= high
    assert hits > 0.93 * 400


# --- over many cells: rliable's published test values --------------------------------------------
# rliable's matrices are runs x tasks; a row here is a task.

X, Y = np.array([[1, 2, 1, 2], [2, 2, 1, 1]]), np.array([[1, 2, 3], [1, 2, 3]])
RISING = np.arange(80).reshape(5, 16).T  # its library_test: 16 tasks, 5 runs, and the same turned round


def test_interquartile_mean_and_mean_are_rliables():
    assert interquartile_mean(X) == mean_of_cells(X) == 1.5
    assert interquartile_mean(Y) == mean_of_cells(Y) == 2
    # of cells with unlike numbers of seeds each run counts the same, as in one long list
    assert interquartile_mean([[0, 1], [2, 3, 4, 5, 90, 100]]) == stats.trim_mean(
        [0, 1, 2, 3, 4, 5, 90, 100], 0.25) == 3.5


def test_probability_of_improvement_is_rliables():
    assert improvement(X, Y) == pytest.approx(1 / 3) and improvement(Y, X) == pytest.approx(2 / 3)
    assert improvement(RISING, RISING[:, ::-1]) == improvement(X, X) == 0.5
    for ours, theirs in ((X[0], Y[0]), ([1.0, 5.0, 5.0], [5.0, 2.0])):  # a Mann-Whitney U, as in rliable
        u = stats.mannwhitneyu(ours, theirs, alternative="greater").statistic
        assert improvement([ours], [theirs]) == pytest.approx(u / (len(ours) * len(theirs)))


def test_performance_profiles_fall_from_one_to_none():
    thresholds = np.array([-1, 0.0, 0.25, 0.5, 1.0, 39.5, 79.0])
    share = performance_profile(RISING, thresholds)
    assert share == pytest.approx([(RISING > threshold).mean() for threshold in thresholds])
    assert share[0] == 1 and share[-1] == 0 and sorted(share, reverse=True) == share.tolist()


def test_stratified_intervals_hold_the_estimate_and_are_reproducible():
    for statistic, groups in ((interquartile_mean, [RISING]), (mean_of_cells, [RISING]),
                              (improvement, [RISING, RISING[:, ::-1]])):
        low, high = stratified_interval(statistic, *groups, rng=np.random.default_rng(0))
        assert low < statistic(*groups) < high
        assert (low, high) == stratified_interval(statistic, *groups, rng=np.random.default_rng(0))
        assert (low, high) != stratified_interval(statistic, *groups, rng=np.random.default_rng(1))


def test_a_stratified_interval_is_the_percentiles_of_all_resamples():
    """Two cells of two and three seeds: 4 x 27 resamples are equally likely."""
    cells = [[10.0, 30.0], [20.0, 60.0, 70.0]]
    every = [np.mean([np.mean(one), np.mean(other)]) for one in itertools.product(cells[0], repeat=2)
             for other in itertools.product(cells[1], repeat=3)]
    found = stratified_interval(mean_of_cells, cells, rng=np.random.default_rng(0), resamples=20_000)
    assert np.allclose(found, np.percentile(every, (2.5, 97.5)), atol=1.5)  # of 33
    # cells are strata: what differs between them alone is no doubt about their mean
    assert stratified_interval(mean_of_cells, [[1.0, 1.0], [99.0, 99.0]],
                               rng=np.random.default_rng(0)) == (50, 50)


def test_one_seed_in_a_cell_has_no_interval_over_cells():
    for groups in ([[[1.0, 2.0], [3.0]]], [[]], [[[1.0, 2.0]], [[1.0]]]):
        assert stratified_interval(lambda *cells: 0.0, *groups, rng=np.random.default_rng(0)) is None


def test_stratified_intervals_of_a_mean_over_many_cells_cover_it():
    """As often as the manual says, which is not 95 %: the percentiles of few values are narrow."""
    for seeds, least, most in ((3, 0.84, 0.93), (10, 0.89, 0.97)):
        rng, hits = np.random.default_rng(0), 0
        for _ in range(300):
            cells = rng.normal(5, 2, (27, seeds))
            low, high = stratified_interval(mean_of_cells, cells, rng=rng, resamples=300)
            hits += low <= 5 <= high
        assert least < hits / 300 < most


# --- two methods over the same replications ------------------------------------------------------

def test_a_paired_difference_has_students_interval():
    rng = np.random.default_rng(0)
    subsets = rng.normal(50, 20, 5)  # which both methods share
    ours, theirs = ({seed: subsets[seed] + rng.normal(shift, 1) for seed in range(5)} for shift in (3, 0))
    found = paired(ours, theirs | {7: 99.0})  # who has no partner does not count
    assert found.seeds == [0, 1, 2, 3, 4]
    test = stats.ttest_rel([*ours.values()], [*theirs.values()])
    low, high = test.confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.difference == pytest.approx((low + high) / 2)
    apart = stats.ttest_ind([*ours.values()], [*theirs.values()]).confidence_interval(0.95)
    assert high - low < (apart.high - apart.low) / 5  # which is why they are paired
    assert paired(theirs, ours).difference == -found.difference


def test_one_replication_has_no_interval_and_none_no_difference():
    assert paired({3: 5.0}, {2: 1.0, 3: 4.5}) == (0.5, None, [3])
    assert paired({3: 5.0}, {2: 1.0}) is None
    assert paired({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}).interval == (1.0, 1.0)


def test_the_largest_target_may_be_zero_or_negative():
    for largest in (0.0, -5.0, 7.0):
        rows = [row for target, more in ((largest, 0.0), (largest - 5, 50.0)) for row in make_rows(
            {1: [1.0 + more], 2: [3.0 + more]}, target=target)]
        line, = summarise(rows)
        assert replications(rows, "score") == {0: 2.0} and line["score"] == 2.0 and line["target"] == largest


def test_a_replications_values_are_those_of_its_checkpoints():
    losses = {0: (0.3, 0.1, 0.2), 1: (0.5, 0.4, 0.3)}
    rows = [row for seed, own in losses.items() for step, loss in enumerate(own)
            for target in (3600.0, 1800.0)
            for row in make_rows({step: [step + seed, step + seed + 2.0]}, target=target, seed=seed,
                                 heldout_loss=loss, score_window=2)]
    assert replications(rows, "score") == {0: 2.5, 1: 3.5}
    assert replications(rows, "heldout_loss") == pytest.approx({0: 0.15, 1: 0.35})
    assert replications(rows, "lowest_heldout_loss") == {0: 0.1, 1: 0.3}
    unmeasured = make_rows({0: [1.0]}, target=None, seed=2)
    assert replications(unmeasured, "score") == {2: 1.0}
    assert replications(rows + unmeasured, "lowest_heldout_loss") == {0: 0.1, 1: 0.3}


def test_a_score_is_also_taken_at_the_smallest_target_and_at_the_last_checkpoint():
    rows = [row for target, more in ((3600.0, 0.0), (2600.0, 99.0), (1800.0, 50.0)) for row in make_rows(
        {1: [90.0 + more], 2: [1.0 + more], 3: [4.0 + more]}, target=target, score_window=2)]
    assert replications(rows, "score") == {0: 2.5}
    assert replications(rows, "smallest_target_score") == {0: 52.5}
    assert replications(rows, "last_score") == {0: 4.0}
    alone = [row for row in rows if row["target_return"] == 3600.0]
    assert replications(alone, "smallest_target_score") == {}
    assert replications(alone, "last_score") == {0: 4.0}
    without = [row | {"target_return": None} for row in alone]  # baselines, who stand beside either
    assert replications(without, "smallest_target_score") == replications(without, "score") == {0: 2.5}


def of_starts(table, method):
    """Rows whose score is table[seed][episode] in the last two checkpoints, and 99 before and elsewhere."""
    return [row for seed, scores in enumerate(table) for target, late in ((3600.0, scores), (1800.0, None))
            for row in make_rows({step: [99.0] * len(scores) if late is None or step == 1 else late
                                  for step in (1, 2, 3)}, method, target, seed=seed, score_window=2)]


def test_an_interval_over_starts_covers_other_starts_and_that_over_seeds_does_not():
    rng, hits, of_seeds = np.random.default_rng(0), 0, 0
    zero = of_starts(np.zeros((4, 10)), "dt")
    for _ in range(200):
        table = rng.normal(0, 1, (4, 1)) + rng.normal(0, 6, (1, 10)) + rng.normal(0, 2, (4, 10))
        rows = of_starts(table, "lamo")
        found, alone = paired_over_starts(rows, zero), paired(*(replications(of, "score")
                                                                for of in (rows, zero)))
        assert found.difference == pytest.approx(table.mean()) == alone.difference
        hits += found.interval[0] <= 0 <= found.interval[1]
        of_seeds += alone.interval[0] <= 0 <= alone.interval[1]
    assert 0.9 < hits / 200 < 0.99 and of_seeds / 200 < 0.75


def test_where_starts_do_not_matter_the_interval_is_that_over_seeds():
    table = np.array([[1.0, 5.0, 3.0], [4.0, 6.0, 2.0], [9.0, 7.0, 14.0]])
    ours, theirs = of_starts(table, "lamo"), of_starts(0 * table, "dt")
    found, seeds = paired_over_starts(ours, theirs), paired({0: 3.0, 1: 4.0, 2: 10.0}, {0: 0, 1: 0, 2: 0})
    assert found.difference == pytest.approx(seeds.difference) and found.seeds == [0, 1, 2]
    assert found.interval == pytest.approx(seeds.interval)
    fewer = of_starts(table[:, :2], "dt")
    for one, other in ((ours, fewer), (ours[:12], theirs), (of_starts(table[:, :1], "lamo"),) * 2):
        assert paired_over_starts(one, other) is None  # other starts; one seed; one start
