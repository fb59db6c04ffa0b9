"""Run the node pack in comfyui/ inside a real ComfyUI on the CPU, and compare its frames with our own decode.

    python tools/comfyui_real.py PATH_OF_A_COMFYUI_CHECKOUT

The checkout's own loader of custom nodes loads the pack. The core's VAEDecode, VAEDecodeTiled and VAEEncode and the pack's own
nodes run on small random students, in inference mode as the core runs them. Packages that ComfyUI imports and that are not
installed here, such as torchvision, are replaced by empty modules. Exits with 1 if a check fails.
"""

import argparse
import asyncio
import importlib.machinery
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder

PACK = Path(__file__).resolve().parents[1] / "comfyui"
NEEDLESS = (
    "torchvision",
    "torchaudio",
    "torchsde",
    "av",
    "kornia",
    "spandrel",
    "einops",
    "alembic",
    "sqlalchemy",
    "pydantic_settings",
)
LTX = {
    "latent_channels": 128, "decoder_block_out_channels": (16, 16, 16, 16), "decoder_layers_per_block": (1,) * 5,
    "decoder_is_dw_conv": (True,) * 5, "patch_size": 4, "teacher": "ltx",
    "latents_mean": [0.1 * (i % 5) for i in range(128)], "latents_std": [0.5 + 0.01 * i for i in range(128)],
}  # fmt: skip
WAN = {
    "latent_channels": 16, "decoder_block_out_channels": (16, 16, 32), "decoder_layers_per_block": (1,) * 4,
    "decoder_is_dw_conv": (True,) * 4, "spatio_temporal_scaling": (True, True, False), "patch_size": 2, "teacher": "wan2.1",
    "latents_mean": [0.3] * 16, "latents_std": [2.0] * 16,
}  # fmt: skip


class Stub(ModuleType):
    """A module that has every name."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class StubFinder:
    """Finds what ComfyUI imports and what a decode does not need, if it is not installed."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in NEEDLESS else None  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return Stub(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        pass


def start(checkout: Path, base: Path) -> Any:
    """Import the nodes of a checkout on the CPU, with its models and outputs below `base`, and let it load the pack."""
    sys.path.insert(0, str(checkout))
    sys.meta_path.append(StubFinder())  # type: ignore[arg-type]
    sys.argv = ["comfyui", "--cpu", "--base-directory", str(base)]
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    assert asyncio.run(nodes.load_custom_node(str(PACK))), "ComfyUI did not load the pack"
    return nodes


def write(config: dict[str, Any], path: Path) -> StudentDecoder:
    """Write a random student as `turbovaed export --format comfyui` does."""
    torch.manual_seed(0)
    student = build_student(config).eval()
    kept = {name: value for name, value in student.config.items() if not name.startswith("_")}
    save_file(student.state_dict(), path, metadata={"format": "pt", "config": json.dumps(kept)})
    return student


@torch.no_grad()
def ours(student: StudentDecoder, latents: torch.Tensor) -> torch.Tensor:
    """Return our own decode as IMAGE, (B * T, H, W, 3) in [0, 1]."""
    video = student.decode(latents).sample
    return ((video.movedim(1, -1) + 1) / 2).clamp(0, 1).flatten(0, 1)


def checks(nodes: Any, models: Path) -> Iterator[tuple[str, bool, str]]:
    """Run every check; yields its name, whether it passed, and a figure."""
    import comfy.utils

    table, updates = nodes.NODE_CLASS_MAPPINGS, list[int]()
    comfy.utils.set_progress_bar_global_hook(lambda value, *_others, **_options: updates.append(value))
    for config, shape, memory_gb in ((LTX, (1, 128, 3, 4, 6), 0.17), (WAN, (1, 16, 5, 16, 24), 0.21)):
        name = str(config["teacher"])
        student = write(config, models / f"{name}.safetensors")
        latents = torch.randn(shape)
        wanted = ours(student, student.space.raw(latents) if config is LTX else latents)
        with torch.inference_mode():
            (vae,) = table["LoadTurboVaedStudent"]().load(f"{name}.safetensors")
            samples = {"samples": latents}
            ways: dict[str, Callable[[], torch.Tensor]] = {
                "VAEDecode": lambda vae=vae, samples=samples: table["VAEDecode"]().decode(vae, samples)[0],
                "VAEDecodeTiled": lambda vae=vae, samples=samples: table["VAEDecodeTiled"]().decode(vae, samples, 64, 16, 16, 4)[
                    0
                ],
                "Turbo-VAED decode": lambda vae=vae, samples=samples, gb=memory_gb: table["TurboVaedDecode"]().decode(
                    samples, vae, gb
                )[0],
            }
            for way, call in ways.items():
                updates.clear()
                images = call()
                off = float((images - wanted).abs().max()) if images.shape == wanted.shape else float("inf")
                yield (
                    f"{name}: {way} {tuple(images.shape)}",
                    off <= 1e-5,
                    f"max abs {off:.1e} from our decode, {len(updates)} piece{'s' * (len(updates) > 1)}",
                )
            yield from others(nodes, vae, samples)


def others(nodes: Any, vae: Any, samples: dict[str, torch.Tensor]) -> Iterator[tuple[str, bool, str]]:
    """Check what else the core does with a VAE: encode, cancel, unload, and write its sizes."""
    import comfy.model_management as management

    try:
        nodes.VAEEncode().encode(vae, torch.zeros(1, 64, 64, 3))
        yield "encode without a teacher", False, "it was not refused"
    except ValueError as error:
        yield "encode without a teacher", "only decodes" in str(error), str(error)
    management.interrupt_current_processing()
    try:
        nodes.VAEDecode().decode(vae, samples)
        yield "cancel", False, "the decode was not cancelled"
    except management.InterruptProcessingException as error:
        yield "cancel", True, type(error).__name__
    management.unload_all_models()
    again = nodes.VAEDecode().decode(vae, samples)[0]
    yield "decode after unloading all models", bool(torch.isfinite(again).all()), f"{tuple(again.shape)}"
    time, space = vae.temporal_compression_decode(), vae.spacial_compression_decode()
    yield "ratios", isinstance(time, int) and isinstance(space, int), f"{time}x in time, {space}x in space"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a folder with ComfyUI's nodes.py")
    checkout = parser.parse_args().checkout.resolve()
    failed = 0
    with tempfile.TemporaryDirectory() as name, chdir(name):
        base = Path(name)
        (base / "models" / "vae").mkdir(parents=True)
        nodes = start(checkout, base)
        for what, passed, figure in checks(nodes, base / "models" / "vae"):
            print(f"{'ok    ' if passed else 'FAILED'} {what}: {figure}")
            failed += not passed
    import comfyui_version

    print(f"ComfyUI {comfyui_version.__version__} at {checkout}: {failed} failed")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
