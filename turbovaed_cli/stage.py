"""The settings of a stage of a schedule: `distill` runs one stage after the other."""

from dataclasses import MISSING, dataclass, replace

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.setting import setting
from turbovaed_cli.units import parse_size

PERCEPTUAL = ("auto", "lpips", "st-lpips", "st-lpips-vgg", "ssim", "none")


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule: how long, on what, for which losses. A schedule is a list of them, run by one command."""

    name: str = setting(MISSING, "Name in metrics.jsonl, reports and messages.")
    steps: int = setting(2000, "Optimizer steps.")
    # Of each process; config.json has the clips of all together.
    batch_size: int = setting(1, "Clips per forward pass.", "Training")
    accumulation: int = setting(8, "Forward passes per optimizer step.", "Schedule")
    size: tuple[int, int] | None = setting(None, "Size of the clips of this stage, if not the run's.", parse=parse_size)
    # Latents are cut with the pixels.
    crop: tuple[int, int] | None = setting(
        None, "Learn from random crops of this size.", "Training", metavar="SIZE", parse=parse_size
    )
    crop_latents: int = setting(0, "Crop of this many latents a side, at most the clip; 0 takes all.")
    crop_side: int = setting(0, "Crop of this many pixels a side, rounded down to latents and at most the clip; 0 takes all.")
    # They know what is beyond the cut.
    crop_margin: int = setting(0, "Latents along the cuts of cached clips that losses leave out, at most a third of the crop.")
    lr: float = setting(1e-4, "Learning rate of every stage.", "Training")  # Muon's are about thirty times AdamW's
    lr_schedule: str = setting("constant", "Learning rate after warm-up: {choices}.", "Schedule", choices=("constant", "cosine"))
    lr_end: float = setting(0.02, "Share of the learning rate at which cosine ends.")
    warmup_steps: int = setting(
        0, "Steps over which the learning rate rises from zero, at most a tenth of the stage.", "Schedule"
    )
    # auto takes lpips if its weights are here, else ssim, with a note.
    perceptual: str = setting("auto", "Perceptual loss: {choices}.", "Losses", choices=PERCEPTUAL)
    perceptual_weight: float = setting(1.0, "Weight of the perceptual loss.", "Losses")
    perceptual_frames: int = setting(0, "Frames of each clip that the perceptual loss sees, others in every pass; 0 takes all.")
    feature_weight: float = setting(1.0, "Weight of feature alignment; 0 leaves it out.", "Losses")
    teacher_weight: float = setting(0.0, "Weight of L1 to the teacher's own pixels; 0 leaves it out.", "Losses")
    # PSNR's own measure: rare large errors, as at borders and in strong colours, count more than in L1. 10 makes both alike.
    squared_weight: float = setting(0.0, "Weight of the squared error to the source; 0 leaves it out.", "Losses")
    # Its root mean square is what the metric `grid` shows.
    lattice_weight: float = setting(
        0.0, "Weight of the error that repeats at the student's lattice of pixels; 0 leaves it out.", "Losses"
    )
    # Of the hinge loss, times the adaptive weight; without it there is no discriminator.
    adversarial_weight: float = setting(0.0, "Weight of the adversarial loss (a 3-D PatchGAN); 0 leaves it out.", "Losses")
    posterior: str = setting(
        "sample", "What the student decodes of the posterior: {choices}.", "Losses", choices=("sample", "mean")
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations: less memory for large crops, more time, the same bits.", "Speed and memory"
    )


def scaled(stages: tuple[Stage, ...], steps: int) -> tuple[Stage, ...]:
    """The same stages with `steps` in all, each keeping its share, and one step at least."""
    if steps < len(stages):
        what = f"`steps` is {steps}; " + (f"the schedule has {len(stages)} stages" if steps > 0 else "it must be at least 1")
        raise SettingsError(what, "raise `steps`, or take `recipe=quick`, which has one stage")
    total = max(sum(stage.steps for stage in stages), 1)
    done, before, scaled = 0, 0, []
    for index, stage in enumerate(stages):
        before += stage.steps
        end = min(max(round(before * steps / total), done + 1), steps - (len(stages) - 1 - index))
        scaled.append(replace(stage, steps=end - done))
        done = end
    return tuple(scaled)
