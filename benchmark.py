"""How fast the kit is, measured beside its peers on this machine.

    make benchmark                               # everything: half an hour on one core
    make benchmark ARGS="--only evaluation"      # the rows whose group or name holds this; others are kept
    python benchmark.py --readme                 # write README § Speed from results/benchmark.csv

writes  results/benchmark.csv, one row a measurement (COLUMNS below); --readme keeps it in assets/, too

Every row is a process of its own that does one repeat whenever it is told to. The rows of a group take turns,
a repeat each, so that what slows the machine down for a while slows all of them. A repeat is measured in wall
time; rows show the median and the range. CPU is user and system time of a repeat, peak the process's
largest memory. One thread, unless --threads says otherwise.

GPT-2 has its own shapes, random weights and the paper's dropout; a step reads 64 windows of 20 environment
steps and, with text, 2 x 1,024 tokens of all 50,257 words. Peers: the stock transformers model with peft's
LoRA, or with all its weights trained, inside the same embeddings and heads, in float32, as a program that
knows nothing of the Makefile's settings for glibc runs them.
Useful FLOPs are those of the products of trunk and language head: forward, and backward to what trains; what
is left out because nobody reads it counts.
"""

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COLUMNS = ("group", "name", "unit", "median", "low", "high", "repeats", "cpu", "peak_gb",
           "useful_gflops", "dtype", "threads", "machine", "torch", "code")
KIT = Path(__file__).resolve().parent
RESULTS, RECORD, README = Path("results/benchmark.csv"), KIT / "assets/benchmark.csv", KIT / "README.md"
GLIBC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")  # as the Makefile sets them

# The authors' code, unmodified, under its own pinned packages: measured once, on another machine.
RELEASED = {
    "machine": "two-core Xeon with AMX, one thread, float32",
    "GPT-2, step": "35.2 s, 14.4 GB",
    "GPT-2, step with text": "50.8 s, 14.8 GB",
    "small models, step": "DT 1.16 s, 2.0 GB",
    "batches": "17 ms",
    "evaluation, GPT-2": "6.7 steps/s, one episode at a time",
    "evaluation, DT": "385 steps/s, one episode at a time",
}

OPTIONS = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("--only", default="", metavar="PART", help="rows whose group or name holds this")
OPTIONS.add_argument("--repeats", type=int, default=5)
OPTIONS.add_argument("--threads", type=int, default=1)
OPTIONS.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"), help="the kit's")
OPTIONS.add_argument("--readme", action="store_true", help="write README § Speed from the results")
OPTIONS.add_argument("--worker", type=int, help=argparse.SUPPRESS)


# --- what is measured. Each function prepares, and returns one repeat as a function (which may return the
# seconds itself) and what divides them: steps, or a number that turns 1 / seconds into the row's unit -----

def trunk_flops(tokens, context, passes, layers=12, width=768):
    """passes: 1 forward, 2 and backward to the inputs, 3 and to the weights; attention has no weights."""
    return layers * tokens * (2 * 12 * width**2 * passes + 4 * context * width * (3 if passes > 1 else 1))


def build(kind, dtype):
    """(configuration, model): the kit's "mini" or "dt", or GPT-2 as "lamo", "wiki", "peft" or "stock"."""
    import torch

    import model as kit
    import tasks

    torch.manual_seed(0)
    if kind in ("mini", "dt"):
        config = tasks.configuration("mini/halfcheetah-medium-1/" + kind.replace("mini", "lamo") + "/seed0",
                                     dtype=dtype)
        return config, kit.build_model(config)
    from transformers import GPT2Config, GPT2LMHeadModel

    method = {"peft": "lamo-mlp", "stock": "wiki", "lamo": "lamo-mlp"}.get(kind, kind)
    config = tasks.configuration(f"paper/halfcheetah-medium-1/{method}/seed0", dtype=dtype)
    shape = GPT2Config(**dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), config["dropout"]))
    if kind in ("lamo", "wiki"):
        with tempfile.TemporaryDirectory() as folder:
            GPT2LMHeadModel(shape).save_pretrained(folder)
            return config, kit.build_model(config | {"lm": folder})
    trunk = GPT2LMHeadModel(shape)
    kit.last_mlp = lambda trunk: None  # a peer computes it for every token
    if kind == "peft":
        import peft

        trunk = peft.get_peft_model(trunk, peft.LoraConfig(
            r=config["lora_rank"], lora_alpha=config["lora_alpha"], lora_dropout=config["dropout"],
            target_modules=["c_attn"], fan_in_fan_out=True)).base_model.model
    return config, kit.DecisionTransformer(trunk, config["state_dim"], config["action_dim"],
                                           config["max_timestep"], config["embeddings"])


def dataset(rows, config):
    """What train.py draws batches from, for `rows` random steps in episodes of 500."""
    import numpy as np

    from train import training_arrays

    rng = np.random.default_rng(0)
    data = {"observations": rng.standard_normal((rows, config["state_dim"]), np.float32),
            "actions": rng.uniform(-1, 1, (rows, config["action_dim"])).astype(np.float32),
            "rewards": rng.uniform(0, 3, rows).astype(np.float32), "offsets": np.arange(0, rows + 1, 500)}
    return training_arrays(data, config)[:2]


def training(dtype, kind, rows=10_000, text=False, steps=1, before=0):
    """Steps of train.py, after `before` others, each with the drawing of its batch."""
    import numpy as np
    import torch

    from train import make_optimizer, sample_batch, training_step

    config, model = build(kind, dtype)
    config["lm_weight"] = 0.1 if text else 0.0
    arrays, ends = dataset(rows, config)
    rng, optimizer = np.random.default_rng(0), make_optimizer(model.train(), config)
    ids = torch.from_numpy(rng.integers(0, 50_257, (2, 1024))) if text else None

    def repeat(count=steps):
        for _ in range(count):
            batch, mask = sample_batch(arrays, ends, rng, config["batch_size"], config["context"])
            training_step(model, optimizer, config, batch, mask, ids)

    repeat(before)
    return repeat, steps


def sampling(dtype, rows):
    import numpy as np

    from train import sample_batch

    config, _ = build("dt", dtype)
    (arrays, ends), rng = dataset(rows, config), np.random.default_rng(0)

    def repeat():
        for _ in range(500):
            sample_batch(arrays, ends, rng, config["batch_size"], config["context"])

    return repeat, 500


class Clock:
    """Takes the place of evaluate.py's progress bar: when each lock-step of the environments ended."""

    def __init__(self):
        self.ends = []

    def update(self, _):
        self.ends.append(time.perf_counter())


def playing(dtype, kind, episodes, before=0):
    """Lock-steps of evaluate.py on HalfCheetah, whose episodes do not end early, with a full context."""
    import copy

    import torch

    from evaluate import play
    from lora import merge_lora

    config, model = build(kind, dtype)
    model = copy.deepcopy(model.eval())
    merge_lora(model.trunk)
    each = max(1, 20 // episodes)  # lock-steps that make one sample
    config |= {"episodes": episodes, "at_once": episodes, "target_returns": (6000.0,),
               "state_mean": [0.0] * 17, "state_std": [1.0] * 17, "horizon": config["context"] + 5 * each}

    def repeat():
        clock = Clock()
        play(model, config, torch.device("cpu"), clock)
        marks = clock.ends[config["context"] - 1::each]
        return [late - early for early, late in zip(marks, marks[1:], strict=False)]

    for _ in range(before):
        repeat()
    return repeat, -episodes * each


def product(dtype, kind):
    import torch

    kind = getattr(torch, kind)
    a, b = torch.randn(3840, 768, dtype=kind), torch.randn(768, 3072, dtype=kind)

    def repeat():
        for _ in range(10):
            a @ b

    return repeat, -10 * 2 * 3840 * 768 * 3072 / 1e9


def command(dtype, *words):
    def repeat():
        subprocess.run([sys.executable, KIT / words[0], *words[1:]], check=True, capture_output=True)

    return repeat, 1


def preparing(dtype, *words, rows=0):
    """prepare_data.py in an empty folder; from a file of `rows` random steps in D4RL's layout, if given."""
    import h5py
    import numpy as np

    folder = Path(tempfile.mkdtemp(prefix="lamo-benchmark-"))
    if rows:
        rng, file = np.random.default_rng(0), h5py.File(folder / "hopper_medium-v2.hdf5", "w")
        columns = {"observations": 11, "next_observations": 11, "actions": 3}
        for name, width in columns.items():
            file.create_dataset(name, data=rng.uniform(-1, 1, (rows, width)).astype("f4"), compression="gzip")
        file["rewards"] = rng.uniform(0, 3, rows).astype("f4")
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(1, rows + 1) % 500 == 0
        file.close()
        words += ("--data", str(folder))

    def repeat():
        subprocess.run([sys.executable, KIT / "prepare_data.py", *words], check=True, capture_output=True,
                       cwd=folder)
        for made in folder.glob("data/*/*"):
            made.unlink()

    return repeat, 1


SCRIPTS = ("tasks.py", "prepare_data.py", "train.py", "baselines.py", "evaluate.py", "plot.py", "lora.py",
           "pretrain.py", "players.py", "benchmark.py")

STEP, STEP_ALL = trunk_flops(3840, 60, 2), trunk_flops(3840, 60, 3)
WORDS = trunk_flops(2048, 1024, 2) + 2 * 2 * 2048 * 768 * 50_257

# group, name, unit, function, its arguments, and more: useful FLOPs; peers, which run in float32 and without
# the glibc settings unless "glibc"; "beside" starts the row twice, side by side
ROWS = [
    ("machine", "product 3840 x 768 x 3072, float32", "GFLOP/s", product, ("float32",), {}),
    ("machine", "product 3840 x 768 x 3072, bfloat16", "GFLOP/s", product, ("bfloat16",), {}),
    ("GPT-2, step", "kit", "s", training, ("lamo",), {"flops": STEP}),
    ("GPT-2, step", "peft on stock transformers", "s", training, ("peft",),
     {"flops": STEP, "peer": True}),
    ("GPT-2, step", "the same with the kit's glibc settings", "s", training, ("peft",),
     {"flops": STEP, "peer": True, "glibc": True}),
    ("GPT-2, step, all weights", "kit", "s", training, ("wiki",), {"flops": STEP_ALL}),
    ("GPT-2, step, all weights", "stock transformers", "s", training, ("stock",),
     {"flops": STEP_ALL, "peer": True}),
    ("GPT-2, step with text", "kit", "s", training, ("lamo", 10_000, True), {"flops": STEP + WORDS}),
    ("GPT-2, step with text", "peft on stock transformers", "s", training, ("peft", 10_000, True),
     {"flops": STEP + WORDS, "peer": True}),
    ("small models, step", "mini LaMo, 4 layers of 256", "s", training, ("mini", 10_000, False, 5), {}),
    ("small models, step", "DT, 3 layers of 128", "s", training, ("dt", 10_000, False, 10), {}),
    *[("batches", f"64 x 20 of {rows:,} steps", "ms", sampling, (rows,), {}) for rows in (10_000, 1_000_000)],
    *[(f"evaluation, {name}", f"{n} at once", "steps/s", playing, (kind, n),
       {"flops": trunk_flops(60, 60, 1, layers, width)})
      for name, kind, layers, width in (
          ("GPT-2", "lamo", 12, 768), ("mini LaMo", "mini", 4, 256), ("DT", "dt", 3, 128))
      for n in (1, 20, 80)],
    ("data", "mini/hopper-medium-0.01, 21 episodes played", "s", preparing, ("mini/hopper-medium-0.01",), {}),
    ("data", "paper/hopper-medium-1, HDF5 of 1,000,000 steps", "s", preparing,
     ("paper/hopper-medium-1",), {"keywords": {"rows": 1_000_000}}),
    *[("growth, DT's step", f"{rows:,} steps of data", "s", training, ("dt", rows, False, 10), {})
      for rows in (10_000, 100_000, 1_000_000)],
    *[("growth, DT's step", f"after {before} steps", "s", training, ("dt", 10_000, False, 10, before), {})
      for before in (40, 400)],
    *[("growth, DT's evaluation", f"20 at once, after {20 * before} episodes", "steps/s", playing,
       ("dt", 20, before), {}) for before in (1, 10)],
    ("side by side", "mini LaMo's step, alone", "s", training, ("mini", 10_000, False, 5), {}),
    ("side by side", "mini LaMo's step, another beside it", "s", training, ("mini", 10_000, False, 5),
     {"beside": True}),
    *[("start-up", f"{script} --help", "s", command, (script, "--help"), {}) for script in SCRIPTS],
]


# --- measuring ---------------------------------------------------------------------------------

def used():
    """(CPU seconds, peak GB) of this process and its children."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return sum(p.ru_utime + p.ru_stime for p in parts), max(p.ru_maxrss for p in parts) / unit


def work(number, dtype):
    """A row's process: a repeat and a line of JSON for every line read."""
    _, _, _, function, arguments, more = ROWS[number]
    repeat, divisor = function(dtype, *arguments, **more.get("keywords", {}))
    if function in (training, sampling, product):
        repeat()  # the first allocates, and is not counted
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), used()[0]
        seconds = repeat() or [time.perf_counter() - start]
        print(json.dumps({"seconds": seconds, "divisor": divisor, "cpu": used()[0] - cpu, "peak": used()[1]}),
              flush=True)


def start(number, args, dtype):
    more = ROWS[number][-1]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads), "PYTHONWARNINGS": "ignore"}
    if more.get("peer") and not more.get("glibc"):
        environment = {key: value for key, value in environment.items() if key not in GLIBC}
    return subprocess.Popen([sys.executable, __file__, "--worker", str(number), "--dtype",
                             "float32" if more.get("peer") else dtype],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def tell(process):
    process.stdin.write("go\n")
    process.stdin.flush()


def answer(process, name):
    line = process.stdout.readline()
    if not line:
        sys.exit(f"benchmark: the row {name!r} ended without an answer; its error stands above")
    return json.loads(line)


def measure(group, numbers, args, dtype):
    """The rows of a group, in turns; returns {number: its repeats}."""
    workers = {n: [start(n, args, dtype) for _ in range(2 if ROWS[n][-1].get("beside") else 1)]
               for n in numbers}
    repeats = {n: [] for n in numbers}
    try:
        for n in numbers:
            for process in workers[n]:
                if process.stdout.readline() != "ready\n":
                    sys.exit(f"benchmark: the row {ROWS[n][1]!r} did not start; its error stands above")
        # a row that gives several samples at once needs one turn
        for _ in range(1 if ROWS[numbers[0]][3] is playing else args.repeats):
            for n in numbers:
                for process in workers[n]:
                    tell(process)
                repeats[n].append([answer(process, ROWS[n][1]) for process in workers[n]][0])
    finally:
        for processes in workers.values():
            for process in processes:
                process.kill()
    return repeats


def about(dtype, threads):
    """What every row says of the machine and the code. Asked of another process, because this one shall
    stay small: a process begins with the peak memory of the one that started it."""
    import torch

    from train import code_version, pick_dtype

    has = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if has.get(name)]
    name = f"{has.get('cpu_name') or has.get('architecture', 'unknown')}, {os.cpu_count()} cores"
    return {"dtype": pick_dtype(dtype, torch.device("cpu")), "threads": threads, "torch": torch.__version__,
            "machine": ", ".join([name, *units[:1]]), "code": code_version()}


def row_of(number, repeats):
    group, name, unit, _, _, more = ROWS[number]
    divisor = repeats[0]["divisor"]
    scale = {"ms": 1000}.get(unit, 1)
    values = [scale * s / divisor if divisor > 0 else -divisor / s for r in repeats for s in r["seconds"]]
    median = statistics.median(values)
    useful = more.get("flops", 0) * (median if unit == "steps/s" else 1 / median)
    cpu = f"{scale * statistics.median(r['cpu'] / divisor for r in repeats):.3g}" if divisor > 0 else ""
    median, low, high = (f"{x:.0f}" if x >= 100 else f"{x:.3g}" for x in (median, min(values), max(values)))
    return {"group": group, "name": name, "unit": unit, "median": median, "low": low, "high": high,
            "repeats": len(values),
            "cpu": cpu,
            "peak_gb": f"{max(r['peak'] for r in repeats):.2f}",
            "useful_gflops": f"{useful / 1e9:.0f}" if useful else ""}


def benchmark(args):
    from tqdm import tqdm

    from prepare_data import write_csv

    chosen = [n for n, row in enumerate(ROWS) if args.only in row[0] or args.only in row[1]]
    if not chosen:
        sys.exit(f"benchmark: no row's group or name holds {args.only!r}; there are "
                 f"{', '.join(dict.fromkeys(row[0] for row in ROWS))}")
    if any(ROWS[n][3] is training for n in chosen) and not set(GLIBC) <= set(os.environ):
        sys.exit("benchmark: training is measured with the Makefile's settings of glibc; run: make benchmark")
    common = json.loads(subprocess.run(
        [sys.executable, __file__, "--worker", "-1", "--dtype", args.dtype, "--threads", str(args.threads)],
        check=True, stdout=subprocess.PIPE).stdout)
    places = [(row[0], row[1]) for row in ROWS]
    rows = []
    if args.only and RESULTS.exists():  # of this machine, not measured now
        same = ("threads", "machine", "torch")
        rows = [row for row in read_results(RESULTS) if [row[key] for key in same] ==
                [str(common[key]) for key in same] and (row["group"], row["name"]) in places
                and places.index((row["group"], row["name"])) not in chosen]
    for group in tqdm(list(dict.fromkeys(ROWS[n][0] for n in chosen)), disable=None, unit="group"):
        repeats = measure(group, [n for n in chosen if ROWS[n][0] == group], args, common["dtype"])
        new = [row_of(n, of_row) | common | ({"dtype": "float32"} if ROWS[n][-1].get("peer") else {})
               for n, of_row in repeats.items()]
        rows = sorted([*rows, *new], key=lambda row: places.index((row["group"], row["name"])))
        write_csv(RESULTS, COLUMNS, rows)
        tqdm.write("\n".join(line(row) for row in new))
    print("\n" + "\n".join(table(rows)) + f"\n\nrows {RESULTS}")


# --- the table ---------------------------------------------------------------------------------

def line(row):
    return f"{row['group']}: {row['name']}: {row['median']} [{row['low']}, {row['high']}] {row['unit']}"


def table(rows):
    """Markdown, and what the released code took where it is known."""
    peaks = {row["name"].rpartition(" ")[2]: float(row["median"])  # by dtype
             for row in rows if row["group"] == "machine"}
    kit = {row["group"]: float(row["median"]) for row in rows if row["name"] == "kit"}
    lines = ["| | | median [range] | of the kit's | CPU | peak | of the machine's products |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    before = None
    for row in rows:
        group, useful = row["group"], row["useful_gflops"]
        peer = group in kit and row["name"] != "kit"
        against = f"{float(row['median']) / kit[group]:.2f} x" if peer else ""
        peak = peaks.get(row["dtype"])
        share = f"{100 * float(useful) / peak:.0f} % of {row['dtype']}" if useful and peak else ""
        lines.append(
            f"| {group if group != before else ''} | {row['name']} | {row['median']} "
            f"[{row['low']}, {row['high']}] {row['unit']} | {against} | "
            f"{row['cpu'] and row['cpu'] + ' ' + row['unit']} | {row['peak_gb']} GB | {share} |")
        before = group
    lines += ["", f"The released code, unmodified, measured once on another machine ({RELEASED['machine']}), "
              "not in this run: " + "; ".join(f"{name} {took}" for name, took in RELEASED.items()
                                              if name != "machine") + "."]
    return lines


def read_results(path):
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or tuple(rows[0]) != COLUMNS:
            raise ValueError("it is not a benchmark's")
        return rows
    except (OSError, ValueError) as error:
        sys.exit(f"benchmark: {path} is not readable ({error}); make it with: make benchmark")


def section(rows):
    """README § Speed's measured part."""
    first, least = rows[0], min(int(row["repeats"]) for row in rows)
    commits = ", ".join(dict.fromkeys(row["code"] for row in rows))
    where = (f"{first['machine']}; {first['threads']} thread a process; the kit in {first['dtype']}; "
             f"torch {first['torch']}; commit {commits}; medians over {least} repeats or more.")
    return "\n".join([where, "", *table(rows)])


MARKS = ("<!-- written by benchmark.py --readme -->\n", "\n<!-- until here -->")


def write_readme():
    from prepare_data import write_csv, write_whole

    rows, text = read_results(RESULTS), README.read_text()
    write_csv(RECORD, COLUMNS, rows)
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    text = head + MARKS[0] + section(rows) + MARKS[1] + tail
    write_whole(README, lambda part: part.write_text(text))


if __name__ == "__main__":
    args = OPTIONS.parse_args()
    if args.worker == -1:
        print(json.dumps(about(args.dtype, args.threads)))
    elif args.worker is not None:
        work(args.worker, args.dtype)
    elif args.readme:
        write_readme()
    else:
        benchmark(args)
