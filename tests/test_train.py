"""train.py: batches, the language loss, equal bytes, resumption, and damaged files."""

import csv
import json
import time

import numpy as np
import pytest
import torch
from conftest import one_line, save_cell

import baselines
import tasks
import train
from benchmark.models import dataset
from kit import artifacts, settings
from kit.language_models import tokenizer_digest
from model import build_model

RUN = "paper/hopper-medium-0.1/dt/seed0"
SHORT = ("--steps", "12", "--eval_every", "4", "--log_every", "2", "--batch_size", "8", "--context", "5")


CONFIG = settings.configuration("paper/hopper-medium-0.1/dt/seed0")


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    lengths = np.array([3, 9, 6])
    return {"observations": rng.normal(2, 3, (18, 4)).astype(np.float32),
            "actions": rng.normal(size=(18, 2)).astype(np.float32),
            "rewards": rng.uniform(0, 2, 18).astype(np.float32),
            "offsets": np.concatenate([[0], np.cumsum(lengths)])}


# --- batches -----------------------------------------------------------------------------------

def test_training_arrays(data):
    arrays, ends, mean, std = train.training_arrays(data, CONFIG | {"return_scale": 10.0})
    for a, b in zip(data["offsets"][:-1], data["offsets"][1:], strict=True):
        for t in range(a, b):  # the sum from t on, t included, over the scale
            assert arrays["returns_to_go"][t, 0] == pytest.approx(data["rewards"][t:b].sum() / 10, rel=1e-5)
            assert arrays["timesteps"][t] == t - a
            assert ends[t] == b
    states = arrays["states"].numpy()
    assert np.allclose(states.mean(0), 0, atol=1e-5) and np.allclose(states.std(0), 1, atol=1e-4)
    assert np.allclose(states * std + mean, data["observations"], atol=1e-4)


def test_what_hardly_moves_is_divided_by_the_least_deviation(data):
    data["observations"][:, 1] *= 1e-3
    arrays, _, mean, std = train.training_arrays(data, CONFIG | {"least_std": 0.05})
    assert std[1] == np.float32(0.05) and arrays["states"][:, 1].std() < 0.1
    assert np.allclose(np.delete(std, 1), np.delete(data["observations"].std(0), 1), rtol=1e-4)
    assert np.allclose(arrays["states"] * std + mean, data["observations"], atol=1e-4)
    assert settings.configuration("mini/kitchen-partial-1/bc/seed0")["least_std"] == 0.05


def test_named_returns_and_rewards(data):
    """The released Atari code leaves the step's own reward out; in the kitchen it counts what is done."""
    released = CONFIG | {"released": True}
    data["dataset_rewards"] = np.ones(18, np.float32)
    counted = train.training_arrays(data, released | {"return_scale": 1.0})[0]
    assert counted["returns_to_go"][:3, 0].tolist() == [3, 2, 1]
    del data["dataset_rewards"]
    data["observations"] = np.zeros((18, 84, 84), np.uint8)
    atari = {"pixels": True, "return_scale": 2.0}
    plain = train.training_arrays(data, CONFIG | atari)[0]["returns_to_go"][:, 0].numpy()
    later = train.training_arrays(data, released | atari)[0]
    assert np.allclose(later["returns_to_go"][:, 0], plain - data["rewards"] / 2, atol=1e-5)


def test_learning_rates():
    atari = settings.configuration("paper/qbert-medium-1/lamo/seed0")
    rates = np.array([train.learning_rate(atari, step, 1.0) for step in range(atari["steps"])])
    assert rates.argmax() == atari["warmup"] - 1 and rates.max() == atari["lr"]
    assert (np.diff(rates[atari["warmup"]:]) <= 0).all() and rates[-1] == pytest.approx(atari["lr"] / 10)
    # as released, with every action counted: the warm-up ends near step 442, the first minimum is near
    # 11,600, and by step 50,000 the cosine has swung about 18 times
    released = settings.configuration("paper/qbert-medium-1/lamo-released/seed0")
    rates = np.array([train.learning_rate(released, step, 1.0) for step in range(50_000)]) / released["lr"]
    assert 438 <= rates[:1000].argmax() <= 446 and rates.max() <= 1 and rates[1000:].min() == 0.1
    swings = 1 + np.count_nonzero(np.diff(np.sign(rates[500:] - 0.55)))
    assert 17 <= swings <= 20 and rates[8_200:11_637].max() < 0.55 < rates[16_000]
    short = atari | {"steps": atari["warmup"]}  # which ends as the warm-up does
    assert train.learning_rate(short, short["steps"] - 1, 1.0) == pytest.approx(atari["lr"])
    constant = [train.learning_rate(CONFIG, step, 1.0) for step in (0, 2_499, 2_500, 99_999)]
    assert constant == pytest.approx([1e-4 / 2_500, 1e-4, 1e-4, 1e-4])


def test_the_released_schedule_counts_the_share_of_buttons_that_act(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames, shares, rate = np.zeros((8, 84, 84), np.uint8), [], train.learning_rate
    arrays = {"observations": frames, "actions": np.array([0, 1, 0, 2, 0, 3, 0, 0]),
              "rewards": np.zeros(8, np.float32), "terminals": np.arange(8) == 7, "offsets": np.array([0, 8]),
              "last_observations": frames[:1]}
    provenance = {"data": "d@1", "episodes": [0], "return_mean": 1.0, "reference_min": 0.0,
                  "reference_max": 1.0}
    artifacts.save_arrays(artifacts.dataset_path("mini/breakout-medium-1"), provenance, arrays)
    monkeypatch.setattr(train, "learning_rate", lambda *words: shares.append(words[2]) or rate(*words))
    train.train("mini/breakout-medium-1/lamo-released/seed0", "cpu", steps=1, batch_size=1, context=2,
                lm_layers=1)
    assert {*shares} == {3 / 8}


def test_data_that_the_environment_does_not_have_are_one_line(monkeypatch):
    atari = settings.configuration("paper/breakout-medium-1/dt/seed0")  # with four buttons
    states, frames = np.zeros((3, 11), np.float32), np.zeros((3, 84, 84), np.uint8)
    motions, buttons = np.zeros((3, 3), np.float32), np.array([0, 1, 3])
    for config, observations, actions, good in (
            (CONFIG, states, motions, True), (CONFIG, states[:, :9], motions, False),
            (CONFIG, states, motions[:, :2], False), (CONFIG, states, buttons, False),
            (atari, frames, buttons, True), (atari, frames, buttons + 1, False),
            (atari, frames[:, :80], buttons, False), (atari, states, buttons, False)):
        found = {"observations": observations, "actions": actions}, {"data": "some"}
        monkeypatch.setattr(artifacts, "load_dataset", lambda path, found=found: found)
        if good:
            assert train.load_data(config)[0] is found[0]
        else:
            with pytest.raises(SystemExit, match=f"{config['env']} does not have; .* delete it and make it"):
                train.load_data(config)


def test_a_text_that_is_no_batch_or_moves_nothing_is_one_line(tmp_path, monkeypatch, tiny_gpt2):
    monkeypatch.chdir(tmp_path)
    config = settings.configuration("paper/hopper-medium-0.1/lamo/seed0", lm=str(tiny_gpt2), lm_weight=0.1,
                                    lm_block=16, lm_batch_size=2)
    path = artifacts.text_path("paper", tokenizer_digest(str(tiny_gpt2)))
    for count in (31, 32):
        artifacts.save_arrays(path, {"text": "some"}, {"tokens": np.arange(count, dtype=np.uint16)})
        if count == 31:
            with pytest.raises(SystemExit, match="has 31 tokens, a batch needs 32; give a longer TEXT="):
                train.load_text(config)
    tokens, text = train.load_text(config)
    assert len(tokens) == 32 and text["text"] == "some"
    with pytest.raises(SystemExit, match="nothing of the language model trains here"):
        train.load_text(config | {"train": "nothing"})
    # ids of another tokenizer, which the model has no words for
    save_cell(tmp_path)
    monkeypatch.setattr(train, "load_text", lambda config: (tokens + 300, text))
    with pytest.raises(SystemExit, match="tokenizer says token 331, and the model embeds 300"):
        train.train("paper/hopper-medium-0.1/lamo/seed0", "cpu", steps=1, batch_size=2, context=2,
                    lm=str(tiny_gpt2), lm_weight=0.1, lm_block=16, lm_batch_size=2)
    assert not (tmp_path / "runs").exists()


def test_windows_are_padded_on_the_right_and_stay_in_their_episode(data):
    arrays, ends, _, _ = train.training_arrays(data, CONFIG | {"return_scale": 1.0})
    arrays["row"] = torch.arange(18)
    batch, mask = train.sample_batch(arrays, ends, np.random.default_rng(0), 500, 4)
    assert batch["states"].shape == (500, 4, 4) and mask.shape == (500, 4)
    lengths = set()
    for rows, timesteps, valid in zip(batch["row"], batch["timesteps"], mask, strict=True):
        n = int(valid.sum())
        lengths.add(n)
        assert valid[:n].all()
        rows = rows[:n]
        assert (rows.diff() == 1).all() and (timesteps[:n].diff() == 1).all()
        assert n == 4 or rows[-1] + 1 in data["offsets"]             # short only at an episode's end
    assert lengths == {1, 2, 3, 4}
    starts = np.bincount(batch["row"][:, 0], minlength=18)
    assert (starts > 10).all()                                       # every row starts windows


def test_text_batches_use_every_block_once_an_epoch():
    tokens = np.repeat(np.arange(11), 7)[:75]  # 10 whole blocks of 7
    config = {"lm_block": 7, "lm_batch_size": 3, "seed": 0}
    epochs = []
    for epoch in range(2):
        seen = torch.cat([train.text_batch(tokens, 3 * epoch + step, config) for step in range(3)])
        assert seen.shape == (9, 7) and (seen == seen[:, :1]).all()
        epochs.append(seen[:, 0].tolist())
        assert len(set(epochs[-1])) == 9
    assert epochs[0] != epochs[1]
    assert not torch.equal(*(train.text_batch(tokens, 0, config | {"seed": seed}) for seed in (0, 2)))


def test_a_batch_takes_as_long_from_a_million_steps():
    """No bound on seconds, which a busy machine breaks; it must not grow with the data."""
    config = settings.configuration("mini/hopper-medium-1/dt/seed0")

    def seconds(rows):
        arrays, ends = dataset(rows, config)
        rng, best = np.random.default_rng(0), 1.0
        for _ in range(30):
            start = time.perf_counter()
            for _ in range(10):
                train.sample_batch(arrays, ends, rng, 64, 20)
            best = min(best, (time.perf_counter() - start) / 10)
        return best

    assert seconds(1_000_000) < 10 * seconds(10_000)


def test_the_step_descends_the_papers_loss():
    """Its gradients are those of action_loss + lm_weight * language_loss, and the weight counts."""
    config = settings.configuration("mini/kitchen-complete-1/lamo/seed0", lm_weight=0.7, grad_clip=1e9)
    torch.manual_seed(0)
    model, ids = build_model(config).train(), torch.randint(0, 100, (2, 30))
    batch = {"states": torch.randn(4, 5, 60), "actions": torch.rand(4, 5, 9),
             "returns_to_go": torch.rand(4, 5, 1), "timesteps": torch.arange(5).repeat(4, 1)}
    mask = torch.ones(4, 5, dtype=torch.bool)
    row = train.training_step(model, torch.optim.SGD(model.parameters(), lr=0.0), config, batch, mask, ids)
    found = {name: p.grad.clone() for name, p in train.trainable(model).items() if p.grad is not None}
    model.zero_grad()
    action_loss = (model(**batch, attention_mask=mask) - batch["actions"]).square().mean()
    loss = action_loss + 0.7 * model.language_loss(ids)
    loss.backward()
    assert row["action_loss"] + 0.7 * row["language_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
    lora = [name for name in found if name.endswith("lora_B")]
    assert lora and all(found[name].abs().sum() > 0 for name in lora)


# --- whole runs --------------------------------------------------------------------------------

@pytest.fixture
def prepared(kit, d4rl_folder):
    kit("prepare_data.py", "paper/hopper-medium-0.1", "--data", str(d4rl_folder))
    return kit


def read_config(kit, run):
    return json.loads((kit.folder / "runs" / run / "config.json").read_text())


def files(folder, pattern="*"):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_equal_seeds_give_equal_bytes_and_a_killed_run_resumes_to_them(prepared):
    folder = prepared.folder / "runs" / RUN
    prepared("train.py", RUN, *SHORT)
    once = files(folder)
    assert set(once) == {"config.json", "train.csv", "step-0000004.safetensors", "step-0000008.safetensors",
                         "final.safetensors"}
    for path in folder.iterdir():
        path.unlink()
    prepared("-m", "kit.watch", "train.py", RUN, *SHORT)  # and being watched leaves no trace in them
    assert {*files(folder)} - {*once} == {"log.txt", "cost.json"}
    for name in ("log.txt", "cost.json"):
        (folder / name).unlink()
    assert files(folder) == once

    # killed at its first checkpoint, the same command goes on to the same bytes
    for path in folder.iterdir():
        path.unlink()
    kill_after_a_checkpoint(prepared, RUN, *SHORT)
    assert "resuming at step" in prepared("train.py", RUN, *SHORT).stdout
    assert files(folder) == once


def test_seeds_start_from_other_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path)
    for stage, method in ((train, "dt"), (baselines, "bc")):
        first = []
        for seed in (0, 1):
            run = f"paper/hopper-medium-0.1/{method}/seed{seed}"
            stage.train(run, "cpu", steps=1, batch_size=2, lr=1e-12, actor_lr=1e-12)
            first.append(artifacts.load_tensors(artifacts.run_folder(run) / "final.safetensors")[0])
        assert any(not torch.allclose(first[0][name], first[1][name], atol=1e-3) for name in first[0])


def test_biases_norms_and_times_do_not_decay():
    config = settings.configuration("mini/pong-medium-1/dt/seed0")
    model = build_model(config)
    decay, rest = train.make_optimizer(model, config).param_groups
    assert decay["weight_decay"] == config["weight_decay"] > 0 == rest["weight_decay"]
    spared = {id(p) for p in rest["params"]}
    for name, p in train.trainable(model).items():
        assert (id(p) in spared) == (p.dim() < 2 or name == "embed_timestep.weight"), name


def kill_after_a_checkpoint(kit, run, *settings):
    """Start a training and kill -9 it as soon as its first state lies there."""
    kit.until(f"runs/{run}/state.safetensors", "train.py", run, *settings)
    assert not (kit.folder / f"runs/{run}/final.safetensors").exists(), "it ended before it could be killed"


def test_a_run_with_other_settings_is_refused_and_nothing_is_lost(prepared):
    """Finished or killed, until --replace; a finished run is left alone, until --fresh."""
    folder, longer = prepared.folder / "runs" / RUN, (*SHORT, "--steps", "40")
    kill_after_a_checkpoint(prepared, RUN, *longer)
    killed = files(folder)
    line = one_line(prepared("train.py", RUN, *longer, "--lr", "0.5", check=False))
    assert "killed run in which lr is 0.0001, not 0.5" in line and "--replace" in line
    assert files(folder) == killed

    prepared("train.py", RUN, *SHORT, "--replace")
    finished = files(folder)
    with open(folder / "train.csv") as file:
        assert [row["step"] for row in csv.DictReader(file)][-1] == "12"
    line = one_line(prepared("train.py", RUN, *SHORT, "--dropout", "0.3", check=False))
    assert "finished run in which dropout is 0.1, not 0.3" in line
    assert "is finished" in prepared("train.py", RUN, *SHORT).stdout
    # how it is played is no other run
    assert "is finished" in prepared("train.py", RUN, *SHORT, "--episodes", "3", "--replace").stdout
    assert files(folder) == finished
    stamp = (folder / "final.safetensors").stat().st_mtime_ns
    assert "done" in prepared("train.py", RUN, *SHORT, "--fresh").stdout
    assert files(folder) == finished and (folder / "final.safetensors").stat().st_mtime_ns > stamp


def test_a_killed_run_goes_on_with_another_number_of_threads_and_says_so(prepared):
    folder, longer = prepared.folder / "runs" / RUN, (*SHORT, "--steps", "40")
    kill_after_a_checkpoint(prepared, RUN, *longer)
    before = {path.name for path in folder.glob("step-*")}
    # two threads that wait for each other by spinning take minutes where other tests want the cores, too
    out = prepared("train.py", RUN, *longer, OMP_NUM_THREADS="2", OMP_WAIT_POLICY="PASSIVE").stdout
    assert "resuming at step" in out and "threads 2" in out
    assert before <= {path.name for path in folder.glob("step-*")}
    config = read_config(prepared, RUN)
    assert config["threads"] == 1
    assert config["resumed"][0]["threads"] == 2 and config["resumed"][0]["step"] >= 4


def test_the_language_loss_is_in_the_loss_and_its_text_loaded_only_then(prepared, tiny_gpt2, tmp_path):
    lm = ("--lm", str(tiny_gpt2), "--lm_block", "16")
    run = RUN.replace("/dt/", "/lamo/")
    prepared("train.py", run, *SHORT, *lm)  # weight 0: no text file, no complaint
    folder = prepared.folder / "runs" / run
    def rows():
        with open(folder / "train.csv") as file:
            return list(csv.DictReader(file))
    assert all(float(row["language_loss"]) == 0 for row in rows())
    without = files(folder)["final.safetensors"]

    line = one_line(prepared("train.py", run, *SHORT, *lm, "--lm_weight", "0.1", "--replace", check=False))
    assert f"text-{tokenizer_digest(str(tiny_gpt2))}.npz" in line
    assert f"prepare_data.py paper/text --lm {tiny_gpt2}" in line
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    prepared("prepare_data.py", "paper/text", "--lm", str(tiny_gpt2), "--text", str(tmp_path / "text.txt"))
    assert files(folder)["final.safetensors"] == without  # a call that fails takes nothing away
    prepared("train.py", run, *SHORT, *lm, "--lm_weight", "0.1", "--replace")
    assert all(3 < float(row["language_loss"]) < 8 for row in rows())  # log(300) = 5.7 at random
    text = artifacts.text_path("paper", tokenizer_digest(str(tiny_gpt2)))
    record, made = read_config(prepared, run)["text"], artifacts.load_provenance(prepared.folder / text)
    assert made.pop("lm") == str(tiny_gpt2) and record == made  # whoever asked for the tokens first
    assert files(folder)["final.safetensors"] != without


def test_a_run_of_another_text_is_another_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_cell(tmp_path, "mini/hopper-medium-1")
    run, short = "mini/hopper-medium-1/lamo-lm1/seed0", {"steps": 1, "batch_size": 2, "lm_block": 8,
                                                         "lm_layers": 1}
    for text in ("one", "two"):
        artifacts.save_arrays(artifacts.text_path("mini", tokenizer_digest("mini")), {"text": text},
                              {"tokens": np.arange(99, dtype=np.uint32)})
        if text == "one":
            train.train(run, "cpu", **short)
    with pytest.raises(SystemExit, match='text.text. is "one", not "two"'):
        train.train(run, "cpu", **short)


def test_lamo_saves_what_trains_and_nothing_else(prepared, tiny_gpt2):
    run = RUN.replace("/dt/", "/lamo/")
    prepared("train.py", run, *SHORT, "--lm", str(tiny_gpt2))
    tensors, metadata = artifacts.load_tensors(prepared.folder / "runs" / run / "final.safetensors")
    config = read_config(prepared, run)
    assert sum(t.numel() for t in tensors.values()) == config["parameters"]["trainable"]
    assert not [name for name in tensors if "mlp" in name or "wte" in name or "c_attn.base.weight" in name]
    assert any((t != 0).any() for name, t in tensors.items() if name.endswith("lora_B"))
    assert metadata["run"] == run and metadata["step"] == 12
    assert config["lm_id"].startswith("tiny-gpt2@") and config["data"].startswith("hopper_medium-v2.hdf5@")
    assert len(config["state_mean"]) == 11


def test_a_loss_that_is_not_finite_stops_the_run(prepared):
    wild = ("--lr", "10", "--warmup", "0", "--grad_clip", "1e9", "--weight_decay", "10", "--steps", "400")
    done = prepared("train.py", RUN, *SHORT, *wild, check=False)
    assert done.returncode != 0
    assert not (prepared.folder / "runs" / RUN / "final.safetensors").exists()
    assert "became" in done.stderr.splitlines()[-1] and "--lr" in done.stderr.splitlines()[-1]


# --- the command line ----------------------------------------------------------------------------------

def test_help_is_instant_and_names_every_setting(kit):
    start = time.time()
    shown = kit("train.py", "--help").stdout
    assert time.time() - start < 2
    assert all(f"--{name}" in shown for name in {*tasks.DEFAULTS} - {*settings.NATURE})
