"""Roll-outs of our own players: all of the mini profile, and Reacher2d.

reads   mini/weights/players/PLAYER.npz, or, of a scripted player, mini/players.py and mini/SUITE.py
        data/PROFILE/*.played/, what an earlier call has played
writes  data/PROFILE/*.played/N.npz, the episodes that ended within SAVE_EVERY seconds: a call that was killed
        goes on from there. `forget` removes them when the data file is there.

An episode is determined by its number, so that a cell plays its own alone, in any number of processes, and
of calls.
"""

import contextlib
import hashlib
import queue
import shutil
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import ale_py
import cv2
import gymnasium
import mujoco
import numpy as np
from tqdm import tqdm

from kit import artifacts, envs, fail, seals, signals
from kit.seals import sha256
from mini import players
from sources import Episodes, choose, episode_returns
from tasks import TRAINED

SETTINGS = ("player", "player_env", "player_horizon", "player_noise", "trajectories", "minimum_return", "env",
            "horizon", "clip_rewards")
COLUMNS = ("observations", "actions", "rewards", "terminals", "last_observation")  # of an episode
SAVE_EVERY = 10.0  # seconds between two files of episodes; the first that ends is kept at once
POLL = 0.2         # seconds between two looks whether a signal has come


# --- the player --------------------------------------------------------------------------------

def digest(config, where, options):
    """SHA-256 of the player: of the code that plays, and of its weights, if it has some."""
    scripts = [players.WEIGHTS.parent.parent / name for name in ("players.py", f"{config['suite']}.py")]
    parts = [scripts[0], weights(config)] if config["player"] in TRAINED else scripts
    return hashlib.sha256("".join(map(sha256, parts)).encode()).hexdigest()


def weights(config):
    """The file of an agent's weights; one line and exit if it is damaged, before any process starts."""
    path = players.WEIGHTS / f"{config['player']}.npz"
    players.load(path)
    return path


def made_from(config, options):
    """All that an episode depends on beside its number and the code."""
    settings = {name: config[name] for name in SETTINGS if name in config and name != "trajectories"}
    return settings | {"sha256": digest(config, "", options)}


def code_digest():
    """SHA-256 of the code that plays. It names what is kept of a file that is not whole: half a file of one
    version and half of another would be a file of neither."""
    home = Path(envs.__file__).parent
    files = [*sorted(Path(players.__file__).parent.glob("*.py")), home / "envs.py", home / "reacher2d.xml"]
    versions = [module.__version__ for module in (ale_py, cv2, gymnasium, mujoco, np)]
    return hashlib.sha256("".join([*map(sha256, files), *versions]).encode()).hexdigest()


# --- its episodes ------------------------------------------------------------------------------

def load(config, where, options):
    chosen = choose(config["trajectories"], config["ratio"], options.subset_seed)
    return numbered(config, options, chosen, artifacts.dataset_path(f"{config['profile']}/{config['cell']}"))


def numbered(config, options, chosen, path):
    """The episodes of these numbers, for a data file."""
    data, chunks = play(config, options, chosen, path)
    if config["player"] in TRAINED:
        source = weights(config)
        how, known = players.load(source)[1]["algorithm"].split()[0].lower(), sha256(source)  # sac, ppo
    else:
        source, how, known = Path(f"{config['suite']}.py"), "script", data_digest(data, chunks)
    owner = "mini" if config["profile"] == "mini" else "kit"
    returns = episode_returns(data)  # before the rewards are clipped
    if config["clip_rewards"]:
        data["rewards"] = np.sign(data["rewards"])
    name = f"{owner}-{config['player']}-{how}"
    return Episodes(name, source.name, known, config["trajectories"], chosen, data, returns)


def play(config, options, chosen, path):
    """The chosen episodes' arrays, and the observations as they came."""
    numbers = list(map(int, chosen))
    with signals.held():
        episodes = play_lacking(config, options, numbers, artifacts.played_folder(path))
    chunks, actions, rewards, terminals, last = zip(*map(episodes.pop, numbers), strict=True)
    offsets = np.concatenate([[0], np.cumsum([len(column) for column in rewards])]).astype(np.int64)
    data = {"observations": unpack(chunks, offsets) if config["pixels"] else
            np.concatenate(chunks).astype(np.float32),
            "actions": np.concatenate(actions).astype(np.int64 if config["discrete"] else np.float32),
            "rewards": np.concatenate(rewards).astype(np.float32),
            "terminals": np.concatenate(terminals).astype(bool), "offsets": offsets,
            "last_observations": np.concatenate(last).astype(np.uint8 if config["pixels"] else np.float32)}
    if config["suite"] == "kitchen":
        data["dataset_rewards"] = envs.kitchen_done(data["observations"]).sum(1).astype(np.float32)
    return data, chunks if config["pixels"] else [data["observations"]]


def play_lacking(config, options, numbers, folder):
    """{number: columns} of these episodes: those that are kept in the folder, and those that lack, which are
    played in options.workers processes and kept there as they end. A signal ends the program; one line and
    exit if a process is killed: what has ended is kept."""
    if options.fresh and folder.exists():
        shutil.rmtree(folder)
    made = made_from(config, options) | {"code": code_digest()}
    kept = load_episodes(folder, made)
    episodes = {number: kept[number] for number in numbers if number in kept}
    lacking, new, due = [number for number in numbers if number not in episodes], {}, 0.0
    if episodes:
        print(f"{folder}: goes on at {len(episodes)} of {len(numbers)} episodes", flush=True)
    pool, ended = ProcessPoolExecutor(max(1, min(options.workers, len(lacking)))), queue.SimpleQueue()
    try:
        for number in lacking:
            pool.submit(roll_out, config, number).add_done_callback(ended.put)
        with tqdm(total=len(numbers), initial=len(episodes), unit="episode", disable=None,
                  desc=f"playing {config['player']}") as bar:
            while len(episodes) + len(new) < len(numbers) and not signals.asked():
                with contextlib.suppress(queue.Empty):
                    new |= ended.get(timeout=POLL).result()
                    bar.update()
                if new and time.monotonic() >= due:
                    save_episodes(folder, made, new)
                    episodes, new, due = episodes | new, {}, time.monotonic() + SAVE_EVERY
    except BrokenProcessPool:  # a process that ends without a word, as one that the system kills
        if not signals.asked():  # as a Ctrl-C ends them
            save_episodes(folder, made, new)
            fail(f"a process that played {config['player']} was killed, perhaps for want of memory; "
                 f"{len(episodes | new)} of {len(numbers)} episodes are kept; try again, with fewer "
                 "--workers if it happens again")
    finally:  # what one process could not do the others need not go on with
        pool.shutdown(wait=not signals.asked(), cancel_futures=True)
    if signals.asked():
        save_episodes(folder, made, new)
        signals.leave(f"{len(episodes | new)} of {len(numbers)} episodes are kept"
                      f"{', but --fresh plays all' if options.fresh else ''}", at_once=True)
    return episodes | new


def roll_out(config, number):
    """{number: columns} of an episode, in a worker process. Frames travel compressed, 20 to 60 times
    smaller."""
    observations, *columns, last = players.play_episode(config, number)
    if config["pixels"]:
        observations = np.frombuffer(zlib.compress(observations, 1), np.uint8)
    return {number: (observations, *columns, last[None])}


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


# --- what is kept until the data file is there ---------------------------------------------------

def save_episodes(folder, made, episodes):
    """Keep {number: columns}, one after the other, in a file of their own; one line and exit if the disk is
    full."""
    if not episodes:
        return
    arrays = {"numbers": np.array([*episodes])}
    for name, parts in zip(COLUMNS, zip(*episodes.values(), strict=True), strict=True):
        arrays |= {name: np.concatenate(parts), f"{name}/lengths": np.array([len(part) for part in parts])}
    artifacts.save_arrays(folder / f"{min(episodes)}.npz", {"made_from": made}, arrays)


def load_episodes(folder, made):
    """{number: columns} of all that is kept and made from the same. What is damaged, or made from something
    else, is removed, and a line says so."""
    episodes = {}
    seals.remove_leftovers(folder)
    for path in sorted(folder.glob("[0-9]*.npz")):
        try:
            arrays, provenance = artifacts.read_arrays(path, ("numbers", *COLUMNS))
            other = provenance["made_from"] != made
            columns = [np.split(arrays[name], np.cumsum(arrays[f"{name}/lengths"])[:-1]) for name in COLUMNS]
            found = dict(zip(arrays["numbers"].tolist(), zip(*columns, strict=True), strict=True))
        except Exception as error:  # a damaged zip raises one of seven types (BadZipFile, zlib.error, ...)
            artifacts.let_pass(error)
            print(f"{path} is damaged ({type(error).__name__}: {artifacts.first_words(error)}); its episodes "
                  "are played again", flush=True)
            path.unlink()
            continue
        if other:  # and so are all of them
            print(f"{folder} is of another player, other settings or other code; its episodes are played "
                  "again", flush=True)
            shutil.rmtree(folder)
            return {}
        episodes |= found
    return episodes


def forget(path):
    """Remove what was kept of a data file, which is there now."""
    shutil.rmtree(artifacts.played_folder(path), ignore_errors=True)
