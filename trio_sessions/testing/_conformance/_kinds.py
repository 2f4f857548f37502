"""Whether a value is of the type that is expected, down to what it is made of."""

import collections.abc
import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["misfits"]

_ANY_OF: dict[type[Any], type[Any]] = {
    frozenset: collections.abc.Set,
    list: collections.abc.Sequence,
}
"""What does as well: nobody changes an answer."""


def misfits(value: object, hint: Any) -> Iterator[str]:
    """Say what in a value is not of its type, one line each: what it is, and what is expected.

    Args:
        value: what a method has returned.
        hint: what it should return: a class, ``None``, or a union, sequence, set, mapping or tuple
            of these. Fields of dataclasses are looked at likewise.
    """
    if not _is_of(value, hint):
        yield f"{_described(value)}; expected is {_name(hint)}"
        return
    if dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value))
        for field in dataclasses.fields(value):
            for wrong in misfits(getattr(value, field.name), hints[field.name]):
                yield f"{type(value).__name__} with {field.name}: {wrong}"
    for part, of in _parts(value, hint):
        for wrong in misfits(part, of):
            yield f"{type(value).__name__} with {wrong}"


def _is_of(value: object, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in {Union, types.UnionType}:
        return any(_is_of(value, one) for one in get_args(hint))
    if hint is float:
        return isinstance(value, int | float)
    wanted: type[Any] = get_origin(hint) or hint or type(None)
    return isinstance(value, _ANY_OF.get(wanted, wanted))


def _parts(value: Any, hint: Any) -> Iterator[tuple[object, Any]]:
    """Return what a container holds, each with its type."""
    of, container = get_args(hint), get_origin(hint)
    if container is collections.abc.Mapping:
        yield from ((key, of[0]) for key in value)
        yield from ((one, of[1]) for one in value.values())
    elif container is tuple:
        yield from zip(value, of, strict=False)
    elif container in {list, frozenset, collections.abc.Sequence}:
        yield from ((one, of[0]) for one in value)


def _described(value: object) -> str:
    return "None" if value is None else f"{type(value).__name__} {value!r:.80}"


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)
