"""Written videos: frames at their times, tracks of the source, codecs and depths, names, and `write_video`."""

import random
import re
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from turbovaed_cli import write_video
from turbovaed_cli.errors import MissingError, OutputExistsError, SettingsError, VideoError
from turbovaed_cli.video import Timing, VideoWriter, codecs, ffmpeg, probe, read_frames, to_uint8, to_uint16

REPORTED = Path(__file__).resolve().parents[3] / "shared" / "videos" / "reported"
SIZE = (48, 64)
PICTURE = ["-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1"]
SOUND = ["-f", "lavfi", "-i", "sine=duration=1"]


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.texts = []

    def track(self, items, label, total=None, start=0):
        yield from items

    def note(self, text="", *, warning=False, **values):
        if text:
            self.texts.append(text)


def run_ffmpeg(*arguments) -> str:
    command = [ffmpeg.executable(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def description(path: Path) -> str:
    return subprocess.run([ffmpeg.executable(), "-i", path], capture_output=True, text=True, check=False).stderr


def packet_times(path: Path, stream: str) -> list[Fraction]:
    """When the packets of one stream are shown, in seconds on the file's clock, ascending."""
    table = run_ffmpeg("-copyts", "-i", path, "-map", f"0:{stream}", "-c", "copy", "-f", "framecrc", "-")
    base = Fraction(re.search(r"#tb 0: (\S+)", table)[1])
    return sorted(int(line.split(",")[2]) * base for line in table.splitlines() if not line.startswith("#"))


def lateness(path: Path) -> float:
    """How much later than the sound the picture begins."""
    return float(packet_times(path, "v:0")[0] - packet_times(path, "a:0")[0])


def rewrite(source: Path, out: Path, **options) -> tuple:
    """Write the frames of `source` to `out`, as `reconstruct` does; what was written, and the notes."""
    info, notes = probe(source), Notes()
    with VideoWriter(
        out, height=info.height, width=info.width, fps=Timing.of(info), tracks_from=info, report=notes, **options
    ) as writer:
        for frame in read_frames(info, square_pixels=False):
            writer.write(frame if writer.dtype == np.uint8 else frame.astype(np.uint16) * 257)
    return writer.written, notes.texts


def write_gray(path: Path, timing, count: int, size=(16, 16), **options):
    with VideoWriter(path, height=size[0], width=size[1], fps=timing, **options) as writer:
        for i in range(count):
            writer.write(np.full((*size, 3), i % 256, writer.dtype))
    return writer.written


# --- times ---


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
@pytest.mark.parametrize("delayed", ["picture", "sound"])
def test_picture_and_sound_stay_apart_as_they_are(suffix, delayed, tmp_path):
    source = tmp_path / f"in{suffix}"
    late = ["-itsoffset", "0.7"]
    inputs = [*late, *PICTURE, *SOUND] if delayed == "picture" else [*PICTURE, *late, *SOUND]
    run_ffmpeg(*inputs, "-c:a", "aac", source)
    wanted = lateness(source)
    assert abs(abs(wanted) - 0.7) < 0.05
    for out in (tmp_path / f"out{other}" for other in (".mp4", ".mkv", ".mov", ".m4v")):
        rewrite(source, out)
        assert abs(lateness(out) - wanted) < 0.002, out


def test_an_even_rate_stays_exactly_even_after_an_offset(tmp_path):
    for fps in (Fraction(30000, 1001), Fraction(24), Fraction(120)):
        write_gray(tmp_path / "a.mp4", Timing(fps, start=Fraction(7, 10)), 40, overwrite=True)
        times = packet_times(tmp_path / "a.mp4", "v:0")
        assert {after - before for before, after in pairwise(times)} == {1 / fps}
        assert times[0] == Fraction(7, 10)
        assert probe(tmp_path / "a.mp4").fps == fps


def rates(*parts) -> tuple[int, ...]:
    """Times in milliseconds of (number of frames, gap) one after the other."""
    gaps = [gap for count, gap in parts for _ in range(count)]
    return tuple(round(sum(gaps[:i])) for i in range(len(gaps)))


VARIABLE = {
    "24 then 30": rates((48, 1000 / 24), (60, 1000 / 30)),
    "10 then 60": rates((30, 100), (90, 1000 / 60)),
    "one late frame": tuple(i * 40 + (30 if i == 20 else 0) for i in range(50)),
    "a long pause": rates((10, 40), (1, 5000), (10, 40)),
}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_a_variable_rate_keeps_the_time_of_every_frame(suffix, codec, tmp_path):
    for name, ticks in VARIABLE.items():
        path = tmp_path / f"{name}{suffix}"
        timing = Timing(Fraction(len(ticks) - 1, ticks[-1]) * 1000, ticks=ticks, time_base=Fraction(1, 1000))
        write_gray(path, timing, len(ticks), size=(32, 32), codec=codec)
        assert packet_times(path, "v:0") == [Fraction(tick, 1000) for tick in ticks], name


def test_times_finer_than_a_container_are_rounded_not_summed(tmp_path):
    ticks = tuple(round(Fraction(i * 90_000 * 1001, 60_000)) + i % 7 for i in range(300))
    write_gray(tmp_path / "a.mkv", Timing(Fraction(60), ticks=ticks, time_base=Fraction(1, 90_000)), 300)
    found = packet_times(tmp_path / "a.mkv", "v:0")
    assert max(abs(time - Fraction(tick, 90_000)) for time, tick in zip(found, ticks, strict=True)) <= Fraction(1, 2000)


def test_frames_with_the_same_time_follow_each_other(tmp_path):
    ticks = (0, 40, 40, 40, 80, 200)
    write_gray(tmp_path / "a.mp4", Timing(Fraction(25), ticks=ticks, time_base=Fraction(1, 1000)), 6)
    times = packet_times(tmp_path / "a.mp4", "v:0")
    assert all(before < after for before, after in pairwise(times))
    assert max(abs(time - Fraction(tick, 1000)) for time, tick in zip(times, ticks, strict=True)) < Fraction(1, 1000)


def test_times_that_a_container_cannot_hold_are_noted_once(tmp_path):
    """A burst of 200 frames in 20 ms is 200 ms in an .mkv, whose times are whole milliseconds."""
    info = probe(rewritten_source(tmp_path))
    notes = Notes()
    ticks = (*range(200), 100_000)
    timing = Timing(Fraction(25), ticks=ticks, time_base=Fraction(1, 10_000))
    with (
        pytest.raises(ZeroDivisionError),
        VideoWriter(tmp_path / "a.mkv", height=16, width=16, fps=timing, tracks_from=info, report=notes),
    ):
        raise ZeroDivisionError  # the note comes before the work
    assert len(notes.texts) == 1 and "frames are up to 0.179 s late" in notes.texts[0]


def rewritten_source(folder: Path) -> Path:
    run_ffmpeg(*PICTURE, folder / "in.mp4")
    return folder / "in.mp4"


@pytest.mark.thorough
def test_ten_minutes_with_jitter_stay_in_sync(tmp_path):
    """18,000 frames, each at its time to a tick, and the sound of the source in its place."""
    draw = random.Random(0)
    ticks = [round(i * 1000 / 30 + draw.uniform(-12, 12)) for i in range(18_000)]
    ticks = tuple(tick - ticks[0] for tick in ticks)
    source = tmp_path / "in.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "color=size=32x32:rate=1:duration=600", "-f", "lavfi", "-i", "sine=duration=600", source)
    info = probe(source)
    timing = Timing(Fraction(30), ticks=ticks, time_base=Fraction(1, 1000))
    write_gray(tmp_path / "out.mp4", timing, len(ticks), size=(32, 32), tracks_from=info)
    assert packet_times(tmp_path / "out.mp4", "v:0") == [Fraction(tick, 1000) for tick in ticks]
    assert packet_times(tmp_path / "out.mp4", "a:0") == packet_times(source, "a:0")


@pytest.mark.parametrize("which", [0, -1])
def test_a_frame_that_is_not_at_its_time_is_an_error(which, tmp_path):
    timing = Timing(Fraction(25), ticks=(0, 40, 100), time_base=Fraction(1, 1000))
    wrong = Timing(Fraction(25), Fraction(1), (0, 40, 100), Fraction(1, 1000)) if which == 0 else timing
    with (
        pytest.raises(VideoError, match=r"its (first|last) frame is at"),
        VideoWriter(tmp_path / "a.mp4", height=16, width=16, fps=timing) as writer,
    ):
        for _ in range(3):
            writer.write(np.zeros((16, 16, 3), np.uint8))
        writer._timing = wrong
        writer._times = writer._times if which == 0 else [0, 0, 18_000]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not REPORTED.is_dir(), reason="the clips of shared/videos are not on this machine")
@pytest.mark.parametrize(
    ("name", "late_s"),
    [("video-late-0.7.mp4", 0.7), ("video-late-0.7.mkv", 0.743), ("video-late-0.7.ts", 0.731), ("real-edit-list-1s.mp4", 1.0)],
)
def test_reported_pictures_that_start_late_do_so_in_the_output(name, late_s, tmp_path):
    written, _ = rewrite(REPORTED / name, tmp_path / "out.mp4")
    assert abs(written.times_s[0] - late_s) < 0.001


# --- tracks ---


@pytest.fixture(scope="module")
def many_tracks(tmp_path_factory) -> Path:
    """Two sounds of which the second is the default, styled subtitles and chapters."""
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "s.srt").write_text("1\n00:00:00,100 --> 00:00:00,900\nhello\n")
    chapters = [f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={i * 500}\nEND={i * 500 + 500}\ntitle=part {i}\n" for i in range(2)]
    (folder / "c.txt").write_text(";FFMETADATA1\n" + "".join(chapters))
    path = folder / "many.mkv"
    run_ffmpeg(
        *PICTURE, *SOUND, "-f", "lavfi", "-i", "sine=frequency=880:duration=1", "-i", folder / "s.srt", "-i", folder / "c.txt",
        *("-map", "0", "-map", "1", "-map", "2", "-map", "3", "-map_chapters", "4"),
        *("-c:a:0", "libvorbis", "-c:a:1", "aac", "-c:s", "ass", "-metadata:s:a:0", "language=eng"),
        *("-metadata:s:a:1", "language=deu", "-metadata:s:s:0", "language=fra", "-disposition:a:1", "default", "-disposition:a:0", "0"),
        path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("suffix", "kept", "note"),
    [
        (".mkv", ["vorbis", "aac", "ass"], []),
        (
            ".mp4",
            ["aac", "aac", "mov_text"],
            ["many.mkv: sound 1 (vorbis, eng) becomes aac; subtitle 3 (ass, fra) becomes mov_text"],
        ),
        (
            ".mov",
            ["aac", "aac", "mov_text"],
            ["many.mkv: sound 1 (vorbis, eng) becomes aac; subtitle 3 (ass, fra) becomes mov_text"],
        ),
    ],
)
def test_tracks_are_kept_with_language_and_default_and_what_changes_is_noted_once(suffix, kept, note, many_tracks, tmp_path):
    written, notes = rewrite(many_tracks, tmp_path / f"out{suffix}")
    others = [track for track in written.tracks if track.kind in ("audio", "subtitle")]
    assert [track.codec for track in others] == kept
    assert [track.language for track in others] == ["eng", "ger" if suffix == ".mov" else "deu", "fra"]  # two codes of German
    assert [track.is_default for track in others[:2]] == [False, True]
    assert notes == note
    shown = description(tmp_path / f"out{suffix}")
    assert "part 0" in shown and "part 1" in shown
    assert "mov_text" not in kept or "hello" in run_ffmpeg("-i", tmp_path / f"out{suffix}", "-map", "0:s", "-f", "srt", "-")


def test_chapters_of_an_mp4_are_no_track_that_is_left_out(many_tracks, tmp_path):
    rewrite(many_tracks, tmp_path / "once.mp4")
    _, notes = rewrite(tmp_path / "once.mp4", tmp_path / "twice.mp4")
    assert notes == [] and "part 1" in description(tmp_path / "twice.mp4")


def test_sound_is_dropped_if_asked(many_tracks, tmp_path):
    written, notes = rewrite(many_tracks, tmp_path / "out.mkv", sound=False)
    assert [track.kind for track in written.tracks] == ["video", "subtitle"] and notes == []


def test_what_a_container_cannot_hold_is_left_out_by_name(many_tracks, tmp_path):
    run_ffmpeg("-i", many_tracks, *PICTURE, "-map", "0:v", "-map", "1:v", "-map", "0:a:1", "-attach", __file__, "-metadata:s:t",
               "mimetype=text/plain", "-c:a", "copy", tmp_path / "in.mkv")  # fmt: skip
    written, notes = rewrite(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert [track.kind for track in written.tracks] == ["video", "audio", "data"]  # the last are the titles of chapters
    assert len(notes) == 1 and notes[0].startswith("in.mkv: left out: video 1 (h264); attachment 3")


def test_sound_that_nothing_can_decode_is_left_out_and_the_video_comes(tmp_path):
    run_ffmpeg(*PICTURE, *SOUND, "-c:a", "aac", tmp_path / "in.mp4")
    data = (tmp_path / "in.mp4").read_bytes()
    (tmp_path / "in.mp4").write_bytes(data.replace(b"mp4a", b"zzzz").replace(b"\x40\x15\0", b"\xc5\x15\0"))  # kind of codec
    written, notes = rewrite(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert written.num_frames == 25 and written.audio is None
    assert notes == ["in.mp4: left out: sound 1 (zzzz)"]


def test_a_broken_sound_packet_does_not_end_the_picture(tmp_path):
    run_ffmpeg(*PICTURE, *SOUND, "-c:a", "libvorbis", tmp_path / "whole.mkv")
    run_ffmpeg("-i", tmp_path / "whole.mkv", "-c", "copy", "-bsf:a", "noise=amount=5", tmp_path / "in.mkv")
    written, notes = rewrite(tmp_path / "in.mkv", tmp_path / "out.mp4")
    assert written.num_frames == 25
    assert any("damaged" in note for note in notes)


def test_a_source_that_is_gone_at_the_end_costs_its_sound_only(tmp_path):
    run_ffmpeg(*PICTURE, *SOUND, "-c:a", "aac", tmp_path / "in.mp4")
    info, notes = probe(tmp_path / "in.mp4"), Notes()
    frames = list(read_frames(info))
    with VideoWriter(tmp_path / "out.mp4", height=48, width=64, fps=Timing.of(info), tracks_from=info, report=notes) as writer:
        for frame in frames:
            writer.write(frame)
        (tmp_path / "in.mp4").unlink()
    assert writer.written.num_frames == 25
    assert notes.texts == ["in.mp4: left out, as .mp4 did not take it: sound 1 (aac)"]


# --- codecs ---


@pytest.mark.parametrize(
    ("codec", "bits", "suffix", "wanted"),
    [
        ("h264", 8, ".mp4", "h264 (High) (avc1"),
        ("h264", 10, ".mp4", "h264 (High 10) (avc1"),
        ("h265", 8, ".mov", "hevc (Main) (hvc1"),
        ("h265", 10, ".mp4", "hevc (Main 10) (hvc1"),
        ("h265", 10, ".mkv", "hevc (Main 10)"),
        ("prores", 10, ".mov", "prores (HQ) (apch"),
        ("prores", 10, ".mkv", "prores (HQ)"),
        ("ffv1", 8, ".mkv", "ffv1, bgr0(pc, gbr/bt709/bt709"),
        ("ffv1", 10, ".mkv", "ffv1, gbrp10le(pc, gbr/bt709/bt709"),
    ],
)
def test_every_codec_and_depth_is_what_it_should_be(codec, bits, suffix, wanted, tmp_path):
    for number, size in enumerate([(64, 96), (37, 51)]):
        path = tmp_path / f"{number}{suffix}"
        written = write_gray(path, Fraction(25), 5, size, codec=codec, bits=bits)
        assert (written.num_frames, written.height, written.width) == (5, *size)
        shown = description(path)
        assert number or wanted in shown
        assert codec == "ffv1" or "(tv, bt709, progressive)" in shown
        assert bool(re.search("1[02]le", shown)) == (bits == 10)  # of ProRes 4444, ffmpeg decodes 12


@pytest.mark.parametrize("width", [16, 40, 48, 56, 64])
def test_small_pictures_are_written_in_every_codec(width, tmp_path):
    """x265 4.3 crashed at 10 bits and widths of 40 and 48."""
    clip = torch.rand(3, 9, 64, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for codec in codecs.VIDEO_CODECS.values():
        for bits in codec.bits:
            name = f"{codec.name}-{bits}{codec.suffixes[0]}"
            assert write_video(tmp_path / name, clip, fps=25, codec=codec.name, bits=bits).num_frames == 9


def ramp() -> torch.Tensor:
    """A clip (3, 1, 16, 1024) of gray from -1 to 1 in 1024 steps."""
    return torch.linspace(-1, 1, 1024).expand(3, 1, 16, 1024)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("h265", ".mp4"), ("prores", ".mov")])
def test_ten_bits_are_more_levels_than_eight(codec, suffix, tmp_path):
    levels = {}
    for bits in codecs.VIDEO_CODECS[codec].bits:
        path = tmp_path / f"{bits}{suffix}"
        write_video(path, ramp(), fps=24, codec=codec, bits=bits, **({} if codec == "prores" else {"crf": 1}))
        raw = subprocess.run(
            [ffmpeg.executable(), "-v", "error", "-i", path, "-vf", "extractplanes=y", "-f", "rawvideo", "-"],
            capture_output=True, check=True,
        ).stdout  # fmt: skip
        levels[bits] = len(np.unique(np.frombuffer(raw, np.uint8 if bits == 8 else np.uint16)))
    assert levels[10] > 700 and levels.get(8, 0) <= 220


@pytest.mark.parametrize("bits", [8, 10])
def test_ffv1_gives_back_every_bit(bits, tmp_path):
    clip = torch.rand(3, 4, 36, 52, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "a.mkv", clip, fps=24, codec="ffv1", bits=bits)
    pixel_format = "rgb24" if bits == 8 else "gbrp10le"
    raw = run_raw(tmp_path / "a.mkv", pixel_format)
    if bits == 8:
        assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(4, 36, 52, 3), to_uint8(clip))
        return
    green, blue, red = np.frombuffer(raw, np.uint16).reshape(4, 3, 36, 52).transpose(1, 0, 2, 3)
    wanted = np.round(to_uint16(clip) / 65535 * 1023)
    assert np.array_equal(np.stack([red, green, blue], axis=-1), wanted)


def run_raw(path: Path, pixel_format: str) -> bytes:
    command = [ffmpeg.executable(), "-v", "error", "-i", str(path), "-pix_fmt", pixel_format, "-f", "rawvideo", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ({"codec": "vp9"}, "a.mp4", "vp9"),
        ({"codec": "prores", "crf": 10}, "a.mov", "`crf` is not for prores"),
        ({"codec": "ffv1", "crf": 10}, "a.mkv", "`crf` is not for ffv1"),
        ({"codec": "prores", "bits": 8}, "a.mov", "`bits` 8"),
        ({"bits": 12}, "a.mp4", "`bits` 12"),
        ({"crf": 52}, "a.mp4", "`crf` 52"),
        ({"codec": "ffv1"}, "a.mov", ".mov files do not hold ffv1"),
        ({"codec": "prores"}, "a.mp4", ".mp4 files do not hold prores"),
        ({"codec": "h265"}, "a.m4v", ".m4v files do not hold h265"),
    ],
)
def test_what_does_not_go_together_is_refused(options, name, said, tmp_path):
    with pytest.raises(SettingsError, match=re.escape(said)) as refused:
        write_video(tmp_path / name, ramp(), fps=24, **options)
    assert refused.value.hint and list(tmp_path.iterdir()) == []


def test_an_encoder_that_is_missing_is_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(codecs, "coders", lambda kind: frozenset({"libx264"}))
    with pytest.raises(MissingError, match="libx265"):
        write_video(tmp_path / "a.mp4", ramp(), fps=24, codec="h265")
    assert list(tmp_path.iterdir()) == []


# --- names and places ---


@pytest.mark.parametrize("name", ["a" * 251 + ".mp4", "ü" * 125 + ".mp4"])
def test_names_up_to_the_limit_are_written(name, tmp_path):
    written = write_gray(tmp_path / name, Fraction(25), 3)
    assert written.path.name == name and [path.name for path in tmp_path.iterdir()] == [name]


def test_names_and_places_that_cannot_be_are_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder.mp4").mkdir()
    for path in (tmp_path / ("a" * 252 + ".mp4"), tmp_path / "file" / "a.mp4", tmp_path / "folder.mp4", Path("/proc/none/a.mp4")):
        with pytest.raises(SettingsError) as refused:
            VideoWriter(path, height=16, width=16, fps=Fraction(25), overwrite=True)
        assert refused.value.exit_code == 2 and refused.value.hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_an_encoder_that_dies_is_not_called_a_full_disk(tmp_path):
    with pytest.raises(VideoError) as failed, VideoWriter(tmp_path / "a.mp4", height=16, width=16, fps=Fraction(25)) as writer:
        writer._child.process.kill()
        for _ in range(1000):
            writer.write(np.zeros((16, 16, 3), np.uint8))
    assert "disk" not in f"{failed.value.what} {failed.value.hint}" and list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from turbovaed_cli import write_video
from turbovaed_cli.errors import DiskFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_video(Path(sys.argv[1]), torch.rand(3, 30, 64, 64) * 2 - 1, fps=24)
except DiskFullError as error:
    print(error.hint)
"""


def test_a_full_disk_is_called_one(tmp_path):
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path / "a.mp4"], capture_output=True, text=True, check=True)
    assert "free some space" in done.stdout and list(tmp_path.iterdir()) == []


# --- write_video ---


def test_write_video_takes_tensors_and_bytes(tmp_path):
    clip = torch.rand(3, 6, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    info = write_video(tmp_path / "a.mp4", clip, fps=Fraction(30000, 1001))
    assert (info.path, info.num_frames, info.height, info.width, info.fps) == (
        tmp_path / "a.mp4",
        6,
        32,
        48,
        Fraction(30000, 1001),
    )
    write_video(tmp_path / "b.mp4", to_uint8(clip), fps=29.97)
    first, second = (np.stack(list(read_frames(tmp_path / name))) for name in ("a.mp4", "b.mp4"))
    assert np.array_equal(first, second)
    with pytest.raises(OutputExistsError):
        write_video(tmp_path / "a.mp4", clip, fps=24)


@pytest.mark.parametrize(
    "frames", [torch.zeros(6, 3, 32, 48), torch.zeros(1, 3, 6, 32, 48), np.zeros((6, 32, 48, 3)), np.zeros((6, 32, 48), np.uint8)]
)
def test_write_video_names_a_wrong_shape_or_type(frames, tmp_path):
    with pytest.raises(SettingsError, match=re.escape(str(tuple(frames.shape)))):
        write_video(tmp_path / "a.mp4", frames, fps=24)
    with pytest.raises(SettingsError, match="frame rate"):
        write_video(tmp_path / "a.mp4", torch.zeros(3, 1, 16, 16), fps=0)
