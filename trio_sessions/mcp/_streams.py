"""How streams are named: by the SDK, and by fastmcp, which puts a random word before each name.

The SDK does not tell its event store which session an event is of, and names streams by the ids
of requests. So that a shared store does not mix them up, fastmcp gives each transport an adapter
that adds a random prefix: ``32:<32 letters>:7``. Here each session has a log of its own, and a
prefix does harm: after a worker's death the next one's adapter has another, and sends nothing that
has the old one. So it is cut off before an event is kept, and put before what a replay returns.
"""

from typing import Any

__all__ = ["behind", "split"]

_WORKING = "fastmcp>=4,<5"


def split(name: str) -> tuple[str, str]:
    """Return the prefix that fastmcp's adapter has put before a stream's name, and the name.

    Args:
        name: as the adapter says it.

    Raises:
        ValueError: there is none.
    """
    digits, colon, rest = name.partition(":")
    if colon and digits.isascii() and digits.isdigit():
        end = int(digits)
        if rest[end : end + 1] == ":":
            start = len(digits) + 1 + end + 1
            return name[:start], name[start:]
    raise ValueError("the name of a stream has no prefix")


def behind(store: Any) -> Any:
    """Return the event store that a manager was given: fastmcp shows an adapter of it.

    Args:
        store: the manager's ``event_store``.

    Raises:
        ImportError: it is fastmcp's, and is not as expected, so that replays would be lost.
    """
    inner, prefix = getattr(store, "_event_store", None), getattr(store, "_stream_prefix", None)
    if inner is not None and isinstance(prefix, str):
        try:
            if split(prefix)[1] == "":
                return inner
        except ValueError:
            pass
    if store is not None and type(store).__module__.startswith("fastmcp.server.session_scoped"):
        raise ImportError(
            f"trio_sessions.mcp works with {_WORKING}: {type(store).__module__}."
            f"{type(store).__name__} of this version names streams in another way"
        )
    return store
