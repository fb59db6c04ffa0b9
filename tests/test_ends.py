"""How commands begin and end, in real processes: closed, full and gone streams, other encodings, homes that are not there."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest

from turbovaed_cli.cli.table import print_table
from turbovaed_cli.video import probe

SMALL = ("--frames", "9", "--size", "64")


def shell(line: str, *arguments: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which "$@" is the tool with its arguments; None takes a variable away."""
    command = [sys.executable, "-m", "turbovaed_cli", *map(str, arguments)]
    variables = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    return subprocess.run(
        ["bash", "-c", line, "bash", *command],
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # what other encodings wrote
        check=False,
        env=variables,
    )


CLOSED = ["<&-", "<&- >&- 2>&-", *(pytest.param(closed, marks=pytest.mark.thorough) for closed in (">&-", "2>&-", ">&- 2>&-"))]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_change_nothing_but_what_can_be_seen(closed):
    done = shell(f'"$@" {closed}', "models", "show", "ltx")
    assert done.returncode == 0
    assert (">&-" in closed.replace("2>&-", "")) == (done.stdout == "")
    assert done.stderr == ""
    done = shell(f'"$@" {closed}', "models", "show", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ([] if "2>" in closed else ["error", "hint"])


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("env",), 0),
        (("version",), 0),
        (("help", "export"), 0),
        (("models", "pull", "tiny"), 0),
        (("runs", "{folder}"), 0),
        (("reconstruct", "nowhere.mp4"), 2),
        (("eval", "--data", "nowhere"), 2),
        (("export", "--out", "{folder}", "--dtype", "half"), 2),
        (("bench", "--target", "no"), 2),
        (("cache-latents", "--status", "--out", "{folder}"), 2),
        (("distill", "--teacher", "no"), 2),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_command_ends_with_its_own_code_without_standard_streams(words, code, tmp_path):
    done = shell('"$@" <&- >&- 2>&-', *(word.format(folder=tmp_path) for word in words))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
def test_a_video_is_read_and_written_whole_without_standard_streams(closed, videos, tmp_path):
    """A video that is opened as descriptor 0 would be the stdin of the ffmpeg that has to read it."""
    done = shell(f'"$@" {closed}', "reconstruct", videos / "a.mp4", "--out", tmp_path / "out.mp4")
    assert done.returncode == 0, done.stderr
    assert probe(tmp_path / "out.mp4").num_frames == 20


def test_the_library_reads_videos_without_standard_streams(videos, tmp_path):
    script = (
        f"from pathlib import Path; from turbovaed_cli import read_clip; "
        f"Path({str(tmp_path / 'shape')!r}).write_text(str(tuple(read_clip({str(videos / 'a.mp4')!r}, 9, (64, 64)).shape)))"
    )
    subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", sys.executable, "-c", script], check=True)
    assert (tmp_path / "shape").read_text() == "(3, 9, 64, 64)"


def test_eval_ends_well_on_a_terminal_without_unicode(videos):
    done = shell('"$@"', "eval", "--data", videos, *SMALL, "--metrics", "psnr", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    lines = done.stdout.splitlines()
    assert all(line == line.rstrip() for line in lines)


def test_characters_are_replaced_before_columns_are_laid_out(monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    print_table("", ["", "PSNR"], [("teacher", "20.21 ± 1.5"), ("student", "18.99 ± 9.5")])
    written.seek(0)
    rows = written.read().splitlines()[1:]
    assert len({line.index("+-") for line in rows}) == 1, rows


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_escaped_in_every_kind_of_output(encoding, tmp_path):
    folder = tmp_path / "größer-中"
    (folder / "run" / "checkpoints").mkdir(parents=True)
    for words in (["runs", folder], ["runs", folder, "--json"], ["distill", "--help"]):
        done = shell('"$@" | cat', *words, PYTHONIOENCODING=encoding, LC_ALL="C.UTF-8")
        assert "Traceback" not in done.stderr
        assert "中" not in done.stdout
        if "--json" in words:
            assert json.loads(done.stdout)["runs"][0]["path"] == str(folder / "run")
        elif words[0] == "runs":
            assert "\\u4e2d" in done.stdout


@pytest.mark.parametrize(
    ("words", "code"),
    [(("models", "show", "ltx"), 0), (("distill", "--help"), 0), (("models", "--json"), 0), (("help", "no"), 2)],
)
def test_the_exit_code_is_the_same_whether_or_not_somebody_reads_stdout(words, code):
    for reader in ("head -1", "true", "cat"):  # `true` is gone before the first byte
        done = shell(f'"$@" | {reader}; exit ${{PIPESTATUS[0]}}', *words)
        assert done.returncode == code, (reader, done.stderr)
        assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_a_reader_that_has_gone_keeps_no_page_from_being_written(videos, tmp_path):
    page = tmp_path / "page.html"
    words = ("eval", "--data", videos, *SMALL, "--metrics", "psnr", "--report", page, "--fail-under", "psnr=1.9")
    done = shell('"$@" | true; exit ${PIPESTATUS[0]}', *words)
    assert done.returncode == 4, done.stderr
    assert page.read_text().rstrip().endswith("</html>")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux alone has a device that is always full")  # noqa: PTH110
def test_a_result_that_could_not_be_written_is_an_error():
    for words in (("models",), ("models", "--json"), ("--version",), ("distill", "--help")):
        done = shell('"$@" > /dev/full', *words)
        assert done.returncode == 1
        assert [line.partition(":")[0] for line in done.stderr.splitlines()[-2:]] == ["error", "hint"]
        assert "no space left" in done.stderr
    assert shell('"$@" 2> /dev/full', "models", "show", "nosuch").returncode == 2


@pytest.mark.parametrize("home", [None, "/proc"])
def test_no_home_is_needed(home):
    done = shell('"$@"', "env", "--json", HOME=home, XDG_CACHE_HOME=None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["turbovaed"]


@pytest.mark.parametrize(("name", "variable"), [("ltx", "HF_HOME"), ("lpips-alex", "TORCH_HOME")])
def test_a_cache_that_cannot_be_written_is_refused_before_the_download(name, variable):
    done = shell('"$@"', "models", "pull", name, "--yes", HF_HUB_CACHE=None, **{variable: "/proc/nothing"})
    assert done.returncode == 2, done.stderr
    assert "cannot write /proc/nothing" in done.stderr and done.stderr.endswith(f"hint: give another place with {variable}\n")


def test_processes_of_nproc_import_nothing_of_the_folder_they_are_started_in(tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    script = "from turbovaed_cli.machine.launch import launch; print(launch(['--version'], 2))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "(0, None)"


def test_a_download_that_is_declined_ends_with_words_that_fit(tmp_path):
    """On a terminal: what was asked is not denied afterwards."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "turbovaed_cli", "models", "pull", "ltx"]
    process = subprocess.Popen(
        words, stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HOME": str(tmp_path)}
    )
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 240  # against a hang
    while process.poll() is None or select.select([ours], [], [], 0.2)[0]:
        assert time.monotonic() < deadline, shown
        if select.select([ours], [], [], 0.2)[0]:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            shown += piece
            if b"[y/n]" in piece:
                os.write(ours, b"n\n")
    os.close(ours)
    text = shown.decode()
    assert process.wait() == 3
    assert "nothing was downloaded, as you chose" in text and "add --yes" in text and "not on this machine" not in text
