"""Files from strangers: none of them runs code, reads another file, or takes much memory or time before it is
refused in one line.

LONG=1 (`make test-long`) makes those as large as they claim to be that are small here.
"""

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pytest
import torch
from conftest import d4rl_arrays, replay_arrays, save_cell, write_d4rl, write_replay
from damage import record
from pyarrow import parquet

import evaluate
from kit import artifacts, limits, seals, watch
from kit.adapters import read_peft
from kit.language_models import language_model_id, load_language_model, load_tokenizer
from kit.settings import configuration
from sources import d4rl, hdf5, replay, text

LONG = bool(os.environ.get("LONG"))
CONFIG = configuration("paper/hopper-medium-0.1/dt/seed0")
CODE = "import pathlib; pathlib.Path('executed').touch()"


@pytest.fixture(autouse=True)
def nothing_executed(tmp_path, monkeypatch):
    """In an empty folder, with a user who says yes to whatever is asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    yield
    assert not Path("executed").exists()
    assert sys.stdin.tell() == 0, "something was asked"


def refused(said, function, *arguments, **more):
    """That a call ends in one line which says so, within seconds and 200 MB."""
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with pytest.raises(SystemExit, match=said) as stop:
            function(*arguments, **more)
    except BaseException as error:
        taken = isinstance(error, pytest.fail.Exception)  # nobody refused it
        record("a file from a stranger", {"silent" if taken else "traceback": 1})
        raise
    record("a file from a stranger", {"refused": 1})
    assert "\n" not in str(stop.value.code)
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200 * 1024
    return str(stop.value.code)


# --- language models -----------------------------------------------------------------------------

@pytest.fixture
def model(tiny_gpt2, tmp_path):
    """A copy of a small language model; model(name, **changed) changes one of its JSON files."""
    folder = tmp_path / "lm"
    shutil.copytree(tiny_gpt2, folder)

    def change(name, **changed):
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | changed))
        return str(folder)

    change.folder = folder
    return change


@pytest.mark.parametrize("name, changed, said", [
    ("config.json", {"auto_map": {"AutoConfig": "evil.Evil"}}, "config.json names code of its own, auto_map"),
    ("config.json", {"auto_map": {"AutoConfig": "evil.E"}, "model_type": "evil"}, "auto_map, which is never"),
    ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.E", None]}}, "_config.json .*auto_map"),
    ("config.json", {"model_type": "evil"}, "does not hold a causal language model"),
    ("config.json", {"n_layer": 100_000}, "n_layer is 100,000 layers, and the limit is 1,000"),
    ("config.json", {"n_layer": 300}, "its configuration claims .* numbers, and the limit is"),
    ("config.json", {"n_embd": 10_000_000}, "claims .* numbers, and the limit is"),
    ("config.json", {"n_inner": 2**40}, "n_inner is 1,099,511,627,776"),
    ("config.json", {"vocab_size": 16_000_000}, "claims .* numbers, and the limit is"),
    ("config.json", {"num_labels": 10**9}, "num_labels is 1,000,000,000 labels"),
    ("config.json", {"n_embd": 33}, "can be used"), ("config.json", {"n_head": 0}, "can be used"),
    ("config.json", {"n_embd": -32}, "can be used"), ("config.json", {"n_embd": "x"}, "does not hold"),
    ("adapter_config.json", {"base_model_name_or_path": "gpt2"}, "it holds an adapter"),
    ("model.safetensors.index.json", {"weight_map": {"x": "../../x.safetensors"}}, "outside of the folder"),
    ("model.safetensors.index.json", {"weight_map": [1]}, "can be used")])
def test_a_model_that_would_run_code_or_is_larger_than_its_weights(model, name, changed, said):
    folder = model(name, **changed)
    (model.folder / "evil.py").write_text(CODE)
    refused(said, load_tokenizer if "tokenizer" in name else load_language_model, folder,
            **({} if "tokenizer" in name else {"dropout": 0.0}))


def damaged_model(model, name, content):
    path = model.folder / name
    path.unlink(missing_ok=True)
    content(path) if callable(content) else path.write_bytes(content)
    return str(model.folder)


def tensor_of(shape):
    """A safetensors file of one number, whose header claims a shape."""
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"1234"


@pytest.mark.parametrize("name, content, said", [
    ("config.json", b"[" * 200_000, "can be used"), ("config.json", b"[]", "is no object"),
    ("config.json", os.mkfifo, "is no regular file"), ("model.safetensors", os.mkfifo, "is no regular file"),
    ("model.safetensors", struct.pack("<Q", 2**40) + b"{}", "header of 1,099,511,627,776"),
    ("model.safetensors", struct.pack("<Q", 2) + b"[]", "is no object"),
    ("model.safetensors", tensor_of([99999999, 9999]), "claims 999,899,990,001"),
    ("model.safetensors", tensor_of([-9, -9]), "claims a shape below 0"),
    ("model.safetensors", tensor_of([1]), "does not hold")])
def test_a_model_whose_files_are_none(model, name, content, said):
    refused(said, load_language_model, damaged_model(model, name, content), 0.0)


class Evil:
    def __reduce__(self):
        return exec, (CODE,)


def test_a_pickle_is_read_only_when_asked_for_and_never_run(model, tiny_gpt2):
    weights = load_language_model(str(tiny_gpt2), 0.0).state_dict()
    (model.folder / "model.safetensors").unlink()
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, model.folder / "pytorch_model.bin")
    refused("has its weights as .bin, a pickle; --lm_bin", load_language_model, str(model.folder), 0.0)
    assert load_language_model(str(model.folder), 0.0, bins=True).state_dict().keys() == weights.keys()
    torch.save({"transformer.wte.weight": Evil()}, model.folder / "pytorch_model.bin")
    refused("does not hold", load_language_model, str(model.folder), 0.0, bins=True)
    (model.folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    refused("does not hold", load_language_model, str(model.folder), 0.0, bins=True)


def longer(times):
    return {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * times}


@pytest.mark.parametrize("changed, said", [
    ({"normalizer": longer(10**6)}, "lengthens a text 1,000,000 times, and the limit is 8"),
    ({"normalizer": {"type": "Sequence", "normalizers": [longer(4)] * 20}}, "lengthens a text"),
    ({"normalizer": longer(4) | {"pattern": {"Regex": ""}, "content": "x" * 99}}, "lengthens a text 100"),
    ({"normalizer": {"type": "Prepend", "prepend": "x" * 99}}, "lengthens a text 100"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer Precompiled"),
    ({"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                  "pad_type_id": 0, "pad_token": "x"}}, "Fixed is 1,000,000,000 tokens"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [], "pair": [],
                         "special_tokens": {"x": {"id": "x", "ids": [0] * 10**4, "tokens": ["x"] * 10**4}}}},
     "adds 10,000 tokens"),
    ({"model": {"type": "Evil"}}, "does not hold"), ({"normalizer": {"type": 3}}, "can be used"),
    ({"normalizer": 3}, "can be used")])
def test_a_tokenizer_that_makes_a_text_longer(model, changed, said):
    refused(said, load_tokenizer, model("tokenizer.json", **changed))


def test_a_tokenizer_whose_regular_expression_explodes(model):
    rule = {"type": "Split", "pattern": {"Regex": "(a|a|aa)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(model("tokenizer.json", pre_tokenizer=rule))
    refused("cannot encode the text", text.encode, "a" * 60 + "b", tokenizer)


@pytest.mark.parametrize("content, said", [
    (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "its header claims"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60), "its header claims"),
    (b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 2**50), "does not hold"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"llama.block_count" + struct.pack("<II", 4, 10**9),
     "its header claims 1,000,000,000 layers"), (b"GGML" * 9, "does not begin with GGUF")])
def test_a_gguf_file_that_is_none(tmp_path, content, said):
    (tmp_path / "x.gguf").write_bytes(content)
    refused(said, load_language_model, str(tmp_path / "x.gguf"), 0.0)


@pytest.mark.parametrize("changed", [{"r": 10**9}, {"r": 0}, {"r": True}, {"lora_alpha": float("nan")},
                                     {"lora_alpha": 0}, {"lora_alpha": "x"}])
def test_an_adapter_of_absurd_rank(tmp_path, changed):
    from safetensors.numpy import save_file

    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8} | changed))
    save_file({"x": np.zeros((4, 4), np.float32)}, tmp_path / "adapter_model.safetensors")
    if changed != {"r": 10**9}:  # which no layer fits
        refused("both have to be numbers above 0", read_peft, tmp_path)


# --- HDF5 ----------------------------------------------------------------------------------------

SECRET = "secret.hdf5"


def external_link(file, name):
    file[name] = h5py.ExternalLink(SECRET, "/observations")


def raw_storage(file, name):
    file.create_dataset(name, (9, 11), "u1", external=[("/etc/passwd", 0, 99)])


def virtual(file, name):
    layout = h5py.VirtualLayout((9, 11), "f4")
    layout[:] = h5py.VirtualSource(SECRET, "observations", shape=(9, 11))
    file.create_virtual_dataset(name, layout)


def claims(shape, rows, stored=False):
    def make(file, name):
        found = file.create_dataset(name, shape, "f4", chunks=(rows, shape[1]), fillvalue=1)
        if stored:
            found[0] = 1
    return make


HDF5 = {
    "external link": (external_link, "observations is a link to another file, secret.hdf5 /observations"),
    "soft link": (lambda file, name: file.__setitem__(name, h5py.SoftLink("/x/y")), "a link to another name"),
    "external group": (lambda file, name: file.__setitem__("infos", h5py.ExternalLink(SECRET, "/")),
                       "infos is a link to another file"),
    "raw storage": (raw_storage, "observations is stored in another file, /etc/passwd"),
    "virtual": (virtual, "observations is a virtual dataset, of secret.hdf5"),
    "440 GB": (claims((10**10, 11), 1000), "claims .*440,000,000,000 bytes, and the limit is 1,073,741,824"),
    "fill values": (claims((20_000_000, 11), 1000), "nothing of it is stored"),
    "chunks": (claims((2_000_000, 11), 1, stored=True), "lies in 2,000,000 pieces of 44 bytes"),
    "a part": (claims((1000, 11), 100, stored=True), "lies in 10 pieces, and 1 of them are stored"),
    "compound": (lambda file, name: file.create_dataset(name, (9,), [("a", "f4"), ("b", "f8")]), "no array"),
    "strings": (lambda file, name: file.create_dataset(name, (9,), h5py.string_dtype()), "no array of"),
    "scalar": (lambda file, name: file.create_dataset(name, data=1.0), "damaged|shape"),
    "empty": (lambda file, name: file.create_dataset(name, data=h5py.Empty("f4")), "no array of numbers"),
    "group": (lambda file, name: file.create_group(name), "no array of numbers"),
    "type": (lambda file, name: file.__setitem__(name, np.dtype("f4")), "no array of numbers"),
}


@pytest.fixture
def secret(tmp_path):
    return write_d4rl(tmp_path / SECRET, d4rl_arrays()[0])


@pytest.mark.parametrize("kind", HDF5)
def test_hdf5_that_names_other_files_or_is_not_there(tmp_path, secret, kind):
    make, said = HDF5[kind]
    path = write_d4rl(tmp_path / "x.hdf5", d4rl_arrays()[0])
    with h5py.File(path, "a") as file:
        for name in ("infos", "observations"):
            del file[name]
        make(file, "observations")
    refused(said, d4rl.read, path, CONFIG)
    if kind not in ("external group", "scalar"):
        with h5py.File(path) as file, pytest.raises(ValueError):
            hdf5.columns(file, ["observations"])


@pytest.mark.parametrize("kind", ["external link", "raw storage", "virtual", "440 GB", "compound", "group"])
def test_minaris_layout_likewise(tmp_path, secret, kind):
    config = configuration("paper/kitchen-complete-0.3/dt/seed0")
    path = tmp_path / "x.hdf5"
    with h5py.File(path, "w") as file:
        group = file.create_group("episode_0")
        for name, shape in (("observations/observation", (5, 59)), ("actions", (4, 9)), ("rewards", (4,)),
                            ("terminations", (4,))):
            group.create_dataset(name, data=np.zeros(shape))
        del group["actions"]
        HDF5[kind][0](group, "actions")
    refused("actions", d4rl.read, path, config)


# --- arrays, text, replay ------------------------------------------------------------------------

def zip_of(path, name, size, zeros=b"0"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive, \
            archive.open(name, "w", force_zip64=True) as member:
        for _ in range(size >> 20):
            member.write(zeros * (1 << 20))


@pytest.mark.parametrize("read", [artifacts.load_provenance, lambda path: artifacts.load_arrays(path, ())])
def test_a_small_zip_that_claims_much(tmp_path, monkeypatch, read):
    path = tmp_path / "mini" / "x.npz"
    path.parent.mkdir()
    save_cell(tmp_path, "mini/hopper-medium-0.1")
    limits.arrays_file(tmp_path / "data/mini/hopper-medium-0.1.npz")
    if not LONG:
        monkeypatch.setattr(limits, "PACKED", (400, 10**6))
    zip_of(path, "x.npy", 1 << 30 if LONG else 1 << 24, b"\0")
    refused("its members claim", read, path)

    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999,), }"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("observations.npy", header.ljust(127) + b"\n" + bytes(80))
    refused("observations.npy holds 208 bytes and claims 799,999,999,992", read, path)
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(1001):
            archive.writestr(f"{n}.npy", b"")
    refused("it has 1,001 members", read, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../../escaped.npy", header.ljust(127) + b"\n")
    refused("is damaged", read, path)
    assert not (tmp_path.parent.parent / "escaped.npy").exists()


def test_a_text_that_unpacks_to_much_or_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "TEXT", 10**6 if not LONG else limits.TEXT)
    zip_of(tmp_path / "x.zip", "wiki.train.raw", 1 << 24 if not LONG else 3 << 30)
    refused("its members claim", text.read, str(tmp_path / "x.zip"), "mini", 1)
    os.mkfifo(tmp_path / "pipe.txt")
    for place in ("/dev/zero", str(tmp_path / "pipe.txt")):
        refused("is no regular file", text.read, place, "mini", 1)
    refused("pipe.txt is no regular file", text.read, str(tmp_path), "mini", 1)
    with open(tmp_path / "sparse.raw", "wb") as file:
        file.truncate(limits.TEXT + 1)
    refused("and the limit is", text.read, str(tmp_path / "sparse.raw"), "mini", 1)

    times, words = 20_000, "x" * (1000 if not LONG else 10**6)
    column = pyarrow.DictionaryArray.from_arrays(np.zeros(times, np.int32), pyarrow.array([words]))
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 2 * len(words) + 5000
    refused("its texts have", text.read, str(tmp_path / "x.parquet"), "mini", 1)


@pytest.mark.parametrize("part", ["action", "observation"])
@pytest.mark.parametrize("shape, said", [((), "claims shape"), ((10**10,), "claims"), ((10**6,), "early")])
def test_dqn_replay_that_claims_much(tmp_path, part, shape, said):
    write_replay(tmp_path, replay_arrays(actions=4)[0])
    config = configuration("paper/breakout-medium-0.1/bc/seed0")
    path = tmp_path / f"$store$_{part}_ckpt.10.gz"
    with gzip.open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(1000))
    options = type("Options", (), {"timeout": 1, "subset_seed": 0})
    said = said if part == "action" or said != "early" else "no DQN replay"
    refused(said, replay.load, config, str(tmp_path), options)


# --- names ---------------------------------------------------------------------------------------

def test_an_environment_is_never_taken_from_a_record(tmp_path, monkeypatch):
    run = "mini/hopper-medium-0.1/bc/seed0"
    folder = tmp_path / "runs" / run
    folder.mkdir(parents=True)
    (tmp_path / "evilmod.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "final.safetensors").touch()
    config = configuration(run, steps=1, eval_every=1) | {"env": "evilmod:X"}
    (folder / "config.json").write_text(seals.json_text(config))
    refused("evilmod:X", evaluate.load_run, run)


def test_names_of_files_are_no_formulas(tmp_path, capsys, model):
    for name in ("=1+1", "+1", "-1", "@SUM(A1)"):
        path = write_d4rl(tmp_path / f"{name}.hdf5", d4rl_arrays(3)[0])
        assert d4rl.row_name(path, CONFIG, "0" * 64, True) == f"_{name[1:]}.hdf5"
        folder = model.folder.rename(tmp_path / name)
        said = language_model_id({"lm": str(folder), "adapter": "", "trunk": "pretrained"}, None)
        assert said.startswith(f"_{name[1:]}@")
        model.folder = folder
    assert limits.plain_name("a\r\nb\t=c") == "a__b_=c"


@pytest.mark.parametrize("name", ["../../../escaped", "mini/../../escaped", "/escaped", "mini/nonsense",
                                  "mini/hopper-medium-0.1/lamo/../../../../../escaped", "paper/x/y/z", ""])
def test_a_name_does_not_leave_the_folder(tmp_path, name):
    refused("no profile|no task|is no run", watch.main, ["train.py", name], "")
    assert not list(tmp_path.rglob("*")) and not list(tmp_path.parent.glob("escaped"))
