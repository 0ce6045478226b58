"""The rows that need a model. Each function prepares, and returns what rows.py says.

GPT-2 has its own shapes, random weights and the paper's dropout. A peer is the same DecisionTransformer
around stock transformers: not quickened but for the words' logits, with stock attention, and adapted by peft
or trained whole.
"""

import os
import tempfile
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from evaluate import merged, play
from kit.quick import pick_dtype, word_loss_in_parts
from kit.runs import code_version
from kit.settings import configuration
from model import DecisionTransformer, build_model
from train import make_optimizer, sample_batch, training_arrays, training_step

BATCH = 64  # windows of a step of all models, as in the paper; the mini profile takes 16
# which method of the kit has the settings that each GPT-2 is trained with
GPT2 = {"lamo": "lamo-mlp", "peft": "lamo-mlp", "wiki": "wiki", "stock": "wiki"}


def about(dtype, threads):
    """What every row says of the machine and the code."""
    has = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if has.get(name)]
    name = f"{has.get('cpu_name') or has.get('architecture', 'unknown')}, {os.cpu_count()} cores"
    return {"dtype": pick_dtype(dtype, torch.device("cpu")), "threads": threads, "torch": torch.__version__,
            "machine": ", ".join([name, *units[:1]]), "code": code_version()}


def build(kind, dtype):
    """(configuration, model): the kit's "mini" or "dt", or GPT-2 as the kit's "lamo" or "wiki", or as their
    peers "peft" and "stock"."""
    torch.manual_seed(0)
    if kind in ("mini", "dt"):
        method = {"mini": "lamo"}.get(kind, kind)
        config = configuration(f"mini/halfcheetah-medium-1/{method}/seed0", dtype=dtype, batch_size=BATCH)
        return config, build_model(config)
    config = configuration(f"paper/halfcheetah-medium-1/{GPT2[kind]}/seed0", dtype=dtype)
    shape = GPT2Config(**dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), config["dropout"]))
    trunk = GPT2LMHeadModel(shape)
    if kind in ("lamo", "wiki"):
        with tempfile.TemporaryDirectory() as folder:
            trunk.save_pretrained(folder)
            return config, build_model(config | {"lm": folder})
    if kind == "peft":
        import peft

        trunk = peft.get_peft_model(trunk, peft.LoraConfig(
            r=config["lora_rank"], lora_alpha=config["lora_alpha"], lora_dropout=config["dropout"],
            target_modules=["c_attn"], fan_in_fan_out=True)).base_model.model
    peer = DecisionTransformer(trunk, config["state_dim"], config["action_dim"], config["max_timestep"],
                               config["embeddings"])
    peer.word_loss = word_loss_in_parts  # 2 GB and seconds less: the peer is compared at its best
    return config, peer


def dataset(rows, config):
    """What train.py draws batches from, for `rows` random steps in episodes of 500."""
    rng = np.random.default_rng(0)
    data = {"observations": rng.standard_normal((rows, config["state_dim"]), np.float32),
            "actions": rng.uniform(-1, 1, (rows, config["action_dim"])).astype(np.float32),
            "rewards": rng.uniform(0, 3, rows).astype(np.float32), "offsets": np.arange(0, rows + 1, 500)}
    return training_arrays(data, config)[:2]


def training(dtype, kind, rows=10_000, text=False, steps=1, before=0):
    """Steps of train.py, after `before` others, each with the drawing of its batch."""
    config, model = build(kind, dtype)
    config["lm_weight"] = 0.1 if text else 0.0
    arrays, ends = dataset(rows, config)
    rng, optimizer = np.random.default_rng(0), make_optimizer(model.train(), config)
    ids = torch.from_numpy(rng.integers(0, 50_257, (2, 1024))) if text else None

    def repeat(count=steps):
        for _ in range(count):
            batch, mask = sample_batch(arrays, ends, rng, config["batch_size"], config["context"])
            training_step(model, optimizer, config, batch, mask, ids)

    repeat(before + steps)  # the first repeat allocates, and is not counted
    return repeat, steps


def sampling(dtype, rows):
    config = configuration("mini/halfcheetah-medium-1/dt/seed0", dtype=dtype, batch_size=BATCH)
    (arrays, ends), rng = dataset(rows, config), np.random.default_rng(0)

    def repeat():
        for _ in range(500):
            sample_batch(arrays, ends, rng, config["batch_size"], config["context"])

    repeat()
    return repeat, 500


class Clock:
    """Takes the place of evaluate.py's progress bar: when each lock-step of the environments ended."""

    def __init__(self):
        self.ends = []

    def advance(self, _):
        self.ends.append(time.perf_counter())


def playing(dtype, kind, episodes, before=0):
    """Lock-steps of evaluate.py on HalfCheetah, whose episodes do not end early, with a full context."""
    config, model = build(kind, dtype)
    model = merged(model.eval(), config)
    each = max(1, 20 // episodes)  # lock-steps that make one sample
    config |= {"episodes": episodes, "at_once": episodes, "target_returns": (6000.0,),
               "state_mean": [0.0] * 17, "state_std": [1.0] * 17, "horizon": config["context"] + 5 * each}

    def repeat():
        clock = Clock()
        play(model, config, torch.device("cpu"), clock)
        marks = clock.ends[config["context"] - 1::each]
        return [late - early for early, late in zip(marks, marks[1:], strict=False)]

    for _ in range(before):
        repeat()
    return repeat, -episodes * each


def product(dtype, kind):
    """What the machine's matrix units can do: the first product of GPT-2's MLP, in the type `kind`."""
    kind = getattr(torch, kind)
    a, b = torch.randn(3840, 768, dtype=kind), torch.randn(768, 3072, dtype=kind)

    def repeat():
        for _ in range(10):
            a @ b

    repeat()
    return repeat, -10 * 2 * 3840 * 768 * 3072 / 1e9
