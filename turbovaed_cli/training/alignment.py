"""Feature alignment: the student's blocks, through small heads if needed, learn to equal the teacher's."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from turbovaed_cli.errors import ShapeError
from turbovaed_cli.models.layers import TimeReplicatedConv3d
from turbovaed_cli.models.teacher import Teacher
from turbovaed_cli.models.trainable import Trainable
from turbovaed_cli.registry.specs import AlignmentPair

_CHANNELS_PER_OUTPUT = {"none": 1, "shuffle2d": 4, "shuffle3d": 8}


class AlignmentHeads(nn.Module):
    """One head for each pair that needs one: two 1x1x1 convolutions without activation, then the pair's shuffle.

    Keys are the published ones: `aligned_feature_projection_heads.{i}.{0,1}.conv.*`, i counting the pairs with a head.
    """

    def __init__(self, pairs: Sequence[AlignmentPair], channels: Sequence[tuple[int, int]]) -> None:
        """Make the heads. `channels` are (student, teacher) of each pair; a pair whose channels differ always gets a head."""
        super().__init__()
        self.pairs = tuple(pairs)
        self.head_of = {}
        self.aligned_feature_projection_heads = nn.ModuleList()
        for pair, (student_channels, teacher_channels) in zip(pairs, channels, strict=True):
            out_channels = teacher_channels * _CHANNELS_PER_OUTPUT[pair.transform]
            if pair.head or student_channels != out_channels:
                self.head_of[pair.student_block] = len(self.aligned_feature_projection_heads)
                self.aligned_feature_projection_heads.append(
                    nn.Sequential(
                        TimeReplicatedConv3d(student_channels, out_channels, kernel_size=1),
                        TimeReplicatedConv3d(out_channels, out_channels, kernel_size=1),
                    )
                )

    def forward(self, student_features: Mapping[str, Tensor], teacher_features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mean squared error of each pair, a scalar, by student block. Their plain sum is the published feature loss.

        Features are (B, C, t, h, w), by block of the student and by tap of the teacher. Raises ShapeError for a pair whose
        features differ in shape.
        """
        losses = {}
        for pair in self.pairs:
            feature = student_features[pair.student_block]
            if pair.student_block in self.head_of:
                feature = self.aligned_feature_projection_heads[self.head_of[pair.student_block]](feature)
            feature = _TRANSFORMS[pair.transform](feature)
            target = (teacher_features[pair.teacher_tap] / pair.unit).to(feature.dtype)
            if feature.shape != target.shape:  # mse_loss would broadcast them
                raise ShapeError(
                    f"the student's {pair.student_block} makes {tuple(feature.shape)}, and the teacher's {pair.teacher_tap} "
                    f"{tuple(target.shape)}: they cannot be compared",
                    "`set=feature_weight=0` learns without features, or give another `student_config`",
                )
            losses[pair.student_block] = functional.mse_loss(feature, target)
        return losses


def _shuffle_2d(x: Tensor) -> Tensor:
    """Shuffle (B, 4C, t, h, w) to (B, C, t, 2h, 2w), frame by frame."""
    frames = functional.pixel_shuffle(x.movedim(2, 1).flatten(0, 1), 2)
    return frames.unflatten(0, (x.shape[0], x.shape[2])).movedim(2, 1)


def _shuffle_3d(x: Tensor) -> Tensor:
    """Shuffle (B, 8C, t, h, w), in channel order (c, t, h, w), to (B, C, 2t - 1, 2h, 2w): the first frame is dropped."""
    batch, channels, frames, height, width = x.shape
    x = x.reshape(batch, channels // 8, 2, 2, 2, frames, height, width)
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)  # (B, C, t, 2, h, 2, w, 2)
    return x.reshape(batch, channels // 8, 2 * frames, 2 * height, 2 * width)[:, :, 1:]


_TRANSFORMS = {"none": lambda x: x, "shuffle2d": _shuffle_2d, "shuffle3d": _shuffle_3d}


def build_heads(student: Trainable, teacher: Teacher, pairs: Sequence[AlignmentPair]) -> AlignmentHeads:
    """Return the heads for these two networks; their channels are taken from one small decode of each."""
    if not pairs:
        return AlignmentHeads((), ())
    spec = teacher.spec
    frames = spec.latent_frames(spec.frames.at_least(max(spec.time_ratio + 1, 2)))
    latents = torch.zeros(1, spec.latent_channels, frames, 2, 2, device=teacher.device)
    taught = teacher.features(latents, [pair.teacher_tap for pair in pairs])
    with torch.no_grad():
        _, learnt = student.features(
            latents.to(student.device, student.dtype), [pair.student_block for pair in pairs], with_sample=False
        )
    return AlignmentHeads(pairs, [(learnt[pair.student_block].shape[1], taught[pair.teacher_tap].shape[1]) for pair in pairs])
