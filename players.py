"""Who plays the data that the kit makes: trained agents in assets/players/, and scripts.

MuJoCo      D4RL's "medium" data come from a SAC agent stopped when it reaches about a third of the
            expert's return, sampled stochastically (Fu et al. 2020, section 5). The mini profile's come
            from the same kind of agent, trained here on the same environment, stopped by the same rule.
Reacher2d   also SAC, stopped at the mean return of the authors' dataset, 36 of 100.
Kitchen     a script that moves the arm along way-points. Atari: scripts that read the emulator's memory.

    .venv/bin/pip install -r requirements-players.txt    # stable-baselines3, needed only to train
    .venv/bin/python players.py hopper-medium            # half an hour on one core
    .venv/bin/python players.py reacher2d-medium --fraction 0.36 --every 2500
    .venv/bin/python players.py hopper-medium --measure  # a player's returns, trained or scripted

reads   nothing but the environment
writes  build/players/PLAYER/STEP.npz   the actor every `--every` steps (git ignores it)
        build/players/PLAYER/curve.csv  step, mean, standard deviation and count of stochastic returns
        assets/players/PLAYER.npz       the first actor that reached the goal, with its provenance
        assets/players/PLAYER.csv       the learning curve up to that actor

`prepare_data.py` imports `play_episode`, which needs no more than numpy and the environments.
"""

import argparse
import csv
import itertools
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


def sac_player(env, rng, actor, sampled=True):
    """act(observation) -> (action, label): the trained agent, exploring or at its mean."""
    def choose(observation):
        action = act(actor, observation, rng if sampled else None)
        return action, action
    return choose


def make_player(config, env, rng):
    """The player of a configuration: act(observation) -> (what it does, what is recorded), or None to stop."""
    name = config["player"]
    if name in tasks.TRAINED:
        return sac_player(env, rng, load(ASSETS / f"{name}.npz")[0])
    raise NotImplementedError(name)


def play(env, player, seed):
    """One episode: lists of observations, recorded actions, rewards and terminals, and what came last."""
    observation, _ = env.reset(seed=seed)
    steps, over = [], False
    while not over and (choice := player(observation)) is not None:
        action, label = choice
        following, reward, terminated, truncated, _ = env.step(action)
        steps.append((observation, label, reward, terminated))
        observation, over = following, terminated or truncated
    return *map(list, zip(*steps, strict=True)), observation


def play_episode(config, index):
    """Episode `index` of a task's full dataset, which its number alone determines.

    Where a task keeps better episodes only (minimum_return), worse ones are played again.
    Returns arrays: observations (T, S), or single frames (T, 84, 84); actions (T, A) or (T,); rewards
    (T,); terminals (T,); and the observation that followed.
    """
    from envs import make_env

    env = make_env(config | {"env": config.get("player_env", config["env"])})
    for attempt in itertools.count(1):
        player = make_player(config, env, np.random.default_rng([index, attempt]))
        # a seed of its own for each attempt, far from all episodes' first attempts
        episode = play(env, player, index + 100_000 * (attempt - 1))
        if sum(episode[2]) >= config.get("minimum_return", -np.inf):
            break
    env.close()
    *columns, last = episode
    if config["suite"] == "atari":  # of the stack, the newest frame alone
        columns[0], last = [stack[-1] for stack in columns[0]], last[-1]
    return *map(np.array, columns), np.array(last)


def measure(task, episodes):
    """Print a player's mean return; of a trained one with sampled actions and with their means."""
    from envs import make_env
    from prepare_data import reference

    config = tasks.configuration(f"mini/{task}-1/dt/seed0")
    low, high = reference(config)
    env = make_env(config | {"env": config.get("player_env", config["env"])})
    for sampled in (True, False) if config["player"] in tasks.TRAINED else (True,):
        returns, lengths = [], []
        for i in range(episodes):
            rng = np.random.default_rng([20_000_000 + i, 1])
            player = make_player(config, env, rng)
            if not sampled:
                player = sac_player(env, rng, load(ASSETS / f"{config['player']}.npz")[0], sampled=False)
            rewards = play(env, player, 20_000_000 + i)[2]
            returns.append(sum(rewards))
            lengths.append(len(rewards))
        mean, std = np.mean(returns), np.std(returns, ddof=1)
        print(f"{task}{'' if sampled else ', actions at their mean'}: return {mean:.4g} (standard deviation "
              f"{std:.3g}, {min(returns):.4g} to {max(returns):.4g}, {episodes} episodes of "
              f"{np.mean(lengths):.0f} steps), normalised {100 * (mean - low) / (high - low):.1f}")


# --- training a player -------------------------------------------------------------------------

def actor_arrays(policy):
    """A stable-baselines3 SAC policy as plain arrays, named as D4RL names its own (fc0, fc1, ...)."""
    layers = {"fc0": policy.actor.latent_pi[0], "fc1": policy.actor.latent_pi[2],
              "mean": policy.actor.mu, "log_std": policy.actor.log_std}
    return {f"{name}/{part}": getattr(layer, part).detach().numpy().copy()
            for name, layer in layers.items() for part in ("weight", "bias")}


def train(task, steps, every, episodes, fraction, seed):
    """Train SAC and keep the first actor whose stochastic return reaches `fraction` of the expert's.

    The expert is the reference of the normalised score; episodes the dataset would not keep do not
    count. "Reaches" is judged on `episodes` episodes that no
    training step saw, so one lucky episode does not stop the run.
    """
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    from envs import make_env
    from prepare_data import reference

    torch.set_num_threads(1)
    row = tasks.configuration(f"mini/{task}-1/dt/seed0")
    player = row["player"]
    goal = fraction * reference(row)[1]
    minimum = row.get("minimum_return", -np.inf)
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
            played = []
            for i in range(10_000_000, 10_000_000 + episodes):
                played.append(play(probe, sac_player(probe, np.random.default_rng(i), arrays), i)[2])
            kept = [rewards for rewards in played if sum(rewards) >= minimum] or [[0.0], [0.0]]
            returns, lengths = [sum(rewards) for rewards in kept], [len(rewards) for rewards in kept]
            rows.append({"step": self.num_timesteps, "return_mean": round(float(np.mean(returns)), 1),
                         "return_std": round(float(np.std(returns, ddof=1)), 1),
                         "length_mean": round(float(np.mean(lengths)), 1), "episodes": len(kept)})
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
