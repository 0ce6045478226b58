"""What the tests share: a copy of the kit in an empty folder, a tiny GPT-2, files in D4RL's layout."""

import atexit
import compileall
import functools
import gzip
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # two test processes share two cores
os.environ.pop("MAKELEVEL", None)  # a make that a test starts is nobody's sub-make, also under make test
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
signal.signal(signal.SIGHUP, signal.SIG_DFL)              # and this what nohup starts

KIT = Path(__file__).resolve().parent.parent
# In the copies of the kit, because what most tests wait for are episodes that are played: fewer are held out,
# and Reacher2d's are a quarter as long, whatever they earn. (file, what stands there, what stands there then)
TOY_SIZES = (("sources/__init__.py", "HELDOUT = 20", "HELDOUT = 2"),
             ("tasks.py", '"horizon": 100,\n        "return_scale": 10.0,',
              '"horizon": 25,\n        "return_scale": 10.0,'),
             ("tasks.py", '"minimum_return": 21.0,', '"minimum_return": -1e9,'))


@functools.cache
def warm_environment():
    """An environment whose Python has imported the packages already (tests/warm.py); one a test process."""
    folder = Path(tempfile.mkdtemp(prefix="lamo-")) / "warm"
    server = subprocess.Popen([sys.executable, KIT / "tests" / "warm.py", folder], start_new_session=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
    atexit.register(lambda: (server.kill(), shutil.rmtree(folder.parent)))
    while not (folder / "socket").exists():
        assert server.poll() is None, "tests/warm.py has ended"
        time.sleep(0.05)
    return folder


@pytest.fixture
def kit(tmp_path):
    """An empty folder with the kit's files, as a fresh clone has them. kit(...) runs a command there."""
    return make_kit(tmp_path)


@pytest.fixture(scope="session")
def session_kit(tmp_path_factory):
    """As kit, kept for the session: for tests that only read what one slow run made."""
    return make_kit(tmp_path_factory.mktemp("kit"))


@functools.cache
def compiled_kit():
    """The kit's files, compiled, as the stages of each copy would compile them anew. One a test process."""
    folder = Path(tempfile.mkdtemp(prefix="lamo-")) / "kit"
    atexit.register(shutil.rmtree, folder.parent)
    folder.mkdir()
    for path in [*KIT.glob("*.py"), KIT / "Makefile", *KIT.glob("requirements*.txt")]:
        shutil.copy2(path, folder)
    big = shutil.ignore_patterns("weights", "heldout.txt", "__pycache__")
    for room in ("kit", "sources", "mini", "benchmark", "paper"):
        shutil.copytree(KIT / room, folder / room, ignore=big)
    for name in ("weights", "heldout.txt"):
        (folder / "mini" / name).symlink_to(KIT / "mini" / name)
    for name, old, new in TOY_SIZES:
        text = (folder / name).read_text()
        assert text.count(old) == 1, old
        (folder / name).write_text(text.replace(old, new))
        shutil.copystat(KIT / name, folder / name)  # what is compiled is known by its source's date
    assert compileall.compile_dir(folder, quiet=1)
    return folder


def make_kit(folder, cold=False):
    """cold: with the environment's own Python."""
    shutil.copytree(compiled_kit(), folder, symlinks=True, dirs_exist_ok=True)
    venv = Path(sys.executable).parent.parent if cold else warm_environment()

    def words(command):
        return ["make", f"VENV={venv}", "-o", f"{venv}/ready", "-o", f"{venv}/ready-smollm2", "THREADS=1",
                *command[1:]] if (
            command[0] == "make") else [venv / "bin" / "python", *command]

    def surroundings(more):
        return {"cwd": folder, "env": os.environ | {"OMP_NUM_THREADS": "1", "MAKEFLAGS": ""} | more}

    def run(*command, check=True, timeout=240, input=None, **environment):
        """A script of the kit, or make, with one thread; returns the finished process."""
        done = subprocess.run(words(command), capture_output=True, text=True, timeout=timeout, input=input,
                              **surroundings(environment))
        if check and done.returncode:
            raise AssertionError(f"{command} failed:\n{done.stdout}\n{done.stderr}")
        return done

    def run_until(there, *command):
        """Start it, and kill -9 it and all that it started as soon as a file is there."""
        with subprocess.Popen(words(command), start_new_session=True, stdout=subprocess.DEVNULL,
                              **surroundings({})) as running:
            while not (folder / there).exists():
                assert running.poll() is None, f"{command} ended without {there}"
                time.sleep(0.005)
            os.killpg(running.pid, signal.SIGKILL)

    run.folder, run.until, run.words, run.surroundings = folder, run_until, words, surroundings
    return run


def one_line(done):
    """The only line a failed command may print on stderr (make adds its own)."""
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("make")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A folder in the hub's format: a 2-layer GPT-2 with random weights and a real tokenizer."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=300, n_positions=64,
                               bos_token_id=0, eos_token_id=0)).save_pretrained(folder)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the cat sat on the mat"], vocab_size=300, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer,
                            eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def tiny_families():
    """{family: makes a tiny language model with random weights}, of the four that the kit adapts."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    words = {"vocab_size": 300}
    same = words | {"hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
    return {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=24, n_layer=2, n_head=2, n_positions=64, **words,
                                                   bos_token_id=0, eos_token_id=0)),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**same, num_attention_heads=3,
                                                             intermediate_size=48, rotary_pct=1.0)),
        "opt": lambda: OPTForCausalLM(OPTConfig(**same, word_embed_proj_dim=24, num_attention_heads=2,
                                                ffn_dim=48)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(  # fewer heads for keys than for queries, as SmolLM2
            **same, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)),
    }


@pytest.fixture(scope="session", params=("gpt2", "gpt_neox", "opt", "llama"))
def tiny_lm(request, tmp_path_factory):
    """A folder in the hub's format with a tiny language model of each family."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hub") / f"tiny-{request.param}"
    trunk = tiny_families()[request.param]()
    for name, p in trunk.named_parameters():  # biases and positions start at zero, real ones do not
        if p.dim() == 1 or "embed_positions" in name:
            torch.nn.init.normal_(p, std=0.2) if "norm" not in name and "ln_" not in name else None
    trunk.save_pretrained(folder)
    return folder


def d4rl_arrays(episodes=30, state_dim=11, action_dim=3, seed=0):
    """Random episodes in D4RL's true layout, with a last episode that the recording cut off.

    Every third episode ends by a timeout; no row has both flags, as in the real files.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(8, 40, episodes)
    total = int(lengths.sum()) + 5
    ends = np.cumsum(lengths) - 1
    terminals, timeouts = np.zeros(total, bool), np.zeros(total, bool)
    timeouts[ends[::3]] = True
    terminals[np.setdiff1d(ends, ends[::3])] = True
    return {"observations": rng.normal(size=(total, state_dim)).astype(np.float32),
            "next_observations": rng.normal(size=(total, state_dim)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (total, action_dim)).astype(np.float32),
            "rewards": rng.uniform(0, 3, (total, 1)).astype(np.float32),
            "terminals": terminals, "timeouts": timeouts}, lengths


def write_d4rl(path, arrays):
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")
        file.create_dataset("infos/qpos", data=np.zeros((len(arrays["rewards"]), 6)))
        file["metadata/algorithm"] = "SAC"
    return path


def kitchen_arrays(episodes=6, seed=0):
    """Demonstrations of all four sub-tasks in the layout of D4RL's kitchen: no timeouts, float terminals,
    rewards that count the sub-tasks done in the observation beside them."""
    from kit.envs import KITCHEN_GOAL, KITCHEN_GOALS, kitchen_done

    rng = np.random.default_rng(seed)
    lengths = rng.integers(30, 50, episodes)
    observations, terminals = [], []
    for T in lengths:
        seen = rng.normal(0, 0.01, (T, 60)).astype(np.float32)
        seen[:, 23:30] += (-0.27, 0.35, 1.62, 1, 0, 0, 0)
        seen[:, 30:] = KITCHEN_GOAL
        for step, (where, goal) in zip(np.sort(rng.permutation(T - 2)[:4]) + 1, KITCHEN_GOALS.values(),
                                       strict=True):
            seen[step:, list(where)] = goal
        observations.append(seen)
        terminals.append(np.arange(T) == T - 1)
    observations = np.concatenate(observations)
    return {"observations": observations,
            "actions": rng.uniform(-1, 1, (len(observations), 9)).astype(np.float32),
            "rewards": kitchen_done(observations).sum(1).astype(np.float32),
            "terminals": np.concatenate(terminals).astype(np.float32)}


def replay_arrays(episodes=10, actions=4, seed=0):
    """Random games in DQN replay's layout, with a last one that the recording cut off."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(20, 60, episodes)
    total = int(lengths.sum()) + 7
    terminal = np.zeros(total, np.uint8)
    terminal[np.cumsum(lengths) - 1] = 1
    return {"observation": rng.integers(0, 255, (total, 84, 84), dtype=np.uint8),
            "action": np.append(rng.integers(0, actions, total - 1), actions - 1).astype(np.int32),
            "reward": rng.integers(-1, 2, total).astype(np.float32), "terminal": terminal}, lengths


def write_replay(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    files = {part: folder / f"$store$_{part}_ckpt.10.gz" for part in arrays}
    for part, array in arrays.items():
        with gzip.open(files[part], "wb", compresslevel=1) as file:
            np.save(file, array)
    return files


def save_cell(folder, cell="paper/hopper-medium-0.1", episodes=30):
    """data/PROFILE/CELL.npz of random episodes, in the kit's own format, as prepare_data.py leaves it."""
    from kit import artifacts

    raw, lengths = d4rl_arrays(episodes)
    offsets = np.append(0, np.cumsum(lengths))
    arrays = {name: raw[name][:offsets[-1]] for name in ("observations", "actions", "terminals")}
    arrays |= {"rewards": raw["rewards"][:offsets[-1], 0], "offsets": offsets,
               "last_observations": raw["next_observations"][offsets[1:] - 1]}
    provenance = {"data": "random@00000000", "episodes": list(range(episodes)), "return_mean": 30.0,
                  "reference_min": -20.272305, "reference_max": 3234.3}
    artifacts.save_arrays(folder / artifacts.dataset_path(cell), provenance, arrays)
    return arrays, provenance


@pytest.fixture(scope="session")
def d4rl_folder(tmp_path_factory):
    """A folder with a hopper_medium-v2.hdf5 in D4RL's layout."""
    folder = tmp_path_factory.mktemp("d4rl")
    write_d4rl(folder / "hopper_medium-v2.hdf5", d4rl_arrays(episodes=300)[0])
    return folder


FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


def evaluated_as(folder, rows):
    """eval.csv of a run's folder, of these rows of results/."""
    from kit import artifacts
    artifacts.write_csv(folder / "eval.csv", artifacts.RESULT_COLUMNS, [
        {name: row[name] for name in artifacts.RESULT_COLUMNS} for row in rows])


def gone_before(number, work, of=""):
    """Whether work(), in a process of its own, was ended, as by kill -9, before its file operation of this
    number; it had no more, else. of: operations on files in whose path this stands."""
    child = os.fork()
    if child == 0:
        seen = itertools.count()
        sys.addaudithook(lambda event, what: event in FILE_OPERATIONS and of in str(what[0])
                         and next(seen) == number and os._exit(99))
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 99
