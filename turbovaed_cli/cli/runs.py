"""The command `turbovaed runs`."""

from pathlib import Path
from typing import Annotated

import typer

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command
from turbovaed_cli.cli.options import Json, Quiet
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.units import human_age


@command
def runs(
    *,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the runs.")] = Path("runs"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List runs: how far each came, its best figure, and when it last gave a sign of life."""
    from turbovaed_cli.runs.listing import list_runs

    console.be_quiet(quiet)
    found = list_runs(folder)
    if json:
        console.print_json({"runs": found})
        return
    figures = {"psnr": "PSNR {:.2f} dB", "l1": "L1 {:.4g}"}
    rows = [
        (
            run.name,
            run.status,
            f"{run.step}/{run.steps}" if run.steps is not None else "",
            run.stage,
            figures[run.metric].format(run.best) if run.metric else "",
            human_age(run.age_s) if run.age_s is not None else "",
        )
        for run in found
    ]
    print_table(f"Runs in {folder}", ["run", "status", "step", "stage", "best", "age"], rows, spare=["stage"])
    for run in found:
        if run.status == "broken":
            console.warn(f"{run.name}: {run.reason}")
        elif run.status in ("stopped", "unfinished"):
            console.note(f"{run.name}: {run.reason}")


EXAMPLES = """\
turbovaed runs
turbovaed runs /data/runs
turbovaed runs --json"""
