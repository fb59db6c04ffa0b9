"""Phone runtimes that also run on this machine's CPU: ExecuTorch and LiteRT."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version

import torch
from torch import Tensor

from turbovaed_cli.benchmarking.target import Called, Exported, Running, Target, Variant, Work
from turbovaed_cli.export.formats.executorch import running as executorch_method
from turbovaed_cli.export.formats.litert import interpreter as litert_interpreter
from turbovaed_cli.export.formats.table import exporters


def _variants(work: Work, name: str, runtime: str, package: str, loader: Callable[[Exported, int], Running]) -> list[Variant]:
    exporters()[name].check_installed()
    return [
        Variant(
            work.network,
            f"{runtime} {version(package)}",
            "CPU, XNNPACK",
            precision,
            partial(loader, artifact, work.threads),
            layout,
            artifact.size_mb,
        )
        for precision, layout, artifact in work.artifacts(name)
    ]


def _load_executorch(artifact: Exported, threads: int) -> Running:
    method = executorch_method(artifact.path, threads)
    return Called(lambda latents: method.execute([latents])[0])


def _load_litert(artifact: Exported, threads: int) -> Running:
    running = litert_interpreter(artifact.path, threads)
    (here,), (there,) = running.get_input_details(), running.get_output_details()

    def decode(latents: Tensor) -> Tensor:
        running.set_tensor(here["index"], latents.numpy())
        running.invoke()
        return torch.from_numpy(running.get_tensor(there["index"]))

    return Called(decode)


TARGETS = (
    Target(
        "executorch", ("fp32", "fp16"), lambda work: _variants(work, "executorch", "ExecuTorch", "executorch", _load_executorch)
    ),
    Target("litert", ("fp32",), lambda work: _variants(work, "litert", "LiteRT", "ai-edge-litert", _load_litert)),
)
