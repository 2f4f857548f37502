"""The tables of the how-to "write a store" have what there is to write, part by part."""

import re
from collections.abc import Iterator
from pathlib import Path

from trio_sessions import abc
from trio_sessions.abc import SessionStore, Store

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "write-a-store.md").read_text("utf-8")
PARTS = [part for part in (getattr(abc, name) for name in abc.__all__) if issubclass(part, Store)]


def to_write(part: type[Store]) -> Iterator[str]:
    """Yield the abstract methods that a part adds."""
    for name in vars(part):
        if name in part.__abstractmethods__:
            yield name


def test_each_method_of_a_store_is_in_the_table_once() -> None:
    """Nothing that must be written is missing, and there are as many as the page says."""
    listed = re.findall(r"^\| `(\w+Store|Store)\.(\w+)` \|", PAGE, re.MULTILINE)
    needed = [part for part in SessionStore.__mro__ if issubclass(part, Store)]
    must = [(part.__name__, name) for part in needed for name in to_write(part)]
    assert sorted(listed) == sorted(must)
    assert f"that is {len(SessionStore.__abstractmethods__)} methods" in PAGE


def test_each_optional_part_is_in_the_table_with_its_methods() -> None:
    """In the order in which the class has them."""
    listed = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE)
    said = {part: re.findall(r"`(\w+)`", methods) for part, methods in listed}
    optional = [part for part in PARTS if not issubclass(SessionStore, part)]
    assert said == {part.__name__: list(to_write(part)) for part in optional}
