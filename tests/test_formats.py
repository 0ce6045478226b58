"""prepare_data.py on the other formats: the kitchen's HDF5, Minari's, DQN replay's, Atari frames on disk;
each in its true layout, and each damaged."""

import gzip
import http.server
import io
import json
import threading
from functools import partial

import h5py
import numpy as np
import pytest
from conftest import d4rl_arrays, kitchen_arrays, one_line, replay_arrays, write_d4rl, write_replay

import envs
import prepare_data
import tasks

KITCHEN = tasks.configuration("paper/kitchen-complete-1/dt/seed0")
PONG = tasks.configuration("paper/pong-medium-1/dt/seed0")


# --- the kitchen -------------------------------------------------------------------------------

def test_d4rls_kitchen_keeps_both_kinds_of_rewards(tmp_path):
    raw = kitchen_arrays()
    data = prepare_data.read_d4rl(write_d4rl(tmp_path / "kitchen.hdf5", raw), KITCHEN)
    assert data["observations"].shape == (len(raw["rewards"]), 60)
    assert np.array_equal(data["dataset_rewards"], raw["rewards"])
    # a sub-task pays at the step before the count first shows it: four an episode, whatever its length
    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    for first, last in zip(starts, ends, strict=True):
        assert data["rewards"][first:last].sum() == 4
        assert raw["rewards"][first:last].sum() > 8
        assert np.array_equal(data["rewards"][first:last - 1], np.diff(raw["rewards"][first:last]))
    part = prepare_data.take_episodes(data, np.array([1]))
    assert np.array_equal(part["dataset_rewards"], raw["rewards"][starts[1]:ends[1]])


def minari_file(path, damage=None):
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    episodes = []
    with h5py.File(path, "w") as file:
        for number, T in enumerate((5, 12, 7)):
            seen = rng.normal(0, 0.01, (T + 1, 59))
            seen[:, 31] = np.linspace(0, -0.75, T + 1)  # the microwave opens slowly
            columns = {"observations/observation": seen, "actions": rng.uniform(-1, 1, (T, 9)),
                       "rewards": (seen[1:, 31] < -0.45).astype(float),
                       "terminations": np.arange(T) == T - 1, "truncations": np.zeros(T, bool)}
            if damage and number == 1:
                damage(columns)
            for name, column in columns.items():
                file[f"episode_{number}/{name}"] = column
            episodes.append(columns)
    return episodes


def test_minaris_kitchen_is_read_and_named_as_such(kit):
    folder = kit.folder / "datasets/D4RL/kitchen/complete-v2"
    episodes = minari_file(folder / "data/main_data.hdf5")
    kit("prepare_data.py", "paper/kitchen-complete-1", "--data", str(folder))
    data, provenance = prepare_data.load_dataset(kit.folder / "data/paper/kitchen-complete-1.npz")
    assert provenance["data"].startswith("minari-complete-v2@")
    assert np.diff(data["offsets"]).tolist() == [5, 12, 7]
    seen = episodes[1]["observations/observation"]
    assert np.allclose(data["observations"][5:17], envs.kitchen_observation(seen[:-1]))
    assert np.allclose(data["last_observations"][1], envs.kitchen_observation(seen[-1]))
    assert np.array_equal(data["dataset_rewards"][5:17], episodes[1]["rewards"])
    assert data["rewards"][5:17].sum() == 1 == data["rewards"][5 + int(episodes[1]["rewards"].argmax())]


@pytest.mark.parametrize("damage, said", [
    (lambda c: c.update({"observations/observation": c["observations/observation"][:-1]}), "damaged"),
    (lambda c: c.update({"observations/observation": c["observations/observation"][:, :40]}), "another env"),
    (lambda c: c["actions"].__setitem__((2, 3), np.nan), "not finite"),
    (lambda c: c.pop("rewards"), "not a readable")])
def test_a_damaged_minari_file_ends_in_one_line(tmp_path, damage, said):
    minari_file(tmp_path / "main_data.hdf5", damage)
    with pytest.raises(SystemExit, match=said) as stop:
        prepare_data.read_d4rl(tmp_path / "main_data.hdf5", KITCHEN)
    assert "main_data.hdf5" in str(stop.value) and "\n" not in str(stop.value)


def test_another_environments_file_and_a_pickle_are_refused(tmp_path):
    path = write_d4rl(tmp_path / "hopper.hdf5", d4rl_arrays()[0])
    with pytest.raises(SystemExit, match="another environment"):
        prepare_data.read_d4rl(path, KITCHEN)
    pickle = tmp_path / "reacher2d-medium.pkl"
    pickle.write_bytes(b"\x80\x04\x95 not loaded")
    with pytest.raises(SystemExit, match="never load"):
        prepare_data.read_d4rl(pickle, tasks.configuration("paper/reacher2d-medium-1/dt/seed0"))


# --- DQN replay --------------------------------------------------------------------------------

def test_dqn_replays_files_are_read_by_the_episode(tmp_path):
    arrays, lengths = replay_arrays(actions=6)
    files = write_replay(tmp_path / "Pong/1/replay_logs", arrays)
    for place in (tmp_path, tmp_path / "Pong/1/replay_logs"):
        assert prepare_data.replay_files(PONG, str(place), 1) == files
    for ratio in (1.0, 0.3):
        data, chosen, total = prepare_data.read_replay(files, PONG, ratio, subset_seed=0)
        assert total == 10 and len(chosen) == 10 * ratio
        rows = np.concatenate([np.arange(lengths[:e].sum(), lengths[:e + 1].sum()) for e in chosen])
        assert np.array_equal(data["offsets"], np.append(0, np.cumsum(lengths[chosen])))
        for name, part in (("actions", "action"), ("rewards", "reward"), ("terminals", "terminal")):
            assert np.array_equal(data[name], arrays[part][rows])
        packed = np.frombuffer(b"".join(data["observations"]), np.uint8)
        frames = prepare_data.unpack_frames(packed, [len(f) for f in data["observations"]], data["offsets"])
        assert np.array_equal(frames, arrays["observation"][rows])


def test_a_replay_cell_on_disk_comes_back(kit, tmp_path):
    arrays, lengths = replay_arrays(actions=6)
    write_replay(tmp_path / "replay", arrays)
    kit("prepare_data.py", "paper/pong-medium-1", "--data", str(tmp_path / "replay"))
    data, provenance = prepare_data.load_dataset(kit.folder / "data/paper/pong-medium-1.npz")
    assert np.array_equal(data["observations"], arrays["observation"][:lengths.sum()])
    assert data["observations"].dtype == np.uint8 and data["actions"].dtype == np.int64
    assert provenance["data"].startswith("dqn-replay-Pong-1-10@")
    assert provenance["return_mean"] is None            # clipped rewards are no score


def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def no_gzip(path):
    path.write_bytes(b"<html>403</html>")


def objects(path):
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    path.write_bytes(gzip.compress(file.getvalue()))


@pytest.mark.parametrize("part", ["observation", "action"])
@pytest.mark.parametrize("damage", [cut, no_gzip, objects])
def test_a_damaged_replay_file_ends_in_one_line(tmp_path, part, damage):
    files = write_replay(tmp_path, replay_arrays(actions=6)[0])
    damage(files[part])
    with pytest.raises(SystemExit, match="not a readable") as stop:
        prepare_data.read_replay(files, PONG, 1.0, 0)
    assert files[part].name in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("change, said", [
    ({"action": lambda a: a[:-3]}, "damaged"), ({"action": lambda a: a + 9}, "another game"),
    ({"terminal": lambda a: a * 0}, "no finished episode"), ({"reward": lambda a: a * np.nan}, "not finite"),
    ({"observation": lambda a: a[:, :80]}, "no DQN replay"),
    ({"observation": lambda a: a.astype(np.float32)}, "no DQN replay")])
def test_a_wrong_replay_ends_in_one_line(tmp_path, change, said):
    arrays, _ = replay_arrays(actions=6)
    files = write_replay(tmp_path, arrays | {name: f(arrays[name]) for name, f in change.items()})
    with pytest.raises(SystemExit, match=said) as stop:
        prepare_data.read_replay(files, PONG, 1.0, 0)
    assert "ckpt.10.gz" in str(stop.value) and "\n" not in str(stop.value)


def test_missing_replay_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match="observation_ckpt.10.gz in"):
        prepare_data.replay_files(PONG, str(tmp_path), 1)
    files = write_replay(tmp_path, replay_arrays()[0])
    files["reward"].unlink()
    with pytest.raises(SystemExit, match="reward_ckpt.10.gz"):
        prepare_data.replay_files(PONG, str(tmp_path), 1)


def test_replay_is_downloaded_and_a_closed_bucket_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_replay(tmp_path / "served/Pong/1/replay_logs", replay_arrays(actions=6)[0])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    class Closed(Quiet):
        def do_GET(self):
            self.send_error(403)

    for handler in (partial(Quiet, directory=str(tmp_path / "served")), Closed):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        if handler is Closed:
            with pytest.raises(SystemExit, match="403") as stop:
                prepare_data.replay_files(PONG, url, 5)
            assert "DATA=" in str(stop.value) and "\n" not in str(stop.value)
        else:
            found = prepare_data.replay_files(PONG, url, 5)
            assert all(found[part].read_bytes() == files[part].read_bytes() for part in files)
        server.shutdown()


# --- what a cell refuses ------------------------------------------------------------------------

def test_train_refuses_another_games_actions_and_another_tasks_rewards(kit, tmp_path):
    write_replay(tmp_path / "replay", replay_arrays(actions=6)[0])
    kit("prepare_data.py", "paper/pong-medium-1", "--data", str(tmp_path / "replay"))
    kit("prepare_data.py", "paper/reacher2d-medium-1", "--data", str(write_d4rl(
        tmp_path / "mine.hdf5", d4rl_arrays(state_dim=12, action_dim=2)[0])))
    data = kit.folder / "data/paper"
    (data / "pong-medium-1.npz").rename(data / "breakout-medium-1.npz")
    assert "does not have" in one_line(kit("train.py", "paper/breakout-medium-1/dt/seed0", check=False))
    line = one_line(kit("train.py", "paper/reacher2d-medium-1/dt/seed0", "--kitchen_reward", "dataset",
                        check=False))
    assert "kitchen" in line
    with np.load(data / "reacher2d-medium-1.npz") as file:
        provenance = json.loads(str(file["provenance"]))
    assert provenance["data"].startswith("mine.hdf5@") and provenance["reference_max"] == 100
    done = kit("train.py", "paper/reacher2d-medium-1/dt/seed0", "--schedule", "nonsense", check=False)
    assert done.returncode != 0 and "invalid choice" in done.stderr
