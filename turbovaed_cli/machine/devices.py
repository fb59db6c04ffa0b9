"""The devices and precisions of this machine, and the facts about it that bug reports and run folders record."""

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
    "triton",
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

MOST_READERS = 8  # threads that read ahead by default
_TF32_CAPABILITY = (8, 0)  # compute capability of the first NVIDIA GPUs with TF32
_IN_TF32 = threading.RLock()  # held by the thread inside `tf32`

_UPDATE_MACOS = "update macOS (26.2 is known for this) or torch"


def resolve_device(name: str, report: Reporter = quiet) -> torch.device:
    """Return the device for auto, cpu, cuda, cuda:N or mps; `auto` is the first of cuda, mps, cpu that is there and works.

    `report` gets a warning if `auto` passes over a GPU that is there. Raises SettingsError for other names, and
    UnavailableError for a device that is not there or does not work: nothing falls back silently.
    """
    check_device(name)
    kind, _, number = name.partition(":")
    if with_cuda := has_cuda():
        # fp32 has to be fp32, and a resumed run has to give the same bits: no TF32, no algorithm chosen by timing.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    if kind == "auto":
        return torch.device("cuda") if with_cuda else _auto_without_cuda(report)
    if kind == "cuda" and not with_cuda:
        raise _unavailable(name, cuda_problem())
    if number and int(number) >= (count := torch.cuda.device_count()):
        devices = "1 CUDA device, cuda:0" if count == 1 else f"{count} CUDA devices, cuda:0 to cuda:{count - 1}"
        raise UnavailableError(f"`device` {name}: this machine has {devices}", "`device` cuda takes the first")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise _unavailable(name, None)
        if problem := mps_problem():
            raise _unavailable(name, (problem, f"{_UPDATE_MACOS}, or `device` cpu"))
    return torch.device(name)


def _auto_without_cuda(report: Reporter) -> torch.device:
    """Take mps if it computes right, else the CPU, with a warning if a GPU is there that cannot be used."""
    if not is_hidden() and (found := cuda_problem()):
        report.note(f"`device` auto takes the CPU: {found[0]}; {found[1]}", warning=True)
    if not torch.backends.mps.is_available():
        return torch.device("cpu")
    if problem := mps_problem():
        report.note(f"`device` auto takes the CPU: {problem}; {_UPDATE_MACOS}", warning=True)
        return torch.device("cpu")
    return torch.device("mps")


def _unavailable(name: str, found: tuple[str, str] | None) -> UnavailableError:
    what, hint = found or ("this machine has none that torch can use", "`device` auto takes what is there")
    return UnavailableError(f"`device` {name}: {what}", hint)


def warn_of_cudnn(device: torch.device, dtype: torch.dtype, report: Reporter) -> None:
    """Warn if networks in `dtype` are slow on `device` because of its cuDNN."""
    if text := slow_cudnn(device, dtype):
        report.note(text, warning=True)


def device_of_rank(asked: str, environment: Mapping[str, str]) -> str:
    """Return the device of one of several processes: for `auto` and `cuda` the CUDA device of its local rank.

    The rank is the one that torchrun or srun set in `environment`, modulo the number of devices. Without one, or without
    CUDA, `asked` is returned.
    """
    rank = environment.get("LOCAL_RANK") or environment.get("SLURM_LOCALID") or ""
    if asked not in ("auto", "cuda") or not rank.isdecimal() or not has_cuda():
        return asked
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def apple_device(asked: str) -> tuple[str, str] | None:
    """Return ("iphone" or "ipad", a name or "") if --device asks for an attached one, which only Core ML can use; else None."""
    kind, _, name = asked.partition(":")
    return (kind, name) if kind in APPLE_DEVICES else None


def torch_device(asked: str, report: Reporter = quiet) -> torch.device:
    """Return the torch device of --device, that of `auto` for an attached iPhone or iPad; raises as `resolve_device` does."""
    return resolve_device("auto" if apple_device(asked) else asked, report)


def resolve_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of fp32, bf16 or fp16; raises SettingsError for other names."""
    check_dtype(name)
    return DTYPES[name]


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; elsewhere bf16 is emulated, and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def auto_dtype(device: torch.device, report: Reporter = quiet) -> str:
    """Return the dtype of `--dtype auto` in training, and report it: bf16 if the device multiplies it natively, else fp32."""
    name = "bf16" if multiplies_bf16(device) else "fp32"
    report.note(f"`dtype` auto: {name} on this {device.type}")
    return name


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Return a context of mixed precision for bf16 and fp16, and one that does nothing for fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def has_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions and matrix products in `dtype` can run in TF32 on `device`: fp32 on NVIDIA GPUs since Ampere."""
    if device.type != "cuda" or dtype != torch.float32 or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= _TF32_CAPABILITY


@contextmanager
def tf32() -> Iterator[None]:
    """Let cuDNN and cuBLAS compute fp32 in TF32 inside; the two flags are restored on the way out.

    The flags belong to the process, not to a thread. Threads that enter take turns, so that none restores the flags of another.
    Work that another thread starts on a GPU meanwhile would be in TF32 too, so callers compute in one thread.
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
    """Reset the peak of `peak_mb`, if the system can: on CUDA and on Linux.

    Unused memory of the C library goes back to the system first: later allocations in it would not raise the peak.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_free_memory()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb(device: torch.device) -> float | None:
    """Return the peak memory since `forget_peak` in MB: torch's on CUDA, else that of this process; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = status_bytes("VmHWM")
    return None if peak is None else peak / 1e6


def status_bytes(field: str) -> int | None:
    """Return bytes of this process's memory from Linux's status file: VmRSS (now), VmHWM (peak), ...; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or any cause or context of it, means that a device or this machine ran out of memory."""
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
    """Return one line for an error that `is_out_of_memory` found: the first line of its text, without an allocator's advice."""
    text = (str(error).strip().splitlines() or [""])[0].partition(" Including non-PyTorch memory")[0].rstrip(".")
    if not text or "memory" in text.lower():
        return text or "out of memory"
    return f"out of memory ({text})"


def give_back_free_memory() -> None:
    """Return unused memory of the C library to the system: glibc would keep free blocks that are between used ones."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def wait_for(device: torch.device) -> None:
    """Wait until `device` has finished its work, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def empty_cache(device: torch.device) -> None:
    """Free the memory that torch caches on `device`, for a second attempt after an error."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    give_back_free_memory()


def check_compiler(device: torch.device) -> None:
    """Raise UnavailableError if torch.compile lacks its compiler: Triton on CUDA, a C++ compiler on a CPU."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise UnavailableError("`compile` needs Triton, which is not installed", "install triton, or leave out `compile`")
    elif not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))):
        raise UnavailableError("`compile` needs a C++ compiler, and none is here", "install g++, or leave out `compile`")


def environment(device: torch.device | None = None) -> dict[str, Any]:
    """Return versions and hardware, as env.json and `turbovaed env` have them, without names of people or paths.

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
    """Return the number of threads that read ahead of a device: `asked`, or for 0 two on a CPU, else one per core, 2 to 8."""
    if asked or device.type == "cpu":
        return asked or 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores, 2), MOST_READERS)
