"""The embedded pair: a small teacher of LTX-Video's class, and its student."""

from turbovaed_cli.registry.specs import ASSETS, AlignmentPair, FrameRule, ModelSpec, StudentSpec, TeacherSpec, student_config
from turbovaed_cli.registry.teachers.ltx import LTXVideo

TINY = ModelSpec(
    name="tiny",
    title="the embedded pair",
    recipe="fast",
    teacher=TeacherSpec(
        family=LTXVideo(),
        repo=None,
        folder="",
        num_bytes=11_905_000,
        latent_channels=32,
        time_ratio=2,
        space_ratio=8,
        frames=FrameRule(step=2, first=1),
        decoder_params_m=4.619,
        licence="Apache-2.0",
        path=ASSETS / "tiny" / "teacher",
    ),
    student=StudentSpec(
        config=student_config(32, (64, 48), (0, 0, 1), patch_size=4, spatio_only=False)
        | {"spatio_temporal_scaling": (False, True)},
        pairs=(
            AlignmentPair("mid_block", "decoder.mid_block", head=True, unit=2.0),
            AlignmentPair("up_blocks.1", "decoder.up_blocks.0", head=True, unit=10.0),
        ),
        params_m=0.793,
    ),
    own_members={"lite": {"decoder_block_out_channels": (40, 40)}},  # 0.30 of the full student's time; the rule's 32 have 0.22
)

ROWS = (TINY,)
