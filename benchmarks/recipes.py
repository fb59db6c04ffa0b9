"""What each choice of a recipe is worth on the embedded teacher: equal compute, several seeds, PSNR and SSIM on clips never seen.

    turbovaed cache-latents --teacher tiny --data ../shared/videos/train --out build/latents
    turbovaed cache-latents --teacher tiny --data ../shared/videos/val --out build/val --clips-per-video 1
    python benchmarks/recipes.py --latents build/latents --val build/val --seconds 90 --seeds 0 1 2

Every variant gets the same training time: a few steps of each are timed first, and its schedule is as long as fits. What
is done is kept in --out (one JSON line a run), so the command goes on where it stopped. Prints a table of differences to `base`.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.metrics import psnr, ssim
from turbovaed_cli.models.loading import load_student
from turbovaed_cli.models.network import num_params
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.video import to_model, to_uint8

# The first stage of recipe fast, made short: a smaller rate, and an average that a hundred steps can follow.
BASE = RECIPES["fast"].with_changes(
    stages=(replace(RECIPES["fast"].stages[0], lr=2e-3, lr_end=0.02, perceptual="ssim"),),
    recipe="study", ema_decay=0.99, sample_every=0, save_every=10**9, keep_checkpoints=1,
)  # fmt: skip
# What each variant changes: fields of the settings, of the stage, or `student` (fields of its config), `pairs` (which blocks are aligned).
VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "start: plain": {"start": "plain"},
    "AdamW, lr 3e-4": {"optimizer": "adamw", "lr": 3e-4},
    "AdamW, lr 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "lr 1e-3": {"lr": 1e-3},
    "lr 4e-3": {"lr": 4e-3},
    "constant rate": {"lr_schedule": "constant"},
    "posterior mean": {"posterior": "mean"},
    "EMA 0.9": {"ema_decay": 0.9},
    "EMA 0.999": {"ema_decay": 0.999},
    "L1 alone": {"perceptual": "none"},
    "SSIM 1.0": {"perceptual_weight": 1.0},
    "features 0.1, both": {"feature_weight": 0.1},
    "features 0.01, both": {"feature_weight": 0.01},
    "features 0.1, mid": {"feature_weight": 0.1, "pairs": ("mid_block",)},
    "features 0.1, up": {"feature_weight": 0.1, "pairs": ("up_blocks.1",)},
    "teacher pixels 1.0": {"teacher_weight": 1.0},
    "adversarial 0.05": {"adversarial_weight": 0.05},
    "crops of 8 latents, no margin, batch 4": {"crop_latents": 8, "crop_margin": 0, "batch_size": 4},
    "crops of 12 latents, no margin, batch 2": {"crop_margin": 0},
    "crops of 16 latents, margin 2, batch 1": {"crop_latents": 16, "batch_size": 1},
    "whole clips, batch 1": {"crop_latents": 0, "batch_size": 1},
    "channels 64, 40, more layers": {"student": {"decoder_block_out_channels": (64, 40), "decoder_layers_per_block": (0, 0, 3)}},
    "channels 64, 32, more layers": {"student": {"decoder_block_out_channels": (64, 32), "decoder_layers_per_block": (1, 0, 2)}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=90, help="of training per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=Path("build/recipes"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "runs.jsonl"
    done = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = {(run["variant"], run["seed"]) for run in done if run["seconds_wanted"] == options.seconds}
    speed = dict(steps_per_second(options))
    for seed in options.seeds:
        for name in options.variants:
            if (name, seed) in known:
                continue
            result = {"variant": name, "seed": seed, "seconds_wanted": options.seconds, **run(name, seed, speed[name], options)}
            done.append(result)
            with record.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(json.dumps(result), flush=True)
    print(table([entry for entry in done if entry["seconds_wanted"] == options.seconds]))


def settings_of(name: str, seed: int, steps: int) -> tuple[ModelSpec, DistillSettings]:
    changes = dict(VARIANTS[name])
    spec = find_model("tiny")
    student = replace(spec.student, config=spec.student.config | changes.pop("student", {}))
    blocks = changes.pop("pairs", None)
    if blocks is not None:
        student = replace(student, pairs=tuple(pair for pair in student.pairs if pair.student_block in blocks))
    changes["warmup_steps"] = max(steps // 20, 1)
    return replace(spec, student=student), BASE.with_changes(steps=steps, seed=seed, **changes)


def steps_per_second(options: argparse.Namespace, num_steps: int = 8, rounds: int = 3) -> Iterator[tuple[str, float]]:
    """Time a few steps of every variant, in turns, so that a busy moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in options.variants}
    for _ in range(rounds):
        for name in options.variants:
            folder = options.out / "timing"
            spec, settings = settings_of(name, 0, num_steps)
            distill(spec, folder, latents=options.latents, settings=replace(settings, start="plain"))
            lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            times[name].append(statistics.median(line["seconds"] for line in lines[2:]))
            shutil.rmtree(folder)
    for name, seconds in times.items():
        yield name, 1 / min(seconds)


def run(name: str, seed: int, speed: float, options: argparse.Namespace) -> dict[str, Any]:
    folder = options.out / "run"
    shutil.rmtree(folder, ignore_errors=True)
    spec, settings = settings_of(name, seed, max(round(speed * options.seconds), 10))
    started = time.monotonic()
    distill(spec, folder, latents=options.latents, settings=settings)
    seconds = time.monotonic() - started
    return {"steps": settings.steps, "seconds": round(seconds, 1), **evaluate(folder, options.val)}


@torch.no_grad()
def evaluate(folder: Path, val: Path) -> dict[str, float]:
    """Means over the clips of a latent cache, decoded from the posterior mean and rounded to uint8."""
    student, cache = load_student(folder), LatentCache(val)
    scores: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for index in range(len(cache)):
        mean, _, video = cache.read(index)
        decoded = to_model(to_uint8(student(mean[None])[0]))
        for metric, measure in (("psnr", psnr), ("ssim", ssim)):
            scores[metric].append(float(measure(decoded, video)))
    return {"params": num_params(student), **{metric: round(statistics.fmean(values), 4) for metric, values in scores.items()}}


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table: means over seeds, and the difference to base seed by seed."""
    base = {run["seed"]: run for run in runs if run["variant"] == "base"}
    lines = ["| variant | seeds | steps | PSNR dB | against base | SSIM | against base |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(run["variant"] for run in runs):
        own = [run for run in runs if run["variant"] == name]
        cells = [name, str(len(own)), str(own[0]["steps"])]
        for metric, digits in (("psnr", 2), ("ssim", 4)):
            gains = [run[metric] - base[run["seed"]][metric] for run in own if run["seed"] in base]
            spread = f" ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})" if len(gains) > 1 else ""
            cells += [
                f"{statistics.fmean(run[metric] for run in own):.{digits}f}",
                f"{statistics.fmean(gains):+.{digits}f}{spread}" if gains and name != "base" else "",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
