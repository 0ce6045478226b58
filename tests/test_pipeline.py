"""The kit through make, as its users run it: both profiles, no network, a local server."""

import csv
import functools
import http.server
import json
import threading
import time

import numpy as np
import pytest
from conftest import d4rl_arrays, one_line, write_d4rl

NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "",
              "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
SHORT = "ARGS=--steps 4 --eval_every 2 --log_every 2 --batch_size 8 --context 5 --episodes 2"
CELL = "hopper-medium-0.01"


def stamps(folder):
    """Modification times of everything the stages wrote."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
            for top in ("data", "runs", "results", "figures") for path in (folder / top).rglob("*")
            if path.is_file()}


def changed(before, after):
    return {name for name in after if before.get(name) != after[name]}


def test_the_mini_profile_from_an_empty_folder_and_what_make_redoes(kit):
    out = kit("make", CELL, SHORT, **NO_NETWORK).stdout
    assert "52.0±4.6" in out and "data mean" in out
    folder = kit.folder
    for name in (f"data/mini/{CELL}.npz", f"results/mini/{CELL}.csv", f"figures/mini/{CELL}.png",
                 *(f"runs/mini/{CELL}/{method}/seed0/{file}" for method in ("lamo", "dt")
                   for file in ("config.json", "train.csv", "eval.csv", "final.safetensors"))):
        assert (folder / name).stat().st_size > 0, name
    with open(folder / f"results/mini/{CELL}.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["profile"] for row in rows} == {"mini"}
    assert {(row["method"], row["lm"].split("@")[0]) for row in rows} == {("lamo", "mini"), ("dt", "none")}

    before = stamps(folder)
    start = time.time()
    kit("make", CELL, SHORT)
    assert changed(before, stamps(folder)) == set() and time.time() - start < 20

    # another method is added, nothing else is trained again
    kit("make", CELL, SHORT, "METHODS=lamo dt", "SEEDS=0 1")
    new = changed(before, stamps(folder))
    assert new and all("/seed1/" in name or name.startswith(("results", "figures")) for name in new)

    # another LM redoes LaMo and not DT, with the LM's own name in the results
    before = stamps(folder)
    kit("make", CELL, SHORT, "LM=mini-random")
    new = changed(before, stamps(folder))
    assert f"runs/mini/{CELL}/lamo/seed0/final.safetensors" in new
    assert not any("/dt/" in name or "seed1" in name or name.startswith("data") for name in new)
    assert "mini-random@" in (folder / f"results/mini/{CELL}.csv").read_text()

    # co-training on the text every Python has
    kit("make", CELL, SHORT + " --lm_block 16", "METHODS=lamo-lm0.1 bc")
    with open(folder / f"runs/mini/{CELL}/lamo-lm0.1/seed0/train.csv") as file:
        assert all(2 < float(row["language_loss"]) < 7 for row in csv.DictReader(file))

    # a setting of DT's in tasks.py redoes DT alone
    table = folder / "tasks.py"
    table.write_text(table.read_text().replace('"mini": {"lr": 3e-4}', '"mini": {"lr": 2e-4}'))
    plan = kit("make", "-n", CELL, SHORT, "LM=mini-random").stdout
    assert plan.count("train.py") == 1 and "/dt/seed0" in plan and "prepare_data.py" not in plan

    # changed data redo everything that was trained on them
    data = folder / f"data/mini/{CELL}.npz"
    data.touch()
    plan = kit("make", "-n", CELL, SHORT, "LM=mini-random").stdout
    assert plan.count("train.py") == 2 and plan.count("evaluate.py mini") == 2
    assert "prepare_data.py" not in plan


def test_the_paper_profile_without_a_network_says_so_in_one_line(kit):
    start = time.time()
    line = one_line(kit("make", "PROFILE=paper", CELL, check=False, **NO_NETWORK))
    assert time.time() - start < 30
    assert "rail.eecs.berkeley.edu" in line and "huggingface.co" in line and "DATA=" in line
    left = [path for path in (kit.folder / "data").rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".source"}
    assert not (kit.folder / "results").exists()


def test_a_language_model_that_cannot_be_had_is_one_line(kit, d4rl_folder):
    start = time.time()
    line = one_line(kit("make", "PROFILE=paper", CELL, f"DATA={d4rl_folder}", "METHODS=lamo", check=False,
                        **NO_NETWORK))
    assert time.time() - start < 60
    assert "gpt2" in line and "huggingface.co" in line and "LM=" in line
    for lm in ("./nowhere", str(d4rl_folder)):
        line = one_line(kit("make", "PROFILE=paper", CELL, f"DATA={d4rl_folder}", "METHODS=lamo", f"LM={lm}",
                            check=False, **NO_NETWORK))
        assert lm in line


@pytest.fixture
def d4rl_server(tmp_path):
    """A local server with a hopper_medium-v2.hdf5 in D4RL's layout."""
    folder = tmp_path / "served"
    folder.mkdir()
    arrays, lengths = d4rl_arrays(episodes=300)
    write_d4rl(folder / "hopper_medium-v2.hdf5", arrays)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    handler.func.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", arrays, lengths
    server.shutdown()


def test_the_paper_profile_from_a_local_server_model_and_text(kit, d4rl_server, tiny_gpt2, tmp_path):
    url, arrays, lengths = d4rl_server
    text = tmp_path / "wiki.train.raw"
    text.write_text("The cat sat on the mat , and the dog did not .\n" * 300)
    out = kit("make", "PROFILE=paper", CELL, f"DATA={url}", f"LM={tiny_gpt2}", f"TEXT={text}",
              "METHODS=lamo-lm0.1 dt", SHORT + " --lm_block 32").stdout
    assert "data mean" in out
    with np.load(kit.folder / f"data/paper/{CELL}.npz") as data:
        provenance = json.loads(str(data["provenance"]))
        episode = provenance["episodes"][0]
        start = int(lengths[:episode].sum())
        rows = slice(start, start + lengths[episode])
        assert np.array_equal(data["observations"][:lengths[episode]], arrays["observations"][rows])
    assert provenance["total_episodes"] == 300 and len(provenance["episodes"]) == 3
    with open(kit.folder / f"runs/paper/{CELL}/lamo-lm0.1/seed0/train.csv") as file:
        assert all(float(row["language_loss"]) > 1 for row in csv.DictReader(file))
    with open(kit.folder / f"results/paper/{CELL}.csv") as file:
        assert {row["lm"].split("@")[0] for row in csv.DictReader(file)} == {"tiny-gpt2", "none"}


def test_help_and_list_need_no_packages(kit):
    assert "make hopper-medium-0.01" in kit("make", "help").stdout
    listed = kit("make", "list").stdout
    assert all(f"hopper-medium-{ratio}" in listed for ratio in ("0.005", "0.01", "0.1", "1"))


def test_the_launcher_stands_before_every_training_and_evaluation(kit):
    plan = kit("make", "-n", CELL, "LAUNCH=srun -n1").stdout.splitlines()
    staged = [line for line in plan if "train.py" in line or "evaluate.py mini" in line]
    assert len(staged) == 4 and all(line.startswith("srun -n1 ") for line in staged)


def test_two_runs_side_by_side_write_what_one_after_the_other_writes(kit):
    kit("make", CELL, SHORT)
    kept = {path: path.read_bytes() for path in (kit.folder / "runs").rglob("*") if path.is_file()}
    for path in kept:
        path.unlink()
    kit("make", "-j2", CELL, SHORT)
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("wanted, said", [
    (("METHODS=nonsense", CELL), "nonsense"), (("hopper-medium-7",), "ratio"), (("mini-hopper",), "No rule")])
def test_wrong_requests_are_refused(kit, wanted, said):
    done = kit("make", *wanted, check=False)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
