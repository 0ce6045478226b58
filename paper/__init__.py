"""The paper's answer: its tables and figures, from result CSVs alone.

scores.csv   every published score of tables 1, 2, 3, 15 and 16, in the paper's order
report       the command: `make report`, or python -m paper.report PROFILE
grid         results/ and the runs' records -> what is known of each cell and method
claims       what the paper says LaMo owes its parts, as differences of methods: `make claims`
shipped      what is run for results/shipped/, and what README.md and docs/ show of it
tables       tables 1 to 3, ablations, statistics, as rows of cells
provenance   where every number comes from, and what to be wary of
forest       the claims as a figure
figures      figures 1 and 3, learning curves, ablations, performance profiles
page         tables and figures -> one HTML page, and the same as Markdown
"""
