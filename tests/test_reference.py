"""The reference has every public name, and every type that what is public returns."""

import importlib
import inspect
import re
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace
from test_public_surface import MODULES, public_functions

ROOT = Path(__file__).parent.parent
REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")
DIRECTIVE = re.compile(r"^\.\. (auto\w+|data):: ([\w.]+)(?:\(\))?\n((?:   .*\n)*)", re.MULTILINE)


def members(module: str, options: str) -> Iterator[str]:
    """Yield the names that a module's entry shows: those that it lists, or all."""
    found = re.search(r":members:((?:[^:]|\n)*)", options)
    listed = re.findall(r"\w+", found[1]) if found else []
    yield from listed or importlib.import_module(module).__all__


def documented() -> Iterator[str]:
    """Yield the names in the reference, without their modules: facades show some once more."""
    for directive, name, options in DIRECTIVE.findall(REFERENCE):
        if directive == "automodule":
            yield from members(name, options)
        else:
            yield name.rpartition(".")[2]


DOCUMENTED = frozenset(documented())
[EXCLUDED] = re.findall(r":exclude-members: (.*)", REFERENCE)
NOT_SHOWN = frozenset(EXCLUDED.split(", "))
READERS = {"AsyncioReader", "OpenInbox", "Stream"}
"""For ``async with`` and ``async for``: the methods that return them say all of it."""


def returned(function: object) -> Iterator[str]:
    """Yield the names of classes of ours that a function or a property returns."""
    function = function.fget if isinstance(function, property) else function
    if isinstance(function, types.FunctionType):
        annotation = inspect.signature(function).return_annotation
        words = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        yield from re.findall(r"trio_sessions\.[\w.]*\.([A-Z]\w+)", words)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """So is every type that public functions and methods return."""
    module = importlib.import_module(name)
    missing = {public for public in module.__all__ if public not in DOCUMENTED}
    for public in module.__all__:
        value = getattr(module, public)
        methods = dict(public_functions(value)) if inspect.isclass(value) else {}
        shown = [one for method, one in methods.items() if method not in NOT_SHOWN]
        missing |= {one for function in [value, *shown] for one in returned(function)}
    assert missing - DOCUMENTED - READERS == set()


class Shown(NamedTuple):
    """What autodoc has found, as napoleon has left it."""

    what: str
    lines: list[str]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    """Read the reference as `make docs` does."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    (source / "index.md").write_text(REFERENCE, "utf-8")
    found: dict[str, Shown] = {}

    def note(  # noqa: PLR0917 -- so Sphinx calls it
        app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
    ) -> None:
        found[name] = Shown(what, list(lines))

    with docutils_namespace(), warnings.catch_warnings(action="ignore"):  # Sphinx' own
        app = Sphinx(source, ROOT / "docs", out, out, "dummy", status=None, warning=None)
        app.connect("autodoc-process-docstring", note, priority=600)  # after napoleon: 500
        app.builder.read()
    return found


def test_no_sentence_about_an_attribute_is_torn_apart(shown: dict[str, Shown]) -> None:
    """Napoleon would take what stands before the first colon for a type."""
    kinds = {"attribute", "data", "property"}
    attributes = {name: one.lines for name, one in shown.items() if one.what in kinds}
    assert any("Removed: the transport" in line for lines in attributes.values() for line in lines)
    torn = {name for name, lines in attributes.items() for line in lines if line[:6] == ":type:"}
    assert torn == set()
