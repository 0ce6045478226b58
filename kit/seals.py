"""Every file that the kit writes proves that it is as it was written; a reader refuses another in one line.

    python -m kit.seals FILE ...        # seal what you changed by hand, or what has no seal yet
    python -m kit.seals FOLDER ...      # list its files in SHA256SUMS, against which they then are checked

JSON            a key `seal`: SHA-256 over the other keys
CSV             a last column `seal`: in each row the beginning of the SHA-256 over the header and all rows
                down to it, in the last row also over its being the last. So a changed digit is found, and a
                column or row that was swapped, dropped or doubled, also at the end. pandas and R read it
                as one more column of text.
folders         SHA256SUMS, as sha256sum writes it and checks it: the language models and players that ship,
                what mini.pretrain and export.py write, and any folder of yours that has one
.npz, .safetensors      by kit.artifacts: a digest of names, shapes and values, whatever the container does

A seal is no signature: it finds damage, and edits that nobody declared. Standard library only.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

from kit import fail

KEY = "seal"
LISTED = "SHA256SUMS"
LINE = re.compile(r"(?P<digest>[0-9a-f]{64}) [ *](\./)?(?P<name>[^/]+)")  # " *": of bytes
FORGOTTEN = 3600.0  # seconds without a write
UNSEALED = (f"it has no {KEY}: it was edited, or another program wrote it; if its content is right, seal it: "
            "python -m kit.seals FILE")
BROKEN = f"its {KEY} does not match its content"


def here():
    """This host as processes see each other on it: two containers may share a name, not process ids."""
    try:
        space = "".join(filter(str.isdigit, os.readlink("/proc/self/ns/pid")))
    except OSError:
        return socket.gethostname()
    return f"{socket.gethostname()}-{space}"


def part_of(path):
    """Where this process writes a file until it is whole."""
    return path.with_name(f".{path.stem}.{here()}.{os.getpid()}.part{path.suffix}")


def write_whole(path, text):
    """Whole or not at all, and no more: what is lost with the machine may be."""
    part = part_of(path)
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def sha256(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder, stem=""):
    """What writes that were killed left in a folder, of one file or of all, but not what somebody writes."""
    for part in Path(folder).glob(f".{stem or '*'}.*.part*"):
        with contextlib.suppress(FileNotFoundError):
            if is_left(part):
                part.unlink()
    for part in () if stem else Path(folder).glob(".tmp??????"):  # safetensors' own
        part.unlink(missing_ok=True)


def is_left(part):
    """Whether the process that wrote it is gone: on another host, if it has not written for so long."""
    place, _, pid = part.name.rpartition(".part")[0].rpartition(".")
    if place.endswith(f".{here()}") and pid.isdigit():
        return int(pid) == os.getpid() or not is_alive(int(pid))
    return time.time() - part.stat().st_mtime > FORGOTTEN


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# --- JSON --------------------------------------------------------------------------------------

def of_object(value):
    """The seal of a dict: equal whatever the order of its keys, and the spaces between them."""
    rest = {name: one for name, one in value.items() if name != KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(value):
    return value | {KEY: of_object(value)}


def json_text(value):
    return json.dumps(sealed(value), indent=1) + "\n"


def parse_json(text):
    """The dict that json_text was given; ValueError if it is another, or has no seal."""
    value = parse_object(text)
    if KEY not in value:
        raise ValueError(UNSEALED)
    if value.pop(KEY) != of_object(value):
        raise ValueError(BROKEN)
    return value


def parse_object(text):
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    return value


def read_json(path):
    """Of a file; OSError, or ValueError in the words of parse_json."""
    return parse_json(Path(path).read_text(encoding="utf-8"))


def read_report(path):
    """As read_json, but {} of a file that is not there or damaged: of one that decides nothing."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


# --- CSV ---------------------------------------------------------------------------------------

def of_rows(header, rows):
    """The seals of a table's rows, lists of text."""
    digest = hashlib.sha256(json.dumps(header).encode())
    for number, row in enumerate(rows, 1):
        digest.update(json.dumps(row).encode())
        own = digest.copy()
        own.update(b"last" if number == len(rows) else b"")
        yield own.hexdigest()[:16]


def csv_text(header, rows):
    """A table of cells of any type."""
    header, rows = list(header), [["" if cell is None else str(cell) for cell in row] for row in rows]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, KEY])
    writer.writerows([*row, seal] for row, seal in zip(rows, of_rows(header, rows), strict=True))
    return file.getvalue()


def parse_csv(text):
    """(header, rows) of a table that csv_text wrote, as text; ValueError if it is another, or has no seal.
    One without a row proves nothing."""
    header, *rows = parse_table(text)
    if header[-1:] != [KEY]:
        raise ValueError(UNSEALED)
    *header, _ = header
    seals, rows = [row[-1] for row in rows], [row[:-1] for row in rows]
    for number, (found, meant) in enumerate(zip(seals, of_rows(header, rows), strict=True), 1):
        if found != meant:
            raise ValueError(f"the {KEY} of row {number} does not match the rows down to it, or it was not "
                             "the last one")
    return header, rows


def parse_table(text):
    """Lists of cells, each as long as the first."""
    try:
        table = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if not table or any(len(row) != len(table[0]) for row in table):
        raise ValueError("its columns are not those this kit writes")
    return table


# --- folders -----------------------------------------------------------------------------------

def write_list(folder, names=()):
    """SHA256SUMS of these files of a folder, or of all, in place of the one that is there."""
    names = names or [path.name for path in Path(folder).iterdir()
                      if path.is_file() and path.name != LISTED and not path.name.startswith(".")]
    lines = [f"{sha256(Path(folder) / name)}  {name}\n" for name in sorted(names)]
    write_whole(Path(folder) / LISTED, "".join(lines))


def check_list(folder, only=None):
    """ValueError if a file is not the one that the folder's SHA256SUMS lists. A folder without a list may be
    anybody's, and is not checked.

    only    the name of one file, which has to be listed
    """
    path = Path(folder) / LISTED
    if only is None and not path.exists():
        return
    lines = [LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    listed = {line["name"]: line["digest"] for line in lines if line}
    if len(listed) < len(lines) or only is not None and only not in listed:
        raise ValueError(f"{LISTED} does not list {only or 'the files of its folder'}")
    for name in listed if only is None else [only]:
        if not path.with_name(name).is_file():
            raise ValueError(f"{name} is not there, which {LISTED} lists")
        if sha256(path.with_name(name)) != listed[name]:
            raise ValueError(f"{name} is not the file that {LISTED} lists; put it back, or, if it is meant: "
                             "python -m kit.seals FOLDER")


# --- the command -------------------------------------------------------------------------------

def seal(path):
    """Seal a JSON or CSV file as it is now, or list a folder's files."""
    if path.is_dir():
        return write_list(path)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return write_whole(path, json_text(parse_object(text)))
    if path.suffix != ".csv":
        raise ValueError("it is neither .json nor .csv nor a folder")
    header, *rows = parse_table(text)
    size = len(header) - (header[-1] == KEY)
    write_whole(path, csv_text(header[:size], [row[:size] for row in rows]))


def main(paths):
    if not paths or {"-h", "--help"} & {*paths}:
        print(f"usage: python3 -m kit.seals FILE ...\n\n{__doc__}")
        return
    for path in map(Path, paths):
        try:
            seal(path)
        except (OSError, ValueError) as error:
            fail(f"{path} cannot be sealed ({' '.join(str(error).split())[:160]})")
        print(f"{path}: sealed as it is")


if __name__ == "__main__":
    main(sys.argv[1:])
