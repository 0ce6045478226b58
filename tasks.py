"""The paper's experiments as plain data. Standard library only; every stage reads its settings here.

A cell is ENV-DATASET-RATIO (`hopper-medium-0.01`), a run is PROFILE/CELL/METHOD/seedN
(`mini/hopper-medium-0.01/lamo/seed0`), and a run's name determines its whole configuration:

    python3 tasks.py                                            # every cell, as `make list` prints it
    python3 tasks.py paper/hopper-medium-0.01/lamo/seed0        # one run's configuration, as JSON

    configuration = DEFAULTS | TASKS[task] | METHODS[method] | the profile's part of each

To add a task, add a row to TASKS. Published scores stand in paper/scores.csv.
Sources: LaMo, arXiv 2310.20587 (camera-ready), and its released code, srzer/LaMo-2023@3e4fcc8.
"""

import hashlib
import json
import sys

# What LaMo's D4RL runs share: appendix tables 6 and 7, run.sh, experiment.py.
DEFAULTS = {
    # model
    "lm": "gpt2",              # a hub name, a local folder, or a name in LANGUAGE_MODELS
    "trunk": "pretrained",     # "pretrained": the LM above; "dt": a small random transformer
    "train": "lora",           # what trains in the trunk: "lora" or "all"
    "embeddings": "mlp",       # "mlp": residual blocks and an MLP head; "linear": linear and tanh
    "lora_rank": 16,
    "lora_alpha": 32,
    "dropout": 0.1,
    # data
    "context": 20,             # K, environment steps the model sees
    "batch_size": 64,
    # optimisation
    "steps": 100_000,
    "warmup": 2_500,           # steps of linear warm-up
    "lr": 1e-4,
    "weight_decay": 1e-5,
    "adam_eps": 1e-6,
    "grad_clip": 0.25,
    # language loss: loss = action_loss + lm_weight * language_loss
    "lm_weight": 0.0,
    "lm_batch_size": 2,
    "lm_block": 1024,          # tokens of a text block
    "lm_positions": True,      # give the text its position embeddings (the released code does not)
    # checkpoints and evaluation
    "eval_every": 2_500,       # steps between checkpoints, each of which is evaluated
    "score_window": 8,         # the score averages so many last evaluations: the last 20K steps
    "episodes": 20,            # a target return
    "log_every": 100,          # steps a row of train.csv averages over
}

# What the mini profile changes, whatever the task: few steps at a large learning rate, and no dropout,
# which a few hundred steps do not need and which takes nearly half of a step's time on two CPU cores.
MINI = {
    "lm": "mini",
    "dropout": 0.0,
    "steps": 500,
    "warmup": 50,
    "lr": 2e-3,
    "lm_block": 256,           # the mini LM's context
    "eval_every": 100,
    "score_window": 3,
    "log_every": 25,
}

# ratios: the cells of the paper's tables. Data, target returns and horizon in environment units.
TASKS = {
    "hopper-medium": {
        "env": "Hopper-v4",
        "dataset": "hopper-medium-v2",        # in d4rl's infos.py: URL and reference scores
        "sha256": "5bdf1bc4a713c829",         # of D4RL's file, first 16 digits
        "ratios": ("0.005", "0.01", "0.1", "1"),
        "state_dim": 11,
        "action_dim": 3,
        "horizon": 1000,
        "return_scale": 1000.0,
        "target_returns": (3600.0, 1800.0),   # appendix table 6
        "embeddings": "linear",               # appendix p. 17 and run_hopper.sh
        "mini": {"player": "hopper", "trajectories": 2186},
    },
}

# Each method states only what differs from LaMo.
METHODS = {
    "lamo": {},
    "lamo-lm0.1": {"lm_weight": 0.1},         # co-training, as in run_cotrain.sh
    "dt": {                                   # Decision Transformer: 3 layers of 128, one head
        "lm": None,
        "trunk": "dt",
        "train": "all",
        "embeddings": "linear",
        "weight_decay": 1e-4,                 # appendix p. 22, figure 11
        "adam_eps": 1e-8,                     # the released code's optimiser when nothing is pre-trained
        "lm_weight": 0.0,
        "mini": {"lr": 3e-4},                 # all its weights train: 1e-3 is unstable
    },
}

LANGUAGE_MODELS = {
    "mini": "assets/lm",                      # pre-trained on English prose, see assets/README.md
    "mini-random": "assets/lm-random",        # equally long, on shuffled tokens
    "mini-early": "assets/lm-early",          # stopped after a tenth of the tokens
}

PROFILES = ("mini", "paper")


def fail(message):
    """End the program with one line that says what is wrong and what to do."""
    sys.exit(message)


def cells():
    """Every cell of the paper's tables: ["hopper-medium-0.005", ...]."""
    return [f"{task}-{ratio}" for task, row in TASKS.items() for ratio in row["ratios"]]


def parse_cell(name):
    """"mini/hopper-medium-0.01" -> ("mini", "hopper-medium", 0.01)."""
    profile, _, cell = name.partition("/")
    task, _, ratio = cell.rpartition("-")
    if profile not in PROFILES:
        fail(f"tasks: no profile {profile!r} in {name!r}; there are {', '.join(PROFILES)}")
    if task not in TASKS:
        fail(f"tasks: no task {task or cell!r} in {name!r}; a cell is TASK-RATIO with TASK one of "
             f"{', '.join(TASKS)}, for example {cells()[0]}")
    try:
        number = float(ratio)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        fail(f"tasks: {ratio!r} in {name!r} is no ratio; give a number above 0 and at most 1")
    return profile, task, number


def parse_run(name):
    """"mini/hopper-medium-0.01/lamo/seed0" -> ("mini", "hopper-medium", 0.01, "lamo", 0)."""
    parts = name.strip("/").removeprefix("runs/").split("/")
    if len(parts) != 4 or not parts[3].startswith("seed") or not parts[3][4:].isdigit():
        fail(f"tasks: {name!r} is no run; a run is PROFILE/CELL/METHOD/seedN, "
             "for example mini/hopper-medium-0.01/lamo/seed0")
    profile, task, ratio = parse_cell("/".join(parts[:2]))
    if parts[2] not in METHODS:
        fail(f"tasks: no method {parts[2]!r}; there are {', '.join(METHODS)}")
    return profile, task, ratio, parts[2], int(parts[3][4:])


def configuration(run, **overrides):
    """The flat dict of settings that a run's name stands for. Overrides that are None are ignored."""
    profile, task, ratio, method, seed = parse_run(run)
    config = dict(DEFAULTS)
    if profile == "mini":
        config |= MINI
    for row in (dict(TASKS[task]), dict(METHODS[method])):
        mini = row.pop("mini", {})
        row.pop("ratios", None)
        config |= row | (mini if profile == "mini" else {})
    config |= {key: value for key, value in overrides.items() if value is not None}
    return {"profile": profile, "cell": run.split("/")[-3], "task": task, "ratio": ratio,
            "method": method, "seed": seed} | config


def digest(profile, task, method):
    """A short name of all settings that a run's files depend on, so that make redoes the runs that a
    change of this file concerns, and only those."""
    config = configuration(f"{profile}/{task}-1/{method}/seed0")
    for name in ("cell", "ratio", "seed", "score_window"):
        del config[name]
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def axes():
    """What the Makefile needs to know, as make variables."""
    uses_lm = [method for method, row in METHODS.items() if row.get("lm", "gpt2")]
    runs = [(profile, task, method) for profile in PROFILES for task in TASKS for method in METHODS]
    text = ["/".join(run) for run in runs
            if configuration("{}/{}-1/{}/seed0".format(*run))["lm_weight"] > 0]
    return "\n".join([
        f"TASKS := {' '.join(TASKS)}", f"CELLS := {' '.join(cells())}",
        f"ALL_METHODS := {' '.join(METHODS)}", f"LM_METHODS := {' '.join(uses_lm)}",
        f"TEXT_RUNS := {' '.join(text)}",
        *(f"PLAYER_{task} := assets/players/{row['mini']['player']}.npz"
          for task, row in TASKS.items() if "player" in row["mini"]),
        *(f"LM_FILE_{name} := {folder}/model.safetensors" for name, folder in LANGUAGE_MODELS.items()),
        *(f"DIGEST_{'/'.join(run)} := {digest(*run)}" for run in runs)])


def listing():
    lines = [f"{'cell':24} {'environment':16} {'D4RL dataset':22} targets"]
    for task, row in TASKS.items():
        for ratio in row["ratios"]:
            targets = ", ".join(f"{target:g}" for target in row["target_returns"])
            lines.append(f"{task + '-' + ratio:24} {row['env']:16} {row['dataset']:22} {targets}")
    return "\n".join([*lines, f"\nmethods:  {' '.join(METHODS)}", f"profiles: {' '.join(PROFILES)}"])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(listing())
    elif sys.argv[1] == "--make":
        print(axes())
    else:
        print(json.dumps(configuration(sys.argv[1]), indent=1))
