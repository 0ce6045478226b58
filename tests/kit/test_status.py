"""What a grid is doing, read from files that the test wrote; nothing runs."""

import os
import time

import pytest

import tasks
from kit import gathering, hours, lock, seals, settings, status

MAKE = {"PROFILE": "mini", "METHODS": "dt bc", "SEEDS": "0 1", "LM": "", "DATA": "", "TEXT": "", "ARGS": "",
        "REPLACE": "", "FRESH": "", "SUBSETS": ""}
CELLS = ["hopper-medium-0.01", "walker2d-medium-0.01"]
DT = "mini/hopper-medium-0.01/dt/seed"
BC = "mini/hopper-medium-0.01/bc/seed"


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """grid(): what status.grid finds in an empty folder; grid.write(run, files) puts files there."""
    monkeypatch.chdir(tmp_path)
    alike = {"mini": tasks.TASKS["hopper-medium"]["mini"]}  # whatever each was calibrated to
    monkeypatch.setitem(tasks.TASKS, "walker2d-medium", tasks.TASKS["walker2d-medium"] | alike)

    def look(**more):
        return {run.name: run for run in status.grid(CELLS, MAKE | more)}

    def write(run, **files):
        folder = tmp_path / "runs" / run
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = folder / name.replace("__", "-").replace("_dot_", ".")
            path.write_text(content if isinstance(content, str) else seals.json_text(content))
        return folder

    def finish(run, wall=100.0, **more):
        config = settings.configuration(run, **more)
        evaluation = {name: config[name] for name in settings.EVALUATION if name in config}
        steps = config["steps"]
        return write(run, config_dot_json=config, final_dot_safetensors="", eval_dot_csv="",
                     eval_dot_json=evaluation, cost_dot_json={
                         "training": {"wall": wall + 10, "seconds": wall, "steps": steps, "calls": 1},
                         "evaluation": {"wall": 60.0, "seconds": 50.0, "steps": 9999, "calls": 1},
                         "last": {"exit": 0}})

    def run(name, **more):
        owner = {"host": "box", "pid": os.getpid(), "stage": "training", "since": "2025-01-01 10:20:30",
                 "place": seals.here(), "processes": [[os.getpid(), lock.born(os.getpid())]], "token": "x"}
        return write(name, running_dot_json=owner | more)

    look.write, look.finish, look.run = write, finish, run
    return look


def states(found):
    return [run.state for run in found.values() if run.name.startswith("mini/hopper")]


def test_the_state_of_a_run(grid):
    assert states(grid()) == ["waiting"] * 4
    grid.finish(DT + "0")
    grid.run(DT + "1", gpu="3")
    grid.write(BC + "0", log_dot_txt="--- begins\nfirst\nbad line\n--- exit code 1 after 2 s\n",
               cost_dot_json={"last": {"exit": 1, "stage": "training", "host": "box", "ended": "today"}})
    grid.run(BC + "1", processes=[[os.getpid(), "1"]])  # whose process is gone
    found = grid()
    assert states(found) == ["done", "running", "failed", "failed"]
    assert found[BC + "0"].why == "training, exit code 1, today on box"
    assert "left no exit code" in found[BC + "1"].why
    assert states(grid(ARGS="--lr 0.5"))[0] == "differs" and "lr is" in grid(ARGS="--lr 0.5")[DT + "0"].why
    assert states(grid(ARGS="--lr 0.5", REPLACE="1"))[0] == "waiting"
    assert states(grid(REPLACE="1"))[0] == "done" and states(grid(FRESH="1"))[0] == "waiting"
    assert states(grid(ARGS="--episodes 3"))[0] == "waiting" and grid(ARGS="--episodes 3")[DT + "0"].trained
    grid.write(DT + "0", config_dot_json="{")
    assert states(grid())[0] == "differs" and "not readable" in grid()[DT + "0"].why


def test_the_plan_knows_what_make_refuses_for_other_seeds(grid):
    grid.finish(DT + "7", steps=4)
    differ = [run for run in grid().values() if run.state == "differs"]
    assert [run.name for run in differ] == [DT + "0", DT + "1"]
    assert "seed7 steps is 4" in differ[0].why and "a table does not mix runs" in differ[0].why
    assert [run.state for run in grid(SEEDS="0 7").values()][:2] == ["waiting", "differs"]


@pytest.mark.parametrize("code, state", [(129, "stopped"), (130, "stopped"), (143, "stopped"),
                                         (137, "failed"), (2, "failed")])
def test_what_somebody_stopped_has_not_failed(grid, code, state):
    grid.write(DT + "0", cost_dot_json={"last": {"exit": code, "stage": "training"}})
    assert states(grid())[0] == state


def test_the_hours_are_those_of_the_same_kind_and_else_unknown(grid):
    config = settings.configuration(DT + "0")
    uneven = settings.configuration(DT + "0", steps=1000, eval_every=400)  # whose last step is played, too
    assert hours.episodes_of(uneven) == len(gathering.episodes_of(uneven))
    assert status.in_all(grid().values(), hours.measured()) == (
        "unknown; none of the 8 runs is of a kind that has been measured here, which its first training "
        "steps do")
    grid.finish(DT + "0", wall=100.0)
    times = hours.measured()
    # 10 s a start, 100 s of training, 10 s until the first episode, 50 s of episodes
    assert hours.seconds_left(config, times) == pytest.approx(170)
    assert hours.seconds_left(config, times, trained=config["steps"]) == pytest.approx(60)
    half = config["steps"] // 2
    assert hours.seconds_left(config, times, trained=half) == pytest.approx(120)
    twice = settings.configuration(DT + "1", steps=2 * config["steps"], episodes=2 * config["episodes"])
    assert hours.seconds_left(twice, times) == pytest.approx(10 + 200 + 10 + 50 * 4)
    now = {"unit": "step", "done": half, "left": 50.0}
    assert hours.seconds_left(config, times, now=now) == pytest.approx(110)
    now = {"unit": "environment step", "done": 5, "left": 33.0}
    assert hours.seconds_left(config, times, config["steps"], now) == 33.0
    # another task of the suite; not another suite, method, batch size or profile
    assert hours.seconds_left(settings.configuration("mini/walker2d-medium-0.01/dt/seed0"), times) == (
        pytest.approx(170))
    for other, more in (("mini/reacher2d-medium-0.1/dt/seed0", {}), (BC + "0", {}),
                        (DT + "1", {"batch_size": 7}),
                        ("paper/hopper-medium-0.01/dt/seed0", {})):
        assert hours.seconds_left(settings.configuration(other, **more), times) is None
    # what --episodes 100 played before has taken its time, too: three times the steps of eval.csv
    grid.write(DT + "0", eval_dot_csv="length\n" + "3333\n" * hours.episodes_of(config), cost_dot_json={
        "training": {"wall": 110.0, "seconds": 100.0, "steps": config["steps"], "calls": 1},
        "evaluation": {"wall": 180.0, "seconds": 150.0, "calls": 3,
                       "steps": 3 * 3333 * hours.episodes_of(config)}})
    assert hours.seconds_left(config, hours.measured(), config["steps"]) == pytest.approx(60)
    folder = grid.finish(DT + "1", wall=300.0)  # the median
    assert hours.seconds_left(config, hours.measured()) == pytest.approx(270)
    (folder / "eval.csv").unlink()
    (folder.parent / "seed0/eval.csv").unlink()  # trained, and not yet played
    assert hours.seconds_left(config, hours.measured()) == pytest.approx(210)
    assert hours.seconds_left(config, hours.measured(), trained=config["steps"]) is None
    waiting = grid()["mini/walker2d-medium-0.01/dt/seed0"]
    assert status.in_all([waiting], hours.measured()).startswith("at least")


def test_the_plan_counts_each_run_once_and_says_what_is_unknown(grid):
    grid.finish(DT + "0")
    found = list(grid().values())
    lines = status.say_plan(found, MAKE)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["dt"] == ["4", "1", "3", "2.8", "min", "8.5", "min"] and rows["bc"] == ["4", "0", "4", "4"]
    assert rows["hopper-medium"] == ["4", "1", "3", "2.8", "min", "2.8", "min", "2"]
    assert "8 runs, 1 done, 7 waiting" in lines[0]
    assert "8.5 min, one run at a time, and 4 runs of kinds" in "\n".join(lines)
    for say in (status.say_plan, lambda found, make: status.say_status(found, make, 40, 400)):
        differs = "\n".join(say(list(grid(ARGS="--lr 0.5").values()), MAKE))
        assert "1 differ" in differs and "REPLACE=1" in differs and DT + "0" in differs


def test_one_screen_has_where_since_when_how_far_and_the_end_of_the_log(grid):
    grid.run(DT + "0", gpu="3")
    grid.write(DT + "0", progress_dot_json={"unit": "step", "done": 1200, "total": 5000, "left": 700.0})
    grid.write(BC + "0", log_dot_txt="--- begins\nfirst\nbad line\n--- exit code 1 after 2 s\n",
               cost_dot_json={"last": {"exit": 1, "stage": "training", "host": "box", "ended": "today"}})
    grid.run("mini/kitchen-complete-0.3/dt/seed7")  # which nobody asked for with these words
    grid.write("mini/walker2d-medium-0.01", log_dot_txt="no server\n",
               cost_dot_json={"last": {"exit": 1, "stage": "data", "host": "box", "ended": "today"}})
    lines = status.say_status(list(grid().values()), MAKE, 40, 140)
    text = "\n".join(lines)
    line, = (line for line in lines if DT + "0" in line)
    for word in (f"box {os.getpid()} GPU 3", "since 01-01 10:20", "training 1,200 of 5,000, 11.7 min left"):
        assert word in line
    grid.write(DT + "0", progress_dot_json={"unit": "environment step", "done": 40, "total": None,
                                            "left": None})
    line, = (line for line in status.say_status(list(grid().values()), MAKE, 40, 140) if DT + "0" in line)
    assert line.endswith("training, environment step 40")
    assert "kitchen-complete-0.3/dt/seed7" in text and "    | bad line" in lines
    assert text.index("walker2d-medium-0.01  ") < text.index("no server") < text.index("    | bad line")
    assert "waiting: 6, 0 of them begun" in text

    failures = status.say_failures(list(grid().values()))
    assert failures[1] == "2 failed, 6 waiting:"
    assert "no server" in failures[2] and "bad line" in failures[4]
    assert failures[3].strip() == "tail runs/mini/walker2d-medium-0.01/log.txt"


def test_many_failures_still_fit_on_the_screen(grid):
    for seed in range(60):
        grid.write(DT + str(seed), log_dot_txt="a\nb\nc\nd\n", cost_dot_json={"last": {"exit": 1}})
        grid.run(BC + str(seed))
    found = list(grid(SEEDS=" ".join(map(str, range(60)))).values())
    for height in (24, 40, 60):
        lines = status.say_status(found, MAKE, height, 80)
        assert len(lines) <= height and max(map(len, lines)) <= 80
        assert sum("... and" in line for line in lines) == 2
    assert len(status.say_failures(found)) < 70


def test_where_a_launcher_failed_before_any_run_began_that_is_said(grid):
    lines = status.say_failures(list(grid().values()))
    assert lines[1] == "none failed, 8 waiting" and "make printed above" in lines[2]
    assert lines[-1].startswith("0 of 8 runs are done")


def test_a_training_that_runs_or_was_killed_is_a_measure_of_its_kind(grid):
    """The steps of one that runs, without its start; and of a killed one all of its calls."""
    config = settings.configuration(DT + "0")
    grid.write(DT + "0", config_dot_json=config, progress_dot_json={
        "unit": "step", "first": 100, "done": 300, "total": config["steps"], "seconds": 40.0, "left": 9})
    assert hours.seconds_left(config, hours.measured()) == pytest.approx(0.2 * config["steps"])
    grid.write(BC + "0", config_dot_json=settings.configuration(BC + "0"), cost_dot_json={
        "training": {"wall": 50.0, "seconds": 30.0, "steps": 60, "calls": 2}, "last": {"exit": 137}})
    config = settings.configuration(BC + "1")
    assert hours.seconds_left(config, hours.measured()) == pytest.approx(10 + 0.5 * config["steps"])
    grid.write(DT + "0", progress_dot_json={"unit": "step", "first": 0, "done": 0, "seconds": 0.0})
    assert hours.seconds_left(settings.configuration(DT + "0"), hours.measured()) is None


def test_a_thousand_finished_runs_are_looked_at_in_seconds(grid):
    seeds = " ".join(map(str, range(250)))
    for cell in CELLS:
        for method in ("dt", "bc"):
            for seed in seeds.split():
                grid.finish(f"mini/{cell}/{method}/seed{seed}")
    start = time.process_time()
    found = list(grid(SEEDS=seeds).values())
    status.say_plan(found, MAKE)
    assert {run.state for run in found} == {"done"} and len(found) == 1000
    assert time.process_time() - start < 4
