"""Videos of any length are encoded piece by piece, in the numbers of the whole where the class allows it."""

import pytest
import torch
from golden import TEACHER_FILES, load_golden, write_teacher
from hypothesis import given, settings
from hypothesis import strategies as st

from turbovaed_cli.models.encoding import encoded, encodes_exactly, piece_lengths
from turbovaed_cli.models.teacher import Teacher, load_teacher

EXACT = ("tiny", "ltx", "cogvideox")
WINDOWED = ("hunyuan", "video-dc-ae")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, Teacher]:
    folder = tmp_path_factory.mktemp("teachers")
    golden = {name: str(write_teacher(load_golden(file), folder / name)) for name, file in TEACHER_FILES.items()}
    return {name: load_teacher(golden.get(name, name)).double() for name in (*EXACT, *WINDOWED)}


def video_for(teacher: Teacher, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(1, 3, frames, 32, 64, generator=generator, dtype=torch.float64) * 2 - 1


def made_up(teacher: Teacher, video: torch.Tensor) -> torch.Tensor:
    more = teacher.spec.frames.at_least(video.shape[2]) - video.shape[2]
    return torch.cat([video, video[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2)


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=5, deadline=None)
@given(pieces=st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(sum), at_once=st.integers(0, 20))
def test_causal_teachers_give_the_whole_clips_latents_in_any_pieces(name, teachers, pieces, at_once):
    teacher = teachers[name]
    video = video_for(teacher, sum(pieces))
    whole = teacher.encode(made_up(teacher, video)).mean
    assert encodes_exactly(teacher)
    made = torch.cat(list(encoded(teacher, video.split(pieces, dim=2), at_once)), dim=2)
    assert made.shape == whole.shape and (made - whole).abs().max() <= 1e-6
    assert torch.equal(teacher.encode(made_up(teacher, video)).mean, whole)  # it is left as it was


@pytest.mark.parametrize(
    ("name", "overlap"),
    [
        ("hunyuan", 4),
        ("hunyuan", 2),
        ("hunyuan", 1),
        pytest.param("video-dc-ae", 4, marks=pytest.mark.thorough),
        ("video-dc-ae", 1),
    ],
)
def test_elsewhere_windows_fade_into_each_other(name, overlap, teachers):
    """A video of one window is exact; every latent of a longer one is a mean of those of the windows it lies in."""
    teacher = teachers[name]
    assert not encodes_exactly(teacher)
    short = video_for(teacher, 10)
    assert torch.equal(torch.cat(list(encoded(teacher, [short], 33)), dim=2), teacher.encode(made_up(teacher, short)).mean)

    spec = teacher.spec
    length = spec.frames.at_least(spec.pixel_frames(2 * overlap))  # shorter ones share half of their latents
    video = video_for(teacher, 2 * length)
    made = torch.cat(list(encoded(teacher, video.split(7, dim=2), length)), dim=2)
    assert made.shape[2] == spec.latent_frames(spec.frames.at_least(2 * length))
    first = teacher.encode(video[:, :, :length]).mean
    begin = spec.latent_frames(length) - overlap
    assert torch.equal(made[:, :, :begin], first[:, :, :begin])
    second = teacher.encode(video[:, :, begin * spec.time_ratio :][:, :, :length]).mean
    low, high = (
        torch.minimum(first[:, :, begin:], second[:, :, :overlap]),
        torch.maximum(first[:, :, begin:], second[:, :, :overlap]),
    )
    shared = made[:, :, begin : begin + overlap]
    assert ((shared >= low - 1e-9) & (shared <= high + 1e-9)).all()
    # The first latent of a causal window counts for nothing, and of one latent that is all.
    assert torch.allclose(shared, first[:, :, begin:]) == (overlap == 1 and spec.frames.first == 1)


def test_pieces_get_shorter_and_no_longer_than_the_video(teachers):
    lengths = {name: piece_lengths(teachers[name], 33) for name in (*EXACT, *WINDOWED)}
    assert lengths == {
        "tiny": [32, 16, 8, 4, 2], "ltx": [32, 16, 8], "cogvideox": [8], "hunyuan": [33, 17, 5], "video-dc-ae": [36, 20, 8],
    }  # fmt: skip
    assert piece_lengths(teachers["tiny"], 5) == [4, 2] and piece_lengths(teachers["ltx"], 0, 1) == [8]
    assert piece_lengths(teachers["ltx"], 33, 25) == [24, 8] and piece_lengths(teachers["ltx"], 33, 26)[0] == 32
    assert piece_lengths(teachers["hunyuan"], 0, 22) == [25, 17, 5] and piece_lengths(teachers["hunyuan"], 0, 1) == [5]
