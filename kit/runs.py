"""A run's record, its beginning, and what a killed one resumes from.

    record = make_record(config, ...)                          # what config.json holds
    done, logged = begin(folder, record, weights, optimizers)  # steps that an earlier call has done
    state = State(folder, weights, optimizers, minutes)        # what a later one goes on from

A finished run is left alone, a killed one goes on, and one with other settings is refused: nothing that was
trained is lost to a changed word.
"""

import functools
import json
import operator
import subprocess
import time
from pathlib import Path

import numpy as np
import torch

from kit import artifacts, fail, seals, settings

STATES = ("state.safetensors", "state-before.safetensors")  # the newest first
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam and AdamW remember of a parameter


# --- the record --------------------------------------------------------------------------------

def run_of(record):
    return f"{record['profile']}/{record['cell']}/{record['method']}/seed{record['seed']}"


def make_record(config, provenance, mean, std, device, model, **more):
    """What config.json holds: all that a number of this run can be traced to."""
    frozen = {name: p.cpu().numpy() for name, p in model.named_parameters() if not p.requires_grad}
    record = config | {
        "lm_id": "none", "inputs": {}, "text": None, "data": provenance["data"],
        "data_sha256": provenance["sha256"], "data_episodes": provenance["episodes"],
        "data_return_mean": provenance["return_mean"], "reference_min": provenance["reference_min"],
        "reference_max": provenance["reference_max"], "state_mean": mean.tolist(),
        "state_std": std.tolist(), "frozen_sha256": artifacts.arrays_digest(frozen)} | machine(device) | more
    return json.loads(json.dumps(record))  # as it will be read back: tuples become lists


def machine(device):
    """What computes: settings.MACHINE."""
    return {"code": code_version(), "torch": torch.__version__, "numpy": np.__version__,
            "device": str(device), "threads": torch.get_num_threads()}


def code_version():
    """The commit, with -dirty if files differ from it, rows that ship apart; "unknown" without git, and
    outside a checkout of the kit: a repository around it says nothing."""
    git = functools.partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, text=True)
    try:
        own = git(["git", "ls-files", "--error-unmatch", Path(__file__).name])
    except OSError:  # git is not installed
        return "unknown"
    commit = git(["git", "describe", "--always", "--abbrev=12"])
    if own.returncode or commit.returncode:
        return "unknown"
    same = git(["git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)results/shipped"])
    return commit.stdout.strip() + "-dirty" * bool(same.returncode)


# --- its beginning, and going on -----------------------------------------------------------------

def begin(folder, record, weights, optimizers, replace, fresh):
    """Write config.json and return the steps done, and what was logged meanwhile, as artifacts.Log takes it.
    What is there with other settings is refused, or removed if it may be replaced; a killed run's state is
    loaded into weights and optimisers."""
    folder.mkdir(parents=True, exist_ok=True)
    seals.remove_leftovers(folder)
    states = [folder / name for name in STATES if (folder / name).exists()]
    finished = (folder / "final.safetensors").exists()
    old = artifacts.load_config(run_of(record)) if (states or finished) and not fresh else None
    may_differ = (*settings.MACHINE, *settings.EVALUATION, *settings.KEEPING)
    differs = settings.differences(old, record, without=may_differ) if old else []
    if differs and not (replace or fresh):
        fail(f"{folder} holds a {'finished' if finished else 'killed'} run in which "
             f"{settings.some(differs)}; move it out of runs/, or let it be replaced: --replace, or make ... "
             "REPLACE=1")
    if finished and not differs and not fresh:
        remove_states(folder)
        return record["steps"], {}
    if not old or differs or fresh:
        if differs or fresh:
            (folder / "cost.json").unlink(missing_ok=True)  # which was another run's
        (folder / "final.safetensors").unlink(missing_ok=True)  # first: it says that a run is finished
        for stale in [*folder.glob("*.safetensors"), *folder.glob("*.csv"), *folder.glob("eval*.json"),
                      *folder.glob("events.*")]:
            stale.unlink()
        artifacts.write_json(folder / "config.json", record)
        return 0, {}
    done, logged = load_state(states, weights, optimizers)
    last = functools.reduce(operator.or_, old.get("resumed", []), old)
    changed = {name: record[name] for name in settings.MACHINE if record[name] != last[name]}
    if changed:  # the bytes to come may differ from those of a run that was not moved
        resumed = [*old.get("resumed", []), {"step": done} | changed]
        artifacts.write_json(folder / "config.json", old | {"resumed": resumed})
        print(f"{folder}: goes on with {', '.join(f'{name} {value}' for name, value in changed.items())}; "
              "config.json says so")
    return done, logged


def seeded(update, record, step):
    """What the update of a step gives to the log; one line and exit if its loss is not finite."""
    seeds = np.random.SeedSequence([record["seed"], step])
    torch.manual_seed(int(seeds.generate_state(1)[0]))
    try:
        return update(step, np.random.default_rng(seeds))
    except FloatingPointError as error:
        fail(f"{run_of(record)}: {error} at step {step + 1}; nothing of this step was kept; lower "
             f"{rates(record)}, or look at the data")


def rates(config):
    """The learning rates of a configuration as one types them: "--lr", "--actor_lr and --lr"."""
    names = ["lr"] if config["kind"] == "sequence" or config["discrete"] else ["actor_lr", "lr"]
    return " and ".join(f"--{name}" for name in names if name in config)


# --- the state of a run that trains --------------------------------------------------------------

def load_state(states, weights, optimizers):
    """A killed run's weights and moments into place, from the newest state that is sound; returns the steps
    done, and what was logged: train.csv itself is not asked, and is written anew from this."""
    *newer, oldest = states
    for path in newer:
        try:
            state, metadata = read_state(path)
            break
        except ValueError as error:
            path.unlink()  # or it would become the one before
            print(f"{path} is damaged ({error}); the run goes on from {oldest.name}", flush=True)
    else:
        try:
            state, metadata = read_state(oldest)
        except ValueError as error:
            fail(f"{oldest} is damaged ({error}); delete the folder and train again")
    put_back(state, weights, optimizers)
    return metadata["step"], json.loads(bytes(state["logged"].numpy()))


def read_state(path):
    """(tensors, metadata); ValueError if it is damaged, or another run's."""
    state, metadata = artifacts.read_tensors(path)
    if metadata.get("run") != settings.run_name(str(path.parent)) or "logged" not in state:
        raise ValueError(f"it is the state of {metadata.get('run')}, or lacks the losses so far")
    return state, metadata


def put_back(state, weights, optimizers):
    """What state_of gave, into place."""
    optimized = {id(p): optimizer for optimizer in optimizers
                 for group in optimizer.param_groups for p in group["params"]}
    for name, tensor in weights.items():
        tensor.data.copy_(state[f"weight/{name}"])
        if f"step/{name}" in state:
            optimized[id(tensor)].state[tensor] = {
                moment: state[f"{moment}/{name}"].to(tensor.device) for moment in MOMENTS}


def state_of(weights, optimizers):
    """{name: tensor} of {name: parameter}, and of what Adam and AdamW remember of each."""
    state = {f"weight/{name}": tensor for name, tensor in weights.items()}
    for name, tensor in weights.items():
        for optimizer in optimizers:
            if tensor in optimizer.state:  # one without a gradient has no moments
                state |= {f"{moment}/{name}": optimizer.state[tensor][moment] for moment in MOMENTS}
    return state


class State:
    """What a killed run goes on from: {name: parameter}, and what Adam and AdamW remember of each. The last
    two are kept, and the newest is `due` every `minutes`."""

    def __init__(self, folder, weights, optimizers, minutes):
        self.newest, self.before = (folder / name for name in STATES)
        self.run = settings.run_name(str(folder))
        self.weights, self.optimizers, self.minutes = weights, optimizers, minutes
        self.saved = time.monotonic()

    def due(self):
        return time.monotonic() >= self.saved + 60 * self.minutes

    def save(self, step, log):
        """After `step` steps, with the artifacts.Log of them all."""
        logged = json.dumps({"rows": log.rows, "seen": log.seen}).encode()
        state = state_of(self.weights, self.optimizers)
        state["logged"] = torch.frombuffer(bytearray(logged), dtype=torch.uint8)
        if self.newest.exists():
            self.newest.replace(self.before)
        artifacts.save_tensors(self.newest, state, step=step, run=self.run)
        self.saved = time.monotonic()


def remove_states(folder):
    """Of a run that is finished; also of one that was killed between its last weights and this."""
    for name in reversed(STATES):
        (folder / name).unlink(missing_ok=True)
