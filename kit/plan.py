"""What a call of make has to do: which runs are finished, which differ, which must be made.

    python3 -m kit.plan CELL...           asked by the Makefile; changes nothing

reads   make's variables (VARIABLES, below) from the environment, and runs/RUN/config.json and eval.json
prints  words for the Makefile, and "planned" behind them, or "refused" and one line:
            run:RUN        is asked for
            train:RUN      has to be trained (or asked whether it has to be)
            text:RUN       needs text that has to be looked at
            evaluate:RUN   is trained, and has to be played, or played anew
            data:CELL      its data have to be looked at

A finished run is never lost to a changed word. A run whose recorded settings are not those of its name and
of ARGS and LM is refused before anything starts, and so is one whose settings are not those of the method's
other seeds; REPLACE=1 makes it anew, FRESH=1 makes all anew.
docs/extending.md has the reasons. Standard library only: make may ask before anything is installed.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

from kit import is_refused, seals, settings
from tasks import METHODS, PROFILES

VARIABLES = ("PROFILE", "METHODS", "SEEDS", "SUBSETS", "LM", "DATA", "TEXT", "ARGS", "REPLACE", "FRESH",
             "WATCH", "TENSORBOARD", "THREADS", "GPUS")
# Where make looks only whether something is there: REPLACE=0 must not replace.
WORDS = {"SUBSETS": ("seed",), **dict.fromkeys(("REPLACE", "FRESH", "WATCH", "TENSORBOARD"), ("1",))}


def plan(cells, every, make):
    """The words for these cells. every: of METHODS, take those that a task has, as `make all` does."""
    words, found = [], asked(cells, every, make)
    request = requested(cells, found, make)
    for cell, of_cell in found.items():
        more = [word for run, overrides in of_cell.items()
                for word in words_of(run, overrides, make, request)]
        # with DATA=, prepare_data.py says whether that is what finished runs were trained on
        if make["DATA"] or any(word.startswith("train:") for word in more):
            more.append(f"data:{cell}")
        words += more
    return words


def asked(cells, every, make):
    """{PROFILE/CELL: {run: the settings that ARGS and LM change}} of METHODS and SEEDS."""
    try:
        words = shlex.split(make["ARGS"])
    except ValueError as error:
        settings.fail(f"ARGS={make['ARGS']!r} cannot be read ({error})")
    try:
        overrides = vars(settings.options("", run="none").parse_args(words))
    except SystemExit as stop:
        if not isinstance(stop.code, str):  # --help
            raise
        said = stop.code.partition(": ")[2].removesuffix("; see --help")
        settings.fail(f"ARGS={make['ARGS']!r}: {said}; python train.py --help names the settings")
    if overrides["lm"]:
        settings.fail(f"ARGS= names a language model; say LM={overrides['lm']}, which is for the methods "
                      "whose row names none, and for the text")
    for name in ("fresh", "replace", "tensorboard"):
        if overrides[name]:
            settings.fail(f"ARGS= says --{name}; say {name.upper()}=1, which make understands")
    check_words(make)
    if len(make["PROFILE"].split()) > 1:
        settings.fail(f"PROFILE={make['PROFILE']!r} names two, which only make plan and make status take")
    if len(cells) > len(set(cells)):
        settings.fail(f"{' '.join(cells)!r} names a cell twice")
    subsets, found = make.get("SUBSETS", ""), {}
    for cell in cells:
        if "/" in cell:
            settings.fail(f"{cell!r} is no cell: its name has no /")
        profile, task, _ = settings.parse_cell(f"{make['PROFILE']}/{cell}")
        plain, subset = settings.split_subset(cell)
        if subset == "N" and settings.table_of(plain) == plain:
            settings.fail(f"at ratio 1 all subsets are the same episodes; say {plain} instead of {cell}")
        if subsets:
            if subset:
                settings.fail(f"{cell} names its subset, and SUBSETS=seed does, too; leave one of them out")
            cell = settings.table_of(cell)
        if make["DATA"] and profile == "mini":
            settings.fail("DATA= belongs to PROFILE=paper; the mini profile plays its own data")
        for method in make["METHODS"].split():
            if every and method in METHODS and settings.missing(task, method):
                continue
            for seed in make["SEEDS"].split():
                own = f"{profile}/{settings.of_seed(cell, seed) if seed.isdigit() else cell}"
                found.setdefault(own, {})[f"{own}/{method}/seed{seed}"] = with_lm(
                    profile, method, overrides, make["LM"])
    if cells and not found:  # `make all` of what no task has would be nothing, without a word
        settings.fail(f"{' '.join(cells)}: METHODS={make['METHODS']!r} has no run there; "
                      f"{settings.missing(task, method)}")
    return found


class Request(NamedTuple):
    runs: set      # the names of all runs that are asked for
    tables: set    # what their tables are called: a cell, or CELL-dN


def requested(cells, found, make):
    """The Request of these cells. found: what `asked` says of them."""
    return Request({run for of_cell in found.values() for run in of_cell},
                   {settings.table_of(cell) if make.get("SUBSETS") else cell for cell in cells})


def check_words(make):
    """One line and exit if a variable of make's is empty where it must not be, repeats a word, or is none of
    the words that it may be."""
    for name, known in (("PROFILE", PROFILES), ("METHODS", METHODS), ("SEEDS", None)):
        words = make[name].split()
        if not words or len(words) > len(set(words)):
            settings.fail(f"{name}={make[name]!r} names none, or one twice; for example METHODS=\"lamo dt\" "
                          "SEEDS=\"0 1\"")
        for word in words:
            if known and word not in known:
                settings.fail(f"no {name.lower().rstrip('s')} {word!r}; there are {', '.join(known)}")
            if not known and not re.fullmatch(settings.SEED, word):
                settings.fail(f"SEEDS={make[name]!r}: {word!r} is no seed; give whole numbers in [0, 1e9), "
                              "as short as they can be written")
    for name, known in WORDS.items():
        if make.get(name, "") not in ("", *known):
            settings.fail(f"{name}={make[name]!r} is not known; {name}={known[0]}, or leave it out")
    for name, most in (("THREADS", 1024), ("GPUS", 1024)):
        if (word := make.get(name, "")) and not (re.fullmatch("[1-9][0-9]{0,3}", word) and int(word) <= most):
            settings.fail(f"{name}={word!r} is no whole number in [1, {most}]")


def with_lm(profile, method, overrides, lm):
    """ARGS' settings, and LM= where the method has none of its own."""
    if lm and method in METHODS and settings.takes_lm(profile, method):
        return overrides | {"lm": lm}
    return overrides


def words_of(run, overrides, make, request):
    config = settings.configuration(run, **overrides)
    folder = Path("runs") / run
    finished = (folder / "final.safetensors").exists()
    kept = finished or any(folder.glob("state*.safetensors"))
    anew = bool(make["REPLACE"] or make["FRESH"])
    if kept and not anew and (differs := why_another(folder, config)):
        settings.fail(f"{folder} holds a {'finished' if finished else 'killed'} run in which "
                      f"{settings.some(differs)}; ask for it with the same words, move it out of runs/, or "
                      "let it be replaced with REPLACE=1")
    refuse_other_seeds(run, overrides, request)
    text, words = bool(config.get("lm_weight") and config["lm"]), [f"run:{run}"]
    if not finished or anew or text and make["TEXT"]:  # whose content train.py knows
        words += [f"train:{run}"] + [f"text:{run}"] * text
    if finished and not make["FRESH"] and not played(folder, config):
        words.append(f"evaluate:{run}")
    return words


def why_another(folder, config):
    """In what a run that is there is another one than is asked for: [] if in nothing."""
    recorded = read(folder / "config.json", f"move {folder} out of runs/, or make it again: FRESH=1")
    differs = settings.differences(recorded, config, without=(*settings.EVALUATION, *settings.KEEPING))
    for path, digest in recorded.get("inputs", {}).items():
        if os.path.exists(path) and sha256(path) != digest:
            differs.append(f"{path} was another file when it was trained")
    return differs


def refuse_other_seeds(run, overrides, request):
    """One line and exit, before hours are spent on it, if a table would average this run with seeds that are
    there, were made or played with other settings, and are not asked for."""
    for other in sorted(beside(run, request.tables) - request.runs):
        folder = Path("runs") / other
        if all((folder / name).exists() for name in ("eval.json", "eval.csv")):
            recorded = [read(folder / name, f"move {folder} out of runs/")
                        for name in ("config.json", "eval.json")]
            differs = settings.differences(recorded[0] | recorded[1],
                                           settings.configuration(other, **overrides), settings.KEEPING)
            if differs:
                settings.fail(f"in {folder} {settings.some(differs)}, and a table does not mix runs; move it "
                              f"out of runs/, name its seed, too, or ask for runs/{run} with its words")


def beside(run, tables):
    """{names} of the runs that these tables average this one with: seeds of a subset, or of one each."""
    profile, cell, method, seed = run.split("/")
    every, found = f"{settings.split_subset(cell)[0]}-dN", set()
    if cell in tables:
        names = names_in(Path("runs", profile, cell, method))
        found |= {f"{profile}/{cell}/{method}/{name}" for name in names
                  if re.fullmatch(f"seed{settings.SEED}", name)}
    if every in tables and cell == settings.of_seed(every, seed.removeprefix("seed")):
        subsets = {home: settings.split_subset(home) for home in names_in(Path("runs", profile))}
        found |= {f"{profile}/{home}/{method}/seed{number}" for home, (plain, number) in subsets.items()
                  if f"{plain}-dN" == every and number != "N"}
    return found


def names_in(folder):
    return os.listdir(folder) if folder.is_dir() else []


def played(folder, config):
    """Whether eval.csv holds what is asked for."""
    if not (folder / "eval.csv").exists() or not (folder / "eval.json").exists():
        return False
    wanted = {name: config[name] for name in settings.EVALUATION if name in config}
    record = read(folder / "eval.json", "delete it, and the run is played again")
    return not settings.differences(record, wanted)


def read(path, remedy):
    try:
        return seals.read_json(path)
    except (OSError, ValueError) as error:
        settings.fail(f"{path} is not readable ({error}); "
                      f"{'mend that, and type it again' if is_refused(error) else remedy}")


@functools.cache
def sha256(path):
    return seals.sha256(path)


def check_places(make):
    """One line and exit if LM, DATA or TEXT names a file or a folder that is not there, and no URL or name on
    the hub."""
    for name, word in ((name, make[name]) for name in ("LM", "DATA", "TEXT")):
        elsewhere = word.startswith(("http://", "https://"))
        place = word.startswith((".", "/", "~")) or word.endswith(".gguf") if name == "LM" else bool(word)
        if place and not elsewhere and not os.path.exists(word):
            settings.fail(f"there is nothing at {name}={word}")


def of_make():
    """make's variables."""
    return {name: os.environ.get(name, "") for name in VARIABLES}


if __name__ == "__main__":
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # argparse's help is no word for make
            words = plan([arg for arg in sys.argv[1:] if arg != "all"], "all" in sys.argv, of_make())
            check_places(of_make())
    except SystemExit as stop:  # make says it, once
        print("refused", stop.code or "ARGS= asks for help; see python train.py --help")
    else:
        print(*words, "planned")
