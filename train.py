"""Stage 2: train one run.

    python train.py mini/hopper-medium-0.01/lamo/seed0
    python train.py paper/hopper-medium-0.01/lamo/seed0 --lm /models/gpt2 --device cuda
    python train.py mini/hopper-medium-0.01/lamo/seed0 --lm_weight 0.1 --steps 50

reads   data/PROFILE/CELL.npz, the language model, and data/PROFILE/text-TOKENIZER.npz if lm_weight > 0
writes  runs/PROFILE/CELL/METHOD/seedN/: config.json, train.csv, checkpoints of what trains (kit/artifacts.py)

The run's name determines every setting (tasks.py); each can be overridden on the command line, and
config.json says so. A run that is finished is left alone; one with other settings is refused, unless
--replace. One that was killed goes on from its state, which is saved every state_every minutes, at every
checkpoint, and at SIGTERM, SIGINT and SIGHUP. Batches and dropout depend on (seed, step) alone, so on a
CPU a resumed run writes the same bytes as one that was never killed, and equal seeds give equal bytes on
the same machine with the same number of threads.

Letters: B batch, K context, N rows of the dataset, S state, A action, T tokens of text.
"""

import math

from kit import fail, settings, signals

if __name__ == "__main__":
    signals.catch()
    ARGS = settings.options(__doc__).parse_args()  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn.functional as F

from kit import artifacts, runs
from kit.language_models import check_words, input_digests, language_model_id, tokenizer_digest
from kit.progress import Progress
from kit.quick import pick_device, pick_dtype
from lora import LoRA
from model import build_model

# --- batches -----------------------------------------------------------------------------------


def training_arrays(data, config, known=None):
    """The dataset as tensors that a batch is gathered from, N rows each, and (mean, std) of states.

    returns_to_go[t] is the sum of rewards from t to the episode's end, t included, over
    return_scale: computed once here instead of once a sample (authors: experiment.py:103-233).
    Frames stay single bytes, each once; windows() stacks four of them. known: another dataset's (mean, std).
    """
    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    lengths = ends - starts
    rewards = data["rewards"]
    if config["released"] and "dataset_rewards" in data:  # the kitchen's count at each step, as recorded
        rewards = data["dataset_rewards"]
    # sum from t to the end of everything, less the sum of all that follows the episode
    following = np.append(np.cumsum(rewards[::-1].astype(np.float64))[::-1], 0.0)
    returns_to_go = (following[:-1] - np.repeat(following[ends], lengths)) / config["return_scale"]
    if config["released"] and config["pixels"]:  # buffer.py:26, though its evaluation counts that reward
        returns_to_go -= rewards / config["return_scale"]
    states, mean, std = data["observations"], np.zeros(0, np.float32), np.zeros(0, np.float32)
    if not config["pixels"]:
        mean, std = known or (states.mean(0, dtype=np.float64).astype(np.float32), np.maximum(
            states.std(0, dtype=np.float64) + 1e-6, config["least_std"]).astype(np.float32))
        states = (states - mean) / std
    arrays = {
        "states": torch.from_numpy(states),
        "actions": torch.from_numpy(data["actions"]),
        "returns_to_go": torch.from_numpy(returns_to_go.astype(np.float32)[:, None]),
        "timesteps": torch.from_numpy(np.arange(len(rewards)) - np.repeat(starts, lengths)),
    }
    return arrays, torch.from_numpy(np.repeat(ends, lengths)), mean, std


def sample_batch(arrays, episode_ends, rng, batch_size, context):
    """Windows that start at uniformly drawn rows: in an episode drawn by its length, anywhere."""
    return windows(arrays, episode_ends, rng.integers(0, len(episode_ends), batch_size), context)


def windows(arrays, episode_ends, starts, context):
    """Windows of `context` steps from rows (B,), padded on the right where their episode ends first.

    Returns {name: (B, K, ...)} and attention_mask (B, K), 0 at padding. The authors pad trajectories
    without position embeddings on the left, which is the same function, and Atari's on the right.
    """
    start = torch.from_numpy(starts)[:, None]                                      # (B, 1)
    rows = start + torch.arange(context)                                           # (B, K)
    mask = rows < episode_ends[start]
    rows = torch.minimum(rows, episode_ends[start] - 1)
    batch = {name: array[rows] for name, array in arrays.items() if name != "states"}
    if arrays["states"].ndim == 3:  # (N, 84, 84): the last four frames, an episode's first one repeated
        back = torch.minimum(batch["timesteps"][..., None], torch.tensor([3, 2, 1, 0]))
        rows = rows[..., None] - back                                              # (B, K, 4)
    return batch | {"states": arrays["states"][rows]}, mask


def text_batch(tokens, step, config):
    """Language-loss batch of a step: (lm_batch_size, lm_block) ids, every block once an epoch."""
    block, count = config["lm_block"], config["lm_batch_size"]
    blocks = len(tokens) // block
    epoch, position = divmod(step * count, blocks - blocks % count)
    order = np.random.default_rng([config["seed"], epoch, 2]).permutation(blocks)
    chosen = order[position:position + count]
    return torch.from_numpy(np.stack([tokens[i * block:(i + 1) * block] for i in chosen]).astype(np.int64))


# --- the step ----------------------------------------------------------------------------------

def trainable(model):
    """The tensors that train, by name: all that a checkpoint holds."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def make_optimizer(model, config):
    """AdamW, one learning rate, as the released code does in effect (its group for the language
    model selects nothing: utils.py). Unlike it, biases, LayerNorm and the time table do not decay."""
    decay, rest = [], []
    for name, p in trainable(model).items():
        spared = p.dim() < 2 or "embed_timestep" in name
        (rest if spared else decay).append(p)
    return torch.optim.AdamW([{"params": decay, "weight_decay": config["weight_decay"]},
                              {"params": rest, "weight_decay": 0.0}],
                             lr=config["lr"], betas=(0.9, 0.999), eps=config["adam_eps"])


def learning_rate(config, step, acting):
    """Linear warm-up, then by `schedule`: constant as in experiment-d4rl, or a cosine down to a tenth.

    What experiment-atari does instead, for lamo-released (core.py:43, 170-171): it adds the running total
    of tokens to itself at every step, so progress grows with the square of the step, and the cosine, meant
    for 260e9 tokens, swings up and down ever faster after step 11,600. `acting`, the share of actions
    other than no-op, is of the whole dataset here, of each batch there.
    """
    lr = config["lr"] * min((step + 1) / max(config["warmup"], 1), 1.0)
    if config["released"] and config["pixels"]:
        tokens = acting * config["batch_size"] * config["context"] * step * (step + 1) / 2
        progress = (tokens - 375e6) / (260e9 - 375e6)
        lr = config["lr"] * (tokens / 375e6 if progress < 0 else
                             max(0.1, 0.5 * (1 + math.cos(math.pi * progress))))
    elif config["schedule"] == "cosine":
        progress = max(0, step + 1 - config["warmup"]) / max(1, config["steps"] - config["warmup"])
        lr *= max(0.1, 0.5 * (1 + math.cos(math.pi * progress)))
    return lr


def training_step(model, optimizer, config, batch, mask, ids=None):
    """One update from sample_batch's (batch, mask) and text ids (B, T) or None; returns what is logged.

    FloatingPointError, and no update, if the loss or its gradient is not finite.
    """
    loss_of_actions = F.cross_entropy if config["discrete"] else F.mse_loss
    optimizer.zero_grad(set_to_none=True)
    predicted = model(**batch, attention_mask=mask)                            # (B, K, A)
    # The paper: loss = action_loss + lm_weight * language_loss. The gradient of a sum is the sum of the
    # gradients, which backward() adds up, so each term goes back as soon as it is known: one graph at a
    # time is in memory, 5.0 GB instead of 6.2 for GPT-2.
    action_loss = loss_of_actions(predicted[mask], batch["actions"][mask])
    action_loss.backward()
    language_loss = torch.zeros_like(action_loss)
    if ids is not None:
        language_loss = model.language_loss(ids, positions=not config["released"])
        (config["lm_weight"] * language_loss).backward()
    loss = action_loss.item() + config["lm_weight"] * language_loss.item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss}")
    norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), config["grad_clip"]).item()
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient became {norm}")
    optimizer.step()
    return {"action_loss": action_loss.item(), "language_loss": language_loss.item(), "gradient_norm": norm}


# --- the loop, of sequence models and baselines alike -------------------------------------------

@signals.held()
def fit(record, weights, optimizers, update, saved, about, replace=False, fresh=False, events=False):
    """Train a run to its last step, from where an earlier call was killed, if it was.

    record      what config.json holds, see runs.make_record
    weights     {name: parameter} of all that changes; optimizers: those that change it
    update      (step, rng) -> {name: number} for train.csv; FloatingPointError if one is not finite
    saved       {name: parameter} that a checkpoint holds, enough to play
    about       what is printed at the start
    """
    run, steps = runs.run_of(record), record["steps"]
    folder = artifacts.run_folder(run)
    done, logged = runs.begin(folder, record, weights, optimizers, replace, fresh)
    if (folder / "final.safetensors").exists():
        print(f"{run}: is finished, with these settings; --fresh trains it again")
        return
    print(f"{run}: {f'resuming at step {done:,}' if done else 'training'}; {about}", flush=True)
    log = artifacts.Log(folder / "train.csv", events, **logged)
    state = runs.State(folder, weights, optimizers, record["state_every"])
    progress = Progress(f"{run}: training", done, steps, "step")
    for step in progress:
        log.add(runs.seeded(update, record, step))
        last, checkpoint = step + 1 == steps, (step + 1) % record["eval_every"] == 0
        if (step + 1) % record["log_every"] == 0 or checkpoint or last:
            row = log.row(step + 1)
            progress.note(**{name: value for name, value in row.items() if "loss" in name})
        if checkpoint and not last:
            log.save()
            artifacts.save_tensors(folder / f"step-{step + 1:07d}.safetensors", saved, run=run, step=step + 1)
        if not last and (checkpoint or state.due() or signals.asked()):
            log.save()
            state.save(step + 1, log)
            if signals.asked():
                signals.leave(f"the state of step {step + 1:,} is saved")
    log.save()
    saved = {name: tensor.detach().clone() for name, tensor in saved.items()}
    runs.seeded(update, record, steps)  # one more, which is not kept, says whether the last one diverged
    artifacts.save_tensors(folder / "final.safetensors", saved, run=run, step=steps)
    runs.remove_states(folder)
    losses = {name: value for name, value in log.rows[-1].items() if name.endswith(("_loss", "_term"))}
    print(f"{run}: done, " + ", ".join(f"{name} {log.rows[0].get(name, '')} -> {value}"
                                       for name, value in losses.items() if value != "0"))


# --- the stage ---------------------------------------------------------------------------------

def load_data(config):
    """The cell's dataset, checked against the environment's spaces."""
    path = artifacts.dataset_path(f"{config['profile']}/{config['cell']}")
    data, provenance = artifacts.load_dataset(path)
    found = data["observations"].shape[1:], data["actions"].shape[1:]
    wanted = (config["state_dim"][1:] if config["pixels"] else (config["state_dim"],),
              () if config["discrete"] else (config["action_dim"],))
    if found != wanted or config["discrete"] and data["actions"].max() >= config["action_dim"]:
        fail(f"{path} has states and actions of shape {found[0]} and {found[1]}, or actions that "
             f"{config['env']} does not have; its shapes are {wanted[0]} and {wanted[1]}; delete it and make "
             "it again")
    return data, provenance


def load_text(config):
    """(tokens, provenance) for the language loss; (None, None) at weight 0.

    The released code loads and runs a text batch even then (seq_trainer.py:45-51).
    """
    if config["lm_weight"] == 0:
        return None, None
    if config["lm"] is None:
        return None, None  # build_model says what is missing
    if config["train"] == "nothing":
        fail("nothing of the language model trains here, so a language loss moves nothing; leave out "
             "--lm_weight")
    path = artifacts.text_path(config["profile"], tokenizer_digest(config["lm"]))
    if not path.exists():
        fail(f"{path} is not there; make it with: python prepare_data.py {config['profile']}/text "
             f"--lm {config['lm']}")
    arrays, provenance = artifacts.load_arrays(path, ("tokens",))
    needed = config["lm_block"] * config["lm_batch_size"]
    if len(arrays["tokens"]) < needed:
        fail(f"{path} has {len(arrays['tokens']):,} tokens, a batch needs {needed:,}; give a longer TEXT=")
    # whichever language model it was that asked for this tokenizer's tokens first
    return arrays["tokens"], {name: value for name, value in provenance.items() if name != "lm"}


def parameter_counts(model):
    """Counts for the paper's "0.7 % of the parameters", which leaves embeddings and heads out."""
    trunk = list(model.trunk.parameters())
    return {"all": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in trainable(model).values()),
            "trunk": sum(p.numel() for p in trunk),
            "trunk_trainable": sum(p.numel() for p in trunk if p.requires_grad),
            "lora": sum(m.lora_A.numel() + m.lora_B.numel() for m in model.modules()
                        if isinstance(m, LoRA))}


def train(run, device="auto", replace=False, fresh=False, **overrides):
    config = settings.configuration(run, **overrides)
    if config["kind"] != "sequence":
        fail(f"{config['method']} learns from single transitions; train it with: python baselines.py {run}")
    device = pick_device(device)
    config["dtype"] = pick_dtype(config["dtype"], device)
    data, provenance = load_data(config)
    arrays, episode_ends, mean, std = training_arrays(data, config)
    acting = float((data["actions"] > 0).mean())
    del data  # the arrays hold what is needed of it, once
    tokens, text = load_text(config)
    torch.manual_seed(config["seed"])
    model = build_model(config)
    if tokens is not None:
        check_words(model.trunk, tokens, config["lm"])
    counts = parameter_counts(model)
    record = runs.make_record(config, provenance, mean, std, device, model, parameters=counts, text=text,
                         lm_id=language_model_id(config, model.trunk), inputs=input_digests(config))
    optimizer = make_optimizer(model.to(device).train(), config)

    def update(step, rng):
        batch, mask = sample_batch(arrays, episode_ends, rng, config["batch_size"], config["context"])
        batch, mask = {name: x.to(device) for name, x in batch.items()}, mask.to(device)
        lr = learning_rate(config, step, acting)
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids = text_batch(tokens, step, config).to(device) if config["lm_weight"] > 0 else None
        return training_step(model, optimizer, config, batch, mask, ids) | {"lr": lr}

    about = (f"trains {counts['trainable']:,} of {counts['all']:,} parameters "
             f"({100 * counts['trainable'] / counts['all']:.1f} %; in the trunk "
             f"{100 * counts['trunk_trainable'] / counts['trunk']:.2f} %), on {device}")
    fit(record, trainable(model), [optimizer], update, trainable(model), about, replace, fresh,
        overrides.get("tensorboard"))


if __name__ == "__main__":
    train(**vars(ARGS))
