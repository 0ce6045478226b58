"""Minari's D4RL/kitchen sets: the demonstrations simulated anew in FrankaKitchen-v1, so other episodes,
lengths and observations than D4RL's. An HDF5 group an episode, and one observation more than actions.

Of Minari's layout only the kitchen's is read, because its other sets have D4RL's own files beside them.
"""

import h5py
import numpy as np

from kit import fail
from kit.envs import kitchen_observation
from kit.limits import plain_name
from sources import hdf5


def is_minari(file):
    """Whether an open HDF5 file is in Minari's layout, whatever it is called."""
    return "episode_0" in file


def set_name(path):
    """What rows call it: Minari keeps a set in NAME/data/main_data.hdf5."""
    folder = path.resolve().parent
    return f"minari-{plain_name((folder.parent if folder.name == 'data' else folder).name)}"


def read(path, file, config):
    """All episodes of an open file, as the arrays of a cell, with the recorded rewards."""
    first = hdf5.group(file, "episode_0")
    seen = hdf5.group(first, "observations") if "observations" in first else None
    if config["suite"] != "kitchen" or not (isinstance(seen, h5py.Group) and "observation" in seen):
        fail(f"{path} is in Minari's layout, of which only the kitchen's sets are read, for the kitchen; "
             f"take D4RL's file of {config['dataset']}, or convert this one to D4RL's layout")
    columns = {name: [] for name in ("observations", "actions", "rewards", "terminals", "last_observations")}
    numbers = sorted(int(name.removeprefix("episode_")) for name in file)
    parts = ("observations/observation", "actions", "rewards", "terminations")
    found = hdf5.columns(file, [f"episode_{number}/{part}" for number in numbers for part in parts])
    for number in numbers:
        seen, actions, rewards, terminals = (found[f"episode_{number}/{part}"][()] for part in parts)
        rewards, terminals = rewards.reshape(-1), terminals.reshape(-1)
        T = len(actions)
        if not T:
            fail(f"{path}: episode_{number} has no actions; get the file again")
        if (seen.shape, actions.shape, len(rewards), len(terminals)) != ((T + 1, 59), (T, 9), T, T):
            fail(f"{path}: episode_{number} has {T} actions of shape {actions.shape[1:]} beside observations "
                 f"of shape {seen.shape} and {len(rewards)} rewards; it is damaged or another environment's")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite there
            finite = [np.isfinite(array.astype(np.float32)).all() for array in (seen, actions, rewards)]
        if not all(finite):
            fail(f"{path}: episode_{number} holds numbers that are not finite; get the file again")
        seen = kitchen_observation(seen).astype(np.float32)  # (T + 1, 60)
        for name, column in zip(columns, (seen[:-1], actions, rewards, terminals, seen[-1:]), strict=True):
            columns[name].append(column)
    offsets = np.concatenate([[0], np.cumsum([len(column) for column in columns["rewards"]])])
    return {name: np.concatenate(column).astype(bool if name == "terminals" else np.float32)
            for name, column in columns.items()} | {"offsets": offsets.astype(np.int64)}
