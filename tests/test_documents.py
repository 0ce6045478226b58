"""README.md and docs/: links lead somewhere, files that are named exist, and commands are accepted."""

import re
import shlex

import pytest
from conftest import KIT, make_kit

PAGES = [KIT / "README.md", *sorted((KIT / "docs").glob("*.md"))]
# the commands of extending.md belong to what its recipes add: test_extending.py
COMMANDS = sorted({line.strip().partition(" #")[0].strip()
                   for page in PAGES if page.name != "extending.md" for line in page.read_text().splitlines()
                   if re.match(r"    (make|\.venv/bin/python|python3 -m) ", line)})


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return make_kit(tmp_path_factory.mktemp("fresh"))


def anchors(page):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_front_page_can_be_finished():
    lines = (KIT / "README.md").read_text().splitlines()
    assert len(lines) <= 130
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))


def test_the_differences_are_numbered_without_a_gap():
    """Other pages and the code name them by number."""
    numbers = re.findall(r"^ ?(\d+)\. ", (KIT / "docs/differences.md").read_text(), re.M)
    assert [*map(int, numbers)] == [*range(1, len(numbers) + 1)] and len(numbers) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    ours = r"`((?:(?:kit|mini|sources|docs|tests|benchmark|paper)/)[\w/.\-]*|\w+\.py|Makefile|LICENSE)`"
    named = set(re.findall(ours, page.read_text()))
    theirs = set(re.findall(r"theirs `(\w+\.py)", page.read_text()))  # of the authors' code
    new = set(re.findall(r"new file `([^`]+)`", page.read_text()))    # of a recipe
    absent = {name for name in named - theirs - new if not (KIT / name).exists()}
    assert not absent - {"experiment.py", "utils.py", "main.py", "infos.py"}  # likewise theirs


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_make_accepts(fresh, command):
    # what is to be read has to be there
    words = [re.sub(r"^(LM|DATA|TEXT)=/.+", rf"\1={fresh.folder}", word) for word in shlex.split(command)[1:]]
    if {"plan", "status"} & set(words):  # which start nothing
        assert "to come: " in fresh("make", *words).stdout
    elif not {"benchmark", "setup", "test", "test-long", "videos"} & set(words):
        done = fresh("make", "-n", *words, check=False)
        assert done.returncode == 0, done.stderr
        without = {"report", "claims", "shipped", "shipped-report", "sbatch"} & set(words)
        without = without or not set(words) - {"list", "help", "-k"}
        assert without or "train.py" in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith("make ")])
def test_the_stages_have_these_options(fresh, command):
    words = shlex.split(command)[1:]
    program = words[:2] if words[0] == "-m" else words[:1]
    said = fresh(*program, "--help").stdout
    assert all(word in said for word in words if word.startswith("--"))
