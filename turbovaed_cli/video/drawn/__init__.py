"""Clips for training that are drawn, not filmed, and changes to the colours of filmed ones: both are functions of a text.

clips.py      which kinds of clips there are, and the draw of one
colours.py    random colours and palettes
fields.py     clips that a formula gives: flats, ramps, bars, checkerboards, gratings, zone plates
figures.py    clips of shapes, lines, mosaics and letters, which may move
noise.py      noise of several kinds
recolour.py   other colours for a filmed clip, and drawn parts on top of it
"""

from turbovaed_cli.video.drawn.clips import KINDS, VERSION, draw_clip, kind_of
from turbovaed_cli.video.drawn.recolour import recoloured

__all__ = ["KINDS", "VERSION", "draw_clip", "kind_of", "recoloured"]
