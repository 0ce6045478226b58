"""model.py: counts of the paper's shapes, causality, padding, positions, and what trains."""

import pytest
import torch
import torch.nn as nn
from conftest import tiny_families
from transformers import GPT2Config, GPT2LMHeadModel

from kit.language_models import dt_trunk, position_table
from kit.settings import configuration
from lora import LoRA, add_lora, train_only_lora
from model import DecisionTransformer, build_model
from train import parameter_counts

B, K, S, A = 3, 7, 5, 2


def small_lamo(embeddings="mlp"):
    torch.manual_seed(0)
    trunk = GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=64,
                                       bos_token_id=0, eos_token_id=0))
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


# --- what trains -------------------------------------------------------------------------------

def test_gradients_reach_what_trains_and_nothing_else():
    model = wake_lora(small_lamo()).train()
    (model(**inputs()).square().mean() + model.language_loss(torch.randint(0, 50, (2, 9)))).backward()
    for name, p in model.named_parameters():
        trains = "lora_" in name or "c_attn.base.bias" in name or not name.startswith("trunk.")
        assert p.requires_grad == trains, name
        assert (p.grad is not None and p.grad.abs().sum() > 0) == trains, name


def table(model, name):
    return getattr(model.trunk.base_model, name).weight


@pytest.mark.parametrize("task, method, weight, words, positions", [
    ("hopper-medium", "wiki", 0.0, False, False), ("hopper-medium", "lamo-full", 0.1, True, True),
    ("kitchen-complete", "lamo-released", 0.1, False, False), ("breakout-medium", "wiki", 0.0, False, True),
    ("hopper-medium", "lamo-frozen", 0.0, False, False)])
def test_tables_that_nothing_reads_do_not_train(task, method, weight, words, positions):
    """Words, unless there is text, and positions, unless there is text or frames."""
    config = configuration(f"mini/{task}-1/{method}/seed0", lm_weight=weight)
    model = build_model(config)
    assert table(model, "wte").requires_grad == words and table(model, "wpe").requires_grad == positions
    assert model.trunk.base_model.h[0].mlp.c_fc.weight.requires_grad == (config["train"] == "all")


@torch.no_grad()
def test_frames_become_logits_and_their_start_is_quick_only_if_asked():
    frames = torch.randint(0, 255, (2, 3, 4, 84, 84), dtype=torch.uint8)
    spread = []
    for quick in (True, False):
        torch.manual_seed(0)
        model = build_model(configuration("mini/breakout-medium-1/lamo/seed0", quick_init=quick)).eval()
        logits = model(frames, actions=torch.zeros(2, 3, dtype=torch.long), returns_to_go=torch.ones(2, 3, 1),
                       timesteps=torch.arange(3).repeat(2, 1))
        assert logits.shape == (2, 3, 4) and logits.isfinite().all()
        spread.append((model.embed_state(frames).std() / model.embed_timestep.weight.std()).item())
    assert spread[0] > 10 * spread[1], "pixels count beside the time"


@pytest.mark.parametrize("profile, deviation", [("mini", 0.02), ("paper", 1.0)])
def test_time_embeddings_start_small_in_the_mini_profile_alone(profile, deviation):
    torch.manual_seed(0)
    table = build_model(configuration(f"{profile}/hopper-medium-1/dt/seed0")).embed_timestep.weight
    assert table.std().item() == pytest.approx(deviation, rel=0.02)


def test_released_variants_squash_their_logits():
    heads = [build_model(configuration(f"mini/pong-medium-1/{method}/seed0")).predict_action
             for method in ("lamo", "lamo-released")]
    assert [type(head[-1]) for head in heads] == [nn.Identity, nn.Tanh]


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "llama"])
def test_what_a_family_adds_for_positions_is_not_in_the_trajectory(family):
    """OPT's table begins with two rows that stand for no position."""
    torch.manual_seed(0)
    model = DecisionTransformer(tiny_families()[family](), S, A, 100, "mlp").eval()
    with torch.no_grad():
        before = model(**inputs())
        table = position_table(model.trunk)
        assert (table is None) == (family in ("gpt_neox", "llama"))
        if table is not None:
            nn.init.normal_(table.weight)
        assert torch.allclose(model(**inputs()), before, atol=1e-5)
        if table is not None:  # a text has them
            ids = torch.arange(12)[None]
            loss = model.language_loss(ids)
            table.weight.zero_()
            assert not torch.isclose(model.language_loss(ids), loss, atol=1e-3)
