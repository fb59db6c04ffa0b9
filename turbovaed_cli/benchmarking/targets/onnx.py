"""ONNX Runtime, on every provider that it has on this machine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import Called, Running, Target, Variant, Work
from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.export.formats.onnx import session

_ELSEWHERE = ("AzureExecutionProvider",)  # computes on a remote machine


def variants(work: Work) -> list[Variant]:
    """Return a variant for each precision, layout and provider."""
    import onnxruntime  # noqa: PLC0415 - only this target needs it

    providers = [name for name in onnxruntime.get_available_providers() if name not in _ELSEWHERE]
    return [
        Variant(
            work.network,
            f"ONNX Runtime {onnxruntime.__version__}",
            provider.removesuffix("ExecutionProvider"),
            precision,
            _loader(work, artifact.path, provider),
            layout,
            artifact.size_mb,
            () if provider == "CPUExecutionProvider" else (f"{provider}: operators that it lacks run on the CPU",),
        )
        for precision, layout, artifact in work.artifacts("onnx")
        for provider in providers
    ]


def _loader(work: Work, path: Path, provider: str) -> Callable[[], Running]:
    def load() -> Running:
        try:
            running = session(path, work.threads, tuple(dict.fromkeys((provider, "CPUExecutionProvider"))))
        except Exception as error:
            raise TurboVaedError(f"{provider}: {str(error).splitlines()[0]}") from error
        if running.get_providers()[0] != provider:  # nothing falls back silently
            raise TurboVaedError(f"{provider} is listed but did not start")

        def decode(latents: Tensor) -> Tensor:
            return torch.from_numpy(running.run(None, {"latents": latents.numpy()})[0])

        return Called(decode)

    return load


TARGET = Target("onnx", ("fp32", "fp16", "int8"), variants)
