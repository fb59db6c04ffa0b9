"""Small random instances of every registry row: the class, ratios and taps of the full size, with few channels."""

import json
from pathlib import Path
from typing import Any

from golden import TEACHER_FILES, load_golden, write_teacher

from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.rows import MODELS

# By registry name: the config of the small instance, where it differs from the row's full-size config.
SMALL: dict[str, dict[str, Any]] = {
    "ltx": {
        "block_out_channels": [8, 16, 16, 16], "decoder_block_out_channels": [8, 16, 16, 16], "layers_per_block": [1, 1, 1, 1, 1],
        "decoder_layers_per_block": [1, 1, 1, 1, 1], "latent_channels": 8,
    },
    "ltx0.9.5": {"block_out_channels": [8, 8, 16, 16, 32], "decoder_block_out_channels": [8, 16, 32], "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 4, "latent_channels": 8},
    "ltx2": {"block_out_channels": [8, 16, 16, 32], "decoder_block_out_channels": [8, 16, 32], "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 4, "latent_channels": 8},
    "ltx2.3": {"block_out_channels": [8, 16, 16, 16], "decoder_block_out_channels": [8, 16, 16, 32], "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "latent_channels": 8},
    "ltx2.5": {"block_out_channels": [8, 16, 16, 16], "decoder_block_out_channels": [8, 16, 16, 32], "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 5, "latent_channels": 8, "diffusion_decoder": {"latent_channels": 8, "decoder_head_dim": 8, "decoder_stage_channels": [32, 16, 8, 8, 8], "decoder_stage_depths": [4, 1, 4, 1, 1], "decoder_upsample_channel_reductions": [2, 2, 1, 1], "decoder_stage_kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]], "decoder_stage5_kernel": [5, 5, 5], "decoder_t_emb_dim": 16}},
    "cosmos": {"encoder_block_out_channels": [8, 16, 16, 16], "decode_block_out_channels": [8, 16, 16, 16], "num_layers": 1, "latent_channels": 8, "latents_mean": None, "latents_std": None},
    "hunyuan": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    "cogvideox": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    "wan2.1": {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]},
    "qwen-image": {"base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]},
    "wan2.2": {"base_dim": 8, "decoder_base_dim": 8, "z_dim": 4, "num_res_blocks": 1, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 0.5, 1.0]},
    "hunyuan1.5": {"block_out_channels": [8, 8, 16, 16, 16], "layers_per_block": 1, "latent_channels": 4},
    "sdxl": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    "flux1": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4},
    "flux2": {"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 2},
    "sana": {
        "encoder_block_out_channels": [8, 8, 8, 8, 16, 16], "decoder_block_out_channels": [8, 8, 8, 8, 16, 16], "attention_head_dim": 4,
        "encoder_layers_per_block": [1] * 6, "decoder_layers_per_block": [1] * 6, "latent_channels": 8,
    },
    "svd": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
}  # fmt: skip


def write_small_teacher(name: str, folder: Path) -> Path:
    """Write a local diffusers folder of a small instance of the row `name`, with random weights from a fixed seed."""
    import torch

    if name == "video-dc-ae":
        return write_teacher(load_golden(TEACHER_FILES[name]), folder)
    teacher = MODELS[name].teacher
    torch.manual_seed(0)
    if teacher.beside:
        return _write_small_pipeline(name, folder)
    vae = teacher.family.build({"_class_name": teacher.class_name, **teacher.config, **SMALL[name]})
    vae.save_pretrained(folder)
    return folder


def _write_small_pipeline(name: str, folder: Path) -> Path:
    """Write the folders of a pipeline that a teacher of several folders is loaded from: a whole VAE, and another decoder."""
    import diffusers

    config = {**MODELS[name].teacher.config, **SMALL[name]}
    decoder = config.pop("diffusion_decoder")
    diffusers.AutoencoderKLLTX2Video.from_config(config).save_pretrained(folder / "vae")
    diffusers.LTX2VideoDiffusionDecoderModel.from_config(decoder).save_pretrained(folder / "diffusion_decoder")
    return folder


def small_student(folder: Path) -> dict[str, Any]:
    """Return the config of a small student for the teacher in `folder`: the row's structure with few channels and layers."""
    config = find_model(folder).student.config
    # The tail of patch_size 4 divides the last block's channels by 16, that of 2 by 4, and a norm follows.
    first = {1: 8, 2: 16, 4: 48}[config["patch_size"]]
    channels = config["decoder_block_out_channels"]
    return dict(config) | {
        "decoder_block_out_channels": tuple([first] + [max(first, 16)] * (len(channels) - 1)),
        "decoder_layers_per_block": (1,) * len(config["decoder_layers_per_block"]),
        "decoder_dw_kernel_size": 3,
    }


def write_small_student(folder: Path, path: Path) -> Path:
    """Write that config as a JSON file for `--student-config`."""
    path.write_text(json.dumps(small_student(folder)))
    return path


def close(made: Any, wanted: Any) -> bool:
    """Whether two results of a network are equal but for the order of sums, which depends on where in memory tensors lie."""
    return made.shape == wanted.shape and bool((made - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp_min(1))
