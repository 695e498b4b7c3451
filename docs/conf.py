"""Sphinx: `sphinx-build -W docs docs/_build`."""

import ast
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from sphinx.errors import ExtensionError

# What is documented is the source tree that these pages lie in, whether it is installed or not.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tools")]

project = "vmmsim"
author = "The vmmsim authors"
copyright = "The vmmsim authors, MIT licence"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["deflist"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "vmmsim"
html_theme_options = {
    "light_css_variables": {
        "font-stack--monospace": "ui-monospace, Menlo, Consolas, 'Liberation Mono', monospace"
    }
}

# Docstrings are plain text with `names` in backticks, no reStructuredText: an indented paragraph is
# shown as it stands, and what would mean something is escaped.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
add_module_names = False
toc_object_entries = False
# `type` in an annotation is Python's, not a field of that name.
suppress_warnings = ["ref.python"]
_QUOTED = re.compile(r"(``.*?``|`[^`]*`)", re.DOTALL)
_SPECIAL = re.compile(r"(?<!\A)(?<!\n)([*|]|(?<=\w)_(?=\W|$))")


def _plain(app, what, name, obj, options, lines):
    shown, text = [], ""
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        before, text = text, paragraph
        if text.startswith("    ") and not text.lstrip().startswith(">>>"):
            shown.append(text if before.startswith("    ") else f"::\n\n{text}")
            continue
        parts = _QUOTED.split(text)
        parts[::2] = [_SPECIAL.sub(r"\\\1", part) for part in parts[::2]]
        shown.append("".join(parts))
    lines[:] = "\n\n".join(shown).split("\n")


def _complete(app, error):
    """Fail when a public name is not in the reference, which `__all__` and `tools/docs_api.py` make."""
    if error is not None:
        return
    documented = {name.rpartition(".")[2] for name in app.env.domaindata["py"]["objects"]}
    public = {name for module in _modules() for name in import_module(module).__all__}
    missing = sorted(public - documented - {"__version__"})
    if missing:
        raise ExtensionError(f"public names that are not in the reference: {', '.join(missing)}")


def _modules():
    from docs_api import GROUPS

    return [module for _title, modules in GROUPS.values() for module in modules]


def _name_types(module):
    """Do the imports that a module does for its type checker only: signatures show what they name."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__file__, "exec"), module.__dict__)


def setup(app):
    for module in _modules():
        _name_types(import_module(module))
    app.connect("autodoc-process-docstring", _plain)
    app.connect("build-finished", _complete)
