"""Checks of a GPU that is there (its driver, its cuDNN, Apple's convolutions), and its facts for reports."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.files.documents import fits
from turbovaed_cli.files.remote import cache_home
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import write_json

DEVICE_FILE, DRIVER_FILE = Path("/dev/nvidia0"), Path("/proc/driver/nvidia/version")
_LEAST_DRIVER = {11: 450, 12: 525, 13: 580}  # by the major version of CUDA, which runs on all later drivers
_OLDER_BUILDS = "pip install torch --index-url https://download.pytorch.org/whl/cu126"
_HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that leave no device
# PyTorch does not use these versions of cuDNN for 3-D convolutions in bf16 and fp16 (`use_cudnn` in Convolution.cpp).
_SLOW_CUDNN = range(90800, 91500)
_ANSWER_S = 20.0  # for nvidia-smi, which wakes the driver up
_TOLERANCE = 1e-3  # of the largest value; fp32 differs by 1e-6, and a wrong kernel by about 1
_CHECK_VERSION = 1  # of the convolutions that are compared


def has_cuda() -> bool:
    """Whether torch can use a CUDA device. torch's own warning about a driver is silenced: `cuda_problem` explains it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="CUDA initialization")
        return torch.cuda.is_available()


def is_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides every device."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in _HIDDEN


def nvidia_driver() -> str | None:
    """Return the version of the NVIDIA driver, such as 580.65.06; None if none is found."""
    with suppress(OSError):
        if found := re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER_FILE.read_text(encoding="ascii", errors="replace")):
            return found[1]
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    ask = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        output = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=_ANSWER_S).stdout
        if found := re.match(r"\s*(\d+\.[\d.]+)", output):
            return found[1]
    return None


def cuda_problem() -> tuple[str, str] | None:
    """Return (why torch cannot use this machine's NVIDIA GPU, what mends it), or None if there is no such GPU.

    Call it only if `has_cuda` is False.
    """
    driver = nvidia_driver()
    if driver is None and not DEVICE_FILE.exists():
        return None
    if is_hidden():
        return "CUDA_VISIBLE_DEVICES hides every GPU", "unset CUDA_VISIBLE_DEVICES, or name a GPU in it"
    known, built = f"NVIDIA driver {driver or 'of unknown version'}", torch.version.cuda
    if built is None:
        return (
            f"torch {torch.__version__} is built without CUDA, and this machine has an NVIDIA GPU ({known})",
            f"install a torch that is built for CUDA, such as: {_OLDER_BUILDS}",
        )
    least = _LEAST_DRIVER.get(int(built.partition(".")[0]), 0)
    if driver is not None and int(driver.partition(".")[0]) < least:
        what = f"{known} is too old for torch {torch.__version__}, which is built for CUDA {built} (driver {least} or newer)"
    else:
        what = f"torch {torch.__version__}, built for CUDA {built}, finds no GPU through the {known}"
    return what, f"install a newer driver, or a torch built for an older CUDA: {_OLDER_BUILDS}"


def cudnn_version() -> str | None:
    """Return the version of cuDNN as people write it, such as 9.19.0; None without cuDNN."""
    number = _cudnn_number()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else None


def _cudnn_number() -> int:
    with suppress(RuntimeError):  # a version that this torch was not built with: the first convolution raises the error
        return torch.backends.cudnn.version() or 0
    return 0


def slow_cudnn(device: torch.device, dtype: torch.dtype) -> str:
    """Return the warning about a cuDNN that PyTorch does not use for 3-D convolutions in bf16 and fp16; "" if all is well."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return ""
    if _cudnn_number() not in _SLOW_CUDNN:
        return ""
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    package = f"nvidia-cudnn-cu{(torch.version.cuda or '13').partition('.')[0]}"
    return (
        f"PyTorch does not use cuDNN {cudnn_version()} for 3-D convolutions in {name} (9.8 to 9.14 are broken there): they are slow and "
        f"take much memory; pip install '{package}>=9.15' mends it, and so does torch 2.11 or newer"
    )


def mps_problem() -> str:
    """Return why MPS must not be used here; "" if its convolutions are right.

    The check runs once for each machine, macOS and torch; its result is kept in the cache folder.
    """
    return _mps_problem(platform.node(), platform.mac_ver()[0], torch.__version__)


@cache
def _mps_problem(machine: str, macos: str, version: str) -> str:
    key = hashlib.sha256(json.dumps([machine, macos, version, _CHECK_VERSION]).encode()).hexdigest()[:16]
    try:
        kept: Path | None = cache_home() / f"mps-{key}.json"
    except TurboVaedError:  # a user without a home folder
        kept = None
    wrong = _read(kept) if kept is not None else None
    if wrong is None:
        wrong = wrong_convolutions(torch.device("mps"))
        if kept is not None:
            with suppress(TurboVaedError, OSError):  # a place that cannot be written: the next command computes it again
                write_json(kept, {"macos": macos, "torch": version, "wrong": wrong})
    return f"MPS of macOS {macos} with torch {version} computes wrong values: {'; '.join(wrong)}" if wrong else ""


def _read(path: Path) -> list[str] | None:
    with suppress(TurboVaedError, OSError):
        if path.is_file() and fits(wrong := read_json(path).get("wrong"), list[str]):
            return cast(list[str], wrong)
    return None


Convolve = Callable[[torch.device, Callable[..., Tensor], Tensor, Tensor, int, int], Tensor]


def _convolve(
    device: torch.device, convolution: Callable[..., Tensor], x: Tensor, weight: Tensor, padding: int, groups: int
) -> Tensor:
    return convolution(x.to(device), weight.to(device), padding=padding, groups=groups)


def wrong_convolutions(device: torch.device, convolve: Convolve = _convolve) -> list[str]:
    """Return the kinds of convolution whose fp32 results on `device` differ from the CPU's; `convolve` runs them there."""
    cases: list[tuple[str, Callable[..., Tensor], tuple[int, ...], tuple[int, ...], int]] = [
        ("3-D convolution", functional.conv3d, (2, 8, 5, 12, 12), (16, 8, 3, 3, 3), 1),
        ("depthwise 3-D convolution", functional.conv3d, (2, 16, 7, 10, 10), (16, 1, 5, 5, 5), 16),
        ("grouped 2-D convolution", functional.conv2d, (4, 16, 12, 12), (32, 4, 3, 3), 4),
    ]
    generator = torch.Generator().manual_seed(0)
    wrong = []
    for name, convolution, shape, kernel, groups in cases:
        x, weight = torch.randn(shape, generator=generator), torch.randn(kernel, generator=generator)
        padding = kernel[-1] // 2
        wanted = convolution(x, weight, padding=padding, groups=groups)
        innermost = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
        for layout in (torch.contiguous_format, innermost):
            try:
                made = convolve(device, convolution, x.contiguous(memory_format=layout), weight, padding, groups).cpu()
            except RuntimeError as error:  # an operator that the device lacks
                wrong.append(f"{name} ({str(error).strip().partition(chr(10))[0]})")
                break
            if not (made - wanted).abs().max() <= _TOLERANCE * wanted.abs().max():  # NaN is wrong too
                wrong.append(name + (", channels last" if layout == innermost else ""))
                break
    return wrong


def gpu_facts(device: torch.device) -> dict[str, Any]:
    """Return the facts about the GPU and its software that a bug report needs; None for each that this machine does not have.

    Memory and compute capability are those of `device`.
    """
    facts: dict[str, Any] = {"gpus": torch.cuda.device_count() if has_cuda() else 0, "gpu_memory_gb": None, "capability": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu_memory_gb"] = round(properties.total_memory / 1e9, 1)
        facts["capability"] = f"{properties.major}.{properties.minor}"
    elif device.type == "mps":
        facts |= {"gpus": 1, "gpu_memory_gb": round(torch.mps.recommended_max_memory() / 1e9, 1)}
    return facts | {"driver": nvidia_driver(), "cuda_runtime": torch.version.cuda, "cudnn": cudnn_version()}
