"""The table of targets: one row each. Runtimes are imported only when used."""

from turbovaed_cli.benchmarking.target import Target
from turbovaed_cli.benchmarking.targets import coreml, mobile, onnx, torch


def targets() -> dict[str, Target]:
    """Return the table: every target by its name."""
    return {row.name: row for row in (torch.TARGET, onnx.TARGET, coreml.TARGET, *mobile.TARGETS)}
