"""How fast the kit is, beside its peers: `make benchmark`.

rows        what is measured: the rows of the table
models      those that need a model: training, evaluation, batches; and what machine this is
commands    those that start a program of the kit: data, start-up
table       the table, and how it gets into docs/speed.md
__main__    the command line, and the measuring in turns
record.csv  the rows that docs/speed.md shows

rows and table import nothing heavy, because the process that measures has to stay small.
"""
