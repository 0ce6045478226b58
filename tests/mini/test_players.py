"""mini/players.py: the same episode every time, of medium strength; damaged weights are one line."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kit.artifacts import read_csv
from kit.envs import EPISODE_SEED
from kit.settings import configuration
from mini import atari, players
from tasks import TASKS, TRAINED

CONFIGS = {task: configuration(f"mini/{task}-1/dt/seed0") for task in TASKS}

# A range that the mean return of four episodes falls into; a broken player falls far outside of it.
STRENGTH = {"hopper-medium": (700, 1800), "halfcheetah-medium": (3700, 4700), "walker2d-medium": (700, 3300),
            "reacher2d-medium": (21, 60), "kitchen-complete": (4, 4), "kitchen-partial": (1, 4),
            "breakout-medium": (10, 90), "qbert-medium": (100, 8000), "pong-medium": (-19, 5)}
# SHA-256 of two episodes of each agent, with the packages of requirements.txt, on any CPU.
AGENTS_PLAY = {"hopper": "63ef2361dd0c5ce7", "halfcheetah": "596a2badb44b91a2",
               "walker2d": "c1994d2c1258dd69", "reacher2d": "bb66652ea71825f7"}


@pytest.mark.parametrize("task", TASKS)
def test_a_player_is_of_medium_strength(task):
    config = CONFIGS[task]
    count = 3 if task == "qbert-medium" else 4
    episodes = [players.play_episode(config, index) for index in range(count)]
    low, high = STRENGTH[task]
    assert low <= np.mean([rewards.sum() for _, _, rewards, _, _ in episodes]) <= high
    for observations, actions, rewards, terminals, last in episodes:
        T = len(rewards)
        assert len(observations) == len(actions) == len(terminals) == T
        assert not terminals[:-1].any() and last.shape == observations[0].shape
        if config["pixels"]:
            assert observations.shape == (T, 84, 84) and observations.dtype == np.uint8
            unused = {"qbert-medium": {1}, "pong-medium": {1, 4, 5}}.get(task, set())  # those with FIRE
            assert set(actions.tolist()) == set(range(config["action_dim"])) - unused
        else:
            assert observations.shape == (T, config["state_dim"]) and np.abs(actions).max() <= 1
    assert not np.array_equal(episodes[0][1], episodes[-1][1]) or len(episodes) == 1


def test_qberts_player_means_its_next_hop_while_it_is_in_the_air():
    config, rng = CONFIGS["qbert-medium"], np.random.default_rng(3)
    env = players.player_env(config)
    observation, _ = env.reset(seed=11)
    act, standing, meant, executed = players.make_player(config, env, rng), [], [], []
    for _ in range(400):
        ram = atari.read_ram(env, atari.QBERT_RAM)
        standing.append(((ram.player_y - 25) / 28, ram.player_code) in atari.QBERT_CUBES)
        done, label = act(observation)
        meant.append(label)
        executed.append(done)
        observation, *_ = env.step(done)
    env.close()
    landings = [t for t in range(1, 400) if standing[t] and not standing[t - 1] and meant[t]]
    assert len(landings) > 10
    assert np.mean([meant[t - 1] == meant[t] for t in landings]) > 0.8  # an enemy may have moved
    assert meant != executed and np.mean(np.equal(meant, executed)[~np.array(standing)]) == 1


def pong_for(steps, rng):
    """[(what Pong's player did, what it meant)], and what it earned."""
    config = CONFIGS["pong-medium"]
    env = players.player_env(config)
    observation, _ = env.reset(seed=4)
    act, choices, earned = players.make_player(config, env, rng), [], 0
    for _ in range(steps):
        choices.append(act(observation))
        observation, reward, *_ = env.step(choices[-1][0])
        earned += reward
    env.close()
    return np.array(choices), earned


def test_what_disturbs_pongs_player_is_not_recorded():
    class Calm:
        def uniform(self, low, high):
            return low

        def random(self):
            return 0.5

    class Often(Calm):
        rng = np.random.default_rng(0)

        def uniform(self, low, high):
            return high

        def __getattr__(self, name):
            return getattr(self.rng, name)

        random = rng.random

    choices, even = pong_for(1200, Calm())
    assert (choices[:, 0] == choices[:, 1]).all() and even >= -5  # at rest it has lost 21 by then
    choices, disturbed = pong_for(1200, Often())
    others = choices[choices[:, 0] != choices[:, 1]]
    assert len(others) > 200 and disturbed < even
    assert set(map(tuple, others.tolist())) == {(a, b) for a in (0, 2, 3) for b in (0, 2, 3) if a != b}


def test_what_disturbs_an_agent_is_not_recorded():
    config = CONFIGS["reacher2d-medium"]
    actor, _ = players.load(players.WEIGHTS / "reacher2d.npz")
    seen, meant, rewards, _, _ = players.play_episode(config, 3)
    assert np.array_equal(meant, [players.act(actor, observation) for observation in seen])
    act, noise = players.make_player(config, None, np.random.default_rng(0)), np.random.default_rng(0)
    for observation in seen[:20]:
        executed, label = act(observation)
        disturbed = label + config["player_noise"] * noise.standard_normal(2, dtype=np.float32)
        assert np.array_equal(executed, np.clip(disturbed, -1, 1).astype(np.float32))
        assert not np.array_equal(executed, label)
    calm = players.make_player(config, None, np.random.default_rng(0), sampled=False)
    assert np.array_equal(*calm(observation)) and np.array_equal(calm(observation)[0], label)


def test_worse_episodes_are_played_again(monkeypatch):
    config = CONFIGS["reacher2d-medium"]
    assert all(players.play_episode(config, number)[2].sum() > 20 for number in range(6))
    # however often, it never starts where evaluation does
    seeds, make_env = [], players.make_env

    def watched(config):
        env = make_env(config)
        reset = env.reset
        env.reset = lambda seed: seeds.append(seed) or reset(seed=seed)
        return env

    monkeypatch.setattr(players, "make_env", watched)
    monkeypatch.setattr(players, "play", lambda *_: [[], [], [25.0 if len(seeds) == 14 else 3.0], [], 0])
    players.play_episode(config, 7)
    assert len({*seeds}) == 14 and not [seed for seed in seeds if EPISODE_SEED <= seed < 100 * EPISODE_SEED]
    monkeypatch.undo()
    every = config | {"minimum_return": 0.0}
    assert min(players.play_episode(every, number)[2].sum() for number in range(6)) < 20


@pytest.mark.parametrize("task", ["kitchen-partial", "qbert-medium", "reacher2d-medium"])
def test_an_episode_is_determined_by_its_number(task):
    first, again = (players.play_episode(CONFIGS[task], 7) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        assert np.array_equal(one, two)


def digests():
    """{agent: SHA-256 of its episodes 0 and 1}"""
    found = {}
    for player in TRAINED:
        episodes = [players.play_episode(CONFIGS[f"{player}-medium"], index) for index in (0, 1)]
        content = b"".join(array.tobytes() for episode in episodes for array in episode)
        found[player] = hashlib.sha256(content).hexdigest()[:16]
    return found


def test_agents_play_the_same_on_every_cpu():
    """Other instructions add up in another order, as another CPU does: OpenBLAS's oldest, NumPy's fewest."""
    asked = {"OPENBLAS_CORETYPE": "Prescott",
             "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR"}
    program = "import json; from tests.mini.test_players import digests; print(json.dumps(digests()))"
    there = subprocess.run([sys.executable, "-c", program], cwd=players.WEIGHTS.parents[2],
                           env=os.environ | asked, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == digests() == AGENTS_PLAY


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_player(task):
    player = CONFIGS[task]["player"]
    assert (player in TRAINED) != (player in players.SCRIPTS)
    assert (player in TRAINED) == (players.WEIGHTS / f"{player}.npz").exists()


@pytest.mark.parametrize("player", TRAINED)
def test_a_shipped_agent_is_the_first_of_its_training_that_reached_the_goal(player):
    actor, provenance = players.load(players.WEIGHTS / f"{player}.npz")
    *before, kept = read_csv(players.WEIGHTS / f"{player}.csv", ("step", "return_mean"))
    assert int(kept["step"]) == provenance["step"]
    assert float(kept["return_mean"]) == provenance["return_mean"] >= provenance["goal"]
    assert all(float(row["return_mean"]) < provenance["goal"] for row in before)
    assert all(np.array_equal(array, array.astype(np.float32)) for array in actor.values())
    assert len(actor) == (6 if player == "reacher2d" else 8)  # of PPO's the spread is no layer


def test_an_agent_acts_at_its_mean_or_samples_around_it():
    actor, _ = players.load(players.WEIGHTS / "hopper.npz")
    observation, _ = players.player_env(CONFIGS["hopper-medium"]).reset(seed=0)
    mean = players.act(actor, observation)
    sampled = np.array([players.act(actor, observation, np.random.default_rng(i)) for i in range(200)])
    assert mean.shape == (3,) and np.abs(sampled).max() <= 1 and sampled.std(0).min() > 0
    assert np.abs(np.median(sampled, 0) - mean).max() < 0.3
    assert np.array_equal(sampled[5], players.act(actor, observation, np.random.default_rng(5)))


def damaged(kind, path):
    """A damaged copy of a shipped agent."""
    content = bytearray((players.WEIGHTS / "hopper.npz").read_bytes())
    if kind == "cut short":
        content = content[:len(content) // 2]
    elif kind == "one bit is another":
        content[len(content) // 2] ^= 1
    elif kind == "header":
        content[content.index(b"descr")] ^= 255
    path.write_bytes(content)
    if kind == "a single array":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "other arrays":
        np.savez(path, provenance=json.dumps({}), weight=np.zeros(3))
    elif kind == "pickled":
        np.savez(path, provenance=np.array([{}], object))


@pytest.mark.parametrize("kind", ["not there", "cut short", "one bit is another", "header", "a single array",
                                  "other arrays", "pickled"])
def test_a_damaged_agent_is_one_line(kind, tmp_path, monkeypatch):
    if kind != "not there":
        damaged(kind, tmp_path / "hopper.npz")
    monkeypatch.setattr(players, "WEIGHTS", tmp_path)
    with pytest.raises(SystemExit) as error:
        players.play_episode(CONFIGS["hopper-medium"], 0)
    message = str(error.value)
    assert str(tmp_path / "hopper.npz") in message and "mini.train_player" in message and "\n" not in message
