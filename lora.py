"""LoRA by hand: y = x W + b + (alpha / R) * dropout(x) A^T B^T, with A and B of rank R (the paper's
section 3.2, loralib's MergedLinear as the authors use it in trajectory_gpt2_LoRA.py:184-204).

    add_lora(model, rank=16, alpha=32, dropout=0.1)    # wrap every attention projection
    train_only_lora(model)                             # freeze the rest of the model
    merge_lora(model)                                  # fold A and B into the weights, for inference
    export_peft(model, "adapter/", base)               # to the `peft` library's format,
    import_peft(model, "adapter/")                     # and from it

    python lora.py mini/hopper-medium-0.01/lamo/seed0 --export adapter/    # the LM of a trained run

GPT-2 computes q, k and v with one fused layer, `c_attn`. Each of the three gets an A and a B of its
own: "groups" below. The authors' Atari code adapts through `peft` instead, which gives the fused layer
one A and leaves its bias frozen: shared_A=True and biases=False.
Letters: I inputs, O outputs of a layer, G groups, R rank.
"""

import json
import math
import sys
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# layer name -> how many projections it fuses: GPT-2's, GPT-NeoX's, and those of OPT and the Llama family
TARGETS = {"c_attn": 3, "query_key_value": 3, "q_proj": 1, "k_proj": 1, "v_proj": 1}


class LoRA(nn.Module):
    """A frozen linear layer (`nn.Linear`, or `Conv1D` of transformers) with a low-rank branch.

    heads   GPT-NeoX's fused layer puts out q, k and v of the first head, then of the second, and so on;
            elsewhere all of q comes first (heads=1)
    """

    def __init__(self, base: nn.Module, groups: int, rank: int, alpha: float, dropout: float, heads: int = 1):
        super().__init__()
        # Conv1D, GPT-2's layer, stores its weight (I, O); nn.Linear stores (O, I)
        self.transposed = not isinstance(base, nn.Linear)
        inputs, outputs = base.weight.shape if self.transposed else base.weight.shape[::-1]
        self.base, self.groups, self.heads, self.scale = base, groups, heads, alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_A = nn.Parameter(base.weight.new_empty(groups * rank, inputs))   # (G R, I)
        self.lora_B = nn.Parameter(base.weight.new_zeros(outputs, rank))           # (O, R)
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # B = 0: no change at the start

    def layer_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (O, ...) that stand group by group, in the order of the layer's outputs."""
        return rows.unflatten(0, (self.groups, self.heads, -1)).transpose(0, 1).flatten(0, 2)

    def group_order(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(0, (self.heads, self.groups, -1)).transpose(0, 1).flatten(0, 2)

    def wide_B(self) -> torch.Tensor:
        """B as one matrix (O, G R) in which group g's outputs read group g's ranks only."""
        return self.layer_order(torch.block_diag(*self.lora_B.chunk(self.groups)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = F.linear(self.dropout(x), self.lora_A)           # (..., I) -> (..., G R)
        return self.base(x) + self.scale * F.linear(low, self.wide_B())

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The base layer with the branch added to its weight; equal to forward() without dropout."""
        delta = self.scale * self.wide_B() @ self.lora_A       # (O, I)
        self.base.weight += delta.T if self.transposed else delta
        return self.base


def add_lora(model: nn.Module, rank: int, alpha: float, dropout: float, shared_A: bool = False) -> list[str]:
    """Wrap every layer named in TARGETS, in place. Returns their names; ValueError if there is none.

    shared_A    fused projections share one A, as peft does (experiment-atari/model.py:120-125)

    Call it after the pre-trained weights are loaded: `from_pretrained` skips initialisers, which
    would leave A = B = 0 and so no gradient, ever.
    """
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in TARGETS]
    if not names:
        raise ValueError(f"no layer named {', '.join(TARGETS)} to adapt")
    for name in names:
        parent, _, leaf = name.rpartition(".")
        parent = model.get_submodule(parent)
        groups = 1 if shared_A else TARGETS[leaf]
        heads = model.config.num_attention_heads if leaf == "query_key_value" and groups > 1 else 1
        setattr(parent, leaf, LoRA(getattr(parent, leaf), groups, rank, alpha, dropout, heads))
    return names


def train_only_lora(model: nn.Module, biases: bool = True) -> None:
    """Freeze all but A, B and the wrapped layers' biases (loralib's bias='lora_only'; peft's are frozen)."""
    model.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, LoRA):
            module.lora_A.requires_grad_(True)
            module.lora_B.requires_grad_(True)
            if biases and module.base.bias is not None:
                module.base.bias.requires_grad_(True)


def merge_lora(model: nn.Module) -> None:
    """Replace every LoRA layer by its merged base layer, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRA):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, module.merged())


# --- the format of the peft library ------------------------------------------------------------

def export_peft(model: nn.Module, folder, base: nn.Module, name: str = "") -> None:
    """Write adapter_config.json and adapter_model.safetensors, which `peft` loads onto the LM.

    base    the LM as it was before training; name: what peft shall call it
    Three pairs of rank R are one of rank 3 R whose B is block-diagonal, and whose alpha is three times as
    large. peft knows no trained bias of a frozen layer: B gets one, of the difference.
    """
    from safetensors.torch import save_file

    from prepare_data import write_whole

    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, LoRA)}
    first = next(iter(layers.values()))
    biases = first.base.bias is not None
    tensors = {}
    for path, layer in layers.items():
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = layer.lora_A
        tensors[f"{key}.lora_B.weight"] = layer.wide_B()
        if biases:
            tensors[f"{key}.lora_B.bias"] = (layer.base.bias - base.get_submodule(path).bias) / layer.scale
    rank = first.lora_A.shape[0]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": name, "r": rank,
              "lora_alpha": first.scale * rank, "lora_dropout": first.dropout.p, "bias": "none",
              "lora_bias": biases, "fan_in_fan_out": first.transposed, "inference_mode": True,
              "target_modules": sorted({path.rpartition(".")[2] for path in layers})}
    tensors = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
    write_whole(Path(folder) / "adapter_model.safetensors", lambda part: save_file(tensors, part))
    write_whole(Path(folder) / "adapter_config.json",
                lambda part: part.write_text(json.dumps(config, indent=1) + "\n"))


@torch.no_grad()
def import_peft(model: nn.Module, folder) -> None:
    """Load an adapter in peft's format into the LoRA layers that add_lora made; one line and exit if it
    is none, or does not fit. Fits: an adapter of their own rank R, as peft trains them (q, k and v then
    start from the same A), and one of rank 3 R that export_peft wrote."""
    from safetensors.torch import load_file

    def refuse(what):
        sys.exit(f"lora: the adapter in {folder} {what}")

    try:
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        rank, alpha = config["r"], config["lora_alpha"]
    except Exception as error:  # OSError, ValueError, KeyError, safetensors' own
        refuse(f"is not readable ({error}); it needs adapter_config.json and adapter_model.safetensors")
    for setting in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if config.get(setting):
            refuse(f"has {setting}, which this LoRA does not know")
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    for path, layer in model.named_modules():
        if not isinstance(layer, LoRA):
            continue
        A, B, bias = (tensors.pop(f"base_model.model.{path}.lora_{part}", None)
                      for part in ("A.weight", "B.weight", "B.bias"))
        R = layer.lora_B.shape[1]
        if A is None or B is None:
            refuse(f"has nothing for the layer {path}")
        if A.shape[1] != layer.lora_A.shape[1] or B.shape[0] != layer.lora_B.shape[0]:
            refuse(f"is of another language model: its {path} is {A.shape[1]} to {B.shape[0]} wide")
        if rank == R:
            layer.lora_A.copy_(A.repeat(layer.groups, 1))
            layer.lora_B.copy_(layer.group_order(B))
        elif rank == layer.groups * R:
            layer.lora_A.copy_(A)
            blocks = layer.group_order(B).chunk(layer.groups)
            layer.lora_B.copy_(torch.cat([block[:, g * R:(g + 1) * R] for g, block in enumerate(blocks)]))
            if not torch.equal(layer.wide_B(), B):
                refuse(f"mixes q, k and v in rank {rank}; import it with --lora_rank {rank}")
        else:
            refuse(f"has rank {rank}; import it with --lora_rank {rank}")
        layer.lora_B *= scale / layer.scale
        if bias is not None:
            layer.base.bias += scale * bias
    if tensors:
        refuse(f"also adapts {next(iter(tensors))}, which this LoRA does not")


def main():
    import argparse

    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="PROFILE/CELL/METHOD/seedN")
    parser.add_argument("--export", required=True, metavar="FOLDER", help="where the adapter goes")
    args = parser.parse_args()

    import tasks
    from evaluate import load_checkpoint, load_run
    from model import load_language_model

    run = args.run.strip("/").removeprefix("runs/")
    tasks.parse_run(run)
    config, model, checkpoints = load_run(run, torch.device("cpu"))
    if config.get("train") != "lora":
        sys.exit(f"lora: {run} has no LoRA to export; its method is {config['method']}")
    load_checkpoint(model, checkpoints[-1], run)
    export_peft(model.trunk, args.export, load_language_model(config["lm"], 0.0), config["lm"])
    print(f"{args.export}: the adapter of {run}, for peft; the trajectories' embeddings are not in it")


if __name__ == "__main__":
    import lora  # so that LoRA is one class, here and in model.py

    lora.main()
