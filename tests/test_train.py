"""train.py: batches, the language loss, equal bytes, resumption, and damaged files."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import one_line

import tasks
import train

RUN = "paper/hopper-medium-0.1/dt/seed0"
SHORT = ("--steps", "12", "--eval_every", "4", "--log_every", "2", "--batch_size", "8", "--context", "5")


CONFIG = tasks.configuration("paper/hopper-medium-0.1/dt/seed0")


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


def test_named_returns_and_rewards(data):
    """The released Atari code leaves the step's own reward out; the kitchen's data have two kinds."""
    plain = train.training_arrays(data, CONFIG | {"return_scale": 2.0})[0]["returns_to_go"][:, 0].numpy()
    later = train.training_arrays(data, CONFIG | {"return_scale": 2.0, "returns": "exclusive"})[0]
    assert np.allclose(later["returns_to_go"][:, 0], plain - data["rewards"] / 2, atol=1e-5)
    data["dataset_rewards"] = np.ones(18, np.float32)
    counted = train.training_arrays(data, CONFIG | {"return_scale": 1.0, "kitchen_reward": "dataset"})[0]
    assert counted["returns_to_go"][:3, 0].tolist() == [3, 2, 1]


def test_learning_rates():
    atari = tasks.configuration("paper/qbert-medium-1/lamo/seed0")
    rates = np.array([train.learning_rate(atari, step, 1.0) for step in range(atari["steps"])])
    assert rates.argmax() == atari["warmup"] - 1 and rates.max() == atari["lr"]
    assert (np.diff(rates[atari["warmup"]:]) <= 0).all() and rates[-1] == pytest.approx(atari["lr"] / 10)
    # as released, with every action counted: the warm-up ends near step 442, the first minimum is near
    # 11,600, and by step 50,000 the cosine has swung about 18 times
    released = tasks.configuration("paper/qbert-medium-1/lamo-released/seed0")
    rates = np.array([train.learning_rate(released, step, 1.0) for step in range(50_000)]) / released["lr"]
    assert 438 <= rates[:1000].argmax() <= 446 and rates.max() <= 1 and rates[1000:].min() == 0.1
    swings = 1 + np.count_nonzero(np.diff(np.sign(rates[500:] - 0.55)))
    assert 17 <= swings <= 20 and rates[8_200:11_637].max() < 0.55 < rates[16_000]
    constant = [train.learning_rate(CONFIG, step, 1.0) for step in (0, 2_499, 2_500, 99_999)]
    assert constant == pytest.approx([1e-4 / 2_500, 1e-4, 1e-4, 1e-4])


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


# --- whole runs --------------------------------------------------------------------------------

@pytest.fixture
def prepared(kit, d4rl_folder):
    kit("prepare_data.py", "paper/hopper-medium-0.1", "--data", str(d4rl_folder))
    return kit


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
    prepared("train.py", RUN, *SHORT)
    assert files(folder) == once

    # Kill -9 as soon as the first checkpoint lies there; the same command goes on to the same bytes.
    for path in folder.iterdir():
        path.unlink()
    running = subprocess.Popen([sys.executable, "train.py", RUN, *SHORT], cwd=prepared.folder,
                               env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not (folder / "state.safetensors").exists() and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (folder / "final.safetensors").exists(), "the run ended before it could be killed"
    assert "resuming at step" in prepared("train.py", RUN, *SHORT).stdout
    assert files(folder) == once

    prepared("train.py", RUN.replace("seed0", "seed1"), *SHORT)
    other = files(prepared.folder / "runs" / RUN.replace("seed0", "seed1"))
    assert other["final.safetensors"] != once["final.safetensors"]


def test_other_settings_do_not_resume(prepared):
    folder = prepared.folder / "runs" / RUN
    prepared("train.py", RUN, *SHORT)
    state = {name: p for name, p in train.load_tensors(folder / "final.safetensors")[0].items()}
    train.save_tensors(folder / "state.safetensors", state, step=8)  # as a killed run of old would leave
    out = prepared("train.py", RUN, *SHORT, "--lr", "0.5").stdout
    assert "resuming" not in out
    with open(folder / "train.csv") as file:
        assert [row["lr"] for row in csv.DictReader(file)][0].startswith("0.0004")


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

    line = one_line(prepared("train.py", run, *SHORT, *lm, "--lm_weight", "0.1", check=False))
    assert "text-tiny-gpt2.npz" in line
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 200)
    prepared("prepare_data.py", "paper/text", "--lm", str(tiny_gpt2), "--text", str(tmp_path / "text.txt"))
    prepared("train.py", run, *SHORT, *lm, "--lm_weight", "0.1")
    assert all(3 < float(row["language_loss"]) < 8 for row in rows())  # log(300) = 5.7 at random
    assert files(folder)["final.safetensors"] != without


def test_lamo_saves_what_trains_and_nothing_else(prepared, tiny_gpt2):
    run = RUN.replace("/dt/", "/lamo/")
    prepared("train.py", run, *SHORT, "--lm", str(tiny_gpt2))
    tensors, metadata = train.load_tensors(prepared.folder / "runs" / run / "final.safetensors")
    config = train.load_config(prepared.folder / "runs" / run)
    assert sum(t.numel() for t in tensors.values()) == config["parameters"]["trainable"]
    assert not [name for name in tensors if "mlp" in name or "wte" in name or "c_attn.base.weight" in name]
    assert any((t != 0).any() for name, t in tensors.items() if name.endswith("lora_B"))
    assert metadata["run"] == run and metadata["step"] == 12
    assert config["lm_id"].startswith("tiny-gpt2@") and config["data"].startswith("hopper_medium-v2.hdf5@")
    assert len(config["state_mean"]) == 11


def test_a_damaged_checkpoint_is_refused(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "a.safetensors"
    train.save_tensors(path, {"x": torch.randn(50, 7), "y": torch.randn(3)}, step=1)
    whole = path.read_bytes()
    expected, _ = train.load_tensors(path)
    silent = 0
    for where in range(0, len(whole), 11):
        path.write_bytes(whole[:where] + bytes([whole[where] ^ 1]) + whole[where + 1:])
        try:
            tensors, _ = train.load_tensors(path)
        except SystemExit as stop:
            assert "damaged" in str(stop)
            continue
        silent += set(tensors) != set(expected) or any(
            not torch.equal(tensors[name], expected[name]) for name in expected)
    assert silent == 0


def test_a_loss_that_is_not_finite_stops_the_run(prepared):
    done = prepared("train.py", RUN, *SHORT, "--lr", "1e30", check=False)
    assert done.returncode != 0
    assert not (prepared.folder / "runs" / RUN / "final.safetensors").exists()
    assert "became" in done.stderr.splitlines()[-1] and "--lr" in done.stderr.splitlines()[-1]


# --- settings ----------------------------------------------------------------------------------

def test_the_papers_settings():
    lamo = tasks.configuration("paper/hopper-medium-0.01/lamo/seed2")
    assert lamo == lamo | {
        "env": "Hopper-v4", "lm": "gpt2", "steps": 100_000, "warmup": 2_500, "lr": 1e-4, "weight_decay": 1e-5,
        "batch_size": 64, "context": 20, "lora_rank": 16, "lora_alpha": 32, "dropout": 0.1, "grad_clip": 0.25,
        "embeddings": "linear", "lm_weight": 0.0, "return_scale": 1000.0, "target_returns": (3600.0, 1800.0),
        "eval_every": 2_500, "score_window": 8, "episodes": 20, "seed": 2, "ratio": 0.01}
    dt = tasks.configuration("paper/hopper-medium-0.01/dt/seed2")
    differs = {key for key in lamo if lamo[key] != dt[key]}
    assert differs == {"method", "lm", "trunk", "train", "weight_decay", "adam_eps"}


def test_help_is_instant_and_names_every_setting(kit):
    start = time.time()
    shown = kit("train.py", "--help").stdout
    assert time.time() - start < 2
    assert all(f"--{name}" in shown for name in tasks.DEFAULTS)


def test_an_unknown_method_ends_in_one_line(kit):
    line = one_line(kit("train.py", "mini/hopper-medium-0.01/nonsense/seed0", check=False))
    assert "nonsense" in line and "lamo" in line and "dt" in line
