"""What the benchmark measures, and what it says of it."""

import inspect
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import one_line
from transformers import GPT2Config

from benchmark import commands, models
from benchmark.rows import PROGRAMS, ROWS, SHAPES
from benchmark.table import COLUMNS, DOCUMENT, MARKS, RECORD, RESULTS, section
from kit.artifacts import read_csv, write_csv

KIT = Path(__file__).parent.parent.parent


def a_row(**values):
    return dict.fromkeys(COLUMNS, "") | {"median": "2", "low": "1", "high": "9", "repeats": "5", "unit": "s",
                                         "peak_gb": "1.00", "dtype": "float32", "machine": "X"} | values


# --- what is measured --------------------------------------------------------------------------

def test_every_row_names_a_function_and_its_arguments():
    places = [(row.group, row.name) for row in ROWS]
    assert len(set(places)) == len(places)
    for row in ROWS:
        module, name = row.measure.split(".")
        function = getattr({"models": models, "commands": commands}[module], name)
        inspect.signature(function).bind("float32", **row.arguments)


@pytest.mark.parametrize("name, kind, layers, width", SHAPES[1:])
def test_useful_flops_are_those_of_the_models_that_are_measured(name, kind, layers, width):
    config, model = models.build(kind, "float32")
    shape = model.trunk.config
    assert (shape.num_hidden_layers, shape.hidden_size, config["batch_size"]) == (layers, width, 64)


def test_a_repeat_of_playing_is_every_lock_step_with_a_full_context():
    repeat, divisor = models.playing("float32", "dt", 2)
    seconds = repeat()
    assert len(seconds) == 5 and min(seconds) > 0 and divisor == -2 * 10  # environment steps of a sample


@pytest.mark.parametrize("function, arguments", [
    (models.training, {"kind": "dt", "before": 1}), (models.sampling, {"rows": 1_000}),
    (commands.preparing, {"cell": "paper/hopper-medium-1", "rows": 1_000}),
    (commands.start_up, {"program": "train.py"})])
def test_what_prepares_a_row_can_repeat_it(function, arguments):
    repeat, divisor = function("float32", **arguments)
    assert repeat() is None and divisor  # its process takes the time


def test_a_peer_computes_the_same_the_stock_way(monkeypatch):
    monkeypatch.setattr(models, "GPT2Config", partial(GPT2Config, n_layer=2, n_embd=32, n_head=2,
                                                      vocab_size=300))
    config, peer = models.build("stock", "float32")
    _, kit = models.build("wiki", "float32")
    assert peer.trunk.config._attn_implementation == "sdpa"
    assert kit.trunk.config._attn_implementation == "lamo"
    assert peer.reading is not kit.reading and peer.word_loss is kit.word_loss
    kit.load_state_dict(peer.state_dict())
    states, actions = torch.randn(2, 5, config["state_dim"]), torch.rand(2, 5, config["action_dim"])
    batch = states, actions, torch.rand(2, 5, 1), torch.arange(5).repeat(2, 1)
    torch.testing.assert_close(kit.eval()(*batch), peer.eval()(*batch), rtol=1e-5, atol=1e-6)
    _, adapted = models.build("peft", "float32")
    assert type(adapted.trunk.base_model.h[0].attn.c_attn).__module__.startswith("peft")
    assert adapted.trunk.config._attn_implementation == "sdpa" and adapted.reading is peer.reading


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_needs_no_heavy_package(program):
    """--help at once: what takes seconds to import is imported after the arguments are known."""
    *flag, name = program.split()
    run = f"run_module({name!r}, run_name='__main__', alter_sys=True)" if flag else (
        f"run_path({name!r}, run_name='__main__')")
    code = (f"import sys, runpy; sys.path.insert(0, '.'); sys.argv = [{name!r}, '--help']\n"
            f"try: runpy.{run}\n"
            "except SystemExit as end: assert not end.code\n"
            "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=KIT)
    assert result.returncode == 0, result.stderr[-300:]
    assert "usage" in result.stdout


# --- measuring ---------------------------------------------------------------------------------

def test_the_benchmark_measures_and_writes_its_rows(kit):
    result = kit("-m", "benchmark", "--only", "batches", "--repeats", "2")
    rows = read_csv(kit.folder / RESULTS, COLUMNS)
    assert [row["name"] for row in rows] == ["64 x 20 of 10,000 steps", "64 x 20 of 1,000,000 steps"]
    for row in rows:
        assert 0 < float(row["low"]) <= float(row["median"]) <= float(row["high"]) < 100
        assert row["repeats"] == "2" and float(row["peak_gb"]) > 0.1 and row["machine"] and row["code"]
        assert f"{row['median']} [{row['low']}, {row['high']}] ms" in result.stdout
    # what is not measured now is kept, if it is of this machine, and stands where ROWS has it
    there = rows[1] | {"median": "77"}
    data = next(row for row in ROWS if row.group == "data")
    others = {"machine": "another"}, {"dtype": {"float32": "bfloat16"}.get(there["dtype"], "float32")}
    write_csv(kit.folder / RESULTS, COLUMNS, [there, *(
        rows[0] | {"group": data.group, "name": data.name} | other for other in others)])
    kit("-m", "benchmark", "--only", "64 x 20 of 10,000", "--repeats", "1")
    now = read_csv(kit.folder / RESULTS, COLUMNS)
    assert [(row["name"], row["repeats"]) for row in now] == [(rows[0]["name"], "1"), (there["name"], "2")]
    assert now[1] == there


def test_what_cannot_be_measured_is_said_in_one_line(kit, monkeypatch):
    line = one_line(kit("-m", "benchmark", "--only", "nonsense", check=False))
    assert "nonsense" in line and "batches" in line
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)  # which make test has set
    line = one_line(kit("-m", "benchmark", "--only", "small models", check=False))
    assert "make benchmark" in line


# --- the table ---------------------------------------------------------------------------------

def test_the_table_says_what_it_compares():
    rows = [a_row(group="machine", name="product, float32", median="100", unit="GFLOP/s"),
            a_row(group="g", name="kit", useful_gflops="50"),
            a_row(group="g", name="peer", median="5", useful_gflops="20", code="0123456789ab-dirty")]
    text = section(rows)
    assert "50 % of float32" in text and "| 2.50 x |" in text
    assert "not in this run" in text and "35.2 s" in text
    assert "0123456789ab" not in text, "the record alone says of which commit a row is"


def test_only_all_rows_are_published(kit):
    document = kit.folder / "docs" / "speed.md"
    document.parent.mkdir()
    document.write_text(f"before\n{MARKS[0]}old{MARKS[1]}\nafter\n")
    rows = [a_row(group=row.group, name=row.name) for row in ROWS]
    write_csv(kit.folder / RESULTS, COLUMNS, rows[1:])
    line = one_line(kit("-m", "benchmark", "--write", check=False))
    assert rows[0]["name"] in line and "make benchmark" in line and "old" in document.read_text()
    write_csv(kit.folder / RESULTS, COLUMNS, rows)
    kit("-m", "benchmark", "--write")
    assert document.read_text() == f"before\n{MARKS[0]}{section(rows)}{MARKS[1]}\nafter\n"
    assert read_csv(kit.folder / "benchmark" / "record.csv", COLUMNS) == rows


def test_the_document_says_what_was_measured():
    rows = read_csv(RECORD, COLUMNS)
    assert section(rows) in DOCUMENT.read_text()
    assert {row["group"] for row in rows} == {row.group for row in ROWS}, "all of it was measured"
