"""The nodes "Load Turbo-VAED student" and "Turbo-VAED decode"."""

from typing import Any

import folder_paths
from torch import Tensor

from .loading import find, load
from .student_vae import DTYPES, LATENTS, StudentVAE, latents_of

NONE = "none: see path_or_hub_id"


class LoadTurboVaedStudent:
    """Load a student as a VAE that every node of ComfyUI takes."""

    CATEGORY = "loaders"
    DESCRIPTION = "Loads a Turbo-VAED student: a small, fast decoder of a video model's latents, as a VAE."
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Return the inputs."""
        files = [name for name in folder_paths.get_filename_list("vae") if name.lower().endswith((".safetensors", ".sft"))]
        return {
            "required": {"file": ([NONE, *files], {"tooltip": "A file of models/vae from turbovaed export --format comfyui."})},
            "optional": {
                "path_or_hub_id": ("STRING", {"default": "", "tooltip": "A run folder, model folder or file, or user/name."}),
                "download": ("BOOLEAN", {"default": False, "tooltip": "Fetch a hub id that is not in the cache."}),
                "dtype": (["auto", *DTYPES], {"tooltip": "Precision of the decode."}),
                "latents": (["auto", *LATENTS], {"tooltip": "What the LATENT holds. auto: as the student's model has it."}),
                "teacher": ("VAE", {"tooltip": "The model's own VAE, for nodes that encode."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, file: str, path_or_hub_id: str = "", **_others: Any) -> str:  # noqa: N802 - ComfyUI's name
        """Return a text that changes with the weight file, so that a run that has gone on is loaded again."""
        try:
            found = find(_where(file, path_or_hub_id)).stat()
        except (ValueError, OSError):
            return "missing"
        return f"{found.st_mtime_ns} {found.st_size}"

    def load(
        self, file: str, path_or_hub_id: str = "", download: bool = False, dtype: str = "auto", latents: str = "auto",
        teacher: Any = None,
    ) -> tuple[StudentVAE]:  # fmt: skip
        """Return the student as a VAE; raises ValueError in one sentence if it cannot be loaded."""
        weights = find(_where(file, path_or_hub_id), download=download)
        student, metadata = load(weights)
        held = metadata.get("comfyui_latents") or latents_of(student) if latents == "auto" else latents
        if held not in LATENTS:
            raise ValueError(
                f"ComfyUI's latents of {student.teacher} cannot be converted for {weights.name}: "
                "set `latents` to raw if your graph has raw ones."
            )
        if held == "normalised" and not (student.config.latents_mean and student.config.latents_std):
            raise ValueError(
                f"{weights.name} has no latent statistics, without which the normalised latents of this model cannot be decoded."
            )
        return (StudentVAE(student, held, teacher, DTYPES.get(dtype)),)


def _where(file: str, path_or_hub_id: str) -> str:
    if path_or_hub_id.strip():
        return path_or_hub_id.strip()
    if file == NONE:
        raise ValueError("Choose a file, or give a run folder, a model folder, a file or a hub id as `path_or_hub_id`.")
    path = folder_paths.get_full_path("vae", file)
    if path is None:
        raise ValueError(f"{file} is not in models/vae.")
    return str(path)


class TurboVaedDecode:
    """Decode latents with a student within a memory limit."""

    CATEGORY = "latent"
    DESCRIPTION = "Decodes latents with a Turbo-VAED student: piece by piece, without overlaps or seams, within a memory limit."
    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        """Return the inputs."""
        limit = {
            "default": 0.0,
            "min": 0.0,
            "max": 1024.0,
            "step": 0.5,
            "tooltip": "Limit in GB besides the weights. 0: 70 % of what is free.",
        }
        return {
            "required": {
                "samples": ("LATENT", {"tooltip": "The latents to decode."}),
                "vae": ("VAE", {"tooltip": "A student from Load Turbo-VAED student."}),
                "memory_gb": ("FLOAT", limit),
            }
        }

    def decode(self, samples: dict[str, Any], vae: Any, memory_gb: float = 0.0) -> tuple[Tensor]:
        """Return the frames (B * T, H, W, 3) in [0, 1]; raises TypeError if `vae` is no student."""
        if not isinstance(vae, StudentVAE):
            raise TypeError(
                "The input `vae` is no Turbo-VAED student: connect a Load Turbo-VAED student node, or use VAE Decode."
            )
        frames = vae.decode_within(samples["samples"], round(memory_gb * 1e9))
        return (frames.flatten(0, 1) if frames.ndim == 5 else frames,)


NODE_CLASS_MAPPINGS = {"LoadTurboVaedStudent": LoadTurboVaedStudent, "TurboVaedDecode": TurboVaedDecode}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadTurboVaedStudent": "Load Turbo-VAED student",
    "TurboVaedDecode": "Turbo-VAED decode",
}
