"""What the stages compute, as a user types them: twenty losses, the weights after them, an episode or two.

numbers/golden.json holds what they computed when it was stored, see numbers/README.md. If a change means
to alter some of it, store those runs anew:

    python tests/test_numbers.py --store                            # every run
    python tests/test_numbers.py --store breakout-medium-0.5/bc     # those with this in their name
"""

import csv
import hashlib
import json
import math
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from conftest import KIT, d4rl_arrays, kitchen_arrays, replay_arrays, write_d4rl, write_replay
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "numbers" / "golden.json"
SETTINGS = "--device cpu --dtype float32 --steps 20 --log_every 1 --eval_every 10 --warmup 5"
# cell: (methods, settings, settings of evaluation)
CELLS = {
    "hopper-medium-0.1": ("lamo dt wiki lamo-full bc td3bc iql cql", "--lr 1e-3 --batch_size 8 --context 5",
                          "--episodes 2"),
    "kitchen-complete-0.5": ("lamo lamo-released iql", "--lr 1e-3 --batch_size 8 --context 5 --lm_block 32",
                             "--episodes 1 --target_returns 4"),
    # a larger learning rate turns the last digit of one machine into the third of another
    "breakout-medium-0.5": ("lamo dt bc cql", "--lr 1e-4 --batch_size 4 --context 4 --target_every 5",
                            "--episodes 1 --target_returns 90"),
}


def write_data(cell, folder):
    """The cell's dataset as the user has it: random numbers in D4RL's or DQN replay's layout."""
    if cell.startswith("breakout"):
        write_replay(folder / "replay", replay_arrays(episodes=6)[0])
        return folder / "replay"
    arrays = kitchen_arrays() if cell.startswith("kitchen") else d4rl_arrays(episodes=60)[0]
    return write_d4rl(folder / "given.hdf5", arrays)


def names(cell):
    """A cell's runs."""
    return [f"paper/{cell}/{method}/seed0" for method in CELLS[cell][0].split()]


def stages(cell, data, text, lm):
    """The commands that make a cell's runs."""
    _, settings, how = CELLS[cell]
    yield f"prepare_data.py paper/{cell} --data {data}"
    if cell.startswith("kitchen"):
        yield f"prepare_data.py paper/text --lm {lm} --text {text}"
    for run in names(cell):
        script = "baselines.py" if run.split("/")[2] in ("bc", "td3bc", "iql", "cql") else "train.py"
        yield f"{script} {run} {SETTINGS} {settings} --lm {lm}"
        yield f"evaluate.py {run} --device cpu {how}"


def read_columns(path):
    """{column: its values} of a CSV file, numbers as such; names of files without their digests."""
    def value(word):
        try:
            return float(word)
        except ValueError:
            return word.partition("@")[0]

    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [value(row[name]) for row in rows] for name in rows[0] if name != "seal"}


def payload_digest(path):
    """SHA-256 over names, types, shapes and bytes of a file's tensors."""
    digest, tensors = hashlib.sha256(), load_file(path)
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def read_run(folder):
    return {"train": read_columns(folder / "train.csv"), "eval": read_columns(folder / "eval.csv"),
            "weights": payload_digest(folder / "final.safetensors")}


def machine():
    """What equal seeds give equal bytes on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    about = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    cpu = " ".join(about.get(name, "") for name in ("vendor_id", "cpu family", "model", "model name"))
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "cpu": cpu}


def close(a, b, last_digit):
    """Equal but for the last digit that is printed: the sixth of a loss, the fourth decimal of a return."""
    return a == b or isinstance(a, float) and isinstance(b, float) and math.isclose(
        a, b, rel_tol=2e-5, abs_tol=last_digit)


def differences(now, stored, like_machine):
    """One line for each part of a run that is not what it was."""
    for part, last_digit in (("train", 0.0), ("eval", 1.1e-4)):
        for name, wanted in stored[part].items():
            found = now[part].get(name, [])
            if len(found) != len(wanted):
                yield f"{part}.csv has {len(found)} values of {name} instead of {len(wanted)}"
            elif wrong := [i for i in range(len(wanted)) if not close(found[i], wanted[i], last_digit)]:
                i = wrong[0]
                yield f"{part}.csv: {name} is {found[i]}, not {wanted[i]}, in row {i + 1}"
        for name in now[part].keys() - stored[part].keys():
            yield f"{part}.csv: {name} is not in golden.json"
    if like_machine and now["weights"] != stored["weights"]:
        yield "final.safetensors holds other weights"


def store(runs, model, wanted):
    """Put the runs with `wanted` in their names into golden.json, one line each."""
    here = {"machine": machine(), "model": model}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else here
    assert here == {name: golden[name] for name in here}, "golden.json is of another machine: store every run"
    golden |= {run: values for run, values in runs.items() if wanted in run}
    GOLDEN.write_text("{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(golden[name])}"
                                         for name in sorted(golden)) + "\n}\n")


@pytest.mark.parametrize("cell", CELLS)
def test_numbers(cell, kit, tiny_gpt2):
    shutil.copy2(KIT / "sources" / "__init__.py", kit.folder / "sources")  # all held-out episodes
    text = kit.folder / "given.txt"
    text.write_text("The cat sat on the mat , and the dog did not .\n" * 300)
    for stage in stages(cell, write_data(cell, kit.folder), text, tiny_gpt2):
        kit(*shlex.split(stage))
    runs = {run: read_run(kit.folder / "runs" / run) for run in names(cell)}
    model = payload_digest(tiny_gpt2 / "model.safetensors")
    if "STORE_NUMBERS" in os.environ:
        return store(runs, model, os.environ["STORE_NUMBERS"])

    golden = json.loads(GOLDEN.read_text())
    like_machine = golden["machine"] == machine()
    if like_machine:
        assert model == golden["model"], "conftest's tiny_gpt2 is another model"
    else:
        warnings.warn(f"weights are not compared: golden.json is of {golden['machine']}", stacklevel=1)
    assert set(runs) == {name for name in golden if cell in name}
    changed = [f"{run}: {line}" for run, now in runs.items()
               for line in differences(now, golden[run], like_machine)]
    assert not changed, "\n".join(changed)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--store"]:
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        GOLDEN.unlink(missing_ok=True)
    os.environ["STORE_NUMBERS"] = sys.argv[2] if len(sys.argv) > 2 else "/"  # "/" is in every name
    sys.exit(pytest.main(["-n", "0", __file__]))
