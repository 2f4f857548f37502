"""Checks that come first: each method is there as the contract has it, and stores share a place.

What is wrong here would be told by other checks too, under the names of rules that it has nothing
to do with, and without the name of the method.
"""

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, get_type_hints

import trio
import trio.testing

import trio_sessions.abc
from trio_sessions.abc import SessionStore, Store, Worker
from trio_sessions.testing._conformance._ground import NOTHING_SHARED, made
from trio_sessions.testing._conformance._kinds import misfits
from trio_sessions.testing._conformance._tools import MakeStore, opened, wanted
from trio_sessions.types import Capabilities, Presence, Stamp
from trio_sessions.writes import (
    ANSWERS,
    Acknowledge,
    Batch,
    Claim,
    ClaimOwner,
    Delete,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

__all__ = ["each_method_is_as_the_contract_has_it", "what_one_worker_writes_others_read"]

_PRESENCE = Presence(session_ttl=3600.0, cleanup_interval=1.0, stamp_interval=1.0, version="0")
_WRITES: tuple[Write[object], ...] = (
    Claim(session_id="s", generation=1, age=0.0),
    SetOwner(session_id="s", owner="alice"),
    ClaimOwner(session_id="s", owner="bob"),
    SetCapabilities(
        session_id="s",
        capabilities=Capabilities(encoded='{"elicitation":{}}', elicitation=True),
    ),
    Send(session_id="s", payload="1"),
    Acknowledge(session_id="s", message_ids=(-1,)),
    Claim(session_id="t", generation=2, age=0.0),
    Delete(session_id="t", up_to=2),
)


async def each_method_is_as_the_contract_has_it(make_store: MakeStore) -> None:
    """It takes these arguments, is async and a checkpoint, and returns what it should."""
    store = made(make_store)
    for contract in _contracts(store):
        for name in sorted(contract.__abstractmethods__):
            _check_arguments(store, name, getattr(contract, name))
        for name, member in vars(contract).items():
            if isinstance(member, property):
                _check_property(store, name, member)
            elif inspect.isfunction(member) and name not in contract.__abstractmethods__:
                _check_plain(store, name, member)
    worker = Worker(worker_id="a", incarnation="shape", limiter=trio.CapacityLimiter(2))
    await _call(store, "open", worker)
    try:
        await _call(store, "begin", worker, "history", _PRESENCE, after=None)
        for write in _WRITES:
            await _check_write(store, worker, write)
        at_once = Batch(writes=[Claim(session_id="u", generation=1, age=0.0)])
        _call_plain(store, "commit_at_once", worker, at_once)
        _call_plain(store, "connections")
        await _call(store, "refresh", worker, ["s", "nobody"])
        await _call(store, "stamp", worker, Stamp(history="history", beat=1), passed=True)
        for session_id in ("s", "nobody"):
            await _call(store, "locate", worker, session_id)
            await _call(store, "get_capabilities", worker, session_id)
        await _call(store, "own_rows", worker, after="", limit=10)
        await _call(store, "elicitation_capable", worker)
        await _call(store, "waiting", worker)
        await _call(store, "fetch", worker, [wanted("s")])
        await _check_bell(store, worker)
        settings = {"session_ttl": 3600.0, "message_ttl": 60.0, "max_gap": 60.0, "limit": 10}
        await _call(store, "sweep", worker, **settings)
        await _call(store, "delete_all", worker, limit=10)
    finally:
        with trio.CancelScope(shield=True):
            await _call(store, "close", worker)


def _contracts(store: SessionStore) -> list[type[Store]]:
    """Return the classes of the parts that the store says it keeps."""
    classes: list[Any] = [one for one in vars(trio_sessions.abc).values() if inspect.isclass(one)]
    parts = [one for one in classes if issubclass(one, Store) and "part" in vars(one)]
    return [Store, *(one for one in parts if one.part in store.parts)]


def _named(store: SessionStore, name: str) -> str:
    return f"{type(store).__name__}.{name}"


def _bare(signature: inspect.Signature) -> str:
    """Return a signature without its types."""
    empty = inspect.Parameter.empty
    bare = [one.replace(annotation=empty) for one in signature.parameters.values()]
    return str(inspect.Signature(bare))


def _check_arguments(store: SessionStore, name: str, contract: Callable[..., object]) -> None:
    """Insist that a method can be called as the registry does."""
    of_contract = inspect.signature(contract)
    ours = list(of_contract.parameters.values())[1:]
    theirs = inspect.signature(getattr(store, name))
    for passed in (ours, [one for one in ours if one.default is one.empty]):
        try:
            theirs.bind(
                *(one.name for one in passed if one.kind is not one.KEYWORD_ONLY),
                **{one.name: ... for one in passed if one.kind is one.KEYWORD_ONLY},
            )
        except TypeError as exc:
            bare = _bare(of_contract.replace(parameters=ours))
            raise AssertionError(
                f"{_named(store, name)}{_bare(theirs)} must take what the contract passes, "
                f"{name}{bare}: {exc}"
            ) from None


async def _call(store: SessionStore, name: str, *args: object, **settings: Any) -> Any:
    """Call a method, which must be a checkpoint, and return what it should return."""
    hint = get_type_hints(getattr(SessionStore, name))["return"]
    returned = getattr(store, name)(*args, **settings)
    assert inspect.isawaitable(returned), (
        f"{_named(store, name)} must be an async method; this one returned "
        f"{type(returned).__name__} at once"
    )
    has_ended = False
    try:
        with trio.testing.assert_checkpoints():
            answer = await returned
            has_ended = True
    except AssertionError:
        if not has_ended:
            raise
        raise AssertionError(
            f"{_named(store, name)} must be a checkpoint, also when it has nothing to wait for: "
            "`await trio.lowlevel.checkpoint()`"
        ) from None
    for wrong in misfits(answer, hint) if hint is not type(None) else ():
        raise AssertionError(f"{_named(store, name)} returned {wrong}")
    return answer


def _check_property(store: SessionStore, name: str, contract: property) -> None:
    """Insist that a property is one, and has a value of its type."""
    value = getattr(store, name)
    assert not callable(value), f"{_named(store, name)} must be a property, not a method: @property"
    for wrong in misfits(value, get_type_hints(contract.fget)["return"]):
        raise AssertionError(f"{_named(store, name)} is {wrong}")


def _check_plain(store: SessionStore, name: str, contract: Callable[..., object]) -> None:
    """Insist on a method that the registry calls without awaiting it."""
    assert callable(getattr(store, name)), (
        f"{_named(store, name)} must be a method, not a property or a value"
    )
    _check_is_plain(store, name, getattr(store, name))
    _check_arguments(store, name, contract)


def _check_is_plain(store: SessionStore, name: str, found: object) -> None:
    is_async = inspect.iscoroutinefunction(found) or inspect.isawaitable(found)
    assert not is_async, f"{_named(store, name)} must not be async: nobody awaits what it returns"


def _call_plain(store: SessionStore, name: str, *args: object) -> None:
    """Call a method that is not async, and insist that it returns what it should."""
    answer = getattr(store, name)(*args)
    if inspect.iscoroutine(answer):
        answer.close()
    _check_is_plain(store, name, answer)
    for wrong in misfits(answer, get_type_hints(getattr(SessionStore, name))["return"]):
        raise AssertionError(f"{_named(store, name)} returned {wrong}")


async def _check_write(store: SessionStore, worker: Worker, write: Write[object]) -> None:
    """Insist that there is an answer to a write, of its kind."""
    answers = (await _call(store, "commit", worker, Batch(writes=[write]))).answers
    kinds = ANSWERS[type(write)]
    expected = " or ".join("None" if one is type(None) else one.__name__ for one in kinds)
    assert len(answers) == 1 and isinstance(answers[0], kinds), (  # noqa: PT018 -- one message
        f"{_named(store, 'commit')} answered {type(write).__name__} with {list(answers)!r}; "
        f"expected is one answer: {expected}"
    )


async def _check_bell(store: SessionStore, worker: Worker) -> None:
    bell: object = store.open_bell(worker)
    if inspect.iscoroutine(bell):
        bell.close()
    assert isinstance(bell, AbstractAsyncContextManager), (
        f"{_named(store, 'open_bell')} must be no async method, but return an async context "
        f"manager; this one returned {type(bell).__name__}"
    )
    async with bell as given:  # what fails within may come out in a group
        is_bell = callable(getattr(given, "wait", None))
    assert is_bell, (
        f"{_named(store, 'open_bell')} must give the block a Bell, with the async method wait; "
        f"this one gave {type(given).__name__}"
    )


async def what_one_worker_writes_others_read(make_store: MakeStore) -> None:
    """The stores that ``make_store`` returns are one, or stand on one shared place."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        holder = await b.store.locate(b.worker, "s")
        assert holder is not None, NOTHING_SHARED
        assert holder.incarnation == a.worker.incarnation
