"""The keeper of the house: imports point downwards and in no circle, the terminal is touched in one room, help never loads torch."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools" / "house.py"
spec = importlib.util.spec_from_file_location("house", TOOL)
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def test_every_room_has_its_floor():
    rooms = {house.room_of(name) for name in house.modules()}
    assert rooms == set(house.ROOMS)


def test_imports_point_downwards():
    assert house.upward(house.arrows()) == []


def test_no_imports_run_in_a_circle():
    """Those inside of functions and those for type checkers count too."""
    assert house.circles(house.arrows()) == []


def test_the_keeper_sees_an_arrow_that_points_up_and_a_circle():
    graph = {"files.whole": {"training.loop"}, "training.loop": {"machine.threads", "files.whole"}, "machine.threads": set()}
    assert house.upward(graph) == [("files.whole", "training.loop")]
    assert house.circles(graph) == [["files.whole", "training.loop"]]


def test_every_room_names_its_files():
    for folder in {path.parent for path in house.modules().values() if path.parent != house.PACKAGE}:
        docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        unnamed = [path.name for path in folder.glob("*.py") if path.name != "__init__.py" and path.name not in docstring]
        assert not unnamed or folder.name == "teachers", folder


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_the_terminal_is_touched_in_one_room():
    users = {
        house.room_of(name)
        for name, path in house.modules().items()
        if {name.split(".")[0] for name in imported(path)} & {"rich", "typer", "click"}
    }
    assert users == {"cli"}


def test_nothing_else_prints():
    for path in house.modules().values():
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
    assert done.stderr.splitlines()[-1] == "[]"
    assert done.stdout


def test_public_names_are_there_and_load_nothing_before_their_use():
    script = """
import sys, turbovaed_cli
assert "torch" not in sys.modules
import turbovaed_cli.evaluation.evaluate, turbovaed_cli.training.distill
assert set(turbovaed_cli.__all__) <= set(dir(turbovaed_cli))
for name in turbovaed_cli.__all__:
    assert getattr(turbovaed_cli, name) is not None
assert all(callable(getattr(turbovaed_cli, name)) for name in ("bench", "cache_latents", "distill", "evaluate", "export_student", "reconstruct"))
try:
    turbovaed_cli.nothing
except AttributeError:
    print("ok")
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "ok\n"
