"""The self-contained modeling file decodes and streams as the package does, where the package cannot be imported."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from members import NAMED, built, latents_of, members
from safetensors.torch import load_file, save_file

from turbovaed_cli.files.sealed import verify_manifest, write_manifest
from turbovaed_cli.models import self_contained
from turbovaed_cli.models.loading import build_student, load_student
from turbovaed_cli.models.self_contained import MODELING_FILE, modeling_module, modeling_source
from turbovaed_cli.models.streaming import StreamingDecoder
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS

# Runs without turbovaed, and without more that is blocked; decodes and streams every model, saves it again, and loads that.
SCRIPT = """
import json, sys
from pathlib import Path

where, *blocked = sys.argv[1:]

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)
if "diffusers" in blocked:
    sys.path.insert(0, f"{where}/1")
    import modeling_turbovaed
    load = modeling_turbovaed.StudentDecoder.from_pretrained
else:
    from diffusers import AutoModel
    def load(folder):
        return AutoModel.from_pretrained(str(folder), trust_remote_code=True)

latents = load_file(f"{where}/latents.safetensors")["latents"].clone()
for folder in [path.parent for path in Path(where).glob("*/config.json")]:
    student = load(folder)
    with torch.no_grad():
        whole = student.decode(latents).sample
        plain = student(latents)
        stream = student.stream()
        pieces = [stream.push(piece) for piece in latents.split(1, dim=2)] + [stream.finish()]
        module = sys.modules[type(student).__module__]
        rows = list(module.StreamingDecoder(student, rows=1).decode(latents.split(2, dim=2)))
        bounded = list(module.decode_within(student, latents, 400_000_000))
        student.save_pretrained(folder / "again")
        again = load(folder / "again").decode(latents, return_dict=False)[0]
    made = {"whole": whole, "plain": plain, "again": again}
    made |= {name: torch.cat(videos, dim=2) for name, videos in (("pieces", pieces), ("rows", rows), ("bounded", bounded))}
    save_file({name: video.contiguous() for name, video in made.items()}, folder / "made.safetensors")
    space = student.space
    facts = [student.family, student.teacher, student.licence, space.time_ratio, space.space_ratio, student.training]
    (folder / "facts.json").write_text(json.dumps(facts))
assert "turbovaed_cli" not in sys.modules
"""


def small_student(patch_size: int) -> StudentDecoder:
    torch.manual_seed(patch_size)
    config = {
        "latent_channels": 4,
        "decoder_block_out_channels": (16, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_is_dw_conv": (False, False, True, True),
        "decoder_dw_kernel_size": 5,
        "spatio_temporal_scaling": (True, True, False),
        "decoder_spatio_only": (True, False, False),
        "patch_size": patch_size,
        "teacher": "ltx",
    }
    return build_student(config).eval()


@pytest.mark.parametrize(
    "blocked",
    [pytest.param(["turbovaed_cli"], marks=pytest.mark.thorough), ["turbovaed_cli", "diffusers"]],
    ids=["AutoModel", "no diffusers"],
)
@pytest.mark.usefixtures("one_thread")
def test_saved_folders_decode_without_turbovaed(blocked, tmp_path):
    """In the bits of our own decode and stream, with each patch size; also after the modeling file has saved it itself."""
    students = {str(patch_size): small_student(patch_size) for patch_size in (1, 2, 4)}
    students["causal"] = built(NAMED["causal, in space then time, patches of 8"] | {"teacher": "ltx"}, dtype=torch.float32)
    for name, student in students.items():
        student.save_pretrained(tmp_path / name)
    latents = torch.randn(1, 4, 4, 2, 3)
    save_file({"latents": latents}, tmp_path / "latents.safetensors")
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), *blocked]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "not expected" not in done.stderr  # diffusers' warning about keys of the config
    for name, student in students.items():
        made = load_file(tmp_path / name / "made.safetensors")
        wanted = decoded(student, latents)
        assert {way: torch.equal(made[way], video) for way, video in wanted.items()} == dict.fromkeys(wanted, True)
        assert torch.allclose(made["bounded"], wanted["whole"], atol=1e-5, rtol=0)
        facts = json.loads((tmp_path / name / "facts.json").read_text())
        assert facts == ["turbo-vaed", "ltx", MODELS["ltx"].teacher.licence, 2, student.spatial_compression_ratio, False]


@torch.no_grad()
def decoded(student, latents):
    whole, plain, stream = student.decode(latents).sample, student(latents), student.stream()
    pieces = torch.cat([*map(stream.push, latents.split(1, dim=2)), stream.finish()], dim=2)
    rows = torch.cat(list(StreamingDecoder(student, rows=1).decode(latents.split(2, dim=2))), dim=2)
    return {"whole": whole, "plain": plain, "pieces": pieces, "rows": rows, "again": whole}


@torch.no_grad()
@settings(max_examples=6, deadline=None)
@given(config=members())
def test_every_member_of_the_family_is_the_same_in_the_generated_file(config):
    """From the config and weights of a file, to the frames of our own decode and stream, in fp64."""
    student = built(config)
    alone = modeling_module().StudentDecoder.from_weights(json.loads(student.to_json_string()), student.state_dict())
    latents, streams = latents_of(student, 3, 2, 1), (student.stream(), alone.stream())
    assert torch.allclose(alone(latents), student(latents), atol=1e-9)
    assert torch.allclose(alone.decode(latents).sample, student.decode(latents).sample, atol=1e-9)
    assert streams[0].lookahead_frames == streams[1].lookahead_frames
    pieces = [[*map(stream.push, latents.split(1, dim=2)), stream.finish()] for stream in streams]
    assert all(torch.allclose(one, two, atol=1e-9) for one, two in zip(*pieces, strict=True))


def test_a_saved_folder_names_its_modeling_file_and_loads_as_before(tmp_path):
    student = small_student(2)
    student.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {"AutoModel": "modeling_turbovaed.StudentDecoder"}
    assert (tmp_path / MODELING_FILE).read_text() == modeling_source()
    write_manifest(tmp_path)
    assert MODELING_FILE in verify_manifest(tmp_path)["files"]
    assert "auto_map" not in load_student(tmp_path).config
    again = StudentDecoder.from_pretrained(tmp_path)
    assert "auto_map" not in again.config and StudentDecoder.from_config(again.config).config == again.config


def test_a_folder_of_an_earlier_version_loads(tmp_path):
    """Without the modeling file and the key that names it."""
    student = small_student(1)
    student.save_pretrained(tmp_path)
    (tmp_path / MODELING_FILE).unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "auto_map"}))
    latents = torch.randn(1, 4, 2, 2, 2)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path).decode(latents).sample, student.decode(latents).sample)


@pytest.mark.parametrize("with_diffusers", [True, False])
def test_the_file_imports_torch_and_the_standard_library_alone(with_diffusers):
    tree = ast.parse(modeling_source(with_diffusers=with_diffusers))
    found = set()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.ImportFrom) or not node.level
        names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in getattr(node, "names", ())]
        found |= {name.partition(".")[0] for name in names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
    assert found - set(sys.stdlib_module_names) == {"torch", "safetensors"} | ({"diffusers"} if with_diffusers else set())


def test_the_file_says_where_it_is_from_and_holds_no_path():
    source = modeling_source()
    assert source.startswith("# Copyright") and "Apache License" in source and "do not edit" in source
    assert "loads once turbovaed_cli is imported" in source and "save_pipeline" in source  # what a saved pipeline needs
    assert str(self_contained._PACKAGE) not in source and "import turbovaed_cli" not in source
