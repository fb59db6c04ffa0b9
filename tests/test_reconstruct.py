"""Every frame comes back, at its size, rate and with its sound, in memory that does not grow with the video."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_video
from safetensors.torch import save_file

from turbovaed_cli.errors import OutputExistsError, SettingsError, ShapeError, VideoError
from turbovaed_cli.models.memory import Pieces
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.windows import crossfade, pad_to_valid, window_frames, windows_of
from turbovaed_cli.reconstruct import reconstruct, reconstructed_frames
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import ffmpeg, probe, read_frames, to_model, to_uint8


@pytest.fixture(scope="module")
def pair(ltx_student, ltx_teacher):
    return load_pair(str(ltx_student), str(ltx_teacher))


@pytest.mark.parametrize("frames", [1, 2, 17, 18, 40])
def test_every_frame_comes_back_at_its_size(frames, pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", size="70x50", frames=frames)
    result = reconstruct(source, tmp_path / "out.mp4", pair)
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.width, info.height, info.fps) == (frames, 70, 50, 25)
    assert result.num_frames == frames


def test_odd_sizes_sound_pixel_shape_and_rate_stay(pair, tmp_path):
    source = tmp_path / "in.mkv"
    make = ["-f", "lavfi", "-i", "testsrc=size=51x37:rate=30000/1001:duration=1", "-f", "lavfi", "-i", "sine=duration=1"]
    subprocess.run(
        [ffmpeg.executable(), "-v", "error", *make, "-vf", "setsar=4/3", "-pix_fmt", "yuv444p", "-c:a", "aac", source], check=True
    )
    reconstruct(source, tmp_path / "out.mp4", pair)
    before, after = probe(source), probe(tmp_path / "out.mp4")
    for name in ("num_frames", "width", "height", "fps", "sample_aspect_ratio", "audio_codec"):
        assert getattr(after, name) == getattr(before, name), name


def test_a_short_video_is_the_plain_decode_of_its_latents(pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", size="64x64", frames=17)
    frames = np.stack(list(read_frames(source)))
    found = np.stack(list(reconstructed_frames(iter(frames), 64, 64, pair, ReconstructSettings())))
    with torch.no_grad():
        wanted = pair.student(pair.teacher.encode(to_model(frames)[None]).mean)[0]
    assert np.abs(found.astype(int) - to_uint8(wanted)).max() <= 1 and (found != to_uint8(wanted)).mean() < 1e-3


def test_a_long_video_has_no_seams(pair, tmp_path, monkeypatch):
    """In the smallest pieces, in stripes and with what is kept on disk: the plain decode of the plain encode of the whole."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (83, 64, 96, 3), dtype=np.uint8)
    whole = torch.cat([to_model(frames), to_model(frames[-1:]).expand(-1, 6, -1, -1)], dim=1)
    with torch.no_grad():
        wanted = to_uint8(pair.student(pair.teacher.encode(whole[None]).mean)[0, :, :83])
    module = sys.modules["turbovaed_cli.reconstruct"]  # the package's attribute of that name is the verb
    for pieces in (Pieces(8, 1, 0, False, 0), Pieces(24, 2, 1, True, 0)):
        monkeypatch.setattr(module, "plan_pieces", lambda *_, pieces=pieces: pieces)
        found = np.stack(list(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings(), aside=tmp_path)))
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).max() <= 1 and (found != wanted).mean() < 1e-3


def test_compare_shows_source_teacher_and_student_side_by_side(pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", size="64x64", frames=9)
    reconstruct(source, tmp_path / "out.mp4", pair, ReconstructSettings(compare=True))
    info = probe(tmp_path / "out.mp4")
    assert (info.width, info.height, info.num_frames) == (192, 64, 9)
    frames = np.stack(list(read_frames(source)))
    shown = next(reconstructed_frames(iter(frames), 64, 64, pair, ReconstructSettings(compare=True)))
    assert np.array_equal(shown[20:, :64], frames[0][20:])  # below the label


def test_latents_become_a_video(pair, tmp_path):
    latents = torch.randn(6, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, tmp_path / "z.safetensors")
    result = reconstruct(tmp_path / "z.safetensors", tmp_path / "out.mp4", pair, ReconstructSettings(fps=12))
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (17, 64, 96, 12)
    assert result.fps == Fraction(12)


def test_long_latents_are_decoded_in_pieces_equal_to_the_whole(pair, tmp_path, monkeypatch):
    module = sys.modules["turbovaed_cli.reconstruct"]
    latents = torch.randn(6, 24, 2, 1, generator=torch.Generator().manual_seed(0))
    save_file({"latents": latents}, tmp_path / "z.safetensors")
    written = []
    for pieces in (Pieces(0, 5, 0, False, 0), Pieces(0, 100, 0, False, 0), Pieces(0, 1, 1, True, 0)):
        monkeypatch.setattr(module, "plan_pieces", lambda *_, pieces=pieces: pieces)
        out = tmp_path / f"{len(written)}.mp4"
        reconstruct(tmp_path / "z.safetensors", out, pair)
        written.append(np.stack(list(read_frames(out))))
    for other in written[1:]:
        assert written[0].shape == other.shape == (185, 64, 32, 3)
        assert np.abs(written[0].astype(int) - other).mean() < 0.05  # a rounding here and there, and what H.264 makes of it


def test_wrong_latents_are_refused(pair, tmp_path):
    save_file({"latents": torch.zeros(5, 3, 2, 2)}, tmp_path / "z.safetensors")
    with pytest.raises(ShapeError, match="5 channels"):
        reconstruct(tmp_path / "z.safetensors", tmp_path / "out.mp4", pair)
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(SettingsError, match=r"bad\.safetensors"):
        reconstruct(tmp_path / "bad.safetensors", tmp_path / "out.mp4", pair)
    assert not (tmp_path / "out.mp4").exists()


def test_a_truncated_video_gives_an_error_and_no_output(pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", "testsrc2", "96x80", 60, "-movflags", "+faststart")
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(VideoError, match="damaged"):
        reconstruct(source, tmp_path / "out.mp4", pair)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_an_output_that_is_there_stays(pair, tmp_path):
    (tmp_path / "out.mp4").write_text("precious")
    with pytest.raises(OutputExistsError):
        reconstruct(make_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", pair)
    assert (tmp_path / "out.mp4").read_text() == "precious"


# --- windows ---


@pytest.mark.parametrize("total", [1, 5, 8, 9, 13, 14, 30])
def test_windows_cover_every_frame_once_and_a_fade_of_equal_windows_changes_nothing(total):
    frames = [np.full((2, 2, 3), i, np.uint8) for i in range(total)]
    windows = list(windows_of(frames, 9, 4))
    assert [is_last for _, is_last in windows] == [False] * (len(windows) - 1) + [True]
    assert all(len(window) <= 9 for window, _ in windows)
    tensors = ((torch.from_numpy(window).permute(3, 0, 1, 2).float(), is_last) for window, is_last in windows)
    joined = torch.cat(list(crossfade(tensors, 4)), dim=1)
    assert torch.allclose(joined[0, :, 0, 0], torch.arange(total).float(), atol=1e-5)


def test_padding_repeats_edges_and_is_valid_for_the_teacher(pair):
    spec = pair.teacher.spec
    padded = pad_to_valid(torch.rand(3, 10, 33, 64), spec)
    assert padded.shape == (3, 17, 64, 64)
    spec.check_frames(padded.shape[1])
    assert torch.equal(padded[:, 9], padded[:, 16])
    assert torch.equal(padded[:, :, 32], padded[:, :, 63])


def test_larger_frames_get_shorter_windows(pair):
    spec = pair.teacher.spec
    assert window_frames(spec, 256, 256, 0, 8) == 33
    assert window_frames(spec, 1080, 1920, 0, 8) == 17
    assert window_frames(spec, 256, 256, 50, 8) == 57


PEAKS = """
import resource, sys
from pathlib import Path
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.reconstruct import reconstruct
pair = load_pair()
for number, source in enumerate(sys.argv[1:]):
    reconstruct(Path(source), Path(source + f".out{number}.mp4"), pair)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    """A video three times as long raises a process's peak by less than 10 %, and by far less than the frames between would take.

    One process for both, warm from a first: from one process to the next, hash seeds alone move the peak by as much.
    """
    width, height, lengths = 128, 96, (300, 900)
    sources = [make_video(tmp_path / f"{frames}.mp4", size=f"{width}x{height}", frames=frames, rate=24) for frames in lengths]
    made = subprocess.run([sys.executable, "-c", PEAKS, sources[0], *sources], check=True, capture_output=True, text=True)
    _, *peaks = [float(line) for line in made.stdout.splitlines()]
    assert [probe(Path(f"{source}.out{number}.mp4")).num_frames for number, source in enumerate(sources, 1)] == list(lengths)
    assert peaks[1] < 1.1 * peaks[0], peaks
    assert peaks[1] - peaks[0] < 0.4 * (600 * width * height * 3 / 2**20), peaks
