"""export.py: a run's adapter, as the peft library reads it, and which runs have none."""

import peft
import pytest
import torch
from conftest import one_line, save_cell
from transformers import AutoModelForCausalLM

import export
import train
from evaluate import load_checkpoint, load_run

RUN = "paper/hopper-medium-0.1/lamo/seed0"
SHORT = {"device": "cpu", "steps": 3, "eval_every": 1, "batch_size": 4, "context": 5, "warmup": 0, "lr": 0.05}


def logits(trunk):
    ids = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return trunk.eval()(input_ids=ids).logits


@pytest.fixture
def prepared(kit, monkeypatch):
    save_cell(kit.folder)
    monkeypatch.chdir(kit.folder)
    return kit


def test_a_runs_adapter_goes_to_peft_and_back(prepared, tiny_gpt2):
    train.train(RUN, lm=str(tiny_gpt2), **SHORT)
    said = prepared("export.py", f"runs/{RUN}/", "adapter").stdout
    assert "adapter: the adapter of" in said and RUN in said
    config, model, checkpoints = load_run(RUN)
    load_checkpoint(model, checkpoints[-1], config)
    base = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    before = logits(base)
    theirs = logits(peft.PeftModel.from_pretrained(base, prepared.folder / "adapter"))
    torch.testing.assert_close(theirs, logits(model.trunk), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, before, atol=1e-3)
    # a run that starts from it starts where the first one ended, and plays without it
    again = RUN.replace("seed0", "seed1")
    train.train(again, lm=str(tiny_gpt2), adapter="adapter/", **SHORT | {"steps": 1, "lr": 1e-12})
    (prepared.folder / "adapter/adapter_config.json").unlink()
    config, model, checkpoints = load_run(again)
    load_checkpoint(model, checkpoints[-1], config)
    torch.testing.assert_close(logits(model.trunk), theirs, rtol=1e-5, atol=1e-5)
    assert "+adapter@" in config["lm_id"] and "adapter/adapter_model.safetensors" in config["inputs"]


def test_runs_without_an_adapter_end_in_one_line(prepared, tiny_gpt2):
    run = RUN.replace("lamo", "dt")
    assert "no finished run" in one_line(prepared("export.py", run, "adapter", check=False))
    train.train(run, **SHORT)
    with pytest.raises(SystemExit, match="has no LoRA to export; its method is dt"):
        export.export(run, "adapter")
    random = RUN.replace("lamo", "lamo-random")
    train.train(random, lm=str(tiny_gpt2), **SHORT)
    with pytest.raises(SystemExit, match="LoRA on random weights"):
        export.export(random, "adapter")
    assert not (prepared.folder / "adapter").exists()
