"""The outputs of a run: sample strips, report.html, and model/ with its card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from turbovaed_cli.errors import CheckFailedError
from turbovaed_cli.files.sealed import write_manifest
from turbovaed_cli.files.whole import whole_folder, write_whole
from turbovaed_cli.latents.batch import Crop
from turbovaed_cli.machine.devices import empty_cache, is_out_of_memory, out_of_memory_in_words
from turbovaed_cli.metrics import psnr
from turbovaed_cli.models.decoding import lookahead_frames, num_params_of
from turbovaed_cli.models.teacher import decoder_params
from turbovaed_cli.models.trainable import Trainable, build_trainable
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.report.card import (
    CardFacts,
    TrainedStage,
    Training,
    card,
    data_in_words,
    facts_of_teacher,
    loads_alone,
    losses_in_words,
)
from turbovaed_cli.report.run_page import ShownClip, model_facts, report_of_run, write_report
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.training.schedule import position_at
from turbovaed_cli.training.trainer import Trainer
from turbovaed_cli.video import to_model, to_uint8

SHOWN_PIXELS = 256  # the longest side of a decoded sample


class Samples:
    """Samples of a run's first clip. Running out of memory ends the samples, not the run, with one warning."""

    def __init__(self, trainer: Trainer, report: Reporter = quiet) -> None:
        self.trainer, self.report = trainer, report
        self.fits = bool(trainer.settings.sample_every)  # whether samples are wanted, and memory was enough so far

    def draw(self, folder: RunDir) -> None:
        """Write samples/step_N.png with the columns teacher, student (EMA) and source."""
        if videos := self.videos():
            write_strip(folder.samples / f"step_{self.trainer.state.step:07d}.png", videos)

    def clips(self) -> list[ShownClip]:
        """Return the sample as clips for the report: one, or none."""
        videos = self.videos()
        return [_shown(videos)] if videos else []

    def videos(self) -> dict[str, Tensor]:
        """Return the videos (3, T, H, W) of `sample_videos`; empty if samples are not wanted or memory is too small."""
        if not self.fits:
            return {}
        try:
            return sample_videos(self.trainer)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = out_of_memory_in_words(error)
        # After the handler, as the error keeps the tensors of the failed decode alive until then.
        self.fits = False
        empty_cache(self.trainer.device)
        self.report.note(
            f"too little memory to decode a sample ({reason}): the run goes on without samples (`sample_every` 0)", warning=True
        )
        return {}


@torch.no_grad()
def sample_videos(trainer: Trainer) -> dict[str, Tensor]:
    """Return the first clip of the data as decoded by teacher and student (EMA), and its source: each (3, T, H, W) in [-1, 1].

    It is cut to the crop of the last step's stage and to SHOWN_PIXELS a side. If the student learns from crops, the teacher's
    decode of a whole clip may need several times the memory of a step.
    """
    at = position_at(trainer.settings.stages, max(trainer.state.step - 1, 0))
    batch = trainer.streams[at.index].batch_at(0, 0, 1, _shown_crop(trainer, at.index))
    source = batch.video.to(trainer.device)
    mean = batch.mean.to(trainer.device) if batch.mean is not None else trainer.teacher.encode(source).mean
    student = ema_student(trainer)
    return {"teacher": trainer.teacher.decode(mean)[0], "student": student(mean.float())[0], "source": source[0]}


def _shown_crop(trainer: Trainer, index: int) -> Crop | None:
    """Return the crop of that stage's clips that samples show; None for whole clips."""
    whole, crop, ratio = trainer.streams[index].size, trainer.crops[index], trainer.teacher.spec.space_ratio
    most = max(SHOWN_PIXELS // ratio, 2) * ratio
    height, width = (min(side, most) for side in (whole if crop is None else crop.pixels))
    return None if (height, width) == whole else Crop(height // ratio, width // ratio, ratio)


def write_run_report(folder: RunDir, trainer: Trainer, clips: Sequence[ShownClip] = ()) -> None:
    """Write report.html with the curves so far, and `clips` if there are any."""
    facts = model_facts(trainer.state.student, trainer.teacher)
    note = "One clip of the training data; it does not show how other data decode." if clips else ""
    write_report(
        folder.report, report_of_run(folder, facts, clips=clips, clips_note=note, lattice=trainer.teacher.spec.space_ratio)
    )


def _shown(videos: Mapping[str, Tensor]) -> ShownClip:
    """Return the videos of a sample as a clip of the report."""
    frames = {name: to_uint8(video) for name, video in videos.items()}
    scores = {name: {"psnr": psnr(to_model(frames[name]), to_model(frames["source"]))} for name in ("teacher", "student")}
    return ShownClip(
        "the first clip of the data", "training clip", frames["source"], frames["teacher"], frames["student"], scores=scores
    )


def ema_student(trainer: Trainer) -> Trainable:
    """Return a copy of the student with the averaged weights, in eval mode."""
    student = build_trainable(trainer.state.student.config)
    student.load_state_dict(trainer.state.ema)
    return student.to(trainer.device).eval()


def write_model(folder: RunDir, trainer: Trainer, spec: ModelSpec, config: Mapping[str, Any]) -> None:
    """Write model/: the EMA student for from_pretrained, with a card that states the teacher's licence.

    Raises CheckFailedError if a weight is not finite.
    """
    student = ema_student(trainer)
    if not all(torch.isfinite(value).all() for value in student.state_dict().values()):
        raise CheckFailedError("the averaged weights are not finite; model/ was not written")
    with whole_folder(folder.model, overwrite=True) as temporary:
        student.cpu().save_pretrained(temporary)
        write_manifest(temporary)  # without the card, which people may edit
        facts = card_facts(spec, trainer, config, loads_alone=loads_alone(temporary))
        (temporary / "README.md").write_text(card(facts), encoding="utf-8")


def card_facts(spec: ModelSpec, trainer: Trainer, config: Mapping[str, Any], *, loads_alone: bool = False) -> CardFacts:
    """Return what the model card states: the student, how it was trained, and the teacher's licence."""
    settings, teacher = trainer.settings, spec.teacher
    stages = [
        TrainedStage(
            stage.name,
            stage.steps,
            data_in_words(trainer.data_of(index)),
            losses_in_words(stage),
            f"{stage.lr} {stage.lr_schedule}",
        )
        for index, stage in enumerate(settings.stages)
    ]
    how = f"{settings.optimizer}, EMA {settings.ema_decay}, {settings.dtype}"
    return CardFacts(
        teacher=facts_of_teacher(
            spec, config["teacher"]["weights_sha256"], decoder_params(trainer.teacher), teacher.family.decoder_inputs()
        ),
        student_params=num_params_of(trainer.state.student),
        family=trainer.state.student.family,
        latent_channels=teacher.latent_channels,
        time_ratio=teacher.time_ratio,
        space_ratio=teacher.space_ratio,
        lookahead_frames=lookahead_frames(trainer.state.student),
        training=Training(settings.recipe, trainer.state.step, how, stages),
        loads_alone=loads_alone,
        member=spec.member,
    )


LABEL_HEIGHT = 18  # pixels above each column


def write_strip(path: Path, columns: Mapping[str, Tensor], num_rows: int = 3) -> None:
    """Write a PNG with one labelled column per video (3, T, H, W) in [-1, 1], and rows of frames spread over its time."""
    videos = {label: to_uint8(video) for label, video in columns.items()}  # (T, H, W, 3)
    frames, height, width, _ = next(iter(videos.values())).shape
    rows = np.linspace(0, frames - 1, min(num_rows, frames)).round().astype(int)
    image = Image.new("RGB", (width * len(videos), LABEL_HEIGHT + height * len(rows)), "white")
    draw = ImageDraw.Draw(image)
    for column, (label, video) in enumerate(videos.items()):
        draw.text((column * width + 4, 3), label, fill="black")
        for row, index in enumerate(rows):
            image.paste(Image.fromarray(video[index]), (column * width, LABEL_HEIGHT + row * height))
    write_whole(path, lambda temporary: image.save(temporary, format="PNG"))
