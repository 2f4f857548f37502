"""One call of a transport's method: begun, and gone on with if it has to wait.

Each has context variables of its own, as in a task: what one transport binds, the next never sees.
"""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeVar

import trio

__all__ = ["Enter", "Waiting", "begin", "go_on", "interruptibly", "to_its_end"]

T = TypeVar("T")


async def _await(awaitable: Awaitable[object]) -> object:
    return await awaitable


Enter = Callable[..., Any]
"""How to call into a transport: `interruptibly`, or `to_its_end`."""


@trio.lowlevel.disable_ki_protection
def interruptibly(function: Callable[..., T], *args: Any) -> T:
    """Call a transport's code so that Ctrl-C may hit it: it may keep the loop for ever."""
    return function(*args)


def to_its_end(function: Callable[..., T], *args: Any) -> T:
    """Call a transport's code so that Ctrl-C waits for a checkpoint."""
    return function(*args)


@dataclass(slots=True)
class Waiting:
    """A call that has begun, and waits."""

    coroutine: Coroutine[Any, Any, object]
    request: object
    """What it asks of the loop."""
    context: Context


def begin(
    method: Callable[[], object], name: str, enter: Enter
) -> tuple[Coroutine[Any, Any, object] | None, object]:
    """Call a transport's method, in the context of that call, up to where it has to wait.

    Args:
        method: of one transport.
        name: the method's, in messages.
        enter: how to call into a transport.

    Returns:
        None, and what it has answered without waiting; or what waits, and what it asks of the loop:
        `go_on` must follow.
    """
    coroutine: Coroutine[Any, Any, object]
    called = enter(method)
    if isinstance(called, types.CoroutineType):
        coroutine = called
    elif isawaitable(called):
        coroutine = _await(called)
    else:
        raise TypeError(
            f"{name}() must be an async function, this one returned {type(called).__name__}"
        )
    try:
        return coroutine, enter(coroutine.send, None)
    except StopIteration as done:
        return None, done.value
    except BaseException:  # of the user's code; raised again
        coroutine.close()  # Ctrl-C may have come between its step and ours
        raise


@types.coroutine
def go_on(
    call: Waiting, check: Callable[[object], None], enter: Enter
) -> Generator[Any, Any, object]:
    """Await the rest of a call that waits.

    ``check`` may refuse what it asks of the loop, which ends the call.
    """
    coroutine, request, run = call.coroutine, call.request, call.context.run
    try:
        while True:
            check(request)
            reply, error = None, None
            try:
                reply = yield request
            except GeneratorExit:
                raise RuntimeError("the event loop has thrown the call away") from None
            except BaseException as exc:  # noqa: BLE001 -- handed on to the coroutine, whatever it is
                error = exc
            if error is None:
                request = enter(run, coroutine.send, reply)
            else:
                request = enter(run, coroutine.throw, error)
    except StopIteration as done:
        return done.value
    finally:
        coroutine.close()  # it has ended, or nobody can go on with it
