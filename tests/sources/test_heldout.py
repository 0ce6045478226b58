"""sources/heldout.py: episodes beside a cell's own: which ones, kept once, and a player's floor."""

import numpy as np
import pytest
from conftest import d4rl_arrays, replay_arrays, write_d4rl, write_replay

import prepare_data
import sources
from kit import artifacts
from mini import players
from sources import choose, heldout, others


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(cell, *more):
    prepare_data.prepare(prepare_data.OPTIONS.parse_args([cell, "--workers", "1", *map(str, more)]))
    return artifacts.load_dataset(artifacts.dataset_path(cell))


def test_others_are_never_chosen_and_the_same_for_small_subsets():
    for ratio, seed in ((0.005, 0), (0.1, 0), (0.1, 3), (0.95, 0), (0.999, 1)):
        left = others(2186, ratio, seed)
        assert len(left) == min(20, 2186 - int(2186 * ratio)) and np.all(np.diff(left) > 0)
        assert not {*left} & {*choose(2186, ratio, seed)}
    assert np.array_equal(others(2186, 0.005, 0), others(2186, 0.1, 0))
    assert not np.array_equal(others(2186, 0.1, 0), others(2186, 0.1, 3))
    assert len(others(2186, 1, 0)) == 0


def test_a_ratio_counts_as_it_is_written():
    assert [len(choose(100, ratio, 0)) for ratio in (0.29, 0.57, 0.58)] == [29, 57, 58]  # 0.29 * 100 < 29


def test_a_player_plays_more_once_for_all_cells_of_a_task(monkeypatch, capsys):
    monkeypatch.setattr(sources, "HELDOUT", 3)
    prepare("mini/reacher2d-medium-0.1")
    path = artifacts.heldout_path("mini/reacher2d-medium")
    data, provenance = artifacts.load_dataset(path)
    assert provenance["episodes"] == [50_000, 50_001, 50_002] and provenance["steps"] == 300
    assert provenance["data"] == artifacts.load_provenance("data/mini/reacher2d-medium-0.1.npz")["data"]
    before = path.read_bytes()
    assert "no run trains on" in capsys.readouterr().out
    prepare("mini/reacher2d-medium-0.1")
    prepare("mini/reacher2d-medium-0.3-d7")
    assert path.read_bytes() == before and "no run trains on" not in capsys.readouterr().out
    stamp = path.stat().st_mtime_ns
    prepare("mini/reacher2d-medium-0.1", "--fresh")  # because code is not compared
    assert path.read_bytes() == before and path.stat().st_mtime_ns > stamp
    path.unlink()  # data that were made before there were any: they are played, and the data stay
    cell = artifacts.dataset_path("mini/reacher2d-medium-0.1")
    kept = cell.read_bytes()
    prepare("mini/reacher2d-medium-0.1")
    assert path.read_bytes() == before and cell.read_bytes() == kept
    monkeypatch.setattr(sources, "HELDOUT", 2)
    prepare("mini/reacher2d-medium-0.1")
    assert artifacts.load_provenance(path)["episodes"] == [50_000, 50_001]


def test_the_floor_is_what_is_left_of_the_players_own_mean():
    actor, _ = players.load(players.WEIGHTS / "hopper.npz")
    rng = np.random.default_rng(0)
    states = rng.normal(0, 0.5, (3, 11)).astype(np.float32) + [1.2, *[0] * 10]
    means = heldout.mean_actions(actor, states.astype(np.float32))
    drawn = np.array([[players.act(actor, state.astype(np.float32), rng) for _ in range(20_000)]
                      for state in states])
    assert np.allclose(means, drawn.mean(1), atol=0.01)
    assert not np.allclose(means, [players.act(actor, state) for state in states], atol=0.02)
    noise = {"observations": np.repeat(states, 20_000, 0).astype(np.float32), "actions": drawn.reshape(-1, 3)}
    floor = heldout.floor_of({"player": "hopper"}, noise)
    assert floor == pytest.approx(drawn.var(1).mean(), rel=0.01) and floor > 0.01
    assert heldout.floor_of({"player": "pong"}, noise) is None


def test_a_file_gives_what_the_cell_leaves_out(folder, capsys):
    write_d4rl(folder / "given.hdf5", d4rl_arrays(episodes=60)[0])
    whole, _ = prepare("paper/hopper-medium-1", "--data", folder / "given.hdf5")
    assert not artifacts.heldout_path("paper/hopper-medium-1").exists()
    _, cell = prepare("paper/hopper-medium-0.1", "--data", folder / "given.hdf5")
    data, provenance = artifacts.load_dataset(artifacts.heldout_path("paper/hopper-medium-0.1"))
    assert len(provenance["episodes"]) == 20 and not {*provenance["episodes"]} & {*cell["episodes"]}
    assert provenance["data"] == cell["data"] and provenance["floor_loss"] is None
    for new, old in enumerate(provenance["episodes"]):
        ours, theirs = (slice(*arrays["offsets"][n:n + 2]) for arrays, n in ((data, new), (whole, old)))
        for name in ("observations", "actions", "rewards", "terminals"):
            assert np.array_equal(data[name][ours], whole[name][theirs])
    # a kill may have come between the two files
    path = artifacts.heldout_path("paper/hopper-medium-0.1")
    whole = path.read_bytes()
    path.unlink()
    prepare("paper/hopper-medium-0.1")
    assert not path.exists() and "held-out losses stay empty without DATA=" in capsys.readouterr().out
    prepare("paper/hopper-medium-0.1", "--data", folder / "given.hdf5")
    assert path.read_bytes() == whole
    # or have left those of data before it
    write_d4rl(folder / "third.hdf5", d4rl_arrays(episodes=60, seed=2)[0])
    prepare("paper/hopper-medium-0.1", "--data", folder / "third.hdf5")
    path.write_bytes(whole)
    prepare("paper/hopper-medium-0.1", "--data", folder / "third.hdf5")
    assert artifacts.load_provenance(path)["data"].startswith("third.hdf5@")
    # or those of another subset of the same data, some of which this one trains on
    good = path.read_bytes()
    prepare("paper/hopper-medium-0.1-d1", "--data", folder / "third.hdf5")
    path.write_bytes(artifacts.heldout_path("paper/hopper-medium-0.1-d1").read_bytes())
    assert {*artifacts.load_provenance(path)["episodes"]} & {
        *artifacts.load_provenance(artifacts.dataset_path("paper/hopper-medium-0.1"))["episodes"]}
    prepare("paper/hopper-medium-0.1", "--data", folder / "third.hdf5")
    assert path.read_bytes() == good
    # another file that is held out from a cell goes with the data that replace it
    write_d4rl(folder / "other.hdf5", d4rl_arrays(episodes=9, seed=1)[0])
    prepare("paper/hopper-medium-0.1", "--data", folder / "other.hdf5")
    assert len(artifacts.load_provenance(artifacts.heldout_path("paper/hopper-medium-0.1"))["episodes"]) == 8
    # and where they leave nothing out, nothing stays
    write_d4rl(folder / "one.hdf5", d4rl_arrays(episodes=1)[0])
    prepare("paper/hopper-medium-0.1", "--data", folder / "one.hdf5")
    assert not path.exists()


def test_replayed_games_are_read_once_and_told_apart(folder):
    arrays, lengths = replay_arrays(episodes=10)
    write_replay(folder / "Breakout/1/replay_logs", arrays)
    data, cell = prepare("paper/breakout-medium-0.4", "--data", folder)
    left, provenance = artifacts.load_dataset(artifacts.heldout_path("paper/breakout-medium-0.4"))
    assert sorted([*cell["episodes"], *provenance["episodes"]]) == list(range(10))
    starts = np.cumsum([0, *lengths])
    for found, which in ((data, cell["episodes"]), (left, provenance["episodes"])):
        rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in which])
        assert np.array_equal(found["observations"], arrays["observation"][rows])
        assert np.array_equal(found["actions"], arrays["action"][rows])
        assert np.array_equal(found["last_observations"], found["observations"][found["offsets"][1:] - 1])
