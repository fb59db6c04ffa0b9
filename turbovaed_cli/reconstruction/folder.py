"""`reconstruct` of a folder: every video and latents file in it, to a folder of videos. Running it again continues."""

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.errors import DiskFullError, InterruptedRunError, MissingError, SettingsError, TurboVaedError
from turbovaed_cli.files.whole import DISK_IS_FULL
from turbovaed_cli.latents.latent_files import SUFFIXES as LATENTS_SUFFIXES
from turbovaed_cli.machine.devices import is_out_of_memory, out_of_memory_in_words
from turbovaed_cli.models.pair import Pair
from turbovaed_cli.reconstruction.reconstruct import ReconstructResult, check_reconstruct_settings, num_frames_of, reconstruct
from turbovaed_cli.reporting import Item, Reporter, quiet
from turbovaed_cli.settings import ReconstructSettings
from turbovaed_cli.video import VIDEO_SUFFIXES, check_output, find_codec, list_videos


@dataclass(frozen=True)
class FolderItem:
    """The outcome of one input."""

    path: Path
    out: Path
    result: ReconstructResult | None = None  # None if it was not written by this call
    reason: str = ""  # why it could not be reconstructed

    @property
    def status(self) -> str:
        """The status of the output: "written", "failed", or "there" (written by an earlier call)."""
        return "written" if self.result else "failed" if self.reason else "there"


@dataclass(frozen=True)
class FolderResult:
    """The outcome of every input of a folder."""

    out: Path
    items: tuple[FolderItem, ...]

    def of_status(self, status: str) -> tuple[FolderItem, ...]:
        """Return the items of one status: "written", "there" or "failed"."""
        return tuple(item for item in self.items if item.status == status)


def reconstruct_folder(
    folder: Path,
    out: Path,
    pair: Pair,
    settings: ReconstructSettings = ReconstructSettings(),
    *,
    overwrite: bool = False,
    report: Reporter = quiet,
) -> FolderResult:
    """Reconstruct every video and every latents file under `folder` into the same tree of folders under `out`.

    Existing outputs stay, unless `overwrite` is true. An input that fails becomes an item with its reason, and the rest goes on.
    Raises SettingsError if nothing can be read or written, InterruptedRunError if a signal ends it.
    """
    planned = plan_folder(folder, out, settings, report, side_by_side=bool(pair.beside))
    items: dict[Path, FolderItem] = {}
    pending = []
    for path, target in planned.items():
        if target.exists() and not overwrite:
            items[path] = FolderItem(path, target)
        else:
            pending.append(path)
    if items:
        report.note(f"{len(items)} of {len(planned)} were reconstructed before; `overwrite` does them again")
    try:
        counts: dict[Path, int] = {}
        for path in report.track(pending, "looking"):
            try:
                counts[path] = num_frames_of(path, pair, settings)
            except (TurboVaedError, OSError) as error:
                items[path] = FolderItem(path, planned[path], reason=_reason(error))
        with closing(_Progress(report, sum(counts.values()))) as progress:
            for path, num_frames in counts.items():
                items[path] = _item(path, planned[path], pair, settings, overwrite, progress)
                progress.finish(num_frames)
    except BaseException as error:
        if isinstance(error, Exception | SystemExit | GeneratorExit):
            raise
        number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
        done = {path for path, item in items.items() if item.status != "failed"}
        if not overwrite:  # an output is there only if it is whole, even if the signal came before it was noted
            done |= {path for path, target in planned.items() if target.exists()}
        raise InterruptedRunError(
            f"interrupted: {len(done)} of {len(planned)} are finished and kept", number, "the same command goes on"
        ) from error
    return FolderResult(out, tuple(items[path] for path in planned))


def plan_folder(
    folder: Path, out: Path, settings: ReconstructSettings, report: Reporter = quiet, *, side_by_side: bool = False
) -> dict[Path, Path]:
    """Return the output path of every input under `folder`; files under `out` are not inputs.

    a.mp4 becomes a.mp4, and a.mov becomes a.mov.mp4, so that no two share a name. Raises SettingsError for a folder without
    inputs, or if `out` is the folder itself, is above it, or cannot be written.
    """
    suffix = find_codec(settings.codec).suffixes[0]
    check_reconstruct_settings(settings, side_by_side=side_by_side)
    inside, outside = folder.resolve(), out.resolve()
    if outside == inside or outside in inside.parents:
        raise SettingsError(
            f"`out` {out} holds the videos to read", "give another folder with `out`, such as one next to it or in it"
        )
    if os.path.exists(out) and not out.is_dir():  # noqa: PTH110 - a name that is too long is refused below
        raise SettingsError(f"{out} is no folder", "if the input is a folder, `out` has to be a folder too")
    found = [path for path in _inputs_under(folder, report) if outside not in (inside / path.relative_to(folder)).parents]
    if not found:
        raise SettingsError(f"no video and no latents under {folder}", f"videos end in {', '.join(VIDEO_SUFFIXES)}")
    planned: dict[Path, Path] = {}
    taken: set[Path] = set()
    for path in sorted(found, key=lambda path: path.suffix.lower() != suffix):  # those that keep their names first
        name = path.relative_to(folder) if path != folder else Path(folder.resolve().name)  # itself a folder of frames
        while name.suffix.lower() != suffix or name in taken:
            name = name.with_name(name.name + suffix)
        taken.add(name)
        planned[path] = out / name
    check_output(out / f"a{suffix}", overwrite=True)
    return {path: planned[path] for path in found}


def _inputs_under(folder: Path, report: Reporter) -> list[Path]:
    """Return videos and latents files, sorted, without hidden ones; an empty list if there are none."""
    try:
        return list_videos(folder, report, suffixes=(*VIDEO_SUFFIXES, *LATENTS_SUFFIXES))
    except SettingsError:
        return []


def _item(path: Path, out: Path, pair: Pair, settings: ReconstructSettings, overwrite: bool, report: "_Progress") -> FolderItem:
    try:
        return FolderItem(path, out, reconstruct(path, out, pair, settings, overwrite=overwrite, report=report))
    except (DiskFullError, MissingError):  # the rest would fail too
        raise
    except (TurboVaedError, OSError) as error:
        if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
            raise
        return FolderItem(path, out, reason=_reason(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return FolderItem(path, out, reason=f"too large: {out_of_memory_in_words(error)}")


def _reason(error: TurboVaedError | OSError) -> str:
    return error.what if isinstance(error, TurboVaedError) else str(error.strerror or error).lower()


class _Progress:
    """One progress display over the frames of all inputs; a note that several inputs share is shown once."""

    def __init__(self, report: Reporter, total: int) -> None:
        self._report = report
        self._ticks = report.track(range(total), "reconstructing", total=total)
        self._shown: set[str] = set()
        self._num_done = self._num_wanted = 0
        next(self._ticks, None)  # shows it: an item counts when the next one is asked for

    def track(self, items: Iterable[Item], label: str, total: int | None = None, start: int = 0) -> Iterator[Item]:
        """Yield `items`, each of which counts as one frame."""
        for item in items:
            yield item
            self._advance()

    def note(self, text: str = "", *, warning: bool = False, **values: object) -> None:
        """Pass a note on unless it was shown before."""
        if values or text not in self._shown:
            self._shown.add(text)
            self._report.note(text, warning=warning, **values)

    def finish(self, num_frames: int) -> None:
        """Count the frames of an input's `num_frames` that were not counted yet, as after a failure."""
        self._num_wanted += num_frames
        while self._num_done < self._num_wanted:
            self._advance()

    def close(self) -> None:
        """End the progress display, whether or not all frames are done."""
        if hasattr(self._ticks, "close"):
            self._ticks.close()

    def _advance(self) -> None:
        self._num_done += 1
        next(self._ticks, None)
