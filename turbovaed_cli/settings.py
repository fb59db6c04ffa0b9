"""One frozen settings class per long command; every default is typed here and nowhere else. Sizes are (height, width)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut from videos, the same in every command that reads them."""

    frames: int = 17  # pixel frames per clip
    size: tuple[int, int] = (256, 256)  # pixels: scaled to cover, then cropped
    stride: int = 1  # take every n-th frame


@dataclass(frozen=True)
class CacheSettings:
    """`cache-latents`."""

    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels: scaled to cover, then cropped in the middle
    stride: int = ClipSettings.stride  # take every n-th frame
    clips_per_video: int = 0  # at most this many, evenly spread; 0 takes as many as fit without overlap
    batch_size: int = 1  # clips encoded at once
    shard_mb: int = 256  # a shard is closed when it has grown to this size
    dtype: str = "fp32"  # precision of the teacher's encoder
    device: str = "auto"  # auto, cpu, cuda or mps
    workers: int = 2  # threads that read videos ahead of the encoder


@dataclass(frozen=True)
class DistillSettings:
    """`distill`. The defaults are the published recipe, and a bound on the gradient; what a resume may change: RESUMABLE_CHANGES."""

    steps: int = 2000  # optimizer steps in all
    batch_size: int = 1  # clips per forward pass
    accumulation: int = 8  # forward passes per optimizer step
    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels
    stride: int = ClipSettings.stride  # take every n-th frame (with --data alone; cached clips have theirs)
    crop: tuple[int, int] | None = None  # pixels: learn from random crops of the clips, latents cut with them; None takes all
    lr: float = 1e-4  # AdamW learning rate, constant behind the warm-up
    lr_schedule: str = "constant"  # constant, or cosine down to 2 % at the last step
    warmup_steps: int = 0  # steps over which the learning rate rises from zero
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW
    eps: float = 1e-15  # AdamW
    weight_decay: float = 1e-4  # AdamW
    clip_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0 leaves them alone
    ema_decay: float = 0.999  # moving average of the student's weights; model/ holds this average
    perceptual: str = "auto"  # lpips, ssim, none; auto takes lpips where its weights are, else ssim, and says so
    perceptual_weight: float = 1.0  # of the perceptual loss
    feature_weight: float = 1.0  # of the sum of the feature losses; 0 aligns nothing and decodes no teacher
    posterior: str = "sample"  # sample from the posterior, or its mean
    dtype: str = "fp32"  # fp32, bf16 or fp16 (autocast; fp16 with a gradient scaler)
    device: str = "auto"  # auto, cpu, cuda or mps
    seed: int = 0  # of everything random
    save_every: int = 500  # steps between checkpoints
    sample_every: int = 500  # steps between sample strips; 0 draws none
    keep_checkpoints: int = 3  # older ones are removed once a newer one is safe
    workers: int = 2  # batches read ahead, each in a thread


# What may differ between a run and its resume without changing what was computed so far.
RESUMABLE_CHANGES = frozenset({"steps", "save_every", "sample_every", "keep_checkpoints", "workers", "device", "where"})


@dataclass(frozen=True)
class ReconstructSettings:
    """`reconstruct`."""

    window: int = 0  # pixel frames encoded and decoded at once, which bounds the memory; 0 takes 17 to 33 by the frame's size
    overlap: int = 8  # pixel frames that neighbouring windows share and fade over
    compare: bool = False  # source, teacher and student side by side
    crf: int = 16  # H.264 quality of the written video
    fps: float = 24.0  # frame rate of a video made from a latents file, which has none
    dtype: str = "fp32"  # fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu, cuda or mps


@dataclass(frozen=True)
class EvalSettings:
    """`eval`."""

    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels: scaled to cover, then cropped in the middle
    stride: int = ClipSettings.stride  # take every n-th frame
    clips_per_video: int = 1  # evenly spread; 1 takes the first frames
    protocol: str = "standard"  # fixed range, per clip, then the mean over clips
    dtype: str = "fp32"  # fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu, cuda or mps


@dataclass(frozen=True)
class ExportSettings:
    """`export`."""

    frames: int = ClipSettings.frames  # pixel frames of the video the artefact makes; fixed for Core ML
    size: tuple[int, int] = ClipSettings.size  # pixels; fixed for Core ML
    precision: str = "fp32"  # fp32 or fp16
    layout: str = "4d-cat"  # rank-4 graph, taps concatenated; 4d-sum adds them up instead; 5d keeps conv3d
    seed: int = 0  # of the latents the artefact is checked on, when no real ones are given
    latents: Path | None = None  # a latents file to check the artefact on
    overwrite: bool = False  # replace an artefact that is there


@dataclass(frozen=True)
class BenchSettings:
    """`bench`."""

    targets: tuple[str, ...] = ("torch", "onnx")  # torch, onnx, coreml
    frames: int = ClipSettings.frames  # pixel frames decoded per call
    size: tuple[int, int] = ClipSettings.size  # pixels
    precision: str = "fp32"  # fp32, bf16 or fp16
    warmup: int = 2  # calls before the clock counts; the first one is reported apart
    repeats: int = 10  # timed calls
    threads: int = 0  # CPU threads; 0 leaves the library's choice
    device: str = "auto"  # auto, cpu, cuda or mps
    teacher: bool = True  # time the teacher's decoder beside the student
