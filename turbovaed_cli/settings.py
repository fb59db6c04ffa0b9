"""One frozen settings class per long command. Value, sentence and panel of every option are typed here, once. Sizes are (height, width)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from turbovaed_cli.choices import (
    DEVICES,
    DTYPES,
    METRIC_NAMES,
    check_bench_device,
    check_choice,
    check_device,
    check_dtype,
    metric_name,
)
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.setting import same, setting, setting_of
from turbovaed_cli.stage import Stage, scaled
from turbovaed_cli.units import parse_bytes, parse_numbers, parse_shape, parse_size

# What the values of options are chosen from, for help and for refusing others before anything heavy is loaded.
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "6bit")  # of exported artefacts
WRITABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # of videos that are written
MOST_CRF = 51  # the least quality of h264 and h265
HDR_CHOICES = ("tonemap", "refuse")  # what happens to PQ and HLG videos
FORMATS = ("onnx", "coreml", "executorch", "executorch-coreml", "litert", "coreai", "torch-export", "safetensors", "comfyui")
TARGETS = ("torch", "onnx", "coreml", "executorch", "litert")
OPTIMIZERS = ("adamw", "muon")
LAYOUTS = ("4d-cat", "4d-sum", "5d")
CODECS = ("h264", "h265", "prores", "ffv1")
PROTOCOLS = ("standard", "paper")
THRESHOLDS = ("fps", "realtime", "psnr_db", "speedup")  # of bench --fail-under
TRACKERS = ("tensorboard", "trackio", "wandb")
STARTS = ("plain", "fitted")


@dataclass(frozen=True)
class ClipSettings:
    """Settings that several commands have in common."""

    frames: int = setting(17, "Pixel frames per clip.", "Clips")
    size: tuple[int, int] = setting(  # scaled to cover, then cropped in the middle
        (256, 256), "WIDTHxHEIGHT in pixels, 720p, or a number.", "Clips", metavar="SIZE", parse=parse_size
    )
    stride: int = setting(1, "Take every n-th frame.", "Reading videos")
    hdr: str = setting(
        "tonemap", "HDR videos (PQ, HLG): tonemap converts them to SDR, refuse skips them.", "Reading videos", choices=HDR_CHOICES
    )
    batch_size: int = setting(1, "Clips encoded at once.", "Clips")
    dtype: str = setting("fp32", "Precision: {choices}.", "Device", choices=DTYPES)
    device: str = setting("auto", "{choices}; cuda:1 is the second GPU.", "Device", choices=DEVICES, parse=check_device)
    memory: int = setting(  # bytes that the process may take (of a GPU: its tensors); 0 takes the default
        0, "Memory limit, such as 4GB.", "Device", metavar="BYTES", parse=parse_bytes, shown="70 % of free memory"
    )
    seed: int = setting(0, "Random seed.", "Measuring in detail")
    data: Path | None = setting(None, "A folder of videos, or one video.", "Input and output", metavar="DIR")
    latents: Path | None = setting(None, "A latents file to use instead of videos or random latents.", "Latents", metavar="FILE")
    decode_timestep: float | None = setting(
        None, "Fixed timestep of a teacher's decoder that takes one (LTX-Video 0.9.5 to 0.9.8).", "Measuring in detail",
        shown="the run's, else 0.05",
    )  # fmt: skip
    latents_are: str = setting(
        "raw", "A latents file is raw, as a VAE encodes, or normalised, as pipelines compute.", "Latents",
        choices=("raw", "normalised"),
    )  # fmt: skip
    latents_shape: tuple[int, ...] = setting(
        (),
        "Shape of packed latents, as LTX's pipeline gives them, such as 16,15,22.",
        "Latents",
        metavar="T,H,W",
        parse=parse_shape,
    )


@dataclass(frozen=True)
class CacheSettings:
    """The settings of `cache-latents`."""

    frames: int = same(ClipSettings, "frames")
    size: tuple[int, int] = same(ClipSettings, "size")
    stride: int = same(ClipSettings, "stride")
    clips_per_video: int = setting(0, "At most this many clips, evenly spread; 0 takes all that fit without overlap.", "Clips")
    # What teaches a student colours and edges that filmed clips hardly have; cached clips are changed before they are encoded.
    augment: float = setting(0.0, "Share of the clips that get other colours and contrast, 0 to 1.", "Clips", shown="0")
    synthetic: float = setting(
        0.0, "Share of drawn clips (flat colours, ramps, shapes, text ...) among all, below 1.", "Clips", shown="0"
    )
    seed: int = same(ClipSettings, "seed", sentence="Random seed of --augment and --synthetic.", panel="Reading videos")
    batch_size: int = same(ClipSettings, "batch_size")
    shard_mb: int = setting(256, "Close a shard when it has grown to this many megabytes.", "Several workers")
    # Precision of the teacher's encoder; bf16 is not exact enough for the embedded one (benchmarks/cache_latents.py).
    dtype: str = same(
        ClipSettings, "dtype", sentence="{choices}; bf16 moves latents by 5 % on the embedded teacher, others not measured."
    )
    device: str = same(ClipSettings, "device")
    workers: int = setting(0, "Videos read ahead of the encoder.", "Several workers", shown="2; on a GPU one per core, at most 8")
    max_failures: int | None = setting(
        None, "Exit with 4 after more unreadable clips than this.", "Several workers", shown="no limit"
    )
    retry_failed: bool = setting(False, "Try again what could not be read before.", "Several workers")
    hdr: str = same(ClipSettings, "hdr")
    precise: bool = setting(False, "Compute the teacher in fp32 on NVIDIA GPUs too, not in TF32.", "Speed and memory")
    memory: int = same(ClipSettings, "memory")
    # The same numbers within rounding; off, networks have nothing but their layout, and teachers are the class itself.
    fast: bool = setting(True, "Use optimised kernels.", "Speed and memory", flag="--fast/--no-fast")


@dataclass(frozen=True)
class DistillSettings:
    """`distill`: a schedule and what all its stages share. RECIPES holds presets; RESUMABLE_CHANGES is what a resume may change."""

    stages: tuple[Stage, ...]  # run one after the other
    recipe: str = setting("own", "Name of the recipe.")
    # 0 takes the steps of the stages. Else they give proportions, and the run's own steps are set before its first one.
    hours: float = setting(0.0, "Hours to train for, in place of --steps.", "Training")
    # Off the CPU; a step sees the same clips.
    fit_batch: bool = setting(False, "Split a forward pass that does not fit in the free memory of a GPU.")
    frames: int = same(ClipSettings, "frames", panel="Training")
    size: tuple[int, int] = same(ClipSettings, "size", panel="Training")  # of stages without their own
    stride: int = same(ClipSettings, "stride")  # with videos alone; cached clips have theirs
    augment: float = same(CacheSettings, "augment", panel="Reading videos")  # with videos alone, as the next one
    synthetic: float = same(CacheSettings, "synthetic", panel="Reading videos")
    hdr: str = same(ClipSettings, "hdr")
    optimizer: str = setting("adamw", "{choices}; muon needs larger learning rates.", "Schedule", choices=OPTIMIZERS)
    betas: tuple[float, float] = setting((0.9, 0.95), "Betas of AdamW; Muon takes the second as its momentum.")
    eps: float = setting(1e-15, "Epsilon of AdamW.")
    weight_decay: float = setting(1e-4, "Weight decay of AdamW.")
    clip_grad_norm: float = setting(1.0, "Scale gradients down to this norm; 0 leaves them alone.")
    ema_decay: float = setting(0.999, "Decay of the weight average (EMA) saved in model/.", "Schedule")
    start: str = setting(
        "plain", "Weights to start from: plain (random), or fitted (a linear decoder, by least squares from some clips).", "Design of the student",
        choices=STARTS,
    )  # fmt: skip
    discriminator_channels: int = setting(32, "Channels of the first layer of the 3-D PatchGAN.")
    discriminator_lr: float = setting(1e-4, "Learning rate of the 3-D PatchGAN (AdamW).")
    # Autocast; fp16 has a gradient scaler.
    dtype: str = setting("auto", "{choices} (bf16 if it can).", "Device", choices=(*DTYPES, "auto"))
    # The last bits differ from those without.
    compile: bool = setting(
        False, "torch.compile the student; the first step of every stage takes a minute or more.", "Speed and memory"
    )
    precise: bool = same(CacheSettings, "precise")
    device: str = same(ClipSettings, "device")
    seed: int = same(ClipSettings, "seed", panel="Schedule")
    save_every: int = setting(500, "Steps between checkpoints.", "Checkpoints and logs")
    sample_every: int = setting(500, "Steps between sample strips; 0 draws none.", "Checkpoints and logs")
    keep_checkpoints: int = setting(3, "Checkpoints to keep; older ones are removed once a newer one is safe.")
    # Each in a thread; 0 takes 2 on a CPU, else one for each core, at most 8.
    workers: int = setting(0, "Batches read ahead.", "Speed and memory")
    log: tuple[str, ...] = setting(
        (), "Also log to tensorboard, trackio or wandb; several by commas.", "Checkpoints and logs", choices=TRACKERS, many=True
    )
    stall_seconds: float = setting(60.0, "Seconds without a batch after which the clips being read are named.")

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def clips(self) -> int:
        """Clips that they see, each as often as it comes."""
        return sum(stage.steps * stage.batch_size * stage.accumulation for stage in self.stages)

    def with_changes(self, **changes: Any) -> "DistillSettings":
        """These settings with some fields changed: fields of a stage change in every stage, `steps` scales the whole schedule.

        `steps` take the place of `hours`. Raises SettingsError if both are given, or if the schedule has more stages than `steps`.
        """
        steps = changes.pop("steps", None)
        if steps is not None:
            if changes.get("hours"):
                raise SettingsError("`hours` and `steps` both set the length of the schedule", "give one of them")
            changes["hours"] = 0.0
        of_stages = {name: changes.pop(name) for name in list(changes) if name in _STAGE_FIELDS and name not in _RUN_FIELDS}
        stages = tuple(replace(stage, **of_stages) for stage in changes.pop("stages", self.stages))
        return replace(self, stages=stages if steps is None else scaled(stages, steps), **changes)


_STAGE_FIELDS = frozenset(field.name for field in fields(Stage))
_RUN_FIELDS = frozenset(field.name for field in fields(DistillSettings))


def check_counts(settings: object, names: Sequence[str]) -> None:
    """Raise SettingsError for the first of these fields that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise SettingsError(f"`{name}` is {getattr(settings, name)}; it must be at least 1")


def check_shares(settings: CacheSettings | DistillSettings) -> None:
    """Raise SettingsError unless `augment` is in 0 to 1, and `synthetic` at least 0 and below 1."""
    if not 0 <= settings.augment <= 1:
        raise SettingsError(
            f"`augment` is {settings.augment:g}; it must be 0 to 1", "a share of the clips, such as `augment` 0.3 for 30 %"
        )
    if not 0 <= settings.synthetic < 1:
        raise SettingsError(
            f"`synthetic` is {settings.synthetic:g}; it must be at least 0 and below 1",
            "the share of drawn clips among all, such as `synthetic` 0.2 for 20 %",
        )


@dataclass(frozen=True)
class ReconstructSettings:
    """The settings of `reconstruct`."""

    memory: int = same(ClipSettings, "memory")
    fast: bool = same(CacheSettings, "fast")
    compare: bool = setting(False, "Write source, teacher and student side by side.", "Video")
    window: int = setting(
        0, "Frames that --compare encodes and decodes at once.", "Windows of --compare", shown="17 to 33, by the frame's size"
    )
    overlap: int = setting(8, "Frames that two windows share and fade over.", "Windows of --compare")
    codec: str = setting(
        "h264", "h264 or h265 (.mp4, .mov, .mkv), prores (.mov, .mkv), or ffv1 (.mkv, lossless).", "Video", choices=CODECS
    )
    bits: int = setting(0, "Bits per channel: {choices}.", "Video", metavar="N", choices=("8", "10"), shown="8; 10 for prores")
    crf: int | None = setting(None, f"Quality of h264 and h265, 0 (best) to {MOST_CRF}.", "Video", shown="16")
    sound: str = setting("keep", "Sound tracks of the video: {choices}.", "Video", choices=("keep", "drop"))
    fps: float = setting(24.0, "Frame rate for latents and for folders of frames, which have none.", "Latents")
    dtype: str = same(ClipSettings, "dtype")
    device: str = same(ClipSettings, "device")
    hdr: str = same(ClipSettings, "hdr")
    latents_are: str = same(ClipSettings, "latents_are")
    latents_shape: tuple[int, ...] = same(ClipSettings, "latents_shape")


def check_video_name(path: Path) -> None:
    """Raise SettingsError unless the name is one of a video that can be written."""
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise SettingsError(f"{path} is no name this can write to", f"videos end in {', '.join(WRITABLE_SUFFIXES)}")


def check_reconstruct(settings: ReconstructSettings, *, side_by_side: bool = False) -> None:
    """Raise SettingsError naming the first value that makes no sense, with further decoders `side_by_side` or without."""
    if settings.overlap < 0 or settings.window < 0:
        raise SettingsError("`overlap` and `window` cannot be below 0")
    if settings.memory and (settings.compare or side_by_side):
        name = "compare" if settings.compare else "against"
        raise SettingsError(
            f"`{name}` works in windows, whose memory is not planned", "`window=17` bounds it; or leave out `memory`"
        )
    if (settings.window or settings.overlap != ReconstructSettings.overlap) and not (settings.compare or side_by_side):
        raise SettingsError("`window` and `overlap` are for `compare`: all else has no windows", "`memory=4GB` bounds the memory")
    if not 0 < settings.fps < math.inf:
        raise SettingsError(f"`fps={settings.fps}` is not a frame rate", "a number above 0, such as 24")
    if settings.crf is not None and not 0 <= settings.crf <= MOST_CRF:
        raise SettingsError(f"`crf={settings.crf}` is not a quality", f"0 (best) to {MOST_CRF}")
    check_choice("`sound`", settings.sound, setting_of(ReconstructSettings, "sound").choices)
    check_choice("`hdr`", settings.hdr, HDR_CHOICES)
    check_dtype(settings.dtype)
    check_device(settings.device)


@dataclass(frozen=True)
class EvalSettings:
    """The settings of `eval`."""

    frames: int = same(ClipSettings, "frames")
    size: tuple[int, int] = same(ClipSettings, "size")
    stride: int = same(ClipSettings, "stride")
    clips_per_video: int = setting(1, "Evenly spread; 1 takes the first, 0 all.", "Clips")
    protocol: str = setting(
        "standard", "standard, or paper: as the published script computes it.", "Measuring", choices=PROTOCOLS
    )
    dtype: str = same(ClipSettings, "dtype")
    device: str = same(ClipSettings, "device")
    metrics: tuple[str, ...] = setting(
        (), "Only these metrics, such as psnr,ssim.", "Measuring", metavar="NAMES", many=True, choices=METRIC_NAMES, parse=metric_name,
        shown="all",
    )  # fmt: skip
    lpips_weights: tuple[Path, ...] = setting(
        (), "A backbone (AlexNet, VGG16) or learned weights of LPIPS; repeat.", "Weights of metrics", metavar="FILE", many=True,
        by_commas=False, shown="those that models pull fetched",
    )  # fmt: skip
    i3d: Path | None = setting(
        None, "The I3D detector (TorchScript).", "Weights of metrics", metavar="FILE", shown="the one that models pull fetched"
    )
    # TorchScript is code, and is not loaded without.
    i3d_sha256: str = setting(
        "", "The detector's sha256, which you vouch for: TorchScript is code.", "Weights of metrics", metavar="HASH"
    )
    dataset: str = setting("", "ucf101, if file names do not show it.", "Measuring in detail", choices=("ucf101",), parse=str)
    speed_repeats: int = setting(0, "Timed decodes of teacher and student, in turns; 0 times nothing.")
    hdr: str = same(ClipSettings, "hdr")
    memory: int = same(ClipSettings, "memory", panel="Measuring in detail")


@dataclass(frozen=True)
class ExportSettings:
    """The settings of `export`."""

    frames: int = same(ClipSettings, "frames")  # of the video that the artefact makes; fixed for Core ML
    # Several make one Core ML package with a function each.
    sizes: tuple[tuple[int, int], ...] = same(
        ClipSettings, "size", default=(ClipSettings.size,), flag="--size", many=True,
        sentence="Pixels: 512x288 (width x height), 720p, or 256 for a square; several by commas.",
    )  # fmt: skip
    precisions: tuple[str, ...] = setting(
        (), "Precisions, by commas: {choices}.", "Format", flag="--dtype", choices=PRECISIONS, many=True, shown="the format's own"
    )
    # Of rank 4 with taps concatenated, or added up; 5d keeps conv3d.
    layout: str = setting("4d-cat", "Layout of the graph: {choices}.", "Format", choices=LAYOUTS)
    chunk: int = setting(0, "Also write a graph of this many latent frames, for clips of any length.", "Format", shown="none")
    states: bool = setting(False, "With --chunk: Core ML keeps the frames between two chunks itself (iOS 18).", "Apple devices")
    seed: int = same(ClipSettings, "seed")  # of the latents the artefact is checked on without real ones
    latents: Path | None = same(ClipSettings, "latents")
    data: Path | None = setting(
        None, "Videos to calibrate and check artefacts on.", "Input and output", metavar="DIR", shown="random latents"
    )
    clips: int = setting(4, "Videos of the data that are used.")
    memory: int = same(ClipSettings, "memory")
    overwrite: bool = setting(False, "Replace an output that is there.", "Input and output")
    hdr: str = same(ClipSettings, "hdr")
    latents_are: str = same(ClipSettings, "latents_are")
    latents_shape: tuple[int, ...] = same(ClipSettings, "latents_shape")


@dataclass(frozen=True)
class BenchSettings:
    """The settings of `bench`."""

    targets: tuple[str, ...] = setting(
        ("torch", "onnx"),
        "Runtimes to time, by commas: {choices}.",
        "Measuring",
        flag="--target",
        choices=(*TARGETS, "all"),
        many=True,
    )
    frames: int = same(ClipSettings, "frames")
    size: tuple[int, int] = same(ClipSettings, "size")
    # Each target takes those of these that it has.
    precisions: tuple[str, ...] = same(ExportSettings, "precisions", panel="Measuring", shown="the target's own")
    layouts: tuple[str, ...] = setting(  # torch has none
        ("4d-cat",),
        "Layouts of exported graphs: {choices}; several by commas.",
        "Measuring in detail",
        flag="--layout",
        choices=LAYOUTS,
        many=True,
    )
    warmup: int = setting(2, "Calls before the clock counts.", "Measuring in detail")  # the first one is reported apart
    repeats: int = setting(10, "Timed calls.", "Measuring")  # in turns with the target's other rows
    threads: int = setting(0, "CPU threads, pinned.", "Measuring in detail", shown="as many as torch takes")
    device: str = same(
        ClipSettings,
        "device",
        sentence="{choices}; for coreml an attached iphone or ipad, or iphone:NAME.",
        parse=check_bench_device,
    )
    apple_team: str = setting(
        "", "Development team that signs coremltools' app on an attached device.", "Apple devices", metavar="TEAM"
    )
    teacher: bool = setting(True, "Time the teacher's decoder too.")
    compile: bool = setting(False, "Add a row for torch.compile, which takes a minute or more.", "Measuring in detail")
    data: Path | None = setting(
        None, "Videos to decode the latents of, and to compare with.", "Input and output", metavar="DIR", shown="random latents"
    )
    latents: Path | None = same(ClipSettings, "latents")
    clips: int = same(ExportSettings, "clips")
    seed: int = same(ClipSettings, "seed")  # of random latents
    # Of a decode, whole and streamed.
    memory_frames: tuple[int, ...] = setting(
        (),
        "Clip lengths to measure the memory of a decode at, such as 17,33,65.",
        "Measuring in detail",
        metavar="N,N",
        parse=parse_numbers,
    )
    hdr: str = same(ClipSettings, "hdr")
    latents_are: str = same(ClipSettings, "latents_are")
    latents_shape: tuple[int, ...] = same(ClipSettings, "latents_shape")
