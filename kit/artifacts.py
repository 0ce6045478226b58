"""The one place that knows paths and file formats. What is written is whole or not there at all, and has a
digest of its content (kit/seals.py); what is read is checked against it, and a damaged file ends the program
in one line.

    data/PROFILE/CELL.npz               a cell's episodes: load_dataset says which arrays
    data/PROFILE/*-heldout.npz          episodes that no run trains on (sources/heldout.py)
    data/PROFILE/*.played/N.npz         episodes of a file that is being played, until it is there; N is their
                                        lowest number (sources/played.py)
    data/PROFILE/text-TOKENIZER.npz     tokens (T,) for the language loss, by the tokenizer's digest
    runs/PROFILE/CELL/METHOD/seedN/
        config.json                     the whole configuration, and what the run was made from, by digest
        train.csv                       losses
        events.out.tfevents.*           the same for TensorBoard, with --tensorboard
        step-N.safetensors              what trains, every eval_every steps
        final.safetensors               the same after the last step; exists only when training is done
        state.safetensors               what a killed run resumes from; removed at the end, as is
        state-before.safetensors        the one before, should the newest be damaged
        eval.csv                        one row an episode: RESULT_COLUMNS, then LOSS_COLUMNS
        eval.json                       what was played, episodes and target returns, and by what
        eval.DIGEST.csv, .json          the same of other options, or of an evaluation that is not whole
        log.txt, cost.json              all that it printed, and what it took, where kit.watch stood before it
    results/PROFILE/CELL.csv            the rows of all runs of a cell; CELL-dN.csv: of seed N on subset N
    figures/PROFILE/CELL.png

All paths are relative to the working directory. Nothing is pickled or unpickled.
"""

import contextlib
import gzip
import hashlib
import json
import os
import time
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from kit import fail, is_refused, limits, seals

RESULT_COLUMNS = ("profile", "data", "lm", "task", "ratio", "method", "seed", "step", "target_return",
                  "episode", "return", "length", "normalized_score", "data_score", "data_episodes")
# Of a row's checkpoint (kit/imitation.py), behind RESULT_COLUMNS; empty where nothing was measured.
LOSS_COLUMNS = ("heldout_loss", "heldout_episodes", "heldout_data", "heldout_floor", "train_loss",
                "bits_per_byte", "heldout_decisions")
EXTRA_COLUMNS = (*LOSS_COLUMNS, "subset", "score_window", "changed")  # of results/, behind RESULT_COLUMNS


def source_name(data):
    """What NAME@DIGEST says of where data come from: a script's digest is of what it played, and so another
    in every subset."""
    return data.split("@")[0] if data.split("@")[0].endswith("-script") else data


# --- paths -------------------------------------------------------------------------------------

def dataset_path(cell):
    """Of "PROFILE/CELL"."""
    return Path("data") / f"{cell}.npz"


def heldout_path(name):
    """Of "PROFILE/TASK" or "PROFILE/CELL": episodes beside the cell's own."""
    return Path("data") / f"{name}-heldout.npz"


def played_folder(path):
    """Of a data file: what is played of it so far."""
    return Path(path).with_suffix(".played")


def text_path(profile, digest):
    """Of a profile's text, encoded by the tokenizer of that digest."""
    return Path("data") / profile / f"text-{digest}.npz"


def run_folder(run):
    return Path("runs") / run


def checkpoint_steps(config):
    """After which steps a run has a checkpoint, in order."""
    return [*range(config["eval_every"], config["steps"], config["eval_every"]), config["steps"]]


def checkpoint_path(folder, step, config):
    return folder / ("final.safetensors" if step == config["steps"] else f"step-{step:07d}.safetensors")


def checkpoint_paths(run):
    """(config.json, checkpoints in order of steps) of a finished run; one line and exit if it is not finished
    or not whole."""
    folder = run_folder(run)
    if not (folder / "final.safetensors").exists():
        profile, cell, method, seed = run.split("/")[-4:]
        fail(f"{folder} holds no finished run; make it: make PROFILE={profile} {cell} METHODS={method} "
             f"SEEDS={seed.removeprefix('seed')}")
    config = load_config(run)
    paths = [checkpoint_path(folder, step, config) for step in checkpoint_steps(config)]
    if strange := {*folder.glob("step-*.safetensors"), folder / "final.safetensors"} ^ {*paths}:
        there = min(strange).exists()
        fail(f"{min(strange)} is {'no checkpoint of this run' if there else 'not there'}; put it "
             f"{'away' if there else 'back'}, or train again: --fresh, or make ... FRESH=1")
    return config, paths


def results_path(cell):
    return Path("results") / f"{cell}.csv"


def figure_path(cell):
    return Path("figures") / f"{cell}.png"


# --- writing whole -----------------------------------------------------------------------------

def write_whole(path, write):
    """Call write(temporary path), then rename: readers see the old file or the new one, whole. One line and
    exit if the disk is full, or the folder cannot be written; what was there stays."""
    path = Path(path)
    part = seals.part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        fail(f"{path} could not be written ({first_words(error)}); nothing that was there is lost: make "
             "room, or the folder writable, and type the same command again")
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def let_pass(error):
    """Raise it again if the machine did not let a file be read, which is no reason to call it damaged."""
    if is_refused(error):
        raise error


def first_words(error):
    """An exception's text on one line."""
    return " ".join(str(error).split())[:160]


# --- JSON and CSV ------------------------------------------------------------------------------

def write_json(path, value):
    write_whole(path, lambda part: part.write_text(seals.json_text(value), encoding="utf-8"))


def read_json(path, remedy):
    """A dict; one line and exit, with what to do about it, if the file does not hold what was written."""
    try:
        return seals.read_json(path)
    except (OSError, ValueError) as error:
        let_pass(error)
        fail(f"{path} is not readable ({first_words(error)}); {remedy}")


def load_config(run):
    """A run's config.json."""
    path = run_folder(run) / "config.json"
    remedy = "move the run out of runs/, or train it again with --fresh (make ... FRESH=1)"
    config = read_json(path, remedy)
    own = "/".join(str(config.get(name)) for name in ("profile", "cell", "method"))
    own += f"/seed{config.get('seed')}"
    if own != run:
        fail(f"{path} is that of {own}; {remedy}")
    return config


def csv_text(columns, rows):
    """Of dicts; what one does not have is empty."""
    if strange := {name for row in rows for name in row} - {*columns}:
        raise ValueError(f"rows have {', '.join(sorted(strange))} beside their columns")
    return seals.csv_text(columns, [[row.get(name) for name in columns] for row in rows])


def write_csv(path, columns, rows):
    write_whole(path, lambda part: part.write_text(csv_text(columns, rows), encoding="utf-8", newline=""))


def read_csv(path, columns, empty=False):
    """A list of dicts, of a file that may be gzipped; one line and exit if the columns do not begin with
    `columns`, or anything is not as it was written, or, unless it may be empty, there is no row."""
    try:
        content = Path(path).read_bytes()
        text = gzip.decompress(content) if str(path).endswith(".gz") else content
        header, rows = seals.parse_csv(text.decode("utf-8"))
        if tuple(header[:len(columns)]) != tuple(columns):
            raise ValueError("its columns are not those this kit writes")
        if not (rows or empty):
            raise ValueError("it has no row")
        return [dict(zip(header, row, strict=True)) for row in rows]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        let_pass(error)
        fail(f"{path} is not readable ({first_words(error)}); delete it and make it again")


def filled(text, markers, lines, name):
    """A document with these lines between two that are its markers; one line and exit if it has none."""
    before, begin, rest = text.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        fail(f"{name} has no line {markers[0]}, or none {markers[1]}; put them where the table belongs")
    return "\n".join([before + begin, "", *lines, end + after])


def fill_document(path, markers, lines):
    text = filled(path.read_text(encoding="utf-8"), markers, lines, path)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


class Log:
    """train.csv: each row averages what was added since the last one; `lr` is the newest. A row is in the
    file at once, or with the next one where they come faster than one in SAVE_EVERY seconds.

    tensorboard     write the rows as event files too, beside it; nothing of the kit reads them
    rows, seen      of a run that goes on: its rows, and what was added after the last of them
    """

    SAVE_EVERY = 1.0

    def __init__(self, path, tensorboard=False, rows=(), seen=()):
        self.path, self.rows, self.seen, self.saved = path, [*rows], [*seen], -self.SAVE_EVERY
        self.events = event_writer(path.parent) if tensorboard else None
        for row in self.rows:  # a file of its own from the first row on, so that none is there twice
            self.show(row)

    def add(self, values):
        self.seen.append(values)

    def row(self, step):
        names = dict.fromkeys(name for values in self.seen for name in values)
        means = {name: np.mean([values[name] for values in self.seen if name in values]) for name in names}
        if "lr" in means:
            means["lr"] = self.seen[-1]["lr"]
        self.rows.append({"step": step, **{name: f"{mean:.6g}" for name, mean in means.items()}})
        self.seen = []
        self.show(self.rows[-1])
        if time.monotonic() >= self.saved + self.SAVE_EVERY:
            self.save()
        return self.rows[-1]

    def show(self, row):
        for name, value in row.items() if self.events else ():
            if name != "step" and value != "":
                self.events.add_scalar(name, float(value), int(row["step"]))

    def save(self):
        self.saved = time.monotonic()
        if self.events:
            self.events.flush()
        if not self.rows:  # a run that is stopped before its first one
            return
        write_csv(self.path, dict.fromkeys(name for row in self.rows for name in row), self.rows)


def event_writer(folder):
    """TensorBoard's, in place of what it wrote there before; one line and exit if it is not installed."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        fail("--tensorboard needs a package: pip install tensorboard (requirements-watch.txt); train.csv has "
             "the same numbers without it")
    for old in Path(folder).glob("events.out.tfevents.*"):
        old.unlink()
    return Writer(str(folder))


# --- arrays: datasets and text -----------------------------------------------------------------

def arrays_digest(arrays, beside=None):
    """SHA-256 over names, shapes and bytes of {name: array}, whatever file holds them, and over JSON values
    that stand beside them."""
    digest = hashlib.sha256(json.dumps(beside, sort_keys=True).encode() if beside else b"")
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def save_arrays(path, provenance, arrays, compress=False):
    """Write arrays and their provenance, a dict, which gets their digest as "sha256", and its own seal."""
    provenance = provenance | {"sha256": arrays_digest(arrays)}
    save = np.savez_compressed if compress else np.savez
    write_whole(path, lambda part: save(part, provenance=np.array(seals.json_text(provenance)), **arrays))


def load_arrays(path, wanted):
    """(arrays, provenance) of a file save_arrays wrote; one line and exit if it is not there or damaged."""
    name = f"{Path(path).parent.name}/{Path(path).stem}"
    try:
        return read_arrays(path, wanted)
    except FileNotFoundError:
        hint = f"{name.split('/')[0]}/text --lm LM" if "/text-" in name else name
        fail(f"{path} is not there; make it with: python prepare_data.py {hint}")
    except Exception as error:  # a damaged zip raises one of seven types (BadZipFile, zlib.error, ...)
        let_pass(error)
        fail(f"{path} is damaged ({type(error).__name__}: {first_words(error)}); delete it and make it again")


def read_arrays(path, wanted):
    """As load_arrays, but an exception of one of many types if it is damaged."""
    limits.arrays_file(path)
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "provenance"}
        provenance = seals.parse_json(str(file["provenance"]))
    if missing := set(wanted) - set(arrays):
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    if provenance["sha256"] != arrays_digest(arrays):
        raise ValueError("its SHA-256 does not match its content")
    return arrays, provenance


def load_provenance(path):
    """The provenance alone, without reading the arrays."""
    try:
        limits.arrays_file(path)
        with np.load(path, allow_pickle=False) as file:
            return seals.parse_json(str(file["provenance"]))
    except Exception as error:  # as above
        let_pass(error)
        fail(f"{path} is damaged ({type(error).__name__}: {first_words(error)}); delete it and make it again")


def load_dataset(path):
    """(arrays, provenance) of a cell: E whole episodes of N steps in all, as flat arrays.

    observations (N, S) float32, or (N, 84, 84) uint8, an Atari frame once; actions (N, A) float32, or (N,)
    int64; rewards (N,) float32; terminals (N,) bool, true where an episode ended by itself; offsets
    (E + 1,) int64, episode e is rows offsets[e]:offsets[e + 1]; last_observations (E, S), what followed
    each episode's last action, not a number where that is not known; the kitchen's dataset_rewards (N,),
    the sub-tasks that are done now, as D4RL records rewards, where `rewards` is 1 the first time one is.
    """
    names = ("observations", "actions", "rewards", "terminals", "offsets", "last_observations")
    data, provenance = load_arrays(path, names)
    offsets, steps = data["offsets"], len(data["rewards"])
    sound = (len(offsets) > 1 and np.diff(offsets).min() > 0 and offsets[0] == 0
             and all(len(data[name]) == steps for name in ("observations", "actions", "terminals"))
             and offsets[-1] == steps and len(data["last_observations"]) == len(offsets) - 1)
    finite = all(np.isfinite(array).all() for name, array in data.items()
                 if array.dtype.kind == "f" and name != "last_observations")
    if not sound or not finite:
        fail(f"{path} is inconsistent; delete it and make it again")
    return data, provenance


# --- tensors: checkpoints and training state ---------------------------------------------------

def save_tensors(path, tensors, **metadata):
    """Write {name: torch tensor}, and JSON values beside them. safetensors has no checksum of its own."""
    arrays = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    metadata["sha256"] = arrays_digest(arrays, metadata)

    def write(part):
        part.touch()
        mode = part.stat().st_mode
        # one key, because safetensors writes several in an order that changes from process to process
        save_file(arrays, part, {"lamo": json.dumps(metadata)})
        if part.stat().st_mode != mode:  # it lets nobody else read what it writes
            part.chmod(mode)

    write_whole(path, write)


def load_tensors(path):
    """({name: torch tensor}, metadata) of a file save_tensors wrote; one line and exit if it is damaged."""
    try:
        return read_tensors(path)
    except ValueError as error:
        fail(f"{path} is damaged ({error}); delete the folder and train again")


def read_tensors(path):
    """As load_tensors, but ValueError if it is damaged."""
    try:
        with open(path, "rb"):  # of one that may not be read safetensors says that it is not there
            pass
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["lamo"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        digest = metadata.pop("sha256")
        if digest != arrays_digest({name: tensor.numpy() for name, tensor in tensors.items()}, metadata):
            raise ValueError("its SHA-256 does not match its content")
    except Exception as error:  # safetensors' own error, OSError, KeyError and the line above
        let_pass(error)
        raise ValueError(first_words(error)) from error
    return tensors, metadata
