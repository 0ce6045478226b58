"""mini/readout.py: the read-out beside direct computations, and the table of one trunk for real."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KIT

import train
from kit import settings
from mini import readout
from model import build_model


def run(*words):
    readout.main(readout.OPTIONS.parse_args(list(map(str, words))))


def test_a_read_out_finds_what_is_linear_and_nothing_else():
    draw = np.random.default_rng(0)
    hidden, others = (torch.tensor(draw.normal(size=(n, 8))) for n in (400, 300))
    map_, noise = torch.tensor(draw.normal(size=(8, 2))), torch.tensor(draw.normal(size=(300, 2)))
    error = readout.readout(5 * hidden + 70, hidden @ map_ + 3,
                            5 * others + 70, others @ map_ + 3 + 0.1 * noise)
    assert error == pytest.approx(0.01 * noise[150:].square().mean().item(), rel=0.02)
    square = (others[:, :2] - 1).square()
    assert readout.readout(hidden, (hidden[:, :2] - 1).square(), others, square) == pytest.approx(2, rel=0.5)
    # what is not there is not found: the mean remains
    assert readout.readout(hidden * 0 + hidden[:, :1], hidden[:, 1:3], others * 0 + others[:, :1],
                           others[:, 1:3]) == pytest.approx(
                               others[150:, 1:3].square().mean().item(), rel=0.05)


def test_the_constant_is_the_share_of_the_mean_vector():
    centred = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    assert readout.constant(centred) == 0
    assert readout.constant(centred + torch.tensor([3.0, 0])) == pytest.approx(0.9)


def test_hidden_states_are_those_at_the_state_tokens_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, (arrays, ends), _ = readout.arrays_of("reacher2d-medium-0.1")
    config = settings.configuration(name)
    assert name == "mini/reacher2d-medium-0.1-d100/lamo/seed100"
    torch.manual_seed(0)
    model = build_model(config).eval()
    states, actions = readout.hidden_states(model, arrays, ends, 70, K := config["context"])
    batch, mask = train.windows(arrays, ends, np.random.default_rng(0).integers(0, len(ends), 70), K)
    assert not mask.all() and (actions == batch["actions"][mask]).all()
    assert set(states) == {0, 1, 2, 4, -1} and {len(found) for found in states.values()} == {int(mask.sum())}
    assert torch.equal(model.predict_action(states[-1].float()).detach(),
                       model(**batch, attention_mask=mask)[mask].detach())
    # what comes first is the embedded state, normalised, and its time; the words' first position is taken off
    tokens = model.embed_ln(model.embed_state(batch["states"])) + model.embed_timestep(batch["timesteps"])
    assert torch.allclose(states[0].float(), tokens[mask].detach(), atol=1e-5)
    norm = model.trunk.base_model.ln_f
    assert torch.allclose(norm(states[4].float()), states[-1].float(), atol=1e-5)


def test_the_table_of_one_trunk_and_its_random_twin(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("a\n" + "\n".join(readout.MARKERS) + "\nb\n")
    run("reacher2d-medium-0.1", "--lms", "mini", "mini-markov", "--windows", 60, "--document", "page.md",
        "--write")
    page, said = Path("page.md").read_text(), capsys.readouterr().out
    head, line, *rows = [line for line in page.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[1] for row in rows] == ["`mini`", "random, mini's shape", "`mini-markov`"]
    assert {text.count("|") for text in (head, line, *rows)} == {12} and all(row in said for row in rows)
    assert all(row.startswith("| `reacher2d-medium-0.1` |") for row in rows)
    assert len({row.split(" | ")[-2] for row in rows}) == 3  # three trunks
    assert page.startswith("a\n") and page.endswith("\nb\n")


@pytest.mark.parametrize("words, said", [
    (["pong-medium-0.1"], "buttons are no numbers"), (["hopper"], "hopper"),
    (["reacher2d-medium-0.1", "--lms", "./nowhere"], "nowhere")])
def test_what_cannot_be_read_out_is_refused_in_one_line(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said) as stop:
        run(*words)
    assert "\n" not in stop.value.code


def numbers(line):
    return [float(word) for word in line.split(" | ")[2:-1] if word.strip()]


def test_the_document_has_the_trunks_and_the_numbers_of_the_command(tmp_path, monkeypatch, capsys):
    text = (KIT / "docs/methods.md").read_text()
    table = text[text.index(readout.MARKERS[0]):text.index(readout.MARKERS[1])].splitlines()
    for cell in readout.CELLS:
        for name, *_ in readout.trunks(readout.OPTIONS.get_default("lms")):
            assert sum(line.startswith(f"| `{cell}` | {name} |") for line in table) == 1
    monkeypatch.chdir(tmp_path)
    run("reacher2d-medium-0.3", "--lms", "mini")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert len(lines) == 2
    for line in lines:
        kept, = (old for old in table if old.split(" | ")[:2] == line.split(" | ")[:2])
        assert numbers(line) == pytest.approx(numbers(kept), abs=0.002)  # sums round otherwise elsewhere
