"""What is wrong with a GPU that is there is said in words, and `auto` takes no device that computes wrong values."""

import json
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from turbovaed_cli import cli
from turbovaed_cli.errors import SettingsError, UnavailableError
from turbovaed_cli.machine import gpus
from turbovaed_cli.machine.devices import environment, resolve_device, torch_device, warn_of_cudnn
from turbovaed_cli.machine.gpus import cuda_problem, nvidia_driver, slow_cudnn, wrong_convolutions
from turbovaed_cli.reporting import quiet

CUDA, CPU, MPS = torch.device("cuda"), torch.device("cpu"), torch.device("mps")
OLD_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc 12\n"
TORCHS_OWN = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)."


class Heard:
    """A reporter that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def note(self, text="", *, warning=False, **values):
        self.warnings += [text] if warning else []

    track = quiet.track


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def old_driver(monkeypatch, tmp_path):
    """A machine with an NVIDIA GPU whose driver is older than this torch's CUDA; torch warns of it in its own way."""
    device, driver = tmp_path / "nvidia0", tmp_path / "version"
    device.touch()
    driver.write_text(OLD_DRIVER)

    def is_available():
        warnings.warn(TORCHS_OWN, UserWarning, stacklevel=2)
        return False

    monkeypatch.setattr(gpus, "DEVICE_FILE", device)
    monkeypatch.setattr(gpus, "DRIVER_FILE", driver)
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def cards(monkeypatch):
    """Make torch report this number of CUDA devices."""

    def are(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return are


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """A Mac with that macOS, whose MPS computes rightly or not; gives the list of the checks that were made."""
    checks = []

    def with_system(version, wrong=()):
        def check(device):
            checks.append((version, device.type))
            return list(wrong)

        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(gpus.platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
        monkeypatch.setattr(gpus, "wrong_convolutions", check)
        gpus._mps_problem.cache_clear()  # as another process
        return checks

    monkeypatch.setenv("TURBOVAED_CACHE", str(tmp_path / "cache"))
    yield with_system
    gpus._mps_problem.cache_clear()


def test_a_driver_that_is_too_old_is_named_with_both_ways_out(old_driver, heard):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own words would be raised here
        with pytest.raises(UnavailableError) as error:
            resolve_device("cuda")
        assert resolve_device("auto", heard) == CPU
    for said in (f"{error.value.what}; {error.value.hint}", *heard.warnings):
        assert "NVIDIA driver 535.104.05 is too old" in said
        assert f"torch {torch.__version__}, which is built for CUDA 13.0 (driver 580 or newer)" in said
        assert "a newer driver" in said and "--index-url https://download.pytorch.org/whl/" in said
    assert len(heard.warnings) == 1 and heard.warnings[0].startswith("`device` auto takes the CPU: ")


def test_other_reasons_for_a_gpu_that_torch_does_not_see_are_not_called_an_old_driver(old_driver, monkeypatch, heard, tmp_path):
    gpus.DRIVER_FILE.write_text(OLD_DRIVER.replace("535.104.05", "580.65.06"))
    assert "finds no GPU through the NVIDIA driver 580.65.06" in cuda_problem()[0]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA, and this machine has an NVIDIA GPU" in cuda_problem()[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_problem() == ("CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES, or name a GPU in it")
    assert resolve_device("auto", heard) == CPU and heard.warnings == []  # as it was asked for
    monkeypatch.setattr(gpus, "DRIVER_FILE", tmp_path / "none")
    monkeypatch.setattr(gpus, "DEVICE_FILE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_problem() is None
    with pytest.raises(UnavailableError, match="this machine has none that torch can use"):
        resolve_device("cuda")


def test_the_driver_is_asked_of_nvidia_smi_where_the_system_has_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus, "DRIVER_FILE", tmp_path / "none")
    gpus.DRIVER_FILE.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (root@host)\n"
    )
    assert nvidia_driver() == "580.65.06"
    gpus.DRIVER_FILE.unlink()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 550.54.14\necho 550.54.14\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_driver() == "550.54.14"
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the driver'\nexit 9\n")
    assert nvidia_driver() is None


def test_a_command_says_it_once_and_without_torchs_own_warning(old_driver):
    """Also if another library asks torch for devices first."""
    script = f"""
import sys, warnings
from pathlib import Path
import torch
from turbovaed_cli import cli
from turbovaed_cli.machine import gpus

def is_available():
    warnings.warn({TORCHS_OWN!r}, UserWarning)
    return False

def another_library(*_):
    torch.cuda.is_available()
    return gpus_facts(*_)

from turbovaed_cli.machine import devices
gpus_facts, devices.gpu_facts = devices.gpu_facts, another_library
torch.cuda.is_available, torch.version.cuda = is_available, "13.0"
gpus.DEVICE_FILE, gpus.DRIVER_FILE = Path({str(gpus.DEVICE_FILE)!r}), Path({str(gpus.DRIVER_FILE)!r})
sys.argv = ["turbovaed", "env", "--json"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.count("warning:") == 1 and "too old for torch" in done.stderr and "UserWarning" not in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["driver"], facts["device"], facts["cuda"]) == ("535.104.05", "cpu", None)


@pytest.mark.parametrize(
    "name", ["cuda:x", "cuda:-1", "cuda:", "cuda:01", "cuda:1:2", "cuda:²", "mps:1", "cpu:0", "auto:0", "gpu"]
)
def test_names_that_are_no_devices_are_refused(name):
    for resolve in (resolve_device, torch_device):
        with pytest.raises(SettingsError, match=f"`device[=`] ?{name}[` :]") as error:
            resolve(name)
        assert error.value.hint
    assert "did you mean cuda" in error.value.hint or name != "gpu"


@pytest.mark.parametrize(
    "command", [("reconstruct", "in.mp4"), ("eval", "--data", "d"), ("cache-latents", "--out", "o"), ("distill",), ("bench",)]
)
def test_such_a_name_ends_every_command_before_any_work(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["turbovaed", *command, "--device", "cuda:x"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "error: --device cuda:x names no CUDA device" in capsys.readouterr().err


def test_a_number_is_compared_with_the_devices_there_are(cards):
    cards(1)
    assert resolve_device("cuda:0") == torch.device("cuda:0") and resolve_device("auto") == CUDA
    with pytest.raises(UnavailableError, match="`device` cuda:7: this machine has 1 CUDA device, cuda:0"):
        resolve_device("cuda:7")
    cards(2)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UnavailableError, match="2 CUDA devices, cuda:0 to cuda:1") as error:
        resolve_device("cuda:2")
    assert error.value.exit_code == 3 and "`device` cuda takes the first" in error.value.hint


def test_slow_convolutions_of_a_cudnn_are_warned_of_in_half_precision_alone(monkeypatch, heard):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    for version, dtype, device, is_slow in (
        (91002, torch.bfloat16, CUDA, True),
        (90800, torch.float16, torch.device("cuda:1"), True),
        (91499, torch.bfloat16, CUDA, True),
        (91002, torch.float32, CUDA, False),
        (91002, torch.bfloat16, CPU, False),
        (91500, torch.bfloat16, CUDA, False),
        (90701, torch.float16, CUDA, False),
        (None, torch.bfloat16, CUDA, False),
    ):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        assert bool(slow_cudnn(device, dtype)) == is_slow, (version, dtype, device)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    warn_of_cudnn(CUDA, torch.bfloat16, heard)
    (said,) = heard.warnings
    assert (
        "cuDNN 9.10.2" in said and "in bf16" in said and "pip install 'nvidia-cudnn-cu12>=9.15'" in said and "torch 2.11" in said
    )


def test_the_cpu_agrees_with_itself_and_every_wrong_convolution_is_found():
    assert wrong_convolutions(CPU) == []

    def flawed(kind):
        def convolve(device, convolution, x, weight, padding, groups):
            if groups == kind:
                raise NotImplementedError("no such operator\nand more")
            made = convolution(x.to(device), weight.to(device), padding=padding, groups=groups)
            return torch.full_like(made, float("nan")) if kind == "NaN" else made.flip(0) if kind == "batch" else made

        return convolve

    every = ["3-D convolution", "depthwise 3-D convolution", "grouped 2-D convolution"]
    assert wrong_convolutions(CPU, flawed("batch")) == wrong_convolutions(CPU, flawed("NaN")) == every
    assert wrong_convolutions(CPU, flawed(16)) == ["depthwise 3-D convolution (no such operator)"]


def test_auto_never_takes_an_mps_that_computes_wrong_values(mac, heard):
    checks = mac("26.2", ["3-D convolution"])
    assert resolve_device("auto", heard) == CPU
    (said,) = heard.warnings
    assert said.startswith(
        f"`device` auto takes the CPU: MPS of macOS 26.2 with torch {torch.__version__} computes wrong values: 3-D"
    )
    with pytest.raises(UnavailableError, match=r"`device` mps: MPS of macOS 26\.2") as error:
        resolve_device("mps")
    assert "update macOS" in error.value.hint and error.value.exit_code == 3
    assert checks == [("26.2", "mps")]


def test_the_check_is_made_once_for_each_macos_and_torch(mac, monkeypatch, tmp_path):
    checks = mac("26.2", ["3-D convolution"])
    assert resolve_device("auto") == CPU
    mac("26.2")  # another process, which reads what the first one found
    assert resolve_device("auto") == CPU and len(checks) == 1
    mac("26.7")
    assert resolve_device("auto") == MPS == resolve_device("mps") and len(checks) == 2
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert resolve_device("auto") == MPS and len(checks) == 3
    for kept in (tmp_path / "cache").iterdir():
        kept.write_text('{"wrong": 1}')
    mac("26.7")
    assert resolve_device("auto") == MPS and len(checks) == 4  # what is damaged is found out again
    monkeypatch.setenv("TURBOVAED_CACHE", str(tmp_path / "cache" / kept.name))  # a file, so that nothing can be kept
    mac("26.7")
    assert resolve_device("mps") == MPS and len(checks) == 5


def test_the_environment_has_the_facts_of_a_gpu_bug_report(cards, monkeypatch):
    cards(2)
    properties = SimpleNamespace(total_memory=24_000_000_000, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {torch.device(device).index}")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "nvidia_driver", lambda: "580.65.06")
    facts = environment(torch.device("cuda:1"))
    wanted = {"device": "cuda:1", "cuda": "card 1", "gpus": 2, "gpu_memory_gb": 24.0, "capability": "8.9", "driver": "580.65.06"}
    assert wanted | {"cuda_runtime": "13.0", "cudnn": "9.19.0"} == {
        name: facts[name] for name in [*wanted, "cuda_runtime", "cudnn"]
    }


def test_a_machine_without_a_gpu_has_none_in_the_same_rows(cards, monkeypatch, capsys):
    cards(0)
    monkeypatch.setattr(gpus, "nvidia_driver", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(sys, "argv", ["turbovaed", "env"])
    with pytest.raises(SystemExit):
        cli.main()
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if len(line.split()) > 1)
    for name in ("cuda", "gpu_memory_gb", "capability", "driver", "cuda_runtime"):
        assert rows[name] == "none", name
    assert rows["gpus"] == "0" and rows["device"] == "cpu"
