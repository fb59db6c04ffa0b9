"""Videos: find them, probe them, read their frames as arrays and tensors, and write them.

sources.py usable.py      the videos of a folder, a file or a URL, and those that can be used
probing.py input_streams.py frame_times.py   the facts about a video: tracks, pixels, the time of every frame
reading.py colour.py      frames as arrays and tensors
pixels.py                 the only conversion between uint8 and [-1, 1]
writing.py tracks.py timing.py codecs.py     write a file with sound, chapters and exact times
drawn/                    clips that are drawn for training, and other colours for filmed ones
images.py                 folders of numbered pictures
ffmpeg.py messages.py     the ffmpeg child process, and the meaning of its messages
"""

from turbovaed_cli.video.codecs import find_codec
from turbovaed_cli.video.input_streams import Track
from turbovaed_cli.video.pixels import to_model, to_uint8, to_uint16, to_unit
from turbovaed_cli.video.probing import VideoInfo, notes_on, probe
from turbovaed_cli.video.reading import read_clip, read_clip_uint8, read_frames, reading_identity
from turbovaed_cli.video.sources import (
    VIDEO_SUFFIXES,
    as_text,
    frames_in,
    list_videos,
    names_of_videos,
    sha256_of_video,
    stamp_of,
)
from turbovaed_cli.video.timing import Timing
from turbovaed_cli.video.writing import VideoWriter, check_output, write_video

__all__ = [
    "VIDEO_SUFFIXES",
    "Timing",
    "Track",
    "VideoInfo",
    "VideoWriter",
    "as_text",
    "check_output",
    "find_codec",
    "frames_in",
    "list_videos",
    "names_of_videos",
    "notes_on",
    "probe",
    "read_clip",
    "read_clip_uint8",
    "read_frames",
    "reading_identity",
    "sha256_of_video",
    "stamp_of",
    "to_model",
    "to_uint8",
    "to_uint16",
    "to_unit",
    "write_video",
]
