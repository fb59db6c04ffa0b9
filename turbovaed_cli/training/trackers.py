"""The targets of `--log` in addition to metrics.jsonl: TensorBoard, trackio, Weights & Biases, by accelerate's trackers."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from turbovaed_cli.choices import check_choice
from turbovaed_cli.errors import MissingError
from turbovaed_cli.reporting import Reporter, hushed, quiet
from turbovaed_cli.runs.rundir import RunDir

PROJECT = "turbovaed"
_PATIENCE_S = 30  # time that a service has to answer at the start


def _tensorboard(run: RunDir, _name: str, first_step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker

    # Steps that a killed process wrote after its last checkpoint are dropped.
    return TensorBoardTracker("tensorboard", run.root, purge_step=first_step + 1)


def _trackio(_run: RunDir, name: str, _first_step: int) -> Any:
    import trackio
    from accelerate.tracking import TrackioTracker

    class Tracker(TrackioTracker):  # type: ignore[misc]
        def finish(self) -> None:
            trackio.finish()  # the run's own finish would leave a second one to the end of the process

    return Tracker(PROJECT, name=name, resume="allow")


def _wandb(run: RunDir, name: str, _first_step: int) -> Any:
    import wandb
    from accelerate.tracking import WandBTracker

    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # nothing is sent to third parties
    settings = wandb.Settings(init_timeout=_PATIENCE_S, silent=True, console="off", save_code=False, disable_git=True)
    online = os.environ.get("WANDB_MODE", "online") == "online"  # offline, the id alone continues the run
    resume = "allow" if online else None
    return WandBTracker(PROJECT, id=name, name=run.root.name, resume=resume, dir=str(run.root), settings=settings)


TRACKERS: dict[str, Callable[[RunDir, str, int], Any]] = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}


def check_trackers(names: Sequence[str]) -> None:
    """Raise SettingsError for a tracker that is unknown, MissingError for one that is not installed."""
    for name in names:
        check_choice("`log`", name, TRACKERS)
        if find_spec(name) is None:
            raise MissingError(
                f"`log` {name} needs {name}, which is not installed", f"pip install {name}, or turbovaed[trackers]"
            )


class Trackers:
    """Several trackers as one: each gets the numbers of every step."""

    def __init__(self, trackers: Sequence[Any]) -> None:
        self._trackers = trackers

    def log(self, step: int, values: Mapping[str, object]) -> None:
        """Log the numbers among `values` for `step`."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step=step)


@contextmanager
def trackers_of(
    names: Sequence[str], run: RunDir, config: Mapping[str, Any], first_step: int, report: Reporter = quiet
) -> Iterator[Trackers]:
    """Start trackers that continue those of the run folder after `first_step`; they are closed at the end, also after an error.

    Raises MissingError if a tracker does not start.
    """
    # The folder's path on this machine, as two runs may have one name.
    name = f"{run.root.resolve().name}-{hashlib.sha256(str(run.root.resolve()).encode()).hexdigest()[:8]}"
    if names:
        from accelerate import PartialState

        PartialState(cpu=True)  # accelerate's trackers need it, even if one process trains alone
    started = []
    try:
        for which in names:
            tracker = TRACKERS[which](run, name, first_step)
            try:
                with hushed():  # stdout is for results
                    tracker.start()
                    tracker.store_init_configuration(_flat(config))
            except Exception as error:  # each library has other error types
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise MissingError(f"`log` {which} does not start: {said}", _HINTS.get(which, "leave it out of `log`")) from error
            started.append(tracker)
            report.note(f"logging to {which}: {_PLACES[which].format(run=run.root, name=name)}")
        yield Trackers(started)
    finally:
        for tracker in started:
            with hushed():
                tracker.finish()


_HINTS = {"wandb": "wandb login, or WANDB_MODE=offline, which keeps it in the run folder"}
_PLACES = {
    "tensorboard": "tensorboard --logdir {run}/tensorboard",
    "trackio": f"trackio show --project {PROJECT} ({{name}})",
    "wandb": f"project {PROJECT}, run {{name}}",
}


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in the form that trackers take: one level of numbers, texts and booleans."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": one for inner, one in _flat(value).items()}
        elif isinstance(value, bool | str) or (isinstance(value, int | float) and math.isfinite(value)):
            found[name] = value
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            found |= {f"{name}.{at + 1}.{inner}": one for at, part in enumerate(value) for inner, one in _flat(part).items()}
        else:
            found[name] = json.dumps(value, default=os.fspath)
    return found
