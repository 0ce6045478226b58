"""Every kind of file that the kit reads, damaged: it is refused in one line, or what is read is the same.

What proves a file is in kit/seals.py; what damages it in tests/damage.py. 100 damages a kind here, 1,000 by
`make test-long`.
"""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KIT, d4rl_arrays, replay_arrays, save_cell, write_d4rl, write_replay
from damage import attack, csv_damages, json_damages
from toy import FOLDER, Killed, killed, train

import prepare_data
from kit import artifacts, fail, plan, seals, settings
from kit.adapters import export_peft, import_peft
from kit.gathering import collect, episodes_of, load_rows, of_run
from kit.language_models import check_folder, input_digests, is_another, load_language_model
from kit.results import load_results
from lora import add_lora, train_only_lora
from mini import players
from sources.played import load_episodes, save_episodes
from tasks import LANGUAGE_MODELS

CELL = "paper/hopper-medium-0.1"
RUN = f"{CELL}/dt/seed0"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- what the kit writes -----------------------------------------------------------------------

@pytest.mark.parametrize("name", ["dataset", "provenance", "text"])
def test_arrays(here, name):
    path = here / artifacts.dataset_path(CELL)
    save_cell(here, episodes=3)
    if name == "text":
        artifacts.save_arrays(path, {"text": "a.txt", "text_sha256": "0" * 64}, {"tokens": np.arange(99) % 7})
    readers = {"dataset": lambda: artifacts.load_dataset(path),
               "provenance": lambda: artifacts.load_provenance(path),
               "text": lambda: artifacts.load_arrays(path, ("tokens",))}
    attack("dataset, text (npz)", path, readers[name], share=2)


def test_provenance_in_a_sound_container(here):
    """What zip's own checksum does not see: the file was written anew around another provenance."""
    path, text = here / artifacts.dataset_path(CELL), here / "provenance.json"
    save_cell(here, episodes=3)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    text.write_text(str(arrays.pop("provenance")))

    def read():
        np.savez(path, provenance=np.array(text.read_text(errors="replace")), **arrays)
        return artifacts.load_dataset(path)
    attack("dataset, text (npz)", text, read, json_damages, share=2)


def test_episodes_that_are_kept_until_all_are_played(here):
    """They are played again."""
    rng = np.random.default_rng(0)
    save_episodes(here, {"player": "a"}, {number: (
        rng.normal(size=(length, 3)), rng.normal(size=(length, 2)), np.ones(length), np.zeros(length, bool),
        np.zeros((1, 3))) for number, length in ((7, 20), (4, 30))})

    def read():
        return load_episodes(here, {"player": "a"}) or fail("its episodes are played again")
    assert {number: len(columns[0]) for number, columns in read().items()} == {7: 20, 4: 30}
    attack("played episodes (npz)", here / "4.npz", read)


def test_a_checkpoint(here):
    path = here / "final.safetensors"
    artifacts.save_tensors(path, {"x": torch.randn(20, 7), "y": torch.arange(3.0)}, run=RUN, step=9)
    attack("checkpoints, training state", path, lambda: artifacts.load_tensors(path))


@pytest.mark.parametrize("name, kind", [
    ("train.csv", "train.csv on resume"), ("config.json", "config.json (evaluation; resume)"),
    ("state.safetensors", "checkpoints, training state")])
def test_a_killed_run_goes_on(here, capsys, name, kind):
    """In the same bytes, or not at all; from the state before, if the newest is damaged."""
    with pytest.raises(Killed):
        train({4: killed}, state_every=0.0)
    shutil.move("runs", "killed")

    def read():
        shutil.rmtree("runs", ignore_errors=True)
        shutil.copytree("killed", "runs")
        train()
        return {path.name: path.read_bytes() for path in FOLDER.iterdir()} | {
            "config.json": seals.read_json(FOLDER / "config.json")}
    attack(kind, Path("killed") / FOLDER.relative_to("runs") / name, read,
           {"train.csv": csv_damages, "config.json": json_damages}.get(name), share=1 + (name != "train.csv"))


@pytest.fixture
def played(here):
    """A finished run's records, as evaluation leaves them."""
    config = settings.configuration(RUN, steps=6, eval_every=3, episodes=2) | {
        "data": "d@1", "data_sha256": "1", "lm_id": "none", "data_episodes": [0, 4], "inputs": {}}
    folder = artifacts.run_folder(RUN)
    artifacts.write_json(folder / "config.json", config)
    how = {name: config[name] for name in (*settings.EVALUATION, "dtype")}
    artifacts.write_json(folder / "eval.json", how)
    rows = [dict.fromkeys(artifacts.RESULT_COLUMNS, "1.5") | of_run(config) | {
                "step": step, "target_return": target, "episode": episode, "return": f"{7.25 * n:.4f}",
                "length": 10 + n} for n, (step, target, episode) in enumerate(episodes_of(config))]
    artifacts.write_csv(folder / "eval.csv", artifacts.RESULT_COLUMNS + artifacts.LOSS_COLUMNS, rows)
    for name in ("step-0000003", "final"):
        (folder / f"{name}.safetensors").touch()
    return folder, seals.read_json(folder / "config.json")


def test_records_at_evaluation(played):
    folder, config = played
    attack("config.json (evaluation; resume)", folder / "config.json",
           lambda: artifacts.checkpoint_paths(RUN), json_damages, share=2)
    attack("eval.json", folder / "eval.json", lambda: plan.played(folder, config), json_damages)


def test_results(played):
    folder, config = played

    def gathered():
        collect(CELL)
        return Path("results/paper/hopper-medium-0.1.csv").read_bytes()
    table = "eval.csv, eval.part.csv, results CSV"
    attack(table, folder / "eval.csv", gathered, csv_damages, share=2)
    attack(table, folder / "eval.csv", lambda: load_rows(folder / "eval.csv", config, whole=False),
           csv_damages)
    attack(table, Path("results/paper/hopper-medium-0.1.csv"), lambda: load_results(CELL), csv_damages)


# --- what ships, and what is brought -------------------------------------------------------------

def test_a_player(here, monkeypatch):
    """Its weights, and the list that pins them; a small one, of the kind that ships."""
    monkeypatch.setattr(players, "WEIGHTS", here)
    rng = np.random.default_rng(0)
    arrays = {f"{layer}/{part}": rng.normal(size=(3, 4)[:2 if part == "weight" else 1])
              for layer in players.LAYERS for part in ("weight", "bias")}
    np.savez(here / "hopper.npz", provenance=np.array("{}"), **arrays)
    seals.write_list(here)
    attack("player npz", here / "hopper.npz", lambda: players.load(here / "hopper.npz"))
    attack("player npz", here / seals.LISTED, lambda: players.load(here / "hopper.npz"), share=4)


def test_all_that_ships_is_listed_and_as_listed():
    for place in LANGUAGE_MODELS.values():
        check_folder(KIT / place)
        assert len((KIT / place / seals.LISTED).read_text().splitlines()) == 7
    for player in players.WEIGHTS.glob("*.npz"):
        seals.check_list(players.WEIGHTS, player.name)
    seals.check_list(KIT / "mini", "heldout.txt")
    for table in ("mini/calibration.csv", "benchmark/record.csv"):  # python -m kit.seals FILE seals it again
        seals.parse_csv((KIT / table).read_text(encoding="utf-8"))


@pytest.fixture
def small(tiny_gpt2, here):
    return Path(shutil.copytree(tiny_gpt2, here / "lm"))


@pytest.mark.parametrize("name, structured", [
    ("model.safetensors", None), ("config.json", json_damages), ("tokenizer.json", json_damages),
    ("tokenizer_config.json", json_damages)])
def test_a_language_model(small, name, structured):
    """In a folder with a list any call refuses it; in one without, all but the first that reads it."""
    config = settings.configuration("paper/hopper-medium-0.1/lamo/seed0", lm=str(small)) | {"adapter": ""}
    record = config | {"inputs": input_digests(config)}

    def of_the_run():
        if is_another(record):  # which evaluate.load_run asks
            raise SystemExit("another language model")
    kind = "the LM's safetensors; its config, tokenizer"
    attack(kind, small / name, of_the_run, structured, share=4)
    seals.write_list(small)
    attack(kind, small / name, lambda: check_folder(small), structured, share=4)


def test_a_language_model_at_its_first_reading_is_no_traceback(small):
    """What nobody has a digest of may be read as another model, but its missing weights are never drawn."""
    path, whole = small / "model.safetensors", (small / "model.safetensors").read_bytes()
    for old, new in ((b"transformer.h.0.ln_1.weight", b"transformer.h.0.ln_1.weighu"), (b"[96]", b"[48]")):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(SystemExit) as stop:
            load_language_model(str(small), 0.0)
        assert "\n" not in str(stop.value) and str(small) in str(stop.value)
    path.write_bytes(whole[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(SystemExit, match="holds values that are no numbers"):
        load_language_model(str(small), 0.0)


@pytest.mark.parametrize("name, structured", [("adapter_config.json", json_damages),
                                              ("adapter_model.safetensors", None), (seals.LISTED, None)])
def test_an_adapter(small, name, structured):
    folder, base = small.parent / "adapter", load_language_model(str(small), 0.0)
    model = load_language_model(str(small), 0.0)
    add_lora(model, rank=2, alpha=4, dropout=0.0)
    train_only_lora(model)
    for p in model.parameters():
        p.data += 0.01 * p.requires_grad
    export_peft(model, folder, base)

    def read():
        fresh = copy.deepcopy(model)
        import_peft(fresh, folder)
        return [p.detach() for p in fresh.parameters() if p.requires_grad]
    attack("adapter (config, tensors)", folder / name, read, structured, share=2)


def prepared(name, data):
    """What prepare_data.py leaves on which a finished run stands, with everything that it was made from."""
    def read():
        words = [name, "--data", str(data), "--workers", "1", "--timeout", "1"]
        prepare_data.prepare(prepare_data.OPTIONS.parse_args(words))
        return artifacts.load_arrays(artifacts.dataset_path(name), ())[0]
    read()
    final = artifacts.run_folder(name) / "bc/seed0/final.safetensors"
    final.parent.mkdir(parents=True)
    final.touch()
    return read


def test_d4rls_file(here, capsys):
    path = write_d4rl(here / "hopper_medium-v2.hdf5", d4rl_arrays(episodes=12)[0])
    attack("D4RL-like HDF5", path, prepared(CELL, path))


@pytest.mark.parametrize("part", ["observation", "action", "reward", "terminal"])
def test_dqn_replay(here, capsys, part):
    arrays, _ = replay_arrays(episodes=4)
    arrays["observation"] //= 64  # which compresses
    files = write_replay(here / "Breakout/1/replay_logs", arrays)
    attack("DQN replay .gz (4 files)", files[part], prepared("paper/breakout-medium-1", here), share=4)
