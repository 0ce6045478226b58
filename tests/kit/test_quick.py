"""kit/quick.py: the quick ways compute what the plain ones do, and bfloat16 what float32 does."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import train
from kit.quick import Dropout, attention, drop, last_mlp, pick_device, pick_dtype, quicken
from kit.settings import configuration
from model import build_model

# --- dropout -----------------------------------------------------------------------------------

@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(1000, 1003, dtype=dtype, requires_grad=True)
    y = drop(x, p)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(p, abs=4 * (p * (1 - p) / x.numel()) ** 0.5 + 2**-16)
    assert y.max().item() == pytest.approx(1 / (1 - p), rel=0.01) and y.unique().numel() == 2
    y.sum().backward()
    assert torch.equal(x.grad, y.detach()), "the gradient passes where the value did"
    # neighbours, whose masks come from one random word, are dropped independently
    mask = (y == 0).flatten().float()
    for lag in (1, 2, 3, 4):
        together = (mask[:-lag] * mask[lag:]).mean().item()
        assert together == pytest.approx(p * p, abs=0.002)


def test_dropout_follows_the_seed_and_the_mode():
    layer, x = Dropout(0.3), torch.ones(7, 5)
    torch.manual_seed(1)
    first = layer.train()(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(layer(x), first)
    assert layer.eval()(x) is x and Dropout(0.0).train()(x) is x


def test_a_model_has_no_other_dropout():
    for method in ("lamo", "dt"):
        model = build_model(configuration(f"mini/hopper-medium-1/{method}/seed0", dropout=0.1))
        kinds = {type(m) for m in model.modules() if isinstance(m, nn.Dropout)}
        assert kinds == {Dropout}
        assert model.trunk.config._attn_implementation == "lamo"


# --- attention ---------------------------------------------------------------------------------

@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("T, p", [(59, 0.0), (59, 1e-9), (300, 0.0), (300, 1e-9)])  # 1e-9 drops nothing
def test_attention_is_pytorchs(T, p, keys, masked):
    torch.manual_seed(0)
    query = torch.randn(2, 4, T, 8, requires_grad=True)
    key, value = (torch.randn(2, keys, T, 8, requires_grad=True) for _ in range(2))
    mask = None
    if masked:  # causal, with some keys hidden
        hidden = torch.rand(2, 1, 1, T) < 0.2
        allowed = torch.ones(T, T, dtype=torch.bool).tril() & ~hidden | torch.eye(T, dtype=torch.bool)
        mask = torch.zeros(2, 1, T, T).masked_fill_(~allowed, torch.finfo(torch.float32).min)
    module = SimpleNamespace(is_causal=True, num_key_value_groups=4 // keys, training=True)
    output, _ = attention(module, query, key, value, mask, dropout=p, scaling=0.3)
    wanted = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=0.3,
                                            enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(output)
    for ours, theirs in zip(torch.autograd.grad((output * weight).sum(), (query, key, value)),
                            torch.autograd.grad((wanted * weight).sum(), (query, key, value)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_is_made_anew_in_the_backward_pass_drops_the_same():
    """With dropout the loss is linear in the values, and its gradient must be that very map."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 300, 4), torch.randn(1, 2, 300, 4)
    value = torch.randn(1, 2, 300, 4, requires_grad=True)
    loss = attention(SimpleNamespace(is_causal=True), query, key, value, None, dropout=0.4)[0].sum()
    gradient, = torch.autograd.grad(loss, value)
    assert (gradient * value).sum().item() == pytest.approx(loss.item(), rel=1e-4)


# --- what is not computed ----------------------------------------------------------------------

def batch_of(config, B=4, K=6):
    g = torch.Generator().manual_seed(0)
    states = torch.randn(B, K, config["state_dim"], generator=g)
    return {"states": states, "actions": torch.rand(B, K, config["action_dim"], generator=g),
            "returns_to_go": torch.rand(B, K, 1, generator=g), "timesteps": torch.arange(K).repeat(B, 1)}


def test_the_last_mlp_is_left_out_only_where_nobody_reads(monkeypatch):
    config = configuration("mini/hopper-medium-1/lamo/seed0")
    torch.manual_seed(0)
    model, x = build_model(config).eval(), batch_of(config)
    for module in model.modules():
        if hasattr(module, "lora_B"):
            nn.init.normal_(module.lora_B, std=0.05)
    sizes, weight = [], model.embed_state.weight
    handle = last_mlp(model.trunk).c_fc.register_forward_hook(
        lambda _, inputs, __: sizes.append(inputs[0].shape[1]))
    quick = model(**x)
    newest = model.predict(model.embed_state(x.pop("states")), **x, newest=True)
    model.language_loss(torch.randint(0, 100, (2, 9)))
    handle.remove()
    assert sizes == [6, 1, 8], "of 17 tokens, of 17 tokens, of all 8 of a text"
    monkeypatch.setattr("kit.quick.last_mlp", lambda trunk: None)
    plain = model(**batch_of(config))
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(newest[:, 0], plain[:, -1], rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(y.square().sum(), weight)[0] for y in (quick, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_language_loss_in_parts_is_that_of_the_whole(monkeypatch):
    monkeypatch.setattr("kit.quick.LOGITS", 2**21)
    config = configuration("mini/kitchen-complete-1/lamo/seed0")
    torch.manual_seed(0)
    model = build_model(config)
    words = model.trunk.get_output_embeddings().weight.shape[0]
    ids = torch.randint(0, words, (2 * (2**21 // words) // 200 + 1, 202))  # more rows than one part has
    wanted = [p for p in model.trunk.parameters() if p.requires_grad]
    loss = model.language_loss(ids)
    logits = model.trunk(input_ids=ids[:, :-1]).logits
    plain = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for ours, theirs in zip(*(torch.autograd.grad(x, wanted) for x in (loss, plain)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


# --- all of it ---------------------------------------------------------------------------------

@pytest.mark.parametrize("method, task", [("lamo", "hopper-medium"), ("dt", "hopper-medium"),
                                          ("lamo", "kitchen-complete")])
def test_a_quickened_model_is_the_plain_one(method, task, monkeypatch):
    """Outputs, losses and gradients, with and without padding; without dropout, whose masks differ."""
    config, found = configuration(f"mini/{task}-1/{method}/seed0"), []
    for quick in (lambda model: None, quicken):
        monkeypatch.setattr("model.quicken", quick)
        torch.manual_seed(0)
        model = build_model(config)
        assert (model.trunk.config._attn_implementation == "lamo") == (quick is quicken)
        x = batch_of(config)
        mask = torch.ones(4, 6)
        mask[1, 4:] = 0
        read = model(**x, attention_mask=mask)[mask.bool()]
        loss = read.square().sum()
        if method == "lamo":
            loss = loss + model.language_loss(torch.arange(80).reshape(2, 40))
        loss.backward()
        gradients = [p.grad for p in train.trainable(model).values() if p.grad is not None]
        found.append([read, model(**x), loss, *gradients])
    assert len(found[0]) == len(found[1]) > 10
    for plain, quick in zip(*found, strict=True):
        torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)


# --- bfloat16 ----------------------------------------------------------------------------------

def curve(method, dtype, task, blocks):
    """Losses of 20 steps on rows that stand for a dataset, from the same start; small batches and, with text,
    two blocks, because a CPU without units for bfloat16 takes ten times as long for its products."""
    config = configuration(f"mini/{task}-1/{method}/seed0", dtype=dtype, batch_size=8, warmup=10, lr=3e-4,
                           context=5, lm_layers=blocks)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = build_model(config).train()
    assert model.bf16 == (dtype == "bfloat16")
    rows, S, A = 2000, config["state_dim"], config["action_dim"]
    states = rng.standard_normal((rows, S), np.float32).cumsum(0) / 30
    data = {"observations": states, "actions": np.tanh(states[:, :A] * 3),
            "offsets": np.arange(0, rows + 1, 100), "rewards": rng.uniform(0, 3, rows).astype(np.float32)}
    arrays, ends, _, _ = train.training_arrays(data, config)
    optimizer, losses = train.make_optimizer(model, config), []
    for step in range(20):
        batch, mask = train.sample_batch(arrays, ends, np.random.default_rng(step), config["batch_size"],
                                         config["context"])
        ids = torch.from_numpy(rng.integers(0, 4000, (1, 60))) if config["lm_weight"] > 0 else None
        losses.append(train.training_step(model, optimizer, config, batch, mask, ids))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return {name: np.array([row[name] for row in losses]) for name in ("action_loss", "language_loss")}


@pytest.mark.parametrize("method, task, blocks", [  # 0: all
    ("lamo", "hopper-medium", 0), ("dt", "hopper-medium", 0), ("lamo", "kitchen-complete", 2)])
def test_bfloat16_keeps_the_loss_curve(method, task, blocks):
    exact, quick = (curve(method, dtype, task, blocks) for dtype in ("float32", "bfloat16"))
    assert exact["action_loss"][-5:].mean() < 0.7 * exact["action_loss"][:5].mean(), "it does learn"
    for name in ("action_loss", "language_loss"):
        if exact[name].any():
            apart = np.abs(quick[name] - exact[name]) / exact[name]
            assert 0 < apart.mean() <= 0.005, f"{name}: {apart.mean():.4f}, at most {apart.max():.4f}"
            print(f"{method} {task} {name}: {apart.mean():.5f}, at most {apart.max():.5f}")


def test_auto_is_bfloat16_where_that_is_fast(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("bfloat16", cpu) == "bfloat16" and pick_dtype("float32", cuda) == "float32"
    for units in ((), ("amx_bf16",), ("avx512_bf16",), ("amx_bf16", "avx512_bf16")):
        has = {"avx512_f": True, "amx_bf16": False, "avx512_bf16": False} | dict.fromkeys(units, True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert pick_dtype("auto", cpu) == ("bfloat16" if units else "float32")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True})
    assert pick_dtype("auto", cpu) == "float32"
    for has in (True, False):
        wanted = "bfloat16" if has else "float32"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert pick_dtype("auto", cuda) == wanted
    assert pick_dtype("auto", torch.device("mps")) == "float32"


def test_auto_is_the_fastest_device_there_is(monkeypatch):
    for cuda, mps, wanted in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert pick_device("auto") == torch.device(wanted)
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="there is no GPU 3 here"):
        patch.setenv("LAMO_GPU", "3")  # by kit.watch; else it would take a CPU
        patch.setattr(torch.cuda, "is_available", lambda: False)
        pick_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert not torch.backends.cudnn.allow_tf32  # float32 is float32 in Atari's convolutions, too
