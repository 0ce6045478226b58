"""The same functions, computed with less: what `quicken` puts into a DecisionTransformer.

    quicken(model)      called by build_model; without it the model computes the same, more slowly

docs/speed.md has what each of them saves.
Letters: B batch, T tokens, H hidden, V vocabulary.
"""

import os
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from kit import fail


def quicken(model: nn.Module) -> None:
    """Give a DecisionTransformer all of the below, in place."""
    AttentionInterface.register("lamo", attention)
    model.trunk.set_attn_implementation("lamo")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
    model.reading, model.word_loss = only_at, word_loss_in_parts


# --- where, and in which precision -------------------------------------------------------------

def pick_device(wanted):
    """A torch.device; one line and exit if it is not here."""
    # else cuDNN rounds the products of Atari's convolutions to TF32, in float32, too
    torch.backends.cudnn.allow_tf32 = False
    if wanted != "auto":
        device = torch.device(wanted)
        count = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}.get(
            device.type, torch.cuda.device_count() if torch.cuda.is_available() else 0)
        if (device.index or 0) >= count:
            fail(f"there is no device {wanted} here: {count} of its kind; --device auto takes what there is")
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if gpu := os.environ.get("LAMO_GPU"):  # of kit.watch
        fail(f"there is no GPU {gpu} here that torch can use; GPUS= says how many this machine has")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(wanted, device):
    """bfloat16 on GPUs that have it and on CPUs that multiply it (AMX, AVX512-BF16); else it is slower."""
    if wanted != "auto":
        return wanted
    fast = (torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else
            device.type == "cpu" and any(map(torch.cpu.get_capabilities().get, ("amx_bf16", "avx512_bf16"))))
    return "bfloat16" if fast else "float32"


# --- the last MLP, only where somebody reads ---------------------------------------------------

def last_mlp(trunk: nn.Module) -> nn.Module | None:
    """That of the last block; OPT's is in pieces."""
    base = trunk.base_model
    layers = getattr(base, "h", None) or getattr(base, "layers", None)
    return layers[-1].mlp if layers else None


@contextmanager
def only_at(trunk: nn.Module, read: slice, T: int):
    """The trunk's last MLP maps (B, T, H) to (B, T, H) at the tokens `read`, and the others to 0.

    That saves 4 % of a training step of GPT-2's 12 layers, 10 % of four layers.
    """
    def pick(_, inputs):
        return (inputs[0][:, read].contiguous(),)

    def put_back(_, inputs, output):
        whole = output.new_zeros(len(output), T, output.shape[2])
        whole[:, read] = output
        return whole

    mlp = last_mlp(trunk)
    if mlp is None:
        yield
    else:
        with mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(put_back):
            yield


# --- dropout -----------------------------------------------------------------------------------

def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """F.dropout. On a CPU torch draws a mask element by element on one thread, 8 % of a GPT-2 step in
    float32 and more in bfloat16; here one 64-bit draw serves four elements."""
    if x.device.type != "cpu":
        return F.dropout(x, p)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-2**63, None)
    bits = words.view(torch.int16)[:x.numel()].view(x.shape)
    # 1 / (1 - p) or 0, written as x's own type because products with booleans are slow
    return x * torch.ge(bits, round(p * 2**16) - 2**15, out=torch.empty_like(x)).mul_(1 / (1 - p))


class Dropout(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return drop(x, self.p) if self.training and self.p > 0 else x


# --- attention ---------------------------------------------------------------------------------

def attend(query, key, value, mask, p, scaling):
    weights = ((scaling * query) @ key.transpose(2, 3) + mask).softmax(-1)    # (B, heads, T, T)
    weights = weights.to(value.dtype)
    return (drop(weights, p) if p > 0 else weights) @ value


def attention(module, query, key, value, mask, dropout=0.0, scaling=None, **rest):
    """What transformers calls for (B, heads, T, H / heads). PyTorch's own on a GPU, and for long texts
    without dropout.

    On a CPU with dropout PyTorch keeps the (T, T) matrices of all layers, 5 GB for GPT-2 and 2 x 1,024
    tokens of text. Here they are made for 128 queries at a time, up to the last of them, and anew in the
    backward pass.
    A trajectory's 60 tokens are one such part: as fast as PyTorch's in float32, and five times as fast in
    bfloat16 where that was measured once, on a CPU with AMX.
    """
    T, rows = query.shape[2], 128
    if query.device.type != "cpu" or T > rows and dropout == 0:
        rest |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, mask, **rest)
    groups = query.shape[1] // key.shape[1]  # queries that share a key, in Llama's family
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if mask is None:
        mask = torch.full((1, 1, T, T), torch.finfo(query.dtype).min, dtype=query.dtype).triu(1)
    scaling, parts = scaling or query.shape[3] ** -0.5, []
    for end in range(rows, T + rows, rows):
        arguments = (query[:, :, end - rows:end], key[:, :, :end], value[:, :, :end],
                     mask[:, :, end - rows:end, :end], dropout, scaling)
        again = T > rows and torch.is_grad_enabled()
        parts.append(checkpoint(attend, *arguments, use_reentrant=False) if again else attend(*arguments))
    return torch.cat(parts, 2).transpose(1, 2), None                          # (B, T, heads, H / heads)


# --- words -------------------------------------------------------------------------------------

LOGITS = 2**24  # of a part


def word_loss_in_parts(head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of hidden states (T, H) against word ids (T,).

    2 x 1,023 logits of GPT-2's 50,257 words and their gradients take 1.6 GB: a part of them is made at a
    time, and anew in the backward pass.
    """
    def summed(hidden, targets):
        return F.cross_entropy(head(hidden).float(), targets, reduction="sum")

    rows = max(1, LOGITS // head.weight.shape[0])
    if len(targets) <= rows:
        return summed(hidden, targets) / len(targets)
    return sum(checkpoint(summed, *part, use_reentrant=False)
               for part in zip(hidden.split(rows), targets.split(rows), strict=True)) / len(targets)
