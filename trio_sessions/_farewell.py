"""What is said when a session has ended: to its transport, and to whoever follows the removals."""

import inspect
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from trio_sessions._entry import Entry
from trio_sessions.types import OnRemoved

__all__ = ["disconnecting", "takes_reason", "telling"]

_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}


def disconnecting(entry: Entry) -> Callable[[], object]:
    """Return the call that disconnects a session's transport: told why, if it takes an argument."""
    disconnect: Callable[..., object] = entry.transport.disconnect
    return partial(disconnect, entry.removal) if takes_reason(disconnect) else disconnect


def telling(on_removed: OnRemoved, entry: Entry) -> Callable[[], object]:
    """Return the call that tells of a session's removal."""
    assert entry.removal is not None
    return partial(on_removed, entry.session_id, entry.removal)


def takes_reason(disconnect: Callable[..., object]) -> bool:
    """Say whether a transport's ``disconnect`` is to be told why.

    It is if its first argument must be given, is ``None`` by default, or is called ``reason``.
    Any other default is of an argument that means something else (a close code, a time); and
    ``*args`` is what decorators have, whose inner function may take nothing.
    """
    function = getattr(disconnect, "__func__", None)
    if function is None or isinstance(getattr(disconnect, "__self__", None), type):
        return _takes_reason(disconnect, skip=0)
    return _method_takes_reason(function)


@lru_cache(maxsize=1024)  # classes of transports: a signature costs more than the call
def _method_takes_reason(function: Callable[..., object]) -> bool:
    return _takes_reason(function, skip=1)


def _takes_reason(function: Callable[..., Any], *, skip: int) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):  # some that are written in C have none
        return False
    if not parameters or parameters[0].kind not in _POSITIONAL:
        return False
    first = parameters[0]
    return (
        first.name == "reason" or first.default is None or first.default is inspect.Parameter.empty
    )
