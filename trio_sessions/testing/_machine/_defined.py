"""What a subclass of `RegistryMachine` has defined: each mistake is told by the method's name."""

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from trio_sessions.abc import Transport

__all__ = ["begun", "deleted", "made_transport"]

M = TypeVar("M")
P = ParamSpec("P")


def begun(init: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
    """Let an ``__init__`` raise `TypeError` if it forgets that of the machine."""

    @functools.wraps(init)
    def checked(machine: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        init(machine, *args, **kwargs)
        if "_held" not in vars(machine):
            raise TypeError(f"{init.__qualname__} must call super().__init__()")

    return checked


def made_transport(make_transport: Callable[[], Transport]) -> Transport:
    """Return what ``make_transport`` makes; raise `TypeError` if it is none."""
    transport: object = make_transport()
    if inspect.iscoroutine(transport):
        transport.close()
        raise TypeError(
            "make_transport must return a Transport, not a coroutine: it must not be async"
        )
    if not isinstance(transport, Transport):
        raise TypeError(
            "make_transport must return a Transport, with is_connected and disconnect, not "
            f"{type(transport).__name__}"
        )
    return transport


async def deleted(delete_row: Callable[[str], Awaitable[None]], session_id: str) -> None:
    """Delete a row; raise `TypeError` if ``delete_row`` is not async."""
    asked = delete_row(session_id)
    if not inspect.isawaitable(asked):
        raise TypeError(
            f"delete_row must be async; this one returned {type(asked).__name__} at once"
        )
    await asked
