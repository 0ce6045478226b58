"""Episodes beside a cell's own, which no run trains on: kit/imitation.py measures checkpoints on them.

writes  data/PROFILE/TASK-heldout.npz   of a player: HELDOUT further episodes, of numbers that no cell has, so
                                        that all ratios and subsets of a task are measured on the same ones
        data/PROFILE/CELL-heldout.npz   of a file: up to HELDOUT that the cell leaves out; none at ratio 1

Their provenance holds `floor_loss`, the loss of a trained player's own mean action, which no policy can pass
but by chance: what is left is the noise it explored with. Scripts have no such number, nor has an agent whose
noise is not recorded.
"""

import numpy as np
from scipy.stats import norm

import sources
from kit import fail
from kit.artifacts import arrays_digest, heldout_path, load_provenance, save_arrays
from kit.seals import remove_leftovers
from mini import players
from sources import played
from sources.download import locked
from tasks import TRAINED

FIRST = 50_000  # number of a player's first; its seeds meet no other's, however often an episode is tried


def keep(config, source, options, found=None):
    """Have the file of a configuration's cell. found: what source.load() gave just now, if it was asked."""
    if source is played:
        keep_of_player(config, options)
    elif found is not None:
        keep_of_file(config, found)


def lost(config, source, options, old):
    """Of a file, whose provenance is `old`, what load() finds if its held-out episodes are not there, though
    it has some, or are still those of data before it: whoever wrote it may have been killed between the two.
    None if nothing is lost."""
    path = heldout_path(f"{config['profile']}/{config['cell']}")
    if source is played:
        return None
    if path.exists() and not beside(load_provenance(path), old):
        path.unlink()
    if path.exists() or len(old["episodes"]) == old["total_episodes"]:
        return None
    if old["given"] and not options.data:
        print(f"{path} is not there, and {old['data']} was given: held-out losses stay empty without DATA=")
        return None
    found = source.load(config, options.data, options)
    if arrays_digest(found.arrays) != old["sha256"]:
        fail(f"{path} is not there, and {old['data']} is no longer what the cell was made of; make both: "
             "--replace (REPLACE=1)")
    return found


def beside(heldout, cell):
    """Whether held-out episodes are of a cell's data, and none of its own; of their provenances."""
    return heldout["data"] == cell["data"] and not {*heldout["episodes"]} & {*cell["episodes"]}


def keep_of_player(config, options):
    """The task's file, unless it is there, of the same player and environment, and --fresh is not given."""
    path = heldout_path(f"{config['profile']}/{config['task']}")
    made_from = played.made_from(config, options) | {"episodes": sources.HELDOUT}
    with locked(path):
        remove_leftovers(path.parent, path.stem)
        if path.exists() and not options.fresh and load_provenance(path).get("made_from") == made_from:
            played.forget(path)
            return
        found = played.numbered(config, options, np.arange(FIRST, FIRST + sources.HELDOUT), path)
        save(path, config, found, found.chosen, found.arrays, made_from=made_from,
             floor_loss=floor_of(config, found.arrays))
        played.forget(path)


def keep_of_file(config, episodes):
    """The cell's file, of what load() found beside its episodes."""
    path = heldout_path(f"{config['profile']}/{config['cell']}")
    if episodes.rest is None:
        path.unlink(missing_ok=True)  # of data that were here before
    else:
        save(path, config, episodes, *episodes.rest, floor_loss=None)


def save(path, config, found, chosen, arrays, **more):
    provenance = {"task": config["task"], "data": f"{found.name}@{found.sha256[:8]}",
                  "episodes": chosen.tolist(), "steps": len(arrays["rewards"])} | more
    save_arrays(path, provenance, arrays, compress=config["pixels"])
    print(f"{path}: {len(chosen)} episodes that no run trains on, {len(arrays['rewards']):,} steps")


def floor_of(config, arrays):
    """Mean squared error of a trained player's mean action against what is recorded; None if that is it."""
    if config["player"] not in TRAINED or "player_noise" in config:
        return None
    actor, _ = players.load(players.WEIGHTS / f"{config['player']}.npz")
    return float(np.square(mean_actions(actor, arrays["observations"]) - arrays["actions"]).mean())


def mean_actions(actor, observations):
    """E[tanh(Normal(mean(s), std(s)))] (N, A) of an agent of mini.players for observations (N, S): the mean
    over a hundred equally likely noises. It is not tanh(mean(s))."""
    def layer(name, x):
        return x @ actor[f"{name}/weight"].T + actor[f"{name}/bias"]

    hidden = np.maximum(layer("fc1", np.maximum(layer("fc0", observations), 0)), 0)       # (N, H)
    mean, std = layer("mean", hidden), np.exp(np.clip(layer("log_std", hidden), -20, 2))  # (N, A)
    return sum(np.tanh(mean + std * noise) for noise in norm.ppf((np.arange(100) + 0.5) / 100)) / 100
