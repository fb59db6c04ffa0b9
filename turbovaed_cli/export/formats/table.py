"""The table of formats: one row each. Conversion libraries are imported only when used."""

from turbovaed_cli.export.format import Exporter
from turbovaed_cli.export.formats import comfyui, coreai, coreml, executorch, litert, onnx, torch_files


def exporters() -> dict[str, Exporter]:
    """Return the table: every format by its name."""
    rows = (
        onnx.EXPORTER,
        coreml.EXPORTER,
        *executorch.EXPORTERS,
        litert.EXPORTER,
        coreai.EXPORTER,
        *torch_files.EXPORTERS,
        comfyui.EXPORTER,
    )
    return {row.name: row for row in rows}
