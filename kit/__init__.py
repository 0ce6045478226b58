"""What the stages share, a room for each concern. Nothing here knows a stage.

settings         a run's name -> its configuration; the command line; what make needs
artifacts        paths and file formats: datasets, tensors, JSON, logs, results
runs             a run's record, its beginning, and what a killed one resumes from
plan             which of the runs asked for are finished, which differ, which must be made
watch            stands before a stage: its log, its cost, its GPU; lock: one process a run, on all hosts
slurm            a grid as job arrays; signals: how a stage ends when it is told to
status           what a grid is doing; hours: how long it takes; progress: what a stage says meanwhile
language_models  where a language model is found, loaded, and named by digest
quick            the same functions, computed with less
adapters         LoRA in the format of the peft library
envs             the environments
gathering        the runs of a cell in one file
statistics       scores, their intervals, and what is said over many cells
results          what figures and tables read: a cell's episodes, the paper's scores
looks            a method's colour and marker
policy           how a trained network acts in them
video            a finished run's episodes as a moving picture

`fail` is how every program of the kit ends on bad input.
"""

import sys
from pathlib import Path


def fail(message):
    """End the program with one line: what is wrong, in which file, and what to do."""
    program = Path(sys.argv[0])
    sys.exit(f"{program.parent.name if program.stem == '__main__' else program.stem}: {message}")
