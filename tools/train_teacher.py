"""Train a small teacher from local clips, on a CPU: of LTX-Video's class, that of the embedded pair, or of Wan's.

    python tools/train_teacher.py ltx --data ../shared/videos/train --val ../shared/videos/val --minutes 60 --out build/tiny
    python tools/train_teacher.py wan --data ../shared/videos/train --val ../shared/videos/val --minutes 360 --out build/wan

The same command goes on where it stopped (state.pt in --out). The schedule is in minutes of training, because what
matters here is what a given budget buys. --out/curve.jsonl has what was measured on --val on the way. Ends with the folder
--out/teacher (fp16) and its PSNR on --val.

Three things make it learn in hours on two cores. It starts as a linear autoencoder, the principal components of blocks of
pixels (`start_linear`): random weights take hours to learn to keep contrast. Its optimizer is Muon (AdamW's steps, of one
size in every weight, undo that start). And it sees more than the clips: photographs in motion, ffmpeg's test patterns, and
drawn shapes and plain colours.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import teacher_ltx
import teacher_wan
import torch
from matplotlib import pyplot
from teacher_clips import batch_at, load_all, made
from torch import Tensor, nn

from turbovaed_cli.machine.devices import multiplies_bf16
from turbovaed_cli.metrics import ssim_value
from turbovaed_cli.training.muon import Muon
from turbovaed_cli.video import list_videos, read_frames, to_model

TEACHERS = {"ltx": teacher_ltx, "wan": teacher_wan}
WARMUP_STEPS = 50
EMA_DECAY = 0.999
KL_WEIGHT = 1e-6
SSIM_WEIGHT = 0.05
FRAMES = 9
# (share of the budget, batch, crop): small crops see more clips, larger ones see fewer borders.
STAGES = ((0.6, 6, 64), (0.85, 3, 96), (1.0, 2, 128))
SAVE_S = 300


def main() -> None:
    options = parse()
    kind: ModuleType = TEACHERS[options.kind]
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    clips, extra = load_all(options.data, options.more), made(options.seed, options.more)
    print(f"{len(clips)} clips, {len(extra)} made from stills and patterns", flush=True)
    model = kind.build()
    state_path, curve = options.out / "state.pt", options.out / "curve.jsonl"
    if options.init is not None:
        start_from(model, options.init)
    elif not state_path.exists():
        kind.start_linear(model, clips, extra)
        note(curve, {"step": 0, "minutes": 0.0, "val": evaluate(kind, model.state_dict(), options.val)})
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
        _, size, crop = next(stage for stage in STAGES if progress <= stage[0])
        video = batch_at(clips, extra, options.seed, step, size=size, crop=crop, frames=FRAMES)
        loss = train_step(kind, model, optimizer, video, step, progress, options.lr)
        torch._foreach_lerp_(list(ema.values()), list(model.state_dict().values()), 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        step += 1
        trained_s += time.monotonic() - started
        if step % 20 == 0:
            print(json.dumps({"step": step, "minutes": round(trained_s / 60, 2), "loss": round(loss, 4)}), flush=True)
        if trained_s - last_saved_s > SAVE_S or trained_s >= budget_s:
            last_saved_s = trained_s
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema,
                "step": step,
                "trained_s": trained_s,
            }
            save(state_path, state)
            note(curve, {"step": step, "minutes": round(trained_s / 60, 1), "val": evaluate(kind, ema, options.val)})
    final = kind.build()
    final.load_state_dict(ema)
    measure_latents(kind, final, clips)
    final.half().save_pretrained(options.out / "teacher")
    rounded = evaluate(kind, final.float().state_dict(), options.val)
    note(curve, {"step": step, "minutes": round(trained_s / 60, 1), "val_fp16": rounded})
    draw(curve, options.out / "curve.svg")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=TEACHERS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument(
        "--more", type=Path, help="a folder of further videos and photographs, such as those of Debian's opencv-doc"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--init", type=Path, help="a teacher folder to start from, where names and shapes agree")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def note(curve: Path, row: dict[str, object]) -> None:
    """Print a row and add it to the curve."""
    print(json.dumps(row), flush=True)
    with curve.open("a") as file:
        file.write(json.dumps(row) + "\n")


def draw(curve: Path, path: Path) -> None:
    """Draw the PSNR on the validation clips over the minutes of training."""
    rows = [row for row in map(json.loads, curve.read_text().splitlines()) if "val" in row]
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    axes.plot([row["minutes"] for row in rows], [row["val"]["psnr"] for row in rows], marker="o", markersize=3)
    axes.set(xlabel="minutes of training", ylabel="PSNR in dB, five clips not trained on")
    axes.grid(alpha=0.3)
    figure.savefig(path)


def start_from(model: nn.Module, folder: Path) -> None:
    """Take every tensor that an earlier teacher has under the same name and shape."""
    own = model.state_dict()
    found = type(model).from_pretrained(folder).float().state_dict()
    taken = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    print(f"{len(taken)} of {len(own)} tensors from {folder}", flush=True)
    model.load_state_dict(own | taken)


def train_step(
    kind: ModuleType,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    video: Tensor,
    step: int,
    progress: float,
    peak_lr: float,
) -> float:
    rate = peak_lr * min(1, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16(torch.device("cpu"))):
        mean, log_variance = kind.encode(model, video)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step))
        decoded = kind.decode(model, mean + (log_variance / 2).exp() * noise)
    decoded, mean, log_variance = decoded.float(), mean.float(), log_variance.float()
    loss = (decoded - video).abs().mean() + 2 * (decoded - video).square().mean()
    similarity = ssim_value(decoded, video)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    optimizer.zero_grad(set_to_none=True)
    (loss + SSIM_WEIGHT * (1 - similarity) + KL_WEIGHT * kl).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def measure_latents(kind: ModuleType, model: nn.Module, clips: Sequence[np.ndarray]) -> None:
    """Keep mean and standard deviation of the latents per channel, over the first frames of every clip."""
    means = [kind.encode(model, to_model(frames[:FRAMES, :256, :256])[None])[0][0].flatten(1) for frames in clips]
    every = torch.cat(means, dim=1)  # (C, N)
    kind.set_statistics(model, every.mean(dim=1), every.std(dim=1))


def save(path: Path, state: dict[str, object]) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


@torch.no_grad()
def evaluate(kind: ModuleType, state: dict[str, Tensor], val: Path) -> dict[str, float]:
    """Mean PSNR in dB and SSIM over the first 17 frames of every validation clip at 256x256, from the posterior mean."""
    model = kind.build().eval()
    model.load_state_dict(state)
    psnr, ssim = [], []
    for path in list_videos(val):
        video = to_model(np.stack(list(read_frames(path, size=(256, 256), count=17))))[None]
        decoded = kind.decode(model, kind.encode(model, video)[0]).clamp(-1, 1)
        psnr.append(-10 * math.log10((decoded - video).square().mean().item() / 4))
        ssim.append(ssim_value(decoded, video).item())
    return {"psnr": round(sum(psnr) / len(psnr), 3), "ssim": round(sum(ssim) / len(ssim), 4)}


if __name__ == "__main__":
    main()
