"""A saved pipeline loads in a new process: with `import turbovaed_cli` alone, and where turbovaed is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_pipelines import student_of, tiny_pipeline, vae_of

from turbovaed_cli import StudentVae, attach_student, load_decoder, load_student, save_pipeline
from turbovaed_cli.errors import OutputExistsError, SettingsError

SCRIPT = """
import sys
way, *folders = sys.argv[1:]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "turbovaed_cli":
            raise ImportError(f"{name} is blocked")

if way == "without turbovaed":
    sys.meta_path.insert(0, Blocked())
else:
    import turbovaed_cli
    assert "torch" not in sys.modules
import torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
trusted = {"trust_remote_code": True} if way == "without turbovaed" else {}
for folder in folders:
    given = torch.load(f"{folder}.pt", weights_only=True)
    pipe = DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None, **trusted)
    generator = torch.Generator().manual_seed(0)
    frames = pipe(num_inference_steps=2, generator=generator, output_type="pt", **given["arguments"]).frames
    assert torch.equal(frames, given["frames"]), (frames - given["frames"]).abs().max()
    print(type(pipe.vae).__name__)
assert way != "without turbovaed" or "turbovaed_cli" not in sys.modules
"""


def load_elsewhere(way, *folders):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folders[0].parent / "hub")}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, way, *map(str, folders)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "not expected" not in done.stderr, done.stderr  # diffusers' words about unknown keys
    return done.stdout.split()


def given(tiny, folder):
    """Keep what a pipeline was given and made, for the other process."""
    torch.save({"frames": tiny.run(), "arguments": tiny.arguments}, f"{folder}.pt")
    return folder


@pytest.mark.thorough
def test_a_saved_pipeline_loads_after_import_turbovaed_cli(tmp_path):
    """With a student, and with one that has its teacher's encoder."""
    student = student_of("ltx", vae_of("ltx"))
    alone, whole = tiny_pipeline("ltx", student), tiny_pipeline("ltx", StudentVae.of(student, vae_of("ltx")))
    for tiny, name in ((alone, "StudentDecoder"), (whole, "StudentVae")):
        tiny.pipe.save_pretrained(given(tiny, tmp_path / name))
        assert json.loads((tmp_path / name / "model_index.json").read_text())["vae"] == ["turbovaed_cli", name]
    names = ["StudentDecoder", "StudentVae"]
    assert load_elsewhere("with turbovaed", *(tmp_path / name for name in names)) == names


def test_save_pipeline_needs_no_turbovaed_to_load(tmp_path):
    tiny = tiny_pipeline("ltx", student_of("ltx", vae_of("ltx")))
    folder = given(tiny, tmp_path / "saved")
    assert save_pipeline(tiny.pipe, folder) == folder
    assert load_elsewhere("without turbovaed", folder) == ["StudentDecoder"]
    with pytest.raises(OutputExistsError):
        save_pipeline(tiny.pipe, folder)


def test_a_pipeline_loaded_without_turbovaed_is_saved_again(tmp_path):
    """Its student is of the class in the modeling file."""
    tiny = tiny_pipeline("ltx", student_of("ltx", vae_of("ltx")))
    vae = save_pipeline(tiny.pipe, tmp_path / "first") / "vae"
    name = "diffusers_modules.local.modeling_turbovaed"  # diffusers imports a copy in its cache by this name
    spec = importlib.util.spec_from_file_location(name, vae / "modeling_turbovaed.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        tiny.pipe.register_modules(vae=module.StudentDecoder.from_pretrained(vae))
        folder = save_pipeline(tiny.pipe, given(tiny, tmp_path / "again"))
    finally:
        del sys.modules[name]
    assert load_elsewhere("without turbovaed", folder) == ["StudentDecoder"]


def test_the_student_of_a_saved_pipeline_is_loaded_from_its_folder(tmp_path):
    vae = vae_of("ltx")
    student = student_of("ltx", vae)
    folder = save_pipeline(tiny_pipeline("ltx", student).pipe, tmp_path / "saved")
    latents = torch.randn(1, 8, 2, 2, 2)
    own = tiny_pipeline("ltx", vae).pipe
    with torch.no_grad(), attach_student(own, folder):
        for one in (load_student(folder), load_decoder(folder), own.vae):
            assert torch.equal(one.decode(latents).sample, student.decode(latents).sample)


def test_overwriting_replaces_a_pipeline_and_nothing_else(tmp_path):
    tiny = tiny_pipeline("ltx", student_of("ltx", vae_of("ltx")))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(OutputExistsError, match="no pipeline"):
        save_pipeline(tiny.pipe, tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for _ in range(2):
        save_pipeline(tiny.pipe, tmp_path / "saved", overwrite=True)


@pytest.mark.parametrize("pipe", [object(), SimpleNamespace(vae=None)], ids=["no vae", "None"])
def test_a_pipeline_without_a_student_is_not_saved(pipe, tmp_path):
    with pytest.raises(SettingsError, match="a NoneType, not a student"):
        save_pipeline(pipe, tmp_path / "saved")


def test_an_attached_student_is_not_saved(tmp_path):
    vae = vae_of("ltx")
    tiny = tiny_pipeline("ltx", vae)
    with pytest.raises(SettingsError, match="not a student"):
        save_pipeline(tiny.pipe, tmp_path / "saved")
    with attach_student(tiny.pipe, student_of("ltx", vae)), pytest.raises(SettingsError, match="attached"):
        save_pipeline(tiny.pipe, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
