"""Stage 2: train one run.

    python train.py mini/hopper-medium-0.01/lamo/seed0
    python train.py paper/hopper-medium-0.01/lamo/seed0 --lm /models/gpt2 --device cuda
    python train.py mini/hopper-medium-0.01/lamo/seed0 --lm_weight 0.1 --steps 50

reads   data/PROFILE/CELL.npz, the language model, and data/PROFILE/text-LM.npz if lm_weight > 0
writes  runs/PROFILE/CELL/METHOD/seedN/
            config.json             the whole configuration, data and LM by digest, state mean and
                                    standard deviation, parameter counts, versions
            train.csv               step, losses, learning rate, gradient norm
            step-N.safetensors      what trains, every eval_every steps
            final.safetensors       the same after the last step; exists only when training is done
            state.safetensors       what a killed run resumes from; removed at the end

The run's name determines every setting (tasks.py); each can be overridden on the command line, and
config.json says so. Batches and dropout depend on (seed, step) alone, so a resumed run writes the
same bytes as one that was never killed, and equal seeds give equal bytes on the same machine with
the same number of threads.
"""

import argparse
import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import tasks

OPTIONS = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
OPTIONS.add_argument("run", help="PROFILE/CELL/METHOD/seedN")
OPTIONS.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
for _name, _value in tasks.DEFAULTS.items():
    if isinstance(_value, bool):
        OPTIONS.add_argument(f"--{_name}", action=argparse.BooleanOptionalAction)
    else:
        OPTIONS.add_argument(f"--{_name}", type=type(_value), choices=tasks.CHOICES.get(_name),
                             **({} if _name in tasks.CHOICES else {"metavar": str(_value)}))

if __name__ == "__main__":
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds, so --help does not

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lora import LoRA  # noqa: E402
from model import build_model, language_model_id  # noqa: E402
from prepare_data import load_arrays, load_dataset, write_csv, write_whole  # noqa: E402

RUNS = Path("runs")


# --- batches -----------------------------------------------------------------------------------

def training_arrays(data, config):
    """The dataset as tensors that a batch is gathered from, N rows each, and (mean, std) of states.

    returns_to_go[t] is the sum of rewards from t to the episode's end, t included, over
    return_scale: computed once here instead of once a sample (authors: experiment.py:103-233).
    Frames stay single bytes, each once; sample_batch stacks four of them.
    """
    starts, ends = data["offsets"][:-1], data["offsets"][1:]
    lengths = ends - starts
    rewards = data["dataset_rewards" if config["kitchen_reward"] == "dataset" else "rewards"]
    # sum from t to the end of everything, less the sum of all that follows the episode
    following = np.append(np.cumsum(rewards[::-1].astype(np.float64))[::-1], 0.0)
    returns_to_go = (following[:-1] - np.repeat(following[ends], lengths)) / config["return_scale"]
    if config["returns"] == "exclusive":  # buffer.py:26, though its evaluation counts the step's reward
        returns_to_go -= rewards / config["return_scale"]
    states, mean, std = data["observations"], np.zeros(0, np.float32), np.zeros(0, np.float32)
    if config["suite"] != "atari":
        mean = states.mean(0, dtype=np.float64).astype(np.float32)
        std = (states.std(0, dtype=np.float64) + 1e-6).astype(np.float32)
        states = (states - mean) / std
    arrays = {
        "states": torch.from_numpy(states),
        "actions": torch.from_numpy(data["actions"]),
        "returns_to_go": torch.from_numpy(returns_to_go.astype(np.float32)[:, None]),
        "timesteps": torch.from_numpy(np.arange(len(rewards)) - np.repeat(starts, lengths)),
    }
    return arrays, torch.from_numpy(np.repeat(ends, lengths)), mean, std


def sample_batch(arrays, episode_ends, rng, batch_size, context):
    """Windows of `context` steps, padded on the right where their episode ends first.

    A start drawn uniformly from all rows is an episode drawn by its length and a uniform start in it.
    Returns {name: (B, K, ...)} and attention_mask (B, K), 0 at padding. The authors pad trajectories
    without position embeddings on the left, which is the same function, and Atari's on the right.
    """
    start = torch.from_numpy(rng.integers(0, len(episode_ends), batch_size))[:, None]  # (B, 1)
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


# --- files of a run ----------------------------------------------------------------------------

def payload_digest(tensors):
    """SHA-256 over names, shapes and bytes: safetensors itself has no checksum of its payload."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def save_tensors(path, tensors, **metadata):
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata["sha256"] = payload_digest(tensors)
    # one key, because safetensors writes several in an order that changes from process to process
    write_whole(path, lambda part: save_file(tensors, part, {"lamo": json.dumps(metadata)}))


def load_tensors(path):
    """(tensors, metadata) of a file save_tensors wrote; one line and exit if it is damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads(file.metadata()["lamo"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if metadata["sha256"] != payload_digest(tensors):
            raise ValueError("its SHA-256 does not match its content")
    except Exception as error:  # safetensors' own error, OSError, KeyError and the line above
        sys.exit(f"train: {path} is damaged ({error}); delete the folder and train again")
    return tensors, metadata


def load_config(folder):
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"train: {folder}/config.json is not readable ({error}); train the run again: "
                 f"python train.py {folder.relative_to(RUNS)}")


def trainable(model):
    """The tensors that train, by name: all that a checkpoint holds."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_counts(model):
    """Counts for the paper's "0.7 % of the parameters", which leaves embeddings and heads out."""
    trunk = list(model.trunk.parameters())
    return {"all": sum(p.numel() for p in model.parameters()),
            "trainable": sum(p.numel() for p in trainable(model).values()),
            "trunk": sum(p.numel() for p in trunk),
            "trunk_trainable": sum(p.numel() for p in trunk if p.requires_grad),
            "lora": sum(m.lora_A.numel() + m.lora_B.numel() for m in model.modules()
                        if isinstance(m, LoRA))}


def code_version():
    """The commit, with -dirty if files differ from it; "unknown" outside a git checkout."""
    result = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"],
                            cwd=Path(__file__).parent, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


class Log:
    """train.csv: each row averages the steps since the last one."""

    columns = ("step", "action_loss", "language_loss", "lr", "gradient_norm")

    def __init__(self, path, done):
        self.path, self.rows, self.seen = path, [], []
        if done and path.exists():  # a resumed run keeps the rows up to its checkpoint
            with open(path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]

    def add(self, *values):
        self.seen.append(values)

    def row(self, step, lr):
        action, language, norm = np.mean(self.seen, axis=0)
        self.seen = []
        self.rows.append({"step": step, "action_loss": f"{action:.6f}", "language_loss": f"{language:.6f}",
                          "lr": f"{lr:.3g}", "gradient_norm": f"{norm:.5f}"})

    def save(self):
        write_csv(self.path, self.columns, self.rows)


# --- the stage ---------------------------------------------------------------------------------

def pick_device(wanted):
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def make_optimizer(model, config):
    """AdamW, one learning rate, as the released code does in effect (its group for the language
    model selects nothing: utils.py). Unlike it, biases, LayerNorm and tables do not decay."""
    decay, rest = [], []
    for name, p in trainable(model).items():
        table = p.dim() < 2 or "embed_timestep" in name
        (rest if table else decay).append(p)
    return torch.optim.AdamW([{"params": decay, "weight_decay": config["weight_decay"]},
                              {"params": rest, "weight_decay": 0.0}],
                             lr=config["lr"], betas=(0.9, 0.999), eps=config["adam_eps"])


def learning_rate(config, step, acting):
    """Linear warm-up, then by `schedule`:

    constant   as in experiment-d4rl
    cosine     down to a tenth at the last step
    tokens     what experiment-atari does (core.py:43, 170-171): it adds the running total of tokens to
               itself at every step, so progress grows with the square of the step, and the cosine, meant
               for 260e9 tokens, swings up and down ever faster after step 11,600. `acting`, the share
               of actions other than no-op, is of the whole dataset here, of each batch there.
    """
    lr = config["lr"] * min((step + 1) / max(config["warmup"], 1), 1.0)
    if config["schedule"] == "cosine":
        progress = max(0, step + 1 - config["warmup"]) / max(1, config["steps"] - config["warmup"])
        lr *= max(0.1, 0.5 * (1 + math.cos(math.pi * progress)))
    elif config["schedule"] == "tokens":
        tokens = acting * config["batch_size"] * config["context"] * (step + 1) * (step + 2) / 2
        progress = (tokens - 375e6) / (260e9 - 375e6)
        lr = config["lr"] * (tokens / 375e6 if progress < 0 else
                             max(0.1, 0.5 * (1 + math.cos(math.pi * progress))))
    return lr


def resume(folder, record, model, optimizer):
    """Load state.safetensors if it belongs to this configuration; returns the steps done."""
    path = folder / "state.safetensors"
    same = path.exists() and load_config(folder) | {"code": ""} == record | {"code": ""}
    if not same:
        for stale in [*folder.glob("*.safetensors"), *folder.glob("*.csv")]:
            stale.unlink()
        return 0
    state, metadata = load_tensors(path)
    for name, p in trainable(model).items():
        p.data.copy_(state[f"weight/{name}"])
        optimizer.state[p] = {"step": torch.tensor(float(metadata["step"])),
                              "exp_avg": state[f"exp_avg/{name}"].to(p.device),
                              "exp_avg_sq": state[f"exp_avg_sq/{name}"].to(p.device)}
    return int(metadata["step"])


def save_state(folder, step, model, optimizer):
    tensors = {}
    for name, p in trainable(model).items():
        moments = optimizer.state.get(p, {})
        zeros = torch.zeros_like(p)  # a parameter without a gradient has no moments yet
        tensors |= {f"weight/{name}": p, f"exp_avg/{name}": moments.get("exp_avg", zeros),
                    f"exp_avg_sq/{name}": moments.get("exp_avg_sq", zeros)}
    save_tensors(folder / "state.safetensors", tensors, step=step)


def load_data(config):
    """The cell's dataset, checked against the environment's spaces."""
    path = Path("data") / config["profile"] / f"{config['cell']}.npz"
    data, provenance = load_dataset(path)
    atari = config["suite"] == "atari"
    found = data["observations"].shape[1:], data["actions"].shape[1:]
    wanted = ((84, 84), ()) if atari else ((config["state_dim"],), (config["action_dim"],))
    if found != wanted or atari and data["actions"].max() >= config["action_dim"]:
        sys.exit(f"train: {path} has states and actions of shape {found[0]} and {found[1]}, or actions that "
                 f"{config['env']} does not have; its shapes are {wanted[0]} and {wanted[1]}; "
                 "delete it and make it again")
    if config["kitchen_reward"] == "dataset" and "dataset_rewards" not in data:
        sys.exit(f"train: {path} holds no second kind of rewards; --kitchen_reward is for the kitchen")
    return data, provenance


def load_text(config):
    """(tokens, provenance) for the language loss; (None, None) at weight 0.

    The released code loads and runs a text batch even then (seq_trainer.py:45-51).
    """
    if config["lm_weight"] == 0:
        return None, None
    path = Path("data") / config["profile"] / f"text-{Path(config['lm']).name}.npz"
    arrays, provenance = load_arrays(path, ("tokens",))
    needed = config["lm_block"] * config["lm_batch_size"]
    if len(arrays["tokens"]) < needed:
        sys.exit(f"train: {path} has {len(arrays['tokens']):,} tokens, a batch needs {needed:,}; "
                 "give a longer TEXT=")
    return arrays["tokens"], provenance


def make_record(config, model, data, text, mean, std, device):
    """What config.json holds: all that a number of this run can be traced to."""
    record = config | {
        "lm_id": language_model_id(config["lm"], model.trunk) if config["lm"] else "none",
        "data": data["data"], "data_episodes": data["episodes"], "data_return_mean": data["return_mean"],
        "reference_min": data["reference_min"], "reference_max": data["reference_max"], "text": text,
        "state_mean": mean.tolist(), "state_std": std.tolist(), "parameters": parameter_counts(model),
        "code": code_version(), "torch": torch.__version__, "numpy": np.__version__,
        "device": str(device), "threads": torch.get_num_threads()}
    return json.loads(json.dumps(record))  # as it will be read back: tuples become lists


def train(run, device, **overrides):
    config = tasks.configuration(run, **overrides)
    run = f"{config['profile']}/{config['cell']}/{config['method']}/seed{config['seed']}"
    folder = RUNS / run
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part*"):  # of a write that was killed
        leftover.unlink()
    device = pick_device(device)

    data, provenance = load_data(config)
    arrays, episode_ends, mean, std = training_arrays(data, config)
    tokens, text = load_text(config)
    torch.manual_seed(config["seed"])
    model = build_model(config).to(device)
    optimizer = make_optimizer(model, config)
    record = make_record(config, model, provenance, text, mean, std, device)
    done = resume(folder, record, model, optimizer)
    write_whole(folder / "config.json",
                lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))
    counts = record["parameters"]
    print(f"{run}: {f'resuming at step {done:,}' if done else 'training'}; trains "
          f"{counts['trainable']:,} of {counts['all']:,} parameters "
          f"({100 * counts['trainable'] / counts['all']:.1f} %; in the trunk "
          f"{100 * counts['trunk_trainable'] / counts['trunk']:.2f} %), on {device}", flush=True)

    log = Log(folder / "train.csv", done)
    loss_of_actions = F.cross_entropy if config["suite"] == "atari" else F.mse_loss
    acting = float((data["actions"] > 0).mean())
    model.train()
    bar = tqdm(range(done, config["steps"]), initial=done, total=config["steps"], disable=None,
               desc=config["method"], unit="step")
    for step in bar:
        torch.manual_seed(int(np.random.SeedSequence([config["seed"], step]).generate_state(1)[0]))
        rng = np.random.default_rng([config["seed"], step])
        batch, mask = sample_batch(arrays, episode_ends, rng, config["batch_size"], config["context"])
        batch, mask = {name: x.to(device) for name, x in batch.items()}, mask.to(device)

        predicted = model(**batch, attention_mask=mask)                        # (B, K, A)
        action_loss = loss_of_actions(predicted[mask], batch["actions"][mask])
        language_loss = torch.zeros((), device=device)
        if config["lm_weight"] > 0:
            ids = text_batch(tokens, step, config).to(device)
            language_loss = model.language_loss(ids, config["lm_positions"])
        loss = action_loss + config["lm_weight"] * language_loss
        if not math.isfinite(loss.item()):
            sys.exit(f"train: the loss of {run} became {loss.item()} at step {step + 1}; nothing of this "
                     "step was kept; lower --lr or look at the data")

        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), config["grad_clip"])
        lr = learning_rate(config, step, acting)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()

        log.add(action_loss.item(), language_loss.item(), norm.item())
        last = step + 1 == config["steps"]
        checkpoint = (step + 1) % config["eval_every"] == 0
        if (step + 1) % config["log_every"] == 0 or checkpoint or last:
            log.row(step + 1, lr)
            bar.set_postfix(action_loss=log.rows[-1]["action_loss"])
        if checkpoint and not last:
            log.save()
            save_tensors(folder / f"step-{step + 1:07d}.safetensors", trainable(model), run=run,
                         step=step + 1)
            save_state(folder, step + 1, model, optimizer)
    log.save()
    save_tensors(folder / "final.safetensors", trainable(model), run=run, step=config["steps"])
    (folder / "state.safetensors").unlink(missing_ok=True)
    print(f"{run}: done, action loss {log.rows[0]['action_loss']} -> {log.rows[-1]['action_loss']}")


if __name__ == "__main__":
    train(**vars(ARGS))
