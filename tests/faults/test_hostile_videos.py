"""Videos of strangers, damaged at random and hostile by hand: used or named with a reason, within seconds, and nothing else is opened."""

import ctypes
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile_videos
import numpy as np
import psutil
import pytest
from faulty import count_of
from limits import HANG_S

from turbovaed_cli import cli
from turbovaed_cli.errors import VideoError
from turbovaed_cli.video import as_text, ffmpeg, probe, read_clip_uint8, read_frames

pytestmark = [pytest.mark.faults, pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc and inotify")]
MOST_SECONDS = 10  # of one ffmpeg on a processor, for one file
MOST_MEMORY_MB = 1024  # of an ffmpeg, for pictures as small as these


class Canary:
    """A video that none of the commands was given, and a port that nobody should call: who opens either is noticed, by inotify and by listening."""

    def __init__(self, path: Path) -> None:
        self.path = hostile_videos.draw(path, *hostile_videos.KINDS["h264.mov"])
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._watch = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._watch >= 0
        assert self._libc.inotify_add_watch(self._watch, os.fsencode(self.path), 0x20) >= 0  # IN_OPEN
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]

    def disturbed(self) -> bool:
        """Whether it was opened or the port called since the last time."""
        opened, _, _ = select.select([self._watch, self._server], [], [], 0)
        if self._watch in opened:
            os.read(self._watch, 1 << 16)
        if self._server in opened:
            self._server.accept()[0].close()
        return bool(opened)

    def close(self) -> None:
        os.close(self._watch)
        self._server.close()


class Peaks:
    """The largest resident memory, in MB, and the most seconds on a processor of any ffmpeg that was started meanwhile."""

    def __enter__(self) -> "Peaks":
        self.mb, self.seconds, self._ends = 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ends.wait(0.1):
            for child in me.children(recursive=True):
                try:
                    if child.name().startswith("ffmpeg"):
                        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{child.pid}/status").read_text())
                        self.mb = max(self.mb, int(peak[1]) / 1024 if peak else 0.0)
                        self.seconds = max(self.seconds, sum(child.cpu_times()[:2]))
                except (psutil.NoSuchProcess, OSError):
                    continue


@pytest.fixture(scope="module")
def canary(tmp_path_factory):
    made = Canary(tmp_path_factory.mktemp("canary") / "canary.mov")
    yield made
    made.close()


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, bytes]:
    return hostile_videos.originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module")
def handmade(tmp_path_factory, canary):
    """A folder of hostile files and, sorted behind them, odd ones that are fine."""
    folder = tmp_path_factory.mktemp("handmade")
    for name in ("hostile", "odd"):
        (folder / name).mkdir()
    bad = hostile_videos.hopeless(folder / "hostile", canary.path, canary.port)
    good = hostile_videos.odd_but_good(folder / "odd")
    canary.disturbed()  # by the making of a hostile copy
    return folder, bad, good


def read_as_commands_do(path: Path) -> None:
    info = probe(path)
    assert sum(1 for _ in read_frames(info, size=(32, 32))) == info.num_frames
    assert read_clip_uint8(info, 1, (32, 32), start=info.num_frames // 2).shape == (1, 32, 32, 3)


# --- damaged at random --------------------------------------------------------------------------------------------


def test_a_thousand_mutated_videos_are_read_or_refused(originals, canary, tmp_path, request, tally):
    count, seed = count_of(request, quick=25, full=1000), request.config.getoption("--fault-seed")
    print(f"mutated videos: seed {seed}; one alone: python tests/faults/hostile_videos.py {seed} NUMBER FOLDER")

    def attempt(number: int) -> tuple[bool, str]:
        """Whether it could be read, and what went wrong if anything did."""
        made = hostile_videos.mutant(originals, seed, number)
        path, could_be_read, wrong = tmp_path / made.name, True, ""
        path.write_bytes(made.content)
        try:
            read_as_commands_do(path)
        except VideoError as error:
            could_be_read = False
            wrong = "" if str(path) in error.what and len(error.what) > len(str(path)) + 3 else f"no reason: {error.what}"
        except Exception as error:
            wrong = repr(error)
        path.unlink()
        return could_be_read, wrong and f"seed {seed} number {number} ({made.done}): {wrong}"

    with Peaks() as peak, ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, range(count)))
    lost = [wrong for _, wrong in outcomes if wrong]
    tally("mutated videos", count, count - len(lost))
    print(f"{sum(could for could, _ in outcomes)} of {count} could be read; largest ffmpeg {peak.mb:.0f} MB")
    assert lost == []
    assert peak.mb < MOST_MEMORY_MB and peak.seconds < MOST_SECONDS
    assert not canary.disturbed()
    assert 0 < sum(could for could, _ in outcomes) < count


def test_a_mutant_is_the_same_whenever_it_is_made(originals, tmp_path):
    again = hostile_videos.originals(tmp_path)
    assert again == originals
    assert hostile_videos.mutant(again, 3, 17) == hostile_videos.mutant(originals, 3, 17)
    assert len({hostile_videos.mutant(originals, 3, number).content for number in range(50)}) > 45


# --- through every command ----------------------------------------------------------------------------------------

SMALL = ("--data", "{data}", "--frames", "5", "--size", "32", "--json")
COMMANDS = {
    "cache-latents": ("--teacher", "tiny", "--out", "{out}/latents", *SMALL),
    "eval": ("--metrics", "psnr", *SMALL),
    "distill": (
        "--teacher",
        "tiny",
        "--run",
        "{out}/run",
        "--recipe",
        "quick",
        "--steps",
        "1",
        "--start",
        "plain",
        "--perceptual",
        "none",
        *SMALL,
    ),
    "export": ("--format", "safetensors", "--out", "{out}/student.safetensors", *SMALL),
    "bench": ("--target", "torch", "--no-teacher", "--repeats", "1", "--warmup", "1", *SMALL),
}


def run(name: str, data: Path, out: Path) -> tuple[dict, dict[str, str]]:
    """The command's document and what it skipped, with reasons: as JSON says, which its warnings repeat, one line each."""
    words = [word.format(data=data, out=out) for word in COMMANDS[name]]
    command = [sys.executable, "-m", "turbovaed_cli", name, *words]
    with Peaks() as peak:
        done = subprocess.run(command, capture_output=True, timeout=HANG_S, check=False)
    said = done.stderr.decode()
    assert done.returncode == 5, said
    assert "Traceback" not in said
    assert peak.mb < MOST_MEMORY_MB and peak.seconds < MOST_SECONDS
    document = json.loads(done.stdout)
    skipped = {item["path"]: item["reason"] for item in document["skipped"]}
    assert len([line for line in said.splitlines() if line.startswith("warning: skipped: ")]) == len(document["skipped"]) > 0
    return document, skipped


def used_by(name: str, document: dict, out: Path) -> set[str] | None:
    """The videos it made something of; None where it does not say which."""
    if name == "cache-latents":
        shards = [json.loads(path.read_text()) for path in (out / "latents" / "shards").glob("*.json")]
        return {clip["path"] for shard in shards for clip in shard["clips"]}
    return {clip["path"] for clip in document["clips"]} if name == "eval" else None


def has_frames(path: Path, count: int) -> bool:
    try:
        return probe(path).num_frames >= count
    except VideoError:
        return False


def names_in(skipped: dict[str, str], paths: list[Path]) -> set[str]:
    """Which of the paths are named as skipped, whole or a clip of them."""
    return {
        as_text(path) for path in paths if any(item == as_text(path) or item.startswith(f"{as_text(path)} (") for item in skipped)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_of_hostile_damaged_and_odd_videos(name, handmade, originals, canary, tmp_path, request, tally):
    """Exit code 5: each is used, or named with its reason; for export and bench, which take the first usable ones, as far as they went."""
    if name != "cache-latents" and not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    folder, bad, good = handmade
    seed, first = request.config.getoption("--fault-seed"), 10_000 + 1000 * list(COMMANDS).index(name)  # others than the thousand
    damaged = []
    shutil.rmtree(folder / "mutants", ignore_errors=True)
    (folder / "mutants").mkdir()
    for number in range(first, first + count_of(request, quick=10, full=30)):
        made = hostile_videos.mutant(originals, seed, number)
        damaged.append(folder / "mutants" / made.name)
        damaged[-1].write_bytes(made.content)
    document, skipped = run(name, folder, tmp_path / "out")
    named, used = names_in(skipped, [*bad, *damaged, *good]), used_by(name, document, tmp_path / "out")
    assert {as_text(path) for path in bad} <= named and not named & set(map(str, good))
    for path, reason in bad.items():
        assert re.search(reason, skipped[as_text(path)]), (path, skipped[as_text(path)])
    if used is not None:
        kept = {Path(path).read_bytes() for path in used}  # of the same bytes, one name stands for all
        assert {str(path) for path in [*damaged, *good] if path.read_bytes() in kept} | named == {
            as_text(path) for path in [*bad, *damaged, *good]
        }
    elif name == "distill":  # what probing refuses; what else is damaged is met only where a step looks at it
        refused = {as_text(path) for path in [*bad, *damaged] if not has_frames(path, 5)}
        assert refused <= named
    assert not canary.disturbed()
    tally("hostile files", len(bad) + len(good), len(bad) + len(good))
    tally("mutated videos, through a command", len(damaged), len(damaged))


@pytest.mark.slow
def test_each_hostile_file_alone_through_reconstruct(handmade, canary, tmp_path, request, tally, capfd, monkeypatch):
    """In this process, which imports torch once."""
    _, bad, good = handmade
    step = count_of(request, quick=20, full=1)
    chosen = [*list(bad)[::step], *list(good)[::step]]
    with Peaks() as peak:
        for number, path in enumerate(chosen):
            out = tmp_path / f"{number}.mp4"
            monkeypatch.setattr(sys, "argv", ["turbovaed", "reconstruct", "--out", str(out), "--json", "--", str(path)])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            printed, said = capfd.readouterr()
            if path in good or path.name == "one-frame.mp4":
                assert ended.value.code == 0, said
                assert json.loads(printed)["num_frames"] == probe(out).num_frames == (good[path].frames if path in good else 1)
            else:
                assert ended.value.code in (1, 2), said
                assert not out.exists()
                lines = [line for line in said.splitlines() if line.startswith("error: ")]
                assert len(lines) == 1 and len(said.splitlines()) <= 3, said
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert peak.mb < MOST_MEMORY_MB and peak.seconds < MOST_SECONDS
    assert not canary.disturbed()
    tally("hostile files", len(chosen), len(chosen))


def test_a_name_too_long_for_its_output_says_what_to_do(handmade, tmp_path, monkeypatch, capfd):
    path = next(path for path in handmade[2] if path.name.startswith("aaa"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["turbovaed", "reconstruct", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "hint: give a shorter name with --out" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


# --- odd, and fine ------------------------------------------------------------------------------------------------


def test_what_is_odd_and_fine_is_read_right(handmade, canary):
    """Every frame, upright, and the picture that was drawn: rotated, variable rate, 10 bits, alpha, interlaced, odd sizes and names."""
    drawn = subprocess.run(
        [ffmpeg.executable(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=0.48",
         "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    drawn = np.frombuffer(drawn, np.uint8).reshape(12, 48, 64, 3)
    for path, good in handmade[2].items():
        info = probe(path)
        frames = np.stack(list(read_frames(info, square_pixels=False)))
        assert frames.shape == (good.frames, good.height, good.width, 3), path
        assert info.num_frames == good.frames
        wanted = (
            drawn[[0, 1, 2, 3, 4, 5, 6, 9]] if path.name.startswith("variable") else np.rot90(drawn, good.turned, axes=(1, 2))
        )
        if path.name == "alpha-animation.mov":
            wanted = wanted * 0.3  # over black
        if path.name.startswith("variable"):
            assert not info.has_constant_rate
        if not path.name.startswith("odd"):
            assert np.abs(frames.astype(int) - wanted).mean() < 12, path
    assert not canary.disturbed()


def test_one_frame_is_a_video_where_one_is_asked_for(handmade):
    path = next(path for path in handmade[1] if path.name == "one-frame.mp4")
    assert read_clip_uint8(path, 1, (48, 64)).shape == (1, 48, 64, 3)


def test_a_strip_is_refused_where_it_would_take_gigabytes(tmp_path):
    """Pixels 600 times as wide as high: nothing at a small size, 1.6 GB for a frame in its own."""
    path = hostile_videos.draw(
        tmp_path / "thin.mp4", "-vf", "setsar=sar=600:max=2000", "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p",
        source="testsrc2=size=1280x720:rate=25:duration=0.08",
    )  # fmt: skip
    assert next(read_frames(path, size=(32, 32))).shape == (32, 32, 3)
    with Peaks() as peak:
        for options in ({}, {"size": (1088, 1088)}):
            with pytest.raises(VideoError, match="would be scaled to"):
                next(read_frames(path, **options))
    assert peak.mb < MOST_MEMORY_MB / 2


# --- the child ----------------------------------------------------------------------------------------------------


def test_the_canary_sings(handmade, canary):
    """The control: an ffmpeg without our options does open what these files name, and it is noticed."""
    _, bad, _ = handmade
    baits = {path.name: path for path in bad}
    plain = [ffmpeg.executable(), "-v", "quiet", "-nostdin"]
    for options in (
        ["-safe", "0", "-i", baits["ffconcat.mp4"]],
        ["-enable_drefs", "1", "-use_absolute_path", "1", "-i", baits["frames-elsewhere.mov"]],
    ):
        assert not canary.disturbed()
        subprocess.run([*plain, *options, "-f", "null", "-"], check=False)
        assert canary.disturbed(), options
    text = baits["http-ffconcat.mp4"]
    called = subprocess.Popen([*plain, "-safe", "0", "-protocol_whitelist", "file,http,tcp", "-i", text, "-f", "null", "-"])
    until = time.monotonic() + HANG_S
    while not (noticed := canary.disturbed()) and time.monotonic() < until:
        time.sleep(0.02)
    called.kill()
    called.wait()
    assert noticed


def test_its_limits_hold_while_it_reads(originals, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(originals["h264.mp4"])
    with ffmpeg.open_regular(path) as file:
        arguments = ["-re", *ffmpeg.input_options(file.fileno()), "-f", "rawvideo", "pipe:1"]
        with ffmpeg.Child(arguments, descriptors=[file.fileno()]) as child:
            child.read(1)
            limits = Path(f"/proc/{child.process.pid}/limits").read_text()
            opened = [str(item.readlink()) for item in Path(f"/proc/{child.process.pid}/fd").iterdir()]
    assert re.search(rf"Max address space +{8 << 30} +{8 << 30} ", limits)
    assert re.search(r"Max file size +0 +0 ", limits) and re.search(r"Max core file size +0 +0 ", limits)
    assert {name for name in opened if name.startswith("/") and name != "/dev/null"} == {str(path)}


@pytest.mark.parametrize(
    "behaviour", ["kill -STOP $$", "exec 1>&-; exec sleep 86400"], ids=["stopped", "silent after its last byte"]
)
@pytest.mark.parametrize("read", [probe, lambda path: list(read_frames(path))], ids=["probe", "read_frames"])
def test_one_that_hangs_is_ended(behaviour, read, originals, tmp_path, request, monkeypatch):
    """Once in full with the limit of the product, which is below ten seconds; else with a shorter one."""
    path, script = tmp_path / "a.mp4", tmp_path / "ffmpeg"
    path.write_bytes(originals["h264.mp4"])
    script.write_text(f'#!/bin/sh\n{behaviour}\nexec {ffmpeg.executable()} "$@"\n')
    script.chmod(0o755)
    assert ffmpeg.STALL_S < MOST_SECONDS - 1
    if read is not probe or not behaviour.startswith("kill") or not count_of(request, quick=0, full=1):
        monkeypatch.setattr(ffmpeg, "STALL_S", 0.6)
    monkeypatch.setattr(ffmpeg, "executable", lambda: str(script))
    with pytest.raises(VideoError):  # and not after a day, which is the hang that pytest's own limit would name
        read(path)


@pytest.mark.slow
def test_frames_that_are_passed_over_are_signs_of_life(tmp_path, monkeypatch, request):
    """Decoding up to a frame near the end takes longer than silence may last, and every frame on the way is reported."""
    if not count_of(request, quick=0, full=1):
        pytest.skip("in full by make faults")
    short, path = tmp_path / "short.avi", tmp_path / "long.avi"
    hostile_videos.draw(short, *hostile_videos.KINDS["mpeg4.avi"], source="testsrc2=size=1280x720:rate=25:duration=2")
    hostile_videos.run_ffmpeg("-stream_loop", 14, "-i", short, "-c", "copy", path)
    info = probe(path)
    last, began = info.num_frames - 1, time.monotonic()
    frame = read_clip_uint8(info, 1, (32, 32), start=last)
    monkeypatch.setattr(ffmpeg, "STALL_S", (time.monotonic() - began) / 3)
    assert np.array_equal(read_clip_uint8(info, 1, (32, 32), start=last), frame)
    monkeypatch.setattr(ffmpeg.Child, "_keep", lambda *_, **__: None)
    with pytest.raises(VideoError, match="gave nothing"):
        read_clip_uint8(info, 1, (32, 32), start=last)
