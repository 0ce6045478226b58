"""Results that ship: rows of finished runs in results/shipped/mini, and what the documents say of them.

    make shipped            # trains what GRID asks for and the rows lack: hours; type it again to go on
    make shipped-report     # report, claims, and the tables of README.md and docs/: seconds; trains nothing

    python -m paper.shipped --missing    # what is lacking, as words for make, a line a cell and seeds
    python -m paper.shipped --take       # results/mini/CELL.csv -> results/shipped/mini/CELL.csv.gz
    python -m paper.shipped --write      # the documents' tables and figures

reads   results/mini and, for what a row's run was made by, runs/mini; of GRID's cells alone
writes  results/shipped/mini/CELL.csv.gz, the rows, and CELL.json, {method: the settings of its rows};
        between MARKERS of DOCUMENTS; FIGURE, of the first cell; CLAIMED_FIGURES, of all

A shipped row is one of results/ and MADE_BY beside it. Rows of runs that are not here stay, if they are of
the same data. A run counts as shipped while its settings are those of tasks.py; what is of others is missing,
and left out when the next are taken.
"""

import functools
import gzip
import hashlib
import json
from pathlib import Path

from kit import fail, settings, signals

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("--missing", action="store_true", help="words for make")
OPTIONS.add_argument("--take", action="store_true", help="the rows of finished runs")
OPTIONS.add_argument("--write", action="store_true", help="what the documents say of them")
if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a second

import numpy as np

import plot
from kit import artifacts, gathering, seals
from kit.results import data_score, load_cell
from kit.statistics import mean_over_tasks, replications, summarise
from paper import forest
from paper.claims import CLAIMS, FEWEST, MEASURES, beyond_cells, comparisons, in_order, means_of
from paper.grid import is_lamo, name_of
from tasks import METHODS

FOLDER = Path("results/shipped/mini")
MADE_BY = ("data_sha256", "code", "torch", "numpy", "device", "threads", "dtype")  # trained and played
COLUMNS = artifacts.RESULT_COLUMNS + artifacts.EXTRA_COLUMNS + MADE_BY
MARKERS = ("<!-- shipped: begin, of make shipped-report -->", "<!-- shipped: end -->")
FIGURE = Path("docs/hopper-medium-0.01.png")
CLAIMED_FIGURES = {Path("docs/claims.png"): False, Path("docs/claims-by-cell.png"): True}  # every cell?

# What is run, most wanted first: cells, methods, replications.
FEW = ("hopper-medium-0.01", "walker2d-medium-0.01", "kitchen-complete-0.3", "halfcheetah-medium-0.005",
       "reacher2d-medium-0.3", "kitchen-partial-0.1", "breakout-medium-0.1", "qbert-medium-0.1",
       "pong-medium-0.1")
MORE = ("hopper-medium-0.1", "walker2d-medium-0.1", "kitchen-complete-1", "reacher2d-medium-1",
        "halfcheetah-medium-0.1", "kitchen-partial-1", "breakout-medium-1", "qbert-medium-1", "pong-medium-1")
MAIN, RIVALS = ("lamo", "dt", "lamo-random"), ("wiki", "bc", "td3bc", "iql", "cql")
ABLATIONS = tuple(method for method in METHODS if method.startswith("lamo-") and method not in (
    "lamo-random", "lamo-medium", "lamo-smollm2", "lamo-smollm2-random", "lamo-released"))
GRID = ((FEW, MAIN, 5), (FEW[:1], RIVALS, 3), (FEW[:3], ABLATIONS, 3), (FEW[1:], RIVALS, 3),
        (MORE, MAIN, 5), (MORE, RIVALS, 3), (FEW[:3], ("lamo-smollm2", "lamo-smollm2-random"), 3))


# --- what is run, and its rows -----------------------------------------------------------------

def shipped_path(cell):
    return FOLDER / f"{settings.table_of(cell)}.csv.gz"


def settings_path(cell):
    return FOLDER / f"{settings.table_of(cell)}.json"


def of_settings(cell):
    """{method: the settings of its shipped rows}, as JSON gives them back."""
    path = settings_path(cell)
    return artifacts.read_json(path, f"restore it with git checkout, or delete {shipped_path(cell)}")


def shipped_rows(cell):
    """The rows of a cell's runs that are as tasks.py has them now, as text; none where there is no file."""
    path = shipped_path(cell)
    if not path.exists():
        return []
    asked = {method for method, config in of_settings(cell).items() if method in METHODS
             and not settings.changed(f"mini/{cell}/{method}/seed0", {"dtype": "auto"} | config)}
    return [row for row in artifacts.read_csv(path, COLUMNS) if row["method"] in asked]


def same_data(row, new):
    """Whether a shipped row may stay beside new rows of its cell. Of one subset all are of the same files. In
    other subsets an agent is the same by its weights' digest, though it may have played in other arithmetic
    (docs/tasks.md); a script by its held-out episodes, which all subsets share."""
    own = [other for other in new if other["subset"] == row["subset"]]
    for name in ("data_sha256", "heldout_data"):
        if row[name] and (theirs := {other[name] for other in own} - {""}) and row[name] not in theirs:
            return False
    held_out = {other["heldout_data"] for other in new} - {""}
    return (row["data"] in {other["data"] for other in new} or not row["heldout_data"] or not held_out
            or row["heldout_data"] in held_out)


def missing():
    """Lines of words for make, each of a cell and of methods that lack the same seeds. LaMo's runs once."""
    for cells, methods, count in GRID:
        for cell in cells:
            done = {(row["method"], int(row["seed"])) for row in shipped_rows(cell)}
            lacking = {}
            for method in methods:
                seeds = " ".join(str(seed) for seed in range(count) if (method, seed) not in done)
                again = method != "lamo" and is_lamo("mini", cell, method)
                if seeds and not again and not settings.missing(cell.rpartition("-")[0], method):
                    lacking.setdefault(seeds, []).append(method)
            for seeds, them in lacking.items():
                yield (f'{cell} "METHODS={" ".join(them)}" "SEEDS={seeds}"'
                       + " SUBSETS=seed" * (settings.table_of(cell) != cell))


def take():
    """Ship the rows of this checkout's runs, beside those of other runs that are shipped."""
    for cell in dict.fromkeys(cell for cells, *_ in GRID for cell in cells):
        source = artifacts.results_path(f"mini/{settings.table_of(cell)}")
        if not source.exists():
            continue
        rows = artifacts.read_csv(source, artifacts.RESULT_COLUMNS)
        # as tasks.py had them when they were played, and has them now
        rows = [row for row in rows if not row["changed"]]
        check_runs(rows)
        rows = [row | made_by(row) for row in rows]
        new = [row for row in rows if not row["changed"]]
        runs = {(row["method"], row["seed"]) for row in new}
        others = [row for row in shipped_rows(cell) if (row["method"], row["seed"]) not in runs]
        kept = [row for row in others if same_data(row, new)]
        rows = new + kept
        if gone := {(row["method"], row["seed"]) for row in others} - {
                (row["method"], row["seed"]) for row in kept}:
            print(f"{shipped_path(cell)}: {len(gone)} runs of other data are left out, which git checkout "
                  f"restores: {', '.join(' '.join(run) for run in sorted(gone))}")
        order = list(METHODS)
        rows.sort(key=lambda row: (order.index(row["method"]), int(row["seed"])))  # stable
        rows = [{name: row[name] for name in COLUMNS} for row in rows]
        content = gzip.compress(artifacts.csv_text(COLUMNS, rows).encode("utf-8"), mtime=0)
        made = json.loads(json.dumps({  # as it is read back
            method: {name: value for name, value in settings.configuration(
                f"mini/{cell}/{method}/seed0").items() if name != "dtype"}  # which each row says
            for method in dict.fromkeys(row["method"] for row in rows)}))
        path = shipped_path(cell)
        if rows and not (path.exists() and path.read_bytes() == content and of_settings(cell) == made):
            # killed between the two, what is new counts as missing, and is taken again
            if not path.exists():  # rows without settings are refused
                artifacts.write_json(settings_path(cell), made)
            artifacts.write_whole(path, lambda part, content=content: part.write_bytes(content))
            artifacts.write_json(settings_path(cell), made)
            print(f"{path}: {len(rows):,} rows of {len({(r['method'], r['seed']) for r in rows})} runs")


def check_runs(rows):
    """One line and exit if rows are not those of the runs that are here now, which say what made them."""
    runs = {}
    for row in rows:
        runs.setdefault(run_of(row), []).append(row)
    for run, own in runs.items():
        if not gathering.is_of(own, artifacts.run_folder(run)):
            fail(f"runs/{run} was trained or played anew since its rows were gathered; gather them again: "
                 f"python evaluate.py --collect mini/{cell_of(own[0])}")


def run_of(row):
    return (f"mini/{settings.of_seed(cell_of(row), row['seed'] if row['subset'] != '0' else 0)}/"
            f"{row['method']}/seed{row['seed']}")


def made_by(row):
    return recorded(run_of(row))


def cell_of(row):
    """"hopper-medium-0.01-dN" of a row of a table of subsets."""
    return f"{row['task']}-{float(row['ratio']):g}" + "-dN" * (row["subset"] != "0")


@functools.cache
def recorded(run):
    """MADE_BY of a run's records, and in which settings it differs from what tasks.py has now."""
    record = {"dtype": "float32"} | artifacts.load_config(run)  # which a baseline does not say
    evaluation = artifacts.read_json(artifacts.run_folder(run) / "eval.json", "play it again")
    made_by = gathering.made_by(record, evaluation) | {"data_sha256": record["data_sha256"][:8]}
    return made_by | {"changed": settings.changed(run, record)}


# --- what the documents say --------------------------------------------------------------------

def load():
    """{cell: its rows, with numbers as numbers} of the shipped files, in the order of GRID."""
    cells = dict.fromkeys([*FEW, *MORE])
    return {cell: load_cell(shipped_path(cell), f"mini/{cell}") for cell in cells
            if shipped_path(cell).exists()}


def score(line, most=None):
    """"38.0 [36.1, 39.9]" of a line of kit.statistics.summarise; the mean alone of fewer than FEWEST.
    most: as many as its cell has, "5 subsets"; what is over fewer says so."""
    if line is None:
        return ""
    if len(line["seeds"]) < FEWEST:
        return f"{line['score']:.1f} ({over(line)})"
    interval = f"{line['score']:.1f} [{line['interval'][0]:.1f}, {line['interval'][1]:.1f}]"
    return f"{interval} ({over(line)})" if most and over(line) != most else interval


def difference(pair, form):
    """A kit.statistics.Paired as text, bold where its interval leaves 0 out; without one where fewer than
    FEWEST replications have both; empty where there is none."""
    if pair is None:
        return ""
    said = form.format(pair.difference)
    if len(pair.seeds) < FEWEST:
        return said
    low, high = pair.interval
    said = f"{said} [{form.format(low)}, {form.format(high)}]"
    return said if low <= 0 <= high else f"**{said}**"


def lines_of(rows):
    return {line["method"]: line for line in summarise(rows)}


def scores(lines):
    """How many replications a cell has at most, and MAIN's scores."""
    most = over(max(lines.values(), key=lambda line: len(line["seeds"])))
    return most, [score(lines.get(method), most) for method in MAIN]


def over(line):
    return f"{len(line['seeds'])} {line['over'] if line['over'] != 'episodes' else 'run'}"


def front(cells):
    """README's table: a row a cell of FEW, and the mean; scores of MAIN, and what LaMo's differ by from the
    others', in held-out loss, too. Beneath it the claims' figure."""
    yield from row_of("", [*map(title, MAIN), "data mean", *(
        f"LaMo - {title(other)}: score<br>and held-out loss" for other in MAIN[1:])])
    yield f"|{' --- |' * (2 * len(MAIN) + 1)}"
    few = {cell: rows for cell, rows in cells.items() if cell in FEW}
    found = [comparisons(claimed(few), "lamo", other) for other in MAIN[1:]]
    for cell, rows in few.items():
        most, texts = scores(lines_of(rows))
        yield from row_of(f"`{cell}`, {most}", [*texts, f"{data_score(rows):.1f}", *(
            beside(dict(lines).get(("mini", cell))) for lines in found)])
    if len(few) > 1:
        yield from mean_row(few, found)
    yield from ("", f"![The claims: what two methods differ by, with intervals]({[*CLAIMED_FIGURES][0]})")


def beside(comparison):
    """What a Comparison says of score and held-out loss; empty if there is none."""
    if comparison is None:
        return ""
    forms = comparison.forms()
    return "<br>".join(filter(None, (difference(comparison.pairs[what], forms[what])
                                     for what in ("score", "heldout_loss"))))


def mean_row(few, found):
    """The mean over tasks: a method's that all cells have, over the seeds that it has in all of them; what
    LaMo differs by, in `found`, as paper.claims.means_of has it."""
    lines = []
    for method in MAIN:
        of_cells = [replications([row for row in rows if row["method"] == method], "score")
                    for rows in few.values()]
        mean = mean_over_tasks(of_cells)
        lines.append(mean and {"score": mean.difference, "interval": mean.interval, "seeds": mean.seeds,
                               "over": "of each"})
    most = max(filter(None, lines), key=lambda line: len(line["seeds"]), default=None)
    most = over(most) if most else "none"  # no method is in all cells
    texts = [*(score(line, most) for line in lines),
             f"{np.mean([data_score(rows) for rows in few.values()]):.1f}"]
    for of_other in found:
        (_, name), mean = next(means_of(of_other), (("", ""), None))
        tasks = f"{name.removeprefix('mean ')}: " if mean and f" {len(few)} " not in name else ""
        texts.append(tasks + beside(mean) + (f"<br>({mean.over})" if mean and mean.over != most else ""))
    return row_of(f"mean over tasks, {most}", texts)


def title(method):
    return {"lamo-random": "random weights"}.get(method, name_of(method))


def row_of(first, rest):
    yield f"| {' | '.join([first, *rest])} |"


def every_cell(cells):
    """The table of docs/tasks.md: a row a cell."""
    yield from row_of("`make`", ["training episodes", "LaMo", "DT", "random weights", "data mean", "over"])
    yield f"|{' --- |' * 7}"
    for cell, rows in cells.items():
        most, texts = scores(lines_of(rows))
        yield from row_of(f"`{cell}`", [
            str(rows[0]["data_episodes"]), *texts, f"{data_score(rows):.1f}", most])


def every_method(cells):
    """The table of docs/methods.md: a row a method, a column a cell."""
    lines = {cell: lines_of(rows) for cell, rows in cells.items()}
    yield from row_of("", [f"`{cell}`" for cell in cells])
    yield f"|{' --- |' * (1 + len(cells))}"
    for method in METHODS:
        if any(method in own for own in lines.values()):
            yield from row_of(f"`{method}`", [score(own.get(method)) for own in lines.values()])
    yield from row_of("data mean", [f"{data_score(rows):.1f}" for rows in cells.values()])
    yield ""
    yield from every_claim(cells)


def every_claim(cells):
    """What `make claims` prints of the shipped rows, where FEWEST replications have both methods."""
    yield from row_of("claim", ["compared", "cell", "over", *(title for *_, title in MEASURES)])
    yield f"|{' --- |' * (4 + len(MEASURES))}"
    for claim, pairs in CLAIMS:
        for first, second in pairs:
            lines = comparisons(claimed(cells), first, second)
            lines += beyond_cells((first, second), lines)
            for (_, cell), comparison in lines:
                if comparison.count >= FEWEST:
                    yield from row_of(claim, [f"`{first}` - `{second}`", f"`{cell}`", comparison.over,
                                              *comparison.said()])


def claimed(cells):
    """The cells as paper.claims has them."""
    return in_order({("mini", cell): [rows] for cell, rows in cells.items()})


DOCUMENTS = {"README.md": front, "docs/tasks.md": every_cell, "docs/methods.md": every_method}


def write(cells):
    """Fill in the documents and draw the figures, whose metadata name the rows they are of."""
    for name, lines in DOCUMENTS.items():
        artifacts.fill_document(Path(name), MARKERS, lines(cells))
    if not cells:
        return
    first = next(iter(cells))
    rows = [row for row in cells[first] if row["method"] in MAIN]
    save(FIGURE, plot.draw(f"mini/{settings.table_of(first)}", rows, summarise(rows)), drawn_of(first))
    for path, every in CLAIMED_FIGURES.items():
        if picture := forest.picture(claimed(cells), "mini", every):
            save(path, picture[1], claims_drawn(cells))


def save(path, figure, drawn):
    about = {"Description": drawn, "Software": None}
    artifacts.write_whole(path, lambda part: figure.savefig(part, dpi=100, metadata=about))


def drawn_of(cell):
    return f"{shipped_path(cell).name} {seals.sha256(shipped_path(cell))}"


def claims_drawn(cells):
    return f"claims {hashlib.sha256(chr(10).join(every_claim(cells)).encode()).hexdigest()}"


def main(args):
    if args.missing:
        signals.end_with_reader()
        print(*missing(), sep="\n", end="\n" if any(missing()) else "")
    if args.take:
        take()
    if args.write:
        write(load())


if __name__ == "__main__":
    main(ARGS)
