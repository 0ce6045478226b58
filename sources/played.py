"""Roll-outs of our own players: all of the mini profile, and Reacher2d.

reads   mini/weights/players/PLAYER.npz, or, of a scripted player, mini/players.py and mini/SUITE.py

An episode is determined by its number, so that a cell plays its own alone, in any number of processes.
"""

import hashlib
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from tqdm import tqdm

from kit import fail
from kit.envs import kitchen_done
from kit.seals import sha256
from mini import players
from sources import Episodes, choose, episode_returns
from tasks import TRAINED

SETTINGS = ("player", "player_env", "player_horizon", "trajectories", "minimum_return", "env", "horizon",
            "clip_rewards")


def digest(config, where, options):
    """SHA-256 of the player: of its weights, or of its scripts."""
    if config["player"] in TRAINED:
        path = players.WEIGHTS / f"{config['player']}.npz"
        players.load(path)  # one line and exit if it is damaged, before any process starts
        return sha256(path)
    scripts = [players.WEIGHTS.parent.parent / name for name in ("players.py", f"{config['suite']}.py")]
    return hashlib.sha256("".join(map(sha256, scripts)).encode()).hexdigest()


def load(config, where, options):
    return numbered(config, options, choose(config["trajectories"], config["ratio"], options.subset_seed))


def numbered(config, options, chosen):
    """The episodes of these numbers."""
    known, total = digest(config, "", options), config["trajectories"]
    data, chunks = play(config, chosen, options.workers)
    name, source = f"{config['player']}-sac", f"{config['player']}.npz"
    if config["player"] not in TRAINED:
        name, source, known = f"{config['player']}-script", f"{config['suite']}.py", data_digest(data, chunks)
    owner = "mini" if config["profile"] == "mini" else "kit"
    returns = episode_returns(data)  # before the rewards are clipped
    if config["clip_rewards"]:
        data["rewards"] = np.sign(data["rewards"])
    return Episodes(f"{owner}-{name}", source, known, total, chosen, data, returns)


def play(config, chosen, workers):
    """The chosen episodes' arrays, played in `workers` processes, and the observations as they came."""
    jobs = [(config, int(index)) for index in chosen]
    pool = ProcessPoolExecutor(max(1, min(workers, len(jobs))))
    try:
        episodes = list(tqdm(pool.map(roll_out, jobs), total=len(jobs), unit="episode", disable=None,
                             desc=f"playing {config['player']}"))
    except BrokenProcessPool:  # a process that ends without a word, as one that the system kills
        fail(f"a process that played {config['player']} was killed, perhaps for want of memory; try again, "
             "with fewer --workers if it happens again")
    finally:
        pool.shutdown(cancel_futures=True)  # what one process could not do the others need not go on with
    chunks, actions, rewards, terminals, last = zip(*episodes, strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(column) for column in rewards])]).astype(np.int64)
    data = {"observations": unpack(chunks, offsets) if config["pixels"] else
            np.concatenate(chunks).astype(np.float32),
            "actions": np.concatenate(actions).astype(np.int64 if config["discrete"] else np.float32),
            "rewards": np.concatenate(rewards).astype(np.float32),
            "terminals": np.concatenate(terminals).astype(bool), "offsets": offsets,
            "last_observations": np.array(last, np.uint8 if config["pixels"] else np.float32)}
    if config["suite"] == "kitchen":
        data["dataset_rewards"] = kitchen_done(data["observations"]).sum(1).astype(np.float32)
    return data, chunks if config["pixels"] else [data["observations"]]


def roll_out(job):
    """An episode, in a worker process. Frames travel compressed, 20 to 60 times smaller."""
    observations, *columns, last = players.play_episode(*job)
    if job[0]["pixels"]:
        observations = zlib.compress(observations, 1)
    return observations, *columns, last


def unpack(chunks, offsets):
    """(N, 84, 84) uint8"""
    frames = np.empty((offsets[-1], 84, 84), np.uint8)
    for first, last, chunk in zip(offsets[:-1], offsets[1:], chunks, strict=True):
        frames[first:last] = np.frombuffer(zlib.decompress(chunk), np.uint8).reshape(-1, 84, 84)
    return frames


def data_digest(data, chunks):
    """SHA-256 of what a script played, of frames as they travelled: it names the data in every row."""
    known = hashlib.sha256()
    for name in ("actions", "rewards", "offsets"):
        known.update(data[name].tobytes())
    for chunk in chunks:
        known.update(chunk)
    return known.hexdigest()
