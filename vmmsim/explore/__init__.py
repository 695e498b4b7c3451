"""The exit explorer: a trace, or two beside each other, as one HTML file that needs nothing else."""

from __future__ import annotations

from .document import page

__all__ = ["page"]
