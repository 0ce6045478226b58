"""Stage 3: play every checkpoint of a run, and gather the runs of a cell.

    python evaluate.py mini/hopper-medium-0.01/lamo/seed0
    python evaluate.py --collect mini/hopper-medium-0.01

reads   runs/RUN/config.json and *.safetensors
writes  runs/RUN/eval.csv, one row an episode; --collect writes results/PROFILE/CELL.csv, the rows of
        all runs of the cell. Columns: COLUMNS below.

All target returns and episodes of a checkpoint are played in lock-step: one batched forward for each
environment step, over those episodes that still run. Episode i starts from the same seed for every
target, checkpoint, method and training seed, so methods are compared on the same starts.
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
OPTIONS.add_argument("--episodes", type=int, metavar=str(tasks.DEFAULTS["episodes"]),
                     help="episodes a target return")
OPTIONS.add_argument("--target_returns", type=float, nargs="+", help="instead of the task's")


def play(model, config, device, bar=None):
    """All target returns x episodes of one checkpoint, `at_once` of them side by side. Returns a list of
    (target_return, episode, return, length)."""
    from envs import make_env

    jobs = [(target, episode) for target in config["target_returns"]
            for episode in range(config["episodes"])]
    envs = [make_env(config) for _ in jobs[:config["at_once"]]]
    played = []
    for first in range(0, len(jobs), len(envs)):
        played += play_together(model, config, device, envs, jobs[first:first + len(envs)], bar)
    for env in envs:
        env.close()
    return played


def play_together(model, config, device, envs, jobs, bar):
    """One episode for each (target return, episode) of `jobs`, in lock-step.

    The window is exact: at every step the last K (return-to-go, state, action) triples are read anew.
    A cache of keys and values would not be: what they held depends on tokens that left the window.
    """
    import numpy as np
    import torch

    mean, std = np.float32(config["state_mean"]), np.float32(config["state_std"])
    K, scale, atari = config["context"], config["return_scale"], config["suite"] == "atari"
    observations = [env.reset(seed=EPISODE_SEED + episode)[0]
                    for env, (_, episode) in zip(envs, jobs, strict=False)]  # the last jobs may be fewer
    remaining = np.array([target for target, _ in jobs])
    returns, lengths = np.zeros(len(jobs)), np.zeros(len(jobs), int)
    alive = np.arange(len(jobs))
    action_shape, action_type = ((), torch.long) if atari else ((config["action_dim"],), torch.float32)
    # What the episodes still running have seen, at most K steps of it. States are embedded once.
    hidden = model.embed_ln.normalized_shape[0]
    window = {"states": torch.zeros(len(jobs), 0, hidden, device=device),
              "returns_to_go": torch.zeros(len(jobs), 0, 1, device=device),
              "actions": torch.zeros(len(jobs), 0, *action_shape, dtype=action_type, device=device)}

    with torch.inference_mode():
        for t in range(config["horizon"]):
            seen = np.stack([observations[i] for i in alive])[:, None]
            if not atari:
                seen = (seen.astype(np.float32) - mean) / std
            to_go = (remaining[alive] / scale).astype(np.float32)[:, None, None]
            newest = {"states": model.embed_state(torch.from_numpy(seen).to(device)),
                      "returns_to_go": torch.from_numpy(to_go).to(device),
                      # not known yet, and not read
                      "actions": torch.zeros(len(alive), 1, *action_shape, dtype=action_type, device=device)}
            window = {name: torch.cat([window[name], newest[name]], 1)[:, -K:] for name in window}
            timesteps = torch.arange(max(0, t + 1 - K), t + 1, device=device).repeat(len(alive), 1)
            predicted = model.predict(**window, timesteps=timesteps)[:, -1]           # (alive, A)
            chosen = predicted.argmax(1) if atari else predicted
            window["actions"][:, -1] = chosen
            # The history keeps what the model said; D4RL's environments clip what they execute.
            executed = chosen.cpu().numpy() if atari else chosen.cpu().numpy().clip(-1, 1)
            for i, action in zip(alive, executed, strict=True):
                observations[i], reward, terminated, truncated, _ = envs[i].step(action)
                returns[i] += reward
                remaining[i] -= np.sign(reward) if config["clip_rewards"] else reward
                if terminated or truncated:
                    lengths[i] = t + 1
            if bar is not None:
                bar.update(len(alive))
            going = lengths[alive] == 0
            alive = alive[going]
            if len(alive) == 0:
                break
            if not going.all():
                keep = torch.from_numpy(going).to(device)
                window = {name: values[keep] for name, values in window.items()}
    return [(target, episode, returns[i], int(lengths[i])) for i, (target, episode) in enumerate(jobs)]


def load_run(run, device):
    """(config, model in evaluation mode, its checkpoints in order of steps)."""
    import torch

    from model import build_model
    from train import RUNS, load_config

    folder = RUNS / run
    if not (folder / "final.safetensors").exists():
        sys.exit(f"evaluate: {folder} holds no finished run; train it: python train.py {run}")
    config = load_config(folder)
    torch.manual_seed(config["seed"])  # as train.py built it, frozen random parts included
    model = build_model(config).to(device).eval()
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


def evaluate(run, device, episodes=None, target_returns=None):
    import copy

    from tqdm import tqdm

    from lora import merge_lora
    from prepare_data import write_csv
    from train import RUNS, pick_device

    device = pick_device(device)
    config, model, checkpoints = load_run(run, device)
    config |= {"episodes": episodes} if episodes else {}
    config |= {"target_returns": target_returns} if target_returns else {}
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
        merge_lora(merged.trunk)  # the same function with two matrix products fewer a layer
        with tqdm(desc=f"{config['method']} step {step:,}", unit="step", disable=None) as bar:
            episodes_played = play(merged, config, device, bar)
        for target, episode, total, length in episodes_played:
            rows.append({"profile": config["profile"], "data": config["data"], "lm": config["lm_id"],
                         "task": config["task"], "ratio": config["ratio"], "method": config["method"],
                         "seed": config["seed"], "step": step, "target_return": f"{target:g}",
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
        print(f"{run}: step {config['steps']:,}, target {target}: normalised score "
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
        evaluate(run, args.device, args.episodes, args.target_returns)
    else:
        sys.exit("evaluate: give a run, or --collect PROFILE/CELL; see --help")
