"""Every kind of file a user has gives the right frames or one clear error; what is written is what was given."""

import os
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import cpu_seconds

from turbovaed_cli.errors import OutputExistsError, SettingsError, VideoError
from turbovaed_cli.video import (
    VideoWriter,
    ffmpeg,
    list_videos,
    probe,
    read_clip,
    read_clip_uint8,
    read_frames,
    to_model,
    to_uint8,
)

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"
RATE = "25"


def run_ffmpeg(*arguments: object) -> bytes:
    return subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-y", *map(str, arguments)], check=True, capture_output=True
    ).stdout


def make(
    path: Path, *options: object, size: str = "96x64", seconds: float = 1, rate: str = RATE, source: str = "testsrc2"
) -> Path:
    run_ffmpeg("-f", "lavfi", "-i", f"{source}=size={size}:rate={rate}:duration={seconds}", *options, path)
    return path


def decoded_independently(path: Path, height: int, width: int) -> np.ndarray:
    raw = run_ffmpeg(
        "-i",
        path,
        "-fps_mode",
        "passthrough",
        "-vf",
        "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


KINDS = {
    "h264.mp4": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
    "full-range-444.mp4": ["-c:v", "libx264", "-pix_fmt", "yuvj444p"],
    "ten-bit.mkv": ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=error"],
    "vp8.webm": ["-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "300k"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-lag-in-frames", "16"],
    "av1.mp4": ["-c:v", "libaom-av1", "-cpu-used", "8"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-bf", "2"],
    "transport.ts": ["-c:v", "libx264", "-pix_fmt", "yuv420p"],
}


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_of_every_kind_arrives(name, tmp_path):
    path = make(tmp_path / name, *KINDS[name])
    info = probe(path)
    assert (info.num_frames, info.height, info.width, info.fps) == (25, 64, 96, 25)
    frames = np.stack(list(read_frames(path)))
    assert len(frames) == 25
    wanted = decoded_independently(path, 64, 96)
    assert np.abs(frames.astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("name", KINDS)
def test_a_jump_to_a_frame_gives_that_frame(name, tmp_path):
    path = make(tmp_path / name, *KINDS[name])
    frames = np.stack(list(read_frames(path)))
    for start, stride in ((0, 3), (7, 1), (11, 2), (20, 4)):
        clip = read_clip_uint8(path, 2, (64, 96), start=start, stride=stride)
        assert np.array_equal(clip, frames[start : start + 2 * stride : stride])


def test_odd_sizes_are_read_whole(tmp_path):
    path = make(tmp_path / "odd.mp4", "-c:v", "libx264", "-pix_fmt", "yuv444p", size="51x37", source="testsrc")
    assert next(read_frames(path)).shape == (37, 51, 3)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied(degrees, tmp_path):
    plain = make(tmp_path / "plain.mp4", "-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", "1")
    run_ffmpeg("-display_rotation", degrees, "-i", plain, "-c", "copy", tmp_path / "turned.mp4")
    info = probe(tmp_path / "turned.mp4")
    assert (info.height, info.width) == ((64, 96) if degrees == 180 else (96, 64))
    turned = np.rot90(next(read_frames(plain)), degrees // 90)
    assert np.abs(next(read_frames(info)).astype(int) - turned).max() <= 2


def test_non_square_pixels_are_widened_unless_asked_not_to(tmp_path):
    path = make(tmp_path / "wide.mp4", "-vf", "setsar=4/3", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    assert probe(path).sample_aspect_ratio == Fraction(4, 3)
    assert next(read_frames(path)).shape == (64, 128, 3)
    assert next(read_frames(path, square_pixels=False)).shape == (64, 96, 3)


def test_variable_frame_rate_neither_doubles_nor_drops(tmp_path):
    path = make(
        tmp_path / "vfr.mp4",
        "-vf",
        "select='not(mod(n,3))+lt(n,9)',setpts='PTS+if(gt(N,5),0.3/TB,0)'",
        "-fps_mode",
        "passthrough",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
    )
    info = probe(path)
    assert info.num_frames == len(list(read_frames(info))) == len(decoded_independently(path, 64, 96)) == 15


def test_a_cut_with_a_hidden_lead_in_counts_only_what_is_shown(tmp_path):
    whole = make(tmp_path / "whole.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "50", seconds=3)
    run_ffmpeg("-ss", "1.2", "-i", whole, "-c", "copy", tmp_path / "cut.mp4")
    info = probe(tmp_path / "cut.mp4")
    assert info.num_frames == len(list(read_frames(info))) == len(decoded_independently(info.path, 64, 96))


@pytest.mark.parametrize(
    ("rate", "fps"),
    [
        ("30000/1001", Fraction(30000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        ("50", Fraction(50)),
        ("7.5", Fraction(15, 2)),
    ],
)
def test_the_frame_rate_is_exact(rate, fps, tmp_path):
    assert probe(make(tmp_path / "a.mp4", "-c:v", "libx264", rate=rate, seconds=2)).fps == fps


def test_cover_and_crop_keep_the_shape_of_things(tmp_path):
    path = make(tmp_path / "a.mp4", "-c:v", "libx264", "-pix_fmt", "yuv444p", "-crf", "1", size="128x64")
    frame = next(read_frames(path))
    left, right = (read_clip_uint8(path, 1, (64, 64), crop=(0.5, share))[0] for share in (0.0, 1.0))
    assert np.array_equal(left, frame[:, :64])
    assert np.array_equal(right, frame[:, 64:])
    assert read_clip_uint8(path, 1, (32, 48)).shape == (1, 32, 48, 3)


def test_the_conversion_is_exact_both_ways():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    video = to_model(levels)
    assert (video.min(), video.max()) == (-1, 1)
    assert np.array_equal(to_uint8(video), levels)
    assert torch.equal(video[0, 0].flatten(), torch.arange(256) / 127.5 - 1)  # to the last bit
    assert torch.equal(to_model(torch.from_numpy(levels), torch.device("cpu")), video)
    assert to_model(levels, torch.device("meta")).device.type == "meta"
    assert np.array_equal(to_uint8(torch.tensor([-3.0, 3.0]).view(1, 2, 1, 1).expand(3, -1, -1, -1))[:, 0, 0, 0], [0, 255])


def test_read_clip_has_the_documented_shape_and_range(tmp_path):
    clip = read_clip(make(tmp_path / "a.mp4"), 5, (32, 48))
    assert clip.shape == (3, 5, 32, 48)
    assert clip.dtype == torch.float32
    assert -1 <= clip.min() < clip.max() <= 1


def hostile(name: str, folder: Path) -> Path:
    path = folder / name
    good = make(folder / "good.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", seconds=2).read_bytes()
    if name == "fifo.mp4":
        os.mkfifo(path)
    elif name == "folder.mp4":
        path.mkdir()
    elif name == "playlist.mp4":
        path.write_text(f"ffconcat version 1.0\nfile {folder / 'good.mp4'}\n")
    elif name == "hls.mp4":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder / 'good.mp4'}\n#EXT-X-ENDLIST\n")
    elif name == "truncated.mp4":
        path.write_bytes(good[: len(good) * 2 // 3])
    elif name == "empty.mp4":
        path.touch()
    elif name == "noise.mp4":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif name == "sound-only.mp4":
        run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", path)
    return path  # missing.mp4 stays missing


@pytest.mark.parametrize(
    "name",
    [
        "fifo.mp4",
        "folder.mp4",
        "playlist.mp4",
        "hls.mp4",
        "truncated.mp4",
        "empty.mp4",
        "noise.mp4",
        "sound-only.mp4",
        "missing.mp4",
    ],
)
def test_what_is_no_whole_video_is_one_error_within_seconds_of_work(name, tmp_path):
    path = hostile(name, tmp_path)
    spent = cpu_seconds()
    with pytest.raises(VideoError) as error:
        list(read_frames(path))
    assert cpu_seconds() - spent < 10 and "gave nothing" not in error.value.what  # no hang that was ended
    assert str(path) in error.value.what
    assert "\n" not in error.value.what


def test_a_reader_that_is_given_up_leaves_no_ffmpeg_behind(tmp_path):
    import psutil

    frames = read_frames(make(tmp_path / "a.mp4", seconds=20))
    next(frames)
    children = psutil.Process().children()
    assert children
    frames.close()
    assert not [child for child in psutil.Process().children() if child in children]


def test_the_child_cannot_write_files(tmp_path):
    with ffmpeg.Child(["-f", "lavfi", "-i", "testsrc=duration=1", "-f", "rawvideo", "-y", str(tmp_path / "out.raw")]) as child:
        assert child.finish() != 0
    assert not (tmp_path / "out.raw").exists() or (tmp_path / "out.raw").stat().st_size == 0


# --- writing ---


def noise(count: int, height: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width])


@pytest.mark.parametrize("size", [(64, 96), (37, 51)])
def test_written_frames_come_back(size, tmp_path):
    frames = noise(7, *size)
    with VideoWriter(tmp_path / "out.mp4", height=size[0], width=size[1], fps=Fraction(30000, 1001), crf=1) as writer:
        for frame in frames:
            writer.write(frame)
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.height, info.width, info.fps) == (7, *size, Fraction(30000, 1001))
    again = np.stack(list(read_frames(info))).astype(int)
    assert np.abs(again[:, :, :, 1] - np.stack(frames)[:, :, :, 1]).mean() < (
        20 if size == (64, 96) else 3
    )  # 4:2:0 blurs colours


def test_the_file_is_tagged_bt709_limited_range(tmp_path):
    with VideoWriter(tmp_path / "out.mp4", height=64, width=64, fps=Fraction(24)) as writer:
        writer.write(noise(1, 64, 64)[0])
    said = subprocess.run([ffmpeg.executable(), "-i", tmp_path / "out.mp4"], capture_output=True, text=True, check=False).stderr
    assert "yuv420p(tv, bt709, progressive)" in said  # one word: matrix, primaries and transfer are the same


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv"])
def test_sound_that_a_container_cannot_hold_is_encoded_anew(suffix, tmp_path):
    source = tmp_path / "in.mkv"
    video, sound = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=1"], ["-f", "lavfi", "-i", "sine=duration=1"]
    run_ffmpeg(*video, *sound, "-c:a", "libopus", source)
    info = probe(source)
    with VideoWriter(tmp_path / f"out{suffix}", height=64, width=96, fps=info.fps, tracks_from=info) as writer:
        for frame in read_frames(info):
            writer.write(frame)
    assert probe(tmp_path / f"out{suffix}").audio.codec == ("opus" if suffix in (".mp4", ".mkv") else "aac")


def test_a_writer_that_takes_its_time_at_the_end_is_not_stopped(tmp_path):
    """x264 encodes what it looked ahead at, and faststart writes the file again: no limit of time holds there."""
    with VideoWriter(tmp_path / "out.mp4", height=480, width=640, fps=Fraction(24)) as writer:
        for frame in noise(80, 480, 640):
            writer.write(frame)
        writer._child.patience_s = 0.0
    assert probe(tmp_path / "out.mp4").num_frames == 80


def test_a_reader_that_hears_nothing_stops_the_child(tmp_path):
    path = make(tmp_path / "a.mp4", seconds=10)
    arguments = ["-re", "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    with ffmpeg.Child(arguments, patience_s=0.3) as child, pytest.raises(VideoError, match="gave nothing"):
        child.read(96 * 64 * 3 * 1000)


@pytest.mark.parametrize(
    ("name", "options", "kept"), [("a.mp4", ["-c:a", "aac"], "aac"), ("a.webm", ["-c:v", "libvpx", "-c:a", "libvorbis"], "aac")]
)
def test_sound_is_kept(name, options, kept, tmp_path):
    source = tmp_path / name
    run_ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=1", "-f", "lavfi", "-i", "sine=duration=1", *options, source
    )
    info = probe(source)
    with VideoWriter(tmp_path / "out.mp4", height=64, width=96, fps=info.fps, tracks_from=info) as writer:
        for frame in read_frames(info):
            writer.write(frame)
    assert probe(tmp_path / "out.mp4").audio.codec == kept
    if kept == "aac" and name == "a.mp4":
        before, after = (
            run_ffmpeg("-i", path, "-map", "0:a", "-c", "copy", "-f", "md5", "-") for path in (source, tmp_path / "out.mp4")
        )
        assert before == after


def test_a_video_appears_whole_or_not_at_all(tmp_path):
    class Stop(Exception):
        pass

    with pytest.raises(Stop), VideoWriter(tmp_path / "out.mp4", height=64, width=64, fps=Fraction(24)) as writer:
        writer.write(noise(1, 64, 64)[0])
        raise Stop
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_without_overwrite(tmp_path):
    (tmp_path / "out.mp4").write_text("precious")
    with pytest.raises(OutputExistsError):
        VideoWriter(tmp_path / "out.mp4", height=64, width=64, fps=Fraction(24))
    assert (tmp_path / "out.mp4").read_text() == "precious"


def test_a_container_we_cannot_write_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"out\.gif"):
        VideoWriter(tmp_path / "out.gif", height=64, width=64, fps=Fraction(24))


# --- listing ---


def test_listing_is_sorted_deep_and_without_hidden_files(tmp_path):
    for name in ("b/x.MP4", "a.mov", "notes.txt", ".hidden/z.mp4", "b/.y.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(path.relative_to(tmp_path)) for path in list_videos(tmp_path)] == ["a.mov", "b/x.MP4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="no video"):
        list_videos(tmp_path / "empty")
    with pytest.raises(SettingsError, match="not there"):
        list_videos(tmp_path / "nowhere")


ODD = {
    "1080p-vfr.mp4": (72, 1080, 1920),
    "non-square-pixels-176x144.mp4": (120, 144, 176),
    "rotated-180.mov": (3, 320, 568),
    "rotated-270.mov": (3, 568, 320),
    "rotated-90.mov": (3, 568, 320),
    "unordered-timestamps-50x50.mov": (4, 50, 50),
    "vp8.webm": (118, 360, 640),
    "with-audio.mp4": (185, 480, 640),
    "xvid.avi": (164, 240, 320),
    "yuv444-fullrange-720p.mp4": (132, 720, 1280),
}


@pytest.mark.skipif(not (SHARED / "odd").is_dir(), reason="the clips of shared/videos are not on this machine")
def test_every_odd_clip_gives_its_frames_or_one_error():
    for path in list_videos(SHARED / "odd"):
        if path.name == "corrupted.mp4":
            with pytest.raises(VideoError, match="damaged"):
                list(read_frames(path))
            continue
        info = probe(path)
        assert (info.num_frames, info.height, info.width) == ODD[path.name], path.name
        assert sum(1 for _ in read_frames(info, size=(32, 32))) == info.num_frames, path.name


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("4.4.2-0ubuntu0.22.04.1", "4.4"),
        ("6.1", "6.1"),
        ("7.0.2-static", ""),
        ("n9.0.2-17-g2a571b6068", ""),
        ("N-112233-gabc", ""),
    ],
)
def test_an_ffmpeg_below_the_floor_is_warned_of(version, said, monkeypatch):
    monkeypatch.setattr(ffmpeg, "version", lambda: version)
    warning = ffmpeg.warning_of_age()
    assert (f"ffmpeg {said} is older than 7.0" in warning) if said else warning == ""
