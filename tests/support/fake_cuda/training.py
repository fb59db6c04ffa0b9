"""Whole optimizer steps of the registry's full-size pairs on the fake device."""

from dataclasses import replace
from functools import partial
from typing import Any

from fake_cuda.device import Meter, device, metered
from fake_cuda.memory import BOUND_GB, PAGE, clips_of, peaks_of, recipe_of, rows_of
from fake_cuda.networks import batches, lpips, trainer_of
from turbovaed_cli.registry.rows import DEFAULT_MODEL, MODELS
from turbovaed_cli.settings import DistillSettings, Stage
from turbovaed_cli.training.losses import PerceptualLoss
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.trainer import Trainer

STAGE = Stage("only", steps=100, batch_size=1, accumulation=1, perceptual="ssim", feature_weight=0.0)
EVERYTHING = replace(STAGE, perceptual="lpips", feature_weight=1.0, teacher_weight=1.0, adversarial_weight=0.05)


def settings(stage: Stage, dtype: str, optimizer: str = "muon") -> DistillSettings:
    return DistillSettings((stage,), dtype=dtype, optimizer=optimizer, start="fitted")


def learns(model: str, chosen: DistillSettings, *, cached: bool = False) -> dict[str, Any]:
    """Make one optimizer step, and check that all it uses and all it leaves is on the device."""
    with metered() as meter:
        return step_of(trainer_of(model, chosen, cached=cached), meter)


def step_of(trainer: Trainer, meter: Meter) -> dict[str, Any]:
    taken = batches(trainer)
    ready = [next(taken) for _ in range(trainer.settings.stages[0].accumulation)]
    before = meter.num_ops
    with meter.nothing_on_the_cpu():
        losses = trainer.learn(iter(ready))
    check_places(trainer)
    assert losses.keys() >= {"loss", "l1", "grad_norm", "lr"} and trainer.state.step == 1
    return {"peak_gb": meter.peak_gb, "num_ops": meter.num_ops - before, "losses": sorted(losses)}


def check_places(trainer: Trainer) -> None:
    """Weights, gradients, average and optimizer state are on the device; but for AdamW's count of steps, which is not."""
    check_places_of_weights(trainer)
    for name, parameter in trainer.state.named_parameters.items():
        assert parameter.grad is not None and parameter.grad.device.type == device().type, name


def check_places_of_weights(trainer: Trainer) -> None:
    for piece, table in trainer.state.tables().items():
        for name, value in table.items():
            if piece not in ("step", "scaler") and not name.endswith("|step"):
                assert value.device.type == device().type, f"{name} of {piece} was left on the {value.device}"


def default_run(model: str, *, start: bool) -> dict[str, Any]:
    """What a run without --recipe does, in memory that a card of 24 GB has: its largest stage, its sample and its save."""
    recipe, page = recipe_of(model), PAGE.read_text(encoding="utf-8")
    stages = clips_of(page, model, recipe)
    largest = max(stages, key=lambda stage: rows_of(page)[model, recipe, stage])  # the others take less by the page, and a minute
    fitted = stages if RECIPES[recipe].fit_batch else {}
    found = list(peaks_of(model, recipe, start=start, clips_of=fitted, only=largest))
    for peak in found:
        check_peak(f"{peak.part} of {model}", peak.gb)
    return {"peaks_gb": {peak.part: peak.gb for peak in found}}


def check_peak(what: str, gb: float, bound: float = BOUND_GB) -> None:
    assert gb < bound, f"{what} holds {gb:.2f} GB at once, {bound} at most were promised"


# --- controls: each must fail, and for this reason ----------------------------------------------------------------


def a_network_on_the_cpu() -> None:
    with metered() as meter:
        trainer = trainer_of("tiny", settings(STAGE, "fp32"))
        network = lpips()  # and never sent over
        trainer.perceptual = {"ssim": PerceptualLoss(lambda a, b: network(a[:, :, 0], b[:, :, 0]).mean(), 10**9)}
        step_of(trainer, meter)


def an_average_on_the_cpu() -> None:
    with metered():
        trainer = trainer_of("tiny", settings(STAGE, "fp32"))
        trainer.state.ema = {name: value.cpu() for name, value in trainer.state.ema.items()}
        check_places_of_weights(trainer)


def work_on_the_cpu() -> None:
    with metered() as meter:
        trainer = trainer_of("tiny", settings(STAGE, "fp32"))
        plain = trainer.latents_of
        trainer.latents_of = lambda batch: plain(batch).cpu().mul(1.0).to(device())
        step_of(trainer, meter)


def a_peak_above_its_bound() -> None:
    check_peak("a step of tiny", learns("tiny", settings(STAGE, "bf16"))["peak_gb"], bound=0.01)


CONTROLS = {
    "a network on the CPU": (a_network_on_the_cpu, "found at least two devices, cuda:0 and cpu"),
    "an average on the CPU": (an_average_on_the_cpu, "of ema was left on the cpu"),
    "work on the CPU": (work_on_the_cpu, "on the cpu within a step"),
    "a peak above its bound": (a_peak_above_its_bound, "0.01 at most were promised"),
}
PAIR = replace(STAGE, batch_size=2)
DEFAULT_RUNS = {f"default run of {model}": model for model in MODELS}
CASES = {
    "ltx bf16 ssim": partial(learns, "ltx", settings(PAIR, "bf16")),
    "ltx bf16 ssim cached": partial(learns, "ltx", settings(PAIR, "bf16"), cached=True),
    "ltx bf16 lpips": partial(learns, "ltx", settings(replace(PAIR, perceptual="lpips"), "bf16")),
    "ltx fp16 everything checkpointed adamw": partial(
        learns, "ltx", settings(replace(EVERYTHING, gradient_checkpointing=True), "fp16", "adamw")
    ),
    "hunyuan fp32 features crop cached checkpointed adamw": partial(
        learns,
        "hunyuan",
        settings(replace(PAIR, feature_weight=1.0, crop=(96, 96), crop_margin=2, gradient_checkpointing=True), "fp32", "adamw"),
        cached=True,
    ),
    "cogvideox fp16 features teacher pixels": partial(
        learns, "cogvideox", settings(replace(STAGE, feature_weight=1.0, teacher_weight=1.0, crop_latents=12), "fp16")
    ),
    "video-dc-ae fp32 features adversarial cached": partial(
        learns, "video-dc-ae", settings(replace(STAGE, feature_weight=1.0, adversarial_weight=0.05), "fp32"), cached=True
    ),
    "tiny fp32 everything twice": partial(learns, "tiny", settings(replace(EVERYTHING, accumulation=2, crop_latents=12), "fp32")),
    "tiny bf16 no perceptual loss adamw": partial(learns, "tiny", settings(replace(STAGE, perceptual="none"), "bf16", "adamw")),
    # With its fitted start the embedded pair alone: a start takes as long as all the rest, and less memory than a step.
    **{name: partial(default_run, model, start=model == DEFAULT_MODEL) for name, model in DEFAULT_RUNS.items()},
    **{name: call for name, (call, _) in CONTROLS.items()},
}
