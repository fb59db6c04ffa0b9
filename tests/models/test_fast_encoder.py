"""The fast form of causal encoders gives the latents of the diffusers class itself, in any pieces."""

from collections.abc import Callable
from functools import partial

import diffusers
import pytest
import torch
from torch import nn

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.models import fast_encoder as module
from turbovaed_cli.models.encoding import encoded
from turbovaed_cli.models.fast_encoder import EncoderStream, FastEncoder, fast_encoder, mean_and_std
from turbovaed_cli.models.memory import clip_bytes, encoding_bytes
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.models.tiles import Tiles

WAN = {"base_dim": 16, "z_dim": 4, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 1}
LTX = {
    "latent_channels": 8, "block_out_channels": (64, 64, 128, 128), "decoder_block_out_channels": (8, 16, 16, 16),
    "layers_per_block": (2, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1),
}  # fmt: skip
LTX_095 = {
    "latent_channels": 16, "block_out_channels": (16, 32, 64, 64, 64), "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "spatio_temporal_scaling": (True,) * 4, "layers_per_block": (1,) * 5,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"), "decoder_block_out_channels": (8, 16),
    "decoder_layers_per_block": (1, 1, 1), "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False,) * 3, "upsample_residual": (True, True), "upsample_factor": (2, 2),
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, object], tuple[int, int, int]]] = {
    "wan": ("AutoencoderKLWan", WAN, (17, 64, 48)),
    "wan with two ratios": (
        "AutoencoderKLWan", WAN | {"dim_mult": [1, 2, 4], "num_res_blocks": 2, "temperal_downsample": [False, True]}, (9, 32, 48),
    ),
    "wan residual": (
        "AutoencoderKLWan",
        WAN | {"decoder_base_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True],
               "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16},
        (17, 64, 96),
    ),
    "qwen": ("AutoencoderKLQwenImage", WAN | {"temperal_downsample": [False, True, True]}, (17, 64, 48)),
    "ltx": ("AutoencoderKLLTXVideo", LTX, (17, 64, 96)),
    "ltx 0.9.5": ("AutoencoderKLLTXVideo", LTX_095, (17, 64, 96)),
    "ltx2": (
        "AutoencoderKLLTX2Video",
        {"latent_channels": 16, "block_out_channels": (32, 64, 64, 64), "layers_per_block": (1,) * 5,
         "decoder_block_out_channels": (8, 16, 16), "decoder_layers_per_block": (1,) * 4},
        (17, 64, 96),
    ),
}  # fmt: skip


def vae_of(kind: str) -> nn.Module:
    """A small instance with random weights, factors of norms included."""
    torch.manual_seed(0)
    name, config, _ = KINDS[kind]
    vae = getattr(diffusers, name)(**config).eval()
    with torch.no_grad():
        for weight in vae.parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.squeeze().ndim <= 1 else 0))
    return vae


def video_of(kind: str, clips: int = 1) -> torch.Tensor:
    return torch.rand(clips, 3, *KINDS[kind][2], generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_whole_clips_and_pieces_equal_the_class(kind):
    vae, video = vae_of(kind), video_of(kind, clips=2)
    wanted = vae.encode(video).latent_dist
    fast = fast_encoder(vae)
    assert fast is not None and fast is fast_encoder(vae)
    scale = wanted.mean.abs().mean()
    mean, std = mean_and_std(fast.encode(video))
    assert (mean - wanted.mean).abs().max() <= 1e-4 * scale and (std - wanted.std).abs().max() <= 1e-4
    stream = EncoderStream(fast)
    frames = video.shape[2]
    made = [stream.push(piece) for piece in video.split([1, 2, 3, 0, 1, frames - 7], dim=2)]
    assert torch.cat(made, dim=2).shape == (2, 2 * wanted.mean.shape[1], *wanted.mean.shape[2:])
    assert (mean_and_std(torch.cat(made, dim=2))[0] - wanted.mean).abs().max() <= 1e-4 * scale
    with pytest.raises(ShapeError, match="only their number may differ"):
        stream.push(video[..., :32])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["wan", "ltx"])
def test_half_precision_is_as_close_as_the_class_in_it(kind):
    vae, video = vae_of(kind), video_of(kind)
    wanted = vae.encode(video).latent_dist.mean
    vae.to(torch.bfloat16)
    stock = (vae.encode(video.bfloat16()).latent_dist.mean.float() - wanted).square().mean()
    fast = fast_encoder(vae)
    assert fast is not None and fast.dtype == torch.bfloat16
    ours = (mean_and_std(fast.encode(video))[0].float() - wanted).square().mean()
    assert ours <= 2 * stock


@torch.no_grad()
def test_changed_weights_are_prepared_again_and_others_are_not_covered():
    vae, video = vae_of("ltx"), video_of("ltx")
    before = fast_encoder(vae)
    vae.encoder.conv_in.conv.weight.mul_(2)
    after = fast_encoder(vae)
    assert after is not before and after is not None
    assert (after.encode(video)[:, :8] - vae.encode(video).latent_dist.mean).abs().max() < 1e-4
    vae.enable_tiling()  # another encode: the class's own tiles
    assert fast_encoder(vae) is None
    assert fast_encoder(diffusers.AutoencoderKLLTXVideo(**LTX | {"encoder_causal": False})) is None
    assert fast_encoder(nn.Linear(1, 1)) is None


def test_teachers_use_it_on_a_cpu_unless_told_otherwise(monkeypatch):
    """In one piece, piece by piece and in tiles; with `fast` False the class itself encodes."""
    teacher = load_teacher("tiny")
    video = torch.rand(1, 3, 33, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    used: list[int] = []
    real = FastEncoder.stages
    monkeypatch.setattr(FastEncoder, "stages", lambda self: (used.append(1), real(self))[1])
    tiles = Tiles(64, 64, 32)

    def in_tiles() -> torch.Tensor:
        with teacher.in_tiles(tiles):
            return torch.cat(list(encoded(teacher, [video])), dim=2)

    ways: list[Callable[[], torch.Tensor]] = [
        lambda: teacher.encode(video).mean, lambda: torch.cat(list(encoded(teacher, [video])), dim=2), in_tiles,
    ]  # fmt: skip
    for way in ways:
        used.clear()
        teacher.fast = None
        made = way()
        assert used
        used.clear()
        teacher.fast = False
        wanted = way()
        assert (wanted - made).abs().max() < 1e-4 * wanted.abs().max()
        assert not used


def test_its_memory_is_rehearsed(monkeypatch):
    """On tensors without data, with the weights that it prepares."""
    teacher = load_teacher("tiny")
    pieces, clip = encoding_bytes(teacher, (512, 512), 8), clip_bytes(teacher, 1, 17, (256, 256))
    monkeypatch.setattr(module, "_FAMILIES", {})
    assert 0 < pieces < encoding_bytes(teacher, (512, 512), 8)
    assert 0 < clip < clip_bytes(teacher, 1, 17, (256, 256))


@torch.no_grad()
def test_a_piece_of_one_frame_at_a_time():
    kind = "wan residual"
    vae, video = vae_of(kind), video_of(kind)
    fast = FastEncoder(vae)
    push = partial(EncoderStream.push, EncoderStream(fast))
    made = torch.cat([push(video[:, :, i : i + 1]) for i in range(video.shape[2])], dim=2)
    wanted = vae.encode(video).latent_dist.mean
    assert (mean_and_std(made)[0] - wanted).abs().max() <= 1e-4 * wanted.abs().mean()
