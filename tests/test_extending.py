"""docs/extending.md: what its recipes add to a copy of the kit works.

A block of the page says where it goes in the line above it; `add` does what that line says.
"""

import json
import re
import subprocess
import sys

import numpy as np
from conftest import KIT, d4rl_arrays, one_line, write_d4rl

PAGE = KIT / "docs" / "extending.md"
BLOCK = re.compile(r"^In (?:the new file )?`(?P<file>[^`]+)`(?:, (?P<where>above|under|in place of) "
                   r"`(?P<line>[^`]+)`)?:\n\n```\w+\n(?P<code>.*?)```$", re.M | re.S)
SHORT = "ARGS=--steps 4 --eval_every 2 --log_every 2 --batch_size 8 --context 5 --episodes 1"


def add(kit, heading):
    """Put the blocks under a heading of the page into the kit's copy."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)[1]
    blocks = [match.groupdict() for match in BLOCK.finditer(section)]
    assert len(blocks) == section.count("```") // 2 > 0
    for block in blocks:
        path, code = kit.folder / block["file"], block["code"].splitlines(keepends=True)
        if block["where"] is None:
            assert not path.exists()
            path.write_text(block["code"])
            continue
        lines = path.read_text().splitlines(keepends=True)
        (place,) = [i for i, line in enumerate(lines) if line.strip().startswith(block["line"])]
        first, last = {"above": (place, place), "under": (place + 1, place + 1),
                       "in place of": (place, place + 1)}[block["where"]]
        path.write_text("".join([*lines[:first], *code, *lines[last:]]))


def test_a_variant_of_a_method(kit):
    add(kit, "A variant of a method")
    out = kit("make", "reacher2d-medium-0.1", SHORT, "METHODS=lamo-rank8").stdout
    assert "\nlamo-rank8 " in out
    config = json.loads(kit("-m", "kit.settings", "paper/pong-medium-1/lamo-rank8/seed0").stdout)
    assert (config["lora_rank"], config["lora_alpha"]) == (8, 8)


def test_a_task_of_d4rl(kit, tmp_path_factory):
    add(kit, "A task of D4RL")
    data = tmp_path_factory.mktemp("d4rl")
    write_d4rl(data / "hopper_medium_replay-v2.hdf5", d4rl_arrays(episodes=300)[0])
    cell = "hopper-medium-replay-0.01"
    out = kit("make", "PROFILE=paper", cell, SHORT, f"DATA={data}", "METHODS=dt").stdout
    assert f"paper/{cell}: data hopper_medium_replay-v2.hdf5@" in out
    (row,) = [line for line in out.splitlines() if line.startswith("dt ")]
    assert row.split("|")[-1].strip() == "29.3"
    assert "hopper-medium-replay-0.005" in kit("make", "list").stdout


def test_a_baseline(kit):
    add(kit, "A baseline")
    out = kit("make", "reacher2d-medium-0.1", SHORT, "METHODS=crr").stdout
    assert "\ncrr " in out
    log = (kit.folder / "runs/mini/reacher2d-medium-0.1/crr/seed0/train.csv").read_text().splitlines()
    assert log[0] == "step,critic_loss,actor_loss,seal" and len(log) == 3
    line = one_line(kit("make", "pong-medium-1", "METHODS=crr", check=False))
    assert "crr needs continuous actions" in line


def test_a_source_of_data(kit, tmp_path_factory):
    add(kit, "A source of data")
    rng, given = np.random.default_rng(0), tmp_path_factory.mktemp("given") / "hopper.jsonl"
    lines = [json.dumps({"observations": rng.normal(size=(T + 1, 11)).tolist(),
                         "actions": rng.uniform(-1, 1, (T, 3)).tolist(),
                         "rewards": rng.uniform(0, 3, T).tolist(), "terminal": bool(T % 2)})
             for T in range(10, 40)]
    given.write_text("\n".join(lines) + "\n")
    out = kit("make", "PROFILE=paper", "hopper-medium-0.1", SHORT, f"DATA={given}", "METHODS=td3bc").stdout
    assert "data hopper.jsonl@" in out and ", 3 episodes" in out
    given.write_text("\n".join([*lines, '{"observations": [[0.5]]}']))
    line = one_line(kit("prepare_data.py", "paper/hopper-medium-1", "--data", str(given), check=False))
    assert f"{given}, line 31" in line
    # D4RL's own files are read as before
    file = write_d4rl(given.with_name("hopper_medium-v2.hdf5"), d4rl_arrays()[0])
    assert "30 of 30 episodes" in kit("prepare_data.py", "paper/hopper-medium-1", "--data", str(file)).stdout


def test_all_recipes_together_are_as_clean_as_the_kit(kit):
    for heading in ("A variant of a method", "A task of D4RL", "A baseline", "A source of data"):
        add(kit, heading)
    files = {match["file"] for match in BLOCK.finditer(PAGE.read_text()) if match["file"].endswith(".py")}
    ruff = [sys.executable, "-m", "ruff", "check", "-q", "--config", KIT / "pyproject.toml", *sorted(files)]
    done = subprocess.run(ruff, cwd=kit.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    kit("-m", "kit.settings", "mini/hopper-medium-0.01/crr/seed0")
