"""VMAF, by the libvmaf inside ffmpeg. Frames go to it raw, through a pipe: no encoder touches them."""

import re

import numpy as np
from torch import Tensor

from turbovaed_cli.errors import MissingError, VideoError
from turbovaed_cli.video import ffmpeg, messages, to_uint8

MODEL = "vmaf_v0.6.1"  # libvmaf's default, built in
MIN_SIDE = 17  # pixels; frames of 16 crash libvmaf
_PATIENCE_S = 120.0  # seconds for one frame: a large one on a busy machine
# VMAF was fitted on limited-range luma. There is no chroma subsampling, and rounding is exact, so nothing else is lost.
_TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,format=yuv444p"


def check_vmaf() -> None:
    """Raise MissingError if this machine's ffmpeg has no libvmaf."""
    if not ffmpeg.has_filter("libvmaf"):
        raise MissingError("this ffmpeg has no libvmaf filter", "pip install imageio-ffmpeg: its ffmpeg for Linux x86-64 has one")


def vmaf(video: Tensor, source: Tensor) -> float:
    """Return the VMAF of a clip, a predicted mean opinion from 0 to 100, higher is better; the mean over frames.

    Both (3, T, H, W) in [-1, 1], rounded to 8 bits. Identical clips score a little below 100. VMAF looks at luma only, and
    was fitted on 1080p seen from three screen heights: scores of small frames are comparable with each other only. Source:
    Li et al. 2016 (Netflix), model vmaf_v0.6.1. Raises MissingError without libvmaf, VideoError if ffmpeg fails.
    """
    check_vmaf()
    return compared(f"libvmaf=model=version={MODEL}", r"VMAF score: ([\d.]+)", to_uint8(video), to_uint8(source), _TO_YUV)


def compared(filter_name: str, pattern: str, frames: np.ndarray, source: np.ndarray, conversion: str) -> float:
    """Return the score that an ffmpeg filter with two inputs logs for frames and their source, both (T, H, W, 3) uint8.

    The score is group 1 of `pattern`. Both go side by side through one pipe, so that neither runs ahead of the other;
    `conversion` is applied to each. Raises VideoError if ffmpeg gives no score.
    """
    _, height, width, _ = frames.shape
    graph = (
        f"[0:v]split[a][b];[a]crop={width}:{height}:0:0:exact=1,{conversion}[video];"
        f"[b]crop={width}:{height}:{width}:0:exact=1,{conversion}[source];[video][source]{filter_name}"
    )
    arguments = [
        "-loglevel",
        "info",
        "-nostats",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{2 * width}x{height}",
        "-r",
        "25",
    ]
    with ffmpeg.Child(
        [*arguments, "-i", "pipe:0", "-filter_complex", graph, "-f", "null", "-"], feed=True, patience_s=_PATIENCE_S
    ) as child:
        for pair in np.concatenate([frames, source], axis=2):
            child.write(np.ascontiguousarray(pair).data.cast("B"))
        code = child.finish()
        found = re.search(pattern, "\n".join(child.messages))
    if code != 0 or found is None:
        reasons = [line for line in child.messages if re.search(r"error|fail|invalid|cannot|problem", line, re.IGNORECASE)]
        raise VideoError(
            f"ffmpeg's {filter_name.partition('=')[0]} gave no score for {width}x{height}: {messages.first_error(reasons) or f'it ended with code {code}'}"
        )
    return float(found[1])
