"""Wrong command lines, made from the parsers: each option of every program with bad values, bad names, words
that nothing takes; and bad words for make. Every one ends in one line: no traceback, no acceptance, no wait.

They run in this process, a program after the other: $LINES of them, or 400; there are more than 4,000.
"""

import argparse
import collections
import contextlib
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import save_cell
from damage import record

import baselines
import benchmark.__main__ as speed
import evaluate
import export
import plot
import prepare_data
import train
from kit import plan, settings, slurm, status, video, watch
from kit.gathering import collect
from mini import calibrate, corpus, pretrain, readout, train_player
from paper import claims, report
from tasks import RANGES

LINES = int(os.environ.get("LINES", "400"))
RUN, CELL = "mini/hopper-medium-0.1/lamo/seed0", "mini/hopper-medium-0.1"
IQL = RUN.replace("lamo", "iql")


def evaluated(args):
    """What stands at the end of evaluate.py."""
    if args.collect:
        collect(args.collect)
    elif args.run is None:
        sys.exit("evaluate: give a run")
    elif args.video:
        video.film(evaluate.load_policy(args.run, args.device), evaluate.play_together, **vars(args))
    else:
        evaluate.evaluate(**vars(args))


# its parser, what it does with what that gives, and words that are right
PROGRAMS = {
    "train": (settings.options("x"), lambda args: train.train(**vars(args)), [RUN]),
    "baselines": (settings.options("x"), lambda args: baselines.train(**vars(args)), [IQL]),
    "evaluate": (evaluate.OPTIONS, evaluated, [RUN]),
    "prepare_data": (prepare_data.OPTIONS, lambda args: (
        prepare_data.text.prepare if args.name.endswith("/text") else prepare_data.prepare)(args), [CELL]),
    "plot": (plot.OPTIONS, plot.main, [CELL]),
    "export": (export.OPTIONS, lambda args: export.export(**vars(args)), [RUN, "adapter"]),
    "slurm": (slurm.OPTIONS, slurm.main, []),
    "report": (report.OPTIONS, report.main, ["mini"]),
    "claims": (claims.OPTIONS, claims.main, ["results/mini"]),
    "pretrain": (pretrain.OPTIONS, pretrain.main, ["corpus", "--out", "lm"]),
    "calibrate": (calibrate.OPTIONS, calibrate.main, ["hopper-medium"]),
    "readout": (readout.OPTIONS, readout.main, ["hopper-medium-0.01"]),
    "corpus": (corpus.OPTIONS, lambda args: corpus.main(args.folder), ["corpus"]),
    "train_player": (train_player.OPTIONS, train_player.main, ["hopper-medium"]),
    "benchmark": (speed.OPTIONS, speed.benchmark, []),
}
# of a number, of one of several words, of a flag
NUMBERS = ("", "x", "nan", "inf", "-inf", "-1e30", "1e400", "٣", "²", "--", "1,5", "1_0", "0x10", "1;touch f",
           "$(touch f)", "None", "[1]", "9" * 5000)
WORDS = ("", "x", "LORA", "--", "lora ", "ｌora", "1", "$(touch f)")
# names of what there is not, or that are other names of what there is
RATIOS = ("0.10", "00.1", ".1", "1.0", "1e-1", "0", "-0.1", "2", "nan", "inf", "0,1", "٠.١", "0.1 ", "0.1-d0",
          "0.1-d01", "0.1-dx", "0.1-d٣", "0.1-d9999999999")
CELLS = ("", "mini", "mini/", "mini/x", "big/hopper-medium-0.1", "hopper-medium-0.1", "mini/*",
         "MINI/hopper-medium-0.1", "mini/hopper-medium", "mini/Hopper-medium-0.1", "mini/../../etc/passwd",
         "/etc/passwd", "~/x", "mini/hopper-medium-0.1/x", "mini\nhopper-medium-0.1",
         "mini/hopper-medium-0.1\0", "\udc80", "x" * 5000,
         "paper/text/x", "mini/x/text", *(f"mini/hopper-medium-{ratio}" for ratio in RATIOS))
SEEDS = ("seed", "seed00", "seed01", "seed-1", "seed+1", "seed1.0", "seed٣", "seed²", "seed1e3", "Seed0", "0",
         "seed" + "9" * 20, "seed0x", "seed 0", "seed0;touch f", "../seed0/../../../x")
RUNS = (*CELLS, CELL, "mini/hopper-medium-0.1-dN/lamo/seed0", "mini/hopper-medium-0.1/x/seed0",
        "mini/hopper-medium-0.1/LAMO/seed0", "mini/pong-medium-1/iql/seed0", f"{RUN}/x",
        *(f"mini/hopper-medium-{ratio}/lamo/seed0" for ratio in RATIOS),
        *(f"mini/hopper-medium-0.1/lamo/{seed}" for seed in SEEDS))
# what a parser takes and a program does not find, or does not do
FURTHER = {
    "train": [[IQL], [RUN, "--context", "1001"], [RUN, "--lm", ""], [RUN, "--lm", "./nowhere"],
              [RUN, "--lm", "a\nb"], [RUN, "--adapter", "nowhere"], [RUN, "--lm_layers", "99"],
              [RUN, "--lm_weight", "0.1"],
              [RUN, "--device", "cuda:99"], [RUN, "--target_returns", "5", "5"],
              [RUN, "--lm", "x.gguf"],
              ["mini/hopper-medium-1/lamo/seed0"], ["paper/hopper-medium-0.1/lamo-early/seed0"]],
    "baselines": [[RUN], [IQL, "--device", "cuda:99"], ["mini/hopper-medium-1/bc/seed0"]],
    "evaluate": [[RUN], [], [RUN, "--video", "x.avi"], ["--collect", CELL], ["--collect", "mini/x"]],
    "prepare_data": [[CELL, "--data", "nowhere"], [CELL, "--text", "nowhere"], [CELL, "--lm", "gpt2"],
                     [f"{CELL}-dN"], ["mini/text", "--text", "nowhere"],
                     ["mini/text", "--lm", "./nowhere"], ["mini/text", "--data", "x"],
                     ["mini/text", "--text", "file:///etc/passwd"],
                     *([f"paper/{task}-medium-0.1", "--data", place] for task in ("hopper", "pong")
                       for place in ("nowhere", "ftp://x/y", "/dev/zero", "file:///etc/passwd")),
                     ["mini/text", "--text", "/dev/zero"]],
    "plot": [[CELL], ["mini/nowhere"]], "export": [[RUN, "adapter"]],
    "slurm": [["hopper-medium-0.1"], ["x"], ["--element", "nowhere"], ["--queue"]],
    "report": [["mini"], ["paper"]], "claims": [["nowhere"], ["results/mini", "nowhere"]],
    "pretrain": [[], ["corpus"], ["nowhere", "--out", "lm"], ["--out", "lm"],
                 ["corpus", "--markov", "--out", "lm"],
                 ["--markov", "--out", "lm", "--heads", "7"], ["--markov", "--out", "lm", "--tokens", "5"],
                 ["--markov", "--out", "."], ["--measure", "./nowhere"],
                 ["--measure", "mini", "--heldout", "nowhere"], ["--sample", "./nowhere"],
                 ["--markov", "--out", "lm", "--vocabulary", "70000"]],
    "calibrate": [[], ["x"], ["hopper-medium", "--subsets", "0"], ["hopper-medium", "--ratio", "0.10"],
                  ["hopper-medium", "--methods", "iql"]],
    "readout": [["x"], ["hopper-medium"], ["hopper-medium-0.10"], ["pong-medium-0.1"]],
    "train_player": [["kitchen-complete"], ["x"]], "benchmark": [["--only", "nonsense"]],
}


def of_options(parser, right):
    """Each option with what it cannot be, without a value, and by its beginning."""
    for action in parser._actions:
        if not action.option_strings or action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        option = action.option_strings[-1]
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            yield [*right, f"{option}=1"]
        elif action.choices or action.type is settings.device:
            yield from ([*right, f"{option}={word}"] for word in WORDS)
        elif getattr(action.type, "__qualname__", "").startswith("number."):
            yield from ([*right, f"{option}={word}"] for word in NUMBERS)
            low, high = settings.bounds(RANGES[action.dest]) if action.dest in RANGES else (0, 1e17)
            yield from ([*right, option, str(end)] for end in (int(low) - 1, int(high) + 1))
        if action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction):
            yield [*right, option]
        if len(option) > 4:
            yield [*right, f"{option[:-1]}=1"]


def wrong_lines():
    """(program, words) of all that follow from the parsers and the tables above."""
    for program, (parser, _, right) in PROGRAMS.items():
        yield from ((program, words) for words in of_options(parser, right))
        more = [["--nonsense"], ["-x"], ["--steps=1", "--nonsense=1"], ["--no-such"], ["--", "--x", "y", "z"]]
        yield from ((program, [*right, *words]) for words in more)
        yield from ((program, words) for words in FURTHER.get(program, []))
    for program in ("train", "baselines", "evaluate", "export"):
        yield from ((program, [name, *PROGRAMS[program][2][1:]]) for name in RUNS)
    for program in ("prepare_data", "plot"):
        yield from ((program, [name]) for name in CELLS)
    yield from (("evaluate", [f"--collect={name}"]) for name in CELLS if name)


def sampled(lines):
    lines = sorted(lines)
    chosen = random.Random(0).sample(lines, min(LINES, len(lines)))
    assert len(lines) > 900
    return chosen


def answer(program, words):
    """(what it was: "refused", "accepted" or "traceback", what was said)"""
    parser, main, _ = PROGRAMS[program]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(parser.parse_args(words))
        return ("refused" if code else "accepted"), out.getvalue()
    except SystemExit as stop:
        said = stop.code
        if isinstance(said, str) and "\n" not in said and said.strip():
            return "refused", said
        return "accepted" if not said else "traceback", f"{said!r}"
    except BaseException as error:  # a KeyboardInterrupt would be one, too
        return "traceback", repr(error)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a cell's data, no network, and no make around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["kit"])
    monkeypatch.setattr("sys.stdin", io.StringIO())
    for name in (*plan.VARIABLES, "SLURM_ARRAY_JOB_ID", "SBATCH", "LAUNCH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"METHODS": "dt", "SEEDS": "0", "PROFILE": "mini"}.items():
        monkeypatch.setenv(name, value)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    save_cell(tmp_path, CELL)
    return tmp_path


def left(folder):
    return {path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock")}


def test_wrong_command_lines(place):
    wrong, before, count = [], left(place), collections.Counter()
    for program, words in sampled(wrong_lines()):
        began = time.process_time()
        outcome, said = answer(program, words)
        count[{"accepted": "silent"}.get(outcome, outcome)] += 1
        if outcome != "refused" or time.process_time() - began > 20:
            wrong.append((program, words, outcome, said[:300]))
    record("a wrong command line", count)
    assert not wrong, f"{len(wrong)}: {wrong[:10]}"
    assert left(place) == before and not (place.parent / "x").exists()


# --- for make --------------------------------------------------------------------------------------

MAKE = {
    "PROFILE": ("", " ", "big", "mini paper", "mini mini", "MINI", "../mini", "mini;touch f"),
    "METHODS": ("", " ", "x", "lamo lamo", "lamo x", "LAMO", "lamo,dt", "$(touch f)", "lamo/../dt", "*"),
    "SEEDS": ("", " ", "0 0", "00", "-1", "0-3", "1.0", "٣", "x", "0/../../..", "1e3", "9" * 10, "0,1"),
    "SUBSETS": ("0", "seeds", "1", "seed seed", " "), "REPLACE": ("0", "yes", "no", "true", " ", "1 1"),
    "FRESH": ("0", "no", "11"), "TENSORBOARD": ("0", "yes"), "WATCH": ("0", "yes"),
    "THREADS": ("0", "-1", "x", "1.5", "1e1", "٣", "99999", "1 2"), "GPUS": ("0", "-1", "x", "٣", "all"),
    "LM": (" ", "./nowhere", "/nowhere", "~/nowhere", "x.gguf"), "DATA": ("nowhere", "/nowhere", " "),
    "TEXT": ("nowhere", "/nowhere"),
    "ARGS": ("--steps", "--steps 0", "--nonsense", "x", "--steps 4 x", "'", '"', "--lm gpt2", "--steps=4;",
             "--context 1001", "--dropout 1", "--device bogus", "--steps 1 --step 2", "--lr nan", "mini/x"),
}
GOALS = (*(f"hopper-medium-{ratio}" for ratio in RATIOS), "hopper-medium", "x", "hopper-medium-0.1;touch f")


def test_wrong_words_for_make(place):
    right = {name: "" for name in plan.VARIABLES} | {"PROFILE": "mini", "METHODS": "lamo", "SEEDS": "0"}
    calls = [(["hopper-medium-0.1"], {name: word}) for name, words in MAKE.items() for word in words]
    calls += [([goal], {}) for goal in GOALS] + [(["hopper-medium-0.1"] * 2, {})]
    for cells, words in calls:
        for every in (False, True):
            with pytest.raises(SystemExit) as stop:
                plan.plan(cells, every, right | words)
                plan.check_places(right | words)
            assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    assert len(calls) > 100
    with pytest.raises(SystemExit):
        status.grid(["hopper-medium-0.1"], right | {"PROFILE": "mini mini"})
    for words in ([], ["train.py"], ["train.py", "../../x"], ["x", RUN], ["train.py", RUN, "--args", "'"]):
        with pytest.raises(SystemExit) as stop:
            watch.work_of(words)
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
    assert not (place / "runs").exists()


@pytest.mark.parametrize("module", ["paper.claims", "kit.settings", "paper.shipped"])
def test_a_full_disk_is_one_line_of_what_prints(module):
    words = {"paper.claims": ["results/shipped/mini"], "paper.shipped": ["--missing"]}.get(module, [])
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", module, *words], cwd=Path(__file__).parents[1],
                              stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "No space left on device; nothing that was there is lost" in done.stderr
    assert done.stderr.count("\n") == 1
