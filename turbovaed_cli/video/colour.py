"""Colours: the standard that a video's numbers follow, and the filters from there to the R'G'B' of BT.709 that models see.

Colours that a file does not state follow the rules of players: BT.709 from 720 lines up, BT.601 below. HDR is converted in
one way, with fixed numbers, so that the same file gives the same bytes on every machine.
"""

from dataclasses import dataclass, replace

SWS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_HD_LINES = 720
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_WIDE = {"bt2020": "BT.2020", "smpte428": "CIE XYZ", "smpte431": "DCI-P3", "smpte432": "Display P3"}
# Matrices and transfers that exist only in BT.2020.
_OF_BT2020 = ("bt2020nc", "bt2020c", "bt2020-10", "bt2020-12", "bt2020_10bit", "bt2020_12bit", "ictcp")
# Matrices that the scaler can convert, and those that only zscale can.
_SCALER_MATRICES = ("bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
_OTHER_MATRICES = ("ycgco", "bt2020c", "chroma-derived-nc", "chroma-derived-c", "ictcp")
# ITU-R BT.2408: reference white of HDR is at 203 nits; most material is graded on 1000-nit displays.
_WHITE_NITS = 203
_PEAK_NITS = 1000


@dataclass(frozen=True)
class Colour:
    """The colour standard of a picture, in ffmpeg's names."""

    is_rgb: bool
    matrix: str  # of Y'CbCr; the one that players assume if the file does not state it
    primaries: str  # "" if the file does not state them, and they are not wide
    transfer: str  # "" if the file does not state it
    range: str  # tv or pc, "" if the file does not state it
    is_matrix_stated: bool

    @property
    def is_hdr(self) -> bool:
        """Whether its transfer is PQ or HLG."""
        return self.transfer in _HDR

    @property
    def is_converted(self) -> bool:
        """Whether its colours are not those of BT.709, so that another matrix is not enough."""
        return self.is_hdr or self.primaries in _WIDE

    @property
    def has_odd_matrix(self) -> bool:
        """Whether the scaler cannot convert it to R'G'B'."""
        return not self.is_rgb and self.matrix not in _SCALER_MATRICES

    @property
    def is_known(self) -> bool:
        """Whether it can be converted to R'G'B' at all."""
        if self.is_hdr and self.matrix in ("bt2020c", "chroma-derived-c"):  # a constant luminance, which PQ and HLG do not have
            return False
        return not self.has_odd_matrix or self.matrix in _OTHER_MATRICES

    @property
    def needs_zscale(self) -> bool:
        """Whether the scaler alone is not enough."""
        return self.is_converted or self.has_odd_matrix

    @property
    def name(self) -> str:
        """The name of the standard for people, such as "HDR (PQ, BT.2020)"."""
        gamut = _WIDE.get(self.primaries, self.primaries or "BT.709")
        return f"HDR ({_HDR[self.transfer]}, {gamut})" if self.is_hdr else f"{gamut} in SDR"


def colour_of(pixel_format: str, range_: str, matrix: str, primaries: str, transfer: str, lines: int) -> Colour:
    """Return the colour standard for a picture's tags; "" is a missing tag. `lines` is the number of stored rows."""
    is_rgb = pixel_format.startswith(
        ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "pal", "x2rgb", "x2bgr", "mono", "xyz")
    )
    if not primaries and (transfer in _HDR or matrix in _OF_BT2020 or transfer in _OF_BT2020):
        primaries = "bt2020"
    stated = bool(matrix) and matrix != "gbr"
    if not stated:
        matrix = "bt2020nc" if primaries == "bt2020" else "bt709" if lines >= _HD_LINES else "smpte170m"
    return Colour(is_rgb, matrix, primaries, transfer, range_, stated)


def how_it_is_shown(colour: Colour) -> tuple[str, ...]:
    """Return a tuple with the note about colours that are converted; empty if they are not."""
    if colour.is_hdr:
        return (f"{colour.name}: tone-mapped to SDR",)
    return (f"{colour.name}: converted to BT.709",) if colour.is_converted else ()


def to_rgb(colour: Colour, size: tuple[int, int] | None, *, has_alpha: bool = False) -> list[str]:
    """Return the filters to R'G'B' of BT.709 for rgb24, scaled to `size` (height, width) if given, transparency over black."""
    scale = f"scale={size[1]}:{size[0]}:flags={SWS}" if size else f"scale=flags={SWS}"
    filters = []
    if has_alpha:  # multiplied before scaling: invisible colours would bleed into their neighbours
        # On integers, premultiply darkens opaque pixels. Only rgba converts to floats exactly.
        filters += [_with_matrix(colour, f"scale=flags={SWS}"), *([] if colour.needs_zscale else ["format=rgba"])]
        filters += ["format=gbrapf32le", "premultiply=inplace=1", "format=gbrpf32le"]
        colour = replace(colour, is_rgb=True)
    if not colour.needs_zscale:
        return [*filters, _with_matrix(colour, scale)]
    # zscale needs sizes that the chroma subsampling divides; without subsampling, any size works.
    filters += [scale, f"format={'gbrp12le' if colour.is_rgb else 'yuv444p12le'}"]
    given = f"zscale=min={'gbr' if colour.is_rgb else colour.matrix}:pin={colour.primaries or 'bt709'}"
    given += f":tin={colour.transfer if colour.is_hdr else 'bt709'}"
    if not colour.is_hdr:
        return [*filters, f"{given}:p=bt709:t=bt709:m=gbr:r=full", "format=gbrp"]
    return [
        *filters,
        f"{given}:t=linear:npl={_WHITE_NITS}:m=gbr",
        "format=gbrpf32le",
        "zscale=p=bt709",
        f"tonemap=mobius:desat=0:peak={_PEAK_NITS / _WHITE_NITS:.6f}",
        "zscale=t=bt709:m=gbr:r=full",
        "format=gbrp",
    ]


def readable(colour: Colour) -> list[str]:
    """Return the first filter, which makes the scaler accept an odd matrix; `to_rgb` gives zscale the true one."""
    return ["setparams=colorspace=bt709"] if colour.has_odd_matrix else []


def _with_matrix(colour: Colour, scale: str) -> str:
    """Return `scale` with the input matrix, if the file does not state it: the scaler would assume BT.601."""
    return (
        scale
        if colour.is_rgb or colour.is_matrix_stated
        else f"{scale}:in_color_matrix={_SCALER.get(colour.matrix, colour.matrix)}"
    )


_SCALER = {"bt2020nc": "bt2020"}  # the scaler's own names
