"""DQN replay's files, Atari: the first run's tenth checkpoint of fifty, which d4rl-atari calls "medium".

reads   GAME/1/replay_logs/$store$_PART_ckpt.10.gz of four parts, each a gzipped .npy file of N rows:
        observation (N, 84, 84) uint8, a frame once; action, reward (clipped to its sign), terminal (N,)

The frames are read an episode at a time, and only those of the chosen episodes are kept: all are 7 GB.
"""

import gzip
import hashlib
import urllib.parse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kit import fail
from kit.artifacts import first_words
from kit.seals import sha256
from sources import Episodes, choose, others, take_episodes
from sources.download import download, is_url, url_folder

SETTINGS = ("env", "dataset")
URL = "https://storage.googleapis.com/atari-replay-datasets/dqn/"
PARTS = ("observation", "action", "reward", "terminal")
ROWS = 4_000_000  # at most, of each part; a checkpoint of DQN replay has a million
KINDS = {"action": "iu", "reward": "f", "terminal": "buif"}  # of numpy


def digest(config, where, options):
    return digest_of(find(config, where, options.timeout))


def digest_of(files):
    return hashlib.sha256("".join(map(sha256, files.values())).encode()).hexdigest()


def load(config, where, options):
    files = find(config, where, options.timeout)
    columns = read_columns(files, config)
    ends = np.flatnonzero(columns["terminal"]) + 1
    if len(ends) == 0:
        fail(f"{files['terminal']} holds no finished episode (no terminal)")
    offsets, rows = np.concatenate([[0], ends]), ends[-1]
    chosen, rest = (pick(len(ends), config["ratio"], options.subset_seed) for pick in (choose, others))
    both = np.union1d(chosen, rest)  # the frames are read once
    data = take_episodes({"actions": columns["action"][:rows].astype(np.int64),
                          "rewards": np.sign(columns["reward"][:rows]).astype(np.float32),
                          "terminals": columns["terminal"][:rows].astype(bool), "offsets": offsets,
                          "last_observations": np.zeros((len(ends), 0))}, both)
    frames = read_frames(files["observation"], {name: len(column) for name, column in columns.items()},
                         offsets, both)
    data |= {"observations": frames,
             # what followed the last action is not recorded, and never read after a terminal
             "last_observations": frames[data["offsets"][1:] - 1]}
    found = {name: take_episodes(data, np.searchsorted(both, which)) if len(which) < len(both) else data
             for name, which in (("chosen", chosen), ("rest", rest)) if len(which)}
    # clipped rewards are no score
    return Episodes(f"dqn-replay-{config['dataset']}-1-10", files["observation"].name, digest_of(files),
                    len(ends), chosen, found["chosen"], None, (rest, found["rest"]) if len(rest) else None)


def find(config, where, timeout):
    """{part: path} of the four files: given, or downloaded once."""
    folder = f"{config['dataset']}/1/replay_logs"
    names = {part: f"$store$_{part}_ckpt.10.gz" for part in PARTS}
    if where and not is_url(where):
        places = [Path(where), Path(where) / folder, Path(where) / config["suite"] / folder]
        place = next((place for place in places if (place / names["observation"]).is_file()), None)
        if place is None:
            fail(f"found no {names['observation']} in {', '.join(map(str, places))}; "
                 "DATA= takes the folder of DQN replay's files, or a URL")
        if absent := [name for name in names.values() if not (place / name).is_file()]:
            fail(f"{place} has no {', '.join(absent)}; all four files of DQN replay are needed")
        return {part: place / name for part, name in names.items()}
    root = f"{(where or URL).rstrip('/')}/{folder}/"
    return {part: download([root + urllib.parse.quote(name)], url_folder(root) / folder / name, "", timeout,
                           "Google has closed that bucket; pass DATA=/folder/with/the/files of a copy")
            for part, name in names.items()}


# --- gzipped .npy files ------------------------------------------------------------------------

def open_npy(path):
    """(stream behind the header, shape, dtype) of an array with a dimension or more."""
    stream = gzip.open(path)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another version of .npy")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError("it holds no numbers")
    if not shape or fortran or min(shape) < 0:
        raise ValueError(f"it claims shape {shape}, which no column has")
    if shape[0] > ROWS:
        raise ValueError(f"it claims shape {shape}, and the limit is {ROWS:,} rows")
    return stream, shape, dtype


def read_to_end(stream, size):
    """The `size` bytes behind the rows that are wanted: gzip compares its checksum at the very end."""
    with tqdm(desc="checking what is left", total=size, unit="B", unit_scale=True, disable=None) as bar:
        while rest := stream.read(1 << 22):
            bar.update(len(rest))
            size -= len(rest)
    if size:
        raise ValueError(f"it ends {abs(size):,} bytes {'early' if size > 0 else 'late'}")


def unreadable(path, error):
    fail(f"{path} is not a readable .npy.gz ({first_words(error)}); a broken download? get it again")


def read_columns(files, config):
    """{part: (N,)} of all parts but the frames."""
    columns = {}
    for part in PARTS[1:]:
        try:
            stream, shape, dtype = open_npy(files[part])
            if len(shape) != 1 or dtype.kind not in KINDS[part]:
                raise ValueError(f"it holds {dtype} of shape {shape}")
            with stream:
                columns[part] = np.frombuffer(stream.read(shape[0] * dtype.itemsize), dtype)
                if len(columns[part]) != shape[0]:
                    raise EOFError("it ends early")
                if stream.read(1):
                    raise ValueError("it goes on behind its array")
        except Exception as error:  # gzip's, zlib's and numpy's own, and SyntaxError of a .npy header
            unreadable(files[part], error)
    if strange := set(np.unique(columns["terminal"])) - {0, 1}:
        fail(f"{files['terminal']} has a terminal {strange.pop()}; get the file again")
    if strange := set(np.unique(columns["action"])) - set(range(config["action_dim"])):
        fail(f"{files['action']} has action {strange.pop()}, {config['env']} has {config['action_dim']} of "
             "them; these are another game's files")
    if not np.isfinite(columns["reward"]).all():
        fail(f"{files['reward']}: rewards are not finite; get the file again")
    return columns


def read_frames(path, lengths, offsets, chosen):
    """(N, 84, 84) uint8 of the chosen episodes; `lengths` of the other parts must be this one's."""
    steps = np.diff(offsets)
    frames, place = np.empty((steps[chosen].sum(), 84, 84), np.uint8), 0
    other = np.empty((steps[:chosen[-1] + 1].max(), 84, 84), np.uint8)  # where episodes go that nobody wants
    wanted = np.isin(np.arange(len(steps)), chosen)
    try:
        stream, shape, dtype = open_npy(path)
        if shape[1:] != (84, 84) or dtype != np.uint8 or set(lengths.values()) != {shape[0]}:
            fail(f"{path} holds {dtype} of shape {shape} beside {lengths}; it is damaged or no DQN replay")
        with stream:
            for episode in tqdm(range(chosen[-1] + 1), desc="reading frames", disable=None):
                T = steps[episode]
                into = frames[place:place + T] if wanted[episode] else other[:T]
                if stream.readinto(into) != into.nbytes:
                    raise EOFError("it ends early")
                place += T * wanted[episode]
            read_to_end(stream, (shape[0] - offsets[chosen[-1] + 1]) * 84 * 84)
    except Exception as error:  # as above
        unreadable(path, error)
    return frames
