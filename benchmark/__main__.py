"""How fast the kit is, measured beside its peers on this machine.

    make benchmark                               # everything: half an hour on one core
    make benchmark ARGS="--only evaluation"      # the rows whose group or name holds this; others are kept
    python -m benchmark --write                  # publish results/benchmark.csv

writes  results/benchmark.csv, one row a measurement (table.COLUMNS); --write copies it to
        benchmark/record.csv, and writes its table into docs/speed.md

Every row is a process of its own that does one repeat whenever it is told to. The rows of a group take turns,
a repeat each, so that what slows the machine down for a while slows all of them. A repeat is measured in wall
time; rows show the median and the range. CPU is user and system time of a repeat, peak the process's
largest memory. One thread, unless --threads says otherwise.

A step reads 64 windows of 20 environment steps, of the mini profile's models, too, which trains with 16; with
text, GPT-2 also reads 2 x 1,024 tokens of all 50,257 words.
Peers: the stock transformers model with peft's LoRA, or with all its weights trained, inside the same
embeddings and heads, in float32, as a program that knows nothing of the Makefile's settings for glibc runs
them. Useful FLOPs are those of the products of trunk and language head: forward, and backward to what trains;
what is left out because nobody reads it counts.
"""

import argparse

from kit import signals
from kit.settings import COUNT, THREADS, Options

OPTIONS = Options(__doc__)
OPTIONS.prog = "benchmark"
OPTIONS.add_argument("--only", default="", metavar="PART", help="rows whose group or name holds this")
OPTIONS.add_argument("--repeats", type=COUNT, default=5)
OPTIONS.add_argument("--threads", type=THREADS, default=1)
OPTIONS.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="the kit's")
OPTIONS.add_argument("--write", action="store_true", help="write docs/speed.md from the results")
OPTIONS.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # the process of that row

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a moment

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

from benchmark.rows import ROWS, TRAINING
from benchmark.table import COLUMNS, RESULTS, line, table, write
from kit import fail
from kit.artifacts import read_csv, write_csv

GLIBC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # as the Makefile sets them
ABOUT = -1  # the worker that is no row's


# --- a row's process ---------------------------------------------------------------------------

def used():
    """(CPU seconds, peak GB) of this process and its children."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return sum(p.ru_utime + p.ru_stime for p in parts), max(p.ru_maxrss for p in parts) / unit


def function_of(measure):
    """Of "models.training". By name, so that a row's process has in memory only what it needs."""
    module, name = measure.split(".")
    return getattr(importlib.import_module(f"benchmark.{module}"), name)


def work(row, dtype):
    """A repeat and a line of JSON for every line read."""
    repeat, divisor = function_of(row.measure)(dtype, **row.arguments)
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), used()[0]
        seconds = repeat() or [time.perf_counter() - start]
        print(json.dumps({"seconds": seconds, "divisor": divisor, "cpu": used()[0] - cpu, "peak": used()[1]}),
              flush=True)


# --- the process that measures. It stays small: a process begins with the peak memory of its parent --------

def command(number, dtype, threads):
    return [sys.executable, "-m", "benchmark", "--worker", str(number), "--dtype", dtype,
            "--threads", str(threads)]


def start(number, dtype, threads, place):
    row = ROWS[number]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "TMPDIR": place}
    if row.peer and not row.glibc:
        environment = {key: value for key, value in environment.items() if key not in GLIBC}
    return subprocess.Popen(command(number, "float32" if row.peer else dtype, threads), env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def tell(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def answer(process, row):
    line = process.stdout.readline()
    if not line:
        fail(f"the row {row.name!r} ended without an answer; its error stands above")
    return json.loads(line)


def measure(numbers, dtype, args, place):
    """The rows of a group, in turns; returns {number: its repeats}. place: a folder for what they write."""
    workers = {n: [start(n, dtype, args.threads, place) for _ in range(2 if ROWS[n].beside else 1)]
               for n in numbers}
    repeats = {n: [] for n in numbers}
    try:
        for n in numbers:
            for process in workers[n]:
                if process.stdout.readline() != "ready\n":
                    fail(f"the row {ROWS[n].name!r} did not start; its error stands above")
        # a repeat of some rows has several samples
        while min(sum(len(r["seconds"]) for r in of_row) for of_row in repeats.values()) < args.repeats:
            for n in numbers:
                for process in workers[n]:
                    tell(process)
                repeats[n].append([answer(process, ROWS[n]) for process in workers[n]][0])
    finally:
        for processes in workers.values():
            for process in processes:
                process.kill()
                process.wait()  # its memory is free before the next group starts
    return repeats


def row_of(row, repeats, common):
    """A row of COLUMNS from what its worker answered."""
    divisor = repeats[0]["divisor"]
    scale = {"ms": 1000}.get(row.unit, 1)
    values = [scale * s / divisor if divisor > 0 else -divisor / s for r in repeats for s in r["seconds"]]
    median = statistics.median(values)
    useful = row.flops * (median if row.unit == "steps/s" else 1 / median)
    cpu = f"{scale * statistics.median(r['cpu'] / divisor for r in repeats):.3g}" if divisor > 0 else ""
    median, low, high = (f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (median, min(values), max(values)))
    return common | {
        "group": row.group, "name": row.name, "unit": row.unit, "median": median, "low": low, "high": high,
        "repeats": len(values), "cpu": cpu, "peak_gb": f"{max(r['peak'] for r in repeats):.2f}",
        "useful_gflops": f"{useful / 1e9:.0f}" if useful else "",
        "dtype": "float32" if row.peer else common["dtype"]}


def rows_kept(common, chosen):
    """Rows of an earlier call on this very machine that are not measured now."""
    same = ("threads", "machine", "torch")
    others = {(row.group, row.name): "float32" if row.peer else common["dtype"]
              for n, row in enumerate(ROWS) if n not in chosen}
    return [row for row in read_csv(RESULTS, COLUMNS)
            if others.get((row["group"], row["name"])) == row["dtype"]
            and [row[key] for key in same] == [str(common[key]) for key in same]]


def benchmark(args):
    chosen = [n for n, row in enumerate(ROWS) if args.only in row.group or args.only in row.name]
    if not chosen:
        fail(f"no row's group or name holds {args.only!r}; there are "
             f"{', '.join(dict.fromkeys(row.group for row in ROWS))}")
    if any(ROWS[n].measure == TRAINING for n in chosen) and not set(GLIBC) <= set(os.environ):
        fail("training is measured with the Makefile's settings of glibc; run: make benchmark")
    common = json.loads(subprocess.run(command(ABOUT, args.dtype, args.threads), check=True,
                                       stdout=subprocess.PIPE).stdout)
    rows = rows_kept(common, chosen) if args.only and RESULTS.exists() else []
    places = {(row.group, row.name): place for place, row in enumerate(ROWS)}
    for group in tqdm(list(dict.fromkeys(ROWS[n].group for n in chosen)), disable=None, unit="group"):
        with tempfile.TemporaryDirectory(prefix="lamo-benchmark-") as place:  # a killed worker clears nothing
            repeats = measure([n for n in chosen if ROWS[n].group == group], common["dtype"], args, place)
        new = [row_of(ROWS[n], of_row, common) for n, of_row in repeats.items()]
        rows = sorted([*rows, *new], key=lambda row: places[row["group"], row["name"]])
        write_csv(RESULTS, COLUMNS, rows)
        tqdm.write("\n".join(line(row) for row in new))
    print("\n" + "\n".join(table(rows)) + f"\n\nrows {RESULTS}")


if __name__ == "__main__":
    if ARGS.worker == ABOUT:
        print(json.dumps(function_of("models.about")(ARGS.dtype, ARGS.threads)))
    elif ARGS.worker is not None:
        work(ROWS[ARGS.worker], ARGS.dtype)
    elif ARGS.write:
        write()
    else:
        benchmark(ARGS)
