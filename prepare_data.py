"""Stage 1: make the file a cell trains on.

    python prepare_data.py mini/hopper-medium-0.01                  # rolls out the shipped player
    python prepare_data.py paper/hopper-medium-0.01                 # downloads D4RL's file
    python prepare_data.py paper/hopper-medium-0.01 --data FILE     # or a folder, or a URL
    python prepare_data.py paper/pong-medium-0.1 --data FOLDER      # DQN replay's files
    python prepare_data.py mini/text                                # tokens for the language loss
    python prepare_data.py paper/text --lm gpt2 --text wiki.train.raw

reads   what sources/ finds, downloads or plays, and which finished runs stand on a file
writes  data/PROFILE/CELL.npz, E whole episodes as flat arrays (kit.artifacts.load_dataset says which), with
        their provenance: source and SHA-256, subset seed, chosen episodes, returns, and `made_from`, all that
        the arrays depend on
        data/PROFILE/*-heldout.npz, episodes that no run trains on (sources/heldout.py)
        data/PROFILE/*.played/, episodes of a file that is being played, until it is there
        data/PROFILE/text-TOKENIZER.npz, tokens (T,), named by the tokenizer's digest

The same command again leaves a file alone. If what it would be made from has changed, it is made anew, but
arrays that finished runs were trained on are replaced by others only with --replace. Without --data or
--text a file is kept whatever it was made from, so that a forgotten word costs nothing. Code is not compared:
--fresh makes a cell's file anew.

What is played is kept as it goes: a call that was stopped or killed goes on at the episodes that it had
reached, and ends in the same bytes. With --fresh it plays all of them.
"""

from kit import fail, settings, signals
from kit.settings import Options, configuration, parse_cell, run_name, split_subset

OPTIONS = Options(__doc__)
OPTIONS.add_argument("name", type=run_name, help="PROFILE/CELL, or PROFILE/text")
OPTIONS.add_argument("--data", default="", help="the dataset's file, a folder that holds it, or a URL")
OPTIONS.add_argument("--text", default="", help="a text or Parquet file, a folder of them, a zip, or a URL")
OPTIONS.add_argument("--lm", default="", help="whose tokenizer encodes the text")
OPTIONS.add_argument("--workers", type=settings.THREADS, default=settings.cores(), help="that roll out")
OPTIONS.add_argument("--timeout", type=settings.SECONDS, default=20.0, help="to wait for a server")
OPTIONS.add_argument("--replace", action="store_true", help="other data than finished runs were trained on")
OPTIONS.add_argument("--fresh", action="store_true", help="make a cell's file anew; replaces, too")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take a moment

import json

from kit.artifacts import arrays_digest, dataset_path, load_provenance, run_folder, save_arrays
from kit.seals import remove_leftovers
from sources import d4rl, heldout, played, replay
from sources.d4rl import reference
from sources.download import locked

if __name__ != "__main__" or ARGS.name.endswith("/text"):  # a cell need not wait for tokenizers
    from sources import text

# suite -> where its data come from; in the mini profile all are played
SOURCES = {"mujoco": d4rl, "kitchen": d4rl, "reacher2d": d4rl, "atari": replay}


# --- a cell ------------------------------------------------------------------------------------

def prepare(args):
    if args.text or args.lm:
        fail(f"--text and --lm are for PROFILE/text, and {args.name} is a cell")
    parse_cell(args.name)
    args.subset_seed = split_subset(args.name)[1]
    config, path = configuration(f"{args.name}/dt/seed0"), dataset_path(args.name)
    with locked(path):
        remove_leftovers(path.parent, path.stem)
        old = load_provenance(path) if path.exists() else {}
        source = source_of(config, args, old)
        # D4RL's own files never change, and a file that was given once is kept
        unseen = bool(old) and not args.data and source is not played
        digest = old.get("made_from", {}).get("sha256") if unseen else source.digest(config, args.data, args)
        made_from = settings_of(config, source, args.subset_seed) | {"sha256": digest}
        differs = differences(old.get("made_from"), made_from)
        if old and not differs and not args.fresh:
            print(f"{path} is up to date, from {old['data']}{', which was given' if old['given'] else ''}")
            played.forget(path)
            heldout.keep(config, source, args, heldout.lost(config, source, args, old))
            return
        if unseen and old.get("given"):
            fail(f"{path} was made from {old['data']}, which was given, and "
                 f"{differs or 'it is asked for afresh'}; give it again with "
                 "--data (DATA=), or delete the file to have the task's own data")
        if unseen:
            made_from["sha256"] = source.digest(config, args.data, args)
        episodes = source.load(config, args.data, args)
        if old:
            check_replacing(args, old, episodes.arrays, differs or "it was asked for afresh")
        provenance = describe(config, episodes, args) | {
            "made_from": made_from, "given": bool(args.data) and source is not played}
        save_arrays(path, provenance, episodes.arrays, compress=config["pixels"])
        played.forget(path)
        heldout.keep(config, source, args, episodes)
    print(summary(path, provenance))


def source_of(config, args, old):
    """The module of sources/ that a cell's data come from."""
    if config["profile"] == "mini":
        if args.data:
            fail("DATA= belongs to the paper profile; the mini profile plays its own data")
        if "player" not in config:
            fail(f"{config['task']} has no player in the mini profile (tasks.py); make it with PROFILE=paper")
        return played
    source = SOURCES[config["suite"]]
    if "player" not in config:
        return source
    if not args.data:
        return source if old.get("given") else played
    if source.holds(config, args.data, args.timeout):
        return source
    print(f"{args.data} has no file for {config['task']}, so its data are played")
    return played


# --- what a file was made from -----------------------------------------------------------------

def settings_of(config, source, subset_seed):
    """All of a configuration that a cell's file depends on, as JSON gives it back."""
    settings = {name: config[name] for name in ("ratio", *source.SETTINGS) if name in config}
    return json.loads(json.dumps(settings | {
        "source": source.__name__.removeprefix("sources."), "subset_seed": subset_seed,
        "reference": reference(config)}))


def differences(old, new):
    """"trajectories is 60, the file was made with 50; ...", or "" if nothing differs."""
    if old is None:
        return "the file does not say what it was made from"
    names = [name for name in {**new, **old} if new.get(name) != old.get(name)]
    said = [f"{name} is {new.get(name)}, the file was made with {old.get(name)}" for name in names[:3]
            if name != "sha256"]
    if "sha256" in names[:3]:
        said.append(f"the source's SHA-256 is {new['sha256'][:8]}..., the file was made from "
                    f"{old['sha256'][:8]}...")
    return "; ".join(said)


def check_replacing(args, old, arrays, differs):
    """One line and exit if finished runs were trained on arrays that are about to be replaced by others."""
    path, runs = dataset_path(args.name), run_folder(args.name)
    on_it = [str(final.parent) for final in sorted(runs.glob("*/seed*/final.safetensors"))]
    if arrays_digest(arrays) == old.get("sha256"):
        print(f"{path} keeps its arrays, although {differs}")
    elif on_it and not (args.replace or args.fresh):
        fail(f"{path} would become another dataset: {differs}; finished runs stand on it: undo the change, "
             f"move {runs} out of runs/, or replace it with --replace (REPLACE=1)")
    else:
        print(f"{path} is made anew: {differs}")
        if on_it:
            print(f"trained on the old one, to be made anew or moved out of runs/: {', '.join(on_it)}")


def describe(config, episodes, args):
    """The provenance of a cell."""
    low, high = reference(config)
    name, source, digest, total, chosen, arrays, returns, _ = episodes
    provenance = {
        **{name: config[name] for name in ("profile", "cell", "task", "ratio")},
        "data": f"{name}@{digest[:8]}", "source": source, "source_sha256": digest,
        "env": config["env"], "subset_seed": args.subset_seed, "total_episodes": total,
        "episodes": chosen.tolist(), "steps": len(arrays["rewards"]),
        "reference_min": low, "reference_max": high,     # for the normalised score
        # of the environment's own rewards, which DQN replay does not record
        "return_mean": None, "return_std": None, "return_min": None, "return_max": None}
    if returns is not None:
        provenance |= {"return_mean": float(returns.mean()), "return_min": float(returns.min()),
                       "return_max": float(returns.max()),
                       "return_std": float(returns.std(ddof=1)) if len(returns) > 1 else 0.0}
    return provenance


def summary(path, provenance):
    line = (f"{path}: {len(provenance['episodes']):,} of {provenance['total_episodes']:,} episodes, "
            f"{provenance['steps']:,} steps, from {provenance['data']}")
    mean = provenance["return_mean"]
    if mean is not None:
        low, high = provenance["reference_min"], provenance["reference_max"]
        line += (f"; return {mean:.4g} +- {provenance['return_std']:.4g}, "
                 f"normalised {100 * (mean - low) / (high - low):.1f}")
    return line


if __name__ == "__main__":
    (text.prepare if ARGS.name.endswith("/text") else prepare)(ARGS)
