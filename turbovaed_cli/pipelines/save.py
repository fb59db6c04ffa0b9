"""A pipeline's folder that loads without turbovaed."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from turbovaed_cli.errors import OutputExistsError, SettingsError
from turbovaed_cli.files.whole import whole_folder
from turbovaed_cli.models.self_contained import MODELING_FILE
from turbovaed_cli.models.student import StudentDecoder
from turbovaed_cli.pipelines.attach import is_attached_to

_INDEX = "model_index.json"
# diffusers takes a class of this name from the file of that name in the component's folder, if the code is trusted.
_IN_ITS_FOLDER = [Path(MODELING_FILE).stem, StudentDecoder.__name__]


def save_pipeline(pipe: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a pipeline whose `vae` is a student, so that it loads where turbovaed is not installed; return the folder.

        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

    The folder is that of `pipe.save_pretrained`, but names the class in the modeling file beside the weights. A StudentVae loads
    without its encoder there. `overwrite` replaces the folder of an earlier pipeline, and no other. Raises SettingsError if the
    VAE is no student or one is attached, and OutputExistsError if the folder exists.
    """
    vae, place = getattr(pipe, "vae", None), Path(folder)
    if isinstance(vae, nn.Module) and is_attached_to(vae):
        raise SettingsError(
            "a student is attached to this pipeline, which keeps its own VAE",
            "save after .restore(), or build it with vae=student",
        )
    if not _is_student(vae):
        raise SettingsError(f"the VAE of this pipeline is a {type(vae).__name__}, not a student", "pipe.save_pretrained")
    if place.is_dir() and any(place.iterdir()) and not (place / _INDEX).is_file():
        raise OutputExistsError(f"{place} is there already, and it is no pipeline", "give a new `folder`")
    with whole_folder(place, overwrite=overwrite) as temporary:
        pipe.save_pretrained(temporary)
        path = temporary / _INDEX
        index = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**index, "vae": _IN_ITS_FOLDER}, indent=2) + "\n", encoding="utf-8")
    return place


def _is_student(vae: Any) -> bool:
    """Whether a VAE is a student: of this package, or of a modeling file, as in a pipeline that was saved by `save_pipeline`."""
    kind = type(vae)
    return isinstance(vae, StudentDecoder) or [kind.__module__.rpartition(".")[2], kind.__name__] == _IN_ITS_FOLDER
