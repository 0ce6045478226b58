"""The environments the paper evaluates in, each with Gymnasium's API and the dataset's observations.

    env = make_env(configuration("mini/kitchen-complete-0.3/lamo/seed0"))
    env.reset(seed=start_seed(config, step, episode))

MuJoCo       Gymnasium's `-v4` classes: rewards and models equal the `-v2` ones that D4RL recorded, while
             `-v5` withholds the bonus of the last step and changes Walker2d's friction.
Reacher2d    the authors' two-link arm with a sparse reward, written anew (class below).
Kitchen      gymnasium-robotics' FrankaKitchen-v1 seen through D4RL's 60-dimensional observation.
Atari        ale-py behind Gymnasium's preprocessing; an observation is the last four frames.
"""

import contextlib
import io
import logging
from pathlib import Path

import ale_py
import cv2
import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TimeLimit

with contextlib.redirect_stderr(io.StringIO()):  # a notice about other environments at every import
    import gymnasium_robotics

# v4 is meant; gymnasium recommends v5 at every call.
logging.getLogger("gymnasium").setLevel(logging.ERROR)
gym.logger.min_level = gym.logger.ERROR
gym.register_envs(gymnasium_robotics)
gym.register_envs(ale_py)
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
cv2.setNumThreads(1)


def make_env(config):
    """The environment of a configuration; it truncates an episode after `horizon` steps."""
    name = config["env"]
    if name == "Reacher2d":
        return TimeLimit(Reacher2d(), config["horizon"])
    if name.startswith("FrankaKitchen"):
        return make_kitchen(config)
    if "NoFrameskip" in name:
        return make_atari(name, config["horizon"])
    return gym.make(name, max_episode_steps=config["horizon"])


EPISODE_SEED = 1_000_000  # far from the seeds of the mini data


def start_seed(config, step, episode):
    """The seed that an evaluated episode starts from: one for all methods and target returns. In the paper
    profile each training seed and checkpoint has its own, as the authors' unseeded environments do; in the
    mini profile all have the same ones, so that few episodes tell checkpoints apart."""
    if config["profile"] == "mini":
        return EPISODE_SEED + episode
    own = np.random.SeedSequence((EPISODE_SEED, config["seed"], step, episode))
    return int(own.generate_state(1)[0])


# --- Reacher2d ---------------------------------------------------------------------------------

class Reacher2d(MujocoEnv):
    """A two-link arm earns 1 for every step that its tip is within 0.1 of the target, in L1 distance.

    Observation (12,): sine and cosine of both joint angles (4), dt times their velocities (2), the
    tip's x, y (2), the target's (2), and tip minus target (2). Action (2,): torques in [-1, 1]. No
    control cost, no termination. Follows experiment-d4rl/decision_transformer/envs/reacher_2d.py.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 7}

    def __init__(self, **kwargs):
        space = gym.spaces.Box(-np.inf, np.inf, (12,), np.float64)
        model = Path(__file__).resolve().parent / "reacher2d.xml"
        super().__init__(str(model), frame_skip=15, observation_space=space, **kwargs)
        self.target = self.model.body("target").id

    def observation(self):
        angles, tip = self.data.qpos[:2], self.data.site("fingertip").xpos[:2]
        target = self.model.body_pos[self.target, :2]
        return np.concatenate([np.sin(angles), np.cos(angles), self.dt * self.data.qvel[:2],
                               tip, target, tip - target])

    def step(self, action):
        self.do_simulation(np.clip(action, -1, 1), self.frame_skip)
        observation = self.observation()
        reward = float(np.abs(observation[-2:]).sum() < 0.1)
        return observation, reward, False, False, {}

    def reset_model(self):
        target = np.zeros(2)
        while not 0.5 <= np.linalg.norm(target) <= 1.0:
            target = self.np_random.uniform(-1.5, 1.5, 2)
        self.model.body_pos[self.target, :2] = target
        self.set_state(self.np_random.uniform(-2, 2, 2), np.zeros(2))
        return self.observation()


# --- Kitchen -----------------------------------------------------------------------------------

# sub-task -> where its object stands in D4RL's observation, and where it should: d4rl/kitchen/kitchen_envs.py
KITCHEN_GOALS = {
    "microwave": ((22,), (-0.75,)),
    "kettle": ((23, 24, 25, 26, 27, 28, 29), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
    "light switch": ((17, 18), (-0.69, -0.05)),
    "slide cabinet": ((19,), (0.37,)),
}
KITCHEN_GOAL = np.zeros(30, np.float32)
for _where, _goal in KITCHEN_GOALS.values():
    KITCHEN_GOAL[list(_where)] = _goal


def kitchen_done(observations):
    """Which sub-tasks an observation (..., 60) shows as done, within 0.3 of the goal: (..., 4) bool."""
    return np.stack([np.linalg.norm(observations[..., list(where)] - np.array(goal), axis=-1) < 0.3
                     for where, goal in KITCHEN_GOALS.values()], axis=-1)


class KitchenObservation(gym.ObservationWrapper):
    """FrankaKitchen-v1's dictionary -> D4RL's vector (60,): 9 robot and 21 object positions, 30 goals.

    v1 gives velocities too, which v0 and its datasets do not have. Its reward is 1 for each sub-task
    the first time it is done, as in v0; v1 judges true positions, v0 noisy ones.

    noise   (21,) amplitudes of what is added to the objects' positions, beside the environment's own
    """

    def __init__(self, env, noise=None):
        super().__init__(env)
        self.noise, self.observation_space = noise, gym.spaces.Box(-np.inf, np.inf, (60,), np.float64)

    def observation(self, observation):
        seen = kitchen_observation(observation["observation"])
        if self.noise is not None:
            seen[9:30] += self.noise * self.unwrapped.robot_env.np_random.uniform(-1, 1, 21)
        return seen


def kitchen_observation(v1):
    """(..., 59) of FrankaKitchen-v1 -> (..., 60) of D4RL's kitchen."""
    goal = np.broadcast_to(KITCHEN_GOAL, (*v1.shape[:-1], 30))
    return np.concatenate([v1[..., 0:9], v1[..., 18:39], goal], axis=-1)


# Of the objects' positions in v0, a tenth of pos_noise_amp of qpos9 to qpos29 in D4RL's franka_config.xml. v1
# reads the same file, and takes each object's amplitude from the joint before it.
OBJECT_NOISE = np.repeat([5e-4, 5e-5, 5e-4, 1e-2, 5e-4, 1e-2, 5e-4], [2, 6, 3, 3, 3, 3, 1])


def make_kitchen(config):
    """In the noise of what is trained on: D4RL's demonstrations have v0's; Minari's have v1's own, a tenth of
    it or less; ours were played with v0's for the robot and v1's amplitudes for objects. Resets have no
    other randomness."""
    minari, mini = config.get("data", "").startswith("minari-"), config["profile"] == "mini"
    ratios = {} if minari else {"robot_noise_ratio": 0.1, "object_noise_ratio": 0.1 if mini else 0.0}
    env = gym.make(config["env"], max_episode_steps=config["horizon"], tasks_to_complete=list(KITCHEN_GOALS),
                   **ratios)
    return KitchenObservation(env, None if minari or mini else OBJECT_NOISE)


# --- Atari -------------------------------------------------------------------------------------

def make_atari(name, horizon):
    """Observations (4, 84, 84) uint8. `-v4` has no sticky actions and is what the authors evaluate in;
    `-v0` repeats an action with probability 0.25 and is what DQN replay was recorded in."""
    env = AtariPreprocessing(gym.make(name, obs_type="grayscale"))
    # outside of the preprocessing, so that the limit counts its steps and not the emulator's frames
    return FrameStackObservation(TimeLimit(env, horizon), 4, padding_type="reset")
