"""The steps of a distillation: learn, record, save, stop when asked."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from turbovaed_cli.errors import InterruptedRunError, TurboVaedError
from turbovaed_cli.machine.devices import forget_peak, is_out_of_memory, out_of_memory_in_words, peak_mb
from turbovaed_cli.machine.signals import stop_requests
from turbovaed_cli.machine.threads import Waited, read_ahead
from turbovaed_cli.report.card import losses_in_words
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.training.outputs import Samples, write_run_report
from turbovaed_cli.training.schedule import passes_from, position_at
from turbovaed_cli.training.trackers import Trackers
from turbovaed_cli.training.trainer import Trainer

STEPS_BEFORE_WAITS = 50  # after which waits for data are reported, while the run can still be changed
WORTH_SAYING = 0.1  # share of the steps' time from which waits are reported


@contextmanager
def memory_in_words(trainer: Trainer, folder: RunDir) -> Iterator[None]:
    """Turn an out-of-memory error of a step into one that names options which take less, and the checkpoint to resume from."""
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
    """Return the hint with options that take less memory: those that this run can resume with, and those for another run."""
    settings = trainer.settings
    stage = position_at(settings.stages, trainer.state.step).stage
    others = ["`crop` WIDTHxHEIGHT (smaller)"]
    others += ["`batch_size` (smaller)"] if stage.batch_size > trainer.ranks.count else []
    others += ["`dtype` bf16"] if trainer.dtype == torch.float32 else []
    others += ["`perceptual` ssim"] if stage.perceptual not in ("ssim", "none") and stage.perceptual_weight else []
    again = f"with another `run`, {', '.join(others)} take less memory"
    # Only the first rank has the run folder.
    steps = folder.steps() if trainer.ranks.is_first else []
    place = f"step {steps[-1]}" if steps else "its last checkpoint" if not trainer.ranks.is_first else "the beginning"
    way = "the same command" if stage.gradient_checkpointing else "the same command with `gradient_checkpointing`"
    return f"{way} goes on from {place}; {again}"


def train(trainer: Trainer, folder: RunDir, trackers: Trackers, samples: Samples, report: Reporter) -> dict[str, float]:
    """Run the steps that are left, logging and saving. Return the last step's losses.

    Raises InterruptedRunError after a checkpoint if a signal asked to stop, NonFiniteError as Trainer.learn does.
    """
    settings, state = trainer.settings, trainer.state
    record = Record(trainer, folder, trackers, samples, report)
    first = state.step
    batches = Waited(
        read_ahead(
            trainer.batch_at,
            passes_from(settings.stages, first),
            settings.workers,
            patience_s=settings.stall_seconds,
            stalled=record.stalled,
        )
    )
    losses: dict[str, float] = {}
    with stop_requests() as stop:
        for step in report.track(range(first, settings.steps), "distilling", total=settings.steps, start=first):
            record.enter(step)
            with record.timed(batches):
                losses = trainer.learn(batches)
            record.step(losses)
            # Read once: what comes later belongs to the next step.
            asked_to_stop = int(trainer.ranks.most([max(list(stop), default=0)])[0])
            record.save_if_due(losses, anyway=bool(asked_to_stop))
            if asked_to_stop and state.step < settings.steps:
                hint = "the same command goes on from there"
                raise InterruptedRunError(f"stopped after step {state.step} of {settings.steps}", asked_to_stop, hint)
    record.end()
    return losses


class Record:
    """Writes the record of a run's steps: metrics.jsonl, train.log, trackers, checkpoints, samples and report.html.

    Every process has one, and only the first writes. Wait and peak memory are the largest of all processes.
    """

    def __init__(self, trainer: Trainer, folder: RunDir, trackers: Trackers, samples: Samples, report: Reporter) -> None:
        self.trainer, self.folder, self.trackers, self.samples, self.report = trainer, folder, trackers, samples, report
        self.writes = trainer.ranks.is_first
        self.first = trainer.state.step
        self.seconds = self.waited_s = 0.0  # of the last step
        self.all_seconds = self.all_waited_s = 0.0  # of this process's steps

    def enter(self, step: int) -> None:
        """Announce a stage at its first step, and at the first step of this process."""
        at = position_at(self.trainer.settings.stages, step)
        if self.writes and step in (self.first, at.first_step):
            self._announce(at.index, at.first_step)

    @contextmanager
    def timed(self, batches: Waited[Any]) -> Iterator[None]:
        """Measure one step: its time, its wait for data, its peak memory."""
        forget_peak(self.trainer.device)
        started, waited = time.perf_counter(), batches.seconds
        yield
        self.seconds, self.waited_s = time.perf_counter() - started, batches.seconds - waited
        self.all_seconds, self.all_waited_s = self.all_seconds + self.seconds, batches.seconds

    def step(self, losses: Mapping[str, float]) -> None:
        """Write the figures of a step to metrics.jsonl and the trackers."""
        settings, step = self.trainer.settings, self.trainer.state.step
        waited, peak = self.trainer.ranks.most([self.waited_s, peak_mb(self.trainer.device) or 0.0])
        if not self.writes:
            return
        at = position_at(settings.stages, step - 1)
        clips_per_s = at.stage.batch_size * at.stage.accumulation / self.seconds
        figures = {"seconds": self.seconds, "clips_per_s": clips_per_s, "data_seconds": waited, "peak_mb": peak or None}
        finite = {name: value if math.isfinite(value) else None for name, value in losses.items()}  # JSON has no infinity
        line = {"step": step, "stage": at.stage.name, **finite, "data": self.trainer.data_of(at.index), **figures}
        _append(self.folder.metrics, json.dumps(line))
        self.trackers.log(step, {**losses, **figures})
        if step - self.first == STEPS_BEFORE_WAITS and (waits := self._waits()):
            self.report.note(waits, warning=True)
            self._log(waits)
        self.report.note(loss=losses["loss"], l1=losses["l1"], clips_per_s=clips_per_s)

    def save_if_due(self, losses: Mapping[str, float], *, anyway: bool) -> None:
        """Save a checkpoint and draw a sample if they are due; both after the last step, and with `anyway` a checkpoint."""
        settings, state, ranks = self.trainer.settings, self.trainer.state, self.trainer.ranks
        last = state.step == settings.steps
        saves = state.step % settings.save_every == 0 or last or anyway
        if saves and ranks.count > 1:
            ranks.check_same(f"the state after step {state.step}", state.digest())
        if not self.writes:
            return
        if saves:
            self.folder.save_checkpoint(state.step, state.save, settings.keep_checkpoints)
            write_run_report(self.folder, self.trainer)
            self._log(f"saved step {state.step}, loss {losses['loss']:.5f}")
        if settings.sample_every and (state.step % settings.sample_every == 0 or last):
            self.samples.draw(self.folder)  # after the checkpoint, as a sample takes more memory
        if saves:
            self.folder.publish()

    def end(self) -> None:
        """Report at the end how long all steps waited for data, if it was long."""
        if waits := self._waits():
            self.report.note(waits)

    def stalled(self, which: tuple[int, int], seconds: float) -> None:
        """Warn of a batch that does not arrive, with the names of its clips."""
        text = f"no batch for {seconds:.0f} s; being read: {self.trainer.names_at(which)}"
        self.report.note(text, warning=True)
        if self.writes:
            self._log(f"warning: {text}")

    def _waits(self) -> str:
        return waits_in_words(self.all_waited_s, self.all_seconds, self.trainer.settings.workers)

    def _announce(self, index: int, first_step: int) -> None:
        """Write a description of a stage to train.log and to the report."""
        trainer = self.trainer
        stage, data = trainer.settings.stages[index], trainer.data_of(index)
        text = (
            f"stage {stage.name} ({index + 1} of {len(trainer.settings.stages)}): steps {first_step + 1} to {first_step + stage.steps}, "
            f"{data['clips']} clips of {data['frames']} frames {data['width']}x{data['height']}, {losses_in_words(stage)}, lr {stage.lr} {stage.lr_schedule}"
        )
        if stage.crop_latents and min(data["height"], data["width"]) < stage.crop_latents * trainer.teacher.spec.space_ratio:
            taken = "whole clips" if trainer.crops[index] is None else f"{data['width']}x{data['height']} of them"
            text += f"; clips are smaller than the crop of {stage.crop_latents} latents: {taken}"
        self._log(text)
        self.report.note(text)

    def _log(self, text: str) -> None:
        _append(self.folder.log, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}")


def waits_in_words(waited_s: float, spent_s: float, workers: int) -> str:
    """Describe the share of time that steps waited for data, with ways to shorten it; "" if they hardly waited."""
    if waited_s <= WORTH_SAYING * spent_s:
        return ""
    share = f"steps waited {waited_s / spent_s:.0%} of their time for data"
    return f"{share}; --workers {max(2 * workers, 2)} reads more ahead, and cache-latents decodes no video while it trains"


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
