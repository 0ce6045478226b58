"""Who plays the data that the kit makes. `play_episode` gives an episode of a task by its number.

MuJoCo      D4RL's "medium" data come from a SAC agent stopped when it reaches about a third of the
            expert's return, sampled stochastically (Fu et al. 2020, section 5). The mini profile's come
            from the same kind of agent, trained on the same environment, stopped by the same rule.
Reacher2d   PPO, as the authors'. It is disturbed until its episodes earn as much as their dataset, 36 of
            100, and what it meant to do is recorded, so that the data show how to come back from errors.
Kitchen     a script (kitchen.py).
Atari       a script a game (atari.py).

reads   mini/weights/players/PLAYER.npz, for the agents
writes  nothing: sources/played.py keeps what is played, train_player.py trains and measures

A player is a function act(observation) -> (what it does, what is recorded), or None to stop.
Shapes: S state, A action, H hidden units (SAC's 256, PPO's 64), T steps of an episode.
"""

import itertools
import json
from pathlib import Path

import numpy as np

from kit import fail, seals
from kit.artifacts import arrays_digest, first_words
from kit.envs import make_env
from mini.atari import breakout_player, pong_player, qbert_player
from mini.kitchen import complete_player, partial_player
from tasks import TRAINED

WEIGHTS = Path(__file__).parent / "weights" / "players"
SCRIPTS = {"kitchen-complete": complete_player, "kitchen-partial": partial_player,
           "breakout": breakout_player, "pong": pong_player, "qbert": qbert_player}
LAYERS = ("fc0", "fc1", "mean")  # as D4RL names its own; the spread of SAC's actions, "log_std", is one, too


def play_episode(config, index):
    """Episode `index` of a task's full dataset, which its number alone determines.

    Where a task keeps better episodes only (minimum_return), worse ones are played again.
    Returns arrays: observations (T, S), or single frames (T, 84, 84); actions (T, A) or (T,); rewards
    (T,); terminals (T,); and the observation that followed, (S,) or (84, 84).
    """
    env = player_env(config)
    for attempt in itertools.count(1):
        # a seed of its own for each attempt, far from all episodes' first attempts; those of evaluate.py
        # begin at a million, where the eleventh would come
        far = attempt - 1 if attempt <= 10 else attempt + 1_000
        observation, _ = env.reset(seed=index + 100_000 * far)
        episode = play(env, make_player(config, env, np.random.default_rng([index, attempt])), observation)
        if sum(episode[2]) >= config.get("minimum_return", -np.inf):
            break
    env.close()
    return tuple(np.array(column) for column in episode)


def player_env(config):
    """The environment a player plays in: Atari's players, as DQN replay's, with sticky actions."""
    return make_env(config | {"env": config.get("player_env", config["env"]),
                              "horizon": config.get("player_horizon", config["horizon"])})


def make_player(config, env, rng, sampled=True):
    """A configuration's player of one episode. `env` has been reset: scripts look at its memory.

    sampled     False: a trained agent takes its actions' means; a script knows no such thing
    """
    name = config["player"]
    if name in TRAINED:
        actor, _ = load(WEIGHTS / f"{name}.npz")
        return trained_player(actor, rng if sampled else None, config.get("player_noise"))
    return SCRIPTS[name](env, rng)


def play(env, player, observation):
    """One episode from its first observation: lists of observations (of stacked frames, the newest alone),
    recorded actions, rewards and terminals, and what came last."""
    steps, over = [], False
    while not over and (choice := player(observation)) is not None:
        action, label = choice
        seen = observation[-1].copy() if observation.ndim == 3 else observation
        observation, reward, terminated, truncated, _ = env.step(action)
        steps.append((seen, label, reward, terminated))
        over = terminated or truncated
    return *map(list, zip(*steps, strict=True)), observation[-1] if observation.ndim == 3 else observation


# --- trained agents ----------------------------------------------------------------------------

def load(path):
    """An actor {"fc0/weight": (H, S) float64, "fc0/bias": (H,), ...} and its provenance, a dict, from an
    .npz file, which has float32; one line and exit if it is not there or damaged."""
    try:
        if path.parent == WEIGHTS:
            seals.check_list(WEIGHTS, path.name)
        with np.load(path, allow_pickle=False) as file:
            layers = LAYERS + ("log_std",) * ("log_std/weight" in file)
            actor = {name: file[name] for layer in layers for name in (f"{layer}/weight", f"{layer}/bias")}
            provenance = json.loads(str(file["provenance"]))
        if provenance.get("sha256") not in (None, arrays_digest(actor)):  # those that ship are listed
            raise ValueError("its SHA-256 does not match its content")
        return {name: array.astype(np.float64) for name, array in actor.items()}, provenance
    except Exception as error:  # a damaged zip raises one of many types (BadZipFile, zlib.error, ...)
        fail(f"{path} holds no player ({type(error).__name__}: {first_words(error)}); restore it with "
             "git checkout, or train one: python -m mini.train_player --help")


def trained_player(actor, rng, noise=None):
    """The agent, exploring in its own way, or, without an rng, at its mean.

    noise   standard deviation of what disturbs its mean action instead, and is not recorded
    """
    def choose(observation):
        if noise is None or rng is None:
            action = act(actor, observation, rng)
            return action, action
        meant = act(actor, observation)
        executed = meant + noise * rng.standard_normal(meant.shape, dtype=np.float32)
        return np.clip(executed, -1, 1).astype(np.float32), meant
    return choose


def act(actor, observation, rng=None):
    """Sample a ~ tanh(Normal(mean(s), std(s))), as SAC explores, or take tanh(mean(s)) without an rng, which
    is all that PPO's know. (S,) -> (A,) float32 in [-1, 1].

    CPUs add up a matrix product in different orders, and an episode soon shows the last bit of an action.
    Sums of float64 in another order are hardly ever another float32: episodes are equal on every CPU tried.
    """
    hidden, is_sac = observation.astype(np.float64), "log_std/weight" in actor
    for layer in ("fc0", "fc1"):
        hidden = actor[f"{layer}/weight"] @ hidden + actor[f"{layer}/bias"]                 # (H,)
        hidden = np.maximum(hidden, 0) if is_sac else np.tanh(hidden)
    mean = actor["mean/weight"] @ hidden + actor["mean/bias"]                               # (A,)
    if rng is not None and is_sac:
        log_std = np.clip(actor["log_std/weight"] @ hidden + actor["log_std/bias"], -20, 2)
        mean = mean + np.exp(log_std) * rng.standard_normal(mean.shape, dtype=np.float32)
    return np.tanh(mean).astype(np.float32)
