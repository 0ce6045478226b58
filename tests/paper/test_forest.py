"""paper/forest.py: where differences are drawn, on which side, and how far."""

import numpy as np
import pytest
from test_claims import DT, LAMO, runs

from paper import forest

GOOD, BAD = ([10.0, 11.0, 12.0], [0.20, 0.20, 0.20]), ([50.0, 51.0, 52.0], [0.10, 0.10, 0.10])


def drawn(found, every=True):
    """(the figure, [{row: (difference, colour, filled)} of a panel])."""
    figure = forest.picture(found, "mini", every)[1]
    panels = [{int(line.get_ydata()[0]): (float(line.get_xdata()[0]), line.get_color(),
                                          line.get_markerfacecolor() != "white")
               for line in axis.lines if line.get_marker() in ("o", "D")} for axis in figure.axes]
    return figure, panels


def rows_of(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_right_is_for_the_first_method_on_both_sides():
    rows = runs("lamo", *LAMO) + runs("dt", *DT) + runs("lamo-random", *GOOD) + runs("wiki", *BAD)
    figure, (scores, losses) = drawn({("mini", "hopper-medium-0.01"): [rows],
                                      ("paper", "hopper-medium-0.01"): [rows]})
    assert rows_of(figure) == [
        "pre-training helps", "LaMo - lamo-random, hopper-medium-0.01  (3 seeds)",
        "few data: the difference at each ratio", "LaMo - DT, hopper-medium-0.01  (3 seeds)",
        "beside the other baselines", "LaMo - Wiki-RL, hopper-medium-0.01  (3 seeds)"]
    # 44 and 11, 34, 51; of the losses of both checkpoints' last 0.15 and 0.2, 0.15667, 0.1
    assert {row: round(found[0], 2) for row, found in scores.items()} == {1: 33.0, 3: 10.0, 5: -7.0}
    assert {row: found[0] for row, found in losses.items()} == {
        1: pytest.approx(25), 3: pytest.approx(100 * 0.02 / 0.47), 5: pytest.approx(-50)}
    assert scores[1][1:] == (forest.FOR, True) and scores[3][1:] == (forest.FOR, True)
    assert losses[3][1:] == (forest.OPEN, False) and losses[5][1:] == (forest.AGAINST, True)


def test_a_score_is_filled_if_it_holds_at_the_smallest_target_and_the_last_checkpoint_too():
    def lamo(smallest, last):
        rows = [row | {"score_window": 2} for row in runs("lamo", *LAMO)]
        rows = [row | {"normalized_score": row["normalized_score"] + (last if row["step"] == 2 else -last)}
                for row in rows]
        return rows + [row | {"target_return": 1800.0, "normalized_score": row["normalized_score"] + smallest}
                       for row in rows]
    theirs = [row | {"score_window": 2, "target_return": None} for row in runs("bc", *DT)]
    for changed, filled in (((0, 0), True), ((-10, 0), False), ((-20, 0), False), ((0, -9), False),
                            ((9, 0), True)):
        found = {("mini", "hopper-medium-0.01"): [lamo(*changed) + theirs]}
        (_, (scores, _)) = drawn(found)
        assert scores[1] == (pytest.approx(10.0), forest.FOR, filled), changed


def test_intervals_of_losses_are_in_per_cent_and_turned_round():
    rows = runs("lamo", *LAMO) + runs("dt", *DT) + runs("wiki", *BAD)
    figure, _ = drawn({("mini", "hopper-medium-0.01"): [rows]})
    ends = {int(line.get_ydata()[0]): [*line.get_xdata()] for line in figure.axes[1].lines
            if line.get_gid() == "interval"}
    middle, half = 2 / 0.47, 4.303 * 0.0057735 / np.sqrt(3) * 300 / 0.47
    assert ends[1] == pytest.approx([middle - half, middle + half], rel=1e-3)


def test_an_interval_that_goes_on_ends_in_an_arrow_within_the_panel():
    rows = runs("lamo", [0.0, 80.0, 40.0], LAMO[1]) + runs("dt", [10.0, 50.0, 30.0], DT[1])
    figure, _ = drawn({("mini", "hopper-medium-0.01"): [rows]})
    low, high = figure.axes[0].get_xlim()
    assert (low, high) == (-12.5, 12.5)  # the difference is 10, its interval -40 to 60
    arrows = {line.get_marker(): float(line.get_xdata()[0]) for line in figure.axes[0].lines
              if line.get_marker() in "<>"}
    assert arrows == {"<": low, ">": high}
    (interval,) = [line for line in figure.axes[0].lines if line.get_gid() == "interval"]
    assert [*interval.get_xdata()] == [low, high]


def test_few_replications_and_no_loss_are_said_or_left_out():
    nothing = [float("nan")] * 3
    found = {("mini", "hopper-medium-0.01"): [
        runs("lamo", *LAMO) + runs("iql", DT[0], nothing) + runs("dt", [30.0, 31.0], [0.1, 0.1])]}
    figure, (scores, losses) = drawn(found)
    assert len(rows_of(figure)) == 2 and list(scores) == [1] and not losses
    assert [text.get_text() for text in figure.axes[1].texts] == ["not measured"]
    found = {("mini", "hopper-medium-0.01"): [
        runs("lamo", *LAMO) + [row | {"heldout_loss": 0.0} for row in runs("dt", *DT)]]}
    assert not drawn(found)[1][1]  # nothing is per cent of 0
    assert forest.picture({("mini", "hopper-medium-0.01"): [runs("lamo", *LAMO)]}, "mini") is None
    # of three replications two have a loss: a mark without an interval
    found = {("mini", "hopper-medium-0.01"): [
        runs("lamo", *LAMO) + runs("bc", DT[0], [0.1, 0.1, float("nan")])]}
    figure, (_, losses) = drawn(found)
    assert losses[1][1:] == (forest.OPEN, False)
    assert not [line for line in figure.axes[1].lines if line.get_gid() == "interval"]


def test_a_mean_over_tasks_is_a_diamond_and_may_stand_for_its_cells():
    found = {("mini", f"{task}-medium-0.1"): [[
        row for method, values in (("lamo", LAMO), ("dt", DT), ("wiki", GOOD))
        for row in runs(method, *values, task=f"{task}-medium", ratio=0.1)
        if (task, method) != ("walker2d", "wiki")]] for task in ("hopper", "walker2d")}
    figure, (scores, losses) = drawn(found)
    assert rows_of(figure)[1:4] == ["LaMo - DT, hopper-medium-0.1  (3 seeds)",
                                    "LaMo - DT, walker2d-medium-0.1  (3 seeds)",
                                    "LaMo - DT, mean of 2 tasks  (3 of each)"]
    diamonds = [[line.get_ydata()[0] for line in axis.lines if line.get_marker() == "D"]
                for axis in figure.axes]
    assert diamonds == [[3], [3]]
    assert scores[3] == scores[1] and losses[3][0] == pytest.approx(losses[1][0])  # both tasks are the same
    figure, (scores, losses) = drawn(found, every=False)
    assert [row for row in rows_of(figure) if " - " in row] == [
        "LaMo - DT, mean of 2 tasks  (3 of each)", "LaMo - Wiki-RL, hopper-medium-0.1  (3 seeds)"]
    assert round(scores[1][0], 2) == 10 and losses[1][0] == pytest.approx(100 * 0.02 / 0.47)
