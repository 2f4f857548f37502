"""Sphinx: builds without a network, and takes a warning for an error (``make docs``)."""

from importlib.metadata import version as version_of

from sphinx.application import Sphinx

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


def keep_whole(  # noqa: PLR0917 -- so Sphinx calls it
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Put an empty comment before what is said of an attribute.

    Napoleon takes what stands before a colon in the first line for the attribute's type.
    """
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]


def setup(app: Sphinx) -> None:
    """Let it come before napoleon, which has 500."""
    app.connect("autodoc-process-docstring", keep_whole, priority=400)
