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

    python -m kit.signals COMMAND ...        # one that gets SIGTERM when the one that started it ends (Linux)

Outside of held() a signal ends the program at once, and the processes that it forked: files are written
whole, and what is not written yet is made again by the same command. The exit code is 143 after SIGTERM, 130
after SIGINT, 129 after SIGHUP. A second signal changes nothing: one Ctrl-C, or one word of a scheduler, may
come on two ways. Standard library only.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

from kit import in_one_line

NUMBERS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)

first = None      # the number of the first signal that came
owner = None      # the process that catches signals; one that it has just forked is not
holding = False   # whether it waits


def catch():
    """From here on, in this process; those that it forks end as any other program, or when this one does.
    What the machine refuses is one line from here on, too, and what cannot be printed, as a file's name in
    another encoding, is printed by its numbers."""
    global owner
    owner = os.getpid()
    sys.excepthook = in_one_line
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has it for what runs in the background
            signal.signal(number, note)
    os.register_at_fork(after_in_child=in_child)


def in_child():
    for number in NUMBERS:
        if signal.getsignal(number) == note:
            signal.signal(number, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
    if os.getppid() != owner:  # which has ended meanwhile
        os._exit(1)


def die_with_parent(number):
    """Have the system send this process a signal when the one that started it ends. Linux alone can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, number)


def note(number, _):
    global first
    if os.getpid() != owner:  # forked a moment ago, before in_child
        os._exit(128 + number)
    again, first = first is not None, first or number
    if not (again or holding):  # a second signal may come while the first one is being answered
        # no exception, which would be lost where Python ignores it: in __del__, in a callback
        say("nothing is half written")
        os._exit(128 + first)


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


def end_with_reader():
    """For what only prints: a reader that has seen enough, as `head` has, ends the program without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def leave(kept, at_once=False):
    """End the program with a line that says what was kept; at once: with the processes that it forked,
    whatever they are at."""
    say(kept)
    if at_once:
        sys.stdout.flush()
        os._exit(128 + first)
    sys.exit(128 + first)


def say(kept):
    program, name = Path(sys.argv[0]).stem, signal.Signals(first).name
    os.write(2, f"{program}: stopped by {name}; {kept}; the same command goes on\n".encode())


if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except (IndexError, OSError) as error:
        sys.exit(f"signals: no command to start ({error})")
