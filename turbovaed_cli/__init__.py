"""Distil the VAE decoders of video diffusion models into small ones, and use them.

The public names below are imported on first use, so that `import turbovaed_cli` costs nothing. A room per command (training,
evaluation, reconstruction, export, benchmarking, latents) and per subject; each room's own docstring names its files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from turbovaed_cli.machine.streams import reserve_descriptors
from turbovaed_cli.version import __version__

reserve_descriptors()  # before anything is opened: a video on descriptor 0 would be the stdin of every ffmpeg

_HOME_OF = {
    "MODELS": "registry.rows",
    "find_model": "registry.find",
    "load_teacher": "models.teacher",
    "Teacher": "models.teacher",
    "load_student": "models.loading",
    "load_decoder": "models.decoders",
    "Decoder": "models.decoder",
    "StudentDecoder": "models.student",
    "StudentVae": "models.student_vae",
    "StreamingDecoder": "models.streaming",
    "FastDecoder": "models.streaming",
    "load_pair": "models.pair",
    "read_clip": "video",
    "read_frames": "video",
    "write_video": "video",
    "LatentCache": "latents.cache",
    "cache_latents": "latents.caching",
    "distill": "training.distill",
    "reconstruct": "reconstruction.reconstruct",
    "reconstruct_folder": "reconstruction.folder",
    "evaluate": "evaluation.evaluate",
    "measure_testcard": "evaluation.testcard",
    "export_student": "export.export",
    "bench": "benchmarking.bench",
    "push": "pipelines.push",
    "list_runs": "runs.listing",
    "attach_student": "pipelines.attach",
    "save_pipeline": "pipelines.save",
}

# diffusers looks up the base class of a saved pipeline's component in the library that has the component.
_OF_DIFFUSERS = {"ModelMixin": "models.network"}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - a list of names, spelt once above

if TYPE_CHECKING:
    from turbovaed_cli.benchmarking.bench import bench
    from turbovaed_cli.evaluation.evaluate import evaluate
    from turbovaed_cli.evaluation.testcard import measure_testcard
    from turbovaed_cli.export.export import export_student
    from turbovaed_cli.latents.cache import LatentCache
    from turbovaed_cli.latents.caching import cache_latents
    from turbovaed_cli.models.decoder import Decoder
    from turbovaed_cli.models.decoders import load_decoder
    from turbovaed_cli.models.loading import load_student
    from turbovaed_cli.models.pair import load_pair
    from turbovaed_cli.models.streaming import FastDecoder, StreamingDecoder
    from turbovaed_cli.models.student import StudentDecoder
    from turbovaed_cli.models.student_vae import StudentVae
    from turbovaed_cli.models.teacher import Teacher, load_teacher
    from turbovaed_cli.pipelines.attach import attach_student
    from turbovaed_cli.pipelines.push import push
    from turbovaed_cli.pipelines.save import save_pipeline
    from turbovaed_cli.reconstruction.folder import reconstruct_folder
    from turbovaed_cli.reconstruction.reconstruct import reconstruct
    from turbovaed_cli.registry.find import find_model
    from turbovaed_cli.registry.rows import MODELS
    from turbovaed_cli.runs.listing import list_runs
    from turbovaed_cli.training.distill import distill
    from turbovaed_cli.video import read_clip, read_frames, write_video


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name) or _OF_DIFFUSERS.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
