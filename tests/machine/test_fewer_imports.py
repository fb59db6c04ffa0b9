"""The executable imports less of diffusers and torch: none of what no command uses, the same classes, all of it on request."""

import json
import shutil
import subprocess
import sys

import pytest

# Runs a command, and prints which modules it imported.
COMMAND = """
import json, sys
from turbovaed_cli.__main__ import run
try:
    run()
except SystemExit as ended:
    assert not ended.code
print(json.dumps(sorted(sys.modules)))
"""
# Seconds each, and for pipelines or for torch.compile.
UNUSED = {"transformers", "accelerate", "peft", "torchao", "torch._dynamo.eval_frame", "torch._inductor", "requests.models", "urllib3", "sympy.core",
          "diffusers.models.unets.unet_2d_condition", "diffusers.pipelines.pipeline_utils"}  # fmt: skip


def output_of(script: str, *words: str, folder=None) -> str:
    command = [sys.executable, "-c", script, *words]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.parametrize(
    ("words", "without"),
    [
        ("env", {"diffusers"}),
        ("reconstruct clip.mp4 --out made.mp4 -q", UNUSED),
        ("eval --data clip.mp4 --frames 5 --size 64x64 -q", UNUSED | {"onnx", "coremltools"}),
        (
            "bench --frames 5 --size 32x32 --target torch --dtype fp32 --repeats 1 --no-teacher -q",
            UNUSED | {"onnx", "coremltools"},
        ),
    ],
)
def test_a_command_imports_nothing_that_it_does_not_use(words, without, tmp_path, videos):
    shutil.copy(next(videos.glob("*.mp4")), tmp_path / "clip.mp4")
    modules = set(json.loads(output_of(COMMAND, *words.split(), folder=tmp_path).splitlines()[-1]))
    assert not without & modules
    assert "torch" in modules


def test_a_program_that_imports_the_package_gets_the_whole_of_diffusers():
    output_of(
        "import sys, turbovaed_cli.models.student, diffusers.models.autoencoders.autoencoder_kl_ltx\n"
        "from turbovaed_cli.machine import imports\n"
        "assert not any(isinstance(one, imports._Finder) for one in sys.meta_path)\n"
        "assert diffusers.utils.is_transformers_available()\n"
        "assert type(sys.modules['diffusers.models.autoencoders']) is type(sys)"
    )


def test_classes_are_those_of_their_modules():
    output_of(
        "from turbovaed_cli.machine.imports import _Package, import_less\n"
        "import_less()\n"
        "import diffusers, importlib.resources, inspect, sys\n"
        "assert all((importlib.resources.files(name) / '__init__.py').is_file() for name in ('torch', 'diffusers', 'diffusers.hooks'))\n"
        "from diffusers.models.autoencoders.autoencoder_kl_ltx import AutoencoderKLLTXVideo\n"
        "from diffusers.models.autoencoders import AutoencoderKLWan\n"
        "package = sys.modules['diffusers.models.autoencoders']\n"
        "assert isinstance(package, _Package)\n"
        "assert diffusers.AutoencoderKLLTXVideo is AutoencoderKLLTXVideo is package.AutoencoderKLLTXVideo\n"
        "assert AutoencoderKLWan is sys.modules['diffusers.models.autoencoders.autoencoder_kl_wan'].AutoencoderKLWan\n"
        "assert issubclass(AutoencoderKLWan, diffusers.ModelMixin)\n"
        "assert inspect.getsource(AutoencoderKLWan)\n"
        "assert package.__path__ and package.__spec__.name == package.__name__\n"
        "assert not hasattr(package, 'no_such_name') and not isinstance(package, _Package)\n"  # its __init__ has run
        "assert package.AutoencoderKLWan is AutoencoderKLWan"
    )


def test_the_compiler_is_whole_once_it_is_used():
    """What torch was told to leave alone before is asked for again."""
    output_of(
        "from turbovaed_cli.machine.imports import _Compiler, import_less\n"
        "import_less()\n"
        "import sys, torch\n"
        "from turbovaed_cli.models.metering import Meter\n"
        "with Meter() as meter:\n"
        "    torch.empty(4, 4, device='meta') / 3\n"
        "assert meter.peak == 128\n"
        "marked = Meter.__torch_dispatch__.__wrapped__\n"
        "assert isinstance(sys.modules['torch._dynamo'], _Compiler) and '__dynamo_disable' in vars(marked)\n"
        "import torch._dynamo.testing\n"
        "assert not isinstance(torch._dynamo, _Compiler) and '__dynamo_disable' not in vars(marked)\n"
        "counter = torch._dynamo.testing.CompileCounter()\n"
        "compiled = torch.compile(lambda x: x * 2 + 1, backend=counter)\n"
        "assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0)) and counter.frame_count == 1\n"
        "with Meter() as meter:\n"
        "    torch.empty(4, 4, device='meta') / 3\n"
        "assert meter.peak == 128 and '__dynamo_disable' in vars(marked)"
    )


@pytest.mark.parametrize(
    "asked", ["torch.compiler.disable()", "torch.compiler.disable(print)", "torch._dynamo.allow_in_graph(abs)"]
)
def test_another_use_of_the_compiler_runs_it(asked):
    output_of(
        "from turbovaed_cli.machine.imports import _Compiler, import_less\n"
        f"import_less()\nimport sys, torch\nimport torch._dynamo.config\nassert isinstance(torch._dynamo, _Compiler)\n{asked}\n"
        "assert not isinstance(torch._dynamo, _Compiler)"
    )


@pytest.mark.parametrize("asked", ["requests.get", "requests.__version__", "from requests.adapters import HTTPAdapter"])
def test_another_use_of_requests_runs_it(asked):
    output_of(
        "from turbovaed_cli.machine.imports import _Package, import_less\n"
        f"import_less()\nimport requests, sys\nassert isinstance(requests, _Package) and 'urllib3' not in sys.modules\n{asked}\n"
        "assert not isinstance(requests, _Package) and issubclass(requests.ConnectionError, OSError) and 'urllib3' in sys.modules"
    )


def test_a_failed_import_hides_nothing():
    """Packages that were hidden while diffusers was imported are there again, and so is the collection of garbage."""
    output_of(
        "import gc, sys\n"
        "from turbovaed_cli.machine.imports import import_less\n"
        "import_less()\n"
        "import torch\n"
        "sys.modules['huggingface_hub'] = None\n"
        "try:\n    import diffusers\nexcept ImportError:\n    pass\nelse:\n    raise AssertionError\n"
        "assert gc.isenabled() and 'transformers' not in sys.modules\n"
        "del sys.modules['huggingface_hub']\n"
        "import importlib.metadata, transformers\n"
        "assert importlib.metadata.packages_distributions()"
    )


def test_symbols_of_sizes_are_whole_once_there_is_one():
    """Sums of memory need none; torch.export with a size that is not known does."""
    output_of(
        "from turbovaed_cli.machine.imports import import_less\n"
        "import_less()\n"
        "import sys, torch\n"
        "from turbovaed_cli.models.metering import Meter\n"
        "with Meter():\n"
        "    torch.nn.Linear(4, 4, device='meta')(torch.empty(2, 4, device='meta') / 3).clamp(-1, 1)\n"
        "from torch.fx.experimental.symbolic_shapes import guard_or_false\n"
        "import sympy\n"
        "assert 'sympy.core' not in sys.modules and not isinstance(3, sympy.Basic)\n"
        "made = torch.export.export(torch.nn.Linear(4, 4), (torch.ones(3, 4),), dynamic_shapes=({0: torch.export.Dim('rows')},))\n"
        "assert made.module()(torch.ones(5, 4)).shape == (5, 4)\n"
        "assert isinstance(sympy.Symbol('x'), sympy.Basic) and type(sympy) is type(sys)\n"
        "(rows, _), = [one.meta['val'].shape for one in made.graph.nodes if one.op == 'placeholder' and one.meta['val'].dim() == 2 "
        "and not isinstance(one.meta['val'].shape[0], int)]\n"
        "assert guard_or_false(rows == rows) is True"
    )


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (value,)) for name in ("expect_true", "guard_or_false", "guard_or_true", "statically_known_true") for value in (True, False)),
        *((name, values) for name in ("sym_and", "sym_or") for values in ((True,), (True, False), (False, False), (True, True, True))),
        ("guarding_hint_or_throw", (7,)), ("has_guarding_hint", (7,)), ("is_nested_int", (7,)),
        ("sym_eq", (3, 3)), ("sym_eq", ((3, 4), [3, 4])), ("sym_eq", ((3, 4), (3, 5))), ("sym_eq", ((3, 4), (3,))),
        ("sym_eq", (((1, 2), 3), ([1, 2], 3))),
    ],
)  # fmt: skip
def test_answers_about_numbers_are_those_of_torch(name, values):
    from torch.fx.experimental import symbolic_shapes

    from turbovaed_cli.machine.imports import _OF_NUMBERS

    assert _OF_NUMBERS[name](*values) == getattr(symbolic_shapes, name)(*values)
