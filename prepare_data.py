"""Stage 1: make the file a cell trains on.

    python prepare_data.py mini/hopper-medium-0.01                  # rolls out the shipped player
    python prepare_data.py paper/hopper-medium-0.01                 # downloads D4RL's file
    python prepare_data.py paper/hopper-medium-0.01 --data FILE     # or a folder, or a URL
    python prepare_data.py mini/text --lm mini                      # tokens for the language loss
    python prepare_data.py paper/text --lm gpt2 --text wiki.train.raw

writes data/PROFILE/CELL.npz, E whole episodes of N steps in all, as flat arrays:
    observations (N, S) float32, actions (N, A) float32, rewards (N,) float32,
    terminals (N,) bool           the episode ended here by itself, not by the time limit
    offsets (E + 1,) int64        episode e is rows offsets[e]:offsets[e + 1]
    last_observations (E, S)      what followed each episode's last action
    provenance                    JSON: source and its SHA-256, subset seed, chosen episodes, returns
and data/PROFILE/text-LM.npz: tokens (T,) and provenance. Nothing is pickled, nothing half-written.

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
from pathlib import Path

import numpy as np
from tqdm import tqdm

import tasks

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("name", help="PROFILE/CELL, or PROFILE/text")
OPTIONS.add_argument("--data", default="", help="a D4RL file, a folder that holds it, or a URL")
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
            arrays = {name: file[name] for name in wanted}
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
    if not sound or not all(np.isfinite(data[name]).all() for name in names):
        fail(f"{path} is inconsistent; delete it and make it again")
    return data, provenance


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
            reason = getattr(error, "reason", None) or error
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


def d4rl_file(config, data, timeout):
    """The path of the task's HDF5 file: the given one, or D4RL's, downloaded once."""
    url = d4rl_infos()["DATASET_URLS"][config["dataset"]]
    name = url.rsplit("/", 1)[1]
    if data.startswith(("http://", "https://")):
        given = data if data.endswith(".hdf5") else f"{data.rstrip('/')}/{name}"
        # a file from elsewhere must not pass for D4RL's in the next run
        folder = DOWNLOADS / hashlib.sha256(given.encode()).hexdigest()[:8]
        return download([given], folder / name, "", timeout, "check DATA=")
    if data:
        places = [Path(data), Path(data) / name, Path(data) / f"{config['dataset']}.hdf5"]
        for path in places:
            if path.is_file():
                return path
        fail(f"found no file at {', '.join(map(str, places))}; DATA= takes D4RL's {name}, "
             "the folder that holds it, or a URL")
    return download([url, D4RL_MIRROR + name], DOWNLOADS / name, config["sha256"], timeout,
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
            missing = {"observations", "actions", "rewards", "terminals"} - present
            if missing:
                fail(f"{path} has no {', '.join(sorted(missing))}; it is no D4RL dataset")
            optional = present & {"timeouts", "next_observations"}
            raw = {name: file[name][()] for name in
                   {"observations", "actions", "rewards", "terminals"} | optional}
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        fail(f"{path} is not a readable HDF5 file ({error}); it may be a broken download: "
             "delete it and try again")
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
    return {"observations": raw["observations"][:ends[-1]].astype(np.float32),
            "actions": raw["actions"][:ends[-1]].astype(np.float32),
            "rewards": raw["rewards"][:ends[-1]].astype(np.float32),
            "terminals": (terminals & ~timeouts)[:ends[-1]],
            "offsets": np.concatenate([[0], ends]).astype(np.int64),
            "last_observations": last.astype(np.float32)}


def take_episodes(data, chosen):
    """The rows of the chosen episodes, in that order."""
    starts, ends = data["offsets"][:-1][chosen], data["offsets"][1:][chosen]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    return {name: data[name][rows] for name in ("observations", "actions", "rewards", "terminals")} | {
        "offsets": np.concatenate([[0], np.cumsum(ends - starts)]).astype(np.int64),
        "last_observations": data["last_observations"][chosen]}


# --- the mini profile: roll-outs of the shipped player -----------------------------------------

def roll_out(job):
    """Episode number `index` of the full mini dataset; its index alone seeds it."""
    import players
    from envs import make_env

    config, index = job
    actor, _ = players.load(players.ASSETS / f"{config['player']}.npz")
    env = make_env(config)
    rng = np.random.default_rng([index, 1])
    observation, _ = env.reset(seed=index)
    steps = []
    over = False
    while not over:
        action = players.act(actor, observation, rng)
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, action, reward, terminated))
        observation, over = following, terminated or truncated
    columns = [np.array(column) for column in zip(*steps, strict=True)]
    return columns, observation


def play_episodes(config, chosen, workers):
    """The chosen episodes as this stage's arrays, played in `workers` processes."""
    import multiprocessing

    jobs = [(config, int(index)) for index in chosen]
    with multiprocessing.Pool(max(1, min(workers, len(jobs)))) as pool:
        played = list(tqdm(pool.imap(roll_out, jobs), total=len(jobs), unit="episode", disable=None,
                           desc=f"playing {config['player']}"))
    columns, last = zip(*played, strict=True)
    observations, actions, rewards, terminals = (
        np.concatenate(column) for column in zip(*columns, strict=True))
    lengths = [len(column[2]) for column in columns]
    return {"observations": observations.astype(np.float32), "actions": actions.astype(np.float32),
            "rewards": rewards.astype(np.float32), "terminals": terminals.astype(bool),
            "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            "last_observations": np.array(last, np.float32)}


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
    infos = d4rl_infos()
    if profile == "mini":
        import players

        if args.data:
            fail("DATA= belongs to the paper profile; the mini profile plays its own data")
        source = players.ASSETS / f"{config['player']}.npz"
        name, digest = f"mini-{config['player']}-sac", sha256(source)
        total = config["trajectories"]
        chosen = choose(total, ratio, args.subset_seed)
        data = play_episodes(config, chosen, args.workers)
    else:
        source = d4rl_file(config, args.data, args.timeout)
        digest = sha256(source)
        genuine = digest.startswith(config["sha256"])
        name = config["dataset"] if genuine else Path(source).name
        if not genuine:
            print(f"prepare_data: {source} is not D4RL's {config['dataset']} (its SHA-256 differs); "
                  "every row will name it by its digest")
        full = read_d4rl(source, config)
        total = len(full["offsets"]) - 1
        chosen = choose(total, ratio, args.subset_seed)
        data = take_episodes(full, chosen)
    returns = episode_returns(data)
    low, high = (infos[f"REF_{end}_SCORE"][config["dataset"]] for end in ("MIN", "MAX"))
    provenance = {
        "profile": profile, "cell": args.name.split("/")[1], "task": task, "ratio": ratio,
        "data": f"{name}@{digest[:8]}", "source": Path(source).name, "source_sha256": digest,
        "env": config["env"], "subset_seed": args.subset_seed, "total_episodes": total,
        "episodes": chosen.tolist(), "steps": len(data["rewards"]),
        "return_mean": float(returns.mean()), "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0,
        "reference_min": low, "reference_max": high,     # D4RL's, for the normalised score
    }
    path = Path("data") / f"{args.name}.npz"
    write_whole(path, lambda part: np.savez(part, provenance=np.array(json.dumps(provenance)), **data))
    normalized = 100 * (provenance["return_mean"] - low) / (high - low)
    print(f"{path}: {len(chosen):,} of {total:,} episodes, {provenance['steps']:,} steps, mean return "
          f"{provenance['return_mean']:.0f} (normalised {normalized:.1f}), from {provenance['data']}")


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
