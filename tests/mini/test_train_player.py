"""mini/train_player.py: what it keeps, when it stops, and what it refuses. SAC and PPO are stand-ins here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line

from kit.artifacts import read_csv
from mini import players, train_player


class Agent:
    """Stands for an algorithm of stable_baselines3: a policy with random weights that training changes."""

    def __init__(self, policy, env, seed, **_):
        torch.manual_seed(seed)
        self.num_timesteps = 0
        self.layers = [torch.nn.Linear(*shape) for shape in self.SHAPES]
        self.policy = self.policy_of(*self.layers)

    def learn(self, steps, callback):
        for self.num_timesteps in range(1, steps + 1):
            with torch.no_grad():
                self.layers[2].bias += 0.01
            if not callback({}, {}):
                break

    def act(self, observation):
        """What the policy does at its mean, by torch."""
        hidden = torch.tensor(observation, dtype=torch.float32)
        for layer in self.layers[:2]:
            hidden = self.bend(layer(hidden))
        return torch.tanh(self.layers[2](hidden)).detach().numpy()


class SAC(Agent):
    SHAPES, bend = ((11, 256), (256, 256), (256, 3), (256, 3)), staticmethod(torch.relu)

    def policy_of(self, first, second, mean, log_std):
        actor = {"latent_pi": [first, None, second], "mu": mean, "log_std": log_std}
        return SimpleNamespace(actor=SimpleNamespace(**actor))


class PPO(Agent):
    SHAPES, bend = ((12, 64), (64, 64), (64, 2)), staticmethod(torch.tanh)

    def policy_of(self, first, second, mean):
        return SimpleNamespace(mlp_extractor=SimpleNamespace(policy_net=[first, None, second]),
                               action_net=mean, log_std=torch.nn.Parameter(torch.zeros(2)))


@pytest.fixture
def train(monkeypatch, tmp_path):
    """train(fraction) of a task's player for ten steps at most, in an empty folder."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", SimpleNamespace(SAC=SAC, PPO=PPO))
    monkeypatch.setattr(train_player, "WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return lambda fraction, task="reacher2d-medium": train_player.main(train_player.OPTIONS.parse_args(
        [task, "--steps", "10", "--every", "3", "--episodes", "2", "--seed", "4",
         "--fraction", str(fraction)]))


@pytest.mark.parametrize("player, algorithm", [("hopper", SAC), ("reacher2d", PPO)])
def test_the_first_actor_that_reaches_the_goal_is_kept(player, algorithm, train, tmp_path, capsys):
    train(0, f"{player}-medium")  # any actor does
    actor, provenance = players.load(tmp_path / "weights" / f"{player}.npz")
    rows = read_csv(tmp_path / "weights" / f"{player}.csv", ("step", "return_mean", "return_std"))
    assert [row["step"] for row in rows] == ["3"] and "at step 3" in capsys.readouterr().out
    assert provenance["seed"] == 4 and provenance["goal"] == 0
    assert provenance["algorithm"] == f"{algorithm.__name__} (stable-baselines3)"
    assert provenance["hidden"] == list(algorithm.SHAPES[1])
    # numpy's actor computes what torch's did
    agent = algorithm(None, None, 4)
    agent.learn(3, lambda *_: True)
    observation = np.linspace(-1, 1, algorithm.SHAPES[0][0])
    assert np.allclose(players.act(actor, observation), agent.act(observation), atol=1e-6)


def test_the_spread_of_ppos_actions_falls_and_is_not_learnt(train):
    agent = train_player.ppo(None, 0)
    assert torch.allclose(agent.policy.log_std.exp(), torch.tensor(0.6))
    assert not agent.policy.log_std.requires_grad and isinstance(agent.policy.action_net[1], torch.nn.Tanh)
    for step, std in ((0, 0.6), (249_999, 0.6), (250_000, 0.55), (1_000_000, 0.4), (9_000_000, 0.1)):
        agent.num_timesteps = step
        train_player.narrow(agent)
        assert torch.allclose(agent.policy.log_std.exp(), torch.tensor(std))
    train_player.narrow(train_player.sac(None, 0))  # its own, which it learns


def test_without_a_good_actor_nothing_is_kept(train, tmp_path):
    with pytest.raises(SystemExit, match="no actor had reached 200"):
        train(2)
    assert not (tmp_path / "weights").exists()
    folder = tmp_path / "build" / "players" / "reacher2d"
    assert [row["step"] for row in read_csv(folder / "curve.csv", ("step",))] == ["3", "6", "9"]
    assert {path.name for path in folder.glob("*.npz")} == {"3.npz", "6.npz", "9.npz"}


def test_measuring_prints_trained_players_twice_and_scripts_once(capsys):
    for task in ("reacher2d-medium", "kitchen-partial"):
        train_player.main(train_player.OPTIONS.parse_args([task, "--measure", "--episodes", "1"]))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "reacher2d-medium", "reacher2d-medium, actions at their mean", "kitchen-partial"]
    assert all("1 episodes of" in line and "standard deviation 0," in line for line in lines)


def test_bad_input_is_one_line(kit):
    for arguments, words in ((["pong-medium"], "script"), (["pong"], "invalid choice: 'pong'"),
                             (["hopper-medium", "--measure", "--episodes", "0"], "no whole number in [1, ")):
        assert words in one_line(kit("-m", "mini.train_player", *arguments, check=False))
