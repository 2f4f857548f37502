"""The reference has every public name, and every type that what is public returns."""

import enum
import importlib
import inspect
import re
import runpy
import types
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Literal

import pytest
from sphinx.ext.napoleon.docstring import GoogleDocstring
from test_public_surface import MODULES, public_functions

import trio_sessions.types
from trio_sessions import abc, revocation, writes
from trio_sessions import inspection as inspected

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


@pytest.mark.parametrize("name", ["trio_sessions", "trio_sessions.aio"])
def test_every_method_of_a_registry_is_in_the_reference(name: str) -> None:
    """Its entry leaves no name out: it lists none, and shows the inherited ones too."""
    [options] = [
        options
        for directive, what, options in DIRECTIVE.findall(REFERENCE)
        if (directive, what) == ("autoclass", f"{name}.SessionRegistry")
    ]
    assert options.split() == [":members:", ":inherited-members:"]
    for method, function in public_functions(importlib.import_module(name).SessionRegistry):
        assert inspect.getdoc(function), f"Sphinx shows no {method} without a docstring"


class Extended:
    """The part of Sphinx that docs/conf.py extends."""

    def __init__(self) -> None:
        self.listeners: list[tuple[str, int, Callable[..., None]]] = []

    def connect(self, event: str, listener: Callable[..., None], priority: int = 500) -> None:
        self.listeners.append((event, priority, listener))


@pytest.mark.parametrize("what", ["attribute", "data", "property"])
def test_no_sentence_about_an_attribute_is_torn_apart(
    what: Literal["attribute", "data", "property"],
) -> None:
    """Napoleon alone would take what stands before the first colon for a type."""
    app = Extended()
    runpy.run_path(str(ROOT / "docs/conf.py"))["setup"](app)
    [(event, priority, listener)] = app.listeners
    assert (event, priority < 500) == ("autodoc-process-docstring", True)
    lines = ["Removed: it was told so.", "", "Raises:", "    OSError: none."]

    def shown() -> list[str]:
        return GoogleDocstring(lines, what=what, name="removed").lines()

    assert ":type: Removed" in shown()
    listener(app, what, "removed", None, None, lines)
    assert shown()[2:5] == ["Removed: it was told so.", "", ":raises OSError: none."]


VALUES = [
    value
    for module in (abc, inspected, revocation, trio_sessions.types, writes)
    for value in map(vars(module).get, module.__all__)
    if inspect.isclass(value) and (is_dataclass(value) or issubclass(value, enum.Enum))
    if value.__module__ != "trio_sessions._reports"  # not for stores
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value.__name__)
def test_help_says_what_each_field_means(value: type) -> None:
    """Whoever writes a store has no need of the source."""
    fields = list(value) if issubclass(value, enum.Enum) else vars(value)["__annotations__"]
    said = re.findall(r"^    (\w+): ", inspect.getdoc(value) or "", re.MULTILINE)
    assert said == [getattr(field, "name", field) for field in fields]
