"""Stage 3: play every checkpoint of a run, and gather the runs of a cell.

    python evaluate.py mini/hopper-medium-0.01/lamo/seed0
    python evaluate.py mini/hopper-medium-0.01/lamo/seed0 --episodes 100 --target_returns 3600
    python evaluate.py --collect mini/hopper-medium-0.01
    python evaluate.py mini/hopper-medium-0.01/lamo/seed0 --video hopper.gif      # kit/video.py

    policy = load_policy("mini/hopper-medium-0.01/lamo/seed0")      # an agent, for any program
    policy.reset(3600.0)
    action = policy.act(observation)                                # later: act(observation, reward)

reads   runs/RUN/config.json and *.safetensors
        data/PROFILE/*-heldout.npz, if it is there
writes  runs/RUN/eval.csv, one row an episode, with its checkpoint's losses (kit/imitation.py), and eval.json,
        what was played and by what; of other options both stay, as eval.DIGEST.*; --collect writes
        results/PROFILE/CELL.csv, the rows of all runs of a cell, with each run's score_window and the
        settings in which it is not what its name stands for

Target returns and episodes of a checkpoint are played in lock-step, `at_once` of them: one batched forward
for each environment step, over those episodes that still run. Episode i of a checkpoint starts from the same
seed for every target and method (kit/envs.py), so methods are compared on the same starts.
Baselines know no target, so theirs is empty and they play each start once. Their action depends on the
newest state alone.
normalized_score is 100 (return - random) / (expert - random) with D4RL's reference scores; Atari's expert
is a human player (Mnih et al. 2015), Reacher2d's is at the target at each of 100 steps.
data_score is that of the mean training episode; empty for DQN replay, which records no scores.
Letters: n episodes side by side, K context, S state, A action, H hidden.
"""

import copy
import sys
from pathlib import Path

from kit import artifacts, fail, seals, settings, signals
from kit.gathering import begin_evaluation, collect, finish_evaluation, row_of

OPTIONS = settings.options(__doc__, run="maybe")
OPTIONS.add_argument("--collect", type=settings.run_name, metavar="PROFILE/CELL", help="gather a cell's runs")
OPTIONS.add_argument("--video", type=Path, metavar="FILE", help=".gif or .mp4: an episode, filmed")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds
    if ARGS.collect:
        if ARGS.run or ARGS.video:
            fail("--collect takes a cell, and neither a run nor --video beside it")
        collect(ARGS.collect)
        sys.exit()

import numpy as np
import torch

from baselines import build_actor
from kit import runs, video
from kit.envs import make_env, start_seed
from kit.imitation import columns, load_heldout
from kit.language_models import is_another
from kit.policy import Policy
from kit.progress import Progress
from kit.quick import pick_device
from lora import merge_lora
from model import build_model
from train import trainable

# --- episodes ----------------------------------------------------------------------------------

def play(model, config, device, progress=None):
    """All target returns x episodes of one checkpoint, `at_once` of them side by side; baselines know no
    target, which then is None. Returns a list of (target_return, episode, return, length)."""
    jobs, policy, n = jobs_of(config), Policy(model, config, device), config["at_once"]
    envs = [make_env(config) for _ in jobs[:n]]
    return [episode for first in range(0, len(jobs), n)
            for episode in play_together(policy, config, envs, jobs[first:first + n], progress)]


def jobs_of(config):
    """[(target_return, episode)] of a checkpoint."""
    return [(target, episode) for target in config.get("target_returns", (None,))
            for episode in range(config["episodes"])]


def play_together(policy, config, envs, jobs, progress, step=None):
    """One episode for each (target return, episode) of `jobs`, in lock-step; step: the checkpoint's, if it
    is not the last one."""
    observations = [env.reset(seed=start_seed(config, step or config["steps"], episode))[0]
                    for env, (_, episode) in zip(envs, jobs, strict=False)]  # the last jobs may be fewer
    returns, lengths = np.zeros(len(jobs)), np.zeros(len(jobs), int)
    alive, rewards = np.arange(len(jobs)), None
    policy.reset([target or 0.0 for target, _ in jobs])
    for t in range(config["horizon"]):
        try:
            actions = policy.act(np.stack([observations[i] for i in alive]), rewards)
        except FloatingPointError as error:
            fail(f"{runs.run_of(config)}: {error}: it has diverged; train it again with a smaller "
                 f"{runs.rates(config)}")
        rewards = np.zeros(len(alive))
        for n, i in enumerate(alive):
            observations[i], rewards[n], terminated, truncated, _ = envs[i].step(actions[n])
            returns[i] += rewards[n]
            if terminated or truncated:
                lengths[i] = t + 1
        if progress is not None:
            progress.advance(len(alive))
        going = lengths[alive] == 0
        policy.keep(going)
        alive, rewards = alive[going], rewards[going]
        if len(alive) == 0:
            break
    return [(target, episode, returns[i], int(lengths[i])) for i, (target, episode) in enumerate(jobs)]


# --- runs --------------------------------------------------------------------------------------

def load_run(run):
    """(config, model in evaluation mode, its checkpoints in order of steps); one line and exit if what was
    frozen in training is not what is found now."""
    env = settings.configuration(run)["env"]  # gymnasium imports what stands before a colon in it
    config, checkpoints = artifacts.checkpoint_paths(run)
    if config.get("env") != env:
        fail(f"{artifacts.run_folder(run)}/config.json names the environment {config.get('env')!r}, and that "
             f"of {run} is {env}; it is no run of this kit's")
    another = (f"{run} was trained on {config['lm_id']}, and {config.get('lm')} now is another language "
               "model; put the first one back, or train the run again: --replace, or make ... REPLACE=1")
    if is_another(config):
        fail(another)
    torch.manual_seed(config["seed"])  # as it was built for training, frozen random parts included
    # the checkpoints have all of the LoRA that an adapter started
    model = build_model(config | {"adapter": ""}) if config["kind"] == "sequence" else build_actor(config)
    frozen = {name: p.numpy() for name, p in model.named_parameters() if not p.requires_grad}
    if artifacts.arrays_digest(frozen) != config["frozen_sha256"]:
        fail(another)
    return config, model.eval(), checkpoints


def load_checkpoint(model, path, config):
    """Put a checkpoint's tensors into the model; returns its step."""
    tensors, metadata = artifacts.load_tensors(path)
    own, run = trainable(model), runs.run_of(config)
    whose, step = (metadata.get(name) for name in ("run", "step"))
    if whose != run or {n: t.shape for n, t in tensors.items()} != {n: p.shape for n, p in own.items()}:
        fail(f"{path} was saved by {whose} with other settings; train again: make ... FRESH=1")
    if path != artifacts.checkpoint_path(path.parent, step, config):
        fail(f"{path} holds the weights of step {step:,}; train again: make ... FRESH=1")
    for name, p in own.items():
        p.data.copy_(tensors[name])
    return step


def load_policy(run, device="auto"):
    """A finished run's agent, with the weights of its last training step."""
    run, device = settings.run_name(run), pick_device(device)
    config, model, checkpoints = load_run(run)
    load_checkpoint(model, checkpoints[-1], config)
    return Policy(merged(model, config), config, device)


def merged(model, config):
    """A copy with LoRA folded in: the same function with two matrix products fewer a layer."""
    model = copy.deepcopy(model)
    if config["kind"] == "sequence":
        merge_lora(model.trunk)
    return model


def evaluate(run, device="auto", fresh=False, **overrides):
    """Play a run's checkpoints. Of the overrides, settings.EVALUATION and dtype count."""
    device = pick_device(device)
    config, model, checkpoints = load_run(run)
    # not what they were when it was trained: kit/plan.py asks for what its name and these words mean now
    asked = settings.configuration(run, **{name: overrides.get(name) for name in settings.EVALUATION})
    config |= {name: asked[name] for name in settings.EVALUATION if name in config}
    if "target_returns" in config:
        config["target_returns"] = list(config["target_returns"])  # as JSON gives them back
    if config["kind"] == "sequence":
        if overrides.get("dtype") in ("float32", "bfloat16"):  # instead of what it was trained in
            config["dtype"] = overrides["dtype"]
        model.bf16 = config["dtype"] == "bfloat16"
    how = {name: config[name] for name in (*settings.EVALUATION, "dtype") if name in config}
    window = how.pop("score_window")  # which decides what is averaged, not what is played
    folder = artifacts.run_folder(run)
    seals.remove_leftovers(folder)
    runs.remove_states(folder)
    part, rows, by = begin_evaluation(folder, how, config, runs.machine(device), fresh)
    before, jobs, n, envs = len(rows), jobs_of(config), config["at_once"], []
    lacking = len(checkpoints) * len(jobs) - before
    written, heldout = artifacts.RESULT_COLUMNS + artifacts.LOSS_COLUMNS, load_heldout(config)
    with Progress(f"{run}: playing", 0, None, "environment step") as progress:
        for path in checkpoints:
            step = load_checkpoint(model, path, config)
            acting = merged(model, config)
            policy, losses = Policy(acting, config, device), columns(acting, config, heldout, step, device)
            rows = [row | losses if int(row["step"]) == step else row for row in rows]
            played = sum(int(row["step"]) == step for row in rows)
            progress.note(checkpoint=f"{step:,}")
            for first in range(played, len(jobs), n):
                envs = envs or [make_env(config) for _ in jobs[:n]]  # once: a game takes 0.2 s to load
                episodes = play_together(policy, config, envs, jobs[first:first + n], progress, step)
                rows += [row_of(config, step, *episode) | losses for episode in episodes]
                artifacts.write_csv(part, written, rows)
                progress.expect(progress.done * lacking // (len(rows) - before))  # the others will be as long
    artifacts.write_csv(part, written, rows)
    finish_evaluation(part, how | {"score_window": window, "played_by": by}, fresh)
    summarise(run, config, rows)


def summarise(run, config, rows):
    final = [row for row in rows if int(row["step"]) == config["steps"]]
    for target in dict.fromkeys(row["target_return"] for row in final):
        scores = [float(row["normalized_score"]) for row in final if row["target_return"] == target]
        print(f"{run}: step {config['steps']:,}{f', target {target}' if target else ''}: normalised score "
              f"{sum(scores) / len(scores):.1f} over {len(scores)} episodes")


if __name__ == "__main__":
    if ARGS.run is None:
        fail("give a run, or --collect PROFILE/CELL; see --help")
    if ARGS.video:
        video.film(load_policy(ARGS.run, ARGS.device), play_together, **vars(ARGS))
    else:
        evaluate(**vars(ARGS))
