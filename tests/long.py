"""What docs/reliability.md says: attacks on the kit that take most of an hour, by `make test-long`.

    .venv/bin/python tests/long.py                      # all, at full size, into the document's table
    .venv/bin/python tests/long.py kills disks          # these alone: the other rows stay
    .venv/bin/python tests/long.py pairs --share 0.1 --dry

An attack is refused (one line, exit code not 0, and what was there is not lost), harmless (the same command
then ends in the same bytes), silent (in other bytes, or with something left behind), or a traceback. Here
`kills`, `disks`, `pairs` and `downloads` start processes; `damages`, `words` (command lines) and `strangers`
(files) run tests. All is of toy size.
"""

import collections
import concurrent.futures
import contextlib
import hashlib
import http.server
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

KIT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(KIT), str(KIT / "tests")]

from conftest import make_kit

from kit.artifacts import write_whole
from kit.settings import Options
from sources.download import download

CELL = "reacher2d-medium-0.1"
RUN = f"mini/{CELL}/dt/seed0"
TOY = "--steps 4 --eval_every 2 --log_every 2 --batch_size 8 --episodes 1 --context 3 --target_returns 40"
# what is there before, and the command
STAGES = {
    "prepare_data.py": ((), ("prepare_data.py", f"mini/{CELL}")),
    "train.py": (("data",), ("-m", "kit.watch", "train.py", RUN, *TOY.split())),
    "baselines.py": (("data",), ("-m", "kit.watch", "baselines.py", RUN.replace("dt", "bc"), *TOY.split())),
    "evaluate.py": (("data", "train"), ("-m", "kit.watch", "evaluate.py", RUN, *TOY.split())),
    "make": ((), ("make", CELL, "METHODS=dt bc", f"ARGS={TOY}")),
}
MARKERS = ("<!-- attacks: begin, of python tests/long.py -->", "<!-- attacks: end -->")
DOCUMENT = KIT / "docs" / "reliability.md"
OUTCOMES = ("refused", "harmless", "silent", "traceback")
# damages: of a kind; words: at most; kills: of each stage; disks: sizes a stage
FULL = {"damages": 1000, "words": 4000, "strangers": 1, "kills": 40, "disks": 20, "pairs": 50,
        "downloads": 20}


# --- a stage of toy size -----------------------------------------------------------------------

class Stage:
    """A command, in a folder of its own, from what has to be there before; and what it ends in."""

    def __init__(self, name, folder):
        before, self.command = STAGES[name]
        self.name, self.kit = name, make_kit(folder)
        self.folder, self.kept = folder, folder / "before"
        for stage in before:
            self.kit(*{"data": STAGES["prepare_data.py"][1], "train": STAGES["train.py"][1]}[stage])
        self.save()
        began = time.time()
        self.kit(*self.command)
        self.seconds, self.once = time.time() - began, self.found()

    def save(self):
        for room in ("data", "runs", "results"):
            if (self.folder / room).exists():
                shutil.copytree(self.folder / room, self.kept / room)

    def reset(self):
        for room in ("data", "runs", "results", "figures"):
            shutil.rmtree(self.folder / room, ignore_errors=True)
            if (self.kept / room).exists():
                shutil.copytree(self.kept / room, self.folder / room)

    def before(self):
        return [str(path.relative_to(self.kept)) for path in self.kept.rglob("*") if path.is_file()
                and path.name not in ("log.txt", "cost.json")]

    def found(self):
        """{file: SHA-256} of all that is there, but for what counts seconds."""
        paths = [path for room in ("data", "runs", "results") for path in (self.folder / room).rglob("*")]
        return {str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in paths if path.is_file() and path.name not in ("log.txt", "cost.json")}

    def start(self, *words, **more):
        return subprocess.Popen(self.kit.words(words or self.command), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, start_new_session=True,
                                **self.kit.surroundings({}) | more)

    def again(self):
        """What the same command comes to now: an outcome, and what was said."""
        done = self.kit(*self.command, check=False)
        said = done.stdout + done.stderr
        if "Traceback" in said:
            return "traceback", said
        if done.returncode:
            return "refused", said
        found = self.found()
        return ("harmless", "") if found == self.once else ("silent", differing(self.once, found))


def differing(one, two):
    return f"differ: {[name for name in {**one, **two} if one.get(name) != two.get(name)]}"


# --- the attacks: each yields (kind, outcome, what was said) --------------------------------------

def of_stages(attack, count):
    """The outcomes of attack(stage, number, random numbers) on each stage, two stages at a time."""
    def of(name):
        with tempfile.TemporaryDirectory(prefix="lamo-long-") as folder:
            stage, numbers = Stage(name, Path(folder)), random.Random(name)
            for number in range(count):
                stage.reset()
                found.append(attack(stage, number, numbers))
    found = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(of, name) for name in STAGES]:
            done.result()
    return found


def kills(count):
    """kill -9 of all processes of a stage at a random moment, and the same command again."""
    def attack(stage, number, numbers):
        process = stage.start()
        time.sleep(numbers.uniform(0, stage.seconds))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"kill -9 of {stage.name}", *stage.again()
    return of_stages(attack, count)


def disks(count):
    """A disk on which no file can grow beyond a size; then a disk that has room again."""
    def attack(stage, number, numbers):
        size = int(64 * 62_500 ** (number / count))  # a semaphore, which is no disk's, takes 32
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        process = stage.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1])))
        said = process.communicate()[0]
        kind = f"disk full, {stage.name}"
        lost = [name for name in stage.before() if not (stage.folder / name).exists()]
        if "Traceback" in said or lost:
            return kind, "traceback" if "Traceback" in said else "silent", f"{lost} {said}"
        outcome, why = stage.again()
        return kind, "refused" if process.returncode and outcome == "harmless" else outcome, why
    return of_stages(attack, count)


def pairs(count):
    """Two makes of one cell in one folder."""
    with tempfile.TemporaryDirectory(prefix="lamo-long-") as folder:
        stage, numbers = Stage("make", Path(folder)), random.Random("pairs")
        for _ in range(count):
            stage.reset()
            first = stage.start()
            time.sleep(numbers.uniform(0, stage.seconds))
            second = stage.start()
            said = "".join(process.communicate()[0] for process in (first, second))
            failed = first.returncode or second.returncode
            outcome = "traceback" if "Traceback" in said else "refused" if failed else (
                "harmless" if stage.found() == stage.once else "silent")
            yield "two makes at once", outcome, said if outcome != "harmless" else ""


def of_tests(name, **environment):
    """What the tests of a file record (tests/damage.py)."""
    with tempfile.TemporaryDirectory(prefix="lamo-long-") as folder:
        table = Path(folder) / "table"
        tests = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"tests/{name}"],
                               cwd=KIT, env=os.environ | environment | {"ATTACKS": str(table)})
        if tests.returncode:
            yield f"tests/{name}", "traceback", "a test failed, see above"
        for line in table.read_text().splitlines() if table.exists() else ():
            counts = json.loads(line)
            kind = counts.pop("kind")
            for outcome, times in counts.items():
                yield from [(kind, outcome, "")] * times


def damages(count):
    return of_tests("test_damage.py", DAMAGES=str(count))


def words(count):
    return of_tests("test_command_lines.py", LINES=str(count))


def strangers(_):
    return of_tests("test_strangers.py", LONG="1")


# --- downloads -----------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 400


class Server(http.server.BaseHTTPRequestHandler):
    """/MODE/SIZE: cut after SIZE bytes, other bytes, slow, elsewhere, an error."""

    def do_GET(self):
        mode, size = self.path.strip("/").split("/")[:2]
        size, body = int(size), CONTENT
        if mode == "error":
            return self.send_error(size)
        if mode == "elsewhere":
            self.send_response(302)
            self.send_header("Location", ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x")[size % 3])
            return self.end_headers()
        start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if mode == "range" else 0
        if mode == "other":
            body = body[:size] + b"?" + body[size + 1:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(OSError):
            if mode == "slow":
                self.wfile.write(body[:size])
                self.wfile.flush()
                return time.sleep(1.0)
            self.wfile.write(body[start:size if mode in ("cut", "range") else None])

    def log_message(self, *_):
        pass


def downloads(count):
    """A server that cuts off, sends other bytes, stalls, sends elsewhere, or fails; then one that works."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url, numbers = f"http://127.0.0.1:{server.server_port}", random.Random("downloads")
    known = hashlib.sha256(CONTENT).hexdigest()
    with tempfile.TemporaryDirectory(prefix="lamo-long-") as folder:
        for number in range(count):
            mode = ("cut", "other", "slow", "elsewhere", "error")[number % 5]
            size = numbers.choice((404, 500, 503)) if mode == "error" else numbers.randrange(len(CONTENT))
            yield "a download that is cut, wrong, slow or sent elsewhere", *fetched(
                Path(folder) / f"{number}", [f"{url}/{mode}/{size}/x"], known, f"{url}/whole/0/x")
    server.shutdown()


def fetched(path, urls, known, whole):
    said, shown = "", io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            download(urls, path, known, 0.3, "remedy")
        except SystemExit as stop:
            said = str(stop.code)
        except Exception as error:
            return "traceback", f"{urls} {type(error).__name__}: {error}"
        if path.exists():
            return ("harmless" if path.read_bytes() == CONTENT else "silent"), said
        download([whole], path, known, 5.0, "remedy")
    return ("refused" if said and "\n" not in said and path.read_bytes() == CONTENT else "silent"), said


# --- the table -----------------------------------------------------------------------------------

ATTACKS = {"damages": damages, "words": words, "strangers": strangers, "kills": kills, "disks": disks,
           "pairs": pairs, "downloads": downloads}


HEAD = ["| attacked | tried | refused in one line | harmless | **silent** | traceback |",
        "| --- | --- | --- | --- | --- | --- |"]


def rows(counts):
    """{kind: its line of the table}."""
    return {kind: f"| {kind} | {sum(count.values()):,} | "
            f"{' | '.join(f'{count[name]:,}' for name in OUTCOMES)} |" for kind, count in counts.items()}


def write(found):
    """Rows into the table between the document's markers, in place of those of the same kinds."""
    before, begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(MARKERS[0])
    table, end, after = rest.partition(MARKERS[1])
    there = {line.split("|")[1].strip(): line for line in table.splitlines()
             if line.startswith("| ") and line not in HEAD}
    text = "\n".join([before + begin, "", *HEAD, *(there | found).values(), "", end + after])
    write_whole(DOCUMENT, lambda part: part.write_text(text, encoding="utf-8"))


def main(args):
    counts, bad = collections.defaultdict(collections.Counter), []
    for name in args.attacks or ATTACKS:
        began = time.time()
        for kind, outcome, said in ATTACKS[name](max(1, round(FULL[name] * args.share))):
            counts[kind][outcome] += 1
            if outcome in ("silent", "traceback") or name in ("kills", "pairs") and outcome != "harmless":
                bad.append(kind)
                print(f"{kind}: {outcome}: {said[-1500:]}", flush=True)
        print(f"{name}: {time.time() - began:.0f} s", flush=True)
    found = rows(counts)
    print("\n".join([*HEAD, *found.values()]))
    if not args.dry:
        write(found)
    sys.exit(f"{len(bad)} attacks came through" if bad else 0)


if __name__ == "__main__":
    OPTIONS = Options(__doc__)
    OPTIONS.add_argument("attacks", nargs="*", choices=[*ATTACKS, []], help="all, if none is named")
    OPTIONS.add_argument("--share", type=float, default=1.0, help="of the full number")
    OPTIONS.add_argument("--dry", action="store_true", help="leave the document alone")
    main(OPTIONS.parse_args())
