"""What stands on the envelope of a letter, and what is in it.

A letter is a JSON array of two: a head, which says what it is, and the contents, which are passed
on as they are until somebody wants them::

    [["topic", topic, sender, number], message]  to whoever listens

    [["moved"], session id]                      to the older holder, by the new one
    [["said"], [[session id, what], ...]]        to the holder, by who has changed that

    [["call", caller, number, name, timeout, window], payload]        caller to callee
    [["leave", caller, number], null]            nobody waits for the answer any more
    [["taken", caller, number, taken], null]     so many items of a stream are consumed
    [["beat", caller], [[number, taken], ...]]   these calls are still waited for

    [["answer", number], value]                  callee to caller
    [["items", number, first], [item, ...]]      of a stream; `first` were sent before these
    [["last", number, first, sent], [item, ...]] the last ones, and the end
    [["end", number, sent], null]
    [["failed", number, sent], {"type": ..., "message": ..., "gone": ...}]
    [["alive", callee], [[number, ...], [number, ...], [[number, left], ...]]]
                                                 running here; not running; items left of streams

A worker's letters to another one come in order, at most once, and may be sent again by us: so what
belongs to a stream is counted, and what comes twice is ignored. A database that goes back brings
letters again, and forgets some: so calls and messages are counted, too (`_seen`), and a callee says
how many items it has left so far, of which none can be behind that word. ``window`` 0 is a plain
call.
"""

import json
from dataclasses import dataclass
from typing import Any

from trio_sessions._json import encode

__all__ = ["Letter", "seal", "unseal"]

_HEAD = 16_384  # bytes; names have at most 255 characters
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A letter that was opened."""

    head: list[Any]
    contents: str
    """JSON, as the sender has written it."""


def seal(*head: str | float, contents: str = "null") -> str:
    """Return a letter's JSON."""
    return f"[{encode(list(head), what='the head of a letter', limit=_HEAD)},{contents}]"


def unseal(text: str) -> Letter | None:
    """Return the letter; None: it is none.

    Raises:
        RecursionError: its head is nested too deeply; none of ours is.
    """
    try:
        head, end = _DECODER.raw_decode(text, text.index("[") + 1)
    except ValueError:
        return None
    rest = text[end:].strip()
    if not isinstance(head, list) or not (rest.startswith(",") and rest.endswith("]")):
        return None
    return Letter(head=head, contents=rest[1:-1].strip())
