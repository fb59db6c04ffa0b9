"""Files that pages are made of."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined, Template


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def source_expression(text: str) -> str:
    """What allows this very text, and no other, in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache  # a run fills the same page at every checkpoint
def template(name: str) -> Template:
    """A page to fill: every value is escaped, and one that is missing is an error."""
    pages = Environment(
        loader=DictLoader({name: asset(name)}), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(name)
