"""Videos nobody would want: damaged ones, each a function of (seed, number), and a set made by hand."""

import os
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.video import ffmpeg

FRAMES = 12
# The same bytes every time: one thread, no random identifiers, no dates.
_EXACT = ["-threads", "1", "-bitexact", "-fflags", "+bitexact", "-flags", "+bitexact"]
_H264 = ["-c:v", "libx264", "-preset", "veryfast", "-g", "5", "-pix_fmt", "yuv420p"]
KINDS = {
    "h264.mp4": [*_H264, "-movflags", "+faststart"],
    "fragments.mp4": [*_H264, "-movflags", "+frag_keyframe+empty_moov"],
    "h264.mov": _H264,
    "h264.mkv": _H264,
    "h264.ts": _H264,
    "mpeg2.ts": ["-c:v", "mpeg2video", "-g", "5"],
    "mpeg4.avi": ["-c:v", "mpeg4", "-g", "5", "-bf", "2"],
    "mjpeg.avi": ["-c:v", "mjpeg", "-pix_fmt", "yuvj420p"],
    "hevc.mp4": ["-c:v", "libx265", "-x265-params", "log-level=error:pools=none:frame-threads=1:keyint=5", "-pix_fmt", "yuv420p10le"],
    "av1.mp4": ["-c:v", "libaom-av1", "-cpu-used", "8", "-g", "5", "-lag-in-frames", "0"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-g", "5"],
    "vp8.webm": ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8", "-g", "5"],
    "sound.mov": [*_H264, "-f", "lavfi", "-i", "sine=duration=0.5", "-c:a", "aac"],
    "prores.mov": ["-c:v", "prores", "-profile:v", "0"],
}  # fmt: skip


def run_ffmpeg(*arguments: object) -> None:
    subprocess.run([ffmpeg.executable(), "-v", "error", "-nostdin", "-y", *map(str, arguments)], check=True)


def draw(path: Path, *options: object, source: str = f"testsrc2=size=64x48:rate=25:duration={FRAMES / 25}") -> Path:
    """A clip of one of ffmpeg's generators, the same bytes every time."""
    inputs, outputs = [], list(options)
    while "-i" in outputs:  # a second input, such as sound, comes before what is said of the output
        end = outputs.index("-i") + 2
        start = outputs.index("-f")
        inputs += outputs[start:end]
        del outputs[start:end]
    run_ffmpeg("-f", "lavfi", "-i", source, *inputs, *outputs, *_EXACT, path)
    return path


def originals(folder: Path) -> dict[str, bytes]:
    """One small whole video of each kind, by name."""
    return {name: draw(folder / name, *options).read_bytes() for name, options in KINDS.items()}


# --- damage -------------------------------------------------------------------------------------------------------

_NASTY = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF]
_PARENTS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"moof", b"traf", b"udta", b"mvex"}


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, name) of every box of an mp4, parents before what is in them."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield start, start + size, name
        if name in _PARENTS:
            yield from boxes(data, start + 8, start + size)
        start += size


def _span(data: bytearray, rng: random.Random, most: int = 2000) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.randint(1, rng.choice([4, 64, most])))


def _flip(data: bytearray, rng: random.Random, _: bytes) -> None:
    for _bit in range(rng.choice([1, 1, 4, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random, _: bytes) -> None:
    start, end = _span(data, rng)
    data[start:end] = rng.choice([bytes(end - start), b"\xff" * (end - start), rng.randbytes(end - start)])


def _truncate(data: bytearray, rng: random.Random, _: bytes) -> None:
    del data[rng.choice([rng.randrange(len(data)), len(data) - rng.randint(1, 64)]) :]


def _remove(data: bytearray, rng: random.Random, _: bytes) -> None:
    start, end = _span(data, rng)
    del data[start:end]


def _repeat(data: bytearray, rng: random.Random, _: bytes) -> None:
    start, end = _span(data, rng)
    data[end:end] = data[start:end] * rng.choice([1, 1, 20])


def _swap(data: bytearray, rng: random.Random, _: bytes) -> None:
    (a, b), (c, d) = sorted([_span(data, rng), _span(data, rng)])
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _header(data: bytearray, rng: random.Random, _: bytes) -> None:
    """A size or a field of the header becomes a number that parsers stumble over; one or a few of them."""
    places = list(boxes(data)) if data[4:8] == b"ftyp" else []
    for _field in range(rng.choice([1, 1, 3])):
        if places:
            start, end, _name = rng.choice(places)
            at = start if rng.random() < 0.3 else rng.randrange(start, min(end, start + 200))
        else:
            at = rng.randrange(min(len(data), 1000)) if rng.random() < 0.8 else len(data) - rng.randint(1, min(len(data), 600))
        width, order = rng.choice([1, 2, 4, 4, 8]), rng.choice(["big", "little"])
        number = rng.choice(_NASTY) if rng.random() < 0.7 else rng.randrange(1 << 32)
        field = (number % (1 << 8 * width)).to_bytes(width, order)
        data[at : at + width] = field[: len(data) - at]


_DAMAGES: Sequence[Callable[[bytearray, random.Random, bytes], None]] = (
    _flip, _overwrite, _truncate, _remove, _repeat, _swap, _splice, _header, _header,
)  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A damaged video: its file name says of what, its bytes, and what was done."""

    name: str
    content: bytes
    done: str


def mutant(known: dict[str, bytes], seed: int, number: int) -> Mutant:
    """Number `number` of those of `seed`: the same for the same originals, whatever was made before."""
    rng = random.Random(f"mutant/{seed}/{number}")
    name, other = rng.choice(sorted(known)), rng.choice(sorted(known))
    data, done = bytearray(known[name]), []
    for _time in range(rng.choice([1, 1, 2, 3])):
        if data:
            damage = rng.choice(_DAMAGES)
            damage(data, rng, known[other])
            done.append(damage.__name__.removeprefix("_"))
    return Mutant(f"{number:04}-{name}", bytes(data), f"{name}: {', '.join(done)}" + (f" ({other})" if "splice" in done else ""))


# --- made by hand -------------------------------------------------------------------------------------------------


def _replaced(data: bytes, path: tuple[bytes, ...], content: bytes) -> bytes:
    """An mp4 with other content in the first box at `path`, and the sizes of its parents set right."""
    place = 0
    start, end = 0, len(data)
    parents = []
    for name in path:
        place, end = next((a, b) for a, b, found in boxes(data, start, end) if found == name)
        parents.append(place)
        start = place + 8
    grown = len(content) - (end - start)
    changed = bytearray(data[:start] + content + data[end:])
    for place in parents:
        struct.pack_into(">I", changed, place, struct.unpack_from(">I", data, place)[0] + grown)
    return bytes(changed)


_TABLES = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def frames_from_nowhere(folder: Path) -> bytes:
    """A mov of a few kB whose tables show the same bytes as two million frames."""
    data = draw(
        folder / "raw.mov", "-c:v", "rawvideo", "-pix_fmt", "rgb24", source="testsrc2=size=4x4:rate=25:duration=40"
    ).read_bytes()
    place = next(start for start, _, name in boxes(data) if name == b"mdat") + 8
    chunks, frames = 2000, 1000
    data = _replaced(data, (*_TABLES, b"stts"), struct.pack(">IIII", 0, 1, chunks * frames, 1))
    data = _replaced(data, (*_TABLES, b"stsc"), struct.pack(">IIIII", 0, 1, 1, frames, 1))
    data = _replaced(data, (*_TABLES, b"stsz"), struct.pack(">III", 0, 48, chunks * frames))
    return _replaced(data, (*_TABLES, b"stco"), struct.pack(">II", 0, chunks) + struct.pack(">I", place) * chunks)


def frames_elsewhere(folder: Path, whole: bytes, canary: Path) -> bytes:
    """A mov whose frames lie in another file, by an alias as QuickTime writes it: the path, and how many levels up and down lead to it."""
    steps = Path(os.path.relpath(canary, folder)).parts
    name = canary.name.encode()
    alias = bytearray(150)
    alias[14:42] = (bytes([4]) + b"disk").ljust(28, b"\0")
    alias[50:114] = (bytes([len(name)]) + name).ljust(64, b"\0")
    alias[130:134] = struct.pack(">hh", 1 + steps.count(".."), len(steps) - steps.count(".."))
    path = str(canary).encode()
    tail = struct.pack(">hH", 2, len(path)) + path + b"\0" * (len(path) % 2)
    tail += struct.pack(">hH", 18, len(path)) + path + b"\0" * (len(path) % 2) + struct.pack(">hH", -1, 0)
    entry = struct.pack(">I4sI", 12 + len(alias) + len(tail), b"alis", 0) + bytes(alias) + tail
    return _replaced(whole, (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"), struct.pack(">II", 0, 1) + entry)


def playlists(target: str) -> dict[str, str]:
    """Texts that ffmpeg takes for media by what is in them, and that make it open `target`."""
    return {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "hls-key.ts": f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:1,\na.ts\n#EXT-X-ENDLIST\n',
        "ffconcat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" '
        'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        f'bandwidth="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
        f"a=control:{target}\n",
        "concat-script.mkv": f"file '{target}'\n",
        "reference.mov": f"RTSPtextRTSP://{target}\n",
        "smil.avi": f'<smil><body><video src="{target}"/></body></smil>',
        "avisynth.avi": f'DirectShowSource("{target}")\n',
        "web.webm": f'<html><video src="{target}"></video></html>',
    }  # fmt: skip


def _patched(data: bytes, changes: dict[bytes, bytes]) -> bytes:
    for old, new in changes.items():
        assert old in data, old
        data = data.replace(old, new)
    return data


def too_large(folder: Path) -> dict[str, bytes]:
    """Small files whose headers claim 16384x16384 pixels."""
    small, large = 64, 16384
    raw = draw(folder / "raw.avi", "-c:v", "rawvideo", "-pix_fmt", "bgr24").read_bytes()
    jpeg = draw(folder / "jpeg.avi", "-c:v", "mjpeg", "-pix_fmt", "yuvj420p").read_bytes()
    png = draw(folder / "png.mov", "-c:v", "png", "-pix_fmt", "rgb24").read_bytes()
    at = png.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", large, large) + png[at + 12 : at + 17]
    return {
        "16k-raw.avi": _patched(raw, {struct.pack("<Ii", small, -48): struct.pack("<II", large, large)}),
        "16k-jpeg.avi": _patched(
            jpeg,
            {
                struct.pack("<II", small, 48): struct.pack("<II", large, large),
                struct.pack(">HH", 48, small): struct.pack(">HH", large, large),
            },
        ),
        "16k-png.mov": png[: at] + header + struct.pack(">I", zlib.crc32(header)) + png[at + 21 :],
    }  # fmt: skip


@dataclass(frozen=True)
class Good:
    """A video that is odd, and fine: what reading must find."""

    frames: int
    height: int = 48
    width: int = 64
    turned: int = 0  # quarter turns, counter-clockwise, of what the generator draws


_VARIABLE = "select='not(mod(n,3))+lt(n,6)',setpts='PTS+if(gt(N,4),0.3/TB,0)'"
GOOD = {
    "rotated.mp4": (Good(12, 64, 48, turned=1), [*_H264]),
    "variable-rate.mp4": (Good(8), ["-vf", _VARIABLE, "-fps_mode", "passthrough", *_H264]),
    "ten-bit.mp4": (Good(12), KINDS["hevc.mp4"]),
    "alpha.webm": (Good(12), ["-vf", "format=yuva420p", "-c:v", "libvpx-vp9", "-auto-alt-ref", "0"]),
    "alpha-animation.mov": (Good(12), ["-vf", "format=argb,colorchannelmixer=aa=0.3", "-c:v", "qtrle"]),
    "alpha-prores.mov": (Good(12), ["-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le"]),
    "interlaced.mp4": (Good(12), ["-vf", "setfield=tff", "-flags", "+ildct+ilme", *_H264]),
    "interlaced.ts": (Good(12), ["-vf", "setfield=tff", "-flags", "+ildct+ilme", "-c:v", "mpeg2video"]),
    "odd-size.mp4": (Good(12, 37, 51), ["-vf", "scale=51:37", "-c:v", "libx264", "-pix_fmt", "yuv444p"]),
    "wide-pixels.mp4": (Good(12), ["-vf", "setsar=4/3", *_H264]),
}
NAMES = (
    "new\nline.mp4", "-i.mp4", "http:example.com.mp4", "concat:a.mp4|b.mp4", "file:a.mp4", "pipe:0.mp4", "%03d.mp4", "*.mp4",
    "it's \"quoted\".mp4", " space .mp4", "ünï-視頻-🎬.mp4", "\u202egpm.mp4", "[red]a.mp4", "\x1b[2J.mp4", ":star:.mp4", "a" * 251 + ".mp4",
)  # fmt: skip


def odd_but_good(folder: Path) -> dict[Path, Good]:
    """Videos that are to be used, each of its own bytes: odd ones, and ordinary ones with odd names."""
    found = {}
    for name, (good, options) in GOOD.items():
        found[draw(folder / name, *options)] = good
        if good.turned:
            (folder / name).rename(folder / f"plain-{name}.bak")
            run_ffmpeg("-display_rotation", 90 * good.turned, "-i", folder / f"plain-{name}.bak", "-c", "copy", folder / name)
            (folder / f"plain-{name}.bak").unlink()
    ordinary = draw(folder / "ordinary.mp4", *KINDS["h264.mp4"]).read_bytes()
    found[folder / "ordinary.mp4"] = Good(FRAMES)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(ordinary + struct.pack(">I4sI", 12, b"free", number))
        found[folder / name] = Good(FRAMES)
    return found


def hopeless(folder: Path, canary: Path, port: int) -> dict[Path, str]:
    """What is to be skipped, each with words of the reason; playlists name `canary`, and `port` of this machine."""
    ordinary = draw(folder / "cut.mp4", *KINDS["h264.mp4"])
    whole = ordinary.read_bytes()
    ordinary.write_bytes(whole[: len(whole) * 2 // 3])
    found = {"cut.mp4": "damaged", "empty.mp4": "0 bytes", "noise.mp4": "not a video", "one-frame.mp4": "1 frames, 5 needed"}
    (folder / "empty.mp4").touch()
    (folder / "noise.mp4").write_bytes(random.Random(0).randbytes(5000))
    draw(folder / "one-frame.mp4", *KINDS["h264.mp4"], "-frames:v", 1)
    for target, mark in ((str(canary), ""), (f"file://{canary}", "file-"), (f"http://127.0.0.1:{port}/a.ts", "http-")):
        for name, text in list(playlists(target).items())[: 5 if mark else None]:  # real formats come first
            (folder / (mark + name)).write_text(text)
            found[mark + name] = "not a video"
    for name in ("zero-frames.mp4", "zero-frames.mkv"):
        draw(folder / name, *_H264, "-frames:v", 0)
        found[name] = ""
    draw(folder / "sound-only.mp4", "-c:a", "aac", source="sine=duration=0.5")
    found["sound-only.mp4"] = "no video in it"
    for name, data in too_large(folder).items():
        (folder / name).write_bytes(data)
        found[name] = "Picture size|dimensions"
    for name in ("raw.avi", "jpeg.avi", "png.mov"):
        (folder / name).unlink()
    (folder / "frames-from-nowhere.mov").write_bytes(frames_from_nowhere(folder))
    (folder / "raw.mov").unlink()
    found["frames-from-nowhere.mov"] = "claims more than"
    (folder / "frames-elsewhere.mov").write_bytes(frames_elsewhere(folder, canary.read_bytes(), canary))
    found["frames-elsewhere.mov"] = "no frame could be decoded"
    os.mkfifo(folder / "fifo.mp4")
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "folder.mp4").mkdir()
    found |= {"fifo.mp4": "not a regular file", "device.mp4": "not a regular file", "loop.mp4": "symbolic links"}
    found |= {"dangling.mp4": "no such file", "folder.mp4": "not a regular file"}
    (folder / os.fsdecode(b"no-text-\xff.mp4")).write_bytes(whole)
    found[os.fsdecode(b"no-text-\xff.mp4")] = "not UTF-8"
    if os.geteuid() != 0:
        (folder / "secret.mp4").write_bytes(whole)
        (folder / "secret.mp4").chmod(0)
        found["secret.mp4"] = "permission"
    return {folder / name: reason for name, reason in found.items()}


# --- one alone ----------------------------------------------------------------------------------------------------

if __name__ == "__main__":  # python tests/faults/hostile_videos.py SEED NUMBER FOLDER: one of the mutants again
    seed, number, where = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    where.mkdir(parents=True, exist_ok=True)
    made = mutant(originals(where), seed, number)
    (where / made.name).write_bytes(made.content)
    print(f"{where / made.name}: {made.done}")
