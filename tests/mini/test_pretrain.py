"""mini/pretrain.py: what a tiny pre-training writes, that seeds determine it, and how it is measured."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import KIT, one_line
from safetensors.torch import load_file

from kit.artifacts import read_csv
from kit.language_models import load_language_model, load_tokenizer
from kit.seals import sha256
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


def test_rates_rise_to_the_largest_and_end_at_a_tenth():
    rates = [pretrain.learning_rate(2.0, step, 1000) for step in range(1001)]
    assert rates[0] == 2 / 20 and max(rates) == rates[19] == pytest.approx(2, rel=0.01)
    assert rates[-1] == pytest.approx(0.2)


def test_weights_decay_and_biases_do_not():
    decay, rest = pretrain.make_optimizer(torch.nn.Linear(2, 2), 1.0).param_groups
    assert (decay["weight_decay"], rest["weight_decay"], decay["betas"]) == (0.1, 0.0, (0.9, 0.95))
    assert [[p.dim() for p in group["params"]] for group in (decay, rest)] == [[2], [1]]


def test_a_text_ends_before_the_next_begins(trained):
    tokenizer = load_tokenizer(str(trained / "lm"))
    one, two = (tokenizer(text)["input_ids"] for text in ("the cat", "a dog"))
    end = tokenizer.eos_token_id
    assert pretrain.encode(["the cat", "a dog"], tokenizer).tolist() == [*one, end, *two, end]


def test_a_chain_goes_by_its_probabilities():
    following, first = pretrain.transitions(5, 0)
    assert following.shape == (5, 5) and np.allclose(following.sum(1), 1) and first.sum() == pytest.approx(1)
    assert following.max() / following.min() < math.e and np.ptp(following) > 0.05  # of numbers in [0, 1]
    tokens = pretrain.chain_windows(following, first, 3000, 50, 0, 7).numpy()
    assert tokens.shape == (3000, 51) and tokens.min() == 1 and tokens.max() == 5
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (tokens[:, :-1] - 1, tokens[:, 1:] - 1), 1)
    assert np.allclose(pairs / pairs.sum(1, keepdims=True), following, atol=0.015)
    assert np.allclose(np.bincount(tokens[:, 0] - 1) / 3000, first, atol=0.03)
    sharp, _ = pretrain.transitions(5, 0, 0.1)
    assert np.allclose(np.log(sharp / sharp[:, :1]), 10 * np.log(following / following[:, :1]))
    certain, first_too = pretrain.transitions(5, 0, 1e-4)
    assert np.allclose(certain.max(1), 1) and first_too.sum() == pytest.approx(1)
    assert pretrain.entropy(certain) == 0
    often = np.bincount(tokens.ravel() - 1) / tokens.size
    assert pretrain.entropy(following) == pytest.approx(
        -(often[:, None] * following * np.log(following)).sum(), abs=2e-3)
    assert pretrain.entropy(sharp) < pretrain.entropy(following) < math.log(5)
    again, other = (pretrain.chain_windows(following, first, 3000, 50, 0, step).numpy() for step in (7, 8))
    assert np.array_equal(again, tokens) and not np.array_equal(other, tokens)


def test_the_model_of_a_chain_has_the_shipped_models_vocabulary(tmp_path):
    run("--markov", "--out", tmp_path / "lm", *TINY, "--tokens", 320)
    provenance = json.loads((tmp_path / "lm" / "pretrain.json").read_text())
    assert provenance["states"] == 100 and provenance["markov"] and "corpus" not in provenance
    shipped = load_tokenizer("mini")
    assert load_tokenizer(str(tmp_path / "lm")).get_vocab() == shipped.get_vocab()
    assert load_language_model(str(tmp_path / "lm"), 0.0).config.vocab_size == len(shipped)


@pytest.mark.parametrize("early", [(), ("--early", "lm-early")])
def test_a_killed_training_goes_on_to_the_same_bytes(trained, corpus, tmp_path, monkeypatch, early):
    monkeypatch.chdir(tmp_path)
    step, calls = pretrain.training_step, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 150:
            raise KeyboardInterrupt
        return step(*arguments)
    monkeypatch.setattr(pretrain, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, "--out", "lm", *early, *TINY)
    assert (tmp_path / "lm.state.safetensors").exists() and not (tmp_path / "lm").exists()
    assert "other settings" in refused(corpus, "--out", "lm", *TINY, "--seed", 1)
    run(corpus, "--out", "lm", *early, *TINY)
    assert len(calls) == 150 + 120  # a row's steps anew
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm", *(["lm-early"] if early else [])]
    for name in ("model.safetensors", "pretrain.csv", "pretrain.json"):
        assert sha256(tmp_path / "lm" / name) == sha256(trained / "lm" / name)


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
    assert bits["mini-markov"] > 4  # it never saw a word


def test_the_shipped_chain_was_learned():
    folder = KIT / LANGUAGE_MODELS["mini-markov"]
    provenance = json.loads((folder / "pretrain.json").read_text())
    chain = pretrain.transitions(provenance["states"], provenance["seed"], provenance["temperature"])
    assert pretrain.entropy(chain[0]) == provenance["entropy"]
    tokens = pretrain.chain_windows(*chain, 8, provenance["context"] - 1, 0, 10**6)  # not seen in training
    model = load_language_model("mini-markov", 0.0).eval()
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits.flatten(0, 1),
                                                 tokens[:, 1:].flatten()).item()
    assert provenance["entropy"] - 0.1 < loss < provenance["entropy"] + 0.15 < math.log(100)


def test_samples_continue_the_prompt(trained, capsys):
    run("--sample", trained / "lm", "--prompt", "the cat")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.startswith("- the cat") for line in lines)
    assert "shorten it" in refused("--sample", trained / "lm", "--prompt", text(3))
    assert "--prompt is empty" in refused("--sample", trained / "lm", "--prompt", "")


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
    (tmp_path / "empty.md").touch()
    assert "empty.md is empty" in refused("--measure", trained / "lm", "--heldout", tmp_path / "empty.md")
    tokenizer = SimpleNamespace(eos_token_id=None, bos_token_id=None)
    with pytest.raises(SystemExit, match="neither an eos_token nor a bos_token"):
        pretrain.bits_per_byte(None, tokenizer, "text", 8)
    assert not (tmp_path / "lm").exists()
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    assert "latin.txt is no readable text" in refused(tmp_path, "--out", tmp_path / "lm")


def test_a_folder_that_is_no_language_model_is_not_replaced(corpus, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for option in ("--out", "--early"):
        assert "is no language model" in refused(corpus, "--out", tmp_path / "lm", option, tmp_path, *TINY)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_chain_takes_no_text(corpus, tmp_path):
    assert "or --markov" in refused(corpus, "--markov", "--out", tmp_path / "lm")


def test_without_work_it_says_what_to_give(kit):
    assert "--measure" in one_line(kit("-m", "mini.pretrain", check=False))
