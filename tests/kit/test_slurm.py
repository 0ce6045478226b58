"""make sbatch, with stand-ins for Slurm's programs and for the stages; test_cluster.py has real ones."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_kit, one_line

from kit.watch import work_of

# Every stage: what it was called with, and the files by which kit.plan knows that it is done.
STAGE = '''
import json, os, pathlib, sys, time
from kit import seals, settings

stage, name = pathlib.Path(sys.argv[0]).stem, sys.argv[1]
with open("ran", "a") as file:
    print(json.dumps(sys.argv[1:] + [os.environ["OMP_NUM_THREADS"]]), file=file)
if f"{stage}:{name}" in os.environ.get("FAILING", "").split():
    sys.exit(7)
while f"{stage}:{name}" == os.environ.get("ENDLESS"):
    pathlib.Path("waiting").touch()
    time.sleep(0.05)
if stage == "prepare_data":
    sys.exit()
config = settings.configuration(**vars(settings.options("").parse_args()))
folder = pathlib.Path("runs") / name
if stage == "evaluate":
    (folder / "eval.csv").touch()
    played = {key: config[key] for key in settings.EVALUATION if key in config}
    (folder / "eval.json").write_text(seals.json_text(played))
else:
    (folder / "config.json").write_text(seals.json_text(config))
    (folder / "final.safetensors").touch()
'''
MINI = ("mini/reacher2d-medium-0.1", "mini/hopper-medium-1")
CELLS = "CELLS=reacher2d-medium-0.1 hopper-medium-1"


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A kit whose stages and whose Slurm are stand-ins; .sbatch(words) is make sbatch."""
    kit = make_kit(tmp_path)
    for stage in ("prepare_data", "train", "baselines", "evaluate"):
        (tmp_path / f"{stage}.py").write_text(STAGE)
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sbatch", "squeue", "scontrol"):
        shutil.copy(Path(__file__).with_name("slurm_stand_in.py"), programs / name)
        text = (programs / name).read_text()
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.setenv("MAX_ARRAY_SIZE", "1001")
    return Cluster(kit)


class Cluster:
    def __init__(self, kit):
        self.kit, self.folder = kit, kit.folder

    def sbatch(self, *words, **more):
        return self.kit("make", "sbatch", *words, **more)

    def jobs(self):
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else []

    def lines(self, job):
        """The elements of an array, as the file in its comment has them."""
        text = (self.folder / job["options"]["comment"]).read_text()
        return [json.loads(line) for line in text.splitlines()]

    def move(self, job, index, state):
        jobs = self.jobs()
        jobs[job - 1]["states"][index] = state
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def start(self, job, index, **environment):
        """The process of an element, as Slurm starts it."""
        self.move(job, index, "RUNNING")
        told = self.jobs()[job - 1]
        script = self.folder / "script"
        script.write_text(told["script"])
        return subprocess.Popen(["sh", script], cwd=self.folder, env=os.environ | environment | {
            # as Slurm has it for the last one: the array's own
            "SLURM_JOB_ID": str(job), "SLURM_ARRAY_JOB_ID": str(job), "SLURM_ARRAY_TASK_ID": str(index),
            "SLURM_CPUS_PER_TASK": told["options"]["cpus-per-task"]}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)

    def run(self, **environment):
        """Everything that is queued, in its order, what it waits for first."""
        for job in self.jobs():
            wanted = job["options"].get("dependency", "afterok").split(":")[1:]
            states = [self.jobs()[int(array) - 1]["states"][int(index)]
                      for array, _, index in (name.partition("_") for name in wanted)]
            for index, state in enumerate(job["states"]):
                if state != "PENDING":
                    continue
                if set(states) <= {"COMPLETED"}:
                    process = self.start(job["id"], index, **environment)
                    process.communicate()
                    state = "FAILED" if process.returncode else "COMPLETED"
                else:
                    state = "CANCELLED"
                self.move(job["id"], index, state)

    def ran(self):
        path = self.folder / "ran"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_what_is_missing_is_handed_in_once_and_what_failed_again(cluster):
    grid = (CELLS, "METHODS=dt bc", "SEEDS=0 1")
    said = cluster.sbatch(*grid).stdout
    data, *arrays = cluster.jobs()
    assert [line["name"] for line in cluster.lines(data)] == list(MINI)
    runs = [[line["name"] for line in cluster.lines(job)] for job in arrays]
    of_a_cell = ("dt/seed0", "dt/seed1", "bc/seed0", "bc/seed1")
    assert runs == [[f"{cell}/{run}" for run in of_a_cell] for cell in MINI]
    assert [job["options"]["dependency"] for job in arrays] == ["afterok:1_0", "afterok:1_1"]
    assert "1_[0-1]: " in said and said.splitlines()[-1] == "0 runs are done, 0 were queued already"
    assert not cluster.ran() and not (cluster.folder / "runs").exists()  # the login node computes nothing

    assert cluster.sbatch(*grid).stdout.splitlines()[-1] == "0 runs are done, 8 were queued already"
    assert len(cluster.jobs()) == 3
    listed = cluster.kit("-m", "kit.slurm", "--queue").stdout.splitlines()
    assert len(listed) == 10 and f"2_3 PENDING {MINI[0]}/bc/seed1" in listed

    # one fails, the data of a cell fail and take its runs along, one is cancelled before it starts
    cluster.move(2, 1, "CANCELLED")
    cluster.run(FAILING=f"train:{MINI[0]}/dt/seed0 prepare_data:{MINI[1]}")
    assert cluster.jobs()[0]["states"] == ["COMPLETED", "FAILED"]
    assert cluster.jobs()[1]["states"] == ["FAILED", "CANCELLED", "COMPLETED", "COMPLETED"]
    assert set(cluster.jobs()[2]["states"]) == {"CANCELLED"}
    # what squeue shows of those that have run
    assert cluster.jobs()[1]["names"] == [runs[0][0], f"{MINI[0]}", *runs[0][2:]]

    cluster.move(2, 2, "RUNNING")  # trained and evaluated, and not gone yet
    assert cluster.sbatch(*grid).stdout.splitlines()[-1] == "2 runs are done, 0 were queued already"
    again = [[line["name"] for line in cluster.lines(job)] for job in cluster.jobs()[3:]]
    assert again == [list(MINI), [f"{MINI[0]}/dt/seed0", f"{MINI[0]}/dt/seed1"], runs[1]]
    cluster.run()
    for word in ((), ("REPLACE=1",)):  # which replaces what differs, and nothing does
        said = cluster.sbatch(*grid, *word).stdout
        assert said.splitlines() == ["8 runs are done, 0 were queued already"]
    trained = [words[0] for words in cluster.ran() if words[0].count("/") == 3]
    assert len(trained) == 8 * 2 + 1  # each trained and played once; one tried twice


def test_one_that_is_trained_is_only_played(cluster):
    grid = ("CELLS=reacher2d-medium-0.1", "METHODS=dt")
    cluster.sbatch(*grid)
    cluster.run(FAILING=f"evaluate:{MINI[0]}/dt/seed0")
    cluster.move(2, 0, "RUNNING")  # as if it were at its evaluation
    assert cluster.sbatch(*grid).stdout.splitlines() == ["0 runs are done, 1 were queued already"]
    cluster.move(2, 0, "FAILED")
    cluster.sbatch(*grid)
    (line,) = cluster.lines(cluster.jobs()[-1])
    assert [command[0] for command in line["commands"]] == ["evaluate.py"]
    assert "dependency" not in cluster.jobs()[-1]["options"]


@pytest.mark.parametrize("anew", ["REPLACE=1", "FRESH=1", "REPLACE="])
def test_a_job_does_what_make_would_do(cluster, anew):
    grid = ("CELLS=kitchen-complete-0.3", "METHODS=lamo dt bc lamo-smollm2", "ARGS=--steps 4 --lr 1e-3",
            anew, "TENSORBOARD=1")
    planned = cluster.kit("make", "-n", "kitchen-complete-0.3", *grid).stdout.splitlines()
    wanted = [work_of(shlex.split(line)[3:])[0] for line in planned if "kit.watch" in line]
    cluster.sbatch(*grid)
    handed_in = [command for job in cluster.jobs() for line in cluster.lines(job)
                 for command in line["commands"]]
    assert len(wanted) == 11 and sorted(handed_in) == sorted(wanted)


def test_words_reach_the_stages_as_typed(cluster):
    words = {"LM": "./models/it's $HOME; \"gpt 2\" é", "TEXT": "a `b` 'c'.txt", "DATA": "d4rl (old)/*",
             "ARGS": "--adapter 'x y' --steps 3", "THREADS": "3",
             "PROFILE": "paper", "METHODS": "lamo-lm0.1", "SEEDS": "0"}
    for name in ("LM", "DATA", "TEXT"):
        done = cluster.kit("-m", "kit.slurm", "hopper-medium-1", check=False, **words)
        assert f"nothing at {name}=" in one_line(done)
        (cluster.folder / words[name]).mkdir(parents=True)
    cluster.kit("-m", "kit.slurm", "hopper-medium-1", **words)
    cluster.run()
    run, lm = "paper/hopper-medium-1/lamo-lm0.1/seed0", ["--lm", words["LM"]]
    more = ["--adapter", "x y", "--steps", "3"]
    assert cluster.ran() == [
        ["paper/hopper-medium-1", "--data", words["DATA"], "3"],
        ["paper/text", *lm, "--text", words["TEXT"], "3"],
        [run, *lm, *more, "3"], [run, *more, "3"]]
    assert cluster.jobs()[1]["options"]["dependency"] == "afterok:1_0:1_1"

    typed = "LM=it's \"my\" lm; é"
    cluster.sbatch("CELLS=hopper-medium-1", "METHODS=lamo", typed)
    assert cluster.lines(cluster.jobs()[-1])[0]["commands"][0][2:] == ["--lm", typed[3:]]


def test_options_of_sbatch_and_pieces_of_what_slurm_allows(cluster):
    said = cluster.sbatch("CELLS=reacher2d-medium-0.1", "METHODS=dt", "SEEDS=0 1 2 3 4 5 6", "ARRAY=5",
                          "SBATCH=--gres=gpu:1 --comment=mine --signal=B:TERM@600 --account='our lab'").stdout
    data, first, second = cluster.jobs()
    assert [len(job["states"]) for job in (data, first, second)] == [1, 5, 2]
    assert "2_[0-4]" in said and "3_[0-1]" in said
    options = first["options"]
    assert (options["gres"], options["signal"], options["account"]) == ("gpu:1", "B:TERM@600", "our lab")
    assert options["comment"] != "mine" and options["open-mode"] == "append" and "--requeue" in first["flags"]
    assert options["job-name"] == f"{MINI[0]}/dt" and data["options"]["job-name"] == MINI[0]
    assert options["kill-on-invalid-dep"] == "yes"

    cluster.sbatch("CELLS=hopper-medium-1", "METHODS=dt", "SEEDS=0 1 2 3 4 5 6", MAX_ARRAY_SIZE="4")
    assert [len(job["states"]) for job in cluster.jobs()[3:]] == [1, 4, 3]


def test_a_job_that_is_told_to_end_is_queued_again_unless_it_was_cancelled(cluster):
    cluster.sbatch("CELLS=reacher2d-medium-0.1", "METHODS=dt", "SEEDS=0 1", FRESH="1")
    cluster.move(2, 1, "COMPLETED")
    run = f"{MINI[0]}/dt/seed0"
    for state, then in (("RUNNING", "PENDING"), ("COMPLETING", "COMPLETING")):
        process = cluster.start(2, 0, ENDLESS=f"train:{run}")
        while not (cluster.folder / "waiting").exists():
            time.sleep(0.02)
        cluster.move(2, 0, state)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 128 + signal.SIGTERM
        assert cluster.jobs()[1]["states"] == [then, "COMPLETED"]
        (cluster.folder / "waiting").unlink()
    assert f"exit code {128 + signal.SIGTERM}" in (cluster.folder / f"runs/{run}/log.txt").read_text()

    # begun anew once, and not each time that it is queued again
    assert cluster.ran()[-1][1:] == ["--fresh", "1"]
    for _ in range(2):
        cluster.move(2, 0, "PENDING")
        cluster.run()
    trained = [words[1:-1] for words in cluster.ran() if words[0] == run]
    assert trained == [["--fresh"]] * 3 + [[]] * 3  # twice told to end; train, evaluate; train, evaluate


@pytest.mark.parametrize("words, said", [
    (("LAUNCH=srun",), "SBATCH="), (("GPUS=2",), "SBATCH="), (("ARRAY=0",), "no number"),
    (("METHODS=",), "METHODS=''"), (("SBATCH=--x 'y",), "SBATCH="), (("THREADS=many",), "THREADS=many")])
def test_wrong_words_are_one_line_and_nothing_is_handed_in(cluster, words, said):
    assert said in one_line(cluster.sbatch(CELLS, *words, check=False))
    assert not cluster.jobs()


def test_slurm_that_does_not_answer_is_one_line(cluster):
    cluster.sbatch("CELLS=reacher2d-medium-0.1", "METHODS=dt")
    assert "scancel 2_0 first" in one_line(cluster.sbatch(CELLS, "METHODS=dt", "ARGS=--steps 3", check=False))
    assert len(cluster.jobs()) == 2  # nor is anything else handed in
    (cluster.folder / "refuse").touch()
    line = one_line(cluster.sbatch("CELLS=hopper-medium-1", "METHODS=dt", check=False))
    assert "QOS policy" in line and "goes on" in line
    assert len(list((cluster.folder / "build/slurm").glob("*.jsonl"))) == 2
    squeue = cluster.folder / "programs/squeue"
    squeue.write_text("#!/bin/sh\necho cannot reach the controller >&2; exit 1\n")
    assert "cannot reach the controller" in one_line(cluster.sbatch(CELLS, check=False))
    words = {"PROFILE": "mini", "METHODS": "dt", "SEEDS": "0", "PATH": "/nonexistent"}
    assert "scontrol is not here" in one_line(cluster.kit("-m", "kit.slurm", check=False, **words))
    assert len(cluster.jobs()) == 2
