"""How far a stage is: a bar where a terminal watches, a line a minute where none does.

    progress = Progress("mini/hopper-medium-0.01/lamo/seed0: training", done, total, "step")
    for step in progress:                         # from `done` to `total`
        progress.note(action_loss="0.0123")       # what stands behind it

    with Progress("mini/hopper-medium-0.01/lamo/seed0: playing", 0, None, "step") as progress:
        progress.advance(7)                       # where the end is not known

prints  to a terminal's stderr a bar; else to stdout, once in EVERY seconds,
            mini/hopper-medium-0.01/lamo/seed0: training, step 1,200 of 5,000, action_loss 0.0123,
            8.1 steps/s, 7.8 min left
writes  the same as JSON to the file that $LAMO_PROGRESS names, every few seconds: `make status` reads it, and
        kit.watch, which sets that variable, counts the steps
"""

import contextlib
import os
import time
from pathlib import Path

from tqdm import tqdm

from kit import seals
from kit.hours import spell

EVERY = 60.0        # seconds between two lines
FILE_EVERY = 5.0    # and between two writings of the file


class Progress:
    """total: of all units, those included that were done before; None while it is not known."""

    def __init__(self, doing, done, total, unit):
        self.doing, self.first, self.done, self.total, self.unit = doing, done, done, total, unit
        self.file = os.environ.get("LAMO_PROGRESS")
        self.notes, self.started = {}, time.monotonic()
        self.line_due, self.file_due = self.started + EVERY, self.started

    def __enter__(self):
        short = "/".join(self.doing.split("/")[-2:])  # the method and the seed: a bar needs room
        self.bar = tqdm(initial=self.done, total=self.total, unit=self.unit, desc=short, disable=None)
        return self

    def __exit__(self, *_):
        self.bar.close()
        self.write()

    def __iter__(self):
        with self:
            for step in range(self.done, self.total):
                yield step
                self.advance()

    def note(self, **notes):
        self.notes = notes
        self.bar.set_postfix(notes)

    def expect(self, total):
        """The total is known by now, or better known; that of episodes of any length is a guess."""
        self.total = self.bar.total = total

    def advance(self, count=1):
        self.done += count
        if self.total and self.done > self.total:
            self.expect(None)  # it was guessed too low
        self.bar.update(count)
        now = time.monotonic()
        if now >= self.file_due:
            self.file_due = now + FILE_EVERY
            self.write()
        if now >= self.line_due:
            self.line_due = now + EVERY
            if self.bar.disable:
                print(self.line(), flush=True)

    def now(self):
        """All that is known, as JSON takes it. `seconds` are those of this call alone."""
        seconds = time.monotonic() - self.started
        rate = (self.done - self.first) / max(seconds, 1e-9)
        left = (self.total - self.done) / rate if self.total and rate else None
        return {"doing": self.doing, "unit": self.unit, "first": self.first, "done": self.done,
                "total": self.total, "seconds": seconds, "per_second": rate, "left": left,
                "notes": self.notes}

    def line(self):
        now = self.now()
        said = [self.doing, f"{self.unit} {self.done:,}{f' of {self.total:,}' if self.total else ''}",
                *(f"{name} {value}" for name, value in self.notes.items()),
                f"{now['per_second']:.3g} {self.unit}s/s"]
        if now["left"] is not None:
            said.append(f"{spell(now['left'])} left")
        return ", ".join(said)

    def write(self):
        """Whole or not at all, and no more: it is no part of the run's record."""
        if not self.file:
            return
        with contextlib.suppress(OSError):  # a full disk ends a run where it has to write what counts
            seals.write_whole(Path(self.file), seals.json_text(self.now()))
