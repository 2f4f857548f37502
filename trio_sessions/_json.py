"""Messages and capabilities as JSON text, encoded strictly and within a size.

orjson is fast, and refuses two things that JSON can carry: integers of more than 64 bits, and
deep nesting. For these there is a slower way, in both directions, that takes whatever there is.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson

from trio_sessions.errors import MessageTooLarge, StoreUnavailable

__all__ = ["decode", "decode_object", "encode", "encode_object", "size_of"]

_NO_OBJECT = "the database has something else where a JSON object must be: who has written it?"
_OBJECT = 65_536  # bytes of the data of a worker or a session: every worker may read it

_PLAIN = frozenset({str, int, bool, type(None)})
# What orjson would carry although JSON has no word for it.
_STRICT = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# orjson reads an integer of more than 64 bits as a float.
_HAS_LONG_NUMBER = re.compile(r"\d{19}").search
_DECODER = json.JSONDecoder()
_TOKEN = re.compile(r'[ \t\n\r]*(?:([\[\]{},:"])|([^\s\[\]{},:"]+))')


def size_of(text: str) -> int:
    """Return the bytes that a text takes, encoded."""
    return len(text) if text.isascii() else len(text.encode())


def encode(value: object, *, what: str, limit: int, limit_name: str = "max_message_bytes") -> str:
    """Return ``value`` as JSON.

    Args:
        value: what is to be encoded.
        what: names it in errors.
        limit: bytes that it may take.
        limit_name: names that in errors.

    Raises:
        TypeError: JSON cannot carry it; also a key that is no `str`, and text that is no UTF-8.
        ValueError: it has NaN or infinity in it, or contains itself.
        MessageTooLarge: it has more than ``limit`` bytes.
    """
    try:
        encoded = orjson.dumps(value, option=_STRICT)
    except orjson.JSONEncodeError:
        encoded = _encode_slowly(value, what, limit, limit_name)
    if len(encoded) > limit:
        raise MessageTooLarge(f"{what} would take {len(encoded)} bytes, {limit_name} is {limit}")
    _check(value, what)
    return encoded.decode()


def encode_object(value: object, *, what: str) -> str:
    """Return a mapping as a JSON object of at most 65,536 bytes; it raises as `encode`."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a mapping that JSON can carry, not {type(value).__name__}")
    return encode(dict(value), what=what, limit=_OBJECT, limit_name="the limit")


def decode_object(encoded: str | None) -> dict[str, Any] | None:
    """Return a fresh dict, of what a store has; None: nothing.

    Raises:
        StoreUnavailable: it is no JSON object; somebody else has written it.
    """
    if encoded is None:
        return None
    try:
        decoded = decode(encoded)
    except (ValueError, LookupError) as exc:
        raise StoreUnavailable(_NO_OBJECT) from exc
    if not isinstance(decoded, dict):
        raise StoreUnavailable(_NO_OBJECT)
    return decoded


def decode(encoded: str) -> object:
    """Return a fresh value: whoever gets it may change it."""
    value: object
    try:
        if _HAS_LONG_NUMBER(encoded) is None:
            value = orjson.loads(encoded)
            return value
        value = json.loads(encoded)
    except (orjson.JSONDecodeError, RecursionError):
        value = _decode_deep(encoded)
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


# ---- the slow way ----


def _encode_slowly(value: object, what: str, limit: int, limit_name: str) -> bytes:
    """Encode what nests deeper, or counts further, than orjson can."""
    pieces: list[str] = []
    size = 0
    open_: list[tuple[Iterator[tuple[str, object]], str, int]] = []
    """Containers that have begun: what follows in them, how they end, and their identity."""
    inside: set[int] = set()
    separator, item = "", value
    while True:
        pieces.append(separator)
        if isinstance(item, dict | list | tuple):
            if id(item) in inside:
                raise ValueError(f"{what} cannot be carried by JSON: it contains itself")
            inside.add(id(item))
            begin, end = "{}" if isinstance(item, dict) else "[]"
            pieces.append(begin)
            open_.append((_items(item, what), end, id(item)))
        else:
            pieces.append(_scalar(item, what))
        size += len(pieces[-1])
        if size > limit:
            raise MessageTooLarge(f"{what} takes more than {limit_name}, which is {limit}")
        following = None
        while open_ and following is None:
            items, end, identity = open_[-1]
            following = next(items, None)
            if following is None:
                open_.pop()
                inside.discard(identity)
                pieces.append(end)
        if following is None:
            return "".join(pieces).encode()
        separator, item = following


def _items(container: object, what: str) -> Iterator[tuple[str, object]]:
    """Yield the items of a list or dict, each with the JSON in front of it: a comma, its key."""
    if isinstance(container, dict):
        for place, (key, item) in enumerate(container.items()):
            if not isinstance(key, str):
                raise TypeError(f"{what} cannot be carried by JSON: a key of it is no str")
            yield ("," if place else "") + _scalar(key, what) + ":", item
    else:
        assert isinstance(container, list | tuple)
        for place, item in enumerate(container):
            yield "," if place else "", item


def _scalar(item: object, what: str) -> str:
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError:
            raise TypeError(f"{what} cannot be carried by JSON: text that is no UTF-8") from None
    elif not (item is None or isinstance(item, int | float)):
        raise TypeError(f"{what} cannot be carried by JSON: it has a {type(item).__name__} in it")
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False)
    except ValueError as exc:
        raise ValueError(f"{what} cannot be carried by JSON: {exc}") from None


def _decode_deep(encoded: str) -> object:
    """Decode what nests deeper than a recursive decoder can follow."""
    stack: list[dict[str, object] | list[object]] = []
    keys: list[str] = []
    place = 0
    value: object = None
    while place < len(encoded):
        token = _TOKEN.match(encoded, place)
        if token is None:
            break
        place = token.end()
        mark, word = token.groups()
        if mark in {"{", "["}:
            stack.append({} if mark == "{" else [])
            continue
        if mark in {",", ":"}:
            continue
        if mark == '"':
            text, place = _DECODER.raw_decode(encoded, place - 1)
            value = text
            following = _TOKEN.match(encoded, place)
            if following is not None and following.group(1) == ":":
                keys.append(text)
                place = following.end()
                continue
        elif mark is None:
            value = json.loads(word)
        else:
            value = stack.pop()
        if stack and isinstance(top := stack[-1], dict):
            top[keys.pop()] = value
        elif stack:
            stack[-1].append(value)  # type: ignore[union-attr]  # it is a list
    return value
