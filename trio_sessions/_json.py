"""Messages and capabilities as JSON text, encoded strictly and within a size."""

import math
from collections.abc import Iterable

import orjson

from trio_sessions.errors import MessageTooLarge

__all__ = ["decode", "encode"]

_PLAIN = frozenset({str, int, bool, type(None)})
# What orjson would carry although JSON has no word for it.
_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def encode(value: object, *, what: str, limit: int) -> str:
    """Return ``value`` as JSON.

    Raises:
        TypeError: JSON cannot carry it; also a key that is no `str`, an int of more than 64
            bits, and text that is no UTF-8.
        ValueError: it has NaN or infinity in it.
        MessageTooLarge: it has more than ``limit`` bytes.
    """
    try:
        encoded = orjson.dumps(value, option=_STRICT)
    except orjson.JSONEncodeError as exc:
        raise TypeError(f"{what} cannot be carried by JSON: {exc}") from None
    if len(encoded) > limit:
        raise MessageTooLarge(
            f"{what} would take {len(encoded)} bytes, max_message_bytes is {limit}"
        )
    _check(value, what)
    return encoded.decode()


def decode(encoded: str) -> object:
    """Return a fresh value: whoever gets it may change it."""
    value: object = orjson.loads(encoded)
    return value


def _check(value: object, what: str) -> None:
    """Refuse what orjson has turned into something else; there are no cycles in it."""
    unseen: list[object] = [value]
    while unseen:
        one = unseen.pop()
        if isinstance(one, dict):
            children: Iterable[object] = one.values()
        elif isinstance(one, list | tuple):
            children = one
        elif isinstance(one, float):
            if not math.isfinite(one):  # it is null
                raise ValueError(f"{what} cannot be carried by JSON: it has NaN or infinity in it")
            continue
        elif isinstance(one, str | int) or one is None:
            continue
        else:  # a UUID is its text, an enum its value
            raise TypeError(
                f"{what} cannot be carried by JSON: it has a {type(one).__name__} in it"
            )
        if not _PLAIN.issuperset(map(type, children)):
            unseen += [child for child in children if type(child) not in _PLAIN]
