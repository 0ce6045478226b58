"""mini/pretrain.py: what a tiny pre-training writes, that seeds determine it, and how it is measured."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import one_line
from safetensors.torch import load_file

from kit.artifacts import read_csv, sha256
from kit.language_models import load_language_model, load_tokenizer
from mini import pretrain
from tasks import LANGUAGE_MODELS

TINY = ("--layers", "1", "--width", "16", "--heads", "2", "--vocabulary", "300", "--context", "16",
        "--batch", "2", "--tokens", "7040")  # 220 steps


def text(sentences):
    rng = np.random.default_rng(0)
    words = "the a cat dog mat hill sat ran on over under and then".split()
    return " ".join(" ".join(rng.choice(words, 8)) + "." for _ in range(sentences))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of two text files, 2,000 tokens and more."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text(text(150))
    (folder / "b.txt").write_text(text(100) + " caf\u00e9", encoding="utf-8")
    return folder


def run(*arguments):
    pretrain.main(pretrain.OPTIONS.parse_args(list(map(str, arguments))))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A folder with what one run writes: lm and lm-early."""
    folder = tmp_path_factory.mktemp("models")
    run(corpus, "--out", folder / "lm", "--early", folder / "lm-early", *TINY)
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_the_folder_holds_a_language_model_and_its_provenance(trained, corpus):
    assert {path.name for path in trained.iterdir()} == {"lm", "lm-early"}  # no leftovers
    model, tokenizer = (load(str(trained / "lm")) for load in (lambda name: load_language_model(name, 0.0),
                                                               load_tokenizer))
    assert model.config.n_embd == 16 and model.config.vocab_size == len(tokenizer) <= 300
    assert tokenizer.decode(tokenizer("caf\u00e9 \u2603")["input_ids"]) == "caf\u00e9 \u2603"
    assert all(tensor.dtype == torch.float16 for tensor in weights(trained / "lm").values())
    provenance = json.loads((trained / "lm" / "pretrain.json").read_text())
    assert provenance["corpus"] == {name: sha256(corpus / name) for name in ("a.txt", "b.txt")}
    assert provenance["steps"] == 220 and provenance["tokens_seen"] == 7040 and not provenance["shuffle"]
    rows = read_csv(trained / "lm" / "pretrain.csv", ("step", "tokens", "loss", "lr"))
    assert [row["step"] for row in rows] == ["100", "200", "220"]
    assert float(rows[0]["loss"]) > float(rows[1]["loss"])


def test_early_is_the_same_model_after_a_tenth(trained, corpus, tmp_path):
    provenance = json.loads((trained / "lm-early" / "pretrain.json").read_text())
    assert provenance["steps"] == 22 and provenance["tokens_seen"] == 704 and provenance["stopped_early"]
    early, late = weights(trained / "lm-early"), weights(trained / "lm")
    assert early.keys() == late.keys() and not any(torch.equal(early[name], late[name]) for name in early)
    # keeping it changes nothing of the training
    run(corpus, "--out", tmp_path / "lm", *TINY)
    assert sha256(tmp_path / "lm" / "model.safetensors") == sha256(trained / "lm" / "model.safetensors")


def test_another_seed_is_another_model(trained, corpus, tmp_path):
    run(corpus, "--out", tmp_path / "lm", *TINY, "--seed", 1)
    assert sha256(tmp_path / "lm" / "model.safetensors") != sha256(trained / "lm" / "model.safetensors")
    assert sha256(tmp_path / "lm" / "tokenizer.json") == sha256(trained / "lm" / "tokenizer.json")


def test_shuffle_keeps_the_tokens_of_a_block_and_loses_their_order(trained, corpus, tmp_path):
    tokens = np.arange(2500, dtype=np.uint16)
    shuffled = pretrain.shuffle_blocks(tokens, 0)
    blocks = shuffled.reshape(2, 1024)
    assert np.array_equal(np.sort(blocks, axis=1).reshape(-1), tokens[:2048])
    assert not np.array_equal(shuffled, tokens[:2048])
    assert np.array_equal(shuffled, pretrain.shuffle_blocks(tokens, 0))
    run(corpus, "--out", tmp_path / "lm", "--shuffle", *TINY)
    provenance = json.loads((tmp_path / "lm" / "pretrain.json").read_text())
    assert provenance["shuffle"]
    assert provenance["corpus"] == json.loads((trained / "lm" / "pretrain.json").read_text())["corpus"]
    assert sha256(tmp_path / "lm" / "model.safetensors") != sha256(trained / "lm" / "model.safetensors")


def test_a_run_that_ends_early_leaves_the_old_folder_whole(trained, corpus, tmp_path, monkeypatch):
    run(corpus, "--out", tmp_path / "lm", *TINY, "--seed", 1)
    before = {path.name: sha256(path) for path in (tmp_path / "lm").iterdir()}

    def fails(*_):
        raise OSError("no space left")
    monkeypatch.setattr(pretrain, "write_csv", fails)  # the last file of the folder
    with pytest.raises(OSError):
        run(corpus, "--out", tmp_path / "lm", *TINY)
    assert {path.name: sha256(path) for path in (tmp_path / "lm").iterdir()} == before
    monkeypatch.undo()
    run(corpus, "--out", tmp_path / "lm", *TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]
    assert sha256(tmp_path / "lm" / "model.safetensors") == sha256(trained / "lm" / "model.safetensors")


@pytest.mark.parametrize("length", [5, 16, 17, 100])
def test_bits_per_byte_counts_every_token_once(trained, length):
    """A model that knows nothing needs log2(V) bits for each token."""
    model, tokenizer = load_language_model(str(trained / "lm"), 0.0), load_tokenizer(str(trained / "lm"))
    model.get_input_embeddings().weight.data.zero_()  # tied: all logits are 0
    words = tokenizer.decode(tokenizer(text(50))["input_ids"][:length])
    ids = tokenizer(words)["input_ids"]
    expected = len(ids) * math.log2(model.config.vocab_size) / len(words.encode())
    assert pretrain.bits_per_byte(model.eval(), tokenizer, words, 16) == pytest.approx(expected, rel=1e-5)


def test_the_shipped_models_stand_in_the_order_of_their_training(tmp_path, capsys):
    (tmp_path / "part.txt").write_text(pretrain.OPTIONS.get_default("heldout").read_text()[50_000:60_000])
    bits = {}
    for name in LANGUAGE_MODELS:
        run("--measure", name, "--heldout", tmp_path / "part.txt")
        bits[name] = float(re.search(rf"^{name}: (.*) bits per byte$", capsys.readouterr().out, re.M)[1])
    assert 1.4 < bits["mini"] < bits["mini-early"] - 0.2 < bits["mini-random"] - 0.4 < 3


def test_samples_continue_the_prompt(trained, capsys):
    run("--sample", trained / "lm", "--prompt", "the cat")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("- the cat") for line in lines)
    assert "shorten it" in refused("--sample", trained / "lm", "--prompt", text(3))


def refused(*arguments):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_input_is_one_line(corpus, trained, tmp_path):
    assert "no .txt file" in refused(tmp_path, "--out", tmp_path / "lm")
    assert "too little text" in refused(corpus, "--out", tmp_path / "lm", "--context", 100_000, "--batch", 1)
    assert "one step" in refused(corpus, "--out", tmp_path / "lm", "--tokens", 3)
    assert "--heads" in refused(corpus, "--out", tmp_path / "lm", "--width", 10)
    assert "no readable text" in refused("--measure", trained / "lm", "--heldout", tmp_path / "absent.txt")
    assert "language model" in refused("--measure", corpus)
    assert not (tmp_path / "lm").exists()
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert "latin.txt is no readable text" in refused(tmp_path, "--out", tmp_path / "lm")


def test_a_folder_that_is_no_language_model_is_not_replaced(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for option in ("--out", "--early"):
        assert "is no language model" in refused(corpus, "--out", tmp_path / "lm", option, tmp_path, *TINY)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_without_work_it_says_what_to_give(kit):
    assert "--measure" in one_line(kit("-m", "mini.pretrain", check=False))
