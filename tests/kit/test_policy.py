"""kit/policy.py: one episode and many side by side are acted alike; a finished run as an agent."""

import csv

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import save_cell

import baselines
import evaluate
import train
from kit.envs import start_seed
from kit.language_models import dt_trunk
from kit.policy import Policy
from kit.settings import configuration
from model import DecisionTransformer

STATS = {"state_mean": np.linspace(-0.5, 1.5, 11).tolist(), "state_std": np.linspace(0.5, 2, 11).tolist()}
TARGETS = {"dt": np.array([3600.0, 900.0, -500.0]), "atari": np.array([3.0, 0.5, -3.0]), "bc": np.zeros(3)}


def make(what):
    """A policy with random weights, of each of the three kinds there are."""
    torch.manual_seed(0)
    if what == "bc":
        config = configuration("mini/hopper-medium-0.01/bc/seed0") | STATS
        return Policy(baselines.build_actor(config), config)
    if what == "dt":
        config = configuration("mini/hopper-medium-0.01/dt/seed0", context=4) | STATS
        return Policy(DecisionTransformer(dt_trunk(width=32), 11, 3, 1000, "linear"), config)
    config = configuration("mini/breakout-medium-0.1/dt/seed0", context=4) | dict.fromkeys(STATS, [])
    model = DecisionTransformer(dt_trunk(width=32, positions=12), (4, 84, 84), 4, 4096, "mlp", pixels=True)
    model.embed_timestep.weight.data.mul_(0.1)  # so that what it sees matters beside the time
    for layer in (0, 2, 4, 7):
        model.embed_state[0].layers[layer].weight.data.mul_(2.5)
    return Policy(model, config)


def watched(policy, steps=9, n=3):
    """Random (steps, n, ...) observations and (steps, n) rewards, of the environment's kind."""
    rng = np.random.default_rng(0)
    rewards = rng.integers(-3, 3, (steps, n)).astype(float)
    if policy.config["pixels"]:
        bright = rng.integers(0, 2, (steps, n, 4, 12, 12), dtype=np.uint8) * 255   # large squares
        return bright.repeat(7, -1).repeat(7, -2), rewards
    return rng.normal(0, 2, (steps, n, 11)), 100 * rewards


@pytest.mark.parametrize("what", ["dt", "atari", "bc"])
def test_one_episode_is_acted_as_it_is_beside_others(what):
    policy = make(what)
    seen, rewards = watched(policy)
    policy.reset(TARGETS[what])
    together = [policy.act(seen[t], rewards[t - 1] if t else None) for t in range(len(seen))]
    together = np.stack(together)                                              # (steps, n, A)
    assert together.shape == ((9, 3) if what == "atari" else (9, 3, 3))
    for i, target in enumerate(TARGETS[what]):
        policy.reset(target)  # and what came before is forgotten
        for t in range(len(seen)):
            alone = policy.act(seen[t, i], rewards[t - 1, i] if t else None)
            assert alone.shape == together[t, i].shape
            np.testing.assert_allclose(alone, together[t, i], rtol=1e-4, atol=1e-5)
    if what == "atari":
        assert together.dtype == np.int64 and len(np.unique(together)) > 1
    else:
        assert np.abs(together).max() <= 1
    assert (together[:, 0] != together[:, 1]).any()


def test_the_target_and_what_was_earned_matter():
    policy = make("dt")
    seen, _ = watched(policy, steps=2)
    seen[:] = seen[:, :1]                                                      # the same for all three
    policy.reset(TARGETS["dt"])
    assert len(np.unique(policy.act(seen[0])[:, 0])) == 3
    policy.reset([3600.0, 3600.0, 3600.0])
    policy.act(seen[0])
    second = policy.act(seen[1], np.array([0.0, 0.0, 3000.0]))
    np.testing.assert_allclose(second[0], second[1], rtol=1e-5)
    assert np.abs(second[2] - second[1]).max() > 1e-4
    assert policy.remaining.tolist() == [3600.0, 3600.0, 600.0]


@pytest.mark.parametrize("what", ["dt", "bc"])
def test_what_is_executed_is_clipped_and_what_was_said_is_remembered(what):
    policy = make(what)
    monster = torch.tensor([5.0, -7.0, 0.25])
    if what == "dt":
        policy.predict = lambda *seen: 0 * Policy.predict(policy, *seen) + monster
    else:
        policy.model = lambda states: monster.expand(len(states), 3)
    policy.reset(3600.0)
    assert policy.act(np.zeros(11)).tolist() == [1.0, -1.0, 0.25]
    if what == "dt":
        assert policy.steps["actions"][0, -1].tolist() == monster.tolist()


def test_atari_counts_rewards_by_their_sign():
    policy = make("atari")
    seen, _ = watched(policy, steps=2)
    policy.reset([10.0, 10.0, 10.0])
    policy.act(seen[0])
    policy.act(seen[1], np.array([4.0, 0.0, -7.0]))
    assert policy.remaining.tolist() == [9.0, 10.0, 11.0]
    policy.config = policy.config | {"released": True}  # the released code counts them whole
    policy.reset([10.0, 10.0, 10.0])
    policy.act(seen[0])
    policy.act(seen[1], np.array([4.0, 0.0, -7.0]))
    assert policy.remaining.tolist() == [6.0, 10.0, 17.0]


@pytest.mark.parametrize("what", ["dt", "bc"])
def test_those_that_go_on_are_acted_as_before(what):
    policy = make(what)
    seen, rewards = watched(policy)
    policy.reset(TARGETS[what])
    whole = [policy.act(seen[t], rewards[t - 1] if t else None) for t in range(9)]
    policy.reset(TARGETS[what])
    going = np.array([True, False, True])
    for t in range(9):
        rows = going if t > 4 else np.ones(3, bool)
        action = policy.act(seen[t][rows], rewards[t - 1][rows] if t else None)
        np.testing.assert_allclose(action, whole[t][rows], rtol=1e-4, atol=1e-5)
        if t == 4:
            policy.keep(going)


def test_without_a_target_it_is_the_tasks_largest():
    policy = make("dt")
    policy.reset()
    assert policy.remaining.tolist() == [3600.0]
    policy.config["target_returns"] = [1800.0, 3600.0]
    policy.reset()
    assert policy.remaining.tolist() == [3600.0]
    make("bc").reset()  # knows none
    new = make("dt")  # and a policy is born ready
    assert new.remaining.tolist() == [3600.0] and new.act(np.zeros(11)).shape == (3,)


# --- a finished run ----------------------------------------------------------------------------

SHORT = {"device": "cpu", "steps": 4, "eval_every": 2, "log_every": 2, "batch_size": 8}


@pytest.mark.parametrize("method", ["lamo", "dt", "bc"])
def test_a_finished_run_acts_as_its_evaluation_did(tmp_path, monkeypatch, tiny_gpt2, method):
    """With nothing but Gymnasium: reset, act, and the return is that of eval.csv."""
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)
    run = f"paper/hopper-medium-0.1/{method}/seed0"
    stage = baselines if method == "bc" else train
    stage.train(run, **SHORT | ({"lm": str(tiny_gpt2), "context": 5} if method == "lamo" else {}))
    evaluate.evaluate(run, "cpu", episodes=2, target_returns=[3600.0, 500.0])
    with open(f"runs/{run}/eval.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "4"]
    assert len(rows) == (2 if method == "bc" else 4)

    policy, env = evaluate.load_policy(f"runs/{run}/", "cpu"), gym.make("Hopper-v4")
    for row in rows:
        observation, _ = env.reset(seed=start_seed(policy.config, 4, int(row["episode"])))
        policy.reset(float(row["target_return"]) if row["target_return"] else None)
        total, length, reward, over = 0.0, 0, None, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation, reward))
            total, length, over = total + reward, length + 1, terminated or truncated
        assert length == int(row["length"])
        assert total == pytest.approx(float(row["return"]), rel=1e-3)


def test_a_run_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="hopper-medium-1/dt/seed0 holds no finished run; make it: "
                       "make PROFILE=mini hopper-medium-1 METHODS=dt SEEDS=0"):
        evaluate.load_policy("mini/hopper-medium-1/dt/seed0")
