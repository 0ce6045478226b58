"""Ten optimiser steps, and sixty steps of an episode, as the authors' released code takes them.

Every .npz in $TRAJECTORY_DIR (tests/trajectory by default) holds one run of theirs; what kind of run it
is stands in its `config`. See trajectory/README.md.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import train
from kit.policy import Policy
from kit.quick import quicken
from kit.settings import configuration
from lora import add_lora, merge_lora, train_only_lora
from model import DecisionTransformer, FrameCNN

FOLDER = Path(os.environ.get("TRAJECTORY_DIR") or Path(__file__).parent / "trajectory")
SETTINGS = ("lr", "weight_decay", "adam_eps", "grad_clip", "context", "warmup", "lm_weight", "return_scale",
            "embeddings")


def load(path):
    with np.load(path, allow_pickle=False) as file:
        golden = dict(file)
    return golden | {"config": json.loads(str(golden["config"]))}


GOLDEN = {path.stem: load(path) for path in sorted(FOLDER.glob("*.npz"))}


def is_atari(golden):
    return golden["config"]["kind"].endswith("atari")


def named(part):
    """One test for each file that `part(golden)` is true of."""
    return pytest.mark.parametrize("name", [name for name, golden in GOLDEN.items() if part(golden)])


def our_name(name):
    """The authors' parameter name -> ours."""
    name = name.replace("transformer.base_model.model.", "trunk.").replace(".default.weight", "")  # peft's
    name = name.replace("transformer_model.", "trunk.").replace("embed_rtg.", "embed_return.")
    name = name.replace("embed_state.0.", "embed_state.0.layers.")
    return name if "lora_" in name else name.replace("attn.c_attn.", "attn.c_attn.base.")


def weights(golden, prefix):
    return {our_name(key.removeprefix(prefix)): torch.from_numpy(golden[key])
            for key in golden if key.startswith(prefix)}


def our_configuration(golden, released=True):
    theirs, atari = golden["config"], is_atari(golden)
    run = "paper/breakout-medium-1/lamo-released/seed0" if atari else "paper/hopper-medium-1/lamo/seed0"
    config = configuration(run, **{name: theirs[name] for name in SETTINGS if name in theirs})
    return config | {"dropout": 0.0, "released": released,
                     "action_dim": theirs["actions" if atari else "act_dim"]}


def build(golden):
    """Our model with the authors' initial weights."""
    theirs, atari = golden["config"], is_atari(golden)
    trunk = GPT2LMHeadModel(GPT2Config(**theirs["lm"], bos_token_id=0, eos_token_id=0))
    add_lora(trunk, theirs["lora"]["r"], theirs["lora"]["alpha"], dropout=0.0, shared_A=atari)
    train_only_lora(trunk, biases=not atari)
    model = DecisionTransformer(trunk, (4, 84, 84) if atari else theirs["state_dim"],
                                theirs["actions" if atari else "act_dim"], theirs["max_timestep"],
                                theirs["embeddings"], pixels=atari, squash_logits=atari)
    if atari:
        model.embed_state[0] = FrameCNN(theirs["lm"]["n_embd"], theirs["cnn_channels"])
    quicken(model)
    missing, unexpected = model.load_state_dict(weights(golden, "w/"), strict=False)
    assert not unexpected and set(missing) <= {"trunk.lm_head.weight"}, (missing, unexpected)  # tied to wte
    assert {our_name(name) for name in golden["trainable"]} == set(train.trainable(model))
    return model


def take_steps(golden, model, optimizer, config, rates):
    """{what training_step logs, and the whole loss: one number a step} on the recorded batches."""
    rows = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = {name: torch.from_numpy(golden[f"in/{name}"][step])
                 for name in ("states", "actions", "returns_to_go", "timesteps")}
        for name in ("timesteps", "actions") if is_atari(golden) else ("timesteps",):
            batch[name] = batch[name].long()
        mask = torch.from_numpy(golden["in/mask"][step]).bool()
        ids = torch.from_numpy(golden["in/text"][step]).long() if config["lm_weight"] > 0 else None
        row = train.training_step(model, optimizer, config, batch, mask, ids)
        rows.append(row | {"loss": row["action_loss"] + config["lm_weight"] * row["language_loss"]})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def same_log(ours, theirs, tolerance):
    """In every column that both have, and at the least in the loss."""
    assert "loss" in theirs
    for name in set(theirs) & set(ours):
        error = np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()
        assert len(theirs[name]) == 10 and error < tolerance, f"{name}: relative error {error:.1e}"


def same_weights(model, start, theirs, tolerance=1e-3):
    """Measured by the way each tensor has gone, which is far stricter than by its size."""
    assert theirs
    for name, wanted in theirs.items():
        error = (model.get_parameter(name).detach() - wanted).norm() / (wanted - start[name]).norm()
        assert error < tolerance, f"{name}: off by {error:.1e} of its way"


def second_run(golden):
    """The run with positions, `positions/...`, in the place of the first."""
    other = {key.removeprefix("positions/"): golden[key] for key in golden if key.startswith("positions/")}
    other = {key if "/" in key else f"out/{key}": value for key, value in other.items()}
    first = {key: value for key, value in golden.items() if not key.startswith(("out/", "final/"))}
    return first | {"out/lr": golden["out/lr"]} | other


def test_there_are_trajectories():
    assert GOLDEN if "TRAJECTORY_DIR" in os.environ else {*GOLDEN} == {"hopper", "breakout"}, FOLDER


@pytest.mark.parametrize("name, positions", [
    (name, positions) for name, golden in GOLDEN.items() if not is_atari(golden)
    for positions in (False, True) if not positions or any(key.startswith("positions/") for key in golden)])
def test_ten_steps(name, positions):
    golden = second_run(GOLDEN[name]) if positions else GOLDEN[name]
    config, model = our_configuration(golden, released=not positions), build(golden)
    rates = [train.learning_rate(config, step, 1.0) for step in range(10)]
    assert rates == pytest.approx(golden["out/lr"].tolist(), rel=1e-12)
    ours = take_steps(golden, model, train.make_optimizer(model.train(), config), config, rates)
    same_log(ours, {key[4:]: golden[key] for key in golden if key.startswith("out/")}, 1e-5)
    same_weights(model, weights(golden, "w/"), weights(golden, "final/"))


@pytest.mark.parametrize("decay", [True, False])
@named(is_atari)
def test_ten_steps_atari(name, decay):
    """With weight decay we spare biases, LayerNorms and the time table, as the authors do not: those are
    compared without it."""
    golden = GOLDEN[name]
    config, model = our_configuration(golden), build(golden)
    config |= {} if decay else {"weight_decay": 0.0}
    optimizer = train.make_optimizer(model.train(), config)
    ours = take_steps(golden, model, optimizer, config, golden["out/lr"])
    same_log(ours, {"loss": golden["out/loss"], "gradient_norm": golden["out/gradient_norm"]} if decay else
             {"loss": golden["out/loss_without_decay"]}, 1e-5)
    spared = {id(p) for group in optimizer.param_groups if group["weight_decay"] < config["weight_decay"]
              for p in group["params"]}
    theirs = weights(golden, "final/" if decay else "final_without_decay/")
    same_weights(model, weights(golden, "w/"), {key: wanted for key, wanted in theirs.items()
                                                if id(model.get_parameter(key)) not in spared})


@named(lambda golden: "schedule/lr" in golden)
def test_the_schedule_of_tokens(name):
    golden, config = GOLDEN[name], our_configuration(GOLDEN[name])
    schedule = golden["config"]["schedule"]
    config |= {"lr": schedule["lr"], "batch_size": 128, "context": 30}
    acting = schedule["tokens_a_step"] / (128 * 30)
    ours = [train.learning_rate(config, int(step) - 1, acting) for step in golden["schedule/step"]]
    np.testing.assert_allclose(ours, golden["schedule/lr"], rtol=1e-9)


@pytest.mark.parametrize("merged", [False, True])
@named(lambda golden: "eval/actions" in golden)
def test_sixty_steps_of_evaluation(name, merged):
    """Three windows long, with the authors' weights after ten steps."""
    golden, model = GOLDEN[name], build(GOLDEN[name])
    for key, tensor in weights(golden, "final/").items():
        model.get_parameter(key).data.copy_(tensor)
    if merged:
        merge_lora(model.trunk)
    config = our_configuration(golden) | {"state_mean": golden["eval/state_mean"].tolist(),
                                          "state_std": golden["eval/state_std"].tolist()}
    policy, rewards = Policy(model.eval(), config, torch.device("cpu")), None
    policy.reset([golden["config"]["eval_target"]])
    assert len(golden["eval/actions"]) == 60
    for t, wanted in enumerate(golden["eval/actions"]):
        executed = policy.act(golden["eval/observations"][t:t + 1], rewards)
        said = policy.steps["actions"][0, -1].numpy()
        assert np.abs(said - wanted).max() < 1e-5, f"step {t}"
        assert np.array_equal(executed[0], said.clip(-1, 1))
        rewards = golden["eval/rewards"][t:t + 1]
