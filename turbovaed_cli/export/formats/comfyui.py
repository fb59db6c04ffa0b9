"""The one file that the ComfyUI node pack loads: weights, and in the header config, latent convention and licence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Exporter, Graph
from turbovaed_cli.export.formats.torch_files import anatomy_of_weights, write_weights
from turbovaed_cli.models.self_contained import modeling_module
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS


def write(
    graphs: Sequence[Graph], path: Path, precision: str, metadata: Mapping[str, str], calibration: Sequence[Tensor]
) -> None:
    """Write the weights as for `safetensors`; the header also has what ComfyUI's LATENT holds for the teacher's models."""
    teacher = cast(StudentDecoder, graphs[0].module).teacher
    held = MODELS[teacher].teacher.family.comfyui_latents if teacher else None
    write_weights(graphs, path, precision, {**metadata, **({"comfyui_latents": held} if held else {})}, calibration)


def load(path: Path, _graph: Graph) -> Decode:
    """Return a function that decodes with the node pack's network, which takes nothing from this package but the file."""
    module = modeling_module()
    student = module.StudentDecoder.from_pretrained(path).float()

    @torch.no_grad()
    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"video": torch.cat(list(module.decode_within(student, inputs["latents"])), dim=2)}

    return decode


def _by_pack() -> str:
    return f"ran in the node pack's network, torch {torch.__version__}, CPU"


EXPORTER = Exporter(
    "comfyui", ".safetensors", ("fp16", "fp32", "bf16"), write, load, _by_pack, anatomy_of_weights, dynamic=True, is_graph=False,
    stem="student-comfyui",
)  # fmt: skip
