"""One frozen settings class per long command; every default is typed here and nowhere else. Sizes are (height, width)."""

import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from turbovaed_cli.choices import check_choice, hint_for
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import fits, read_text, shown

# What the values of options are chosen from, for help and for refusing others before anything heavy is loaded.
DTYPES = ("fp32", "bf16", "fp16")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "6bit")  # of exported artefacts
DEVICES = ("auto", "cpu", "cuda", "mps")
WRITABLE_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")  # of videos that are written
MOST_CRF = 51  # the least quality of h264 and h265
HDR_CHOICES = ("tonemap", "refuse")  # what happens to PQ and HLG videos
APPLE_DEVICES = ("iphone", "ipad")  # attached ones, for Core ML alone
FORMATS = ("onnx", "coreml", "executorch", "executorch-coreml", "litert", "coreai", "torch-export", "safetensors")
TARGETS = ("torch", "onnx", "coreml", "executorch", "litert")
OPTIMIZERS = ("adamw", "muon")
LAYOUTS = ("4d-cat", "4d-sum", "5d")


def check_device(name: str, others: Sequence[str] = ()) -> None:
    """Raise SettingsError unless `name` is a kind of device, or a CUDA device by its number. Whether it is there is another question.

    `others` are further kinds that the command takes, for the hint.
    """
    kind, colon, number = name.partition(":")
    check_choice("--device", kind, (*DEVICES, *others))
    if colon and kind != "cuda":
        raise SettingsError(f"--device {name}: {kind} has no number", f"--device {kind}")
    if colon and re.fullmatch(r"0|[1-9]\d{0,3}", number, re.ASCII) is None:
        raise SettingsError(f"--device {name} names no CUDA device", "--device cuda:0 is the first, cuda:1 the second")


def check_dtype(name: str) -> None:
    """Raise SettingsError unless `name` is a precision that networks run in."""
    check_choice("--dtype", name, DTYPES)


@dataclass(frozen=True)
class ClipSettings:
    """How clips are cut from videos, the same in every command that reads them."""

    frames: int = 17  # pixel frames per clip
    size: tuple[int, int] = (256, 256)  # pixels: scaled to cover, then cropped
    stride: int = 1  # take every n-th frame
    hdr: str = "tonemap"  # of PQ and HLG videos: tonemap to SDR, or refuse them


@dataclass(frozen=True)
class CacheSettings:
    """`cache-latents`."""

    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels: scaled to cover, then cropped in the middle
    stride: int = ClipSettings.stride  # take every n-th frame
    clips_per_video: int = 0  # at most this many, evenly spread; 0 takes as many as fit without overlap
    batch_size: int = 1  # clips encoded at once
    shard_mb: int = 256  # a shard is closed when it has grown to this size
    # Precision of the teacher's encoder; bf16 is not exact enough for the embedded one (benchmarks/cache_latents.py).
    dtype: str = "fp32"
    device: str = "auto"  # auto, cpu, cuda or mps
    workers: int = 0  # threads that read videos ahead of the encoder; 0: two, on CUDA one per core, up to eight
    max_failures: int | None = None  # more videos and clips that cannot be read than this end the command; None: never
    retry_failed: bool = False  # look again at what could not be read before
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them
    precise: bool = False  # encode in full fp32 on NVIDIA GPUs too, which use TF32 without it


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule: how long, on what, for which losses. A schedule is a list of them, run by one command."""

    name: str  # in metrics.jsonl, reports and messages
    steps: int = 2000  # optimizer steps
    batch_size: int = 1  # clips per forward pass, of each process; config.json has those of all together
    accumulation: int = 8  # forward passes per optimizer step
    size: tuple[int, int] | None = None  # (height, width) in pixels, of clips read from videos; None takes the run's
    crop: tuple[int, int] | None = None  # pixels: learn from random crops of the clips, latents cut with them; None takes all
    crop_latents: int = 0  # the same as so many latents a side, at most the clip; 0 takes all
    crop_side: int = 0  # the same as so many pixels a side, rounded down to latents and at most the clip; 0 takes all
    crop_margin: int = 0  # latents along cuts of cached clips, at most a third, that losses leave out: they know what lies beyond
    lr: float = 1e-4  # learning rate behind the warm-up; Muon's are some thirty times AdamW's
    lr_schedule: str = "constant"  # constant, or cosine down to lr_end where the stage ends
    lr_end: float = 0.02  # share of lr that cosine ends with
    warmup_steps: int = 0  # steps over which the learning rate rises from zero, at most a tenth of the stage
    perceptual: str = "auto"  # lpips, ssim, none; auto takes lpips where its weights are, else ssim, and says so
    perceptual_weight: float = 1.0  # of the perceptual loss
    perceptual_frames: int = 0  # frames of each clip that it looks at, others in every pass; 0 takes all
    feature_weight: float = 1.0  # of the sum of the feature losses; 0 aligns nothing
    teacher_weight: float = 0.0  # of L1 to the teacher's own decode, beside L1 to the source; 0 never decodes it whole
    adversarial_weight: float = 0.0  # of the 3-D PatchGAN's hinge loss, times the adaptive weight; 0 has no discriminator
    posterior: str = "sample"  # sample from the posterior, or its mean
    gradient_checkpointing: bool = False  # keep no activations inside blocks: less memory, more time, the same bits


@dataclass(frozen=True)
class DistillSettings:
    """`distill`: a schedule and what all its stages share. RECIPES holds the presets; what a resume may change: RESUMABLE_CHANGES."""

    stages: tuple[Stage, ...]  # run one after the other
    recipe: str = "own"  # the preset's name
    # Off the CPU, split a forward pass that does not fit in the free memory into several; a step sees the same clips.
    fit_batch: bool = False
    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels
    stride: int = ClipSettings.stride  # take every n-th frame (with --data alone; cached clips have theirs)
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them
    optimizer: str = "adamw"  # adamw or muon, whose learning rates are larger
    betas: tuple[float, float] = (0.9, 0.95)  # AdamW; Muon takes the second as its momentum
    eps: float = 1e-15  # AdamW
    weight_decay: float = 1e-4  # AdamW
    clip_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0 leaves them alone
    ema_decay: float = 0.999  # moving average of the student's weights; model/ holds this average
    start: str = "plain"  # plain: torch's random weights; fitted: a linear decoder, by least squares from some clips
    discriminator_channels: int = 32  # width of the first layer of the 3-D PatchGAN
    discriminator_lr: float = 1e-4  # AdamW learning rate of the 3-D PatchGAN
    dtype: str = "auto"  # fp32, bf16 or fp16 (autocast; fp16 with a gradient scaler); auto takes bf16 where the device has it
    compile: bool = False  # torch.compile the student; other last bits, and a slow first step of each stage
    precise: bool = False  # the teacher computes in full fp32 on NVIDIA GPUs too, which use TF32 without it
    device: str = "auto"  # auto, cpu, cuda or mps
    seed: int = 0  # of everything random
    save_every: int = 500  # steps between checkpoints
    sample_every: int = 500  # steps between sample strips; 0 draws none
    keep_checkpoints: int = 3  # older ones are removed once a newer one is safe
    workers: int = 0  # batches read ahead, each in a thread; 0 takes 2 on a CPU, else one for each core, at most 8
    log: tuple[str, ...] = ()  # trackers beside metrics.jsonl: tensorboard, trackio, wandb
    stall_seconds: float = 60.0  # a batch that does not come for so long is named, again and again

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

        Raises SettingsError where the schedule has more stages than `steps`.
        """
        steps = changes.pop("steps", None)
        of_stages = {name: changes.pop(name) for name in list(changes) if name in _STAGE_FIELDS and name not in _RUN_FIELDS}
        stages = tuple(replace(stage, **of_stages) for stage in changes.pop("stages", self.stages))
        return replace(self, stages=stages if steps is None else _scaled(stages, steps), **changes)


_STAGE_FIELDS = frozenset(field.name for field in fields(Stage))
_RUN_FIELDS = frozenset(field.name for field in fields(DistillSettings))


def _scaled(stages: tuple[Stage, ...], steps: int) -> tuple[Stage, ...]:
    """The same stages with `steps` in all, each keeping its share, and one step at least."""
    if steps < len(stages):
        what = f"--steps is {steps}; " + (f"the schedule has {len(stages)} stages" if steps > 0 else "it must be at least 1")
        raise SettingsError(what, "raise --steps, or take --recipe quick, which has one stage")
    total = max(sum(stage.steps for stage in stages), 1)
    done, before, scaled = 0, 0, []
    for index, stage in enumerate(stages):
        before += stage.steps
        end = min(max(round(before * steps / total), done + 1), steps - (len(stages) - 1 - index))
        scaled.append(replace(stage, steps=end - done))
        done = end
    return tuple(scaled)


# `--recipe`: complete schedules. What each was measured to be worth stands in benchmarks/recipes.md.
RECIPES: dict[str, DistillSettings] = {
    # As published: one stage of plain reconstruction, then the adversarial one, which its authors launch by hand.
    "paper": DistillSettings(
        recipe="paper",
        dtype="fp32",
        stages=(
            Stage("reconstruct", steps=20000, batch_size=1, accumulation=8, lr=1e-4),
            Stage("adversarial", steps=5000, batch_size=1, accumulation=8, lr=1e-4, adversarial_weight=0.05),
        ),
    ),
    # Of full-size teachers: one card of 24 GB for one night, a million clips. Many small clips first, then the size that
    # students are used at, then sharpness. No full-size teacher was at hand, so its figures are not measured.
    "night": DistillSettings(
        recipe="night",
        fit_batch=True,
        optimizer="muon",
        start="fitted",
        size=(512, 512),
        stages=(
            Stage(
                "reconstruct", steps=55000, batch_size=16, accumulation=1, crop_side=256, crop_margin=1, lr=2e-3, lr_schedule="cosine",
                lr_end=0.1, warmup_steps=500, perceptual_weight=0.1, perceptual_frames=4, feature_weight=1.0,
            ),
            Stage(
                "large", steps=10000, batch_size=2, accumulation=4, lr=6e-4, lr_schedule="cosine", lr_end=0.1, warmup_steps=100,
                perceptual_weight=0.1, perceptual_frames=4, feature_weight=0.0, gradient_checkpointing=True,
            ),
            Stage(
                "adversarial", steps=10000, batch_size=4, accumulation=1, crop_side=256, crop_margin=1, lr=2e-4, lr_schedule="cosine",
                warmup_steps=100, perceptual_weight=0.1, perceptual_frames=4, feature_weight=0.0, adversarial_weight=0.05,
            ),
        ),
    ),
    # Of the embedded teacher, on which it was measured; of others a first look of half an hour on a GPU. Small crops first, in
    # many steps; whole clips at the end, which leave nothing out.
    "fast": DistillSettings(
        recipe="fast",
        optimizer="muon",
        start="fitted",
        stages=(
            Stage(
                "reconstruct", steps=6000, batch_size=2, accumulation=1, crop_latents=12, crop_margin=2, lr=3e-3, lr_schedule="cosine",
                lr_end=0.1, warmup_steps=100, perceptual_weight=0.1, feature_weight=0.0,
            ),
            Stage(
                "whole-clips", steps=1200, batch_size=1, accumulation=1, lr=8e-4, lr_schedule="cosine",
                warmup_steps=20, perceptual_weight=0.1, feature_weight=0.0,
            ),
        ),
    ),
    # A tenth of it: to see whether a teacher, a student and the data go together.
    "quick": DistillSettings(
        recipe="quick",
        optimizer="muon",
        start="fitted",
        ema_decay=0.99,
        stages=(
            Stage(
                "reconstruct", steps=450, batch_size=2, accumulation=1, crop_latents=12, crop_margin=2, lr=2e-3, lr_schedule="cosine",
                warmup_steps=20, perceptual_weight=0.1, feature_weight=0.0,
            ),
        ),
    ),
}  # fmt: skip
# The same for a teacher whose encoder alone takes 22 GB of a clip of 512x512 pixels.
_NIGHT = RECIPES["night"]
_LESS_LARGE = replace(_NIGHT.stages[1], crop_side=480, crop_margin=1)
RECIPES["night-480"] = replace(_NIGHT, recipe="night-480", stages=(_NIGHT.stages[0], _LESS_LARGE, _NIGHT.stages[2]))
DEFAULT_RECIPE = "default"  # a name for the recipe that a teacher's row in the registry names


def read_recipe(name: str) -> DistillSettings:
    """The preset of that name, or the schedule in a TOML file: fields of DistillSettings, and one [[stages]] table per stage.

    Raises SettingsError for a name that is neither, a field that does not exist, or one of another type.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix == ".toml" and not path.is_file():
        raise SettingsError(f"{path} is not there", f"a TOML file with [[stages]], or one of: {', '.join(RECIPES)}")
    if path.suffix != ".toml":
        every = f"one of: {', '.join(RECIPES)}, or a .toml file with [[stages]]"
        raise SettingsError(f"no recipe is called {name!r}", hint_for(name, RECIPES, every))
    try:
        table = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # also of numbers and nests that are too large
        raise SettingsError(
            f"{path} is not TOML: {error}", "fields of DistillSettings, and one [[stages]] table per stage"
        ) from error
    stages = table.pop("stages", [])
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise SettingsError(f"{path}: stages is not a list of tables", "write one [[stages]] table per stage")
    made = tuple(Stage(**_typed(Stage, stage, f"{path} stage {index + 1}")) for index, stage in enumerate(stages))
    return DistillSettings(**_typed(DistillSettings, {"recipe": path.stem, **table, "stages": made}, str(path)))


def _typed(settings_class: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of a TOML table as the fields of a settings class want them; SettingsError names what does not fit."""
    known = {field.name: field for field in fields(settings_class)}
    typed = {}
    for name, value in table.items():
        if name not in known:
            raise SettingsError(f"{where} has an unknown field {name!r}", f"known: {', '.join(known)}")
        wanted = get_type_hints(settings_class)[name]
        if wanted in (bool, int, float, str):
            if not fits(value, wanted) and not (wanted is float and isinstance(value, float)):  # inf and NaN: of the checks
                raise SettingsError(
                    f"{where}: {name} is {shown(value)}, not {wanted.__name__}", f"such as {name} = {known[name].default!r}"
                )
            typed[name] = wanted(value)
        elif name == "stages":
            typed[name] = value
        elif name == "log":
            if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
                raise SettingsError(f"{where}: {name} is {shown(value)}, not a list of names")
            typed[name] = tuple(value)
        else:  # the pairs: sizes and betas
            kind = float if name == "betas" else int
            if not fits(value, tuple[kind, kind]):  # type: ignore[valid-type]
                raise SettingsError(
                    f"{where}: {name} is {shown(value)}, not a list of two numbers",
                    f"such as {name} = [128, 128] (of sizes: height, width)",
                )
            typed[name] = tuple(kind(one) for one in value)
    required = [name for name, field in known.items() if field.default is MISSING and name not in typed]
    if required:
        raise SettingsError(f"{where} has no {required[0]}", "every stage has a name, and a schedule has stages")
    return typed


# What may differ between a run and its resume without changing what was computed so far; of steps, those of finished stages may not.
RESUMABLE_CHANGES = frozenset(
    {
        "recipe", "steps", "save_every", "sample_every", "keep_checkpoints", "workers", "stall_seconds", "log", "device", "ranks", "where",
        "gradient_checkpointing", "command_line", "hdr", "model", "teacher.licence", "student_config.teacher",
    }
)  # fmt: skip


def check_counts(settings: object, names: Sequence[str]) -> None:
    """Raise SettingsError for the first of these fields that is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")


@dataclass(frozen=True)
class ReconstructSettings:
    """`reconstruct`."""

    memory: int = 0  # bytes that the process may take (of a GPU: its tensors); 0 takes seven tenths of what is free
    fast: bool = True  # what decodes faster in the same numbers within rounding; off, with nothing but its layout
    compare: bool = False  # source, teacher and student side by side
    window: int = 0  # pixel frames that `compare` encodes and decodes at once; 0 takes 17 to 33 by the frame's size
    overlap: int = 8  # pixel frames that its windows share and fade over
    codec: str = "h264"  # of the written video: h264, h265, prores or ffv1
    bits: int = 0  # per channel of the written video, 8 or 10; 0 takes 8, of prores 10
    crf: int | None = None  # quality of h264 and h265, 0 (best) to 51; None takes 16
    sound: str = "keep"  # keep the sound tracks of the source, or drop them
    fps: float = 24.0  # frame rate of a video made from a latents file or a folder of frames, which have none
    dtype: str = "fp32"  # fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu, cuda or mps
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them
    latents_are: str = "raw"  # what the latents file holds: raw, as a VAE encodes, or normalised, as diffusion pipelines compute
    latents_shape: tuple[int, ...] = ()  # latent frames, rows and columns of packed latents, which do not say so


def check_video_name(path: Path) -> None:
    """Raise SettingsError unless the name is one of a video that can be written."""
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        raise SettingsError(f"{path} is no name this can write to", f"videos end in {', '.join(WRITABLE_SUFFIXES)}")


def check_reconstruct(settings: ReconstructSettings) -> None:
    """Raise SettingsError naming the first value that makes no sense."""
    if settings.overlap < 0 or settings.window < 0:
        raise SettingsError("--overlap and --window cannot be below 0")
    if settings.memory and settings.compare:
        raise SettingsError(
            "--compare works in windows, whose memory is not planned", "--window 17 bounds it; or leave out --memory"
        )
    if (settings.window or settings.overlap != ReconstructSettings.overlap) and not settings.compare:
        raise SettingsError("--window and --overlap are for --compare: all else has no windows", "--memory 4GB bounds the memory")
    if not 0 < settings.fps < math.inf:
        raise SettingsError(f"--fps {settings.fps} is not a frame rate", "a number above 0, such as 24")
    if settings.crf is not None and not 0 <= settings.crf <= MOST_CRF:
        raise SettingsError(f"--crf {settings.crf} is not a quality", f"0 (best) to {MOST_CRF}")
    check_choice("--sound", settings.sound, ("keep", "drop"))
    check_choice("--hdr", settings.hdr, HDR_CHOICES)
    check_dtype(settings.dtype)
    check_device(settings.device)


@dataclass(frozen=True)
class EvalSettings:
    """`eval`."""

    frames: int = ClipSettings.frames  # pixel frames per clip
    size: tuple[int, int] = ClipSettings.size  # pixels: scaled to cover, then cropped in the middle
    stride: int = ClipSettings.stride  # take every n-th frame
    clips_per_video: int = 1  # evenly spread; 1 takes the first frames
    protocol: str = "standard"  # fixed range, per clip, then the mean over clips; "paper" is the published script's
    dtype: str = "fp32"  # fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu, cuda or mps
    metrics: tuple[str, ...] = ()  # keys of METRICS; empty takes all
    lpips_weights: tuple[Path, ...] = ()  # backbones or learned weights of LPIPS, recognised by their contents
    i3d: Path | None = None  # the I3D detector (TorchScript); None takes the one that `models pull i3d` fetched
    i3d_sha256: str = ""  # what somebody vouched for: TorchScript is code, and is not loaded without
    dataset: str = ""  # "ucf101" says so where file names do not: published figures are shown beside ours
    speed_repeats: int = 0  # timed decodes of teacher and student, in turns; 0 times nothing
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them


@dataclass(frozen=True)
class ExportSettings:
    """`export`."""

    frames: int = ClipSettings.frames  # pixel frames of the video the artefact makes; fixed for Core ML
    sizes: tuple[tuple[int, int], ...] = (ClipSettings.size,)  # pixels; several make one Core ML package with a function each
    precisions: tuple[str, ...] = ()  # fp32, fp16, bf16, int8, 6bit; none takes each format's own
    layout: str = "4d-cat"  # rank-4 graph, taps concatenated; 4d-sum adds them up instead; 5d keeps conv3d
    chunk: int = 0  # latent frames of a graph that decodes any length chunk by chunk, written beside the whole clip's; 0: none
    states: bool = False  # Core ML keeps a chunk graph's frames itself (iOS 18); other formats hand them in and out
    seed: int = 0  # of the latents the artefact is checked on, when no real ones are given
    latents: Path | None = None  # a latents file to calibrate and check on
    data: Path | None = None  # videos, whose latents to calibrate and check on
    clips: int = 4  # of so many videos
    overwrite: bool = False  # replace an artefact that is there
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them
    latents_are: str = "raw"  # what the latents file holds: raw, as a VAE encodes, or normalised, as diffusion pipelines compute
    latents_shape: tuple[int, ...] = ()  # latent frames, rows and columns of packed latents, which do not say so


@dataclass(frozen=True)
class BenchSettings:
    """`bench`."""

    targets: tuple[str, ...] = ("torch", "onnx")  # torch, onnx, coreml, executorch, litert
    frames: int = ClipSettings.frames  # pixel frames decoded per call
    size: tuple[int, int] = ClipSettings.size  # pixels
    precisions: tuple[str, ...] = ()  # of each target those of these that it has; none: each target's own
    layouts: tuple[str, ...] = ("4d-cat",)  # of the export form; torch has none
    warmup: int = 2  # calls before the clock counts; the first one is reported apart
    repeats: int = 10  # timed calls, in turns with the target's other rows
    threads: int = 0  # CPU threads, pinned; 0 takes as many as torch does
    device: str = "auto"  # auto, cpu, cuda or mps; an attached Apple device: iphone or ipad, or iphone:NAME
    apple_team: str = ""  # development team that signs coremltools' app on an attached device
    teacher: bool = True  # time the teacher's decoder beside the student
    compile: bool = False  # a row for torch.compile too
    data: Path | None = None  # videos: their latents are decoded, and quality is also measured against the videos
    latents: Path | None = None  # a latents file to decode instead
    clips: int = 4  # of data
    seed: int = 0  # of the random latents without either
    memory_frames: tuple[int, ...] = ()  # clip lengths to measure the peak memory of a decode at, whole and streamed
    hdr: str = ClipSettings.hdr  # of PQ and HLG videos: tonemap to SDR, or refuse them
    latents_are: str = "raw"  # what the latents file holds: raw, as a VAE encodes, or normalised, as diffusion pipelines compute
    latents_shape: tuple[int, ...] = ()  # latent frames, rows and columns of packed latents, which do not say so
