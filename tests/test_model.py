"""LoRA and the Decision Transformer: counts of the paper's shapes, causality, padding, no-op start."""

import pytest
import torch
import torch.nn as nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from lora import LoRA, add_lora, merge_lora, train_only_lora
from model import DecisionTransformer, dt_trunk
from train import parameter_counts

B, K, S, A = 3, 7, 5, 2


def small_lamo(embeddings="mlp", lora=True, seed=0):
    torch.manual_seed(seed)
    trunk = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=64,
                                       bos_token_id=0, eos_token_id=0))
    if lora:
        add_lora(trunk, rank=4, alpha=8, dropout=0.1)
        train_only_lora(trunk)
    return DecisionTransformer(trunk, S, A, max_timestep=100, embeddings=embeddings).eval()


def wake_lora(model):
    """B is zero at the start; give it values so that the branch matters."""
    for module in model.modules():
        if isinstance(module, LoRA):
            nn.init.normal_(module.lora_B, std=0.1)
    return model


def inputs(seed=0):
    g = torch.Generator().manual_seed(seed)
    return {"states": torch.randn(B, K, S, generator=g), "actions": torch.randn(B, K, A, generator=g),
            "returns_to_go": torch.randn(B, K, 1, generator=g),
            "timesteps": torch.arange(K).repeat(B, 1) + torch.tensor([[0], [3], [50]])}


# --- counts: SPEC of the paper's model, without the authors' two heads that train on nothing -----

@pytest.mark.parametrize("state, action, horizon, embeddings, trainable, whole", [
    (11, 3, 1000, "mlp", 4_069_647, 128_481_807),
    (11, 3, 1000, "linear", 1_707_279, 126_119_439),
    (17, 6, 1000, "mlp", 4_083_480, 128_495_640),
    (60, 9, 1000, "mlp", 4_154_182, 128_566_342),
    (12, 2, 100, "mlp", 3_378_447, 127_790_607)])
def test_parameter_counts_of_lamo_on_gpt2_small(state, action, horizon, embeddings, trainable, whole):
    with torch.device("meta"):
        trunk = GPT2LMHeadModel(GPT2Config())
        add_lora(trunk, rank=16, alpha=32, dropout=0.1)
        train_only_lora(trunk)
        counts = parameter_counts(DecisionTransformer(trunk, state, action, horizon, embeddings))
    dead_heads = 768 * state + state + 768 + 1  # predict_state and predict_return
    assert counts["trainable"] == trainable - dead_heads
    assert counts["all"] == whole - dead_heads
    assert counts["lora"] == 884_736
    assert counts["trunk_trainable"] == 884_736 + 27_648
    assert counts["trunk"] == 124_439_808 + 884_736
    assert round(100 * counts["trunk_trainable"] / counts["trunk"], 3) == 0.728  # the "0.7 %"


def test_parameter_count_of_dt():
    counts = parameter_counts(DecisionTransformer(dt_trunk(), 11, 3, 1000, "linear"))
    vocabulary, positions, dead_heads = 50_257 * 128, 1_024 * 128, 128 * 11 + 11 + 128 + 1
    assert counts["trainable"] == 7_291_535 - vocabulary - positions - dead_heads


# --- order and masks ---------------------------------------------------------------------------

@pytest.mark.parametrize("model", [wake_lora(small_lamo()), small_lamo("linear"),
                                   DecisionTransformer(dt_trunk(width=16), S, A, 100, "linear").eval()],
                         ids=["lamo", "lamo-linear", "dt"])
@torch.no_grad()
def test_a_prediction_depends_on_the_past_alone(model):
    x = inputs()
    before = model(**x)
    for t in range(K):
        for name in ("states", "actions", "returns_to_go"):
            changed = {key: value.clone() for key, value in x.items()}
            changed[name][:, t] += 1.0
            moved = (model(**changed) - before).abs().amax((0, 2)) > 1e-7
            # the action of step t is read after return and state of t, and before action t
            first = t + 1 if name == "actions" else t
            assert not moved[:first].any(), f"{name} {t} changed an earlier prediction"
            assert moved[first:].all(), f"{name} {t} did not reach every later prediction"


@torch.no_grad()
def test_padding_changes_nothing():
    model = wake_lora(small_lamo())
    x, length = inputs(), 4
    alone = model(**{name: value[:, :length] for name, value in x.items()})
    for side in ("left", "right"):
        for filler in (0.0, -10.0):
            mask = torch.zeros(B, K)
            place = slice(K - length, K) if side == "left" else slice(0, length)
            mask[:, place] = 1
            padded = {}
            for name, value in x.items():
                padded[name] = torch.full_like(value, 0 if name == "timesteps" else filler)
                padded[name][:, place] = value[:, :length]
            out = model(**padded, attention_mask=mask)
            assert out.isfinite().all()
            torch.testing.assert_close(out[:, place], alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_no_position_embedding_reaches_the_trajectory():
    model = small_lamo()
    before = model(**inputs())
    model.trunk.base_model.wpe.weight.add_(torch.randn_like(model.trunk.base_model.wpe.weight))
    torch.testing.assert_close(model(**inputs()), before, rtol=1e-4, atol=1e-5)


def test_timesteps_beyond_the_horizon_are_clamped():
    x = inputs()
    late, last = dict(x, timesteps=x["timesteps"] + 1000), dict(x, timesteps=torch.full((B, K), 99))
    model = small_lamo()
    with torch.no_grad():
        torch.testing.assert_close(model(**late), model(**last))


# --- LoRA --------------------------------------------------------------------------------------

def test_lora_changes_nothing_at_the_start():
    with torch.no_grad():
        plain, adapted = small_lamo(lora=False), small_lamo(lora=True)
        adapted.load_state_dict({name.replace("c_attn.", "c_attn.base."): value
                                 for name, value in plain.state_dict().items()}, strict=False)
        assert torch.equal(plain(**inputs()), adapted(**inputs()))
    loras = [m for m in adapted.modules() if isinstance(m, LoRA)]
    assert loras and all(m.lora_A.abs().sum() > 0 and (m.lora_B == 0).all() for m in loras)


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


def test_merging_keeps_the_function():
    model = wake_lora(small_lamo())
    with torch.no_grad():
        before = model(**inputs())
        merge_lora(model.trunk)
        assert not [m for m in model.modules() if isinstance(m, LoRA)]
        torch.testing.assert_close(model(**inputs()), before, rtol=1e-5, atol=1e-6)


def test_gradients_reach_what_trains_and_nothing_else():
    model = wake_lora(small_lamo()).train()
    (model(**inputs()).square().mean() + model.language_loss(torch.randint(0, 50, (2, 9)))).backward()
    for name, p in model.named_parameters():
        trains = "lora_" in name or "c_attn.base.bias" in name or not name.startswith("trunk.")
        assert p.requires_grad == trains, name
        assert (p.grad is not None and p.grad.abs().sum() > 0) == trains, name


def test_a_model_without_attention_projections_is_refused():
    with pytest.raises(ValueError, match="c_attn"):
        add_lora(nn.Sequential(nn.Linear(2, 2)), 2, 2, 0.0)
