"""make sbatch on a real Slurm of one node, on this machine:

    SLURM=1 python -m pytest -n0 -s tests/kit/test_cluster.py

Needs Debian's slurmctld, slurmd, slurm-client and munge, and ten minutes, two of which Slurm lets pass
before it starts a job that was queued again. What happens is printed.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from conftest import make_kit

from kit.seals import read_report

pytestmark = pytest.mark.skipif(
    os.environ.get("SLURM") != "1" or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))),
    reason="SLURM=1 runs it, where slurmctld, slurmd, sbatch and munged are installed")

CONFIGURATION = """\
ClusterName=kit
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser={user}
SlurmdUser={user}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MaxArraySize=8
KillWait=10
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
GRID = ("CELLS=reacher2d-medium-0.1 hopper-medium-0.01", "METHODS=dt bc td3bc", "SEEDS=0 1 2 3", "THREADS=1",
        "ARGS=--steps 300 --eval_every 200 --log_every 7 --batch_size 8 --episodes 1")
OF_A_RUN = ("config.json", "train.csv", "eval.json", "eval.csv")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    folder, host = tmp_path / "slurm", socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    with socket.socket() as one, socket.socket() as two:
        for free in (one, two):
            free.bind(("127.0.0.1", 0))
        ports = [free.getsockname()[1] for free in (one, two)]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=ports,
                                                            user=getpass.getuser()))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in (
        "socket", "key-file", "pid-file", "log-file", "seed-file")]
    subprocess.run(["munged", "--force", *munge], check=True, capture_output=True)
    subprocess.run(["slurmctld", "-i"], check=True)
    subprocess.run(["slurmd"], check=True)
    try:
        wait_until(lambda: "idle" in slurm_says("sinfo", "-h", "-o", "%T", check=False), 30)
        yield
    finally:
        slurm_says("scancel", "-u", getpass.getuser(), check=False)
        wait_until(lambda: not slurm_says("squeue", "-h", check=False), 60)
        for name in ("slurmd", "slurmctld", "munge"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)


def slurm_says(*command, check=True):
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


def wait_until(what, seconds):
    end = time.time() + seconds
    while not (found := what()):
        assert time.time() < end, "it took too long"
        time.sleep(0.2)
    return found


def say(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}", flush=True)


def running(but=()):
    """(job, run) of a run that has a row in train.csv, and has not been trained; None if there is none."""
    for line in slurm_says("squeue", "-h", "-r", "-t", "R", "-o", "%i %j").splitlines():
        job, name = line.split()
        if name not in but and Path(f"runs/{name}/train.csv").exists() and not Path(
                f"runs/{name}/final.safetensors").exists():
            return job, name
    return None


def test_a_grid_with_one_cancelled_one_killed_and_two_queued_again_is_that_of_a_local_make(
        slurm, tmp_path, monkeypatch):
    for name in ("cluster", "local"):
        (tmp_path / name).mkdir()
    cluster, local = (make_kit(tmp_path / name, cold=True) for name in ("cluster", "local"))
    monkeypatch.chdir(cluster.folder)
    print(cluster("make", "sbatch", *GRID).stdout)
    say("squeue", "-o", "%i %j %T %r %E")

    hit = {}
    for deed in ("cancelled", "killed", "queued again", "told to end"):
        job, run = hit[deed] = wait_until(lambda: running(but=[run for _, run in hit.values()]), 600)
        if deed == "killed":
            owner = read_report(Path(f"runs/{run}/running.json"))
            print(f"$ kill -9 {owner['processes'][-1][0]}    # the stage of {run}")
            os.kill(owner["processes"][-1][0], signal.SIGKILL)
            continue
        say(*{"cancelled": ["scancel", job], "queued again": ["scontrol", "requeue", job],
              "told to end": ["scancel", "--signal=TERM", "--batch", job]}[deed])
    time.sleep(12)
    say("squeue", "-r", "-o", "%i %j %T %r %S")
    print(cluster("make", "sbatch", *GRID).stdout)
    wait_until(lambda: not slurm_says("squeue", "-h"), 3600)
    for deed, (_, run) in hit.items():
        print(f"{deed}: {run}\n" + "\n".join(
            line for line in Path(f"runs/{run}/log.txt").read_text().splitlines() if line.startswith("---")))
    print(said := cluster("make", "sbatch", *GRID).stdout)
    assert "24 runs are done, 0 were queued already" in said

    local("make", "-j2", "all", *GRID, timeout=3600)
    played = local.folder.glob("runs/*/*/*/*/eval.csv")
    folders = sorted(path.parent.relative_to(local.folder) for path in played)
    assert len(folders) == 24
    for folder in folders:
        files = {path.name for path in (local.folder / folder).iterdir()} - {"log.txt", "cost.json"}
        assert files == {path.name for path in folder.iterdir()} - {"log.txt", "cost.json"}
        assert {*OF_A_RUN, "final.safetensors", "step-0000200.safetensors"} <= files
        for name in files:
            assert (folder / name).read_bytes() == (local.folder / folder / name).read_bytes(), folder / name
    print(f"{len(folders)} runs are the same bytes")
