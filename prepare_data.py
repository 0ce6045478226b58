"""Stage 1: make the file a cell trains on.

    python prepare_data.py mini/hopper-medium-0.01                  # rolls out the shipped player
    python prepare_data.py paper/hopper-medium-0.01                 # downloads D4RL's file
    python prepare_data.py paper/hopper-medium-0.01 --data FILE     # or a folder, or a URL
    python prepare_data.py paper/pong-medium-0.1                    # downloads DQN replay's files
    python prepare_data.py mini/text --lm mini                      # tokens for the language loss
    python prepare_data.py paper/text --lm gpt2 --text wiki.train.raw

writes data/PROFILE/CELL.npz, E whole episodes of N steps in all, as flat arrays:
    observations (N, S) float32, actions (N, A) float32, rewards (N,) float32,
    terminals (N,) bool           the episode ended here by itself, not by the time limit
    offsets (E + 1,) int64        episode e is rows offsets[e]:offsets[e + 1]
    last_observations (E, S)      what followed each episode's last action
    dataset_rewards (N,) float32  kitchen only: sub-tasks that are done now, as D4RL records rewards,
                                  where `rewards` is 1 the first time one is done, as the environment pays
    provenance                    JSON: source and its SHA-256, subset seed, chosen episodes, returns
Atari: observations (N, 84, 84) uint8, each frame once, on disk as observations_zlib, one compressed
string an episode, and observations_sizes; actions (N,) int64; rewards by their sign, as DQN replay's are.
Text: data/PROFILE/text-LM.npz with tokens (T,) and provenance. Nothing is pickled, nothing half-written.

The subset of a ratio is a prefix of one seeded permutation of the full dataset's episodes, so
1 % is part of 10 %; the authors' subsets were drawn without a seed and exist only on their drive
(ratio_dataset.py:22).
"""

import argparse
import csv
import hashlib
import http.client
import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tasks

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("name", help="PROFILE/CELL, or PROFILE/text")
OPTIONS.add_argument("--data", default="", help="the dataset's file, a folder that holds it, or a URL")
OPTIONS.add_argument("--text", default="", help="a text file, a folder of them, a zip, or a URL")
OPTIONS.add_argument("--lm", default="", help="whose tokenizer encodes the text")
OPTIONS.add_argument("--subset_seed", type=int, default=0, help="which episodes a ratio keeps")
OPTIONS.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that roll out")
OPTIONS.add_argument("--timeout", type=float, default=20.0, help="seconds to wait for a server")

# A mirror of every D4RL v2 file, under the same file names.
D4RL_MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main/"
WIKITEXT = ("https://wikitext.smerity.com/wikitext-103-raw-v1.zip",
            "https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-103-raw-v1.zip")
DOWNLOADS = Path("data/downloads")


def fail(message):
    sys.exit(f"prepare_data: {message}")


# --- files -------------------------------------------------------------------------------------

def write_whole(path, write):
    """Call write(temporary path), then rename: readers see the old file or the new one, whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_csv(path, columns, rows):
    def write(part):
        with open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    write_whole(path, write)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_arrays(path, wanted):
    """Arrays and provenance of a file this stage wrote. One line and exit if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "provenance"}
            if "observations_zlib" in arrays:
                arrays["observations"] = unpack_frames(arrays.pop("observations_zlib"),
                                                       arrays.pop("observations_sizes"), arrays["offsets"])
            if missing := set(wanted) - set(arrays):
                raise ValueError(f"it has no {', '.join(sorted(missing))}")
            return arrays, json.loads(str(file["provenance"]))
    except FileNotFoundError:
        fail(f"{path} is not there; make it with: python prepare_data.py "
             f"{Path(path).parent.name}/{Path(path).stem}")
    except Exception as error:  # a damaged zip raises one of seven types (BadZipFile, zlib.error, ...)
        fail(f"{path} is damaged ({type(error).__name__}: {error}); delete it and make it again")


def load_dataset(path):
    """(arrays, provenance) of data/PROFILE/CELL.npz; the arrays stand in this file's docstring."""
    names = ("observations", "actions", "rewards", "terminals", "offsets", "last_observations")
    data, provenance = load_arrays(path, names)
    steps, episodes = len(data["rewards"]), len(data["offsets"]) - 1
    lengths = np.diff(data["offsets"])
    sound = (episodes > 0 and lengths.min() > 0 and data["offsets"][0] == 0
             and data["offsets"][-1] == steps == len(data["observations"]) == len(data["actions"]))
    if not sound or not all(np.isfinite(array).all() for array in data.values() if array.dtype.kind == "f"):
        fail(f"{path} is inconsistent; delete it and make it again")
    return data, provenance


def pack_frames(frames):
    """Frames (T, 84, 84) uint8 of an episode -> bytes, 20 to 60 times smaller."""
    return zlib.compress(np.ascontiguousarray(frames), 1)


def unpack_frames(packed, sizes, offsets):
    """All frames (N, 84, 84) of a file, unpacked an episode at a time."""
    frames, place = np.empty((offsets[-1], 84, 84), np.uint8), 0
    for first, last, size in zip(offsets[:-1], offsets[1:], sizes, strict=True):
        episode = zlib.decompress(packed[place:place + size])
        frames[first:last] = np.frombuffer(episode, np.uint8).reshape(-1, 84, 84)
        place += size
    return frames


# --- downloads ---------------------------------------------------------------------------------

def fetch(url, path, timeout):
    """Download url to path, resuming path.part where an earlier attempt stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:      # 416: the part is no prefix of the file, so start over
            raise
        part.unlink()
        return fetch(url, path, timeout)
    with response:
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        with open(part, "ab" if have else "wb") as file, \
                tqdm(initial=have, total=total or None, unit="B", unit_scale=True, disable=None,
                     desc=path.name) as bar:
            while chunk := response.read(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total > have and part.stat().st_size != total:
        raise OSError(f"the connection broke after {part.stat().st_size:,} of {total:,} bytes; "
                      "the same command resumes")
    os.replace(part, path)


def download(urls, path, digest, timeout, remedy):
    """The first of the URLs that yields the file. A wrong SHA-256 never reaches `path`."""
    if path.exists():
        return path
    troubles = []
    for url in urls:
        try:
            fetch(url, path, timeout)
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, broken connections
            reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
            troubles.append(f"{urllib.parse.urlsplit(url).netloc} ({reason})")
            continue
        if digest and not sha256(path).startswith(digest):
            path.unlink()
            troubles.append(f"{urllib.parse.urlsplit(url).netloc} (another file: its SHA-256 does "
                            f"not begin with {digest})")
            continue
        return path
    fail(f"could not download {path.name}: not reached or refused: {'; '.join(troubles)}; {remedy}")


# --- the paper profile: D4RL -------------------------------------------------------------------

def d4rl_infos():
    """URLs and reference scores from the d4rl package's infos.py, without importing the package.

    Importing d4rl needs mujoco-py; this one file of it is plain dictionaries.
    """
    import importlib.util
    import runpy

    spec = importlib.util.find_spec("d4rl")
    if spec is None:
        fail("the package d4rl is not installed; run `make setup`, or "
             "pip install --no-deps d4rl==1.1")
    return runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "infos.py"))


def given_file(data, names, timeout):
    """The path of one of the named files, from DATA=: the file itself, its folder, or a URL."""
    if data.startswith(("http://", "https://")):
        given = data if data.endswith(".hdf5") else f"{data.rstrip('/')}/{names[0]}"
        # a file from elsewhere must not pass for the original in the next run
        folder = DOWNLOADS / hashlib.sha256(given.encode()).hexdigest()[:8]
        return download([given], folder / given.rsplit("/", 1)[1], "", timeout, "check DATA=")
    places = [Path(data), *(Path(data) / name for name in names)]
    for path in places:
        if path.is_file():
            return path
    fail(f"found no file at {', '.join(map(str, places))}; DATA= takes {names[0]}, "
         "the folder that holds it, or a URL")


def d4rl_file(config, data, timeout):
    """The path of the task's HDF5 file: the given one, or D4RL's, downloaded once."""
    url = d4rl_infos()["DATASET_URLS"].get(config["dataset"], f"/{config['dataset']}.hdf5")
    name = url.rsplit("/", 1)[1]
    if data:
        # Minari's copies of the kitchen's data lie in FOLDER/data/main_data.hdf5
        return given_file(data, (name, f"{config['dataset']}.hdf5", "data/main_data.hdf5", "main_data.hdf5"),
                          timeout)
    urls = [url, D4RL_MIRROR + name] + ([config["mirror"] + name] if "mirror" in config else [])
    return download(urls, DOWNLOADS / name, config.get("sha256", ""), timeout,
                    f"get {name} by other means and pass DATA=/path/to/{name}")


def read_d4rl(path, config):
    """All finished episodes of a D4RL file, in its true layout, as this stage's arrays.

    observations (N, S), actions (N, A), rewards (N,) or (N, 1), terminals likewise (bool or
    float), and optionally timeouts and next_observations. The rows after the last end belong to
    an episode that was cut off, and are dropped. The released code splits on `qlearning_dataset`'s
    output, which has lost the timeouts (download_d4rl_datasets.py:24-51); we read the file itself.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            present = set(file.keys())
            if "episode_0" in present and config["suite"] == "kitchen":
                return read_minari(path, file)
            missing = {"observations", "actions", "rewards", "terminals"} - present
            if missing:
                fail(f"{path} has no {', '.join(sorted(missing))}; it is no D4RL dataset")
            optional = present & {"timeouts", "next_observations"}
            raw = {name: file[name][()] for name in
                   {"observations", "actions", "rewards", "terminals"} | optional}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        fail(f"{path} is not a readable HDF5 file ({error}); it may be a broken download, or a pickle, which "
             "we never load: get it again, or convert it to D4RL's layout")
    rows = len(raw["observations"])
    for name in ("rewards", "terminals", "timeouts"):
        if name in raw:
            raw[name] = np.asarray(raw[name]).reshape(-1)
    short = [f"{name} {len(array):,}" for name, array in raw.items() if len(array) != rows]
    if short:
        fail(f"{path}: observations have {rows:,} rows but {', '.join(short)}; "
             "the file is damaged or no D4RL dataset")
    for name, width in (("observations", config["state_dim"]), ("actions", config["action_dim"])):
        if raw[name].ndim != 2 or raw[name].shape[1] != width:
            fail(f"{path}: {name} have shape {raw[name].shape}, {config['env']} has {width} columns; "
                 "this is another environment's file")
    for name in ("observations", "actions", "rewards"):
        bad = ~np.isfinite(raw[name].reshape(rows, -1)).all(1)
        if bad.any():
            fail(f"{path}: {name} are not finite in row {int(bad.argmax()):,}; get the file again")
    terminals = raw["terminals"].astype(bool)
    timeouts = raw.get("timeouts", np.zeros(rows, bool)).astype(bool)
    ends = np.flatnonzero(terminals | timeouts) + 1
    if len(ends) == 0:
        fail(f"{path} holds no finished episode (no terminal, no timeout in {rows:,} rows)")
    # Without next_observations the true successor of a last step is not in the file.
    last = raw.get("next_observations", raw["observations"])[ends - 1]
    data = {"observations": raw["observations"][:ends[-1]].astype(np.float32),
            "actions": raw["actions"][:ends[-1]].astype(np.float32),
            "rewards": raw["rewards"][:ends[-1]].astype(np.float32),
            "terminals": (terminals & ~timeouts)[:ends[-1]],
            "offsets": np.concatenate([[0], ends]).astype(np.int64),
            "last_observations": last.astype(np.float32)}
    if config["suite"] == "kitchen":
        data |= {"dataset_rewards": data["rewards"], "rewards": kitchen_rewards(data)}
    return data


def read_minari(path, file):
    """Minari's D4RL/kitchen sets: the demonstrations simulated anew in FrankaKitchen-v1, so other
    episodes, lengths and observations than D4RL's. A group an episode, one observation more than actions."""
    from envs import kitchen_observation

    columns = {name: [] for name in ("observations", "actions", "rewards", "terminals", "last_observations")}
    for number in sorted(int(name.removeprefix("episode_")) for name in file):
        group = file[f"episode_{number}"]
        seen, actions = group["observations/observation"][()], group["actions"][()]
        rewards, terminals = group["rewards"][()].reshape(-1), group["terminations"][()].reshape(-1)
        T = len(actions)
        if (seen.shape, actions.shape, len(rewards), len(terminals)) != ((T + 1, 59), (T, 9), T, T):
            fail(f"{path}: episode_{number} has {T} actions of shape {actions.shape[1:]} beside observations "
                 f"of shape {seen.shape} and {len(rewards)} rewards; it is damaged or another environment's")
        if not all(np.isfinite(array).all() for array in (seen, actions, rewards)):
            fail(f"{path}: episode_{number} holds numbers that are not finite; get the file again")
        seen = kitchen_observation(seen).astype(np.float32)
        for name, column in zip(columns, (seen[:-1], actions, rewards, terminals, seen[-1:]), strict=True):
            columns[name].append(column)
    offsets = np.concatenate([[0], np.cumsum([len(column) for column in columns["rewards"]])])
    data = {name: np.concatenate(column).astype(bool if name == "terminals" else np.float32)
            for name, column in columns.items()} | {"offsets": offsets.astype(np.int64)}
    return data | {"dataset_rewards": data["rewards"], "rewards": kitchen_rewards(data)}


def kitchen_rewards(data):
    """(N,) 1 for each sub-task at the first step whose next observation shows it done, as the
    environment pays. D4RL's files count the sub-tasks that are done, at every step."""
    from envs import kitchen_done

    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    following = np.roll(data["observations"], -1, axis=0)
    following[ends - 1] = data["last_observations"]
    rewards = np.zeros(len(following), np.float32)
    for first, last in zip(starts, ends, strict=True):
        ever = np.maximum.accumulate(kitchen_done(following[first:last]), axis=0)      # (T, 4)
        rewards[first:last] = np.diff(ever.sum(1), prepend=0)
    return rewards


def take_episodes(data, chosen):
    """The rows of the chosen episodes, in that order."""
    starts, ends = data["offsets"][:-1][chosen], data["offsets"][1:][chosen]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return {name: array[rows] for name, array in data.items() if len(array) == data["offsets"][-1]} | {
        "offsets": np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        "last_observations": data["last_observations"][chosen]}


# --- the paper profile: DQN replay -------------------------------------------------------------

REPLAY_URL = "https://storage.googleapis.com/atari-replay-datasets/dqn/"
REPLAY_PARTS = ("observation", "action", "reward", "terminal")


def replay_files(config, data, timeout):
    """{part: path} of the first run's tenth checkpoint, which d4rl-atari calls "medium"."""
    folder = f"{config['dataset']}/1/replay_logs"
    names = {part: f"$store$_{part}_ckpt.10.gz" for part in REPLAY_PARTS}
    if data and not data.startswith(("http://", "https://")):
        for place in (Path(data), Path(data) / folder):
            if (place / names["observation"]).is_file():
                break
        else:
            fail(f"found no {names['observation']} in {data} or {data}/{folder}; "
                 "DATA= takes the folder of DQN replay's files, or a URL")
        absent = [name for name in names.values() if not (place / name).is_file()]
        if absent:
            fail(f"{place} has no {', '.join(absent)}; all four files of DQN replay are needed")
        return {part: place / name for part, name in names.items()}
    root = f"{(data or REPLAY_URL).rstrip('/')}/{folder}/"
    kept = DOWNLOADS / hashlib.sha256(root.encode()).hexdigest()[:8] / folder
    return {part: download([root + urllib.parse.quote(name)], kept / name, "", timeout,
                           "Google has closed that bucket; pass DATA=/folder/with/the/files of a copy")
            for part, name in names.items()}


def open_replay(path):
    """(stream behind the header, shape, dtype) of a gzipped .npy file."""
    import gzip

    stream = gzip.open(path)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of .npy")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    return stream, shape, dtype


def read_replay(files, config, ratio, subset_seed):
    """The chosen finished episodes, their indices and the number of all. Frames are read one episode
    at a time and stay compressed, so 7 GB are never in memory."""
    columns, path = {}, None
    try:
        for part in REPLAY_PARTS[1:]:
            path = files[part]
            stream, shape, dtype = open_replay(path)
            with stream:
                columns[part] = np.frombuffer(stream.read(int(np.prod(shape)) * dtype.itemsize), dtype)
            if len(columns[part]) != shape[0]:
                raise EOFError("it ends early")
        path = files["observation"]
        stream, shape, dtype = open_replay(path)
        lengths = {part: len(column) for part, column in columns.items()}
        if shape[1:] != (84, 84) or dtype != np.uint8 or set(lengths.values()) != {shape[0]}:
            fail(f"{path} holds {dtype} of shape {shape} beside {lengths}; it is damaged or no DQN replay")
        if columns["action"].min() < 0 or columns["action"].max() >= config["action_dim"]:
            fail(f"{files['action']} has action {columns['action'].max()}, {config['env']} has "
                 f"{config['action_dim']}; these are another game's files")
        if not np.isfinite(columns["reward"]).all():
            fail(f"{files['reward']}: rewards are not finite; get the file again")
        ends = np.flatnonzero(columns["terminal"]) + 1
        if len(ends) == 0:
            fail(f"{files['terminal']} holds no finished episode (no terminal in {shape[0]:,} rows)")
        offsets = np.concatenate([[0], ends])
        chosen = choose(len(ends), ratio, subset_seed)
        frames, last = [], []
        with stream:
            for episode in tqdm(range(chosen[-1] + 1), desc="reading frames", disable=None):
                raw = stream.read((ends[episode] - offsets[episode]) * 84 * 84)
                if len(raw) != (ends[episode] - offsets[episode]) * 84 * 84:
                    raise EOFError("it ends early")
                if episode in chosen:
                    frames.append(zlib.compress(raw, 1))
                    last.append(np.frombuffer(raw[-84 * 84:], np.uint8).reshape(84, 84))
    except (OSError, EOFError, ValueError, zlib.error) as error:  # gzip.BadGzipFile is an OSError
        fail(f"{path} is not a readable .npy.gz ({error}); it may be a broken download: get it again")
    N = ends[-1]
    data = take_episodes({"actions": columns["action"][:N].astype(np.int64),
                          "rewards": columns["reward"][:N].astype(np.float32),
                          "terminals": columns["terminal"][:N].astype(bool), "offsets": offsets,
                          # what followed the last action is not recorded
                          "last_observations": np.zeros((len(ends), 0))}, chosen)
    return data | {"observations": frames, "last_observations": np.array(last)}, chosen, len(ends)


# --- roll-outs of our own players: all of the mini profile, and Reacher2d ----------------------

def roll_out(job):
    """Episode number `index` of a full dataset; its index alone seeds it."""
    import players

    config, index = job
    observations, *columns, last = players.play_episode(config, index)
    if config["suite"] == "atari":
        observations = pack_frames(observations)
    return observations, *columns, last


def play_episodes(config, chosen, workers):
    """The chosen episodes as this stage's arrays, played in `workers` processes."""
    import multiprocessing

    jobs = [(config, int(index)) for index in chosen]
    with multiprocessing.Pool(max(1, min(workers, len(jobs)))) as pool:
        played = list(tqdm(pool.imap(roll_out, jobs), total=len(jobs), unit="episode", disable=None,
                           desc=f"playing {config['player']}"))
    observations, actions, rewards, terminals, last = zip(*played, strict=True)
    atari = config["suite"] == "atari"
    data = {"observations": (list(observations) if atari else
                             np.concatenate(observations).astype(np.float32)),
            "actions": np.concatenate(actions).astype(np.int64 if atari else np.float32),
            "rewards": np.concatenate(rewards).astype(np.float32),
            "terminals": np.concatenate(terminals).astype(bool),
            "offsets": np.concatenate([[0], np.cumsum([len(r) for r in rewards])]).astype(np.int64),
            "last_observations": np.array(last, np.uint8 if atari else np.float32)}
    if config["suite"] == "kitchen":
        from envs import kitchen_done

        data["dataset_rewards"] = kitchen_done(data["observations"]).sum(1).astype(np.float32)
    return data


# --- the stage ---------------------------------------------------------------------------------

def choose(total, ratio, seed):
    """Sorted indices of int(total * ratio) episodes, at least one: a prefix of one permutation."""
    count = max(1, int(total * ratio + 1e-9))
    return np.sort(np.random.default_rng(seed).permutation(total)[:count])


def episode_returns(data):
    return np.add.reduceat(data["rewards"].astype(np.float64), data["offsets"][:-1])


def prepare(args):
    profile, task, ratio = tasks.parse_cell(args.name)
    config = tasks.configuration(f"{args.name}/dt/seed0")
    returns = None
    if profile == "mini" or config["suite"] == "reacher2d" and not args.data:
        if args.data:
            fail("DATA= belongs to the paper profile; the mini profile plays its own data")
        total = config["trajectories"]
        chosen = choose(total, ratio, args.subset_seed)
        data = play_episodes(config, chosen, args.workers)
        name, source, digest = player_id(config, profile, data)
        returns = episode_returns(data)  # before the rewards are clipped
        if config["clip_rewards"]:
            data["rewards"] = np.sign(data["rewards"])
    elif config["suite"] == "atari":
        files = replay_files(config, args.data, args.timeout)
        digest = hashlib.sha256("".join(map(sha256, files.values())).encode()).hexdigest()
        name, source = f"dqn-replay-{config['dataset']}-1-10", files["observation"].name
        data, chosen, total = read_replay(files, config, ratio, args.subset_seed)
    else:
        path = d4rl_file(config, args.data, args.timeout)
        digest = sha256(path)
        full = read_d4rl(path, config)
        total = len(full["offsets"]) - 1
        chosen = choose(total, ratio, args.subset_seed)
        data = take_episodes(full, chosen)
        name, source = file_id(path, config, digest, bool(args.data)), path.name
        returns = episode_returns(data)
    low, high = reference(config)
    provenance = {
        "profile": profile, "cell": args.name.split("/")[1], "task": task, "ratio": ratio,
        "data": f"{name}@{digest[:8]}", "source": source, "source_sha256": digest,
        "env": config["env"], "subset_seed": args.subset_seed, "total_episodes": total,
        "episodes": chosen.tolist(), "steps": len(data["rewards"]),
        "reference_min": low, "reference_max": high,     # for the normalised score
        # of the environment's own rewards, which DQN replay does not record
        "return_mean": None, "return_std": None, "return_min": None, "return_max": None}
    path = Path("data") / f"{args.name}.npz"
    line = (f"{path}: {len(chosen):,} of {total:,} episodes, {provenance['steps']:,} steps, "
            f"from {provenance['data']}")
    if returns is not None:
        provenance |= {"return_mean": float(returns.mean()), "return_min": float(returns.min()),
                       "return_max": float(returns.max()),
                       "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0}
        line += (f"; return {returns.mean():.4g} +- {provenance['return_std']:.4g}, "
                 f"normalised {100 * (returns.mean() - low) / (high - low):.1f}")
    if config["suite"] == "atari":
        packed = data.pop("observations")
        data |= {"observations_zlib": np.frombuffer(b"".join(packed), np.uint8),
                 "observations_sizes": np.array([len(frames) for frames in packed])}
    write_whole(path, lambda part: np.savez(part, provenance=np.array(json.dumps(provenance)), **data))
    print(line)


def reference(config):
    """Returns of a random and of an expert player: d4rl's, or the row's own."""
    if "reference" in config:
        return config["reference"]
    infos = d4rl_infos()
    return tuple(infos[f"REF_{end}_SCORE"][config["dataset"]] for end in ("MIN", "MAX"))


def player_id(config, profile, data):
    """(name, source, SHA-256) of played data: of the player's file, or, for a script, of the data."""
    owner = "mini" if profile == "mini" else "kit"
    if config["player"] in tasks.TRAINED:
        path = Path(__file__).parent / "assets" / "players" / f"{config['player']}.npz"
        return f"{owner}-{config['player']}-sac", path.name, sha256(path)
    digest = hashlib.sha256()
    for name in ("actions", "rewards", "offsets"):
        digest.update(data[name].tobytes())
    for chunk in data["observations"]:
        digest.update(chunk)
    return f"{owner}-{config['player']}-script", "players.py", digest.hexdigest()


def file_id(path, config, digest, given):
    """What rows call a file: D4RL's name only if it is D4RL's file."""
    import h5py

    with h5py.File(path, "r") as file:
        minari = "episode_0" in file
    if minari:  # by its content, whatever the file is called
        folder = path.resolve().parent
        return f"minari-{(folder.parent if folder.name == 'data' else folder).name}"
    genuine = digest.startswith(config["sha256"]) if "sha256" in config else not given
    if not genuine:
        print(f"prepare_data: {path} is not known to be D4RL's {config['dataset']}; "
              "every row will name it by its digest")
    return config["dataset"] if genuine else path.name


# --- text for the language loss ----------------------------------------------------------------

def standard_library_text():
    """English the reader already has: the documentation inside Python's standard library."""
    import ast
    import sysconfig

    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
    texts = []
    for path in sorted(root.rglob("*.py")):
        if skipped & set(path.relative_to(root).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8", errors="replace"))):
            doc = None
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                doc = ast.get_docstring(node)
            elif path.name == "topics.py" and isinstance(node, ast.Constant):
                doc = node.value  # pydoc's chapters of the language reference
            if isinstance(doc, str) and len(doc) > 200:
                texts.append(doc)
    return "\n\n".join(texts)


def open_text(args, profile):
    """(name, text) of --text, or of the profile's own text."""
    text = args.text
    if not text and profile == "mini":
        return f"python-{sys.version_info.major}.{sys.version_info.minor}-docs", standard_library_text()
    if not text or text.startswith(("http://", "https://")):
        urls = [text] if text else WIKITEXT
        path = download(urls, DOWNLOADS / urls[0].rsplit("/", 1)[1], "", args.timeout,
                        "pass TEXT=/path/to/wiki.train.raw, any text file, or a folder of .txt files")
    else:
        path = Path(text)
    if path.is_dir():
        files = sorted(path.glob("*.txt"))
        if not files:
            fail(f"{path} holds no .txt file; TEXT= takes a text file or a folder of .txt files")
        return path.name, "\n\n".join(file.read_text(encoding="utf-8") for file in files)
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                member = next(name for name in archive.namelist() if name.endswith("train.raw"))
                return path.name, archive.read(member).decode("utf-8")
        return path.name, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, zipfile.BadZipFile, StopIteration) as error:
        fail(f"{path} is no readable text ({type(error).__name__}: {error}); TEXT= takes a text file, "
             "a folder of .txt files, or WikiText's zip")


def prepare_text(args):
    from model import load_tokenizer

    profile = args.name.split("/")[0]
    lm = args.lm or (tasks.DEFAULTS | (tasks.MINI if profile == "mini" else {}))["lm"]
    tokenizer = load_tokenizer(lm)
    name, text = open_text(args, profile)
    # a tokenizer is given a few thousand lines at a time, so WikiText-103 needs no 20 GB
    lines = text.splitlines(keepends=True)
    ids = []
    for start in tqdm(range(0, len(lines), 5_000), desc="tokenising", disable=None):
        encoded = tokenizer("".join(lines[start:start + 5_000]), verbose=False)["input_ids"]
        ids.append(np.array(encoded, np.uint32))
    tokens = np.concatenate(ids) if ids else np.zeros(0, np.uint32)
    provenance = {"text": name, "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
                  "bytes": len(text.encode()), "lm": lm, "tokens": len(tokens)}
    path = Path("data") / profile / f"text-{Path(lm).name}.npz"
    write_whole(path, lambda part: np.savez(part, tokens=tokens,
                                            provenance=np.array(json.dumps(provenance))))
    print(f"{path}: {len(tokens):,} tokens of {name}")


if __name__ == "__main__":
    args = OPTIONS.parse_args()
    if args.name in [f"{profile}/text" for profile in tasks.PROFILES]:
        prepare_text(args)
    else:
        prepare(args)
