"""LoRA by hand: y = x W + b + (alpha / R) * dropout(x) A^T B^T, with A and B of rank R (the paper's
section 3.2, loralib's MergedLinear as the authors use it in trajectory_gpt2_LoRA.py:184-204).

    add_lora(model, rank=16, alpha=32, dropout=0.1)    # wrap every attention projection
    train_only_lora(model)                             # freeze the rest of the model
    merge_lora(model)                                  # fold A and B into the weights, for inference

kit/adapters.py writes and reads the format of the `peft` library.

GPT-2 computes q, k and v with one fused layer, `c_attn`. Each of the three gets an A and a B of its
own: "groups" below. The authors' Atari code adapts through `peft` instead, which gives the fused layer
one A and leaves its bias frozen: shared_A=True and biases=False.
Letters: I inputs, O outputs of a layer, G groups, R rank.
"""

import math

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
