"""kit/statistics.py: the score's rule and the intervals."""

import numpy as np
import pytest
from scipy import stats
from test_plot import make_rows

from kit.statistics import interval, summarise


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
