"""Sphinx: `sphinx-build -W docs docs/_build`."""

project = "vmmsim"
author = "The vmmsim authors"
copyright = "The vmmsim authors, MIT licence"

extensions = ["myst_parser"]
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
