"""The Kotlin of exported READMEs compiles against classes with the signatures of the runtimes, which cannot be had here."""

import shutil
import subprocess
from pathlib import Path

import pytest
from limits import HANG_S
from pages import blocks

from turbovaed_cli.export.readme import loading_instructions

ROOT = Path(__file__).parents[2]
COMPILER = ROOT / ".venv" / "web" / "node_modules" / "kotlin-compiler" / "bin" / "kotlinc"
STUBS = ROOT / "tests" / "support" / "kotlin_stubs"
RECORD = {
    "status": "ran here",
    "psnr_db": 90.0,
    "max_abs": 1e-5,
    "checked_on": "1 clip",
    "verified": True,
    "size_mb": 1.0,
    "precision": "fp32",
    "graph": "clip",
    "shapes": [[1, 32, 9, 8, 8]],
}
FILES = {"onnx": "student.onnx", "executorch": "student.pte", "litert": "student.tflite"}


@pytest.fixture
def kotlinc():
    if shutil.which("java") is None:
        pytest.skip("no Java here: apt-get install default-jre-headless")
    if not COMPILER.is_file():
        pytest.skip("no Kotlin compiler here: npm install --prefix .venv/web kotlin-compiler")

    def run(folder: Path, code: dict[str, str]) -> subprocess.CompletedProcess:
        for name, text in code.items():
            (folder / f"{name}.kt").write_text(f"package {name}\n{text}")
        command = ["bash", str(COMPILER), "-nowarn", "-d", str(folder / "classes"), str(STUBS)]
        command += [str(folder / f"{name}.kt") for name in code]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)

    return run


def kotlin_of(folder: Path, record_format: str) -> str:
    record = {**RECORD, "format": record_format, "path": FILES[record_format]}
    (folder / "README.md").write_text(loading_instructions([record]))
    (code,) = blocks(folder / "README.md", "kotlin")
    return code


@pytest.mark.thorough
def test_the_kotlin_of_every_runtime_compiles(tmp_path, kotlinc):
    """And a call that the runtime does not have is an error."""
    code = {name: kotlin_of(tmp_path, name) for name in FILES}
    compiled = kotlinc(tmp_path, code)
    assert compiled.returncode == 0, compiled.stderr
    assert {path.parent.name for path in (tmp_path / "classes").rglob("*Kt.class")} >= set(FILES)
    wrong = kotlinc(tmp_path, {"wrong": code["litert"].replace("readFloat()", "readFloats()")})
    assert wrong.returncode != 0
    assert "readFloats" in wrong.stderr
