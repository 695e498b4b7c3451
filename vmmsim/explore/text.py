"""Text that can be in a page."""

from __future__ import annotations

import re
from html import escape

__all__ = ["clean", "escaped"]


def clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold: each becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


#: Controls but for line ends and tabs, and what turns the direction of text around.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escaped(text: str) -> str:
    """As the text of an element or the value of an attribute; what cannot be seen is named."""
    return escape(_UNSEEN.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", clean(text)))
