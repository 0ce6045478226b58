"""kit/envs.py: every row of tasks.py against its environment; Reacher2d, the kitchen's adapter, Atari's
frames; and the MuJoCo environments against recorded transitions."""

import os
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

import train
from kit import envs
from kit.settings import configuration
from sources.d4rl import kitchen_rewards, reference
from tasks import TASKS

CONFIGS = {task: configuration(f"mini/{task}-1/lamo/seed0") for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_a_row_of_the_table_is_its_environment(task):
    config = CONFIGS[task]
    env = envs.make_env(config)
    observation, _ = env.reset(seed=0)
    wanted = config["state_dim"] if config["pixels"] else (config["state_dim"],)
    assert observation.shape == env.observation_space.shape == wanted
    if config["pixels"]:
        assert env.action_space == gym.spaces.Discrete(config["action_dim"])
    else:
        assert env.action_space.shape == (config["action_dim"],)
        assert (env.action_space.low == -1).all() and (env.action_space.high == 1).all()
    # the horizon is the environment's own limit, in the agent's steps
    low, high = reference(config)
    assert low < high
    limits = [layer._max_episode_steps for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
    assert limits == [config["horizon"]]
    assert config["max_timestep"] >= config["horizon"]
    again = envs.make_env(config).reset(seed=0)[0]
    assert np.array_equal(observation, again)
    assert not np.array_equal(observation, env.reset(seed=1)[0]) or config["pixels"]


def layers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


@pytest.mark.parametrize("name, horizon", [("Reacher2d", 100), ("BreakoutNoFrameskip-v4", 50)])
def test_an_episode_is_cut_at_the_horizon(name, horizon):
    env = envs.make_env({"env": name, "horizon": horizon})
    env.reset(seed=0)
    for t in range(horizon):
        # nothing ends Reacher2d, and Breakout does not start before the ball is fired
        *_, terminated, truncated, _ = env.step(np.zeros(2) if name == "Reacher2d" else 0)
        assert not terminated and truncated == (t + 1 == horizon)


def test_reference_scores_are_the_published_ones():
    """Mnih et al. 2015 for Atari (SPEC of the paper: table 5), d4rl's infos.py elsewhere."""
    assert [reference(CONFIGS[f"{game}-medium"]) for game in ("breakout", "qbert", "pong")] == [
        (1.70, 31.80), (163.90, 13455.00), (-20.70, 9.30)]
    assert reference(CONFIGS["halfcheetah-medium"]) == (-280.178953, 12135.0)
    assert reference(CONFIGS["walker2d-medium"]) == (1.629008, 4592.3)
    assert reference(CONFIGS["kitchen-partial"]) == (0.0, 4.0)
    assert reference(CONFIGS["reacher2d-medium"]) == (0.0, 100.0)


# --- Reacher2d ---------------------------------------------------------------------------------

def test_reacher2d_observes_and_pays_what_it_says():
    env = envs.make_env(CONFIGS["reacher2d-medium"])
    arm = env.unwrapped
    assert arm.dt == pytest.approx(0.15)
    targets, reach = [], []
    for seed in range(30):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        targets.append(np.linalg.norm(arm.observation()[8:10]))
        for _ in range(10):
            observation, reward, *_ = env.step(rng.uniform(-3, 3, 2))  # beyond the limits: clipped
            angles, tip = arm.data.qpos[:2], arm.data.site("fingertip").xpos[:2]
            assert np.allclose(observation[:4], [*np.sin(angles), *np.cos(angles)])
            assert np.allclose(observation[4:6], 0.15 * arm.data.qvel[:2])
            assert np.array_equal(observation[6:8], tip)
            assert np.array_equal(observation[10:], observation[6:8] - observation[8:10])
            assert reward == (np.abs(observation[10:]).sum() < 0.1)
            reach.append(np.linalg.norm(tip))
    assert 0.5 <= min(targets) and max(targets) <= 1.0 and np.ptp(targets) > 0.3
    assert max(reach) <= 1.05 + 1e-9  # 0.6 + 0.45
    # the straight arm: 0.6 + 0.45 along the angle of the shoulder, less the frame's own turn of 0.785
    arm.set_state(np.array([0.3, 0.785]), np.zeros(2))
    tip = arm.observation()[6:8]
    assert np.allclose(tip, 1.05 * np.array([np.cos(1.085), np.sin(1.085)]), atol=1e-6)
    # at the target: paid, whatever the other coordinates
    arm.model.body_pos[arm.target, :2] = tip + 0.03
    assert env.step(np.zeros(2))[1] == 1.0
    arm.set_state(np.array([0.3, 0.785]), np.zeros(2))
    arm.model.body_pos[arm.target, :2] = tip + 0.06  # 0.12 in L1 distance, 0.085 in L2
    assert env.step(np.zeros(2))[1] == 0.0


def test_clipped_torques_are_the_limits():
    results = []
    for action in (np.array([1.0, -1.0]), np.array([5.0, -9.0])):
        env = envs.make_env(CONFIGS["reacher2d-medium"])
        env.reset(seed=3)
        results.append(np.array([env.step(action)[0] for _ in range(5)]))
    assert np.array_equal(*results)


# --- the kitchen -------------------------------------------------------------------------------

def test_the_kitchens_goals_are_the_packages_own():
    from gymnasium_robotics.envs.franka_kitchen import kitchen_env

    for task, (where, goal) in envs.KITCHEN_GOALS.items():
        # the package's indices are those of MuJoCo's positions, 9 of the robot and 21 of the objects
        assert list(kitchen_env.OBS_ELEMENT_INDICES[task]) == list(where)
        assert np.allclose(kitchen_env.OBS_ELEMENT_GOALS[task], goal)


def test_the_kitchens_observation_is_d4rls():
    env = envs.make_env(CONFIGS["kitchen-complete"])
    observation, _ = env.reset(seed=0)
    true = env.unwrapped.data.qpos
    assert np.abs(observation[:30] - true).max() < 0.02          # positions, with noise
    assert np.abs(observation[:30] - true).max() > 0
    assert np.array_equal(observation[30:], envs.KITCHEN_GOAL)
    assert np.count_nonzero(observation[30:]) == 9               # of the kettle's seven two are zero
    assert not envs.kitchen_done(observation).any()
    for number, (where, goal) in enumerate(envs.KITCHEN_GOALS.values()):
        done = observation.copy()
        done[list(where)] = goal
        assert envs.kitchen_done(done).tolist() == [i == number for i in range(4)]
        done[where[0]] += 0.31
        assert not envs.kitchen_done(done).any()


V0 = [0.1] * 9 + [0.005] * 2 + [0.0005] * 6 + [0.005] * 3 + [0.1] * 3 + [0.005] * 3 + [0.1] * 3 + [0.005]
SHIFTED = V0[:9] + V0[8:29]


@pytest.mark.parametrize("profile, data, amplitudes", [
    ("paper", "kitchen-complete-v0@1", 0.1 * np.array(V0)),
    ("paper", "minari-complete-v2@1", [0.001] * 9 + [0.0005 * x for x in SHIFTED[9:]]),
    ("mini", "mini-kitchen@1", 0.1 * np.array(SHIFTED))])
def test_the_kitchens_noise_is_that_of_the_data(profile, data, amplitudes):
    env = envs.make_env(configuration(f"{profile}/kitchen-complete-1/lamo/seed0") | {"data": data})
    apart = [np.abs(env.reset(seed=seed)[0][:30] - env.unwrapped.data.qpos) for seed in range(60)]
    # the largest of 60 uniform numbers lies below 0.8 of their bound once in 600,000 times
    assert np.all(np.max(apart, 0) <= np.array(amplitudes))
    assert np.all(np.max(apart, 0) > 0.8 * np.array(amplitudes))


def test_the_kitchens_rewards_of_a_recording():
    """A sub-task pays once, at the step whose next observation shows it; the count stays."""
    rows = np.zeros((7, 60), np.float32)
    rows[:, 23:30] = (-0.27, 0.35, 1.62, 1, 0, 0, 0)
    rows[2:4, 22] = -0.75       # the microwave opens at row 2 and falls shut at row 4 ...
    rows[5:, 22] = -0.75        # ... and in the second episode, from row 5
    last = rows[[4, 6]].copy()
    last[0, 19] = 0.37          # the slide cabinet shows only in what followed the first episode
    data = {"observations": rows, "offsets": np.array([0, 5, 7]), "last_observations": last}
    assert kitchen_rewards(data).tolist() == [0, 1, 0, 0, 1, 1, 0]


# --- Atari -------------------------------------------------------------------------------------

def test_stacks_built_from_single_frames_are_the_environments():
    env = envs.make_env(CONFIGS["pong-medium"])
    rng = np.random.default_rng(0)
    stacks, offsets = [], [0]
    for seed, length in ((0, 9), (1, 30)):
        stacks.append(env.reset(seed=seed)[0])
        for _ in range(length - 1):
            stacks.append(env.step(rng.integers(6))[0])
        offsets.append(offsets[-1] + length)
    stacks = np.array(stacks)
    assert (stacks[0] == stacks[0, :1]).all()                    # the first frame is repeated
    data = {"observations": stacks[:, -1], "actions": np.zeros(39, int), "offsets": np.array(offsets),
            "rewards": np.zeros(39, np.float32)}
    arrays, ends, mean, _ = train.training_arrays(data, CONFIGS["pong-medium"])
    assert arrays["states"].dtype == torch.uint8 and len(mean) == 0
    arrays["row"] = torch.arange(39)
    batch, mask = train.sample_batch(arrays, ends, np.random.default_rng(0), 300, 6)
    assert batch["states"].shape == (300, 6, 4, 84, 84) and mask.shape == (300, 6)
    assert (batch["states"].numpy() == stacks[batch["row"].numpy()]).all()
    assert len(np.unique(batch["row"][:, 0])) == 39


# --- fidelity: recorded transitions are reproduced ---------------------------------------------
# Ours are recordings of the shipped players; with D4RL_DIR=/folder D4RL's own files are checked, too. Those
# were made by an older MuJoCo, whose contacts differ: the bound is for the typical row, not for every row.

RECORDINGS = [(task, name, folder) for task, name in (
    ("hopper-medium", "hopper_medium-v2.hdf5"), ("halfcheetah-medium", "halfcheetah_medium-v2.hdf5"),
    ("walker2d-medium", "walker2d_medium-v2.hdf5"))
    for folder in (Path(__file__).parent.parent / "fidelity", Path(os.environ.get("D4RL_DIR", "/nowhere")))]


@pytest.mark.parametrize("task, name, folder", RECORDINGS, ids=lambda value: getattr(value, "name", value))
def test_recorded_transitions_are_reproduced(task, name, folder):
    own = folder.name == "fidelity"
    if not own and not (folder / name).exists():
        pytest.skip("D4RL_DIR names no folder with D4RL's files")
    with h5py.File(folder / name, "r") as file:
        ends = file["terminals"][()].astype(bool) | file["timeouts"][()].astype(bool)
        rows = np.flatnonzero(~ends[:-1])
        rows = np.sort(np.random.default_rng(0).permutation(rows)[:500])
        qpos, qvel = file["infos/qpos"][rows], file["infos/qvel"][rows]
        observations, actions = file["observations"][rows], file["actions"][rows]
        rewards, following = file["rewards"][rows], file["observations"][rows + 1]
    env = envs.make_env(CONFIGS[task]).unwrapped
    env.reset(seed=0)
    errors = []
    for i in range(len(rows)):
        env.set_state(qpos[i], qvel[i])
        seen = env._get_obs()
        after, reward, *_ = env.step(actions[i])
        errors.append((np.abs(seen - observations[i]).max(), abs(reward - rewards[i]),
                       np.abs(after - following[i]).max()))
    errors = np.array(errors)
    middle, worst = np.median(errors, axis=0), errors.max(axis=0)
    said = f"{name}: median errors {middle}, largest {worst} of (observation, reward, next observation)"
    print(said)
    assert len(rows) >= 100
    assert worst[0] < 1e-5, said                              # the same observation of a state
    if own:
        assert worst[1] < 1e-3 and worst[2] < 1e-2 and (middle[1:] < 1e-5).all(), said
    else:
        assert middle[1] < 1e-3 and middle[2] < 1e-2, said
