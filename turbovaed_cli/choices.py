"""Names that must be one of a list: refused with the nearest ones, or with what another tool's word for it is here."""

import difflib
import re
from collections.abc import Iterable, Sequence

from turbovaed_cli.errors import SettingsError

DTYPES = ("fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps")
METRIC_NAMES = (
    "psnr", "ssim", "lpips", "lpips_vgg", "st_lpips", "st_lpips_vgg", "rfvd", "vmaf", "flicker", "grid", "seam", "banding",
)  # fmt: skip
APPLE_DEVICES = ("iphone", "ipad")  # attached ones, for Core ML alone
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


def metric_name(text: str) -> str:
    """Return the METRIC_NAMES key of a name: case and dashes do not matter, `lpips-alex` is `lpips`, `st-lpips-alex` is `st_lpips`.

    Raises SettingsError for other names.
    """
    name = text.strip().lower().replace("-", "_")
    name = name.removesuffix("_alex") if name in ("lpips_alex", "st_lpips_alex") else name
    if name not in METRIC_NAMES:
        raise SettingsError(f"{text.strip()} is no metric", hint_for(name, METRIC_NAMES))
    return name


def check_device(name: str, others: Sequence[str] = ()) -> str:
    """Return `name`; raise SettingsError unless `name` is a kind of device, or a CUDA device by its number. Whether it is there is another question.

    `others` are further kinds that the command takes, for the hint.
    """
    kind, colon, number = name.partition(":")
    check_choice("`device`", kind, (*DEVICES, *others))
    if colon and kind != "cuda":
        raise SettingsError(f"`device={name}`: {kind} has no number", f"`device={kind}`")
    if colon and re.fullmatch(r"0|[1-9]\d{0,3}", number, re.ASCII) is None:
        raise SettingsError(f"`device={name}` names no CUDA device", "`device=cuda:0` is the first, cuda:1 the second")
    return name


def check_bench_device(name: str) -> str:
    """The same for `bench`, which takes attached Apple devices too, by their names: iphone:Lab."""
    if name.partition(":")[0] not in APPLE_DEVICES:
        check_device(name, APPLE_DEVICES)
    return name


def check_dtype(name: str) -> None:
    """Raise SettingsError unless `name` is a precision that networks run in."""
    check_choice("`dtype`", name, DTYPES)
