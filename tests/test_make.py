"""The kit through make, as its users run it: both profiles, no network, a local server."""

import concurrent.futures
import csv
import functools
import http.server
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import d4rl_arrays, make_kit, one_line, write_d4rl

from kit.artifacts import load_provenance
from tasks import METHODS

NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "",
              "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
SHORT = "ARGS=--steps 4 --eval_every 2 --log_every 2 --batch_size 8 --context 5 --episodes 2 --lm_layers 1"
CELL = "hopper-medium-0.01"


def stamps(folder):
    """Modification times of everything the stages wrote, but for the diary of calls."""
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
            for top in ("data", "runs", "results", "figures") for path in (folder / top).rglob("*")
            if path.is_file() and path.name not in ("log.txt", "cost.json")}


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

    # another seed is added, nothing else is trained again
    kit("make", CELL, SHORT, "METHODS=dt", "SEEDS=0 1")
    new = changed(before, stamps(folder))
    assert new and all("/seed1/" in name or name.startswith(("results", "figures")) for name in new)

    # co-training on the text every Python has
    kit("make", CELL, SHORT + " --lm_block 16 --lm_layers 0", "METHODS=lamo-lm0.1 bc")
    with open(folder / f"runs/mini/{CELL}/lamo-lm0.1/seed0/train.csv") as file:
        assert all(2 < float(row["language_loss"]) < 7 for row in csv.DictReader(file))
    text, = (folder / "data/mini").glob("text-*.npz")
    provenance = load_provenance(text)
    assert provenance["text"].startswith("python-3.") and provenance["lm"] == "mini"
    assert provenance["tokens"] > 100_000


# --- a finished run is never lost to a changed word ----------------------------------------------

@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Reacher2d with DT and LaMo, finished with SHORT; tests leave it as it was."""
    kit = make_kit(tmp_path_factory.mktemp("finished"))
    kit("make", REACHER, SHORT)
    return kit


REACHER = "reacher2d-medium-0.1"


@pytest.fixture
def played(kit, finished):
    """Reacher2d's data, which take seconds to play, are there already."""
    shutil.copytree(finished.folder / "data", kit.folder / "data")


@pytest.fixture
def trained(kit, finished, played):
    """Reacher2d's finished cell, to be changed; its other subsets are other tests'."""
    shutil.copytree(finished.folder / "runs/mini" / REACHER, kit.folder / "runs/mini" / REACHER)
    for name in (f"results/mini/{REACHER}.csv", f"figures/mini/{REACHER}.png"):
        (kit.folder / name).parent.mkdir(parents=True)
        shutil.copy2(finished.folder / name, kit.folder / name)


@pytest.mark.parametrize("words, said", [
    (("ARGS=",), "batch_size is 8, not 16"), ((SHORT + " --lr 0.5",), "lr is 0.002, not 0.5"),
    ((SHORT, "LM=mini-random"), "lm is \"mini\", not \"mini-random\""),
    (("-n", "ARGS=--steps 5"), "batch_size"), (("-n", SHORT, "LM=smollm2"), "smollm2"),
    (("-n", SHORT, "LM=/no/such/folder"), "/no/such/folder")])
def test_a_changed_word_is_refused_in_one_line_and_changes_nothing(finished, words, said):
    before = stamps(finished.folder)
    line = one_line(finished("make", REACHER, *words, check=False))
    assert said in line and "REPLACE=1" in line and f"runs/mini/{REACHER}/" in line
    assert stamps(finished.folder) == before
    plan = finished("make", "-n", REACHER, SHORT).stdout  # and it is still finished
    assert "train.py" not in plan and "evaluate.py mini" not in plan and "prepare_data.py" not in plan


def test_a_dry_run_changes_nothing(finished):
    before = stamps(finished.folder)
    for words in ((SHORT,), ("ARGS=--steps 9", "REPLACE=1"), (SHORT, "FRESH=1"), (SHORT, "SEEDS=0 1"),
                  (SHORT, "LM=mini-random", "REPLACE=1")):
        plan = finished("make", "-n", REACHER, *words).stdout
        assert plan.count("train.py") == {(SHORT,): 0, (SHORT, "SEEDS=0 1"): 2}.get(words, 2)
    assert stamps(finished.folder) == before


def test_a_seed_of_everything_trains_on_its_own_subset(finished):
    """Seed 0 of subset 0 is there already; seed 1 gets episodes of its own, and the table is another one."""
    before = stamps(finished.folder)
    words = (SHORT, "METHODS=dt", "SEEDS=0 1", "SUBSETS=seed")
    plan = finished("make", "-n", REACHER, *words).stdout
    assert f"train.py mini/{REACHER}-d1/dt/seed1" in plan and plan.count("train.py") == 1
    out = finished("make", REACHER, *words).stdout
    assert "2 subsets" in out and f"results/mini/{REACHER}-dN.csv" in out
    with open(finished.folder / f"results/mini/{REACHER}-dN.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["subset"], row["seed"]) for row in rows} == {("0", "0"), ("1", "1")}
    assert len({row["heldout_data"] for row in rows}) == 1  # both are measured on the same episodes
    first, second = (load_provenance(finished.folder / f"data/mini/{REACHER}{subset}.npz")
                     for subset in ("", "-d1"))
    assert (first["subset_seed"], second["subset_seed"]) == (0, 1) and first["episodes"] != second["episodes"]
    new = changed(before, stamps(finished.folder))
    assert new and all("-d1" in name or "-dN" in name for name in new)
    after = stamps(finished.folder)
    finished("make", REACHER, *words)  # nothing is done twice
    finished("make", f"{REACHER}-dN", *words[:-1])  # which is another way to say it
    assert changed(after, stamps(finished.folder)) == set()
    assert "1 seed" not in finished("make", f"{REACHER}-d1", *words[:2], "SEEDS=1").stdout
    assert (finished.folder / f"results/mini/{REACHER}-d1.csv").exists()


@pytest.mark.parametrize("words, said", [
    ((REACHER, "SUBSETS=3"), "SUBSETS=seed, or leave it out"),
    ((f"{REACHER}-d3", "SUBSETS=seed"), "-d3 names its subset, and SUBSETS=seed does, too"),
    ((f"{REACHER}-d0",), "subset 0 is the cell itself")])
def test_wrong_subsets_are_refused_in_one_line(finished, words, said):
    assert said in one_line(finished("make", *words, SHORT, check=False))


def test_words_in_another_order_are_the_same_words(finished):
    before = stamps(finished.folder)
    words = reversed(SHORT.removeprefix("ARGS=").split("--")[1:])
    finished("make", REACHER, "ARGS=" + " ".join(f"--{word.strip()}" for word in words))
    assert stamps(finished.folder) == before


def test_another_lm_is_only_for_the_methods_that_name_none(finished):
    plan = finished("make", "-n", REACHER, SHORT, "METHODS=lamo-random-corpus lamo-early lamo-mlp dt bc",
                    "SEEDS=5", "LM=mini-random", "REPLACE=1").stdout
    named = [line.split("seed5")[1].split("--args")[0].strip() for line in plan.splitlines()
             if "train.py" in line]
    assert named == ["", "", "--lm 'mini-random'", ""] and plan.count("baselines.py") == 1


@pytest.mark.usefixtures("trained")
def test_replace_makes_anew_what_differs_and_nothing_else(kit):
    runs, before = f"runs/mini/{REACHER}", stamps(kit.folder)
    kit("make", REACHER, SHORT, "LM=mini-random", "REPLACE=1")
    new = changed(before, stamps(kit.folder))
    assert f"{runs}/lamo/seed0/final.safetensors" in new and f"{runs}/lamo/seed0/eval.csv" in new
    assert not any("/dt/" in name or name.startswith("data") for name in new)
    assert "mini-random@" in (kit.folder / f"results/mini/{REACHER}.csv").read_text()
    out = kit("make", REACHER, SHORT, "LM=mini-random").stdout
    assert "lamo: settings changed:" in out and "lm=mini-random" in out

    # a setting of DT's in tasks.py concerns DT alone; FRESH=1 makes all anew, as after a change of the code
    table = kit.folder / "tasks.py"
    table.write_text(table.read_text().replace('"mini": {"lr": 1e-3}',
                                               '"mini": {"lr": 2e-4}'))
    line = one_line(kit("make", REACHER, SHORT, "LM=mini-random", check=False))
    assert "dt/seed0" in line and "lr is 0.001, not 0.0002" in line
    kit("make", REACHER, SHORT, "METHODS=lamo", "LM=mini-random")
    before = stamps(kit.folder)
    kit("make", REACHER, SHORT, "LM=mini-random", "REPLACE=1")
    new = changed(before, stamps(kit.folder))
    assert {name.split("/")[3] for name in new if name.startswith("runs")} == {"dt"}
    before = stamps(kit.folder)
    kit("make", REACHER, SHORT, "METHODS=dt", "FRESH=1")
    assert {f"{runs}/dt/seed0/{file}" for file in ("final.safetensors", "eval.csv")} <= changed(
        before, stamps(kit.folder))


@pytest.mark.usefixtures("played")
def test_settings_of_evaluation_only_evaluate_anew(kit):
    kit("make", REACHER, SHORT, "METHODS=dt")
    before, run = stamps(kit.folder), f"runs/mini/{REACHER}/dt/seed0"
    for more in ("--episodes 3 --target_returns 50 9", "--episodes 3 --at_once 2"):
        out = kit("make", REACHER, f"{SHORT} {more}", "METHODS=dt").stdout
        assert "train.py" not in out and "evaluate.py mini" in out
    with open(kit.folder / run / "eval.csv") as file:
        assert {row["episode"] for row in csv.DictReader(file)} == {"0", "1", "2"}
    assert f"{run}/final.safetensors" not in changed(before, stamps(kit.folder))
    # the window is no longer LaMo's, and the table says how many evaluations there were
    out = kit("make", REACHER, f"{SHORT} --score_window 1", "METHODS=dt").stdout
    assert "train.py" not in out and "mean over the last 1 evaluation" in out
    out = kit("make", REACHER, f"{SHORT} --score_window 5", "METHODS=dt").stdout
    assert "mean over the last 2 evaluations" in out and "2 evaluations, not 5" in out


def test_a_changed_data_setting_makes_the_data_anew(kit):
    """Where nothing finished stands on them; else it is refused, and REPLACE=1 makes both."""
    path = kit.folder / f"data/mini/{REACHER}.npz"
    kit("prepare_data.py", f"mini/{REACHER}")
    assert load_provenance(path)["total_episodes"] == 50
    table = kit.folder / "tasks.py"
    whole = table.read_text()
    table.write_text(whole.replace('"trajectories": 50,', '"trajectories": 30,'))
    kit("make", REACHER, SHORT, "METHODS=dt")
    assert load_provenance(path)["total_episodes"] == 30
    table.write_text(whole)
    before = stamps(kit.folder)
    line = one_line(kit("make", REACHER, SHORT, "METHODS=dt", check=False))
    assert "trajectories is 30, not 50" in line and changed(before, stamps(kit.folder)) == set()
    kit("make", REACHER, SHORT, "METHODS=dt", "REPLACE=1")
    assert load_provenance(path)["total_episodes"] == 50
    config = json.loads((kit.folder / f"runs/mini/{REACHER}/dt/seed0/config.json").read_text())
    assert config["trajectories"] == 50 and config["data_sha256"] == load_provenance(path)["sha256"]


@pytest.mark.usefixtures("played")
def test_a_failed_method_does_not_take_the_others_table(kit):
    done = kit("make", "-k", REACHER, SHORT, "METHODS=lamo-medium dt", check=False)  # there is no LM for one
    assert done.returncode != 0 and "has no language model for lamo-medium" in done.stderr
    assert "data mean" in done.stdout and "\ndt " in done.stdout
    assert (kit.folder / f"figures/mini/{REACHER}.png").exists()
    with open(kit.folder / f"results/mini/{REACHER}.csv") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"dt"}


def test_data_settings_do_not_break_make_for_a_task_without_a_mini_player(kit):
    table = kit.folder / "tasks.py"
    table.write_text(table.read_text().replace(
        '"player": "walker2d", "trajectories": 1190, ', ""))
    assert "prepare_data.py" in kit("make", "-n", REACHER).stdout
    line = one_line(kit("make", "walker2d-medium-0.01", SHORT, check=False))
    assert "walker2d-medium" in line and "mini" in line and "PROFILE=paper" in line
    assert "walker2d-medium-1" in kit("make", "list").stdout


# --- the paper profile ---------------------------------------------------------------------------

def test_the_paper_profile_without_a_network_says_so_in_one_line(kit):
    start = time.time()
    line = one_line(kit("make", "PROFILE=paper", CELL, check=False, **NO_NETWORK))
    assert time.time() - start < 30
    assert "rail.eecs.berkeley.edu" in line and "huggingface.co" in line and "DATA=" in line
    left = [path for path in (kit.folder / "data").rglob("*") if path.is_file()]
    assert not left
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


def test_data_that_are_forgotten_or_named_otherwise_cost_no_run(kit, d4rl_folder, tmp_path):
    folder, other = tmp_path / "mine", tmp_path / "theirs"
    for place, seed in ((folder, 0), (other, 1)):
        place.mkdir()
        write_d4rl(place / "hopper_medium-v2.hdf5", d4rl_arrays(episodes=300, seed=seed)[0])
    call = ("make", "PROFILE=paper", CELL, "METHODS=dt", SHORT)
    kit(*call, f"DATA={folder}")
    before = stamps(kit.folder)
    (folder / "unrelated.txt").write_text("x")
    for data in ((), (f"DATA={folder}",), (f"DATA={folder}/hopper_medium-v2.hdf5",)):
        out = kit(*call, *data, **NO_NETWORK).stdout
        assert "data mean" in out and "train.py" not in out
        assert changed(before, stamps(kit.folder)) == set()
    line = one_line(kit(*call, f"DATA={other}", check=False))
    assert "REPLACE=1" in line or "--replace" in line
    assert changed(before, stamps(kit.folder)) == set()
    kit(*call, f"DATA={other}", "REPLACE=1")
    new = changed(before, stamps(kit.folder))
    assert {f"data/paper/{CELL}.npz", f"runs/paper/{CELL}/dt/seed0/final.safetensors"} <= new


def test_a_slash_behind_the_language_models_folder_is_no_other_model(kit, d4rl_folder, tiny_gpt2):
    call = ("make", "PROFILE=paper", CELL, f"DATA={d4rl_folder}", "METHODS=lamo", SHORT)
    kit(*call, f"LM={tiny_gpt2}/")
    before = stamps(kit.folder)
    kit(*call, f"LM={tiny_gpt2}")
    assert changed(before, stamps(kit.folder)) == set()
    line = one_line(kit(*call, check=False))  # the LM is forgotten
    assert "lm is" in line and "gpt2" in line and changed(before, stamps(kit.folder)) == set()


def test_help_and_list_need_no_packages(kit):
    assert "make hopper-medium-0.01" in kit("make", "help").stdout
    listed = kit("make", "list").stdout
    assert all(f"hopper-medium-{ratio}" in listed for ratio in ("0.005", "0.01", "0.1", "1"))


def test_the_launcher_stands_before_all_that_computes(kit):
    plan = kit("make", "-n", CELL, "LAUNCH=srun -n1", "METHODS=lamo-lm0.1 dt").stdout.splitlines()
    staged = [line for line in plan if "train.py" in line or "evaluate.py mini" in line]
    assert len(staged) == 4 and all(line.startswith("srun -n1 ") for line in staged)
    data = [line for line in plan if "prepare_data.py" in line]
    assert [line.split("prepare_data.py ")[1].split()[0] for line in data] == [f"mini/{CELL}", "mini/text"]
    assert all(line.startswith("srun -n1 ") for line in data)


def test_the_launcher_knows_what_it_launches(kit):
    (kit.folder / "launch").write_text('#!/bin/sh\necho "$1 $SLURM_JOB_NAME" >> launched\n')
    (kit.folder / "launch").chmod(0o755)
    kit("make", REACHER, "METHODS=dt", "SEEDS=3", "LAUNCH=./launch $(RUN)", check=False)
    run = f"mini/{REACHER}/dt/seed3"
    assert (kit.folder / "launched").read_text().splitlines() == [f"mini/{REACHER} mini/{REACHER}",
                                                                  f"{run} {run}", f"{run} {run}"]


def test_all_goes_on_when_one_fails_and_says_at_the_end_which_and_how_to_see_why(kit):
    grid = (f"CELLS={REACHER}", "METHODS=lamo-medium dt", SHORT)
    done = kit("make", "-k", "-j2", "all", *grid, check=False)
    failed = f"mini/{REACHER}/lamo-medium/seed0"
    lines = done.stdout.splitlines()
    at = lines.index("1 failed:")
    assert done.returncode != 0 and "data mean" in "".join(lines[:at])
    assert failed in lines[at + 1] and "has no language model for lamo-medium" in lines[at + 1]
    assert lines[at + 2].strip() == f"tail runs/{failed}/log.txt" and lines[at + 3].startswith("1 of 2 runs")
    log = (kit.folder / f"runs/{failed}/log.txt").read_text().splitlines()
    assert "has no language model for lamo-medium" in log[-2] and log[-1].startswith("--- exit code 1 ")

    before = stamps(kit.folder)
    said = kit("make", "status", *grid).stdout
    assert "2 runs, 1 done, 1 failed, 0 waiting" in said and "exit code 1" in said
    assert "| train: the mini profile has no language model" in said
    said = kit("make", "plan", *grid, "SEEDS=0 1 2 3").stdout
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line.strip()}
    assert rows["dt"][:3] == ["4", "1", "3"] and rows["lamo-medium"] == ["4", "0", "4", "4"]
    assert "one run at a time, and 4 runs of kinds that have not been measured here" in said
    assert stamps(kit.folder) == before

    cost = json.loads((kit.folder / f"runs/mini/{REACHER}/dt/seed0/cost.json").read_text())
    assert cost["training"]["steps"] == 4 and cost["evaluation"]["calls"] == 1 and cost["last"]["exit"] == 0
    assert cost["wall"] == pytest.approx(cost["training"]["wall"] + cost["evaluation"]["wall"], abs=0.01)


def test_a_build_that_is_killed_at_three_moments_ends_in_the_same_bytes(kit, finished):
    """In the data, in a training and in an evaluation, with all that make has started."""
    run = f"runs/mini/{REACHER}/dt/seed0"
    for there in (f"data/mini/{REACHER}.npz", f"{run}/step-0000002.safetensors", f"{run}/final.safetensors"):
        kit.until(there, "make", REACHER, SHORT, "METHODS=dt")
    assert not (kit.folder / f"{run}/eval.csv").exists()
    kit("make", REACHER, SHORT, "METHODS=dt")

    def results(folder):  # `finished` holds other subsets, too
        files = {name: (folder / name).read_bytes() for name in stamps(folder)
                 if name in (f"data/mini/{REACHER}.npz", "data/mini/reacher2d-medium-heldout.npz")
                 or name.startswith(run) and not name.endswith(("log.txt", "cost.json"))}
        with open(folder / f"results/mini/{REACHER}.csv") as file:
            return files, [row | {"seal": ""} for row in csv.DictReader(file) if row["method"] == "dt"]

    assert results(kit.folder) == results(finished.folder)


def test_two_makes_at_once_do_nothing_twice(kit):
    grid = (REACHER, SHORT, "METHODS=dt")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        both = [done.result() for done in [pool.submit(kit, "make", *grid) for _ in range(2)]]
    assert sum(done.stdout.count("; trains ") for done in both) == 1
    assert any("waits for process" in done.stdout for done in both)  # each may wait for one stage
    assert all("data mean" in done.stdout for done in both)


def test_the_plan_of_the_full_grid_of_both_profiles_takes_seconds(kit):
    every = (f"METHODS={' '.join(METHODS)}", "SEEDS=0 1 2", "PROFILE=mini paper")
    kit("make", "list")
    for word in ("plan", "status"):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = kit("make", word, *every)
        said = done.stdout
        assert done.stderr == ""
        now = resource.getrusage(resource.RUSAGE_CHILDREN)  # a clock would measure the other tests, too
        assert now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime < 5
        assert "runs, 0 done" in said and len(said.splitlines()) < 120
    assert not (kit.folder / "runs").exists()


def test_videos_are_of_the_tasks_that_have_a_finished_run(kit):
    for run in ("reacher2d-medium-1/dt/seed0", "reacher2d-medium-0.3/dt/seed1", "pong-medium-1/bc/seed0"):
        final = kit.folder / "runs" / "mini" / run / "final.safetensors"
        final.parent.mkdir(parents=True)
        final.touch()
    lines = kit("make", "-n", "videos", "SEEDS=0 1", "LAUNCH=srun").stdout.splitlines()
    films = [line for line in lines if "--video" in line]
    assert len(films) == 1 and films[0].startswith("srun ")
    run = "mini/reacher2d-medium-0.3/dt/seed1"
    assert films[0].endswith(f"{run} --video videos/{run}.gif")
    assert "pong-medium: no finished run" in "".join(lines) and "reacher2d-medium: no" not in "".join(lines)
    film = kit.folder / "videos" / f"{run}.gif"
    film.parent.mkdir(parents=True)
    film.touch()
    assert "--video" not in kit("make", "-n", "videos", "SEEDS=0 1").stdout  # it is there
    assert "reacher2d-medium-1/dt/seed0 --video" in kit("make", "-n", "videos").stdout  # another run's is not
    subset = kit.folder / "runs/mini/reacher2d-medium-0.1-d3/dt/seed3/final.safetensors"
    subset.parent.mkdir(parents=True)
    subset.touch()
    for words in (("SUBSETS=seed",), ("CELLS=reacher2d-medium-0.1-dN",), ("CELLS=reacher2d-medium-0.1-d3",)):
        lines = kit("make", "-n", "videos", "SEEDS=3", *words).stdout
        assert "reacher2d-medium-0.1-d3/dt/seed3 --video" in lines
    assert "train.py" not in kit("make", "-n", "videos/mini/reacher2d-medium-1/dt/seed9.gif").stdout
    assert "pong-medium-1/bc/seed0 --video" in kit("make", "-n", "videos", "METHODS=bc").stdout
    said = kit("make", "videos", "PROFILE=paper").stdout.splitlines()
    assert len(said) == 9 and all("no finished run of PROFILE=paper" in line for line in said)


def test_tensorboard_is_only_an_option_of_training(kit):
    plan = kit("make", "-n", CELL, "TENSORBOARD=1").stdout.splitlines()
    assert len([line for line in plan if line.rstrip().endswith("--tensorboard")]) == 2
    assert "--tensorboard" not in kit("make", "-n", CELL).stdout


@pytest.mark.usefixtures("trained")
def test_two_runs_side_by_side_write_what_one_after_the_other_writes(kit):
    kept = {path: path.read_bytes() for path in (kit.folder / "runs").rglob("*")
            if path.is_file() and path.name not in ("log.txt", "cost.json")}
    for path in kept:
        path.unlink()
    kit("make", "-j2", REACHER, SHORT)
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize("wanted, said", [
    (("METHODS=nonsense", CELL), "nonsense"), (("hopper-medium-7",), "ratio"),
    (("hopper-medium",), "there is no target hopper-medium; a cell is TASK-RATIO"),
    (("METHOD=bc", CELL), "METHOD= is no word of this Makefile"),
    (("all", "kitchen-partial-0.1", f"CELLS={CELL}"), "kitchen-partial-0.1 is none of them"),
    (("all", "CELLS="), "CELLS= names no cell"), ((f"{CELL}/",), "is no cell"),
    (("videos", "METHODS=lmo"), "no method 'lmo'"), (("videos", "PROFILE=mini paper"), "names two"),
    ((CELL, "ARGS=--help"), "ARGS= asks for help")])
def test_wrong_requests_are_refused(kit, wanted, said):
    done = kit("make", *wanted, check=False)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr


def test_make_may_be_told_that_all_is_old(kit):
    assert "hopper-medium-0.005" in kit("make", "-B", "list").stdout


def test_clean_takes_what_it_says_and_no_more(kit):
    for name in ("results/old runs/a", "results/shipped/a", "results/mini/a", "figures/a", "report/a",
                 "runs/a", "runs and more/a"):
        path = kit.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def there():
        return {path.parent.relative_to(kit.folder).as_posix() for path in kit.folder.rglob("a")}

    before = there()
    assert "Type yes to go on" in kit("make", "clean-runs", input="no\n", check=False).stdout
    assert there() == before
    kit("make", "clean")
    assert there() == {"results/shipped", "runs", "runs and more"}
    kit("make", "clean-runs", input="yes\n")
    assert there() == {"results/shipped", "runs and more"}


# --- what is typed is no command, and no path -----------------------------------------------------

NASTY = "a $HOME $(shell touch f) 'q' \"ü\"; touch f; `touch f` #%,x"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A fresh clone, of which make has asked what it needs."""
    kit = make_kit(tmp_path_factory.mktemp("bare"))
    kit("make", "list")
    return kit


@pytest.mark.parametrize("words, said", [
    (("METHODS=x;>f;:",), "holds ;"), (("METHODS=$(shell touch f)",), "holds"),
    (("THREADS=abc",), "THREADS='abc'"),
    ((f"{REACHER};touch f",), "holds ;"), (("data/mini/$(shell touch f).npz",), "holds"),
    (("SEEDS=0/../../../../../../esc",), "is no seed"), (("LM=a\ntouch f",), "LM= holds a line break"),
    (("ARGS=--steps 4; touch f",), "4;"), (("PROFILE=\"; touch f; \"", "help"), "holds"),
    (("METHODS=dt nonsense", "all"), "no method 'nonsense'"),
    (("PROFILE=paper", f"DATA={NASTY}"), "there is nothing")])
def test_a_word_that_means_nothing_is_one_line_and_no_command(bare, words, said):
    before = {path for path in bare.folder.rglob("*") if "__pycache__" not in path.parts}
    assert said in one_line(bare("make", "-n", REACHER, *words, check=False))
    assert {path for path in bare.folder.rglob("*") if "__pycache__" not in path.parts} == before


def test_words_reach_the_programs_as_they_were_typed(tmp_path):
    """From a folder with blanks in its name, on the command line and in the environment."""
    folder = tmp_path / "my kit ü"
    folder.mkdir()
    kit, data = make_kit(folder), tmp_path / NASTY
    write_d4rl(tmp_path / "x", d4rl_arrays()[0])
    data.mkdir()
    (tmp_path / "x").rename(data / "hopper_medium-v2.hdf5")
    arguments = f"ARGS=--adapter {shlex.quote(NASTY)} --steps 2 --episodes 1"
    call = ("PROFILE=paper", CELL, "METHODS=bc", arguments)
    plan = kit("make", "-n", *call, f"DATA={data}").stdout
    told, = (shlex.split(line) for line in plan.splitlines() if "prepare_data.py" in line)
    assert told[-2:] == ["--data", str(data)]
    told, = (shlex.split(line) for line in plan.splitlines() if "baselines.py" in line)
    assert shlex.split(told[-1])[:2] == ["--adapter", NASTY]
    assert "data mean" in kit("make", *call, DATA=str(data)).stdout
    assert not [path for path in tmp_path.rglob("f") if path.is_file()]


# --- what is finished stays, and tables follow what is there --------------------------------------

@pytest.mark.usefixtures("played")
def test_a_launcher_that_fails_after_the_end_takes_nothing_away(kit):
    launcher = kit.folder / "launcher"
    launcher.write_text('#!/bin/sh\n"$@"\ncase "$*" in *train.py*) exit 1; esac\n')
    launcher.chmod(0o755)
    done = kit("make", REACHER, SHORT, "METHODS=dt", "LAUNCH=./launcher", check=False)
    folder = kit.folder / f"runs/mini/{REACHER}/dt/seed0"
    assert done.returncode != 0 and (folder / "final.safetensors").exists()
    stamp = (folder / "final.safetensors").stat().st_mtime_ns
    kit("make", REACHER, SHORT, "METHODS=dt")
    assert (folder / "final.safetensors").stat().st_mtime_ns == stamp

    # a run that is renamed or moved away leaves the table, without a date that says so
    (folder.parent / "seed0.old").mkdir()
    kit("make", REACHER, SHORT, "METHODS=dt bc")
    folder.rename(kit.folder / "moved")
    kit("make", REACHER, SHORT, "METHODS=bc")
    with open(kit.folder / f"results/mini/{REACHER}.csv") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"bc"}


@pytest.mark.parametrize("words, said", [
    (("VENV=none", "BASE_PYTHON=/nonexistent"), "BASE_PYTHON=/nonexistent"),
    (("ARGS=--lm 'x",), "cannot be read")])
def test_a_planner_without_an_answer_is_no_plan(kit, words, said):
    kit("make", "list")  # build/axes.mk is there
    done = kit("make", REACHER, *words, check=False)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr
    assert not (kit.folder / "runs").exists()


@pytest.mark.parametrize("older", [False, True])
def test_a_task_that_was_added_is_known_at_once(kit, older):
    kit("make", "list")
    before = (kit.folder / "build/axes.mk").stat().st_mtime_ns
    kit("make", "list")
    assert (kit.folder / "build/axes.mk").stat().st_mtime_ns == before
    path = kit.folder / "tasks.py"
    path.write_text(path.read_text() + '\nTASKS["hopper-large"] = TASKS["hopper-medium"]\n')
    if older:
        os.utime(path, (1, 1))  # as rsync -a brings it
    assert "hopper-large-1" in kit("make", "-n", "hopper-large-1").stdout


@pytest.mark.parametrize("version, maker", [((3, 11), "own/bin/python"), ((3, 10), "newer")])
def test_a_venv_made_by_hand_is_installed_into(kit, version, maker):
    python = kit.folder / "own/bin/python"  # its answer to "are you new enough?", whatever python3 is
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\nexit {int(version < (3, 11))}\n")
    python.chmod(0o755)
    said = kit("make", "-n", "setup", "VENV=own", "BASE_PYTHON=newer").stdout
    assert f"\n{maker} -m venv own\n" in said and f"{maker} -c 'import sys" in said


def test_a_method_without_a_language_model_is_one_line_where_there_is_text_too(kit):
    line = one_line(kit("make", REACHER, SHORT + " --lm_weight 1", "METHODS=lamo-medium", check=False))
    assert "has no language model for lamo-medium" in line


# --- the report ----------------------------------------------------------------------------------

def test_all_ends_in_the_report_also_when_a_cell_failed(kit):
    """With one cell instead of 27, whose DT cannot be trained."""
    tasks = kit.folder / "tasks.py"
    tasks.write_text(tasks.read_text() + '\nTASKS = {"reacher2d-medium": TASKS["reacher2d-medium"] '
                     '| {"ratios": ("0.1",)}}\n')
    plan = kit("make", "-n", "all", SHORT).stdout
    assert plan.count("train.py") == 2 and "paper.report" not in plan  # no results yet
    assert "pip install" not in plan  # the packages were looked at once, in front
    done = kit("make", "-k", "all", SHORT + " --no-such-word", check=False)
    assert done.returncode and "report/" not in done.stdout and not (kit.folder / "report").exists()

    broken = kit.folder / "runs/mini/reacher2d-medium-0.1/dt/seed0"
    broken.parent.mkdir(parents=True)
    broken.write_text("not a folder")
    done = kit("make", "-k", "all", SHORT, check=False)
    assert done.returncode and "report report/mini.html" in done.stdout
    text = (kit.folder / "report/mini.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| **reacher2d-medium** | 0.1 |"))
    assert " seed's episodes" in row and row.split("|")[4].strip().startswith("missing")
    before = stamps(kit.folder)
    kit("make", "report")
    assert changed(before, stamps(kit.folder)) == set()


@pytest.mark.parametrize("goal", ["all", REACHER])
@pytest.mark.usefixtures("played")
def test_a_make_that_is_told_to_end_ends_the_stage_with_its_state_saved(kit, goal):
    folder = kit.folder / f"runs/mini/{REACHER}/bc/seed0"
    grid = (f"CELLS={REACHER}", "METHODS=bc", "ARGS=--steps 1000000 --log_every 100")
    kit("make", "list")
    process = subprocess.Popen(kit.words(("make", "-j2", goal, *grid)), stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, **kit.surroundings({}))
    while not (folder / "train.csv").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()  # make alone, none of those that it started
    assert process.wait() != 0
    for _ in range(6000):
        log = (folder / "log.txt").read_text()
        if "exit code 143" in log and not (folder / "running.json").exists():
            break
        time.sleep(0.01)
    assert "stopped by SIGTERM; the state of step" in log and "exit code 143" in log
    assert (folder / "state.safetensors").exists() and not (folder / "running.json").exists()


# --- a launcher that cannot be relied on ----------------------------------------------------------

FLAKY = '''
import os, random, signal, subprocess, sys, time

count = len(open("launched").readlines()) if os.path.exists("launched") else 0
random.seed(count)
# once the list is at its end, it has had its fun
what = ["kill", "delay", "fail", "kill", "late", "kill", "delay"][count] if count < 7 else "delay"
print(what, file=open("launched", "a"))
time.sleep(random.uniform(0, 0.3))
if what == "fail":
    sys.exit(1)
process = subprocess.Popen(sys.argv[1:], start_new_session=True)
if what == "kill":
    try:
        process.wait(random.uniform(0.02, 0.3))  # before any stage has ended
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
sys.exit(process.wait() or what == "late")
'''


def test_a_launcher_that_delays_fails_and_kills_comes_to_the_bytes_of_a_local_make(tmp_path):
    folders, grid = [tmp_path / "local", tmp_path / "launched"], (REACHER, SHORT, "METHODS=bc")
    kits = []
    for folder in folders:
        folder.mkdir()
        kits.append(make_kit(folder))
    (folders[1] / "flaky.py").write_text(FLAKY)
    kits[0]("make", *grid)
    launch = f"LAUNCH={sys.executable} flaky.py"
    passes = 1
    while kits[1]("make", "-k", *grid, launch, check=False).returncode:
        passes += 1
        assert passes < 12
    launched = (folders[1] / "launched").read_text().split()
    assert {"kill", "fail", "late", "delay"} <= set(launched) and passes >= 3
    kept = [{path.relative_to(folder): path.read_bytes() for room in ("runs", "data", "results")
             for path in (folder / room).rglob("*") if path.is_file()
             and path.name not in ("log.txt", "cost.json")} for folder in folders]
    assert kept[0] == kept[1] and len(kept[0]) > 6
