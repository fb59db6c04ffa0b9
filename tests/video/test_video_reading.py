"""The frame that comes is the frame that was asked for, and it looks as players show it: every codec, container and structure."""

import hashlib
import random
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from turbovaed_cli.errors import SettingsError, VideoError
from turbovaed_cli.reporting import Reporter
from turbovaed_cli.video import VideoInfo, ffmpeg, list_videos, probe, read_clip_uint8, read_frames, sha256_of_video, stamp_of
from turbovaed_cli.video import reading as reading_module

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"


def run_ffmpeg(*arguments: object) -> bytes:
    return subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-y", *map(str, arguments)], check=True, capture_output=True
    ).stdout


def draw(path: Path, *options: object, rate: str = "25", frames: int = 40, size: str = "64x48", filters: str = "null") -> Path:
    """A clip of which no two frames are alike."""
    run_ffmpeg(
        "-f",
        "lavfi",
        "-i",
        f"testsrc2=size={size}:rate={rate},{filters}",
        "-frames:v",
        frames,
        "-fps_mode",
        "passthrough",
        *options,
        path,
    )
    return path


def hashes(info: VideoInfo, **where: int) -> list[str]:
    return [hashlib.md5(frame.tobytes()).hexdigest() for frame in read_frames(info, **where)]


def wrong_starts(info: VideoInfo, starts: list[int]) -> list[int]:
    """The first frames from which a clip differs from the same frames of a whole read."""
    whole = hashes(info)
    assert len(whole) == info.num_frames
    return [
        start for start in starts if hashes(info, start=start, count=min(3, info.num_frames - start)) != whole[start : start + 3]
    ]


class Notes(list):
    """A reporter that keeps what it is told."""

    def track(self, items, label, total=None, start=0):
        yield from items

    def note(self, text="", *, warning=False, **values):
        self.append(text)


_: Reporter = Notes()

# --- every start --------------------------------------------------------------------------------------------------

X264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast", "-g", "12", "-keyint_min", "12", "-sc_threshold", "0"]
X265 = ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-preset", "ultrafast"]
CODECS = {
    "h264": [*X264, "-bf", "2"],
    "h264-open": [*X264, "-bf", "3", "-x264-params", "open-gop=1"],
    "h264-refresh": [*X264, "-bf", "0", "-x264-params", "intra-refresh=1"],
    "hevc": [*X265, "-x265-params", "log-level=none:keyint=12:min-keyint=12:open-gop=0:bframes=3"],
    "hevc-open": [*X265, "-x265-params", "log-level=none:keyint=12:min-keyint=12:open-gop=1:bframes=3"],
    "vp8": ["-c:v", "libvpx", "-g", "12", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-deadline", "realtime", "-b:v", "300k"],
    "vp9": ["-c:v", "libvpx-vp9", "-g", "12", "-lag-in-frames", "16", "-deadline", "realtime", "-cpu-used", "8"],
    "av1": ["-c:v", "libaom-av1", "-g", "12", "-cpu-used", "8", "-usage", "realtime"],
    "mpeg4": ["-c:v", "mpeg4", "-bf", "2", "-g", "12", "-q:v", "3"],
    "mjpeg": ["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"],
    "prores": ["-c:v", "prores_ks", "-profile:v", "0"],
}  # fmt: skip
CONTAINERS = {
    "mp4": (".mp4", []),
    "fragmented": (".mp4", ["-movflags", "+frag_keyframe+empty_moov+default_base_moof"]),
    "mov": (".mov", []),
    "mkv": (".mkv", []),
    "webm": (".webm", []),
    "avi": (".avi", []),
    "ts": (".ts", []),
}
HELD = {
    "mp4": ("h264", "h264-open", "h264-refresh", "hevc", "hevc-open", "vp9", "av1", "mpeg4", "mjpeg"),
    "fragmented": ("h264", "h264-open", "h264-refresh", "hevc", "hevc-open", "vp9", "av1", "mpeg4"),
    "mov": ("h264", "h264-open", "h264-refresh", "hevc", "hevc-open", "mpeg4", "mjpeg", "prores"),
    "mkv": tuple(CODECS),
    "webm": ("vp8", "vp9", "av1"),
    "avi": ("h264", "mpeg4", "mjpeg", "vp8"),
    "ts": ("h264", "h264-open", "h264-refresh", "hevc", "hevc-open"),
}
# 23.976 to 120 a second, a time base of one tick a frame, and gaps that vary.
RATES = {
    "24000/1001": [],
    "25": [],
    "60": [],
    "30000/1001": ["-enc_time_base", "1001:30000"],
    "120": [],
    "varying": ["-vf", "setpts='PTS+if(mod(N,3),0,0.3/25/TB)'", "-enc_time_base", "1:30000"],
}
CASES = [(container, codec) for container, codecs in HELD.items() for codec in codecs]
# What make test tries of them: every codec, every container; make faults tries all, at every rate.
_SHIFTED = CASES[7:] + CASES[:7]
QUICK = {next(case for case in _SHIFTED if case[1] == codec) for codec in CODECS} | {
    next(case for case in reversed(CASES) if case[0] == container) for container in CONTAINERS
}


@pytest.mark.faults
@pytest.mark.parametrize(("container", "codec"), CASES, ids=lambda value: value)
def test_every_start_gives_the_frames_of_a_whole_decode(container, codec, tmp_path, request):
    """By hash, for every codec in every container that holds it, at a rate that differs from one to the next."""
    suffix, options = CONTAINERS[container]
    in_full = request.config.getoption("--all-faults")
    if not in_full and (container, codec) not in QUICK:
        pytest.skip("in full by make faults")
    number = CASES.index((container, codec))
    rates = list(RATES) if in_full else [list(RATES)[number % len(RATES)]]
    for rate in rates:
        if rate == "varying" and container == "avi":
            continue  # it has no times
        timing = RATES[rate]
        path = draw(tmp_path / f"clip{suffix}", *CODECS[codec], *timing, *options, rate="25" if rate == "varying" else rate)
        info = probe(path)
        starts = (
            [*range(rates.index(rate) % 3, info.num_frames, 3)]
            if in_full
            else random.Random(number).sample(range(info.num_frames), 5)
        )
        assert info.num_frames == 40
        assert wrong_starts(info, starts) == [], rate


def test_a_jump_is_made_in_what_allows_it(tmp_path, monkeypatch):
    """Not every read begins at the first frame: one into the last GOP decodes that GOP."""
    reports = []
    next_report = ffmpeg.Child.next_report
    monkeypatch.setattr(ffmpeg.Child, "next_report", lambda self: reports.append(next_report(self)) or reports[-1])
    for name in ("h264", "hevc", "vp9", "av1"):
        info = probe(draw(tmp_path / f"{name}.mp4", *CODECS[name]))
        reports.clear()
        assert len(list(read_frames(info, start=39, count=1))) == 1
        assert 0 < len(reports) <= 28, name


def test_a_jump_that_lands_elsewhere_is_tried_from_an_earlier_frame(tmp_path, monkeypatch):
    path = draw(tmp_path / "a.mp4", *CODECS["hevc"])
    info = probe(path)
    whole = hashes(info)
    arguments = reading_module._arguments
    jumps = []

    def misled(clip, shape, jump, *rest):
        """ffmpeg jumps to the end whatever it is asked for."""
        jumps.append(jump)
        return arguments(clip, shape, None if jump is None else info.key_frames[-1], *rest)

    monkeypatch.setattr(reading_module, "_arguments", misled)
    assert hashes(info, start=30, count=2) == whole[30:32]
    assert jumps == [24, None]


def test_neighbours_that_filters_need_are_read_too(tmp_path):
    """A deinterlacer looks at the frames around: from any start, it gives what it gives in the whole."""
    for suffix, options in ((".mp4", []), (".ts", []), (".mkv", [])):
        path = draw(
            tmp_path / f"fields{suffix}", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1", *options,
            filters="tinterlace=interleave_top,setfield=tff", rate="50", frames=24,
        )  # fmt: skip
        info = probe(path)
        assert info.is_interlaced
        assert wrong_starts(info, [1, 2, 5, 13, 20]) == []


def test_strides_and_sizes_hold_after_a_jump(tmp_path):
    info = probe(draw(tmp_path / "a.mkv", *CODECS["h264-open"]))
    whole = np.stack(list(read_frames(info, size=(32, 40))))
    for start, stride in ((13, 3), (25, 5), (1, 2)):
        assert np.array_equal(
            read_clip_uint8(info, 3, (32, 40), start=start, stride=stride), whole[start : start + 3 * stride : stride]
        )


# --- packets are not frames -----------------------------------------------------------------------------------------


def test_frames_that_are_cut_off_by_an_edit_list_are_not_counted(tmp_path):
    whole = draw(tmp_path / "whole.mp4", *CODECS["h264"])
    run_ffmpeg("-i", whole, "-c", "copy", "-t", "1.0", "-copyinkf", tmp_path / "cut.mp4")
    info = probe(tmp_path / "cut.mp4")
    assert info.num_frames == len(list(read_frames(info)))


def test_vp9_frames_in_packets_of_their_own_are_not_counted(tmp_path):
    """Hidden frames, split from the shown ones that they came with."""
    path = draw(
        tmp_path / "a.webm",
        "-c:v",
        "libvpx-vp9",
        "-auto-alt-ref",
        "1",
        "-lag-in-frames",
        "16",
        "-b:v",
        "200k",
        "-deadline",
        "good",
        "-cpu-used",
        "5",
    )
    run_ffmpeg("-i", path, "-c", "copy", "-bsf:v", "vp9_superframe_split", tmp_path / "split.mkv")
    info = probe(tmp_path / "split.mkv")
    assert info.num_frames == 40
    assert wrong_starts(info, [0, 7, 22, 39]) == []


def test_an_open_gop_cut_in_the_middle_is_read_from_its_first_whole_frame(tmp_path):
    for codec in ("hevc-open", "h264-open"):
        for suffix in (".mp4", ".mkv", ".ts"):
            whole = draw(tmp_path / f"{codec}{suffix}", *CODECS[codec], frames=60)
            run_ffmpeg("-ss", "1.0", "-i", whole, "-c", "copy", tmp_path / f"cut-{codec}{suffix}")
            info = probe(tmp_path / f"cut-{codec}{suffix}")
            assert wrong_starts(info, [0, 3, 17, info.num_frames - 1]) == []


# --- rates and times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "60000/1001", "120000/1001", "24", "25", "30", "50", "60", "120"])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_five_frames_tell_a_standard_rate(rate, suffix, tmp_path):
    codec = "vp8" if suffix == ".webm" else "h264"
    info = probe(draw(tmp_path / f"a{suffix}", *CODECS[codec], rate=rate, frames=5))
    assert info.fps == Fraction(rate)
    assert info.has_constant_rate


def test_a_rate_is_constant_by_how_far_frames_drift(tmp_path):
    """Gaps that change in the middle are far from even however short each is; rounded times are not."""
    drifts = draw(
        tmp_path / "a.mp4", *CODECS["h264"], "-enc_time_base", "1:90000", filters="setpts='if(lt(N,20),N/24,20/24+(N-20)/30)/TB'"
    )
    assert not probe(drifts).has_constant_rate
    assert probe(draw(tmp_path / "b.mkv", *CODECS["h264"], rate="30000/1001")).has_constant_rate


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_a_picture_that_starts_after_the_sound_keeps_its_delay(suffix, tmp_path):
    picture = draw(tmp_path / "a.mp4", *CODECS["h264"])
    late = tmp_path / f"late{suffix}"
    run_ffmpeg(
        "-itsoffset", "0.7", "-i", picture, "-f", "lavfi", "-i", "sine=duration=3", "-map", "0", "-map", "1", "-c:v", "copy", late
    )
    assert probe(late).times_s[0] == pytest.approx(0.7, abs=0.05)
    assert probe(picture).times_s[0] == 0


# --- colours --------------------------------------------------------------------------------------------------------


def colour_bars(path: Path, *options: object, pixels: str = "yuv420p10le", luma: int = 600, size: str = "64x48") -> Path:
    """One grey of a given 10-bit value, without any conversion."""
    width, height = map(int, size.split("x"))
    shift = 0 if pixels.endswith("10le") else 2
    plane = np.full(width * height, luma >> shift, np.uint16 if shift == 0 else np.uint8)
    chroma = np.full(width * height // 2, 512 >> shift, plane.dtype)
    raw = path.with_suffix(".raw")
    raw.write_bytes(np.tile(np.concatenate([plane, chroma]), 3).tobytes())
    run_ffmpeg("-f", "rawvideo", "-pix_fmt", pixels, "-s", size, "-r", "25", "-i", raw, *options, path)
    return path


HEVC10 = ["-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-preset", "ultrafast", "-x265-params"]


def pq_to_nits(value: float) -> float:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = value ** (1 / m2)
    return 10000 * (max(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def mobius(value: float, peak: float, param: float = 0.3) -> float:
    """The curve of ffmpeg's tonemap filter: straight up to `param`, then bent so that `peak` becomes 1."""
    if value <= param:
        return value
    a = -param * param * (peak - 1) / (param * param - 2 * param + peak)
    b = (param * param - 2 * param * peak + peak) / max(peak - 1, 1e-6)
    return (b * b + 2 * b * param + param * param) / (b - a) * (value + a) / (value + b)


@pytest.mark.parametrize("code", [150, 400, 520, 600, 700])
def test_pq_is_tone_mapped_by_the_stated_numbers(code, tmp_path):
    """BT.2408: 203 nits is white; mobius from 1000 nits; the gamma of BT.1886: as computed by hand from the code value."""
    path = colour_bars(
        tmp_path / "a.mp4", *HEVC10, "log-level=none:lossless=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited",
        luma=code,
    )  # fmt: skip
    info = probe(path)
    assert info.colour.is_hdr
    assert info.notes == ("HDR (PQ, BT.2020): tone-mapped to SDR",)
    linear = mobius(pq_to_nits((code - 64) / 876) / 203, 1000 / 203)
    found = next(read_frames(info)).astype(float)
    assert found.std(axis=(0, 1)).max() < 1
    assert np.abs(found.mean(axis=(0, 1)) - 255 * min(linear, 1) ** (1 / 2.4)).max() < 3


def test_hlg_is_tone_mapped_and_refused_if_asked(tmp_path):
    path = colour_bars(
        tmp_path / "a.mov", *HEVC10, "log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc:range=limited"
    )
    dark, bright = (
        next(read_frames(colour_bars(
            tmp_path / f"{luma}.mov", *HEVC10,
            "log-level=none:colorprim=bt2020:transfer=arib-std-b67:colormatrix=bt2020nc:range=limited", luma=luma,
        ))).mean()
        for luma in (300, 700)
    )  # fmt: skip
    assert dark < 100 < bright < 255
    with pytest.raises(VideoError, match="HDR"):
        probe(path, hdr="refuse")
    with pytest.raises(SettingsError, match="`hdr`"):
        probe(path, hdr="maybe")


def test_hdr_is_refused_where_ffmpeg_lacks_the_filters(tmp_path, monkeypatch):
    path = colour_bars(
        tmp_path / "a.mp4", *HEVC10, "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:range=limited"
    )
    monkeypatch.setattr(ffmpeg, "has_filter", lambda name: name != "zscale")
    with pytest.raises(VideoError, match="zscale"):
        probe(path)


@pytest.mark.parametrize(
    ("size", "matrix"), [("1280x720", (0.2126, 0.0722)), ("64x48", (0.299, 0.114)), ("720x576", (0.299, 0.114))]
)
def test_untagged_video_is_read_as_players_do(size, matrix, tmp_path):
    """BT.709 from 720 lines up, BT.601 below: the colour that went in, computed by hand."""
    red, green, blue = 32, 192, 64
    kr, kb = matrix
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    y, cb, cr = (
        round(16 + 219 * luma / 255),
        round(128 + 224 * (blue - luma) / 255 / 2 / (1 - kb)),
        round(128 + 224 * (red - luma) / 255 / 2 / (1 - kr)),
    )
    path = tmp_path / "a.mp4"
    run_ffmpeg(
        "-f", "lavfi", "-i", f"color=size={size}:rate=25,format=yuv420p,geq=lum={y}:cb={cb}:cr={cr}", "-frames:v", "2",
        "-c:v", "libx264", "-qp", "0", "-bsf:v", "h264_metadata=matrix_coefficients=2:colour_primaries=2:transfer_characteristics=2", path,
    )  # fmt: skip
    info = probe(path)
    assert not info.colour.is_matrix_stated
    assert np.abs(next(read_frames(info)).reshape(-1, 3).mean(0) - (red, green, blue)).max() < 3


def test_bt2020_in_sdr_is_converted(tmp_path):
    """Grey stays; a saturated green is out of BT.709 and more of one there."""
    grey = colour_bars(
        tmp_path / "a.mp4", *HEVC10, "log-level=none:colorprim=bt2020:transfer=bt2020-10:colormatrix=bt2020nc:range=limited"
    )
    info = probe(grey)
    assert info.notes == ("BT.2020 in SDR: converted to BT.709",)
    frame = next(read_frames(info)).reshape(-1, 3).mean(0)
    assert np.abs(frame - 255 * (600 - 64) / 876).max() < 2
    path = tmp_path / "green.mp4"
    run_ffmpeg(
        "-f", "lavfi", "-i", "color=size=64x48:rate=25:c=0x40a040,scale=out_color_matrix=bt2020,format=yuv420p10le", "-frames:v", "2", *HEVC10,
        "log-level=none:colorprim=bt2020:transfer=bt2020-10:colormatrix=bt2020nc:range=limited", path,
    )  # fmt: skip
    red, green, blue = next(read_frames(path)).reshape(-1, 3).mean(0)
    assert red < 40
    assert green > 160
    assert blue < 64


# --- fields, transparency, sizes ------------------------------------------------------------------------------------


def test_fields_are_woven_into_frames_of_one_time(tmp_path):
    path = draw(
        tmp_path / "a.mp4", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1",
        filters="tinterlace=interleave_top,setfield=tff", rate="50", frames=12,
    )  # fmt: skip
    info = probe(path)
    assert info.notes == ("interlaced (top first): deinterlaced, one frame for each",)
    assert len(list(read_frames(info))) == info.num_frames == 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", ["-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-lossless", "1"]),
        ("b.webm", ["-c:v", "libvpx", "-pix_fmt", "yuva420p", "-auto-alt-ref", "0", "-b:v", "2M"]),
        ("c.mov", ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"]),
        ("d.mov", ["-c:v", "qtrle"]),
        ("e.mkv", ["-c:v", "ffv1", "-pix_fmt", "bgra"]),
    ],
)
def test_what_is_transparent_is_shown_over_black(name, options, tmp_path):
    path = tmp_path / name
    run_ffmpeg(
        "-f", "lavfi", "-i", "color=c=red:size=64x48:rate=25,format=rgba,geq=r=255:g=0:b=0:a='if(lt(X,32),0,255)'", "-frames:v", "5",
        *options, path,
    )  # fmt: skip
    info = probe(path)
    frame = next(read_frames(info)).astype(int)
    assert np.abs(frame[:, :28] - 0).max() < 12
    assert np.abs(frame[:, 36:] - (255, 0, 0)).max() < 12
    assert "transparent parts are shown over black" in info.notes


def sized_anew(path: Path, codec: str, *options: object) -> Path:
    """25 frames of 64x48, then 25 of 48x64, in one stream."""
    parts = []
    for number, size in enumerate(("64x48", "48x64")):
        part = path.with_name(f"part{number}.{path.suffix}.mkv")
        run_ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate=25", "-frames:v", "25", *options, part)
        parts.append(part)
    listing = path.with_suffix(".txt")
    listing.write_text("".join(f"file {part}\n" for part in parts))
    run_ffmpeg("-f", "concat", "-safe", "0", "-i", listing, "-c", "copy", path)
    return path


@pytest.mark.parametrize("codec", ["vp8", "vp9", "h264"])
def test_frames_that_change_their_size_fit_the_first(codec, tmp_path):
    """Scaled to fit, with black borders, from every start, with and without strides; said once."""
    options = [*CODECS[codec], *(["-bsf:v", "h264_mp4toannexb"] if codec == "h264" else [])]
    path = sized_anew(tmp_path / ("a.ts" if codec == "h264" else "a.mkv"), codec, *options)
    info = probe(path)
    notes = Notes()
    frames = np.stack(list(read_frames(info, report=notes)))
    assert frames.shape == (50, 48, 64, 3)
    said = [*info.notes, *notes]
    assert len(said) == 1
    assert "48x64" in said[0]
    assert frames[30:, :, :10].max() < 12  # 36 wide, in the middle
    assert frames[30:, :, -10:].max() < 12
    assert frames[30:, :, 20:44].max() > 200
    for start, stride in ((20, 1), (30, 1), (3, 7), (22, 5)):
        assert np.array_equal(
            np.stack(list(read_frames(info, start=start, count=4, stride=stride))),
            frames[start : start + 4 * stride : stride][:4],
        )


def test_a_song_with_a_cover_is_no_video(tmp_path):
    cover = tmp_path / "cover.png"
    Image.new("RGB", (40, 40), "red").save(cover)
    song = ["-f", "lavfi", "-i", "sine=duration=1"]
    run_ffmpeg(*song, "-i", cover, "-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic", tmp_path / "a.mp4")
    run_ffmpeg(*song, "-attach", cover, "-metadata:s:t", "mimetype=image/png", tmp_path / "b.mkv")
    for name in ("a.mp4", "b.mkv"):
        with pytest.raises(VideoError, match="no video in it"):
            probe(tmp_path / name)


def test_tracks_are_told_apart(tmp_path):
    path = tmp_path / "a.mkv"
    run_ffmpeg(
        "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1", "-f", "lavfi", "-i", "sine=duration=1", "-f", "lavfi", "-i", "sine=f=880:duration=1",
        "-map", "0", "-map", "1", "-map", "2", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=fra",
        "-disposition:a:0", "0", "-disposition:a:1", "default", "-c:a", "aac", path,
    )  # fmt: skip
    info = probe(path)
    assert [(track.kind, track.codec, track.language) for track in info.tracks] == [
        ("video", "h264", ""),
        ("audio", "aac", "eng"),
        ("audio", "aac", "fra"),
    ]
    assert info.audio is not None
    assert info.audio.index == 2


# --- folders --------------------------------------------------------------------------------------------------------


def frames_folder(folder: Path, suffix: str = "jpg", count: int = 7, first: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (30 * number, 10, 200)).save(folder / f"{number + first:05d}.{suffix}", quality=95)
    return folder


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_folder_of_numbered_pictures_is_a_video(suffix, tmp_path):
    """The layout of DAVIS: JPEGImages/480p/<sequence>/00000.jpg."""
    folder = frames_folder(tmp_path / "JPEGImages" / "480p" / "bear", suffix)
    frames_folder(tmp_path / "JPEGImages" / "480p" / "camel", suffix, first=5)
    assert list_videos(tmp_path) == [folder, folder.parent / "camel"]
    info = probe(folder, fps=Fraction(10))
    assert (info.num_frames, info.height, info.width, info.fps) == (7, 48, 64, 10)
    frames = list(read_frames(info))
    assert [round(int(frame[..., 0].mean()) / 30) for frame in frames] == list(range(7))
    clip = read_clip_uint8(info, 2, (48, 64), start=2, stride=3)
    assert np.array_equal(clip, [frames[2], frames[5]])


def test_a_folder_of_frames_changes_its_stamp_and_digest_with_a_picture(tmp_path):
    folder = frames_folder(tmp_path / "bear", "png")
    before = stamp_of(str(folder)), sha256_of_video(folder)
    Image.new("RGB", (64, 48), "white").save(folder / "00003.png")
    after = stamp_of(str(folder)), sha256_of_video(folder)
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_pictures_of_another_size_fit_the_first(tmp_path):
    folder = frames_folder(tmp_path / "bear", "png")
    Image.new("RGB", (48, 64), "white").save(folder / "00003.png")
    notes = Notes()
    frames = list(read_frames(probe(folder), report=notes))
    assert len(frames) == 7
    assert frames[3][:, :10].max() == 0
    assert len(notes) == 1
    assert np.array_equal(read_clip_uint8(probe(folder), 2, (48, 64), start=3)[0], frames[3])


def test_what_is_left_out_of_a_folder_is_counted(tmp_path):
    for name in ("a.mp4", "notes.txt", "more.txt", "one.jpg", ".hidden"):
        (tmp_path / name).touch()
    notes = Notes()
    assert [path.name for path in list_videos(tmp_path, notes)] == ["a.mp4"]
    assert notes == ["left out, no videos: 3 files (.txt, .jpg)"]


FORMATS = {
    "a.mts": X264, "a.m2ts": X264, "a.3gp": [*X264, "-an"], "a.3g2": X264, "a.mpg": ["-c:v", "mpeg2video", "-bf", "2"],
    "a.flv": ["-c:v", "flv1"], "b.flv": X264, "a.wmv": ["-c:v", "wmv2"], "a.ogv": ["-c:v", "libtheora"], "a.gif": [],
    "a.webp": ["-c:v", "libwebp_anim", "-lossless", "1"], "a.y4m": ["-pix_fmt", "yuv420p"],
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_kind_of_file_in_a_folder_is_read_from_any_start(name, tmp_path):
    try:
        path = draw(tmp_path / name, *FORMATS[name], frames=20, filters="noise=alls=40:allf=t")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this ffmpeg cannot write it: {error.stderr.decode()[-80:]}")
    assert list_videos(tmp_path) == [path]
    info = probe(path)
    assert info.num_frames == 20
    assert wrong_starts(info, [0, 3, 11, 19]) == []


# --- reported -------------------------------------------------------------------------------------------------------

# name: (frames, rate, seconds until the first picture, constant rate)
REPORTED = {
    "cfr-23.976.mkv": (70, "24000/1001", 0, True), "cfr-30-vp9.webm": (70, "30", 0, True), "real-av1-30.mkv": (30, "30", 0, True),
    "vfr-24-then-30.mp4": (216, None, 0, False), "vfr-burst-60-rest-10.mp4": (90, None, 0, False), "vfr-one-late-frame.mkv": (90, None, 0, None),
    "x264-open-gop.mp4": (70, "30", 0, True), "x264-open-gop-fragmented.mp4": (70, "30", 0, True), "x265-open-gop.mp4": (70, "30", 0, True),
    "tick-per-frame-30.mp4": (70, "30", 0, True), "fragmented-b-frames.mp4": (70, "30", 0, True), "real-mv-hevc.mov": (5, "90", 0, True),
    "real-samsung-slow-motion.mp4": (63, "30", 0, True), "real-iphone-dolby-vision.MOV": (4, "30", 0, True),
    "real-vp9-10bit.webm": (72, "24000/1001", 0, True), "trimmed-end.mp4": (56, "30", 0, True), "real-edit-list-1s.mp4": (270, "30", 1.0, True),
    "video-late-0.7.mp4": (50, "25", 0.7, True), "video-late-0.7.mkv": (50, "25", 0.743, True), "video-late-0.7.ts": (50, "25", 0.731, True),
    "short-59.94.mkv": (12, "60000/1001", 0, True), "turned-vp8.webm": (50, "25", 0, True), "two-audio-subs.mp4": (25, "25", 0, True),
    "real-unknown-audio.mp4": (30, None, 0, True), "camera.mts": (25, "25", 0, True), "interlaced.mp4": (25, "25", 0, True),
}  # fmt: skip


@pytest.mark.skipif(not (SHARED / "reported").is_dir(), reason="the clips of shared/videos are not on this machine")
@pytest.mark.parametrize("name", REPORTED)
def test_reported_videos_are_read_right(name):
    frames, rate, delay, is_constant = REPORTED[name]
    info = probe(SHARED / "reported" / name)
    assert info.num_frames == frames
    assert rate is None or info.fps == Fraction(rate)
    assert info.times_s[0] == pytest.approx(delay, abs=0.001)
    assert is_constant is None or info.has_constant_rate == is_constant
    starts = [*range(0, frames, max(frames // 6, 1)), frames - 1]
    assert wrong_starts(info, starts) == []
