"""Published speeds, and the estimate computed from them; never shown in one column with measurements of this run."""

from dataclasses import dataclass

SOURCE = "arXiv:2508.09136, tables of speed; fp16 on the phone"


@dataclass(frozen=True)
class PublishedSpeed:
    """Frames per second of one model at one size: on the authors' GPU and on an iPhone 16 Pro."""

    size: tuple[int, int]
    frames: int  # of one decode
    gpu: tuple[float | None, float]  # teacher, student
    phone: tuple[float | None, float]
    gmacs: float  # of one decode by the student (736x1280 for 720p, a multiple of 32)


# By registry name. GMACs are those of our export form (`export/cost.py`); a test counts them again.
SPEEDS: dict[str, tuple[PublishedSpeed, ...]] = {
    "ltx": (
        PublishedSpeed((512, 512), 17, (290.6, 841.6), (17.7, 161.8), 406.32),
        PublishedSpeed((720, 1280), 17, (None, 255.6), (None, 38.1), 1460.23),
    ),
    "hunyuan": (PublishedSpeed((512, 512), 17, (10.1, 87.5), (None, 10.6), 3298.64),),
    "cogvideox": (PublishedSpeed((512, 512), 17, (10.6, 87.5), (None, 10.6), 3298.64),),
    "video-dc-ae": (
        PublishedSpeed((512, 512), 20, (12.4, 552.5), (None, 112.7), 780.30),
        PublishedSpeed((720, 1280), 20, (None, 167.0), (None, 25.3), 2804.21),
    ),
}


@dataclass(frozen=True)
class Estimate:
    """Frames per second that a device would reach if this graph used its arithmetic units as well as the published ones did."""

    device: str
    fps_low: float
    fps_high: float
    how: str


def phone_rates() -> list[float]:
    """Return the multiply-accumulates per second, in 10^9, that the published figures of the iPhone 16 Pro imply."""
    return [speed.gmacs / speed.frames * speed.phone[1] for rows in SPEEDS.values() for speed in rows]


def smallest_gmacs() -> float:
    """Return the GMACs of the smallest graph with published figures for the phone."""
    return min(speed.gmacs for rows in SPEEDS.values() for speed in rows)


def why_no_estimate(gmacs: float) -> str:
    """Return why the roofline gives no estimate for a graph, or "". Small graphs are bound by latency and stay far below it."""
    if gmacs >= (least := smallest_gmacs()):
        return ""
    return f"no estimate for an iPhone: the graph has {gmacs:.3g} GMAC, the smallest with published figures {least:.0f}"


def estimate_on_phone(gmacs: float, frames: int) -> Estimate | None:
    """Estimate the phone's speed by a roofline; None if there is a reason against it, see why_no_estimate.

    It takes the `gmacs` of one decode of `frames` frames at the slowest and at the fastest published rate.
    """
    if why_no_estimate(gmacs):
        return None
    rates = phone_rates()
    low, high = (frames * rate / gmacs for rate in (min(rates), max(rates)))
    how = f"{gmacs:.0f} GMAC a decode, at {2 * min(rates) / 1e3:.1f} to {2 * max(rates) / 1e3:.1f} TFLOP/s ({SOURCE})"
    return Estimate("iPhone 16 Pro", low, high, how)
