"""mini/train_player.py: what it keeps, when it stops, and what it refuses. SAC itself is a stand-in here."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import one_line

from kit.artifacts import read_csv
from mini import players, train_player


class Agent:
    """Stands for stable_baselines3.SAC: a policy with random weights that training changes."""

    def __init__(self, policy, env, seed, **_):
        torch.manual_seed(seed)
        layer = torch.nn.Linear
        self.policy = SimpleNamespace(actor=SimpleNamespace(
            latent_pi=[layer(12, 256), None, layer(256, 256)], mu=layer(256, 2), log_std=layer(256, 2)))

    def learn(self, steps, callback):
        for self.num_timesteps in range(1, steps + 1):
            with torch.no_grad():
                self.policy.actor.mu.bias += 0.01
            if not callback({}, {}):
                break


@pytest.fixture
def train(monkeypatch, tmp_path):
    """train(fraction) of Reacher2d's player for ten steps at most, in an empty folder."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", SimpleNamespace(SAC=Agent))
    monkeypatch.setattr(train_player, "WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return lambda fraction: train_player.main(train_player.OPTIONS.parse_args(
        ["reacher2d-medium", "--steps", "10", "--every", "3", "--episodes", "2", "--seed", "4",
         "--fraction", str(fraction)]))


def test_the_first_actor_that_reaches_the_goal_is_kept(train, tmp_path, capsys):
    train(0)  # any actor does
    actor, provenance = players.load(tmp_path / "weights" / "reacher2d.npz")
    rows = read_csv(tmp_path / "weights" / "reacher2d.csv", ("step", "return_mean", "return_std"))
    assert [row["step"] for row in rows] == ["3"] and "at step 3" in capsys.readouterr().out
    assert provenance["seed"] == 4 and provenance["goal"] == 0 and provenance["env"] == "Reacher2d"
    # numpy's actor computes what torch's did
    agent = Agent(None, None, 4)
    agent.learn(3, lambda *_: True)
    part = agent.policy.actor
    observation = np.linspace(-1, 1, 12)
    hidden = torch.tensor(observation, dtype=torch.float32)
    for layer in (part.latent_pi[0], part.latent_pi[2]):
        hidden = torch.relu(layer(hidden))
    expected = torch.tanh(part.mu(hidden)).detach().numpy()
    assert np.allclose(players.act(actor, observation), expected, atol=1e-6)


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
