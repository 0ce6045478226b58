"""evaluate.py: lock-step play equals one episode at a time; rows, scores, seeds, gathering."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import one_line

import evaluate
import tasks
from baselines import build_actor
from envs import make_env
from model import DecisionTransformer, dt_trunk

CONFIG = tasks.configuration("mini/hopper-medium-0.01/dt/seed0", episodes=3, context=4) | {
    "state_mean": np.linspace(-0.5, 1.5, 11).tolist(), "state_std": np.linspace(0.5, 2, 11).tolist(),
    "target_returns": [1800.0, 600.0]}
SHORT = ("--steps", "6", "--eval_every", "3", "--log_every", "3", "--batch_size", "8", "--context", "5")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)  # one that stays up for forty steps
    model = DecisionTransformer(dt_trunk(width=32), 11, 3, 1000, "linear").eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
        model.embed_return.weight.mul_(5.0)  # so that the target matters
    return model


def one_episode(model, target, episode):
    """The plain loop of the paper's evaluation, one environment, no batching."""
    env = make_env(CONFIG)
    observation, _ = env.reset(seed=evaluate.EPISODE_SEED + episode)
    states, actions, to_go, rewards, over = [], [], [target / 1000], [], False
    while not over:
        states.append((np.float32(observation) - np.float32(CONFIG["state_mean"]))
                      / np.float32(CONFIG["state_std"]))
        actions.append(np.zeros(3, np.float32))
        first = max(0, len(states) - CONFIG["context"])
        window = {"states": np.array(states[first:]), "actions": np.array(actions[first:]),
                  "returns_to_go": np.float32(to_go[first:])[:, None],
                  "timesteps": np.arange(first, len(states))}
        with torch.no_grad():
            predicted = model(**{k: torch.from_numpy(v)[None] for k, v in window.items()})[0, -1].numpy()
        actions[-1] = predicted
        observation, reward, terminated, truncated, _ = env.step(predicted.clip(-1, 1))
        rewards.append(reward)
        to_go.append(to_go[-1] - reward / 1000)
        over = terminated or truncated
    return sum(rewards), len(rewards)


def test_lock_step_equals_one_episode_at_a_time(model):
    played = evaluate.play(model, CONFIG | {"at_once": 4}, torch.device("cpu"))  # six episodes, so 4 and 2
    assert [(target, episode) for target, episode, _, _ in played] == [
        (t, e) for t in (1800.0, 600.0) for e in range(3)]
    lengths = set()
    for target, episode, total, length in played:
        expected, steps = one_episode(model, target, episode)
        assert length == steps
        assert total == pytest.approx(expected, rel=1e-3)
        lengths.add(length)
    assert len(lengths) > 1  # finished rows were dropped while others went on
    assert {total for target, _, total, _ in played if target == 600} != {
        total for target, _, total, _ in played if target == 1800}


def test_atari_in_lock_step_equals_one_game_at_a_time():
    config = tasks.configuration("mini/breakout-medium-0.1/dt/seed0", episodes=2, context=4) | {
        "state_mean": [], "state_std": [], "target_returns": [40.0, 3.0], "horizon": 260}
    torch.manual_seed(4)
    trunk = dt_trunk(width=32, positions=12)
    model = DecisionTransformer(trunk, (4, 84, 84), 4, 4096, "mlp", atari=True).eval()
    with torch.no_grad():  # so that what it sees and what it is told matter
        model.embed_timestep.weight.mul_(0.3)
        for layer in (0, 2, 4, 7):
            model.embed_state[0].layers[layer].weight.mul_(2.45)
        model.predict_action[0].bias.zero_()
    played = evaluate.play(model, config, torch.device("cpu"))
    for target, episode, total, length in played:
        env = make_env(config)
        frames = [env.reset(seed=evaluate.EPISODE_SEED + episode)[0]]
        actions, to_go, score, over = [0], [target], 0.0, False
        while not over:
            first = max(0, len(frames) - 4)
            window = {"states": np.array(frames[first:]), "actions": np.array(actions[first:]),
                      "returns_to_go": np.float32(to_go[first:])[:, None],
                      "timesteps": np.arange(first, len(frames))}
            with torch.no_grad():
                logits = model(**{k: torch.from_numpy(v)[None] for k, v in window.items()})[0, -1]
            actions[-1] = int(logits.argmax())
            observation, reward, terminated, truncated, _ = env.step(actions[-1])
            frames.append(observation)
            actions.append(0)
            to_go.append(to_go[-1] - np.sign(reward))  # as the data's rewards: by their sign
            score, over = score + reward, terminated or truncated
        assert (total, length) == (score, len(frames) - 1)
    assert len({length for *_, length in played}) > 1


def test_baselines_play_each_start_once_from_the_newest_state_alone():
    config = tasks.configuration("mini/hopper-medium-0.01/bc/seed0", episodes=3) | {
        "state_mean": CONFIG["state_mean"], "state_std": CONFIG["state_std"]}
    torch.manual_seed(0)
    actor = build_actor(config).eval()
    played = evaluate.play(actor, config | {"at_once": 2}, torch.device("cpu"))
    assert [(target, episode) for target, episode, _, _ in played] == [(None, 0), (None, 1), (None, 2)]
    for _, episode, total, length in played:
        env = make_env(config)
        observation, _ = env.reset(seed=evaluate.EPISODE_SEED + episode)
        rewards, over = [], False
        while not over:
            state = (np.float32(observation) - np.float32(config["state_mean"])) / np.float32(
                config["state_std"])
            with torch.no_grad():
                action = actor(torch.from_numpy(state)[None])[0].numpy()
            observation, reward, terminated, truncated, _ = env.step(action.clip(-1, 1))
            rewards.append(reward)
            over = terminated or truncated
        assert length == len(rewards) and total == pytest.approx(sum(rewards), rel=1e-3)


def test_an_episode_starts_the_same_whatever_is_played_beside_it(model):
    few = evaluate.play(model, CONFIG | {"episodes": 2, "target_returns": [600.0]}, torch.device("cpu"))
    many = evaluate.play(model, CONFIG, torch.device("cpu"))
    for row in few:
        same = next(other for other in many if other[:2] == row[:2])
        assert same[3] == row[3] and same[2] == pytest.approx(row[2], rel=1e-3)


@pytest.fixture(scope="module")
def evaluated(session_kit, d4rl_folder):
    kit = session_kit
    kit("prepare_data.py", "paper/hopper-medium-0.1", "--data", str(d4rl_folder))
    for seed in (0, 1):
        kit("train.py", f"paper/hopper-medium-0.1/dt/seed{seed}", *SHORT)
        kit("evaluate.py", f"paper/hopper-medium-0.1/dt/seed{seed}", "--episodes", "2")
    kit("evaluate.py", "--collect", "paper/hopper-medium-0.1")
    return kit


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_contract_of_the_results(evaluated):
    path = evaluated.folder / "results/paper/hopper-medium-0.1.csv"
    assert path.read_text().startswith(
        "profile,data,lm,task,ratio,method,seed,step,target_return,episode,return,length,normalized_score")
    rows = read(path)
    assert len(rows) == 2 * 2 * 2 * 2  # seeds, checkpoints, targets, episodes
    assert {row["step"] for row in rows} == {"3", "6"} and {row["seed"] for row in rows} == {"0", "1"}
    for row in rows:
        expected = 100 * (float(row["return"]) + 20.272305) / (3234.3 + 20.272305)
        assert float(row["normalized_score"]) == pytest.approx(expected, abs=1e-3)
        assert 1 <= int(row["length"]) <= 1000
    assert {row["data"].split("@")[0] for row in rows} == {"hopper_medium-v2.hdf5"}


def test_evaluation_is_repeatable_and_goes_on_after_an_interruption(evaluated):
    folder = evaluated.folder / "runs/paper/hopper-medium-0.1/dt/seed0"
    whole = (folder / "eval.csv").read_bytes()
    first = b"".join(line for line in whole.splitlines(keepends=True) if b",0,6," not in line)
    (folder / "eval.part.csv").write_bytes(first)  # as left by a kill after the first checkpoint
    (folder / "eval.csv").unlink()
    evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed0", "--episodes", "2")
    assert (folder / "eval.csv").read_bytes() == whole
    assert not (folder / "eval.part.csv").exists()
    # in the precision it was trained in, which config.json says, unless another is asked for
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    for dtype in ("float32", "bfloat16"):
        evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed0", "--episodes", "2", "--dtype", dtype)
        assert ((folder / "eval.csv").read_bytes() == whole) == (dtype == "float32")
    (folder / "eval.csv").write_bytes(whole)


def test_data_are_never_mixed(evaluated):
    path = evaluated.folder / "runs/paper/hopper-medium-0.1/dt/seed1/eval.csv"
    whole = path.read_text()
    path.write_text(whole.replace("hopper_medium-v2.hdf5@", "other@"))
    try:
        line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
        assert "different data" in line and "other@" in line
    finally:
        path.write_text(whole)


def test_wrong_runs_end_in_one_line(evaluated):
    line = one_line(evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed7", check=False))
    assert "train.py paper/hopper-medium-0.1/dt/seed7" in line
    seed0, seed1 = (evaluated.folder / f"runs/paper/hopper-medium-0.1/dt/seed{n}" for n in (0, 1))
    good = (seed1 / "final.safetensors").read_bytes()
    (seed1 / "final.safetensors").write_bytes((seed0 / "final.safetensors").read_bytes())
    try:
        line = one_line(evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed1", check=False))
        assert "dt/seed0" in line
    finally:
        (seed1 / "final.safetensors").write_bytes(good)
