"""players.py: the same episode every time, of medium strength, and what the scripts promise."""

import numpy as np
import pytest
from conftest import one_line

import envs
import players
import tasks

CONFIGS = {task: tasks.configuration(f"mini/{task}-1/dt/seed0") for task in tasks.TASKS}

# A range that the mean return of four episodes falls into; a broken player falls far outside of it.
STRENGTH = {"hopper-medium": (700, 1800), "halfcheetah-medium": (3700, 4700), "walker2d-medium": (700, 3300),
            "reacher2d-medium": (5, 80), "kitchen-complete": (4, 4), "kitchen-partial": (1, 4),
            "breakout-medium": (10, 90), "qbert-medium": (100, 8000), "pong-medium": (-16, 14)}


@pytest.mark.parametrize("task", tasks.TASKS)
def test_a_player_is_of_medium_strength(task):
    config = CONFIGS[task]
    count = {"pong-medium": 1, "qbert-medium": 3}.get(task, 4)
    episodes = [players.play_episode(config, index) for index in range(count)]
    low, high = STRENGTH[task]
    assert low <= np.mean([rewards.sum() for _, _, rewards, _, _ in episodes]) <= high
    for observations, actions, rewards, terminals, last in episodes:
        T = len(rewards)
        assert len(observations) == len(actions) == len(terminals) == T
        assert not terminals[:-1].any() and last.shape == observations[0].shape
        if config["suite"] == "atari":
            assert observations.shape == (T, 84, 84) and observations.dtype == np.uint8
            assert set(actions.tolist()) == set(range(config["action_dim"]))
        else:
            assert observations.shape == (T, config["state_dim"]) and np.abs(actions).max() <= 1
    assert not np.array_equal(episodes[0][1], episodes[-1][1]) or len(episodes) == 1


@pytest.mark.parametrize("task", ["kitchen-partial", "qbert-medium", "reacher2d-medium"])
def test_an_episode_is_determined_by_its_number(task):
    first, again = (players.play_episode(CONFIGS[task], 7) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one, two)


def test_the_kitchens_script_does_what_it_is_told_and_stops():
    env = envs.make_env(CONFIGS["kitchen-partial"])
    observation, _ = env.reset(seed=1)  # not every episode succeeds: seed 0's kettle spins away
    order = ("slide cabinet", "kettle")
    player = players.kitchen_player(env, np.random.default_rng(1), order)
    observations, actions, rewards, terminals, _ = players.play(env, player, observation)
    assert sum(rewards) == 2 and not any(terminals) and len(rewards) < 280
    done = envs.kitchen_done(np.array(observations))
    assert dict(zip(envs.KITCHEN_GOALS, done.any(0).tolist(), strict=True)) == {
        "microwave": False, "kettle": True, "light switch": False, "slide cabinet": True}
    # what is recorded is the script's own action, not the noisy one that was executed
    again, _ = env.reset(seed=1)
    executed, label = players.kitchen_player(env, np.random.default_rng(1), order)(again)
    assert np.array_equal(label, actions[0]) and not np.array_equal(executed, label)
    assert np.array_equal(executed[7:], label[7:])


def test_partial_demonstrations_follow_d4rls_plans(monkeypatch):
    """24 plans: always in one order, one of them does all four, and 58 / 24 sub-tasks each."""
    monkeypatch.setattr(players, "kitchen_player", lambda env, rng, order: order)
    orders = [players.make_player(CONFIGS["kitchen-partial"], None, np.random.default_rng([index, 1]))
              for index in range(601)]
    assert len(players.KITCHEN_PLANS) == 24 and sum(map(len, players.KITCHEN_PLANS)) == 58
    assert all(order == tuple(task for task in envs.KITCHEN_GOALS if task in order) for order in orders)
    assert len(set(orders)) == 13 and 12 <= orders.count(tuple(envs.KITCHEN_GOALS)) <= 38
    assert abs(np.mean([len(order) for order in orders]) - 58 / 24) < 0.15


def test_a_scripted_player_is_not_trained(kit):
    assert "script" in one_line(kit("players.py", "pong-medium", check=False))
