"""kit/artifacts.py: what is written is whole, and what is damaged is refused, wherever the damage is."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from conftest import save_cell

from kit import artifacts


@pytest.fixture
def cell(tmp_path):
    """(path, arrays, provenance) of a dataset of three episodes."""
    arrays, provenance = save_cell(tmp_path, "paper/hopper-medium-0.1", episodes=3)
    return tmp_path / "data/paper/hopper-medium-0.1.npz", arrays, provenance


def flipped(whole, where):
    return whole[:where] + bytes([whole[where] ^ 255]) + whole[where + 1:]


# --- writing whole -----------------------------------------------------------------------------

def test_nothing_is_left_behind_when_writing_fails(tmp_path):
    def write(part):
        part.write_bytes(b"half")
        raise OSError("disk full")
    path = tmp_path / "a.npz"
    with pytest.raises(SystemExit, match="a.npz could not be written .disk full.; nothing that was there is"):
        artifacts.write_whole(path, write)
    assert list(tmp_path.iterdir()) == []
    artifacts.write_whole(path, lambda part: part.write_bytes(b"old"))
    with pytest.raises(SystemExit, match="a.npz could not be written .disk full.; nothing that was there is"):
        artifacts.write_whole(path, write)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_takes_its_name_and_the_old_one_reads_on(tmp_path, monkeypatch):
    path, done = tmp_path / "a.json", []

    def noted(name, call):
        def noting(*args):
            done.append(name)
            return call(*args)
        monkeypatch.setattr(os, name, noting)
    noted("fsync", os.fsync)
    noted("replace", os.replace)
    artifacts.write_whole(path, lambda part: part.write_bytes(b"old"))
    with open(path, "rb") as reader:
        artifacts.write_whole(path, lambda part: part.write_bytes(b"new"))
        assert reader.read() == b"old" and path.read_bytes() == b"new"
        assert done == ["fsync", "replace"] * 2


def test_what_the_machine_refuses_is_no_damage(cell, tmp_path, monkeypatch):
    path, *_ = cell
    artifacts.save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)})
    artifacts.write_json(tmp_path / "a.json", {"a": 1})
    artifacts.write_csv(tmp_path / "a.csv", ("a",), [{"a": 1}])

    def refusing(*_, **more):
        raise error

    for name in ("open", "Path"):
        monkeypatch.setattr(artifacts, name, refusing, raising=False)
    monkeypatch.setattr(np, "load", refusing)
    monkeypatch.setattr(artifacts.seals, "read_json", refusing)
    for error in (PermissionError(errno.EACCES, "denied"), OSError(errno.EIO, "I/O"), MemoryError()):
        for read in (lambda: artifacts.load_tensors(tmp_path / "a.safetensors"),
                     lambda: artifacts.load_provenance(path), lambda: artifacts.load_arrays(path, ()),
                     lambda: artifacts.read_json(tmp_path / "a.json", "delete it"),
                     lambda: artifacts.read_csv(tmp_path / "a.csv", ("a",))):
            with pytest.raises(type(error)):
                read()


def test_what_one_may_read_all_may_whom_the_umask_lets(tmp_path):
    artifacts.save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)})
    (tmp_path / "b").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_paths():
    assert artifacts.dataset_path("mini/hopper-medium-0.01").as_posix() == "data/mini/hopper-medium-0.01.npz"
    assert artifacts.text_path("mini", "1a2b").as_posix() == "data/mini/text-1a2b.npz"
    assert artifacts.run_folder("mini/x-1/lamo/seed0").as_posix() == "runs/mini/x-1/lamo/seed0"
    assert artifacts.results_path("mini/x-1").as_posix() == "results/mini/x-1.csv"
    assert artifacts.figure_path("mini/x-1").as_posix() == "figures/mini/x-1.png"


def test_checkpoints_come_in_the_order_of_their_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = "mini/hopper-medium-1/lamo/seed0"
    folder = artifacts.run_folder(run)
    folder.mkdir(parents=True)
    for name in ("step-0100000", "step-0050000", "state"):
        (folder / f"{name}.safetensors").touch()
    with pytest.raises(SystemExit, match="no finished run; make it: make PROFILE=mini hopper-medium-1 "):
        artifacts.checkpoint_paths(run)
    (folder / "final.safetensors").touch()
    record = {"profile": "mini", "cell": "hopper-medium-1", "method": "lamo", "seed": 0, "eval_every": 50_000}
    artifacts.write_json(folder / "config.json", record | {"steps": 120_000})
    config, found = artifacts.checkpoint_paths(run)
    assert [path.stem for path in found] == ["step-0050000", "step-0100000", "final"]
    assert config == record | {"steps": 120_000}
    # one too many, one too few, another run's record
    for steps, said in ((100_000, "step-0100000.safetensors is no checkpoint of this run"),
                        (170_000, "step-0150000.safetensors is not there; put it back, or train again")):
        artifacts.write_json(folder / "config.json", record | {"steps": steps})
        with pytest.raises(SystemExit, match=said):
            artifacts.checkpoint_paths(run)
    artifacts.write_json(folder / "config.json", record | {"seed": 1})
    with pytest.raises(SystemExit, match="seed0/config.json is that of mini/hopper-medium-1/lamo/seed1"):
        artifacts.checkpoint_paths(run)


# --- arrays ------------------------------------------------------------------------------------

@pytest.mark.parametrize("compress", [False, True])
def test_a_damaged_dataset_is_refused_wherever_it_is_cut_or_flipped(cell, compress):
    path, arrays, provenance = cell
    artifacts.save_arrays(path, provenance, arrays, compress)
    whole = path.read_bytes()
    expected = artifacts.load_dataset(path)
    assert expected[1] == provenance | {"sha256": artifacts.arrays_digest(arrays)}
    rng, refused = np.random.default_rng(0), 0
    for where in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:where])
        with pytest.raises(SystemExit, match="medium-0.1.npz is damaged .*; delete it and make it again"):
            artifacts.load_dataset(path)
    for where in range(0, len(whole), 17):
        path.write_bytes(flipped(whole, where))
        try:
            data, said = artifacts.load_dataset(path)
        except SystemExit as stop:
            assert "\n" not in str(stop)
            refused += 1
            continue
        # a flip that is not refused fell on bytes that zip does not read
        assert said == expected[1] and set(data) == set(arrays)
        assert all(np.array_equal(data[name], array, equal_nan=True) for name, array in arrays.items())
    assert refused > 0.9 * len(whole) / 17


def test_equal_arrays_give_equal_bytes(cell, tmp_path):
    path, arrays, provenance = cell
    for compress in (False, True):
        artifacts.save_arrays(tmp_path / "a.npz", provenance, arrays, compress)
        artifacts.save_arrays(tmp_path / "b.npz", provenance, arrays, compress)
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
        assert (path.read_bytes() == (tmp_path / "a.npz").read_bytes()) == (not compress)


def test_the_digest_knows_names_types_shapes_and_values():
    arrays = {"a": np.arange(6, dtype=np.int64), "b": np.zeros(2, np.float32)}
    same = {"b": np.zeros(2, np.float32), "a": np.arange(12)[::2] // 2}
    others = [{"a": arrays["b"], "b": arrays["a"]}, arrays | {"a": arrays["a"].reshape(2, 3)},
              arrays | {"b": np.zeros(1, np.int64)}, arrays | {"a": arrays["a"] + 1}, {"a": arrays["a"]}]
    digests = [artifacts.arrays_digest(one) for one in (arrays, same, *others)]
    assert digests[0] == digests[1] and len(set(digests)) == 1 + len(others)


@pytest.mark.parametrize("name, change", [
    ("offsets", lambda x: x[:-1]), ("offsets", lambda x: x[[0, 2, 1, 3]]), ("offsets", lambda x: x[:1]),
    ("offsets", lambda x: np.append(1, x[1:])), ("actions", lambda x: x[:-1]), ("terminals", lambda x: x[1:]),
    ("last_observations", lambda x: x[:-1]), ("rewards", lambda x: x * np.nan),
    ("observations", lambda x: np.where(x > 2, np.inf, x))])
def test_arrays_that_do_not_fit_together_are_refused(cell, name, change):
    path, arrays, provenance = cell
    artifacts.save_arrays(path, provenance, arrays | {name: change(arrays[name])})
    with pytest.raises(SystemExit, match="medium-0.1.npz is inconsistent; delete it and make it again"):
        artifacts.load_dataset(path)


def test_what_followed_the_last_action_may_be_unknown(cell):
    path, arrays, provenance = cell
    arrays["last_observations"][1] = np.nan
    artifacts.save_arrays(path, provenance, arrays)
    assert np.isnan(artifacts.load_dataset(path)[0]["last_observations"][1]).all()


def test_files_that_are_missing_or_another_kind_say_what_to_do(cell, tmp_path):
    path, arrays, provenance = cell
    for name, command in (("mini/hopper-medium-0.01", "prepare_data.py mini/hopper-medium-0.01"),
                          ("mini/text-1a2b", "prepare_data.py mini/text --lm")):
        with pytest.raises(SystemExit, match=f"is not there; make it with: python {command}"):
            artifacts.load_arrays(tmp_path / f"data/{name}.npz", ("tokens",))
    with pytest.raises(SystemExit, match="it has no tokens"):
        artifacts.load_arrays(path, ("tokens",))
    np.savez(path, provenance=np.array(json.dumps(provenance)), **arrays)  # as anybody writes one
    with pytest.raises(SystemExit, match="it has no seal"):
        artifacts.load_dataset(path)
    np.savez(path, provenance=np.array([{}], object), **arrays)
    with pytest.raises(SystemExit, match="damaged"):  # a pickle, which is never loaded
        artifacts.load_dataset(path)
    with pytest.raises(SystemExit, match="damaged"):
        artifacts.load_provenance(path)


def test_the_provenance_is_read_alone(cell):
    path, arrays, provenance = cell
    assert artifacts.load_provenance(path) == provenance | {"sha256": artifacts.arrays_digest(arrays)}
    path.write_bytes(b"no zip")
    with pytest.raises(SystemExit, match="hopper-medium-0.1.npz is damaged"):
        artifacts.load_provenance(path)


# --- tensors -----------------------------------------------------------------------------------

def test_a_damaged_checkpoint_is_refused(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    artifacts.save_tensors(path, {"x": torch.randn(50, 7), "y": torch.randn(3)}, run="mini/x", step=1234)
    whole = path.read_bytes()
    expected, metadata = artifacts.load_tensors(path)
    assert (metadata["run"], metadata["step"]) == ("mini/x", 1234)
    header = 8 + int.from_bytes(whole[:8], "little")
    for where in [*range(header), *range(header, len(whole), 9)]:
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1:])
        try:
            tensors, said = artifacts.load_tensors(path)
        except SystemExit as stop:
            assert "a.safetensors is damaged" in str(stop) and "\n" not in str(stop)
            continue
        assert said == metadata and set(tensors) == set(expected), f"byte {where}"
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    for where in range(0, len(whole), 13):
        path.write_bytes(whole[:where])
        with pytest.raises(SystemExit, match="damaged"):
            artifacts.load_tensors(path)


def test_equal_tensors_give_equal_bytes(tmp_path):
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(3.0), "ids": torch.arange(3)}
    for name in ("a", "b"):
        artifacts.save_tensors(tmp_path / f"{name}.safetensors", tensors, step=3, run="r")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found, _ = artifacts.load_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
               for name, tensor in tensors.items())


# --- JSON and CSV ------------------------------------------------------------------------------

def test_json_that_is_no_object_is_one_line(tmp_path):
    path = tmp_path / "config.json"
    artifacts.write_json(path, {"a": [1, None]})
    assert artifacts.read_json(path, "remedy") == {"a": [1, None]}
    for content in (b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="config.json is not readable .*; the remedy") as stop:
            artifacts.read_json(path, "the remedy")
        assert "\n" not in str(stop.value)
    path.unlink()
    with pytest.raises(SystemExit, match="not readable"):
        artifacts.read_json(path, "the remedy")


def test_a_runs_config_that_is_damaged_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = artifacts.run_folder("mini/x-1/dt/seed0")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"seed": 0')
    with pytest.raises(SystemExit, match="runs/mini/x-1/dt/seed0/config.json is not readable .* train"):
        artifacts.load_config("mini/x-1/dt/seed0")


def test_csv_comes_back_and_a_cut_one_is_one_line(tmp_path):
    path = tmp_path / "eval.csv"
    rows = [{"step": "1", "return": "2.5", "more": ""}, {"step": "2", "return": "3,5", "more": "x"}]
    artifacts.write_csv(path, ("step", "return", "more"), rows)
    assert artifacts.read_csv(path, ("step", "return")) == rows
    whole = path.read_bytes()
    cut = whole[:whole.index(b"2.5")]
    for content in (b"", cut, whole + b"3,1,2,3\n", whole + b"3\n", whole.replace(b"return", b"retorn"),
                    b"return,step\n1,2\n", whole.replace(b"2.5", b"\xff")):
        path.write_bytes(content)
        with pytest.raises(SystemExit, match="eval.csv is not readable .*; delete it and make it") as stop:
            artifacts.read_csv(path, ("step", "return"))
        assert "\n" not in str(stop.value)
    artifacts.write_csv(path, ("step", "return"), [])
    with pytest.raises(SystemExit, match="it has no row"):
        artifacts.read_csv(path, ("step", "return"))
    assert artifacts.read_csv(path, ("step", "return"), empty=True) == []
    path.unlink()
    with pytest.raises(SystemExit, match="not readable"):
        artifacts.read_csv(path, ("step", "return"))


def test_a_logs_rows_are_in_the_file_as_they_come_but_not_a_thousand_times_a_second(tmp_path, monkeypatch):
    now, path = [10.0], tmp_path / "train.csv"
    monkeypatch.setattr(artifacts.time, "monotonic", lambda: now[0])
    log, seen = artifacts.Log(path), []
    for step in range(1, 8):
        log.add({"loss": float(step)})
        assert log.row(step)["loss"] == f"{step}"
        now[0] += 0.4
        seen.append(len(artifacts.read_csv(path, ("step", "loss"))))
    assert seen == [1, 1, 1, 4, 4, 4, 7]
    log.save()
    assert len(artifacts.read_csv(path, ("step", "loss"))) == 7


def test_a_log_averages_what_was_added_and_keeps_a_resumed_runs_rows(tmp_path):
    path = tmp_path / "train.csv"
    log = artifacts.Log(path)
    log.add({"loss": 1.0, "lr": 0.1})
    log.add({"loss": 2.0, "lr": 0.2, "actor_loss": 5.0})  # which not every step has
    log.row(2)
    log.add({"loss": 1 / 3, "lr": 0.3})
    log.row(4)
    log.save()
    assert lines(path) == ["step,loss,lr,actor_loss", "2,1.5,0.2,5", "4,0.333333,0.3,"]
    again = artifacts.Log(path, rows=log.rows[:1])  # resumed from a state of step 2
    again.add({"loss": 7.0, "lr": 0.3, "actor_loss": 1.0})
    again.row(4)
    again.save()
    assert lines(path) == ["step,loss,lr,actor_loss", "2,1.5,0.2,5", "4,7,0.3,1"]
    assert artifacts.Log(path).rows == []


def lines(path):
    """Of a CSV, without the seals."""
    return [line.rpartition(",")[0] for line in path.read_text().splitlines()]
