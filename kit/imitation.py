"""How well a checkpoint imitates episodes that it has not seen: the held-out action loss.

    found = load_heldout(config)                            # None where there are no such episodes
    row |= columns(model, config, found, 500)               # LOSS_COLUMNS of the checkpoint of step 500

reads   data/PROFILE/TASK-heldout.npz or CELL-heldout.npz (sources/heldout.py), runs/RUN/train.csv,
        mini/heldout.txt

The loss is training's: mean squared error of continuous actions, cross-entropy of buttons in nats (BC's
without the penalty that it trains with). Every step counts once, in windows of the run's context that begin
where the last one ended, so that a prediction has seen about as many steps as in training. It is computed in
float32 without dropout, and nothing is drawn at random. Methods that learn values have none: their actor is
not meant to do what the data did. What a language model keeps of its language is measured beside it, in bits
per byte of the beginning of a novel.
Letters: B windows, K context, N steps, S state, A action.
"""

import functools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit import artifacts, fail, runs, seals
from kit.artifacts import first_words
from kit.language_models import is_panic, load_tokenizer, reach_of
from train import training_arrays, windows

STEPS = 1024  # in a forward pass
PROSE = Path(__file__).parent.parent / "mini" / "heldout.txt"
CHARACTERS = 10_000  # of it, from its beginning


def imitates(config):
    """Whether a run learns to do what the data did."""
    return config["kind"] == "sequence" or config["update"] == "bc"


def load_heldout(config):
    """(data, provenance) of the episodes that a run's checkpoints are measured on; None where there are none,
    or where it does not imitate."""
    return episodes_of(config) if imitates(config) else None


def episodes_of(config):
    """(data, provenance) of a run's held-out episodes, the cell's own before the task's; None where there are
    none, or only those of other data than it was trained on."""
    for name in (config["cell"], config["task"]):
        path = artifacts.heldout_path(f"{config['profile']}/{name}")
        if not path.exists() or (artifacts.source_name(artifacts.load_provenance(path)["data"])
                                 != artifacts.source_name(config["data"])):
            continue
        data, provenance = artifacts.load_dataset(path)
        if both := {*provenance["episodes"]} & {*config["data_episodes"]}:
            fail(f"{path} holds episode {min(both)}, which runs of {config['cell']} trained on; delete it, "
                 f"and make it again: python prepare_data.py {config['profile']}/{config['cell']}")
        return data, provenance
    return None


def columns(model, config, found, step, device="cpu"):
    """LOSS_COLUMNS of the checkpoint that is in `model`, as they are written: those that are known. found: as
    load_heldout gave it."""
    known = {}
    if (loss := training_loss(config, step)) is not None:
        known["train_loss"] = f"{loss:.6g}"
    if found is not None:
        data, provenance = found
        floor = provenance["floor_loss"]
        predicted, actions = predictions(model, config, data, device)
        if config["discrete"]:
            known["heldout_decisions"] = f"{missed(predicted, actions, data):.6g}"
        known |= {"heldout_loss": f"{loss_of(predicted, actions, config):.6g}",
                  "heldout_episodes": len(provenance["episodes"]), "heldout_data": provenance["sha256"][:8],
                  "heldout_floor": "" if floor is None else f"{floor:.6g}"}
    if config["kind"] == "sequence" and config["trunk"] != "dt" and prose_of(model, config) is not None:
        known["bits_per_byte"] = f"{bits_per_byte(model, config, device):.6g}"
    return known


def training_loss(config, step):
    """The action loss of train.csv's row at a step, a mean over log_every steps; None if it has none that can
    be compared: discrete BC's holds a penalty."""
    name = "action_loss" if config["kind"] == "sequence" else "actor_loss"
    if not imitates(config) or name == "actor_loss" and config["discrete"]:
        return None
    path = artifacts.run_folder(runs.run_of(config)) / "train.csv"
    rows = artifacts.read_csv(path, ("step", name)) if path.exists() else []
    return next((float(row[name]) for row in rows if int(row["step"]) == step), None)


def loss_of(predicted, actions, config):
    """A mean of N losses, as a number, of predictions (N, A) of actions (N,) or (N, A)."""
    if config["discrete"]:
        return F.cross_entropy(predicted, actions, reduction="none").double().mean().item()
    return F.mse_loss(predicted, actions, reduction="none").double().mean().item()


def missed(predicted, actions, data):
    """The share of wrong buttons at the steps at which another one is pressed than before. Whoever has learnt
    to repeat, as buttons mostly do, misses all of them at a low loss. The largest logit is what is played."""
    at = decisions(data)
    return (predicted.argmax(1) != actions).numpy()[at].mean()


def decisions(data):
    """(N,) Which steps press another button than the step before."""
    others = np.ones(len(data["actions"]), bool)
    others[1:] = data["actions"][1:] != data["actions"][:-1]
    others[data["offsets"][:-1]] = True  # nothing was pressed before
    return others


@torch.inference_mode()
def predictions(model, config, data, device="cpu"):
    """What a model predicts at each of a dataset's N steps, (N, A), and the actions there, on the CPU."""
    sequence = config["kind"] == "sequence"
    if sequence:
        precise, model.bf16 = model.bf16, False
    else:  # a baseline sees single states, and no returns
        config = config | {"released": False, "return_scale": 1.0, "context": 1}
    K, model, found = config["context"], model.to(device).eval(), []
    known = np.float32(config["state_mean"]), np.float32(config["state_std"])
    arrays, ends, _, _ = training_arrays(data, config, known)
    starts = np.concatenate([np.arange(first, last, K) for first, last in
                             zip(data["offsets"][:-1], data["offsets"][1:], strict=True)])
    for first in range(0, len(starts), max(1, STEPS // K)):
        batch, mask = windows(arrays, ends, starts[first:first + max(1, STEPS // K)], K)
        batch, mask = {name: x.to(device) for name, x in batch.items()}, mask.to(device)
        predicted = (model(**batch, attention_mask=mask) if sequence else
                     model(batch["states"][:, 0])[:, None])                        # (B, K, A)
        found.append(predicted[mask].cpu())                                        # (T, A)
    if sequence:
        model.bf16 = precise
    return torch.cat(found), arrays["actions"]


@torch.inference_mode()
def bits_per_byte(model, config, device="cpu"):
    """Code length of the prose under a model's trunk as it is now, in float32, in bits per byte, by windows
    of as many tokens as the trunk reads at once, at most those of training's text. The first token of a
    window is given and not coded, 0.4 % of all in windows of 256, so that equal windows compare."""
    ids, size = prose_of(model, config)
    trunk = model.to(device).eval().trunk
    block = min(config["lm_block"], getattr(trunk.config, "max_position_embeddings", config["lm_block"]),
                reach_of(trunk) or config["lm_block"])
    positions = config["pixels"] or not config["released"]  # the released Kitchen's text has none
    precise, model.bf16 = model.bf16, False
    nats = sum(model.language_loss(part[None].to(device), positions=positions).item()
               * (len(part) - 1) for part in torch.tensor(ids).split(block) if len(part) > 1)
    model.bf16 = precise
    return nats / math.log(2) / size


def prose_of(model, config):
    """`prose` for a model."""
    return prose(config["lm"], model.trunk.get_input_embeddings().num_embeddings)


@functools.cache
def prose(lm, words):
    """(token ids, bytes) of the beginning of the prose that no shipped model has seen; None, and a line that
    says so, for a language model of so many words without a tokenizer of its own, which trajectories do
    without."""
    try:
        seals.check_list(PROSE.parent, PROSE.name)
    except (OSError, ValueError) as error:
        fail(f"{PROSE} is damaged ({first_words(error)}); restore it with git checkout")
    text, why = PROSE.read_text(encoding="utf-8")[:CHARACTERS], "it does not give the text back"
    try:
        tokenizer = load_tokenizer(lm)
        ids = tokenizer(text, verbose=False)["input_ids"]
        if max(ids, default=0) >= words:
            why = f"it says token {max(ids):,}, and the model embeds {words:,}"
        elif "".join(tokenizer.decode(ids, skip_special_tokens=True).split()) == "".join(text.split()):
            return ids, len(text.encode())
    except SystemExit as stop:
        why = stop.code
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        why = first_words(error)
    print(f"bits_per_byte stays empty, for want of {lm}'s tokenizer: {why}")
    return None
