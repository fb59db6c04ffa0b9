"""Colours: which standard a video's numbers follow, and the filters from there to the R'G'B' of BT.709 that models see.

Players' rules for what a file does not say: BT.709 from 720 lines up, BT.601 below. HDR has one route, with fixed numbers, so
that the same file gives the same bytes on every machine.
"""

from dataclasses import dataclass, replace

SWS = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
_HD_LINES = 720
_HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
_WIDE = {"bt2020": "BT.2020", "smpte428": "CIE XYZ", "smpte431": "DCI-P3", "smpte432": "Display P3"}
# Matrices and transfers that only come with BT.2020.
_OF_BT2020 = ("bt2020nc", "bt2020c", "bt2020-10", "bt2020-12", "bt2020_10bit", "bt2020_12bit", "ictcp")
# Matrices by what can undo them: the scaler, or only zscale.
_SCALER_MATRICES = ("bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
_OTHER_MATRICES = ("ycgco", "bt2020c", "chroma-derived-nc", "chroma-derived-c", "ictcp")
# ITU-R BT.2408: reference white of HDR is at 203 nits; most material is graded on 1000-nit displays.
_WHITE_NITS = 203
_PEAK_NITS = 1000


@dataclass(frozen=True)
class Colour:
    """What the numbers of a picture mean, by ffmpeg's names."""

    is_rgb: bool
    matrix: str  # of Y'CbCr; what players assume if the file does not say
    primaries: str  # "" if the file does not say, and they are not wide
    transfer: str  # "" if the file does not say
    range: str  # tv or pc, "" if the file does not say
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
        """Whether the scaler cannot make R'G'B' of it."""
        return not self.is_rgb and self.matrix not in _SCALER_MATRICES

    @property
    def is_known(self) -> bool:
        """Whether anything here can make R'G'B' of it."""
        if self.is_hdr and self.matrix in ("bt2020c", "chroma-derived-c"):  # a luminance that PQ and HLG do not have
            return False
        return not self.has_odd_matrix or self.matrix in _OTHER_MATRICES

    @property
    def needs_zscale(self) -> bool:
        """Whether the scaler alone is not enough."""
        return self.is_converted or self.has_odd_matrix

    @property
    def name(self) -> str:
        """For people, such as "HDR (PQ, BT.2020)"."""
        gamut = _WIDE.get(self.primaries, self.primaries or "BT.709")
        return f"HDR ({_HDR[self.transfer]}, {gamut})" if self.is_hdr else f"{gamut} in SDR"


def colour_of(pixel_format: str, range_: str, matrix: str, primaries: str, transfer: str, lines: int) -> Colour:
    """What a picture's tags mean; "" stands for a tag that is not there. `lines` are its stored rows."""
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
    """The note on colours that change, if they do."""
    if colour.is_hdr:
        return (f"{colour.name}: tone-mapped to SDR",)
    return (f"{colour.name}: converted to BT.709",) if colour.is_converted else ()


def to_rgb(colour: Colour, size: tuple[int, int] | None, *, has_alpha: bool = False) -> list[str]:
    """Filters to R'G'B' of BT.709 for rgb24, scaled to (height, width) if given, with transparent parts over black."""
    scale = f"scale={size[1]}:{size[0]}:flags={SWS}" if size else f"scale=flags={SWS}"
    filters = []
    if has_alpha:  # multiplied before scaling: colours of what cannot be seen would bleed into their neighbours
        # In whole numbers, premultiply darkens what is opaque. To floats, only rgba converts exactly.
        filters += [_with_matrix(colour, f"scale=flags={SWS}"), *([] if colour.needs_zscale else ["format=rgba"])]
        filters += ["format=gbrapf32le", "premultiply=inplace=1", "format=gbrpf32le"]
        colour = replace(colour, is_rgb=True)
    if not colour.needs_zscale:
        return [*filters, _with_matrix(colour, scale)]
    # zscale wants sizes that chroma divides; without chroma to divide, any will do.
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
    """The filter before any other, after which the scaler takes the picture; to_rgb gives zscale the true matrix."""
    return ["setparams=colorspace=bt709"] if colour.has_odd_matrix else []


def _with_matrix(colour: Colour, scale: str) -> str:
    """What the file states, the scaler knows itself; if it states nothing, the scaler would take BT.601."""
    return (
        scale
        if colour.is_rgb or colour.is_matrix_stated
        else f"{scale}:in_color_matrix={_SCALER.get(colour.matrix, colour.matrix)}"
    )


_SCALER = {"bt2020nc": "bt2020"}  # what the scaler calls what others call otherwise
