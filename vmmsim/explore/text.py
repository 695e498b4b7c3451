"""Text that can be in a page."""

from __future__ import annotations

from html import escape

__all__ = ["clean", "escaped"]


def clean(text: str) -> str:
    """Without lone surrogates, which UTF-8 cannot hold: each becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def escaped(text: str) -> str:
    """As the text of an element or the value of an attribute."""
    return escape(clean(text))
