"""Where a cell's episodes come from, a file for each source. prepare_data.py's table says which a task has.

played    our own players, rolled out: all of the mini profile, and Reacher2d
d4rl      D4RL's HDF5 files
minari    Minari's copies of the kitchen's; d4rl hands them over when it meets one
replay    DQN replay's files, Atari
text      text for the language loss: words instead of episodes
heldout   episodes beside a cell's own, which no run trains on
download  what all of them use to find what was given and to fetch what is not here

A source of episodes has three names, and a new one needs no more:

    SETTINGS                                   the settings its episodes depend on
    digest(config, where, options) -> str      SHA-256 of what it would read or play; downloads it if need be
    load(config, where, options) -> Episodes   the episodes of a cell

(d4rl also has `holds`, because a task of its own may be played where DATA= has no file for it.)

config     kit.settings.configuration of any run of the cell
where      the user's DATA=: a file, a folder or a URL; "" for the source's own
options    subset_seed, workers (processes that roll out), timeout (seconds to wait for a server), fresh
           (without what an earlier call has played)
"""

from typing import NamedTuple

import numpy as np

HELDOUT = 20  # episodes that imitation is measured on


class Episodes(NamedTuple):
    name: str                   # what rows call it, before the @ and the digest
    source: str                 # the name of the file
    sha256: str                 # of the file, or of played data that a script made
    total: int                  # episodes of the full dataset
    chosen: np.ndarray          # (E,) which of them these are, sorted
    arrays: dict                # as kit.artifacts.load_dataset gives them
    returns: np.ndarray | None  # (E,) float64, of the environment's own rewards, where they are known
    rest: tuple | None = None   # of a file: (which, arrays) of `others`; of a player, who can play more, None


def choose(total, ratio, seed):
    """Sorted indices of int(total * ratio) episodes, at least one: a prefix of one seeded permutation, so
    that 1 % is part of 10 %. The authors' subsets were drawn without a seed and exist only on their drive
    (ratio_dataset.py:22)."""
    count = max(1, int(total * ratio + 1e-9))
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def others(total, ratio, seed):
    """Sorted indices of up to HELDOUT episodes that `choose` leaves out: the last of the same permutation, so
    that all subsets of one seed that leave as many have the same ones."""
    left = np.random.default_rng(seed).permutation(total)[len(choose(total, ratio, seed)):]
    return np.sort(left[-HELDOUT:])


def take_episodes(data, chosen):
    """The arrays of the chosen episodes, in that order."""
    starts, ends = data["offsets"][:-1][chosen], data["offsets"][1:][chosen]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return {name: array[rows] for name, array in data.items() if len(array) == data["offsets"][-1]} | {
        "offsets": np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        "last_observations": data["last_observations"][chosen]}


def episode_returns(data):
    """(E,) float64"""
    return np.add.reduceat(data["rewards"].astype(np.float64), data["offsets"][:-1])
