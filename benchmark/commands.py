"""The rows that start a program of the kit. Each function prepares, and returns what rows.py says."""

import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

KIT = Path(__file__).resolve().parent.parent


def start_up(dtype, program):
    command = [sys.executable, *program.split(), "--help"]

    def repeat():
        subprocess.run(command, check=True, capture_output=True, cwd=KIT)

    return repeat, 1


def preparing(dtype, cell, rows=0):
    """prepare_data.py in an empty folder; from a file of `rows` random steps in D4RL's layout, if given."""
    folder = Path(tempfile.mkdtemp(prefix="lamo-benchmark-"))
    command = [sys.executable, KIT / "prepare_data.py", cell]
    if rows:
        write_hdf5(folder / "hopper_medium-v2.hdf5", rows)
        command += ["--data", folder]

    def repeat():
        subprocess.run(command, check=True, capture_output=True, cwd=folder)
        for made in folder.glob("data/*/*"):
            made.unlink()

    return repeat, 1


def write_hdf5(path, rows):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for name, width in {"observations": 11, "next_observations": 11, "actions": 3}.items():
            file.create_dataset(name, data=rng.uniform(-1, 1, (rows, width)).astype("f4"), compression="gzip")
        file["rewards"] = rng.uniform(0, 3, rows).astype("f4")
        file["terminals"], file["timeouts"] = np.zeros(rows, bool), np.arange(1, rows + 1) % 500 == 0
