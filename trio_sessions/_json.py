"""Messages and capabilities as JSON text, encoded strictly and within a size."""

import math

import orjson

from trio_sessions.errors import MessageTooLarge

__all__ = ["decode", "encode"]

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
        raise MessageTooLarge(f"{what} has {len(encoded)} bytes, max_message_bytes is {limit}")
    if b"null" in encoded and _has_no_number(value):  # orjson writes null for NaN
        raise ValueError(f"{what} cannot be carried by JSON: it has NaN or infinity in it")
    return encoded.decode()


def decode(encoded: str) -> object:
    """Return a fresh value: whoever gets it may change it."""
    value: object = orjson.loads(encoded)
    return value


def _has_no_number(value: object) -> bool:
    """Say whether there is a NaN or an infinity in a value that was encoded."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_no_number, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_no_number, value))
    return False
