"""MODELS, the table of every registry row by its name."""

from turbovaed_cli.registry.specs import ModelSpec
from turbovaed_cli.registry.teachers.cogvideox import COGVIDEOX
from turbovaed_cli.registry.teachers.hunyuan import HUNYUAN
from turbovaed_cli.registry.teachers.ltx import LTX
from turbovaed_cli.registry.teachers.tiny import TINY
from turbovaed_cli.registry.teachers.video_dc_ae import VIDEO_DC_AE

MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in (LTX, HUNYUAN, COGVIDEOX, VIDEO_DC_AE, TINY)}
DEFAULT_MODEL = TINY.name
