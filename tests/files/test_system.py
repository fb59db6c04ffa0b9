"""On Windows, what needs videos or locks is refused at once with the way out, and everything else works."""

import subprocess
import sys

import pytest

from turbovaed_cli import cli

# Linux made to look like Windows for our code: the name of the system, the modules and functions of os that it lacks, files
# that may only be flushed if they are open for writing, and no descriptors handed to child processes.
AS_WINDOWS = """
import ctypes, errno, fcntl, os, pathlib, subprocess, sys, tempfile
import diffusers, numpy, safetensors.torch, torch
import torch.utils.flop_counter, torch._dynamo
if "onnx" in sys.argv[4:]:
    import onnx, onnxruntime, onnxscript, torch.onnx, torch.onnx._internal.exporter._core
from diffusers import AutoencoderKLLTXVideo, ConfigMixin, ModelMixin  # others make differences of their own when they are imported

get_flags, fsync, popen, cdll = fcntl.fcntl, os.fsync, subprocess.Popen.__init__, ctypes.CDLL.__init__

def windows_fsync(descriptor):
    if get_flags(descriptor, fcntl.F_GETFL) & 3 == os.O_RDONLY:
        raise OSError(errno.EBADF, "Bad file descriptor")
    fsync(descriptor)

def windows_popen(self, *arguments, pass_fds=(), process_group=None, start_new_session=False, **options):
    assert not pass_fds and process_group is None and not start_new_session
    popen(self, *arguments, **options)

def windows_cdll(self, name=None, *arguments, **options):
    if name is None:
        raise TypeError("argument of type 'NoneType' is not iterable")
    cdll(self, name, *arguments, **options)

os.fsync, subprocess.Popen.__init__, ctypes.CDLL.__init__ = windows_fsync, windows_popen, windows_cdll
for name in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
    sys.modules[name] = None  # an import raises ImportError
for name in ("fork", "forkpty", "getloadavg", "getuid", "killpg", "mkfifo", "pathconf", "sched_getaffinity",
             "sched_setaffinity", "setsid", "statvfs", "sysconf", "O_NONBLOCK"):
    delattr(os, name)
pathlib.WindowsPath = pathlib.PosixPath
os.name, sys.platform = "nt", "win32"
"""
WORKS = """
from pathlib import Path
import turbovaed_cli
from turbovaed_cli.errors import UnavailableError

folder = Path(sys.argv[1])
student = turbovaed_cli.load_student("tiny")
latents = torch.randn(1, 32, 3, 4, 4)
with torch.no_grad():
    whole = student.decode(latents).sample
streamed = torch.cat(list(turbovaed_cli.StreamingDecoder(student).decode(latents.split(1, dim=2))), dim=2)
assert torch.allclose(streamed, whole, atol=1e-4)

small = turbovaed_cli.StudentDecoder.from_pretrained(sys.argv[2])
from turbovaed_cli.settings import ExportSettings
made = turbovaed_cli.export_student(small, sys.argv[4:], folder / "out", ExportSettings(9, ((32, 32),)))
assert {item.path.suffix for item in made.artifacts} == {f".{name}" for name in sys.argv[4:]}, made
again = turbovaed_cli.export_student(small, ("safetensors",), folder / "out", ExportSettings(9, ((32, 32),), overwrite=True))
assert not again.missed and (folder / "out" / "export.json").is_file()

from turbovaed_cli.machine.devices import environment
from turbovaed_cli.runs.rundir import RunDir
from turbovaed_cli.files.locks import hold_lock
assert environment()["packages"]["torch"] and RunDir(folder).holder() is None
assert turbovaed_cli.list_runs(folder) == []
def lock():
    with hold_lock(folder / "lock"):
        pass
for refused in (lambda: turbovaed_cli.read_clip(sys.argv[3], 9, (32, 32)), lock):
    try:
        refused()
    except UnavailableError as error:
        assert "WSL2" in error.what and error.exit_code == 3
    else:
        raise AssertionError(refused)
print("all of it")
"""


@pytest.mark.parametrize("formats", [("safetensors",), pytest.param(("onnx", "safetensors"), marks=pytest.mark.thorough)])
def test_import_decoding_and_exports_need_nothing_that_windows_lacks(formats, one_block_folder, videos, tmp_path):
    words = [sys.executable, "-c", AS_WINDOWS + WORKS, tmp_path, one_block_folder, videos / "a.mp4", *formats]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "all of it\n", done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("reconstruct", "in.mp4"),
        ("eval", "--data", "videos"),
        ("distill", "--latents", "latents"),
        ("cache-latents", "--data", "videos", "--out", "latents"),
        ("export", "--data", "videos", "--out", "out"),
        ("bench", "--data", "videos"),
    ],
    ids=lambda words: words[0],
)
def test_commands_with_videos_are_refused_on_windows_before_any_work(words, monkeypatch, capsys):
    monkeypatch.setattr("turbovaed_cli.files.system.is_windows", lambda: True)
    monkeypatch.setattr(sys, "argv", ["turbovaed", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert end.value.code == 3 and out == ""
    what, hint = err.strip().splitlines()
    assert (
        what.startswith(f"error: {words[0]}")
        and what.endswith("needs WSL2 on Windows")
        and hint.startswith("hint: wsl --install")
    )
