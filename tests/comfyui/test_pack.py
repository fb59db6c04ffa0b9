"""The node pack of ComfyUI decodes as the package does, against a double of the core's contract."""

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import comfy_double
import comfyui_pack
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from turbovaed_cli.export.export import export_student
from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.memory import decoding_bytes, with_margin
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.settings import ExportSettings

PACK = Path(__file__).resolve().parents[2] / "comfyui"
SMALL = {
    "decoder_block_out_channels": (16, 32),
    "decoder_layers_per_block": (1, 1, 1),
    "decoder_is_dw_conv": (False, True, True),
    "spatio_temporal_scaling": (True, False),
    "patch_size": 2,
}
LTX = {**SMALL, "latent_channels": 128, "decoder_block_out_channels": (16, 16, 16, 16), "decoder_layers_per_block": (1,) * 5} | {
    "decoder_is_dw_conv": (True,) * 5, "spatio_temporal_scaling": (True, True, True, False), "teacher": "ltx",
    "latents_mean": [0.1 * (i % 5) for i in range(128)], "latents_std": [0.5 + 0.01 * i for i in range(128)],
}  # fmt: skip
WAN = {**SMALL, "latent_channels": 16, "teacher": "wan2.1", "latents_mean": [0.3] * 16, "latents_std": [2.0] * 16}
CAUSAL = {**WAN, "decoder_causal": True, "decoder_tail": "patches", "decoder_conv_types": ("2+1d", "depthwise", "3d")}
IMAGE = {**SMALL, "latent_channels": 4, "decoder_spatio_only": (True, False), "teacher": "sdxl", "scaling_factor": 0.13}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The double, and the pack that was loaded with it."""
    made = comfy_double.Core(tmp_path_factory.mktemp("comfyui") / "models")
    with pytest.MonkeyPatch.context() as patch:
        for name, module in made.modules().items():
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location(
            "pack_of_test", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "pack_of_test", module)
        spec.loader.exec_module(module)
        yield made, module
    for name in [name for name in sys.modules if name.startswith("pack_of_test.")]:
        del sys.modules[name]


@pytest.fixture
def core(opened, tmp_path):
    opened[0].begin(tmp_path / "models")
    return opened[0]


@pytest.fixture
def pack(opened):
    return opened[1]


def student_of(config):
    torch.manual_seed(0)
    return build_student(config).eval()


def write(student, path, **metadata):
    """As `turbovaed export --format comfyui` does."""
    config = {name: value for name, value in student.config.items() if not name.startswith("_")}
    save_file(student.state_dict(), path, metadata={"format": "pt", "config": json.dumps(config), **metadata})


def decoded(student, latents):
    """Our own decode, as IMAGE: (B * T, H, W, 3) in [0, 1]."""
    with torch.no_grad():
        video = student.decode(latents).sample
    return ((video.movedim(1, -1) + 1) / 2).clamp(0, 1).flatten(0, 1)


def load(pack, *arguments, **options):
    (vae,) = pack.NODE_CLASS_MAPPINGS["LoadTurboVaedStudent"]().load(*arguments, **options)
    return vae


def decode(pack, samples, vae, memory_gb=0.0):
    (images,) = pack.NODE_CLASS_MAPPINGS["TurboVaedDecode"]().decode({"samples": samples}, vae, memory_gb)
    return images


@pytest.mark.parametrize(("config", "shape"), [(LTX, (1, 128, 3, 2, 3)), (WAN, (2, 16, 3, 4, 6)), (CAUSAL, (1, 16, 3, 2, 3))])
def test_every_way_to_decode_gives_our_frames(config, shape, core, pack):
    """LTX's latents arrive normalised, those of other models raw; tiles of the core's node change nothing."""
    student, samples = student_of(config), torch.randn(shape)
    write(student, core.folder / "vae" / "student.safetensors")
    vae = load(pack, "student.safetensors")
    wanted = decoded(student, student.space.raw(samples) if config is LTX else samples)
    ways = (
        comfy_double.vae_decode(vae, {"samples": samples}),
        comfy_double.vae_decode_tiled(vae, {"samples": samples}, tile_size=64),
        decode(pack, samples, vae, 0.5),
    )
    for images in ways:
        assert images.dtype == torch.float32 and images.shape == wanted.shape
        assert (images - wanted).abs().max() <= 1e-5
    assert core.progress[-1][0] == core.progress[-1][1] == len(wanted)
    assert core.loaded[-1] == (vae.patcher, 500_000_000)
    assert vae.student.fast_form_of is None


def little(student):
    """A limit in GB that one latent frame of 24x24 fits into, and two do not."""
    one, two = (with_margin(decoding_bytes(student, (24, 24), frames)) for frames in (1, 2))
    assert one < two
    return one / 1e9


def test_little_memory_takes_small_pieces_and_gives_the_same_frames(core, pack):
    student, samples = student_of(WAN), torch.randn(1, 16, 6, 24, 24)
    write(student, core.folder / "vae" / "student.safetensors")
    vae, wanted = load(pack, "student.safetensors"), decoded(student, samples)
    assert (decode(pack, samples, vae, 4.0) - wanted).abs().max() <= 1e-5
    whole, core.progress[:] = len(core.progress), []
    assert (decode(pack, samples, vae, little(student)) - wanted).abs().max() <= 1e-5
    assert whole == 1 and len(core.progress) > 3
    with pytest.raises(Exception, match=r"0\.10 GB is too little for 96x96: the smallest pieces need 0\.\d\d GB"):
        decode(pack, samples, vae, 0.1)


def test_a_decode_can_be_cancelled_and_repeated(core, pack):
    student, samples = student_of(WAN), torch.randn(1, 16, 6, 24, 24)
    write(student, core.folder / "vae" / "student.safetensors")
    vae = load(pack, "student.safetensors")
    core.cancel_after = 2
    with pytest.raises(comfy_double.InterruptProcessingException):
        decode(pack, samples, vae, little(student))
    assert len(core.progress) == 2 and vae.student.fast_form_of is None
    assert (decode(pack, samples, vae) - decoded(student, samples)).abs().max() <= 1e-5


def test_frames_of_inference_mode_and_of_half_precision(core, pack):
    """The core runs nodes in inference mode, from the loader on."""
    student, samples = student_of(LTX), torch.randn(1, 128, 2, 2, 2)
    write(student, core.folder / "vae" / "student.safetensors")
    wanted = decoded(student, student.space.raw(samples))
    with torch.inference_mode():
        vae = load(pack, "student.safetensors")
        for _ in range(2):
            assert (decode(pack, samples, vae) - wanted).abs().max() <= 1e-5
        half = load(pack, "student.safetensors", dtype="bf16")
        assert half.vae_dtype == torch.bfloat16 and (decode(pack, samples, half) - wanted).abs().max() < 0.05


def test_an_image_student_decodes_images(core, pack):
    student, samples = student_of(IMAGE), torch.randn(2, 4, 6, 4)
    write(student, core.folder / "vae" / "student.safetensors")
    vae = load(pack, "student.safetensors")
    assert vae.latent_dim == 2 and vae.temporal_compression_decode() is None
    images = comfy_double.vae_decode(vae, {"samples": samples})
    assert (images - decoded(student, samples[:, :, None])).abs().max() <= 1e-5


@pytest.mark.parametrize(("config", "held"), [(LTX, "normalised"), (WAN, "raw")], ids=["ltx", "wan"])
def test_an_export_loads_in_the_pack_and_was_checked(config, held, core, pack, tmp_path):
    """The file states what it is, and the pack's own network has decoded it; next to it is a file for our own loader."""
    student = student_of(config)
    settings = ExportSettings(frames=9, sizes=((32, 48),), precisions=("fp32",))
    made = export_student(student, ("safetensors", "comfyui"), tmp_path / "out", settings).artifacts
    assert [item.path.name for item in made] == ["student-fp32.safetensors", "student-comfyui-fp32.safetensors"]
    assert made[1].verified is True and made[1].max_abs <= 1e-5 and "node pack's network" in made[1].status
    with safe_open(made[1].path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["comfyui_latents"] == held and metadata["teacher"] == config["teacher"]
    assert metadata["licence"] == MODELS[config["teacher"]].teacher.licence and "latent_channels" in metadata["config"]
    path = core.folder / "vae" / "student.safetensors"
    made[1].path.rename(path)
    vae, samples = load(pack, "student.safetensors"), torch.randn(1, config["latent_channels"], 2, 2, 2)
    wanted = decoded(student, student.space.raw(samples) if held == "normalised" else samples)
    assert (decode(pack, samples, vae) - wanted).abs().max() <= 1e-5


def test_the_file_says_which_latents_arrive(core, pack):
    """Its header, and the loader's input, come before the rule for the student's teacher."""
    student, samples = student_of(WAN), torch.randn(1, 16, 1, 2, 2)
    write(student, core.folder / "vae" / "student.safetensors", comfyui_latents="normalised")
    wanted = decoded(student, student.space.raw(samples)), decoded(student, samples)
    for latents, frames in zip(("auto", "raw"), wanted, strict=True):
        vae = load(pack, "student.safetensors", latents=latents)
        assert (decode(pack, samples, vae) - frames).abs().max() <= 1e-5
    assert (wanted[0] - wanted[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["run", "model", "file"])
def test_students_load_from_a_run_a_folder_and_a_path(kind, core, pack, tmp_path):
    student, samples = student_of(WAN), torch.randn(1, 16, 1, 2, 2)
    where = {"run": tmp_path / "run", "model": tmp_path / "model", "file": tmp_path / "mine.safetensors"}[kind]
    if kind == "file":
        write(student, where)
    else:
        student.save_pretrained(where / "model" if kind == "run" else where)
    loader = pack.NODE_CLASS_MAPPINGS["LoadTurboVaedStudent"]
    none = loader.INPUT_TYPES()["required"]["file"][0][0]
    vae = load(pack, none, str(where))
    assert (decode(pack, samples, vae) - decoded(student, samples)).abs().max() <= 1e-5
    before = loader.IS_CHANGED(none, str(where))
    assert loader.IS_CHANGED(none, str(where)) == before != "missing" == loader.IS_CHANGED(none, str(tmp_path / "nothing"))


def test_students_of_the_hub_come_from_its_cache(core, pack, tmp_path, monkeypatch):
    """Nothing is downloaded unless asked; the cache is that of huggingface_hub."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    none = pack.NODE_CLASS_MAPPINGS["LoadTurboVaedStudent"].INPUT_TYPES()["required"]["file"][0][0]
    asked, real = [], huggingface_hub.snapshot_download

    def snapshot_download(name, *, local_files_only, **options):
        asked.append(local_files_only)
        if not local_files_only:
            raise OSError("no network")
        return real(name, local_files_only=True, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match="someone/student cannot be downloaded: no network"):
        load(pack, none, "someone/student", download=True)
    with pytest.raises(ValueError, match="someone/student is not in the hub's cache on this machine: turn on `download`"):
        load(pack, none, "someone/student")
    cached = tmp_path / "hub" / "models--someone--student"
    student = student_of(WAN)
    student.save_pretrained(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    samples = torch.randn(1, 16, 1, 2, 2)
    assert (decode(pack, samples, load(pack, none, "someone/student")) - decoded(student, samples)).abs().max() <= 1e-5
    assert asked == [False, True, True]


def test_encoding_needs_a_teacher(core, pack):
    write(student_of(WAN), core.folder / "vae" / "student.safetensors")

    class Teacher:
        def encode(self, pixels):
            return ("encoded", pixels)

        def encode_tiled(self, pixels, tile_x=None):
            return ("in tiles", pixels, tile_x)

    vae = load(pack, "student.safetensors")
    for encode in (vae.encode, vae.encode_tiled, vae.first_stage_model.encode):
        with pytest.raises(ValueError, match=r"^A Turbo-VAED student only decodes: connect its teacher's VAE .* to encode\.$"):
            encode(torch.zeros(1, 8, 8, 3))
    vae = load(pack, "student.safetensors", teacher=Teacher())
    assert vae.encode(1) == ("encoded", 1) and vae.encode_tiled(1, tile_x=2) == ("in tiles", 1, 2)


def test_what_other_nodes_read_of_the_vae(core, pack):
    write(student_of(LTX), core.folder / "vae" / "student.safetensors")
    vae = load(pack, "student.safetensors")
    assert [vae.upscale_ratio[0](t) for t in (0, 1, 2, 16)] == [0, 1, 9, 121] and vae.upscale_ratio[1:] == (16, 16)
    assert [vae.downscale_ratio[0](frames) for frames in (1, 8, 9, 121)] == [1, 1, 2, 16]
    assert vae.upscale_index_formula == vae.downscale_index_formula == (8, 16, 16) and vae.latent_channels == 128
    assert vae.temporal_compression_decode() == 8 and vae.spacial_compression_decode() == 16
    image = vae.process_input(torch.tensor([0.0, 0.5, 1.0]))
    assert vae.process_output(image).tolist() == image.tolist() == [0.0, 0.5, 1.0]  # in place, as later versions rely on
    assert set(vae.get_sd()) == set(student_of(LTX).state_dict()) and vae.throw_exception_if_invalid() is None
    samples = torch.randn(1, 128, 2, 2, 2)
    assert vae.first_stage_model.decode(samples).shape == (1, 3, 9, 32, 32)


REFUSED = {
    "no student": ({"decoder.conv_in.weight": torch.zeros(1)}, {}, "x.safetensors is no Turbo-VAED student: write one with"),
    "a value of another type": (
        {"conv_in.conv.weight": torch.zeros(1)},
        {"config": json.dumps({**WAN, "decoder_tail": 5})},
        "does not hold the weights of its config",
    ),
    "other weights": ({"conv_in.conv.weight": torch.zeros(1)}, None, "x.safetensors does not hold the weights of its config"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_students_are_refused_in_a_sentence(name, core, pack):
    state, metadata, message = REFUSED[name]
    config = {"config": json.dumps(WAN)} if metadata is None else metadata
    save_file(state, core.folder / "vae" / "x.safetensors", metadata=config)
    with pytest.raises(ValueError, match=message) as caught:
        load(pack, "x.safetensors")
    assert "\n" not in str(caught.value)


def test_choices_that_cannot_work_are_refused_in_a_sentence(core, pack, tmp_path):
    none = pack.NODE_CLASS_MAPPINGS["LoadTurboVaedStudent"].INPUT_TYPES()["required"]["file"][0][0]
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"")
    for where, message in {
        "": "Choose a file",
        str(tmp_path / "empty"): "holds no student",
        str(tmp_path / "weights.pth"): "no .safetensors file",
        "no/such/thing": "no file, no folder and no hub id",
    }.items():
        with pytest.raises(ValueError, match=message):
            load(pack, none, where)
    path = core.folder / "vae" / "student.safetensors"
    write(student_of({**WAN, "teacher": "cosmos"}), path)
    with pytest.raises(ValueError, match="ComfyUI's latents of cosmos cannot be converted"):
        load(pack, "student.safetensors")
    assert load(pack, "student.safetensors", latents="raw").latent_channels == 16
    write(student_of({**LTX, "latents_mean": None}), path)
    with pytest.raises(ValueError, match="has no latent statistics"):
        load(pack, "student.safetensors")
    write(student_of(WAN), path)
    vae = load(pack, "student.safetensors")
    with pytest.raises(ValueError, match=r"The latents are \(1, 4, 2, 2\), and this student of wan2.1 decodes \(batch, 16,"):
        vae.decode(torch.zeros(1, 4, 2, 2))
    with pytest.raises(TypeError, match="is no Turbo-VAED student"):
        decode(pack, torch.zeros(1, 16, 1, 2, 2), object())


@pytest.mark.parametrize("name", [name for name in MODELS if name != "tiny"])  # ComfyUI has no model with its latents
def test_the_pack_knows_the_latents_of_every_teacher(name, pack):
    """The pack has a rule of its own, as it depends on nothing of ours."""
    spec = MODELS[name]
    config = {**spec.student.config, "decoder_layers_per_block": [0] * len(spec.student.config["decoder_layers_per_block"])}
    with torch.device("meta"):
        student = pack.nodes.load.__globals__["StudentDecoder"].from_config({**config, "teacher": name})
    assert pack.nodes.latents_of(student) == spec.teacher.family.comfyui_latents


def test_the_pack_needs_torch_and_comfyui_alone_and_opens_at_once(tmp_path):
    """In a process that can import neither turbovaed nor diffusers; the time is that besides torch and safetensors."""
    script = f"""
import importlib.util, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import comfy_double, torch, safetensors.torch

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("turbovaed_cli", "diffusers", "typer", "rich", "imageio_ffmpeg", "huggingface_hub", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
comfy_double.install(comfy_double.Core(Path({str(tmp_path)!r}) / "models"))
begin = time.process_time()
spec = importlib.util.spec_from_file_location("pack", {str(PACK / "__init__.py")!r}, submodule_search_locations=[{str(PACK)!r}])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(time.process_time() - begin, *module.NODE_CLASS_MAPPINGS)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, *nodes = done.stdout.split()
    assert float(seconds) < 1 and nodes == ["LoadTurboVaedStudent", "TurboVaedDecode"]


def test_generated_files_are_current():
    stale = [path for path, text in comfyui_pack.generated().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "python tools/comfyui_pack.py --write"


def test_the_pack_imports_nothing_else():
    allowed = {"torch", "safetensors", "comfy", "folder_paths", "huggingface_hub"} | set(sys.stdlib_module_names)
    for path in PACK.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_the_registry_accepts_the_project_file():
    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    name = project["project"]["name"]
    assert len(name) < 100 and "comfyui" not in name.lower()
    assert project["tool"]["comfy"]["DisplayName"] and project["project"]["license"] == {"text": "Apache-2.0"}


def test_the_example_workflow_uses_our_nodes_with_inputs_that_they_have(pack):
    """As ComfyUI checks a graph: every node is known or the core's, and every link joins outputs and inputs of one type."""
    graph = json.loads((PACK / "example_workflows" / "turbovaed_ltx.json").read_text())
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, source, output, target, slot, kind in graph["links"]:
        made, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert made["type"] == taken["type"] == kind and number in made["links"] and taken["link"] == number
    ours = [node for node in graph["nodes"] if node["type"] in pack.NODE_CLASS_MAPPINGS]
    assert {node["type"] for node in ours} == set(pack.NODE_CLASS_MAPPINGS)
    for node in ours:
        inputs = pack.NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
        known = {**inputs["required"], **inputs.get("optional", {})}
        assert {one["name"] for one in node["inputs"]} <= set(known)
        widgets = [name for name, (kind, *_) in known.items() if kind not in ("LATENT", "VAE")]
        assert len(node["widgets_values"]) == len(widgets)
