"""What stands before a stage: its log, exit code, cost, signals, terminal and GPU."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from conftest import KIT

from kit import seals, watch
from kit.seals import read_report

RUN = "mini/reacher2d-medium-0.1/dt/seed0"
STAGE = """
import json, os, sys, time
from kit import seals
print("out", os.environ.get("CUDA_VISIBLE_DEVICES"))
print("err", sys.stderr.isatty(), file=sys.stderr)
exec(sys.argv[2])
"""


@pytest.fixture
def watched(tmp_path):
    """watched("code"): the process of kit.watch before a stage that runs this code, in an empty folder."""
    for name in ("train.py", "prepare_data.py"):
        (tmp_path / name).write_text(STAGE)

    def start(code, script="train.py", name=RUN, **more):
        environment = os.environ | {"PYTHONPATH": str(KIT), "GPUS": "", "TMPDIR": str(tmp_path)}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-m", "kit.watch", script, name, code], cwd=tmp_path, **(
            pipes | more | {"env": environment | more.get("env", {})}))

    start.folder = tmp_path / "runs" / RUN
    return start


def log(watched):
    return (watched.folder / "log.txt").read_text()


def cost(watched):
    return json.loads((watched.folder / "cost.json").read_text())


def until(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not happen"
        time.sleep(0.01)


def test_all_that_is_printed_and_the_exit_code_are_in_the_log_and_passed_on(watched):
    process = watched("sys.stderr.write('no end'); sys.exit(7)")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7 and out == "out None\n" and err == "err False\nno end"
    lines = log(watched).splitlines()
    assert sorted(lines[1:-1]) == ["err False", "no end", "out None"]
    assert lines[0].startswith("--- ") and f"train.py {RUN} " in lines[0]
    assert lines[-1].startswith("--- exit code 7 after ")
    assert cost(watched)["last"] | {"ended": ""} == {
        "exit": 7, "ended": "", "host": os.uname().nodename, "stage": "training"}
    watched("").communicate(timeout=60)
    assert log(watched).startswith("\n".join(lines)) and "exit code 0" in log(watched)  # it is added to


def test_the_cost_adds_up_over_calls(watched):
    work = ("x = bytearray(60_000_000); t = time.process_time()\nwhile time.process_time() < t + 0.2: pass\n"
            "open(os.environ['LAMO_PROGRESS'], 'w').write(seals.json_text("
            "{'first': 10, 'done': 30, 'seconds': 4.0}))")
    for calls in (1, 2):
        watched(work).communicate(timeout=60)
        total, training = cost(watched), cost(watched)["training"]
        assert total["calls"] == training["calls"] == calls and training["steps"] == 20 * calls
        assert total["wall"] > 0.2 * calls and 0.2 * calls < total["cpu"] < 20
        assert total["peak_memory"] > 60_000_000 and training["steps_per_second"] == 5.0
    assert not {"running.json", "progress.json"} & {path.name for path in watched.folder.iterdir()}


def test_the_peak_memory_of_several_calls_is_their_largest(tmp_path):
    for peak in (5, 7, 3):
        watch.add_cost(tmp_path, "training", {
            "wall": 1.0, "cpu": 1.0, "calls": 1, "peak_memory": peak, "steps": 3, "seconds": 1.0, "exit": 0,
            "ended": "now", "host": "here"})
    found = seals.read_json(tmp_path / "cost.json")
    assert found["peak_memory"] == found["training"]["peak_memory"] == 7 and found["wall"] == 3.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on_and_the_stage_has_time_to_save(watched, number):
    process = watched(f"import signal\nsignal.signal({int(number)}, lambda *_: (time.sleep(0.3), "
                      "print('saved'), sys.exit(3)))\nprint('ready')\ntime.sleep(60)")
    until(lambda: (watched.folder / "log.txt").exists() and "\nready\n" in log(watched))
    process.send_signal(number)
    assert "saved" in process.communicate(timeout=60)[0] and process.returncode == 3


def test_a_killed_stage_is_in_the_log(watched):
    process = watched("os.kill(os.getpid(), 9)")
    said = process.communicate(timeout=60)[1]
    assert "killed (SIGKILL), by the system where memory is short: --batch_size" in said
    assert process.returncode == 137 and "exit code 137 (SIGKILL)" in log(watched)
    assert cost(watched)["last"]["exit"] == 137


def test_a_killed_watcher_takes_the_stage_with_it_and_the_next_one_says_so(watched):
    process = watched("print(os.getpid())\ntime.sleep(60)")
    stage = int(process.stdout.readline().split()[-1] and process.stdout.readline())
    process.kill()
    process.communicate(timeout=60)
    until(lambda: not os.path.exists(f"/proc/{stage}") or "zombie" in open(f"/proc/{stage}/status").read())
    out = watched("print('again')").communicate(timeout=60)[0]
    assert f"taken over from process {process.pid}" in out and "again" in out
    assert f"process {process.pid} on {os.uname().nodename} is gone and left no exit code" in log(watched)
    assert cost(watched)["calls"] == 2


def test_ctrl_c_ends_both_once(watched):
    process = watched("print('ready')\ntime.sleep(60)", start_new_session=True)
    until(lambda: (watched.folder / "log.txt").exists() and "\nready\n" in log(watched))
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and "exit code 130 (SIGINT)" in log(watched)


def test_a_second_one_waits_and_then_runs(watched):
    first = watched("print('ready')\ntime.sleep(1)")
    until(lambda: (watched.folder / "log.txt").exists() and "\nready\n" in log(watched))
    second = watched("print('second')")
    out = second.communicate(timeout=60)[0]
    first.communicate(timeout=60)
    assert out.splitlines()[0].startswith(f"{RUN}: waits for process {first.pid}") and "second" in out
    assert log(watched).index("--- exit code 0") < log(watched).index("\nsecond\n")


def test_bars_see_a_terminal_where_there_is_one_and_the_log_keeps_their_end(watched):
    ours, theirs = pty.openpty()
    bar = r"sys.stderr.write('\r 10 %\r 50 %\r100 %\n')"
    process = watched(bar, stdout=theirs, stderr=theirs, text=False)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 4096)
        except OSError:
            break
    assert process.wait(60) == 0 and b"err True" in seen and b" 50 %" in seen
    assert "\nerr True\n" in log(watched) and "\n100 %\n" in log(watched) and "\n 50 %" not in log(watched)


def test_of_a_cells_data_the_log_stays_only_when_they_failed(watched):
    folder = watched.folder.parent.parent
    call = {"script": "prepare_data.py", "name": "mini/reacher2d-medium-0.1"}
    watched("sys.exit(1)", **call).communicate(timeout=60)
    assert "exit code 1" in (folder / "log.txt").read_text()
    watched("", **call).communicate(timeout=60)
    assert not list(folder.iterdir())


# --- GPUs --------------------------------------------------------------------------------------

# instead of a GPU: a folder a device, which only one may make
RECORD = ("gpu = os.environ['CUDA_VISIBLE_DEVICES']\nos.mkdir('gpu' + gpu)\ntime.sleep(0.2)\n"
          "os.rmdir('gpu' + gpu)\nprint('used', gpu)")


@pytest.mark.parametrize("visible, names", [(None, {"0", "1"}), ("5,7,9", {"5", "7"})])
def test_each_run_gets_a_gpu_of_its_own(watched, visible, names):
    environment = {"GPUS": "2"} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    many = [watched(RECORD, name=RUN.replace("seed0", f"seed{n}"), env=environment) for n in range(5)]
    said = [process.communicate(timeout=60) for process in many]
    assert [process.returncode for process in many] == [0] * 5, said
    assert {out.split("used ")[1].strip() for out, _ in said} == names


def test_the_wait_for_a_gpu_is_no_time_of_the_run(watched):
    one, name = {"env": {"GPUS": "1"}}, RUN.replace("seed0", "seed1")
    other, go = watched.folder.with_name("seed1"), watched.folder.parents[4] / "go"
    first = watched("while not os.path.exists('go'): time.sleep(0.02)", name=name, **one)
    until(lambda: (other / "running.json").exists() and "gpu" in (other / "running.json").read_text())
    second = watched("print('quick')", **one)
    until(lambda: (watched.folder / "log.txt").exists())
    time.sleep(4)
    go.touch()
    assert "quick" in second.communicate(timeout=60)[0]
    first.communicate(timeout=60)
    assert cost(watched)["wall"] < 4 < json.loads((other / "cost.json").read_text())["wall"]


def test_the_heart_beats_while_a_run_waits_for_a_gpu(watched):
    """Or another host would take the run over; and who has been taken over starts nothing."""
    other, go = RUN.replace("seed0", "seed1"), watched.folder.parents[4] / "go"
    first = watched("while not os.path.exists('go'): time.sleep(0.02)", name=other, env={"GPUS": "1"})
    until(lambda: "gpu" in json.dumps(read_report(watched.folder.with_name("seed1") / "running.json")))
    beating = ("import sys\nfrom kit import lock, watch\nlock.BEAT = 0.1\n"
               "sys.exit(watch.main(['train.py', *sys.argv[1:]], '1'))")
    environment = os.environ | {"PYTHONPATH": str(KIT), "TMPDIR": str(go.parent)}
    second = subprocess.Popen([sys.executable, "-c", beating, RUN, "print('works')"], cwd=go.parent,
                              env=environment, stdout=subprocess.PIPE, text=True)
    path = watched.folder / "running.json"
    until(path.exists)
    os.utime(path, (0, 0))
    until(lambda: path.stat().st_mtime > 0)
    theirs = {"token": "another", "place": "elsewhere", "processes": []}
    path.write_text(seals.json_text(read_report(path) | theirs))
    assert second.wait(timeout=60) == 143 and "works" not in second.stdout.read()
    assert "another process has taken" in log(watched) and read_report(path)["token"] == "another"
    go.touch()
    first.communicate(timeout=60)


def test_a_killed_run_frees_its_gpu_and_data_need_none(watched):
    one = {"env": {"GPUS": "1"}}
    process = watched("print('ready')\ntime.sleep(60)", **one)
    until(lambda: (watched.folder / "log.txt").exists() and "\nready\n" in log(watched))
    assert json.loads((watched.folder / "running.json").read_text())["gpu"] == "0"
    call = {"script": "prepare_data.py", "name": "mini/reacher2d-medium-0.1"}
    assert watched("", **call, **one).communicate(timeout=60)[0] == "out None\n"
    process.kill()
    process.communicate(timeout=60)
    assert watched("", name=RUN.replace("seed0", "seed1"), **one).communicate(timeout=60)[0] == "out 0\n"


def test_wrong_calls_are_answered_in_one_line():
    for command, gpus, said in ((["train.py"], "", "give a stage"), (["train.py", RUN], "many", "GPUS=many"),
                                (["train.py", RUN], "0", "GPUS=0")):
        with pytest.raises(SystemExit, match=said):
            watch.main(command, gpus)
