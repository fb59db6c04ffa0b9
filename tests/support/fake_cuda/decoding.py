"""Encoding, every form of decoding, and the metrics of `eval`, of full-size networks on the fake device."""

from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fake_cuda.device import device, metered
from fake_cuda.memory import IN_FULL, shipped
from fake_cuda.networks import lpips, student_of, teacher_of, trainer_of
from turbovaed_cli.metrics import flicker, lpips_video, psnr, ssim
from turbovaed_cli.models.encoding import encoded
from turbovaed_cli.models.kernels import Speedups
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.reconstruction.windows import reconstruct_window
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.training.outputs import Samples

SIZE = 128  # pixels a side: operations take as long for more
FORMS = {
    "plain": None,
    "channels last": Speedups(winograd=False, packed=False),
    "winograd": Speedups(winograd=True, packed=False),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def latents_of(student: StudentDecoder, frames: int, dtype: torch.dtype) -> Tensor:
    side = SIZE // int(student.spatial_compression_ratio)
    return torch.zeros(1, student.config.latent_channels, frames, side, side, device=device(), dtype=dtype)


def check_video(video: Tensor, frames: int) -> None:
    assert video.device.type == device().type and not video.requires_grad
    assert video.shape == (1, 3, frames, SIZE, SIZE)


def decodes(model: str, form: str, precision: str) -> None:
    """A whole clip by one form of a student."""
    dtype = DTYPES[precision]
    with metered() as meter, torch.no_grad():
        student = student_of(model, dtype)
        latents = latents_of(student, 3, dtype)
        speedups = FORMS[form]
        decode = student if speedups is None else FastDecoder(student, speedups=speedups).decode  # made ready beforehand
        with meter.nothing_on_the_cpu():
            video = decode(latents)
        check_video(video, student.pixel_frames(3))
        assert video.dtype == dtype


def decodes_as_pipelines_do() -> None:
    """`student.decode`, without gradients, as diffusers' pipelines call it: with the modules, not the form for a CPU."""
    with metered(), torch.no_grad():
        student = student_of("ltx")
        check_video(student.decode(latents_of(student, 2, torch.float32)).sample, student.pixel_frames(2))
        assert student.fast_form_of is None


def encodes(model: str) -> None:
    """A video that comes in pieces, through the teacher's encoder."""
    with metered() as meter:
        teacher = teacher_of(MODELS[model])
        frames = teacher.spec.frames.at_least(17)
        pieces = torch.zeros(1, 3, frames, SIZE, SIZE, device=device()).split(9, dim=2)
        with meter.nothing_on_the_cpu():
            latents = torch.cat(list(encoded(teacher, pieces)), dim=2)
        assert latents.shape[2] == teacher.spec.latent_frames(frames) and latents.device.type == device().type


class Flags(TorchDispatchMode):
    """Keep the flags for TF32, of convolutions and of matrix products, that every convolution on the device is started under."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten.convolution.default:
            assert args[0].device.type == device().type
            self.seen.add((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return function(*args, **(kwargs or {}))


def teaches_in_tf32() -> None:
    """A teacher that only teaches computes in TF32, but for `decode`; on an older card, in bf16 and without leave, not at all."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with metered():
        teacher = teacher_of(MODELS["tiny"])
        taps = [pair.teacher_tap for pair in MODELS["tiny"].student.pairs]
        video = torch.zeros(1, 3, 9, 64, 64, device=device())
        latents = teacher.encode(video).mean
        calls = {
            "encode": lambda: teacher.encode(video),
            "features": lambda: teacher.features(latents, taps),
            "decode_with_features": lambda: teacher.decode_with_features(latents, taps),
            "decode": lambda: teacher.decode(latents),
        }

        def flags_of(call: str) -> tuple[bool, bool]:
            with Flags() as flags:
                calls[call]()
            (seen,) = flags.seen  # the same in every convolution
            assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
            return seen

        def check(capability: tuple[int, int], taught: bool) -> None:
            with mock.patch("torch.cuda.get_device_capability", lambda _: capability):
                found = {call: flags_of(call) for call in calls}
            assert found == {call: (taught and call != "decode",) * 2 for call in calls}, found

        check((9, 0), False)
        teacher.allows_tf32 = True
        check((8, 0), True)
        check((7, 5), False)
        teacher.vae.to(torch.bfloat16)
        check((8, 0), False)


def streams(model: str) -> None:
    """Latents in two pieces through the student, and what is left at the end."""
    with metered() as meter, torch.no_grad():
        student = student_of(model)
        decoder = StreamingDecoder(student)
        latents = latents_of(student, 4, torch.float32)
        with meter.nothing_on_the_cpu():
            made = [*map(decoder.push, latents.split(2, dim=2)), decoder.finish()]
        check_video(torch.cat(made, dim=2), student.pixel_frames(4))


def streams_in_stripes() -> None:
    """The embedded student by stripes of latent rows."""
    with metered(), torch.no_grad():
        student = student_of("tiny")
        made = list(StreamingDecoder(student, rows=8).decode([latents_of(student, 2, torch.float32)]))
        check_video(torch.cat(made, dim=2), student.pixel_frames(2))


def windows(model: str) -> None:
    """What `reconstruct --compare` and `eval` do of a clip: uint8 frames in, teacher's and student's version out, on the CPU."""
    with metered():
        teacher, student = teacher_of(MODELS[model]), student_of(model)
        frames = np.zeros((teacher.spec.frames.at_least(9), SIZE - 5, SIZE, 3), dtype=np.uint8)
        for video in reconstruct_window(frames, teacher, [student], with_teacher=True):
            assert video.shape == (3, len(frames), SIZE - 5, SIZE) and video.device.type == "cpu"


def samples(model: str) -> None:
    """Those of a run, as the report shows them: the clips are on the CPU, of 256 pixels a side at most."""
    with metered():
        trainer = trainer_of(model, shipped("fast"))
        videos = Samples(trainer).videos()
        assert videos.keys() == {"teacher", "student", "source"}
        for video in videos.values():
            assert not video.requires_grad and video.device.type == device().type and max(video.shape[-2:]) <= 256


def metrics() -> None:
    """On the device: in fp64, which CUDA has."""
    with metered() as meter:
        video, source = (torch.zeros(3, 3, SIZE, SIZE, device=device()) for _ in range(2))
        with meter.nothing_on_the_cpu():
            for measure in (psnr, ssim, flicker):
                assert isinstance(measure(video, source), float)
        for backbone in ("alex", "vgg"):
            network = lpips(backbone).to(device())
            with meter.nothing_on_the_cpu():
                assert lpips_video(network, video, source) == 0.5  # what is read back from a fake tensor


CASES = {
    **{
        f"{model} {form} {precision}": partial(decodes, model, form, precision)
        for model, form, precision in (
            ("ltx", "plain", "fp16"), ("ltx", "channels last", "fp32"), ("ltx", "winograd", "bf16"),
            ("hunyuan", "plain", "bf16"), ("hunyuan", "channels last", "fp16"), ("cogvideox", "channels last", "bf16"),
            ("video-dc-ae", "channels last", "fp16"), ("tiny", "winograd", "fp32"),
        )
    },
    "as pipelines decode": decodes_as_pipelines_do,
    # One teacher for each way of encoding: frames carried over, the class's own chunks, windows.
    **{f"{model} encoded": partial(encodes, model) for model in ("ltx", "cogvideox", "video-dc-ae")},
    **{f"{model} streamed": partial(streams, model) for model in ("ltx", "tiny")},
    "tiny in stripes": streams_in_stripes,
    **{f"{model} windows": partial(windows, model) for model in IN_FULL},
    "tiny samples": partial(samples, "tiny"),
    "teaching in TF32": teaches_in_tf32,
    "metrics": metrics,
}  # fmt: skip
