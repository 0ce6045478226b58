"""evaluate.py: lock-step play equals one episode at a time; rows, scores, seeds, gathering."""

import csv
import json
import os
import socket
import subprocess
import types

import numpy as np
import pytest
import torch
from conftest import gone_before, one_line, save_cell

import baselines
import evaluate
from baselines import build_actor
from kit import artifacts, lock, seals, settings
from kit.artifacts import LOSS_COLUMNS, RESULT_COLUMNS, heldout_path
from kit.envs import EPISODE_SEED, make_env
from kit.gathering import collect, digest_of, episodes_of, of_run
from kit.language_models import dt_trunk
from kit.results import load_results
from kit.settings import configuration
from model import DecisionTransformer

CONFIG = configuration("mini/hopper-medium-0.01/dt/seed0", episodes=3, context=4) | {
    "state_mean": np.linspace(-0.5, 1.5, 11).tolist(), "state_std": np.linspace(0.5, 2, 11).tolist(),
    "target_returns": [1800.0, 600.0]}
CELL = "paper/hopper-medium-0.1"
CLONED = f"{CELL}/bc/seed0"
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
    observation, _ = env.reset(seed=EPISODE_SEED + episode)
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
    config = configuration("mini/breakout-medium-0.1/dt/seed0", episodes=2, context=4) | {
        "state_mean": [], "state_std": [], "target_returns": [40.0, 3.0], "horizon": 260}
    torch.manual_seed(4)
    trunk = dt_trunk(width=32, positions=12)
    model = DecisionTransformer(trunk, (4, 84, 84), 4, 4096, "mlp", pixels=True).eval()
    with torch.no_grad():  # so that what it sees and what it is told matter
        model.embed_timestep.weight.mul_(0.3)
        for layer in (0, 2, 4, 7):
            model.embed_state[0].layers[layer].weight.mul_(2.45)
        model.predict_action[0].bias.zero_()
    played = evaluate.play(model, config, torch.device("cpu"))
    for target, episode, total, length in played:
        env = make_env(config)
        frames = [env.reset(seed=EPISODE_SEED + episode)[0]]
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


def test_scores_count_rewards_whole():
    """Q*bert pays 25 a cube, which the return still to come counts as 1."""
    over = iter((False, False, True))
    env = types.SimpleNamespace(reset=lambda seed: (np.zeros(1), {}),
                                step=lambda action: (np.zeros(1), 25.0, next(over), False, {}))
    policy = types.SimpleNamespace(reset=lambda targets: None, keep=lambda going: None,
                                   act=lambda seen, rewards: np.zeros(len(seen)))
    config = configuration("mini/qbert-medium-0.1/dt/seed0")
    assert evaluate.play_together(policy, config, [env], [(100.0, 0)], None) == [(100.0, 0, 75.0, 3)]


@pytest.mark.parametrize("profile", ["mini", "paper"])
def test_starts_are_the_methods_and_targets_own_and_in_the_paper_profile_each_seeds_and_checkpoints(profile):
    def starts(seed, method, step):
        """{(target, episode): seed of the environment}"""
        config = configuration(f"{profile}/hopper-medium-0.01/{method}/seed{seed}", episodes=3)
        jobs, found = evaluate.jobs_of(config), []
        env = types.SimpleNamespace(reset=lambda seed: (found.append(seed) or np.zeros(1), {}),
                                    step=lambda action: (np.zeros(1), 0.0, True, False, {}))
        policy = types.SimpleNamespace(reset=lambda targets: None, keep=lambda going: None,
                                       act=lambda seen, rewards: np.zeros(len(seen)))
        evaluate.play_together(policy, config, [env] * len(jobs), jobs, None, step)
        return dict(zip(jobs, found, strict=True))

    lamo, bc, later, last, other = (starts(*which) for which in (
        (0, "lamo", 5), (0, "bc", 5), (0, "lamo", 10), (0, "lamo", None), (1, "lamo", 5)))
    assert len(lamo) == 6 and {lamo[3600.0, n] for n in range(3)} == {*lamo.values()} == {*bc.values()}
    several = [{*found.values()} for found in (lamo, later, last, other)]
    assert all(len(found) == 3 for found in several)
    assert len(set.union(*several)) == (3 if profile == "mini" else 12)


def test_baselines_play_each_start_once_from_the_newest_state_alone():
    config = configuration("mini/hopper-medium-0.01/bc/seed0", episodes=3) | {
        "state_mean": CONFIG["state_mean"], "state_std": CONFIG["state_std"]}
    torch.manual_seed(0)
    actor = build_actor(config).eval()
    played = evaluate.play(actor, config | {"at_once": 2}, torch.device("cpu"))
    assert [(target, episode) for target, episode, _, _ in played] == [(None, 0), (None, 1), (None, 2)]
    for _, episode, total, length in played:
        env = make_env(config)
        observation, _ = env.reset(seed=EPISODE_SEED + episode)
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
    assert tuple(read(path)[0])[:15] == RESULT_COLUMNS
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


RUN = "paper/hopper-medium-0.1/dt/seed0"


def edit(path, text):
    """What somebody writes and seals; returns it."""
    path.write_text(text)
    seals.seal(path)
    return path.read_text()


def marking(text):
    """Lengths of 3600 steps that no episode has, so that playing would undo it."""
    header, *rows = text.splitlines()
    at = header.split(",").index("length")
    rows = [row.split(",") for row in rows]
    return "\n".join([header, *(",".join([*row[:at], "77", *row[at + 1:]]) for row in rows)]) + "\n"


@pytest.fixture
def folder(evaluated):
    """The run's folder; what a test does to it is undone."""
    folder = evaluated.folder / "runs" / RUN
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    for path in folder.iterdir():
        path.unlink()
    for path, content in kept.items():
        path.write_bytes(content)


def interrupted(folder):
    """The folder as a kill after the first checkpoint leaves it: its rows, and no eval.csv."""
    whole = (folder / "eval.csv").read_bytes()
    how = seals.read_json(folder / "eval.json")
    by = how.pop("played_by")
    how.pop("score_window")
    part = folder / f"eval.{digest_of(how)}.csv"
    artifacts.write_json(part.with_suffix(".json"), how | {"played_by": by})
    edit(part, "".join(line for line in whole.decode().splitlines(keepends=True) if ",0,6," not in line))
    (folder / "eval.csv").unlink()
    return whole


def test_evaluation_is_repeatable_and_goes_on_after_an_interruption(evaluated, folder):
    whole = interrupted(folder)
    out = evaluated("evaluate.py", RUN, "--episodes", "2").stdout
    assert (folder / "eval.csv").read_bytes() == whole
    assert not list(folder.glob("eval.*.csv"))
    for target in ("3600", "1800"):  # what is printed is of the last checkpoint
        scores = [float(row["normalized_score"]) for row in read(folder / "eval.csv")
                  if (row["step"], row["target_return"]) == ("6", target)]
        assert f"step 6, target {target}: normalised score {np.mean(scores):.1f} over 2 episodes" in out
    evaluated("-m", "kit.watch", "evaluate.py", RUN, "--episodes", "2", "--fresh")  # watched or not
    assert (folder / "eval.csv").read_bytes() == whole
    # in the precision it was trained in, which config.json says, unless another is asked for
    trained_in = json.loads((folder / "config.json").read_text())["dtype"]  # which depends on the machine
    for dtype in ("float32", "bfloat16"):
        evaluated("evaluate.py", RUN, "--episodes", "2", "--dtype", dtype)
        assert ((folder / "eval.csv").read_bytes() == whole) == (dtype == trained_in)


def test_what_is_played_is_what_the_task_and_the_words_say_now(evaluated, folder):
    """Not what they said when it was trained, or make would ask for it forever."""
    config = seals.read_json(folder / "config.json")
    artifacts.write_json(folder / "config.json", config | {"episodes": 1, "target_returns": [7.0]})
    whole = (folder / "eval.csv").read_bytes()
    evaluated("evaluate.py", RUN, "--episodes", "2")
    assert (folder / "eval.csv").read_bytes() == whole
    line = one_line(evaluated("evaluate.py", RUN, "--target_returns", "5", "5.0", check=False))
    assert "target_returns is [5.0, 5.0]; give each once" in line
    assert (folder / "eval.csv").read_bytes() == whole


@pytest.mark.parametrize("changed", [("--episodes", "3"), ("--episodes", "2", "--target_returns", "5", "7")])
def test_rows_of_an_interrupted_call_with_other_options_are_not_mixed_in(evaluated, folder, changed):
    interrupted(folder)
    evaluated("evaluate.py", RUN, *changed)
    rows = read(folder / "eval.csv")
    expected = {("3600", e) for e in "012"} | {("1800", e) for e in "012"} if len(changed) == 2 else {
        (target, e) for target in ("5", "7") for e in "01"}
    for step in ("3", "6"):
        found = sorted((row["target_return"], row["episode"]) for row in rows if row["step"] == step)
        assert found == sorted(expected)


def test_losses_stand_behind_the_contracts_columns(evaluated, folder):
    rows = read(folder / "eval.csv")
    assert tuple(rows[0]) == (*RESULT_COLUMNS, *LOSS_COLUMNS, "seal")
    for name in ("heldout_loss", "train_loss"):
        assert len({row[name] for row in rows}) == 2  # a checkpoint's
    log = {row["step"]: row["action_loss"] for row in read(folder / "train.csv")}
    for row in rows:
        assert row["heldout_episodes"] == "2" and row["train_loss"] == log[row["step"]]
        assert 0 < float(row["heldout_loss"]) < 2 and row["heldout_floor"] == ""  # which a file does not know
    gathered = read(evaluated.folder / "results/paper/hopper-medium-0.1.csv")
    assert [row["heldout_loss"] for row in gathered if row["seed"] == "0"] == [
        row["heldout_loss"] for row in rows]


def test_an_older_kits_rows_are_sealed_by_command_and_filled_in_without_playing(evaluated, folder):
    whole, path = (folder / "eval.csv").read_text(), evaluated.folder / heldout_path(RUN.rsplit("/", 2)[0])
    marked = edit(folder / "eval.csv", marking(whole))
    old = [",".join(line.split(",")[:len(RESULT_COLUMNS)]) + "\n" for line in marked.splitlines()]
    (folder / "eval.csv").write_text("".join(old))
    line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
    assert "has no seal" in line and "python -m kit.seals" in line
    evaluated("-m", "kit.seals", str(folder / "eval.csv"))
    evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1")
    gathered = read(evaluated.folder / "results/paper/hopper-medium-0.1.csv")
    assert {row["heldout_loss"] == "" for row in gathered if row["seed"] == "0"} == {True}
    kept = path.rename(path.with_suffix(".away"))  # nor are there any episodes
    evaluated("evaluate.py", RUN, "--episodes", "2")
    assert {row["heldout_loss"] for row in read(folder / "eval.csv")} == {""}
    kept.rename(path)
    evaluated("evaluate.py", RUN, "--episodes", "2")
    assert (folder / "eval.csv").read_text() == marked


def test_a_column_of_somebodys_own_is_one_line(evaluated, folder):
    lines = [line.rpartition(",")[0] for line in (folder / "eval.csv").read_text().splitlines()]
    (folder / "eval.csv").write_text("".join(f"{line},note\n" for line in lines))
    seals.seal(folder / "eval.csv")
    for words in (("--collect", "paper/hopper-medium-0.1"), (RUN, "--episodes", "2")):
        line = one_line(evaluated("evaluate.py", *words, check=False))
        assert "has a column note, which is none of the kit's" in line and "python -m kit.seals" in line


def test_a_table_never_mixes_held_out_episodes(evaluated, folder):
    rows = (folder / "eval.csv").read_text()
    known = read(folder / "eval.csv")[0]["heldout_data"]
    edit(folder / "eval.csv", rows.replace(known, "0badf00d"))
    line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
    assert "heldout_data is" in line and "seed0" in line and "seed1" in line


def test_what_was_played_with_a_word_is_not_lost_when_the_word_is_forgotten(evaluated, folder, monkeypatch):
    monkeypatch.chdir(evaluated.folder)
    whole = (folder / "eval.csv").read_text()
    marked = edit(folder / "eval.csv", marking(whole))
    evaluate.evaluate(RUN, episodes=1)
    assert len(read(folder / "eval.csv")) == 4
    evaluate.evaluate(RUN, episodes=2)
    assert (folder / "eval.csv").read_text() == marked
    # the rows with one episode are still there, and --fresh plays those of two alone anew
    evaluate.evaluate(RUN, episodes=2, fresh=True)
    assert (folder / "eval.csv").read_text() == whole and len(list(folder.glob("eval.*.csv"))) == 1
    # rows without a record of how they were played are nobody's
    (folder / "eval.csv").write_text(marked)
    (folder / "eval.json").unlink()
    evaluate.evaluate(RUN, episodes=2)
    assert (folder / "eval.csv").read_text() == whole


def test_the_record_names_all_that_played(evaluated, folder, monkeypatch):
    """A killed evaluation that goes on under another commit, and one that was set aside meanwhile."""
    monkeypatch.chdir(evaluated.folder)
    interrupted(folder)
    (first,) = seals.read_json(next(folder.glob("eval.*.json")))["played_by"]
    assert {*first} == {*settings.MACHINE}
    monkeypatch.setattr(evaluate.runs, "code_version", lambda: "another")
    evaluate.evaluate(RUN, "cpu", episodes=2)
    assert not list(folder.glob("eval.*.json"))

    def codes():
        return [one["code"] for one in seals.read_json(folder / "eval.json")["played_by"]]

    both = [first["code"], "another"]
    assert codes() == both
    evaluate.evaluate(RUN, "cpu", episodes=1)
    assert codes() == ["another"] and len(list(folder.glob("eval.*.json"))) == 1
    evaluate.evaluate(RUN, "cpu", episodes=2)
    assert codes() == both
    record = seals.read_json(folder / "eval.json")
    del record["played_by"]  # an older kit's
    artifacts.write_json(folder / "eval.json", record)
    evaluate.evaluate(RUN, "cpu", episodes=2)
    assert codes() == ["unknown", "another"]
    evaluate.evaluate(RUN, "cpu", episodes=2, fresh=True)
    assert codes() == ["another"]


def test_environments_are_made_once_a_run_and_only_to_play(evaluated, folder, monkeypatch):
    monkeypatch.chdir(evaluated.folder)
    made, make_env = [], evaluate.make_env
    monkeypatch.setattr(evaluate, "make_env", lambda config: made.append(config) or make_env(config))
    evaluate.evaluate(RUN, episodes=1)  # two checkpoints of two target returns
    assert len(read(folder / "eval.csv")) == 4 and len(made) == 2
    evaluate.evaluate(RUN, episodes=1, score_window=1)
    assert len(made) == 2


def test_killed_at_its_end_it_leaves_nothing_behind(evaluated, folder, monkeypatch):
    monkeypatch.chdir(evaluated.folder)
    whole = interrupted(folder)
    (folder / "state.safetensors").write_bytes(b"of a training that was killed after its last weights")
    replace = os.replace
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", lambda one, two: fail_at(two == folder.relative_to(
            evaluated.folder) / "eval.csv") or replace(one, two))
        evaluate.evaluate(RUN, episodes=2)
    assert not (folder / "eval.csv").exists()
    evaluate.evaluate(RUN, episodes=2)
    assert (folder / "eval.csv").read_bytes() == whole
    assert not [*folder.glob("eval.*.csv"), *folder.glob("state*")]


def test_killed_before_any_of_its_file_operations_it_ends_in_the_same_bytes(evaluated, folder, monkeypatch):
    monkeypatch.chdir(evaluated.folder)
    whole, number = interrupted(folder), 0
    begun = {path: path.read_bytes() for path in folder.iterdir()}
    while gone_before(number, lambda: evaluate.evaluate(RUN, episodes=2), "eval."):
        evaluate.evaluate(RUN, episodes=2)
        assert (folder / "eval.csv").read_bytes() == whole, number
        assert not [*folder.glob("eval.*.csv"), *folder.glob(".*")], number
        for path in folder.iterdir():
            path.unlink()
        for path, content in begun.items():
            path.write_bytes(content)
        number += 1
    assert number > 5


def test_a_lock_that_was_left_at_the_very_end_is_gone_when_the_cell_is_gathered(evaluated, folder):
    gone = subprocess.Popen(["true"])
    gone.wait()
    owner = {"host": socket.gethostname(), "pid": gone.pid, "place": seals.here(),
             "processes": [(gone.pid, "1")]}
    for name in ("running.json", "progress.json"):
        (folder / name).write_text(seals.json_text(owner))
    other = folder.parent / "seed1" / "running.json"
    other.write_text(seals.json_text(owner | {"processes": [(os.getpid(), lock.born(os.getpid()))]}))
    try:
        evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1")
        assert not (folder / "running.json").exists() and not (folder / "progress.json").exists()
        assert other.exists()  # of somebody who works
    finally:
        other.unlink()


def fail_at(moment):
    if moment:
        raise KeyboardInterrupt


@pytest.mark.parametrize("finished", [True, False])
def test_another_make_may_gather_while_an_evaluation_writes(evaluated, folder, monkeypatch, finished):
    monkeypatch.chdir(evaluated.folder)
    if not finished:
        interrupted(folder)
        (folder / "eval.json").unlink()
    gathered, write = [], artifacts.write_whole

    def gather():
        monkeypatch.setattr(artifacts, "write_whole", write)
        collect("paper/hopper-medium-0.1")
        gathered.append(len(read(evaluated.folder / "results/paper/hopper-medium-0.1.csv")))
        monkeypatch.setattr(artifacts, "write_whole", between)

    def between(path, content):
        gather()
        write(path, content)
        gather()

    monkeypatch.setattr(artifacts, "write_whole", between)
    evaluate.evaluate(RUN, episodes=2)
    both = gathered[-1]
    assert set(gathered) <= ({both} if finished else {both, both // 2}) and len(gathered) >= 4


def test_another_score_window_plays_nothing_and_reaches_the_results(evaluated, folder):
    rows = edit(folder / "eval.csv", marking((folder / "eval.csv").read_text()))
    evaluated("evaluate.py", RUN, "--episodes", "2", "--score_window", "1")
    assert (folder / "eval.csv").read_text() == rows
    other = folder.parent / "seed1"
    kept = (other / "eval.json").read_text()
    try:
        line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
        assert "score_window is 1, not 8" in line
        (other / "eval.json").write_text((folder / "eval.json").read_text())
        evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1")
        assert {row["score_window"] for row in read(
            evaluated.folder / "results/paper/hopper-medium-0.1.csv")} == {"1"}
    finally:
        (other / "eval.json").write_text(kept)


@pytest.mark.parametrize("name, value, said", [
    ("data", "other@1", "data is"), ("data_sha256", "0", "data_sha256 is"), ("steps", 7, "steps is 6, not 7"),
    ("context", 1, "context is 5, not 1")])
def test_a_table_never_mixes_data_or_settings(evaluated, name, value, said):
    path = evaluated.folder / "runs/paper/hopper-medium-0.1/dt/seed1/config.json"
    whole = path.read_text()
    edit(path, json.dumps(json.loads(whole) | {name: value}))
    try:
        line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
        assert said in line and "seed0" in line and "seed1" in line and "REPLACE=1" in line
    finally:
        path.write_text(whole)


def test_a_setting_that_only_the_first_run_has_is_seen_too(evaluated, folder):
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", json.dumps(config | {"mystery": 1}))
    line = one_line(evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1", check=False))
    assert "mystery is 1, not null" in line
    del config["grad_clip"]  # newer than the record: it had its default, as the other seed's
    edit(folder / "config.json", json.dumps(config))
    evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1")


def test_results_say_what_differs_from_the_runs_name(evaluated):
    evaluated("evaluate.py", "--collect", "paper/hopper-medium-0.1")
    row = read(evaluated.folder / "results/paper/hopper-medium-0.1.csv")[0]
    assert row["score_window"] == "8"
    assert set(row["changed"].split()) == {"batch_size=8", "steps=6", "eval_every=3", "episodes=2",
                                           "log_every=3", "context=5"}


def test_wrong_runs_end_in_one_line(evaluated):
    line = one_line(evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed7", check=False))
    assert "make PROFILE=paper hopper-medium-0.1 METHODS=dt SEEDS=7" in line
    seed0, seed1 = (evaluated.folder / f"runs/paper/hopper-medium-0.1/dt/seed{n}" for n in (0, 1))
    good = (seed1 / "final.safetensors").read_bytes()
    (seed1 / "final.safetensors").write_bytes((seed0 / "final.safetensors").read_bytes())
    try:
        line = one_line(evaluated("evaluate.py", "paper/hopper-medium-0.1/dt/seed1", "--episodes", "2",
                                  check=False))
        assert "dt/seed0" in line
    finally:
        (seed1 / "final.safetensors").write_bytes(good)


@pytest.fixture
def cloned(tmp_path, monkeypatch):
    """The folder of a run of BC with two checkpoints."""
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)
    baselines.train(CLONED, "cpu", steps=2, eval_every=1, batch_size=2)
    return artifacts.run_folder(CLONED)


def test_weights_of_another_step_or_another_language_model_are_refused(cloned):
    record, last = seals.read_json(cloned / "config.json"), cloned / "final.safetensors"
    artifacts.write_json(cloned / "config.json", record | {"frozen_sha256": "0" * 64})
    with pytest.raises(SystemExit, match="now is another language model"):
        evaluate.load_run(CLONED)
    artifacts.write_json(cloned / "config.json", record)
    evaluate.load_policy(CLONED, "cpu")
    last.write_bytes((cloned / "step-0000001.safetensors").read_bytes())
    with pytest.raises(SystemExit, match="final.safetensors holds the weights of step 1;"):
        evaluate.load_policy(CLONED, "cpu")


@pytest.mark.parametrize("change, said", [
    (lambda rows: rows + rows[-1:], "step 2, target none, episode 1 twice"),
    (lambda rows: rows[:-1], "holds 3 of 4 episodes")])
def test_an_episode_too_many_or_too_few_reaches_no_table(cloned, change, said):
    evaluate.evaluate(CLONED, "cpu", episodes=2)
    rows = artifacts.read_csv(cloned / "eval.csv", RESULT_COLUMNS)
    collect(CELL)
    artifacts.write_csv(cloned / "eval.csv", tuple(rows[0]), change(rows))
    with pytest.raises(SystemExit, match=said):
        collect(CELL)


def test_a_language_model_may_be_named_in_two_ways(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/own").mkdir(parents=True)
    for seed, lm in enumerate(("models/own", str(tmp_path / "models/own"))):
        run = f"mini/hopper-medium-0.1/lamo/seed{seed}"
        config = configuration(run, lm=lm) | {
            "lm_id": "own@1", "data": "d@1", "data_sha256": "1", "data_episodes": [0],
            "data_return_mean": 1.0}
        folder = artifacts.run_folder(run)
        artifacts.write_json(folder / "config.json", config)
        artifacts.write_json(folder / "eval.json", {"episodes": config["episodes"]})
        own = dict.fromkeys(RESULT_COLUMNS, "0") | of_run(config)
        artifacts.write_csv(folder / "eval.csv", RESULT_COLUMNS, [
            own | {"step": step, "target_return": target, "episode": episode}
            for step, target, episode in episodes_of(config)])
    collect("mini/hopper-medium-0.1")
    assert {row["changed"] for row in load_results("mini/hopper-medium-0.1")} == {"lm=models/own"}


def test_replications_of_everything_may_differ_in_their_episodes_and_in_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configuration("mini/pong-medium-0.1/bc/seed0") | {"lm_id": "none", "data_return_mean": 1.0}

    def finish(seed, subset, **changed):
        cell = "pong-medium-0.1" + (f"-d{subset}" if subset else "")
        folder = artifacts.run_folder(f"mini/{cell}/bc/seed{seed}")
        of_it = {"cell": cell, "seed": seed, "data": f"mini-pong-script@{subset}", "data_sha256": str(subset),
                 "data_episodes": [subset], "state_mean": [], "state_std": []}
        artifacts.write_json(folder / "config.json", config | of_it | changed)
        how = {name: config[name] for name in ("episodes", "score_window")}
        artifacts.write_json(folder / "eval.json", how)
        config_of_it = config | of_it | changed
        rows = [dict.fromkeys(RESULT_COLUMNS, "0") | of_run(config_of_it) | {
            "step": step, "target_return": target, "episode": episode}
            for step, target, episode in episodes_of(config_of_it)]
        artifacts.write_csv(folder / "eval.csv", RESULT_COLUMNS, rows)

    with pytest.raises(SystemExit, match="make PROFILE=mini pong-medium-0.1 SUBSETS=seed"):
        collect("mini/pong-medium-0.1-dN")
    for seed, subset in ((0, 0), (1, 0), (1, 1), (2, 1), (10, 10), (3, 30)):
        finish(seed, subset)
    collect("mini/pong-medium-0.1-dN")
    rows = read("results/mini/pong-medium-0.1-dN.csv")
    found = dict.fromkeys((row["seed"], row["subset"]) for row in rows)
    assert [*found] == [("0", "0"), ("1", "1"), ("10", "10")]
    collect("mini/pong-medium-0.1")
    assert {row["seed"] for row in read("results/mini/pong-medium-0.1.csv")} == {"0", "1"}
    # another machine, another way to keep states, a killed run that went on, each seed's own frozen weights
    for changed in ({"threads": 9, "device": "cuda"}, {"state_every": 0.5}, {"resumed": [{"step": 3}]},
                    {"frozen_sha256": "another"}):
        assert {*changed} <= {"resumed", "frozen_sha256", *settings.MACHINE, *settings.KEEPING}
        finish(1, 1, **changed)
        collect("mini/pong-medium-0.1-dN")
    finish(1, 1, data_sha256="0")
    with pytest.raises(SystemExit, match="seed0 and runs/.*-d1/bc/seed1 were trained on the "
                       "same episodes"):
        collect("mini/pong-medium-0.1-dN")
    for changed in ({"lr": 0.5}, {"data": "mini-qbert-script@1"}):
        finish(1, 1, **changed)
        with pytest.raises(SystemExit, match=f"{[*changed][0]} is .* as in runs/mini/pong-medium-0.1-d1"):
            collect("mini/pong-medium-0.1-dN")
