"""Load and check everything that a distillation needs, before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.files.documents import shown
from turbovaed_cli.files.tensors import load_strictly
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.machine.devices import auto_dtype, check_compiler, num_readers, resolve_dtype, warn_of_cudnn
from turbovaed_cli.machine.ranks import Ranks
from turbovaed_cli.models.decoders import load_decoder
from turbovaed_cli.models.decoding import module_of, num_params_of
from turbovaed_cli.models.design import suggested_params
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher, decoder_params, load_teacher
from turbovaed_cli.models.trainable import Trainable, build_trainable, config_for, lacks_statistics
from turbovaed_cli.registry.download import Consent, no_consent
from turbovaed_cli.registry.find import is_model_name
from turbovaed_cli.registry.members import FULL
from turbovaed_cli.registry.specs import AlignmentPair, ModelSpec
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.batches import ClipStream, Mix, VideoClips
from turbovaed_cli.training.causal_start import causal_weights
from turbovaed_cli.training.checks import check_distill_settings, check_hours, check_ratios, check_sizes
from turbovaed_cli.training.estimate import fitted_stages
from turbovaed_cli.training.first_clips import measured_statistics
from turbovaed_cli.training.length import stages_in_hours, with_lengths
from turbovaed_cli.training.loop import memory_in_words
from turbovaed_cli.training.losses import check_perceptual_size, perceptual_loss, resolve_perceptual
from turbovaed_cli.training.pruned_start import pruned_config, pruned_pairs, share_of
from turbovaed_cli.training.schedule import crop_of
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trackers import check_trackers
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video.sources import local_videos
from turbovaed_cli.video.usable import Skipped, usable_videos


@dataclass(frozen=True)
class Distillation:
    """The arguments of `distill`, which its dry run shares."""

    spec: ModelSpec
    run: str | Path
    data: str | Path | None
    latents: str | Path | None
    settings: DistillSettings
    student_config: Mapping[str, Any] | None = None
    init: str | None = None
    command_line: str = ""
    consent: Consent = no_consent


def prepare(
    asked: Distillation, ranks: Ranks, folder: RunDir, report: Reporter, *, first: int | None = None, processes: int = 0
) -> tuple[Trainer, list[Skipped]]:
    """Return the trainer, with everything that a step needs, and the videos that cannot be used; nothing is written.

    `first` limits the number of videos probed. `processes` is the number of processes that will distil; 0: those of `ranks`.
    Raises SettingsError for settings, data or a cache that cannot be used, MissingError for missing weights or packages.
    """
    _check_asked(asked)
    spec, settings, device = asked.spec, asked.settings, ranks.device
    if ranks.is_first:  # before anything is loaded or written
        check_trackers(settings.log)
    if settings.compile:
        check_compiler(device)
        report.note("`compile`: the first step of every stage compiles, which takes from half a minute to several")
    cache = None if asked.latents is None else cache_for(asked.latents, spec)  # before a download that would be useless
    teacher = ranks.first_of_each_machine_first(
        lambda: load_teacher(spec, device=device, allows_tf32=not settings.precise, consent=asked.consent)
    )
    others = (processes or ranks.count) // ranks.count
    settings = ranks.share(lambda: settle(over_all_processes(asked.settings, ranks.count), folder, device, others, report))
    dtype = resolve_dtype(settings.dtype)
    if ranks.local_rank == 0:
        warn_of_cudnn(device, dtype, report)
    wanted = {stage.perceptual if stage.perceptual_weight else "none" for stage in settings.stages}
    perceptual = {name: perceptual_loss(name, device, dtype) for name in wanted | {"none"}}
    if cache is None:
        streams, skipped = _video_streams(asked, settings, ranks, report, first)
    else:
        streams, skipped = _cached_streams(cache, spec, teacher, settings, ranks, report), []
    crops = [crop_of(stage, spec.teacher, stream.size) for stage, stream in zip(settings.stages, streams, strict=True)]
    for stage, crop, stream in zip(settings.stages, crops, streams, strict=True):  # before the run folder exists
        loss = perceptual[stage.perceptual if stage.perceptual_weight else "none"]
        check_perceptual_size(stage, loss, crop, stream.size, has_margin=cache is not None)

    student = _new_student(asked, settings, teacher, streams[0], folder, ranks)
    aligned = any(stage.feature_weight for stage in settings.stages)
    heads = build_heads(student.to(device), teacher, _pairs(asked, student, teacher) if aligned else ())
    _announce(spec, settings, teacher, student, ranks, report)
    state = TrainingState(student, heads, settings, device)
    ranks.check_same("the teacher", str(teacher.identity()))
    begins = "pruned" if share_of(asked.init) is not None else settings.start if asked.init is None else "plain"
    trainer = Trainer(teacher, state, streams, crops, perceptual, settings, device, dtype, ranks, begins)
    if not ranks.share(lambda: RunDir.is_run(folder.root)):
        _measure(trainer, folder, report)
    return trainer, skipped


def _check_asked(asked: Distillation) -> None:
    """Raise SettingsError for arguments that cannot be given together, or settings that make no sense."""
    if (asked.data is None) == (asked.latents is None):
        raise SettingsError(
            "distill learns from videos or from cached latents: one of the two", "give `data` DIR or `latents` DIR"
        )
    if share_of(asked.init) is not None and (asked.student_config is not None or asked.spec.member != FULL):
        raise SettingsError(
            f"`init` {asked.init} makes the student's config from its teacher, and another one is given",
            "leave out `init`, or what brings the other student",
        )
    check_distill_settings(asked.settings, is_cached=asked.latents is not None)


def _pairs(asked: Distillation, student: Trainable, teacher: Teacher) -> Sequence[AlignmentPair]:
    """Return the blocks of the student that can learn from the teacher's features."""
    own = asked.spec.student.pairs
    return own if share_of(asked.init) is None else pruned_pairs(cast(StudentDecoder, student), teacher, own)


def _measure(trainer: Trainer, folder: RunDir, report: Reporter) -> None:
    """Set what a new run takes from measurements of this machine: the clips of a forward pass, and the steps in `hours`."""
    if trainer.settings.fit_batch and trainer.device.type != "cpu":
        report.note("trying how many clips of a forward pass fit in the free memory")
        trainer.settings = replace(trainer.settings, stages=fitted_stages(trainer))
    if trainer.settings.hours:
        with memory_in_words(trainer, folder):
            trainer.settings = replace(trainer.settings, stages=stages_in_hours(trainer, report))


def _cached_streams(
    cache: LatentCache, spec: ModelSpec, teacher: Teacher, settings: DistillSettings, ranks: Ranks, report: Reporter
) -> list[ClipStream]:
    """Return the cache for every stage. Raises SettingsError if another teacher made it."""
    if cache.manifest.get("teacher", {}).get("weights_sha256") != teacher.identity()["weights_sha256"]:
        raise _made_by_another(cache, spec)
    check_sizes(settings, cache)
    if settings.precise and cache.tf32_clips and ranks.is_first:
        text = f"`precise`: the latents of {cache.tf32_clips} of {len(cache)} clips in {cache.where} were computed in TF32"
        report.note(f"{text}; cache-latents --precise into a new folder computes them in fp32", warning=True)
    if ranks.is_first and settings.size != DistillSettings.size and min(cache.size) < min(settings.size):
        (height, width), (tall, wide) = cache.size, settings.size
        text = f"the cached clips are {width}x{height}, and recipe {settings.recipe} learns from {wide}x{tall}"
        report.note(f"{text}: cache-latents with another `size` makes larger ones", warning=True)
    ranks.check_same("the latent cache", cache.fingerprint)
    return [cache] * len(settings.stages)


def _new_student(
    asked: Distillation, settings: DistillSettings, teacher: Teacher, stream: ClipStream, folder: RunDir, ranks: Ranks
) -> Trainable:
    """Return a student with random weights from the seed, or those of `init`. It seeds all later random numbers too."""
    spec, share = asked.spec, share_of(asked.init)
    asked_config = asked.student_config or spec.student.config
    config = _complete_config(asked_config if share is None else pruned_config(teacher, share), spec, teacher)
    if lacks_statistics(config):
        config |= ranks.share(lambda: _statistics_of(folder) or measured_statistics(teacher, stream, settings.seed))
    torch.manual_seed(settings.seed)
    student = build_trainable(config)
    if asked.init is not None and share is None and ranks.is_first:  # the other ranks get every weight from the first
        init = load_decoder(asked.init, consent=asked.consent)
        weights = module_of(init).state_dict()
        if student.config.get("decoder_causal") and isinstance(init, StudentDecoder) and not init.config.decoder_causal:
            weights = causal_weights(weights, module_of(student))
        load_strictly(module_of(student), weights, Path(asked.init))
    check_ratios(student, spec)
    return student


def _statistics_of(folder: RunDir) -> dict[str, Any]:
    """Return the latents' statistics that a run was begun with; none of a new run."""
    began = folder.read_config().get("student_config") if RunDir.is_run(folder.root) else None
    names = ("latents_mean", "latents_std")
    return {name: began[name] for name in names} if isinstance(began, dict) and all(began.get(name) for name in names) else {}


def _announce(
    spec: ModelSpec, settings: DistillSettings, teacher: Teacher, student: Trainable, ranks: Ranks, report: Reporter
) -> None:
    """Report teacher, student, device and precision; warn of a student that is larger than its teacher's decoder."""
    report.note(
        f"teacher {spec.teacher_name}: {decoder_params(teacher) / 1e6:.3f} M in its decoder; "
        f"student {num_params_of(student) / 1e6:.3f} M; "
        f"on {ranks.device.type}, {settings.dtype}"
        + (", the teacher in TF32 (`precise`: fp32)" if teacher.uses_tf32 else "")
        + (f", {ranks.count} processes" if ranks.count > 1 else "")
    )
    if ranks.is_first and num_params_of(student) > decoder_params(teacher):
        report.note(_in_words_if_larger(student, teacher, spec), warning=True)


def _in_words_if_larger(student: Trainable, teacher: Teacher, spec: ModelSpec) -> str:
    """Return the warning about a student that is larger than its teacher's decoder, with a remedy."""
    ours, theirs = num_params_of(student), decoder_params(teacher)
    smaller = suggested_params(spec, theirs)
    cure = f"`params` {smaller} designs a smaller one" if smaller < ours else "`student_config` FILE takes a smaller one"
    return f"the student has {ours:,} parameters, more than its teacher's decoder, which has {theirs:,}: {cure}"


def over_all_processes(settings: DistillSettings, processes: int) -> DistillSettings:
    """Return settings with the clips of a forward pass over all processes, as in config.json, from those of one process."""
    return replace(settings, stages=tuple(replace(stage, batch_size=stage.batch_size * processes) for stage in settings.stages))


def settle(settings: DistillSettings, folder: RunDir, device: torch.device, others: int, report: Reporter) -> DistillSettings:
    """Return settings without "auto": on a resume, its meaning at the start of the run; else what this machine has, with a note.

    A resume with the same `hours` keeps the steps that they gave. Raises RunFolderError for other hours.

    The run has `others` times the clips in a pass that `settings` have, if a dry run is in fewer processes.
    """
    before = folder.read_config()["settings"] if RunDir.is_run(folder.root) else {}
    check_hours(folder, settings)
    dtype = settings.dtype
    if dtype == "auto":
        dtype = before.get("dtype") or auto_dtype(device, report)
    known = [stage.get("perceptual") or "none" for stage in before.get("stages") or []]
    if not known and any(stage.perceptual == "auto" and stage.perceptual_weight for stage in settings.stages):
        known = [resolve_perceptual("auto", report)] * len(settings.stages)
    stages = [
        replace(stage, perceptual=known[index] if index < len(known) else "none") if stage.perceptual == "auto" else stage
        for index, stage in enumerate(settings.stages)
    ]
    fitted = before.get("stages") or []
    if settings.fit_batch and before.get("fit_batch") and len(fitted) == len(stages):
        stages = [_as_fitted(stage, was, others) for stage, was in zip(stages, fitted, strict=True)]
    if settings.hours and len(fitted) == len(stages):
        stages = list(with_lengths(stages, [was["steps"] for was in fitted]))
    return replace(settings, stages=tuple(stages), dtype=dtype, workers=num_readers(device, settings.workers))


def _as_fitted(stage: Stage, was: Mapping[str, Any], others: int) -> Stage:
    """Return a stage with the passes that the run began with; unchanged if a step would see other clips (an error follows)."""
    clips, passes = was.get("batch_size") or 0, was.get("accumulation") or 0
    if clips * passes != stage.batch_size * others * stage.accumulation or clips % others:
        return stage
    return replace(stage, batch_size=clips // others, accumulation=passes)


def _video_streams(
    asked: Distillation, settings: DistillSettings, ranks: Ranks, report: Reporter, first: int | None
) -> tuple[list[ClipStream], list[Skipped]]:
    """Return one stream per stage, over the same videos, at the stage's size, and the videos that cannot be used."""
    spec, data = asked.spec, asked.data
    assert data is not None
    sizes = [stage.size or settings.size for stage in settings.stages]
    spec.teacher.check_frames(settings.frames)
    for size in sizes:
        spec.teacher.check_size(*size)
    folder = ranks.first_of_each_machine_first(lambda: local_videos(data, report, first=first))
    span = (settings.frames - 1) * settings.stride + 1
    videos, skipped = ranks.share(lambda: usable_videos(folder, span, report, first=first, hdr=settings.hdr))
    damaged: dict[str, str] = {}
    mix = Mix(settings.augment, settings.synthetic)
    return [VideoClips(videos, settings.frames, size, settings.stride, damaged, mix) for size in sizes], skipped


def cache_for(latents: str | Path, spec: ModelSpec) -> LatentCache:
    """Open a cache. Raises SettingsError if its record shows another teacher; weights are compared later."""
    cache = LatentCache(latents)
    made_by = cache.manifest.get("teacher") or {}
    if (made_by.get("class"), made_by.get("latent_channels")) != (spec.teacher.class_name, spec.teacher.latent_channels):
        raise _made_by_another(cache, spec)
    return cache


def _made_by_another(cache: LatentCache, spec: ModelSpec) -> SettingsError:
    """Return the error for a cache of another teacher; the hint names that teacher if the cache does."""
    made_by, name = cache.manifest.get("teacher") or {}, cache.manifest.get("teacher_name")
    what = f"{name or 'another teacher'} (a {shown(made_by.get('class'))} of {shown(made_by.get('latent_channels'))} channels)"
    if name is None:
        option = "`teacher` with the one that made them"
    else:
        option = f"`teacher` {name}" if is_model_name(str(name)) else f"`teacher` DIR, with the folder {name}"
    return SettingsError(
        f"the latents in {cache.where} were made by {what}, not by {spec.teacher_name}", f"name their teacher: {option}"
    )


def _complete_config(config: Mapping[str, Any], spec: ModelSpec, teacher: Teacher) -> dict[str, Any]:
    """Return the student's config with the values it inherits from this teacher: latent channels, scaling and statistics."""
    inherited = {
        "latent_channels": spec.teacher.latent_channels,
        "teacher": spec.teacher.hub or spec.teacher_name,
        **teacher.family.statistics(teacher.vae),
    }
    return {**config_for(config, spec), **inherited}
