"""`distill`: teach a small decoder to do what a frozen teacher's decoder does. Source: arXiv:2508.09136."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import RunFolderError
from turbovaed_cli.files.remote import free_disk_bytes, is_url
from turbovaed_cli.machine.devices import (
    resolve_device,
)
from turbovaed_cli.machine.ranks import alone, join_ranks
from turbovaed_cli.models.decoding import num_params_of
from turbovaed_cli.models.teacher import decoder_params
from turbovaed_cli.registry.download import Consent, missing_bytes, no_consent
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.reporting import Reporter, WarningsOf, quiet
from turbovaed_cli.runs.rundir import RunDir, look_at_run, open_run
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.training.checks import check_distill_settings
from turbovaed_cli.training.estimate import SAMPLE_VIDEOS, DistillEstimate, estimate
from turbovaed_cli.training.loop import memory_in_words, train
from turbovaed_cli.training.outputs import Samples, write_model, write_run_report
from turbovaed_cli.training.prepare import Distillation, cache_for, over_all_processes, prepare
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.resume import begin, check_resume, resume_or_start, run_config
from turbovaed_cli.training.trackers import trackers_of
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video.usable import Skipped


@dataclass(frozen=True)
class DistillResult:
    """The result of a distillation."""

    run: Path  # a URL if that was given
    model: Path
    step: int
    resumed_from: int | None  # step of the checkpoint that it continued from
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
    """Distil `spec`'s teacher into a student, from videos (`data`, encoded during training) or a latent cache (`latents`).

    `settings` None takes the recipe in the teacher's row of the registry. `init` names a student (as load_student takes it) to
    start from instead of random weights; "prune:0.5" cuts a student with half of the channels from the teacher's own decoder. `command_line` is kept in config.json, for messages about a resume. `run`, `data` and
    `latents` may be fsspec URLs.

    Calling it again with the same arguments resumes `run` from its newest checkpoint, bit for bit on one type of machine (on a
    GPU, with equal free memory). If several processes call it (machine/ranks.py), `batch_size` is per process, and only the
    first process reads and writes `run`. Raises SettingsError or RunFolderError before anything is written, NonFiniteError before
    an optimizer step that would spread NaN, and InterruptedRunError after a checkpoint if a signal asked it to stop.
    """
    asked = Distillation(spec, run, data, latents, settings or RECIPES[spec.recipe], student_config, init, command_line, consent)
    ranks = join_ranks(asked.settings.device, report)
    if not ranks.is_first:
        report = WarningsOf(report, f"process {ranks.rank} of {ranks.count}")
    nowhere = nullcontext((Path(str(run)), lambda: None))
    with ranks.together(), open_run(run) if ranks.is_first else nowhere as (root, publish):
        folder = RunDir(root, publish)
        trainer, skipped = prepare(asked, ranks, folder, report)
        resumed_from, losses = _run(asked, trainer, folder, report)
        damaged = {path: reason for found in ranks.gather(trainer.streams[0].damaged) for path, reason in found.items()}
    skipped += [Skipped(path, reason) for path, reason in damaged.items()]
    student, teacher = trainer.state.student, trainer.teacher
    place: Any = str(run) if is_url(run) else Path(run)
    model: Any = f"{place}/{folder.model.name}" if is_url(run) else folder.model
    return DistillResult(
        place, model, trainer.state.step, resumed_from, losses, num_params_of(student), decoder_params(teacher), skipped=skipped
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
    dollars_per_hour: float | None = None,
    command_line: str = "",
    report: Reporter = quiet,
) -> DistillEstimate:
    """Estimate the rest of `distill` with the same arguments by timing some steps, in one process; nothing is written.

    Raises what `distill` in this many `processes` would raise for settings, data, weights and an existing run. A teacher whose
    weights are missing is no error. `dollars_per_hour` is the price of the machines that will distil.
    """
    asked = Distillation(spec, run, data, latents, settings or RECIPES[spec.recipe], student_config, init, command_line)
    check_distill_settings(asked.settings)
    if latents is not None:
        cache_for(latents, spec)
    if download := missing_bytes(spec):
        room = None if is_url(run) else free_disk_bytes(Path(run))
        steps, on = asked.settings.steps, asked.settings.device
        return DistillEstimate(str(run), 0, steps, [], None, None, None, None, room, download, on, [])
    ranks = alone(resolve_device(asked.settings.device, report))
    with look_at_run(run) as root:
        folder = RunDir(root)
        if holder := folder.holder():
            raise RunFolderError(f"{run} is in use by {holder}", "wait for it, or give another `run`")
        first = None if folder.config.exists() else SAMPLE_VIDEOS  # a run's data are identified by all videos
        trainer, skipped = prepare(asked, ranks, folder, report, first=first, processes=processes)
        over_all = over_all_processes(trainer.settings, processes)
        config = run_config(asked, trainer, over_all, processes, folder)
        check_resume(folder, config, over_all, processes, run)
        if not is_url(run) and (checkpoint := folder.latest_checkpoint()) is not None:
            trainer.state.load(checkpoint)
        return estimate(trainer, run, folder, skipped, report, dollars_per_hour=dollars_per_hour)


def _run(asked: Distillation, trainer: Trainer, folder: RunDir, report: Reporter) -> tuple[int | None, dict[str, float]]:
    """Train from the newest checkpoint, or the start, and write the model. Return the step resumed from, and the last losses."""
    ranks, state, settings = trainer.ranks, trainer.state, trainer.settings
    with folder.lock() if ranks.is_first else nullcontext():
        config = ranks.share(lambda: begin(asked, folder, trainer, report))
        if trainer.streams[0].is_encoded:
            trainer.teacher.drop_encoder()  # after the snapshot, which identifies the teacher by all its weights
        with memory_in_words(trainer, folder):
            resumed_from = ranks.share(lambda: resume_or_start(folder, trainer, report))
        if ranks.count > 1:
            state.take(ranks.broadcast(state.tables()))
        samples = Samples(trainer, report)
        logs = settings.log if ranks.is_first else ()
        with memory_in_words(trainer, folder), trackers_of(logs, folder, config, state.step, report) as trackers:
            losses = train(trainer, folder, trackers, samples, report)
        if ranks.is_first:
            write_model(folder, trainer, asked.spec, config)
            if losses or not folder.report.exists():
                write_run_report(folder, trainer, samples.clips())
    return resumed_from, losses
