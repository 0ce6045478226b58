"""kit/imitation.py: the held-out action loss equals a plain computation; on which episodes it is measured."""

import csv
import gzip
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import KIT
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from baselines import build_actor
from kit import artifacts, imitation, runs
from kit.language_models import dt_trunk, load_language_model, load_tokenizer
from kit.settings import configuration
from model import DecisionTransformer, build_model

CELL = "paper/hopper-medium-0.1"


def episodes(lengths, states, actions, seed=0):
    """A dataset of random episodes; states: (n) -> (n, S) or frames, actions: likewise."""
    rng, steps = np.random.default_rng(seed), sum(lengths)
    return {"observations": states(rng, steps), "actions": actions(rng, steps),
            "rewards": rng.uniform(0, 2, steps).astype(np.float32), "terminals": np.zeros(steps, bool),
            "offsets": np.cumsum([0, *lengths]), "last_observations": states(rng, len(lengths))}


def continuous(seed=0):
    return episodes((9, 4, 13), lambda rng, n: rng.normal(1, 2, (n, 11)).astype(np.float32),
                    lambda rng, n: rng.uniform(-1, 1, (n, 3)).astype(np.float32), seed)


def frames():
    return episodes((7, 5), lambda rng, n: rng.integers(0, 255, (n, 84, 84), dtype=np.uint8),
                    lambda rng, n: rng.integers(0, 4, n))


def config_of(method, task="hopper-medium", **more):
    config = configuration(f"paper/{task}-0.1/{method}/seed0") | {
        "state_mean": [], "state_std": [], "data": "d@1", "data_episodes": [0, 1]} | more
    return config if config["pixels"] else config | {
        "state_mean": np.linspace(-0.5, 1.5, 11).tolist(), "state_std": np.linspace(0.5, 2, 11).tolist()}


def plainly(model, config, data):
    """The mean loss, one prediction at a time, each from the steps of its window up to its own."""
    total, K = 0.0, config.get("context", 1)
    for first, last in zip(data["offsets"][:-1], data["offsets"][1:], strict=True):
        for t in range(first, last):
            begin = t - (t - first) % K
            seen = [np.stack([data["observations"][max(first, s - back)] for back in (3, 2, 1, 0)])
                    if config["pixels"] else
                    (data["observations"][s] - np.float32(config["state_mean"]))
                    / np.float32(config["state_std"]) for s in range(begin, t + 1)]
            if config["kind"] == "baseline":
                predicted = model(torch.from_numpy(seen[-1])[None])
            else:
                to_go = [data["rewards"][s:last].sum() / config["return_scale"] for s in range(begin, t + 1)]
                window = {"states": np.array(seen), "actions": data["actions"][begin:t + 1],
                          "returns_to_go": np.float32(to_go)[:, None],
                          "timesteps": np.arange(begin - first, t + 1 - first)}
                predicted = model(**{name: torch.from_numpy(x)[None] for name, x in window.items()})[0, -1:]
            action = torch.from_numpy(data["actions"][t:t + 1])
            loss = F.cross_entropy if config["discrete"] else F.mse_loss
            total += loss(predicted, action).item()
    return total / len(data["rewards"])


def heldout_loss(model, config, data):
    return imitation.loss_of(*imitation.predictions(model, config, data), config)


def same(model, config, data):
    with torch.no_grad():
        expected = plainly(model, config, data)
    assert heldout_loss(model, config, data) == pytest.approx(expected, rel=1e-4)


def test_it_equals_a_plain_computation():
    config, data = config_of("dt", context=4, dropout=0.5), continuous()
    torch.manual_seed(0)
    model = DecisionTransformer(dt_trunk(width=16, dropout=0.5), 11, 3, 1000, "linear", bf16=True)
    random = torch.get_rng_state()
    # in evaluation mode and float32, whatever the run is in
    with torch.no_grad():
        for p in model.trunk.parameters():
            p.mul_(20)  # or bfloat16 would round to the same loss
    ours = heldout_loss(model, config, data)
    assert torch.equal(torch.get_rng_state(), random) and model.bf16
    model.bf16 = False
    with torch.no_grad():
        assert ours == pytest.approx(plainly(model.eval(), config, data), rel=1e-5)
        assert ours != pytest.approx(plainly(model.eval(), config | {"context": 1}, data), rel=1e-4)


def test_windows_in_several_batches_count_alike(monkeypatch):
    config, data = config_of("dt", context=4), continuous()
    torch.manual_seed(0)
    model = DecisionTransformer(dt_trunk(width=16), 11, 3, 1000, "linear").eval()
    whole = heldout_loss(model, config, data)
    monkeypatch.setattr(imitation, "STEPS", 8)
    assert heldout_loss(model, config, data) == pytest.approx(whole, rel=1e-5)


def test_buttons_are_measured_by_their_cross_entropy():
    config, data = config_of("dt", "breakout-medium", context=3), frames()
    torch.manual_seed(0)
    trunk = dt_trunk(width=16, positions=9)
    model = DecisionTransformer(trunk, (4, 84, 84), 4, 4096, "mlp", pixels=True).eval()
    same(model, config, data)


def test_buttons_are_measured_where_another_one_is_pressed_too(monkeypatch):
    config, data = config_of("dt", "breakout-medium", context=3), frames()
    offsets, actions = data["offsets"], data["actions"]
    presses = [t for first, last in zip(offsets[:-1], offsets[1:], strict=True) for t in range(first, last)
               if t == first or actions[t] != actions[t - 1]]
    assert 0 < len(presses) < len(actions) and np.flatnonzero(imitation.decisions(data)).tolist() == presses
    torch.manual_seed(0)
    model = DecisionTransformer(dt_trunk(width=16, positions=9), (4, 84, 84), 4, 4096, "mlp", pixels=True)
    found = imitation.columns(model, config, (data, {"floor_loss": None, "episodes": [1], "sha256": "0"}), 5)
    predicted, pressed = imitation.predictions(model, config, data)
    assert len(predicted) == len(actions) and pressed.tolist() == actions.tolist()
    wrong = [predicted[t].argmax().item() != actions[t] for t in presses]
    assert 0 < sum(wrong) and float(found["heldout_decisions"]) == pytest.approx(np.mean(wrong), rel=1e-5)
    assert float(found["heldout_loss"]) == pytest.approx(F.cross_entropy(predicted, pressed).item(), rel=1e-5)


@pytest.mark.parametrize("task", ["hopper-medium", "breakout-medium"])
def test_cloning_is_measured_from_single_states(task):
    config = config_of("bc", task)
    data = frames() if config["pixels"] else continuous()
    torch.manual_seed(0)
    actor = build_actor(config)
    same(actor, config, data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keep(name, **provenance):
    artifacts.save_arrays(artifacts.heldout_path(f"paper/{name}"), {
        "data": "d@1", "episodes": [7, 8, 9], "floor_loss": None} | provenance, continuous())


def test_a_cell_has_its_own_episodes_before_the_tasks(folder):
    config = config_of("lamo")
    assert imitation.load_heldout(config) is None
    keep("hopper-medium")
    assert imitation.load_heldout(config)[1]["episodes"] == [7, 8, 9]
    keep("hopper-medium-0.1", episodes=[5])
    assert imitation.load_heldout(config)[1]["episodes"] == [5]
    assert imitation.load_heldout(config | {"cell": "hopper-medium-0.01"})[1]["episodes"] == [7, 8, 9]
    for method in ("td3bc", "iql", "cql"):  # which do not mean to do what the data did
        assert imitation.load_heldout(config_of(method)) is None
        assert imitation.episodes_of(config_of(method))[1]["episodes"] == [5]
    for method in ("bc", "dt", "wiki", "lamo-frozen"):
        assert imitation.load_heldout(config_of(method)) is not None


def test_episodes_of_other_data_measure_nothing(folder):
    keep("hopper-medium", data="mini-hopper-sac@2")
    assert imitation.load_heldout(config_of("dt", data="mini-hopper-sac@1")) is None
    assert imitation.load_heldout(config_of("dt", data="mini-hopper-sac@2")) is not None
    keep("hopper-medium", data="mini-pong-script@2")  # a script's digest is of what it played
    assert imitation.load_heldout(config_of("dt", data="mini-pong-script@1")) is not None
    assert imitation.load_heldout(config_of("dt", data="mini-qbert-script@2")) is None


def test_episodes_that_were_trained_on_are_refused(folder):
    keep("hopper-medium-0.1", episodes=[1, 9])
    with pytest.raises(SystemExit, match="holds episode 1, .* prepare_data.py paper/hopper-medium-0.1"):
        imitation.load_heldout(config_of("dt"))


def test_nothing_that_trains_knows_of_them():
    for name in ("train.py", "baselines.py", "model.py", "kit/runs.py"):
        assert "heldout" not in (Path(__file__).parent.parent.parent / name).read_text()


def test_the_loss_in_training_stands_beside_it(folder):
    run = artifacts.run_folder(f"{CELL}/dt/seed0")
    artifacts.write_csv(run / "train.csv", ("step", "action_loss"),
                        [{"step": 25, "action_loss": 0.5}, {"step": 50, "action_loss": 0.25}])
    model = DecisionTransformer(dt_trunk(width=16), 11, 3, 1000, "linear")
    assert imitation.columns(model, config_of("dt"), None, 50) == {"train_loss": "0.25"}
    assert imitation.columns(model, config_of("dt"), None, 40) == {}
    keep("hopper-medium", floor_loss=0.0125)
    found = imitation.columns(model, config_of("dt"), imitation.load_heldout(config_of("dt")), 25)
    loss = heldout_loss(model, config_of("dt"), continuous())
    assert float(found["heldout_loss"]) == pytest.approx(loss, rel=1e-5)
    assert (found["heldout_episodes"], found["heldout_floor"], found["train_loss"]) == (3, "0.0125", "0.5")
    # DT has no language, and Hopper no buttons
    assert {*found} == {*artifacts.LOSS_COLUMNS} - {"bits_per_byte", "heldout_decisions"}


def test_what_is_left_of_a_language_model(tiny_gpt2, monkeypatch):
    """Bits per byte: of each next token in windows of its positions, with what LoRA has done."""
    config = configuration("mini/hopper-medium-0.1/lamo/seed0", lm=str(tiny_gpt2), dtype="float32")
    torch.manual_seed(0)
    model = build_model(config | {"dropout": 0.5})
    monkeypatch.setattr(imitation, "CHARACTERS", 1000)
    imitation.prose.cache_clear()
    before = imitation.bits_per_byte(model, config)
    text = imitation.PROSE.read_text()[:1000]
    ids, nats = load_tokenizer(str(tiny_gpt2))(text)["input_ids"], 0.0
    whole = load_language_model(str(tiny_gpt2), 0.0).eval()
    with torch.no_grad():
        for first in range(0, len(ids), 64):
            part = torch.tensor(ids[first:first + 64])
            if len(part) > 1:
                nats += F.cross_entropy(whole(part[None, :-1]).logits[0], part[1:], reduction="sum").item()
        assert before == pytest.approx(nats / np.log(2) / len(text.encode()), rel=1e-5)
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(0.5)
    assert imitation.bits_per_byte(model, config) != pytest.approx(before, rel=1e-4)
    imitation.prose.cache_clear()


def test_the_bits_that_ship_are_those_of_the_model_that_ships():
    """A frozen trunk keeps its language."""
    with gzip.open(KIT / "results/shipped/mini/hopper-medium-0.01-dN.csv.gz", "rt") as file:
        known = {float(row["bits_per_byte"]) for row in csv.DictReader(file)
                 if row["method"] == "lamo-frozen"}
    config = configuration("mini/hopper-medium-0.01/lamo-frozen/seed0", dtype="float32")
    found = imitation.bits_per_byte(build_model(config), config)
    assert known and all(bits == pytest.approx(found, rel=1e-4) for bits in known)


def test_prose_is_read_in_windows_of_trainings_text(tiny_gpt2, monkeypatch):
    config = configuration("mini/hopper-medium-0.1/lamo/seed0", lm=str(tiny_gpt2), dtype="float32",
                           lm_block=32)
    model, parts = build_model(config), []
    monkeypatch.setattr(imitation, "CHARACTERS", 1000)
    imitation.prose.cache_clear()
    loss = model.language_loss
    monkeypatch.setattr(model, "language_loss",
                        lambda ids, **how: parts.append(ids.shape[1]) or loss(ids, **how))
    imitation.bits_per_byte(model, config)
    imitation.prose.cache_clear()
    assert max(parts) == 32


def test_discrete_bcs_loss_in_training_holds_a_penalty_and_is_left_out(folder):
    for task, has in (("hopper-medium", 0.5), ("breakout-medium", None)):
        config = configuration(f"paper/{task}-0.1/bc/seed0")
        path = artifacts.run_folder(runs.run_of(config)) / "train.csv"
        artifacts.write_csv(path, ("step", "actor_loss"), [{"step": 5, "actor_loss": 0.5}])
        assert imitation.training_loss(config, 5) == has


def without_unknown(folder):
    """A tokenizer that knows one word, and nothing else."""
    words = Tokenizer(models.WordLevel({"the": 0}, "?"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)


@pytest.mark.parametrize("spoil, said", [
    (lambda folder: [shutil.copy(KIT / "mini/weights/lm" / name, folder) for name in (
        "tokenizer.json", "tokenizer_config.json")], "it says token .*, and the model embeds 300"),
    (without_unknown, "Missing")])
def test_a_tokenizer_that_is_another_models_leaves_bits_empty(tiny_gpt2, folder, capsys, spoil, said):
    lm = shutil.copytree(tiny_gpt2, folder / "lm")
    spoil(Path(lm))
    config = config_of("lamo", lm=str(lm), dtype="float32")
    run = artifacts.run_folder(f"{CELL}/lamo/seed0")
    artifacts.write_csv(run / "train.csv", ("step", "action_loss"), [{"step": 5, "action_loss": 0.5}])
    assert "bits_per_byte" not in imitation.columns(build_model(config), config, None, 5)
    assert re.search(f"bits_per_byte stays empty, for want of .*{said}", capsys.readouterr().out)


def test_ataris_bits_are_measured_with_positions_whoever_released_it():
    bits = set()
    for method in ("lamo", "lamo-released"):
        config = configuration(f"mini/breakout-medium-0.1/{method}/seed0", dtype="float32")
        torch.manual_seed(0)
        bits.add(round(imitation.bits_per_byte(build_model(config), config), 4))
    assert len(bits) == 1


def test_a_language_model_without_a_tokenizer_is_measured_but_for_its_words(tiny_lm, folder, capsys):
    config = config_of("lamo", lm=str(tiny_lm), dtype="float32")
    keep("hopper-medium-0.1")
    run = artifacts.run_folder(f"{CELL}/lamo/seed0")
    artifacts.write_csv(run / "train.csv", ("step", "action_loss"), [{"step": 5, "action_loss": 0.5}])
    found = imitation.columns(build_model(config), config, imitation.load_heldout(config), 5)
    assert float(found["heldout_loss"]) > 0 and "bits_per_byte" not in found
    assert capsys.readouterr().out.startswith("bits_per_byte stays empty, for want of")
