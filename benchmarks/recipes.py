"""What each part of a recipe is worth, on one of the two small teachers: equal time and equal steps, on clips never seen.

    turbovaed cache-latents --teacher tiny --data train --out build/tiny
    turbovaed cache-latents --teacher tiny --data train --out build/tiny-mixed --augment 0.4 --synthetic 0.4
    turbovaed cache-latents --teacher tiny --data val --out build/tiny-val --clips-per-video 1
    python benchmarks/recipes.py --teacher tiny --latents build/tiny --mixed build/tiny-mixed --val build/tiny-val --minutes 5

and the same with `--teacher benchmarks/teachers/wan-48 --student lite`. An arm differs from `base` in one thing. The start and
some steps of every arm are timed first, the steps in turns. Then each arm trains for the steps that `base` makes in --minutes
(equal steps), and, if its start or its steps take longer or shorter, once more for as many as fit in that time (equal time).
Each run is scored on its last two checkpoints: a ranking that both share is one that lasts. What is done is kept in --out, a
JSON line a run, so the command goes on where it stopped. Prints a table of differences to `base`.

    python benchmarks/recipes.py together benchmarks/studies/recipes-tiny benchmarks/studies/recipes-wan-48

prints the table of each record, and one of all.
"""

import argparse
import json
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from turbovaed_cli.evaluation.testcard.patterns import patterns_for
from turbovaed_cli.files.tensors import load_strictly
from turbovaed_cli.latents.cache import LatentCache
from turbovaed_cli.metrics import flicker, grid, load_st_lpips, psnr, ssim
from turbovaed_cli.metrics.features import mean_distances
from turbovaed_cli.models.decoder import Decoder
from turbovaed_cli.models.decoders import FAMILIES, load_decoder
from turbovaed_cli.models.decoding import num_params_of
from turbovaed_cli.models.teacher import load_teacher
from turbovaed_cli.registry.find import find_model
from turbovaed_cli.registry.members import member_of
from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.settings import DistillSettings
from turbovaed_cli.stage import Stage
from turbovaed_cli.training.distill import distill
from turbovaed_cli.video import to_model, to_uint8

BASE = Stage(
    "crops", accumulation=1, batch_size=2, crop_latents=12, crop_margin=2, lr=2e-3, lr_schedule="cosine", lr_end=0.02,
    perceptual="ssim", perceptual_weight=0.1, feature_weight=0.0,
)  # fmt: skip
# What each arm changes: fields of the settings or the stage; `then`: (share of the steps, changes in a stage of its own at the
# end); `init`, `mixed`, `student`: what distill starts from, the cache it reads, and a member of the family or "taehv".
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "AdamW, lr 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "plain start": {"start": "plain"},
    "pruned start": {"init": "prune:0.5", "start": "plain"},
    "feature alignment 0.1": {"feature_weight": 0.1},
    "feature alignment 0.1, stopped after 40 %": {"feature_weight": 0.1, "then": (0.6, {"feature_weight": 0.0})},
    "L1 alone": {"perceptual": "none"},
    "ST-LPIPS 0.1 in place of SSIM": {"perceptual": "st-lpips"},
    "adversarial 0.05 in the last 30 %": {"then": (0.3, {"adversarial_weight": 0.05})},
    "whole clips in the last 30 %": {"then": (0.3, {"crop_latents": 0, "batch_size": 1})},
    "other colours, drawn clips": {"mixed": True},
    "lattice loss 0.5": {"lattice_weight": 0.5},
}
_SAME = 0.08  # step times that differ by less count as equal: one run is both of equal time and of equal steps
SCORES = {"psnr": 2, "ssim": 4, "st_lpips": 4, "flicker": 3, "grid": 3, "card_psnr": 2}  # and their decimal places


def main() -> None:
    if sys.argv[1:2] == ["together"]:
        folders = [Path(folder) for folder in sys.argv[2:]]
        for folder in folders:
            print(f"{table_of(runs_of(folder))}\n")
        print(together(folders))
        return
    parser = parser_of(__doc__, ARMS, Path("build/recipes"), minutes=5)
    parser.add_argument("--student", default="full", help="a member of the teacher's family")
    study = Study(parser.parse_args(), ARMS)
    study.make()
    print(table_of(study.done))


def parser_of(text: str | None, arms: Mapping[str, object], out: Path, *, minutes: float) -> argparse.ArgumentParser:
    """Return the options of a study."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="tiny")
    parser.add_argument("--latents", type=Path, required=True)
    parser.add_argument("--mixed", type=Path, required=True, help="a cache with other colours and drawn clips")
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=minutes, help="of training per run, its start included")
    parser.add_argument("--turns", type=int, default=3, help="in which the steps of all arms are timed")
    parser.add_argument(
        "--timed",
        type=int,
        default=10,
        help="steps of each arm that are timed in a turn; some of each stage are needed, so 7 at least",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=list(arms))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=out)
    return parser


class Study:
    """The runs of one teacher: what is done, and what each arm's step takes."""

    def __init__(
        self, options: argparse.Namespace, arms: Mapping[str, Mapping[str, Any]], *, in_equal_steps: bool = True
    ) -> None:
        self.options, self.arms, self.in_equal_steps = options, arms, in_equal_steps
        self.base = next(iter(arms))
        torch.set_num_threads(options.threads)
        options.out.mkdir(parents=True, exist_ok=True)
        self.spec = find_model(options.teacher)
        self.record = options.out / "runs.jsonl"
        self.done = runs_of(options.out) if self.record.exists() else []
        self.scorer = Scorer(options, self.spec)
        times = options.out / "seconds.json"
        if not times.exists():
            times.write_text(json.dumps(self._timed(options.timed)))
        self.seconds: dict[str, dict[str, float]] = json.loads(times.read_text())  # by arm: of the start, of a step

    def make(self) -> None:
        """Make the runs that are missing, seed by seed, and print the record of each."""
        for seed in self.options.seeds:
            for name in self.options.arms:
                for result in self.results_of(name, seed):
                    print(json.dumps(result), flush=True)

    def results_of(self, name: str, seed: int) -> Iterator[dict[str, Any]]:
        """Make the runs of one arm that are missing, of equal steps and of equal time, and yield their records."""
        of_base, of_arm = (
            (self.options.minutes * 60 - self.seconds[arm]["start"]) / self.seconds[arm]["step"] for arm in (self.base, name)
        )
        equal = next(
            (run["steps"] for run in self.done if run["arm"] == self.base), round(of_base)
        )  # its first run is the measure
        fitting = round(equal * of_arm / of_base)
        if not self.in_equal_steps:
            lengths = {"time": fitting}
        else:
            lengths = {"steps": equal} if abs(fitting / equal - 1) < _SAME else {"steps": equal, "time": fitting}
        lengths = {what: steps for what, steps in lengths.items() if steps > 0}  # a start may take all of the time
        for what, steps in lengths.items():
            if any((run["arm"], run["seed"], run["equal"]) == (name, seed, what) for run in self.done):
                continue
            scores = self._run(name, seed, steps)
            result = {"arm": name, "seed": seed, "equal": what, "steps": steps, **scores}
            self.done.append(result)
            with self.record.open("a") as file:
                file.write(json.dumps(result) + "\n")
            yield result

    def _job(self, name: str, seed: int, steps: int, *, every: int) -> tuple[ModelSpec, dict[str, Any]]:
        changes = dict(self.arms[name])
        share, later = changes.pop("then", (0.0, {}))
        mixed, init = changes.pop("mixed", False), changes.pop("init", None)
        student = changes.pop("student", None) or self.options.student
        of_stage = {key: changes.pop(key) for key in list(changes) if hasattr(BASE, key)}
        stage = replace(BASE, warmup_steps=max(steps // 20, 1), **of_stage)
        stages = [replace(stage, steps=max(round(steps * (1 - share)), 1))]
        if share:  # the cosine goes on where it was: from the middle of the rate to its end
            stages = [
                replace(stages[0], lr_end=0.3),
                replace(stage, **later, name="then", steps=steps - stages[0].steps, lr=0.3 * stage.lr, lr_end=0.06),
            ]
        settings = DistillSettings(
            tuple(stages), recipe="study", optimizer=changes.pop("optimizer", "muon"), start=changes.pop("start", "fitted"),
            ema_decay=0.99, dtype="fp32", seed=seed, sample_every=0, save_every=every, keep_checkpoints=2,
        )  # fmt: skip
        job = {"latents": self.options.mixed if mixed else self.options.latents, "settings": settings, "init": init}
        if student in FAMILIES:
            return self.spec, {**job, "student_config": {"family": student}}
        if init:  # the student is then cut from the teacher
            return self.spec, job
        return member_of(self.spec, student), job

    def _timed(self, num_steps: int) -> dict[str, dict[str, float]]:
        """Time every kind of start once, and a few steps of every arm, in turns; of stages by their shares.

        Seconds are those of a core of its own: what else runs on the machine takes some of the time, and is left out.
        """
        starts: dict[str, float] = {}
        by_kind: dict[tuple[object, object], float] = {}
        steps: dict[str, list[float]] = {}
        for _ in range(self.options.turns):
            for name in self.options.arms:
                folder = self.options.out / "timing"
                shutil.rmtree(folder, ignore_errors=True)
                spec, job = self._job(name, 0, num_steps, every=10**6)
                kind = job["settings"].start, job["init"]
                if kind in by_kind and not job["init"]:
                    job["settings"] = replace(job["settings"], start="plain")
                began, used = time.monotonic(), time.process_time()
                distill(spec, folder, **job)
                whole, used = time.monotonic() - began, time.process_time() - used
                share = used / whole / self.options.threads  # of the cores
                lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
                starts[name] = by_kind.setdefault(kind, share * (whole - sum(line["seconds"] for line in lines)))
                stages = job["settings"].stages
                first = stages[0].steps
                parts = ((stages[0], lines[1:first]), (stages[-1], lines[first + 1 :]))  # without the first step of each
                timed = [
                    (stage.steps, share * statistics.median(line["seconds"] for line in part)) for stage, part in parts if part
                ]
                steps.setdefault(name, []).append(sum(n * s for n, s in timed) / sum(n for n, _ in timed))
        return {name: {"start": starts[name], "step": min(steps[name])} for name in starts}

    def _run(self, name: str, seed: int, steps: int) -> dict[str, Any]:
        """Train, going on after an interruption, and score the averages of the last two checkpoints."""
        folder = self.folder(name, seed, steps)
        every = max(steps // 4, 1)
        steps = every * 4
        spec, job = self._job(name, seed, steps, every=every)
        started = time.monotonic()
        distill(spec, folder, **job)
        seconds = time.monotonic() - started
        student = load_decoder(folder)
        last, before = self.scorer.scores(student), self._before(folder, student, steps - every)
        shutil.rmtree(folder / "checkpoints")
        return {"seconds": round(seconds, 1), "params": num_params_of(student), "last": last, "before": before}

    def folder(self, name: str, seed: int, steps: int) -> Path:
        """Return the run folder of an arm."""
        return self.options.out / f"run-{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}-{steps}"

    def _before(self, folder: Path, student: Decoder, step: int) -> dict[str, float]:
        weights = folder / "checkpoints" / f"step_{step:07d}" / "ema.safetensors"
        load_strictly(student, load_file(weights), weights)
        return self.scorer.scores(student)


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a study."""
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def table_of(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table: means over seeds of the last checkpoint, and the differences to base seed by seed."""
    base = {(run["seed"], run["equal"]): run for run in runs if run["arm"] == "base"}
    lines = [f"| arm | equal | seeds | steps | {' | '.join(SCORES)} |", "|---|---|---|---|" + "---|" * len(SCORES)]
    for name, what in dict.fromkeys((run["arm"], run["equal"]) for run in runs):
        own = [run for run in runs if (run["arm"], run["equal"]) == (name, what)]
        cells = [name, what, str(len(own)), str(own[0]["steps"])]
        for score, digits in SCORES.items():
            gains = [
                run["last"][score] - base[run["seed"], "steps"]["last"][score]
                for run in own
                if (run["seed"], "steps") in base and run["arm"] != "base"
            ]
            spread = f" ({min(gains):+.{digits}f} to {max(gains):+.{digits}f})" if len(gains) > 1 else ""
            mean = statistics.fmean(run["last"][score] for run in own)
            cells.append(f"{mean:.{digits}f}" + (f", {statistics.fmean(gains):+.{digits}f}{spread}" if gains else ""))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


# By how much a mean has to be better than that of base to count as a gain.
GAINS = {"psnr": (0.1, "+.2f"), "st_lpips": (-0.002, "+.3f"), "card_psnr": (0.1, "+.2f")}


def together(folders: Sequence[Path]) -> str:
    """Return a Markdown table of studies: each arm's differences to base in PSNR, ST-LPIPS and PSNR of the card, and on how many it gains in equal time."""
    names = [folder.name.removeprefix("recipes-") for folder in folders]
    studies = [gains_of(runs_of(folder)) for folder in folders]
    columns = [f"{name}, equal {what}" for name in names for what in ("steps", "time")]
    lines = [f"| arm | {' | '.join(columns)} | PSNR | ST-LPIPS | card |", "|---|" + "---|" * (len(columns) + len(GAINS))]
    for arm in dict.fromkeys(arm for study in studies for arm in study):
        found = [study.get(arm, {}) for study in studies]
        cells = [cell_of(one.get(what)) for one in found for what in ("steps", "time")]
        in_time = [one["time"] for one in found if "time" in one]
        for score, (least, _) in GAINS.items():
            better = sum(one[score] / least >= 1 for one in in_time)
            cells.append(
                {0: "none", len(folders): "both" if len(folders) == 2 else "all"}.get(better, f"{better} of {len(in_time)}")
            )
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gains_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return, by arm and "steps" or "time", the mean difference to base over the seeds of both, for each of GAINS."""
    base = {run["seed"]: run["last"] for run in runs if run["arm"] == "base"}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run in runs:
        if run["arm"] == "base" or run["seed"] not in base or run["equal"] in found.get(run["arm"], {}):
            continue
        alike = [one for one in runs if (one["arm"], one["equal"]) == (run["arm"], run["equal"]) and one["seed"] in base]
        found.setdefault(run["arm"], {})[run["equal"]] = {
            score: statistics.fmean(one["last"][score] - base[one["seed"]][score] for one in alike) for score in GAINS
        }
    for by_measure in found.values():  # one run is both if its steps take as long as those of base
        by_measure.setdefault("time", by_measure["steps"])
    return found


def cell_of(gains: Mapping[str, float] | None) -> str:
    return ", ".join(f"{gains[score]:{form}}" for score, (_, form) in GAINS.items()) if gains else ""


class Scorer:
    """Scores a student on the clips of a cache, and on the test card, whose latents are encoded once."""

    def __init__(self, options: argparse.Namespace, spec: ModelSpec) -> None:
        cache = LatentCache(options.val)
        self.clips = [(mean, video) for mean, _, video in map(cache.read, range(len(cache)))]
        self.st_lpips = load_st_lpips("alex")
        file = options.out / "card.pt"
        if not file.exists():
            torch.save(list(self._card(spec)), file)
        self.card: list[tuple[Tensor, Tensor]] = torch.load(file)

    def _card(self, spec: ModelSpec) -> Iterator[tuple[Tensor, Tensor]]:
        teacher = load_teacher(spec)
        for clip in patterns_for(spec.teacher, 9, (128, 128)):
            video = to_model(clip.draw())
            yield teacher.encode(video[None]).mean[0], video

    @torch.inference_mode()
    def scores(self, student: Decoder) -> dict[str, float]:
        """Return the means of SCORES, of decodes of the posterior mean rounded to 8 bits."""
        found: dict[str, list[float]] = {name: [] for name in SCORES}
        for mean, video in self.clips:
            decoded = decode(student, mean)
            found["st_lpips"] += mean_distances(self.st_lpips, [decoded], video)
            for name, measure in (("psnr", psnr), ("ssim", ssim), ("flicker", flicker), ("grid", grid)):
                found[name].append(float(measure(decoded, video)))
        found["card_psnr"] = [float(psnr(decode(student, mean), video)) for mean, video in self.card]
        return {name: round(statistics.fmean(values), 5) for name, values in found.items()}


def decode(student: Decoder, mean: Tensor) -> Tensor:
    """Return the video (3, T, H, W) of latents (C, t, h, w) as it is written: clamped, and rounded to 8 bits."""
    return to_model(to_uint8(student.decode(mean[None]).sample[0]))


if __name__ == "__main__":
    main()
