"""kit/adapters.py: LoRA to peft and back."""

import json
import re

import peft
import pytest
import torch
import torch.nn as nn
from conftest import tiny_families
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from kit import seals
from kit.adapters import export_peft, import_peft
from kit.language_models import language_model_id, load_language_model
from kit.settings import configuration
from lora import LoRA, add_lora, train_only_lora
from model import build_model

S, A, V = 11, 3, 300


def config_of(folder, method="lamo", **changed):
    return configuration(f"paper/halfcheetah-medium-1/{method}/seed0", lm=str(folder), lora_rank=4,
                               lora_alpha=8, **changed) | {"state_dim": S, "action_dim": A}


def loras(model):
    return [layer for layer in model.modules() if isinstance(layer, LoRA)]


def wake(model):
    """LoRA as after training: B and the biases have moved."""
    for layer in loras(model):
        nn.init.normal_(layer.lora_B, std=0.3)
        if layer.base.bias is not None:
            layer.base.bias.data += torch.randn_like(layer.base.bias) * 0.1
    return model


def logits(trunk):
    ids = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return trunk.eval()(input_ids=ids).logits


@pytest.mark.parametrize("shared_A", [False, True], ids=["loralib", "peft-like"])
def test_peft_loads_what_we_export(tiny_lm, tmp_path, shared_A):
    torch.manual_seed(0)
    trunk = load_language_model(str(tiny_lm), 0.0)
    add_lora(trunk, rank=4, alpha=8, dropout=0.1, shared_A=shared_A)
    wake(trunk)
    export_peft(trunk, tmp_path, load_language_model(str(tiny_lm), 0.0), str(tiny_lm))
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_lm), tmp_path)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tiny_lm)), logits(trunk), atol=1e-2)
    torch.testing.assert_close(logits(loaded), logits(trunk), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(trunk), rtol=1e-4, atol=1e-5)
    # and back, into a model that knows nothing of it
    again = load_language_model(str(tiny_lm), 0.0)
    add_lora(again, rank=4, alpha=12, dropout=0.0, shared_A=shared_A)  # another alpha is made up for
    import_peft(again, tmp_path)
    torch.testing.assert_close(logits(again), logits(trunk), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_what_peft_trained(tiny_lm, tmp_path, rslora):
    torch.manual_seed(0)
    adapted = add_lora(AutoModelForCausalLM.from_pretrained(tiny_lm), 2, 2, 0.0)
    names = sorted({name.rpartition(".")[2] for name in adapted})
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_lm), peft.LoraConfig(
        r=4, lora_alpha=20, target_modules=names, use_rslora=rslora, fan_in_fan_out="gpt2" in tiny_lm.name))
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(tmp_path)
    model = build_model(config_of(tiny_lm, adapter=str(tmp_path)))
    torch.testing.assert_close(logits(model.trunk), logits(theirs), rtol=1e-5, atol=1e-5)
    known = language_model_id(config_of(tiny_lm, adapter=str(tmp_path)), model.trunk)
    assert re.fullmatch(rf"{tiny_lm.name}@\w{{8}}\+{tmp_path.name}@\w{{8}}", known)
    assert all(p.requires_grad == ("lora_" in name or name.endswith("base.bias"))
               for name, p in model.trunk.named_parameters() if "bias" not in name or "base" in name)


def test_adapters_that_do_not_fit_are_refused(tiny_lm, tmp_path):
    trunk = load_language_model(str(tiny_lm), 0.0)
    add_lora(trunk, rank=4, alpha=8, dropout=0.0)
    train_only_lora(trunk)
    with pytest.raises(SystemExit, match="not readable"):
        import_peft(trunk, tmp_path)
    export_peft(trunk, tmp_path, load_language_model(str(tiny_lm), 0.0))
    other = load_language_model(str(tiny_lm), 0.0)
    add_lora(other, rank=5, alpha=8, dropout=0.0)
    with pytest.raises(SystemExit, match="has rank (4|12); import it with --lora_rank"):
        import_peft(other, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(SystemExit, match="adapter_config.json is not the file that SHA256SUMS lists"):
        import_peft(trunk, tmp_path)
    seals.write_list(tmp_path)
    with pytest.raises(SystemExit, match="use_dora"):
        import_peft(trunk, tmp_path)


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_an_adapter_that_lacks_half_of_a_pair_is_refused(tmp_path, half):
    of_peft(tmp_path, ["q_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if half in name)]
    save_file(tensors, path)
    with pytest.raises(SystemExit, match="has half of a pair for .*q_proj; it is damaged"):
        build_model(config_of(tmp_path / "lm", adapter=str(tmp_path / "adapter")))


def of_peft(folder, target):
    """A tiny Llama in folder/lm, and in folder/adapter one as peft trains it; returns the adapted model."""
    torch.manual_seed(0)
    trunk = tiny_families()["llama"]()
    trunk.save_pretrained(folder / "lm")
    theirs = peft.get_peft_model(trunk, peft.LoraConfig(r=4, lora_alpha=20, target_modules=target))
    for name, p in theirs.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)
    theirs.save_pretrained(folder / "adapter")
    return theirs


def test_an_adapter_without_keys_as_pefts_default_for_llama(tmp_path):
    theirs = of_peft(tmp_path, None)  # peft chooses: q_proj and v_proj
    known = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert sorted(known["target_modules"]) == ["q_proj", "v_proj"]
    model = build_model(config_of(tmp_path / "lm", adapter=str(tmp_path / "adapter")))
    torch.testing.assert_close(logits(model.trunk), logits(theirs), rtol=1e-5, atol=1e-5)
    for name, layer in model.trunk.named_modules():
        if isinstance(layer, LoRA):
            assert (layer.lora_B == 0).all() == name.endswith("k_proj"), name
            assert layer.lora_A.requires_grad and layer.lora_A.abs().sum() > 0  # and the keys' trains too


def test_an_adapter_of_more_layers_is_refused(tmp_path):
    of_peft(tmp_path, ["q_proj", "o_proj"])
    with pytest.raises(SystemExit, match="also adapts .*o_proj.*; train it with target_modules of") as stop:
        build_model(config_of(tmp_path / "lm", adapter=str(tmp_path / "adapter")))
    assert str(tmp_path / "adapter") in str(stop.value) and "\n" not in str(stop.value)


def test_an_adapter_that_matches_no_layer_is_refused(tmp_path):
    for target in (["gate_proj"], None):
        of_peft(tmp_path, target)
        if target is None:  # of another family
            tiny_families()["gpt2"]().save_pretrained(tmp_path / "lm")
        with pytest.raises(SystemExit, match="adapts no layer of this language model; pass .* --lm") as stop:
            build_model(config_of(tmp_path / "lm", adapter=str(tmp_path / "adapter")))
        assert str(tmp_path / "adapter") in str(stop.value) and "\n" not in str(stop.value)


def test_an_adapter_of_a_wider_language_model_is_refused(tmp_path):
    of_peft(tmp_path, ["q_proj", "k_proj", "v_proj"])
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: torch.cat([x, x], 1) if "lora_A" in name else x for name, x in tensors.items()}, path)
    with pytest.raises(SystemExit, match="of another language model: its model.* is 48 to"):
        build_model(config_of(tmp_path / "lm", adapter=str(tmp_path / "adapter")))


def test_an_adapter_with_biases_needs_biases_that_train(tmp_path, tiny_gpt2):
    trunk = load_language_model(str(tiny_gpt2), 0.0)
    add_lora(trunk, rank=4, alpha=8, dropout=0.0, shared_A=True)
    export_peft(wake(trunk), tmp_path / "adapter", load_language_model(str(tiny_gpt2), 0.0))
    build_model(config_of(tiny_gpt2, adapter=str(tmp_path / "adapter")))
    with pytest.raises(SystemExit, match="has biases, which stay frozen"):
        build_model(config_of(tiny_gpt2, adapter=str(tmp_path / "adapter"), lora="peft"))
    # where biases are frozen none is written, so that it can be read back
    own = build_model(config_of(tiny_gpt2, lora="peft"))
    for layer in loras(own):
        nn.init.normal_(layer.lora_B, std=0.3)
    export_peft(own.trunk, tmp_path / "own", load_language_model(str(tiny_gpt2), 0.0))
    again = build_model(config_of(tiny_gpt2, adapter=str(tmp_path / "own"), lora="peft"))
    torch.testing.assert_close(logits(again.trunk), logits(own.trunk), rtol=1e-5, atol=1e-5)
