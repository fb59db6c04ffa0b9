"""Streaming gives the whole clip's frames, as soon as they are determined, in memory that does not grow."""

from pathlib import Path

import pytest
import torch
from golden import NAMES, load_golden
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovaed_cli.errors import FrameCountError, ShapeError
from turbovaed_cli.models.kernels import Convolution, Speedups
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder, decode_as_memory_allows
from turbovaed_cli.models.student import StudentDecoder

LOOKAHEAD = {"ltx": 115, "hunyuan": 76, "cogvideox": 62, "video-dc-ae": 74, "tiny": 15}  # pixel frames, of the golden nets


@pytest.fixture(scope="module")
def students() -> dict[str, StudentDecoder]:
    """Small ones of all four architectures, and the embedded one, in fp64, where nothing but an error in the streaming shows.

    Their last norms have four channels: over a single one it is a step, which makes much of a last bit.
    """
    found = {"tiny": load_student("tiny").double()}
    for name in NAMES:
        torch.manual_seed(0)
        config = load_golden(name).meta["student_config"]
        if config["patch_size"] == 4:
            config = config | {"decoder_block_out_channels": [64, *config["decoder_block_out_channels"][1:]]}
        found[name] = build_student(config).double().eval()
    return found


def latents_for(student: StudentDecoder, frames: int, height: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, student.config.latent_channels, frames, height, 2, generator=generator, dtype=student.dtype)


def stream(
    student: StudentDecoder | FastDecoder, latents: torch.Tensor, chunks: list[int], rows: int = 0, spill: Path | None = None
) -> torch.Tensor:
    decoder = StreamingDecoder(student, rows=rows, spill=spill)
    return torch.cat([*(decoder.push(piece) for piece in latents.split(chunks, dim=2)), decoder.finish()], dim=2)


@pytest.mark.parametrize("name", LOOKAHEAD)
@settings(max_examples=8, deadline=None)
@given(chunks=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(sum), height=st.integers(1, 3), rows=st.integers(0, 2))
def test_any_pieces_give_the_whole_clips_frames(name, students, chunks, height, rows):
    """In time and in rows, in fp64, with fewer multiplications for time as well."""
    student = students[name]
    latents = latents_for(student, sum(chunks), height)[..., :1]
    with torch.no_grad():
        whole = student(latents)
    fast = FastDecoder(student, speedups=Speedups(winograd_channels=1, space_channels=1))
    streamed = stream(fast, latents, chunks, rows)
    assert streamed.shape == whole.shape
    assert (streamed - whole).abs().max() <= 1e-8


@pytest.mark.parametrize("name", LOOKAHEAD)
def test_frames_come_out_when_they_are_determined_and_not_later(name, students):
    """Other latents behind those pushed change nothing of what came out, and do change the very next frame."""
    student = students[name]
    latents = latents_for(student, 24)
    decoder = StreamingDecoder(student)
    early = decoder.push(latents[:, :, :20])
    assert decoder.lookahead_frames == LOOKAHEAD[name] == student.pixel_frames(20) - early.shape[2]
    other = torch.cat([latents[:, :, :20], latents[:, :, 20:] + 100], dim=2)
    with torch.no_grad():
        one, two = student(latents), student(other)
    ready = early.shape[2]
    assert torch.allclose(early, one[:, :, :ready], atol=1e-9) and torch.equal(one[:, :, :ready], two[:, :, :ready])
    assert not torch.equal(one[:, :, ready], two[:, :, ready])


def test_in_fp32_the_embedded_student_streams_within_a_hundred_thousandth():
    student = load_student("tiny")
    latents = latents_for(student, 9)
    with torch.no_grad():
        assert (stream(student, latents, [1, 2, 0, 6]) - student(latents)).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_may_lie_on_disk(dtype, tmp_path):
    student = load_student("tiny")
    fast, latents = FastDecoder(student, dtype), latents_for(student, 12, height=3).to(dtype)
    wanted = stream(fast, latents, [1, 4, 2, 5])
    assert torch.equal(stream(fast, latents, [1, 4, 2, 5], spill=tmp_path), wanted)
    assert torch.equal(stream(fast, latents, [1, 4, 2, 5], 2, tmp_path), stream(fast, latents, [1, 4, 2, 5], 2))
    assert not list(tmp_path.iterdir())  # the file has no name, and is gone with the process


def test_what_is_kept_does_not_grow_with_the_clip(students):
    student = students["tiny"]
    decoder, piece = StreamingDecoder(student), latents_for(student, 2)

    def kept() -> int:
        """Bytes of the storages that its stages hold: a view would hold all it was cut from."""
        tensors, stages = [], list(decoder._clips[0])
        while stages:
            stage = stages.pop()
            stages += getattr(stage, "branch", [])
            assert getattr(stage, "above", None) is None
            tensors += [*getattr(stage, "kept", {}).values(), *getattr(stage, "waiting", {}).values()]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    sizes = []
    for _ in range(30):
        decoder.push(piece)
        sizes.append(kept())
    assert 0 < sizes[10] == sizes[20] == sizes[29]


def test_finish_makes_it_ready_for_another_clip(students):
    student = students["hunyuan"]
    decoder, a, b = StreamingDecoder(student), latents_for(student, 3), latents_for(student, 4, seed=1)[..., :1]
    first = torch.cat([decoder.push(a), decoder.finish()], dim=2)
    second = torch.cat([decoder.push(b), decoder.finish()], dim=2)
    with torch.no_grad():
        assert torch.allclose(first, student(a), atol=1e-5) and torch.allclose(second, student(b), atol=1e-5)


def test_a_stream_may_begin_in_inference_mode_and_go_on_without(students):
    student = students["tiny"]
    latents = latents_for(student, 20)
    decoder = StreamingDecoder(student)
    with torch.inference_mode():
        first = decoder.push(latents[:, :, :8])
    rest = [decoder.push(piece) for piece in latents[:, :, 8:].split(4, dim=2)]
    with torch.no_grad():
        assert torch.allclose(torch.cat([first, *rest, decoder.finish()], dim=2), student(latents), atol=1e-9)


def test_a_decode_that_is_left_early_leaves_nothing_behind(students, tmp_path):
    student = students["tiny"]
    latents = latents_for(student, 9)
    decoder = StreamingDecoder(student, spill=tmp_path)
    wanted = torch.cat(list(decoder.decode(latents.split(4, dim=2))), dim=2)
    size = decoder._spill._end
    next(decoder.decode(latents.split(1, dim=2)))
    for _ in range(2):
        assert torch.equal(torch.cat(list(decoder.decode(latents.split(4, dim=2))), dim=2), wanted)
    assert decoder._spill._end == 0 < size or size == 0  # its places are used again


class RunsOut:
    """Convolutions that run out of memory at some of their calls."""

    def __init__(self, monkeypatch, at=(), frames=10**9):
        self.calls, at = 0, set(at)
        convolve = Convolution.__call__

        def counted(kernel, x, **options):
            self.calls += 1
            if self.calls in at or x.shape[0] > frames:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return convolve(kernel, x, **options)

        monkeypatch.setattr(Convolution, "__call__", counted)


@pytest.fixture(scope="module", params=["cogvideox", "video-dc-ae"])
def short_sighted(request) -> StudentDecoder:
    """A student of two blocks in fp64, which drops first frames or not: long clips soon leave its sight."""
    torch.manual_seed(0)
    config = load_golden(request.param).meta["student_config"] | {
        "latent_channels": 4, "decoder_block_out_channels": (8 if request.param == "cogvideox" else 64, 8),
        "decoder_layers_per_block": (1, 1, 1), "decoder_spatio_only": (False, False), "spatio_temporal_scaling": (True, True),
        "decoder_is_dw_conv": (False, False, True), "aligned_feature_projection_dim": (), "aligned_blks_indices": (),
    }  # fmt: skip
    return build_student(config).double().eval()


def test_a_piece_that_does_not_fit_is_decoded_in_halves_to_the_same_frames(short_sighted, monkeypatch):
    """Wherever the error comes: in the first piece, in the middle of the clip, at its end, and again in a smaller piece."""
    student = short_sighted
    latents = latents_for(student, 80)[..., :1]
    pieces = latents.split(8, dim=2)
    with monkeypatch.context() as patch:
        counted = RunsOut(patch)
        list(decode_as_memory_allows(student, pieces, 8))
    with torch.no_grad():
        whole = student(latents)
    middle = counted.calls // 2
    for at in ((2,), (middle,), (middle, middle + 9), (counted.calls - 9,), (counted.calls - 1,)):
        halved: list[tuple[int, int]] = []
        with monkeypatch.context() as patch:
            RunsOut(patch, at)
            made = list(decode_as_memory_allows(student, pieces, 8, smaller=lambda *frames: halved.append(frames)))  # noqa: B023
        streamed = torch.cat(made, dim=2)
        assert halved == [(8, 4), (4, 2)][: len(at)], at
        assert streamed.shape == whole.shape and (streamed - whole).abs().max() <= 1e-8, at


def test_what_was_decoded_is_not_decoded_again_from_the_beginning(short_sighted, monkeypatch):
    """After an error, only the latents that what is kept depends on go through once more."""
    latents, pushed = latents_for(short_sighted, 200)[..., :1], []
    push = StreamingDecoder.push

    def watched(decoder, piece):
        pushed.append(piece.shape[2])
        if len(pushed) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return push(decoder, piece)

    monkeypatch.setattr(StreamingDecoder, "push", watched)
    made = torch.cat(list(decode_as_memory_allows(short_sighted, latents.split(8, dim=2), 8)), dim=2)
    assert made.shape[2] == short_sighted.pixel_frames(200) and sum(pushed) < 200 + 60


def test_latents_are_asked_for_once_and_their_own_errors_are_not_taken_for_a_piece(short_sighted, monkeypatch):
    student, asked = short_sighted, []

    def latents(fails_at: int):
        for number in range(6):
            if number == fails_at:
                raise torch.OutOfMemoryError("CUDA out of memory: the encoder")
            asked.append(number)
            yield latents_for(student, 4, seed=number)[..., :1]

    with monkeypatch.context() as patch:
        RunsOut(patch, (40,))
        list(decode_as_memory_allows(student, latents(-1), 4))
    assert asked == [*range(6)]
    halved: list[tuple[int, int]] = []
    with pytest.raises(torch.OutOfMemoryError, match="the encoder"):
        list(decode_as_memory_allows(student, latents(3), 4, smaller=lambda *frames: halved.append(frames)))
    assert halved == []
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        RunsOut(patch, frames=2)  # one latent frame is more
        list(decode_as_memory_allows(student, latents(-1), 4, smaller=lambda *frames: halved.append(frames)))
    assert halved == [(4, 2), (2, 1)]


def test_wrong_chunks_are_refused(students):
    student = students["tiny"]
    decoder = StreamingDecoder(student)
    with pytest.raises(FrameCountError, match="no latents were pushed"):
        decoder.finish()
    with pytest.raises(ShapeError, match="this student decodes"):
        decoder.push(torch.zeros(1, 31, 2, 2, 2))
    decoder.push(latents_for(student, 2))
    with pytest.raises(ShapeError, match="only the frames may differ"):
        decoder.push(latents_for(student, 2)[..., :1])
    assert decoder.push(latents_for(student, 0)).shape == (1, 3, 0, 8, 16)
