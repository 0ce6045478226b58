"""prepare_data.py: D4RL's layout, subsets, damaged files, downloads, and the mini profile's data."""

import hashlib
import http.server
import threading
from functools import partial

import numpy as np
import pytest
from conftest import d4rl_arrays, one_line, write_d4rl

import prepare_data
import tasks

HOPPER = tasks.configuration("paper/hopper-medium-0.01/dt/seed0")


# --- D4RL files --------------------------------------------------------------------------------

def test_episodes_are_split_at_terminals_and_timeouts(tmp_path):
    raw, lengths = d4rl_arrays()
    data = prepare_data.read_d4rl(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert np.array_equal(np.diff(data["offsets"]), lengths)  # the cut-off tail is gone
    rows = int(lengths.sum())
    assert np.array_equal(data["observations"], raw["observations"][:rows])
    assert np.array_equal(data["rewards"], raw["rewards"][:rows, 0])
    ends = data["offsets"][1:] - 1
    assert np.array_equal(data["last_observations"], raw["next_observations"][ends])
    # a timeout is an end but no terminal
    assert np.array_equal(data["terminals"], raw["terminals"][:rows])
    assert data["terminals"][ends].sum() == 20


def test_float_terminals_without_timeouts_are_read_as_the_kitchen_stores_them(tmp_path):
    raw, lengths = d4rl_arrays()
    ends = np.zeros(len(raw["rewards"]), np.float32)
    ends[np.cumsum(lengths) - 1] = 1
    raw["terminals"] = ends[:, None]
    del raw["timeouts"], raw["next_observations"]
    data = prepare_data.read_d4rl(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert np.array_equal(np.diff(data["offsets"]), lengths)
    assert data["terminals"][data["offsets"][1:] - 1].all()


def nan_row(raw):
    raw["actions"][17, 1] = np.nan


def no_ends(raw):
    raw["terminals"][:] = raw["timeouts"][:] = False


def short_rewards(raw):
    raw["rewards"] = raw["rewards"][:-1]


def other_environment(raw):
    raw["observations"] = raw["observations"][:, :10]


@pytest.mark.parametrize("damage, said", [
    (lambda raw: raw.pop("terminals"), "has no terminals"), (nan_row, "not finite in row 17"),
    (no_ends, "no finished episode"), (short_rewards, "rewards"),
    (other_environment, "another environment")])
def test_a_damaged_d4rl_file_ends_in_one_line(tmp_path, damage, said):
    raw, _ = d4rl_arrays()
    damage(raw)
    path = write_d4rl(tmp_path / "bad.hdf5", raw)
    with pytest.raises(SystemExit) as stop:
        prepare_data.read_d4rl(path, HOPPER)
    assert said in str(stop.value) and "bad.hdf5" in str(stop.value)


def test_a_truncated_hdf5_ends_in_one_line(tmp_path):
    path = write_d4rl(tmp_path / "cut.hdf5", d4rl_arrays()[0])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SystemExit, match="cut.hdf5 is not a readable HDF5 file"):
        prepare_data.read_d4rl(path, HOPPER)


# --- subsets -----------------------------------------------------------------------------------

def test_a_smaller_ratio_is_a_subset_of_a_larger_one():
    total = 2186
    chosen = {ratio: prepare_data.choose(total, ratio, seed=0) for ratio in (0.005, 0.01, 0.1, 1)}
    assert [len(c) for c in chosen.values()] == [10, 21, 218, 2186]
    assert set(chosen[0.005]) < set(chosen[0.01]) < set(chosen[0.1]) < set(chosen[1])
    assert set(chosen[0.01]) != set(prepare_data.choose(total, 0.01, seed=1))
    assert all(np.array_equal(c, np.unique(c)) for c in chosen.values())


def test_taking_episodes_keeps_their_rows(tmp_path):
    full = prepare_data.read_d4rl(write_d4rl(tmp_path / "a.hdf5", d4rl_arrays()[0]), HOPPER)
    part = prepare_data.take_episodes(full, np.array([2, 5, 11]))
    for new, old in enumerate((2, 5, 11)):
        ours, theirs = (slice(*d["offsets"][i:i + 2]) for d, i in ((part, new), (full, old)))
        for name in ("observations", "actions", "rewards", "terminals"):
            assert np.array_equal(part[name][ours], full[name][theirs])
    assert np.array_equal(part["last_observations"], full["last_observations"][[2, 5, 11]])


def test_mini_episodes_are_the_same_in_every_subset(kit):
    """The 0.5 % file holds exactly those rows of the 1 % file that its episodes name."""
    for ratio in ("0.005", "0.01"):
        kit("prepare_data.py", f"mini/hopper-medium-{ratio}", "--workers", "2")
    small, large = (prepare_data.load_dataset(kit.folder / f"data/mini/hopper-medium-{ratio}.npz")
                    for ratio in ("0.005", "0.01"))
    where = [large[1]["episodes"].index(episode) for episode in small[1]["episodes"]]
    part = prepare_data.take_episodes(large[0], np.array(where))
    for name, array in small[0].items():
        assert np.array_equal(array, part[name]), name
    # and the same command writes the same bytes, whatever the number of processes
    path = kit.folder / "data/mini/hopper-medium-0.005.npz"
    before = path.read_bytes()
    path.unlink()
    kit("prepare_data.py", "mini/hopper-medium-0.005", "--workers", "1")
    assert path.read_bytes() == before


def test_mini_data_are_of_medium_strength(kit):
    """About a third of the expert, as D4RL's medium: the mean lies between 25 and 55."""
    kit("prepare_data.py", "mini/hopper-medium-0.01")
    data, provenance = prepare_data.load_dataset(kit.folder / "data/mini/hopper-medium-0.01.npz")
    low, high = provenance["reference_min"], provenance["reference_max"]
    assert 25 < 100 * (prepare_data.episode_returns(data).mean() - low) / (high - low) < 55
    assert np.abs(data["actions"]).max() <= 1


# --- our own files -----------------------------------------------------------------------------

def test_a_damaged_npz_is_refused_wherever_it_is_cut_or_flipped(tmp_path, d4rl_folder):
    full = prepare_data.read_d4rl(d4rl_folder / "hopper_medium-v2.hdf5", HOPPER)
    path = tmp_path / "a.npz"
    np.savez(path, provenance=np.array("{}"), **prepare_data.take_episodes(full, np.arange(3)))
    whole = path.read_bytes()
    prepare_data.load_dataset(path)
    rng = np.random.default_rng(0)
    for where in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:where])
        with pytest.raises(SystemExit, match="a.npz"):
            prepare_data.load_dataset(path)
    for where in rng.integers(200, len(whole) - 2000, 60):
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 255]) + whole[where + 1:])
        try:
            data, _ = prepare_data.load_dataset(path)
        except SystemExit:
            continue
        # a flip that is not refused fell on bytes that zip does not read
        for name, array in prepare_data.take_episodes(full, np.arange(3)).items():
            assert np.array_equal(data[name], array)


def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def write(part):
        part.write_bytes(b"half")
        raise OSError("disk full")
    with pytest.raises(OSError):
        prepare_data.write_whole(tmp_path / "a.npz", write)
    assert list(tmp_path.iterdir()) == []


# --- downloads ---------------------------------------------------------------------------------

class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` with Range support and breaks the connection after `patience` bytes."""

    content, patience, requests = b"", None, []

    def do_GET(self):
        start = 0
        if "Range" in self.headers:
            start = int(self.headers["Range"].split("=")[1].rstrip("-"))
        self.requests.append(start)
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:self.patience] if self.patience else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("OneServer", (Server,), {"requests": []})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{httpd.server_port}/file.bin"
    yield handler
    httpd.shutdown()


def test_a_broken_download_is_resumed(tmp_path, server):
    server.content = np.random.default_rng(0).bytes(300_000)
    server.patience = 100_000
    digest = hashlib.sha256(server.content).hexdigest()
    path = tmp_path / "file.bin"
    get = partial(prepare_data.download, [server.url], path, digest[:16], 5, "remedy")
    for _ in range(2):
        with pytest.raises(SystemExit, match="resumes"):
            get()
        assert not path.exists()
    assert get() == path and path.read_bytes() == server.content
    assert server.requests == [0, 100_000, 200_000]


def test_a_wrong_checksum_never_reaches_the_final_path(tmp_path, server):
    server.content = b"<html>not the file</html>"
    with pytest.raises(SystemExit, match="SHA-256 does not begin with 5bdf"):
        prepare_data.download([server.url], tmp_path / "file.bin", "5bdf", 5, "remedy")
    assert list(tmp_path.iterdir()) == []


def test_the_second_mirror_is_tried(tmp_path, server):
    server.content = b"x" * 1000
    urls = ["http://127.0.0.1:9/file.bin", server.url]
    assert prepare_data.download(urls, tmp_path / "file.bin", "", 5, "remedy").read_bytes() == server.content


def test_a_stale_part_that_is_too_long_is_dropped(tmp_path, server):
    server.content = b"y" * 1000
    (tmp_path / "file.bin.part").write_bytes(b"z" * 2000)
    path = prepare_data.download([server.url], tmp_path / "file.bin", "", 5, "remedy")
    assert path.read_bytes() == server.content


def test_urls_and_scores_come_from_d4rls_own_file():
    infos = prepare_data.d4rl_infos()
    rows = [row for row in tasks.TASKS.values() if row["suite"] in ("mujoco", "kitchen")]
    assert len(rows) == 5
    for row in rows:
        assert infos["DATASET_URLS"][row["dataset"]].endswith(".hdf5")
        assert infos["REF_MAX_SCORE"][row["dataset"]] > infos["REF_MIN_SCORE"][row["dataset"]]
    assert prepare_data.reference(rows[-1]) == (0.0, 4.0)
    assert infos["REF_MIN_SCORE"]["hopper-medium-v2"] == -20.272305
    assert infos["REF_MAX_SCORE"]["hopper-medium-v2"] == 3234.3


# --- text --------------------------------------------------------------------------------------

def test_the_standard_librarys_text_is_english_enough():
    text = prepare_data.standard_library_text()
    assert len(text) > 500_000
    assert text.count(" the ") > 5_000


def test_wrong_texts_end_in_one_line(kit, tiny_gpt2):
    (kit.folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (kit.folder / "empty").mkdir()
    for text in ("bytes.txt", "empty", "nowhere.txt"):
        line = one_line(kit("prepare_data.py", "paper/text", "--lm", str(tiny_gpt2), "--text", text,
                            check=False))
        assert text in line and "TEXT=" in line


def test_wrong_names_end_in_one_line(kit):
    for name, said in (("mini/hopper-medium-2", "ratio"), ("mini/hoper-medium-0.1", "hopper-medium"),
                       ("big/hopper-medium-0.1", "mini, paper")):
        assert said in one_line(kit("prepare_data.py", name, check=False))
