"""What a trunk passes on of a trajectory before anything is trained, block by block.

    .venv/bin/python -m mini.readout --write             # four cells, five language models: ten minutes
    .venv/bin/python -m mini.readout hopper-medium-0.1 --lms mini /models/pythia-70m

reads   tasks.py, the language models; makes the data of subset 100 in build/calibrate/, as mini/calibrate.py
        does, and the task's held-out episodes
prints  a Markdown table; --write puts it into docs/methods.md

LaMo's frozen blocks stand between what is observed and the action head, which has to find the action in
the hidden state of the state token. How much of it a linear map can find there is measured without
training: a ridge regression from hidden states to actions on the cell's episodes, its penalty chosen on
half of the windows of held-out episodes, its mean squared error told of the other half. "Tokens" is what
enters the first block, "norm" what leaves the trunk. "Constant" is the share of a hidden state's squared
length that is the same vector in all of them. Beside each trunk stands its shape with random weights.
Letters: N steps, K context, H hidden, A action.
"""

from pathlib import Path

from kit import fail, settings, signals
from tasks import LANGUAGE_MODELS

CELLS = ("hopper-medium-0.01", "walker2d-medium-0.01", "kitchen-complete-0.3", "reacher2d-medium-0.3")
OPTIONS = settings.Options(__doc__)
OPTIONS.add_argument("cells", nargs="*", metavar="CELL", help=f"{', '.join(CELLS)} else")
OPTIONS.add_argument("--lms", nargs="+", default=[*LANGUAGE_MODELS, "smollm2"], help="language models")
OPTIONS.add_argument("--windows", type=settings.COUNT, default=200, help="of training, and of held-out steps")
OPTIONS.add_argument("--document", type=Path, default=Path("docs/methods.md"))
OPTIONS.add_argument("--write", action="store_true", help="put the table into the document")

if __name__ == "__main__":
    signals.catch()
    ARGS = OPTIONS.parse_args()  # before the imports below, which take seconds

import contextlib

import numpy as np
import torch

import prepare_data
import train
from kit import artifacts
from kit.language_models import blocks_of
from mini.calibrate import BUILD, FIRST
from model import build_model

DEPTHS = (1, 2, 4, 8, 16, 30)  # blocks after which it is read, as far as there are so many
PENALTIES = 10.0 ** np.arange(-4, 4)
MARKERS = ("<!-- readout: begin, of python -m mini.readout --write -->", "<!-- readout: end -->")


def arrays_of(cell):
    """(a run of this cell, training arrays, held-out arrays), of which each is (arrays, ends) of train.py."""
    run = f"mini/{cell}-d{FIRST}/lamo/seed{FIRST}"
    config = settings.configuration(run)
    if config["pixels"]:
        fail(f"{cell}: buttons are no numbers that a linear map finds; name a cell with continuous actions")
    BUILD.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(BUILD):
        prepare_data.prepare(prepare_data.OPTIONS.parse_args([f"mini/{cell}-d{FIRST}"]))
        arrays, ends, *known = train.training_arrays(train.load_data(config)[0], config)
        data, _ = artifacts.load_dataset(artifacts.heldout_path(f"mini/{config['task']}"))
    return run, (arrays, ends), train.training_arrays(data, config, known)[:2]


@torch.inference_mode()
def hidden_states(model, arrays, ends, count, K):
    """({depth: hidden states (N, H) at the state tokens}, actions (N, A)) of `count` windows; depth 0 is what
    enters the first block, -1 what leaves the trunk."""
    blocks, found, actions = blocks_of(model.trunk), {}, []
    starts, masks = np.random.default_rng(0).integers(0, len(ends), count), []

    def keep(depth, hidden):
        found.setdefault(depth, []).append(hidden)

    def keep_block(depth):
        return lambda _, inputs, output: keep(
            depth, (output[0] if isinstance(output, tuple) else output)[:, 1::3])

    hooks = [blocks[0].register_forward_pre_hook(lambda _, inputs: keep(0, inputs[0][:, 1::3])),
             *(blocks[depth - 1].register_forward_hook(keep_block(depth))
               for depth in DEPTHS if depth <= len(blocks)),
             model.predict_action.register_forward_pre_hook(lambda _, inputs: keep(-1, inputs[0]))]
    for first in range(0, count, 50):
        batch, mask = train.windows(arrays, ends, starts[first:first + 50], K)
        model(**batch, attention_mask=mask)
        masks.append(mask)
        actions.append(batch["actions"][mask])
    for hook in hooks:
        hook.remove()
    mask = torch.cat(masks)                                                        # (B, K)
    return ({depth: torch.cat(parts)[mask].double() for depth, parts in found.items()},
            torch.cat(actions).double())


def readout(hidden, actions, others, theirs):
    """Mean squared error of a ridge regression of actions (N, A) on hidden states (N, H), on the second half
    of held-out ones; its penalty is the best on the first half. Windows of both may overlap."""
    mean, scale, middle = hidden.mean(0), hidden.std(0).mean(), actions.mean(0)
    x, other = (hidden - mean) / scale, (others - mean) / scale
    half = len(other) // 2
    errors = []
    for penalty in PENALTIES:
        ridge = x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype)
        missed = (other @ torch.linalg.solve(ridge, x.T @ (actions - middle)) + middle - theirs).square()
        errors.append((missed[:half].mean().item(), missed[half:].mean().item()))
    return min(errors)[1]


def constant(hidden):
    """The share of the squared length of hidden states (N, H) that is their mean."""
    return (hidden.mean(0).square().sum() / hidden.square().sum(1).mean()).item()


def measure(run, training, heldout, lm, random, count):
    """({depth: error of the read-out}, the constant share of what leaves the trunk)."""
    method = "lamo-random" if random else "lamo"
    config = settings.configuration(run.replace("/lamo/", f"/{method}/"), lm=lm)
    torch.manual_seed(FIRST)
    model = build_model(config).eval()
    states, actions = hidden_states(model, *training, count, config["context"])
    others, theirs = hidden_states(model, *heldout, count, config["context"])
    return ({depth: readout(states[depth], actions, others[depth], theirs) for depth in states},
            constant(states[-1]))


def trunks(lms):
    """(what it is called, language model, whether its weights are random) of each language model, and of each
    shape with random weights once: the kit's own models have one shape."""
    shapes = {}
    for lm in lms:
        yield f"`{lm}`", lm, False
        shape = "mini" if lm in LANGUAGE_MODELS else lm
        if shapes.setdefault(shape, lm) == lm:
            yield f"random, {shape}'s shape", lm, True


def table(cells, args):
    """Lines of Markdown, a row a trunk."""
    head = ("cell", "trunk", "tokens", *(f"block {depth}" for depth in DEPTHS), "norm", "constant")
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for cell in cells:
        run, training, heldout = arrays_of(cell)
        for name, lm, random in trunks(args.lms):
            errors, share = measure(run, training, heldout, lm, random, args.windows)
            said = [f"{errors[depth]:.3f}" if depth in errors else "" for depth in (0, *DEPTHS, -1)]
            yield f"| `{cell}` | {name} | {' | '.join(said)} | {share:.2f} |"


def main(args):
    lines = []
    for line in table(args.cells or CELLS, args):
        print(line, flush=True)
        lines.append(line)
    if args.write:
        artifacts.fill_document(args.document, MARKERS, lines)


if __name__ == "__main__":
    main(ARGS)
