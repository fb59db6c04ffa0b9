"""Published figures, shown beside ours where model, data set and clips are the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.metrics.scores import PublishedScores
from turbovaed_cli.registry import ModelSpec, is_model_name
from turbovaed_cli.settings import EvalSettings


@dataclass(frozen=True)
class Dataset:
    """A data set that results were published on, how its files are called, and which clips were measured."""

    title: str
    file_name: re.Pattern[str]
    frames: int
    size: tuple[int, int]
    num_clips: int
    source: str


DATASETS = {
    "ucf101": Dataset(
        "UCF-101",
        re.compile(r"v_[A-Za-z]+_g\d{2}_c\d{2}"),  # v_ApplyEyeMakeup_g01_c01.avi
        17,
        (256, 256),
        3783,  # in the published script
        "arXiv:2508.09136, UCF-101, 17 frames of 256x256",
    )
}


def recognise(asked: str, paths: Sequence[Path]) -> str | None:
    """The DATASETS key: the one `asked` for, or the one whose naming scheme every file follows; None for other data.

    The name of a folder proves nothing, so it is not looked at. Raises SettingsError where `asked` is unknown.
    """
    if asked:
        name = asked.lower().replace("-", "")
        if name not in DATASETS:
            raise SettingsError(f"no published data set is called {asked!r}", hint_for(asked, DATASETS))
        return name
    for name, dataset in DATASETS.items():
        if paths and all(dataset.file_name.fullmatch(path.stem) for path in paths):
            return name
    return None


def published_scores(spec: ModelSpec | None, model: str, dataset: str | None, settings: EvalSettings) -> PublishedScores | None:
    """What was published for this registry row on this data set and these clips; None where nothing was, or not for these.

    The published figures were made by the script that `--protocol paper` repeats. Where `model` is another student of that
    teacher, the label says whose they are.
    """
    if spec is None or dataset is None or spec.teacher.repo is None or not spec.published_results:
        return None  # a local folder takes its row's architecture, not its results
    data = DATASETS[dataset]
    if (settings.frames, settings.size, settings.stride) != (data.frames, data.size, 1):
        return None
    means = {name: cast(tuple[float, float], figures) for name, figures in spec.published_results.items()}
    label = "published" if settings.protocol == "paper" else "published, other protocol"
    if not is_model_name(model):
        label += f", {spec.name}'s own student"
    return PublishedScores(means, label, f"{data.source}, {data.num_clips:,} clips")
