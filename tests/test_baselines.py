"""baselines.py: every update against an independent numpy calculation, its gradient by finite differences."""

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn

import baselines
from kit import runs, settings

B, S, A = 5, 3, 2


def config_of(method, task="walker2d-medium", **changed):
    return settings.configuration(f"paper/{task}-1/{method}/seed0") | {
        "state_dim": S, "action_dim": A, "hidden": 4, "hidden_layers": 1} | changed


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)  # so that finite differences are exact enough
    yield
    torch.set_default_dtype(torch.float32)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    return {"states": rng.normal(size=(B, S)), "next_states": rng.normal(size=(B, S)),
            "actions": rng.uniform(-0.9, 0.9, (B, A)), "rewards": rng.normal(size=B),
            "terminals": np.array([0.0, 1.0, 0.0, 0.0, 1.0])}


def ready(config, seed=0):
    """Networks with weights that matter, SGD of rate 1 (an update then is the gradient), and a batch."""
    torch.manual_seed(seed)
    nets = baselines.build_networks(config)
    for p in nets.parameters():
        nn.init.normal_(p, std=0.5)
    optimizers = {name: torch.optim.SGD(net.parameters(), lr=1.0) for name, net in nets.items()
                  if not name.startswith("target")}
    batch = batch_of()
    return nets, optimizers, batch, {name: torch.from_numpy(x) for name, x in batch.items()}


def numbers(module):
    return {name: p.detach().numpy().copy() for name, p in module.named_parameters()}


def net(w, x, name="net"):
    """A network of one hidden layer in numpy, from its weights by name."""
    hidden = np.maximum(x @ w[f"{name}.0.weight"].T + w[f"{name}.0.bias"], 0)
    return hidden @ w[f"{name}.2.weight"].T + w[f"{name}.2.bias"]


def critic(w, states, actions):
    x = np.concatenate([states, actions], -1)
    return np.stack([net(w, x, "q1"), net(w, x, "q2")])[..., 0]


def assert_descended(before, after, loss, step=1e-6):
    """after - before is minus the gradient of loss(weights), by central differences."""
    for name, weight in before.items():
        gradient = np.zeros_like(weight)
        for place in np.ndindex(weight.shape):
            moved = {}
            for sign in (1, -1):
                w = {key: value.copy() for key, value in before.items()}
                w[name][place] += sign * step
                moved[sign] = loss(w)
            gradient[place] = (moved[1] - moved[-1]) / (2 * step)
        np.testing.assert_allclose(after[name] - weight, -gradient, atol=2e-6, rtol=1e-5, err_msg=name)


def update(nets, optimizers, batch, config, step=1):
    torch.manual_seed(7)
    run = baselines.UPDATES[config["update"]]
    return {name: loss.item() for name, loss in run(nets, optimizers, batch, config, step).items()}


def test_bc():
    config = config_of("bc")
    nets, optimizers, b, batch = ready(config)
    before = numbers(nets["actor"])

    def loss(w):
        return np.mean((np.tanh(net(w, b["states"])) - b["actions"]) ** 2)

    assert update(nets, optimizers, batch, config) == {"actor_loss": pytest.approx(loss(before))}
    assert_descended(before, numbers(nets["actor"]), loss)


def test_td3bc():
    config = config_of("td3bc", policy_noise=0.6)  # so that some of the noise is clipped
    nets, optimizers, b, batch = ready(config)
    before = {name: numbers(module) for name, module in nets.items()}
    torch.manual_seed(7)
    noise = np.clip(torch.randn(B, A).numpy() * 0.6, -0.5, 0.5)
    assert (np.abs(noise) == 0.5).any()
    chosen = np.clip(np.tanh(net(before["target_actor"], b["next_states"])) + noise, -1, 1)
    following = critic(before["target"], b["next_states"], chosen).min(0)
    target = b["rewards"] + 0.99 * np.where(b["terminals"] == 1, 0, following)

    def critic_loss(w):
        return ((critic(w, b["states"], b["actions"]) - target) ** 2).mean(1).sum()

    # step 0: the critics alone; the actor and the slow copies stay
    losses = update(nets, optimizers, batch, config, step=0)
    assert losses == {"critic_loss": pytest.approx(critic_loss(before["critic"]))}
    assert_descended(before["critic"], numbers(nets["critic"]), critic_loss)
    for name in ("actor", "target", "target_actor"):
        assert all(np.array_equal(numbers(nets[name])[key], value) for key, value in before[name].items())

    # step 1: the actor as well, against the critic just updated, and then the slow copies
    nets, optimizers, b, batch = ready(config)
    losses = update(nets, optimizers, batch, config, step=1)
    updated = numbers(nets["critic"])
    scale = 2.5 / np.abs(critic(updated, b["states"], np.tanh(net(before["actor"], b["states"])))[0]).mean()

    def actor_loss(w):
        actions = np.tanh(net(w, b["states"]))
        imitation = ((actions - b["actions"]) ** 2).mean()
        return -scale * critic(updated, b["states"], actions)[0].mean() + imitation

    assert losses["actor_loss"] == pytest.approx(actor_loss(before["actor"]))
    assert_descended(before["actor"], numbers(nets["actor"]), actor_loss)
    for slow, fast in (("target", "critic"), ("target_actor", "actor")):
        for key, value in numbers(nets[slow]).items():
            np.testing.assert_allclose(
                value, 0.995 * before[slow][key] + 0.005 * numbers(nets[fast])[key], atol=1e-12)


@pytest.mark.parametrize("deterministic", [True, False])
def test_iql(deterministic):
    config = config_of("iql", deterministic=deterministic, beta=8.0)  # some weights reach their limit
    nets, optimizers, b, batch = ready(config, seed=1)
    assert hasattr(nets["actor"], "log_std") != deterministic
    before = {name: numbers(module) for name, module in nets.items()}
    value = {f"net.{key}": weight for key, weight in before["value"].items()}
    q = critic(before["target"], b["states"], b["actions"]).min(0)

    def value_loss(w):
        u = q - net({f"net.{key}": x for key, x in w.items()}, b["states"])[:, 0]
        return np.mean(np.where(u > 0, 0.7, 0.3) * u ** 2)

    advantage = q - net(value, b["states"])[:, 0]
    assert (advantage > 0).any() and (advantage < 0).any()  # both sides of the expectile
    target = b["rewards"] + 0.99 * (1 - b["terminals"]) * net(value, b["next_states"])[:, 0]

    def critic_loss(w):
        return ((critic(w, b["states"], b["actions"]) - target) ** 2).mean()

    weights = np.minimum(np.exp(8 * advantage), 100)
    assert (weights == 100).any() and (weights < 100).any()

    def actor_loss(w):
        mean = np.tanh(net(w, b["states"]))
        if deterministic:
            return np.mean(weights * ((mean - b["actions"]) ** 2).sum(1))
        deviation = np.exp(w["log_std"])
        density = -0.5 * ((b["actions"] - mean) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))
        return np.mean(weights * -density.sum(1))

    config |= {"actor_lr": 1.0}
    losses = update(nets, optimizers, batch, config, step=0)
    for name, loss in (("value", value_loss), ("critic", critic_loss), ("actor", actor_loss)):
        assert losses[f"{name}_loss"] == pytest.approx(loss(before[name])), name
        assert_descended(before[name], numbers(nets[name]), loss)
    for key, weight in numbers(nets["target"]).items():
        np.testing.assert_allclose(
            weight, 0.995 * before["target"][key] + 0.005 * numbers(nets["critic"])[key], atol=1e-12)
    update(nets, optimizers, batch, config, step=config["steps"] // 2)
    assert optimizers["actor"].param_groups[0]["lr"] == pytest.approx(0.5)  # half-way down the cosine


def test_deviations_stay_within_e_to_the_second_power():
    states, actions = torch.randn(5, S), torch.rand(5, A)
    iql = baselines.Actor(config_of("iql", deterministic=False), gaussian=True)
    cql = baselines.SquashedActor(config_of("cql"))
    cql.log_std_scale.data.fill_(0.0)
    found = []
    for log_std in (2.0, 9.0, 1.0):
        iql.log_std.data.fill_(log_std)
        cql.log_std_offset.data.fill_(log_std)
        torch.manual_seed(0)
        found.append((iql.imitation_loss(states, actions), cql.sample(states, 3)[0]))
    for limit, beyond, inside in zip(*found, strict=True):
        assert torch.equal(limit, beyond) and not torch.equal(limit, inside)


def test_cql():
    config = config_of("cql", cql_actions=3, cql_alpha=0.7)
    nets, optimizers, b, batch = ready(config)
    before = {name: numbers(module) for name, module in nets.items()}
    log_temperature = float(before["log_temperature"]["0"])
    torch.manual_seed(7)  # the draws in the order of the update

    def normal(count):
        return torch.normal(torch.zeros(count, B, 1, A), torch.ones(count, B, 1, A)).numpy()[:, :, 0]

    first, of_next = normal(1), normal(1)
    uniform = torch.rand(B, 3, A).numpy() * 2 - 1
    here, there = normal(3), normal(3)

    def sample(w, states, draws):
        """(actions (B, M, A), log densities (B, M)) by the change of variables."""
        mean, spread = np.split(net(w, states), 2, -1)
        deviation = np.exp(w["log_std_scale"] * spread + w["log_std_offset"])
        raw = (mean + deviation * draws).transpose(1, 0, 2)
        gauss = -0.5 * draws.transpose(1, 0, 2) ** 2 - np.log(deviation * math.sqrt(2 * math.pi))[:, None]
        return np.tanh(raw), (gauss - np.log(1 - np.tanh(raw) ** 2)).sum(-1)

    chosen, density = sample(before["actor"], b["states"], first)

    def temperature_loss(w):
        return -(w["0"] * (density - A)).mean()

    def repeated(w, states, actions):
        return np.stack([critic(w, states, actions[:, m]) for m in range(actions.shape[1])], -1)

    def actor_loss(w):
        actions, log_density = sample(w, b["states"], first)
        q = repeated(before["critic"], b["states"], actions).min(0)
        return (math.exp(log_temperature) * log_density - q).mean()

    next_actions, _ = sample(before["actor"], b["next_states"], of_next)
    following = repeated(before["target"], b["next_states"], next_actions).min(0)[:, 0]
    target = b["rewards"] + 0.99 * (1 - b["terminals"]) * following
    draws = [(uniform, np.full((B, 3), math.log(0.25))), sample(before["actor"], b["next_states"], there),
             sample(before["actor"], b["states"], here)]

    def td_loss(w):
        return ((critic(w, b["states"], b["actions"]) - target) ** 2).mean(1).sum()

    def conservative(w):
        exps = np.concatenate([np.exp(repeated(w, b["states"], actions) - log_density)
                               for actions, log_density in draws], -1)
        return (np.log(exps.sum(-1)) - critic(w, b["states"], b["actions"])).mean(1).sum()

    losses = update(nets, optimizers, batch, config)
    assert losses == {"critic_loss": pytest.approx(td_loss(before["critic"])),
                      "conservative_term": pytest.approx(conservative(before["critic"])),
                      "actor_loss": pytest.approx(actor_loss(before["actor"]))}
    assert_descended(before["log_temperature"], numbers(nets["log_temperature"]), temperature_loss)
    assert_descended(before["actor"], numbers(nets["actor"]), actor_loss)
    assert_descended(before["critic"], numbers(nets["critic"]),
                     lambda w: td_loss(w) + 0.7 * conservative(w))


GOLDEN = Path(__file__).parent / "golden" / "baselines.json"


def fifty_updates(method):
    """{loss: its 50 values}, in float64, from seeded networks and batches."""
    config = config_of(method, hidden=8, hidden_layers=2, lr=1e-3, actor_lr=5e-4, cql_actions=4, steps=50,
                       target_rate=0.05)
    torch.manual_seed(0)
    nets, rows = baselines.build_networks(config), []
    optimizers = baselines.make_optimizers(nets, config)
    for step in range(50):
        torch.manual_seed(step)
        batch = {name: torch.from_numpy(x) for name, x in batch_of(step).items()}
        rows.append(baselines.UPDATES[config["update"]](nets, optimizers, batch, config, step))
    return {name: [row[name].item() for row in rows if name in row] for name in rows[1]}


@pytest.mark.parametrize("method", ["bc", "td3bc", "iql", "cql"])
def test_fifty_updates_go_where_they_went_beside_corl(method):
    """The numbers are ours; these updates were equal to CORL's learners to 1e-14 when run beside them."""
    wanted = json.loads(GOLDEN.read_text())[method]
    found = fifty_updates(method)
    assert set(found) == set(wanted)
    for name, losses in wanted.items():
        np.testing.assert_allclose(found[name], losses, rtol=1e-9, err_msg=name)
    assert len(wanted["actor_loss"]) == (25 if method == "td3bc" else 50)


# --- discrete actions --------------------------------------------------------------------------

def discrete(method):
    """Tiny linear networks in the place of DQN's."""
    config = config_of(method, task="pong-medium", action_dim=4)
    torch.manual_seed(3)
    nets = {"actor": nn.Linear(S, 4), "target": nn.Linear(S, 4)}
    optimizers = {"actor": torch.optim.SGD(nets["actor"].parameters(), lr=1.0)}
    b = batch_of() | {"actions": np.array([3, 0, 2, 2, 1]), "rewards": np.array([1.0, -1.0, 5.0, 0.0, 1.0])}
    return config, nets, optimizers, b, {name: torch.from_numpy(x) for name, x in b.items()}


def values(w, x):
    return x @ w["weight"].T + w["bias"]


@pytest.mark.parametrize("method", ["bc", "td3bc", "iql", "cql"])
def test_no_weight_moves_where_a_gradient_is_not_finite(method):
    config = config_of(method)
    nets, optimizers, _, batch = ready(config)
    batch["actions"][0, 0] = np.nan
    before = numbers(nets)
    with pytest.raises(FloatingPointError, match="the loss became"):
        baselines.UPDATES[method](nets, optimizers, batch, config, 0)
    moved = {name.split(".")[0] for name, now in numbers(nets).items()
             if not np.array_equal(before[name], now)}
    # CQL's temperature and actor do not look at the data's actions, and go before its critic
    assert moved == ({"actor", "log_temperature"} if method == "cql" else set())


@torch.no_grad()
def test_frames_count_from_the_start_only_where_the_profile_says_so():
    frames, spread = torch.randint(0, 255, (8, 4, 84, 84), dtype=torch.uint8), []
    for profile in ("mini", "paper"):
        torch.manual_seed(0)
        net = baselines.build_actor(settings.configuration(f"{profile}/breakout-medium-1/bc/seed0"))
        spread.append(net.cnn(frames).std().item())
    assert spread[0] > 10 * spread[1]


def test_discrete_bc():
    config, nets, optimizers, b, batch = discrete("bc")
    before = numbers(nets["actor"])

    def loss(w):
        logits = values(w, b["states"])
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        # d3rlpy since 2.1.0: the logits of a Categorical, which are normalised
        return -np.log(chance[np.arange(B), b["actions"]]).mean() + 0.5 * (np.log(chance) ** 2).mean()

    losses = baselines.update_bc(nets, optimizers, batch, config, 0)
    assert losses["actor_loss"].item() == pytest.approx(loss(before))
    assert_descended(before, numbers(nets["actor"]), loss)


def test_discrete_cql():
    config, nets, optimizers, b, batch = discrete("cql")
    before, slow = numbers(nets["actor"]), numbers(nets["target"])
    best = values(before, b["next_states"]).argmax(1)               # chosen by the one, valued by the other
    target = b["rewards"] + 0.99 * (1 - b["terminals"]) * values(slow, b["next_states"])[np.arange(B), best]

    def td_loss(w):
        error = np.abs(values(w, b["states"])[np.arange(B), b["actions"]] - target)
        return np.where(error < 1, 0.5 * error ** 2, error - 0.5).mean()

    def conservative(w):
        q = values(w, b["states"])
        return (np.log(np.exp(q).sum(1)) - q[np.arange(B), b["actions"]]).mean()

    losses = baselines.update_discrete_cql(nets, optimizers, batch, config, 1)
    assert losses["critic_loss"].item() == pytest.approx(td_loss(before))
    assert losses["conservative_term"].item() == pytest.approx(conservative(before))
    assert_descended(before, numbers(nets["actor"]), lambda w: td_loss(w) + conservative(w))
    assert all(np.array_equal(numbers(nets["target"])[key], value) for key, value in slow.items())
    after = numbers(nets["actor"])
    baselines.update_discrete_cql(nets, optimizers, batch, config, config["target_every"])
    assert all(np.array_equal(numbers(nets["target"])[key], value) for key, value in after.items())


# --- transitions -------------------------------------------------------------------------------

def test_transitions_end_where_episodes_end():
    torch.set_default_dtype(torch.float32)
    rng = np.random.default_rng(0)
    data = {"observations": rng.normal(2, 3, (9, S)).astype(np.float32),
            "last_observations": rng.normal(2, 3, (2, S)).astype(np.float32),
            "actions": np.zeros((9, A), np.float32), "rewards": np.arange(9, dtype=np.float32),
            "terminals": np.arange(9) == 3, "offsets": np.array([0, 4, 9])}  # the second ran out of time
    config = config_of("iql", normalize_rewards=True)
    arrays, mean, std = baselines.transitions(data, config)
    assert np.allclose(std, data["observations"].std(0) + 1e-3)
    assert np.allclose(baselines.transitions(data, config | {"least_std": 3.0})[2], np.maximum(std, 3.0))
    assert (std < 3).any() and (std > 3).any()
    returns = (0 + 1 + 2 + 3, 4 + 5 + 6 + 7 + 8)
    assert np.allclose(arrays["rewards"], np.arange(9) * 1000 / (returns[1] - returns[0]))
    batch = baselines.sample_batch(arrays, np.random.default_rng(0), 300)
    batch = {name: x.numpy() for name, x in batch.items()}
    seen = set()
    for n in range(300):
        row = int(round(float(batch["rewards"][n]) * (returns[1] - returns[0]) / 1000))
        following = {3: data["last_observations"][0], 8: data["last_observations"][1]}.get(
            row, data["observations"][min(row + 1, 8)])
        assert np.allclose(batch["states"][n] * std + mean, data["observations"][row], atol=1e-4)
        assert np.allclose(batch["next_states"][n] * std + mean, following, atol=1e-4)
        assert batch["terminals"][n] == (row == 3)
        seen.add(row)
    assert seen == set(range(9))
    single = copy.copy(data) | {name: data[name][:4] for name in
                                ("observations", "actions", "rewards", "terminals")}
    single |= {"offsets": np.array([0, 4]), "last_observations": data["last_observations"][:1]}
    assert np.array_equal(baselines.transitions(single, config)[0]["rewards"], np.arange(4))


@pytest.mark.parametrize("profile, wanted", [("paper", "dataset_rewards"), ("mini", "rewards")])
def test_the_kitchens_rewards_are_d4rls_own_in_the_paper_profile(profile, wanted):
    torch.set_default_dtype(torch.float32)
    data = {"observations": np.zeros((4, 60), np.float32), "last_observations": np.zeros((1, 60), np.float32),
            "actions": np.zeros((4, 9), np.float32), "rewards": np.array([0, 1, 0, 1], np.float32),
            "dataset_rewards": np.array([0, 1, 1, 2], np.float32), "terminals": np.arange(4) == 3,
            "offsets": np.array([0, 4])}
    for method in ("td3bc", "iql", "cql"):
        config = settings.configuration(f"{profile}/kitchen-partial-1/{method}/seed0")
        assert np.array_equal(baselines.transitions(data, config)[0]["rewards"], data[wanted])


def test_a_time_out_without_a_recorded_successor_is_left_out():
    torch.set_default_dtype(torch.float32)
    data = {"observations": np.ones((9, S), np.float32) * np.arange(9, dtype=np.float32)[:, None],
            "last_observations": np.array([[3.0] * S, [np.nan] * S], np.float32),
            "actions": np.zeros((9, A), np.float32), "rewards": np.arange(9, dtype=np.float32),
            "terminals": np.arange(9) == 3, "offsets": np.array([0, 4, 9])}
    arrays, _, _ = baselines.transitions(data, config_of("bc"))
    batch = baselines.sample_batch(arrays, np.random.default_rng(0), 300)
    assert set(batch["rewards"].tolist()) == set(range(8))  # of nine steps the last
    assert batch["next_states"].isfinite().all()


def test_transitions_of_frames():
    frames = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 84, 84), np.uint8)
    data = {"observations": frames, "last_observations": frames[:2] + 100, "actions": np.zeros(7, int),
            "rewards": np.arange(7, dtype=np.float32), "terminals": np.arange(7) == 6,
            "offsets": np.array([0, 2, 7])}
    arrays, _, _ = baselines.transitions(data, config_of("cql", task="pong-medium"))
    batch = baselines.sample_batch(arrays, np.random.default_rng(0), 100)
    stacks = {0: ([0, 0, 0, 0], [0, 0, 0, 1]), 1: ([0, 0, 0, 1], [0, 0, 1, 100]),
              2: ([2, 2, 2, 2], [2, 2, 2, 3]), 6: ([3, 4, 5, 6], [4, 5, 6, 101])}
    for n, row in enumerate(batch["rewards"].long().tolist()):
        if row in stacks:
            assert batch["states"][n, :, 0, 0].tolist() == stacks[row][0]
            assert batch["next_states"][n, :, 0, 0].tolist() == stacks[row][1]
    assert set(batch["rewards"].long().tolist()) == set(range(7)) and batch["states"].dtype == torch.uint8


# --- the stage ---------------------------------------------------------------------------------

def test_a_killed_run_resumes_to_equal_bytes(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    data = {"observations": rng.normal(size=(60, 11)).astype(np.float32),
            "last_observations": rng.normal(size=(6, 11)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (60, 3)).astype(np.float32),
            "rewards": rng.normal(size=60).astype(np.float32), "terminals": np.arange(60) % 10 == 9,
            "offsets": np.arange(7) * 10}
    provenance = {"data": "toy@0", "sha256": "0", "episodes": [0], "return_mean": 1.0, "reference_min": 0.0,
                  "reference_max": 1.0}
    monkeypatch.setattr(baselines, "load_data", lambda config: (data, provenance))
    toy = {"steps": 9, "eval_every": 3, "log_every": 1, "batch_size": 8, "hidden": 8}
    for method in ("bc", "td3bc", "iql", "cql"):
        run = f"paper/hopper-medium-1/{method}/seed0"
        folder = tmp_path / "runs" / run

        def files(folder=folder):
            return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

        baselines.train(run, "cpu", **toy)
        once = files()
        assert set(once) == {"config.json", "train.csv", "step-0000003.safetensors",
                             "step-0000006.safetensors", "final.safetensors"}
        for path in folder.iterdir():
            path.unlink()
        real, saved = runs.State.save, []

        def stop(state, step, seen, real=real, saved=saved):
            real(state, step, seen)
            saved.append(step)
            if step == 6:
                raise KeyboardInterrupt

        monkeypatch.setattr(runs.State, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            baselines.train(run, "cpu", **toy)
        assert "final.safetensors" not in files() and saved == [3, 6]
        monkeypatch.setattr(runs.State, "save", real)
        baselines.train(run, "cpu", **toy)
        assert files() == once, method


@pytest.mark.parametrize("run, said", [("paper/hopper-medium-1/dt/seed0", "train.py"),
                                       ("paper/pong-medium-1/iql/seed0", "bc or cql")])
def test_what_is_no_baseline_is_refused(run, said):
    with pytest.raises(SystemExit, match=said):
        baselines.train(run, "cpu")
