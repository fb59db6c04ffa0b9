"""The house has floors: imports point downwards, the terminal is touched in two files, and help never loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "turbovaed_cli"
# From the ground up. A module may import from floors below its own, and from its own floor where GROUND or PIECES say so.
GROUND = {
    "__init__",
    "errors",
    "documents",
    "registry",
    "settings",
    "reporting",
    "rundir",
    "changes",
    "background",
    "launch",
    "signals",
    "teacher_files",
    "streams",
    "choices",
    "system",
}
PIECES = {
    "video",
    "storage",
    "latents",
    "latent_files",
    "cache_parts",
    "metrics",
    "devices",
    "gpus",
    "weights",
    "models",
    "training",
    "exporters",
    "html_report",
    "targets",
}
VERBS = {"cache_latents", "cache_job", "distill", "reconstruct", "reconstruct_folder", "evaluate", "export", "bench", "runs"}
TOP = {"cli", "console", "__main__"}
# evaluate plans the clips that cache_latents would cut; cache_job tries out what it would do; bench times what export writes.
VERB_TO_VERB = {
    ("distill", "evaluate"),
    ("evaluate", "reconstruct"),
    ("evaluate", "cache_latents"),
    ("cache_job", "cache_latents"),
    ("bench", "export"),
    ("reconstruct_folder", "reconstruct"),
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def home(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "turbovaed_cli":
                found |= {f"turbovaed_cli.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def ours(path: Path) -> set[str]:
    names = {name.split(".")[1] for name in imported(path) if name.startswith("turbovaed_cli.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


def test_every_module_has_a_floor():
    assert {home(path) for path in modules()} == GROUND | PIECES | VERBS | TOP


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if path.stem != "__init__" or path.parent != PACKAGE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_point_downwards(path):
    here = home(path)
    for name in ours(path) - {here}:
        if here in GROUND:
            assert name in GROUND, name
        elif here in PIECES:
            assert name in GROUND | PIECES, name
        elif here in VERBS:
            assert name in GROUND | PIECES or (here, name) in VERB_TO_VERB, name
        elif here == "console":
            assert name in GROUND, name


def test_the_terminal_is_touched_in_two_files():
    users = {home(path) for path in modules() if {name.split(".")[0] for name in imported(path)} & {"rich", "typer", "click"}}
    assert users == {"cli", "console"}


def test_nothing_else_prints():
    for path in modules():
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert not [call for call in calls if call.func.id == "print"], path


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["models"], ["--version"]])
def test_help_and_lists_load_nothing_heavy(arguments):
    """How quick that makes them is benchmarks/startup.py's to say."""
    script = f"""
import sys
sys.argv = ["turbovaed", *{arguments!r}]
from turbovaed_cli.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
heavy = {{"torch", "diffusers", "numpy", "onnx", "onnxruntime", "coremltools", "huggingface_hub", "imageio_ffmpeg"}}
print(sorted(set(sys.modules) & heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_public_names_are_there_and_verbs_stay_verbs():
    script = """
import sys, turbovaed_cli
assert "torch" not in sys.modules
import turbovaed_cli.evaluation.evaluate
from turbovaed_cli import MODELS, StudentDecoder, cache_latents, distill, evaluate, find_model, load_student, load_teacher, read_clip, reconstruct
assert all(callable(verb) for verb in (cache_latents, distill, evaluate, reconstruct, find_model, load_student, load_teacher, read_clip))
from turbovaed_cli import distill
assert callable(distill) and set(turbovaed_cli.__all__) <= set(dir(turbovaed_cli))
try:
    turbovaed_cli.nothing
except AttributeError:
    print("ok")
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "ok\n"
