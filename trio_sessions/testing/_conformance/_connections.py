"""What the checks of a transport stand on: what ``connect`` returns, and what that yields."""

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any

from trio_sessions.testing._conformance._transports import Connect, Connection, TransportCheck

__all__ = ["on_a_connection"]

_MUST = (
    "connect must be a function without arguments that returns an async context manager, whose "
    "block has a Connection"
)
_DECORATE = "put @asynccontextmanager over it"
_YIELDS = (
    "connect must yield a Connection, an object with a `transport` and the async methods "
    "`hang_up` and `send`"
)
_METHODS = ("is_connected", "disconnect")
_OF_ASYNCIO = ("no running event loop", "unrecognized yield message")
"""How asyncio, and Trio, say that something of asyncio was awaited by a task of Trio."""
_CROSS = (
    "The checks run under Trio. For a transport of asyncio, let `connect` open a loop by `async "
    "with trio_asyncio.open_loop():`, wrap the transport by trio_sessions.aio.asyncio_transport, "
    "and call what else is asyncio's by trio_asyncio.aio_as_trio: there is an example in the "
    "documentation, in Test your gateway"
)


def on_a_connection(check: TransportCheck) -> TransportCheck:
    """Let a check say what is wrong with what it is given, where that is no connection.

    The check raises:
        TypeError: ``connect`` is no function, or does not return what it must; or a method of the
            transport, or of the connection, is missing, or is not async.
    """

    @functools.wraps(check)
    async def checked(connect: Connect) -> None:
        _expect_function(connect)
        try:
            await check(functools.partial(_connected, connect))
        except (RuntimeError, TypeError, BaseExceptionGroup) as exc:
            if _is_of_asyncio(exc):
                exc.add_note(_CROSS)
            raise

    return checked


def _is_of_asyncio(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return any(map(_is_of_asyncio, exc.exceptions))
    return isinstance(exc, RuntimeError | TypeError) and any(
        words in str(exc) for words in _OF_ASYNCIO
    )


def _expect_function(connect: object) -> None:
    is_opened = isinstance(connect, contextlib.AsyncContextDecorator)  # may be called, by its name
    if callable(connect) and not is_opened:
        return
    if inspect.iscoroutine(connect):
        connect.close()
    if isinstance(connect, AbstractAsyncContextManager):
        what = "the context manager itself"
    else:
        what = type(connect).__name__
    raise TypeError(
        f"{_MUST}, not {what}: where it is a fixture, `return open_connection` without its "
        "parentheses"
    )


@asynccontextmanager
async def _connected(connect: Callable[[], object]) -> AsyncIterator[Connection]:
    """Call ``connect``, and insist that it opens a connection."""
    made = connect()
    if not isinstance(made, AbstractAsyncContextManager):
        raise TypeError(f"{_MUST}, {_returned(made)}")
    async with made as connection:
        yield _Checked(connection)


def _returned(made: object) -> str:
    """Say what ``connect`` returned in place of an async context manager, and what to do."""
    if inspect.iscoroutine(made):
        made.close()
        return (
            "and it is an async function without a yield: let it yield the Connection, and "
            f"{_DECORATE}"
        )
    if inspect.isasyncgen(made):
        return f"and it returns an async generator: {_DECORATE}"
    if inspect.isgenerator(made):
        return f"and it returns a generator: make it `async def`, and {_DECORATE}"
    if isinstance(made, AbstractContextManager):
        return "and it returns a sync one: make it `async def`, under @asynccontextmanager"
    return f"and it returns {_kind(made)}: let it yield the Connection, and {_DECORATE}"


class _Checked:
    """A connection; each of its methods must be there, and async."""

    def __init__(self, connection: object) -> None:
        transport: object = getattr(connection, "transport", None)
        if transport is None:
            raise TypeError(f"{_YIELDS}; it yields {_instead(connection)}")
        must = f"the transport of {type(connection).__name__} must be a Transport"
        if inspect.isclass(transport):
            raise TypeError(f"{must}, not the class itself: {transport.__name__}()")
        missing = [f"no {name}" for name in _METHODS if not callable(getattr(transport, name, 0))]
        if missing:
            kind = type(transport).__name__
            raise TypeError(f"{must}, with its async methods; {kind} has {' and '.join(missing)}")
        self._connection = connection
        self.transport = _CheckedTransport(transport)

    async def hang_up(self) -> None:
        """See `Connection`."""
        await _awaited(self._connection, "hang_up")

    async def send(self) -> object:
        """See `Connection`."""
        return await _awaited(self._connection, "send")

    @property
    def fall_silent(self) -> Callable[[], Awaitable[object]] | None:
        """See `SilentConnection`; None: it has no such method."""
        if not hasattr(self._connection, "fall_silent"):
            return None
        return functools.partial(_awaited, self._connection, "fall_silent")


class _CheckedTransport:
    """A transport; each of its methods must be async."""

    def __init__(self, transport: object) -> None:
        self._transport = transport

    async def is_connected(self) -> Any:
        """See `Transport`; whatever it answers."""
        return await _awaited(self._transport, "is_connected")

    async def disconnect(self) -> None:
        """See `Transport`."""
        await _awaited(self._transport, "disconnect")


def _instead(connection: object) -> str:
    """Say what was yielded in place of a connection."""
    kind = _kind(connection)
    if all(hasattr(connection, name) for name in _METHODS):
        return f"the transport itself, {kind}"
    return kind if connection is None else f"{kind}, which has no `transport`"


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


async def _awaited(of: object, name: str) -> object:
    """Await a method; raise `TypeError` if it is missing, or is not async."""
    kind = type(of).__name__
    method: Callable[[], object] | None = getattr(of, name, None)
    if method is None:
        raise TypeError(f"{_YIELDS}; {kind} has no `{name}`, which this check calls")
    asked = method()
    if not inspect.isawaitable(asked):
        raise TypeError(
            f"{kind}.{name} must be async, and returned {type(asked).__name__} at once: make it "
            "`async def`"
        )
    return await asked
