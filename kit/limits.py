"""What a file from elsewhere may claim, seen from its header before anything of it is allocated or run.

    limits.arrays_file("data/mini/hopper-medium-0.01.npz")     # sizes of members, shapes of arrays
    limits.model_folder("/models/gpt2")                        # no code, no pipes, no absurd numbers
    limits.tokenizer_folder("/models/gpt2")                    # no rules that multiply a text

Each raises ValueError, which says what was found and what the limit is; callers name the file. HDF5 files are
sources/hdf5.py's.
"""

import json
import math
import mmap
import os
import re
import stat
import zipfile
from pathlib import Path

import numpy as np

GB = 10**9
TEXT = GB                  # bytes of a text, unpacked; WikiText-103 has 0.54
ARRAYS = 16 * GB           # of an .npz file's members, unpacked; Pong's million frames are 7
PACKED = 400, 64 * 10**6   # times that members may be larger than the file, and bytes that are always free
DOWNLOAD = 16 * GB
SMALL = 100 * 10**6        # bytes of a JSON file or a vocabulary
HEADER = 25 * 10**6        # of a safetensors file
LAYERS = 1000
COUNT = 2**24              # any whole number in a config.json: of words, positions, units
LABELS = 10_000
WITHOUT_WEIGHTS = 5 * 10**8  # numbers of a model of which there are no weights to compare with
GROWTH = 8                 # times that a tokenizer's rules may lengthen a text
NORMALIZERS = ("Sequence", "Replace", "Prepend", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip",
               "StripAccents", "ByteLevel", "Nmt", "BertNormalizer")


def at_most(what, found, limit, unit="bytes"):
    if found > limit:
        raise ValueError(f"{what} {found:,} {unit}, and the limit is {limit:,}")


def regular(path, limit=None):
    """The size of a file, which is no pipe and no device."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file")
    if limit is not None:
        at_most(f"{Path(path).name} has", found.st_size, limit)
    return found.st_size


def plain_name(name):
    """A file's name as rows of a CSV have it: a spreadsheet takes what begins with = + - @ for a formula."""
    name = "".join(c if c.isprintable() else "_" for c in name)
    return re.sub("^[=+@-]", "_", name)


# --- .npz files and zips -------------------------------------------------------------------------

def members(path, limit):
    """The members of a zip, none of them larger than it can be."""
    stored = regular(path)
    with zipfile.ZipFile(path) as archive:
        found = archive.infolist()
    claimed, packed = sum(m.file_size for m in found), sum(m.compress_size for m in found)
    at_most("its members claim", claimed, limit)
    times, free = PACKED
    at_most(f"it is {stored:,} bytes long, and its members claim", claimed, times * stored + free)
    at_most("its members overlap: they claim to be stored in", packed, stored)
    return found


def arrays_file(path):
    """An .npz file: its members, and the shape that each array claims."""
    found = members(path, ARRAYS)
    at_most("it has", len(found), 1000, "members")
    with zipfile.ZipFile(path) as archive:
        for member in found:
            with archive.open(member) as file:
                if (version := np.lib.format.read_magic(file)) not in ((1, 0), (2, 0)):
                    raise ValueError(f"{member.filename} is another version of .npy")
                read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
                shape, _, dtype = read(file)
            at_most(f"{member.filename} holds {member.file_size:,} bytes and claims", size_of(shape, dtype),
                    member.file_size)


def size_of(shape, dtype):
    """Bytes of an array, whatever it claims."""
    return math.prod(map(int, shape)) * dtype.itemsize


# --- language models -----------------------------------------------------------------------------

def model_folder(folder):
    """A folder in the model hub's format; beside what is read it may hold weights of other frameworks."""
    for path in Path(folder).iterdir():
        if not path.is_dir():
            regular(path, SMALL if path.suffix in (".json", ".txt", ".model", ".jinja") else None)
    if (Path(folder) / "adapter_config.json").exists():
        raise ValueError("it holds an adapter, adapter_config.json; --adapter takes one")
    for path in [*Path(folder).glob("*config.json"), *Path(folder).glob("*.index.json")]:
        check_config(path.name, json.loads(path.read_text(encoding="utf-8")))


def check_config(name, config):
    """A JSON file of a model's folder: no code, and no number that nothing has."""
    if not isinstance(config, dict):
        raise ValueError(f"{name} is no object")
    if "auto_map" in config:
        raise ValueError(f"{name} names code of its own, auto_map, which is never run; a model of a known "
                         "family does without: delete that entry")
    for file in config.get("weight_map", {}).values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"{name} names a file outside of the folder: {file}")
    for key, number in numbers(config):
        if "layer" in key:
            at_most(f"{name}: {key} is", number, LAYERS, "layers")
        if key == "num_labels":
            at_most(f"{name}: {key} is", number, LABELS, "labels")
        if not name.endswith(".index.json"):
            at_most(f"{name}: {key} is", number, COUNT, "in number")


def numbers(config):
    """(key, whole number) of all that a JSON value holds, however deep."""
    open_ones = [("", config)]
    while open_ones:
        key, value = open_ones.pop()
        if isinstance(value, dict):
            open_ones += value.items()
        elif isinstance(value, list):
            open_ones += [(key, item) for item in value]
        elif isinstance(value, int) and key != "model_max_length":  # 10^30 where there is no limit
            yield key, abs(value)


def stored_numbers(place):
    """How many numbers a language model's weights may hold at most: of safetensors, as many as their headers
    say; of others, by the size of the files. 0 if there are none."""
    if place.is_file():
        return 8 * regular(place)  # quantised
    if files := sorted(place.glob("*.safetensors")):
        return sum(map(safetensors_numbers, files))
    return sum(map(regular, place.glob("*.bin")))


def safetensors_numbers(path):
    """Of a safetensors file's header."""
    size = regular(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        at_most(f"{path.name} has a header of", length, min(HEADER, size))
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path.name} is no object")
    shapes = [tensor["shape"] for name, tensor in header.items() if name != "__metadata__"]
    if any(number < 0 for shape in shapes for number in shape):
        raise ValueError(f"the header of {path.name} claims a shape below 0")
    total = sum(map(math.prod, shapes))
    at_most(f"the header of {path.name} claims", total, 8 * size, "numbers")  # of a bit each
    return total


def model_size(claimed, place):
    """That a model of `claimed` numbers is at most twice its weights; place: None if it is the hub's."""
    stored = stored_numbers(place) if place else 0
    if stored:
        at_most(f"its weights hold {stored:,} numbers, and its configuration claims", claimed,
                2 * stored + 10**6, "numbers")
    elif place:
        at_most("it has no weights, and its configuration claims", claimed, WITHOUT_WEIGHTS, "numbers")


def gguf_file(path):
    """The counts in a GGUF file's header."""
    size = regular(path)
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        file.read(4)
        for what in ("tensors", "entries"):
            at_most("its header claims", int.from_bytes(file.read(8), "little"), min(10**5, size), what)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for count in re.finditer(rb"block_count[\x04\x05\x0a\x0b]\0\0\0(.{4})", content, re.DOTALL):
                at_most("its header claims", int.from_bytes(count[1], "little"), LAYERS, "layers")


def adapter_folder(folder):
    """adapter_config.json and adapter_model.safetensors, in peft's format."""
    for path in Path(folder).glob("adapter_*"):
        regular(path, None if path.suffix == ".safetensors" else SMALL)
    safetensors_numbers(Path(folder) / "adapter_model.safetensors")


# --- tokenizers ----------------------------------------------------------------------------------

def tokenizer_folder(folder):
    """tokenizer.json: rules that make a text longer, each times what the others do."""
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return
    regular(path, SMALL)
    rules = json.loads(path.read_text(encoding="utf-8"))
    at_most("tokenizer.json lengthens a text", growth(rules.get("normalizer")), GROWTH, "times")
    for part in ("padding", "truncation"):
        for key, number in numbers({part: rules.get(part)}):
            at_most(f"tokenizer.json: {part}: {key} is", number, 10**6, "tokens")
    for token in ((rules.get("post_processor") or {}).get("special_tokens") or {}).values():
        at_most("tokenizer.json adds", len(token["ids"]), 100, "tokens to each text")


def growth(rule):
    """How many times longer a normalizer can make a text."""
    if rule is None:
        return 1
    if rule["type"] not in NORMALIZERS:
        raise ValueError(f"tokenizer.json has a normalizer {rule['type']}, which is none of "
                         f"{', '.join(NORMALIZERS)}")
    if rule["type"] == "Sequence":
        return math.prod(map(growth, rule["normalizers"]))
    if rule["type"] == "Prepend":
        return 1 + len(rule["prepend"])
    if rule["type"] == "Replace":
        found = rule["pattern"].get("String", "")
        return max(1, math.ceil(len(rule["content"]) / len(found)) if found else 1 + len(rule["content"]))
    return 1
