"""The environments the paper evaluates in, as Gymnasium makes them.

`make_env(config)` returns an environment with Gymnasium's API and D4RL's observations and rewards.
MuJoCo tasks use the `-v4` classes: their rewards and models equal the `-v2` ones that D4RL recorded,
while `-v5` withholds the bonus of the last step and changes Walker2d's friction.
"""

import logging

import gymnasium as gym

# v4 is meant; gymnasium recommends v5 at every call.
logging.getLogger("gymnasium").setLevel(logging.ERROR)
gym.logger.min_level = gym.logger.ERROR


def make_env(config):
    """The environment of a configuration; it truncates an episode at the horizon."""
    return gym.make(config["env"], max_episode_steps=config["horizon"])
