"""Features that need Linux or macOS: videos, which are passed to ffmpeg by descriptor, and locks. On Windows, WSL2 has them."""

import os

from turbovaed_cli.errors import UnavailableError


def is_windows() -> bool:
    """Whether this is Windows itself; WSL2 is Linux."""
    return os.name == "nt"


def check_system(what: str) -> None:
    """Raise UnavailableError on Windows: `what`, a command or a kind of work, does not run there."""
    if is_windows():
        raise UnavailableError(
            f"{what} needs WSL2 on Windows",
            "wsl --install, then install and run turbovaed inside it; load_student, decoding, export and bench run here too",
        )
