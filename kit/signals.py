"""SIGTERM, SIGINT and SIGHUP end a stage where little is lost: one line, no traceback, a shell's exit code.

    if __name__ == "__main__":
        signals.catch()                      # before the imports that take seconds
    ...
    with signals.held():                     # or @signals.held(): here a signal waits until it is asked for
        for step in steps:
            ...
            if signals.asked():
                save()
                signals.leave("the state of step 37 is saved")

Outside of held() a signal ends the program at once, through every `finally`: files are written whole, and
what is not written yet is made again by the same command. The exit code is 143 after SIGTERM, 130 after
SIGINT, 129 after SIGHUP. A second signal changes nothing: one Ctrl-C, or one word of a scheduler, may come on
two ways. Standard library only.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

NUMBERS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)

first = None      # the number of the first signal that came
holding = False   # whether it waits


def catch():
    """From here on, in this process; not in those that it forks, which end as any other program."""
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has it for what runs in the background
            signal.signal(number, note)
    os.register_at_fork(after_in_child=release)


def release():
    for number in NUMBERS:
        if signal.getsignal(number) == note:
            signal.signal(number, signal.SIG_DFL)


def note(number, _):
    global first
    first = first or number
    if not holding:
        leave("nothing is half written")


def asked():
    """Whether a signal has come."""
    return first is not None


@contextlib.contextmanager
def held():
    """Let signals wait; one that nobody asked for ends the program behind the block."""
    global holding
    holding = True
    try:
        yield
    finally:
        holding = False
    if asked():
        leave("nothing is half written")


def leave(kept):
    """End the program with a line that says what was kept."""
    said = f"stopped by {signal.Signals(first).name}; {kept}; the same command goes on"
    print(f"{Path(sys.argv[0]).stem}: {said}", file=sys.stderr, flush=True)
    for number in NUMBERS:  # it has been answered
        if signal.getsignal(number) == note:
            signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + first)
