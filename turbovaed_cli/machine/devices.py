"""What this machine offers: devices, precisions, and the facts a bug report or a run folder records."""

import ctypes
import errno
import os
import platform
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from turbovaed_cli.choices import APPLE_DEVICES, check_device, check_dtype
from turbovaed_cli.errors import UnavailableError
from turbovaed_cli.machine.gpus import cuda_problem, gpu_facts, has_cuda, is_hidden, mps_problem, slow_cudnn
from turbovaed_cli.reporting import Reporter, quiet
from turbovaed_cli.version import __version__

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PACKAGES = (
    "torch",
    "diffusers",
    "safetensors",
    "numpy",
    "onnx",
    "onnxruntime",
    "coremltools",
    "executorch",
    "litert-torch",
    "ai-edge-litert",
    "coreai-torch",
    "imageio-ffmpeg",
    "typer",
    "rich",
)
# Texts of errors that mean too little memory, besides the types of such errors: allocators of torch and onnxruntime, and
# cuDNN and cuBLAS, which find no memory for their workspaces.
_OUT_OF_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "Failed to allocate memory for requested buffer",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)

MOST_READERS = 8  # threads that read ahead, unless more are asked for
_TF32_CAPABILITY = (8, 0)  # compute capability of the first NVIDIA GPUs with TF32
_IN_TF32 = threading.RLock()  # held by the thread inside `tf32`

_UPDATE_MACOS = "update macOS (26.2 is known for this) or torch"


def resolve_device(name: str, report: Reporter = quiet) -> torch.device:
    """auto, cpu, cuda, cuda:N or mps to a device; `auto` takes the first of cuda, mps, cpu that is there and computes right.

    `report` gets a warning if `auto` passes over a GPU that is there. Raises SettingsError for other names, and
    UnavailableError for a device that is not there or does not work: nothing falls back silently.
    """
    check_device(name)
    kind, _, number = name.partition(":")
    if with_cuda := has_cuda():
        # fp32 means fp32 and a resumed run the same bits: no TF32, no algorithm chosen by a race.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if kind == "auto":
        return torch.device("cuda") if with_cuda else _auto_without_cuda(report)
    if kind == "cuda" and not with_cuda:
        raise _unavailable(name, cuda_problem())
    if number and int(number) >= (count := torch.cuda.device_count()):
        devices = "1 CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise UnavailableError(f"--device {name}: this machine has {devices}", "--device cuda takes the first")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise _unavailable(name, None)
        if problem := mps_problem():
            raise _unavailable(name, (problem, f"{_UPDATE_MACOS}, or --device cpu"))
    return torch.device(name)


def _auto_without_cuda(report: Reporter) -> torch.device:
    """Take mps if it computes right, else the CPU, with a warning if a GPU is there that cannot be used."""
    if not is_hidden() and (found := cuda_problem()):
        report.note(f"--device auto takes the CPU: {found[0]}; {found[1]}", warning=True)
    if not torch.backends.mps.is_available():
        return torch.device("cpu")
    if problem := mps_problem():
        report.note(f"--device auto takes the CPU: {problem}; {_UPDATE_MACOS}", warning=True)
        return torch.device("cpu")
    return torch.device("mps")


def _unavailable(name: str, found: tuple[str, str] | None) -> UnavailableError:
    what, hint = found or ("this machine has none that torch can use", "--device auto takes what is there")
    return UnavailableError(f"--device {name}: {what}", hint)


def warn_of_cudnn(device: torch.device, dtype: torch.dtype, report: Reporter) -> None:
    """Warn if networks in `dtype` are slow on `device` because of its cuDNN."""
    if text := slow_cudnn(device, dtype):
        report.note(text, warning=True)


def device_of_rank(asked: str, environment: Mapping[str, str]) -> str:
    """Of several processes on a machine, each takes a CUDA device of its own for `auto` and `cuda`, as torchrun or srun numbers them."""
    rank = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or ""
    if asked not in ("auto", "cuda") or not rank.isdecimal() or not has_cuda():
        return asked
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def apple_device(asked: str) -> tuple[str, str] | None:
    """("iphone" or "ipad", a name or "") where --device asks for an attached one, which is only Core ML's; else None."""
    kind, _, name = asked.partition(":")
    return (kind, name) if kind in APPLE_DEVICES else None


def torch_device(asked: str, report: Reporter = quiet) -> torch.device:
    """The torch device of --device; UnavailableError where it is not there."""
    return resolve_device("auto" if apple_device(asked) else asked, report)


def resolve_dtype(name: str) -> torch.dtype:
    """fp32, bf16 or fp16 to a torch dtype; SettingsError for anything else."""
    check_dtype(name)
    return DTYPES[name]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; elsewhere bf16 is emulated, and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def auto_dtype(device: torch.device, report: Reporter = quiet) -> str:
    """What `--dtype auto` of a training means here, said out loud: bf16 where the device multiplies it natively, else fp32."""
    name = "bf16" if multiplies_bf16(device) else "fp32"
    report.note(f"--dtype auto: {name} on this {device.type}")
    return name


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision for bf16 and fp16; nothing for fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def has_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions and matrix products of `dtype` tensors can run in TF32 on `device`: fp32 on NVIDIA GPUs since Ampere."""
    if device.type != "cuda" or dtype != torch.float32 or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY


@contextmanager
def tf32() -> Iterator[None]:
    """Let cuDNN and cuBLAS compute fp32 in TF32 inside; the two flags are restored on the way out, all others stay as they are.

    The flags belong to the process, not to a thread. Threads that enter take turns, so that none restores the flags of another.
    GPU work that a thread starts outside while another is inside would be in TF32 too: whoever uses this computes in one thread.
    """
    with _IN_TF32:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32
        try:
            cudnn.allow_tf32 = matmul.allow_tf32 = True
            yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before


def forget_peak(device: torch.device) -> None:
    """Let `peak_mb` start anew, where the system can: on CUDA and on Linux."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb(device: torch.device) -> float | None:
    """The most memory since `forget_peak`, in MB: what torch allocated on CUDA, else what this process held; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = status_bytes("VmHWM")
    return None if peak is None else peak / 1e6


def status_bytes(field: str) -> int | None:
    """What Linux says of this process's memory, such as VmRSS (held now) or VmHWM (its peak); None on other systems."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from or while handling, means that a device or this machine ran out of memory."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(one, OSError) and one.errno == errno.ENOMEM:
            return True
        if isinstance(one, RuntimeError) and any(text in str(one) for text in _OUT_OF_MEMORY):
            return True
        waiting += [one.__cause__, one.__context__]
    return False


def out_of_memory_in_words(error: BaseException) -> str:
    """What `is_out_of_memory` found, in one line: what was asked for and what there is, without an allocator's advice."""
    text = (str(error).strip().splitlines() or [""])[0].partition(" Including non-PyTorch memory")[0].rstrip(".")
    if not text or "memory" in text.lower():
        return text or "out of memory"
    return f"out of memory ({text})"


def give_back_free_memory() -> None:
    """Hand the system what the C library holds and nobody uses, where that is glibc, which would keep what lies between other blocks."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def wait_for(device: torch.device) -> None:
    """Wait until `device` has finished what it was given: before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Give back the memory that torch keeps for later on `device`, for a second attempt after an error."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    give_back_free_memory()


def check_compiler(device: torch.device) -> None:
    """Raise UnavailableError where torch.compile has nothing to make code with: Triton on CUDA, a C++ compiler on a CPU."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise UnavailableError("--compile needs Triton, which is not installed", "install triton, or leave out --compile")
    elif not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))):
        raise UnavailableError("--compile needs a C++ compiler, and none is here", "install g++, or leave out --compile")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Versions and hardware, as env.json and `turbovaed env` hold them; nothing in it names a person or a path.

    `device` is the one that computes; None takes the one of `auto`.
    """
    device = device or resolve_device("auto")
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "turbovaed": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "cuda": torch.cuda.get_device_name(device if device.type == "cuda" else 0) if has_cuda() else None,
        "mps": torch.backends.mps.is_available(),
        **gpu_facts(device),
        "packages": versions,
    }


def num_readers(device: torch.device, asked: int = 0) -> int:
    """Threads that read ahead of a device: as many as asked for; 0: two for a CPU, else one per core, up to eight."""
    if asked or device.type == "cpu":
        return asked or 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, 2), MOST_READERS)
