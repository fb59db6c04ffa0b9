"""A student as a VAE of ComfyUI: what the core's nodes call, and an exact decode in pieces that fit into memory."""

from contextlib import closing
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor, nn

from .modeling_turbovaed import StudentDecoder, decode_within

LATENTS = ("raw", "normalised")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LTX = (128, 8)  # the latent channels and the ratio in time of every LTX model
_UNKNOWN = ("cosmos", "flux2")  # teachers whose latents ComfyUI normalises in a way that no student has the statistics of
_LEAST = 2 * 10**9  # bytes that are freed on a GPU before a decode without a limit


def latents_of(student: StudentDecoder) -> str | None:
    """Return what ComfyUI's LATENT holds for the models of a student's teacher, "raw" or "normalised"; None if not known.

    The core's LTX models keep their latents normalised, and its VAE undoes that; all others are raw once they are sampled.
    """
    if student.teacher in _UNKNOWN:
        return None
    is_ltx = (student.latent_channels, int(student.temporal_compression_ratio)) == _LTX
    return "normalised" if is_ltx else "raw"


class FirstStage(nn.Module):
    """The network as ComfyUI moves it between devices: it assigns to `device`, which of a student itself is read-only."""

    def __init__(self, student: StudentDecoder, latents: str) -> None:
        super().__init__()
        self.student, self.latents, self.device = student, latents, torch.device("cpu")

    def raw(self, samples: Tensor) -> Tensor:
        """Convert a LATENT's samples (B, C, t, h, w) to the raw latents that the student takes."""
        return self.student.space.raw(samples) if self.latents == "normalised" else samples

    def decode(self, samples: Tensor, **_options: Any) -> Tensor:
        """Decode samples (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1], the whole clip at once."""
        return self.student.decode(self.raw(samples), return_dict=False)[0]

    def encode(self, *_arguments: Any, **_options: Any) -> Tensor:
        """Raise ValueError: a student only decodes."""
        raise ValueError(_NO_ENCODER)


_NO_ENCODER = "A Turbo-VAED student only decodes: connect its teacher's VAE to the input `teacher` of its loader to encode."


class StudentVAE(comfy.sd.VAE):
    """A VAE that decodes with a student, and encodes with `teacher` if one is given.

    `decode` and `decode_tiled` are the same: pieces without overlap, whose frames equal those of the whole clip.
    """

    def __init__(self, student: StudentDecoder, latents: str, teacher: Any = None, dtype: torch.dtype | None = None) -> None:
        # The core's own constructor recognises its networks by their keys, so it is not called.
        management = comfy.model_management
        self.student, self.teacher = student, teacher
        self.device, offload_device = management.vae_device(), management.vae_offload_device()
        self.output_device = management.intermediate_device()
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.vae_dtype = dtype or management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = FirstStage(student.to(self.vae_dtype), latents).eval().requires_grad_(False)
        self.patcher = comfy.model_patcher.ModelPatcher(
            self.first_stage_model, load_device=self.device, offload_device=offload_device
        )
        self.disable_offload = True  # every layer is loaded whole
        self._describe()

    def _describe(self) -> None:
        """Set what other nodes read from a VAE."""
        student = self.student
        time, space = int(student.temporal_compression_ratio), int(student.spatial_compression_ratio)
        self.latent_channels, self.output_channels = student.latent_channels, int(student.config.out_channels)
        self.process_input = lambda image: image * 2 - 1
        self.process_output = _to_unit
        self.memory_used_decode = self.memory_used_encode = lambda _shape, _dtype: _LEAST
        self.handles_tiling, self.not_video, self.crop_input = True, False, True
        self.extra_1d_channel = self.pad_channel_value = self.format_encoded = self.audio_sample_rate = None
        self.size = sum(weight.numel() * weight.element_size() for weight in student.parameters())
        self.upscale_index_formula = self.downscale_index_formula = None
        self.latent_dim, self.upscale_ratio, self.downscale_ratio = 2, space, space
        if time > 1:
            first = 0 if student.config.is_video_dc_ae else 1
            self.latent_dim = 3
            self.upscale_ratio = (lambda frames: max(0, (frames - first) * time + first), space, space)
            self.downscale_ratio = (lambda frames: max(0, (frames - first) // time + first), space, space)
            self.upscale_index_formula = self.downscale_index_formula = (time, space, space)

    def throw_exception_if_invalid(self) -> None:
        """Do nothing: a student that was loaded is valid."""

    def decode(self, samples: Tensor, vae_options: Any = None, **_options: Any) -> Tensor:
        """Decode a LATENT's samples to frames, as the node VAEDecode asks for them; see `decode_within`."""
        return self.decode_within(samples)

    def decode_tiled(self, samples: Tensor, *_tiles: Any, **_overlaps: Any) -> Tensor:
        """Decode exactly, whatever the tiles; as the node VAEDecodeTiled asks for it."""
        return self.decode_within(samples)

    @torch.no_grad()
    def decode_within(self, samples: Tensor, memory: int = 0) -> Tensor:
        """Decode samples (B, C, t, h, w), or images (B, C, h, w), to frames (B, T, H, W, 3) or (B, H, W, 3) in [0, 1], fp32.

        Decoding takes `memory` bytes at most on its device, besides the weights; 0 allows 70 % of what is free. The frames
        are on ComfyUI's output device. Raises ValueError for latents of another shape, and ComfyUI's own exception if the
        run is cancelled.
        """
        clips = self._clips(samples)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory or _LEAST, force_full_load=True)
        self.first_stage_model.to(self.device)  # layers that making room for another model has moved away
        batch, _, length, height, width = clips.shape
        ratio, num_frames = int(self.student.spatial_compression_ratio), self.student.pixel_frames(length)
        shape = (batch, num_frames, height * ratio, width * ratio, self.output_channels)
        frames = torch.empty(shape, device=self.output_device, dtype=torch.float32)
        progress = comfy.utils.ProgressBar(batch * num_frames)
        try:
            for clip, made in zip(clips, frames, strict=True):
                self._decode_clip(clip[None], made, memory, progress)
        finally:
            self.student.fast_form_of = None  # its copy of the weights stays on the device otherwise
        return frames[:, 0] if samples.ndim == 4 else frames

    def _decode_clip(self, clip: Tensor, frames: Tensor, memory: int, progress: Any) -> None:
        """Decode one clip (1, C, t, h, w) into `frames` (T, H, W, 3)."""
        interrupted = comfy.model_management.throw_exception_if_processing_interrupted
        free = comfy.model_management.get_free_memory(self.device)
        raw = self.first_stage_model.raw(clip.to(torch.float32))
        spill, done = Path(folder_paths.get_temp_directory()), 0
        spill.mkdir(parents=True, exist_ok=True)
        with closing(decode_within(self.student, raw, memory or int(free) * 7 // 10, spill=spill)) as pieces:
            interrupted()
            for video in pieces:
                frames[done : done + video.shape[2]] = _to_unit(video[0].movedim(0, -1).to(frames))
                done += video.shape[2]
                progress.update(video.shape[2])
                interrupted()
        assert done == len(frames)

    def _clips(self, samples: Tensor) -> Tensor:
        """Return samples as clips (B, C, t, h, w)."""
        if getattr(samples, "is_nested", False):  # video and audio: the video is first
            samples = samples.unbind()[0]
        clips = samples.unsqueeze(2) if samples.ndim == 4 else samples
        if clips.ndim != 5 or clips.shape[1] != self.latent_channels or not clips.numel():
            of = f" of {self.student.teacher}" if self.student.teacher else ""
            raise ValueError(
                f"The latents are {tuple(samples.shape)}, and this student{of} decodes "
                f"(batch, {self.latent_channels}, frames, height, width): load the student of the model that made them."
            )
        return clips

    def encode(self, *arguments: Any, **options: Any) -> Any:
        """Encode with the teacher's VAE; raises ValueError without one."""
        return self._teacher().encode(*arguments, **options)

    def encode_tiled(self, *arguments: Any, **options: Any) -> Any:
        """Encode with the teacher's VAE in tiles; raises ValueError without one."""
        return self._teacher().encode_tiled(*arguments, **options)

    def _teacher(self) -> Any:
        if self.teacher is None:
            raise ValueError(_NO_ENCODER)
        return self.teacher

    def get_sd(self) -> dict[str, Tensor]:
        """Return the weights under the published keys."""
        return self.student.state_dict()


def _to_unit(image: Tensor) -> Tensor:
    """Convert pixels in [-1, 1] to [0, 1], clamped, in place and returned: ComfyUI's versions rely on one or the other."""
    return image.add_(1).div_(2).clamp_(0, 1)
