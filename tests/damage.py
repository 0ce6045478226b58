"""Damage to files: bytes cut, flipped, lost and doubled; JSON and CSV changed where they stay JSON and CSV.

    attack("eval.csv", path, read, csv_damages)     # damages it DAMAGES times, and looks what comes of it

A damage is refused (one line and exit), harmless (what is read is the same), silent (it is another), or a
traceback. $DAMAGES says how many a kind, $ATTACKS a file to which each kind's counts are added as JSON.
"""

import collections
import csv
import io
import json
import os

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

DAMAGES = int(os.environ.get("DAMAGES", "100"))
OUTCOMES = ("refused", "harmless", "silent", "traceback")


# --- bytes -------------------------------------------------------------------------------------

@st.composite
def byte_damages(draw, whole):
    """Any file's."""
    size = len(whole)
    at, length = draw(st.integers(0, size - 1)), draw(st.integers(1, 64))
    return draw(st.sampled_from([
        whole[:at],                                                             # cut
        whole[:at] + bytes([whole[at] ^ (1 << length % 8)]) + whole[at + 1:],   # one bit
        whole[:at] + bytes([length * 4 % 256]) + whole[at + 1:],                # one byte
        whole[:at] + bytes(length) + whole[at + length:],                       # a block of zeros
        whole[:at] + whole[at + length:],                                       # lost
        whole[:at + length] + whole[at:],                                       # doubled
        whole + whole[at:at + length]]))


# --- JSON --------------------------------------------------------------------------------------

OTHERS = (None, True, 0, -1, 7, 1.5, float("nan"), float("inf"), 10 ** 30, "", "x", "../..", [], [0], {},
          {"x": 1})


def places(value, way=()):
    """Where the values of a JSON value are: ways of keys and indices."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        if not isinstance(inner, list) or len(inner) < 50:
            yield from places(inner, (*way, key))


def at(value, way):
    for key in way:
        value = value[key]
    return value


@st.composite
def json_damages(draw, whole):
    """A value changed, lost, renamed, or changed with another."""
    value = json.loads(whole)
    ways = [*places(value)]
    one, two = draw(st.sampled_from(ways)), draw(st.sampled_from(ways))
    holder, key, kind = at(value, one[:-1]), one[-1], draw(st.integers(0, 4))
    if kind == 0:
        number = isinstance(holder[key], int | float)
        changes = [holder[key] + 1, -holder[key], holder[key] * 10] if number else [f"{holder[key]}0"]
        holder[key] = draw(st.sampled_from([*changes, *OTHERS]))
    elif kind == 1:
        del holder[key]
    elif kind == 2 and isinstance(holder, dict):
        holder[f"{key}s"] = holder.pop(key)
    else:
        other = at(value, two[:-1])
        assume(one[:len(two)] != two and two[:len(one)] != one)
        holder[key], other[two[-1]] = other[two[-1]], holder[key]
    return json.dumps(value, indent=draw(st.sampled_from([None, 1]))).encode()


# --- CSV ---------------------------------------------------------------------------------------

@st.composite
def csv_damages(draw, whole):
    """A digit or a cell changed; columns or rows changed with each other, lost or doubled."""
    table = [*csv.reader(io.StringIO(whole.decode(), newline=""))]
    n, m = draw(st.integers(1, len(table) - 1)), draw(st.integers(1, len(table) - 1))
    i, j = draw(st.integers(0, len(table[0]) - 1)), draw(st.integers(0, len(table[0]) - 1))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        table[n][i] = change_digit(table[n][i], draw(st.integers(0, 99)))
    elif kind == 1:
        table[n][i] = draw(st.sampled_from(["", "nan", "-1", "x", "1e9", "=1+1", table[m][j]]))
    elif kind == 2:
        table[n][i], table[m][i] = table[m][i], table[n][i]
    elif kind == 3:
        table[0][i], table[0][j] = table[0][j], table[0][i]
    elif kind == 4:
        for row in table:
            row[i], row[j] = row[j], row[i]
    elif kind == 5:
        for row in table:
            del row[i]
    elif kind == 6:
        table[n], table[m] = table[m], table[n]
    elif kind == 7:
        del table[n]
    elif kind == 8:
        table.insert(m, [*table[n]])
    else:
        del table[n:]
    file = io.StringIO()
    csv.writer(file, lineterminator=draw(st.sampled_from(["\n", "\r\n"]))).writerows(table)
    return file.getvalue().encode()


def change_digit(text, number):
    digits = [place for place, letter in enumerate(text) if letter.isdigit()]
    if not digits:
        return f"{text}{number % 10}"
    place = digits[number % len(digits)]
    return f"{text[:place]}{(int(text[place]) + 1 + number % 9) % 10}{text[place + 1:]}"


# --- what comes of it --------------------------------------------------------------------------

def same(one, two):
    """Equal, arrays and tensors in them included."""
    if isinstance(one, dict):
        return isinstance(two, dict) and one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple):
        return isinstance(two, list | tuple) and len(one) == len(two) and all(map(same, one, two))
    if hasattr(one, "dtype"):
        return (getattr(two, "dtype", None) == one.dtype and one.shape == two.shape
                and np.asarray(one).tobytes() == np.asarray(two).tobytes())
    return type(one) is type(two) and (one == two or one != one and two != two)


def outcome(read, expected):
    """(one of OUTCOMES, what was said)."""
    try:
        found = read()
    except SystemExit as stop:
        said = str(stop.code)
        return ("refused" if stop.code and stop.code != 1 and "\n" not in said else "traceback"), said
    except Exception as error:  # that nobody caught
        return "traceback", f"{type(error).__name__}: {error}"
    return ("harmless", "") if same(found, expected) else ("silent", "")


def attack(kind, path, read, structured=None, share=1):
    """Damage the file, by its bytes and, where it has a structure, half of the times there; assert that no
    damage is silent or a traceback. The file is whole again afterwards.

    read        what a stage makes of it
    share       of DAMAGES, where a kind has several files
    """
    whole, expected, count = path.read_bytes(), read(), collections.Counter()
    kinds = byte_damages(whole) if structured is None else byte_damages(whole) | structured(whole)
    found = {}

    @settings(max_examples=-(-DAMAGES // share), deadline=None, database=None, derandomize=True,
              phases=[Phase.generate], suppress_health_check=[*HealthCheck])
    @given(kinds)
    def once(damaged):
        assume(damaged != whole)
        path.write_bytes(damaged)
        result, said = outcome(read, expected)
        count[result] += 1
        found.setdefault(result, (damaged, said))

    once()
    path.write_bytes(whole)
    assert same(read(), expected), "the reader keeps something of what it has read"
    record(f"damaged: {kind}", count)
    assert sum(count.values()) >= DAMAGES // share, count
    for bad in ("silent", "traceback"):
        assert bad not in found, f"{kind}: {count[bad]} {bad}: {found[bad][1]} of {found[bad][0][:2000]}"


def record(kind, count):
    """{outcome: how often}, of a kind of attack, for tests/long.py."""
    if table := os.environ.get("ATTACKS"):
        with open(table, "a") as file:
            print(json.dumps({"kind": kind} | count), file=file)
