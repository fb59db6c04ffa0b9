"""Every command works with every teacher of the registry: a selection of what tools/every_teacher.py runs.

`make teachers` runs all rows and all commands.
"""

import sys
from pathlib import Path

import pytest
from small_teachers import SMALL

from turbovaed_cli.registry.rows import MODELS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from every_teacher import FailedError, Walk

SLOW_COLUMNS = ("export", "bench")


def test_every_row_has_a_small_instance():
    assert set(MODELS) - set(SMALL) <= {"tiny", "video-dc-ae"}  # one is small, one has an instance of its own


@pytest.mark.parametrize("name", [pytest.param("wan2.1", marks=pytest.mark.thorough), "sdxl"])
def test_commands_in_order(name, tmp_path):
    cells = Walk(name, tmp_path / name).cells()
    assert [run() for column, run in cells if column not in SLOW_COLUMNS]


def test_a_failing_command_is_not_green(tmp_path):
    walked = Walk("ltx", tmp_path / "ltx")
    (walked.teacher / "config.json").write_text("{}")
    cells = dict(walked.cells())
    with pytest.raises(FailedError, match="exit code"):
        cells["cache-latents"]()
