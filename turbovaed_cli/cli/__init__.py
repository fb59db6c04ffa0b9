"""The terminal: read options, call one function of another room, show its result. One file per command.

app.py            which commands there are; main()
options.py        options made from settings classes, and those that mean the same everywhere
completion.py     what a shell offers for their values
help.py           --help and --help-all
exits.py          how a command ends: errors, signals, exit codes, skipped inputs
console.py        notes, errors, JSON, progress; arguments as options
table.py          one table that fits the terminal
scatter.py        a small drawing of points
estimates.py      the words of a dry run
models.py cache_latents.py distill.py reconstruct.py eval.py export.py bench.py push.py runs.py env.py    a command each
eval_tables.py testcard_tables.py bench_tables.py design_tables.py    results as tables
"""

from turbovaed_cli.cli.app import main

__all__ = ["main"]
