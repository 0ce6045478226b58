"""sources/played.py: an episode is the same in every subset and number of processes; what names the data."""

import hashlib
import shutil
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

import tasks
from kit.settings import configuration
from mini import players
from sources import choose, played

CONFIGS = {task: configuration(f"mini/{task}-1/dt/seed0") for task in tasks.TASKS}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where episodes are kept as they end


def load(task, ratio, workers=1, seed=0, **changes):
    return played.load(CONFIGS[task] | {"ratio": ratio} | changes, "",
                       SimpleNamespace(subset_seed=seed, workers=workers, timeout=1, fresh=True))


def test_episodes_are_the_same_in_every_subset_and_number_of_processes():
    small, large = load("reacher2d-medium", 0.04, workers=2), load("reacher2d-medium", 0.1)
    assert (small.total, len(small.chosen), len(large.chosen)) == (50, 2, 5)
    assert np.array_equal(large.chosen, choose(50, 0.1, 0))
    for new, old in enumerate(np.searchsorted(large.chosen, small.chosen)):
        ours = slice(*small.arrays["offsets"][new:new + 2])
        theirs = slice(*large.arrays["offsets"][old:old + 2])
        for name in ("observations", "actions", "rewards", "terminals"):
            assert np.array_equal(small.arrays[name][ours], large.arrays[name][theirs])
        assert np.array_equal(small.arrays["last_observations"][new], large.arrays["last_observations"][old])
        assert small.returns[new] == large.returns[old] == small.arrays["rewards"][ours].sum()


@pytest.mark.parametrize("task, name", [("reacher2d-medium", "mini-reacher2d-ppo"),
                                        ("hopper-medium", "mini-hopper-sac")])
def test_a_trained_player_names_its_data_by_its_weights(task, name):
    found = load(task, 0.0001)
    digest = hashlib.sha256((players.WEIGHTS / f"{CONFIGS[task]['player']}.npz").read_bytes()).hexdigest()
    assert (found.name, found.source, found.sha256) == (name, f"{CONFIGS[task]['player']}.npz", digest)
    paper = played.load(configuration("paper/reacher2d-medium-0.01/dt/seed0"), "",
                        SimpleNamespace(subset_seed=0, workers=1, fresh=True))
    assert paper.name == "kit-reacher2d-ppo"


@pytest.mark.parametrize("player", ["hopper", "kitchen-complete"])
def test_a_player_is_its_code_and_its_weights(player, tmp_path, monkeypatch):
    """Whichever of them is another, the data are made anew."""
    shutil.copytree(players.WEIGHTS, tmp_path / "weights" / "players")
    for name in ("players.py", "kitchen.py"):
        shutil.copy2(players.WEIGHTS.parents[1] / name, tmp_path)
    monkeypatch.setattr(players, "WEIGHTS", tmp_path / "weights" / "players")
    monkeypatch.setattr(players, "load", lambda path: None)
    known = [played.digest({"player": player, "suite": "kitchen"}, "", None)]
    for changed in ("players.py", f"weights/players/{player}.npz" if player == "hopper" else "kitchen.py"):
        with open(tmp_path / changed, "ab") as file:
            file.write(b" ")
        known.append(played.digest({"player": player, "suite": "kitchen"}, "", None))
    assert len({*known}) == 3


def test_frames_come_back_as_they_were_played_and_rewards_by_their_sign():
    found = load("breakout-medium", 0.004, player_horizon=300)
    config = CONFIGS["breakout-medium"] | {"player_horizon": 300}
    observations, actions, rewards, terminals, last = players.play_episode(config, int(found.chosen[0]))
    data = found.arrays
    assert data["observations"].dtype == np.uint8 and np.array_equal(data["observations"], observations)
    assert data["actions"].dtype == np.int64 and np.array_equal(data["actions"], actions)
    assert np.array_equal(data["rewards"], np.sign(rewards)) and found.returns[0] == rewards.sum()
    assert np.array_equal(data["last_observations"], last[None])
    # a script names its data by what it played
    digest = hashlib.sha256()
    for column in (actions.astype(np.int64), rewards.astype(np.float32), np.array([0, len(rewards)])):
        digest.update(column.tobytes())
    digest.update(zlib.compress(observations, 1))
    assert (found.name, found.sha256) == ("mini-breakout-script", digest.hexdigest())


def test_the_kitchen_counts_what_is_done_beside_what_is_paid():
    found = load("kitchen-complete", 0.06)
    data = found.arrays
    assert len(found.chosen) == 1 and found.returns.tolist() == [4.0]
    assert data["rewards"].sum() == 4 and data["dataset_rewards"].max() >= 3
    assert data["dataset_rewards"].sum() > 8 and data["dataset_rewards"].dtype == np.float32


def test_the_digest_of_a_script_is_of_its_files(tmp_path, monkeypatch):
    scripts = players.WEIGHTS.parent.parent
    shutil.copytree(scripts, tmp_path / "mini", ignore=shutil.ignore_patterns("weights"))
    monkeypatch.setattr(players, "WEIGHTS", tmp_path / "mini/weights/players")
    before = {task: played.digest(CONFIGS[task], "", None) for task in ("kitchen-partial", "pong-medium")}
    for name, changed in (("kitchen.py", {"kitchen-partial"}), ("atari.py", {"pong-medium"}),
                          ("players.py", set(before))):
        with open(tmp_path / "mini" / name, "a") as file:
            file.write("# another\n")
        after = {task: played.digest(CONFIGS[task], "", None) for task in before}
        assert {task for task in before if before[task] != after[task]} == changed
        before = after


def test_episodes_of_another_version_are_never_put_into_one_file(monkeypatch):
    before = played.code_digest()
    assert played.code_digest() == before
    for package in ("gymnasium", "mujoco", "cv2"):
        with monkeypatch.context() as patched:
            patched.setattr(getattr(played, package), "__version__", "another")
            assert played.code_digest() != before


def test_a_missing_player_is_one_line_and_no_worker_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(players, "WEIGHTS", tmp_path)
    with pytest.raises(SystemExit, match="hopper.npz holds no player"):
        played.digest(CONFIGS["hopper-medium"], "", None)
    with pytest.raises(SystemExit, match="hopper.npz holds no player"):
        load("hopper-medium", 0.0001)
