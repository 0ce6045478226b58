"""sources/replay.py: DQN replay's four files in their true layout, damaged, missing, and downloaded."""

import gzip
import http.server
import io
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import replay_arrays, write_replay

from kit.settings import configuration
from sources import replay

PONG = configuration("paper/pong-medium-1/dt/seed0")
OPTIONS = SimpleNamespace(subset_seed=0, workers=1, timeout=5)


def test_dqn_replays_files_are_read_by_the_episode(tmp_path):
    arrays, lengths = replay_arrays(actions=6)
    files = write_replay(tmp_path / "Pong/1/replay_logs", arrays)
    for ratio in (1.0, 0.3):
        name, source, digest, total, chosen, data, returns, _ = replay.load(
            PONG | {"ratio": ratio}, str(tmp_path), OPTIONS)
        assert total == 10 and len(chosen) == 10 * ratio and returns is None  # clipped rewards are no score
        assert name == "dqn-replay-Pong-1-10" and source == files["observation"].name
        assert digest == replay.digest(PONG, str(tmp_path), OPTIONS) and len(digest) == 64
        rows = np.concatenate([np.arange(lengths[:e].sum(), lengths[:e + 1].sum()) for e in chosen])
        assert np.array_equal(data["offsets"], np.append(0, np.cumsum(lengths[chosen])))
        for name, part in (("actions", "action"), ("rewards", "reward"), ("terminals", "terminal"),
                           ("observations", "observation")):
            assert np.array_equal(data[name], arrays[part][rows])
        last = arrays["observation"][np.cumsum(lengths)[chosen] - 1]
        assert np.array_equal(data["last_observations"], last)
        assert {name: array.dtype for name, array in data.items()} == {
            "observations": np.uint8, "last_observations": np.uint8, "actions": np.int64,
            "rewards": np.float32, "terminals": bool, "offsets": np.int64}


def test_scores_that_were_not_clipped_count_by_their_sign(tmp_path):
    arrays, _ = replay_arrays(actions=6)
    write_replay(tmp_path / "Pong/1/replay_logs", arrays | {"reward": arrays["reward"] * 7})
    rewards = replay.load(PONG, str(tmp_path), OPTIONS).arrays["rewards"]
    assert np.array_equal(rewards, arrays["reward"][:len(rewards)]) and np.abs(rewards).max() == 1


def test_a_folder_may_hold_the_files_the_games_or_a_folder_a_suite(tmp_path):
    arrays = replay_arrays(actions=6)[0]
    for top in ("", "atari"):
        files = write_replay(tmp_path / top / "data" / "Pong/1/replay_logs", arrays)
        assert replay.find(PONG, str(tmp_path / top / "data"), 1) == files
        assert replay.find(PONG, str(files["action"].parent), 1) == files
    files = write_replay(tmp_path / "all/atari/Pong/1/replay_logs", arrays)
    assert replay.find(PONG, str(tmp_path / "all"), 1) == files


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
        replay.load(PONG, str(tmp_path), OPTIONS)
    assert files[part].name in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("change, said", [
    ({"action": lambda a: a[:-3]}, "damaged"), ({"action": lambda a: a + 9}, "another game"),
    ({"action": lambda a: a[:50]}, "damaged"), ({"action": lambda a: a - 1}, "another game"),
    ({"terminal": lambda a: a * 0}, "no finished episode"), ({"reward": lambda a: a * np.nan}, "not finite"),
    ({"terminal": lambda a: a * 2}, "has a terminal 2"),
    ({"observation": lambda a: a[:, :80]}, "no DQN replay"),
    ({"observation": lambda a: a.astype(np.float32)}, "no DQN replay")])
def test_a_wrong_replay_ends_in_one_line(tmp_path, change, said):
    arrays, _ = replay_arrays(actions=6)
    write_replay(tmp_path, arrays | {name: f(arrays[name]) for name, f in change.items()})
    with pytest.raises(SystemExit, match=said) as stop:
        replay.load(PONG, str(tmp_path), OPTIONS)
    assert "ckpt.10.gz" in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("more, said", [(-1, "ends 1 bytes early"), (1, "ends 1 bytes late")])
def test_frames_behind_the_last_episode_are_counted_too(tmp_path, more, said):
    arrays, _ = replay_arrays(actions=6)
    path = write_replay(tmp_path, arrays)["observation"]
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:more] if more < 0 else whole + bytes(more)))
    with pytest.raises(SystemExit, match=f"ckpt.10.gz is not a readable .npy.gz .it {said}"):
        replay.load(PONG, str(tmp_path), OPTIONS)


def test_missing_replay_files_are_named(tmp_path):
    with pytest.raises(SystemExit, match="observation_ckpt.10.gz in"):
        replay.find(PONG, str(tmp_path), 1)
    files = write_replay(tmp_path, replay_arrays()[0])
    files["reward"].unlink()
    with pytest.raises(SystemExit, match="reward_ckpt.10.gz"):
        replay.find(PONG, str(tmp_path), 1)


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
                replay.find(PONG, url, 5)
            assert "DATA=" in str(stop.value) and "\n" not in str(stop.value)
        else:
            found = replay.find(PONG, url, 5)
            assert all(found[part].read_bytes() == files[part].read_bytes() for part in files)
        server.shutdown()
