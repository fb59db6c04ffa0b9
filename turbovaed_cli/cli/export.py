"""The command `turbovaed export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from turbovaed_cli.cli import console
from turbovaed_cli.cli.exits import command, finish
from turbovaed_cli.cli.options import ModelChoice, Show, check_system_for, option
from turbovaed_cli.cli.table import print_table
from turbovaed_cli.files.places import check_place
from turbovaed_cli.registry.rows import DEFAULT_MODEL
from turbovaed_cli.setting import setting
from turbovaed_cli.settings import FORMATS, ExportSettings

if TYPE_CHECKING:
    from turbovaed_cli.export.compare import Artifact


@dataclass(frozen=True)
class Formats:
    """The formats to write."""

    formats: tuple[str, ...] = setting(
        ("onnx",), "Formats, by commas: {choices}.", "Format", flag="--format", choices=FORMATS, many=True
    )


EXAMPLES = """\
turbovaed export --model runs/ltx --out student.onnx
turbovaed export --model ltx --format coreml,onnx --out exported --chunk 4
turbovaed export --model ltx --dtype int8 --data videos --out int8.onnx"""


@command
def export(
    *,
    out: Annotated[Path, option("--out", "Artefact to write, or a folder for several.", "Input and output")],
    formats: Formats,
    settings: ExportSettings,
    model: ModelChoice,
    show: Show,
) -> None:
    """Write a student, or a decoder of another family, for other runtimes, and check each written file as far as this machine can."""
    check_system_for(settings.data, "export --data")
    check_place(out, "`out`", folder=None, longest_suffix=".unverified" if out.suffix else "")  # what a missed check adds
    from turbovaed_cli.export.export import export_student, next_commands, raise_for_misses

    pair = model.load(with_teacher=settings.data is not None)
    result = export_student(pair.student, formats.formats, out, settings, show.report, teacher=pair.teacher)
    if show.json:
        console.print_json(result)
    else:
        print_table("Exported", ["file", "MB", "dtype", "max abs", "PSNR", "checked"], map(_row_of, result.artifacts))
    checked_on = next((item.checked_on for item in result.artifacts if item.checked_on), "nothing: none of it runs here")
    console.note(f"checked on {checked_on}; {result.document} has it all")
    if not result.missed:
        for line in next_commands(result, model.model or DEFAULT_MODEL):
            console.note(f"next: {line}")
    finish(result.skipped, lambda: raise_for_misses(result))


def _row_of(item: "Artifact") -> tuple[str, ...]:
    return (
        item.path.name,
        f"{item.size_mb:.1f}",
        item.precision,
        "-" if item.max_abs is None else f"{item.max_abs:.1e}",
        "-" if item.psnr_db is None else f"{item.psnr_db:.1f}",
        item.status,
    )
