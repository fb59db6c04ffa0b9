"""What ComfyUI's core offers a node pack, and what its nodes ask of a VAE: a double of the contract, with none of its code."""

import sys
from types import ModuleType

import torch
from torch import nn


class InterruptProcessingException(Exception):
    pass


class Core:
    """The state of the double: models/vae, what was loaded, the progress, and when the user cancels."""

    def __init__(self, folder):
        self.begin(folder)

    def begin(self, folder):
        """Start again, with an empty models/vae."""
        self.folder = folder
        (folder / "vae").mkdir(parents=True)
        self.loaded, self.progress = [], []
        self.cancel_after = None  # progress updates
        self.free_bytes = 10**10

    def modules(self):
        """The modules that a pack imports, by name."""
        names = ("comfy", "comfy.model_management", "comfy.model_patcher", "comfy.sd", "comfy.utils", "folder_paths")
        made = {name: ModuleType(name) for name in names}
        for name in names[1:5]:
            setattr(made["comfy"], name.rpartition(".")[2], made[name])
        cpu = torch.device("cpu")
        management = made["comfy.model_management"]
        management.vae_device = management.vae_offload_device = management.intermediate_device = lambda: cpu
        management.vae_dtype = lambda device=None, allowed_dtypes=(): torch.float32
        management.load_models_gpu = self._load
        management.get_free_memory = lambda device=None: self.free_bytes
        management.InterruptProcessingException = InterruptProcessingException
        management.throw_exception_if_processing_interrupted = self._check_cancelled
        made["comfy.model_patcher"].ModelPatcher = ModelPatcher
        made["comfy.sd"].VAE = VAE
        made["comfy.utils"].ProgressBar = lambda total, node_id=None: ProgressBar(self, total)
        paths = made["folder_paths"]
        paths.get_filename_list = lambda kind: sorted(path.name for path in (self.folder / kind).iterdir())
        paths.get_full_path = lambda kind, name: str(path) if (path := self.folder / kind / name).is_file() else None
        paths.get_temp_directory = lambda: str(self.folder / "temp")
        return made

    def _load(self, models, memory_required=0, force_full_load=False):
        for patcher in models:
            patcher.model.to(patcher.load_device)
            patcher.model.device = patcher.load_device  # the core assigns it
            self.loaded.append((patcher, memory_required))

    def _check_cancelled(self):
        if self.cancel_after is not None and len(self.progress) >= self.cancel_after:
            self.cancel_after = None
            raise InterruptProcessingException


class ModelPatcher:
    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        assert isinstance(model, nn.Module)
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device


class ProgressBar:
    def __init__(self, core, total):
        self.core, self.total, self.current = core, total, 0

    def update(self, value):
        self.current += value
        self.core.progress.append((self.current, self.total))


class VAE:
    """The core's constructor recognises networks by their keys, and finds none of a student's."""

    def __init__(self, *_arguments, **_options):
        raise AssertionError("a pack must not call this constructor")

    def spacial_compression_decode(self):
        return self.upscale_ratio[-1] if isinstance(self.upscale_ratio, tuple) else self.upscale_ratio

    def temporal_compression_decode(self):
        return round(self.upscale_ratio[0](8192) / 8192) if isinstance(self.upscale_ratio, tuple) else None


def vae_decode(vae, samples):
    """What the node VAEDecode does: images are (B * T, H, W, C)."""
    images = vae.decode(samples["samples"])
    return images.reshape(-1, *images.shape[-3:])


def vae_decode_tiled(vae, samples, tile_size=512, overlap=64):
    """What the node VAEDecodeTiled does."""
    assert vae.temporal_compression_decode() is None or vae.temporal_compression_decode() >= 1
    ratio = vae.spacial_compression_decode()
    tiles = {"tile_x": tile_size // ratio, "tile_y": tile_size // ratio, "overlap": overlap // ratio, "tile_t": 8, "overlap_t": 2}
    images = vae.decode_tiled(samples["samples"], **tiles)
    return images.reshape(-1, *images.shape[-3:])


def install(core):
    """Put the double's modules where `import` finds them."""
    sys.modules.update(core.modules())
