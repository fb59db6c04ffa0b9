"""Core AI, the successor of Core ML from iOS 27 and macOS 27 on. Experimental: converts everywhere, does not run on Linux."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.export.format import Anatomy, Exporter, Graph, quietly
from turbovaed_cli.export.formats.tracing import exported_program
from turbovaed_cli.reporting import hushed


def write(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write an .aimodel of exactly the graph's shapes, with a turbovaed.json inside that holds the metadata.

    A graph of whole clips takes latents (1, C, t, h, w) and gives video (1, 3, T, H, W).
    """
    (graph, *_) = graphs
    converter = quietly("coreai_torch")
    with hushed(), torch.no_grad():
        program = exported_program(graph, precision, any_size=False).run_decompositions(converter.get_decomp_table())
        added = converter.TorchConverter().add_exported_program(
            program, input_names=list(graph.inputs), output_names=list(graph.outputs)
        )
        added.to_coreai().save_asset(path)
    (path / "turbovaed.json").write_text(json.dumps(dict(metadata), indent=1), encoding="utf-8")


def anatomy(path: Path) -> Anatomy:
    """Return no operators: the bytecode is private to the compiler."""
    assert (path / "main.mlirb").is_file()
    return Anatomy(Counter(), 0)


def verified_by() -> str:
    """Return the status of an artefact, which nothing here can run."""
    return "converted only: Core AI runs on macOS 27 and iOS 27; experimental"


EXPORTER = Exporter(
    "coreai", ".aimodel", ("fp32", "fp16"), write, None, verified_by, anatomy,
    needs=("coreai_torch",), extra="coreai", is_package=True,
)  # fmt: skip
