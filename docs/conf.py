"""Sphinx: builds without a network, and takes a warning for an error (``make docs``)."""

from importlib.metadata import version as version_of

project = "trio_sessions"
author = "The trio_sessions contributors"
copyright = "2026, The trio_sessions contributors"
version = release = version_of("trio_sessions")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",  # shows "await" before what is awaited
]
exclude_patterns = ["_build", "reliability"]  # the latter is included in reliability.md

html_theme = "furo"
html_title = f"trio_sessions {release}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "py:obj"  # docstrings name things in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
