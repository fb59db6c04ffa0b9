"""A student cut from its teacher's decoder: structured channel pruning, then least squares for every layer.

Channels are chosen by their energy on some clips. The layers are then fitted one by one, from the input to the output, to what
the teacher computes at the same place, so that a later layer makes up for what earlier ones lost.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from turbovaed_cli.errors import SettingsError
from turbovaed_cli.models.layers import ResnetBlock, TimeReplicatedConv3d, pixel_shuffle_3d
from turbovaed_cli.models.outline import Outline, Residual, Stage, Weights, blocks_of, outline_of, student_config
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.registry.specs import AlignmentPair
from turbovaed_cli.training.fitted_start import unshuffle
from turbovaed_cli.training.least_squares import at_places, fit_convolution, places_in

PREFIX = "prune:"
_MULTIPLE = 8  # of the numbers of channels that are kept
_RIDGE = 1e-4
_PIXELS = "pixels"


def share_of(init: str | None) -> float | None:
    """Return the share of channels that "prune:0.5" keeps; None for another `init`. Raises SettingsError for a bad share."""
    if init is None or not init.startswith(PREFIX):
        return None
    try:
        share = float(init.removeprefix(PREFIX))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise SettingsError(
            f"`init` is {init}: the share of channels that stay is above 0 and at most 1", f"for example `init` {PREFIX}0.5"
        )
    return share


def kept(channels: int, share: float) -> int:
    """Return how many of `channels` a share keeps: a multiple of 8, at least 8, at most all."""
    return min(channels, max(_MULTIPLE, round(channels * share / _MULTIPLE) * _MULTIPLE))


def pruned_config(teacher: Teacher, share: float) -> dict[str, Any]:
    """Return the config of the student that has this share of the channels of its teacher's decoder, in the published key names.

    Raises SettingsError for a teacher from whose decoder no student can be cut, and for a share that is too small for it.
    """
    outline = outline_of(teacher.vae, teacher.spec)
    widths = [kept(stage.channels, share) for stage in outline.stages]
    for stage, before, after in zip(outline.stages[1:], widths, widths[1:], strict=False):
        if stage.change is not None and before == after:
            raise SettingsError(
                f"`init` {PREFIX}{share:g} leaves {before} channels before and after a block that changes their number",
                "give a larger share",
            )
    return student_config(outline, widths)


def pruned_pairs(student: StudentDecoder, teacher: Teacher, pairs: Sequence[AlignmentPair]) -> tuple[AlignmentPair, ...]:
    """Return the pairs of such a student: as many blocks as the `pairs` of its teacher's own student, each with its counterpart."""
    units = {pair.teacher_tap: pair.unit for pair in pairs}
    found = []
    stages = outline_of(teacher.vae, teacher.spec).stages
    skipped = len(student.up_blocks) - (len(stages) - 1)  # an empty block
    for i, stage in enumerate(stages[: len(pairs)]):
        tap = stage.last_tap
        block = tap.rpartition(".resnets.")[0]  # whose output it is, if the block ends there
        unit = units.get(tap, units.get(block, 1.0))
        found.append(AlignmentPair("mid_block" if i == 0 else f"up_blocks.{i - 1 + skipped}", tap, unit=unit))
    return tuple(found)


@torch.no_grad()
def prune_start(student: StudentDecoder, teacher: Teacher, clips: Sequence[tuple[Tensor, Tensor]], *, fits: bool = True) -> None:
    """Set a student of `pruned_config`, in place, to its teacher's decoder without the channels of least energy.

    `clips` are pairs of latents (1, C, t, h, w) and their video (1, 3, T, H, W) in [-1, 1]. Without `fits`, the weights are only
    cut. A student that has all channels and layers of its teacher is never fitted: it computes what the teacher does.
    """
    outline = outline_of(teacher.vae, teacher.spec)
    widths = _widths(student)[-len(outline.stages) :]
    is_whole = outline.exact and widths == [stage.channels for stage in outline.stages]
    _Pruning(student, teacher, outline, widths, clips, fits=fits and not is_whole).run()


def _widths(student: StudentDecoder) -> list[int]:
    """Return the channels of the mid block, then of the up blocks, in running order."""
    channels = list(reversed(student.config.decoder_block_out_channels))
    return [channels[0], *channels]


class _Pruning:
    """The activations of every clip before the next layer of the student, and what the teacher computes at some places."""

    def __init__(
        self,
        student: StudentDecoder,
        teacher: Teacher,
        outline: Outline,
        widths: Sequence[int],
        clips: Sequence[tuple[Tensor, Tensor]],
        *,
        fits: bool,
    ) -> None:
        self.student, self.outline, self.widths, self.fits = student, outline, widths, fits
        self.now = [latents for latents, _ in clips]
        self.rows = _rows(teacher, outline, clips)
        self.stream = torch.arange(outline.conv_in.weight.shape[1])  # the teacher's channels that `now` has

    def run(self) -> None:
        """Set all layers, from the input to the output."""
        outline, student = self.outline, self.student
        blocks = blocks_of(student, outline)
        for i, (stage, width, block) in enumerate(zip(outline.stages, self.widths, blocks, strict=True)):
            chosen = self._chosen([stage.tap, *(residual.tap for residual in stage.residuals)], stage, width)
            if i == 0:
                self._convolve(student.conv_in, _cut(outline.conv_in, chosen, self.stream), stage.tap, chosen)
                self.stream = chosen
            if stage.change is not None:
                self._residual(block.conv_in, stage.change, chosen)
            if stage.upsampling is not None:
                self._upsample(block.upsamplers[0], stage, chosen)
            for resnet, residual in zip(block.resnets, stage.residuals, strict=True):
                self._residual(resnet, residual, chosen)
        weights = _cut(outline.conv_out, None, self.stream, outline.gain_out)
        self.now = [student.act_out(student.norm_out(x)) for x in self.now]
        self._convolve(student.conv_out, weights, _PIXELS, None)

    def _chosen(self, taps: Sequence[str], stage: Stage, width: int) -> Tensor:
        """Return the channels of a stage with the largest energy after its layers, in order."""
        energy = sum(_energy(self.rows[tap], stage.channels) for tap in dict.fromkeys(taps))
        return cast(Tensor, energy).topk(width).indices.sort().values

    def _residual(self, resnet: ResnetBlock, residual: Residual, chosen: Tensor) -> None:
        """Set a residual block that leads from the channels of `now` to the chosen ones, and run it."""
        before, device = self.now, self.now[0].device
        passed = before
        if residual.shortcut is not None:
            norm = residual.shortcut.norm
            resnet.norm3.weight.copy_(norm.weight[self.stream])
            resnet.norm3.bias.copy_(norm.bias[self.stream])
            self.now = [resnet.norm3(x) for x in before]
            weights = _cut(residual.shortcut.weights, chosen, self.stream)
            self._convolve(resnet.conv_shortcut, weights, residual.shortcut.tap, chosen)
            passed = self.now
        first_gain, second_gain = residual.gains
        num_hidden = len(residual.second.weight[0])
        hidden = _energy(self.rows[residual.hidden], num_hidden).topk(len(chosen)).indices.sort().values
        scale = torch.ones(num_hidden, device=device) if second_gain is None else second_gain
        first = None if residual.first is None else _cut(residual.first, hidden, self.stream, first_gain, scale)
        self.now = [resnet.act1(resnet.norm1(x)) for x in before]
        self._convolve(cast(TimeReplicatedConv3d, resnet.conv1), first, residual.hidden, hidden, scale=scale)
        self.now = [resnet.act2(resnet.norm2(x)) for x in self.now]
        second = _cut(residual.second, chosen, hidden)
        self._convolve(cast(TimeReplicatedConv3d, resnet.conv2), second, residual.tap, chosen, passed=passed)
        self.now = [x + y for x, y in zip(passed, self.now, strict=True)]
        self.stream = chosen

    def _upsample(self, upsampler: Any, stage: Stage, chosen: Tensor) -> None:
        assert stage.upsampling is not None
        time, space = stage.upsampling.time, stage.upsampling.space
        each = torch.arange(time * space**2)
        outputs = (chosen.cpu().view(-1, 1) * len(each) + each).flatten()  # of the teacher's convolution, in the student's order
        self._convolve(upsampler.conv, _cut(stage.upsampling.weights, outputs, self.stream), stage.tap, outputs)
        first = time - 1
        self.now = [pixel_shuffle_3d(x, time, space)[:, :, first:] for x in self.now]
        self.stream = chosen

    def _convolve(
        self,
        layer: TimeReplicatedConv3d,
        weights: Weights | None,
        tap: str,
        channels: Tensor | None,
        *,
        scale: Tensor | None = None,
        passed: Sequence[Tensor] | None = None,
    ) -> None:
        """Set a convolution to the cut weights, fit it to the teacher's rows at `tap`, and run it.

        `passed` is what a residual block adds to its output. Without weights, the fit begins with zeros.
        """
        convolution = layer.conv
        for parameter, value in zip((convolution.weight, convolution.bias), _values(weights), strict=True):
            assert parameter is not None
            parameter.copy_(value)
        if self.fits:
            places = [_places(index, x.shape[2:]) for index, x in enumerate(self.now)]
            targets = [rows if channels is None else rows[:, channels.to(rows.device)] for rows in self.rows[tap]]
            if scale is not None and channels is not None:
                targets = [rows * scale[channels.to(scale.device)] for rows in targets]
            there = [layer(x) for x in self.now]
            if passed is not None:
                there = [x + y for x, y in zip(there, passed, strict=True)]
            missing = [rows - at_places(x, where) for rows, x, where in zip(targets, there, places, strict=True)]
            fit_convolution(convolution, self.now, places, missing, causal=layer.causal, ridge=_RIDGE, adds=True)
        self.now = [layer(x) for x in self.now]


def _values(weights: Weights | None) -> tuple[Tensor, Tensor]:
    return (torch.zeros(()), torch.zeros(())) if weights is None else (weights.weight, weights.bias)


def _cut(
    weights: Weights, outputs: Tensor | None, inputs: Tensor, gain: Tensor | None = None, scale: Tensor | None = None
) -> Weights:
    """Return the weights between these channels; `gain` is that of the inputs, `scale` that of the outputs, of all channels."""
    weight, bias = weights.weight, weights.bias
    if scale is not None:
        weight, bias = weight * scale.view(-1, 1, 1, 1, 1), bias * scale
    if gain is not None:
        weight = weight * gain.view(1, -1, 1, 1, 1)
    if outputs is not None:
        weight, bias = weight[outputs.to(weight.device)], bias[outputs.to(weight.device)]
    return Weights(weight[:, inputs.to(weight.device)], bias)


def _energy(rows: Sequence[Tensor], channels: int) -> Tensor:
    """Return the mean share of each channel in the energy at a place; rows are (places, channels * pixels)."""
    whole = torch.cat([row.unflatten(1, (channels, -1)).square().nanmean(dim=2) for row in rows]).cpu().double()
    return (whole / whole.sum(dim=1, keepdim=True).clamp(min=1e-12)).mean(dim=0)


def _places(index: int, shape: Sequence[int]) -> Tensor:
    """Return the places of clip `index` at this resolution."""
    return places_in(shape, torch.Generator().manual_seed(index))


def _rows(teacher: Teacher, outline: Outline, clips: Sequence[tuple[Tensor, Tensor]]) -> Mapping[str, list[Tensor]]:
    """Return the outputs of all taps at some places of each clip, and the pixels: (places, channels) each.

    Those of an upsampling, and pixels, are blocks in the order of the student's shuffle, at places before it. What a shuffle
    makes of the first latent frame and drops is NaN.
    """
    shuffles: dict[str, tuple[int, int]] = {}
    for stage in outline.stages:
        for residual in (*((stage.change,) if stage.change else ()), *stage.residuals):
            shuffles |= {residual.hidden: (1, 1), residual.tap: (1, 1)}
            if residual.shortcut is not None:
                shuffles[residual.shortcut.tap] = (1, 1)
        shuffles[stage.tap] = (1, 1) if stage.upsampling is None else (stage.upsampling.time, stage.upsampling.space)
    found: dict[str, list[Tensor]] = {tap: [] for tap in (*shuffles, _PIXELS)}
    for index, (latents, video) in enumerate(clips):
        features = teacher.features(latents, list(shuffles))
        for tap, (time, space) in (shuffles | {_PIXELS: (1, outline.patch)}).items():
            x = video if tap == _PIXELS else features[tap]
            missing = x.new_full((*x.shape[:2], time - 1, *x.shape[3:]), float("nan"))
            blocks = unshuffle(torch.cat([missing, x], dim=2), time, space)
            found[tap].append(at_places(blocks, _places(index, blocks.shape[2:])))
    return found
