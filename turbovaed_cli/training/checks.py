"""Checks that refuse a distillation before it begins or continues."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import RunFolderError, SettingsError
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import OPTIMIZERS, DistillSettings, check_counts, check_shares
from turbovaed_cli.stage import PERCEPTUAL
from turbovaed_cli.training.fitted_start import STARTS
from turbovaed_cli.training.schedule import position_at


def check_distill_settings(settings: DistillSettings, *, is_cached: bool = False) -> None:
    """Raise SettingsError naming the first value that makes no sense, or that `is_cached` clips cannot take."""
    if not settings.stages:
        raise SettingsError("the schedule has no stage", "give at least one")
    names = [stage.name for stage in settings.stages]
    if len(set(names)) < len(names):
        raise SettingsError(f"two stages are called {max(names, key=names.count)}", "give each its own name")
    if not 0 < settings.stall_seconds < math.inf:
        raise SettingsError(f"stall_seconds is {settings.stall_seconds}; it must be above 0")
    check_counts(settings, ("frames", "stride", "save_every", "keep_checkpoints", "discriminator_channels"))
    check_shares(settings)
    if is_cached:
        _check_no_shares(settings)
    if settings.discriminator_channels % 4:
        raise SettingsError(f"discriminator_channels is {settings.discriminator_channels}; it must be a multiple of 4")
    if not 0 <= settings.ema_decay < 1:
        raise SettingsError(f"`ema_decay` is {settings.ema_decay}; it must be at least 0 and below 1")
    _check_choices(settings, {"optimizer": OPTIMIZERS, "start": STARTS})
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise SettingsError(f"betas are {settings.betas}; each must be at least 0 and below 1")
    _check_not_negative(settings, ("hours", "eps", "weight_decay", "clip_grad_norm", "discriminator_lr"))
    for stage in settings.stages:
        check_counts(stage, ("steps", "batch_size", "accumulation"))
        weights = [field.name for field in fields(stage) if field.name.endswith("_weight")]
        _check_not_negative(
            stage, ("lr", "lr_end", "warmup_steps", "crop_latents", "crop_side", "crop_margin", "perceptual_frames", *weights)
        )
        if stage.crop_latents and stage.crop_side:
            raise SettingsError(f"stage {stage.name} has crop_latents and crop_side", "both set the crop: give one")
        if stage.lr == 0:
            raise SettingsError(f"`lr` is {stage.lr}; it must be above 0")
        choices = {"lr_schedule": ("constant", "cosine"), "posterior": ("sample", "mean"), "perceptual": PERCEPTUAL}
        _check_choices(stage, choices)


def _check_not_negative(settings: object, names: Sequence[str]) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < math.inf:  # NaN fails too
            raise SettingsError(f"`{name}` is {getattr(settings, name)}; it must be at least 0")


def _check_choices(settings: object, choices: Mapping[str, Sequence[str]]) -> None:
    for name, allowed in choices.items():
        check_choice(f"`{name}`", getattr(settings, name), allowed)


def check_hours(folder: RunDir, settings: DistillSettings) -> None:
    """Raise RunFolderError if a run's number of steps was not set by the `hours` of `settings`: a resume keeps its steps."""
    before = folder.read_config()["settings"] if RunDir.is_run(folder.root) else {}
    began, now = before.get("hours") or 0.0, settings.hours
    if not before or began == now:
        return
    steps = f"{sum(stage['steps'] for stage in before.get('stages') or []):,} steps"
    how = f"with `hours` {began:g}, which set its {steps}" if began else f"without `hours`, with {steps}"
    what = f"{folder.root} was started {how}; a resume cannot change them" + (f" to `hours` {now:g}" if now else "")
    way = f"`hours` {began:g} without `steps`" if began else "leaving out `hours`"
    raise RunFolderError(what, f"{way} resumes it; `init` {folder.root} with another `run` goes on from its weights")


def check_finished_stages(folder: RunDir, settings: DistillSettings, way_on: str) -> None:
    """Raise RunFolderError if changed numbers of steps would move the checkpoint to another place in the schedule.

    Other changes of steps are allowed on a resume. `way_on` is the hint.
    """
    done = folder.steps()[-1] if folder.steps() else 0
    if not done or not folder.config.exists():
        return
    lengths = [stage["steps"] for stage in folder.read_config()["settings"].get("stages") or []]
    if len(lengths) != len(settings.stages):
        return  # the comparison of the configs reports it
    before = tuple(replace(stage, steps=steps) for stage, steps in zip(settings.stages, lengths, strict=True))
    old, new = position_at(before, done), position_at(settings.stages, done)
    if (old.index, old.first_step) != (new.index, new.first_step) or settings.steps < done:
        wanted = ", ".join(f"{stage.name} {stage.steps}" for stage in settings.stages)
        raise RunFolderError(
            f"{folder.root} is at step {done}, in stage {old.stage.name} of {', '.join(map(str, lengths))} steps; not in {wanted}",
            way_on,
        )


def check_clips_per_pass(folder: RunDir, settings: DistillSettings, processes: int) -> None:
    """Raise RunFolderError if a forward pass over all `processes` would have other clips than those the run began with."""
    before = folder.read_config() if folder.config.exists() else {}
    clips = [stage["batch_size"] for stage in before.get("settings", {}).get("stages", [])]
    now = [stage.batch_size for stage in settings.stages]
    if clips == now and any(count % processes for count in clips):  # fitted to the memory of other devices
        hint = f"resume it with a number of processes that divides {math.gcd(*clips)}"
        raise RunFolderError(
            f"{folder.root} has {_in_words(clips)} clips in a forward pass, which {processes} processes cannot share", hint
        )
    if len(clips) != len(now) or clips == now or before.get("ranks", 1) == processes:
        return  # any other change is reported by the comparison of the configs
    if any(count % processes for count in clips):
        hint = f"resume it with a number of processes that divides {math.gcd(*clips)}"
    elif len(set(clips)) == 1:
        hint = f"`batch_size` {clips[0] // processes} on {processes} processes resumes it"
    else:
        shares = ", ".join(str(count // processes) for count in clips)
        hint = f"on {processes} processes, give stages with batch_size {shares} (`recipe` FILE.toml)"
    raise RunFolderError(
        f"{folder.root} was started with {_in_words(clips)} clips in a forward pass over {before.get('ranks', 1)} processes; "
        f"now {_in_words(now)} over {processes}",
        hint,
    )


def _in_words(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts))


def _check_no_shares(settings: DistillSettings) -> None:
    """Raise SettingsError for shares of changed or drawn clips, which cached clips cannot take: they are encoded already."""
    for name in ("augment", "synthetic"):
        if share := getattr(settings, name):
            raise SettingsError(
                f"`{name}` is for `data`: cached clips are encoded already",
                f"cache-latents --{name} {share:g} makes such a cache; then leave it out here",
            )


def check_sizes(settings: DistillSettings, cache: LatentCache) -> None:
    """Raise SettingsError for a stage whose size is not that of the cached clips."""
    for stage in settings.stages:
        if stage.size not in (None, cache.size):
            height, width = cache.size
            raise SettingsError(
                f"stage {stage.name} wants clips of {stage.size[1]}x{stage.size[0]}; those in the cache are {width}x{height}",
                "cache larger clips (cache-latents --size), or give --data",
            )


def check_ratios(student: Decoder, spec: ModelSpec) -> None:
    """Raise SettingsError for a student whose videos have other sizes than its teacher's."""
    made = (student.temporal_compression_ratio, student.spatial_compression_ratio)
    wanted = (spec.teacher.time_ratio, spec.teacher.space_ratio)
    if made != wanted:
        raise SettingsError(
            f"this student upsamples {made[0]}x in time and {made[1]}x in space, the teacher compresses {wanted[0]}x and {wanted[1]}x"
        )
