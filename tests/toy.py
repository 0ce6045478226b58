"""A run of a toy network through train.py's loop: milliseconds."""

from pathlib import Path

import torch

from kit import settings
from train import fit

STEPS = 9
RECORD = {"profile": "mini", "cell": "toy-1", "method": "toy", "kind": "sequence", "seed": 3,
          "steps": STEPS, "eval_every": 4, "log_every": 3, "state_every": 5.0} | dict.fromkeys(
              settings.MACHINE, "this")
FOLDER = Path("runs/mini/toy-1/toy/seed3")


class Killed(BaseException):
    """Nothing of the kit handles it, as nothing handles kill -9."""


def train(meanwhile=None, replace=False, **changed):
    """A run of a toy network. meanwhile: {step: a function that is called in its update}."""
    torch.manual_seed(0)
    net, late = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
    weights = {f"{name}.{key}": p for name, part in (("net", net), ("late", late))
               for key, p in part.named_parameters()}
    optimizers = [torch.optim.Adam(part.parameters(), fused=True, lr=0.1) for part in (net, late)]

    def update(step, rng):
        x = torch.from_numpy(rng.normal(size=(5, 4))).float()
        loss = (late(torch.nn.functional.dropout(net(x), 0.3)) - 1).square().mean()
        for optimizer in optimizers[:2 if step % 2 else 1]:  # one that has no moments at first
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers[:2 if step % 2 else 1]:
            optimizer.step()
        (meanwhile or {}).get(step + 1, bool)()
        return {"toy_loss": loss.item(), "lr": 0.1 / (step + 1)} | ({"odd": step / 7} if step % 2 else {})

    fit(RECORD | changed, weights, optimizers, update, weights, "toy", replace)


def killed():
    raise Killed
