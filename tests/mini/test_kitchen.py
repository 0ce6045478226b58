"""mini/kitchen.py: the script does what it is told, records what it meant, and follows D4RL's plans."""

from types import SimpleNamespace

import numpy as np

from kit.envs import KITCHEN_GOALS, kitchen_done, make_env
from kit.settings import configuration
from mini import kitchen
from mini.players import play

CONFIG = configuration("mini/kitchen-partial-1/dt/seed0")


def test_the_script_does_what_it_is_told_and_stops():
    env = make_env(CONFIG)
    observation, _ = env.reset(seed=1)
    order = ("slide cabinet", "kettle")
    player = kitchen.kitchen_player(env, np.random.default_rng(1), order)
    observations, actions, rewards, terminals, last = play(env, player, observation)
    assert sum(rewards) == 2 and not any(terminals) and len(rewards) < 280
    done = kitchen_done(np.array(observations))
    assert dict(zip(KITCHEN_GOALS, done.any(0).tolist(), strict=True)) == {
        "microwave": False, "kettle": True, "light switch": False, "slide cabinet": True}
    for task in order:  # beyond doubt, and not only just; what is observed is noisy
        index, value = kitchen.ENOUGH[task]
        assert last[index] / value > 0.95
    # what is recorded is the script's own action, not the noisy one that was executed
    again, _ = env.reset(seed=1)
    executed, label = kitchen.kitchen_player(env, np.random.default_rng(1), order)(again)
    assert np.array_equal(label, actions[0]) and not np.array_equal(executed, label)
    assert np.array_equal(executed[7:], label[7:])


def test_a_hand_that_comes_no_nearer_goes_on():
    for speed, steps in ((0.0, kitchen.STUCK), (0.002, kitchen.STUCK), (0.01, 20), (0.1, 10)):
        arm, actions = SimpleNamespace(hand=np.zeros(3), toward=lambda *_: "an action"), []
        for action in kitchen.Arm.reach(arm, np.array([1.0, 0, 0]), None, -1, 20, 0.05, 0.5):
            actions.append(action)
            arm.hand = arm.hand + (speed, 0, 0)
        assert len(actions) == steps


def test_complete_demonstrations_do_all_four(monkeypatch):
    monkeypatch.setattr(kitchen, "kitchen_player", lambda env, rng, order: order)
    assert kitchen.complete_player(None, None) == tuple(KITCHEN_GOALS)


def test_partial_demonstrations_follow_d4rls_plans(monkeypatch):
    """24 plans: always in one order, one of them does all four, and 58 / 24 sub-tasks each."""
    monkeypatch.setattr(kitchen, "kitchen_player", lambda env, rng, order: order)
    orders = [kitchen.partial_player(None, np.random.default_rng([index, 1])) for index in range(601)]
    assert len(kitchen.KITCHEN_PLANS) == 24 and sum(map(len, kitchen.KITCHEN_PLANS)) == 58
    assert all(order == tuple(task for task in KITCHEN_GOALS if task in order) for order in orders)
    assert len(set(orders)) == 13 and 12 <= orders.count(tuple(KITCHEN_GOALS)) <= 38
    assert abs(np.mean([len(order) for order in orders]) - 58 / 24) < 0.15
