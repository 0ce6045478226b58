"""Stage 3: play every checkpoint of a run, and gather the runs of a cell.

    python evaluate.py mini/hopper-medium-0.01/lamo/seed0
    python evaluate.py --collect mini/hopper-medium-0.01

reads   runs/RUN/config.json and *.safetensors
writes  runs/RUN/eval.csv, one row an episode; --collect writes results/PROFILE/CELL.csv, the rows of
        all runs of the cell. Columns: COLUMNS below.

All target returns and episodes of a checkpoint are played in lock-step: one batched forward for each
environment step, over those episodes that still run. Episode i starts from the same seed for every
target, checkpoint, method and training seed, so methods are compared on the same starts.
Baselines know no target, so theirs is empty and they play each start once. Their action depends on the
newest state alone.
normalized_score is 100 (return - random) / (expert - random) with D4RL's reference scores; Atari's expert
is a human player (Mnih et al. 2015), Reacher2d's 100 a step at the target for every step.
data_score is that of the mean training episode; empty for DQN replay, which records no scores.
"""

import argparse
import csv
import sys
from pathlib import Path

import tasks

COLUMNS = ("profile", "data", "lm", "task", "ratio", "method", "seed", "step", "target_return", "episode",
           "return", "length", "normalized_score", "data_score", "data_episodes")
EPISODE_SEED = 1_000_000  # far from the seeds of the mini data

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("run", nargs="?", help="PROFILE/CELL/METHOD/seedN")
OPTIONS.add_argument("--collect", metavar="PROFILE/CELL", help="gather a cell's runs into results/")
OPTIONS.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
OPTIONS.add_argument("--dtype", choices=("bfloat16", "float32"), help="instead of what it was trained in")
OPTIONS.add_argument("--episodes", type=int, metavar=str(tasks.DEFAULTS["episodes"]),
                     help="episodes a target return")
OPTIONS.add_argument("--target_returns", type=float, nargs="+", help="instead of the task's")


def play(model, config, device, bar=None):
    """All target returns x episodes of one checkpoint, `at_once` of them side by side; baselines know no
    target, which then is None. Returns a list of (target_return, episode, return, length)."""
    from envs import make_env

    jobs = [(target, episode) for target in config.get("target_returns", (None,))
            for episode in range(config["episodes"])]
    envs = [make_env(config) for _ in jobs[:config["at_once"]]]
    played = []
    for first in range(0, len(jobs), len(envs)):
        played += play_together(model, config, device, envs, jobs[first:first + len(envs)], bar)
    for env in envs:
        env.close()
    return played


def play_together(model, config, device, envs, jobs, bar):
    """One episode for each (target return, episode) of `jobs`, in lock-step."""
    import numpy as np
    import torch

    mean, std = np.float32(config["state_mean"]), np.float32(config["state_std"])
    atari = config["suite"] == "atari"
    observations = [env.reset(seed=EPISODE_SEED + episode)[0]
                    for env, (_, episode) in zip(envs, jobs, strict=False)]  # the last jobs may be fewer
    returns, lengths = np.zeros(len(jobs)), np.zeros(len(jobs), int)
    alive = np.arange(len(jobs))
    window = None if "update" in config else Window(model, config, device, [target for target, _ in jobs])

    with torch.inference_mode():
        for t in range(config["horizon"]):
            states = np.stack([observations[i] for i in alive])
            if not atari:
                states = (states.astype(np.float32) - mean) / std
            states = torch.from_numpy(states).to(device)
            predicted = window.predict(t, states) if window else model(states)        # (alive, A)
            chosen = predicted.argmax(1) if atari else predicted
            # D4RL's environments clip what they execute
            executed = chosen.cpu().numpy() if atari else chosen.cpu().numpy().clip(-1, 1)
            rewards = np.zeros(len(alive))
            for n, i in enumerate(alive):
                observations[i], rewards[n], terminated, truncated, _ = envs[i].step(executed[n])
                returns[i] += rewards[n]
                if terminated or truncated:
                    lengths[i] = t + 1
            if bar is not None:
                bar.update(len(alive))
            going = lengths[alive] == 0
            if window:
                window.append(chosen, rewards, going)
            alive = alive[going]
            if len(alive) == 0:
                break
    return [(target, episode, returns[i], int(lengths[i])) for i, (target, episode) in enumerate(jobs)]


class Window:
    """What a sequence model sees of the episodes that still run: their last K steps.

    The window is exact: at every step the last K (return-to-go, state, action) triples are read anew.
    A cache of keys and values would not be: what they held depends on tokens that left the window.
    """

    def __init__(self, model, config, device, targets):
        import numpy as np
        import torch

        self.model, self.config, self.device = model, config, device
        self.remaining = np.array(targets)
        self.action = (torch.zeros((), dtype=torch.long) if config["suite"] == "atari" else
                       torch.zeros(config["action_dim"])).to(device)
        hidden = model.embed_ln.normalized_shape[0]
        self.steps = {"states": torch.zeros(len(targets), 0, hidden, device=device),  # embedded once
                      "returns_to_go": torch.zeros(len(targets), 0, 1, device=device),
                      "actions": self.action.expand(len(targets), 0, *self.action.shape)}

    def predict(self, t, states):
        """Actions (alive, A) for states (alive, S) at step t of the environments."""
        import numpy as np
        import torch

        K, count = self.config["context"], len(states)
        to_go = (self.remaining / self.config["return_scale"]).astype(np.float32)[:, None, None]
        newest = {"states": self.model.embed_state(states[:, None]),
                  "returns_to_go": torch.from_numpy(to_go).to(self.device),
                  "actions": self.action.expand(count, 1, *self.action.shape)}  # not known yet, and not read
        self.steps = {name: torch.cat([self.steps[name], newest[name]], 1)[:, -K:] for name in newest}
        timesteps = torch.arange(max(0, t + 1 - K), t + 1, device=self.device).repeat(count, 1)
        return self.model.predict(**self.steps, timesteps=timesteps, newest=True)[:, 0]

    def append(self, actions, rewards, going):
        """What was done, as the model said it, and earned; only episodes that go on are kept."""
        import numpy as np
        import torch

        self.steps["actions"][:, -1] = actions
        counted = np.sign(rewards) if self.config["clip_rewards"] else rewards
        self.remaining = (self.remaining - counted)[going]
        if not going.all():
            keep = torch.from_numpy(going).to(self.device)
            self.steps = {name: values[keep] for name, values in self.steps.items()}


def load_run(run, device):
    """(config, model in evaluation mode, its checkpoints in order of steps)."""
    import torch

    from baselines import build_actor
    from model import build_model
    from train import RUNS, load_config

    folder = RUNS / run
    if not (folder / "final.safetensors").exists():
        sys.exit(f"evaluate: {folder} holds no finished run; train it: "
                 f"python {'baselines' if tasks.is_baseline(run.split('/')[2]) else 'train'}.py {run}")
    config = load_config(folder)
    config |= {"adapter": "",  # what LoRA started from: the checkpoints have it all
               "dtype": config.get("dtype", "float32")}  # before it was a setting
    torch.manual_seed(config["seed"])  # as it was built for training, frozen random parts included
    model = (build_actor if "update" in config else build_model)(config).to(device).eval()
    return config, model, [*sorted(folder.glob("step-*.safetensors")), folder / "final.safetensors"]


def load_checkpoint(model, path, run):
    """Put a checkpoint's tensors into the model; returns its step."""
    from train import load_tensors, trainable

    tensors, metadata = load_tensors(path)
    own = trainable(model)
    if metadata["run"] != run or {n: t.shape for n, t in tensors.items()} != {
            n: p.shape for n, p in own.items()}:
        sys.exit(f"evaluate: {path} was saved by {metadata['run']} with other settings; "
                 f"train again: python train.py {run}")
    for name, p in own.items():
        p.data.copy_(tensors[name])
    return int(metadata["step"])


def read_rows(path):
    try:
        with open(path, newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        named = tuple(reader.fieldnames or ())[:len(COLUMNS)]
        if named != COLUMNS or any(None in row.values() for row in rows):
            raise ValueError("its columns are not those of an evaluation")
        return rows
    except (OSError, ValueError, csv.Error) as error:
        sys.exit(f"evaluate: {path} is not readable ({error}); delete it and evaluate again")


def evaluate(run, device, episodes=None, target_returns=None, dtype=None):
    import copy

    from tqdm import tqdm

    from lora import merge_lora
    from prepare_data import write_csv
    from train import RUNS, pick_device

    device = pick_device(device)
    config, model, checkpoints = load_run(run, device)
    model.bf16 = (dtype or config["dtype"]) == "bfloat16"
    config |= {"episodes": episodes} if episodes else {}
    config |= {"target_returns": target_returns} if target_returns and "update" not in config else {}
    low, high = config["reference_min"], config["reference_max"]

    def normalized(total):
        return 100 * (total - low) / (high - low)

    folder = RUNS / run
    unfinished = folder / "eval.part.csv"  # checkpoints played before an interruption
    rows = read_rows(unfinished) if unfinished.exists() else []
    played = {int(row["step"]) for row in rows}
    for path in checkpoints:
        step = load_checkpoint(model, path, run)
        if step in played:
            continue
        merged = copy.deepcopy(model)
        if "update" not in config:
            merge_lora(merged.trunk)  # the same function with two matrix products fewer a layer
        with tqdm(desc=f"{config['method']} step {step:,}", unit="step", disable=None) as bar:
            episodes_played = play(merged, config, device, bar)
        for target, episode, total, length in episodes_played:
            rows.append({"profile": config["profile"], "data": config["data"], "lm": config["lm_id"],
                         "task": config["task"], "ratio": config["ratio"], "method": config["method"],
                         "seed": config["seed"], "step": step,
                         "target_return": "" if target is None else f"{target:g}",
                         "episode": episode, "return": f"{total:.4f}", "length": length,
                         "normalized_score": f"{normalized(total):.4f}",
                         "data_score": "" if config["data_return_mean"] is None else
                         f"{normalized(config['data_return_mean']):.4f}",
                         "data_episodes": len(config["data_episodes"])})
        write_csv(unfinished, COLUMNS, rows)
    write_csv(folder / "eval.csv", COLUMNS, rows)
    unfinished.unlink(missing_ok=True)
    final = [row for row in rows if int(row["step"]) == config["steps"]]
    for target in dict.fromkeys(row["target_return"] for row in final):
        scores = [float(row["normalized_score"]) for row in final if row["target_return"] == target]
        print(f"{run}: step {config['steps']:,}{f', target {target}' if target else ''}: normalised score "
              f"{sum(scores) / len(scores):.1f} over {len(scores)} episodes")


def collect(cell):
    """results/PROFILE/CELL.csv: every evaluated run of the cell, methods in the table's order."""
    from prepare_data import write_csv
    from train import RUNS

    tasks.parse_cell(cell)
    methods = list(tasks.METHODS)
    files = sorted((RUNS / cell).glob("*/seed*/eval.csv"),
                   key=lambda p: (methods.index(p.parts[-3]) if p.parts[-3] in methods else 99,
                                  int(p.parts[-2][4:])))
    rows = [row for path in files for row in read_rows(path)]
    if not rows:
        sys.exit(f"evaluate: runs/{cell} holds no evaluated run; make one: make {cell.split('/')[1]}")
    data = {row["data"] for row in rows}
    if len(data) > 1:
        sys.exit(f"evaluate: the runs in runs/{cell} were trained on different data "
                 f"({', '.join(sorted(data))}); remove or move away those of the data you do not want")
    write_csv(Path("results") / f"{cell}.csv", COLUMNS, rows)


if __name__ == "__main__":
    args = OPTIONS.parse_args()
    if args.collect:
        collect(args.collect)
    elif args.run:
        run = "/".join(args.run.strip("/").removeprefix("runs/").split("/"))
        tasks.parse_run(run)
        evaluate(run, args.device, args.episodes, args.target_returns, args.dtype)
    else:
        sys.exit("evaluate: give a run, or --collect PROFILE/CELL; see --help")
