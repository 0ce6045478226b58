"""The table of measured rows in Markdown, and how it gets into docs/speed.md."""

from pathlib import Path

from benchmark.rows import ROWS
from kit import fail
from kit.artifacts import read_csv, write_csv, write_whole

COLUMNS = ("group", "name", "unit", "median", "low", "high", "repeats", "cpu", "peak_gb",
           "useful_gflops", "dtype", "threads", "machine", "torch", "code")
KIT = Path(__file__).resolve().parent.parent
RESULTS, RECORD, DOCUMENT = Path("results/benchmark.csv"), KIT / "benchmark/record.csv", KIT / "docs/speed.md"
MARKS = ("<!-- written by python -m benchmark --write -->\n", "\n<!-- until here -->")

# The authors' code, unmodified, under its own pinned packages: measured once, on another machine.
RELEASED = {
    "machine": "two-core Xeon with AMX, one thread, float32",
    "GPT-2, step": "35.2 s, 14.4 GB",
    "GPT-2, step with text": "50.8 s, 14.8 GB",
    "small models, step": "DT 1.16 s, 2.0 GB",
    "batches": "17 ms",
    "evaluation, GPT-2": "6.7 steps/s, one episode at a time",
    "evaluation, DT": "385 steps/s, one episode at a time",
}


def line(row):
    return f"{row['group']}: {row['name']}: {row['median']} [{row['low']}, {row['high']}] {row['unit']}"


def table(rows):
    """Lines of Markdown, and what the released code took where it is known."""
    peaks = {row["name"].rpartition(" ")[2]: float(row["median"])  # by dtype
             for row in rows if row["group"] == "machine"}
    kit = {row["group"]: float(row["median"]) for row in rows if row["name"] == "kit"}
    lines = ["| | | median [range] | of the kit's | CPU | peak | of the machine's products |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    before = None
    for row in rows:
        group, useful = row["group"], row["useful_gflops"]
        peer = group in kit and row["name"] != "kit"
        against = f"{float(row['median']) / kit[group]:.2f} x" if peer else ""
        peak = peaks.get(row["dtype"])
        share = f"{100 * float(useful) / peak:.0f} % of {row['dtype']}" if useful and peak else ""
        lines.append(
            f"| {group if group != before else ''} | {row['name']} | {row['median']} "
            f"[{row['low']}, {row['high']}] {row['unit']} | {against} | "
            f"{row['cpu'] and row['cpu'] + ' ' + row['unit']} | {row['peak_gb']} GB | {share} |")
        before = group
    lines += ["", f"The released code, unmodified, measured once on another machine ({RELEASED['machine']}), "
              "not in this run: " + "; ".join(f"{name} {took}" for name, took in RELEASED.items()
                                              if name != "machine") + "."]
    return lines


def section(rows):
    """The measured part of docs/speed.md."""
    first, least = rows[0], min(int(row["repeats"]) for row in rows)
    where = (f"{first['machine']}; {first['threads']} thread a process; the kit in {first['dtype']}; "
             f"torch {first['torch']}; medians over {least} repeats or more.")
    return "\n".join([where, "", *table(rows)])


def write():
    """results/benchmark.csv into docs/speed.md and record.csv; one line and exit if a row is missing."""
    rows = read_csv(RESULTS, COLUMNS)
    measured = {(row["group"], row["name"]) for row in rows}
    if missing := [row for row in ROWS if (row.group, row.name) not in measured]:
        fail(f"{RESULTS} lacks {len(missing)} rows, the first of them {missing[0].group}: {missing[0].name}; "
             "measure them: make benchmark")
    write_csv(RECORD, COLUMNS, rows)
    write_document(rows)


def write_document(rows):
    text = DOCUMENT.read_text()
    head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
    write_whole(DOCUMENT, lambda part: part.write_text(head + MARKS[0] + section(rows) + MARKS[1] + tail))
