"""One call of a transport's method: begun, and gone on with if it has to wait.

Each has context variables of its own, as in a task: what one transport binds, the next never sees.
"""

import contextvars
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import isawaitable, iscoroutine
from typing import Any, TypeVar

import trio

__all__ = ["Enter", "begin", "go_on", "interruptibly", "to_its_end"]

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


def begin(
    method: Callable[[], object], name: str, enter: Enter, context: contextvars.Context
) -> tuple[Coroutine[Any, Any, object] | None, object]:
    """Call a transport's method, and insist on something that can be awaited.

    Args:
        method: of one transport.
        name: the method's, in messages.
        enter: how to call into a transport.
        context: of this call.

    Returns:
        None, and what it has answered without waiting; or what waits, and what it asks of the loop:
        `go_on` must follow.
    """
    coroutine: Coroutine[Any, Any, object]
    called = enter(context.run, method)
    if iscoroutine(called):
        coroutine = called
    elif isawaitable(called):
        coroutine = _await(called)
    else:
        raise TypeError(
            f"{name}() must be an async function, this one returned {type(called).__name__}"
        )
    try:
        return coroutine, enter(context.run, coroutine.send, None)
    except StopIteration as done:
        return None, done.value
    except BaseException:  # of the user's code; raised again
        coroutine.close()  # Ctrl-C may have come between its step and ours
        raise


@types.coroutine
def go_on(
    coroutine: Coroutine[Any, Any, object],
    request: object,
    check: Callable[[object], None],
    enter: Enter,
    context: contextvars.Context,
) -> Generator[Any, Any, object]:
    """Await the rest of a call that waits, from what it asks of the loop.

    ``check`` may refuse that, which ends the call.
    """
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
                request = enter(context.run, coroutine.send, reply)
            else:
                request = enter(context.run, coroutine.throw, error)
    except StopIteration as done:
        return done.value
    finally:
        coroutine.close()  # it has ended, or nobody can go on with it
