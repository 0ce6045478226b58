"""kit/language_models.py: any causal LM as a trunk (four families in the hub's format and a GGUF file), its
name by digest, and what is refused."""

import importlib.util
import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import one_line, save_cell, tiny_families
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import evaluate
import train
from kit import artifacts
from kit.language_models import (
    check_words,
    input_digests,
    is_another,
    language_model_id,
    load_language_model,
    load_tokenizer,
    load_trunk,
)
from kit.settings import configuration
from lora import TARGETS, LoRA
from model import build_model
from train import trainable

B, K, S, A, V = 3, 6, 11, 3, 300


def config_of(folder, method="lamo", **changed):
    return configuration(f"paper/halfcheetah-medium-1/{method}/seed0", lm=str(folder), lora_rank=4,
                               lora_alpha=8, **changed) | {"state_dim": S, "action_dim": A}


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"states": torch.randn(B, K, S, generator=g), "actions": torch.randn(B, K, A, generator=g),
            "returns_to_go": torch.randn(B, K, 1, generator=g), "timesteps": torch.arange(K).repeat(B, 1)}


def loras(model):
    return [layer for layer in model.modules() if isinstance(layer, LoRA)]


def wake(model):
    """LoRA as after training: B and the biases have moved."""
    for layer in loras(model):
        nn.init.normal_(layer.lora_B, std=0.3)
        if layer.base.bias is not None:
            layer.base.bias.data += torch.randn_like(layer.base.bias) * 0.1
    return model


@torch.no_grad()
def test_lora_changes_nothing_at_the_start(tiny_lm):
    torch.manual_seed(1)
    ids = torch.randint(0, V, (2, 9))
    plain = AutoModelForCausalLM.from_pretrained(tiny_lm).eval()
    adapted = build_model(config_of(tiny_lm)).eval()
    torch.testing.assert_close(adapted.trunk(input_ids=ids).logits, plain(input_ids=ids).logits)
    layers = loras(adapted)
    assert len(layers) == 2 * (3 if "opt" in tiny_lm.name or "llama" in tiny_lm.name else 1)
    assert all(layer.lora_A.abs().sum() > 0 and (layer.lora_B == 0).all() for layer in layers)
    wake(adapted)
    assert not torch.allclose(adapted.trunk(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-3)


@torch.no_grad()
def test_positions_reach_the_text_and_not_the_trajectory(tiny_lm):
    """Left padding shifts every position, and changes nothing; the text's loss is that of the family."""
    model = wake(build_model(config_of(tiny_lm)).eval())
    x, length = inputs(), 4
    alone = model(**{name: value[:, :length] for name, value in x.items()})
    padded = {name: torch.cat([value[:, length:], value[:, :length]], 1) for name, value in x.items()}
    mask = torch.zeros(B, K)
    mask[:, K - length:] = 1
    torch.testing.assert_close(model(**padded, attention_mask=mask)[:, K - length:], alone,
                               rtol=1e-4, atol=1e-5)
    ids = torch.randint(0, V, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.language_loss(ids), model.trunk(input_ids=ids, labels=ids).loss)
    if "neox" not in tiny_lm.name and "llama" not in tiny_lm.name:  # tables, not rotations
        assert (model.language_loss(ids, positions=False) - model.language_loss(ids)).abs() > 1e-4


@torch.no_grad()
def test_a_prediction_depends_on_the_past_alone(tiny_lm):
    model, x = wake(build_model(config_of(tiny_lm)).eval()), inputs()
    before = model(**x)
    for t in range(K):
        changed = x | {"states": x["states"].clone()}
        changed["states"][:, t] += 1.0
        moved = (model(**changed) - before).abs().amax((0, 2)) > 1e-7
        assert not moved[:t].any() and moved[t:].all()


@pytest.mark.parametrize("method", ["lamo", "lamo-frozen", "lamo-full", "wiki", "lamo-random"])
def test_gradients_reach_only_what_trains(tiny_lm, method):
    model = wake(build_model(config_of(tiny_lm, method)))
    model(**inputs()).square().mean().backward()
    for name, p in model.named_parameters():
        if not name.startswith("trunk."):
            trains = True
        elif method in ("lamo", "lamo-random"):
            attention = any(part in name for part in TARGETS)
            trains = "lora_" in name or attention and name.endswith("base.bias")
        else:  # tables of words and positions, which no trajectory reads, stay as they are
            tables = ("wte", "wpe", "embed_in", "embed_tokens", "embed_positions", "lm_head", "embed_out")
            trains = method != "lamo-frozen" and not any(table in name for table in tables)
        assert p.requires_grad == trains, name
        # a bias of the keys shifts a row of the softmax as a whole, and so has none
        reached = p.grad is not None and p.grad.abs().sum() > 0
        assert reached == trains or "k_proj" in name and name.endswith("bias"), name
    if method == "wiki":
        assert isinstance(model.predict_action, nn.Sequential) and isinstance(model.embed_state, nn.Linear)


def test_random_weights_have_the_shape_and_nothing_else(tiny_lm):
    torch.manual_seed(3)  # not the tiny_lm's
    config = config_of(tiny_lm, "lamo-random")
    model, pretrained = build_model(config), load_language_model(str(tiny_lm), 0.0)
    assert language_model_id(config, model.trunk) == f"random-{tiny_lm.name}"
    shapes = {tuple(p.shape) for p in pretrained.parameters()}
    assert {tuple(p.shape) for name, p in model.trunk.named_parameters() if "lora" not in name} == shapes
    table = model.trunk.get_input_embeddings().weight
    assert not torch.equal(table, pretrained.get_input_embeddings().weight)
    assert not table.requires_grad and 0.015 < table.std() < 0.025


@torch.no_grad()
def test_saved_and_loaded_they_act_alike(tiny_lm, tmp_path):
    config = config_of(tiny_lm)
    torch.manual_seed(0)
    model = wake(build_model(config).eval())
    artifacts.save_tensors(tmp_path / "x.safetensors", trainable(model), run="x", step=1)
    torch.manual_seed(1)
    other = build_model(config).eval()
    assert not torch.equal(other(**inputs()), model(**inputs()))
    tensors, _ = artifacts.load_tensors(tmp_path / "x.safetensors")
    for name, p in trainable(other).items():
        p.copy_(tensors[name])
    assert torch.equal(other(**inputs()), model(**inputs()))


@torch.no_grad()
def test_the_last_mlp_may_be_left_out_where_nobody_reads(tiny_lm, monkeypatch):
    model, x = wake(build_model(config_of(tiny_lm)).eval()), inputs()
    quick = model(**x)
    monkeypatch.setattr("kit.quick.last_mlp", lambda trunk: None)
    torch.testing.assert_close(quick, model(**x), rtol=1e-5, atol=1e-6)


def logits(trunk):
    ids = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return trunk.eval()(input_ids=ids).logits


# --- another language model than the one trained on --------------------------------------------

RUN = "paper/hopper-medium-0.1/{}/seed0"
SHORT = {"device": "cpu", "steps": 2, "eval_every": 2, "log_every": 1, "batch_size": 3, "context": 4}


@pytest.fixture
def trained(tmp_path, monkeypatch, tiny_gpt2):
    """trained(method, weights=) trains a run on a copy of the tiny GPT-2, and returns (run, copy)."""
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)

    def train_on_copy(method, weights="model.safetensors"):
        run, copy = RUN.format(method), tmp_path / "lm"
        shutil.copytree(tiny_gpt2, copy)
        if weights == "pytorch_model.bin":
            (copy / "model.safetensors").unlink()
            save_bin(AutoModelForCausalLM.from_pretrained(tiny_gpt2), copy)
        train.train(run, lm=str(copy), lm_bin=weights.endswith(".bin"), **SHORT)
        evaluate.load_run(run)
        return run, copy
    return train_on_copy


def save_bin(model, folder):
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # not in a mapped file
    torch.save(weights, folder / "pytorch_model.bin")


def other_weights(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.transformer.h[1].mlp.c_fc.weight.data[3, 5] += 1e-3
    return model


def reconfigure(folder, **changed):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))


@pytest.mark.parametrize("weights, replace", [
    ("model.safetensors", lambda folder: other_weights(folder).save_pretrained(folder)),
    ("pytorch_model.bin", lambda folder: save_bin(other_weights(folder), folder)),
    ("model.safetensors", lambda folder: reconfigure(folder, n_head=4))], ids=["weights", "bin", "heads"])
def test_another_language_model_at_the_same_path_is_refused(trained, weights, replace):
    run, folder = trained("lamo", weights)
    replace(folder)
    with pytest.raises(SystemExit, match="another language model") as stop:
        evaluate.load_run(run)
    assert str(folder) in str(stop.value) and "\n" not in str(stop.value) and "REPLACE=1" in str(stop.value)


@pytest.mark.parametrize("changed", [{"n_inner": 96}, {"n_head": 4}, {"n_layer": 3}])
def test_a_random_trunk_of_another_shape_is_refused(trained, changed):
    run, folder = trained("lamo-random")
    other_weights(folder).save_pretrained(folder)
    evaluate.load_run(run)  # of no matter: the shape alone is taken
    reconfigure(folder, **changed)
    with pytest.raises(SystemExit, match="another language model"):
        evaluate.load_run(run)


def test_evaluation_says_so_in_one_line(kit, tiny_gpt2):
    folder = kit.folder / "lm"
    shutil.copytree(tiny_gpt2, folder)
    save_cell(kit.folder)
    kit("train.py", RUN.format("lamo"), "--lm", "lm", "--steps", "2", "--batch_size", "3", "--context", "4")
    other_weights(folder).save_pretrained(folder)
    line = one_line(kit("evaluate.py", RUN.format("lamo"), check=False))
    assert "another language model" in line and "lm@" in line
    assert not (kit.folder / "runs" / RUN.format("lamo") / "eval.csv").exists()


# --- its first blocks --------------------------------------------------------------------------

def test_the_first_blocks_of_any_family_compute_what_they_did(tiny_lm):
    """With one of two, the hidden states before the last norm are those the whole model has there."""
    whole = load_language_model(str(tiny_lm), 0.0).eval()
    first = load_language_model(str(tiny_lm), 0.0, layers=1)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        between = whole(ids, output_hidden_states=True).hidden_states[1]
        base = getattr(whole.base_model, "decoder", whole.base_model)
        norm = next(m for name, m in base.named_children() if name in ("ln_f", "norm", "final_layer_norm"))
        expected = whole.get_output_embeddings()(norm(between))
        assert torch.allclose(first.eval()(ids).logits, expected, atol=1e-5)
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in whole.parameters())
    assert load_language_model(str(tiny_lm), 0.0, layers=2).state_dict().keys() == whole.state_dict().keys()
    for layers in (-1, 3):
        with pytest.raises(SystemExit, match=f"has 2 blocks, of which --lm_layers {layers} cannot be kept"):
            load_language_model(str(tiny_lm), 0.0, layers=layers)


@torch.no_grad()
def test_the_quicker_gelu_is_the_models_own(tiny_gpt2, tmp_path):
    """Where its inputs are large enough that another approximation would show."""
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    for block in model.transformer.h:
        block.mlp.c_fc.weight.mul_(50)
    model.save_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(load_language_model(str(tmp_path), 0.0).eval()(ids).logits, model(ids).logits,
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["lamo", "lamo-random"])
def test_a_setting_keeps_the_first_blocks(tiny_lm, method):
    config = configuration(f"mini/hopper-medium-1/{method}/seed0", lm=str(tiny_lm), dtype="float32")
    small = config | {"lm_layers": 1}
    torch.manual_seed(0)
    model = build_model(small)
    few, all_of_them = ([name for name, _ in built.named_parameters() if "lora_A" in name]
                        for built in (model, build_model(config)))
    assert 0 < len(few) == len(all_of_them) / 2
    assert language_model_id(small, model.trunk) == language_model_id(config, model.trunk) + ":1"


# --- what is refused, and GGUF -----------------------------------------------------------------

def test_more_tokens_than_the_model_reads_or_knows_are_one_line():
    run, pixels = "mini/hopper-medium-0.01/lamo-lm1/seed0", "mini/breakout-medium-0.1/lamo/seed0"
    for name, within, beyond in ((run, {"lm_block": 257}, {"lm_block": 258}),
                                 (pixels, {"context": 85}, {"context": 86})):
        model = build_model(configuration(name, dtype="float32", **within))
        with pytest.raises(SystemExit, match=f"mini reads 256 tokens at once, and --{[*beyond][0]}.*at most "
                                             f"{[*within.values()][0]}$"):
            build_model(configuration(name, dtype="float32", **beyond))
    build_model(configuration(run, lm_block=900, lm_weight=0.0))  # reads no text
    words = model.trunk.get_input_embeddings().num_embeddings
    check_words(model.trunk, [0, words - 1], "mini")
    with pytest.raises(SystemExit, match=f"says token {words:,}, and the model embeds {words:,};"):
        check_words(model.trunk, np.array([0, words]), "mini")


def test_a_sliding_window_reads_no_more_than_it_has(tmp_path):
    same = {"vocab_size": 300, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    MistralForCausalLM(MistralConfig(**same, sliding_window=8)).save_pretrained(tmp_path / "lm")
    run, ids = "mini/hopper-medium-0.01/lamo-lm1/seed0", torch.randint(0, 300, (1, 9))
    model = build_model(configuration(run, lm=str(tmp_path / "lm"), lm_block=9, dtype="float32")).eval()
    whole = load_language_model(str(tmp_path / "lm"), 0.0).eval()
    assert model.language_loss(ids).item() == pytest.approx(whole(ids, labels=ids).loss.item(), rel=1e-5)
    with pytest.raises(SystemExit, match="reads 8 tokens at once, and --lm_block 10 needs 9; give at most 9"):
        build_model(configuration(run, lm=str(tmp_path / "lm"), lm_block=10))


def test_weights_of_other_frameworks_may_lie_beside_a_models(tmp_path, tiny_gpt2):
    folder = Path(shutil.copytree(tiny_gpt2, tmp_path / "lm"))
    for name in ("tf_model.h5", "flax_model.msgpack", "rust_model.ot"):
        with open(folder / name, "wb") as file:
            file.truncate(500_000_000)
    load_language_model(str(folder), 0.0)


def test_a_model_that_embeds_words_in_fewer_numbers_is_one_line(tmp_path):
    OPTForCausalLM(OPTConfig(vocab_size=300, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                             ffn_dim=48, word_embed_proj_dim=16)).save_pretrained(tmp_path)
    with pytest.raises(SystemExit, match="embeds words in 16 numbers and computes in 24"):
        load_language_model(str(tmp_path), 0.0)


def test_a_model_without_a_tokenizer_has_no_empty_one(tiny_lm):
    with pytest.raises(SystemExit) as stop:
        load_tokenizer(str(tiny_lm))
    assert tiny_lm.name in str(stop.value) and "\n" not in str(stop.value)


def test_a_tokenizer_may_be_added_to_a_runs_model_and_not_changed(tmp_path, tiny_gpt2):
    folder = Path(shutil.copytree(tiny_gpt2, tmp_path / "lm"))
    away = (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    record = configuration("mini/hopper-medium-0.01/lamo/seed0", lm=str(folder)) | {"adapter": ""}
    without = record | {"inputs": input_digests(record)}
    shutil.copy(away, folder)
    having = record | {"inputs": input_digests(record)}
    assert not is_another(without) and not is_another(having)
    (folder / "tokenizer.json").write_text("{}")
    assert not is_another(without) and is_another(having)


def test_a_model_that_is_no_causal_lm_is_one_line(kit, tmp_path):
    BertForMaskedLM(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                               vocab_size=20)).save_pretrained(tmp_path / "bert")
    save_cell(kit.folder, "mini/hopper-medium-0.005")
    line = one_line(kit("train.py", "mini/hopper-medium-0.005/lamo/seed0", "--lm", str(tmp_path / "bert"),
                        check=False))
    assert "bert" in line and "gpt2, gpt_neox, opt, llama" in line


def test_a_method_without_a_language_model_says_which_and_what_to_do(kit):
    save_cell(kit.folder, "mini/hopper-medium-0.005")
    line = one_line(kit("train.py", "mini/hopper-medium-0.005/lamo-medium/seed0", check=False))
    assert "mini" in line and "lamo-medium" in line and "LM=" in line and "published" not in line
    for profile, method in (("paper", "lamo-early"), ("paper", "lamo-random-corpus"),
                            ("mini", "lamo-medium")):
        with pytest.raises(SystemExit, match=f"{profile} profile .* {method}; pass LM="):
            load_trunk(configuration(f"{profile}/hopper-medium-1/{method}/seed0"))


def test_a_folder_that_is_not_there_or_damaged_is_one_line(tmp_path, tiny_gpt2):
    with pytest.raises(SystemExit, match="there is no folder ./nowhere"):
        load_language_model("./nowhere", 0.0)
    for damage in ("config.json", "model.safetensors"):
        copy = tmp_path / f"without-{damage}"
        shutil.copytree(tiny_gpt2, copy)
        (copy / damage).write_bytes((copy / damage).read_bytes()[:40])
        with pytest.raises(SystemExit, match="does not hold a causal language model") as stop:
            load_language_model(str(copy), 0.0)
        assert str(copy) in str(stop.value) and "\n" not in str(stop.value)


def test_a_gguf_file(tmp_path):
    torch.manual_seed(0)
    source = tiny_families()["llama"]().eval()
    config, weights = source.config, source.state_dict()
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(24)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(V)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for n in range(2):
        names |= {f"model.layers.{n}.{theirs}": f"blk.{n}.{ours}" for theirs, ours in {
            "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm"}.items()}
    for theirs, ours in names.items():
        weight = weights[f"{theirs}.weight"].numpy()
        if ours.endswith(("attn_q", "attn_k")):  # llama.cpp pairs neighbours in its rotations
            heads = 4 if ours.endswith("q") else 2
            weight = weight.reshape(heads, 2, -1, 24).swapaxes(1, 2).reshape(weight.shape)
        writer.add_tensor(f"{ours}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    run = config_of(path)
    model = build_model(run)
    torch.testing.assert_close(logits(model.trunk), logits(source), rtol=1e-4, atol=1e-5)
    assert language_model_id(run, model.trunk).startswith("tiny.gguf@")


def test_a_missing_smollm2_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="LM=smollm2 installs it"):
        load_language_model("smollm2", 0.0)


def test_dropout_is_the_given_one_everywhere(tiny_lm):
    trunk = load_language_model(str(tiny_lm), 0.25)
    unused = {"summary_first_dropout", "classifier_dropout", "layerdrop"}  # of heads that are not there
    named = {name: value for name, value in trunk.config.to_dict().items()
             if "drop" in name and name not in unused}
    drops = {module.p for module in trunk.modules() if isinstance(module, nn.Dropout)}
    assert named and {*named.values()} | drops == {0.25}, named
