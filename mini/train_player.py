"""Train the agents that play MuJoCo (SAC) and Reacher2d (PPO), and measure any player, trained or scripted.

    .venv/bin/pip install -r requirements-players.txt         # stable-baselines3, needed only to train
    .venv/bin/python -m mini.train_player hopper-medium       # half an hour on one core
    .venv/bin/python -m mini.train_player reacher2d-medium --fraction 0.6 --every 100000 --episodes 100
    .venv/bin/python -m mini.train_player hopper-medium --measure --episodes 100

An agent is measured every `--every` steps on `--episodes` episodes that no training step saw, so that one
lucky episode does not stop the run. The first whose mean return, SAC's actions sampled and PPO's at their
mean, reaches `--fraction` of the expert's is kept; the expert is the reference of the normalised score.

reads   nothing but the environment; mini/weights/players/PLAYER.npz to measure
writes  build/players/PLAYER/STEP.npz     the actor at every measurement (git ignores it)
        build/players/PLAYER/curve.csv    step, mean, standard deviation and count of returns, mean length
        mini/weights/players/PLAYER.npz   the actor that is kept, with its provenance
        mini/weights/players/PLAYER.csv   the learning curve up to it
"""

from pathlib import Path

from kit import fail, seals, signals
from kit.settings import ANY_SEED, COUNT, Options, configuration, number
from tasks import TASKS, TRAINED

OPTIONS = Options(__doc__)
OPTIONS.add_argument("task", choices=list(TASKS), help="whose player")
OPTIONS.add_argument("--steps", type=COUNT, default=1_000_000, help="give up after so many")
OPTIONS.add_argument("--every", type=COUNT, default=10_000, help="steps between measurements")
OPTIONS.add_argument("--episodes", type=COUNT, default=20, help="episodes of a measurement")
OPTIONS.add_argument("--fraction", type=number(float, "[0, 10]"), default=1 / 3,
                     help="of the expert's return to reach")
OPTIONS.add_argument("--seed", type=ANY_SEED, default=0)
OPTIONS.add_argument("--measure", action="store_true", help="play the shipped player instead")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a moment

import numpy as np
import torch

from kit.artifacts import save_arrays, write_csv
from kit.envs import make_env
from mini.players import WEIGHTS, make_player, play, player_env, trained_player
from sources.d4rl import reference


def outcomes(env, make, seeds):
    """Returns and lengths of one episode a seed; make(seed) is its player. The environment is reset first."""
    returns, lengths = [], []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        rewards = play(env, make(seed), observation)[2]
        returns.append(sum(rewards))
        lengths.append(len(rewards))
    return returns, lengths


def measure(task, episodes):
    """Print a player's mean return; of a trained one with sampled actions and with their means."""
    config = configuration(f"mini/{task}-1/dt/seed0")
    low, high = reference(config)
    env = player_env(config)
    first = 20_000_000
    for sampled in (True, False) if config["player"] in TRAINED else (True,):
        def make(seed, sampled=sampled):
            return make_player(config, env, np.random.default_rng([seed, 1]), sampled)
        returns, lengths = outcomes(env, make, range(first, first + episodes))
        mean = np.mean(returns)
        print(f"{task}{'' if sampled else ', actions at their mean'}: return {mean:.4g} (standard deviation "
              f"{spread(returns):.3g}, {min(returns):.4g} to {max(returns):.4g}, {episodes} episodes of "
              f"{np.mean(lengths):.0f} steps), normalised {100 * (mean - low) / (high - low):.1f}")


def spread(returns):
    """Their standard deviation; 0 of a single one."""
    return np.std(returns, ddof=1) if len(returns) > 1 else 0.0


def actor_arrays(policy):
    """A policy of stable-baselines3, SAC's or PPO's, as plain arrays, named as D4RL's (fc0, fc1, ...)."""
    if hasattr(policy, "actor"):
        layers = {"fc0": policy.actor.latent_pi[0], "fc1": policy.actor.latent_pi[2],
                  "mean": policy.actor.mu, "log_std": policy.actor.log_std}
    else:
        hidden = policy.mlp_extractor.policy_net
        layers = {"fc0": hidden[0], "fc1": hidden[2], "mean": policy.action_net[0]}
    return {f"{name}/{part}": getattr(layer, part).detach().numpy().copy()
            for name, layer in layers.items() for part in ("weight", "bias")}


def measurement(env, actor, step, episodes):
    """A row of the learning curve."""
    first = 10_000_000
    returns, lengths = outcomes(env, lambda seed: trained_player(actor, np.random.default_rng(seed)),
                                range(first, first + episodes))
    return {"step": step, "return_mean": round(float(np.mean(returns)), 1),
            "return_std": round(float(spread(returns)), 1),
            "length_mean": round(float(np.mean(lengths)), 1), "episodes": episodes}


def sac(env, seed):
    """D4RL's agent, untrained."""
    return algorithms().SAC("MlpPolicy", env, seed=seed, learning_starts=10_000,
                            policy_kwargs={"net_arch": [256, 256]})


def ppo(env, seed):
    """An agent like the authors' of Reacher2d, untrained: the network, updates and spread of their
    data_generation_PPO/PPO.py; one learning rate, and returns that are not standardised."""
    agent = algorithms().PPO("MlpPolicy", env, seed=seed, n_steps=4000, batch_size=4000, n_epochs=80,
                             gae_lambda=1.0, max_grad_norm=10.0, policy_kwargs={"net_arch": [64, 64]})
    agent.policy.action_net = torch.nn.Sequential(agent.policy.action_net, torch.nn.Tanh())
    agent.policy.log_std.requires_grad_(False)
    narrow(agent)
    return agent


def narrow(agent):
    """The standard deviation of PPO's actions, which it does not learn: 0.6 at first, 0.1 in the end."""
    if not hasattr(agent.policy, "actor"):
        std = max(0.1, 0.6 - 0.05 * (agent.num_timesteps // 250_000))
        agent.policy.log_std.data.fill_(np.log(std))


def algorithms():
    """stable-baselines3, which nothing else needs."""
    try:
        import stable_baselines3
    except ImportError:
        fail("training needs stable-baselines3: pip install -r requirements-players.txt")
    return stable_baselines3


def train(task, steps, every, episodes, fraction, seed):
    """Train until an actor reaches `fraction` of the expert's return, and keep that one."""
    config = configuration(f"mini/{task}-1/dt/seed0")
    player = config["player"]
    if player not in TRAINED:
        fail(f"{task} is played by a script; there is nothing to train, only to --measure")
    torch.set_num_threads(1)
    goal = fraction * reference(config)[1]
    folder = Path("build/players") / player
    agent = (ppo if config["env"] == "Reacher2d" else sac)(make_env(config), seed)
    probe, curve = make_env(config), []

    def going_on(*_):
        """stable-baselines3 calls it after every step; False ends the training."""
        narrow(agent)
        if agent.num_timesteps % every:
            return True
        actor = actor_arrays(agent.policy)
        curve.append(measurement(probe, actor, agent.num_timesteps, episodes))
        print(player, curve[-1], flush=True)
        keep(folder / f"{agent.num_timesteps}.npz", folder / "curve.csv", actor, curve)
        return curve[-1]["return_mean"] < goal

    def keep(actor_path, curve_path, actor, curve):
        save_arrays(actor_path, {"algorithm": f"{type(agent).__name__} (stable-baselines3)",
                                 "env": config["env"], "seed": seed, "goal": goal,
                                 "hidden": [len(actor["fc0/bias"])] * 2} | curve[-1], actor)
        write_csv(curve_path, tuple(curve[0]), curve)

    agent.learn(steps, callback=going_on)
    if not curve or curve[-1]["return_mean"] < goal:
        fail(f"after {steps:,} steps no actor had reached {goal:.0f}; "
             f"the curve is in {folder}/curve.csv; try more --steps or another --seed")
    keep(WEIGHTS / f"{player}.npz", WEIGHTS / f"{player}.csv", actor_arrays(agent.policy), curve)
    seals.write_list(WEIGHTS)
    print(f"{WEIGHTS / player}.npz: mean return {curve[-1]['return_mean']} at step {curve[-1]['step']}")


def main(args):
    if args.measure:
        measure(args.task, args.episodes)
    else:
        train(args.task, args.steps, args.every, args.episodes, args.fraction, args.seed)


if __name__ == "__main__":
    main(ARGS)
