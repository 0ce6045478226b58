"""kit/artifacts.py's event files for TensorBoard: train.csv's numbers, each once, also of a resumed run."""

import sys

import pytest
from conftest import save_cell

import baselines
import train
from kit import artifacts
from kit.settings import configuration

RUN = "paper/hopper-medium-0.1/dt/seed0"
SHORT = {"device": "cpu", "steps": 6, "eval_every": 2, "log_every": 1, "batch_size": 8, "context": 4}


def shown(run):
    """{name: [(step, value)]} of all event files of a run, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = artifacts.run_folder(run)
    events = accumulator.EventAccumulator(str(folder), {"tensors": 0})
    events.Reload()
    from tensorboard.util import tensor_util
    return {name: [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in events.Tensors(name)]
            for name in events.Tags()["tensors"]}


def logged(run):
    rows = artifacts.read_csv(artifacts.run_folder(run) / "train.csv", ("step",))
    return {name: [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-5)) for row in rows]
            for name in rows[0] if name != "step"}


def test_event_files_have_the_numbers_of_the_csv_and_change_nothing(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)
    train.train(RUN, **SHORT)
    folder = artifacts.run_folder(RUN)
    assert not [*folder.glob("events*")]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    train.train(RUN, **SHORT, fresh=True, tensorboard=True)
    assert shown(RUN) == logged(RUN)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if "events" not in path.name} == before
    train.train(RUN, **SHORT, fresh=True)
    assert not [*folder.glob("events*")]  # of the run that was replaced
    bc = RUN.replace("dt", "bc")
    baselines.train(bc, **SHORT, tensorboard=True)
    assert shown(bc) == logged(bc)


def test_a_resumed_run_has_each_event_once(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)
    step = train.training_step

    def dies(*args, **kwargs):
        dies.left -= 1
        if not dies.left:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    dies.left = 6  # after step 5, of which a checkpoint has four
    monkeypatch.setattr(train, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train.train(RUN, **SHORT, tensorboard=True)
    monkeypatch.setattr(train, "training_step", step)
    train.train(RUN, **SHORT, tensorboard=True)
    assert [step for step, _ in logged(RUN)["action_loss"]] == [1, 2, 3, 4, 5, 6]
    assert shown(RUN) == logged(RUN)


def test_without_tensorboard_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    with pytest.raises(SystemExit, match="needs a package: pip install tensorboard"):
        artifacts.Log(tmp_path / "train.csv", tensorboard=True)
    assert artifacts.Log(tmp_path / "train.csv").events is None


def test_it_is_no_setting_that_tells_runs_apart():
    assert configuration(RUN, tensorboard=True) == configuration(RUN)
