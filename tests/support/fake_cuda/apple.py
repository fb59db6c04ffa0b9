"""What runs on an Apple GPU, which has no float64: the embedded pair on a fake one, and full-size steps of another pair."""

from dataclasses import replace
from functools import partial
from unittest import mock

import torch

from fake_cuda import decoding, training
from fake_cuda.device import device, metered
from fake_cuda.memory import shipped
from fake_cuda.networks import trainer_of
from turbovaed_cli.metrics import ssim
from turbovaed_cli.reporting import quiet


def fits_a_start(model: str) -> None:
    """The least squares of a start are solved in fp64: on the CPU."""
    with metered(), mock.patch("turbovaed_cli.training.trainer.are_flat", lambda _: False):
        trainer = trainer_of(model, shipped("fast"))
        with mock.patch("turbovaed_cli.training.first_clips.NUM_CLIPS", 2):
            trainer.set_start(quiet)
        training.check_places_of_weights(trainer)


def fp64_on_the_device() -> None:
    """A control: SSIM of `eval` in fp64, which is for the CPU."""
    with metered():
        video = torch.zeros(3, 2, 32, 32, device=device())
        ssim(video, video)


EVERYTHING = replace(training.EVERYTHING, crop_latents=12, gradient_checkpointing=True)
CONTROLS = {"fp64 on the device": (fp64_on_the_device, "makes float64 on mps, which has none")}
CASES = {
    "tiny fp32 everything": partial(training.learns, "tiny", training.settings(EVERYTHING, "fp32")),
    "tiny fp16 ssim adamw": partial(training.learns, "tiny", training.settings(training.STAGE, "fp16", "adamw")),
    "ltx bf16 ssim features cached": partial(
        training.learns, "ltx", training.settings(replace(training.STAGE, feature_weight=1.0), "bf16"), cached=True
    ),
    "tiny fitted start": partial(fits_a_start, "tiny"),
    "tiny samples": partial(decoding.samples, "tiny"),
    "tiny windows": partial(decoding.windows, "tiny"),
    "tiny encoded": partial(decoding.encodes, "tiny"),
    "tiny channels last fp16": partial(decoding.decodes, "tiny", "channels last", "fp16"),
    "hunyuan channels last fp32": partial(decoding.decodes, "hunyuan", "channels last", "fp32"),
    **{name: call for name, (call, _) in CONTROLS.items()},
}
