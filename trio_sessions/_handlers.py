"""What other workers may call, as a user gives it: checked at the door."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trio_sessions._checks import a_name
from trio_sessions.errors import CallFailed

__all__ = ["CallRefused", "Handler", "Last", "check_handlers", "is_stream"]

Handler = Callable[[Any], Awaitable[Any] | AsyncIterator[Any]]


class CallRefused(CallFailed):
    """The worker that was called is busy, and has done nothing: the call may be made again."""


@dataclass(frozen=True, slots=True)
class Last:
    """What a stream's handler may yield instead of its last item: it is not asked for another.

    So the end of the stream goes with it, in one letter.
    """

    item: Any


def is_stream(handler: Handler) -> bool:
    """Say whether a handler is an async generator function."""
    return inspect.isasyncgenfunction(handler) or inspect.isasyncgenfunction(
        getattr(handler, "__call__", None)  # noqa: B004 -- its own method is looked at
    )


def _is_async(handler: object) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
        getattr(handler, "__call__", None)  # noqa: B004 -- its own method is looked at
    )


def check_handlers(handlers: object) -> Mapping[str, Handler]:
    """Return a copy of ``handlers``, if each is an async function or async generator function.

    Raises:
        TypeError, ValueError: one of them is not, or its name cannot be one.
    """
    if not isinstance(handlers, Mapping):
        raise TypeError(
            f"handlers must be a mapping of names to async functions, not {type(handlers).__name__}"
        )
    for key, handler in handlers.items():
        a_name("the name of a handler in handlers", key)
        if isinstance(handler, type) or not (_is_async(handler) or is_stream(handler)):
            raise TypeError(
                f"handlers[{key!r}] must be an async function of one argument, or an async "
                f"generator function for a stream, not {handler!r}"
            )
    return dict(handlers)
