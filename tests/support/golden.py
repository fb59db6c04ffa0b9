"""The golden numbers in tests/data: random small-channel weights, and what the published implementations compute from them.

To stay small, pixels of the stock diffusers teachers are left out, and of ltx's student_sample every 4th frame is kept.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"
NAMES = ("ltx", "hunyuan", "cogvideox", "video-dc-ae")
# Where each teacher's own weights are: the student of video-dc-ae came with a file apart.
TEACHER_FILES = {"ltx": "ltx", "hunyuan": "hunyuan", "cogvideox": "cogvideox", "video-dc-ae": "video-dc-ae-teacher"}


@dataclass(frozen=True)
class Golden:
    """One golden file: its JSON metadata and its tensors by prefix."""

    meta: dict[str, Any]
    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    io: dict[str, Tensor]

    def features(self, which: str) -> dict[str, Tensor]:
        """io.{which}_features.*, by block, in our names (up_block_0 is up_blocks.0)."""
        prefix = f"{which}_features."
        return {k.removeprefix(prefix).replace("up_block_", "up_blocks."): v for k, v in self.io.items() if k.startswith(prefix)}


def load_golden(name: str) -> Golden:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        meta = {key: json.loads(value) if value.startswith("{") else value for key, value in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def part(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    return Golden(meta, part("student."), part("teacher."), part("io."))


def sample_frames(golden: Golden, video: Tensor) -> Tensor:
    """The frames of a decoded video that io.student_sample holds."""
    return video[:, :, ::4] if golden.meta.get("sample_frames") == "every 4th" else video


def write_student(golden: Golden, folder: Path) -> tuple[Path, Path]:
    """A weight file in the published layout and its JSON config."""
    weights, config = folder / "student.safetensors", folder / "student.json"
    save_file(golden.student, weights)
    config.write_text(json.dumps(golden.meta["student_config"]))
    return weights, config


def write_teacher(golden: Golden, folder: Path) -> Path:
    """A local diffusers folder of the small-channel teacher."""
    folder.mkdir(parents=True, exist_ok=True)
    config = golden.meta["teacher_config"] | {"_class_name": golden.meta.get("teacher_class", "VideoDCAE")}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: value.float() for name, value in golden.teacher.items()}, folder / "diffusion_pytorch_model.safetensors")
    return folder
