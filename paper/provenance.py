"""Where every number of the report comes from: a row a cell and method, and what to be wary of."""

from paper.grid import cost_of
from paper.tables import Cell, Group, Table, plain

PROVENANCE = ("Data and language models are named by digest. Versions, commit and cost come from the "
              "runs' config.json and cost.json and are empty where the runs are not there.")


def provenance_table(cells):
    """A row a cell and method: what it was made from and by, and what to be wary of."""
    seeds = {seed for lines in cells.values() for line in lines.values() for seed in line["seeds"]}
    rows = [provenance_row(cell, line, seeds) for cell, lines in cells.items() for line in lines.values()]
    return Table("provenance", "Where the numbers come from", PROVENANCE,
                 ["cell", "method", "data", "language model", "seeds", "steps", "evaluations", "episodes",
                  "versions", "commit", "cost", "warnings"], [Group(rows, [])])


def recorded(line, *names):
    """The different values that a line's runs recorded under these names, as text."""
    values = [" ".join(f"{name} {record[name]}" if len(names) > 1 else str(record[name])
                       for name in names if name in record)
              for record in (line["records"][seed] for seed in line["seeds"] if seed in line["records"])]
    return list(dict.fromkeys(value for value in values if value))


def provenance_row(cell, line, seeds):
    digest = ", ".join(text[:12] for text in recorded(line, "data_sha256"))
    warnings = warnings_of(line, seeds)
    return [plain(cell, kind="ours"), plain(line["method"], kind="ours"),
            Cell((("small", line["data"]), ("small", f"{line['data_episodes']} episodes"),
                  *((("small", f"SHA-256 {digest}"),) if digest else ())), line["data"]),
            plain(line["lm"]), plain(" ".join(map(str, line["seeds"])), len(line["seeds"])),
            plain(f"{line['steps']:,}", line["steps"]),
            plain(f"last {line['averaged']}", line["averaged"]), plain(line["episodes"], line["episodes"]),
            plain("; ".join(recorded(line, "torch", "numpy", "device"))),
            plain(", ".join(recorded(line, "code"))), cost_cell(line),
            Cell(tuple(("warning", warning) for warning in warnings) or (("small", ""),), -len(warnings))]


def cost_cell(line):
    """What a line's runs took together."""
    cost, said = cost_of(line), []
    if cost["runs"]:
        said = [f"wall {cost['wall'] / 3600:.2f} h"]
        said += [f"CPU {cost['cpu'] / 3600:.2f} h"] if cost["cpu"] else []
        said += [f"peak {cost['peak_memory'] / 1e9:.1f} GB"] if cost["peak_memory"] else []
        said += [f"{cost['runs']} of {len(line['seeds'])} runs"] if cost["runs"] < len(line["seeds"]) else []
    return Cell(tuple(("small", text) for text in said) or (("small", ""),), cost["wall"] or None)


def warnings_of(line, seeds):
    """What to be wary of in a method's score in a cell. seeds: all those of the profile."""
    said = []
    if absent := sorted(seeds - {*line["seeds"]}):
        said.append(f"without seed{'s' * (len(absent) > 1)} {' '.join(map(str, absent))}, which others have")
    if waiting := sorted({*line["records"]} - {*line["seeds"]}):
        said.append(f"run{'s' * (len(waiting) > 1)} of seed {' '.join(map(str, waiting))} not in the results")
    if len(line["seeds"]) < 3:
        said.append(f"{len(line['seeds'])} seed{'s' * (len(line['seeds']) > 1)}, fewer than the paper's 3")
    if line["evaluations"] < line["window"]:
        said.append(f"{line['evaluations']} evaluation{'s' * (line['evaluations'] > 1)}, "
                    f"not {line['window']}")
    if line["changed"]:
        said.append(f"settings changed: {line['changed']}")
    for name, what in (("code", "commits"), ("data_sha256", "data"), ("torch", "versions of torch")):
        own = name == "data_sha256" and line["over"] == "subsets"  # of which each has its own data
        if len(recorded(line, name)) > 1 and not own:
            said.append(f"mixed {what}: {', '.join(recorded(line, name))}")
    if any("-dirty" in text for text in recorded(line, "code")):
        said.append("files differed from the commit")
    return said
