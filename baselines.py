"""Stage 2 for what LaMo is compared with: BC, TD3+BC, IQL and CQL; for Atari discrete BC and CQL.

    python baselines.py mini/hopper-medium-0.01/td3bc/seed0
    python baselines.py paper/halfcheetah-medium-1/iql/seed0 --device cuda

reads   data/PROFILE/CELL.npz
writes  runs/PROFILE/CELL/METHOD/seedN/, through the same loop as train.py: config.json, train.csv (one
        column a loss), and checkpoints of the actor, which is all that plays

They learn from single transitions (s, a, r, s', whether s' is terminal) where sequence models read
windows. Each method is one function below, an update from a batch; `losses` names what it minimises:

    BC       imitation                                     CORL any_percent_bc.py, d3rlpy 2.1 DiscreteBC
    TD3+BC   Fujimoto & Gu 2021, arXiv 2106.06860          CORL td3_bc.py
    IQL      Kostrikov et al. 2021, arXiv 2110.06169       CORL iql.py
    CQL      Kumar et al. 2020, arXiv 2006.04779           CORL cql.py, d3rlpy DiscreteCQL

The settings are CORL's, as the paper used them (p. 17), and stand in tasks.py. CORL is
tinkoff-ai/CORL, d3rlpy takuseno/d3rlpy. Updates depend on (seed, step) alone.
Letters: B batch, S state, A action (its width, or how many there are), M sampled actions a state.
"""

import copy
import math

from kit import fail, settings, signals

if __name__ == "__main__":
    signals.catch()
    ARGS = settings.options(__doc__).parse_args()  # before the imports below, which take seconds

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Normal

from kit import runs
from kit.quick import pick_device
from model import FrameCNN
from train import fit, load_data, trainable

# --- transitions -------------------------------------------------------------------------------


def transitions(data, config):
    """The dataset as tensors of N rows each, and (mean, std) of states.

    A state's successor is the next row, or, at an episode's end, what followed its last action: kept
    apart in last_states (E, ...), so that no state lies in memory twice. An episode that the time limit
    cut off has a successor like any other; where it was not recorded, `rows` leaves that step out. CORL
    takes D4RL's qlearning_dataset, which always drops it.
    """
    lengths = np.diff(data["offsets"])
    recorded = config["recorded_rewards"] and "dataset_rewards" in data
    rewards = data["dataset_rewards" if recorded else "rewards"]
    if config["normalize_rewards"]:
        returns = np.add.reduceat(rewards, data["offsets"][:-1])
        # a single episode has no spread to divide by
        rewards = rewards * (1000 / np.ptp(returns) if np.ptp(returns) > 0 else 1)
    states, last = data["observations"], data["last_observations"]
    mean, std = np.zeros(0, np.float32), np.zeros(0, np.float32)
    if not config["pixels"]:
        mean = states.mean(0, dtype=np.float64).astype(np.float32)
        std = np.maximum(states.std(0, dtype=np.float64) + 1e-3, config["least_std"]).astype(np.float32)
        states, last = (states - mean) / std, (last - mean) / std
    kept = np.ones(len(rewards), bool)
    kept[data["offsets"][1:] - 1] = np.isfinite(last).reshape(len(last), -1).all(1)
    arrays = {"states": states, "last_states": last.astype(states.dtype), "actions": data["actions"],
              "rewards": rewards.astype(np.float32), "terminals": data["terminals"].astype(np.float32),
              "episode": np.repeat(np.arange(len(lengths)), lengths),
              "timesteps": np.arange(len(rewards)) - np.repeat(data["offsets"][:-1], lengths),
              "ends": np.repeat(data["offsets"][1:], lengths), "rows": np.flatnonzero(kept)}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, mean, std


def sample_batch(arrays, rng, batch_size):
    """{name: (B, ...)} of transitions drawn uniformly; Atari's states are stacks (B, 4, 84, 84)."""
    rows = arrays["rows"][torch.from_numpy(rng.integers(0, len(arrays["rows"]), batch_size))]
    states = arrays["states"]
    inside = rows + 1 < arrays["ends"][rows]
    following = states[rows + inside.long()]
    following[~inside] = arrays["last_states"][arrays["episode"][rows[~inside]]]
    seen = states[rows]
    if states.ndim == 3:  # the last four frames, an episode's first one repeated, as envs.py stacks them
        back = torch.minimum(arrays["timesteps"][rows][:, None], torch.tensor([3, 2, 1, 0]))
        seen = states[rows[:, None] - back]                                        # (B, 4, 84, 84)
        following = torch.cat([seen[:, 1:], following[:, None]], 1)
    return {"states": seen, "next_states": following,
            **{name: arrays[name][rows] for name in ("actions", "rewards", "terminals")}}


# --- networks ----------------------------------------------------------------------------------

def mlp(inputs, outputs, config, dropout=0.0):
    layers, width = [], inputs
    for _ in range(config["hidden_layers"]):
        layers += [nn.Linear(width, config["hidden"]), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        width = config["hidden"]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Actor(nn.Module):
    """States (B, S) -> actions (B, A) in [-1, 1]: a tanh network. IQL's Gaussian has it for a mean, and
    a deviation that depends on no state."""

    def __init__(self, config, gaussian=False):
        super().__init__()
        self.net = mlp(config["state_dim"], config["action_dim"], config, config["actor_dropout"])
        if gaussian:
            self.log_std = nn.Parameter(torch.zeros(config["action_dim"]))

    def forward(self, states):
        return torch.tanh(self.net(states))

    def imitation_loss(self, states, actions):
        """-log probability of the actions (B,), or their squared error if there is no deviation."""
        mean = self(states)
        if hasattr(self, "log_std"):
            return -Normal(mean, self.log_std.clamp(-20, 2).exp()).log_prob(actions).sum(-1)
        return (mean - actions).square().sum(-1)


class SquashedActor(nn.Module):
    """CQL's actor: tanh of a Gaussian whose mean and deviation depend on the state. It plays the mean."""

    def __init__(self, config):
        super().__init__()
        self.net = mlp(config["state_dim"], 2 * config["action_dim"], config)
        nn.init.xavier_uniform_(self.net[-1].weight, gain=1e-2)
        nn.init.zeros_(self.net[-1].bias)
        self.log_std_scale = nn.Parameter(torch.ones(()))
        self.log_std_offset = nn.Parameter(-torch.ones(()))

    def forward(self, states):
        return torch.tanh(self.net(states).chunk(2, -1)[0])

    def sample(self, states, count):
        """(actions (B, M, A), their log densities (B, M)), differentiable."""
        mean, log_std = self.net(states).chunk(2, -1)
        log_std = (self.log_std_scale * log_std + self.log_std_offset).clamp(-20, 2)
        gaussian = Normal(mean[:, None], log_std.exp()[:, None])
        raw = gaussian.rsample((count,))[:, :, 0].transpose(0, 1)                  # (B, M, A)
        # log (1 - tanh(x)^2), in a form that does not overflow
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return torch.tanh(raw), (gaussian.log_prob(raw) - squash).sum(-1)


class TwinCritic(nn.Module):
    """Two Q functions: states (B, S), actions (B, A) or (B, M, A) -> (2, B) or (2, B, M)."""

    def __init__(self, config, orthogonal=False):
        super().__init__()
        inputs = config["state_dim"] + config["action_dim"]
        self.q1, self.q2 = mlp(inputs, 1, config), mlp(inputs, 1, config)
        for net in (self.q1, self.q2) if orthogonal else ():
            for layer in [layer for layer in net if isinstance(layer, nn.Linear)]:
                nn.init.orthogonal_(layer.weight, 1e-2 if layer is net[-1] else math.sqrt(2))
                nn.init.zeros_(layer.bias)

    def forward(self, states, actions):
        if actions.dim() == 3:
            states = states[:, None].expand(-1, actions.shape[1], -1)
        x = torch.cat([states, actions], -1)
        return torch.stack([self.q1(x), self.q2(x)]).squeeze(-1)


class PixelNet(nn.Module):
    """DQN's network: frames (B, 4, 84, 84) -> logits or values of the A actions (B, A)."""

    def __init__(self, config):
        super().__init__()
        self.cnn, self.head = FrameCNN(512), nn.Linear(512, config["action_dim"])
        if config["quick_init"]:
            self.cnn.start_quickly()

    def forward(self, states):
        return self.head(F.relu(self.cnn(states)))


def build_networks(config):
    """A method's networks by name; "actor" plays, "target" is a slow copy of the critic."""
    update = config["update"]
    if config["pixels"]:
        nets = {"actor": PixelNet(config)}  # of CQL: the values, played greedily
        critic = nets["actor"] if update == "cql" else None
    else:
        gaussian = update == "iql" and not config["deterministic"]
        nets = {"actor": SquashedActor(config) if update == "cql" else Actor(config, gaussian)}
        critic = None if update == "bc" else TwinCritic(config, orthogonal=update == "cql")
        if critic is not None:
            nets["critic"] = critic
        if update == "iql":
            nets["value"] = mlp(config["state_dim"], 1, config)
        if update == "cql":
            nets["log_temperature"] = nn.ParameterList([torch.zeros(())])
    if critic is not None:
        nets["target"] = copy.deepcopy(critic).requires_grad_(False)
    if update == "td3bc":
        nets["target_actor"] = copy.deepcopy(nets["actor"]).requires_grad_(False)
    return nn.ModuleDict(nets)


def build_actor(config):
    """The network that plays a run."""
    return build_networks(config)["actor"]


# --- the methods -------------------------------------------------------------------------------

def td_target(rewards, terminals, next_values, discount):
    """r + discount V(s'), and nothing after a terminal state (B,)."""
    return rewards + discount * (1 - terminals) * next_values


def expectile_loss(difference, expectile):
    """Mean |expectile - (u < 0)| u^2, IQL's equation 4."""
    return (torch.abs(expectile - (difference < 0).float()) * difference.square()).mean()


def move(target, source, rate):
    """target += rate (source - target), weight by weight."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.data.lerp_(fast.data, rate)


def descend(optimizer, loss):
    """A step down the loss's gradient; FloatingPointError, and no step, if that is not finite."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if not math.isfinite(norm):
        raise FloatingPointError(f"the loss became {loss.item()}, and its gradient {norm}")
    optimizer.step()


def update_bc(nets, optimizers, batch, config, step):
    actor = nets["actor"]
    if config["discrete"]:
        log_p = actor(batch["states"]).log_softmax(1)                              # (B, A)
        loss = F.nll_loss(log_p, batch["actions"]) + config["logit_penalty"] * log_p.square().mean()
    else:
        loss = F.mse_loss(actor(batch["states"]), batch["actions"])
    descend(optimizers["actor"], loss)
    return {"actor_loss": loss}


def update_td3bc(nets, optimizers, batch, config, step):
    states, actions = batch["states"], batch["actions"]
    with torch.no_grad():
        noise = (torch.randn_like(actions) * config["policy_noise"]).clamp(
            -config["noise_clip"], config["noise_clip"])
        next_actions = (nets["target_actor"](batch["next_states"]) + noise).clamp(-1, 1)
        next_values = nets["target"](batch["next_states"], next_actions).amin(0)
        target = td_target(batch["rewards"], batch["terminals"], next_values, config["discount"])
    values = nets["critic"](states, actions)                                       # (2, B)
    critic_loss = (values - target).square().mean(1).sum()
    descend(optimizers["critic"], critic_loss)

    losses = {"critic_loss": critic_loss}
    if (step + 1) % config["policy_every"] == 0:
        chosen = nets["actor"](states)
        q = nets["critic"](states, chosen)[0]
        # the scale of Q differs from task to task; the weight of imitation should not
        weight = config["bc_alpha"] / q.abs().mean().detach()
        losses["actor_loss"] = -weight * q.mean() + F.mse_loss(chosen, actions)
        descend(optimizers["actor"], losses["actor_loss"])
        move(nets["target"], nets["critic"], config["target_rate"])
        move(nets["target_actor"], nets["actor"], config["target_rate"])
    return losses


def update_iql(nets, optimizers, batch, config, step):
    states, actions = batch["states"], batch["actions"]
    with torch.no_grad():
        target_q = nets["target"](states, actions).amin(0)
        next_values = nets["value"](batch["next_states"]).squeeze(-1)
    advantage = target_q - nets["value"](states).squeeze(-1)
    value_loss = expectile_loss(advantage, config["expectile"])
    descend(optimizers["value"], value_loss)

    target = td_target(batch["rewards"], batch["terminals"], next_values, config["discount"])
    critic_loss = (nets["critic"](states, actions) - target).square().mean()       # over both
    descend(optimizers["critic"], critic_loss)
    move(nets["target"], nets["critic"], config["target_rate"])

    weights = (config["beta"] * advantage.detach()).exp().clamp(max=100)
    actor_loss = (weights * nets["actor"].imitation_loss(states, actions)).mean()
    for group in optimizers["actor"].param_groups:  # down a cosine to zero
        group["lr"] = config["actor_lr"] * 0.5 * (1 + math.cos(math.pi * step / config["steps"]))
    descend(optimizers["actor"], actor_loss)
    return {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}


def conservative_term(values, log_densities, data_values):
    """CQL(H)'s penalty (2,): the log-sum-exp of Q over sampled actions, less Q of the data's.

    values (2, B, 3 M), log_densities (B, 3 M) of the distributions they were drawn from, which correct
    for having drawn more where the policy is denser, data_values (2, B).
    """
    return (torch.logsumexp(values - log_densities, -1) - data_values).mean(1)


def update_cql(nets, optimizers, batch, config, step):
    states, actions, next_states = batch["states"], batch["actions"], batch["next_states"]
    actor, critic, log_temperature = nets["actor"], nets["critic"], nets["log_temperature"][0]
    B, A = actions.shape
    M = config["cql_actions"]

    chosen, density = actor.sample(states, 1)                                      # (B, 1, A), (B, 1)
    temperature_loss = -(log_temperature * (density.detach() - A)).mean()          # the entropy aimed at: -A
    actor_loss = (log_temperature.exp().detach() * density - critic(states, chosen).amin(0)).mean()

    with torch.no_grad():
        next_actions, _ = actor.sample(next_states, 1)
        next_values = nets["target"](next_states, next_actions).amin(0)[:, 0]
        target = td_target(batch["rewards"], batch["terminals"], next_values, config["discount"])
        uniform = torch.rand(B, M, A, device=states.device) * 2 - 1
        here, here_density = actor.sample(states, M)
        there, there_density = actor.sample(next_states, M)  # of the next state, weighed in this one
        sampled = torch.cat([uniform, there, here], 1)                             # (B, 3 M, A)
        log_densities = torch.cat([torch.full((B, M), A * math.log(0.5), device=states.device),
                                   there_density, here_density], 1)                # (B, 3 M)
    data_values = critic(states, actions)                                          # (2, B)
    conservative = conservative_term(critic(states, sampled), log_densities, data_values)
    td_loss = (data_values - target).square().mean(1)
    critic_loss = (td_loss + config["cql_alpha"] * conservative).sum()

    descend(optimizers["log_temperature"], temperature_loss)
    descend(optimizers["actor"], actor_loss)
    descend(optimizers["critic"], critic_loss)
    move(nets["target"], critic, config["target_rate"])
    return {"critic_loss": td_loss.sum(), "conservative_term": conservative.sum(), "actor_loss": actor_loss}


def update_discrete_cql(nets, optimizers, batch, config, step):
    """Double DQN with the penalty; the actor is the value network. The target is copied before the update,
    d3rlpy's after it, so that theirs is one update newer."""
    if step % config["target_every"] == 0:
        move(nets["target"], nets["actor"], 1.0)
    with torch.no_grad():
        best = nets["actor"](batch["next_states"]).argmax(1, keepdim=True)
        next_values = nets["target"](batch["next_states"]).gather(1, best)[:, 0]
        target = td_target(batch["rewards"], batch["terminals"], next_values, config["discount"])
    values = nets["actor"](batch["states"])                                        # (B, A)
    taken = values.gather(1, batch["actions"][:, None])[:, 0]
    td_loss = F.huber_loss(taken, target)
    conservative = (torch.logsumexp(values, 1) - taken).mean()
    descend(optimizers["actor"], td_loss + config["cql_alpha"] * conservative)
    return {"critic_loss": td_loss, "conservative_term": conservative}


UPDATES = {"bc": update_bc, "td3bc": update_td3bc, "iql": update_iql, "cql": update_cql,
           "discrete_cql": update_discrete_cql}


# --- the stage ---------------------------------------------------------------------------------

def make_optimizers(nets, config):
    """Adam for each network that is not a slow copy."""
    return {name: torch.optim.Adam(net.parameters(), fused=True, lr=config[
                "actor_lr" if name in ("actor", "log_temperature") and not config["discrete"] else "lr"])
            for name, net in nets.items() if not name.startswith("target")}


def train(run, device="auto", replace=False, fresh=False, **overrides):
    config = settings.configuration(run, **overrides)
    if config["kind"] != "baseline":
        fail(f"{config['method']} is a sequence model; train it with: python train.py {run}")
    device = pick_device(device)
    data, provenance = load_data(config)
    arrays, mean, std = transitions(data, config)
    del data
    torch.manual_seed(config["seed"])
    nets = build_networks(config)
    counts = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    record = runs.make_record(config, provenance, mean, std, device, nets["actor"], parameters=counts)
    optimizers = make_optimizers(nets.to(device).train(), config)
    learn = UPDATES["discrete_cql" if config["discrete"] and config["update"] == "cql" else config["update"]]

    def update(step, rng):
        batch = {name: x.to(device) for name, x in sample_batch(arrays, rng, config["batch_size"]).items()}
        losses = {name: loss.item() for name, loss in learn(nets, optimizers, batch, config, step).items()}
        if not all(map(math.isfinite, losses.values())):
            raise FloatingPointError(f"the loss became {losses}")
        return losses

    about = f"{', '.join(f'{name} {count:,}' for name, count in counts.items())} parameters, on {device}"
    fit(record, dict(nets.named_parameters()), optimizers.values(), update, trainable(nets["actor"]), about,
        replace, fresh, overrides.get("tensorboard"))


if __name__ == "__main__":
    train(**vars(ARGS))
