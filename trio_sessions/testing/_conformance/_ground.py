"""What every check stands on: what ``make_store`` returns, and that nothing is left over there.

A store cannot say that it was emptied, so each check that has gone well leaves a mark: a row of a
session that nobody else asks for, whose owner is the name of the check. The next one that finds it
stands on the same ground.
"""

import ast
import functools
import inspect
import linecache
import secrets
import traceback
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import trio

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.abc._revocation import KEPT
from trio_sessions.errors import StoreUnavailable
from trio_sessions.testing._conformance._tools import Check, MakeStore
from trio_sessions.writes import Batch, Claim, Delete

__all__ = [
    "NOTHING_SHARED",
    "expect_nothing",
    "expect_one_place",
    "made",
    "on_empty_ground",
    "with_its_rule",
]

T = TypeVar("T")

NOTHING_SHARED = (
    "two workers see nothing of each other: make_store must return the same store at each call, or "
    "stores on one shared place"
)

_MARK = "the mark of a conformance check"


class WrongMakeStore(TypeError):
    """``make_store`` is no function that returns a store: no rule of the contract is broken."""


class NotEmptied(RuntimeError):
    """What is shared was not empty: no rule of the contract is broken."""


def with_its_rule(check: Callable[[T], Awaitable[None]]) -> Callable[[T], Awaitable[None]]:
    """Let a check that fails say which it is and what its rule is, as a note of the error.

    An assertion that has no text, because nobody has rewritten it, says both itself.
    """

    @functools.wraps(check)
    async def noted(subject: T) -> None:
        try:
            await check(subject)
        except (WrongMakeStore, NotEmptied):
            raise
        except BaseException as exc:  # gets a note; raised again
            note = f"The rule of {check.__name__}: {_rule(check)}"
            _speak(exc, note)
            if note not in str(exc):
                exc.add_note(note)
            raise

    return noted


def _speak(exc: BaseException, note: str) -> None:
    """Give an assertion without a text one: what was asserted, and the rule."""
    if isinstance(exc, BaseExceptionGroup):
        for one in exc.exceptions:
            _speak(one, note)
    elif isinstance(exc, AssertionError) and not str(exc):
        exc.args = (f"{_asserted(exc)}\n{note}",)


def _asserted(exc: AssertionError) -> str:
    """Return the statement that has failed, in one line."""
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    number = frame.lineno or 0
    for node in ast.walk(ast.parse("".join(linecache.getlines(frame.filename)))):
        if isinstance(node, ast.Assert) and node.lineno <= number <= (node.end_lineno or 0):
            return ast.unparse(node)
    return f"{frame.filename}, line {number}"


def _rule(check: Callable[..., object]) -> str:
    """Return the rule of a check in sentences that stand alone: the first one is its name."""
    said = check.__name__.replace("_s_", "'s ").replace("_", " ")
    return f"{said[0].upper()}{said[1:]}. {inspect.getdoc(check)}"


def on_empty_ground(check: Check, part: Part) -> Check:
    """Let a check begin only where ``make_store`` returns stores, on what was emptied before it.

    Args:
        check: it.
        part: what it is about.

    The check raises:
        AssertionError: the store does not say that it keeps that part.
        TypeError: ``make_store`` is no function, or returns no store.
        RuntimeError: what is shared was not emptied.
    """

    @functools.wraps(check)
    async def checked(make_store: MakeStore) -> None:
        make = functools.partial(made, make_store)
        _expect_part(make(), part)
        await expect_nothing(
            make, "what make_store leads to must be empty when a check begins, as a new file is"
        )
        await check(make)
        await _leave_a_mark(make, check.__name__)

    return checked


def _expect_part(store: SessionStore, part: Part) -> None:
    contract = f"{part.value.removesuffix('s').capitalize()}Store"
    if part not in store.parts:
        raise AssertionError(
            f"{type(store).__name__} does not say that it keeps the part of the contract that this "
            f"check is about: to do so, inherit from trio_sessions.abc.{contract}, too"
        )


def made(make_store: MakeStore) -> SessionStore:
    """Call ``make_store``, and insist that it is a function that returns a store."""
    if not callable(make_store):
        raise WrongMakeStore(
            "make_store must be a function without arguments that returns a SessionStore, not "
            f"{type(make_store).__name__}; where it is a fixture: `return lambda: store`"
        )
    store: object = make_store()
    if inspect.iscoroutine(store):
        store.close()
        raise WrongMakeStore("make_store must return a SessionStore, and must not be async")
    if inspect.isclass(store) and issubclass(store, SessionStore):
        raise WrongMakeStore(
            f"make_store must return a SessionStore, not the class itself: call it, "
            f"{store.__name__}()"
        )
    if not isinstance(store, SessionStore):
        raise WrongMakeStore(f"make_store must return a SessionStore, not {type(store).__name__}")
    return store


async def _awaited(store: SessionStore, name: str, *args: object, **more: object) -> Any:
    """Await a method; raise `TypeError` if it is not async."""
    asked: object = getattr(store, name)(*args, **more)
    if not inspect.isawaitable(asked):
        raise TypeError(
            f"{type(store).__name__}.{name} must be async, and returned "
            f"{type(asked).__name__} at once"
        )
    return await asked


async def _opened(stack: AsyncExitStack, make: MakeStore) -> tuple[SessionStore, Worker]:
    store = make()
    worker = Worker(
        worker_id="conformance",
        incarnation=secrets.token_hex(8),
        limiter=trio.CapacityLimiter(1),
    )
    await _awaited(store, "open", worker)
    stack.push_async_callback(_awaited, store, "close", worker)
    return store, worker


async def expect_nothing(make: MakeStore, must: str, session_ids: Collection[str] = ()) -> None:
    """Raise `RuntimeError` where something is left over.

    Args:
        make: leads there.
        must: what ought to be, and who sees to it.
        session_ids: no row of these is expected, either, and no revocation.
    """
    async with AsyncExitStack() as stack:
        store, worker = await _opened(stack, make)
        for session_id in (_MARK, *session_ids):
            try:
                holder = await _awaited(store, "locate", worker, session_id)
            except StoreUnavailable as exc:
                raise NotEmptied(
                    f"{must}; this store cannot say that a row is not there, as if it had been "
                    "left in doubt"
                ) from exc
            if holder is not None:
                left = f"what {holder.owner} has left" if session_id == _MARK else f"{session_id!r}"
                raise NotEmptied(f"{must}; {left} is still there")
        if session_ids and Part.REVOCATION in store.parts:
            for mark in await _awaited(store, "revocations", worker, within=KEPT):
                if mark.session_id in session_ids:
                    raise NotEmptied(f"{must}; a revocation of {mark.session_id!r} is still there")


async def expect_one_place(make: MakeStore) -> None:
    """Raise `RuntimeError` where what one store has written is not seen by another one."""
    stores = make(), make()
    if stores[0] is stores[1]:
        return
    async with AsyncExitStack() as stack:
        one, worker = await _opened(stack, lambda: stores[0])
        other, onlooker = await _opened(stack, lambda: stores[1])
        claim = Claim(session_id=_MARK, generation=1, age=0.0)
        try:
            await _awaited(one, "commit", worker, Batch(writes=[claim]))
            is_written = await _awaited(one, "locate", worker, _MARK) is not None
            is_seen = await _awaited(other, "locate", onlooker, _MARK) is not None
            delete = Delete(session_id=_MARK, up_to=claim.generation)
            await _awaited(one, "commit", worker, Batch(writes=[delete]))
        except StoreUnavailable:  # nothing is known; the history shows what that leads to
            return
        if is_written and not is_seen:
            raise RuntimeError(NOTHING_SHARED)


async def _leave_a_mark(make: MakeStore, name: str) -> None:
    """Let `expect_nothing` find out that nobody has emptied this place since."""
    async with AsyncExitStack() as stack:
        store, worker = await _opened(stack, make)
        claim = Claim(session_id=_MARK, generation=1, age=0.0, owner=name)
        await _awaited(store, "commit", worker, Batch(writes=[claim]))
