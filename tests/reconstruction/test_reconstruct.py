"""Every frame comes back, at its size, rate and with its sound, in memory that does not grow with the video."""

import json
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_video
from PIL import Image
from safetensors.torch import save_file

from turbovaed_cli.errors import NonFiniteError, OutputExistsError, SettingsError, ShapeError, VideoError
from turbovaed_cli.models.memory import Pieces
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.reconstruction.folder import plan_folder, reconstruct_folder
from turbovaed_cli.reconstruction.reconstruct import reconstruct, reconstructed_frames
from turbovaed_cli.reconstruction.windows import check_finite, crossfade, pad_to_valid, window_frames, windows_of
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
    for name in ("num_frames", "width", "height", "fps", "sample_aspect_ratio"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.audio.codec == before.audio.codec == "aac"


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
    module = sys.modules["turbovaed_cli.reconstruction.reconstruct"]  # the package's attribute of that name is the verb
    for pieces in (Pieces(8, 1, 0, False, 0), Pieces(24, 2, 1, True, 0)):
        monkeypatch.setattr(module, "plan_pieces", lambda *_, pieces=pieces: pieces)
        found = np.stack(list(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings(), aside=tmp_path)))
        assert found.shape == wanted.shape
        assert np.abs(found.astype(int) - wanted).max() <= 1 and (found != wanted).mean() < 1e-3


@pytest.fixture
def runs_out(monkeypatch):
    """Make a piece run out of memory if it has more than this number of latent frames, and at least this number of latent columns."""

    def runs_out(frames: int, columns: int = 0) -> None:
        push = StreamingDecoder.push

        def limited(decoder, latents):
            if latents.shape[2] > frames and latents.shape[4] >= columns:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. Including non-PyTorch memory, ...")
            return push(decoder, latents)

        monkeypatch.setattr(StreamingDecoder, "push", limited)

    return runs_out


def test_a_piece_that_does_not_fit_is_halved_and_the_video_is_the_same(pair, runs_out, monkeypatch, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (83, 64, 96, 3), dtype=np.uint8)
    module = sys.modules["turbovaed_cli.reconstruction.reconstruct"]
    monkeypatch.setattr(module, "plan_pieces", lambda *_: Pieces(32, 4, 0, False, 0))
    wanted = np.stack(list(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings())))
    runs_out(1)
    notes: list[str] = []
    report = SimpleNamespace(note=lambda text="", **_: notes.append(text), track=lambda items, *_, **__: items)
    found = np.stack(list(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings(), report=report)))
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= 1 and (found != wanted).mean() < 1e-3
    assert [note for note in notes if "fit" in note] == [
        "4 latent frames at once do not fit in memory: going on with 2",
        "2 latent frames at once do not fit in memory: going on with 1",
    ]
    runs_out(0)
    with pytest.raises(torch.OutOfMemoryError):
        list(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings()))


def test_an_input_of_a_folder_that_does_not_fit_is_named_and_the_others_are_written(pair, runs_out, tmp_path):
    for name, size in (("small.mp4", "32x32"), ("large.mp4", "128x64")):
        make_video(tmp_path / "in" / name, size=size, frames=17)
    runs_out(0, columns=4)
    result = reconstruct_folder(tmp_path / "in", tmp_path / "out", pair)
    assert {item.path.name: item.status for item in result.items} == {"small.mp4": "written", "large.mp4": "failed"}
    (failed,) = result.of_status("failed")
    assert failed.reason == "too large: CUDA out of memory. Tried to allocate 2.00 GiB"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.mp4"]


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
    module = sys.modules["turbovaed_cli.reconstruction.reconstruct"]
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


def test_a_variable_rate_and_a_late_picture_keep_their_times(pair, tmp_path):
    """Frames are dropped from an even rate, and the picture starts 0.3 s after the sound."""
    source = tmp_path / "in.mp4"
    make = [
        "-itsoffset",
        "0.3",
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=64x48:rate=30:duration=2",
        "-f",
        "lavfi",
        "-i",
        "sine=duration=3",
    ]
    drop = "select='not(between(n,20,39)*mod(n,3))'"
    subprocess.run(
        [ffmpeg.executable(), "-v", "error", *make, "-vf", drop, "-fps_mode", "passthrough", "-c:a", "aac", source], check=True
    )
    before = probe(source)
    assert not before.has_constant_rate and before.times_s[0] == pytest.approx(0.3, abs=1e-3)
    reconstruct(source, tmp_path / "out.mp4", pair)
    assert probe(tmp_path / "out.mp4").times_s == pytest.approx(before.times_s, abs=1e-4)


def test_ten_bits_come_from_the_decoder_not_from_eight(pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", size="64x64", frames=9)
    settings = ReconstructSettings(codec="ffv1", bits=10)
    reconstruct(source, tmp_path / "out.mkv", pair, settings)
    raw = subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-i", tmp_path / "out.mkv", "-pix_fmt", "gbrp10le", "-f", "rawvideo", "-"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    found = np.frombuffer(raw, np.uint16).reshape(9, 3, 64, 64)[:, [2, 0, 1]].transpose(0, 2, 3, 1)
    frames = np.stack(list(read_frames(source)))
    in_eight = np.stack(list(reconstructed_frames(iter(frames), 64, 64, pair, ReconstructSettings())))
    assert np.abs(found / 1023 - in_eight / 255).max() < 0.003  # half a level of each
    assert len(np.unique(found)) > 256
    latents = pair.teacher.encode(to_model(frames)[None]).mean[0]
    save_file({"latents": latents}, tmp_path / "z.safetensors")
    reconstruct(tmp_path / "z.safetensors", tmp_path / "z.mkv", pair, settings)
    assert probe(tmp_path / "z.mkv").pixel_format == "gbrp10le"


def test_a_comparison_has_labels_in_any_depth(pair, tmp_path):
    source = make_video(tmp_path / "in.mp4", size="96x64", frames=5)
    frames = np.stack(list(read_frames(source)))
    eight, ten = (
        next(reconstructed_frames(iter(frames), 64, 96, pair, ReconstructSettings(compare=True, codec="h265", bits=bits)))
        for bits in (8, 10)
    )
    assert (eight.dtype, ten.dtype) == (np.uint8, np.uint16)
    assert np.array_equal(eight[:15, :40], (ten[:15, :40] / 257).round()) and eight[:15, :40].max() > 200


# --- folders ---


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four inputs of which two share a stem and one is broken, and what is no input."""
    made = tmp_path / "in"
    (made / "more").mkdir(parents=True)
    make_video(made / "a.mp4", size="64x48", frames=9)
    make_video(made / "a.mov", size="48x64", frames=9)
    (made / "more" / "broken.mp4").write_bytes(b"nothing")
    save_file({"latents": torch.zeros(6, 2, 2, 3)}, made / "more" / "z.safetensors")
    (made / "notes.txt").write_text("no video")
    return made


def found_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_becomes_the_same_tree_of_videos(folder, pair, tmp_path):
    out = tmp_path / "out"
    result = reconstruct_folder(folder, out, pair)
    assert found_in(out) == ["a.mov.mp4", "a.mp4", "more/z.safetensors.mp4"]
    assert {str(item.path.relative_to(folder)): item.status for item in result.items} == {
        "a.mov": "written", "a.mp4": "written", "more/broken.mp4": "failed", "more/z.safetensors": "written",
    }  # fmt: skip
    (failed,) = result.of_status("failed")
    assert "not a video" in failed.reason
    assert (probe(out / "a.mp4").width, probe(out / "a.mov.mp4").width) == (64, 48)
    written = next(item for item in result.items if item.path.name == "a.mp4")
    assert written.result is not None and (written.result.num_frames, written.out) == (9, out / "a.mp4")


def test_what_is_no_input_is_counted_and_a_folder_of_frames_is_one_video(folder, tmp_path):
    frames = folder / "more" / "walk"
    frames.mkdir()
    for number in range(5):
        Image.new("RGB", (32, 24), (50 * number, 0, 0)).save(frames / f"{number:05}.png")
    said = []
    counting = SimpleNamespace(note=lambda text="", **_: said.append(text))
    planned = plan_folder(folder, tmp_path / "out", ReconstructSettings(), counting)
    assert said == ["left out, no videos: 1 file (.txt)"]
    assert planned[frames] == tmp_path / "out" / "more" / "walk.mp4"
    planned = plan_folder(frames, tmp_path / "out", ReconstructSettings())
    assert list(planned.values()) == [tmp_path / "out" / "walk.mp4"]


def test_a_folder_is_gone_on_with_and_done_again_only_if_asked(folder, pair, tmp_path):
    out = tmp_path / "out"
    reconstruct_folder(folder, out, pair)
    before = {name: (out / name).stat().st_mtime_ns for name in found_in(out)}
    (out / "a.mp4").unlink()
    result = reconstruct_folder(folder, out, pair)
    after = {name: (out / name).stat().st_mtime_ns for name in found_in(out)}
    assert [len(result.of_status(status)) for status in ("written", "there", "failed")] == [1, 2, 1]
    assert [name for name in before if before[name] != after[name]] == ["a.mp4"]
    assert len(reconstruct_folder(folder, out, pair, overwrite=True).of_status("written")) == 3


def test_outputs_in_the_folder_itself_are_not_read_again(folder, pair):
    out = folder / "decoded"
    for _ in range(2):
        result = reconstruct_folder(folder, out, pair)
        assert len(result.items) == 4
    assert found_in(out) == ["a.mov.mp4", "a.mp4", "more/z.safetensors.mp4"]


def test_a_folder_that_would_read_its_outputs_is_refused(folder, pair, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    for out in (folder, folder / "more" / "..", tmp_path, tmp_path / "link"):
        with pytest.raises(SettingsError, match="holds the videos"):
            reconstruct_folder(folder, out, pair)
    with pytest.raises(SettingsError, match="is no folder"):
        reconstruct_folder(folder, folder / "a.mp4", pair)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="no video and no latents"):
        reconstruct_folder(tmp_path / "empty", tmp_path / "out", pair)


def test_names_that_meet_after_their_suffix_stay_apart(pair, tmp_path):
    source = make_video(tmp_path / "in" / "a.mov.mp4", frames=5) if (tmp_path / "in").mkdir() is None else None
    make_video(tmp_path / "in" / "a.mov", frames=5)
    planned = plan_folder(tmp_path / "in", tmp_path / "out", ReconstructSettings())
    assert {path.name: out.name for path, out in planned.items()} == {"a.mov": "a.mov.mp4.mp4", "a.mov.mp4": "a.mov.mp4"}
    assert planned[source] == tmp_path / "out" / "a.mov.mp4"
    other = plan_folder(tmp_path / "in", tmp_path / "out", ReconstructSettings(codec="prores"))
    assert sorted(out.name for out in other.values()) == ["a.mov", "a.mov.mp4.mov"]


def test_one_progress_counts_the_frames_of_all(folder, pair, tmp_path):
    seen = []

    class Counting:
        def track(self, items, label, total=None, start=0):
            for number, item in enumerate(items, 1):
                yield item
                if label == "reconstructing":
                    seen.append((number, total))

        def note(self, text="", *, warning=False, **values):
            pass

    reconstruct_folder(folder, tmp_path / "out", pair, report=Counting())
    assert seen == [(i, 27) for i in range(1, 28)]  # 9 of each video, and 9 of the latents


def run_command(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "turbovaed_cli", *map(str, words)], capture_output=True, text=True, check=False)


def test_the_command_lists_failures_and_ends_with_5(folder, tmp_path):
    (folder / "more" / "z.safetensors").unlink()
    done = run_command("reconstruct", folder, "--out", tmp_path / "out", "--json", "--codec", "h265", "--bits", "10")
    assert done.returncode == 5, done.stderr
    assert "skipped:" in done.stderr and "broken.mp4" in done.stderr
    inputs = json.loads(done.stdout)["inputs"]
    assert [(Path(one["path"]).name, one["status"]) for one in inputs] == [
        ("a.mov", "written"), ("a.mp4", "written"), ("broken.mp4", "failed"),
    ]  # fmt: skip
    assert inputs[0]["num_frames"] == 9 and inputs[2]["reason"]
    assert probe(tmp_path / "out" / "a.mp4").pixel_format == "yuv420p10le"
    again = run_command("reconstruct", folder, "--out", tmp_path / "out")
    assert again.returncode == 5 and "2 of 3 were reconstructed before" in again.stderr


def test_an_interrupt_keeps_the_finished_files_and_says_so(folder, tmp_path):
    (folder / "more" / "broken.mp4").unlink()
    (folder / "more" / "z.safetensors").unlink()
    make_video(folder / "b.mp4", size="256x256", frames=600)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "turbovaed_cli", "reconstruct", str(folder), "--out", str(out)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not (out / "a.mp4").exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    said = running.communicate()[1]
    assert running.returncode == 130
    assert "2 of 3 are finished and kept" in said and "the same command goes on" in said
    assert found_in(out) == ["a.mov.mp4", "a.mp4"]


def test_an_output_that_cannot_be_is_refused_before_a_model_is_loaded(tmp_path):
    source = make_video(tmp_path / "in.mp4", frames=5)
    for words in (["--out", tmp_path / "in.mp4" / "a.mp4"], ["--out", tmp_path / ("a" * 300 + ".mp4")], ["--codec", "ffv1", "--crf", "3"],
                  ["--sound", "loud"], ["--out", tmp_path / "a.gif"]):  # fmt: skip
        done = run_command("reconstruct", source, "--model", "no-such-model", *words)
        assert done.returncode == 2 and "no-such-model" not in done.stderr, done.stderr
        assert done.stderr.count("error:") == 1 and "hint:" in done.stderr


def test_an_existing_folder_as_out_gets_the_default_name(tmp_path):
    source = make_video(tmp_path / "in.mp4", size="64x48", frames=5)
    (tmp_path / "out").mkdir()
    done = run_command("reconstruct", source, "--out", tmp_path / "out", "--codec", "ffv1")
    assert done.returncode == 0, done.stderr
    assert found_in(tmp_path / "out") == ["in-turbovaed.mkv"]


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
from turbovaed_cli.machine.imports import import_less
import_less()
from turbovaed_cli.models.pair import load_pair
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.reconstruction.reconstruct import reconstruct
pair = load_pair()
for number, source in enumerate(sys.argv[1:]):
    reconstruct(Path(source), Path(source + f".out{number}.mp4"), pair)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    """A video four times as long raises a process's peak by less than 10 %, and by far less than the frames between would take.

    One process for both, warm from a first: from one process to the next, hash seeds alone move the peak by as much.
    """
    width, height, lengths = 128, 96, (100, 400)
    sources = [make_video(tmp_path / f"{frames}.mp4", size=f"{width}x{height}", frames=frames, rate=24) for frames in lengths]
    made = subprocess.run([sys.executable, "-c", PEAKS, sources[0], *sources], check=True, capture_output=True, text=True)
    _, *peaks = [float(line) for line in made.stdout.splitlines()]
    assert [probe(Path(f"{source}.out{number}.mp4")).num_frames for number, source in enumerate(sources, 1)] == list(lengths)
    assert peaks[1] < 1.1 * peaks[0], peaks
    assert peaks[1] - peaks[0] < 0.4 * (300 * width * height * 3 / 2**20), peaks


@pytest.mark.parametrize(
    ("dtype", "hint"), [(torch.float16, "use `dtype` fp32"), (torch.float32, "check the weights, and that ")]
)
def test_values_that_are_not_finite_get_a_hint_that_can_help(dtype, hint):
    with pytest.raises(NonFiniteError, match=f"decoding in {dtype} gave values") as error:
        check_finite([torch.zeros(2), torch.tensor([1, torch.inf], dtype=dtype)])
    assert error.value.hint.startswith(hint)
