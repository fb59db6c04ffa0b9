"""`runs`: the state of every run folder under a folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turbovaed_cli.errors import SettingsError, TurboVaedError
from turbovaed_cli.files.documents import check_fields, fits
from turbovaed_cli.files.sealed import read_json
from turbovaed_cli.files.whole import whole_files
from turbovaed_cli.runs.rundir import RunDir

# Files of a run folder. Any of them marks a folder as a run, even if its config.json is damaged.
_MARKS = ("checkpoints", "metrics.jsonl", "lock", "train.log")


@dataclass(frozen=True)
class RunSummary:
    """One run folder: its progress, its best result, and when it was last written to."""

    name: str
    path: Path
    status: str  # running, finished, stopped (nothing is lost), unfinished (killed or failed), broken
    reason: str  # the status in a sentence, with what to do
    step: int | None = None  # the step from which a resume starts; of a running one, steps done
    steps: int | None = None  # steps in all
    stage: str | None = None  # of the last step logged; None in runs that do not name stages
    metric: str | None = None  # "psnr" (dB, the best of its evaluations) or "l1" (the lowest of its steps)
    best: float | None = None
    age_s: float | None = None  # seconds since it was last written to


def list_runs(folder: Path) -> list[RunSummary]:
    """Return every run in `folder`, or `folder` itself if it is a run; the one last written to comes first.

    A run that cannot be read is listed as "broken" with the reason. Changes nothing: the lock is only looked at. Raises
    SettingsError if `folder` does not exist.
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is not there", "give the folder that holds the runs, or start one: turbovaed distill")
    places = [folder] if _is_run(folder) else sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))
    found = [_summary(path) for path in places]
    return sorted(found, key=lambda run: (run.age_s is None, run.age_s))


def _is_run(path: Path) -> bool:
    try:
        return not path.name.startswith(".") and (RunDir.is_run(path) or any((path / mark).exists() for mark in _MARKS))
    except OSError:  # this user may not look into it: the list names it as broken
        return True


def _summary(path: Path) -> RunSummary:
    name = path.resolve().name
    try:
        return _read(name, RunDir(path))
    except TurboVaedError as error:
        return RunSummary(name, path, "broken", error.what)
    except OSError as error:
        return RunSummary(name, path, "broken", f"{error.filename or path}: {(error.strerror or str(error)).lower()}")
    except (KeyError, TypeError, ValueError) as error:
        return RunSummary(
            name, path, "broken", f"{path / 'config.json'} is not what distill writes ({type(error).__name__}: {error})"
        )


def _read(name: str, run: RunDir) -> RunSummary:
    holder = run.holder()  # before the rest: what is read below is at least as new
    if not run.config.is_file():
        if run.checkpoints.exists() or run.metrics.exists():
            return RunSummary(name, run.root, "broken", f"{run.config} is missing", age_s=_age(run))
        reason = f"{holder} holds it" if holder else "ended before its first step; the same command starts it again"
        return RunSummary(name, run.root, "running" if holder else "unfinished", reason, age_s=_age(run))
    settings = run.read_config()["settings"]
    metrics = run.read_metrics()
    total = _total_steps(settings)
    saved = max(run.steps(), default=0)
    logged = metrics[-1]["step"] if metrics else 0
    status, reason = _status(run, holder, saved, logged, total)
    metric, best = _best(run, metrics)
    stage = metrics[-1].get("stage") if metrics else None
    step = logged if status == "running" else saved
    return RunSummary(name, run.root, status, reason, step, total, stage, metric, best, _age(run))


def _total_steps(settings: Mapping[str, Any]) -> int:
    stages = [stage for stage in settings.get("stages") or [] if isinstance(stage, Mapping)]
    return sum(int(stage["steps"]) for stage in stages) if stages else int(settings["steps"])


def _status(run: RunDir, holder: str | None, saved: int, logged: int, total: int) -> tuple[str, str]:
    """Return the status and its reason, concluded from the lock, the checkpoints, the log and model/."""
    if holder:
        return "running", f"{holder} holds it"
    if saved >= total and (run.model / "config.json").is_file():
        return "finished", "the student is in model/"
    if saved >= total:
        return "unfinished", "every step is done and model/ is not written; the same command writes it"
    if saved and logged <= saved:
        return "stopped", "the same command goes on from its last checkpoint, which has every step that was logged"
    if saved:
        return "unfinished", f"ended after its last checkpoint; the same command repeats steps {saved + 1} to {logged}"
    return "unfinished", "ended before its first checkpoint; the same command starts it again"


def _best(run: RunDir, metrics: Sequence[Mapping[str, Any]]) -> tuple[str | None, float | None]:
    """Return ("psnr", the best PSNR of the evaluations), else ("l1", the lowest L1 of the steps), else (None, None).

    Only evaluations of the standard protocol count: PSNR of another is not comparable. The loss is no measure: its terms
    differ between stages, and an adversarial loss may fall without limit.
    """
    psnr = []
    for path in whole_files(run.eval, "*.json"):
        document = read_json(path)
        if document.get("protocol") == "standard":
            check_fields(document, {"means": {"student": dict[str, float | None]}}, path)
            psnr += [value] if (value := document["means"]["student"].get("psnr")) is not None else []
    if psnr:
        return "psnr", max(psnr)
    losses = [float(row["l1"]) for row in metrics if fits(row.get("l1"), float)]
    return ("l1", min(losses)) if losses else (None, None)


def _age(run: RunDir) -> float | None:
    """Return the seconds since training last wrote a file; evaluations and exports do not count."""
    places = (run.root / "lock", run.config, run.metrics, run.log, run.checkpoints, run.model)
    times = [place.stat().st_mtime for place in places if place.exists()]
    return max(0.0, time.time() - max(times)) if times else None
