"""Any causal LM: four families in the hub's format and a GGUF file, and adapters to and from peft."""

import importlib.util
import json
import re

import gguf
import numpy as np
import peft
import pytest
import torch
import torch.nn as nn
from conftest import one_line
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import tasks
import train
from lora import TARGETS, LoRA, add_lora, export_peft, import_peft, train_only_lora
from model import build_model, language_model_id, load_language_model

B, K, S, A, V = 3, 6, 11, 3, 300

MAKE = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=V, n_positions=64,
                                               bos_token_id=0, eos_token_id=0)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, vocab_size=V,
        max_position_embeddings=64, rotary_pct=1.0)),
    "opt": lambda: OPTForCausalLM(OPTConfig(
        hidden_size=24, word_embed_proj_dim=24, num_hidden_layers=2, num_attention_heads=2, ffn_dim=48,
        vocab_size=V, max_position_embeddings=64)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(  # fewer heads for keys than for queries, as SmolLM2
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=V, max_position_embeddings=64)),
}


@pytest.fixture(scope="module", params=MAKE)
def folder(request, tmp_path_factory):
    """A tiny language model of one family, with random weights, in the hub's format."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / f"tiny-{request.param}"
    trunk = MAKE[request.param]()
    for name, p in trunk.named_parameters():  # biases and positions start at zero, real ones do not
        if p.dim() == 1 or "embed_positions" in name:
            nn.init.normal_(p, std=0.2) if "norm" not in name and "ln_" not in name else None
    trunk.save_pretrained(path)
    return path


def config_of(folder, method="lamo", **changed):
    return tasks.configuration(f"paper/halfcheetah-medium-1/{method}/seed0", lm=str(folder), lora_rank=4,
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
def test_lora_changes_nothing_at_the_start(folder):
    torch.manual_seed(1)
    ids = torch.randint(0, V, (2, 9))
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    adapted = build_model(config_of(folder)).eval()
    torch.testing.assert_close(adapted.trunk(input_ids=ids).logits, plain(input_ids=ids).logits)
    layers = loras(adapted)
    assert len(layers) == 2 * (3 if "opt" in folder.name or "llama" in folder.name else 1)
    assert all(layer.lora_A.abs().sum() > 0 and (layer.lora_B == 0).all() for layer in layers)
    wake(adapted)
    assert not torch.allclose(adapted.trunk(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-3)


@torch.no_grad()
def test_positions_reach_the_text_and_not_the_trajectory(folder):
    """Left padding shifts every position, and changes nothing; the text's loss is that of the family."""
    model = wake(build_model(config_of(folder)).eval())
    x, length = inputs(), 4
    alone = model(**{name: value[:, :length] for name, value in x.items()})
    padded = {name: torch.cat([value[:, length:], value[:, :length]], 1) for name, value in x.items()}
    mask = torch.zeros(B, K)
    mask[:, K - length:] = 1
    torch.testing.assert_close(model(**padded, attention_mask=mask)[:, K - length:], alone,
                               rtol=1e-4, atol=1e-5)
    ids = torch.randint(0, V, (2, 16), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.language_loss(ids), model.trunk(input_ids=ids, labels=ids).loss)
    if "neox" not in folder.name and "llama" not in folder.name:  # tables, not rotations
        assert (model.language_loss(ids, positions=False) - model.language_loss(ids)).abs() > 1e-4


@torch.no_grad()
def test_a_prediction_depends_on_the_past_alone(folder):
    model, x = wake(build_model(config_of(folder)).eval()), inputs()
    before = model(**x)
    for t in range(K):
        changed = x | {"states": x["states"].clone()}
        changed["states"][:, t] += 1.0
        moved = (model(**changed) - before).abs().amax((0, 2)) > 1e-7
        assert not moved[:t].any() and moved[t:].all()


@pytest.mark.parametrize("method", ["lamo", "lamo-frozen", "lamo-full", "wiki", "lamo-random"])
def test_gradients_reach_only_what_trains(folder, method):
    model = wake(build_model(config_of(folder, method)))
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


def test_random_weights_have_the_shape_and_nothing_else(folder):
    torch.manual_seed(3)  # not the folder's
    config = config_of(folder, "lamo-random")
    model, pretrained = build_model(config), load_language_model(str(folder), 0.0)
    assert language_model_id(config, model.trunk) == f"random-{folder.name}"
    shapes = {tuple(p.shape) for p in pretrained.parameters()}
    assert {tuple(p.shape) for name, p in model.trunk.named_parameters() if "lora" not in name} == shapes
    table = model.trunk.get_input_embeddings().weight
    assert not torch.equal(table, pretrained.get_input_embeddings().weight)
    assert not table.requires_grad and 0.015 < table.std() < 0.025


@torch.no_grad()
def test_saved_and_loaded_they_act_alike(folder, tmp_path):
    config = config_of(folder)
    torch.manual_seed(0)
    model = wake(build_model(config).eval())
    train.save_tensors(tmp_path / "x.safetensors", train.trainable(model), run="x", step=1)
    torch.manual_seed(1)
    other = build_model(config).eval()
    assert not torch.equal(other(**inputs()), model(**inputs()))
    tensors, _ = train.load_tensors(tmp_path / "x.safetensors")
    for name, p in train.trainable(other).items():
        p.copy_(tensors[name])
    assert torch.equal(other(**inputs()), model(**inputs()))


# --- peft --------------------------------------------------------------------------------------

@torch.no_grad()
def test_the_last_mlp_may_be_left_out_where_nobody_reads(folder, monkeypatch):
    model, x = wake(build_model(config_of(folder)).eval()), inputs()
    quick = model(**x)
    monkeypatch.setattr("model.last_mlp", lambda trunk: None)
    torch.testing.assert_close(quick, model(**x), rtol=1e-5, atol=1e-6)


def logits(trunk):
    ids = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return trunk.eval()(input_ids=ids).logits


@pytest.mark.parametrize("shared_A", [False, True], ids=["loralib", "peft-like"])
def test_peft_loads_what_we_export(folder, tmp_path, shared_A):
    torch.manual_seed(0)
    trunk = load_language_model(str(folder), 0.0)
    add_lora(trunk, rank=4, alpha=8, dropout=0.1, shared_A=shared_A)
    wake(trunk)
    export_peft(trunk, tmp_path, load_language_model(str(folder), 0.0), str(folder))
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(folder)), logits(trunk), atol=1e-2)
    torch.testing.assert_close(logits(loaded), logits(trunk), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(trunk), rtol=1e-4, atol=1e-5)
    # and back, into a model that knows nothing of it
    again = load_language_model(str(folder), 0.0)
    add_lora(again, rank=4, alpha=12, dropout=0.0, shared_A=shared_A)  # another alpha is made up for
    import_peft(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(trunk), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_trained(folder, tmp_path, rslora):
    torch.manual_seed(0)
    names = sorted({name.rpartition(".")[2] for name in add_lora(MAKE[folder.name[5:]](), 2, 2, 0.0)})
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), peft.LoraConfig(
        r=4, lora_alpha=20, target_modules=names, use_rslora=rslora, fan_in_fan_out="gpt2" in folder.name))
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    model = build_model(config_of(folder, adapter=str(tmp_path)))
    torch.testing.assert_close(logits(model.trunk), logits(theirs), rtol=1e-5, atol=1e-5)
    known = language_model_id(config_of(folder, adapter=str(tmp_path)), model.trunk)
    assert re.fullmatch(rf"{folder.name}@\w{{8}}\+{tmp_path.name}@\w{{8}}", known)
    assert all(p.requires_grad == ("lora_" in name or name.endswith("base.bias"))
               for name, p in model.trunk.named_parameters() if "bias" not in name or "base" in name)


def test_adapters_that_do_not_fit_are_refused(folder, tmp_path):
    trunk = load_language_model(str(folder), 0.0)
    add_lora(trunk, rank=4, alpha=8, dropout=0.0)
    train_only_lora(trunk)
    with pytest.raises(SystemExit, match="not readable"):
        import_peft(trunk, tmp_path)
    export_peft(trunk, tmp_path, load_language_model(str(folder), 0.0))
    other = load_language_model(str(folder), 0.0)
    add_lora(other, rank=5, alpha=8, dropout=0.0)
    with pytest.raises(SystemExit, match="has rank (4|12); import it with --lora_rank"):
        import_peft(other, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(SystemExit, match="use_dora"):
        import_peft(trunk, tmp_path)


# --- what is refused, and GGUF -----------------------------------------------------------------

def test_a_model_that_is_no_causal_lm_is_one_line(kit, tmp_path):
    BertForMaskedLM(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                               vocab_size=20)).save_pretrained(tmp_path / "bert")
    kit("prepare_data.py", "mini/hopper-medium-0.005", "--workers", "1")
    line = one_line(kit("train.py", "mini/hopper-medium-0.005/lamo/seed0", "--lm", str(tmp_path / "bert"),
                        check=False))
    assert "bert" in line and "gpt2, gpt_neox, opt, llama" in line
    line = one_line(kit("train.py", "mini/hopper-medium-0.005/lamo-medium/seed0", check=False))
    assert "LM=" in line


def test_a_gguf_file(tmp_path):
    torch.manual_seed(0)
    source = MAKE["llama"]().eval()
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


def test_a_runs_adapter_goes_to_peft(kit, d4rl_folder, tiny_gpt2):
    run = "paper/hopper-medium-0.1/lamo/seed0"
    kit("prepare_data.py", "paper/hopper-medium-0.1", "--data", str(d4rl_folder))
    kit("train.py", run, "--lm", str(tiny_gpt2), "--steps", "3", "--batch_size", "4", "--warmup", "0",
        "--lr", "0.05")
    kit("lora.py", run, "--export", "adapter")
    model = build_model(train.load_config(kit.folder / "runs" / run))
    tensors, _ = train.load_tensors(kit.folder / "runs" / run / "final.safetensors")
    for name, p in train.trainable(model).items():
        p.data.copy_(tensors[name])
    base = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    before = logits(base)
    theirs = logits(peft.PeftModel.from_pretrained(base, kit.folder / "adapter"))
    torch.testing.assert_close(theirs, logits(model.trunk), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, before, atol=1e-3)
    line = one_line(kit("lora.py", run.replace("lamo", "dt"), "--export", "adapter", check=False))
    assert "no finished run" in line
