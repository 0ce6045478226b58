"""What a call of make has to do, decided from records alone: no model is trained here."""

import os
from types import SimpleNamespace

import pytest

from kit import artifacts, seals, settings, status
from kit.plan import check_places, plan, sha256

CELL, RUNS = "hopper-medium-0.01", "runs/mini/hopper-medium-0.01"
BLANK = {"PROFILE": "mini", "METHODS": "lamo", "SEEDS": "0", "LM": "", "DATA": "", "TEXT": "", "ARGS": "",
         "REPLACE": "", "FRESH": ""}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """asked(METHODS="dt", ...): the words for the cell, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda every=False, **words: plan([CELL], every, BLANK | words)


@pytest.fixture
def refused(asked, capsys):
    """As asked, for a call that is refused: its line."""
    def call(every=False, **words):
        with pytest.raises(SystemExit) as stop:
            asked(every, **words)
        assert "\n" not in str(stop.value.code)
        return str(stop.value.code)
    return call


def finish(tmp_path, method="lamo", seed=0, played=True, inputs=None, cell=CELL, **changed):
    """A finished run as its record has it."""
    run = f"mini/{cell}/{method}/seed{seed}"
    folder = tmp_path / "runs" / run
    folder.mkdir(parents=True)
    config = settings.configuration(run) | changed
    artifacts.write_json(folder / "config.json", config | {"inputs": inputs or {}, "text": None})
    (folder / "final.safetensors").touch()
    if played:
        (folder / "eval.csv").touch()
        how = {name: config[name] for name in settings.EVALUATION if name in config}
        artifacts.write_json(folder / "eval.json", how)
    return folder


def test_what_is_not_there_is_made_and_what_is_finished_is_not(asked, tmp_path):
    run = f"mini/{CELL}/lamo/seed0"
    assert asked() == [f"run:{run}", f"train:{run}", f"data:mini/{CELL}"]
    finish(tmp_path, played=False)
    assert asked() == [f"run:{run}", f"evaluate:{run}"]
    finish(tmp_path, seed=1)
    assert asked(SEEDS="1") == [f"run:mini/{CELL}/lamo/seed1"]


def test_a_record_without_a_newer_setting_had_its_default(asked, refused, tmp_path):
    folder = finish(tmp_path)
    config = seals.read_json(folder / "config.json")
    assert config.pop("grad_clip") == settings.UNSAID["grad_clip"]
    artifacts.write_json(folder / "config.json", config)
    assert asked() == [f"run:mini/{CELL}/lamo/seed0"]
    assert "grad_clip is 0.25, not 7.0" in refused(ARGS="--grad_clip 7")


def test_an_input_that_changed_is_noticed_whatever_its_date(asked, refused, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"one")
    finish(tmp_path, inputs={"weights": sha256(weights)})
    assert asked() == [f"run:mini/{CELL}/lamo/seed0"]
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, (1, 1))  # as cp -p brings an older one
    os.replace(other, weights)
    sha256.cache_clear()
    assert "weights was another file when it was trained" in refused()


def test_a_table_of_subsets_that_are_all_the_same_is_refused_before_it_is_trained(capsys):
    with pytest.raises(SystemExit, match="all subsets are the same episodes; say hopper-medium-1 "):
        plan(["hopper-medium-1-dN"], False, BLANK)
    assert len(plan(["hopper-medium-1"], False, BLANK | {"SUBSETS": "seed"})) == 3


def test_one_folder_under_two_names_is_one_language_model(asked, refused, tmp_path):
    for name in ("models/gpt2", "models/other"):
        (tmp_path / name).mkdir(parents=True)
    finish(tmp_path, lm="models/gpt2")
    assert asked(LM=str(tmp_path / "models/gpt2")) == asked(LM="models/../models/gpt2/") == [
        f"run:mini/{CELL}/lamo/seed0"]
    assert "lm is" in refused(LM="models/other")


def test_a_language_model_in_args_would_miss_the_text(refused):
    assert "say LM=mini-random" in refused(ARGS="--lm mini-random")
    for words in ("--stepz 4", "--steps 0", "--trunk none"):
        line = refused(ARGS=words)
        assert f"ARGS={words!r}: " in line and "python train.py --help names the settings" in line


def test_another_text_is_looked_at_also_for_a_finished_run(asked, tmp_path):
    finish(tmp_path, "lamo-lm1")
    run = f"mini/{CELL}/lamo-lm1/seed0"
    assert asked(METHODS="lamo-lm1") == [f"run:{run}"]
    words = asked(METHODS="lamo-lm1", TEXT="wiki.raw")  # train.py leaves it alone if the text is the same
    assert f"text:{run}" in words and f"train:{run}" in words
    finish(tmp_path)  # which reads none
    assert asked(TEXT="wiki.raw") == [f"run:mini/{CELL}/lamo/seed0"]


def test_a_seed_that_no_table_could_average_with_the_others_is_refused_before_it_is_trained(
        asked, refused, tmp_path):
    finish(tmp_path)
    assert len(asked(SEEDS="1")) == 3
    line = refused(SEEDS="1", ARGS="--steps 7")
    assert "steps is 1200, not 7" in line and "a table does not mix runs" in line and "lamo/seed0" in line
    assert "episodes is" in refused(SEEDS="1", ARGS="--episodes 7")
    assert len(asked(SEEDS="0 1", ARGS="--steps 7", REPLACE="1")) == 5  # both are made anew
    (tmp_path / RUNS / "lamo/seed0").rename(tmp_path / RUNS / "lamo/seed0.old")
    assert len(asked(SEEDS="1", ARGS="--steps 7")) == 3


def test_so_is_a_subset_and_what_is_in_other_tables_is_none_of_its_business(asked, refused, tmp_path):
    finish(tmp_path, seed=3, steps=4)  # of subset 0, so of no table of subsets
    assert len(asked(SEEDS="0 1", SUBSETS="seed")) == 6
    folder = finish(tmp_path, seed=1, cell=f"{CELL}-d1", steps=4)
    finish(tmp_path, seed=2, cell=f"{CELL}-d1", steps=5)
    for words in ({"SEEDS": "0 2", "SUBSETS": "seed"}, {"SEEDS": "2", "SUBSETS": "seed"}):
        assert "-d1/lamo/seed1 steps is 4, not 1200, and a table does not mix runs" in refused(**words)
    with pytest.raises(SystemExit, match="steps is 4, not 1200"):
        plan([f"{CELL}-dN"], False, BLANK | {"SEEDS": "2"})  # another way to say it
    with pytest.raises(SystemExit, match="lamo/seed3 steps is 4"):
        plan([CELL, f"{CELL}-dN"], False, BLANK | {"SEEDS": "0 1"})  # both tables
    assert len(asked(SEEDS="0 1", SUBSETS="seed", REPLACE="1")) == 6
    whole = plan(["hopper-medium-1"], False, BLANK | {"SEEDS": "0 1", "SUBSETS": "seed"})
    assert "run:mini/hopper-medium-1/lamo/seed1" in whole and not any("-d1" in word for word in whole)
    folder.rename(folder.with_name("seed1.old"))
    assert len(asked(SEEDS="0 2", SUBSETS="seed")) == 6


def test_replace_plays_anew_what_was_played_otherwise(asked, tmp_path):
    finish(tmp_path)
    run = f"mini/{CELL}/lamo/seed0"
    assert f"evaluate:{run}" in asked(ARGS="--episodes 7", REPLACE="1")
    assert f"evaluate:{run}" not in asked(REPLACE="1")


@pytest.mark.parametrize("word", ["fresh", "replace", "tensorboard"])
def test_words_of_makes_own_are_not_for_args(refused, word):
    assert f"say {word.upper()}=1" in refused(ARGS=f"--{word}")


@pytest.mark.parametrize("name", ["config.json", "eval.json"])
def test_a_damaged_record_says_what_to_do_and_fresh_does_it(asked, refused, tmp_path, name):
    folder = finish(tmp_path)
    (folder / name).write_text("")
    line = refused()
    assert f"seed0/{name} is not readable" in line
    assert ("FRESH=1" if name == "config.json" else "played again") in line
    assert f"train:mini/{CELL}/lamo/seed0" in asked(FRESH="1")


def test_more_than_three_differences_are_three_and_more(refused, tmp_path):
    finish(tmp_path)
    line = refused(ARGS="--steps 1 --lr 1 --batch_size 2 --context 3")
    assert " and more; ask for it" in line and line.count(" is ") == 3


@pytest.mark.parametrize("words, said", [
    ({"METHODS": ""}, "METHODS='' names none"), ({"METHODS": "dt dt"}, "or one twice"),
    ({"METHODS": "dt nonsense"}, "no method 'nonsense'"), ({"METHODS": "dt\nlamo;"}, "no method 'lamo;'"),
    ({"SEEDS": " "}, "names none"), ({"SEEDS": "1 1"}, "or one twice"),
    *(({"SEEDS": seed}, "is no seed") for seed in (
        "00", "01", "-1", "+1", "1.0", "٣", "²", "0/../seed1", "9" * 30, "$(id)")),
    ({"PROFILE": ""}, "PROFILE='' names none"), ({"PROFILE": "big"}, "no profile 'big'"),
    ({"PROFILE": "mini paper"}, "names two"), ({"SUBSETS": "0"}, "SUBSETS=seed"),
    *(({name: "0"}, f"{name}='0' is not known; {name}=1") for name in ("REPLACE", "FRESH", "TENSORBOARD")),
    *(({name: word}, f"{name}='{word}' is no whole number in") for name in ("THREADS", "GPUS")
      for word in ("0", "abc", "-1", "1.5", "٣", "99999")),
    ({"DATA": "/d4rl"}, "DATA= belongs to PROFILE=paper"), ({"ARGS": "--steps 0"}, "--steps"),
    ({"ARGS": "--context 5000"}, "context is 5000"), ({"ARGS": "--lm 'x"}, "cannot be read"),
    ({"ARGS": "--steps 4; touch f"}, "4;"), ({"LM": " "}, "lm is ' '")])
def test_words_that_mean_nothing_are_one_line(refused, words, said):
    for every in (False, True):
        assert said in refused(every, **words)


def test_a_cell_that_is_asked_for_twice_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cells, said in (([CELL, CELL], "names a cell twice"), (["hopper-medium-0.10"], "'0.10' in"),
                        (["hopper-medium-0.01;touch f"], "is no ratio"), (["../hopper-medium-1"], "no cell")):
        with pytest.raises(SystemExit, match=said):
            plan(cells, False, BLANK)


def test_all_of_what_no_task_has_is_one_line_and_not_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="METHODS='iql' has no run there; iql needs continuous actions"):
        plan(["pong-medium-0.1"], True, BLANK | {"METHODS": "iql"})
    words = plan(["pong-medium-0.1", CELL], True, BLANK | {"METHODS": "iql"})
    assert words[0] == f"run:mini/{CELL}/iql/seed0"


@pytest.mark.parametrize("name, word", [("DATA", "nosuch"), ("TEXT", "nosuch.txt"), ("LM", "/nosuch"),
                                        ("LM", "./nosuch"), ("LM", "nosuch.gguf")])
def test_a_place_that_is_not_there_is_one_line_before_anything_runs(tmp_path, monkeypatch, name, word):
    with pytest.raises(SystemExit, match=f"there is nothing at {name}={word}"):
        check_places(BLANK | {name: word})
    check_places(BLANK | {name: str(tmp_path)})
    monkeypatch.setenv(name, word)  # nor does make plan count what could not start
    with pytest.raises(SystemExit, match=f"there is nothing at {name}={word}"):
        status.main(SimpleNamespace(cells=[CELL], watch=False, plan=True, failed=False))
    check_places(BLANK | {"DATA": "https://nowhere/x", "TEXT": "http://nowhere/x", "LM": "gpt2"})


def test_a_changed_language_model_is_noticed_under_any_path(asked, refused, tmp_path):
    folder = tmp_path / "my $HOME 'lm'; \"ü\""
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"one")
    words = {"LM": str(folder)}
    finish(tmp_path, lm=str(folder), inputs={os.path.relpath(weights): seals.sha256(weights)})
    assert asked(**words) == [f"run:mini/{CELL}/lamo/seed0"]
    weights.write_bytes(b"two")
    sha256.cache_clear()
    assert "was another file when it was trained" in refused(**words)
