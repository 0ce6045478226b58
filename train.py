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

import csv
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import tasks

OPTIONS = tasks.options(__doc__)

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
    """train.csv: each row averages what was added since the last one."""

    def __init__(self, path, done):
        self.path, self.rows, self.seen = path, [], []
        if done and path.exists():  # a resumed run keeps the rows up to its checkpoint
            with open(path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) <= done]

    def add(self, values):
        self.seen.append(values)

    def row(self, step, **now):
        names = dict.fromkeys(name for values in self.seen for name in values)
        means = {name: np.mean([values[name] for values in self.seen if name in values]) for name in names}
        self.rows.append({"step": step, **{name: f"{mean:.6g}" for name, mean in (means | now).items()}})
        self.seen = []

    def save(self):
        columns = dict.fromkeys(name for row in self.rows for name in row)
        write_csv(self.path, tuple(columns), self.rows)


# --- the stage ---------------------------------------------------------------------------------

def pick_device(wanted):
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(wanted, device):
    """bfloat16 on GPUs that have it and on CPUs with matrix units for it (AMX); elsewhere it is slower."""
    if wanted != "auto":
        return wanted
    fast = (torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else
            device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False))
    return "bfloat16" if fast else "float32"


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


def start_run(config):
    """(name, folder) of a run; the folder is there, without leftovers of a write that was killed."""
    run = f"{config['profile']}/{config['cell']}/{config['method']}/seed{config['seed']}"
    folder = RUNS / run
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.part*"):
        leftover.unlink()
    return run, folder


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam and AdamW remember of a parameter


def resume(folder, record, tensors, optimizers):
    """Write config.json, and load state.safetensors into {name: tensor} and the optimisers if it belongs
    to this configuration; returns the steps done."""
    path, done = folder / "state.safetensors", 0
    if path.exists() and load_config(folder) | {"code": ""} == record | {"code": ""}:
        state, metadata = load_tensors(path)
        done = int(metadata["step"])
        optimized = {id(p): optimizer for optimizer in optimizers
                     for group in optimizer.param_groups for p in group["params"]}
        for name, tensor in tensors.items():
            tensor.data.copy_(state[f"weight/{name}"])
            if f"step/{name}" in state:
                optimized[id(tensor)].state[tensor] = {
                    moment: state[f"{moment}/{name}"].to(tensor.device) for moment in MOMENTS}
    else:
        for stale in [*folder.glob("*.safetensors"), *folder.glob("*.csv")]:
            stale.unlink()
    write_whole(folder / "config.json",
                lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))
    return done


def save_state(folder, step, tensors, optimizers):
    state = {f"weight/{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for optimizer in optimizers:
            if tensor in optimizer.state:  # one without a gradient has no moments
                state |= {f"{moment}/{name}": optimizer.state[tensor][moment] for moment in MOMENTS}
    save_tensors(folder / "state.safetensors", state, step=step)


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
    if config["train"] == "nothing":
        sys.exit("train: a language loss moves nothing where nothing of the language model trains; "
                 "leave out --lm_weight")
    path = Path("data") / config["profile"] / f"text-{Path(config['lm']).name}.npz"
    arrays, provenance = load_arrays(path, ("tokens",))
    needed = config["lm_block"] * config["lm_batch_size"]
    if len(arrays["tokens"]) < needed:
        sys.exit(f"train: {path} has {len(arrays['tokens']):,} tokens, a batch needs {needed:,}; "
                 "give a longer TEXT=")
    return arrays["tokens"], provenance


def make_record(config, data, mean, std, device, parameters, lm_id="none", text=None):
    """What config.json holds: all that a number of this run can be traced to."""
    record = config | {
        "lm_id": lm_id, "data": data["data"], "data_episodes": data["episodes"],
        "data_return_mean": data["return_mean"], "reference_min": data["reference_min"],
        "reference_max": data["reference_max"], "text": text, "state_mean": mean.tolist(),
        "state_std": std.tolist(), "parameters": parameters, "code": code_version(),
        "torch": torch.__version__, "numpy": np.__version__, "device": str(device),
        "threads": torch.get_num_threads()}
    return json.loads(json.dumps(record))  # as it will be read back: tuples become lists


def training_step(model, optimizer, config, batch, mask, ids=None):
    """One update from sample_batch's (batch, mask) and text ids (B, T) or None; returns what is logged.

    FloatingPointError, and no update, if the loss is not finite.
    """
    loss_of_actions = F.cross_entropy if config["suite"] == "atari" else F.mse_loss
    optimizer.zero_grad(set_to_none=True)
    predicted = model(**batch, attention_mask=mask)                            # (B, K, A)
    action_loss = loss_of_actions(predicted[mask], batch["actions"][mask])
    # Each term's gradient is added as soon as the term is known, so that one graph at a time is in memory:
    # 5.0 GB instead of 6.2 for GPT-2.
    action_loss.backward()
    language_loss = torch.zeros_like(action_loss)
    if ids is not None:
        language_loss = model.language_loss(ids, config["lm_positions"])
        (config["lm_weight"] * language_loss).backward()
    loss = action_loss + config["lm_weight"] * language_loss
    if not math.isfinite(loss.item()):
        raise FloatingPointError(loss.item())
    norm = torch.nn.utils.clip_grad_norm_(trainable(model).values(), config["grad_clip"])
    optimizer.step()
    return {"action_loss": action_loss.item(), "language_loss": language_loss.item(),
            "gradient_norm": norm.item()}


def train(run, device, **overrides):
    config = tasks.configuration(run, **overrides)
    if "update" in config:
        sys.exit(f"train: {config['method']} learns from single transitions; train it with: "
                 f"python baselines.py {run}")
    run, folder = start_run(config)
    device = pick_device(device)
    config["dtype"] = pick_dtype(config["dtype"], device)

    data, provenance = load_data(config)
    arrays, episode_ends, mean, std = training_arrays(data, config)
    acting = float((data["actions"] > 0).mean())
    del data  # the arrays hold what is needed of it, once
    tokens, text = load_text(config)
    torch.manual_seed(config["seed"])
    model = build_model(config).to(device)
    optimizer = make_optimizer(model, config)
    counts = parameter_counts(model)
    record = make_record(config, provenance, mean, std, device, counts,
                         language_model_id(config, model.trunk), text)
    done = resume(folder, record, trainable(model), [optimizer])
    print(f"{run}: {f'resuming at step {done:,}' if done else 'training'}; trains "
          f"{counts['trainable']:,} of {counts['all']:,} parameters "
          f"({100 * counts['trainable'] / counts['all']:.1f} %; in the trunk "
          f"{100 * counts['trunk_trainable'] / counts['trunk']:.2f} %), on {device}", flush=True)

    log = Log(folder / "train.csv", done)
    model.train()
    bar = tqdm(range(done, config["steps"]), initial=done, total=config["steps"], disable=None,
               desc=config["method"], unit="step")
    for step in bar:
        torch.manual_seed(int(np.random.SeedSequence([config["seed"], step]).generate_state(1)[0]))
        rng = np.random.default_rng([config["seed"], step])
        batch, mask = sample_batch(arrays, episode_ends, rng, config["batch_size"], config["context"])
        batch, mask = {name: x.to(device) for name, x in batch.items()}, mask.to(device)

        lr = learning_rate(config, step, acting)
        for group in optimizer.param_groups:
            group["lr"] = lr
        ids = text_batch(tokens, step, config).to(device) if config["lm_weight"] > 0 else None
        try:
            log.add(training_step(model, optimizer, config, batch, mask, ids))
        except FloatingPointError as error:
            sys.exit(f"train: the loss of {run} became {error} at step {step + 1}; nothing of this step was "
                     "kept; lower --lr or look at the data")

        last = step + 1 == config["steps"]
        checkpoint = (step + 1) % config["eval_every"] == 0
        if (step + 1) % config["log_every"] == 0 or checkpoint or last:
            log.row(step + 1, lr=lr)
            bar.set_postfix(action_loss=log.rows[-1]["action_loss"])
        if checkpoint and not last:
            log.save()
            save_tensors(folder / f"step-{step + 1:07d}.safetensors", trainable(model), run=run,
                         step=step + 1)
            save_state(folder, step + 1, trainable(model), [optimizer])
    log.save()
    save_tensors(folder / "final.safetensors", trainable(model), run=run, step=config["steps"])
    (folder / "state.safetensors").unlink(missing_ok=True)
    print(f"{run}: done, action loss {log.rows[0]['action_loss']} -> {log.rows[-1]['action_loss']}")


if __name__ == "__main__":
    train(**vars(ARGS))
