"""Videos as bug reports of other tools describe them: recordings that begin anywhere, remuxed times, odd colours and folders."""

import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_video_reading import CODECS, X264, Notes, draw, hashes, run_ffmpeg, wrong_starts

from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import messages, probe, read_frames

# --- messages -------------------------------------------------------------------------------------------------------

ABOUT = {
    messages.About.INPUT: (
        "[h264 @ 0x5615f7b3] [error] error while decoding MB 2 0, bytestream -8",
        "[h264 @ 0x5615f7b3] [error] left block unavailable for requested intra4x4 mode -1",
        "[h264 @ 0x5615f7b3] [error] Invalid NAL unit size (893 > 441).",
        "[in#0/matroska,webm @ 0x55d0] [error] File ended prematurely",
        "[matroska,webm @ 0x55d0] [error] Element at 0x8f8 ending at 0x10e466 exceeds containing master element ending at 0x50",
        "[mpeg4 @ 0x55d0] [error] ac-tex damaged at 0 0",
        "[ogg @ 0x55d0] [error] CRC mismatch!",
        "[vist#0:0/av1 @ 0x55d0] [dec:libdav1d @ 0x55d1] [error] Error submitting packet to decoder: Invalid data found when processing input",
        "[in#0/mov,mp4,m4a,3gp,3g2,mj2 @ 0x55d0] [error] Error during demuxing: Cannot allocate memory",
        "[gif @ 0x55d0] [error] LZW decode failed",
        "[png @ 0x55d0] [error] inflate returned error -3",
        "moov atom not found",
    ),
    messages.About.REFERENCES: (
        "[hevc @ 0x55d0] [error] PPS id out of range: 0",
        "[hevc @ 0x55d0] [error] Could not find ref with POC 15",
        "[hevc @ 0x55d0] [error] Error constructing the frame RPS.",
        "[h264 @ 0x55d0] [error] non-existing PPS 0 referenced",
        "[h264 @ 0x55d0] [error] decode_slice_header error",
        "[h264 @ 0x55d0] [error] no frame!",
        "[h264 @ 0x55d0] [error] mmco: unref short failure",
        "[h264 @ 0x55d0] [error] co located POCs unavailable",
        "[vvc @ 0x55d0] [error] PPS id 0 is not available.",
        "[vp9 @ 0x55d0] [error] Requested reference 1 not available",
        "[vist#0:0/h264 @ 0x564d] [dec:h264 @ 0x564e] [warning] corrupt decoded frame",
    ),
    messages.About.OUTPUT: (
        "[null @ 0x564e] [error] Application provided invalid, non monotonically increasing dts to muxer in stream 0: 2 >= 2",
        "[out#0/rawvideo @ 0x560f] [error] Error muxing a packet",
        "[vost#0:0/copy @ 0x560f] [error] Error submitting a packet to the muxer: Broken pipe",
        "[vf#0:0 @ 0x5642] [error] Error sending frames to consumers: Generic error in an external library",
        "[swscaler @ 0x5642] [error] Unsupported input (Operation not supported)",
    ),
    messages.About.NOTHING: (
        "[in#0/mpegts @ 0x564e] [warning] DTS discontinuity in stream 0: packet 8 with DTS 154800, packet 9 with DTS 1",
        "[hevc @ 0x55d0] [warning] Skipping invalid undecodable NALU: 0",
        "[info]   Stream #0:0: Video: h264 (High), yuv420p, 64x48",
        "[error] Last message repeated 3 times",
        "",
    ),
}


@pytest.mark.parametrize(("about", "line"), [(about, line) for about, lines in ABOUT.items() for line in lines])
def test_a_line_of_ffmpeg_is_about_one_thing(about, line):
    assert messages.about(line) is about


def test_the_second_line_of_a_warning_is_no_error(tmp_path):
    """An odd rotation makes ffmpeg ask for a sample, in the second line of a warning."""
    run_ffmpeg("-display_rotation", "45", "-i", draw(tmp_path / "a.mp4", *X264), "-c", "copy", tmp_path / "turned.mp4")
    assert probe(tmp_path / "turned.mp4").num_frames == 40


# --- recordings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["h264", "h264-open", "hevc", "hevc-open"])
def test_a_broadcast_recording_begins_anywhere(codec, tmp_path):
    """Packets of a transport stream before the first key frame have no parameter sets: players skip them."""
    whole = draw(tmp_path / "whole.ts", *CODECS[codec], frames=70)
    data = whole.read_bytes()
    for share in (0.25, 0.4):
        path = tmp_path / f"{share}.ts"
        path.write_bytes(data[round(len(data) // 188 * share) * 188 :])
        info = probe(path)
        assert 20 < info.num_frames < 70
        assert wrong_starts(info, [0, 5, info.num_frames - 1]) == []


@pytest.mark.parametrize("rate", ["24000/1001", "25", "30000/1001", "30", "60", "60000/1001"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".ts"])
def test_times_that_matroska_rounded_leave_a_standard_rate(rate, suffix, tmp_path):
    """OBS records to mkv and remuxes: the times stay rounded to milliseconds."""
    run_ffmpeg("-i", draw(tmp_path / "a.mkv", *X264, rate=rate, frames=30), "-c", "copy", tmp_path / f"a{suffix}")
    info = probe(tmp_path / f"a{suffix}")
    assert info.fps == Fraction(rate)
    assert info.has_constant_rate


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_damage_costs_only_the_clips_that_meet_it(codec, tmp_path):
    """What is before and after the damaged GOPs comes, what is in them is refused, and nothing is wrong."""
    path = draw(tmp_path / "a.mp4", *CODECS[codec], frames=90, size="128x96", filters="noise=alls=10:allf=t")
    whole = hashes(probe(path))
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    for place in range(len(data) * 45 // 100, len(data) * 55 // 100, 40):
        data[place] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    info = probe(path)
    refused = []
    for start in range(0, 88, 3):
        try:
            assert hashes(info, start=start, count=3) == whole[start : start + 3]
        except VideoError:
            refused.append(start)
    assert refused
    assert min(refused) > 20
    assert max(refused) < 70
    with pytest.raises(VideoError):
        hashes(info)


# --- colours --------------------------------------------------------------------------------------------------------


def tagged(path: Path, matrix: str, transfer: str = "bt709", primaries: str = "bt709", pixels: str = "yuv444p10le") -> Path:
    """A picture of this matrix, lossless, made by zscale."""
    run_ffmpeg(
        "-f", "lavfi", "-i", f"testsrc=size=64x48:rate=25,format=gbrp,zscale=min=gbr:rin=full:pin=bt709:tin=bt709:m={matrix}:p={primaries}:t={transfer}:r=limited,format={pixels}",
        "-frames:v", "2", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params",
        f"log-level=none:lossless=1:colorprim={primaries}:transfer={transfer}:colormatrix={matrix}:range=limited", path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize("matrix", ["ycgco", "fcc", "smpte240m", "bt470bg", "bt709"])
def test_every_matrix_gives_the_colours_that_went_in(matrix, tmp_path):
    path = tagged(tmp_path / "a.mp4", matrix)
    given = np.frombuffer(
        run_ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48:rate=25", "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"), np.uint8
    )  # fmt: skip
    info = probe(path)
    assert info.notes == ()
    difference = np.abs(next(read_frames(info)).astype(float).ravel() - given)
    assert np.percentile(difference, 95) <= 3
    assert wrong_starts(info, [1]) == []


@pytest.mark.parametrize(("matrix", "transfer"), [("bt2020c", "bt2020-10"), ("ictcp", "smpte2084")])
def test_matrices_of_bt2020_are_undone(matrix, transfer, tmp_path):
    """A grey ramp has no colour, whatever the matrix."""
    path = tmp_path / "a.mp4"
    run_ffmpeg(
        "-f", "lavfi", "-i", "gradients=size=64x48:rate=25:c0=black:c1=0xb0b0b0:nb_colors=2,format=yuv420p10le,hue=s=0", "-frames:v", "2",
        "-c:v", "libx265", "-preset", "ultrafast", "-x265-params",
        f"log-level=none:lossless=1:colorprim=bt2020:transfer={transfer}:colormatrix={matrix}:range=limited", path,
    )  # fmt: skip
    frame = next(read_frames(path)).astype(int)
    assert frame.max() > 60
    assert (frame.max(2) - frame.min(2)).max() <= 3


def test_a_matrix_that_cannot_be_undone_is_named(tmp_path):
    path = draw(
        tmp_path / "a.mp4", "-c:v", "libx265", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", "-x265-params",
        "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=smpte2085", frames=3,
    )  # fmt: skip
    with pytest.raises(VideoError, match="smpte2085"):
        probe(path)


def test_what_is_opaque_keeps_its_exact_colours(tmp_path):
    """Compositing must not darken by rounding."""
    path = tmp_path / "a.mkv"
    given = np.random.default_rng(1).integers(0, 256, (48, 64, 4), np.uint8)
    given[:24, :, 3] = 255
    (tmp_path / "a.raw").write_bytes(given.tobytes())
    run_ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-i", tmp_path / "a.raw", "-c:v", "ffv1", "-pix_fmt", "bgra", path
    )
    frame = next(read_frames(path)).astype(float)
    assert np.array_equal(frame[:24], given[:24, :, :3])
    assert np.abs(frame[24:] - given[24:, :, :3] * (given[24:, :, 3:] / 255)).max() < 1


# --- folders of pictures --------------------------------------------------------------------------------------------


def picture(number: int, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:48, :64]
    return Image.fromarray(np.stack([np.full_like(x, 40 * number), x * 3, y * 4], -1).astype(np.uint8)).convert(mode)


def folder_of(folder: Path, suffix: str, save, count: int = 5) -> Path:
    """Numbered files, each written by save(number, path)."""
    folder.mkdir()
    for number in range(count):
        save(number, folder / f"{number:05d}.{suffix}")
    return folder


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1"])
def test_every_kind_of_png_is_exact(mode, tmp_path):
    folder = folder_of(tmp_path / "a", "png", lambda number, path: picture(number, mode).save(path))
    for number, frame in enumerate(read_frames(folder)):
        assert np.array_equal(frame, np.asarray(picture(number, mode).convert("RGB")))


def test_transparency_in_a_later_picture_is_shown_over_black(tmp_path):
    def save(number: int, path: Path) -> None:
        image = picture(number)
        if number == 2:
            image.putalpha(Image.fromarray(np.tile(np.array([0, 255], np.uint8).repeat(32), (48, 1))))
        image.save(path)

    folder = folder_of(tmp_path / "a", "png", save)
    notes = Notes()
    frames = list(read_frames(folder, report=notes))
    assert notes == ["a: transparent parts are shown over black"]
    assert frames[2][:, :32].max() == 0
    assert np.array_equal(frames[2][:, 32:], np.asarray(picture(2))[:, 32:])
    assert wrong_starts(probe(folder), [0, 1, 2, 3]) == []


def with_exif(number: int, path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(number).save(path, quality=95, exif=exif)


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    for orientation in (3, 6, 8):
        folder = folder_of(
            tmp_path / str(orientation), "jpg", lambda number, path, turn=orientation: with_exif(number, path, turn)
        )
        turned = picture(2).rotate({3: 180, 6: 270, 8: 90}[orientation], expand=True)
        frame = next(read_frames(folder, start=2)).astype(float)
        assert frame.shape == np.asarray(turned).shape
        assert np.abs(frame - np.asarray(turned)).mean() < 2


def test_pictures_that_are_turned_differently_are_refused(tmp_path):
    folder = folder_of(tmp_path / "a", "jpg", lambda number, path: with_exif(number, path, 6 if number == 2 else 1))
    assert len(list(read_frames(folder, count=2))) == 2
    for start in (0, 2):
        with pytest.raises(VideoError, match=r"00002.jpg: its EXIF turns it"):
            list(read_frames(folder, start=start))


def test_what_cameras_append_to_pictures_is_left_out(tmp_path):
    """Second pictures of dual cameras (MPO), previews, zeros; a JPEG in a comment is no end."""

    def save(number: int, path: Path) -> None:
        inner = io.BytesIO()
        picture(number).resize((16, 12)).save(inner, "JPEG")
        picture(number).save(path, quality=95, comment=inner.getvalue())
        if number % 2:
            path.write_bytes(path.read_bytes() + bytes(50) + inner.getvalue()[:300])

    folder = folder_of(tmp_path / "a", "jpg", save)
    folder_of(tmp_path / "b", "jpg", lambda n, path: picture(n).save(path, "MPO", save_all=True, append_images=[picture(n)]))
    folder_of(tmp_path / "c", "png", lambda n, path: (picture(n).save(path), path.write_bytes(path.read_bytes() + bytes(99))))
    for name in ("a", "b", "c"):
        frames = list(read_frames(folder.parent / name))
        assert len(frames) == 5
        assert all(np.abs(frame[..., 0].astype(int) - 40 * number).max() < 9 for number, frame in enumerate(frames))


def test_pictures_are_what_they_hold_and_have_square_pixels(tmp_path):
    folder_of(tmp_path / "a", "jpg", lambda number, path: picture(number).save(path, "PNG"))
    folder_of(tmp_path / "b", "png", lambda number, path: picture(number).save(path, "JPEG", dpi=(72, 144)))
    for name in ("a", "b"):
        assert next(read_frames(tmp_path / name)).shape == (48, 64, 3)


def test_cmyk_has_no_transparency(tmp_path):
    info = probe(folder_of(tmp_path / "a", "jpg", lambda number, path: picture(number, "CMYK").save(path, quality=95)))
    assert info.notes == ()
    assert np.abs(next(read_frames(info, start=3)).astype(float) - np.asarray(picture(3))).mean() < 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_that_is_cut_off_is_named(suffix, tmp_path):
    def save(number: int, path: Path) -> None:
        picture(number).save(path)
        if number == 2:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    folder = folder_of(tmp_path / "a", suffix, save)
    assert len(list(read_frames(folder, count=2))) == 2
    with pytest.raises(VideoError, match=r"00002.*cut off"):
        list(read_frames(folder))
