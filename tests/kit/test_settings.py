"""kit/settings.py: a run's name -> its configuration, the paper's settings, and what make is told."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import KIT, one_line

import kit
import tasks
from kit import settings
from kit.quick import pick_device
from kit.settings import configuration

RUN = "mini/hopper-medium-0.01/lamo/seed0"


# --- names -------------------------------------------------------------------------------------

@pytest.mark.parametrize("written", [RUN, f"{RUN}/", f"runs/{RUN}", f"runs/{RUN}/", f"/runs/{RUN}//",
                                     f"./runs/{RUN}", f"./{RUN}/"])
def test_a_run_is_the_same_however_its_folder_is_written(written):
    assert settings.run_name(written) == RUN
    assert settings.parse_run(written) == ("mini", "hopper-medium", 0.01, "lamo", 0)
    assert configuration(written) == configuration(RUN)
    assert configuration(written)["cell"] == "hopper-medium-0.01"
    assert settings.options("").parse_args([written]).run == RUN


def test_a_cell_is_the_same_with_a_slash_behind_it():
    for written in ("mini/hopper-medium-0.01", "mini/hopper-medium-0.01/"):
        assert settings.parse_cell(written) == ("mini", "hopper-medium", 0.01)
    assert settings.run_name("runs/mini/hopper-medium-0.01/") == "mini/hopper-medium-0.01"


def test_a_cell_may_carry_the_number_of_its_subset():
    run = "mini/hopper-medium-0.01-d3/lamo/seed5"
    assert settings.parse_run(run) == ("mini", "hopper-medium", 0.01, "lamo", 5)
    changed = {"cell": "hopper-medium-0.01-d3", "seed": 5}
    assert configuration(run) == configuration(RUN) | changed  # its settings are those of the plain cell
    assert settings.split_subset("hopper-medium-0.01-d30") == ("hopper-medium-0.01", 30)
    assert settings.split_subset("hopper-medium-0.01-dN") == ("hopper-medium-0.01", "N")
    assert settings.split_subset("hopper-medium-0.01") == ("hopper-medium-0.01", 0)
    assert settings.parse_cell("mini/hopper-medium-0.01-dN") == ("mini", "hopper-medium", 0.01)
    assert settings.of_seed("pong-medium-1-dN", "0") == "pong-medium-1"
    assert settings.of_seed("pong-medium-1-dN", 2) == "pong-medium-1-d2"
    assert settings.of_seed("pong-medium-1-d4", 2) == "pong-medium-1-d4"


def test_an_older_record_has_the_defaults_of_settings_that_came_later():
    wanted = json.loads(json.dumps(configuration(RUN)))
    old = {name: value for name, value in wanted.items() if name != "lm_layers"}
    assert settings.differences(old, wanted) == [] and settings.changed(RUN, old) == ""
    assert settings.differences(old, configuration(RUN, lm_layers=8)) == ["lm_layers is 0, not 8"]
    assert settings.differences(old | {"lm_layers": 8}, wanted) == ["lm_layers is 8, not 0"]
    assert settings.changed(RUN, old | {"lm_layers": 8}) == "lm_layers=8"
    assert configuration("mini/hopper-medium-0.01/dt/seed0", lm_layers=8)["lm_layers"] == 0  # it has no LM
    assert "lm_layers" not in configuration("mini/hopper-medium-0.01/iql/seed0", lm_layers=8)


@pytest.mark.parametrize("name, said", [
    ("mini/hopper-medium-0.1-d0/lamo/seed0", "subset 0 is the cell itself.*; write hopper-medium-0.1$"),
    ("mini/hopper-medium-0.1-d03/lamo/seed0", "begins with 0; write hopper-medium-0.1-d3$"),
    ("mini/hopper-medium-0.1-dx/lamo/seed0", "no task .*TASK-RATIO-dSUBSET"),
    ("mini/hopper-medium-0.1-dN/lamo/seed0", "is no run: -dN names a table"),
    ("big/hopper-medium-0.1/lamo/seed0", "no profile 'big'.*mini, paper"),
    ("mini/hoper-medium-0.1/lamo/seed0", "no task 'hoper-medium'.*hopper-medium"),
    ("mini/hopper-medium/lamo/seed0", "no task 'hopper'"),
    ("mini/hopper-medium-2/lamo/seed0", "'2' in .* is no ratio"),
    ("mini/hopper-medium-0/lamo/seed0", "'0' in .* is no ratio"),
    ("mini/hopper-medium-half/lamo/seed0", "'half' in .* is no ratio"),
    ("mini/hopper-medium-0.1/nonsense/seed0", "no method 'nonsense'; there are lamo, dt"),
    ("mini/hopper-medium-0.1/lamo", "is no run; a run is PROFILE/CELL/METHOD/seedN"),
    ("mini/hopper-medium-0.1/lamo/0", "is no run"), ("mini/hopper-medium-0.1/lamo/seed", "is no run"),
    ("mini/hopper-medium-1/lamo-released/seed0", "lamo-released would be plain lamo"),
    ("mini/pong-medium-1/iql/seed0", "iql needs continuous actions.*use bc or cql")])
def test_wrong_names_end_in_one_line(name, said):
    with pytest.raises(SystemExit, match=said) as stop:
        configuration(name)
    assert "\n" not in str(stop.value)


def test_every_cell_and_method_has_a_configuration_in_both_profiles():
    assert len(settings.cells()) == len(set(settings.cells())) == sum(
        len(row["ratios"]) for row in tasks.TASKS.values())
    for profile in tasks.PROFILES:
        for cell in settings.cells():
            _, task, _ = settings.parse_cell(f"{profile}/{cell}")
            for method in tasks.METHODS:
                if not settings.missing(task, method):
                    config = configuration(f"{profile}/{cell}/{method}/seed3")
                    assert config["seed"] == 3 and not any(isinstance(v, dict) for v in config.values())
                    assert config["pixels"] == config["discrete"] == (config["suite"] == "atari")
                    assert config["kind"] == ("baseline" if settings.is_baseline(method) else "sequence")
                    assert config["released"] is (method == "lamo-released") if "released" in config else True


# --- configurations ----------------------------------------------------------------------------

def test_overrides_are_those_that_the_method_knows():
    assert configuration(RUN, steps=7, lm=None, discount=0.5)["steps"] == 7
    assert configuration(RUN, lm=None)["lm"] == "mini" and "discount" not in configuration(RUN, discount=0.5)
    assert configuration(RUN, lm="/models/gpt2/")["lm"] == "/models/gpt2"
    assert configuration(RUN, adapter="here/")["adapter"] == "here"
    for method in ("wiki", "lamo-full", "lamo-frozen", "dt"):  # which have no LoRA that it could start
        assert configuration(RUN.replace("lamo", method), adapter="here/")["adapter"] == ""
    baseline = configuration(RUN.replace("lamo", "td3bc"), lora_rank=8, discount=0.5)
    assert baseline["discount"] == 0.5 and "lora_rank" not in baseline and "target_returns" not in baseline


def test_every_method_states_what_differs():
    """A method's configuration is LaMo's but for its own settings, on every task that has it."""
    wanted = {"lamo-random": {"trunk"}, "lamo-random-corpus": {"lm"}, "lamo-early": {"lm"},
              "lamo-linear": {"embeddings"}, "lamo-mlp": {"embeddings"}, "lamo-full": {"train"},
              "lamo-frozen": {"train", "lm_weight"}, "lamo-lm0": {"lm_weight"}, "lamo-lm0.1": {"lm_weight"},
              "lamo-lm1": {"lm_weight"}, "lamo-rank4": {"lora_rank", "lora_alpha"},
              "lamo-rank64": {"lora_rank", "lora_alpha"}, "lamo-medium": {"lm"}, "lamo-smollm2": {"lm"},
              "lamo-smollm2-random": {"lm", "trunk"},
              "lamo-smollm2-2": {"lm", "lm_layers"}, "lamo-smollm2-2-random": {"lm", "lm_layers", "trunk"},
              "lamo-smollm2-8": {"lm", "lm_layers"}, "lamo-smollm2-8-random": {"lm", "lm_layers", "trunk"},
              "wiki": {"train", "embeddings", "weight_decay", "lm_weight", "lr"},
              "lamo-released": {"released", "dropout"}}
    for task in tasks.TASKS:
        lamo = configuration(f"paper/{task}-1/lamo/seed0")
        for method, own in wanted.items():
            if settings.missing(task, method):
                continue
            config = configuration(f"paper/{task}-1/{method}/seed0")
            differs = {name for name in config if config[name] != lamo[name]} - {"method"}
            assert method != "wiki" or config["lr"] == configuration(f"paper/{task}-1/dt/seed0")["lr"]
            assert differs <= own and set(config) == set(lamo), (task, method, differs)
            scale = config["lora_alpha"] / config["lora_rank"]
            assert scale == lamo["lora_alpha"] / lamo["lora_rank"]
        for method in ("bc", "td3bc", "iql", "cql"):
            if not settings.missing(task, method):
                config = configuration(f"paper/{task}-1/{method}/seed0", lora_rank=8, discount=0.5)
                assert set(config) & set(tasks.SEQUENCE) == {"kind", "quick_init"}
                assert config["discount"] == 0.5


def test_the_papers_settings():
    lamo = configuration("paper/hopper-medium-0.01/lamo/seed2")
    assert lamo == lamo | {
        "env": "Hopper-v4", "lm": "gpt2", "steps": 100_000, "warmup": 2_500, "lr": 1e-4, "weight_decay": 1e-5,
        "batch_size": 64, "context": 20, "lora_rank": 16, "lora_alpha": 32, "dropout": 0.1, "grad_clip": 0.25,
        "embeddings": "linear", "lm_weight": 0.0, "return_scale": 1000.0, "target_returns": (3600.0, 1800.0),
        "eval_every": 2_500, "score_window": 8, "episodes": 20, "seed": 2, "ratio": 0.01}
    dt = configuration("paper/hopper-medium-0.01/dt/seed2")
    differs = {key for key in lamo if lamo[key] != dt[key]}
    assert differs == {"method", "lm", "trunk", "train", "weight_decay", "adam_eps"}
    kitchen = configuration("paper/kitchen-partial-0.1/lamo/seed0")
    assert kitchen == kitchen | {"lm_weight": 0.1, "embeddings": "mlp", "target_returns": (5.0, 4.0),
                                 "return_scale": 1.0, "horizon": 280}
    qbert = configuration("paper/qbert-medium-0.1/lamo/seed0")
    assert qbert == qbert | {
        "context": 30, "batch_size": 128, "lr": 1e-3, "weight_decay": 1e-5, "lora": "peft", "lora_rank": 32,
        "lora_alpha": 32, "schedule": "cosine", "grad_clip": 1.0, "adam_eps": 1e-8, "clip_rewards": True,
        "target_returns": (14000.0,), "warmup": 442}
    assert (kitchen["lm_block"], kitchen["lm_batch_size"]) == (1024, 2)
    dt = configuration("paper/qbert-medium-0.1/dt/seed0")
    assert dt == dt | {"lr": 3e-4, "weight_decay": 1e-4, "adam_eps": 1e-8, "context": 30, "batch_size": 128}


@pytest.mark.parametrize("task, lr, weight_decay, context, targets, scale, lm_weight", [
    ("hopper-medium", 1e-4, 1e-5, 20, (3600, 1800), 1000, 0),
    ("reacher2d-medium", 1e-4, 1e-5, 5, (76, 40), 10, 0),
    ("halfcheetah-medium", 1e-4, 1e-5, 20, (12000, 8000), 1000, 0),
    ("walker2d-medium", 1e-4, 1e-5, 20, (5000, 2500), 1000, 0),
    ("kitchen-complete", 1e-4, 1e-5, 20, (5, 4), 1, 0.1), ("kitchen-partial", 1e-4, 1e-5, 20, (5, 4), 1, 0.1),
    ("breakout-medium", 1e-3, 1e-2, 30, (120, 90), 1, 0), ("qbert-medium", 1e-3, 1e-5, 30, (14000,), 1, 0),
    ("pong-medium", 3e-4, 1e-1, 30, (20, 10), 1, 0)])
def test_the_papers_table_6(task, lr, weight_decay, context, targets, scale, lm_weight):
    """And, per task, what docs/differences.md says of the language loss."""
    config = configuration(f"paper/{task}-1/lamo/seed0")
    assert (config["lr"], config["weight_decay"], config["context"], config["target_returns"]) == (
        lr, weight_decay, context, targets)
    assert (config["return_scale"], config["lm_weight"]) == (scale, lm_weight)
    steps, window = (50_000, 4) if task == "breakout-medium" else (100_000, 8)
    assert (config["steps"], config["score_window"], config["eval_every"]) == (steps, window, 2_500)


def test_what_a_machine_keeps_and_how_often_is_no_change_of_settings():
    run = "paper/hopper-medium-0.1/dt/seed0"
    config = json.loads(json.dumps(configuration(run)))  # as it is recorded
    assert settings.changed(run, config | {"state_every": 0.5, "dtype": "bfloat16"}) == ""
    assert settings.changed(run, config | {"lr": 0.5}) == "lr=0.5"


def test_the_mini_profile_is_in_float32_everywhere_and_says_if_a_run_is_not():
    config = json.loads(json.dumps(configuration(RUN)))
    assert config["dtype"] == "float32" and settings.changed(RUN, config) == ""
    assert settings.changed(RUN, config | {"dtype": "auto"}) == ""  # a method's, not a run's
    assert settings.changed(RUN, config | {"dtype": "bfloat16"}) == "dtype=bfloat16"
    said = settings.differences(config | {"dtype": "bfloat16"}, config)
    assert said == ['dtype is "bfloat16", not "float32"']
    real = RUN.replace("/lamo/", "/lamo-smollm2-8/")  # which takes what is fast
    for dtype in ("float32", "bfloat16"):
        config = json.loads(json.dumps(configuration(real))) | {"dtype": dtype}
        assert settings.changed(real, config) == ""
        assert settings.differences(config, configuration(real)) == []


def test_what_the_released_code_does_otherwise_is_one_word():
    for task, dropout in (("kitchen-partial", 0.1), ("breakout-medium", 0.0)):
        config = configuration(f"paper/{task}-1/lamo-released/seed0")
        assert config["released"] is True and config["dropout"] == dropout


def test_the_papers_settings_of_the_baselines():
    def of(method, task):
        return configuration(f"paper/{task}-1/{method}/seed0")

    td3bc = of("td3bc", "halfcheetah-medium")
    assert td3bc == td3bc | {"batch_size": 256, "lr": 3e-4, "discount": 0.99, "target_rate": 0.005,
                             "bc_alpha": 2.5, "policy_noise": 0.2, "noise_clip": 0.5, "policy_every": 2,
                             "steps": 100_000, "eval_every": 2_500, "normalize_rewards": False}
    iql = [of("iql", task) for task in ("hopper-medium", "walker2d-medium", "kitchen-partial")]
    assert [(c["deterministic"], c["normalize_rewards"], c["target_rate"], c["beta"], c["actor_dropout"])
            for c in iql] == [(True, True, 0.001, 3.0, 0.0), (False, False, 0.005, 3.0, 0.0),
                              (False, False, 0.005, 0.5, 0.1)]
    cql = of("cql", "hopper-medium")
    assert cql == cql | {"hidden_layers": 3, "actor_lr": 3e-5, "lr": 3e-4, "cql_alpha": 10.0,
                         "cql_actions": 10, "normalize_rewards": True}
    bc = of("bc", "pong-medium")
    assert bc == bc | {"lr": 1e-3, "batch_size": 100}
    discrete = of("cql", "qbert-medium")
    assert discrete == discrete | {"lr": 6.25e-5, "batch_size": 32, "cql_alpha": 1.0, "target_every": 8_000}
    assert not of("cql", "walker2d-medium")["normalize_rewards"]


@pytest.mark.parametrize("profile, method, takes", [
    ("mini", "lamo", True), ("mini", "dt", False), ("mini", "bc", False), ("mini", "lamo-random", True),
    ("mini", "lamo-early", False), ("paper", "lamo-early", True), ("mini", "lamo-random-corpus", False),
    ("paper", "lamo-medium", False), ("mini", "lamo-medium", True), ("paper", "lamo-smollm2", False),
    ("mini", "lamo-smollm2", False), ("paper", "wiki", True)])
def test_which_methods_lm_is_for(profile, method, takes):
    assert settings.takes_lm(profile, method) == takes


# --- ranges ------------------------------------------------------------------------------------

NUMBERS = {name: value for name, value in (tasks.BASELINE | tasks.SEQUENCE | tasks.DEFAULTS).items()
           if isinstance(value, int | float) and not isinstance(value, bool)}


def outside(name):
    """Values that a number's setting must not have: beyond its ends, and nothing of its kind."""
    interval, whole = tasks.RANGES[name], isinstance(NUMBERS[name], int)
    low, high = settings.bounds(interval)
    ends = [low if interval[0] == "(" else low - 1, high if interval[-1] == ")" else high * 2]
    ends = [int(end) if whole else end for end in ends]
    return [*ends, *map(float, ("nan", "inf", "-inf")), True, "5", [5], *[2.5] * whole]


def test_every_number_has_a_range_with_its_default_inside():
    assert set(NUMBERS) <= set(tasks.RANGES)
    for name, value in NUMBERS.items():
        assert settings.fits(name, value), name
    assert all(settings.bounds(interval)[0] < settings.bounds(interval)[1]
               and interval[0] in "[(" and interval[-1] in "])" for interval in tasks.RANGES.values())


def test_an_interval_has_the_ends_that_its_brackets_say():
    assert [x for x in (-0.1, 0, 0.5, 1, float("nan")) if settings.inside(x, "[0, 1)")] == [0, 0.5]
    assert [x for x in (0, 1e-300, 1, 1.1, 10**400) if settings.inside(x, "(0, 1]")] == [1e-300, 1]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_of_its_range_is_one_line_that_names_it(name):
    """In Python, in a row of tasks.py, and on the command line."""
    method = "lamo" if name in {**tasks.SEQUENCE, **tasks.DEFAULTS} else "iql"
    run, parser = f"mini/hopper-medium-0.01/{method}/seed0", settings.options("", run="none")
    assert configuration(run, **{name: NUMBERS[name]})[name] == NUMBERS[name]
    for value in outside(name):
        with pytest.raises(SystemExit, match=f"{name} is ") as stop:
            configuration(run, **{name: value})
        assert tasks.RANGES[name] in str(stop.value) and "\n" not in str(stop.value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with pytest.raises(SystemExit) as stop:
                parser.parse_args([f"--{name}={value}"])
            assert f"--{name}" in str(stop.value) and tasks.RANGES[name] in str(stop.value)
    for text in ("", "x", "٣", "1_0", "0x1", "1;2", "--", "³"):
        with pytest.raises(SystemExit, match=f"--{name}"):
            parser.parse_args([f"--{name}={text}"])


@pytest.mark.parametrize("changed, said", [
    ({"context": 101}, r"is 101, and an episode of reacher2d-medium is over after 100 steps; .*\[1, 100\]"),
    ({"schedule": "linear"}, "schedule is 'linear'; it has to be one of constant, cosine"),
    ({"dtype": 32}, "dtype is 32; it has to be one of auto"), ({"quick_init": 1}, "True or False"),
    ({"lm": ""}, "the name of a language model"), ({"lm": " "}, "the name of a language model"),
    ({"adapter": 3}, "the name of a folder"), ({"target_returns": []}, "target_returns is"),
    ({"target_returns": [float("nan")]}, "target_returns is"), ({"target_returns": [True]}, "target_returns"),
    ({"target_returns": [5.0, 5.0]}, "give each once")])
def test_words_lists_and_what_belongs_together(changed, said):
    with pytest.raises(SystemExit, match=said) as stop:
        configuration("mini/reacher2d-medium-0.1/lamo/seed0", **changed)
    assert "\n" not in str(stop.value)


def test_a_row_of_the_tables_is_looked_at_too(monkeypatch):
    monkeypatch.setitem(tasks.METHODS, "lamo", {"lora_rank": 0})
    with pytest.raises(SystemExit, match=r"lora_rank is 0; it has to be a whole number in \[1, 4096\]"):
        configuration(RUN)


# --- what differs ------------------------------------------------------------------------------

def test_differences_are_read_as_a_record_reads():
    config = configuration(RUN)
    record = json.loads(json.dumps(config)) | {"dtype": "float32", "code": "abc"}
    assert settings.differences(record, config) == [] and settings.changed(RUN, record) == ""
    other = configuration(RUN, steps=6, lm="/toy", target_returns=[1.0], dtype="bfloat16")
    assert sorted(settings.differences(record, other)) == [
        'dtype is "float32", not "bfloat16"', 'lm is "mini", not "/toy"', "steps is 1200, not 6",
        "target_returns is [3600.0, 1800.0], not [1.0]"]
    assert settings.differences(record, other, without=("lm", "dtype", *settings.EVALUATION)) == [
        "steps is 1200, not 6"]
    said = settings.changed(RUN, record | {"steps": 6, "lm": "/toy"})
    assert sorted(said.split(" ")) == ["lm=/toy", "steps=6"]
    long, = settings.differences({"episodes": list(range(500))}, {"episodes": list(range(501))})
    assert len(long) < 200, "of a long list the beginning is said"
    inputs = {"inputs": {"a/config.json": "12", "a/model.safetensors": "34"}}
    assert settings.differences(inputs, {"inputs": inputs["inputs"] | {"a/model.safetensors": "56"}}) == [
        'inputs[model.safetensors] is "34", not "56"']
    moved = {"inputs": {f"../{path}": digest for path, digest in inputs["inputs"].items()}}
    assert settings.differences(inputs, moved) == [], "a kit that was moved finds the same files"
    text = {"text": {"sha256": "12", "lm": "mini-early"}}
    assert settings.differences(text, {"text": {"sha256": "12"}}) == [], "whoever asked for its tokens first"
    assert settings.differences(text, {"text": {"sha256": "13"}}) == ['text[sha256] is "12", not "13"']


def test_cores_are_those_that_a_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert settings.cores() == 1


def test_a_setting_that_is_gone_from_tasks_py_is_a_difference(monkeypatch):
    run = "mini/reacher2d-medium-0.3/dt/seed0"
    record = json.loads(json.dumps(configuration(run))) | {"code": "abc", "lm_id": "none"}
    assert settings.differences(record, configuration(run)) == [] and settings.changed(run, record) == ""
    row = {name: value for name, value in tasks.TASKS["reacher2d-medium"].items() if name != "minimum_return"}
    monkeypatch.setitem(tasks.TASKS, "reacher2d-medium", row)
    assert settings.differences(record, configuration(run)) == ["minimum_return is 21.0, not null"]
    assert settings.changed(run, record) == "minimum_return=21.0"
    assert settings.differences(record, {"episodes": record["episodes"]}) == [], "of some settings alone"


def test_a_copy_of_the_language_model_in_a_folder_of_its_name_is_no_other_setting():
    """Of one on the hub; a folder called mini is not the language model that ships."""
    paper = "paper/hopper-medium-0.01/lamo/seed0"
    record = json.loads(json.dumps(configuration(paper)))
    assert settings.changed(paper, record | {"lm": "/models/gpt2"}) == ""
    assert settings.changed(paper, record | {"lm": "/models/gpt2-medium"}) == "lm=/models/gpt2-medium"
    record = json.loads(json.dumps(configuration(RUN)))
    assert settings.changed(RUN, record | {"lm": "/models/mini"}) == "lm=/models/mini"
    del record["grad_clip"]  # a setting that is newer than the record
    assert settings.changed(RUN, record) == ""


# --- the command line and make -----------------------------------------------------------------

def test_every_setting_can_be_overridden_and_a_wrong_word_is_one_line():
    parser = settings.options("the manual")
    known = vars(parser.parse_args([RUN]))
    for name in {*tasks.DEFAULTS, *tasks.SEQUENCE, *tasks.BASELINE} - {*settings.NATURE, "mini"}:
        assert known.pop(name) is None, name
    assert set(known) == {"run", "device", "replace", "fresh", "target_returns", "tensorboard"}
    given = parser.parse_args([RUN, "--lr", "1e-3", "--no-quick_init", "--target_returns", "5", "4"])
    assert (given.lr, given.quick_init, given.target_returns) == (1e-3, False, [5.0, 4.0])
    for words, said in (((RUN, "--nonsense", "1"), "--nonsense"), ((RUN, "--steps", "many"), "many"),
                        ((RUN, "--schedule", "x"), "invalid choice"), ((), "run"),
                        ((RUN, "--step", "4"), "--step"), ((RUN, "--target_returns", "nan"), "nan"),
                        *(((RUN, "--device", word), "none of auto, cpu") for word in (
                            "bogus", "", "cuda:x", "cuda:٣", "cpu:1"))):
        with pytest.raises(SystemExit, match=said) as stop:
            parser.parse_args(words)
        assert "\n" not in str(stop.value) and "see --help" in str(stop.value)
    assert settings.options("", run="none").parse_args(["--steps", "3"]).steps == 3
    assert settings.options("", run="maybe").parse_args([]).run is None


def variables(text):
    return {name: words.split() for name, _, words in (line.partition(" := ") for line in text.splitlines())}


def test_make_is_told_what_it_needs():
    told = variables(settings.axes())
    assert told["TASKS"] == [*tasks.TASKS] and told["CELLS"] == settings.cells()
    assert told["ALL_METHODS"] == [*tasks.METHODS] and told["BASELINES"] == ["bc", "td3bc", "iql", "cql"]
    assert told["LM_mini/lamo-early"] == ["mini-early"] and told["LM_paper/lamo-medium"] == ["gpt2-medium"]
    assert {"mini/dt", "paper/bc", "mini/lamo-early", "paper/lamo-medium"} <= {*told["NO_LM"]}
    assert not {"mini/lamo", "mini/lamo-medium", "paper/lamo-early", "mini/wiki"} & {*told["NO_LM"]}


def test_make_is_told_so_for_a_task_without_a_mini_player(monkeypatch):
    own = {name: value for name, value in tasks.TASKS["hopper-medium"].items() if name != "mini"}
    monkeypatch.setitem(tasks.TASKS, "ant-medium", own | {"env": "Ant-v4"})
    told = variables(settings.axes())
    assert "ant-medium" in told["TASKS"] and "ant-medium-0.01" in told["CELLS"]
    assert "ant-medium-0.01" in settings.listing()
    assert configuration("paper/ant-medium-0.01/lamo/seed0")["env"] == "Ant-v4"


def test_it_runs_without_any_package():
    """make asks before anything is installed."""
    def ask(*words):
        return subprocess.run([sys.executable, "-S", "-m", "kit.settings", *words], capture_output=True,
                              text=True, cwd=Path(settings.__file__).parent.parent)

    assert all(cell in ask().stdout for cell in settings.cells())
    assert json.loads(ask(RUN).stdout) == json.loads(json.dumps(configuration(RUN)))
    assert ask("--make").stdout.strip() == settings.axes() and "usage" in ask("--help").stdout
    line = one_line(subprocess.run([sys.executable, "-S", "train.py", RUN], capture_output=True, text=True,
                                   cwd=Path(settings.__file__).parent.parent))
    assert "the package numpy is not installed" in line and "make setup" in line
    wrong = ask("nonsense")
    assert wrong.returncode != 0 and wrong.stderr.count("\n") == 1 and "is no run" in wrong.stderr


@pytest.mark.parametrize("program", ["train", "baselines", "evaluate", "prepare_data", "plot", "export",
                                     "kit/__init__"])
def test_an_older_python_can_read_what_says_that_it_is_too_old(program):
    """The line stands in kit/__init__.py, which every program imports before anything newer."""
    tree = ast.parse((KIT / f"{program}.py").read_text(), feature_version=(3, 6))
    ours = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)
            and node.module not in sys.stdlib_module_names]
    assert program == "kit/__init__" or ours[0] in ("kit", "kit.settings")


def test_what_breaks_a_line_is_spelt():
    with pytest.raises(SystemExit) as stop:
        kit.fail("no file a\nb\x1b[2J\udc80 ±ü")
    assert str(stop.value).endswith("no file a\\nb\\x1b[2J\\udc80 ±ü")


def test_a_device_that_is_not_here_is_one_line():
    assert str(pick_device("cpu")) == "cpu"
    for name in ("cuda:9", "mps" if not torch.backends.mps.is_available() else "cuda:8"):
        with pytest.raises(SystemExit, match=f"there is no device {name} here"):
            pick_device(name)


def test_a_part_may_hold_for_a_task_of_one_profile(monkeypatch):
    monkeypatch.setitem(tasks.METHODS["dt"], "mini-hopper-medium", {"lr": 3e-3})
    assert configuration("mini/hopper-medium-0.01/dt/seed0")["lr"] == 3e-3
    assert configuration("mini/walker2d-medium-0.01/dt/seed0")["lr"] == 1e-3
    assert configuration("paper/hopper-medium-0.01/dt/seed0")["lr"] == 1e-4
