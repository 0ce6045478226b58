"""lora.py: the paper's sum, a start that changes nothing, what trains, and merging."""

import pytest
import torch
import torch.nn as nn
from conftest import tiny_families
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora import LoRA, add_lora, merge_lora, train_only_lora


def small_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=64,
                                      bos_token_id=0, eos_token_id=0)).eval()


def adapted(wake=True, **kwargs):
    """A GPT-2 with LoRA, as after training if `wake`: B is zero at the start."""
    model = small_gpt2()
    add_lora(model, rank=4, alpha=8, dropout=0.1, **kwargs)
    for layer in loras(model.eval()) if wake else ():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


def loras(model):
    return [module for module in model.modules() if isinstance(module, LoRA)]


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(40).reshape(2, 20)).logits


def test_lora_changes_nothing_at_the_start():
    model = adapted(wake=False)
    assert torch.equal(logits(model), logits(small_gpt2()))
    assert loras(model) and all(m.lora_A.abs().sum() > 0 and (m.lora_B == 0).all() for m in loras(model))
    assert not torch.allclose(logits(adapted()), logits(small_gpt2()), atol=1e-3)


@pytest.mark.parametrize("make", [lambda: Conv1D(12, 8), lambda: nn.Linear(8, 12)], ids=["Conv1D", "Linear"])
@pytest.mark.parametrize("groups", [1, 3])
def test_lora_arithmetic_on_both_layers(make, groups):
    torch.manual_seed(0)
    base, x = make(), torch.randn(4, 8)
    layer = LoRA(base, groups, rank=2, alpha=6, dropout=0.0)
    nn.init.normal_(layer.lora_B)
    expected = base(x).detach()
    for g in range(groups):  # the paper's sum, a group at a time
        rows = slice(g * 12 // groups, (g + 1) * 12 // groups)
        down = x @ layer.lora_A[2 * g:2 * g + 2].T
        expected[:, rows] += 6 / 2 * down @ layer.lora_B[rows].T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)


def test_dropout_is_on_the_branch_only():
    base = nn.Linear(8, 12)
    layer = LoRA(base, 1, rank=2, alpha=2, dropout=0.9999999).train()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 8)
    torch.testing.assert_close(layer(x), base(x))


@pytest.mark.parametrize("shared_A", [False, True])
def test_merging_keeps_the_function(shared_A):
    model = adapted(shared_A=shared_A)
    before = logits(model)
    merge_lora(model)
    assert not loras(model)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
def test_fused_layers_are_read_group_by_group_and_back(heads):
    """GPT-NeoX puts out q, k and v of one head after another, GPT-2 all of q first."""
    layer = LoRA(nn.Linear(8, 24), 3, rank=2, alpha=2, dropout=0.0, heads=heads)
    rows = torch.arange(24.0)
    assert torch.equal(layer.group_order(layer.layer_order(rows)), rows)
    first = layer.layer_order(rows)[:24 // heads]  # of the first head: its share of q, of k and of v
    assert first.tolist() == [float(group * 8 + i) for group in range(3) for i in range(8 // heads)]
    nn.init.normal_(layer.lora_B)
    blocks = layer.group_order(layer.wide_B()).unflatten(0, (3, 8)).unflatten(2, (3, 2))  # (G, O / G, G, R)
    for group in range(3):
        assert torch.equal(blocks[group, :, group], layer.lora_B.unflatten(0, (3, 8))[group])
        assert (blocks[group, :, [g for g in range(3) if g != group]] == 0).all()


@pytest.mark.parametrize("family, shared_A, groups, heads", [
    ("gpt2", False, 3, 1), ("gpt2", True, 1, 1), ("gpt_neox", False, 3, 3), ("gpt_neox", True, 1, 1),
    ("opt", False, 1, 1), ("llama", False, 1, 1)])
def test_each_familys_layers_are_known_as_what_they_fuse(family, shared_A, groups, heads):
    trunk = tiny_families()[family]()
    names = add_lora(trunk, rank=2, alpha=4, dropout=0.0, shared_A=shared_A)
    assert len(names) == (2 if "gpt" in family else 6)  # of two layers
    assert {(layer.groups, layer.heads) for layer in loras(trunk)} == {(groups, heads)}


@pytest.mark.parametrize("shared_A, biases", [(False, True), (True, False)], ids=["loralib", "peft"])
def test_only_lora_trains_and_the_biases_if_asked(shared_A, biases):
    model = adapted(shared_A=shared_A)
    train_only_lora(model, biases)
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name or biases and name.endswith("c_attn.base.bias")), name
    assert {layer.lora_A.shape[0] for layer in loras(model)} == {4 if shared_A else 12}


def test_a_model_without_attention_projections_is_refused():
    with pytest.raises(ValueError, match="c_attn"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), 2, 2, 0.0)
