"""One call of a transport's method: begun and resumed so that it is noticed when it has to wait."""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import isawaitable, iscoroutine
from typing import Any, TypeVar

import trio

__all__ = ["Enter", "call_of", "interruptibly", "noticing_wait", "to_its_end"]

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


def call_of(transport: object, name: str, enter: Enter) -> Coroutine[Any, Any, object]:
    """Call a transport's method, and insist on something that can be awaited."""
    called = enter(getattr(transport, name))
    if iscoroutine(called):
        return called
    if isawaitable(called):
        return _await(called)
    raise TypeError(
        f"{name}() must be an async function, this one returned {type(called).__name__}"
    )


@types.coroutine
def noticing_wait(
    coroutine: Coroutine[Any, Any, object],
    on_wait: Callable[[], None],
    check: Callable[[object], None],
    enter: Enter,
) -> Generator[Any, Any, object]:
    """Await ``coroutine``, calling ``on_wait`` when it first has to wait.

    ``check`` may refuse what the coroutine asks of the loop, which ends the coroutine.
    """
    try:
        request = enter(coroutine.send, None)
        on_wait()
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
                request = enter(coroutine.send, reply)
            else:
                request = enter(coroutine.throw, error)
    except StopIteration as done:
        return done.value
    finally:
        coroutine.close()  # it has ended, or nobody can go on with it
