"""Stands in for sbatch, squeue and scontrol, by the name it is called by; keeps what it was told as JSON.

$STAND_IN/jobs.json     [{"id": array, "options": {...}, "flags": [...], "script": text,
                        "states": [state, ...], "names": [name, ...]}, ...]; test_slurm.py moves the states
$STAND_IN/refuse        where it is there, sbatch fails
"""

import json
import os
import sys
from pathlib import Path

FOLDER = Path(os.environ["STAND_IN"])
JOBS = FOLDER / "jobs.json"


def sbatch(words, jobs):
    if (FOLDER / "refuse").exists():
        sys.exit("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    options = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    flags = [word for word in words if "=" not in word]
    first, last = map(int, options["array"].split("-"))
    assert first == 0 and last < int(os.environ["MAX_ARRAY_SIZE"])
    jobs.append({"id": len(jobs) + 1, "options": options, "flags": flags, "script": sys.stdin.read(),
                 "states": ["PENDING"] * (last + 1), "names": [options["job-name"]] * (last + 1)})
    print(f"{len(jobs)};cluster")


def elements_of(jobs, name):
    """(job, its elements) of ARRAY_INDEX; of ARRAY alone all elements, as Slurm has it."""
    array, _, index = name.partition("_")
    job = jobs[int(array) - 1]
    return job, [int(index)] if index else range(len(job["states"]))


def squeue(words, jobs):
    if "-j" in words:
        job, elements = elements_of(jobs, words[words.index("-j") + 1])
        return print(*(job["states"][index] for index in elements), sep="\n")
    assert words[:3] == ["-h", "-r", "-u"] and words[-1] == "%F|%K|%T|%k"
    print("77|N/A|RUNNING|somebody's | own")
    for job in jobs:
        for index, state in enumerate(job["states"]):
            if state in ("PENDING", "RUNNING"):
                print(f"{job['id']}|{index}|{state}|{job['options']['comment']}")


def scontrol(words, jobs):
    if words == ["show", "config"]:
        print(f"MaxArraySize            = {os.environ['MAX_ARRAY_SIZE']}")
    elif words[0] == "update":
        job, elements = elements_of(jobs, words[1].removeprefix("JobId="))
        for index in elements:
            job["names"][index] = words[2].removeprefix("JobName=")
    elif words[0] == "requeue":
        job, elements = elements_of(jobs, words[1])
        for index in elements:
            job["states"][index] = "PENDING"


if __name__ == "__main__":
    known = json.loads(JOBS.read_text()) if JOBS.exists() else []
    {"sbatch": sbatch, "squeue": squeue, "scontrol": scontrol}[Path(sys.argv[0]).name](sys.argv[1:], known)
    JOBS.write_text(json.dumps(known))
