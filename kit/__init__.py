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
quick            the same functions, computed with less
adapters         LoRA in the format of the peft library
envs             the environments
imitation        the action loss on episodes that no run trains on; losses: its panel of a figure
gathering        the runs of a cell in one file
statistics       scores, their intervals, differences of two methods, and what is said over many cells
results          what figures and tables read: a cell's episodes, the paper's scores
looks            a method's colour and marker
policy           how a trained network acts in them
video            a finished run's episodes as a moving picture

`fail` is how every program of the kit ends on bad input, and `in_one_line` how on what the machine refuses.
"""

import errno
import sys
from pathlib import Path

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
           errno.ESTALE, errno.EMFILE, errno.ENOMEM)


def fail(message):
    """End the program with one line: what is wrong, in which file, and what to do."""
    sys.exit(f"{name_of_program()}: {message}")


def name_of_program():
    program = Path(sys.argv[0])
    return program.parent.name if program.stem == "__main__" else program.stem


def in_one_line(kind, error, trace):
    """sys.excepthook of the programs: a full disk, a folder that cannot be written and the like are no fault
    of the code, and need no traceback."""
    if getattr(error, "errno", None) not in REFUSED:
        return sys.__excepthook__(kind, error, trace)
    where = f"{error.filename}: " if error.filename else ""
    print(f"{name_of_program()}: {where}{error.strerror}; nothing that was there is lost, and the same "
          "command goes on when that is mended", file=sys.stderr)
