"""The Triton kernel of the GPU's fused form: its values in Triton's interpreter, and that it compiles for GPUs that are not here."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from turbovaed_cli.models.gpu_kernels import FusedPreparation
from turbovaed_cli.models.kernels import Preparation
from turbovaed_cli.models.scratch import Scratch

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton (Linux)")

# The script of a subprocess: `launched` counts the launches of the kernel.
COUNTED = """
from turbovaed_cli.models import gpu_kernels

launched = 0
launch = gpu_kernels.FusedPreparation._launch
def counted(*arguments):
    global launched
    launched += 1
    launch(*arguments)
gpu_kernels.FusedPreparation._launch = counted
"""

VALUES = (
    COUNTED
    + """
import itertools
import torch
from turbovaed_cli.models.kernels import Preparation
from turbovaed_cli.models.scratch import Scratch

generator = torch.Generator().manual_seed(0)

def frames(count, channels, dtype, height=4):
    made = torch.randn(count, height, 5, channels, generator=generator).to(dtype)
    return made.permute(0, 3, 1, 2)

layouts = itertools.cycle((torch.channels_last, torch.contiguous_format))  # of the input
for dtype, least in ((torch.float32, 2e-6), (torch.bfloat16, 4e-2), (torch.float16, 4e-3)):
    for activation in (None, "none", "relu", "silu"):
        for channels in (1, 3, 64, 100):
            for head, kept, tail in ((0, False, 0), (2, False, 1), (2, True, 0), (4, True, 2)):
                x = frames(3, channels, dtype).contiguous(memory_format=next(layouts))
                before = frames(head, channels, dtype) if kept else None
                found = []
                for kind in (Preparation, gpu_kernels.FusedPreparation):
                    # Rows 2 to 5 of a larger buffer, as those of a stripe are; the rows around them stay.
                    buffer = torch.full((head + 3 + tail, 9, 5, channels), 7.0, dtype=dtype).permute(0, 3, 1, 2)
                    kind(activation).fill(x, buffer[:, :, 2:6], before, head, Scratch())
                    found.append(buffer.double())
                assert (found[0] - found[1]).abs().max() <= least, (dtype, activation, channels, head, kept, tail)
                assert kept is False or torch.equal(found[1][:head, :, 2:6], before.double())
assert launched == 3 * 4 * 4 * 4, launched
"""
)

DECODES = (
    COUNTED
    + """
import torch
from members import NAMED, built
from turbovaed_cli.models.gpu_form import FUSED, form_of
from turbovaed_cli.models.stages import StreamConvolution, StreamResidual
from turbovaed_cli.models.streaming import StreamingDecoder

def convolutions(stages):
    found = [stage for stage in stages if isinstance(stage, StreamConvolution)]
    return len(found) + sum(convolutions(stage.branch) for stage in stages if isinstance(stage, StreamResidual))

torch.manual_seed(0)
for name in ("8x8x8", "causal, in space then time, patches of 8", "channels change in an upsampler"):
    for dtype, least in ((torch.float32, 2e-4), (torch.bfloat16, 0.2)):
        student = built(NAMED[name], dtype=torch.float32)
        latents = torch.randn(1, 4, 5, 1, 2)
        with torch.no_grad():
            wanted = student(latents)
        before = launched
        fast = form_of(student, FUSED, dtype)
        assert (fast.decode(latents).float() - wanted).abs().max() <= least, name
        assert launched - before == convolutions(fast.stages()), (name, launched - before)
        stream = StreamingDecoder(fast)
        made = torch.cat([*map(stream.push, latents.to(dtype).split(2, dim=2)), stream.finish()], dim=2)
        assert (made.float() - wanted).abs().max() <= least, name
"""
)

COMPILES = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from turbovaed_cli.models.triton_kernels import fill_padded

names = fill_padded.arg_names
for capability, dtype, activation, kept in (
    (80, "bf16", "silu", True), (90, "fp32", "silu", True), (90, "bf16", "relu", False), (90, "fp16", "none", True),
):
    kinds = {"eps": "fp32", **dict.fromkeys(("x", "kept", "out"), f"*{dtype}"), **{name: "constexpr" for name in ("x_channel", *filter(str.isupper, names))}}
    signature = {name: kinds.get(name, "i32") for name in names}
    constants = {"x_channel": 1, "HAS_KEPT": kept, "HAS_NORM": True, "ACTIVATION": activation, "POSITIONS": 32, "CHANNELS": 64}
    strides = [name for name in names if "_" in name and name.islower() and name != "x_channel"]
    # Triton finds out that these are multiples of 16.
    aligned = map(names.index, ("x", "kept", "out", *strides, "channels"))
    attributes = {(number,): [["tt.divisibility", 16]] for number in aligned}
    source = ASTSource(fill_padded, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert made.asm["cubin"] and "ld.global.v4" in made.asm["ptx"], "loads of single values would be several times slower"
"""


def run(script, tmp_path, **environment):
    places = [ROOT, ROOT / "tests" / "support", *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", f"import torch\nfrom turbovaed_cli.machine.imports import import_less\ntorch.set_num_threads(1)\nimport_less()\n{script}"],
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "TRITON_CACHE_DIR": str(tmp_path), **environment,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@needs_triton
def test_the_kernel_computes_what_torch_does(tmp_path):
    """Each precision and activation, frames that are kept or repeated, widths that fill no power of two, and views."""
    run(VALUES, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_the_fused_form_decodes_and_streams_as_the_modules_do(tmp_path):
    run(DECODES, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_compiles_for_gpus_with_wide_loads(tmp_path):
    """Triton's own compiler makes code for a GPU without one."""
    run(COMPILES, tmp_path, TRITON_INTERPRET="0")


def test_a_decode_on_a_cpu_does_not_need_triton(tmp_path):
    script = """
import sys
from turbovaed_cli import load_student
from turbovaed_cli.models.gpu_form import FUSED, form_of
student = load_student("tiny")
latents = torch.zeros(1, student.config.latent_channels, 2, 2, 2)
with torch.no_grad():
    student.decode(latents)
    form_of(student, FUSED).decode(latents)
assert "turbovaed_cli.models.gpu_kernels" in sys.modules and "turbovaed_cli.models.triton_kernels" not in sys.modules
"""
    run(script, tmp_path, TRITON_INTERPRET="")


def test_without_the_kernel_torch_does_the_same():
    x = torch.randn(3, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    found = [torch.zeros(6, 8, 4, 4).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    for kind, out in zip((Preparation, FusedPreparation), found, strict=True):
        kind("silu").fill(x, out, None, 2, Scratch())
    assert torch.equal(*found) and found[0].abs().sum() > 0
    assert torch.equal(found[0][0], found[0][2]) and torch.equal(found[0][5], found[0][4])


@needs_triton
def test_what_the_kernel_does_not_take_goes_to_torch(tmp_path):
    """Precisions, layouts and settings of other networks, and pieces without frames."""
    script = """
from turbovaed_cli.models import gpu_kernels
from turbovaed_cli.models.gpu_kernels import FusedPreparation
from turbovaed_cli.models.kernels import Preparation
from turbovaed_cli.models.scratch import Scratch
def refused(*_):
    raise AssertionError("the kernel was launched")
FusedPreparation._launch = refused
last = torch.randn(3, 8, 4, 4).contiguous(memory_format=torch.channels_last)
plain = torch.randn(3, 8, 4, 4)
kept = last[:2] * 2
for x, before, options in (
    (last.double(), None, {}), (last, plain[:2], {}), (last[:0], kept, {}), (last, None, {"least": 1e-3}),
    (last, None, {"gamma": torch.rand(8)}),
):
    found = []
    for kind in (Preparation, FusedPreparation):
        out = torch.zeros(x.shape[0] + 3, 8, 4, 4, dtype=x.dtype).contiguous(memory_format=torch.channels_last)
        kind("silu", **options).fill(x, out, before, 2, Scratch())
        found.append(out)
    assert torch.equal(*found)
"""
    run(script, tmp_path, TRITON_INTERPRET="1")
