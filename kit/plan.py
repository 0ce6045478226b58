"""What a call of make has to do: which runs are finished, which differ, which must be made.

    python3 -m kit.plan CELL...           asked by the Makefile; changes nothing

reads   make's variables PROFILE METHODS SEEDS LM DATA TEXT ARGS REPLACE FRESH from the environment, and
        runs/RUN/config.json and eval.json
prints  words for the Makefile, and "planned" behind them, or "refused" and one line:
            run:RUN        is asked for
            train:RUN      has to be trained (or asked whether it has to be)
            text:RUN       is to be trained and needs text
            evaluate:RUN   is trained, and has to be played, or played anew
            data:CELL      its data have to be looked at

A finished run is never lost to a changed word. A run whose recorded settings are not those of its name and
of ARGS, LM and TEXT is refused before anything starts; REPLACE=1 makes it anew, FRESH=1 makes all anew.
docs/extending.md has the reasons. Standard library only: make may ask before anything is installed.
"""

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

from kit import settings
from tasks import METHODS


def plan(cells, every, make):
    """The words for these cells. every: of METHODS, take those that a task has, as `make all` does."""
    words = []
    for cell, of_cell in asked(cells, every, make).items():
        more = [word for run, overrides in of_cell.items() for word in words_of(run, overrides, make)]
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
    overrides = vars(settings.options("", run="none").parse_args(words))
    for name in ("METHODS", "SEEDS"):
        words = make[name].split()
        if not words or len(words) > len(set(words)):
            settings.fail(f"{name}={make[name]!r} names none, or one twice; for example METHODS=\"lamo dt\" "
                          "SEEDS=\"0 1\"")
    found = {}
    for cell in cells:
        profile, task, _ = settings.parse_cell(f"{make['PROFILE']}/{cell}")
        if make["DATA"] and profile == "mini":
            settings.fail("DATA= belongs to PROFILE=paper; the mini profile plays its own data")
        found[f"{profile}/{cell}"] = {
            f"{profile}/{cell}/{method}/seed{seed}": with_lm(profile, method, overrides, make["LM"])
            for method in make["METHODS"].split() for seed in make["SEEDS"].split()
            if not (every and method in METHODS and settings.missing(task, method))}
    return found


def with_lm(profile, method, overrides, lm):
    """ARGS' settings, and LM= where the method has none of its own."""
    if lm and method in METHODS and settings.takes_lm(profile, method):
        return overrides | {"lm": overrides["lm"] or lm}
    return overrides


def words_of(run, overrides, make):
    config = settings.configuration(run, **overrides)
    folder = Path("runs") / run
    finished = (folder / "final.safetensors").exists()
    kept = finished or any(folder.glob("state*.safetensors"))
    anew = bool(make["REPLACE"] or make["FRESH"])
    if kept and not anew and (differs := why_another(folder, config, make)):
        settings.fail(f"{folder} holds a {'finished' if finished else 'killed'} run in which "
                      f"{'; '.join(differs[:3])}; ask for it with the same words, move it away, or let it be "
                      "replaced with REPLACE=1")
    words = [f"run:{run}"]
    if not finished or anew:
        words += [f"train:{run}"] + [f"text:{run}"] * bool(config.get("lm_weight") and config["lm"])
    if finished and not played(folder, config):
        words.append(f"evaluate:{run}")
    return words


def why_another(folder, config, make):
    """In what a run that is there is another one than is asked for: [] if in nothing."""
    recorded = read(folder / "config.json")
    differs = settings.differences(recorded, config, without=(*settings.EVALUATION, *settings.KEEPING))
    text = (recorded.get("text") or {}).get("text")
    if make["TEXT"] and text and Path(make["TEXT"]).name != text:
        differs.append(f"text is {text}, not {make['TEXT']}")
    trained = (folder / "config.json").stat().st_mtime
    for path, digest in recorded.get("inputs", {}).items():
        if os.path.exists(path) and os.path.getmtime(path) > trained and sha256(path) != digest:
            differs.append(f"{path} was another file when it was trained")
    return differs


def played(folder, config):
    """Whether eval.csv holds what is asked for."""
    if not (folder / "eval.csv").exists() or not (folder / "eval.json").exists():
        return False
    wanted = {name: config[name] for name in settings.EVALUATION if name in config}
    return not settings.differences(read(folder / "eval.json"), wanted)


def read(path):
    try:
        value = json.loads(path.read_text())
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value
    except (OSError, ValueError) as error:
        settings.fail(f"{path} is not readable ({error}); move {path.parent} away, or make it again: FRESH=1")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_make():
    """make's variables."""
    names = ("PROFILE", "METHODS", "SEEDS", "LM", "DATA", "TEXT", "ARGS", "REPLACE", "FRESH")
    return {name: os.environ.get(name, "") for name in names}


if __name__ == "__main__":
    try:
        print(*plan([arg for arg in sys.argv[1:] if arg != "all"], "all" in sys.argv, of_make()), "planned")
    except SystemExit as stop:  # make says it, once
        print("refused", stop.code or "ARGS= asks for help; see python train.py --help")
