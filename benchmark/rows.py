"""What is measured: ROWS, in the order of the table."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row of the table.

    measure     "models.training": the function of benchmark/ that prepares, called with the dtype and with
                `arguments`, and returns (repeat, divisor). repeat() does it once, and may return the seconds
                itself, a list of samples. divisor: steps of a repeat; or, negative, what turns 1 / seconds
                into the row's unit
    flops       useful ones of a step
    peer        in float32, and without the Makefile's settings of glibc, but with them if `glibc`
    beside      started twice, side by side, and one of the two measured
    """

    group: str
    name: str
    unit: str
    measure: str
    arguments: dict
    flops: float = 0
    peer: bool = False
    glibc: bool = False
    beside: bool = False


def trunk_flops(tokens, context, passes, layers=12, width=768):
    """passes: 1 forward, 2 and backward to the inputs, 3 and to the weights; attention has no weights."""
    return layers * tokens * (2 * 12 * width**2 * passes + 4 * context * width * (3 if passes > 1 else 1))


# 64 windows of 20 steps are 3,840 tokens; 2 x 1,024 of text end in 50,257 words, forward and backward
STEP, STEP_ALL = trunk_flops(3840, 60, 2), trunk_flops(3840, 60, 3)
WORDS = trunk_flops(2048, 1024, 2) + 2 * 2 * 2048 * 768 * 50_257

# How people start the programs of the kit.
PROGRAMS = ("-m kit.settings", "prepare_data.py", "train.py", "baselines.py", "evaluate.py", "plot.py",
            "export.py", "-m mini.pretrain", "-m mini.train_player", "-m benchmark")

# functions of benchmark/
TRAINING, SAMPLING, PLAYING = "models.training", "models.sampling", "models.playing"
PRODUCT, PREPARING, START_UP = "models.product", "commands.preparing", "commands.start_up"

SMALL = {"mini": {"kind": "mini", "steps": 5}, "dt": {"kind": "dt", "steps": 10}}
SHAPES = (("GPT-2", "lamo", 12, 768), ("mini LaMo", "mini", 4, 192), ("DT", "dt", 3, 128))

ROWS = (
    *[Row("machine", f"product 3840 x 768 x 3072, {kind}", "GFLOP/s", PRODUCT, {"kind": kind})
      for kind in ("float32", "bfloat16")],
    Row("GPT-2, step", "kit", "s", TRAINING, {"kind": "lamo"}, STEP),
    Row("GPT-2, step", "peft on stock transformers", "s", TRAINING, {"kind": "peft"}, STEP, peer=True),
    Row("GPT-2, step", "the same with the kit's glibc settings", "s", TRAINING, {"kind": "peft"}, STEP,
        peer=True, glibc=True),
    Row("GPT-2, step, all weights", "kit", "s", TRAINING, {"kind": "wiki"}, STEP_ALL),
    Row("GPT-2, step, all weights", "stock transformers", "s", TRAINING, {"kind": "stock"}, STEP_ALL,
        peer=True),
    Row("GPT-2, step with text", "kit", "s", TRAINING, {"kind": "lamo", "text": True}, STEP + WORDS),
    Row("GPT-2, step with text", "peft on stock transformers", "s", TRAINING, {"kind": "peft", "text": True},
        STEP + WORDS, peer=True),
    Row("small models, step", "mini LaMo, 4 layers of 192", "s", TRAINING, SMALL["mini"]),
    Row("small models, step", "DT, 3 layers of 128", "s", TRAINING, SMALL["dt"]),
    *[Row("batches", f"64 x 20 of {rows:,} steps", "ms", SAMPLING, {"rows": rows})
      for rows in (10_000, 1_000_000)],
    *[Row(f"evaluation, {name}", f"{n} at once", "steps/s", PLAYING, {"kind": kind, "episodes": n},
          trunk_flops(60, 60, 1, layers, width))
      for name, kind, layers, width in SHAPES for n in (1, 20, 80)],
    Row("data", "mini/hopper-medium-0.01, 21 episodes played", "s", PREPARING,
        {"cell": "mini/hopper-medium-0.01"}),
    Row("data", "paper/hopper-medium-1, HDF5 of 1,000,000 steps", "s", PREPARING,
        {"cell": "paper/hopper-medium-1", "rows": 1_000_000}),
    *[Row("growth, DT's step", f"{rows:,} steps of data", "s", TRAINING, SMALL["dt"] | {"rows": rows})
      for rows in (10_000, 100_000, 1_000_000)],
    *[Row("growth, DT's step", f"after {before} steps", "s", TRAINING, SMALL["dt"] | {"before": before})
      for before in (40, 400)],
    *[Row("growth, DT's evaluation", f"20 at once, after {20 * before} episodes", "steps/s", PLAYING,
          {"kind": "dt", "episodes": 20, "before": before}) for before in (1, 10)],
    Row("side by side", "mini LaMo's step, alone", "s", TRAINING, SMALL["mini"]),
    Row("side by side", "mini LaMo's step, another beside it", "s", TRAINING, SMALL["mini"], beside=True),
    *[Row("start-up", f"{program} --help", "s", START_UP, {"program": program}) for program in PROGRAMS],
)
