"""The Decision Transformer around a language model: LaMo, and DT as the same class.

One environment step is three tokens, (return-to-go, state, action). The trunk, any causal language
model of `transformers`, reads them through `inputs_embeds`; the action is predicted from the hidden
state at the state token, which has seen this step's return-to-go and state and all that came before.

    model = build_model(configuration("mini/hopper-medium-0.01/lamo/seed0"))

Letters: B batch, K context, S state, A action, H hidden, T tokens, V vocabulary.
Follows the paper's section 3 and experiment-d4rl/decision_transformer/models/decision_transformer.py
(srzer/LaMo-2023@3e4fcc8), called "authors" below, and, for Atari, experiment-atari/model.py.
"""

from contextlib import nullcontext

import torch
import torch.nn as nn
import torch.nn.functional as F

from kit.adapters import import_peft
from kit.language_models import load_trunk, position_table
from kit.quick import quicken
from lora import add_lora, train_only_lora


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

    def start_quickly(self):
        """He's initialisation; from PyTorch's own the output vanishes beside all else, and its gradient."""
        self.layers.apply(lambda layer: hasattr(layer, "weight") and nn.init.kaiming_uniform_(layer.weight))


class DecisionTransformer(nn.Module):
    """Predicts actions from returns-to-go, states and earlier actions.

    trunk       a causal LM, or a bare transformer that has no language head
    state_dim   S, or (4, 84, 84) for Atari's frames
    embeddings  "mlp": residual blocks and an MLP head; "linear": linear maps and a tanh head
    pixels      the authors' Atari model (experiment-atari/model.py): a CNN for states, of `channels` and
                twice as many, a table for actions, a linear head that gives logits, the time added
                before the LayerNorm, and the trunk's own position embeddings kept
    bf16        matrix products inside the trunk in bfloat16; the weights, the residual stream, the
                LayerNorms, the embeddings and the action head stay in float32
    The authors' heads for the next state and return train on nothing, so they are left out.
    """

    def __init__(self, trunk: nn.Module, state_dim, action_dim: int, max_timestep: int, embeddings: str,
                 pixels: bool = False, squash_logits: bool = False, bf16: bool = False, channels: int = 32):
        super().__init__()
        hidden, mlp = trunk.get_input_embeddings().embedding_dim, embeddings == "mlp"
        self.trunk, self.pixels, self.max_timestep, self.bf16 = trunk, pixels, max_timestep, bf16
        self.reading, self.word_loss = every_token, mean_word_loss  # quicken puts quicker ones here

        def embed(first):
            return ResidualMLP(first, hidden) if mlp else first

        self.embed_return = embed(nn.Linear(1, hidden))
        if pixels:
            cnn = FrameCNN(hidden, (channels, 2 * channels, 2 * channels))
            self.embed_state = nn.Sequential(cnn, *([embed(nn.Linear(hidden, hidden))] if mlp else []))
            self.embed_action = embed(nn.Embedding(action_dim, hidden))
        else:
            self.embed_state = embed(nn.Linear(state_dim, hidden))
            self.embed_action = embed(nn.Linear(action_dim, hidden))
        self.embed_timestep = nn.Embedding(max_timestep, hidden)
        self.embed_ln = nn.LayerNorm(hidden)
        if pixels:
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
        tokens = self.embed_ln(tokens + time) if self.pixels else self.embed_ln(tokens) + time
        tokens = tokens.flatten(1, 2)[:, :-1]                                 # (B, 3K - 1, H)
        # nobody reads the newest action, nor the output at any but the state tokens
        read = slice(-1, None) if newest else slice(1, None, 3)
        with self.reading(self.trunk, read, tokens.shape[1]):
            if self.pixels:  # padding is on the right, where causality alone hides it
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
        with self.autocast(hidden):
            return self.word_loss(self.trunk.get_output_embeddings(), hidden, targets)


def every_token(trunk, read, T):
    """The trunk computes all of its T tokens, of which `read` are read."""
    return nullcontext()


def mean_word_loss(head, hidden, targets):
    """Mean cross-entropy of hidden states (T, H) against word ids (T,)."""
    return F.cross_entropy(head(hidden).float(), targets)


def build_model(config: dict) -> DecisionTransformer:
    """The model of a configuration, with only what trains requiring gradients: of LaMo, which freezes the
    language model, LoRA, the embeddings and the head."""
    pixels, text = config["pixels"], config["lm_weight"] > 0
    trunk = load_trunk(config)
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
            position_table(trunk).requires_grad_(pixels or text and not config["released"])
    model = DecisionTransformer(trunk, config["state_dim"], config["action_dim"], config["max_timestep"],
                                config["embeddings"], pixels, squash_logits=config["released"],
                                bf16=config["dtype"] == "bfloat16", channels=config["channels"])
    quicken(model)
    if config["quick_init"]:
        if pixels:
            model.embed_state[0].start_quickly()
        # drawn with a variance of 1, as PyTorch and the authors do, they are how episodes are learnt by heart
        nn.init.normal_(model.embed_timestep.weight, std=0.02)
    return model
