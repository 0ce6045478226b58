"""The paper's tables and figures from result CSVs alone: `make report`.

    python -m paper.report mini
    python -m paper.report paper
    python -m paper.report mini --results results/shipped/mini       # writes report/shipped-mini.html

reads   results/PROFILE/*.csv or another folder's, paper/scores.csv; for provenance
        runs/PROFILE/*/*/seedN/config.json and cost.json, where they are there; videos/RUN.gif, where
        `make videos` made them
writes  report/PROFILE.html, one page with everything in it; report/PROFILE.md, the same as Markdown;
        report/PROFILE/*.png and *.svg, the figures

Nothing is trained or played. Equal results give equal bytes. A results file that cannot be used is named at
the top of the page, its cell is missing, and the command ends with 1.
"""

import functools
import os
import sys
from pathlib import Path

from kit import fail, settings, signals
from tasks import PROFILES, TASKS

OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("profile", choices=PROFILES, help=" or ".join(PROFILES))
OPTIONS.add_argument("--results", type=Path, help="the folder of CSV files; results/PROFILE else")
if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds

import matplotlib

from kit import artifacts
from kit.results import of_one_subset
from paper import claims, forest, tables
from paper.figures import LOOKS, SUITES, draw_all
from paper.grid import cost_of, gather
from paper.page import Films, Picture, html, markdown
from paper.provenance import provenance_table

MINI = ("This is the mini profile: small data that the kit plays itself, a small language model of its own, "
        "and a short training. It shows that the code works. These are not the paper's numbers and cannot be "
        "compared with them; those marked \"paper\" are the paper's, from its own data and GPT-2.")


ORDER = ("bars", *(f"table-{number}" for number in tables.TITLES), "other", "ratios", "claims",
         "statistics", "profiles", "ablations", "ablation-scores", *(f"curves-{suite}" for suite in SUITES),
         "films", "provenance")


def save_figures(figures, folder):
    """PNG and SVG of each; returns the pictures for the page."""
    pictures = []
    for name, (title, figure, caption) in figures.items():
        with matplotlib.rc_context(LOOKS):
            figure.draw_without_rendering()  # the layout, once for both files
            figure.set_layout_engine("none")
            for suffix, more in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
                artifacts.write_whole(folder / f"{name}{suffix}", functools.partial(figure.savefig, **more))
        pictures.append(Picture(name, title, caption, (folder / f"{name}.svg").read_bytes()))
    return pictures


def films_of(profile):
    """The episodes that `make videos` filmed; None if there are none."""
    folder = Path("videos", profile)
    files = {str(file.relative_to(folder).with_suffix("")): file
             for task in TASKS for file in sorted(folder.glob(f"{task}-*/*/[!.]*.gif"))}
    note = "The first episode of each run that was filmed."
    return Films("films", "The agents at play", note, files) if files else None


def head_of(profile, cells, troubles, provenance):
    """What stands at the top: what the numbers are, how much of the grid they cover, what went wrong."""
    lines = [line for of_cell in cells.values() for line in of_cell.values()]
    every = tables.of_the_tables()
    costs = [cost_of(line) for line in lines]
    timed, wall, cpu = (sum(cost[name] for cost in costs) for name in ("runs", "wall", "cpu"))
    runs = sum(len(line["seeds"]) for line in lines)
    wary = sum(1 for row in provenance.groups[0].rows if row[-1].order)
    head = [("note", MINI)] if profile == "mini" else []
    changed = sorted({line["changed"] for line in lines if line["changed"]})
    if changed:
        head.append(("warning", f"Settings that are not those of the runs' names: {'; '.join(changed)}"))
    head += [("warning", trouble) for trouble in troubles]
    took = f" {timed} took {wall / 3600:.1f} hours ({cpu / 3600:.1f} of CPU) together." if timed else ""
    head.append(("about", f"{len(every & {*cells})} of the paper's {len(every)} cells have results, "
                          f"from {runs} runs of {len({line['method'] for line in lines})} methods.{took} "
                          f"{wary} of {len(lines)} rows of provenance have something to be wary of."))
    return head


def main(args):
    profile, source = args.profile, args.results or Path("results", args.profile)
    place = Path(os.path.abspath(source)).parts[1:]  # without the root
    folder = Path("report", "-".join(place[-2:]) if args.results else profile)
    cells, troubles = gather(profile, source)
    notes = of_one_subset(source)
    if not cells and (troubles or not notes):
        fail(troubles[0] if troubles else f"{source} holds no results; make some: make "
             f"hopper-medium-0.01{'' if profile == 'mini' else f' PROFILE={profile}'}")
    for note in notes:
        print(f"not in it: {note}", file=sys.stderr)
    if not cells:
        return 0
    provenance = provenance_table(cells)
    shown = [*(tables.paper_table(cells, number) for number in tables.TITLES), tables.other_table(cells),
             tables.ablation_table(cells), tables.statistics_table(cells), provenance]
    title, head = f"LaMo: the {profile} profile", head_of(profile, cells, troubles, provenance)
    films, claimed = films_of(profile), forest.picture(claims.read([source])[0], profile)
    figures = draw_all(cells, profile) | ({"claims": claimed} if claimed else {})
    sections = sorted([*save_figures(figures, folder),
                       *(table for table in shown if table and table.groups), *([films] if films else [])],
                      key=lambda section: ORDER.index(section.name))
    for suffix, text in ((".html", html(title, head, sections)),
                         (".md", markdown(title, head, sections, folder.name))):
        artifacts.write_whole(folder.with_name(folder.name + suffix),  # a folder's name may hold dots
                              lambda part, text=text: part.write_text(text, encoding="utf-8"))
    print(f"report {folder}.html   {folder}.md   figures {folder}/")
    for trouble in troubles:
        print(f"not in it: {trouble}", file=sys.stderr)
    return bool(troubles)


if __name__ == "__main__":
    sys.exit(main(ARGS))
