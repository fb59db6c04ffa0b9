"""Videos: which files are videos, what one is, its frames as arrays and tensors, and writing them."""

from turbovaed_cli.video.pixels import to_model, to_uint8, to_unit
from turbovaed_cli.video.probing import VideoInfo, probe
from turbovaed_cli.video.reading import read_clip, read_clip_uint8, read_frames
from turbovaed_cli.video.sources import VIDEO_SUFFIXES, as_text, list_videos, names_of_videos
from turbovaed_cli.video.writing import WRITABLE_SUFFIXES, VideoWriter

__all__ = [
    "VIDEO_SUFFIXES",
    "WRITABLE_SUFFIXES",
    "VideoInfo",
    "VideoWriter",
    "as_text",
    "list_videos",
    "names_of_videos",
    "probe",
    "read_clip",
    "read_clip_uint8",
    "read_frames",
    "to_model",
    "to_uint8",
    "to_unit",
]
