# Copyright (c) the turbovaed authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0. The weights have their own licence, that of the teacher's VAE.
"""A Turbo-VAED video decoder (arXiv:2508.09136) with exact streaming. Generated from turbovaed 0.1.0; do not edit.

    from diffusers import AutoModel
    student = AutoModel.from_pretrained("this/folder", trust_remote_code=True)
    video = student.decode(latents).sample            # raw latents (B, C, t, h, w) to (B, 3, T, H, W) in [-1, 1]
    stream = student.stream()                         # the same frames piece by piece: push(latents), finish()

A pipeline with this student as its VAE, saved by `pipe.save_pretrained`, loads once turbovaed_cli is imported. Saved by turbovaed's
`save_pipeline`, it loads without: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).
"""

import ctypes
import difflib
import errno
import functools
import inspect
import io
import json
import math
import os
import sys
import tempfile
import threading
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"


class _Config(dict[str, Any]):
    """A config whose values are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class BaseOutput:
    """The result of `decode`: `.sample`, or `[0]`."""

    def __getitem__(self, index: int) -> Any:
        return list(vars(self).values())[index]


class ConfigMixin:
    """A class whose arguments are its config."""

    config_name = "config.json"
    config: _Config

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **_options: Any) -> tuple[dict[str, Any], ...]:
        """Return the arguments of the class in a config, and the other keys."""
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        given = {key: value for key, value in config_dict.items() if key in known}
        return given, {key: value for key, value in config_dict.items() if key not in known}

    def register_to_config(self, **facts: Any) -> None:
        """Add facts to the config."""
        self.__dict__["config"] = _Config({**self.__dict__.get("config", {}), **facts})

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Any:
        """Return an instance with random weights; keys that are no arguments are ignored."""
        return cls(**cls.extract_init_dict(config)[0])

    def to_json_string(self) -> str:
        """Return config.json."""
        return json.dumps({**self.config, "_class_name": type(self).__name__}, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | Path, **_options: Any) -> None:
        """Write config.json."""
        (Path(save_directory) / self.config_name).write_text(self.to_json_string(), encoding="utf-8")


def register_to_config(init: Callable[..., None]) -> Callable[..., None]:
    """Make the arguments of a constructor the config of the instance."""

    @functools.wraps(init)
    def with_config(self: ConfigMixin, *arguments: Any, **options: Any) -> None:
        bound = inspect.signature(init).bind(self, *arguments, **options)
        bound.apply_defaults()
        self.register_to_config(**{name: value for name, value in bound.arguments.items() if name != "self"})
        init(self, *arguments, **options)

    return with_config


class ModelMixin(nn.Module):
    """A module that knows its device and precision, and loads from a folder or a file."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return next(self.parameters()).dtype

    @classmethod
    def from_pretrained(cls, where: str | Path, *, use_safetensors: bool = True) -> Any:
        """Load a folder with config.json and safetensors, or a .safetensors file with the config in its header.

        It is on the CPU, in the precision of the file and in eval mode. Raises RuntimeError naming keys that do not fit.
        """
        from safetensors import safe_open  # noqa: PLC0415
        from safetensors.torch import load_file  # noqa: PLC0415

        path = Path(where) / WEIGHTS_NAME if Path(where).is_dir() else Path(where)
        if path.name == WEIGHTS_NAME:
            text = path.with_name("config.json").read_text(encoding="utf-8")
        else:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get("config", "{}")
        return cls.from_weights(json.loads(text), load_file(path))

    @classmethod
    def from_weights(cls, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Any:
        """Return the model of a config with copies of the weights of a state dict, in their precision and in eval mode.

        Alignment heads are left out. No memory is taken for a network that the weights do not fit. Raises RuntimeError naming the keys that are missing, unexpected or misshapen.
        """
        statistics = {key: state[key].float().tolist() for key in ("latents_mean", "latents_std") if key in state}
        with torch.device("meta"):
            model = cls.from_config({**config, **statistics})  # type: ignore[attr-defined]
        own = model.state_dict()
        # Copies: the tensors of a file are a view of it, which on Windows could not be replaced any more.
        kept = {key: value.clone() for key, value in state.items() if key in own or not _is_beside(key)}
        model.load_state_dict(kept, assign=True)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **_options: Any) -> None:
        """Write the folder that `from_pretrained` loads."""
        from safetensors.torch import save_file  # noqa: PLC0415

        self.save_config(save_directory)  # type: ignore[operator]
        state = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(state, Path(save_directory) / WEIGHTS_NAME, metadata={"format": "pt"})


def _is_beside(key: str) -> bool:
    """Whether a key of a weight file belongs to training or to the latents, not to the network."""
    return key.startswith("aligned_feature_projection_heads.") or key in ("latents_mean", "latents_std")


def modeling_source() -> str:
    """Return the source of this file."""
    return Path(__file__).read_text(encoding="utf-8")


GpuDecoder = None  # the choice of a form on a GPU needs turbovaed


def decode_on_gpu(student: nn.Module, latents: torch.Tensor) -> Any:
    """Decode latents by the modules."""
    return student(latents)


class TurboVaedError(Exception):
    """The base of every error a user can meet: one line about what is wrong, and a hint: the command or change that mends it."""

    exit_code = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel between processes, with their hint
        return _remade, (type(self), self.what, self.hint, self.exit_code)


def _remade(kind: type[TurboVaedError], what: str, hint: str | None, exit_code: int) -> TurboVaedError:
    error = kind.__new__(kind)
    TurboVaedError.__init__(error, what, hint)
    error.exit_code = exit_code
    return error


class SettingsError(TurboVaedError):
    """An option, setting or combination that cannot work."""

    exit_code = 2


class ShapeError(SettingsError):
    """A frame count or size that the model would silently change; the hint names the nearest valid ones."""


class FrameCountError(ShapeError):
    """A number of frames (or latent frames) that does not survive encode and decode."""


# What people call these elsewhere. Only suggested, never taken for it.
OTHER_WORDS = {
    "float16": "fp16", "half": "fp16", "f16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float": "fp32", "f32": "fp32",
    "full": "fp32", "w8a8": "int8", "6-bit": "6bit", "palettized": "6bit",
    "mlpackage": "coreml", "mlmodel": "coreml", "core-ml": "coreml", "tflite": "litert", "tensorflow-lite": "litert",
    "pte": "executorch", "xnnpack": "executorch", "ort": "onnx", "onnxruntime": "onnx", "pt2": "torch-export",
    "tensorrt": "onnx", "trt": "onnx", "pytorch": "torch", "eager": "torch", "gpu": "cuda", "metal": "mps", "adam": "adamw",
}  # fmt: skip


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The one or two of `known` that `name` may have been meant for; none if nothing is like it."""
    names, typed = list(known), name.strip().lower()
    if OTHER_WORDS.get(typed) in names:
        return [OTHER_WORDS[typed]]
    return difflib.get_close_matches(typed, names, n=2, cutoff=0.6)


def hint_for(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The hint below an unknown name: what was probably meant, and all there is."""
    names = list(known)
    every = otherwise or f"one of: {', '.join(names)}"
    found = nearest(name, names)
    return f"did you mean {' or '.join(found)}? {every}" if found else every


def check_choice(option: str, name: str, known: Iterable[str], otherwise: str = "") -> None:
    """Raise SettingsError unless `name`, the value of `option`, is one of `known`."""
    names = list(known)
    if name not in names:
        raise SettingsError(f"{option} {name} is unknown", hint_for(name, names, otherwise))


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


def give_back_free_memory() -> None:
    """Return unused memory of the C library to the system: glibc would keep free blocks that are between used ones."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def empty_cache(device: torch.device) -> None:
    """Free the memory that torch caches on `device`, for a second attempt after an error."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    give_back_free_memory()


Item = TypeVar("Item")


def spread(work: Callable[[Item, int], None], items: Sequence[Item], workers: int) -> None:
    """Call `work` with each item and the number of its worker, 0 to `workers` - 1, in as many threads with one of torch's each.

    Work of one worker is never at the same time as other work of it. Without gradients. All work is done in this thread while
    torch's operations are watched or have no data, as in a dry run, and where there are fewer cores than workers. Raises what
    `work` raises; then no more work begins.
    """
    cores = _cores()
    if workers == 1 or 0 < len(cores) < workers or torch._C._len_torch_dispatch_stack():
        with torch.no_grad():
            for number, item in enumerate(items):
                work(item, number % workers)
        return
    _end_waiting()()
    waiting, inference = iter(items), torch.is_inference_mode_enabled()

    def run(worker: int) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            for item in waiting:
                work(item, worker)

    pool, started = _single_threads(max(workers, torch.get_num_threads()), cores), []
    try:
        for worker in range(workers):
            started.append(pool.submit(run, worker))
        wait(started, return_when=FIRST_EXCEPTION)
    finally:
        for _ in waiting:
            pass  # after an error or Ctrl-C
        wait(started)
    for one in started:
        one.result()


class _Pools(threading.local):
    """Threads for work that one thread spreads, by their number; they end with that thread."""

    def __init__(self) -> None:
        self.by_number: dict[int, ThreadPoolExecutor] = {}

    def clear(self) -> None:
        """Forget them, as a fork has no other threads."""
        self.by_number.clear()


_pools = _Pools()


def _cores() -> list[int]:
    """Return the cores that this thread may use; none where the system does not say so."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _single_threads(number: int, cores: Sequence[int]) -> ThreadPoolExecutor:
    """Return threads in which torch's operations take one thread each, on a core of its own if there is just one for each."""
    if number in _pools.by_number:
        return _pools.by_number[number]
    pool, ready, threads = ThreadPoolExecutor(number, "worker"), threading.Barrier(number + 1), torch.get_num_threads()

    def begin(worker: int) -> None:
        try:
            torch.get_num_threads()  # else the first operation of this thread would take the number that others have
            torch.set_num_threads(1)
            if len(cores) == number:  # Linux may leave two that take turns with Python's lock on one core for long
                with suppress(OSError):
                    os.sched_setaffinity(0, {cores[worker]})
        finally:
            ready.wait()

    try:
        for worker in range(number):
            pool.submit(begin, worker)
        ready.wait()
    except BaseException:
        ready.abort()
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(threads)  # what later threads take, which each of them changed
    _pools.by_number[number] = pool
    return pool


@cache
def _end_waiting() -> Callable[[], object]:
    """Return what ends the threads of OpenMP that wait for this thread's next operation, which starts others in 50 microseconds.

    They would else spin on a core for milliseconds, which the workers need. Where OpenMP has no such call, nothing is done.
    """
    try:
        pause = ctypes.CDLL(torch._C.__file__).omp_pause_resource_all  # torch's own OpenMP, version 5.0 or later
    except (AttributeError, OSError):
        return lambda: None
    return partial(pause, 1)  # omp_pause_soft


@dataclass(frozen=True)
class LatentSpace:
    """The latents of one decoder: the number of channels, how pipelines normalise them, and the pixels that each stands for."""

    channels: int
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]
    scaling_factor: float = 1.0
    time_ratio: int = 1
    space_ratio: int = 1

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each channel of raw latents, (C,); normalised latents have about 1."""
        return torch.tensor(self.std) / self.scaling_factor

    @property
    def is_normalised(self) -> bool:
        """Whether raw and normalised latents are the same."""
        return bool((self.spread == 1).all()) and not any(self.mean)

    def raw(self, normalised: Tensor) -> Tensor:
        """Convert normalised latents (..., C, t, h, w) to raw ones, as diffusers pipelines do before decoding."""
        return normalised * _column(self.std, normalised) / self.scaling_factor + _column(self.mean, normalised)

    def normalised(self, raw: Tensor) -> Tensor:
        """Convert raw latents (..., C, t, h, w) to normalised ones, the inverse of `raw`."""
        return (raw - _column(self.mean, raw)) * self.scaling_factor / _column(self.std, raw)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, 1, 1, 1)


@dataclass
class DecoderOutput(BaseOutput):  # type: ignore[misc]  # diffusers passes as Any
    """The result of `decode`, as pipelines expect it. Importing diffusers' class costs a second: it imports every autoencoder."""

    sample: Tensor


class Stream(Protocol):
    """A decode of one clip piece by piece, whose frames equal those of the whole clip."""

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which the output lags; `finish` returns them."""
        ...

    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine."""
        ...

    def finish(self) -> Tensor:
        """Return the remaining frames (B, 3, m, H, W); afterwards the next clip can begin."""
        ...


class Decoder(Protocol):
    """A torch module that decodes latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1]."""

    @property
    def family(self) -> str:
        """The name of its architecture, such as "turbo-vaed" or "taehv"."""
        ...

    @property
    def teacher(self) -> str | None:
        """The registry name of the teacher whose latents it decodes; None if that is not known."""
        ...

    @property
    def latents(self) -> str:
        """The latents that `decode` takes: "raw", as a teacher's `encode` returns them, or "normalised"."""
        ...

    @property
    def space(self) -> LatentSpace | None:
        """The statistics of the latents; None if they are not known."""
        ...

    @property
    def licence(self) -> str:
        """The licence of the weights, or "unknown: " and the reason."""
        ...

    @property
    def latent_channels(self) -> int:
        """The number of latent channels."""
        ...

    @property
    def temporal_compression_ratio(self) -> int:
        """The number of pixel frames for each latent frame after the first."""
        ...

    @property
    def spatial_compression_ratio(self) -> int:
        """The number of pixels for each latent, in height and in width."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        ...

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the number of pixel frames that it makes of t latent frames."""
        ...

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> Any:
        """Decode a whole clip `z` to `.sample`, or to a tuple of it; not clamped unless the family does."""
        ...

    def stream(self) -> Stream | None:
        """Return a new stream; None for a family that only decodes whole clips."""
        ...


class Meter(TorchDispatchMode):
    """Adds up the bytes of the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.peak_on_cpu = 0  # the same, with inputs and outputs of convolutions counted a second time
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    finalize(storage, self._forget, key, size)
        if function is torch.ops.aten.convolution.default:
            self.peak_on_cpu = max(self.peak_on_cpu, self.live + _in_blocks(args[0]) + _in_blocks(made))
        self.peak_on_cpu = max(self.peak_on_cpu, self.peak)
        return made

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _in_blocks(images: Tensor) -> int:
    """Return the bytes of (B, C, ...) in the layout of oneDNN's convolutions: channels in blocks of 16."""
    return images.numel() // images.shape[1] * (-(-images.shape[1] // 16) * 16) * images.element_size()


RMS_EPS = 1e-8


LAYER_NORM_EPS = 1e-6


MANY_OUTPUTS = 8  # channels; below, a 3-D convolution leaves most of a vector empty


SLOW_PATH = 20480  # batch * channels * frames * height up to which torch takes slow_conv3d instead of oneDNN


WORTH_COPYING = 32768  # elements of an input from which the faster convolution is worth the copy it needs


class ChannelRMSNorm(nn.Module):
    """Divide (B, C, ...) by the root mean square over channels, without weights; the variance is taken in fp32 at least."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance = (wide * wide).mean(dim=1, keepdim=True)  # the same values as a power, with a cheaper gradient
        return (x * torch.rsqrt(variance + RMS_EPS)).to(x.dtype)


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, ...), with weight and bias."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=LAYER_NORM_EPS)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own argument name
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


def pad_time(x: Tensor, kernel_size: int, *, causal: bool = False) -> Tensor:
    """Repeat the first and last frame of (B, C, t, h, w), (kernel_size - 1) / 2 times each; only space is padded with zeros.

    For a causal convolution the first frame is repeated kernel_size - 1 times, and the last one not at all.
    """
    reach = (kernel_size - 1) // 2
    if reach == 0:
        return x
    first, last = x[:, :, :1], x[:, :, -1:]
    return torch.cat([first] * (2 * reach) + [x] if causal else [first] * reach + [x] + [last] * reach, dim=2)


class TimeReplicatedConv3d(nn.Module):
    """A k x k x k convolution, stride 1: (B, C, t, h, w) to (B, O, t, h, w). A causal one sees no frame after its own.

    Two cases are computed in another way, several times faster (benchmarks/plain_vs_fast.py). With few outputs, as in the last
    layer, one 2-D convolution per frame makes the outputs of all three taps; these are added up, shifted by a frame. With an
    input so small that torch would take its slow path on a CPU, a 2-D convolution runs over the channels of three frames.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, causal: bool = False) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size, self.causal = kernel_size, causal
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, padding=(0, reach, reach))

    def forward(self, x: Tensor) -> Tensor:
        if is_hooked(self.conv):
            return cast(Tensor, self.conv(pad_time(x, self.kernel_size, causal=self.causal)))
        if self._has_few_outputs:  # repeats few outputs, not many inputs
            first, second, third = self._taps(x)
            if self.causal:
                return _later(_later(first) + second) + third
            return _later(first) + second + torch.cat([third[:, :, 1:], third[:, :, -1:]], dim=2)
        padded = pad_time(x, self.kernel_size, causal=self.causal)
        slow = padded.device.type == "cpu" and padded.shape[0] == 1 and padded[0, ..., 0].numel() <= SLOW_PATH
        if self.kernel_size == 3 and slow and padded.numel() >= WORTH_COPYING:
            return self._taps_as_channels(padded)
        return cast(Tensor, self.conv(padded))

    @property
    def _has_few_outputs(self) -> bool:
        return self.kernel_size == 3 and self.conv.out_channels < MANY_OUTPUTS

    def _taps_as_channels(self, padded: Tensor) -> Tensor:
        weight = self.conv.weight.movedim(2, 1).flatten(1, 2)  # (O, 3 * C, 3, 3), tap by tap
        frames = torch.cat([padded[:, :, :-2], padded[:, :, 1:-1], padded[:, :, 2:]], dim=1)  # (1, 3 * C, T, H, W)
        return unfold_time(functional.conv2d(fold_time(frames), weight, self.conv.bias, padding=1), 1)

    def _taps(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what each frame gives by each of the three taps in time, the second with the bias: (B, O, T, H, W) each."""
        num_outputs, bias = self.conv.out_channels, self.conv.bias
        assert bias is not None
        weight = self.conv.weight.movedim(2, 0).flatten(0, 1)  # (3 * O, C, 3, 3), tap by tap
        once = functional.pad(bias, (num_outputs, num_outputs))
        taps = unfold_time(functional.conv2d(fold_time(x), weight, once, padding=1), x.shape[0])  # (B, 3 * O, T, H, W)
        return taps[:, :num_outputs], taps[:, num_outputs : 2 * num_outputs], taps[:, 2 * num_outputs :]


def _later(x: Tensor) -> Tensor:
    """Return (B, C, T, H, W) a frame later; its first frame is there twice."""
    return torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2)


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers move or cast the weights of `module`, as offloading does.

    The weights are then in place only while the module's own `forward` runs, so nothing else may read them.
    """
    return "_hf_hook" in vars(module) or "_diffusers_hook" in vars(module)


def fold_time(x: Tensor) -> Tensor:
    """Fold (B, C, T, H, W) to (B*T, C, H, W), channels innermost in memory: the fastest layout for few channels."""
    return x.movedim(2, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def unfold_time(x: Tensor, batch: int) -> Tensor:
    """Return (B*T, C, H, W) as (B, C, T, H, W), a view."""
    return x.unflatten(0, (batch, -1)).movedim(2, 1)


class DepthwiseSeparableConv3d(nn.Module):
    """A depthwise k x k x k convolution, then a pointwise one, both with bias: (B, C, t, h, w) to (B, O, t, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 5, *, causal: bool = False) -> None:
        super().__init__()
        reach = kernel_size // 2
        self.kernel_size, self.causal = kernel_size, causal
        self.depthwise_conv = nn.Conv3d(in_channels, in_channels, kernel_size, padding=(0, reach, reach), groups=in_channels)
        self.pointwise_conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise_conv(pad_time(x, self.kernel_size, causal=self.causal))
        if is_hooked(self.pointwise_conv):
            return cast(Tensor, self.pointwise_conv(x))
        # Over (T * H, W) in 2-D: as fast as in 3-D, and its gradient twice as fast.
        weight, bias = self.pointwise_conv.weight.squeeze(2), self.pointwise_conv.bias
        return functional.conv2d(x.flatten(2, 3), weight, bias).unflatten(2, x.shape[2:4])


class SpaceThenTimeConv3d(nn.Module):
    """A full 1 x 3 x 3 convolution in space, then a depthwise 3 x 1 x 1 one in time, (2+1)-D: (B, C, t, h, w) to (B, O, t, h, w).

    The first one has the bias. In time, the second one begins as the identity.
    """

    kernel_size = 3  # in time

    def __init__(self, in_channels: int, out_channels: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.spatial_conv = nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.temporal_conv = nn.Conv3d(out_channels, out_channels, (3, 1, 1), groups=out_channels, bias=False)
        with torch.no_grad():
            self.temporal_conv.weight.zero_()[:, :, 2 if causal else 1] = 1

    def forward(self, x: Tensor) -> Tensor:
        padded = pad_time(self.spatial_conv(x), self.kernel_size, causal=self.causal)
        if is_hooked(self.temporal_conv):
            return cast(Tensor, self.temporal_conv(padded))
        frames = padded.shape[2] - 2
        taps = self.temporal_conv.weight.unbind(2)  # three products and sums: several times faster than the convolution
        made = sum_of(padded[:, :, i : i + frames] * tap.view(1, -1, 1, 1, 1) for i, tap in enumerate(taps))
        return made.to(padded.dtype)  # under autocast, weights in fp32 would make it fp32, unlike any convolution


def sum_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, from the first one on."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


StudentConv = TimeReplicatedConv3d | DepthwiseSeparableConv3d | SpaceThenTimeConv3d


@dataclass(frozen=True)
class BlockStyle:
    """How the convolutions and activations of a block are made."""

    conv: str = "3d"  # of registry/blocks.py's CONV_TYPES
    depthwise_kernel: int = 5
    causal: bool = False
    activation: str | None = None  # "relu" or "silu" everywhere; None: as published

    def __post_init__(self) -> None:
        """Raise SettingsError for a kernel without a middle."""
        if self.depthwise_kernel % 2 == 0:
            raise SettingsError(f"decoder_dw_kernel_size is {self.depthwise_kernel}", "give an odd number, such as 3 or 5")

    def make_conv(self, in_channels: int, out_channels: int) -> StudentConv:
        """Return a convolution of a resnet."""
        if self.conv == "depthwise":
            return DepthwiseSeparableConv3d(in_channels, out_channels, self.depthwise_kernel, causal=self.causal)
        return self.make_full_conv(in_channels, out_channels)

    def make_full_conv(self, in_channels: int, out_channels: int) -> TimeReplicatedConv3d | SpaceThenTimeConv3d:
        """Return the convolution of an upsampler, which is never depthwise-separable."""
        if self.conv == "2+1d":
            return SpaceThenTimeConv3d(in_channels, out_channels, causal=self.causal)
        return TimeReplicatedConv3d(in_channels, out_channels, causal=self.causal)

    def make_activation(self, published: str = "silu") -> nn.Module:
        """Return the activation at a place where the published student has `published`."""
        return nn.ReLU() if (self.activation or published) == "relu" else nn.SiLU()


def pixel_shuffle_3d(x: Tensor, time: int, space: int = 2) -> Tensor:
    """Shuffle (B, C*space*space*time, t, h, w) to (B, C, time*t, space*h, space*w); channel ((c*2 + i)*2 + j)*time + t.

    "Decoupled": time is innermost, so after it is split off, the rest is an ordinary 2-D pixel shuffle per frame.
    """
    batch, channels, frames, height, width = x.shape
    x = x.movedim(2, 1).reshape(batch * frames, channels // time, time, height, width)
    x = x.transpose(1, 2).flatten(0, 1)  # (B*t*time, C*4, h, w): never more than five dimensions
    x = functional.pixel_shuffle(x, space)  # (B*t*time, C, 2h, 2w)
    return x.unflatten(0, (batch, frames * time)).movedim(2, 1)


class Upsampler3d(nn.Module):
    """A convolution to more channels, then the decoupled 3-D pixel shuffle: (B, C, t, h, w) to (B, C, T, H, W).

    It doubles time, space or both: `time` and `space` are the factors, and the convolution makes `time * space * space` times
    `out_channels` (by default, the channels stay). If time doubles, `drop_first_frame` drops the first frame, so that T is 2t - 1: the first latent frame of a
    causal teacher is one pixel frame. Video DC-AE is not causal and keeps it.
    """

    def __init__(
        self,
        channels: int,
        style: BlockStyle,
        *,
        upsample_space: bool,
        upsample_time: bool,
        drop_first_frame: bool,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.time, self.space = 2 if upsample_time else 1, 2 if upsample_space else 1
        self.drop_first_frame = drop_first_frame and upsample_time
        self.conv = style.make_full_conv(channels, (out_channels or channels) * self.time * self.space**2)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_shuffle_3d(self.conv(x), self.time, self.space)
        return x[:, :, 1:] if self.drop_first_frame else x


class Upsampler2d(nn.Module):
    """A 3x3 convolution per frame, then a pixel shuffle by 2: (B, C, T, h, w) -> (B, C / 4, T, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return unfold_time(functional.pixel_shuffle(self.conv(fold_time(x)), 2), x.shape[0])


class ResnetBlock(nn.Module):
    """RMSNorm, activation and convolution, twice, plus the input (through LayerNorm and 1x1x1 if channels change).

    (B, C, t, h, w) to (B, O, t, h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, style: BlockStyle, *, relu_first: bool = False) -> None:
        super().__init__()
        self.norm1 = ChannelRMSNorm()
        self.act1 = style.make_activation("relu" if relu_first else "silu")
        self.conv1 = style.make_conv(in_channels, out_channels)
        self.norm2 = ChannelRMSNorm()
        self.act2 = style.make_activation()
        self.conv2 = style.make_conv(out_channels, out_channels)
        if in_channels != out_channels:
            self.norm3 = ChannelLayerNorm(in_channels)
            self.conv_shortcut = TimeReplicatedConv3d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv_shortcut(self.norm3(x)) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(self.act1(self.norm1(x)))
        x = self.conv2(self.act2(self.norm2(x)))
        return x + residual


class MidBlock(nn.Module):
    """Resnets at the resolution of the latents: (B, C, t, h, w) to the same shape."""

    def __init__(self, channels: int, num_layers: int, style: BlockStyle) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, style) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x


class UpBlock(nn.Module):
    """A resnet that changes channels (if they change), an upsampler (if the block has one), then resnets.

    With `change_in_upsampler`, an upsampler's convolution changes the channels, and no resnet stands before it. After an upsampler, the first activation of each published resnet is ReLU; everywhere else both are SiLU. (B, C, t, h, w)
    to (B, O, T, H, W), of the same or the doubled size in time, space or both.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        style: BlockStyle,
        *,
        upsample_space: bool,
        upsample_time: bool,
        drop_first_frame: bool,
        change_in_upsampler: bool = False,
    ) -> None:
        super().__init__()
        upsamples = upsample_space or upsample_time
        directly = upsamples and change_in_upsampler
        if in_channels != out_channels and not directly:
            self.conv_in = ResnetBlock(in_channels, out_channels, style)
        if upsamples:
            upsampler = Upsampler3d(
                in_channels if directly else out_channels,
                style,
                upsample_space=upsample_space,
                upsample_time=upsample_time,
                drop_first_frame=drop_first_frame,
                out_channels=out_channels,
            )
            self.upsamplers = nn.ModuleList([upsampler])
        self.resnets = nn.ModuleList(
            ResnetBlock(out_channels, out_channels, style, relu_first=upsamples) for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "conv_in"):
            x = self.conv_in(x)
        if hasattr(self, "upsamplers"):
            x = self.upsamplers[0](x)
        for resnet in self.resnets:
            x = resnet(x)
        return x


class Scratch(threading.local):
    """Memory for results that last for one operation: a block per purpose and thread, as large as the largest request."""

    def __init__(self) -> None:
        self._blocks: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type["Scratch"], tuple[()]]:
        """Make copies empty: they get memory of their own."""
        return Scratch, ()

    def frames(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return uninitialised frames (n, C, H, W) in channels_last memory; earlier frames of the same purpose become invalid."""
        n, channels, height, width = shape
        return self.dense(purpose, (n, height, width, channels), dtype, device).permute(0, 3, 1, 2)

    def dense(self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return an uninitialised tensor; earlier ones of the same purpose become invalid."""
        block = self._blocks.get(purpose)
        if block is None or block.numel() < math.prod(shape) or block.dtype != dtype or block.device != device:
            with torch.inference_mode(False):  # else later calls outside of inference mode could not write there
                block = self._blocks[purpose] = torch.empty(math.prod(shape), dtype=dtype, device=device)
        return block[: math.prod(shape)].view(*shape)

    def blocks(self) -> list[Tensor]:
        """Return the blocks of this thread."""
        return list(self._blocks.values())

    def clear(self) -> None:
        """Free all memory."""
        self._blocks.clear()


class Kept(dict[Hashable, Tensor]):
    """Copies of the frames that later pieces need; a new copy of the same shape is written into the memory of the old one.

    So long-lived memory stays in place, and the temporary memory of every piece finds the same free blocks.
    """

    def __setitem__(self, key: Hashable, frames: Tensor) -> None:
        before = self.get(key)
        if before is None or before.shape != frames.shape:
            with torch.inference_mode(False):  # as for Scratch
                before = torch.empty_like(frames)  # dense, of the same layout
            super().__setitem__(key, before)
        before.copy_(frames)


SIDE = 4  # pixels of a tile in space, along both sides


# The polynomials of F(m, r) are evaluated at m + r - 2 of these points, as many as there are, and at infinity.
_POINTS = {len(points): points for points in ((0, 1, -1), (0, 1, -1, 2), (0, 1, -1, 0.5, -0.5), (0, 1, -1, 0.5, -0.5, 2, -2))}


_TILES = 192  # of one product of matrices: fewer read the weights too often, more wait for memory


_OF_ALL_THREADS, _OF_EACH = 1024, 64  # tiles that are worked on at once, at most and at least


_OUTPUTS = 32  # channels of one product, at least


_FRAMES = 32  # of the tiles of one product: with several taps in time, the frames at its ends are transformed for two products


@dataclass(frozen=True)
class _Job:
    """Tiles that one thread takes through all steps: output frames `begin` to `end`, and `rows` x `columns` tiles from the first.

    Of the output channels it makes those of the slice `outputs`.
    """

    begin: int
    end: int
    row: int
    column: int
    rows: int
    columns: int
    outputs: slice

    @property
    def frames(self) -> int:
        return self.end - self.begin


class SpatialTiles:
    """A convolution over frames, without stride, in tiles of 4 x 4 pixels: F(4x4, 3x3) or F(4x4, 5x5), one for each tap in time.

    Each of torch's threads takes tiles of its own through all steps: values that another core made arrive slowly.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Transform the weight (O, C, taps, k, k) in fp64; `bias` is (O,)."""
        self.bias, self.taps, self.reach = bias, weight.shape[2], weight.shape[-1] - 1
        to_points, of_weights, from_points = (
            torch.tensor(rows, dtype=torch.float64, device=weight.device) for rows in minimal_filter(SIDE, self.reach + 1)
        )
        made = torch.einsum("ai,bj,octij->tabco", of_weights, of_weights, weight.double())
        self.weights = [tap.flatten(0, 1).to(weight.dtype).contiguous() for tap in made]  # (points, C, O) of each tap in time
        self.to_points, self.from_points = to_points.to(weight.dtype), from_points.to(weight.dtype)

    def __call__(self, x: Tensor, padding: tuple[int, int], scratch: Scratch) -> Tensor:
        """Convolve frames (n, H, W, C) of any strides to dense ones (n - taps + 1, H', W', O).

        `padding` is the number of rows and of columns of zeros at each side.
        """
        frames = x.shape[0] - self.taps + 1
        height, width = (size + 2 * pad - self.reach for size, pad in zip(x.shape[1:3], padding, strict=True))
        out = x.new_empty(frames, height, width, len(self.bias))
        jobs = list(_jobs(frames, -(-height // SIDE), -(-width // SIDE), len(self.bias), torch.get_num_threads()))
        workers = min(torch.get_num_threads(), len(jobs))
        sizes = [max(needed) for needed in zip(*(self._sizes(job, x.shape[3]) for job in jobs), strict=True)]
        memory = [
            [scratch.dense(f"space {i} {worker}", (size,), x.dtype, x.device) for i, size in enumerate(sizes)]
            for worker in range(workers)
        ]
        spread(lambda job, worker: self._work_on(job, x, padding, memory[worker], out), jobs, workers)
        return out

    def _sizes(self, job: _Job, channels: int) -> tuple[int, int, int]:
        """Return the elements of three blocks of memory that a job needs, which its steps read and write in turns."""
        side, tiles, frames = SIDE + self.reach, job.rows * job.columns, job.frames + self.taps - 1
        pixels = frames * (job.rows * SIDE + self.reach) * (job.columns * SIDE + self.reach) * channels
        gathered, made = frames * tiles * channels, job.frames * tiles * (job.outputs.stop - job.outputs.start)
        return (
            max(pixels, side**2 * made),
            max(side**2 * gathered, SIDE**2 * made),
            side * max(side * gathered, SIDE * made),
        )

    def _work_on(self, job: _Job, x: Tensor, padding: tuple[int, int], memory: Sequence[Tensor], out: Tensor) -> None:
        """Write the tiles of a job into `out`: to points, a product of matrices for each point and tap, and back."""
        side, tiles, frames, channels = SIDE + self.reach, job.rows * job.columns, job.frames + self.taps - 1, x.shape[3]
        blocks = [partial(_part, block) for block in memory]
        pixels = blocks[0]((frames, job.rows * SIDE + self.reach, job.columns * SIDE + self.reach, channels))
        _cut_out(x[job.begin :][:frames], (job.row * SIDE - padding[0], job.column * SIDE - padding[1]), pixels)
        image, row, column, _ = pixels.stride()
        shape = side, side, frames, job.rows, job.columns, channels
        blocks[1](shape).copy_(pixels.as_strided(shape, (row, column, image, row * SIDE, column * SIDE, 1)))
        at_points = _along_both(self.to_points, blocks[1]((side, side, frames * tiles * channels)), blocks[2], blocks[1])
        at_points = at_points.view(side**2, frames, tiles, channels)
        products = blocks[0]((side**2, job.frames * tiles, job.outputs.stop - job.outputs.start))
        for tap, weight in enumerate(self.weights):
            values, taken = at_points[:, tap : tap + job.frames].flatten(1, 2), weight[:, :, job.outputs]
            if tap == 0:
                torch.bmm(values, taken, out=products)
            else:
                products.baddbmm_(values, taken)
        products[side + 1] += self.bias[job.outputs]  # at (1, 1), which every pixel takes exactly once
        made = _along_both(self.from_points, products.view(side, side, -1), blocks[2], blocks[1])
        made = made.view(SIDE, SIDE, job.frames, job.rows, job.columns, -1).permute(2, 3, 0, 4, 1, 5)
        band = out[job.begin : job.end, job.row * SIDE : (job.row + job.rows) * SIDE]
        band = band[:, :, job.column * SIDE : (job.column + job.columns) * SIDE, job.outputs]
        height, width = band.shape[1:3]
        if (height, width) == (job.rows * SIDE, job.columns * SIDE):
            band.unflatten(2, (job.columns, SIDE)).unflatten(1, (job.rows, SIDE)).copy_(made)
        else:
            band.copy_(made.reshape(job.frames, job.rows * SIDE, job.columns * SIDE, -1)[:, :height, :width])


def _along_both(matrix: Tensor, x: Tensor, between: Callable[..., Tensor], out: Callable[..., Tensor]) -> Tensor:
    """Multiply `x` (s, s, X) by a matrix (m, s) along both sides, in memory that `between` and `out` give: (m, m, X)."""
    m, s = matrix.shape
    half = torch.mm(matrix, x.flatten(1), out=between((m, s * x.shape[2])))
    return torch.bmm(matrix.expand(m, m, s), half.view(m, s, -1), out=out((m, m, x.shape[2])))


def _part(block: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the first elements of a block as a tensor of `shape`."""
    return block[: math.prod(shape)].view(*shape)


def _jobs(frames: int, down: int, across: int, outputs: int, threads: int) -> Iterator[_Job]:
    """Divide `down` x `across` tiles of all frames into jobs, about as many for each thread.

    Few tiles are not divided, but their output channels are: each thread would else read all weights.
    """
    at_once = -(-frames // -(-frames // _FRAMES))
    channels = outputs
    if frames * down * across <= _TILES:
        rows, columns = down, across
        channels = max(-(-outputs // threads), min(_OUTPUTS, outputs))
    else:
        tiles = max(min(_TILES, max(_OF_ALL_THREADS // threads, _OF_EACH)) // at_once, 1)  # of a frame
        rows, columns = max(tiles // across, 1), -(-across // -(-across // tiles))
        if rows > 1:  # whole rows: as many bands as threads, or a multiple
            bands = -(-down // rows)
            bands = -(-bands // threads) * threads
            rows = -(-down // min(bands, down))
    for begin, row, column, first in product(
        range(0, frames, at_once), range(0, down, rows), range(0, across, columns), range(0, outputs, channels)
    ):
        yield _Job(
            begin,
            min(begin + at_once, frames),
            row,
            column,
            min(rows, down - row),
            min(columns, across - column),
            slice(first, min(first + channels, outputs)),
        )


def _cut_out(x: Tensor, corner: tuple[int, int], out: Tensor) -> None:
    """Write the rectangle of frames (n, H, W, C) that begins at `corner` into `out` (n, h, w, C), zeros where it reaches beyond them."""
    (top, left), (height, width) = corner, out.shape[1:3]
    inside = x[:, max(top, 0) : top + height, max(left, 0) : left + width]
    above, before = max(-top, 0), max(-left, 0)
    below, after = above + inside.shape[1], before + inside.shape[2]
    for edge in (out[:, :above], out[:, below:], out[:, :, :before], out[:, :, after:]):
        edge.zero_()
    out[:, above:below, before:after] = inside


@cache
def tiling(frames: int, largest: int) -> tuple[tuple[int, int], ...]:
    """Split `frames` into tiles (size, count) of 1 to `largest` frames, so that the fewest products are needed."""
    best: list[tuple[int, list[int]]] = [(0, [])]
    for total in range(1, frames + 1):
        sizes = [size for size in (1, *range(2, largest + 1)) if size <= total]
        best.append(min((best[total - size][0] + size + 2, [*best[total - size][1], size]) for size in sizes))
    chosen = best[frames][1]
    return tuple((size, chosen.count(size)) for size in sorted(set(chosen), reverse=True))


@cache
def minimal_filter(size: int, taps: int = 3) -> tuple[list[list[float]], list[list[float]], list[list[float]]]:
    """Return F(size, taps) as (A: input to points, B: weights to points, C: points to output).

    y = C ((B g) * (A d)), with d of size + taps - 1 frames. Source: Winograd, Arithmetic Complexity of Computations (1980). The
    points are small, so that fp32 loses little.
    """
    points = [Fraction(point) for point in _POINTS[size + taps - 2]]
    roots_of = [[other for other in points if other != point] for point in points]
    inputs = [_with_roots(roots) for roots in roots_of] + [_with_roots(points)]
    inputs = [row + [Fraction(0)] * (size + taps - 1 - len(row)) for row in inputs]
    norms = [
        math.prod((point - other for other in roots), start=Fraction(1)) for point, roots in zip(points, roots_of, strict=True)
    ]
    weights = [[point**k / norm for k in range(taps)] for point, norm in zip(points, norms, strict=True)]
    weights.append([Fraction(int(k == taps - 1)) for k in range(taps)])
    outputs = [[point**i for point in points] + [Fraction(int(i == size - 1))] for i in range(size)]
    return _floats(inputs), _floats(weights), _floats(outputs)


def _floats(rows: Sequence[Sequence[Fraction]]) -> list[list[float]]:
    return [[float(value) for value in row] for row in rows]


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


_IN_CACHE = 2**19  # elements of one tile's frame: with more, the transforms wait for memory


_WORTH_TILES_IN_SPACE = 2**28  # products of a call in the direct form, from which its threads are worth their start


HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Speedups:
    """Optimisations that can be switched off, to measure or to avoid them."""

    winograd: bool = True  # fewer multiplications, by tiles of frames or of pixels
    packed: bool = True  # weights laid out once in oneDNN's layout, on a CPU that has oneDNN
    wide_sums: bool = True  # half precision adds up branches and the products of tiles in fp32
    winograd_channels: int = 64  # input and output channels from which the transforms of tiles in time are worth their time
    winograd_elements: int = sys.maxsize  # of a weight, up to which the transformed weights are worth their memory
    # The same two for tiles in space, which come first, and whose weights take four times as much.
    space_channels: int = 32
    space_elements: int = 2**21

    def __str__(self) -> str:
        """Return the name that `bench` prints."""
        return ", ".join(["channels last", *["packed weights"] * self.packed, *["Winograd in time and space"] * self.winograd])

    def sums_in(self, dtype: torch.dtype) -> torch.dtype:
        """Return the precision of sums in a network that computes in `dtype`."""
        return torch.float32 if self.wide_sums and dtype in HALVES else dtype


LAYOUT_ALONE = Speedups(winograd=False, packed=False, wide_sums=False)


def state_of(parameters: Iterable[Tensor]) -> list[tuple[object, ...]]:
    """Return what differs after weights were changed, moved or converted; changes through a parameter's `.data` are not noticed."""
    return [(p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype, p.device) for p in parameters]


class Convolution:
    """A k_t x k x k convolution over frames. It pads width and height with zeros, if asked; time is already padded.

    `stride` is (time, rows, columns). It computes in `dtype` and returns frames in `dtype_out`.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        dtype: torch.dtype,
        speedups: Speedups,
        scratch: Scratch,
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        self.dtype = dtype
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)  # (O, C / groups, k_t, k, k) and (O,)
        self.groups, self.scratch, self.stride = groups, scratch, stride
        self.out_channels = weight.shape[0]
        self.taps = weight.shape[2]  # in time
        self.reach_time, self.reach = weight.shape[2] // 2, weight.shape[3] // 2
        self._is_packed = speedups.packed and weight.device.type == "cpu"
        is_wide = groups == 1 and min(weight.shape[:2]) >= speedups.winograd_channels
        is_worth = is_wide and weight.numel() <= speedups.winograd_elements
        self._has_tiles = speedups.winograd and is_worth and self.taps == 3 and stride[0] == 1
        has_space = groups == 1 and stride == (1, 1, 1) and weight.shape[3:] == (3, 3) and dtype not in HALVES
        is_worth = min(weight.shape[:2]) >= speedups.space_channels and weight.numel() <= speedups.space_elements
        self._has_tiles_in_space = speedups.winograd and has_space and is_worth
        self.dtype_out = speedups.sums_in(dtype) if self._has_tiles else dtype
        self._largest_tile = 2 if dtype in HALVES else 3  # frames; tiles of 2 round less
        self._to_points: dict[int, Tensor] = {}  # matrices from the frames of a tile to its points, by its size
        self._ready: dict[int, list[Tensor]] = {}  # prepared weights: 1 for the direct form, m for tiles of m frames
        self._in_space: SpatialTiles | None = None

    def __call__(self, x: Tensor, *, pad_height: bool, pad_width: bool = True) -> Tensor:
        """Convolve `x` (n, C, H, W) to (frames_out(n), O, H', W'); without stride, H' is H or H - k + 1 and W' likewise."""
        x = x.to(self.dtype)
        padding = (0, self.reach if pad_height else 0, self.reach if pad_width else 0)
        frames = self.frames_out(x.shape[0])
        height, width = (
            max((size + 2 * pad - 2 * self.reach - 1) // stride + 1, 0)
            for size, pad, stride in zip(x.shape[2:], padding[1:], self.stride[1:], strict=True)
        )
        if min(frames, height) <= 0:
            return x.new_empty(frames, self.out_channels, height, width, dtype=self.dtype_out)
        if self._has_tiles_in_space and frames * height * width * self.weight.numel() >= _WORTH_TILES_IN_SPACE:
            self._in_space = self._in_space or SpatialTiles(self.weight, self.bias)
            return self._in_space(x.permute(0, 2, 3, 1), padding[1:], self.scratch).permute(0, 3, 1, 2)
        if not self._has_tiles or frames == 1:
            return self._convolve(x, 1, 0, self.bias, padding).to(self.dtype_out)
        return self._by_tiles(x, (frames, height, width), padding)

    def frames_out(self, frames: int) -> int:
        """Return the number of output frames for `frames` input frames."""
        return max((frames - self.taps) // self.stride[0] + 1, 0)

    def prepared(self) -> list[Tensor]:
        """Return the prepared weights."""
        return [weight for weights in self._ready.values() for weight in weights] + (
            self._in_space.weights if self._in_space else []
        )

    def forget(self) -> None:
        """Drop the prepared weights; the next call prepares them again."""
        self._ready.clear()
        self._to_points.clear()
        self._in_space = None

    def _by_tiles(self, x: Tensor, shape: tuple[int, int, int], padding: tuple[int, int, int]) -> Tensor:
        out = torch.empty(*shape, self.out_channels, dtype=self.dtype_out, device=x.device).permute(0, 3, 1, 2)
        frames, height = shape[:2]
        at_once = max(_IN_CACHE // max(x[0].numel(), out[0].numel()), 1)
        rows = max(_IN_CACHE * height // max(x[0].numel(), out[0].numel()), 1) if self.stride == (1, 1, 1) else height
        begin = 0
        for size, count in tiling(frames, self._largest_tile):
            end = begin + size * count
            if size == 1:
                out[begin:end] = self._convolve(x[begin : end + 2], 1, 0, self.bias, padding)
            for first in range(begin, end if size > 1 else begin, size * at_once):
                last = min(first + size * at_once, end)
                for top in range(0, height, rows):
                    band = out[first:last, :, top : top + rows]
                    self._tile(x[first : last + 2], size, (top, band.shape[2], height), padding, band)
            begin = end
        return out

    def _tile(self, x: Tensor, size: int, rows: tuple[int, int, int], padding: tuple[int, int, int], out: Tensor) -> None:
        """Write tiles of `size` output frames into `out`: transform, one 2-D convolution per point, transform back.

        `rows` are the first output row, their number, and that of all; `out` has these rows.
        """
        to_points, _, from_points = minimal_filter(size)
        at_points, padding = self._at_points(x, size, rows, padding)
        started = [False] * size
        firsts: list[Tensor | None] = [None] * size  # the first product of each output waits for the second
        for point in range(len(to_points)):
            # Every output takes the product at the point 1 exactly once: the bias is added there.
            made = self._convolve(at_points[point], size, point, self.bias if point == 1 else None, padding).to(out.dtype)
            for i, first_made in enumerate(firsts):
                factor, target = from_points[i][point], out[i::size]
                if factor and not started[i]:
                    assert factor == 1
                    firsts[i], started[i] = made, True
                elif factor and first_made is not None:
                    torch.add(first_made, made, alpha=factor, out=target)
                    firsts[i] = None
                elif factor:
                    target.add_(made, alpha=factor)

    def _at_points(
        self, x: Tensor, size: int, rows: tuple[int, int, int], padding: tuple[int, int, int]
    ) -> tuple[list[Tensor], tuple[int, int, int]]:
        """Return the input of `rows` at every point, a tensor (tiles, C, h, W) each, and the padding that it still needs."""
        top, num_rows, height = rows
        first, last, above, below = 0, x.shape[2], 0, 0
        if num_rows < height:
            first, last = top - padding[1], top + num_rows + 2 * self.reach - padding[1]
            above, below = max(-first, 0), max(last - x.shape[2], 0)
            first, last, padding = max(first, 0), min(last, x.shape[2]), (padding[0], 0, padding[2])
        count, channels, width = (x.shape[0] - 2) // size, x.shape[1], x.shape[3]
        if size not in self._to_points:
            self._to_points[size] = torch.tensor(minimal_filter(size)[0], dtype=x.dtype, device=x.device)
        matrix = self._to_points[size]
        made = self.scratch.frames(
            "tiles", (len(matrix) * count, channels, above + last - first + below, width), x.dtype, x.device
        )
        made = made.unflatten(0, (len(matrix), count))
        for edge in (made[:, :, :, :above], made[:, :, :, made.shape[3] - below :]):
            edge.zero_()
        inner = made[:, :, :, above : made.shape[3] - below].permute(0, 1, 3, 4, 2)  # (points, tiles, h, W, C)
        values = x.permute(0, 2, 3, 1)[:, first:last].flatten(1)
        for tile in range(count):
            torch.mm(matrix, values[tile * size : tile * size + size + 2], out=inner[:, tile].flatten(1))
        return list(made), padding

    def _convolve(self, x: Tensor, size: int, point: int, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
        """Convolve `x` with the weights of `point` of tiles of `size` frames."""
        weight = self._weights(size, x)[point]
        video = x.movedim(0, 1)[None]  # (1, C, n, H, W), channels_last_3d
        ones = (1, 1, 1)
        if self._is_packed:
            made = torch.ops.mkldnn._convolution_pointwise(
                video, weight, bias, padding, self.stride, ones, self.groups, "none", [], ""
            )
        else:
            made = functional.conv3d(video, weight, bias, self.stride, padding, groups=self.groups)
        return cast(Tensor, made)[0].movedim(1, 0)

    def _weights(self, size: int, like: Tensor) -> list[Tensor]:
        if size not in self._ready:
            weights = [self.weight] if size == 1 else self._transformed(size)
            self._ready[size] = [self._pack(weight, like) for weight in weights]
        return self._ready[size]

    def _transformed(self, size: int) -> list[Tensor]:
        """Return the weights (O, C, 1, k, k) at every point of tiles of `size` frames."""
        rows = torch.tensor(minimal_filter(size)[1], dtype=torch.float64, device=self.weight.device)
        at_points = torch.einsum("pk,ocktu->poctu", rows, self.weight.double())
        return [weight.unsqueeze(2).to(self.weight.dtype) for weight in at_points]

    def _pack(self, weight: Tensor, like: Tensor) -> Tensor:
        if not self._is_packed:
            return weight.contiguous(memory_format=torch.channels_last_3d)
        ones, padding = [1, 1, 1], [0, self.reach, self.reach]
        shape = [1, like.shape[1], *like.shape[:1], *like.shape[2:]]
        return _reorder(weight.contiguous().to_mkldnn(), padding, self.stride, ones, self.groups, shape)


class TimeConvolution:
    """A depthwise 3 x 1 x 1 convolution over frames, without bias: three products and sums. Time is already padded."""

    reach_time, reach = 1, 0

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.taps = weight.detach().to(dtype).flatten(1).unbind(1)  # of (O, 1, 3, 1, 1): three of (O,)

    def __call__(self, x: Tensor, *, pad_height: bool) -> Tensor:
        """Convolve `x` (n, O, H, W) to (n - 2, O, H, W); there is nothing to pad."""
        rows, frames = x.permute(0, 2, 3, 1), max(x.shape[0] - 2, 0)
        made = rows[:frames] * self.taps[0]
        for i, tap in enumerate(self.taps[1:], start=1):
            made.addcmul_(rows[i : i + frames], tap)
        return made.permute(0, 3, 1, 2)


_reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv3d_weight  # newer than its type stub


@cache
def packs(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN on this CPU for `dtype`, and torch.compile's operator that takes packed weights."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 or (dtype == torch.float16 and bool(torch.ops.mkldnn._is_mkldnn_fp16_supported()))


@dataclass(frozen=True, eq=False)
class Preparation:
    """The step before a convolution: RMSNorm over channels and an activation, or a plain copy."""

    activation: str | None = None  # relu, silu or none, after the norm; None: no norm either
    eps: float = RMS_EPS  # added to the mean square
    least: float = 0.0  # the mean square is this at least
    gamma: Tensor | None = None  # (C,), a factor per channel after the norm

    def write(self, x: Tensor, out: Tensor, scratch: Scratch) -> None:
        """Write the prepared frames of `x` (n, C, H, W) into `out` of the same shape, in the precision of `out`."""
        if self.activation is None or not x.numel():
            out.copy_(x)
            return
        rows, target = x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1)
        if rows.dtype != target.dtype or (rows.dtype in HALVES and rows.device.type == "cpu"):
            # In fp32 and back, a few frames at a time: on a CPU as quick as half precision, and rounded only once.
            at_once = max(_IN_CACHE // x[0].numel(), 1)
            for some, made in zip(rows.split(at_once), target.split(at_once), strict=True):
                shape = some.permute(0, 3, 1, 2).shape
                wide = scratch.frames("wide", shape, torch.float32, x.device).permute(0, 2, 3, 1)
                made.copy_(self._normalised(some if some.dtype == wide.dtype else wide.copy_(some), wide))
        else:
            self._normalised(rows, target)

    def fill(self, x: Tensor, out: Tensor, kept: Tensor | None, head: int, scratch: Scratch) -> None:
        """Write the prepared frames of `x` (n, C, H, W) into `out` (m, C, H, W) from frame `head` on, and fill the others.

        The frames before them are `kept`, which are prepared, or the first one repeated; those after them repeat the last one.
        """
        known = head + x.shape[0]
        self.write(x, out[head:known], scratch)
        if head:
            out[:head] = kept if kept is not None else out[head]
        if out.shape[0] > known:
            out[known:] = out[known - 1]

    def _normalised(self, rows: Tensor, target: Tensor) -> Tensor:
        """Write norm and activation of `rows` (..., C) into `target`; sums are taken in fp32 at least."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        sums = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).square_()
        means = sums.div_(rows.shape[-1]).add_(self.eps)
        means = means.clamp_min_(self.least) if self.least else means
        torch.mul(rows, means.rsqrt_().to(rows.dtype), out=target)
        if self.gamma is not None:
            target.mul_(self.gamma)
        if self.activation == "none":
            return target
        return target.relu_() if self.activation == "relu" else functional.silu(target, inplace=True)


def shuffle_order(channels: int, time: int, space: int = 2) -> Tensor:
    """Return the order (channels,) of a convolution's outputs for `shuffle`: (t, i, j, c), from ((c*2 + i)*2 + j)*time + t.

    The 2 is `space`.
    """
    return torch.arange(channels).view(-1, space, space, time).permute(3, 1, 2, 0).flatten()


def shuffle(x: Tensor, time: int, space: int = 2) -> Tensor:
    """Shuffle `x` (n, time*space*space*C, h, w) to (time*n, C, space*h, space*w) in channels_last memory.

    The channels of `x` are in `shuffle_order`.
    """
    n, channels, height, width = x.shape
    kept = channels // (time * space**2)
    wide = x.permute(0, 2, 3, 1).reshape(n, height, width, time, space, space, kept)
    made = wide.permute(0, 3, 1, 4, 2, 5, 6).reshape(n * time, height * space, width * space, kept)
    return made.permute(0, 3, 1, 2)


CONV_TYPES = ("3d", "depthwise", "2+1d")  # of the convolutions of a block


@dataclass(frozen=True)
class BlockPlan:
    """One stage of the decoder in running order: the mid block first, then the up blocks."""

    channels: int
    num_layers: int
    conv: str  # of CONV_TYPES
    upsample_space: bool
    upsample_time: bool


def conv_types_of(conv_types: Sequence[str] | None, depthwise: Sequence[bool]) -> tuple[str, ...]:
    """Return the type of convolution of each block, output-first, the mid block last: by `decoder_conv_types`, if a config has it."""
    return tuple(conv_types or ("depthwise" if one else "3d" for one in depthwise))


def plan_blocks(
    channels: Sequence[int],
    layers: Sequence[int],
    depthwise: Sequence[bool],
    scaling: Sequence[bool],
    spatio_only: Sequence[bool] | None,
    temporal_only: Sequence[bool] | None = None,
    conv_types: Sequence[str] | None = None,
) -> list[BlockPlan]:
    """Return the blocks of a published config in running order; its lists are output-first.

    Raises SettingsError if the lengths of the lists disagree, if a block is to upsample only space and only time, or for an
    unknown type of convolution.
    """
    num_up = len(channels)
    spatio_only = spatio_only or [False] * num_up
    temporal_only = temporal_only or [False] * num_up
    lengths = {
        "decoder_layers_per_block": (len(layers), num_up + 1),
        "decoder_is_dw_conv": (len(depthwise), num_up + 1),
        "spatio_temporal_scaling": (len(scaling), num_up),
        "decoder_spatio_only": (len(spatio_only), num_up),
        "decoder_temporal_only": (len(temporal_only), num_up),
        "decoder_conv_types": (num_up + 1 if conv_types is None else len(conv_types), num_up + 1),
    }
    for name, (found, wanted) in lengths.items():
        if found != wanted:
            raise SettingsError(f"{name} has {found} entries; {num_up} decoder_block_out_channels need {wanted}")
    for i, both in enumerate(zip(spatio_only, temporal_only, strict=True)):
        if all(both):
            raise SettingsError(
                f"decoder_spatio_only and decoder_temporal_only both have entry {i} set", "a block upsamples one alone, or both"
            )
    convs = conv_types_of(conv_types, depthwise)
    for one in convs:
        check_choice("decoder_conv_types", one, CONV_TYPES)
    mid = BlockPlan(channels[-1], layers[-1], convs[-1], upsample_space=False, upsample_time=False)
    return [mid] + [
        BlockPlan(
            channels[i],
            layers[i],
            convs[i],
            upsample_space=scaling[i] and not temporal_only[i],
            upsample_time=scaling[i] and not spatio_only[i],
        )
        for i in reversed(range(num_up))
    ]


@dataclass(frozen=True)
class FrameRule:
    """The frame counts T that encode and decode keep: step * k + first, `minimum` to `maximum`, and 1 for images."""

    step: int
    first: int
    minimum: int = 1
    maximum: int | None = None

    def is_valid(self, frames: int) -> bool:
        """Whether encode and decode keep this number of pixel frames."""
        if self.maximum is not None and frames > self.maximum:
            return False
        return frames == 1 or (frames >= self.minimum and frames % self.step == self.first % self.step)

    def at_least(self, frames: int) -> int:
        """Return the smallest valid count >= frames; the maximum if there is none."""
        if frames <= 1:
            return 1
        if self.maximum is not None and frames > self.maximum:
            return self.maximum
        return max(self.minimum, math.ceil((frames - self.first) / self.step) * self.step + self.first)

    def at_most(self, frames: int) -> int:
        """Return the largest valid count <= frames; 1 if there is none."""
        frames = frames if self.maximum is None else min(frames, self.maximum)
        valid = (frames - self.first) // self.step * self.step + self.first
        return valid if valid >= self.minimum else 1

    def __str__(self) -> str:
        """Return the rule as users read it: '8k+1', '4k, at least 8 (or 1)', or '1 or more' if every count is valid."""
        text = f"{self.step}k+{self.first}" if self.first else f"{self.step}k"
        text = "1 or more" if self.step == 1 else text
        text = f"{text}, at least {self.minimum} (or 1)" if self.minimum > 1 else text
        return f"{text}, at most {self.maximum}" if self.maximum else text


ACTIVATIONS = ("relu", "silu")


TAILS = {"convs": (1, 2, 4), "patches": (1, 2, 4, 8)}  # what makes pixels at the end: the sizes of patches that it can have


class StudentNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The decoder of latents (B, C, t, h, w), in the teacher's raw latent space, to video (B, 3, T, H, W) in [-1, 1].

    Lists in the config are output-first, as published: the network runs `conv_in`, `mid_block`, `up_blocks.0..n` over
    them reversed. A block with `spatio_temporal_scaling` doubles time and space; with `decoder_spatio_only` space alone, with
    `decoder_temporal_only` time alone. The tail has one per-frame 2-D upsampling with `patch_size` 2, two with 4, none with 1;
    all end in norm, SiLU, convolution. With `decoder_change_in_upsampler`, the convolution of an upsampler
    changes the channels, not a resnet before it. Without doubled time, as for an image VAE, T is t.
    Any t >= 1 decodes; T is `pixel_frames(t)`. Raises SettingsError for a config that fits no network.
    Source: arXiv:2508.09136 and its published weights; `patch_size` 2 and `decoder_temporal_only` are additions.
    """

    _supports_gradient_checkpointing = True
    gradient_checkpointing = False  # the name that diffusers' enable_gradient_checkpointing() looks for

    @property
    def device(self) -> torch.device:
        """Where it computes. diffusers' property imports its group offloading, a second; without that, weights are where they are."""
        is_offloaded = "diffusers.hooks.group_offloading" in sys.modules
        return cast(torch.device, super().device) if is_offloaded else next(self.parameters()).device

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 128,
        out_channels: int = 3,
        decoder_block_out_channels: Sequence[int] = (64, 128, 256, 512),
        decoder_layers_per_block: Sequence[int] = (3, 2, 3, 1, 1),
        decoder_is_dw_conv: Sequence[bool] = (False, False, False, True, True),
        decoder_dw_kernel_size: int = 5,
        spatio_temporal_scaling: Sequence[bool] = (True, True, True, False),
        decoder_spatio_only: Sequence[bool] | None = None,
        patch_size: int = 4,
        patch_size_t: int = 1,
        is_video_dc_ae: bool = False,
        scaling_factor: float = 1.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        aligned_feature_projection_mode: str | None = None,
        aligned_feature_projection_dim: Sequence[Sequence[int]] | None = None,
        aligned_blks_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        decoder_causal: bool = False,
        resnet_norm_eps: float = 1e-6,
        teacher: str | None = None,
        decoder_temporal_only: Sequence[bool] | None = None,
        timestep_conditioning: bool = False,
        decoder_conv_types: Sequence[str] | None = None,
        decoder_tail: str = "convs",
        decoder_activation: str | None = None,
        decoder_change_in_upsampler: bool = False,
    ) -> None:
        super().__init__()
        plan = plan_blocks(
            decoder_block_out_channels,
            decoder_layers_per_block,
            decoder_is_dw_conv,
            spatio_temporal_scaling,
            decoder_spatio_only,
            decoder_temporal_only,
            decoder_conv_types,
        )
        _check_tail(decoder_tail, patch_size, plan[-1].channels)
        if decoder_activation is not None:
            check_choice("decoder_activation", decoder_activation, ACTIVATIONS)
        if patch_size_t != 1:
            raise SettingsError("patch_size_t > 1 was never part of the published student")
        if timestep_conditioning:  # pipelines add noise to the latents of a decoder that has it
            raise SettingsError("timestep_conditioning is on: a student takes latents alone")

        style = BlockStyle(depthwise_kernel=decoder_dw_kernel_size, causal=decoder_causal, activation=decoder_activation)
        self.conv_in = TimeReplicatedConv3d(latent_channels, plan[0].channels, causal=decoder_causal)
        self.mid_block = MidBlock(plan[0].channels, plan[0].num_layers, replace(style, conv=plan[0].conv))
        self.up_blocks = nn.ModuleList(
            UpBlock(
                before.channels,
                block.channels,
                block.num_layers,
                replace(style, conv=block.conv),
                upsample_space=block.upsample_space,
                upsample_time=block.upsample_time,
                drop_first_frame=not is_video_dc_ae,
                change_in_upsampler=decoder_change_in_upsampler,
            )
            for before, block in pairwise(plan)
        )
        self.norm_out = ChannelRMSNorm()
        self.act_out = style.make_activation()
        channels, pixels = plan[-1].channels, out_channels
        if decoder_tail == "patches":
            pixels = out_channels * patch_size**2
        else:
            if patch_size > 1:
                self.upsampler2d_1 = Upsampler2d(channels)
            if patch_size > 2:
                self.upsampler2d_2 = Upsampler2d(channels // 4)
            channels //= patch_size**2
        self.conv_out = TimeReplicatedConv3d(channels, pixels, causal=decoder_causal)

        num_space = sum(block.upsample_space for block in plan)
        num_time = sum(block.upsample_time for block in plan)
        self.spatial_compression_ratio = patch_size * 2**num_space
        self.temporal_compression_ratio = 2**num_time
        self.register_to_config(
            **facts_for_pipelines(latent_channels, self.temporal_compression_ratio, self.spatial_compression_ratio)
        )

    @property
    def tail_upsamplers(self) -> list[Upsampler2d]:
        """The 2-D upsamplings of the tail in running order; each doubles the height and width of single frames."""
        return [getattr(self, name) for name in ("upsampler2d_1", "upsampler2d_2") if hasattr(self, name)]

    @property
    def patch_out(self) -> int:
        """The side of the patches of pixels that the last convolution makes; 1: it makes pixels."""
        return int(self.config.patch_size) if self.config.decoder_tail == "patches" else 1

    def pixel_frames(self, latent_frames: int) -> int:
        """Return T, the number of pixel frames that the student makes of t latent frames."""
        if self.config.is_video_dc_ae:
            return latent_frames * int(self.temporal_compression_ratio)
        return (latent_frames - 1) * int(self.temporal_compression_ratio) + 1

    def latent_shape(self, frames: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return (C, t, h, w) of the latents that decode to `frames` pixel frames of `size` (height, width).

        Raises FrameCountError or ShapeError with the nearest possible values.
        """
        ratio, first = int(self.temporal_compression_ratio), 0 if self.config.is_video_dc_ae else 1
        rule = FrameRule(ratio, first)
        if frames < 1 or frames % ratio != first % ratio:
            least = first or ratio
            nearest_frames = sorted({max(rule.at_most(frames), least), max(rule.at_least(frames), least)})
            raise FrameCountError(
                f"this student makes {rule} frames, not {frames}",
                f"nearest: `frames` {' or '.join(map(str, nearest_frames))}",
            )
        space = int(self.spatial_compression_ratio)
        height, width = size
        if height % space or width % space or min(size) < space:
            nearest = [max(round(pixels / space), 1) * space for pixels in (width, height)]
            raise ShapeError(
                f"this student makes multiples of {space} pixels, not {width}x{height}",
                f"nearest: `size` {nearest[0]}x{nearest[1]}",
            )
        return self.config.latent_channels, (frames - first) // ratio + first, height // space, width // space

    def forward(self, latents: Tensor) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1], not clamped."""
        x = self.conv_in(latents)
        x = self._run(self.mid_block, x)
        for block in self.up_blocks:
            x = self._run(block, x)
        return self._run(self._tail, x)

    # Whether `decode` without gradients uses the fast form; None: only on a CPU, where it is known to be faster. If it is
    # False, a stream has the channels-last layout and no other speedup.
    fast: bool | None = None
    fast_form_class: ClassVar[type[Any] | None] = None  # a FastDecoder with a choice of forms; None: FastDecoder itself
    fast_form_of: tuple[object, object] | None = None  # (these weights, their fast form): streaming.py fills it

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and pickles: everything but the fast form."""
        return {name: value for name, value in self.__dict__.items() if name != "fast_form_of"}

    def check_latents(self, latents: Tensor) -> None:
        """Raise ShapeError unless `latents` are (B, latent_channels, t, h, w); any t is valid."""
        channels = self.config.latent_channels
        if latents.ndim != 5 or latents.shape[1] != channels:
            raise ShapeError(
                f"latents are {tuple(latents.shape)}: this student decodes (batch, {channels}, frames, height, width)"
            )

    def features(
        self, latents: Tensor, blocks: Sequence[str], *, with_sample: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Decode latents (B, C, t, h, w) and keep the outputs of `blocks` ("mid_block", "up_blocks.0", ...), in one pass.

        Returns (video (B, 3, T, H, W), {block: (B, C', t', h', w')}). Without `with_sample` it stops after the last of
        `blocks`, and the video is None. Raises SettingsError for an unknown block.
        """
        wanted = dict.fromkeys(blocks)
        found: dict[str, Tensor] = {}
        x = self.conv_in(latents)
        stages = [("mid_block", self.mid_block), *((f"up_blocks.{i}", block) for i, block in enumerate(self.up_blocks))]
        unknown = set(wanted) - {name for name, _ in stages}
        if unknown:
            raise SettingsError(f"this student has no block {sorted(unknown)[0]!r}", f"blocks: {', '.join(n for n, _ in stages)}")
        for name, block in stages:
            x = self._run(block, x)
            if name in wanted:
                found[name] = x
            if not with_sample and len(found) == len(wanted):
                return None, found
        return self._run(self._tail, x), found

    def checkpoint_blocks(self, *, enable: bool) -> None:
        """Switch gradient checkpointing: training keeps the inputs of blocks and computes the rest again; gradients are equal."""
        if enable != self.gradient_checkpointing:
            self._set_gradient_checkpointing(enable, partial(checkpoint, use_reentrant=False, preserve_rng_state=False))

    def _run(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, self._gradient_checkpointing_func(part, x))
        return part(x)

    def before_last(self, x: Tensor) -> Tensor:
        """Return the input of `conv_out`: the part of the tail that works on single frames, of `x` (B, C, T, h, w).

        Its end and `conv_out` keep the precision of their weights under autocast. Rounding to bf16 would shift colours by up
        to 1 in 255, and the student would learn to compensate for that.
        """
        first, others = self.tail_upsamplers[:1], self.tail_upsamplers[1:]
        for upsampler in first:
            x = upsampler(self.act_out(self.norm_out(x)))
        last = self.conv_out.conv  # layerwise casting stores its weights in fewer bits than it computes in
        x = x.to(self.dtype if is_hooked(last) else last.weight.dtype)
        with _no_autocast(x.device):
            for upsampler in others:
                x = upsampler(self.act_out(self.norm_out(x)))
            return cast(Tensor, self.act_out(self.norm_out(x)))

    def _tail(self, x: Tensor) -> Tensor:
        x = self.before_last(x)
        with _no_autocast(x.device):
            return pixel_shuffle_3d(self.conv_out(x), 1, self.patch_out) if self.patch_out > 1 else cast(Tensor, self.conv_out(x))


# Keys of a saved config that follow from the others: pipelines read them from the configs of VAE classes.
DERIVED_KEYS = (
    "block_out_channels",
    "invert_scale_latents",
    "scale_factor_spatial",
    "scale_factor_temporal",
    "spatial_compression_ratio",
    "temporal_compression_ratio",
    "z_dim",
)


def facts_for_pipelines(latent_channels: int, time_ratio: int, space_ratio: int) -> dict[str, Any]:
    """Return the config keys of VAE classes that diffusers pipelines read, for a student of these ratios.

    They are written into config.json for other readers. Loading computes them again, whatever the file has.
    """
    return {
        "temporal_compression_ratio": time_ratio,
        "spatial_compression_ratio": space_ratio,
        "scale_factor_temporal": time_ratio,  # the names of Wan
        "scale_factor_spatial": space_ratio,
        "z_dim": latent_channels,
        "block_out_channels": [latent_channels] * space_ratio.bit_length(),  # CogVideoX reads its length: log2(ratio) + 1
        "invert_scale_latents": False,  # read by image-to-video of CogVideoX, which needs an encoder
    }


def _check_tail(tail: str, patch_size: int, channels: int) -> None:
    """Raise SettingsError for a tail that does not exist, or one whose upsamplings cannot divide the last block's channels."""
    check_choice("decoder_tail", tail, tuple(TAILS))
    if patch_size not in TAILS[tail]:
        *sizes, largest = map(str, TAILS[tail])
        raise SettingsError(
            f"patch_size is {patch_size}; with decoder_tail {tail} it can be {', '.join(sizes)} or {largest}",
            "other ratios come from blocks that upsample",
        )
    if tail == "convs" and channels % patch_size**2:
        raise SettingsError(
            f"decoder_block_out_channels begins with {channels}, which patch_size {patch_size} divides by {patch_size**2}",
            f"give a multiple of {patch_size**2}",
        )


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    if not torch.amp.is_autocast_available(device.type):  # such as meta, on which only shapes are computed
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class Stripe:
    """The place of a stripe of rows in its piece of a clip."""

    stripe: int  # number of the stripe, from the top
    top: bool  # no row is above it
    bottom: bool  # no row is below it
    end: bool  # no frame follows


class StreamStage(Protocol):
    """A part of the decoder that works on a stream of stripes (n, C, h, W) of frames; n and h may be 0."""

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        """Take new frames (n, C, h, W) of a stripe; return the frames and rows (m, C', h', W') that are determined by now."""
        ...

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        """Return the number of frames that are out after `frames` have come in, if more follow.

        Without `pads`, those are not counted that see frames repeated before the first one.
        """
        ...


class Memory(Protocol):
    """The frames that a stage keeps for the next piece, a tensor per stripe."""

    def __setitem__(self, stripe: int, frames: Tensor, /) -> None: ...

    def get(self, stripe: int, /) -> Tensor | None:
        """Return the last frames (n, C, h, W) of a stripe, which must not be written to; None if there are none."""
        ...


Keep = Callable[[], Memory]


StageMaker = Callable[[Keep], StreamStage]


def run_stages(stages: Iterable[StreamStage], x: Tensor, at: Stripe) -> Tensor:
    """Pass a stripe (n, C, h, W) through stages in order; returns (m, C', h', W')."""
    for stage in stages:
        x = stage(x, at)
    return x


def stripes_of(stripes: Sequence[Tensor], *, end: bool) -> Iterator[tuple[Stripe, Tensor]]:
    """Yield every stripe (n, C, h, W) of a piece, from the top, with its place."""
    for number, stripe in enumerate(stripes):
        yield Stripe(number, number == 0, number == len(stripes) - 1, end), stripe


def framewise(layer: Callable[[Tensor], Tensor], time: int = 1) -> StageMaker:
    """Return a maker of a stage for a layer that works on single frames: (n, C, h, W) to (n * time, C', h', W')."""
    return lambda _keep: _Framewise(layer, time)


class _Framewise:
    """The stage of a layer without context in time or between rows; `time` frames come out for each frame that goes in."""

    def __init__(self, layer: Callable[[Tensor], Tensor], time: int = 1) -> None:
        self.layer, self.time = layer, time

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        return self.layer(x)

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames * self.time


class StreamConvolution:
    """A convolution that keeps the prepared frames, and within a piece the rows, that its next output needs."""

    def __init__(
        self, kernel: Convolution | TimeConvolution, prepare: Preparation, scratch: Scratch, kept: Memory, *, causal: bool = False
    ) -> None:
        self.kernel, self.prepare, self.scratch = kernel, prepare, scratch
        self.ahead = 0 if causal else kernel.reach_time  # frames after an output's own that it needs
        self.kept = kept  # the last frames of each stripe
        self.above: Tensor | None = None  # the last rows of the stripe above

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        padded, top = self._padded(x, at)
        reach, rows = self.kernel.reach, slice(top, top + x.shape[2])
        if not at.end and (frames := padded.shape[0]):
            self.kept[at.stripe] = padded[frames - min(frames, 2 * self.kernel.reach_time) :, :, rows]
        is_whole = at.top and at.bottom
        if not is_whole and reach:
            self.above = None if at.bottom else copied(padded[:, :, -2 * reach :])
        return self.kernel(padded, pad_height=is_whole)

    def _padded(self, x: Tensor, at: Stripe) -> tuple[Tensor, int]:
        """Return the input of the convolution, padded in time and rows, and the number of rows above the stripe.

        In time it is the kept frames, the new frames, and at the end the last one repeated. In rows it is the rows above, or
        zeros at the top, and zeros at the bottom.
        """
        frames, channels, height, width = x.shape
        reach_time, reach = self.kernel.reach_time, self.kernel.reach
        kept = self.kept.get(at.stripe)
        head = kept.shape[0] if kept is not None else 2 * reach_time - self.ahead if frames else 0
        known = head + frames
        tail = self.ahead if at.end and known else 0
        top = bottom = 0
        if reach and not (at.top and at.bottom):
            top = self.above.shape[2] if self.above is not None else reach
            bottom = reach if at.bottom else 0
        shape = (known + tail, channels, top + height + bottom, width)
        padded = self.scratch.frames("padded", shape, self.kernel.dtype, x.device)
        self.prepare.fill(x, padded[:, :, top : top + height], kept, head, self.scratch)
        if top:
            padded[:, :, :top] = self.above if self.above is not None else 0
        if bottom:
            padded[:, :, -bottom:] = 0
        return padded, top

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames - (self.ahead if pads else 2 * self.kernel.reach_time)


class StreamShortcut:
    """The shortcut of a resnet that changes channels: LayerNorm over channels, in the precision `sums`, then the pointwise convolution."""

    def __init__(self, norm: nn.LayerNorm, pointwise: Callable[[Tensor], Tensor], sums: torch.dtype) -> None:
        self.weight, self.bias, self.eps = norm.weight.detach().to(sums), norm.bias.detach().to(sums), norm.eps
        self.pointwise, self.sums = pointwise, sums

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 1).to(self.sums)
        rows = functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.eps)
        return self.pointwise(rows.permute(0, 3, 1, 2))


class StreamResidual:
    """The sum, in the precision `sums`, of a branch and its input, which is kept until the branch has caught up."""

    def __init__(
        self, branch: Sequence[StreamStage], shortcut: StreamShortcut | None, waiting: Memory, sums: torch.dtype
    ) -> None:
        self.branch, self.shortcut, self.sums = branch, shortcut, sums
        self.waiting = waiting  # frames of each stripe that the branch has not caught up with
        self.above: Tensor | None = None  # rows of the stripe above that it has not caught up with

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        y = run_stages(self.branch, x, at).to(self.sums)
        straight = self.shortcut(x) if self.shortcut else x
        before = self.waiting.get(at.stripe)
        # The frames that waited and the new ones, and the rows above and these, are added where they are, not put together first.
        earlier = before if before is not None else straight[:0]
        num_new = max(y.shape[0] - earlier.shape[0], 0)
        due = earlier[: y.shape[0]], straight[:num_new]
        above = self.above if self.above is not None else y[:, :, :0]
        top = min(above.shape[2], y.shape[2])
        y[:, :, :top].add_(above[:, :, :top])
        rows = y.shape[2] - top
        for part, target in zip(due, y[:, :, top:].split([len(part) for part in due]), strict=True):
            target.add_(part[:, :, :rows])
        if not at.top or not at.bottom:
            here = torch.cat([part[:, :, rows:] for part in due])
            self.above = None if at.bottom else copied(torch.cat([above[:, :, top:], here], dim=2))
        if not at.end:
            late = straight[num_new:]
            self.waiting[at.stripe] = torch.cat([earlier[y.shape[0] :], late]) if earlier.shape[0] > y.shape[0] else late
        return y

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        for stage in self.branch:
            frames = stage.frames_out(frames, pads=pads)
        return frames


class WithoutFirst:
    """A stage that drops the first frame of the stream."""

    def __init__(self) -> None:
        self.dropped: set[int] = set()  # stripes whose first frame was dropped

    def __call__(self, x: Tensor, at: Stripe) -> Tensor:
        if at.stripe in self.dropped or not x.shape[0]:
            return x
        self.dropped.add(at.stripe)
        return x[1:]

    def frames_out(self, frames: int, *, pads: bool = True) -> int:
        return frames - 1


def copied(x: Tensor) -> Tensor:
    """Return a copy of `x` (n, C, h, W) in channels_last memory, which keeps no larger tensor alive."""
    return x.clone(memory_format=torch.channels_last)


class Spill:
    """A file without a name in `folder`, with the frames that the convolutions of one decoder keep for later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._end = 0  # bytes

    @cached_property
    def _file(self) -> io.FileIO:
        return tempfile.TemporaryFile(dir=self._folder, buffering=0)

    def memory(self) -> Memory:
        """Return the memory of one stage, in this file."""
        return SpilledFrames(self)

    def clear(self) -> None:
        """Forget everything that was written, as another clip begins."""
        self._end = 0

    def place(self, size: int) -> int:
        """Reserve `size` bytes of the file and return their offset."""
        self._end += size
        return self._end - size

    def write(self, place: int, data: Tensor) -> None:
        """Write `data`, uint8 (n,) on the CPU, at the offset `place`; raises TurboVaedError if the disk is full."""
        self._file.seek(place)
        view = data.numpy().data
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            what = f"frames that decoding keeps do not fit in {self._folder}: {error.strerror}"
            raise TurboVaedError(what, "free some of its disk, or allow more `memory`") from error

    def read(self, place: int, data: Tensor) -> None:
        """Read bytes at the offset `place` into `data`, uint8 (n,) on the CPU."""
        self._file.seek(place)
        view = data.numpy().data
        while len(view):
            count = self._file.readinto(view)
            assert count, "the spilled file has shrunk"
            view = view[count:]


class SpilledFrames:
    """The last frames (n, C, H, W) of each stripe, kept in a Spill; they come back in channels_last memory."""

    def __init__(self, spill: Spill) -> None:
        self._spill = spill
        self._known: dict[int, tuple[torch.Size, torch.dtype, torch.device]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # offset and size in bytes

    def __setitem__(self, stripe: int, frames: Tensor, /) -> None:
        self._known[stripe] = frames.shape, frames.dtype, frames.device
        if frames.device.type == "meta" or not frames.numel():
            return
        data = frames.permute(0, 2, 3, 1).contiguous().cpu().flatten().view(torch.uint8)
        if stripe not in self._places or self._places[stripe][1] < data.numel():
            self._places[stripe] = self._spill.place(data.numel()), data.numel()
        self._spill.write(self._places[stripe][0], data)

    def get(self, stripe: int, /) -> Tensor | None:
        if stripe not in self._known:
            return None
        (n, channels, height, width), dtype, device = self._known[stripe]
        frames = torch.empty(n, height, width, channels, dtype=dtype, device="meta" if device.type == "meta" else "cpu")
        if frames.numel() and device.type != "meta":
            self._spill.read(self._places[stripe][0], frames.flatten().view(torch.uint8))
        return frames.to(device).permute(0, 3, 1, 2)


class Tape:
    """The latents (B, C, n, h, w) of one clip; the last ones are kept, so that they can be decoded again."""

    def __init__(self, latents: Iterable[Tensor], most: int) -> None:
        self._latents, self._most = iter(latents), most
        self._kept: deque[Tensor] = deque()  # on the CPU
        self._num_kept = 0  # latent frames
        self.start = 0  # latent frames before those kept
        self.has_failed = False  # whether the latents themselves raised an error

    def pieces(self, frames: int) -> Iterator[Tensor]:
        """Yield the latents that are kept, then the new ones, `frames` at most at once."""
        for kept in list(self._kept):
            yield from kept.split(frames, dim=2)
        while (new := self._next()) is not None:
            yield from new.split(frames, dim=2)

    def _next(self) -> Tensor | None:
        self.has_failed = True
        piece = next(self._latents, None)
        self.has_failed = False
        if piece is not None:
            self._kept.append(piece.cpu())
            self._num_kept += piece.shape[2]
        while self._kept and self._num_kept - self._kept[0].shape[2] >= self._most:
            length = self._kept.popleft().shape[2]
            self._num_kept, self.start = self._num_kept - length, self.start + length
        return piece


Step = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]  # of a decode (C, n, h, w) to (3, m, H, W), and latents


class FastDecoder:
    """A student prepared for decoding: its weights in the fastest layouts, in `dtype`, on the student's device.

    The weights must not change any more. Decode piece by piece with `StreamingDecoder`, or a whole clip with `decode`.
    `speedups` None takes those that are known to be faster on the device: all on a CPU, only the layout elsewhere.
    """

    preparation: type[Preparation] = Preparation  # of the input of a convolution

    def __init__(self, student: StudentNetwork, dtype: torch.dtype | None = None, speedups: Speedups | None = None) -> None:
        self.student, self.dtype, self.device = student, dtype or student.dtype, student.device
        speedups = speedups or (Speedups() if self.device.type == "cpu" else LAYOUT_ALONE)
        self.speedups = replace(speedups, packed=speedups.packed and packs(self.dtype))
        self.sums = self.speedups.sums_in(self.dtype)
        self.scratch = Scratch()
        self._kernels: list[Convolution] = []
        self._makers = list(self._makers_of(student))

    def stages(self, keep: Keep = Kept) -> list[StreamStage]:
        """Return the decoder as new stages, which keep frames in memories that `keep` makes; weights are shared."""
        return [make(keep) for make in self._makers]

    def for_pieces(self, _latents: Tensor) -> "FastDecoder":
        """Return the decoder for a stream of pieces like these latents (B, C, n, h, w); GpuDecoder has several."""
        return self

    def stepper(self, _stages: Sequence[StreamStage]) -> Step:
        """Return what takes a piece of one clip through its stages, after which more follow."""
        return _called

    def held(self) -> list[Tensor]:
        """Return the prepared weights and the reused memory."""
        return [*self.scratch.blocks(), *(weight for kernel in self._kernels for weight in kernel.prepared())]

    def forget(self) -> None:
        """Drop the prepared weights and the reused memory; the next decode makes them again."""
        self.scratch.clear()
        for kernel in self._kernels:
            kernel.forget()

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int = 0, rows: int = 0) -> Tensor:
        """Decode latents (B, C, t, h, w) to video (B, 3, T, H, W) in [-1, 1], not clamped.

        It works on `frames` latent frames and `rows` latent rows at a time (0: all).
        """
        decoder, ratio = StreamingDecoder(self, rows=rows), int(self.student.spatial_compression_ratio)
        length, height, width = self.student.pixel_frames(latents.shape[2]), latents.shape[3] * ratio, latents.shape[4] * ratio
        video = torch.empty(latents.shape[0], 3, length, height, width, device=self.device, dtype=self.dtype)
        done = 0
        for made in decoder.decode(latents.split(frames or latents.shape[2], dim=2)):
            video[:, :, done : done + made.shape[2]] = made
            done += made.shape[2]
        assert done == length, (done, length)
        return video

    def _makers_of(self, student: StudentNetwork) -> Iterator[StageMaker]:
        yield from self._convolution(student.conv_in)
        for block in (student.mid_block, *student.up_blocks):
            if hasattr(block, "conv_in"):
                yield self._residual(cast(ResnetBlock, block.conv_in))
            if hasattr(block, "upsamplers"):
                yield from self._upsampling(cast(Upsampler3d, block.upsamplers[0]))
            for resnet in block.resnets:
                yield self._residual(cast(ResnetBlock, resnet))
        activation = _name_of(student.act_out)
        for upsampler in student.tail_upsamplers:
            yield from self._convolution(upsampler.conv, activation, shuffled=(1, 2))
            yield framewise(partial(shuffle, time=1))
        patch = student.patch_out
        yield from self._convolution(student.conv_out, activation, shuffled=(1, patch) if patch > 1 else None)
        if patch > 1:
            yield framewise(partial(shuffle, time=1, space=patch))

    def _kernel(self, convolution: nn.Module, shuffled: tuple[int, int] | None = None) -> Convolution:
        """Return the kernel of a convolution; if a shuffle by the factors `shuffled` (time, space) follows, in its order."""
        inner = cast(nn.Conv3d, convolution)
        weight, bias = inner.weight.detach(), cast(Tensor, inner.bias).detach()
        if shuffled:
            order = shuffle_order(len(bias), *shuffled).to(bias.device)
            weight, bias = weight[order], bias[order]
        weight = weight.unsqueeze(2) if weight.ndim == 4 else weight  # 2-D: a convolution of one frame
        self._kernels.append(Convolution(weight, bias, inner.groups, self.dtype, self.speedups, self.scratch))
        return self._kernels[-1]

    def _convolution(
        self, convolution: nn.Module, activation: str | None = None, shuffled: tuple[int, int] | None = None
    ) -> Iterator[StageMaker]:
        """Yield the stages of a convolution, after norm and activation if one is named."""
        causal = bool(getattr(convolution, "causal", False))
        if isinstance(convolution, DepthwiseSeparableConv3d):
            yield self._stage(self._kernel(convolution.depthwise_conv), activation, causal=causal)
            yield framewise(partial(self._kernel(convolution.pointwise_conv), pad_height=True))
        elif isinstance(convolution, SpaceThenTimeConv3d):
            yield self._stage(self._kernel(convolution.spatial_conv, shuffled), activation)
            weight = convolution.temporal_conv.weight
            if shuffled:
                weight = weight[shuffle_order(len(weight), *shuffled).to(weight.device)]
            yield self._stage(TimeConvolution(weight, self.dtype), causal=causal)
        else:
            inner = convolution.conv if isinstance(convolution, TimeReplicatedConv3d) else convolution
            yield self._stage(self._kernel(inner, shuffled), activation, causal=causal)

    def _stage(self, kernel: Convolution | TimeConvolution, activation: str | None = None, *, causal: bool = False) -> StageMaker:
        prepare, scratch = self.preparation(activation), self.scratch
        return lambda keep: StreamConvolution(kernel, prepare, scratch, keep(), causal=causal)

    def _residual(self, resnet: ResnetBlock) -> StageMaker:
        makers = [
            *self._convolution(resnet.conv1, _name_of(resnet.act1)),
            *self._convolution(resnet.conv2, _name_of(resnet.act2)),
        ]
        shortcut, sums = None, self.sums
        if hasattr(resnet, "conv_shortcut"):
            pointwise = partial(self._kernel(resnet.conv_shortcut.conv), pad_height=True)
            shortcut = StreamShortcut(resnet.norm3, pointwise, sums)
        return lambda keep: StreamResidual([make(keep) for make in makers], shortcut, keep(), sums)

    def _upsampling(self, upsampler: Upsampler3d) -> Iterator[StageMaker]:
        time, space = upsampler.time, upsampler.space
        yield from self._convolution(upsampler.conv, shuffled=(time, space))
        yield framewise(partial(shuffle, time=time, space=space), time)
        if upsampler.drop_first_frame:
            yield lambda _keep: WithoutFirst()


def _called(run: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    return run(latents)


def _name_of(activation: nn.Module) -> str:
    return "relu" if isinstance(activation, nn.ReLU) else "silu"


def fast_form(student: StudentNetwork) -> FastDecoder:
    """Return the fast form of a student's weights: made at the first call, and again after they have changed or moved.

    Changes through a parameter's `.data` are not noticed. A running stream keeps the weights it began with.
    """
    weights = state_of(student.parameters())
    if student.fast_form_of is None or student.fast_form_of[0] != (student.fast, weights):
        speedups = LAYOUT_ALONE if student.fast is False else None
        has_choice = student.fast is not False and student.fast_form_class is not None
        made_by = cast(type[FastDecoder], student.fast_form_class) if has_choice else FastDecoder
        fast = made_by(student, speedups=speedups)
        fast.student = cast(StudentNetwork, weakref.proxy(student))  # a strong reference would keep both alive in a cycle
        student.fast_form_of = (student.fast, weights), fast
    return cast(FastDecoder, student.fast_form_of[1])


class StreamingDecoder:
    """Decode latents chunk by chunk, equal to the student's decode of the whole clip.

        decoder = StreamingDecoder(student)
        for chunk in chunks:               # (B, C, n, h, w), any n, in the teacher's raw latent space
            show(decoder.push(chunk))      # (B, 3, m, H, W) in [-1, 1], not clamped; m may be 0
        show(decoder.finish())

    After `finish` the next clip can begin. Memory is needed for the longest chunk and for the few frames that every convolution
    keeps. With `rows`, only that many latent rows of a chunk are decoded at a time, to the same pixels. `spill` is a folder on
    whose disk the kept frames are stored until they are needed. `student` may be a FastDecoder, which several may share. Raises
    ShapeError if a chunk does not fit the student or the chunks before it.
    """

    def __init__(self, student: StudentNetwork | FastDecoder, *, rows: int = 0, spill: Path | None = None) -> None:
        self.fast = student if isinstance(student, FastDecoder) else fast_form(student)
        self.student = self.fast.student if isinstance(student, FastDecoder) else student
        if rows < 0:
            raise SettingsError(f"rows is {rows}; it cannot be below 0")
        self.rows, self._spill = rows, Spill(spill) if spill else None
        self._most = 1  # latent frames of the longest piece
        self._start()

    @property
    def lookahead_frames(self) -> int:
        """The number of pixel frames by which the output lags; `finish` returns them."""
        return self._frames_short(pads=True)

    @property
    def context_frames(self) -> int:
        """The number of pixel frames, before and after it, on whose latents a pixel frame depends."""
        return self._frames_short(pads=False)

    def _frames_short(self, *, pads: bool) -> int:
        many = 1000
        frames = many
        for stage in self.fast.stages():
            frames = stage.frames_out(frames, pads=pads)
        return self.student.pixel_frames(many) - frames

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """Take the next latent frames (B, C, n, h, w); return the pixel frames (B, 3, m, H, W) that they determine."""
        self._check(latents)
        if self._first is None:
            return self._nothing(latents.shape)
        self._most = max(self._most, latents.shape[2])
        clips = zip(self._clips, self._steps, latents, strict=True)
        return self._joined([step(partial(self._clip, clip, end=False), one) for clip, step, one in clips])

    def finish(self) -> Tensor:
        """Return the remaining frames, (B, 3, m, H, W); raises FrameCountError if no latent frame was pushed."""
        return torch.cat(list(self.flush()), dim=2)

    @torch.no_grad()
    def flush(self) -> Iterator[Tensor]:
        """Yield the frames of `finish`, (B, 3, m, H, W), in pieces no larger than those of `push`."""
        if self._first is None:
            raise FrameCountError("no latents were pushed, so there is nothing to finish")
        try:
            flushes = [self._flush(clip) for clip in self._clips]
            yield self._nothing(self._first)
            for frames in zip(*flushes, strict=True):
                yield self._joined(frames)
        finally:
            self._start()

    @torch.no_grad()
    def decode(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the frames (B, 3, m, H, W) of one clip, whose latents (B, C, n, h, w) come in `pieces`.

        They are those of `push` and `flush`. A clip that was begun before is dropped. Raises FrameCountError if there is no
        piece, and ShapeError as `push` does.
        """
        self._start()
        pieces = iter(pieces)
        try:
            before = next(pieces, None)
            for piece in pieces:
                assert before is not None
                yield self.push(before)
                before = piece
            if before is None:
                raise FrameCountError("no latents were pushed, so there is nothing to finish")
            if self._first is None and before.shape[2]:  # all in one piece: no frames have to be kept
                self._check(before, streams=False)
                yield self._joined([self._clip(clip, before[i], end=True) for i, clip in enumerate(self._clips)])
            else:
                yield self.push(before)
                yield from self.flush()
        finally:
            self._start()

    def _start(self) -> None:
        self._clips: list[list[StreamStage]] = []
        self._steps: list[Step] = []  # for each clip
        if self._spill:
            self._spill.clear()
        self._first: torch.Size | None = None

    def _check(self, latents: Tensor, *, streams: bool = True) -> None:
        self.student.check_latents(latents)
        if latents.shape[2] and self._first is None:
            self._first = latents.shape
            has_room = not self.rows and self._spill is None
            fast = self.fast.for_pieces(latents) if streams and has_room else self.fast
            self._clips = [fast.stages(self._spill.memory if self._spill else Kept) for _ in range(latents.shape[0])]
            self._steps = [fast.stepper(clip) if has_room else _called for clip in self._clips]
        if self._first is not None and (latents.shape[:2] + latents.shape[3:]) != (self._first[:2] + self._first[3:]):
            raise ShapeError(
                f"latents are {tuple(latents.shape)}, and those before them {tuple(self._first)}: only the frames may differ"
            )

    def _joined(self, clips: Sequence[Tensor]) -> Tensor:
        return clips[0][None] if len(clips) == 1 else torch.stack(list(clips))

    def _clip(self, stages: Sequence[StreamStage], latents: Tensor, *, end: bool) -> Tensor:
        """Decode a piece (C, n, h, w) of one clip to (3, m, H, W)."""
        latents = latents.to(self.fast.device, self.fast.dtype)
        frames = latents.movedim(1, 0).contiguous(memory_format=torch.channels_last)
        return self._through(stages, frames.split(self.rows or frames.shape[2], dim=2), end=end)

    def _through(self, stages: Sequence[StreamStage], stripes: Sequence[Tensor], *, end: bool) -> Tensor:
        """Pass one piece through stages, stripe by stripe, to (3, m, H, W)."""
        made = [run_stages(stages, stripe, at) for at, stripe in stripes_of(stripes, end=end)]
        return (made[0] if len(made) == 1 else torch.cat(made, dim=2)).movedim(0, 1).to(self.fast.dtype)

    def _flush(self, stages: Sequence[StreamStage]) -> Iterator[Tensor]:
        """Flush one clip stage by stage: the last frames of each stage go through the later stages in pieces (3, m, H, W)."""
        assert self._first is not None
        _, channels, _, height, width = self._first
        x = torch.empty(0, channels, height, width, device=self.fast.device, dtype=self.fast.dtype)
        stripes: Sequence[Tensor] = x.split(self.rows or height, dim=2)
        most = self._most
        for number, stage in enumerate(stages):
            left = [stage(x, at) for at, x in stripes_of(stripes, end=True)]
            most *= getattr(stage, "time", 1)
            pieces = zip(*[x.split(most) for x in left], strict=True) if left[0].shape[0] else ()
            for piece in pieces:
                yield self._through(stages[number + 1 :], piece, end=False)
            stripes = [x[:0] for x in left]

    def _nothing(self, shape: torch.Size) -> Tensor:
        batch, _, _, height, width = shape
        ratio = int(self.student.spatial_compression_ratio)
        return torch.empty(batch, 3, 0, height * ratio, width * ratio, device=self.fast.device, dtype=self.fast.dtype)


def decode_as_memory_allows(
    student: StudentNetwork | FastDecoder,
    latents: Iterable[Tensor],
    frames: int,
    *,
    rows: int = 0,
    spill: Path | None = None,
    smaller: Callable[[int, int], None] = lambda before, now: None,
) -> Iterator[Tensor]:
    """Yield the frames (B, 3, m, H, W) of one clip as StreamingDecoder.decode does, with smaller pieces if memory runs out.

    `latents` come in pieces (B, C, n, h, w). Decoded pieces have at most `frames` latent frames; if one does not fit, that
    number is halved. A new decoder begins far enough before the piece that it keeps the same frames again, so every frame is
    yielded once, unchanged. `smaller` is called with the old and the new number of latent frames. The error is raised if a
    piece of one latent frame does not fit, or if it comes from `latents` itself.
    """
    fast = student if isinstance(student, FastDecoder) else fast_form(student)
    ratio = int(fast.student.temporal_compression_ratio)
    context = -(-StreamingDecoder(fast).context_frames // ratio)
    # Frames that are not out yet depend on this many latents before the newest.
    tape, done = Tape(latents, context + 2 + 2 * frames if frames > 1 else 0), 0
    while True:
        decoder = StreamingDecoder(fast, rows=rows, spill=spill)
        known = done - ratio * tape.start  # frames of this decoder that are out already
        try:
            for video in decoder.decode(tape.pieces(frames)):
                made = video[:, :, max(known, 0) :]
                known -= video.shape[2]
                done += made.shape[2]
                yield made
        except Exception as error:
            if tape.has_failed or frames == 1 or not is_out_of_memory(error):
                raise
        else:
            return
        del decoder  # frees, as the error is gone too, everything that the piece had made
        fast.scratch.clear()
        empty_cache(fast.device)
        smaller(frames, frames // 2)
        frames //= 2


TEACHER_LICENCES = {
    'ltx': 'LTX-Video Open Weights License 0.X',
    'ltx0.9.5': 'OpenRAIL-M (0.9.5), LTX-Video Open Weights License 0.X (0.9.7 and 0.9.8)',
    'ltx2': 'LTX-2 Community License Agreement',
    'ltx2.3': 'LTX-2 Community License Agreement',
    'ltx2.5': 'LTX-2 Community License Agreement',
    'wan2.1': 'Apache-2.0',
    'wan2.2': 'Apache-2.0',
    'qwen-image': 'Apache-2.0',
    'hunyuan': 'Tencent Hunyuan Community License',
    'hunyuan1.5': 'Tencent Hunyuan Community License',
    'cogvideox': 'CogVideoX License',
    'video-dc-ae': 'Apache-2.0',
    'cosmos': 'NVIDIA Open Model License',
    'sdxl': 'CreativeML Open RAIL++-M',
    'flux1': 'Apache-2.0',
    'flux2': 'Apache-2.0',
    'sana': 'Apache-2.0',
    'svd': 'Stability AI Community License',
    'tiny': 'Apache-2.0',
}


MODELING_FILE = "modeling_turbovaed.py"


AUTO_MAP = {"AutoModel": f"{Path(MODELING_FILE).stem}.StudentDecoder"}


_PIXELS_WITH_TILING = 4 * 512 * 512  # decoded at once, at most; of a frame that has more, one latent frame


class StudentDecoder(StudentNetwork):
    """A student whose `decode` returns `.sample`, as a VAE in a pipeline does; see StudentNetwork for shapes and the config."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> "StudentDecoder":
        """Load as diffusers does, but never from pickles: raises OSError for a folder without safetensors."""
        return cast("StudentDecoder", super().from_pretrained(*arguments, **{**options, "use_safetensors": True}))

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **options: Any) -> tuple[dict[str, Any], ...]:
        """Return the arguments in a config, as diffusers asks for them.

        Left out: `auto_map`, for those who load without turbovaed, and what follows from the arguments.
        """
        config = {key: value for key, value in config_dict.items() if key not in (*DERIVED_KEYS, "auto_map")}
        return cast(tuple[dict[str, Any], ...], super().extract_init_dict(config, **options))

    def to_json_string(self) -> str:
        """Return config.json, which names the class in the modeling file."""
        return json.dumps({**json.loads(super().to_json_string()), "auto_map": AUTO_MAP}, indent=2, sort_keys=True) + "\n"

    def save_config(self, save_directory: str | Path, *arguments: Any, **options: Any) -> None:
        """Write config.json and the modeling file, with which diffusers' AutoModel loads the folder without turbovaed.

        It is part of `save_pretrained`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODELING_FILE).write_text(modeling_source(), encoding="utf-8", newline="\n")
        super().save_config(folder, *arguments, **options)

    fast_form_class = GpuDecoder
    family = "turbo-vaed"
    latents = "raw"

    @property
    def teacher(self) -> str | None:
        """The registry name of the teacher, as its config has it; None for that of a local folder."""
        name = self.config.teacher
        return str(name) if name in TEACHER_LICENCES else None

    @property
    def space(self) -> LatentSpace:
        """The statistics of the latents."""
        mean, std = (
            tuple(map(float, values or [default] * self.latent_channels))  # not those in the precision of the weights
            for values, default in ((self.config.latents_mean, 0.0), (self.config.latents_std, 1.0))
        )
        time, space = int(self.temporal_compression_ratio), int(self.spatial_compression_ratio)
        return LatentSpace(self.latent_channels, mean, std, self.config.scaling_factor or 1.0, time, space)

    @property
    def licence(self) -> str:
        """The licence of the teacher, which is that of students distilled from it."""
        return TEACHER_LICENCES[self.teacher] if self.teacher else "unknown: that of the teacher"

    @property
    def latent_channels(self) -> int:
        """The number of latent channels."""
        return int(self.config.latent_channels)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last convolution."""
        return self.conv_out.conv.weight

    def stream(self) -> StreamingDecoder:
        """Return a new stream of one clip."""
        return StreamingDecoder(self)

    # Diffusers pipelines need these of a VAE. Statistics stay in the config, so that state dicts keep the published layout.
    @property
    def latents_mean(self) -> Tensor:
        """Per-channel mean that LTX pipelines add before decode, (C,); zeros if the teacher has none."""
        return self._per_channel(self.config.latents_mean or [0.0] * self.config.latent_channels)

    @property
    def latents_std(self) -> Tensor:
        """Per-channel standard deviation that LTX pipelines multiply by before decode, (C,); ones if the teacher has none."""
        return self._per_channel(self.config.latents_std or [1.0] * self.config.latent_channels)

    def _per_channel(self, values: Sequence[float]) -> Tensor:
        device = torch.device("cpu") if self.device.type == "meta" else self.device  # sequential offload leaves weights there
        return torch.tensor(values, device=device, dtype=self.dtype)

    @property
    def temperal_downsample(self) -> list[bool]:
        """One entry for each doubling of space, and whether it doubles time too: Wan's spelling, for its VACE pipeline."""
        in_time, in_space = (
            int(ratio).bit_length() - 1 for ratio in (self.temporal_compression_ratio, self.spatial_compression_ratio)
        )
        return [False] * (in_space - in_time) + [True] * in_time

    use_tiling = use_slicing = False

    def enable_tiling(self, *_sizes: Any, **_named_sizes: Any) -> None:
        """Decode a few latent frames at a time, to the same pixels; there are no tiles, so their sizes are ignored."""
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Decode whole clips again."""
        self.use_tiling = False

    def enable_slicing(self) -> None:
        """Decode the clips of a batch one by one, to the same pixels."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Decode the clips of a batch together again."""
        self.use_slicing = False

    def decode(self, z: Tensor, temb: Tensor | None = None, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode `z` (B, latent_channels, t, h, w), as diffusers pipelines call it, to `.sample` (B, 3, T, H, W) in [-1, 1].

        `z` is converted to the student's precision; `temb` is not used. Without gradients on a CPU the fast form decodes (see
        `fast`), and on CUDA the fastest one: results are equal within rounding, and hooks of modules are not called. Raises
        ShapeError for another shape, FrameCountError for t = 0.
        """
        self._come_from_offload()
        self.check_latents(z)
        if z.shape[2] < 1:
            raise FrameCountError("latents hold no frame")
        z = z.to(self.dtype)
        sample = torch.cat([self._decoded(clip) for clip in z.split(1)]) if self.use_slicing and len(z) > 1 else self._decoded(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _decoded(self, z: Tensor) -> Tensor:
        """Decode latents in the way that the switches ask for."""
        if torch.is_grad_enabled() or self._is_hooked_inside:
            return cast(Tensor, self(z))
        if self.use_tiling:
            pixels = z[0, 0, 0].numel() * int(self.spatial_compression_ratio) ** 2 * int(self.temporal_compression_ratio)
            frames = max(_PIXELS_WITH_TILING // pixels, 1)
            return torch.cat(list(decode_as_memory_allows(self.ready(), z.split(frames, dim=2), frames)), dim=2)
        if self.decodes_fast:
            return self.ready().decode(z)
        is_offloaded = "_hf_hook" in vars(self)  # its weights move at every call, so that a form would have to be made again
        return cast(Tensor, self(z)) if is_offloaded or self.fast is False else decode_on_gpu(self, z)

    @property
    def _is_hooked_inside(self) -> bool:
        """Whether weights of single modules are moved or cast when these run, as sequential and group offload do."""
        return any(is_hooked(module) for module in self.modules() if module is not self) or "_diffusers_hook" in vars(self)

    def _come_from_offload(self) -> None:
        """Move the weights to where the pipeline computes, if it offloads whole models; the model before it makes room."""
        hook = vars(self).get("_hf_hook")
        if hook is not None:
            hook.pre_forward(self)

    @property
    def decodes_fast(self) -> bool:
        """Whether `decode` without gradients uses the fast form: `fast`, or if that is None, whether this is a CPU."""
        return self.device.type == "cpu" if self.fast is None else self.fast

    def ready(self) -> FastDecoder:
        """Return the fast form of these weights, as `fast_form` makes it."""
        return fast_form(self)

    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        """Raise SettingsError: a student is a decoder; its teacher encodes."""
        raise SettingsError(
            "a student has no encoder, which image-to-video needs",
            "attach_student(pipe, student) keeps that of the pipeline; load_student(..., with_encoder=True) brings the teacher's",
        )


# Pixels decoded at once, at most. On a CPU, whose cache is small, more is hardly faster (benchmarks/streaming.py). A GPU
# would wait for kernel launches with pieces that small.
_PIXELS_PER_PIECE, _PIXELS_PER_PIECE_ON_CUDA = 4 * 512 * 512, 32 * 2**20


_MARGIN, _BESIDES = 1.5, 150_000_000  # factor for fragmentation; bytes for oneDNN's code, threads and small allocations


def decoding_bytes(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int = 0, *, spill: bool = False) -> int:
    """Predict the peak bytes of a StreamingDecoder on long latents of `size` (h, w), including its prepared weights.

    It decodes `frames` latent frames at once, in stripes of `rows` latent rows (0: all rows).
    """
    height, width = size
    if not rows or height <= 6 * rows:
        return _rehearsed(student, size, frames, rows, spill=spill)
    # Memory grows linearly with the height, once a stripe has all its neighbours: four and six stripes give the slope.
    four, six = (_rehearsed(student, (stripes * rows, width), frames, rows, spill=spill) for stripes in (4, 6))
    return max(four, six, round(six + (six - four) * (height - 6 * rows) / (2 * rows)))


def _rehearsed(student: StudentDecoder, size: tuple[int, int], frames: int, rows: int, *, spill: bool) -> int:
    with torch.device("meta"):
        rehearsing = type(student).from_config(student.config).requires_grad_(False)
    nn.Module.to(rehearsing, dtype=student.dtype)
    speedups = student.ready().speedups
    decoder = StreamingDecoder(FastDecoder(rehearsing, speedups=speedups), rows=rows, spill=Path() if spill else None)
    lag = decoder.lookahead_frames // int(student.temporal_compression_ratio) + 2
    latents = torch.empty(1, student.config.latent_channels, max(lag, frames), *size, device="meta")
    with Meter() as meter:  # a student has no attention
        decoder.push(latents)  # fills the cache of every convolution
        decoder.fast.forget()
        meter.peak = meter.live
        for _ in range(2):
            decoder.push(latents[:, :, :frames]).float().to(torch.uint8)
    return meter.peak


def with_margin(rehearsed: int) -> int:
    """Return the bytes that a process needs for a predicted peak of `rehearsed` bytes."""
    return round(_MARGIN * rehearsed) + _BESIDES


def pixels_per_piece(device_type: str) -> int:
    """Return the most pixels to decode at once on a device of this type: more is hardly faster."""
    return _PIXELS_PER_PIECE_ON_CUDA if device_type == "cuda" else _PIXELS_PER_PIECE


def decoding_ways(student: Decoder, size: tuple[int, int], pixels: int, latent_frames: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (latent frames, latent rows, spill) from the fastest to the leanest; `latent_frames` of the clip, 0: not known.

    Only a student takes a part of the rows, and keeps frames on disk.
    """
    height = size[0] // int(student.spatial_compression_ratio)
    most = max(pixels // (size[0] * size[1] * int(student.temporal_compression_ratio)), 1)
    most = min(most, latent_frames or most)
    while most:
        yield most, 0, False
        most //= 2
    if not isinstance(student, StudentDecoder):
        return
    yield 1, max(height // 4, 1), False
    rows = height
    while True:
        yield 1, rows, True
        if rows == 1:
            return
        rows = -(-rows // 2)


def free_memory_bytes(device: torch.device) -> int:
    """Return the free bytes of the device: of the GPU, the machine, or the container if its limit leaves less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        if not hasattr(os, "sysconf"):
            return 4 * 10**9
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
    free = int(line.split()[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(int(text) - int(used.read_text()), 0))
    return free


def decode_within(student: StudentDecoder, latents: Tensor, memory: int = 0, *, spill: Path | None = None) -> Iterator[Tensor]:
    """Yield the frames (B, 3, m, H, W) of raw latents (B, C, t, h, w) in [-1, 1], not clamped, on the student's device.

    Decoding takes `memory` bytes at most besides what the process holds already; 0 allows 70 % of what is free. With little
    memory, cached frames are kept on disk in the folder `spill` (default: that of temporary files). Frames do not depend on
    the memory. Raises ShapeError for latents of another shape, and SettingsError if the smallest pieces do not fit.
    """
    student.check_latents(latents)
    batch, _, length, height, width = latents.shape
    allowed = (memory or free_memory_bytes(student.device) * 7 // 10) // batch
    frames, rows, on_disk = pieces_within(student, (height, width), allowed, length)
    folder = (spill or Path(tempfile.gettempdir())) if on_disk else None
    yield from decode_as_memory_allows(student, [latents], frames, rows=rows, spill=folder)


def pieces_within(student: StudentDecoder, size: tuple[int, int], memory: int, length: int) -> tuple[int, int, bool]:
    """Return the latent frames and rows (0: all) to decode at once, and whether cached frames are kept on disk.

    `size` is (h, w) of `length` latent frames. Raises SettingsError if the smallest pieces need more than `memory` bytes.
    """
    ratio = int(student.spatial_compression_ratio)
    pixels = (size[0] * ratio, size[1] * ratio)
    ways = list(decoding_ways(student, pixels, pixels_per_piece(student.device.type), length))

    @cache
    def needed(way: tuple[int, int, bool]) -> int:
        frames, rows, spill = way
        return with_margin(decoding_bytes(student, size, frames, rows, spill=spill))

    if needed(ways[0]) <= memory:
        return ways[0]
    if (least := needed(ways[-1])) > memory:
        raise SettingsError(
            f"{memory / 1e9:.2f} GB is too little for {pixels[1]}x{pixels[0]}: the smallest pieces need {least / 1e9:.2f} GB",
            f"at least `memory` {least / 1e9 + 0.005:.2f}GB",
        )
    return ways[bisect_left(ways, 1, 1, len(ways) - 1, key=lambda way: needed(way) <= memory)]
