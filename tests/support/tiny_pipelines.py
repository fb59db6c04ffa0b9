"""Tiny random diffusers pipelines of every class that a student serves, with prompts given as embeddings: no text encoder runs."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import diffusers
import pytest
import torch
from members import randomize_time
from PIL import Image
from small_teachers import SMALL

from turbovaed_cli.models.loading import build_student
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.registry.rows import MODELS

pytest.importorskip("transformers", reason="diffusers has no pipelines without it: pip install transformers")
logging.getLogger("diffusers").setLevel(logging.ERROR)  # it warns of the parts that a tiny pipeline leaves out

SIZE, FRAMES = 32, 9
TEXT, TOKENS = 16, 4  # width and length of the prompt embeddings


@dataclass
class Tiny:
    """A pipeline and the arguments of a call with two steps; `run` makes the frames from a fixed seed."""

    pipe: Any
    arguments: dict[str, Any] = field(default_factory=dict)

    def run(self, output_type: str = "pt", **more: Any) -> Any:
        self.pipe.set_progress_bar_config(disable=True)
        arguments = {
            name: value.to(self.pipe.transformer.dtype) if torch.is_tensor(value) and value.is_floating_point() else value
            for name, value in {**self.arguments, **more}.items()
        }
        generator = torch.Generator("cpu").manual_seed(0)
        return self.pipe(num_inference_steps=2, generator=generator, output_type=output_type, **arguments).frames


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def picture(size: int = SIZE) -> Image.Image:
    return Image.linear_gradient("L").resize((size, size)).convert("RGB")


def prompts(**more: Any) -> dict[str, Any]:
    return {"prompt_embeds": random(1, TOKENS, TEXT), "negative_prompt_embeds": random(1, TOKENS, TEXT), **more}


def masks() -> dict[str, Any]:
    return {name: torch.ones(1, TOKENS, dtype=torch.long) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}


def vae_of(name: str) -> Any:
    """A small VAE of a registry row with random weights; LTX's statistics, buffers of its weights, are random too."""
    teacher = MODELS[name].teacher
    torch.manual_seed(0)
    vae = teacher.family.build({"_class_name": teacher.class_name, **teacher.config, **SMALL[name]}).eval()
    for buffer, low in (("latents_mean", -0.5), ("latents_std", 0.5)):
        if buffer in dict(vae.named_buffers()):
            getattr(vae, buffer).uniform_(low, low + 1)
    return vae


# A causal student of LTX with every kind of convolution, and patches of pixels at its end.
CAUSAL = {
    "decoder_causal": True, "decoder_conv_types": ("2+1d", "2+1d", "depthwise", "3d", "2+1d"), "decoder_tail": "patches",
    "decoder_activation": "relu",
}  # fmt: skip


def student_of(name: str, vae: Any, changes: Mapping[str, Any] | None = None) -> StudentDecoder:
    """A student of that VAE: the row's structure with few channels and layers, random weights, the VAE's statistics.

    `changes` are made to its config.
    """
    row = MODELS[name]
    config = {key: value for key, value in row.student.config.items() if key not in ("latents_mean", "latents_std")}
    first = {1: 8, 2: 16, 4: 48}[config["patch_size"]]
    family = row.teacher.family
    config |= {
        "decoder_block_out_channels": (first,) + (max(first, 16),) * (len(config["decoder_block_out_channels"]) - 1),
        "decoder_layers_per_block": (1,) * len(config["decoder_layers_per_block"]),
        "decoder_dw_kernel_size": 3,
        "latent_channels": family.latent_channels({**vae.config}),
        "teacher": name,
        **family.statistics(vae),
        **(changes or {}),
    }
    torch.manual_seed(1)
    student = build_student(config).eval()
    randomize_time(student)
    return student


def _flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def _ltx(vae: Any, pipeline: str, **arguments: Any) -> Tiny:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, num_layers=1,
        caption_channels=TEXT,
    )  # fmt: skip
    pipe = getattr(diffusers, pipeline)(vae=vae, scheduler=_flow(), text_encoder=None, tokenizer=None, transformer=transformer)
    return Tiny(pipe, {**prompts(), **masks(), "height": 64, "width": 64, "num_frames": FRAMES, **arguments})


def _ltx2(vae: Any, pipeline: str, **arguments: Any) -> Tiny:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

    rope = {"rope_double_precision": False, "rope_type": "split"}
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16, audio_in_channels=4,
        audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1,
        caption_channels=TEXT, **rope,
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=TEXT, text_proj_in_factor=1, video_connector_num_attention_heads=2, video_connector_attention_head_dim=8,
        video_connector_num_layers=1, video_connector_num_learnable_registers=None, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8, audio_connector_num_layers=1, audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32, **rope,
    )  # fmt: skip
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8, resolution=32
    )
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=8, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
    )  # fmt: skip
    pipe = getattr(diffusers, pipeline)(
        vae=vae, scheduler=_flow(), text_encoder=None, tokenizer=None, transformer=transformer, connectors=connectors,
        audio_vae=audio_vae, vocoder=vocoder,
    )  # fmt: skip
    more = {
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
        "use_cross_timestep": False,
    }
    return Tiny(
        pipe,
        {
            **prompts(),
            **masks(),
            "height": 64,
            "width": 64,
            "num_frames": FRAMES,
            "spatio_temporal_guidance_blocks": None,
            **more,
            **arguments,
        },
    )


_HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 1,
    "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 1, "text_embed_dim": TEXT, "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip


def _hunyuan(
    vae: Any, pipeline: str, config: dict[str, Any], parts: Callable[[], dict[str, Any]] = dict, **arguments: Any
) -> Tiny:
    kind = "HunyuanVideoFramepackTransformer3DModel" if "Framepack" in pipeline else "HunyuanVideoTransformer3DModel"
    pipe = getattr(diffusers, pipeline)(
        vae=vae, scheduler=_flow(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=getattr(diffusers, kind)(**_HUNYUAN | config), **parts(),
    )  # fmt: skip
    mask = {"prompt_attention_mask": torch.ones(1, TOKENS), "pooled_prompt_embeds": random(1, 8)}
    negative = {"negative_prompt_attention_mask": torch.ones(1, TOKENS), "negative_pooled_prompt_embeds": random(1, 8)}
    return Tiny(pipe, {**prompts(), **mask, **negative, "height": SIZE, "width": SIZE, "num_frames": FRAMES, **arguments})


def _image_encoder() -> dict[str, Any]:
    from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIZE, patch_size=16
    )
    processor = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})
    return {"image_encoder": SiglipVisionModel(config).eval(), "feature_extractor": processor}


def _clip() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=16
    )
    size = {"height": SIZE, "width": SIZE}
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": CLIPImageProcessor(crop_size=size, size=size)}


def _hunyuan15(vae: Any, pipeline: str, parts: Callable[[], dict[str, Any]] = dict, **arguments: Any) -> Tiny:
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_refiner_layers=1,
        text_embed_dim=TEXT, text_embed_2_dim=TEXT, image_embed_dim=16, rope_axes_dim=(2, 4, 4), target_size=SIZE,
        task_type="i2v" if parts is not dict else "t2v",
    )  # fmt: skip
    pipe = getattr(diffusers, pipeline)(
        vae=vae, scheduler=_flow(), text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=transformer, guider=diffusers.ClassifierFreeGuidance(guidance_scale=2.0), **parts(),
    )  # fmt: skip
    given: dict[str, Any] = {}
    for sign in ("", "negative_"):
        for end in ("", "_2"):
            given[f"{sign}prompt_embeds{end}"] = random(1, TOKENS, TEXT)
            given[f"{sign}prompt_embeds_mask{end}"] = torch.ones(1, TOKENS)
    return Tiny(pipe, {**given, "num_frames": FRAMES, **arguments})


def _cogvideox(vae: Any, pipeline: str, in_channels: int = 4, frames: int | None = FRAMES, **arguments: Any) -> Tiny:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=in_channels, out_channels=4, time_embed_dim=8, text_embed_dim=TEXT,
        num_layers=1, sample_width=4, sample_height=4, sample_frames=FRAMES, patch_size=2, max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    pipe = getattr(diffusers, pipeline)(
        vae=vae, scheduler=diffusers.CogVideoXDDIMScheduler(), text_encoder=None, tokenizer=None, transformer=transformer
    )
    given = {**prompts(), "height": SIZE, "width": SIZE, "max_sequence_length": TOKENS, **arguments}
    return Tiny(pipe, given | ({"num_frames": frames} if frames else {}))


_WAN = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": TEXT, "freq_dim": 16,
    "ffn_dim": 16, "num_layers": 1,
}  # fmt: skip


def _wan(vae: Any, pipeline: str, config: dict[str, Any] | None = None, kind: str = "WanTransformer3DModel", parts: dict[str, Any] | None = None, **arguments: Any) -> Tiny:  # fmt: skip
    pipe = getattr(diffusers, pipeline)(
        vae=vae, scheduler=_flow(), text_encoder=None, tokenizer=None, transformer=getattr(diffusers, kind)(**_WAN | (config or {})), **(parts or {})
    )  # fmt: skip
    given = {**prompts(), "height": SIZE, "width": SIZE, **arguments}
    return Tiny(pipe, given if "video" in arguments or "pose_video" in arguments else {"num_frames": FRAMES, **given})


def _pictures(count: int, size: int = SIZE) -> list[Image.Image]:
    return [picture(size).rotate(10 * i) for i in range(count)]


def _condition() -> Any:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    return [LTXVideoCondition(image=picture(64))]


_ANIMATE = {
    "in_channels": 12, "latent_channels": 4, "image_dim": 8, "motion_encoder_size": 16, "motion_style_dim": 8, "motion_dim": 4,
    "motion_encoder_dim": 8, "face_encoder_hidden_dim": 8, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 1,
    "motion_encoder_channel_sizes": {str(2**i): 8 for i in range(2, 5)}, "added_kv_proj_dim": 24,
}  # fmt: skip

# By name: the registry row of the VAE, and what builds the pipeline from one.
PIPELINES: dict[str, tuple[str, Callable[[Any], Tiny]]] = {
    "ltx": ("ltx", partial(_ltx, pipeline="LTXPipeline")),
    "ltx-condition": ("ltx", lambda vae: _ltx(vae, "LTXConditionPipeline", conditions=_condition())),
    "ltx-i2v": ("ltx", lambda vae: _ltx(vae, "LTXImageToVideoPipeline", image=picture(64))),
    "ltx-0.9.5": ("ltx0.9.5", partial(_ltx, pipeline="LTXPipeline")),
    "ltx2": ("ltx2", partial(_ltx2, pipeline="LTX2Pipeline")),
    "ltx2-i2v": ("ltx2", lambda vae: _ltx2(vae, "LTX2ImageToVideoPipeline", image=picture(64), image_crf=0)),
    "hunyuan": ("hunyuan", partial(_hunyuan, pipeline="HunyuanVideoPipeline", config={})),
    "hunyuan-i2v": (
        "hunyuan",
        lambda vae: _hunyuan(
            vae, "HunyuanVideoImageToVideoPipeline", {"in_channels": 9, "image_condition_type": "latent_concat", "guidance_embeds": False},
            parts=lambda: {"image_processor": None}, image=picture(),
        ),
    ),
    "hunyuan-framepack": (
        "hunyuan",
        lambda vae: _hunyuan(
            vae, "HunyuanVideoFramepackPipeline", {"has_image_proj": True, "image_proj_dim": 16, "has_clean_x_embedder": True, "patch_size": 2},
            parts=_image_encoder, image=picture(), latent_window_size=3,
        ),
    ),
    "hunyuan-skyreels": (
        "hunyuan",
        lambda vae: _hunyuan(
            vae, "HunyuanSkyreelsImageToVideoPipeline", {"in_channels": 8, "guidance_embeds": False}, image=picture(), true_cfg_scale=1.0
        ),
    ),
    "hunyuan1.5": ("hunyuan1.5", lambda vae: _hunyuan15(vae, "HunyuanVideo15Pipeline", height=SIZE, width=SIZE)),
    "hunyuan1.5-i2v": ("hunyuan1.5", lambda vae: _hunyuan15(vae, "HunyuanVideo15ImageToVideoPipeline", _image_encoder, image=picture())),
    "cogvideox": ("cogvideox", partial(_cogvideox, pipeline="CogVideoXPipeline")),
    "cogvideox-i2v": ("cogvideox", lambda vae: _cogvideox(vae, "CogVideoXImageToVideoPipeline", 8, image=picture())),
    "cogvideox-v2v": ("cogvideox", lambda vae: _cogvideox(vae, "CogVideoXVideoToVideoPipeline", frames=None, video=_pictures(FRAMES))),
    "wan2.1": ("wan2.1", partial(_wan, pipeline="WanPipeline")),
    "wan2.2": ("wan2.2", lambda vae: _wan(vae, "WanPipeline", parts={"expand_timesteps": True})),
    "wan2.1-i2v": ("wan2.1", lambda vae: _wan(vae, "WanImageToVideoPipeline", {"in_channels": 12}, image=picture())),
    "wan2.2-i2v": ("wan2.2", lambda vae: _wan(vae, "WanImageToVideoPipeline", parts={"expand_timesteps": True}, image=picture())),
    "wan2.1-vace": (
        "wan2.1",
        lambda vae: _wan(
            vae, "WanVACEPipeline", {"vace_layers": [0], "vace_in_channels": 72}, "WanVACETransformer3DModel",
            video=_pictures(FRAMES), mask=_pictures(FRAMES), num_frames=FRAMES,
        ),
    ),
    "wan2.1-v2v": ("wan2.1", lambda vae: _wan(vae, "WanVideoToVideoPipeline", video=_pictures(FRAMES))),
    "wan2.1-animate": (
        "wan2.1",
        lambda vae: _wan(
            vae, "WanAnimatePipeline", _ANIMATE, "WanAnimateTransformer3DModel", parts=_clip(), image=picture(),
            pose_video=_pictures(13), face_video=_pictures(13, 16), segment_frame_length=9,
        ),
    ),
}  # fmt: skip


IN_MAKE_TEST = ("ltx-i2v", "ltx2", "hunyuan", "hunyuan1.5", "cogvideox-i2v", "wan2.1", "wan2.2", "wan2.1-vace")
# A family each in `make test`; the others only in `make test-all`.
SELECTED = [name if name in IN_MAKE_TEST else pytest.param(name, marks=pytest.mark.thorough) for name in PIPELINES]


def tiny_pipeline(name: str, vae: Any = None) -> Tiny:
    """The pipeline `name` around `vae`, or around the small VAE of its row."""
    row, build = PIPELINES[name]
    vae = vae if vae is not None else vae_of(row)
    torch.manual_seed(2)
    return build(vae)


@cache
def pair_of(row: str) -> tuple[Any, StudentDecoder]:
    """The small VAE of a row and a student of it."""
    vae = vae_of(row)
    return vae, student_of(row, vae)


def shown(name: str, decoded: list[torch.Tensor]) -> torch.Tensor:
    """The frames (B, T, 3, H, W) in [0, 1] that a pipeline shows of its decodes (B, 3, T, H, W) in [-1, 1]."""
    first, *rest = ((video * 0.5 + 0.5).clamp(0, 1).transpose(1, 2) for video in decoded)
    if name == "hunyuan-i2v":  # the frames of the picture
        return first[:, 4:]
    joined = torch.cat([first, *(video[:, 1:] for video in rest)], dim=1)
    return joined[:, :13] if name == "wan2.1-animate" else joined  # segments share a frame


def sequentially_offloaded(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` does, on the CPU: accelerate leaves the weights of a module on meta between its calls.

    accelerate itself fails with a CPU as the device, unless the weights that it keeps are Parameters. Siglip's attention reads
    weights of modules that it does not call, and does not work with sequential offload.
    """
    from accelerate import cpu_offload
    from torch import nn

    for part in pipe.components.values():
        if isinstance(part, nn.Module) and "Siglip" not in type(part).__name__:
            kept = {
                key: nn.Parameter(value, requires_grad=False) if value.is_floating_point() else value
                for key, value in part.state_dict().items()
            }
            cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0, state_dict=kept)
