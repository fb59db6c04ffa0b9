"""Files that pages are made of."""

import base64
import hashlib
from importlib.resources import files


def asset(name: str) -> str:
    """The text of a file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def source_expression(text: str) -> str:
    """What allows this very text, and no other, in a content security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
