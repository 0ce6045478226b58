"""What the stages share, a room for each concern. Only imitation knows a stage, whose windows it takes.

settings         a run's name -> its configuration; the command line; what make needs
artifacts        paths and file formats: datasets, tensors, JSON, logs, results; seals: what proves them whole
runs             a run's record, its beginning, and what a killed one resumes from
plan             which of the runs asked for are finished, which differ, which must be made
watch            stands before a stage: its log, its cost, its GPU; lock: one process a run, on all hosts
slurm            a grid as job arrays; signals: how a stage ends when it is told to
installed        what an interrupted installation has half-written
status           what a grid is doing; hours: how long it takes; progress: what a stage says meanwhile
language_models  where a language model is found, loaded, and named by digest
limits           what a file from elsewhere may claim
quick            the same functions, computed with less
adapters         LoRA in the format of the peft library
envs             the environments
imitation        the action loss on episodes that no run trains on; losses: its panel of a figure
gathering        the runs of a cell in one file
statistics       scores, their intervals, differences of two methods, and what is said over many cells
results          what figures and tables read: a cell's episodes, the paper's scores
looks            a method's colour and marker
policy           how a trained network acts in an environment
video            a finished run's episodes as a moving picture

`fail` is how every program of the kit ends on bad input, and `in_one_line` how on what the machine refuses.
"""

import errno
import sys
from pathlib import Path

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
           errno.ESTALE, errno.EMFILE, errno.ENOMEM)


def fail(message):
    """End the program with one line: what is wrong, in which file, and what to do. What a name or a file
    brought along and would break the line, or command a terminal, is spelt."""
    said = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in message)
    sys.exit(f"{name_of_program()}: {said}")


def name_of_program():
    program = Path(sys.argv[0])
    return program.parent.name if program.stem == "__main__" else program.stem


def is_refused(error):
    """Whether it is the machine that refused something, which says nothing of the file."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in REFUSED


def in_one_line(kind, error, trace):
    """sys.excepthook of the programs: a full disk, a folder that cannot be written, too little memory are no
    fault of the code, and need no traceback."""
    memory = issubclass(kind, MemoryError) or kind.__name__ == "OutOfMemoryError"
    if memory or "t allocate memory" in str(error):
        why = ("out of memory; lower --batch_size or --context in training, --at_once in evaluation, "
               "--workers for data")
    elif is_refused(error):
        why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        return sys.__excepthook__(kind, error, trace)
    print(f"{name_of_program()}: {why}; nothing that was there is lost, and the same command goes on when "
          "that is mended", file=sys.stderr)


# every program of the kit imports this first; so far, older versions of Python can read them
if sys.version_info < (3, 11):  # noqa: UP036
    fail(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; make setup makes .venv, whose "
         "Python is: .venv/bin/python, or BASE_PYTHON=/path/to/python3.11 make setup")
