"""Estimate the time and memory of a distillation: a few real steps of every stage are timed and weighed; nothing is written."""

import copy
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from turbovaed_cli.files.remote import free_disk_bytes, is_url
from turbovaed_cli.latents.batch import Batch
from turbovaed_cli.machine.devices import empty_cache, forget_peak, is_out_of_memory, peak_mb
from turbovaed_cli.machine.ranks import alone
from turbovaed_cli.machine.threads import Waited, read_ahead
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.outputs import Samples
from turbovaed_cli.training.schedule import passes_from
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video.usable import Skipped

SAMPLE_VIDEOS = 24  # that are probed
LONG = 1000  # optimizer steps from which a schedule is timed before it begins
LONGEST_S = 2 * 86400  # of a night recipe, before --recipe fast is suggested
MOST_RESERVED = 0.9  # share of a device's free memory that a fitted forward pass may take
TIMED_STEPS = 3  # of each stage, after its first, which is slow


@dataclass(frozen=True)
class StageEstimate:
    """The estimate of one stage, from some of its steps."""

    name: str
    steps: int  # that are left of it
    clips_per_step: int  # of this process
    seconds_per_step: float
    hours: float  # for the steps that are left
    data_share: float  # of that time, spent waiting for clips
    # The peak memory in MB of its steps, a sample and (first stage) a fitted start: on a GPU the tensors, else the whole process.
    peak_mb: float | None
    reserved_mb: float | None  # that torch's allocator reserved on a GPU for this, with gaps between tensors; None elsewhere


@dataclass(frozen=True)
class DistillEstimate:
    """The estimated cost of a distillation from here on; without stages if the teacher's weights are missing."""

    run: str
    steps_done: int  # by the newest checkpoint
    steps: int
    stages: list[StageEstimate]  # those with steps left
    seconds: float | None  # for the steps that are left, without the time of checkpoints
    hours: float | None  # the same
    dollars: float | None  # for these hours; None if no price was given
    disk_bytes: int | None  # at most, in addition to those used already: checkpoints and the model
    free_bytes: int | None
    download_bytes: int
    device: str
    skipped: list[Skipped]  # probed videos that cannot be used


def estimate(
    trainer: Trainer,
    run: str | Path,
    folder: RunDir,
    skipped: list[Skipped],
    report: Reporter = quiet,
    *,
    dollars_per_hour: float | None = None,
) -> DistillEstimate:
    """Time some steps of every unfinished stage. The trainer must not be used afterwards, as its weights change.

    Peak memory includes a sample, and the start of a run that has not begun.
    """
    settings, done = trainer.settings, max(folder.steps(), default=0)
    if trainer.streams[0].is_encoded:
        trainer.teacher.drop_encoder()
    stages = []
    first = 0
    for index, stage in enumerate(settings.stages):
        end = first + stage.steps
        if done < end:
            report.note(f"timing some steps of stage {stage.name}")
            forget_peak(trainer.device)
            if not (done or index):
                trainer.set_start(report)
            stages.append(_time_stage(trainer, index, max(first, done), end, report))
        first = end
    state = sum(value.nbytes for table in trainer.state.tables().values() for value in table.values())
    model = sum(value.nbytes for value in trainer.state.ema.values())
    whole = state * (settings.keep_checkpoints + 1) + model  # a new one is complete before an old one is removed
    taken = sum(
        path.stat().st_size for place in (folder.checkpoints, folder.model) for path in place.rglob("*") if path.is_file()
    )
    hours = sum(stage.hours for stage in stages)
    return DistillEstimate(
        run=str(run),
        steps_done=done,
        steps=settings.steps,
        stages=stages,
        seconds=hours * 3600,
        hours=hours,
        dollars=None if dollars_per_hour is None else hours * dollars_per_hour,
        disk_bytes=max(whole - taken, 0) if stages else 0,
        free_bytes=None if is_url(run) else free_disk_bytes(Path(run)),
        download_bytes=0,
        device=trainer.device.type,
        skipped=skipped,
    )


def _time_stage(trainer: Trainer, index: int, first: int, end: int, report: Reporter) -> StageEstimate:
    """Time some of the steps from `first` up to `end`, all of one stage; the peak includes memory used before."""
    stage = trainer.settings.stages[index]
    untimed = min(1, end - first - 1)
    seconds, share = timed_steps(trainer, first, untimed, min(TIMED_STEPS, end - first - untimed))
    trainer.state.step = first
    trainer.learn(_all_read_ahead(trainer, first))
    Samples(trainer, report).videos()
    clips = trainer.data_of(index)["clips"]
    peak = peak_mb(trainer.device)
    hours = (end - first) * seconds / 3600
    return StageEstimate(stage.name, end - first, clips, seconds, hours, share, peak, _reserved_mb(trainer.device))


def timed_steps(trainer: Trainer, first: int, untimed: int, timed: int) -> tuple[float, float]:
    """Make `untimed` steps from step `first` on, then `timed` ones; return (seconds of one of those, share spent waiting for data).

    The trainer's weights change.
    """
    trainer.state.step = first
    reading = read_ahead(trainer.batch_at, passes_from(trainer.settings.stages, first), trainer.settings.workers)
    batches = Waited(reading)
    for _ in range(untimed):
        trainer.learn(batches)
    began, waited = time.perf_counter(), batches.seconds
    for _ in range(timed):
        trainer.learn(batches)
    seconds = time.perf_counter() - began
    reading.close()  # nothing is read ahead any more
    return seconds / timed, min((batches.seconds - waited) / seconds, 1.0)


def _all_read_ahead(trainer: Trainer, first: int) -> Iterator[tuple[tuple[int, int], Batch]]:
    """Yield the batches from step `first` on while as many more are on the device as threads may have read ahead."""
    waiting: deque[tuple[tuple[int, int], Batch]] = deque()
    for which in passes_from(trainer.settings.stages, first):
        waiting.append((which, trainer.batch_at(which)))
        if len(waiting) > trainer.settings.workers:
            yield waiting.popleft()
    yield from waiting


def fitted_stages(trainer: Trainer) -> tuple[Stage, ...]:
    """Return the stages with forward passes that fit in the free memory of every rank's device.

    A step sees the same clips, in more passes. The sizes are tried, from the largest on, on a copy of the training state.
    """
    stages = []
    for index, stage in enumerate(trainer.settings.stages):
        own = stage.batch_size // trainer.ranks.count
        fits = next((clips for clips in range(own, 1, -1) if own % clips == 0 and _has_room(trainer, index, clips)), 1)
        clips = -int(trainer.ranks.most([-fits])[0])  # of the rank that has the least room
        accumulation = stage.accumulation * (own // clips)
        stages.append(replace(stage, batch_size=clips * trainer.ranks.count, accumulation=accumulation))
    return tuple(stages)


def _has_room(trainer: Trainer, index: int, clips: int) -> bool:
    device = trainer.device
    forget_peak(device)
    try:
        _, batch_bytes = _time_pass(trainer, index, clips)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        empty_cache(device)
    if (reserved := _reserved_mb(device)) is None:
        return True
    ahead = trainer.settings.workers * batch_bytes  # of batches that threads read ahead
    return reserved * 1e6 + ahead < MOST_RESERVED * (torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))


def forecast(trainer: Trainer) -> str:
    """Describe a new run in words: steps, clips, and the time, estimated from a forward pass of each stage on this device.

    A schedule of fewer than LONG steps is not timed, nor one whose length was set by timed steps (`hours`).
    """
    settings, count = trainer.settings, trainer.ranks.count
    if settings.hours:
        lengths = ", ".join(f"{stage.name} {stage.steps:,}" for stage in settings.stages)
        time_asked = f"{settings.hours:g} hour{'s' * (settings.hours != 1)}"
        return f"recipe {settings.recipe} in {time_asked}: {settings.steps:,} steps see {settings.clips:,} clips ({lengths})"
    text = f"recipe {settings.recipe}: {settings.steps:,} steps see {settings.clips:,} clips"
    if settings.steps < LONG:
        return text
    seconds = 0.0
    for index, stage in enumerate(settings.stages):
        own = stage.batch_size // count
        tried = 1 if trainer.device.type == "cpu" else own  # a CPU takes as long for each clip of a batch as for one alone
        seconds += stage.steps * stage.accumulation * _time_pass(trainer, index, tried)[0] * own / tried
    text += f" in about {duration_in_words(seconds)} on this {trainer.device.type}, by a forward pass of each stage"
    return text + ("; `recipe` fast is a first look" if seconds > LONGEST_S and settings.recipe.startswith("night") else "")


def _time_pass(trainer: Trainer, index: int, clips: int) -> tuple[float, int]:
    """Return (seconds, bytes of its batch) of an optimizer step of one pass with `clips` clips: the second of two, on a copy."""
    stages = list(trainer.settings.stages)
    stages[index] = replace(stages[index], batch_size=clips, accumulation=1, steps=max(stages[index].steps, 2))
    state = copy.deepcopy(trainer.state)
    state.step = sum(stage.steps for stage in stages[:index])
    settings = replace(trainer.settings, stages=tuple(stages), compile=False)
    trial = replace(trainer, state=state, settings=settings, ranks=alone(trainer.device))
    which, seconds, batch_bytes = (index, 0), 0.0, 0
    for _ in range(2):
        batch = trial.batch_at(which)
        began = time.perf_counter()
        trial.learn(iter([(which, batch)]))
        seconds, batch_bytes = time.perf_counter() - began, sum(tensor.nbytes for tensor in batch.tensors)
    return seconds, batch_bytes


def duration_in_words(seconds: float) -> str:
    """Format a duration in minutes, hours or days with two digits: "35 minutes", "7.2 hours", "12 days"."""
    for most, unit, name in ((90 * 60, 60, "minute"), (72 * 3600, 3600, "hour")):
        if seconds < most:
            count = max(seconds / unit, 1.0)
            text = f"{count:.0f}" if count >= 10 or unit == 60 else f"{count:.1f}"
            return f"{text} {name}{'s' * (text != '1')}"
    return f"{seconds / 86400:,.0f} days"


def _reserved_mb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_reserved(device) / 1e6 if device.type == "cuda" else None
