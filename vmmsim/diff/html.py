"""A report as one HTML file, which needs nothing else and has no scripts."""

from __future__ import annotations

from html import escape

from .report import Report

__all__ = ["html"]

_STYLE = """
body { font: 14px/1.5 ui-monospace, Menlo, Consolas, monospace; margin: 2em auto; max-width: 72em;
       padding: 0 1em; color: #1c1e21; background: #fff }
h1 { font-size: 1.2em } h2 { font-size: 1em; margin: 1.4em 0 .2em }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.a { color: #0b5394 } .b { color: #a61c00 } .note { color: #666 }
.here { background: #fff3b0 }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181a1b } .a { color: #7ab8f5 } .b { color: #ff9e80 }
  .note { color: #999 } .here { background: #4a4000 } }
"""


def html(report: Report) -> str:
    """The report as a page: what is shown is `Report.lines()`."""
    parts = []
    for kind, text in report.lines():
        if kind == "head":
            parts.append(f"<h1>{escape(text)}</h1>")
        elif kind == "part":
            parts.append(f"<h2>{escape(text)}</h2>")
        else:
            name = f' class="{kind}"' if kind else ""
            parts.append(f"<pre{name}>{escape(text)}</pre>")
    title = escape(report.headline())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
