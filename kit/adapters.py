"""LoRA in the format of the peft library: adapter_config.json and adapter_model.safetensors.

    export_peft(model, "adapter/", base)      # export.py is the command for it
    import_peft(model, "adapter/")            # --adapter adapter/ starts a training from it

Letters: R rank, as in lora.py.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from kit import fail, limits, seals
from kit.artifacts import first_words, write_whole
from lora import TARGETS, LoRA


def export_peft(model: nn.Module, folder, base: nn.Module, name: str = "") -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `peft` loads onto the LM.

    base    the LM as it was before training; name: what peft shall call it
    Three pairs of rank R are one of rank 3 R whose B is block-diagonal, and whose alpha is three times as
    large. peft knows no trained bias of a frozen layer: B gets one, of the difference.
    """
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoRA)}
    first = next(iter(layers.values()))
    moved = {path: layer.base.bias - base.get_submodule(path).bias for path, layer in layers.items()
             if layer.base.bias is not None}
    biases = any(difference.any() for difference in moved.values())  # Atari's stay frozen
    tensors = {}
    for path, layer in layers.items():
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = layer.lora_A
        tensors[f"{key}.lora_B.weight"] = layer.wide_B()
        if biases:
            tensors[f"{key}.lora_B.bias"] = moved[path] / layer.scale
    rank = first.lora_A.shape[0]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": name, "r": rank,
              "lora_alpha": first.scale * rank, "lora_dropout": first.dropout.p, "bias": "none",
              "lora_bias": biases, "fan_in_fan_out": first.transposed, "inference_mode": True,
              "target_modules": sorted({path.rpartition(".")[2] for path in layers})}
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    write_whole(Path(folder) / "adapter_model.safetensors", lambda part: save_file(tensors, part))
    text = json.dumps(config, indent=1) + "\n"
    write_whole(Path(folder) / "adapter_config.json", lambda part: part.write_text(text))
    seals.write_list(folder, ("adapter_config.json", "adapter_model.safetensors"))


@torch.no_grad()
def import_peft(model: nn.Module, folder) -> None:
    """Load an adapter in peft's format into the LoRA layers that add_lora made; one line and exit if it
    is none, or does not fit. Fits: an adapter of their own rank R, as peft trains them (q, k and v then
    start from the same A), and one of rank 3 R that export_peft wrote. Layers that the adapter leaves out,
    as peft does the Llama family's k_proj unless told otherwise, stay as add_lora made them."""
    tensors, rank, scale = read_peft(folder)
    found = False
    for path, layer in model.named_modules():
        if isinstance(layer, LoRA):
            A, B, bias = (tensors.pop(f"base_model.model.{path}.lora_{part}", None)
                          for part in ("A.weight", "B.weight", "B.bias"))
            if (A is None) != (B is None):
                refuse(folder, f"has half of a pair for {path}; it is damaged")
            if A is not None:
                fill(layer, path, folder, A, B, rank)
                layer.lora_B *= scale / layer.scale
                found = True
            if bias is not None and not getattr(layer.base.bias, "requires_grad", False):
                refuse(folder, "has biases, which stay frozen in this model; train the adapter without")
            if bias is not None and bias.shape != layer.base.bias.shape:
                refuse(folder, f"has a bias of shape {tuple(bias.shape)} for {path}")
            if bias is not None:
                layer.base.bias += scale * bias
    if not found:
        refuse(folder, "adapts no layer of this language model; pass the one it was trained on with --lm, or "
               "another adapter")
    if tensors:
        refuse(folder, f"also adapts {next(iter(tensors))}, which this LoRA does not; train it with "
               f"target_modules of {', '.join(TARGETS)} alone")


def read_peft(folder):
    """(tensors, rank, scale) of an adapter's two files."""
    try:
        limits.adapter_folder(folder)
        seals.check_list(folder)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        rank, alpha = config["r"], config["lora_alpha"]
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not 0 < alpha < math.inf:
            raise ValueError(f"r is {rank} and lora_alpha {alpha}; both have to be numbers above 0")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("its tensors are not finite")
    except Exception as error:  # OSError, ValueError, KeyError, safetensors' own
        refuse(folder, f"is not readable ({first_words(error)}); it needs adapter_config.json and "
               "adapter_model.safetensors")
    for setting in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(setting):
            refuse(folder, f"has {setting}, which this LoRA does not know; train it without")
    return tensors, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def fill(layer, path, folder, A, B, rank):
    """Copy an adapter's A (rank, I) and B (O, rank) into a LoRA layer."""
    R = layer.lora_B.shape[1]
    if A.dim() != 2 or B.dim() != 2 or not rank == A.shape[0] == B.shape[1]:
        refuse(folder, f"has an A of shape {tuple(A.shape)} and a B of shape {tuple(B.shape)} for {path}, "
               f"and rank {rank}; it is damaged")
    if A.shape[1] != layer.lora_A.shape[1] or B.shape[0] != layer.lora_B.shape[0]:
        refuse(folder, f"is of another language model: its {path} is {A.shape[1]} to {B.shape[0]} wide")
    if rank == R:
        layer.lora_A.copy_(A.repeat(layer.groups, 1))
        layer.lora_B.copy_(layer.group_order(B))
    elif rank == layer.groups * R:
        layer.lora_A.copy_(A)
        blocks = layer.group_order(B).chunk(layer.groups)
        layer.lora_B.copy_(torch.cat([block[:, g * R:(g + 1) * R] for g, block in enumerate(blocks)]))
        if not torch.equal(layer.wide_B(), B):
            refuse(folder, f"mixes q, k and v in rank {rank}; import it with --lora_rank {rank}")
    else:
        refuse(folder, f"has rank {rank}; import it with --lora_rank {rank}")


def refuse(folder, what):
    fail(f"the adapter in {folder} {what}")
