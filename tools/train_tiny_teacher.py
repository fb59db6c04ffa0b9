"""Train the teacher of the embedded `tiny` pair: a small AutoencoderKLLTXVideo, from random weights, on local clips.

    python tools/train_tiny_teacher.py --data ../shared/videos/train --val ../shared/videos/val --minutes 60 --out build/tiny

The same command goes on where it stopped (state.pt in --out). The schedule is in minutes of training, because what
matters here is what a given budget buys. Ends with the folder --out/teacher (fp16) and its PSNR on --val.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLLTXVideo

from turbovaed_cli.video import list_videos, read_frames, to_model

CONFIG = {
    "latent_channels": 32,
    "patch_size": 4,
    "block_out_channels": (64, 128),
    "down_block_types": ("LTXVideo095DownBlock3D",),
    "layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True,),
    "downsample_type": ("spatiotemporal",),
    "decoder_block_out_channels": (128,),
    "decoder_layers_per_block": (2, 1),  # output first: two resnets behind the upsampling, one before it
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    # What decides how fast it learns is residual down- and upsampling.
    "upsample_residual": (True,),
    "upsample_factor": (2,),
    "encoder_causal": True,
    "decoder_causal": False,
}
WARMUP_STEPS = 100
EMA_DECAY = 0.999
KL_WEIGHT = 1e-5
FRAMES = 9
# (share of the budget, batch, crop): small crops see more clips, larger ones see fewer borders.
STAGES = ((0.6, 6, 64), (1.0, 3, 96))
SAMPLE_FROM = 0.5  # share of the budget from which the posterior is sampled: from the start it drowns the signal


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    clips = [load(path) for path in list_videos(options.data)]
    model = AutoencoderKLLTXVideo(**CONFIG)
    quiet_residuals(model)
    if options.init is not None:
        start_from(model, options.init)
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=1e-4)
    step, trained_s = 0, 0.0
    state_path = options.out / "state.pt"
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
        loss = train_step(model, optimizer, batch_at(clips, options.seed, step, progress), step, progress, options.lr)
        for name, value in model.state_dict().items():
            ema[name].lerp_(value, 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
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
            print(json.dumps({"step": step, "val_psnr": evaluate(ema, options.val)}), flush=True)
    final = AutoencoderKLLTXVideo(**CONFIG)
    final.load_state_dict(ema)
    measure_latents(final, clips)
    final.half().save_pretrained(options.out / "teacher")
    print(
        json.dumps(
            {
                "step": step,
                "minutes": round(trained_s / 60, 1),
                "val_psnr_fp16": evaluate(final.float().state_dict(), options.val),
            }
        )
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("build/tiny"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--init", type=Path, help="a teacher folder to start from, where names and shapes agree")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def load(path: Path) -> np.ndarray:
    """All frames at 256x256: (N, 256, 256, 3) uint8."""
    return np.stack(list(read_frames(path, size=(256, 256))))


def quiet_residuals(model: AutoencoderKLLTXVideo) -> None:
    """Start every residual branch at zero: the network begins as its shortcuts, and learns faster."""
    for name, module in model.named_modules():
        if name.endswith("conv2.conv"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def start_from(model: AutoencoderKLLTXVideo, folder: Path) -> None:
    """Take every tensor that an earlier teacher has under the same name and shape."""
    own = model.state_dict()
    found = AutoencoderKLLTXVideo.from_pretrained(folder).float().state_dict()
    taken = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    print(f"{len(taken)} of {len(own)} tensors from {folder}", flush=True)
    model.load_state_dict(own | taken)


def batch_at(clips: list[np.ndarray], seed: int, step: int, progress: float) -> torch.Tensor:
    """The batch of a step, (B, 3, FRAMES, crop, crop): random place, flips, half scale, double speed."""
    rng = random.Random(f"{seed}-{step}")  # noqa: S311 - reproducible, not secret
    _, size, crop = next(stage for stage in STAGES if progress <= stage[0])
    batch = []
    for _ in range(size):
        frames = rng.choice(clips)
        stride = 2 if rng.random() < 0.2 and len(frames) > 2 * FRAMES else 1
        scale = 2 if rng.random() < 0.25 and 2 * crop <= 256 else 1
        start = rng.randrange(len(frames) - stride * (FRAMES - 1))
        top, left = (rng.randrange(257 - crop * scale) for _ in range(2))
        piece = frames[start : start + stride * (FRAMES - 1) + 1 : stride, top : top + crop * scale, left : left + crop * scale]
        clip = to_model(np.ascontiguousarray(piece))
        if scale == 2:
            clip = torch.nn.functional.avg_pool2d(clip, 2)
        clip = clip.flip(3) if rng.random() < 0.5 else clip
        clip = clip.flip(1) if rng.random() < 0.2 else clip
        batch.append(clip)
    return torch.stack(batch)


def train_step(
    model: AutoencoderKLLTXVideo,
    optimizer: torch.optim.Optimizer,
    video: torch.Tensor,
    step: int,
    progress: float,
    peak_lr: float,
) -> float:
    rate = peak_lr * min(1, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    posterior = model.encode(video).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step))
    amount = min(1.0, max(0.0, (progress - SAMPLE_FROM) / 0.1))
    decoded = model.decode(posterior.mean + amount * posterior.std * noise).sample
    loss = (decoded - video).abs().mean() + (decoded - video).square().mean()
    kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
    optimizer.zero_grad(set_to_none=True)
    (loss + KL_WEIGHT * kl).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def measure_latents(model: AutoencoderKLLTXVideo, clips: list[np.ndarray]) -> None:
    """Set the buffers latents_mean and latents_std, which pipelines normalise with: per channel, over the first frames of every clip."""
    means = [
        model.encode(to_model(frames[:FRAMES])[None]).latent_dist.mode()[0].flatten(1) for frames in clips
    ]  # each (C, t*h*w)
    every = torch.cat(means, dim=1)
    model.latents_mean.copy_(every.mean(dim=1))
    model.latents_std.copy_(every.std(dim=1))


def save(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def evaluate(state: dict[str, torch.Tensor], val: Path) -> float:
    """Mean PSNR in dB over the first 17 frames of every validation clip at 256x256, reconstructed from the posterior mean."""
    model = AutoencoderKLLTXVideo(**CONFIG).eval()
    model.load_state_dict(state)
    scores = []
    for path in list_videos(val):
        video = to_model(np.stack(list(read_frames(path, size=(256, 256), count=17))))[None]
        decoded = model.decode(model.encode(video).latent_dist.mode()).sample.clamp(-1, 1)
        scores.append(-10 * math.log10((decoded - video).square().mean().item() / 4))
    return round(sum(scores) / len(scores), 3)


if __name__ == "__main__":
    main()
