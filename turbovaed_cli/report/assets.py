"""The files that pages are made of."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined, Template

_MACROS = ("plot.html", "clip.html", "testcard.html")


def asset(name: str) -> str:
    """Return the text of a file in this folder."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def source_expression(text: str) -> str:
    """Return the source expression that allows exactly this text in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache  # a run fills the same page at every checkpoint
def template(name: str) -> Template:
    """Return a page template: every value is escaped, and a missing one is an error."""
    pages = Environment(
        loader=DictLoader({one: asset(one) for one in (name, *_MACROS)}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["in_options"] = in_options
    return pages.get_template(name)


def in_options(text: str) -> str:
    """Return a message with the arguments that it names in backticks as options: `clips_per_video` as --clips-per-video."""
    return re.sub(r"`([a-z][a-z_0-9]*)`", lambda found: f"--{found[1].replace('_', '-')}", text)
