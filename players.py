"""Who plays the mini data: the behaviour policies that ship in assets/players/.

D4RL's "medium" data come from a SAC agent stopped when it reaches about a third of the expert's
return, sampled stochastically (Fu et al. 2020, section 5). The mini profile's come from the same
kind of agent, trained here on the same environment and stopped by the same rule.

    .venv/bin/pip install -r requirements-players.txt    # stable-baselines3, needed only to train
    .venv/bin/python players.py hopper-medium            # half an hour on one core
    .venv/bin/python players.py hopper-medium --measure  # the shipped player's returns

reads   nothing but the environment
writes  build/players/PLAYER/STEP.npz   the actor every `--every` steps (git ignores it)
        build/players/PLAYER/curve.csv  step, mean, standard deviation and count of stochastic returns
        assets/players/PLAYER.npz       the first actor that reached the goal, with its provenance
        assets/players/PLAYER.csv       the learning curve up to that actor

`prepare_data.py` imports `load` and `act`, which need numpy alone.
"""

import argparse
import csv
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

import tasks

ASSETS = Path(__file__).parent / "assets" / "players"


def load(path):
    """The actor's arrays {name: float32 array} and its provenance (a dict) from an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name != "provenance"}
            return arrays, json.loads(str(file["provenance"]))
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"players: {path} is not a readable behaviour policy ({error}); "
                 "restore it with git, or train one: python players.py --help")


def act(actor, observation, rng=None):
    """Sample a ~ tanh(Normal(mean(s), std(s))), as SAC explores, or take tanh(mean(s)) without an rng.
    (S,) -> (A,) float32 in (-1, 1)."""
    hidden = observation.astype(np.float32)
    for layer in ("fc0", "fc1"):
        hidden = np.maximum(actor[f"{layer}/weight"] @ hidden + actor[f"{layer}/bias"], 0)
    mean = actor["mean/weight"] @ hidden + actor["mean/bias"]
    log_std = np.clip(actor["log_std/weight"] @ hidden + actor["log_std/bias"], -20, 2)
    if rng is not None:
        mean = mean + np.exp(log_std) * rng.standard_normal(mean.shape, dtype=np.float32)
    return np.tanh(mean)


def play(env, actor, seed, sampled=True):
    """One episode. Returns (sum of rewards, number of steps)."""
    rng = np.random.default_rng(seed) if sampled else None
    observation, _ = env.reset(seed=seed)
    total, length, over = 0.0, 0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(act(actor, observation, rng))
        total, length, over = total + reward, length + 1, terminated or truncated
    return total, length


def measure(task, episodes):
    """Print the shipped player's mean return with sampled actions and with their means."""
    from envs import make_env
    from prepare_data import d4rl_infos

    row, infos = tasks.TASKS[task], d4rl_infos()
    low, high = (infos[f"REF_{end}_SCORE"][row["dataset"]] for end in ("MIN", "MAX"))
    actor, _ = load(ASSETS / f"{row['mini']['player']}.npz")
    env = make_env(row)
    for sampled in (True, False):
        returns = [play(env, actor, 20_000_000 + i, sampled)[0] for i in range(episodes)]
        mean, std = np.mean(returns), np.std(returns, ddof=1)
        normalized = 100 * (mean - low) / (high - low)
        print(f"{task}, actions {'sampled' if sampled else 'at their mean'}: return {mean:.0f} (standard "
              f"deviation {std:.0f}, {episodes} episodes), normalised {normalized:.1f}")


def actor_arrays(policy):
    """A stable-baselines3 SAC policy as plain arrays, named as D4RL names its own (fc0, fc1, ...)."""
    layers = {"fc0": policy.actor.latent_pi[0], "fc1": policy.actor.latent_pi[2],
              "mean": policy.actor.mu, "log_std": policy.actor.log_std}
    return {f"{name}/{part}": getattr(layer, part).detach().numpy().copy()
            for name, layer in layers.items() for part in ("weight", "bias")}


def train(task, steps, every, episodes, fraction, seed):
    """Train SAC and keep the first actor whose stochastic return reaches `fraction` of the expert's.

    The expert is D4RL's reference maximum. "Reaches" is judged on `episodes` episodes that no
    training step saw, so one lucky episode does not stop the run.
    """
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    from envs import make_env
    from prepare_data import d4rl_infos

    torch.set_num_threads(1)
    row = tasks.TASKS[task]
    player = row["mini"]["player"]
    goal = fraction * d4rl_infos()["REF_MAX_SCORE"][row["dataset"]]
    folder = Path("build/players") / player
    folder.mkdir(parents=True, exist_ok=True)
    probe = make_env(row)
    rows = []

    class Measure(BaseCallback):
        reached = False

        def _on_step(self):
            if self.num_timesteps % every:
                return True
            arrays = actor_arrays(self.model.policy)
            returns, lengths = zip(*(play(probe, arrays, 10_000_000 + i) for i in range(episodes)),
                                   strict=True)
            rows.append({"step": self.num_timesteps, "return_mean": round(float(np.mean(returns)), 1),
                         "return_std": round(float(np.std(returns, ddof=1)), 1),
                         "length_mean": round(float(np.mean(lengths)), 1), "episodes": episodes})
            print(player, rows[-1], flush=True)
            provenance = {"algorithm": "SAC (stable-baselines3)", "env": row["env"],
                          "seed": seed, "goal": goal, "hidden": [256, 256]} | rows[-1]
            # numpy appends .npz to a name without it, and a rename makes the file appear whole
            np.savez(folder / "part.npz", provenance=np.array(json.dumps(provenance)), **arrays)
            os.replace(folder / "part.npz", folder / f"{self.num_timesteps}.npz")
            with open(folder / "curve.csv", "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            self.reached = rows[-1]["return_mean"] >= goal
            return not self.reached

    measured = Measure()
    agent = SAC("MlpPolicy", make_env(row), seed=seed, learning_starts=10_000,
                policy_kwargs={"net_arch": [256, 256]}, verbose=0)
    agent.learn(steps, callback=measured)
    if not measured.reached:
        sys.exit(f"players: after {steps:,} steps no actor had reached {goal:.0f}; "
                 f"the curve is in {folder}/curve.csv; try more --steps or another --seed")
    ASSETS.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / f"{rows[-1]['step']}.npz", ASSETS / f"{player}.npz")
    shutil.copy(folder / "curve.csv", ASSETS / f"{player}.csv")
    print(f"{ASSETS / player}.npz: mean return {rows[-1]['return_mean']} at step {rows[-1]['step']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(tasks.TASKS))
    parser.add_argument("--steps", type=int, default=1_000_000, help="give up after so many")
    parser.add_argument("--every", type=int, default=10_000, help="steps between measurements")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of a measurement")
    parser.add_argument("--fraction", type=float, default=1 / 3, help="of the expert's return to reach")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", action="store_true", help="play the shipped player instead")
    args = vars(parser.parse_args())
    if args.pop("measure"):
        measure(args["task"], args["episodes"])
    else:
        train(**args)
