"""ExecuTorch: a .pte of fixed shapes, for XNNPACK (every CPU) or holding a Core ML program (Apple devices)."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from turbovaed_cli.errors import TurboVaedError
from turbovaed_cli.export.chunks import Decode
from turbovaed_cli.export.format import Anatomy, Exporter, Graph, quietly
from turbovaed_cli.export.formats import coreml
from turbovaed_cli.export.formats.tracing import exported_program
from turbovaed_cli.reporting import hushed


def write_xnnpack(
    graphs: Sequence[Graph], path: Path, precision: str, _metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write a .pte of exactly the graph's shapes, latents (1, C, t, h, w) to video (1, 3, T, H, W), fp32 in and out.

    Operators that XNNPACK takes are lowered to it, the rest to portable kernels.
    """
    partitioner = quietly("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner
    path.write_bytes(_lowered(graphs[0], precision, partitioner))


def write_coreml(
    graphs: Sequence[Graph], path: Path, precision: str, _metadata: Mapping[str, str], _calibration: Sequence[Tensor]
) -> None:
    """Write a .pte that holds the whole graph, converted for Core ML (iOS 17, macOS 14), of exactly the graph's shapes."""
    coreml.coremltools()
    partition = quietly("executorch.backends.apple.coreml.partition")
    backend = quietly("executorch.backends.apple.coreml.compiler").CoreMLBackend

    def partitioner() -> Any:
        tools = coreml.coremltools()
        return partition.CoreMLPartitioner(
            compile_specs=backend.generate_compile_specs(
                compute_precision=tools.precision.FLOAT32 if precision == "fp32" else tools.precision.FLOAT16,
                minimum_deployment_target=tools.target.iOS17,
            )
        )

    # Core ML's converter converts to fp16 itself.
    path.write_bytes(_lowered(graphs[0], "fp32", partitioner))


def _lowered(graph: Graph, precision: str, partitioner: Any) -> bytes:
    exir = quietly("executorch.exir")
    with hushed(), torch.no_grad():
        program = exported_program(graph, precision, any_size=False)
        return bytes(exir.to_edge_transform_and_lower(program, partitioner=[partitioner()]).to_executorch().buffer)


def load_xnnpack(path: Path, graph: Graph) -> Decode:
    """Return a function that runs the program in the ExecuTorch runtime, on the CPU."""
    method = running(path)

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = method.execute([inputs[name].contiguous() for name in graph.inputs])
        return dict(zip(graph.outputs, found, strict=True))

    return decode


def running(path: Path, threads: int = 0) -> Any:
    """Load the method of a program, with its `execute(list of tensors)`. `threads` is their number; 0: the runtime's default."""
    runtime = quietly("executorch.runtime")
    with hushed():
        if threads:
            quietly("executorch.extension.pybindings._C")._unsafe_reset_threadpool(threads)
        return runtime.Runtime.get().load_program(path).load_method("forward")


def load_coreml(path: Path, graph: Graph) -> Decode:
    """Return a function that runs the Core ML package inside the program, as coreml.py does."""
    with tempfile.TemporaryDirectory() as folder:
        package, inside = _package_inside(path, Path(folder), graph)
        run = coreml.load(package, inside)

    def decode(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = run({there: inputs[here] for here, there in zip(graph.inputs, inside.inputs, strict=True)})
        return {here: found[there] for here, there in zip(graph.outputs, inside.outputs, strict=True)}

    return decode


def _plan(path: Path) -> tuple[Any, Any]:
    """Return the program of a .pte and the execution plan of its only method."""
    read = quietly("executorch.exir._serialize._program").deserialize_pte_binary
    program = read(path.read_bytes()).program
    return program, program.execution_plan[0]


def _package_inside(path: Path, folder: Path, graph: Graph | None = None) -> tuple[Path, Graph]:
    """Unpack the only Core ML package of a .pte into `folder`. Return its path, and `graph` with the package's names.

    The names are those of its inputs and outputs. Raises TurboVaedError if Core ML did not take the whole graph.
    """
    program, plan = _plan(path)
    if [delegate.id for delegate in plan.delegates] != ["CoreMLBackend"] or plan.operators:
        raise TurboVaedError(
            f"Core ML did not take all of {path.name}: {len(plan.delegates)} parts, {len(plan.operators)} other operators",
            "use `layout` 4d-cat, which Core ML takes as a whole",
        )
    data = program.backend_delegate_data[plan.delegates[0].processed.index].data
    unpack = quietly("executorch.backends.apple.coreml.executorchcoreml").unflatten_directory_contents
    if not unpack(bytes(data), str(folder)):
        raise TurboVaedError(f"the Core ML program inside {path.name} cannot be unpacked")
    package = next(folder.rglob("*.mlpackage"))
    names = json.loads((package.parent / "metadata.json").read_text(encoding="utf-8"))
    # The delegate's order may differ; the value numbers identify the method's inputs and outputs.
    by_value = dict(zip(plan.chains[0].instructions[0].instr_args.args, names["inputNames"] + names["outputNames"], strict=True))
    examples = graph.inputs.values() if graph else [torch.empty(0)] * len(plan.inputs)
    return package, Graph(
        graph.module if graph else nn.Identity(),
        {by_value[value]: example for value, example in zip(plan.inputs, examples, strict=True)},
        tuple(by_value[value] for value in plan.outputs),
    )


def anatomy_xnnpack(path: Path) -> Anatomy:
    """Return kernel calls by operator, and those of XNNPACK, which are opaque. A rank-5 convolution would be a kernel call."""
    _, plan = _plan(path)
    calls: Counter[str] = Counter()
    num_conv3d = 0
    for instruction in plan.chains[0].instructions:
        call = instruction.instr_args
        if hasattr(call, "op_index"):
            name = plan.operators[call.op_index].name
            ranks = [len(getattr(plan.values[i].val, "sizes", ())) for i in call.args]
            num_conv3d += name == "aten::convolution" and max(ranks) == 5
        elif hasattr(call, "delegate_index"):
            name = plan.delegates[call.delegate_index].id
        else:
            continue
        calls[name] += 1
    return Anatomy(calls, num_conv3d)


def anatomy_coreml(path: Path) -> Anatomy:
    """Return the operators of the Core ML program inside."""
    with tempfile.TemporaryDirectory() as folder:
        return coreml.anatomy(_package_inside(path, Path(folder))[0])


def first_non_finite_coreml(path: Path, graph: Graph) -> str | None:
    """Return the first operator of the Core ML program inside whose value is not finite, as coreml.first_non_finite does."""
    with tempfile.TemporaryDirectory() as folder:
        return coreml.first_non_finite(*_package_inside(path, Path(folder), graph))


def _by_runtime() -> str:
    return f"ran in ExecuTorch {version('executorch')}, XNNPACK on the CPU"


def _by_coreml() -> str:
    return f"the Core ML program inside: {coreml.verified_by()}"


EXPORTERS = (
    Exporter(
        "executorch", ".pte", ("fp32", "fp16"), write_xnnpack, load_xnnpack, _by_runtime, anatomy_xnnpack,
        layouts=("4d-cat", "4d-sum"),  # XNNPACK lowers 3-D convolutions and fails to run them
        needs=("executorch",), extra="executorch",
    ),
    Exporter(
        "executorch-coreml", ".coreml.pte", ("fp16", "fp32"), write_coreml, load_coreml, _by_coreml, anatomy_coreml,
        first_non_finite=first_non_finite_coreml, needs=("executorch",), extra="executorch",
    ),
)  # fmt: skip
