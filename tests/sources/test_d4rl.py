"""sources/d4rl.py: D4RL's layout, with and without its optional columns, damaged files, where files lie."""

import functools
import http.server
import threading
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import d4rl_arrays, kitchen_arrays, write_d4rl

import tasks
from kit.settings import configuration
from sources import choose, d4rl, take_episodes

CONFIGS = {task: configuration(f"paper/{task}-1/dt/seed0") for task in tasks.TASKS}
HOPPER, KITCHEN = CONFIGS["hopper-medium"], CONFIGS["kitchen-complete"]
OPTIONS = SimpleNamespace(subset_seed=0, workers=1, timeout=5)


# --- the layout --------------------------------------------------------------------------------

def test_episodes_are_split_at_terminals_and_timeouts(tmp_path):
    raw, lengths = d4rl_arrays()
    data = d4rl.read(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert np.array_equal(np.diff(data["offsets"]), lengths)  # the cut-off tail is gone
    rows = int(lengths.sum())
    assert np.array_equal(data["observations"], raw["observations"][:rows])
    assert np.array_equal(data["rewards"], raw["rewards"][:rows, 0])
    ends = data["offsets"][1:] - 1
    assert np.array_equal(data["last_observations"], raw["next_observations"][ends])
    # a timeout is an end but no terminal
    assert np.array_equal(data["terminals"], raw["terminals"][:rows])
    assert data["terminals"][ends].sum() == 20


def test_float_terminals_without_timeouts_are_read_as_the_kitchen_stores_them(tmp_path, capsys):
    raw, lengths = d4rl_arrays()
    ends = np.zeros(len(raw["rewards"]), np.float32)
    ends[np.cumsum(lengths) - 1] = 1
    raw["terminals"] = ends[:, None]
    del raw["timeouts"], raw["next_observations"]
    data = d4rl.read(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert np.array_equal(np.diff(data["offsets"]), lengths)
    ends = data["offsets"][1:] - 1
    assert data["terminals"][ends].all() and capsys.readouterr().out == ""  # nothing was cut
    # nobody reads what followed a terminal
    assert np.array_equal(data["last_observations"], data["observations"][ends])


def test_what_followed_a_timeout_is_unknown_without_next_observations(tmp_path):
    raw, lengths = d4rl_arrays()
    ends = np.cumsum(lengths) - 1
    timeouts = raw["timeouts"][ends]
    full = d4rl.read(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert np.isfinite(full["last_observations"]).all()
    raw["next_observations"][ends[3]] = np.nan  # the end of an episode that a timeout ended
    raw["next_observations"][ends[4], 2] = np.inf  # of one that a terminal ended
    data = d4rl.read(write_d4rl(tmp_path / "b.hdf5", raw), HOPPER)
    last = data["last_observations"]
    assert np.isnan(last[3]).all() and np.array_equal(last[4], raw["observations"][ends[4]])
    assert np.array_equal(np.delete(last, (3, 4), 0), np.delete(full["last_observations"], (3, 4), 0))
    del raw["next_observations"]
    last = d4rl.read(write_d4rl(tmp_path / "c.hdf5", raw), HOPPER)["last_observations"]
    assert np.isnan(last[timeouts]).all() and timeouts.sum() == 10
    assert np.array_equal(last[~timeouts], raw["observations"][ends[~timeouts]])


def test_a_row_that_is_both_terminal_and_timeout_is_a_terminal(tmp_path):
    raw, lengths = d4rl_arrays()
    ends = np.cumsum(lengths) - 1
    raw["terminals"][ends[0]] = raw["timeouts"][ends[0]] = True
    data = d4rl.read(write_d4rl(tmp_path / "a.hdf5", raw), HOPPER)
    assert data["terminals"][ends[0]] and np.array_equal(np.diff(data["offsets"]), lengths)


def test_without_timeouts_an_episode_is_cut_at_the_horizon(tmp_path, capsys):
    raw, _ = d4rl_arrays(episodes=100)
    rows = len(raw["rewards"])
    raw = {name: array[:rows] for name, array in raw.items() if name != "timeouts"}
    raw["terminals"][:] = False
    raw["terminals"][[1199, 1209]] = True  # after a cut, and a short episode
    raw["terminals"][2209] = True          # where the limit is
    path = write_d4rl(tmp_path / "a.hdf5", raw)
    data = d4rl.read(path, HOPPER)
    assert rows > 2300 and data["offsets"].tolist() == [0, 1000, 1200, 1210, 2210]
    assert np.flatnonzero(data["terminals"]).tolist() == [1199, 1209, 2209]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "a.hdf5 has no timeouts" in said and "1,000 steps" in said


def test_a_file_without_any_terminal_or_timeouts_is_cut_as_halfcheetahs_is(tmp_path):
    config = CONFIGS["halfcheetah-medium"]
    raw, _ = d4rl_arrays(episodes=140, state_dim=17, action_dim=6)
    raw["terminals"][:] = False
    for name in ("timeouts", "next_observations"):
        del raw[name]
    data = d4rl.read(write_d4rl(tmp_path / "a.hdf5", raw), config)
    assert np.diff(data["offsets"]).tolist() == [1000] * (len(raw["rewards"]) // 1000)
    assert len(data["offsets"]) > 3 and not data["terminals"].any()
    assert np.isnan(data["last_observations"]).all()


# --- damage ------------------------------------------------------------------------------------

def nan_row(raw):
    raw["actions"][17, 1] = np.nan


def too_large(raw):
    raw["observations"] = raw["observations"].astype(np.float64)
    raw["observations"][17, 2] = 1e39  # which no float32 is


def no_ends(raw):
    raw["terminals"][:] = raw["timeouts"][:] = False


def short_rewards(raw):
    raw["rewards"] = raw["rewards"][:-1]


def other_environment(raw):
    raw["observations"] = raw["observations"][:, :10]


def other_successors(raw):
    raw["next_observations"] = raw["next_observations"][:, :10]


def words(raw):
    raw["actions"] = np.full(raw["actions"].shape, b"left")


@pytest.mark.parametrize("damage, said", [
    (lambda raw: raw.pop("terminals"), "has no terminals"), (nan_row, "not finite in row 17"),
    (too_large, "not finite in row 17"), (no_ends, "no finished episode"),
    (short_rewards, "rewards"), (words, "damaged"),
    (other_environment, "another environment"), (other_successors, "next_observations have shape")])
def test_a_damaged_d4rl_file_ends_in_one_line(tmp_path, damage, said):
    raw, _ = d4rl_arrays()
    damage(raw)
    path = write_d4rl(tmp_path / "bad.hdf5", raw)
    with pytest.raises(SystemExit) as stop:
        d4rl.read(path, HOPPER)
    assert said in str(stop.value) and "bad.hdf5" in str(stop.value) and "\n" not in str(stop.value)


def test_a_truncated_hdf5_ends_in_one_line(tmp_path):
    path = write_d4rl(tmp_path / "cut.hdf5", d4rl_arrays()[0])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SystemExit, match="cut.hdf5 is not a readable HDF5 file"):
        d4rl.read(path, HOPPER)


def test_broken_chunks_end_in_one_line(tmp_path):
    path = write_d4rl(tmp_path / "flipped.hdf5", d4rl_arrays()[0])
    with h5py.File(path) as file:
        where = file["observations"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[where:where + 200] = bytes(200)
    path.write_bytes(whole)
    with pytest.raises(SystemExit, match="flipped.hdf5 is damaged") as stop:
        d4rl.read(path, HOPPER)
    assert "pickle" not in str(stop.value)


def test_another_environments_file_and_a_pickle_are_refused(tmp_path):
    path = write_d4rl(tmp_path / "hopper.hdf5", d4rl_arrays()[0])
    with pytest.raises(SystemExit, match="another environment"):
        d4rl.read(path, KITCHEN)
    pickle = tmp_path / "reacher2d-medium.pkl"
    pickle.write_bytes(b"\x80\x04\x95 not loaded")
    with pytest.raises(SystemExit, match="never load"):
        d4rl.load(CONFIGS["reacher2d-medium"], str(pickle), OPTIONS)


# --- cells -------------------------------------------------------------------------------------

def test_d4rls_kitchen_keeps_both_kinds_of_rewards(tmp_path):
    raw = kitchen_arrays()
    data = d4rl.load(KITCHEN, str(write_d4rl(tmp_path / "kitchen.hdf5", raw)), OPTIONS).arrays
    assert data["observations"].shape == (len(raw["rewards"]), 60)
    assert np.array_equal(data["dataset_rewards"], raw["rewards"])
    # a sub-task pays at the step before the count first shows it: four an episode, whatever its length
    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    for first, last in zip(starts, ends, strict=True):
        assert data["rewards"][first:last].sum() == 4
        assert raw["rewards"][first:last].sum() > 8
        assert np.array_equal(data["rewards"][first:last - 1], np.diff(raw["rewards"][first:last]))
    part = take_episodes(data, np.array([1]))
    assert np.array_equal(part["dataset_rewards"], raw["rewards"][starts[1]:ends[1]])


def test_the_kitchens_longer_demonstrations_are_not_cut_at_the_horizon_of_play(tmp_path, capsys):
    raw = kitchen_arrays(episodes=12)
    ends = np.flatnonzero(raw["terminals"])
    raw["terminals"][:] = 0
    raw["terminals"][[ends[7], ends[11]]] = 1  # of 300 steps and more
    assert min(ends[7], ends[11] - ends[7]) < 1000 and ends[7] > KITCHEN["horizon"]
    data = d4rl.read(write_d4rl(tmp_path / "kitchen.hdf5", raw), KITCHEN)
    assert len(data["offsets"]) == 3 and capsys.readouterr().out == ""


def test_a_cell_is_a_prefix_of_one_permutation(tmp_path):
    raw, lengths = d4rl_arrays()
    path = write_d4rl(tmp_path / "mine.hdf5", raw)
    full = d4rl.load(HOPPER, str(path), OPTIONS)
    part = d4rl.load(HOPPER | {"ratio": 0.2}, str(path), OPTIONS)
    assert (full.total, len(full.chosen), part.total, len(part.chosen)) == (30, 30, 30, 6)
    assert np.array_equal(part.chosen, choose(30, 0.2, 0)) and part.name == "mine.hdf5" == part.source
    assert part.sha256 == d4rl.digest(HOPPER, str(path), OPTIONS)
    assert np.array_equal(part.returns, full.returns[part.chosen])
    starts = np.append(0, np.cumsum(lengths))
    for new, old in enumerate(part.chosen):
        ours, theirs = slice(*part.arrays["offsets"][new:new + 2]), slice(*starts[old:old + 2])
        assert np.array_equal(part.arrays["observations"][ours], raw["observations"][theirs])
    another = d4rl.load(HOPPER | {"ratio": 0.2}, str(path), SimpleNamespace(subset_seed=1, timeout=5))
    assert not np.array_equal(another.chosen, part.chosen)


def test_only_d4rls_own_file_bears_its_name(tmp_path, capsys):
    path = write_d4rl(tmp_path / "hopper_medium-v2.hdf5", d4rl_arrays()[0])
    known = d4rl.digest(HOPPER, str(path), OPTIONS)
    assert d4rl.load(HOPPER, str(path), OPTIONS).name == "hopper_medium-v2.hdf5"
    assert "is not known to be D4RL's hopper-medium-v2" in capsys.readouterr().out
    assert d4rl.load(HOPPER | {"sha256": known[:16]}, str(path), OPTIONS).name == "hopper-medium-v2"
    assert capsys.readouterr().out == ""


# --- where files lie ---------------------------------------------------------------------------

@pytest.mark.parametrize("task, place", [
    ("hopper-medium", "hopper_medium-v2.hdf5"), ("hopper-medium", "mujoco/hopper_medium-v2.hdf5"),
    ("walker2d-medium", "mujoco/walker2d-medium-v2.hdf5"),
    ("kitchen-complete", "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5"),
    ("kitchen-complete", "data/main_data.hdf5"), ("kitchen-partial", "partial-v2/data/main_data.hdf5"),
    ("kitchen-partial", "kitchen/partial-v2/data/main_data.hdf5"),
    ("reacher2d-medium", "reacher2d-medium.hdf5"),
    ("reacher2d-medium", "reacher2d/reacher2d-medium.hdf5")])
def test_a_folder_may_hold_the_file_or_a_folder_a_suite(tmp_path, task, place):
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert d4rl.find(CONFIGS[task], str(tmp_path), 5) == path == d4rl.find(CONFIGS[task], str(path), 5)
    assert d4rl.holds(CONFIGS[task], str(tmp_path), 5) and d4rl.holds(CONFIGS[task], str(path), 5)


def test_a_folder_without_the_file_is_one_line(tmp_path):
    (tmp_path / "mujoco").mkdir()
    (tmp_path / "mujoco/walker2d_medium-v2.hdf5").write_bytes(b"")
    with pytest.raises(SystemExit, match="hopper_medium-v2.hdf5") as stop:
        d4rl.find(HOPPER, str(tmp_path), 5)
    assert "DATA= takes" in str(stop.value) and "\n" not in str(stop.value)
    assert not d4rl.holds(HOPPER, str(tmp_path), 5)
    assert d4rl.holds(HOPPER, str(tmp_path / "nowhere"), 5)  # a mistyped path is no folder without it


def test_a_url_is_a_file_or_its_folder_and_kept_apart_from_the_original(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served").mkdir()
    path = write_d4rl(tmp_path / "served/hopper_medium-v2.hdf5", d4rl_arrays()[0])
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for where in (url, f"{url}/", f"{url}/hopper_medium-v2.hdf5"):
        found = d4rl.find(HOPPER, where, 5)
        assert found.read_bytes() == path.read_bytes() and found.parent.parent == d4rl.DOWNLOADS
        assert d4rl.holds(HOPPER, where, 5)
    assert not d4rl.holds(CONFIGS["reacher2d-medium"], url, 5)
    assert d4rl.holds(CONFIGS["reacher2d-medium"], f"{url}/mine.hdf5", 5)
    server.shutdown()
    server.server_close()
    assert d4rl.holds(CONFIGS["reacher2d-medium"], url, 1)  # no answer is no "no"


def test_a_download_is_checked_by_the_digest_of_d4rls_file_and_the_original_asked_first(monkeypatch):
    asked = []
    monkeypatch.setattr(d4rl, "download", lambda urls, path, digest, *_: asked.append((urls, digest)))
    for task in ("hopper-medium", "halfcheetah-medium", "walker2d-medium", "kitchen-partial"):
        d4rl.find(CONFIGS[task], "", 5)
    assert [digest for _, digest in asked] == ["5bdf1bc4a713c829", "41324e8487a9556d", "cf00f43add04c17f", ""]
    for urls, _ in asked:
        assert urls[0].startswith("http://rail.eecs.berkeley.edu/") and urls[1].startswith(d4rl.MIRROR)


def test_urls_and_scores_come_from_d4rls_own_file():
    infos = d4rl.d4rl_infos()
    rows = [row for row in tasks.TASKS.values() if row["suite"] in ("mujoco", "kitchen")]
    assert len(rows) == 5
    for row in rows:
        assert infos["DATASET_URLS"][row["dataset"]].endswith(".hdf5")
        assert infos["REF_MAX_SCORE"][row["dataset"]] > infos["REF_MIN_SCORE"][row["dataset"]]
    assert d4rl.reference(rows[-1]) == (0.0, 4.0)
    assert infos["REF_MIN_SCORE"]["hopper-medium-v2"] == -20.272305
    assert infos["REF_MAX_SCORE"]["hopper-medium-v2"] == 3234.3


# --- subsets (sources/__init__.py) ---------------------------------------------------------------

def test_a_smaller_ratio_is_a_subset_of_a_larger_one():
    total = 2186
    chosen = {ratio: choose(total, ratio, seed=0) for ratio in (0.005, 0.01, 0.1, 1)}
    assert [len(c) for c in chosen.values()] == [10, 21, 218, 2186]
    assert set(chosen[0.005]) < set(chosen[0.01]) < set(chosen[0.1]) < set(chosen[1])
    assert set(chosen[0.01]) != set(choose(total, 0.01, seed=1))
    assert all(np.array_equal(c, np.unique(c)) for c in chosen.values())


def test_taking_episodes_keeps_their_rows(tmp_path):
    full = d4rl.read(write_d4rl(tmp_path / "a.hdf5", d4rl_arrays()[0]), HOPPER)
    part = take_episodes(full, np.array([2, 5, 11]))
    for new, old in enumerate((2, 5, 11)):
        ours, theirs = (slice(*d["offsets"][i:i + 2]) for d, i in ((part, new), (full, old)))
        for name in ("observations", "actions", "rewards", "terminals"):
            assert np.array_equal(part[name][ours], full[name][theirs])
    assert np.array_equal(part["last_observations"], full["last_observations"][[2, 5, 11]])
