"""A package adds teachers through an entry point, and a broken one stops nothing."""

import json
import os
import subprocess
import sys

import pytest

TEACHER = """
from dataclasses import dataclass, replace
from typing import ClassVar

from turbovaed_cli.registry.teachers.ltx import LTX, LTXVideo

@dataclass(frozen=True)
class Mine(LTXVideo):
    class_name: ClassVar[str] = "AutoencoderKLMine"
    module: ClassVar[str] = "my_teacher"

    def matches(self, config):
        return config["_class_name"] == "AutoencoderKLMine"

ROW = replace(LTX, name="mine", title="mine", teacher=replace(LTX.teacher, family=Mine(), repo="me/mine"))
SAME = replace(ROW, name="ltx")

def __getattr__(name):
    if name == "AutoencoderKLMine":
        from diffusers import AutoencoderKLLTXVideo

        return type("AutoencoderKLMine", (AutoencoderKLLTXVideo,), {})
    raise AttributeError(name)
"""
POINTS = """[turbovaed.teachers]
mine = my_teacher:ROW
taken = my_teacher:SAME
broken = no_such_module:ROW
other = my_teacher:Mine
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder as pip leaves it, with a package that adds a teacher and three broken entry points."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_teacher.py").write_text(TEACHER)
    info = folder / "my_teacher-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-teacher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return folder


def run(site, *words):
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, *words], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_teacher_of_a_package_is_a_row(site):
    made = run(site, "-m", "turbovaed_cli", "models", "--json")
    assert made.returncode == 0, made.stderr
    names = {model["name"]: model for model in json.loads(made.stdout)["models"]}
    assert (
        names["mine"]["teacher"]["class"] == "AutoencoderKLMine" and names["ltx"]["teacher"]["class"] == "AutoencoderKLLTXVideo"
    )


def test_what_is_wrong_with_the_others_is_said_and_nothing_stops(site):
    said = run(site, "-m", "turbovaed_cli", "models").stderr
    assert "no_such_module" in said and "names a teacher ltx" in said and "holds a type, not a ModelSpec" in said
    assert "Traceback" not in said


def test_a_folder_of_the_new_class_is_recognised_and_built(site, tmp_path):
    from golden import load_golden

    config = load_golden("ltx").meta["teacher_config"] | {"_class_name": "AutoencoderKLMine"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = f"""
from turbovaed_cli.registry.find import find_model
spec = find_model({str(tmp_path)!r})
print(type(spec.teacher.family).__name__, type(spec.teacher.family.build({{}} | {config!r})).__name__)
"""
    made = run(site, "-c", script)
    assert made.stdout.split() == ["Mine", "AutoencoderKLMine"], made.stderr
