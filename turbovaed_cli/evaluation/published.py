"""Published figures, shown next to ours if model, data set and clips are the same."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from turbovaed_cli.choices import hint_for
from turbovaed_cli.errors import SettingsError
from turbovaed_cli.evaluation.scores import PublishedScores
from turbovaed_cli.registry.find import find_model, is_model_name
from turbovaed_cli.registry.rows import MODELS
from turbovaed_cli.registry.specs import PUBLISHED_ON, ModelSpec
from turbovaed_cli.settings import EvalSettings


@dataclass(frozen=True)
class Dataset:
    """A data set that results were published on, the naming scheme of its files, and the clips that were measured."""

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
        PUBLISHED_ON,
    )
}


def recognise(asked: str, paths: Sequence[Path]) -> str | None:
    """Return the DATASETS key: the one `asked` for, or the one whose naming scheme every file follows; None for other data.

    The name of the folder is ignored, as it proves nothing. Raises SettingsError if `asked` is unknown.
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


def why_not_published(spec: ModelSpec | None, dataset: str | None, settings: EvalSettings) -> str:
    """Return why no published figures are shown; "" if they are, and for data that nothing was published on."""
    if dataset is None:
        return ""
    data = DATASETS[dataset]
    if spec is None or spec.teacher.repo is None or not spec.published_results:
        # A local folder takes its row's architecture, not its results.
        named = ", ".join(name for name, row in MODELS.items() if row.published_results)
        return f"none for this model; the paper has {named} on {data.title} (turbovaed models show NAME)"
    if (settings.frames, settings.size, settings.stride) != (data.frames, data.size, 1):
        return f"none for these clips: the paper measured {data.frames} frames of {data.size[1]}x{data.size[0]}"
    return ""


def published_scores(spec: ModelSpec | None, model: str, dataset: str | None, settings: EvalSettings) -> PublishedScores | None:
    """Return the published figures of this registry row on this data set and these clips; None if there are none.

    They were measured by the script that `--protocol paper` repeats. If `model` is another student of that teacher, the
    label names the published one.
    """
    if spec is None or dataset is None or why_not_published(spec, dataset, settings):
        return None
    data = DATASETS[dataset]
    label = "published" if settings.protocol == "paper" else "published, other protocol"
    if not is_model_name(model) or find_model(model).name != spec.name:
        label += f", {spec.name}'s own student"
    return PublishedScores(dict(spec.published_results), label, f"{data.source}, {data.num_clips:,} clips")
