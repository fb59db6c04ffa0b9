"""The words of a dry run, the same in every command that has one."""

from typing import TYPE_CHECKING

from turbovaed_cli.cli import console
from turbovaed_cli.units import human_bytes, human_span

if TYPE_CHECKING:
    from turbovaed_cli.latents.estimate import CacheEstimate
    from turbovaed_cli.training.estimate import DistillEstimate


def time_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    """How long the rest takes."""
    if found.seconds is None:
        return "not measured"
    return f"about {human_span(found.seconds)} on this {found.device}" if found.seconds else "nothing is left to do"


def download_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    """How much would be downloaded."""
    return human_bytes(found.download_bytes) if found.download_bytes else "nothing"


def free_in_words(found: "CacheEstimate | DistillEstimate") -> str:
    """How much room there is, to stand after what is needed."""
    return "" if found.free_bytes is None else f" of {human_bytes(found.free_bytes)} free"


def warn_of_room(found: "CacheEstimate | DistillEstimate", place: str) -> None:
    """Warn if the output does not fit in the room of `place`."""
    if found.free_bytes is not None and (found.disk_bytes or 0) > found.free_bytes:
        console.warn(f"{place} has room for {human_bytes(found.free_bytes)}")
