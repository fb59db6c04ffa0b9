"""Train the teacher of the embedded `tiny` pair: a small AutoencoderKLLTXVideo, from random weights, on local clips.

    python tools/train_tiny_teacher.py --data ../shared/videos/train --val ../shared/videos/val --minutes 60 --out build/tiny

The same command goes on where it stopped (state.pt in --out). The schedule is in minutes of training, because what
matters here is what a given budget buys. Ends with the folder --out/teacher (fp16) and its PSNR on --val.

Three things make it learn in an hour on two cores. It starts as a linear autoencoder, the principal components of
2x8x8 blocks of pixels (`start_linear`): from random weights, norms without affine parameters take hours to learn to
keep contrast. Its optimizer is Muon (AdamW's steps, of one size in every weight, undo that start). And it sees more
than the clips: still photographs that come with Python packages, in motion, and ffmpeg's test patterns.
"""

import argparse
import json
import math
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image
from torch import Tensor
from torch.nn import functional

from turbovaed_cli.metrics import ssim_value
from turbovaed_cli.training.muon import Muon
from turbovaed_cli.video import list_videos, probe, read_frames, to_model

CONFIG = {
    "latent_channels": 32,
    "patch_size": 4,
    "block_out_channels": (64, 128),
    "down_block_types": ("LTXVideo095DownBlock3D",),
    "layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True,),
    "downsample_type": ("spatiotemporal",),
    "decoder_block_out_channels": (128,),
    "decoder_layers_per_block": (4, 2),  # output first: four resnets behind the upsampling, two before it
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    # Residual down- and upsampling learns about ten times faster, and lets the network start linear.
    "upsample_residual": (True,),
    "upsample_factor": (2,),
    "encoder_causal": True,
    "decoder_causal": False,
}
PATCH_PIXELS = 48  # 3 x 4 x 4, what the first and last convolution see per position
WARMUP_STEPS = 50
EMA_DECAY = 0.999
KL_WEIGHT = 1e-6
SSIM_WEIGHT = 0.05
FRAMES = 9
# (share of the budget, batch, crop): small crops see more clips, larger ones see fewer borders.
STAGES = ((0.6, 6, 64), (0.85, 3, 96), (1.0, 2, 128))
# Photographs inside scikit-image, scikit-learn and matplotlib wheels; ffmpeg's sources. None shows what a validation clip shows.
STILLS = (
    "skimage/data/*.png",
    "skimage/data/*.jpg",
    "sklearn/datasets/images/china.jpg",
    "matplotlib/mpl-data/sample_data/*.jpg",
)
PATTERNS = ("testsrc2", "mandelbrot", "life=mold=10:life_color=#C83232:death_color=#3264C8", "gradients=speed=0.05", "rgbtestsrc")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    clips = [load(path) for path in list_videos(options.data)]
    extra = [*moving_stills(options.seed), *patterns()]
    print(f"{len(clips)} clips, {len(extra)} made from stills and patterns", flush=True)
    model = AutoencoderKLLTXVideo(**CONFIG)
    state_path = options.out / "state.pt"
    if options.init is not None:
        start_from(model, options.init)
    elif not state_path.exists():
        start_linear(model, clips)
        print(json.dumps({"step": 0, "val": evaluate(model.state_dict(), options.val)}), flush=True)
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = Muon(model.parameters(), lr=options.lr)
    step, trained_s = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema, step, trained_s = state["ema"], state["step"], state["trained_s"]
        print(f"resumed at step {step}, {trained_s / 60:.1f} minutes", flush=True)

    budget_s = options.minutes * 60
    last_saved_s = trained_s
    while trained_s < budget_s:
        started = time.monotonic()
        progress = trained_s / budget_s
        loss = train_step(model, optimizer, batch_at(clips, extra, options.seed, step, progress), step, progress, options.lr)
        torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        step += 1
        trained_s += time.monotonic() - started
        if step % 50 == 0:
            print(json.dumps({"step": step, "minutes": round(trained_s / 60, 2), "loss": round(loss, 4)}), flush=True)
        if trained_s - last_saved_s > 300 or trained_s >= budget_s:
            last_saved_s = trained_s
            save(
                state_path,
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "ema": ema,
                    "step": step,
                    "trained_s": trained_s,
                },
            )
            print(json.dumps({"step": step, "val": evaluate(ema, options.val)}), flush=True)
    final = AutoencoderKLLTXVideo(**CONFIG)
    final.load_state_dict(ema)
    measure_latents(final, clips)
    final.half().save_pretrained(options.out / "teacher")
    figures = {"step": step, "minutes": round(trained_s / 60, 1), "val_fp16": evaluate(final.float().state_dict(), options.val)}
    print(json.dumps(figures), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--init", type=Path, help="a teacher folder to start from, where names and shapes agree")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def load(path: Path) -> np.ndarray:
    """All frames, the short side 256: (N, H, W, 3) uint8."""
    info = probe(path)
    scale = 256 / min(info.height, info.width)
    size = tuple(max(256, round(side * scale)) for side in (info.height, info.width))
    return np.stack(list(read_frames(path, size=size)))


def moving_stills(seed: int, num_frames: int = 33) -> Iterator[np.ndarray]:
    """Photographs from installed packages, each panned, zoomed and turned: (num_frames, 256, 256, 3) uint8."""
    rng = random.Random(f"stills/{seed}")
    packages = Path(np.__file__).parent.parent
    for pattern in STILLS:
        for path in sorted(packages.glob(pattern)):
            if "coffee" in path.name:  # a validation clip shows one
                continue
            image = Image.open(path).convert("RGB")
            if min(image.size) < 256:
                continue
            for _ in range(2):
                yield _pan(image, rng, num_frames)


def _pan(image: Image.Image, rng: random.Random, num_frames: int) -> np.ndarray:
    side = rng.uniform(0.35, 0.8) * min(image.size)
    begin, end = ([rng.uniform(side / 2, length - side / 2) for length in image.size] for _ in range(2))
    zoom, turn = rng.uniform(0.8, 1.25), rng.uniform(-0.3, 0.3)
    frames = []
    for i in range(num_frames):
        at = i / (num_frames - 1)
        scale = side / 256 * zoom**at
        x, y = (b + (e - b) * at * 0.4 for b, e in zip(begin, end, strict=True))
        cos, sin = math.cos(turn * at) * scale, math.sin(turn * at) * scale
        matrix = (cos, -sin, x - 128 * (cos - sin), sin, cos, y - 128 * (sin + cos))
        frames.append(np.asarray(image.transform((256, 256), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)))
    return np.stack(frames)


def patterns(num_frames: int = 33) -> Iterator[np.ndarray]:
    """Ffmpeg's own test sources: (num_frames, 256, 256, 3) uint8."""
    for source in PATTERNS:
        joint = ":" if "=" in source else "="
        arguments = ["-f", "lavfi", "-i", f"{source}{joint}size=256x256:rate=24", "-frames:v", str(num_frames)]
        child = subprocess.run(
            [get_ffmpeg_exe(), "-v", "error", *arguments, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
            capture_output=True,
            check=True,
        )
        yield np.frombuffer(child.stdout, np.uint8).reshape(-1, 256, 256, 3)


def start_from(model: AutoencoderKLLTXVideo, folder: Path) -> None:
    """Take every tensor that an earlier teacher has under the same name and shape."""
    own = model.state_dict()
    found = AutoencoderKLLTXVideo.from_pretrained(folder).float().state_dict()
    taken = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    print(f"{len(taken)} of {len(own)} tensors from {folder}", flush=True)
    model.load_state_dict(own | taken)


def fold_patches(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, 48, T, H/4, W/4), in the channel order of LTX's patches."""
    batch, channels, frames, height, width = video.shape
    x = video.reshape(batch, channels, frames, 1, height // 4, 4, width // 4, 4)
    return x.permute(0, 1, 3, 7, 5, 2, 4, 6).flatten(1, 4)


def fold_blocks(patches: Tensor) -> Tensor:
    """(B, C, T, h, w) -> (B, 8C, (T + 1) / 2, h/2, w/2), as LTX's downsampler does, which repeats the first frame."""
    x = torch.cat([patches[:, :, :1], patches], dim=2)
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (as columns) and eigenvalues of the second moment of (N, C), the largest first."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors.flip(1), values.flip(0)


def rows_of(x: Tensor, step: int = 1) -> Tensor:
    """(B, C, ...) -> (N, C), every `step`-th position."""
    return x.movedim(1, -1).flatten(0, -2)[::step]


def solve(features: Tensor, targets: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Weights (out, in) and bias of the least squares map from (N, in) to (N, out)."""
    x = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    found = torch.linalg.solve(x.T @ x + ridge * len(x) * torch.eye(x.shape[1]), x.T @ targets)
    return found[:-1].T, found[-1]


@torch.no_grad()
def start_linear(model: AutoencoderKLLTXVideo, clips: list[np.ndarray]) -> None:
    """Set the network to a linear autoencoder: 32 principal components of blocks of 2x8x8 pixels, variance one.

    Residual branches start at zero. A norm without affine parameters divides contrast away, so some channels get a
    constant that outweighs the signal; the decoder carries every component twice, as +a and -a, because
    SiLU(a) - SiLU(-a) = a. What stays not linear is fitted by least squares in the two last convolutions.
    """
    for name, module in model.named_modules():
        if "resnets" in name and name.endswith("conv2.conv"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    videos = [to_model(clip[i : i + FRAMES, :256, :256])[None] for clip in clips for i in range(0, len(clip) - FRAMES, 40)]
    patches = [fold_patches(video) for video in videos]
    patch_basis, _ = principal(torch.cat([rows_of(x, 7) for x in patches]))  # (48, 48)
    block_basis, variances = principal(torch.cat([rows_of(fold_blocks(x), 2) for x in patches]))  # (384, 384)
    num_latents = model.config.latent_channels
    analysis = block_basis[:, :num_latents] / variances[:num_latents].sqrt()  # (384, 32)
    synthesis = (block_basis[:, :num_latents] * variances[:num_latents].sqrt()).T  # (32, 384)
    _start_encoder(model.encoder, patches[::2], patch_basis, analysis)
    _start_decoder(model, videos[::2], patches[::2], patch_basis, synthesis)


def _start_encoder(encoder: torch.nn.Module, patches: list[Tensor], patch_basis: Tensor, analysis: Tensor) -> None:
    first = encoder.conv_in.conv
    first.weight.zero_()
    first.bias.zero_()
    first.weight[:PATCH_PIXELS, :, -1, 1, 1] = torch.eye(PATCH_PIXELS)  # causal: the last tap is the present
    first.weight[PATCH_PIXELS:].normal_(std=0.02)
    down = encoder.down_blocks[0].downsamplers[0].conv.conv
    num_components = 13  # of 16 channels per position; the others are constant
    down.weight.zero_()
    down.weight[:num_components, :PATCH_PIXELS, -1, 1, 1] = 2 * patch_basis[:, :num_components].T
    down.bias[:num_components] = 4.0
    down.bias[num_components:] = 10.0
    features, targets = [], []
    for x in patches:
        hidden = encoder.mid_block(encoder.down_blocks[0](encoder.conv_in(x)))
        features.append(functional.silu(encoder.norm_out(hidden.movedim(1, -1))).flatten(0, -2))
        targets.append(rows_of(fold_blocks(x)) @ analysis)
    last, num_latents = encoder.conv_out.conv, analysis.shape[1]
    last.weight.zero_()
    last.weight[:num_latents, :, -1, 1, 1], last.bias[:num_latents] = solve(torch.cat(features), torch.cat(targets), 1e-6)
    last.bias[num_latents] = -7.0  # the log variance that all latents share


def _start_decoder(
    model: AutoencoderKLLTXVideo, videos: list[Tensor], patches: list[Tensor], patch_basis: Tensor, synthesis: Tensor
) -> None:
    decoder, num_latents, num_components, channels = model.decoder, len(synthesis), 24, 64
    first = decoder.conv_in.conv
    first.weight.mul_(0.05)
    first.bias.zero_()
    first.weight[:num_latents] = 0
    first.weight[:num_latents, :, 1, 1, 1] = torch.eye(num_latents)
    up = decoder.up_blocks[0].upsamplers[0].conv.conv
    wanted = torch.zeros(up.weight.shape[1], channels, 8)  # from channel, to (channel, place among 2x2x2)
    components = torch.einsum("lcp,ck->lkp", synthesis.unflatten(1, (PATCH_PIXELS, 8)), patch_basis[:, :num_components])
    wanted[:num_latents, :num_components] = components
    wanted[:num_latents, num_components : 2 * num_components] = -components
    shortcut = torch.zeros_like(wanted)  # the upsampler's residual copies channel 8c + p to (16r + c, p)
    num_copied = up.weight.shape[1] // 8
    for channel in range(channels):
        for place in range(8):
            shortcut[channel % num_copied * 8 + place, channel, place] = 1
    up.weight.mul_(0.05)
    up.weight[:, :num_latents] = 0
    up.weight[:, :, 1, 1, 1] = (wanted - shortcut).flatten(1).T
    constants = torch.zeros(channels, 8)
    constants[2 * num_components :] = 3.0
    up.bias.copy_(constants.flatten())
    features, targets = [], []
    for video, x in zip(videos, patches, strict=True):
        hidden = decoder.mid_block(decoder.conv_in(model.encode(video).latent_dist.mean), None)
        hidden = decoder.up_blocks[0](hidden, None)
        features.append(functional.silu(decoder.norm_out(hidden.movedim(1, -1))).flatten(0, -2)[::5])
        targets.append(rows_of(x, 5))
    last = decoder.conv_out.conv
    last.weight.zero_()
    last.weight[:, :, 1, 1, 1], bias = solve(torch.cat(features), torch.cat(targets), 1e-5)
    last.bias.copy_(bias)


def batch_at(clips: list[np.ndarray], extra: list[np.ndarray], seed: int, step: int, progress: float) -> Tensor:
    """The batch of a step, (B, 3, FRAMES, crop, crop): random place, flips, half scale, double speed, both directions of time."""
    rng = random.Random(f"{seed}-{step}")
    _, size, crop = next(stage for stage in STAGES if progress <= stage[0])
    batch = []
    for _ in range(size):
        frames = rng.choice(extra if rng.random() < 0.2 else clips)
        stride = 2 if rng.random() < 0.2 and len(frames) > 2 * FRAMES else 1
        scale = 2 if rng.random() < 0.25 and 2 * crop <= 256 else 1
        start = rng.randrange(len(frames) - stride * (FRAMES - 1))
        top, left = (rng.randrange(side + 1 - crop * scale) for side in frames.shape[1:3])
        piece = frames[start : start + stride * (FRAMES - 1) + 1 : stride, top : top + crop * scale, left : left + crop * scale]
        clip = to_model(np.ascontiguousarray(piece))
        if scale == 2:
            clip = functional.avg_pool2d(clip, 2)
        for axis, share in ((3, 0.5), (2, 0.2), (1, 0.2)):
            clip = clip.flip(axis) if rng.random() < share else clip
        batch.append(clip)
    return torch.stack(batch)


def train_step(
    model: AutoencoderKLLTXVideo,
    optimizer: torch.optim.Optimizer,
    video: Tensor,
    step: int,
    progress: float,
    peak_lr: float,
) -> float:
    rate = peak_lr * min(1, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(video).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
    decoded, mean, logvar = decoded.float(), posterior.mean.float(), posterior.logvar.float()
    loss = (decoded - video).abs().mean() + 2 * (decoded - video).square().mean()
    similarity = ssim_value(decoded, video)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    optimizer.zero_grad(set_to_none=True)
    (loss + SSIM_WEIGHT * (1 - similarity) + KL_WEIGHT * kl).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def measure_latents(model: AutoencoderKLLTXVideo, clips: list[np.ndarray]) -> None:
    """Set the buffers latents_mean and latents_std, which pipelines normalise with: per channel, over the first frames of every clip."""
    means = [
        model.encode(to_model(frames[:FRAMES, :256, :256])[None]).latent_dist.mode()[0].flatten(1) for frames in clips
    ]  # each (C, t*h*w)
    every = torch.cat(means, dim=1)
    model.latents_mean.copy_(every.mean(dim=1))
    model.latents_std.copy_(every.std(dim=1))


def save(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def evaluate(state: dict[str, Tensor], val: Path) -> dict[str, float]:
    """Mean PSNR in dB and SSIM over the first 17 frames of every validation clip at 256x256, from the posterior mean."""
    model = AutoencoderKLLTXVideo(**CONFIG).eval()
    model.load_state_dict(state)
    psnr, ssim = [], []
    for path in list_videos(val):
        video = to_model(np.stack(list(read_frames(path, size=(256, 256), count=17))))[None]
        decoded = model.decode(model.encode(video).latent_dist.mode()).sample.clamp(-1, 1)
        psnr.append(-10 * math.log10((decoded - video).square().mean().item() / 4))
        ssim.append(ssim_value(decoded, video).item())
    return {"psnr": round(sum(psnr) / len(psnr), 3), "ssim": round(sum(ssim) / len(ssim), 4)}


if __name__ == "__main__":
    main()
