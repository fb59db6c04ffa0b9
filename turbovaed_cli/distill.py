"""`distill`: teach a small decoder to do what a frozen teacher's decoder does. Source: arXiv:2508.09136."""

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from turbovaed_cli.devices import (
    auto_dtype,
    check_compiler,
    environment,
    forget_peak,
    is_out_of_memory,
    out_of_memory_in_words,
    peak_mb,
    resolve_device,
    resolve_dtype,
    warn_of_cudnn,
)
from turbovaed_cli.documents import shown
from turbovaed_cli.errors import InterruptedRunError, RunFolderError, SettingsError, TurboVaedError
from turbovaed_cli.latents import LatentCache
from turbovaed_cli.models.design import suggested_params
from turbovaed_cli.models.pair import Pair, load_pair
from turbovaed_cli.models.student import StudentDecoder, build_student, load_student, num_params
from turbovaed_cli.models.teacher import Teacher, decoder_params, hash_of_state, load_teacher
from turbovaed_cli.registry import ModelSpec, is_model_name
from turbovaed_cli.reporting import Reporter, WarningsOf, quiet
from turbovaed_cli.rundir import RunDir, metrics_row, read_json, write_whole
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.signals import signals_handled_by
from turbovaed_cli.storage import free_bytes, is_url, local_videos, look_at_run, open_run
from turbovaed_cli.training.alignment import build_heads
from turbovaed_cli.training.checks import check_ratios, check_settings, check_sizes
from turbovaed_cli.training.data import Skipped, VideoClips, Waited, read_ahead, usable_videos
from turbovaed_cli.training.estimate import SAMPLE_VIDEOS, DistillEstimate, estimate, fitted_stages, forecast
from turbovaed_cli.training.losses import (
    perceptual_loss,
    resolve_perceptual,
)
from turbovaed_cli.training.outputs import Samples, losses_in_words, write_model, write_run_report
from turbovaed_cli.training.ranks import Ranks, alone, join_ranks
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.resume import check_resume, machine_changes
from turbovaed_cli.training.schedule import crop_of, passes_from, position_at
from turbovaed_cli.training.state import TrainingState
from turbovaed_cli.training.trackers import Trackers, check_trackers, trackers_of
from turbovaed_cli.training.trainer import ClipStream, Trainer
from turbovaed_cli.video import reading_identity
from turbovaed_cli.weights import Consent, load_strictly, missing_bytes, no_consent

MOST_WORKERS = 8
STEPS_BEFORE_WAITS = 50  # after which waits for data are told, while something can be done about them
WORTH_SAYING = 0.1  # share of the steps' time
SAME_REQUEST_S = 2.0  # a cluster signals every process at once, and torchrun passes the signal on to those that have it already


@dataclass(frozen=True)
class DistillResult:
    """What a distillation came to."""

    run: Path  # as a URL where that was given
    model: Path
    step: int
    resumed_from: int | None  # step of the checkpoint it went on from
    losses: dict[str, float]  # of the last step; empty when there was nothing left to do
    student_params: int
    teacher_decoder_params: int
    skipped: list[Skipped] = field(default_factory=list)


def distill(
    spec: ModelSpec,
    run: str | Path,
    *,
    data: str | Path | None = None,
    latents: str | Path | None = None,
    settings: DistillSettings | None = None,
    student_config: Mapping[str, Any] | None = None,
    init: str | None = None,
    command_line: str = "",
    consent: Consent = no_consent,
    report: Reporter = quiet,
) -> DistillResult:
    """Distil `spec`'s teacher into a student, from videos (`data`, encoded on the way) or a latent cache (`latents`).

    `settings` None takes the recipe that the teacher's row of the registry names.
    `init` names a student (as load_student takes it) to start from instead of random weights. `command_line` is kept in
    config.json, for messages about a resume. Places may be fsspec URLs.
    Calling it again with the same arguments resumes `run` where its newest checkpoint lies, bit for bit on one type
    of machine (on a GPU, with equal free memory). Where several
    processes call it (training/ranks.py), `batch_size` is each one's, and the first alone reads and writes `run`. Raises
    SettingsError or RunFolderError before anything is written, NonFiniteError before an optimizer step that would spread
    NaN, InterruptedRunError after a checkpoint when a signal asked it to stop.
    """
    settings = settings or RECIPES[spec.recipe]
    ranks = join_ranks(settings.device, report)
    if not ranks.is_first:
        report = WarningsOf(report, f"process {ranks.rank} of {ranks.count}")
    nowhere = nullcontext((Path(str(run)), lambda: None))
    with ranks.together(), open_run(run) if ranks.is_first else nowhere as (root, publish):
        folder = RunDir(root, publish)
        trainer, skipped = prepare(ranks, spec, folder, data, latents, settings, student_config, init, consent, report)
        resumed_from, losses = _run(trainer, folder, spec, init, run, command_line, report)
        damaged = {path: reason for found in ranks.gather(trainer.streams[0].damaged) for path, reason in found.items()}
    skipped += [Skipped(path, reason) for path, reason in damaged.items()]
    student, teacher = trainer.state.student, trainer.teacher
    place: Any = str(run) if is_url(run) else Path(run)
    model: Any = f"{place}/{folder.model.name}" if is_url(run) else folder.model
    return DistillResult(
        place, model, trainer.state.step, resumed_from, losses, num_params(student), decoder_params(teacher), skipped=skipped
    )


def estimate_distill(
    spec: ModelSpec,
    run: str | Path,
    *,
    data: str | Path | None = None,
    latents: str | Path | None = None,
    settings: DistillSettings | None = None,
    student_config: Mapping[str, Any] | None = None,
    init: str | None = None,
    processes: int = 1,
    command_line: str = "",
    report: Reporter = quiet,
) -> DistillEstimate:
    """What is left of `distill` with the same arguments, in one process: some of its steps, timed; nothing is written.

    Raises what `distill` in this many `processes` would for settings, data, weights and a run that is there already; only a
    teacher that is not here is no error.
    """
    settings = settings or RECIPES[spec.recipe]
    check_settings(settings)
    if latents is not None:
        _cache_of(latents, spec)
    download = missing_bytes(spec)
    if download:
        room = None if is_url(run) else free_bytes(Path(run))
        return DistillEstimate(str(run), 0, settings.steps, [], None, None, room, download, settings.device, [])
    ranks = alone(resolve_device(settings.device, report))
    with look_at_run(run) as root:
        folder = RunDir(root)
        if holder := folder.holder():
            raise RunFolderError(f"{run} is in use by {holder}", "wait for it, or give another --run")
        first = None if folder.config.exists() else SAMPLE_VIDEOS  # a run knows its data by all of them
        trainer, skipped = prepare(
            ranks,
            spec,
            folder,
            data,
            latents,
            settings,
            student_config,
            init,
            no_consent,
            report,
            first=first,
            processes=processes,
        )
        over_all = _over_all(trainer.settings, processes)
        config = _config_of(trainer, spec, init, over_all, processes, folder, command_line)
        check_resume(folder, config, over_all, processes, run)
        if not is_url(run) and (checkpoint := folder.latest_checkpoint()) is not None:
            trainer.state.load(checkpoint)
        return estimate(trainer, run, folder, skipped, report, fits=init is None)


def prepare(
    ranks: Ranks,
    spec: ModelSpec,
    folder: RunDir,
    data: str | Path | None,
    latents: str | Path | None,
    settings: DistillSettings,
    student_config: Mapping[str, Any] | None,
    init: str | None,
    consent: Consent,
    report: Reporter,
    *,
    first: int | None = None,
    processes: int = 0,
) -> tuple[Trainer, list[Skipped]]:
    """Everything that a step needs, and the videos that cannot be used; writes nothing. `first` looks at no more videos.

    `processes` will distil; 0: those that are here.
    """
    if (data is None) == (latents is None):
        raise SettingsError(
            "distill learns from videos or from cached latents: one of the two", "give --data DIR or --latents DIR"
        )
    check_settings(settings)
    device = ranks.device
    if ranks.is_first:  # before anything is loaded or written
        check_trackers(settings.log)
    if settings.compile:
        check_compiler(device)
        report.note("--compile: the first step of every stage compiles, which takes from half a minute to several")
    cache = None if latents is None else _cache_of(latents, spec)  # before a download that would be of no use
    teacher = ranks.first_of_each_machine_first(
        lambda: load_teacher(spec, device=device, allows_tf32=not settings.precise, consent=consent)
    )
    others = (processes or ranks.count) // ranks.count
    settings = ranks.share(lambda: _settle(_over_all(settings, ranks.count), folder, device, others, report))
    dtype = resolve_dtype(settings.dtype)
    if ranks.local_rank == 0:
        warn_of_cudnn(device, dtype, report)
    wanted = {stage.perceptual if stage.perceptual_weight else "none" for stage in settings.stages}
    perceptual = {name: perceptual_loss(name, device, dtype) for name in wanted | {"none"}}
    if cache is None:
        assert data is not None
        streams, skipped = _video_streams(data, spec, settings, ranks, report, first)
    else:
        if cache.manifest.get("teacher", {}).get("weights_sha256") != teacher.identity()["weights_sha256"]:
            raise _made_by_another(cache, spec)
        check_sizes(settings, cache)
        if settings.precise and cache.tf32_clips and ranks.is_first:
            text = f"--precise: the latents of {cache.tf32_clips} of {len(cache)} clips in {cache.where} were computed in TF32"
            report.note(f"{text}; cache-latents --precise into a new folder computes them in fp32", warning=True)
        streams, skipped = [cache] * len(settings.stages), []
        ranks.check_same("the latent cache", cache.fingerprint)
    crops = [crop_of(stage, spec.teacher, stream.size) for stage, stream in zip(settings.stages, streams, strict=True)]

    torch.manual_seed(settings.seed)
    student = build_student(_complete_config(student_config or spec.student.config, spec, teacher))
    if init is not None and ranks.is_first:  # the others get every weight from it
        load_strictly(student, load_student(init, consent=consent).state_dict(), Path(init))
    check_ratios(student, spec)
    aligned = any(stage.feature_weight for stage in settings.stages)
    heads = build_heads(student.to(device), teacher, spec.student.pairs if aligned else ())
    report.note(
        f"teacher {spec.name}: {decoder_params(teacher) / 1e6:.3f} M in its decoder; student {num_params(student) / 1e6:.3f} M; "
        f"on {device.type}, {settings.dtype}"
        + (", the teacher in TF32 (--precise: fp32)" if teacher.uses_tf32 else "")
        + (f", {ranks.count} processes" if ranks.count > 1 else "")
    )
    if ranks.is_first and num_params(student) > decoder_params(teacher):
        report.note(_in_words_if_larger(student, teacher, spec), warning=True)
    state = TrainingState(student, heads, settings, device)
    ranks.check_same("the teacher", str(teacher.identity()))
    trainer = Trainer(teacher, state, streams, crops, perceptual, settings, device, dtype, ranks)
    if settings.fit_batch and device.type != "cpu" and not ranks.share(lambda: RunDir.is_run(folder.root)):
        report.note("trying how many clips of a forward pass fit in the free memory")
        trainer.settings = replace(settings, stages=fitted_stages(trainer))
    return trainer, skipped


def _in_words_if_larger(student: StudentDecoder, teacher: Teacher, spec: ModelSpec) -> str:
    """What to say of a student that is no smaller than what it replaces, and what mends it."""
    ours, theirs = num_params(student), decoder_params(teacher)
    smaller = suggested_params(spec, theirs)
    cure = f"--params {smaller} designs a smaller one" if smaller < ours else "--student-config FILE takes a smaller one"
    return f"the student has {ours:,} parameters, more than its teacher's decoder, which has {theirs:,}: {cure}"


def _run(
    trainer: Trainer, folder: RunDir, spec: ModelSpec, init: str | None, run: str | Path, command_line: str, report: Reporter
) -> tuple[int | None, dict[str, float]]:
    """From the newest checkpoint, or the start, to the model: the step resumed from, and the last step's losses."""
    ranks, state, settings = trainer.ranks, trainer.state, trainer.settings
    with folder.lock() if ranks.is_first else nullcontext():
        config = ranks.share(lambda: _begin(folder, trainer, spec, init, run, command_line, report))
        if trainer.streams[0].is_encoded:
            trainer.teacher.drop_encoder()  # behind the snapshot, which tells the teacher by all its weights
        with _memory_in_words(trainer, folder):
            resumed_from = ranks.share(lambda: _resume_or_start(folder, trainer, report, fits=init is None))
        if ranks.count > 1:
            state.take(ranks.broadcast(state.tables()))
        samples = Samples(trainer, report)
        logs = settings.log if ranks.is_first else ()
        with _memory_in_words(trainer, folder), trackers_of(logs, folder, config, state.step, report) as trackers:
            losses = _train(trainer, folder, trackers, samples, report)
        if ranks.is_first:
            write_model(folder, trainer, spec, config)
            if losses or not folder.report.exists():
                write_run_report(folder, trainer, samples.clips())
    return resumed_from, losses


@contextmanager
def _memory_in_words(trainer: Trainer, folder: RunDir) -> Iterator[None]:
    """Say of a step that runs out of memory what would take less, and from which checkpoint the run can go on."""
    try:
        yield
    except TurboVaedError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = f"step {trainer.state.step + 1} does not fit in the memory of this {trainer.device.type}: {out_of_memory_in_words(error)}"
        raise TurboVaedError(what, _less_memory(trainer, folder)) from error


def _less_memory(trainer: Trainer, folder: RunDir) -> str:
    """The options that take less memory: those that this run can go on with, and those that make it another run."""
    settings = trainer.settings
    stage = position_at(settings.stages, trainer.state.step).stage
    others = ["--crop WIDTHxHEIGHT (smaller)"]
    others += ["--batch-size (smaller)"] if stage.batch_size > trainer.ranks.count else []
    others += ["--dtype bf16"] if trainer.dtype == torch.float32 else []
    others += ["--perceptual ssim"] if stage.perceptual == "lpips" and stage.perceptual_weight else []
    again = f"with another --run, {', '.join(others)} take less"
    # The first rank alone has the run folder.
    steps = folder.steps() if trainer.ranks.is_first else []
    place = f"step {steps[-1]}" if steps else "its last checkpoint" if not trainer.ranks.is_first else "the beginning"
    way = "the same command" if stage.gradient_checkpointing else "the same command with --gradient-checkpointing"
    return f"{way} goes on from {place}; {again}"


def trained_pair(run: Path, spec: ModelSpec, ranks: Ranks) -> Pair:
    """The student of a finished run and its teacher, on every rank; the first alone needs the run folder."""
    pair = load_pair(str(run), device=ranks.device) if ranks.is_first else None
    config = ranks.share(lambda: pair and dict(pair.student.config))
    if pair is None:
        student = nn.Module.to(StudentDecoder.from_config(config), ranks.device).eval()
        pair = Pair(student, load_teacher(spec, device=ranks.device), spec, str(run), None)
    if ranks.count > 1:
        pair.student.load_state_dict(ranks.broadcast({"student": pair.student.state_dict()})["student"])
    return pair


def _over_all(settings: DistillSettings, processes: int) -> DistillSettings:
    """The settings with the clips of a forward pass on all processes, as config.json has them, where those of one were given."""
    return replace(settings, stages=tuple(replace(stage, batch_size=stage.batch_size * processes) for stage in settings.stages))


def _begin(
    folder: RunDir, trainer: Trainer, spec: ModelSpec, init: str | None, run: str | Path, command_line: str, report: Reporter
) -> dict[str, Any]:
    """Record what this run is, or check that it is the same run, and clear away what a killed one left; returns config.json."""
    config = _config_of(trainer, spec, init, trainer.settings, trainer.ranks.count, folder, command_line)
    check_resume(folder, config, trainer.settings, trainer.ranks.count, run)
    machine = environment(trainer.device)
    before: dict[str, Any] = {}
    with suppress(TurboVaedError):  # damaged: nothing but this warning needs it
        before = read_json(folder.env) if folder.env.is_file() and folder.steps() else {}
    if before and (changes := machine_changes(before, machine)):
        where = f"resumed on another machine or with other libraries ({', '.join(changes)})"
        report.note(f"{where}: the last bits may differ from those of an uninterrupted run", warning=True)
    folder.snapshot(config, machine)
    folder.clean_leftovers()
    return config


def _config_of(
    trainer: Trainer,
    spec: ModelSpec,
    init: str | None,
    settings: DistillSettings,
    processes: int,
    folder: RunDir,
    command_line: str,
) -> dict[str, Any]:
    """config.json of a run; `settings` have the clips of a forward pass on all processes."""
    student, teacher = trainer.state.student, trainer.teacher
    first = folder.read_config().get("command_line") if folder.config.exists() else None
    return {
        "command": "distill",
        "command_line": first or command_line or None,
        "settings": asdict(settings),
        "ranks": processes,
        "model": spec.name,
        "teacher": {
            **teacher.identity(),
            "where": spec.teacher.where or spec.name,
        },
        "student_config": _published_config(student),
        "init_sha256": hash_of_state(student) if init is not None else None,
        "data_fingerprint": trainer.streams[0].fingerprint,
        # Of videos; a cache has its own.
        **({} if trainer.streams[0].is_encoded else {"reading": reading_identity(settings.hdr)}),
    }


def _resume_or_start(folder: RunDir, trainer: "Trainer", report: Reporter, *, fits: bool) -> int | None:
    """Go on from the newest checkpoint and return its step; without one, make the fresh student ready."""
    resumed_from = _resume(folder, trainer.state)
    if resumed_from:
        report.note(f"resumed from step {resumed_from}")
    else:
        if trainer.settings.start == "fitted" and fits:
            trainer.fit_start(report)
        report.note(forecast(trainer))
    return resumed_from


def _train(trainer: Trainer, folder: RunDir, trackers: Trackers, samples: Samples, report: Reporter) -> dict[str, float]:
    """Run the steps that are left, logging and saving; returns the last step's losses."""
    settings, state, ranks = trainer.settings, trainer.state, trainer.ranks
    losses: dict[str, float] = {}
    first, spent = state.step, 0.0

    def say_stalled(which: tuple[int, int], seconds: float) -> None:
        text = f"no batch for {seconds:.0f} s; being read: {trainer.names_at(which)}"
        report.note(text, warning=True)
        if ranks.is_first:
            _log(folder, f"warning: {text}")

    batches = Waited(
        read_ahead(
            trainer.batch_at,
            passes_from(settings.stages, first),
            settings.workers,
            patience_s=settings.stall_seconds,
            stalled=say_stalled,
        )
    )
    with stop_requests() as stop:
        for step in report.track(range(first, settings.steps), "distilling", total=settings.steps, start=first):
            at = position_at(settings.stages, step)
            if ranks.is_first and step in (first, at.first_step):
                _announce(trainer, at.index, at.first_step, folder, report)
            forget_peak(trainer.device)
            started, waited = time.perf_counter(), batches.seconds
            losses = trainer.learn(batches)
            seconds = time.perf_counter() - started
            spent += seconds
            last = state.step == settings.steps
            waited, peak = ranks.most([batches.seconds - waited, peak_mb(trainer.device) or 0.0])
            if ranks.is_first:
                clips_per_s = at.stage.batch_size * at.stage.accumulation / seconds
                figures = {"seconds": seconds, "clips_per_s": clips_per_s, "data_seconds": waited, "peak_mb": peak or None}
                _log_step(trainer, at.index, losses, figures, folder)
                trackers.log(state.step, {**losses, **figures})
                if state.step - first == STEPS_BEFORE_WAITS and (
                    waits := _waits_in_words(batches.seconds, spent, settings.workers)
                ):
                    report.note(waits, warning=True)
                    _log(folder, waits)
                report.note(loss=losses["loss"], l1=losses["l1"], clips_per_s=clips_per_s)
            # Read once: what comes later belongs to the next step.
            asked_to_stop = int(ranks.most([max(list(stop), default=0)])[0])
            saves = state.step % settings.save_every == 0 or last or asked_to_stop
            if saves:
                if ranks.count > 1:
                    ranks.check_same(f"the state behind step {state.step}", state.digest())
                if ranks.is_first:
                    folder.save_checkpoint(state.step, state.save, settings.keep_checkpoints)
                    write_run_report(folder, trainer)
                    _log(folder, f"saved step {state.step}, loss {losses['loss']:.5f}")
            if ranks.is_first:  # after the checkpoint: a sample takes memory of its own
                if settings.sample_every and (state.step % settings.sample_every == 0 or last):
                    samples.draw(folder)
                if saves:
                    folder.publish()
            if asked_to_stop and not last:
                hint = "the same command goes on from there"
                raise InterruptedRunError(f"stopped after step {state.step} of {settings.steps}", asked_to_stop, hint)
    if waits := _waits_in_words(batches.seconds, spent, settings.workers):
        report.note(waits)
    return losses


def _log_step(
    trainer: Trainer, index: int, losses: Mapping[str, float], figures: Mapping[str, float | None], folder: RunDir
) -> None:
    """One line of metrics.jsonl."""
    finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}  # JSON knows no infinity
    stage = trainer.settings.stages[index].name
    line = {"step": trainer.state.step, "stage": stage, **finite, "data": trainer.data_of(index), **figures}
    _append(folder.metrics, json.dumps(line))


def _waits_in_words(waited_s: float, spent_s: float, workers: int) -> str:
    """What to say of steps that waited for data; nothing where they hardly did."""
    if waited_s <= WORTH_SAYING * spent_s:
        return ""
    share = f"steps waited {waited_s / spent_s:.0%} of their time for data"
    return f"{share}; --workers {max(2 * workers, 2)} reads more ahead, and cache-latents decodes no video while it trains"


def _announce(trainer: Trainer, index: int, first_step: int, folder: RunDir, report: Reporter) -> None:
    """Say what a stage does, to train.log and to whoever watches."""
    stage, data = trainer.settings.stages[index], trainer.data_of(index)
    text = (
        f"stage {stage.name} ({index + 1} of {len(trainer.settings.stages)}): steps {first_step + 1} to {first_step + stage.steps}, "
        f"{data['clips']} clips of {data['frames']} frames {data['width']}x{data['height']}, {losses_in_words(stage)}, lr {stage.lr} {stage.lr_schedule}"
    )
    if stage.crop_latents and min(data["height"], data["width"]) < stage.crop_latents * trainer.teacher.spec.space_ratio:
        taken = "whole clips" if trainer.crops[index] is None else f"{data['width']}x{data['height']} of them"
        text += f"; clips are smaller than the crop of {stage.crop_latents} latents: {taken}"
    _log(folder, text)
    report.note(text)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM put their number in, so that the step at hand can end; one that comes later ends at once."""
    received: list[int] = []
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > SAME_REQUEST_S:
            if callable(handler := before[number]):  # which knows the exit code
                handler(number, frame)
            raise KeyboardInterrupt

    with signals_handled_by(handle) as before:
        yield received


def _resume(folder: RunDir, state: TrainingState) -> int | None:
    """Load the newest checkpoint; forget what the metrics say of steps behind it. Returns its step."""
    path = folder.latest_checkpoint()
    if path is not None:
        state.load(path)
    if folder.metrics.exists():
        lines = [line for line in folder.metrics_lines() if (row := metrics_row(line)) is not None and row["step"] <= state.step]
        write_whole(
            folder.metrics, lambda temporary: temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        )
    return state.step if path is not None else None


def _log(folder: RunDir, text: str) -> None:
    _append(folder.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def _settle(settings: DistillSettings, folder: RunDir, device: torch.device, others: int, report: Reporter) -> DistillSettings:
    """Settings without `auto`: on a resume what it meant at the start, else what this machine has, said out loud.

    A run has `others` times the clips in a pass that `settings` have: more processes than are here.
    """
    before = folder.read_config()["settings"] if RunDir.is_run(folder.root) else {}
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
    workers = settings.workers or (2 if device.type == "cpu" else min(os.cpu_count() or 2, MOST_WORKERS))
    return replace(settings, stages=tuple(stages), dtype=dtype, workers=workers)


def _as_fitted(stage: Stage, was: Mapping[str, Any], others: int) -> Stage:
    """A stage in the passes that a run began with; as it is where a step would see other clips, which the snapshot names."""
    clips, passes = was.get("batch_size") or 0, was.get("accumulation") or 0
    if clips * passes != stage.batch_size * others * stage.accumulation or clips % others:
        return stage
    return replace(stage, batch_size=clips // others, accumulation=passes)


def _video_streams(
    data: str | Path, spec: ModelSpec, settings: DistillSettings, ranks: Ranks, report: Reporter, first: int | None
) -> tuple[list[ClipStream], list[Skipped]]:
    """One stream per stage, over the same videos, at the stage's size."""
    sizes = [stage.size or settings.size for stage in settings.stages]
    spec.teacher.check_frames(settings.frames)
    for size in sizes:
        spec.teacher.check_size(*size)
    folder = ranks.first_of_each_machine_first(lambda: local_videos(data, report, first=first))
    span = (settings.frames - 1) * settings.stride + 1
    videos, skipped = ranks.share(lambda: usable_videos(folder, span, report, first=first, hdr=settings.hdr))
    damaged: dict[str, str] = {}
    return [VideoClips(videos, settings.frames, size, settings.stride, damaged) for size in sizes], skipped


def _cache_of(latents: str | Path, spec: ModelSpec) -> LatentCache:
    """The cache, if it can be this teacher's as far as is known without its weights."""
    cache = LatentCache(latents)
    made_by = cache.manifest.get("teacher") or {}
    if (made_by.get("class"), made_by.get("latent_channels")) != (spec.teacher.class_name, spec.teacher.latent_channels):
        raise _made_by_another(cache, spec)
    return cache


def _made_by_another(cache: LatentCache, spec: ModelSpec) -> SettingsError:
    """The error for a cache of another teacher; the hint names that one, as far as the cache does."""
    made_by, name = cache.manifest.get("teacher") or {}, cache.manifest.get("teacher_name")
    what = f"{name or 'another teacher'} (a {shown(made_by.get('class'))} of {shown(made_by.get('latent_channels'))} channels)"
    if name is None:
        option = "--teacher with the one that made them"
    else:
        option = f"--teacher {name}" if is_model_name(str(name)) else f"--teacher DIR, with the folder {name}"
    return SettingsError(f"the latents in {cache.where} were made by {what}, not by {spec.name}", f"name their teacher: {option}")


def _complete_config(config: Mapping[str, Any], spec: ModelSpec, teacher: Teacher) -> dict[str, Any]:
    """The student's config with what it inherits from this teacher: latent channels, scaling and statistics."""
    config_of_teacher = teacher.vae.config
    inherited: dict[str, Any] = {"latent_channels": spec.teacher.latent_channels, "teacher": spec.name}
    for name in ("latents_mean", "latents_std"):
        value = dict(teacher.vae.named_buffers()).get(name, getattr(config_of_teacher, name, None))
        if isinstance(value, Tensor):
            inherited[name] = value.float().cpu().tolist()
        elif value is not None:
            inherited[name] = [float(one) for one in value]
    scaling = getattr(config_of_teacher, "scaling_factor", None)
    if scaling is not None:
        inherited["scaling_factor"] = scaling
    return {**config, **inherited}


def _published_config(student: StudentDecoder) -> dict[str, Any]:
    return {name: value for name, value in student.config.items() if not name.startswith("_")}
