"""`--val` measures a run as its run folder says it was made."""

import json

from turbovaed_cli.registry.find import find_model
from turbovaed_cli.training.distill import distill
from turbovaed_cli.training.recipes import RECIPES
from turbovaed_cli.training.validation import measure_run


def test_a_run_is_measured_at_the_shape_that_its_folder_records(ltx_teacher, videos, small_student, tmp_path):
    """At a URL too; the command line may give another shape, or none."""
    spec, run = find_model(str(ltx_teacher)), tmp_path / "run"
    settings = RECIPES["quick"].with_changes(steps=1, frames=9, size=(64, 96), perceptual="ssim", start="plain", dtype="fp32")
    distill(spec, run, data=videos, settings=settings, student_config=small_student)
    result = measure_run(spec, f"file://{run}", videos)
    assert (result.frames, result.size) == (9, (64, 96))
    (kept,) = (run / "eval").iterdir()
    assert kept.name.endswith("-9x96x64-standard.json")
    assert json.loads(kept.read_text())["means"]["student"]["psnr"] == result.means["student"]["psnr"]
    assert (run / "report.html").exists()
