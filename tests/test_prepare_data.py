"""prepare_data.py: one file a cell, from its source; made once, kept, made anew, or refused; and the text."""

import functools
import http.server
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import d4rl_arrays, one_line, replay_arrays, write_d4rl, write_replay
from tqdm import tqdm

import prepare_data
import sources
import tasks
from kit import seals, settings, signals
from kit.artifacts import arrays_digest, load_arrays, load_dataset, load_provenance
from mini import players
from sources import Episodes, choose, episode_returns, played, take_episodes

REACHER = "reacher2d-medium-0.1"


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """prepare("mini/CELL", ...) in an empty folder: what it printed, on one line or more; and its folder.
    The held-out episodes are two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "HELDOUT", 2)
    monkeypatch.setattr(sys, "argv", ["prepare_data.py"])

    def run(*words):
        args = prepare_data.OPTIONS.parse_args([*map(str, words), "--workers", "1", "--timeout", "5"])
        capsys.readouterr()
        (prepare_data.text.prepare if args.name.endswith("/text") else prepare_data.prepare)(args)
        return capsys.readouterr().out

    run.folder = tmp_path
    return run


def refused(prepare, *words):
    with pytest.raises(SystemExit) as stop:
        prepare(*words)
    line = str(stop.value)
    assert line.startswith("prepare_data: ") and "\n" not in line
    return line


def finish_a_run(folder, cell):
    path = folder / "runs" / cell / "dt/seed0/final.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")


def stamp(path):
    return path.stat().st_mtime_ns, path.read_bytes()


# --- the mini profile --------------------------------------------------------------------------

def test_mini_episodes_are_the_same_in_every_subset(kit):
    """The 0.5 % file holds exactly those rows of the 1 % file that its episodes name."""
    for ratio in ("0.005", "0.01"):
        kit("prepare_data.py", f"mini/hopper-medium-{ratio}", "--workers", "2")
    small, large = (load_dataset(kit.folder / f"data/mini/hopper-medium-{ratio}.npz")
                    for ratio in ("0.005", "0.01"))
    where = [large[1]["episodes"].index(episode) for episode in small[1]["episodes"]]
    part = take_episodes(large[0], np.array(where))
    for name, array in small[0].items():
        assert np.array_equal(array, part[name]), name
    # and the same command writes the same bytes, whatever the number of processes
    path = kit.folder / "data/mini/hopper-medium-0.005.npz"
    before = path.read_bytes()
    path.unlink()
    kit("prepare_data.py", "mini/hopper-medium-0.005", "--workers", "1")
    assert path.read_bytes() == before
    # about a third of the expert, as D4RL's medium: the mean lies between 25 and 55
    data, provenance = large
    low, high = provenance["reference_min"], provenance["reference_max"]
    assert 25 < 100 * (episode_returns(data).mean() - low) / (high - low) < 55
    assert np.abs(data["actions"]).max() <= 1
    assert provenance["data"] == "mini-hopper-sac@d21a02dd"


def test_frames_are_stored_as_one_array_and_compressed(prepare, monkeypatch):
    monkeypatch.setitem(tasks.TASKS["breakout-medium"]["mini"], "player_horizon", 200)
    path = prepare.folder / "data/mini/breakout-medium-0.01.npz"
    prepare("mini/breakout-medium-0.01")
    data, provenance = load_dataset(path)
    assert data["observations"].shape == (400, 84, 84) and data["observations"].dtype == np.uint8
    assert path.stat().st_size < data["observations"].nbytes / 20
    assert provenance["made_from"]["player_horizon"] == 200
    assert np.abs(data["rewards"]).max() <= 1 <= provenance["return_max"]


def test_the_mini_profile_takes_no_data(prepare):
    assert "DATA= belongs to the paper profile" in refused(prepare, f"mini/{REACHER}", "--data", "x.hdf5")


# --- made once ---------------------------------------------------------------------------------

def test_the_same_command_again_leaves_the_file_untouched(prepare):
    out = prepare(f"mini/{REACHER}")
    assert "5 of 50 episodes, 500 steps, from mini-reacher2d-ppo@bd6bd77f; return 34.8 +- 10.66" in out
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    before = stamp(path)
    for words in ((), ("--replace",)):
        out = prepare(f"mini/{REACHER}/", *words)
        assert out == f"data/mini/{REACHER}.npz is up to date, from mini-reacher2d-ppo@bd6bd77f\n"
    assert stamp(path) == before
    assert {*path.parent.iterdir()} == {path, path.with_name("reacher2d-medium-heldout.npz")}


def test_the_provenance_says_all_that_the_arrays_depend_on(prepare):
    prepare(f"mini/{REACHER}")
    data, provenance = load_dataset(prepare.folder / f"data/mini/{REACHER}.npz")
    assert provenance["sha256"] == arrays_digest(data)
    assert provenance["made_from"] == {
        "source": "played", "player": "reacher2d", "trajectories": 50, "env": "Reacher2d", "horizon": 100,
        "player_noise": 1.75, "minimum_return": 21.0, "ratio": 0.1, "subset_seed": 0, "clip_rewards": False,
        "reference": [0.0, 100.0], "sha256": played.digest(
            settings.configuration(f"mini/{REACHER}/dt/seed0"), "", None)}
    assert provenance["episodes"] == sorted(np.random.default_rng(0).permutation(50)[:5].tolist())


def test_a_changed_setting_remakes_the_data(prepare, monkeypatch):
    prepare(f"mini/{REACHER}")
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], "trajectories", 60)
    out = prepare(f"mini/{REACHER}")
    assert "is made anew: trajectories is 60, the file was made with 50\n" in out
    assert "6 of 60 episodes" in out
    assert load_provenance(path)["total_episodes"] == 60
    assert "is up to date" in prepare(f"mini/{REACHER}")


def test_data_that_finished_runs_stand_on_are_replaced_only_on_demand(prepare, monkeypatch):
    prepare(f"mini/{REACHER}")
    finish_a_run(prepare.folder, f"mini/{REACHER}")
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    before = stamp(path)
    monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], "trajectories", 60)
    line = refused(prepare, f"mini/{REACHER}")
    assert "trajectories is 60, the file was made with 50" in line and "--replace" in line
    assert f"runs/mini/{REACHER}" in line and stamp(path) == before
    monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], "trajectories", 50)
    assert "is up to date" in prepare(f"mini/{REACHER}")  # what was undone is forgotten
    monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], "trajectories", 60)
    out = prepare(f"mini/{REACHER}", "--replace")
    assert "6 of 60 episodes" in out
    assert f"to be made anew or moved out of runs/: runs/mini/{REACHER}/dt/seed0" in out


def test_fresh_makes_the_data_anew_because_code_is_not_compared(prepare, monkeypatch):
    prepare(f"mini/{REACHER}")
    finish_a_run(prepare.folder, f"mini/{REACHER}")
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    arrays = load_dataset(path)[0]
    assert "keeps its arrays" in prepare(f"mini/{REACHER}", "--fresh")

    def load(*given):  # what the source's code would be after a change
        episodes = once(*given)
        return episodes._replace(arrays=episodes.arrays | {"rewards": 2 * episodes.arrays["rewards"]})

    once = prepare_data.played.load
    monkeypatch.setattr(prepare_data.played, "load", load)
    assert "is up to date" in prepare(f"mini/{REACHER}")
    out = prepare(f"mini/{REACHER}", "--fresh")
    assert "it was asked for afresh" in out and "dt/seed0" in out
    np.testing.assert_array_equal(load_dataset(path)[0]["rewards"], 2 * arrays["rewards"])


@pytest.mark.parametrize("name, value", [("reference", (0.0, 50.0)), ("minimum_return", 20.5)])
def test_a_change_that_leaves_the_arrays_as_they_are_needs_no_leave(prepare, monkeypatch, name, value):
    prepare(f"mini/{REACHER}")
    finish_a_run(prepare.folder, f"mini/{REACHER}")
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    before, _ = load_dataset(path)
    monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], name, value)
    assert f"keeps its arrays, although {name} is" in prepare(f"mini/{REACHER}")
    after, provenance = load_dataset(path)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert provenance["made_from"][name] == (list(value) if name == "reference" else value)
    assert "is up to date" in prepare(f"mini/{REACHER}")


def test_a_changed_script_remakes_the_data(prepare, monkeypatch):
    scripts = prepare.folder / "scripts"
    shutil.copytree(players.WEIGHTS.parent.parent, scripts, ignore=shutil.ignore_patterns("weights"))
    monkeypatch.setattr(players, "WEIGHTS", scripts / "weights/players")
    monkeypatch.setitem(tasks.TASKS["breakout-medium"]["mini"], "player_horizon", 100)
    prepare("mini/breakout-medium-0.004")
    finish_a_run(prepare.folder, "mini/breakout-medium-0.004")
    with open(scripts / "atari.py", "a") as file:
        file.write("# a word more changes nothing\n")
    out = prepare("mini/breakout-medium-0.004")
    assert "keeps its arrays, although the source's SHA-256 is" in out
    with open(scripts / "atari.py", "a") as file:
        file.write("# and here somebody else plays\n")
    monkeypatch.setitem(players.SCRIPTS, "breakout", lambda env, rng: lambda observation: (1, 1))
    assert "the source's SHA-256 is" in refused(prepare, "mini/breakout-medium-0.004")
    shutil.rmtree(prepare.folder / "runs")
    assert "is made anew: the source's SHA-256 is" in prepare("mini/breakout-medium-0.004")


def test_a_file_that_does_not_say_from_what_is_made_anew(prepare):
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, provenance=np.array(seals.json_text({"data": "mini-reacher2d-ppo@bd6bd77f"})))
    assert "is made anew: the file does not say what it was made from" in prepare(f"mini/{REACHER}")
    load_dataset(path)


def test_a_damaged_file_is_one_line(prepare):
    prepare(f"mini/{REACHER}")
    path = prepare.folder / f"data/mini/{REACHER}.npz"
    path.write_bytes(path.read_bytes()[:1000])
    assert "is damaged" in refused(prepare, f"mini/{REACHER}")


def test_two_that_start_together_make_it_once(kit):
    command = kit.words(("prepare_data.py", "mini/hopper-medium-0.005", "--workers", "1"))
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **kit.surroundings({}))
            for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("is up to date" in out for out in said) == [False, True]
    assert sorted("10 of 2,186 episodes" in out for out in said) == [False, True]
    assert {path.name for path in (kit.folder / "data/mini").iterdir()} == {
        "hopper-medium-0.005.npz", "hopper-medium-heldout.npz"}


# --- stopped or killed, and asked again --------------------------------------------------------

@pytest.fixture
def log(prepare, monkeypatch):
    """Where each episode's number is written when it is played."""
    monkeypatch.setattr(players, "play_episode", logged(prepare.folder / "log"))
    (prepare.folder / "log").touch()
    return prepare.folder / "log"


def logged(log, until=None, then=None, play=players.play_episode):
    """play_episode, which has `then` called in place of the episode behind the first `until`."""
    def play_logged(config, number):
        if len(log.read_text().split()) == until:
            then()
        with open(log, "a") as file:
            print(number, file=file)
        return play(config, number)
    return play_logged


def numbers(log):
    """Of the episodes that were played since this was asked last."""
    found = [*map(int, log.read_text().split())]
    log.write_text("")
    return found


def made(prepare, log, *words):
    """{file: bytes} that a call ends in, with all episodes played; nothing is left of it."""
    prepare(*words)
    found = files(prepare.folder)
    shutil.rmtree(prepare.folder / "data")
    numbers(log)
    return found


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("data/**/*") if path.is_file()}


def broken(prepare, monkeypatch, log, until, *words):
    """Let a call end in an error behind so many episodes, each of which is kept in a file of its own. Returns
    their numbers."""
    with monkeypatch.context() as patched:
        patched.setattr(players, "play_episode", logged(log, until, lambda: 1 / 0))
        patched.setattr(played, "SAVE_EVERY", 0.0)
        with pytest.raises(ZeroDivisionError):
            prepare(*words)
    return numbers(log)


def kept(folder, name=REACHER):
    return sorted((folder / f"data/mini/{name}.played").glob("*"))


def stopped(prepare, monkeypatch, log, number, *, group):
    """(exit code, what it said) of a call that gets a signal while it plays the fourth of five episodes."""
    class Bar(tqdm):
        def update(self, n=1):
            open("ended", "a").write("x")

    process = os.fork()
    if process == 0:
        try:
            os.setsid()
            os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT), 2)
            monkeypatch.setattr(players, "play_episode", logged(log, 3, lambda: time.sleep(600)))
            monkeypatch.setattr(played, "tqdm", Bar)
            signals.catch()
            prepare(f"mini/{REACHER}")
        finally:
            os._exit(99)
    while not Path("ended").exists() or len(Path("ended").read_text()) < 3:
        assert os.waitpid(process, os.WNOHANG) == (0, 0), Path("said").read_text()
        time.sleep(0.01)
    (os.killpg if group else os.kill)(process, number)
    status = (0, 0)
    with pytest.raises(ProcessLookupError):  # nobody is left behind, and nobody waits for the fourth
        for _ in range(3000):
            status = os.waitpid(process, os.WNOHANG) if status == (0, 0) else status
            os.killpg(process, 0)
            time.sleep(0.01)
    return os.waitstatus_to_exitcode(status[1]), Path("said").read_text()


@pytest.mark.parametrize("number, code, group, count", [
    (signal.SIGKILL, -9, True, 1), (signal.SIGTERM, 143, False, 3), (signal.SIGINT, 130, True, 3)])
def test_a_stopped_call_goes_on_at_its_episodes(prepare, monkeypatch, log, number, code, group, count):
    """kill -9 leaves those that were written, a signal all that have ended, in one more file."""
    once = made(prepare, log, f"mini/{REACHER}")
    found, said = stopped(prepare, monkeypatch, log, number, group=group)
    first, bars = numbers(log), []
    assert found == code and len(first) == 3 and len(kept(prepare.folder)) == (1 if count == 1 else 2)
    assert said == "" if count == 1 else said == (
        f"prepare_data: stopped by {signal.Signals(number).name}; 3 of 5 episodes are kept; the same command "
        "goes on\n")
    monkeypatch.setattr(played, "tqdm", lambda **how: bars.append(how) or tqdm(**how))
    out = prepare(f"mini/{REACHER}")
    assert f"data/mini/{REACHER}.played: goes on at {count} of 5 episodes\n" in out
    assert (bars[0]["initial"], bars[0]["total"], bars[1]["initial"], bars[1]["total"]) == (count, 5, 0, 2)
    assert files(prepare.folder) == once and not kept(prepare.folder)
    _, provenance = load_dataset(prepare.folder / f"data/mini/{REACHER}.npz")
    assert numbers(log) == [n for n in provenance["episodes"] if n not in first[:count]] + [50_000, 50_001]


def test_a_process_that_is_killed_costs_its_own_episode(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    with monkeypatch.context() as patched:
        patched.setattr(players, "play_episode", logged(log, 3, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        line = refused(prepare, f"mini/{REACHER}")
    assert "was killed" in line and "3 of 5 episodes are kept" in line and len(numbers(log)) == 3
    prepare(f"mini/{REACHER}")
    assert files(prepare.folder) == once and len(numbers(log)) == 2 + 2


def test_heldout_episodes_go_on_as_a_cells_own(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    assert broken(prepare, monkeypatch, log, 6, f"mini/{REACHER}")[5:] == [50_000]
    assert kept(prepare.folder, "reacher2d-medium-heldout") and not kept(prepare.folder)
    out = prepare(f"mini/{REACHER}")
    assert "is up to date" in out and "heldout.played: goes on at 1 of 2 episodes" in out
    assert files(prepare.folder) == once and numbers(log) == [50_001]


def test_games_go_on_by_a_script_that_names_its_data_by_what_it_played(prepare, monkeypatch, log):
    monkeypatch.setitem(tasks.TASKS["breakout-medium"]["mini"], "player_horizon", 60)
    cell = "mini/breakout-medium-0.012"
    once = made(prepare, log, cell)
    broken(prepare, monkeypatch, log, 2, cell)
    chunk = kept(prepare.folder, "breakout-medium-0.012")[0]
    assert chunk.stat().st_size < 60 * 84 * 84 / 5  # its frames are compressed
    prepare(cell)
    assert files(prepare.folder) == once and len(numbers(log)) == 1 + 2


def test_what_is_kept_and_damaged_is_played_again_in_one_line(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    for damage in (lambda whole: whole[:-9], lambda whole: b"", lambda whole: b"x" * 100,
                   lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]):
        first = broken(prepare, monkeypatch, log, 3, f"mini/{REACHER}")
        path = kept(prepare.folder)[0]
        path.write_bytes(damage(path.read_bytes()))
        out = prepare(f"mini/{REACHER}")
        again, = [line for line in out.splitlines() if "is damaged" in line]
        assert path.name in again and "its episodes are played again" in again
        assert "goes on at 2 of 5" in out and files(prepare.folder) == once
        assert int(path.stem) in first and int(path.stem) in numbers(log)
        shutil.rmtree(prepare.folder / "data")


def change(monkeypatch, what):
    if what == "player":
        monkeypatch.setattr(played, "digest", lambda *_: "0" * 64)
    elif what == "code":
        monkeypatch.setattr(played, "code_digest", lambda: "0" * 64)
    else:
        value = {"horizon": 90, "minimum_return": -1.0}[what]
        monkeypatch.setitem(tasks.TASKS["reacher2d-medium"], what, value)


@pytest.mark.parametrize("what", ["player", "code", "horizon", "minimum_return"])
def test_what_another_player_or_other_settings_left_is_not_used(prepare, monkeypatch, log, what):
    with monkeypatch.context() as patched:
        change(patched, what)
        once = made(prepare, log, f"mini/{REACHER}")
    broken(prepare, monkeypatch, log, 3, f"mini/{REACHER}")
    change(monkeypatch, what)
    out = prepare(f"mini/{REACHER}")
    said, = [line for line in out.splitlines() if "of another player, other settings or other code" in line]
    assert f"data/mini/{REACHER}.played" in said and "its episodes are played again" in said
    assert files(prepare.folder) == once and len(numbers(log)) == 5 + 2


def test_an_episode_that_another_subset_kept_is_used_by_its_number(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    wanted = choose(50, 0.1, 0)
    monkeypatch.setattr(played, "choose", lambda *_: np.sort(np.append(wanted[2:4], [0, 49])))
    broken(prepare, monkeypatch, log, 3, f"mini/{REACHER}")
    monkeypatch.setattr(played, "choose", choose)
    prepare(f"mini/{REACHER}")
    assert files(prepare.folder) == once and numbers(log)[:-2] == [*np.delete(wanted, [2, 3])]


def test_fresh_starts_without_what_was_kept(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    broken(prepare, monkeypatch, log, 3, f"mini/{REACHER}")
    assert "goes on" not in prepare(f"mini/{REACHER}", "--fresh")
    assert files(prepare.folder) == once and len(numbers(log)) == 5 + 2


def test_what_is_kept_of_a_file_that_is_there_is_removed(prepare, monkeypatch, log):
    """As a call leaves it that was killed between the two."""
    prepare(f"mini/{REACHER}")
    before = files(prepare.folder)
    for path in [*prepare.folder.glob("data/mini/*.npz")]:
        path.with_suffix(".played").mkdir()
        shutil.copy(path, path.with_suffix(".played") / "1.npz")
    assert "is up to date" in prepare(f"mini/{REACHER}")
    assert files(prepare.folder) == before and len([*prepare.folder.glob("data/mini/*")]) == 2


def test_a_disk_that_is_full_while_episodes_are_kept_is_one_line(prepare, monkeypatch, log):
    once = made(prepare, log, f"mini/{REACHER}")
    broken(prepare, monkeypatch, log, 2, f"mini/{REACHER}")
    before = files(prepare.folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        line = refused(prepare, f"mini/{REACHER}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ".played/" in line and "could not be written" in line and files(prepare.folder) == before
    numbers(log)
    prepare(f"mini/{REACHER}")
    assert files(prepare.folder) == once and len(numbers(log)) == 3 + 2


# --- the paper profile: what was given ---------------------------------------------------------

def test_a_given_file_is_kept_without_the_word_and_compared_with_it(prepare, monkeypatch):
    monkeypatch.setattr(prepare_data.d4rl, "download", lambda *_: pytest.fail("it is not looked for"))
    cell = "paper/hopper-medium-0.1"
    one = write_d4rl(prepare.folder / "one.hdf5", d4rl_arrays()[0])
    two = write_d4rl(prepare.folder / "two.hdf5", d4rl_arrays(seed=1)[0])
    prepare(cell, "--data", one)
    finish_a_run(prepare.folder, cell)
    path = prepare.folder / f"data/{cell}.npz"
    before = stamp(path)
    assert load_provenance(path)["data"].startswith("one.hdf5@")
    assert "up to date, from one.hdf5@" in prepare(cell) and "which was given" in prepare(cell, "--replace")
    assert "which was given, and it is asked for afresh; give it again" in refused(prepare, cell, "--fresh")
    shutil.copy(one, prepare.folder / "copy.hdf5")
    assert "is up to date" in prepare(cell, "--data", prepare.folder / "copy.hdf5")
    line = refused(prepare, cell, "--data", two)
    assert "the source's SHA-256 is" in line and "--replace" in line
    with monkeypatch.context() as patched:  # what it was made from is not there to cut it otherwise
        patched.setitem(tasks.TASKS["hopper-medium"], "max_timestep", 500)
        line = refused(prepare, cell)
    assert "max_timestep is 500, the file was made with 1000" in line and "--data" in line
    assert "one.hdf5@" in line and stamp(path) == before
    assert "is made anew" in prepare(cell, "--data", two, "--replace")
    assert load_provenance(path)["data"].startswith("two.hdf5@")


def test_a_downloaded_file_is_not_asked_for_again(prepare, monkeypatch):
    cell = "paper/hopper-medium-0.1"
    source = write_d4rl(prepare.folder / "hopper_medium-v2.hdf5", d4rl_arrays()[0])
    asked = []
    monkeypatch.setattr(prepare_data.d4rl, "download", lambda urls, *_: asked.append(urls) or source)
    prepare(cell)
    provenance = load_provenance(prepare.folder / f"data/{cell}.npz")
    assert not provenance["given"] and asked
    asked.clear()
    assert "is up to date" in prepare(cell) and not asked
    monkeypatch.setitem(tasks.TASKS["hopper-medium"], "max_timestep", 500)
    assert "keeps its arrays, although max_timestep is 500" in prepare(cell) and asked


def test_a_replay_cell_on_disk_comes_back(prepare):
    arrays, lengths = replay_arrays(actions=6)
    write_replay(prepare.folder / "replay", arrays)
    prepare("paper/pong-medium-1", "--data", prepare.folder / "replay")
    data, provenance = load_dataset(prepare.folder / "data/paper/pong-medium-1.npz")
    assert np.array_equal(data["observations"], arrays["observation"][:lengths.sum()])
    assert data["observations"].dtype == np.uint8 and data["actions"].dtype == np.int64
    assert provenance["data"].startswith("dqn-replay-Pong-1-10@")
    assert provenance["return_mean"] is None            # clipped rewards are no score
    assert provenance["made_from"]["source"] == "replay"


def test_one_folder_serves_all_suites(prepare):
    """DATA=/data for `make all`: a folder a suite, and what it lacks of Reacher2d is played."""
    top = prepare.folder / "datasets"
    for name in ("mujoco", "reacher2d"):
        (top / name).mkdir(parents=True)
    write_d4rl(top / "mujoco/hopper_medium-v2.hdf5", d4rl_arrays()[0])
    write_replay(top / "atari/Pong/1/replay_logs", replay_arrays(actions=6)[0])
    assert "from hopper_medium-v2.hdf5@" in prepare("paper/hopper-medium-0.1", "--data", top)
    assert "from dqn-replay-Pong-1-10@" in prepare("paper/pong-medium-0.1", "--data", top)
    out = prepare(f"paper/{REACHER}", "--data", top)
    assert f"{top} has no file for reacher2d-medium, so its data are played\n" in out
    assert "from kit-reacher2d-ppo@bd6bd77f" in out
    assert "is up to date" in prepare(f"paper/{REACHER}", "--data", top)
    assert "is up to date" in prepare(f"paper/{REACHER}")
    # and what it has is taken
    write_d4rl(top / "reacher2d/reacher2d-medium.hdf5", d4rl_arrays(state_dim=12, action_dim=2)[0])
    out = prepare(f"paper/{REACHER}", "--data", top)
    assert "source is d4rl, the file was made with played" in out and "reacher2d-medium@" not in out
    assert "from reacher2d-medium.hdf5@" in out and "is up to date" in prepare(f"paper/{REACHER}")


def test_a_named_file_or_url_is_taken_for_reacher2d_and_a_mistyped_one_refused(prepare):
    served = prepare.folder / "served"
    served.mkdir()
    path = write_d4rl(served / "mine.hdf5", d4rl_arrays(state_dim=12, action_dim=2)[0])
    assert "from mine.hdf5@" in prepare(f"paper/{REACHER}", "--data", path)
    provenance = load_provenance(prepare.folder / f"data/paper/{REACHER}.npz")
    assert provenance["given"] and provenance["reference_max"] == 100
    line = refused(prepare, "paper/reacher2d-medium-0.3", "--data", prepare.folder / "nowhere")
    assert "found no file at" in line and "reacher2d-medium.hdf5" in line
    other = write_d4rl(prepare.folder / "hopper.hdf5", d4rl_arrays()[0])
    assert "another environment" in refused(prepare, "paper/reacher2d-medium-0.3", "--data", other)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(served))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert "is up to date" in prepare(f"paper/{REACHER}", "--data", f"{url}/mine.hdf5")
    assert "so its data are played" in prepare("paper/reacher2d-medium-0.3", "--data", url)
    assert "404" in refused(prepare, "paper/reacher2d-medium-1", "--data", f"{url}/nowhere.hdf5")
    server.shutdown()


def test_train_refuses_another_games_actions(kit, tmp_path):
    write_replay(tmp_path / "replay", replay_arrays(actions=6)[0])
    kit("prepare_data.py", "paper/pong-medium-1", "--data", str(tmp_path / "replay"))
    data = kit.folder / "data/paper"
    (data / "pong-medium-1.npz").rename(data / "breakout-medium-1.npz")
    assert "does not have" in one_line(kit("train.py", "paper/breakout-medium-1/dt/seed0", check=False))
    done = kit("train.py", "paper/breakout-medium-1/dt/seed0", "--schedule", "nonsense", check=False)
    assert "invalid choice" in one_line(done)


def test_a_source_of_ones_own_is_a_file_and_a_word(prepare, monkeypatch):
    """What docs/extending.md promises: SETTINGS, digest and load, and its line in the table."""
    data = {"observations": np.zeros((5, 11), np.float32), "last_observations": np.zeros((2, 11), np.float32),
            "actions": np.zeros((5, 3), np.float32), "rewards": np.ones(5, np.float32),
            "terminals": np.arange(5) == 1, "offsets": np.array([0, 2, 5])}

    def load(config, where, options):
        return Episodes("own", "own.bin", "0" * 64, 4, np.array([1, 3]), data, np.array([2.0, 3.0]))

    own = SimpleNamespace(__name__="sources.own", SETTINGS=(), digest=lambda *_: "0" * 64, load=load)
    monkeypatch.setitem(prepare_data.SOURCES, "mujoco", own)
    out = prepare("paper/hopper-medium-0.5")
    assert "2 of 4 episodes, 5 steps, from own@00000000; return 2.5 +- 0.7071" in out
    _, provenance = load_dataset(prepare.folder / "data/paper/hopper-medium-0.5.npz")
    assert provenance["made_from"]["source"] == "own" and provenance["episodes"] == [1, 3]


def test_wrong_names_end_in_one_line(kit):
    for name, said in (("mini/hopper-medium-2", "ratio"), ("mini/hoper-medium-0.1", "hopper-medium"),
                       ("big/hopper-medium-0.1", "mini, paper"), ("big/text", "mini/text")):
        assert said in one_line(kit("prepare_data.py", name, check=False))


# --- text --------------------------------------------------------------------------------------

@pytest.fixture
def words(prepare):
    """Two text files."""
    for name in ("one", "two"):
        (prepare.folder / f"{name}.txt").write_text(f"The cat sat on {name} mat.\n" * 50)
    return prepare.folder


def texts(folder, profile="paper"):
    return sorted((folder / "data" / profile).glob("text-*.npz"))


def test_tokens_are_named_by_the_tokenizers_digest_and_not_by_its_folder(prepare, words, tiny_gpt2):
    """/b/gpt2 does not get the tokens of /a/gpt2, and a copy of a tokenizer does not make them twice."""
    for place in ("a", "b", "c"):
        shutil.copytree(tiny_gpt2, words / place / "gpt2")
    tokenizer = json.loads((words / "b/gpt2/tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (words / "b/gpt2/tokenizer.json").write_text(json.dumps(tokenizer))
    for place in ("a", "b", "c"):
        out = prepare("paper/text", "--lm", words / place / "gpt2", "--text", words / "one.txt")
        assert ("is up to date" in out) == (place == "c")
    a, b = (load_arrays(path, ["tokens"]) for path in texts(words))
    assert len(a[0]["tokens"]) != len(b[0]["tokens"])
    assert {found["text"] for _, found in (a, b)} == {"one.txt"}
    assert a[0]["tokens"].dtype == np.uint32 and a[1]["tokens"] == len(a[0]["tokens"])


def test_text_is_kept_without_the_word_and_another_is_refused(prepare, words, tiny_gpt2):
    same = ("paper/text", "--lm", tiny_gpt2)
    assert "tokens of one.txt" in prepare(*same, "--text", words / "one.txt")
    path, = texts(words)
    before = stamp(path)
    shutil.copy(words / "one.txt", words / "copy.txt")
    for more in ((), ("--text", words / "one.txt"), ("--text", words / "copy.txt"), ("--replace",)):
        assert "is up to date, from one.txt" in prepare(*same, *more)
    line = refused(prepare, *same, "--text", words / "two.txt")
    assert "holds one.txt" in line and "two.txt" in line and "--replace" in line
    assert stamp(path) == before
    assert "tokens of two.txt" in prepare(*same, "--text", words / "two.txt", "--replace")
    assert load_provenance(path)["text"] == "two.txt"


def test_the_papers_language_model_needs_no_word(kit, tmp_path, tiny_gpt2):
    """As the hub's cache keeps it."""
    snapshot = tmp_path / "hub/models--gpt2/snapshots/0"
    shutil.copytree(tiny_gpt2, snapshot)
    (tmp_path / "hub/models--gpt2/refs").mkdir()
    (tmp_path / "hub/models--gpt2/refs/main").write_text("0")
    (kit.folder / "one.txt").write_text("The cat sat on the mat.\n" * 50)
    out = kit("prepare_data.py", "paper/text", "--text", "one.txt", HF_HUB_CACHE=str(tmp_path / "hub"),
              HF_HUB_OFFLINE="1").stdout
    assert "tokens of one.txt" in out and load_provenance(texts(kit.folder)[0])["lm"] == "gpt2"


def test_text_is_looked_at_before_the_tokenizer_is_loaded(prepare, words, monkeypatch):
    monkeypatch.setattr(prepare_data.text, "WIKITEXT", ("http://127.0.0.1:9/wikitext.zip",))
    line = refused(prepare, "paper/text", "--lm", "/no/such/lm", "--text", words / "nowhere.txt")
    assert "nowhere.txt is no readable text" in line
    line = refused(prepare, "paper/text", "--lm", "/no/such/lm")
    assert "could not download wikitext.zip" in line and "TEXT=/path/to" in line
    line = refused(prepare, "paper/text", "--lm", "/no/such/lm", "--text", words / "one.txt")
    assert "there is no folder /no/such/lm" in line


def test_the_hint_for_missing_text_is_a_command_that_works(prepare, words, tiny_gpt2, monkeypatch):
    monkeypatch.setattr(prepare_data.text, "WIKITEXT", ("http://127.0.0.1:9/wikitext.zip",))
    line = refused(prepare, "paper/text", "--lm", tiny_gpt2)
    assert "pass TEXT=/path/to/wiki.train.raw (--text)" in line
    with pytest.raises(SystemExit, match="python prepare_data.py paper/text --lm") as stop:
        load_arrays(prepare.folder / "data/paper/text-00000000.npz", ["tokens"])
    profile, lm = str(stop.value).split("prepare_data.py ")[1].split()[:2]
    assert profile == "paper/text" and lm == "--lm"


def test_a_damaged_text_is_one_line(prepare, words, tiny_gpt2):
    prepare("paper/text", "--lm", tiny_gpt2, "--text", words / "one.txt")
    path, = texts(words)
    path.write_bytes(path.read_bytes()[:500])
    assert "is damaged" in refused(prepare, "paper/text", "--lm", tiny_gpt2)
