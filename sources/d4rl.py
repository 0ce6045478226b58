"""D4RL's HDF5 files: which one a task has, where it is, and its episodes.

reads   the file that DATA= names, or data/downloads/NAME, downloaded once; d4rl's infos.py

N rows: observations (N, S), actions (N, A), rewards (N,) or (N, 1), terminals likewise (bool or float), and
optionally timeouts and next_observations (N, S). The released code splits on `qlearning_dataset`'s output,
which has lost the timeouts (download_d4rl_datasets.py:24-51); we read the file itself.
"""

import importlib.util
import runpy
from pathlib import Path

import h5py
import numpy as np

from kit import fail
from kit.artifacts import first_words
from kit.envs import kitchen_done
from kit.limits import plain_name
from kit.seals import sha256
from sources import Episodes, choose, episode_returns, hdf5, minari, others, take_episodes
from sources.download import DOWNLOADS, download, file_name, given_file, is_url, on_server, url_folder

SETTINGS = ("env", "dataset", "max_timestep")
# A mirror of every D4RL v2 file, under the same file names.
MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main/"
COLUMNS = {"observations", "actions", "rewards", "terminals"}


def digest(config, where, options):
    return sha256(find(config, where, options.timeout))


def load(config, where, options):
    path = find(config, where, options.timeout)
    known, full = sha256(path), read(path, config)
    if config["suite"] == "kitchen":
        full |= {"dataset_rewards": full["rewards"], "rewards": kitchen_rewards(full)}
    total = len(full["offsets"]) - 1
    chosen, rest = (pick(total, config["ratio"], options.subset_seed) for pick in (choose, others))
    data = take_episodes(full, chosen)
    return Episodes(row_name(path, config, known, bool(where)), path.name, known, total, chosen, data,
                    episode_returns(data), (rest, take_episodes(full, rest)) if len(rest) else None)


# --- D4RL's tables -----------------------------------------------------------------------------

def d4rl_infos():
    """URLs and reference scores from the d4rl package's infos.py, without importing the package.

    Importing d4rl needs mujoco-py; this one file of it is plain dictionaries.
    """
    spec = importlib.util.find_spec("d4rl")
    if spec is None:
        fail("the package d4rl is not installed; run `make setup`, or pip install --no-deps d4rl==1.1")
    return runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "infos.py"))


def reference(config):
    """Returns of a random and of an expert player, for the normalised score: d4rl's, or the row's own."""
    if "reference" in config:
        return config["reference"]
    infos = d4rl_infos()
    return tuple(infos[f"REF_{end}_SCORE"][config["dataset"]] for end in ("MIN", "MAX"))


# --- the file ----------------------------------------------------------------------------------

def original(config):
    """(URL, name) of the task's file."""
    url = d4rl_infos()["DATASET_URLS"].get(config["dataset"], f"/{config['dataset']}.hdf5")
    return url, url.rsplit("/", 1)[1]


def names_of(config):
    """What the task's file may be called in a given folder, which may hold a folder a suite."""
    name, dataset = original(config)[1], config["dataset"]
    copy = f"{dataset.split('-')[1]}-v2/data/main_data.hdf5"  # Minari's D4RL/kitchen/complete-v2
    names = dict.fromkeys((name, f"{dataset}.hdf5", copy))
    return [*names, "data/main_data.hdf5", "main_data.hdf5", *(f"{config['suite']}/{name}" for name in names)]


def holds(config, where, timeout):
    """Whether a given folder has a file for the task; a given file is meant for it, whatever it is."""
    if is_url(where):
        return where.endswith(".hdf5") or on_server(f"{where.rstrip('/')}/{original(config)[1]}", timeout)
    return not Path(where).is_dir() or given_file(where, names_of(config)) is not None


def find(config, where, timeout):
    """The path of the task's HDF5 file: the given one, or D4RL's, downloaded once."""
    url, name = original(config)
    if is_url(where):
        given = where if where.endswith(".hdf5") else f"{where.rstrip('/')}/{name}"
        return download([given], url_folder(given) / file_name(given), "", timeout, "check DATA=")
    if where:
        path = given_file(where, names_of(config))
        if path is None:
            fail(f"found no file at {where}, and in it none of {', '.join(names_of(config))}; DATA= takes "
                 f"{name}, the folder that holds it or its folder {config['suite']}, or a URL")
        return path
    urls = [url, MIRROR + name] + ([config["mirror"] + name] if "mirror" in config else [])
    return download(urls, DOWNLOADS / name, config.get("sha256", ""), timeout,
                    f"get {name} by other means and pass DATA=/path/to/{name}")


def row_name(path, config, known, given):
    """What rows call a file: D4RL's name only if it is D4RL's file."""
    with h5py.File(path) as file:
        if minari.is_minari(file):
            return minari.set_name(path)
    if known.startswith(config["sha256"]) if "sha256" in config else not given:
        return config["dataset"]
    print(f"{path} is not known to be D4RL's {config['dataset']}; every row will name it by its digest")
    return plain_name(path.name)


# --- its episodes ------------------------------------------------------------------------------

def read(path, config):
    """All finished episodes of a file, as the arrays of a cell; rewards are the recorded ones."""
    try:
        file = h5py.File(path)
    except OSError as error:
        fail(f"{path} is not a readable HDF5 file ({first_words(error)}); it may be a broken download, or a "
             "pickle, which we never load: get it again, or convert it to D4RL's layout")
    try:
        with file:
            hdf5.check_root(file)
            if minari.is_minari(file):
                return minari.read(path, file, config)
            raw = read_columns(path, file, config)
    except (OSError, RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(f"{path} is damaged, or no D4RL dataset ({first_words(error)}); get it again")
    return split(path, raw, config["max_timestep"])


def read_columns(path, file, config):
    """{name: array} of an open file, of the right shapes and finite."""
    if missing := COLUMNS - set(file):
        fail(f"{path} has no {', '.join(sorted(missing))}; it is no D4RL dataset")
    optional = {"timeouts", "next_observations"} & set(file)
    raw = {name: column[()] for name, column in hdf5.columns(file, sorted(COLUMNS | optional)).items()}
    for name in {"rewards", "terminals", "timeouts"} & set(raw):
        raw[name] = raw[name].reshape(-1)
    rows = len(raw["observations"])
    if short := [f"{name} {len(array):,}" for name, array in raw.items() if len(array) != rows]:
        fail(f"{path}: observations have {rows:,} rows but {', '.join(short)}; "
             "the file is damaged or no D4RL dataset")
    widths = {"observations": config["state_dim"], "next_observations": config["state_dim"],
              "actions": config["action_dim"]}
    for name, array in raw.items():
        if name in widths and array.shape != (rows, widths[name]):
            fail(f"{path}: {name} have shape {array.shape}, {config['env']} has {widths[name]} columns; "
                 "this is another environment's file")
        if name == "next_observations":
            continue  # what is not finite there is not known
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(array.astype(np.float32)).reshape(rows, -1).all(1)  # as it is trained on
        if bad.any():
            fail(f"{path}: {name} are not finite in row {int(bad.argmax()):,}; get the file again")
    return raw


def split(path, raw, max_timestep):
    """Columns -> arrays of a cell. The rows after the last end belong to an episode that was cut off, and are
    dropped. What followed an episode is not a number where the file does not record it; after a terminal
    nobody reads it, and the last observation itself stands for it."""
    terminals = raw["terminals"].astype(bool)
    if "timeouts" in raw:
        ended = terminals | raw["timeouts"].astype(bool)
    else:
        ended = terminals | at_limit(terminals, max_timestep)
        if (ended & ~terminals).any():
            print(f"{path} has no timeouts: episodes without a terminal are cut after {max_timestep:,} steps")
    ends = np.flatnonzero(ended) + 1
    if len(ends) == 0:
        fail(f"{path} holds no finished episode (no terminal, no timeout in {len(ended):,} rows)")
    last = np.where(terminals[ends - 1, None], raw["observations"][ends - 1], np.nan)  # (E, S)
    if "next_observations" in raw:
        following = raw["next_observations"][ends - 1]
        last = np.where(np.isfinite(following).all(1, keepdims=True), following, last)
    rows = ends[-1]
    return {name: raw[name][:rows].astype(np.float32) for name in ("observations", "actions", "rewards")} | {
        "terminals": terminals[:rows], "offsets": np.concatenate([[0], ends]).astype(np.int64),
        "last_observations": last.astype(np.float32)}


def at_limit(terminals, max_timestep):
    """(N,) True at every max_timestep-th row since the last terminal, as D4RL's sequence_dataset means to cut
    (it counts one step too many from the second episode on)."""
    rows = np.arange(len(terminals))
    first = np.append(True, terminals[:-1])
    since = rows - np.maximum.accumulate(np.where(first, rows, 0))
    return since % max_timestep == max_timestep - 1


def kitchen_rewards(data):
    """(N,) 1 for each sub-task at the first step whose next observation shows it done, as the
    environment pays. D4RL's files count the sub-tasks that are done, at every step."""
    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    following = np.roll(data["observations"], -1, axis=0)
    following[ends - 1] = data["last_observations"]
    rewards = np.zeros(len(following), np.float32)
    for first, last in zip(starts, ends, strict=True):
        ever = np.maximum.accumulate(kitchen_done(following[first:last]), axis=0)      # (T, 4)
        rewards[first:last] = np.diff(ever.sum(1), prepend=0)
    return rewards
