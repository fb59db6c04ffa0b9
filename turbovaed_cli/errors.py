"""Errors for users, each with its exit code and a hint that mends it.

Our own mistakes are found by `assert`; these errors are for everything else. Exit codes: 1 failed, 2 usage or settings,
3 something needed is missing or refused, 4 a check missed, 5 finished but some inputs were skipped.
"""

from typing import Any


class TurboVaedError(Exception):
    """The base of every error a user can meet: one line about what is wrong, and a hint: the command or change that mends it."""

    exit_code = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel between processes, with their hint
        return _remade, (type(self), self.what, self.hint, self.exit_code)


def _remade(kind: type[TurboVaedError], what: str, hint: str | None, exit_code: int) -> TurboVaedError:
    error = kind.__new__(kind)
    TurboVaedError.__init__(error, what, hint)
    error.exit_code = exit_code
    return error


class VideoError(TurboVaedError):
    """A video could not be read or written whole."""


class PassingVideoError(VideoError):
    """A video could not be read or written for a reason that may pass: a disk, a network, a machine that is too busy."""


class DiskFullError(TurboVaedError):
    """There was no room for a file; any earlier version of the file is unchanged."""


class NonFiniteError(TurboVaedError):
    """Training produced NaN or infinity; raised before the optimizer step that would have spread it."""


class LostRankError(TurboVaedError):
    """Another process of the same training ended without reporting an error: it was killed, or its machine went down."""


class CorruptFileError(TurboVaedError):
    """A file that turbovaed wrote has changed since: it is truncated, swapped, or differs from its recorded sha256."""


class SettingsError(TurboVaedError):
    """An option, setting or combination that cannot work."""

    exit_code = 2


class UnknownModelError(SettingsError):
    """No registry row, run folder or weight file has this name."""


class ShapeError(SettingsError):
    """A frame count or size that the model would silently change; the hint names the nearest valid ones."""


class FrameCountError(ShapeError):
    """A number of frames (or latent frames) that does not survive encode and decode."""


class WeightFileError(SettingsError):
    """Weights and architecture disagree: a missing, unexpected or misshapen key, named."""


class OutputExistsError(SettingsError):
    """The output already exists and --overwrite was not given."""


class UnwritableError(SettingsError):
    """An output cannot be written at its path: a read-only place, a folder in the way, a name that is too long."""


class RunFolderError(SettingsError):
    """A run folder made with other settings, in use by another process, or not a run folder at all."""


class DifferentRunError(RunFolderError):
    """A run that was started with other settings; `changes` names each setting that differs."""

    changes: tuple[str, ...] = ()


class MissingError(TurboVaedError):
    """Something this command needs is not on this machine."""

    exit_code = 3


class MissingWeightsError(MissingError):
    """Weights are not in the cache, and there was no consent to download them."""


class UnavailableError(MissingError):
    """A device, precision, provider or target is not available on this machine."""


class CheckFailedError(TurboVaedError):
    """A check missed: export parity, or a threshold the user set."""

    exit_code = 4


class InterruptedRunError(TurboVaedError):
    """SIGINT or SIGTERM stopped a run at a point from which the same command resumes. Exit code 130 or 143."""

    def __init__(self, what: str, signal_number: int, hint: str | None = None) -> None:
        super().__init__(what, hint)
        self.exit_code = 128 + signal_number
