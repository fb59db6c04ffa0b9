"""The decode of tiny pipelines with offloading to the fake device: which models are on it then, and where the frames are.

Schedulers read timesteps back, which fake tensors do not have: so the models are called in the order of a pipeline.
"""

import logging
from typing import Any
from unittest import mock

import torch
from tiny_pipelines import student_of, tiny_pipeline, vae_of
from torch import Tensor, nn

from fake_cuda.device import device, metered
from turbovaed_cli import StudentVae, attach_student
from turbovaed_cli.models.streaming import decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.pipelines import within

logging.getLogger("diffusers").setLevel(logging.ERROR)
_FREE = 10**9
ON, OFF = {"cuda"}, {"cpu"}


def of(module: nn.Module) -> set[str]:
    """The kinds of devices that the weights of a module are on."""
    return {weight.device.type for weight in module.parameters()}


class Watched:
    """An LTX pipeline, and the devices of its models whenever the student decodes."""

    def __init__(self, *, attach: bool, with_encoder: bool = False) -> None:
        vae = vae_of("ltx")
        self.student = student_of("ltx", vae)
        if with_encoder:
            self.student = StudentVae.of(self.student, vae)
        self.pipe = tiny_pipeline("ltx", vae if attach else self.student).pipe
        self.attached = attach_student(self.pipe, self.student) if attach else None
        self.seen: list[tuple[set[str], ...]] = []  # devices of the VAE, the transformer and the student

    def decoded(self, *, encode: bool = False) -> Tensor:
        """Let the models run as in a call: the encoder if it is asked for, the transformer, the decoder."""
        if encode:
            self.pipe.vae.encode(torch.zeros(1, 3, 1, 64, 64, device=device()))
        if hasattr(self.pipe.transformer, "_hf_hook"):
            self.pipe.transformer._hf_hook.pre_forward(self.pipe.transformer)
            assert of(self.pipe.transformer) == ON
        latents = torch.zeros(1, 8, 3, 2, 2, device=device())
        whole = StudentDecoder._decoded

        def streamed(*arguments: Any, **options: Any) -> Any:
            self._look()
            return decode_as_memory_allows(*arguments, **options)

        def called(student: StudentDecoder, z: Tensor) -> Tensor:
            self._look()
            return whole(student, z)

        with (
            torch.no_grad(),
            mock.patch.object(within, "decode_as_memory_allows", streamed),
            mock.patch.object(within, "free_memory_bytes", lambda _: _FREE),
            mock.patch.object(within, "pieces_within", lambda *_: (1, 0, False)),  # a rehearsal on meta, of which no fake is made
            mock.patch.object(StudentDecoder, "_decoded", called),
        ):
            frames: Tensor = self.pipe.vae.decode(latents, None, return_dict=False)[0]
        assert frames.shape == (1, 3, 17, 64, 64)
        return frames

    def _look(self) -> None:
        self.seen.append((of(self.pipe.vae), of(self.pipe.transformer), of(self.student)))


def attached_with_model_offload(*, encode: bool) -> None:
    """The transformer leaves the device before the decode, and so does the VAE if it encoded; the student enters and leaves."""
    with metered():
        watched = Watched(attach=True)
        watched.pipe.enable_model_cpu_offload(device=device())
        for _ in range(2):  # each call makes new hooks
            assert watched.decoded(encode=encode).device.type == "cuda"
            assert of(watched.student) == OFF
            watched.pipe.maybe_free_model_hooks()
        assert watched.seen == [(OFF, OFF, ON)] * 2, watched.seen


def attached_without_offload() -> None:
    """The student follows the pipeline to the device, and stays."""
    with metered():
        watched = Watched(attach=True)
        watched.pipe.to(device())
        assert watched.decoded().device.type == "cuda" and of(watched.student) == ON
        assert watched.seen == [(ON, ON, ON)], watched.seen


def attached_with_little_memory() -> None:
    """A video that takes more than half of the memory is collected on the CPU, and the decode is on the device."""
    with metered():
        watched = Watched(attach=True)
        watched.pipe.to(device())
        assert watched.attached is not None
        watched.attached.memory = 1_000_000
        assert watched.decoded().device.type == "cpu" and watched.seen[0][2] == ON


def as_vae_with_model_offload(*, with_encoder: bool) -> None:
    """The student is a model of the pipeline: it enters the device for the decode, and the transformer leaves it."""
    with metered():
        watched = Watched(attach=False, with_encoder=with_encoder)
        watched.pipe.enable_model_cpu_offload(device=device())
        assert watched.decoded(encode=with_encoder).device.type == "cuda"
        assert watched.seen == [(ON, OFF, ON)], watched.seen
        watched.pipe.maybe_free_model_hooks()
        assert of(watched.student) == OFF


CASES = {
    "attached, model offload": lambda: attached_with_model_offload(encode=False),
    "attached, model offload, after an encode": lambda: attached_with_model_offload(encode=True),
    "attached, no offload": attached_without_offload,
    "attached, little memory": attached_with_little_memory,
    "as vae, model offload": lambda: as_vae_with_model_offload(with_encoder=False),
    "with an encoder, model offload": lambda: as_vae_with_model_offload(with_encoder=True),
}
