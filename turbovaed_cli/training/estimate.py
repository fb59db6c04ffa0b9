"""What a distillation would take: a few real steps of every stage, timed and weighed, and nothing written."""

import time
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.devices import forget_peak, peak_mb
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.rundir import RunDir
from turbovaed_cli.storage import free_bytes, is_url
from turbovaed_cli.training.data import Skipped, Waited, read_ahead
from turbovaed_cli.training.schedule import passes_from
from turbovaed_cli.training.trainer import Trainer

SAMPLE_VIDEOS = 24  # that are looked into
TIMED_STEPS = 3  # of each stage, behind its first, which is slow


@dataclass(frozen=True)
class StageEstimate:
    """One stage, as some of its steps went."""

    name: str
    steps: int  # that are left of it
    clips_per_step: int  # of this process
    seconds_per_step: float
    data_share: float  # of that time, spent waiting for clips
    peak_mb: float | None  # memory: of a GPU its tensors, else the process


@dataclass(frozen=True)
class DistillEstimate:
    """What a distillation would take from here on; without stages where the teacher's weights are not here."""

    run: str
    steps_done: int  # that a checkpoint has
    steps: int
    stages: list[StageEstimate]  # those with steps left
    seconds: float | None  # for the steps that are left, and without the time of checkpoints
    disk_bytes: int | None  # at most, beyond what the run has taken already: checkpoints and the model
    free_bytes: int | None
    download_bytes: int
    device: str
    skipped: list[Skipped]  # videos that cannot be used, of those looked into


def estimate(
    trainer: Trainer, run: str | Path, folder: RunDir, skipped: list[Skipped], report: Reporter = quiet
) -> DistillEstimate:
    """Make some steps of every stage that is not finished, with a trainer that is for nothing else, as the weights change."""
    settings, done = trainer.settings, max(folder.steps(), default=0)
    if trainer.streams[0].is_encoded:
        trainer.teacher.drop_encoder()
    stages = []
    first = 0
    for index, stage in enumerate(settings.stages):
        end = first + stage.steps
        if done < end:
            report.note(f"timing some steps of stage {stage.name}")
            stages.append(_time_stage(trainer, index, max(first, done), end))
        first = end
    state = sum(value.nbytes for table in trainer.state.tables().values() for value in table.values())
    model = sum(value.nbytes for value in trainer.state.ema.values())
    whole = state * (settings.keep_checkpoints + 1) + model  # a new one is whole before an old one goes
    taken = sum(
        path.stat().st_size for place in (folder.checkpoints, folder.model) for path in place.rglob("*") if path.is_file()
    )
    return DistillEstimate(
        str(run), done, settings.steps, stages, sum(stage.steps * stage.seconds_per_step for stage in stages),
        max(whole - taken, 0) if stages else 0, None if is_url(run) else free_bytes(Path(run)), 0, trainer.device.type, skipped,
    )  # fmt: skip


def _time_stage(trainer: Trainer, index: int, first: int, end: int) -> StageEstimate:
    """Time some of the steps from `first` up to `end`, all of one stage."""
    stage = trainer.settings.stages[index]
    trainer.state.step = first
    reading = read_ahead(trainer.batch_at, passes_from(trainer.settings.stages, first), trainer.settings.workers)
    batches = Waited(reading)
    forget_peak(trainer.device)
    began, waited, steps = time.perf_counter(), 0.0, min(TIMED_STEPS + 1, end - first)
    for number in range(steps):
        if number == 1:
            began, waited = time.perf_counter(), batches.seconds
        trainer.learn(batches)
    seconds = (time.perf_counter() - began) / max(steps - 1, 1)
    reading.close()  # nothing is read ahead any more
    share = min((batches.seconds - waited) / max(steps - 1, 1) / seconds, 1.0)
    clips = trainer.data_of(index)["clips"]
    return StageEstimate(stage.name, end - first, clips, seconds, share, peak_mb(trainer.device))
