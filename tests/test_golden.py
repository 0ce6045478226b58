"""Our model computes what the authors' released model computes.

Every .npz in $GOLDEN_DIR (tests/golden by default) holds a small network of theirs with random
weights, one batch, and what came out. See golden/README.md.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from kit.language_models import dt_trunk
from kit.quick import quicken
from lora import add_lora, train_only_lora
from model import DecisionTransformer, FrameCNN

FOLDER = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")
FILES = sorted(FOLDER.glob("*.npz"))


def kind(path):
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file["config"]))["kind"]


def our_name(name, lora):
    """The authors' parameter name -> ours."""
    if "base_model.model." in name or "embed_rtg" in name or "embed_state.0." in name:  # the Atari model
        name = name.replace("transformer.base_model.model.", "trunk.").replace(".default.weight", "")
        name = name.replace("embed_rtg.", "embed_return.").replace("embed_state.0.", "embed_state.0.layers.")
    name = name.replace("transformer_model.", "trunk.")
    if not lora:
        return name.replace("trunk.transformer.", "trunk.")  # our DT has no language head to be inside of
    if "lora_" not in name:
        name = name.replace("attn.c_attn.", "attn.c_attn.base.")
    return name


def build(golden):
    """The model of a golden file's config with its weights loaded, in evaluation mode."""
    config = json.loads(str(golden["config"]))
    lora = config["kind"] == "lamo"
    weights = {our_name(name[2:], lora): torch.from_numpy(golden[name]) for name in golden.files
               if name.startswith("w/") and "predict_state" not in name and "predict_return" not in name}
    if lora:
        trunk = GPT2LMHeadModel(GPT2Config(**config["lm"], bos_token_id=0, eos_token_id=0))
        add_lora(trunk, config["lora"]["r"], config["lora"]["alpha"], dropout=0.1)
        train_only_lora(trunk)
    else:
        layers = {name.split(".h.")[1].split(".")[0] for name in weights if ".h." in name}
        trunk = dt_trunk(width=len(weights["embed_ln.weight"]), layers=len(layers))
    model = DecisionTransformer(trunk, config["state_dim"], config["act_dim"], config["horizon"],
                                "mlp" if "embed_state.fc1.weight" in weights else "linear")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) == (set() if lora else {"trunk.wte.weight", "trunk.wpe.weight"})
    assert not unexpected
    quicken(model)
    return model.eval(), lora


def batch(golden):
    return {"states": torch.from_numpy(golden["in/states"]),
            "actions": torch.from_numpy(golden["in/actions"]),
            "returns_to_go": torch.from_numpy(golden["in/returns_to_go"]),
            "timesteps": torch.from_numpy(golden["in/timesteps"])}


def close(ours, theirs, what):
    error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12)
    assert error < 1e-5, f"{what}: relative error {error:.2e}"


def test_there_are_golden_files():
    kinds = {kind(path) for path in FILES}
    assert kinds if "GOLDEN_DIR" in os.environ else kinds == {"lamo", "lamo-atari", "dt"}, FOLDER


@pytest.mark.parametrize("path", [p for p in FILES if kind(p) == "lamo-atari"], ids=lambda p: p.stem)
def test_golden_atari(path):
    with np.load(path, allow_pickle=False) as golden:
        config = json.loads(str(golden["config"]))
        trunk = GPT2LMHeadModel(GPT2Config(**config["lm"], bos_token_id=0, eos_token_id=0))
        add_lora(trunk, config["lora"]["r"], config["lora"]["alpha"], dropout=0.1, shared_A=True)
        train_only_lora(trunk, biases=False)
        model = DecisionTransformer(trunk, (4, 84, 84), config["actions"], config["max_timestep"], "mlp",
                                    pixels=True, squash_logits=True)
        model.embed_state[0] = FrameCNN(config["lm"]["n_embd"], config["cnn_channels"])
        quicken(model)
        model.load_state_dict({our_name(name[2:], True): torch.from_numpy(golden[name])
                               for name in golden.files if name.startswith("w/")})
        inputs = {"states": torch.from_numpy(golden["in/states"])} | batch(golden)
        valid = torch.from_numpy(golden["in/valid"])
        logits = model.eval()(**inputs)
        close(logits.detach().numpy()[valid.numpy()], golden["out/action_logits"][valid.numpy()], "logits")
        loss = torch.nn.functional.cross_entropy(logits[valid], inputs["actions"][valid])
        close(loss.detach().numpy(), golden["out/loss"], "loss")
        loss.backward()
        ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        theirs = {our_name(name[2:], True): golden[name] for name in golden.files if name.startswith("g/")}
        assert set(ours) == set(theirs) == {n for n, p in model.named_parameters() if p.requires_grad}
        for name, gradient in theirs.items():
            close(ours[name].numpy(), gradient, f"gradient of {name}")


@pytest.mark.parametrize("path", [p for p in FILES if kind(p) in ("lamo", "dt")], ids=lambda p: p.stem)
def test_golden(path):
    with np.load(path, allow_pickle=False) as golden:
        model, lora = build(golden)
        inputs, mask = batch(golden), torch.from_numpy(golden["in/mask"])
        valid = mask.bool()

        predicted = model(**inputs, attention_mask=mask)
        close(predicted.detach().numpy()[valid.numpy()], golden["out/action_preds"][valid.numpy()],
              "action predictions")
        loss = torch.nn.functional.mse_loss(predicted[valid], inputs["actions"][valid])
        close(loss.detach().numpy(), golden["out/loss"], "loss")

        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        names = {our_name(name[2:], lora): golden[name] for name in golden.files if name.startswith("g/")}
        assert set(gradients) == set(names), "another set of parameters gets gradients"
        for name, theirs in names.items():
            close(gradients[name].numpy(), theirs, f"gradient of {name}")

        if "lm/ids" in golden.files:
            ids = torch.from_numpy(golden["lm/ids"])
            close(model.language_loss(ids, positions=False).item(),
                  golden["lm/loss_without_positions"], "language loss as released")
            close(model.language_loss(ids, positions=True).item(),
                  golden["lm/loss_with_positions"], "language loss with positions")

        # one evaluation-time action: the last steps, the newest action still unknown
        history = int(golden["act/history"])
        window = {name: value[-1:, -history:].clone() for name, value in inputs.items()}
        window["actions"][:, -1] = 0
        with torch.inference_mode():
            close(model(**window)[0, -1].numpy(), golden["act/action"], "evaluation-time action")
