"""The fast form computes what the modules compute, and `decode` takes it where that is right."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from turbovaed_cli.metrics import psnr
from turbovaed_cli.models import kernels, winograd
from turbovaed_cli.models.kernels import Convolution, Preparation, Speedups, shuffle, shuffle_order
from turbovaed_cli.models.layers import ChannelRMSNorm, pixel_shuffle_3d
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.scratch import Scratch
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.winograd import minimal_filter, tiling


@pytest.fixture(scope="module")
def student() -> StudentDecoder:
    return load_student("tiny")


@pytest.fixture(scope="module")
def latents(student) -> torch.Tensor:
    return torch.randn(2, student.config.latent_channels, 4, 5, 6, generator=torch.Generator().manual_seed(0))


def frames(n: int, channels: int, height: int = 6, width: int = 7) -> torch.Tensor:
    x = torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(n))
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("size", "count"), [(2, 3), (3, 3), (4, 3), (4, 5)])
def test_minimal_filters_filter(size, count):
    inputs, weights, outputs = (torch.tensor(rows, dtype=torch.float64) for rows in minimal_filter(size, count))
    signal, taps = torch.randn(size + count - 1, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
    filtered = outputs @ ((weights @ taps) * (inputs @ signal))
    assert torch.allclose(filtered, signal.unfold(0, count, 1) @ taps, atol=1e-12)


def test_tilings_cover_every_frame_with_fewest_products():
    def products(tiles):
        return sum((size + 2) * count for size, count in tiles)

    for total in range(1, 13):
        tiles = tiling(total, 3)
        assert sum(size * count for size, count in tiles) == total
        others = itertools.product(range(total + 1), range(total // 2 + 1), range(total // 3 + 1))
        assert products(tiles) == min(3 * a + 4 * b + 5 * c for a, b, c in others if a + 2 * b + 3 * c == total)
    assert tiling(9, 3) == ((3, 3),) and tiling(9, 2) == ((2, 4), (1, 1))


@pytest.mark.parametrize(
    "speedups",
    [Speedups(), Speedups(space_elements=0), Speedups(winograd=False), Speedups(packed=False), Speedups(False, False)],
    ids=str,
)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "groups"), [(64, 70, 3, 1), (4, 3, 3, 1), (16, 16, 5, 16), (8, 12, 1, 1)]
)
def test_convolutions_are_those_of_torch(speedups, channels, outputs, kernel, groups):
    torch.manual_seed(0)
    convolution = nn.Conv3d(channels, outputs, kernel, groups=groups).requires_grad_(False)
    fast = Convolution(convolution.weight, convolution.bias, groups, torch.float32, speedups, Scratch())
    for n in (kernel - 1, kernel, kernel + 1, kernel + 7):
        x, reach = frames(n, channels), kernel // 2
        for pad_height in (True, False):
            made = fast(x, pad_height=pad_height)
            if n < kernel:
                assert made.shape[:2] == (0, outputs)
                continue
            around = functional.pad(x.movedim(1, 0)[None], (reach, reach, *[reach * pad_height] * 2))
            wanted = convolution(around)[0].movedim(0, 1)
            assert made.shape == wanted.shape and torch.allclose(made, wanted, atol=2e-5)


@pytest.mark.parametrize("size", [(6, 7), (8, 8), (13, 4)], ids=str)
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_tiles_in_space_are_the_convolution(threads, taps, size, monkeypatch, set_threads):
    """Whole tiles and cut ones, a few rows and a few frames at a time, with and without padding, from a frame that is no whole block."""
    for name, value in (("_TILES", 4), ("_FRAMES", 2)):
        monkeypatch.setattr(winograd, name, value)
    monkeypatch.setattr(kernels, "_WORTH_TILES_IN_SPACE", 1)
    set_threads(threads)
    torch.manual_seed(0)
    convolution = nn.Conv3d(8, 12, (taps, 3, 3)).requires_grad_(False)
    weights = convolution.weight, convolution.bias, 1, torch.float32
    fast = Convolution(*weights, Speedups(space_channels=1), Scratch())
    x = frames(7, 8, size[0] + 1, size[1])[:, :, 1:]
    for pads in ((True, True), (False, True), (False, False)):
        made = fast(x, pad_height=pads[0], pad_width=pads[1])
        around = functional.pad(x.movedim(1, 0)[None], (*[int(pads[1])] * 2, *[int(pads[0])] * 2))
        wanted = convolution.double()(around.double())[0].movedim(0, 1)
        assert made.shape == wanted.shape and (made - wanted).abs().max() < 1e-5
    assert fast.prepared() and not fast._ready
    fast.forget()
    assert not fast.prepared()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_preparing_is_norm_and_activation(dtype):
    x = frames(3, 8).to(dtype)
    for name, activation in (("relu", nn.ReLU()), ("silu", nn.SiLU())):
        out = torch.empty_like(x)
        Preparation(name).write(x, out, Scratch())
        wanted = activation(ChannelRMSNorm()(x[:, :, None].float()))[:, :, 0]
        assert torch.allclose(out.float(), wanted, atol=1e-5 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize(("time", "space"), [(1, 2), (2, 2), (2, 1)])
def test_shuffling_outputs_in_its_own_order_is_the_decoupled_shuffle(time, space):
    made = frames(5, 6 * time * space**2)
    order = shuffle_order(6 * time * space**2, time, space)
    wanted = pixel_shuffle_3d(made.movedim(1, 0)[None], time, space)[0].movedim(0, 1)
    assert wanted.shape[:2] == (5 * time, 6)
    assert torch.equal(shuffle(made[:, order].contiguous(memory_format=torch.channels_last), time, space), wanted)


def test_decode_takes_the_fast_form_unless_gradients_or_the_switch_say_otherwise(student, latents):
    with torch.no_grad():
        slow, fast = student(latents), student.decode(latents).sample
        assert not torch.equal(slow, fast) and (slow - fast).abs().max() <= 1e-5
        student.fast = False
        assert torch.equal(student.decode(latents).sample, slow)
        student.fast = None
    with_gradients = student.decode(latents).sample
    assert with_gradients.requires_grad and torch.equal(with_gradients, slow)


def test_changed_weights_are_seen(student, latents):
    changed = copy.deepcopy(student)
    with torch.no_grad():
        before = changed.decode(latents).sample
        changed.conv_out.conv.bias += 0.25
        after = changed.decode(latents).sample
        assert torch.allclose(after, before + 0.25, atol=1e-5)
        changed.load_state_dict(student.state_dict())
        assert torch.equal(changed.decode(latents).sample, before)
        assert changed.to(torch.float64).decode(latents.double()).sample.dtype == torch.float64
        assert torch.equal(student.decode(latents).sample, before)


def test_modes_threads_and_clips_do_not_disturb_each_other(student, latents):
    with torch.no_grad():
        wanted = student(latents)
    with torch.inference_mode():
        student.decode(latents)
    larger = torch.cat([latents, latents], dim=3)

    def decode(z):
        with torch.no_grad():
            return [student.decode(z).sample for _ in range(6)]

    with ThreadPoolExecutor(2) as pool:
        ours, theirs = pool.submit(decode, latents), pool.submit(decode, larger)
        assert all((video - wanted).abs().max() <= 1e-5 for video in ours.result())
        assert all(torch.equal(video, theirs.result()[0]) for video in theirs.result())


def test_half_precision_that_the_cpu_lacks_is_computed_without_packing(student, latents):
    with torch.no_grad():
        video = FastDecoder(student, torch.float16).decode(latents[:1, :, :2])
        assert (video.float() - student(latents[:1, :, :2])).abs().max() < 0.05


def test_pieces_of_a_whole_clip_are_put_together(student, latents):
    with torch.no_grad():
        whole = student(latents)
    for pieces in ((0, 0), (1, 0), (3, 2), (0, 1)):
        assert (FastDecoder(student).decode(latents, *pieces) - whole).abs().max() <= 1e-5


def psnr_of(video, wanted):
    return float(psnr(video[0].float().clamp(-1, 1), wanted[0].clamp(-1, 1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [1, 4])
def test_half_precision_is_no_further_from_fp32_than_the_modules_in_it(student, latents, dtype, frames):
    latents = latents[:, :, :frames]
    with torch.no_grad():
        wanted, rounded = student(latents), FastDecoder(student, dtype).decode(latents)
        published = copy.deepcopy(student).to(dtype)(latents.to(dtype))
    assert rounded.dtype == dtype
    assert psnr_of(rounded, wanted) > psnr_of(published, wanted) - 0.5


def test_half_precision_adds_up_in_fp32(student, latents):
    """Of many branches, each rounded sum loses some of what the branches before it added; so do the products of tiles."""
    convolution, x = nn.Conv3d(64, 64, 3, padding=(0, 1, 1)), frames(6, 64)
    errors = {}
    with torch.no_grad():
        wanted = convolution(x.movedim(1, 0)[None])[0].movedim(0, 1)
        for wide in (True, False):
            weights = convolution.weight, convolution.bias, 1, torch.bfloat16
            made = Convolution(*weights, Speedups(wide_sums=wide), Scratch())(x, pad_height=True)
            assert made.dtype == (torch.float32 if wide else torch.bfloat16)
            errors[wide] = (made - wanted).square().mean()
        whole = student(latents)
        found = {wide: FastDecoder(student, torch.bfloat16, Speedups(wide_sums=wide)).decode(latents) for wide in (True, False)}
    assert errors[True] < 0.9 * errors[False]
    assert psnr_of(found[True], whole) > psnr_of(found[False], whole)


def test_a_stream_in_half_precision_gives_the_frames_of_the_whole_clip(student, latents):
    fast = FastDecoder(student, torch.bfloat16)
    stream = StreamingDecoder(fast)
    with torch.no_grad():
        made = torch.cat([*(stream.push(piece) for piece in latents.split(1, dim=2)), stream.finish()], dim=2)
        whole = fast.decode(latents)
    assert made.dtype == torch.bfloat16 and psnr_of(made, whole.float()) > 40
