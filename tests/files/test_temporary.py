"""Temporary files: gone at the end, and after a kill with the next use of their folder; never one that is being written."""

import subprocess
import sys

from turbovaed_cli.files.locks import temporary_file

HOLD = """
import sys, time
from pathlib import Path
from turbovaed_cli.files.locks import temporary_file
with temporary_file(Path(sys.argv[1]), ".mp4") as path:
    path.write_text("half")
    print(path.name, flush=True)
    time.sleep(300)
"""


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_file_is_removed_at_the_end_unless_it_was_renamed(tmp_path):
    with temporary_file(tmp_path, ".mkv") as path:
        assert names_in(tmp_path) == {path.name} and path.suffix == ".mkv"
    with temporary_file(tmp_path, ".mkv") as path:
        path.replace(tmp_path / "made.mkv")
    assert names_in(tmp_path) == {"made.mkv"}


def test_what_a_killed_process_left_goes_with_the_next_use_of_the_folder(tmp_path):
    (tmp_path / ".turbovaed-mine").mkdir()  # no file of ours
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        left = process.stdout.readline().strip()
        with temporary_file(tmp_path, ".mp4"):
            assert left in names_in(tmp_path)  # another process is writing it
        process.kill()
        process.wait()
        assert left in names_in(tmp_path)
        with temporary_file(tmp_path, ".mp4") as path:
            assert names_in(tmp_path) == {path.name, ".turbovaed-mine"}
