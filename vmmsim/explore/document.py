"""The page itself: a fixed shell, its style and scripts from `assets`, and the run as packed data.

The page loads nothing and runs nothing but its own script: a Content-Security-Policy names that
script and the style by their hashes. What a guest printed or is called reaches the page as packed,
base64-coded data and as escaped text, and the script makes text nodes of it, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from functools import cache
from importlib.resources import files

import msgspec

from ..exits import EXITS
from ..trace.records import Trace
from .compare import compare
from .payload import run_data
from .summary import heading, summary
from .text import clean, escaped

__all__ = ["SCRIPTS", "STYLES", "page"]

#: In the order in which they stand in the page.
STYLES = ("theme.css", "layout.css", "timeline.css", "list.css", "cards.css")
SCRIPTS = (
    "text.js", "cpu.js", "run.js", "query.js", "view.js", "list.js", "timeline.js", "draw.js", "cards.js",
    "code.js", "details.js", "header.js", "state.js", "keys.js", "app.js",
)  # fmt: skip

_PACK_LEVEL = 3


def page(trace: Trace, other: Trace | None = None, *, title: str = "") -> bytes:
    """An HTML file, in UTF-8, that shows `trace`; with `other` the two side by side.

    `title` is the page's; without one it is the guest's name. Any trace has a page, a plain one and
    one without an end too. What came from the guest stays text there, whatever it is.
    """
    traces = (trace,) if other is None else (trace, other)
    heading_text = clean(title or heading(traces))
    data = {
        "title": heading_text,
        "kvm": {cls.kind: cls.kvm for cls in EXITS},
        "runs": [run_data(each) for each in traces],
        "compare": None if other is None else compare(trace, other),
    }
    packed = base64.b64encode(zlib.compress(msgspec.json.encode(data), _PACK_LEVEL)).decode("ascii")
    shell, style, script = _assets()
    parts = {
        "@policy@": escaped(
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "@title@": escaped(heading_text),
        "@style@": style,
        "@summary@": summary(traces),
        "@data@": packed,
        "@script@": script,
    }
    # Split once, so that no part is searched for the names of others.
    pieces = []
    rest = shell
    for name, value in parts.items():
        before, _, rest = rest.partition(name)
        pieces += [before, value]
    return "".join((*pieces, rest)).encode("utf-8")


@cache
def _assets() -> tuple[str, str, str]:
    """The shell, the style and the script, which is one strict function."""
    folder = files(__package__) / "assets"

    def read(names: tuple[str, ...]) -> str:
        return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)

    script = '(() => {\n"use strict";\n' + read(SCRIPTS) + "\n})();\n"
    return read(("shell.html",)), read(STYLES), script


def _hash(text: str) -> str:
    """A source of a Content-Security-Policy: the element's text, exactly as it stands in the page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
