"""A fault in our own code comes out: it is not taken for an outage, nor for a user's error.

That a failing pass is logged, counted and raised by `cleanup` stands in `test_lifetime`.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from trio_sessions import StoreUnavailable, open_registry
from trio_sessions._background import Background
from trio_sessions._life import Life
from trio_sessions._mail._sending import Sender
from trio_sessions._mail._serving import Serving
from trio_sessions.abc import Bell, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.writes import Batch


class FaultyListener:
    """One of ours, with a fault in it."""

    async def rung(self, session_ids: Collection[str] | None) -> None:
        raise TypeError("a fault of ours")


class Bells(FaultyStore):
    """Its bells answer at once: with what they were given, or by an error."""

    def __init__(self, answer: Any) -> None:
        super().__init__(MemoryStore())
        self._answer = answer

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        self.calls["open_bell"] += 1
        async with trio.open_nursery():  # which wraps what the block raises
            yield self

    async def wait(self) -> frozenset[str] | None:
        await trio.sleep(1)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer  # type: ignore[no-any-return]  # as a store may that breaks its contract


async def read(registry: Any) -> None:
    await registry.add_session("s", FakeTransport())
    async with registry.open_inbox("s"):
        await trio.sleep(60)


@pytest.mark.parametrize("bells", [MemoryStore, lambda: Bells(None)], ids=["memory", "nursery"])
async def test_a_listeners_fault_is_no_fault_of_the_bell(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, bells: Any
) -> None:
    """It was logged as one, again and again, and the bell opened anew, for as long as one ran."""
    with pytest.raises(TypeError, match="a fault of ours"):
        async with open_registry(bells()) as registry:
            registry._house._listening.tell(FaultyListener())
            await read(registry)
    assert "bell broke" not in caplog.text


@pytest.mark.parametrize("answer", [TypeError("a fault of its own"), 5], ids=["raises", "a number"])
async def test_a_bells_fault_is_an_outage(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    """Whatever somebody else's store does: it is logged, and the bell is opened again."""
    store = Bells(answer)
    async with open_registry(store) as registry:
        await read(registry)
    assert store.calls["open_bell"] > 5
    assert ("a fault of its own" if answer != 5 else "broke its contract") in caplog.text


class FaultySender(Sender):
    """One of ours, with a fault in it."""

    def __init__(self) -> None:
        self.posted: list[str] = []

    def is_near(self, to: str) -> bool:
        return False

    async def deliver(self, to: str, text: str, order: object = None) -> None:
        raise TypeError("a fault of ours")

    def post_soon(self, to: str, text: str, **earlier: Any) -> None:
        self.posted.append(text)


async def echo(payload: Any) -> Any:
    return payload


async def count(payload: Any) -> AsyncIterator[Any]:
    yield payload


@pytest.mark.parametrize("name", ["echo", "count"])
async def test_what_fails_in_leaving_an_answer_is_no_fault_of_the_handler(
    caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It was logged as a handler's that fails while it is cancelled; its caller is told yet.

    Behind what was in hand, for it may not have been left.
    """
    sender = FaultySender()
    with pytest.RaisesGroup(
        pytest.RaisesExc(TypeError, match="a fault of ours"), flatten_subgroups=True
    ):
        async with trio.open_nursery() as nursery:
            serving = Serving(
                {"echo": echo, "count": count},
                sender=sender,
                background=Background(nursery),
                life=Life(),
                limit=1000,
                wake=lambda _: None,
            )
            window = 10 if name == "count" else 0
            serving.begin("caller", 1, name, "5", timeout=10.0, window=window)
    assert "handler" not in caplog.text
    in_hand = sender.posted[:-1]
    assert [letter.endswith(",[5]]") for letter in in_hand] == [True] * (name == "count")
    assert sender.posted[-1].startswith('[["failed",1,')


class AsyncAtOnce(MemoryStore):
    async def commit_at_once(self, worker: Worker, batch: Batch) -> Any:  # type: ignore[override]
        return None


class AsyncBell(MemoryStore):
    async def open_bell(self, worker: Worker) -> Any:  # type: ignore[override]
        return None


class SyncWaiting(MemoryStore):
    def waiting(self, worker: Worker) -> Any:
        return []


class SyncRefresh(MemoryStore):
    def refresh(self, worker: Worker, session_ids: Sequence[str]) -> Any:
        return None


@pytest.mark.parametrize(
    ("mistaken", "message"),
    [
        (AsyncAtOnce, "AsyncAtOnce.commit_at_once answered with coroutine, not with Committed"),
        (
            AsyncBell,
            "AsyncBell.open_bell answered with coroutine, not with AbstractAsyncContextManager",
        ),
        (SyncWaiting, "SyncWaiting.waiting must be async, and returned list at once"),
        (SyncRefresh, "SyncRefresh.refresh must be async, and returned NoneType at once"),
    ],
)
async def test_a_method_that_is_async_or_not_by_mistake_is_logged_by_its_name(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    mistaken: type[MemoryStore],
    message: str,
) -> None:
    """As an error: whoever asks hears of an outage, or hears nothing."""
    async with open_registry(mistaken()) as registry:
        await read(registry)
        await registry.cleanup()
    errors = [one.getMessage() for one in caplog.records if one.levelname == "ERROR"]
    assert f"the store broke its contract: {message}" in errors


class AnswersWithASet(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> Any:
        return set(session_ids)

    async def locate(self, worker: Worker, session_id: str) -> Any:
        await super().locate(worker, session_id)
        return "alice"


async def test_an_answer_of_another_kind_is_told_with_its_method() -> None:
    """And with what was expected: whoever wrote the store finds the place."""
    async with open_registry(AnswersWithASet()) as registry:
        await registry.add_session("s", FakeTransport())
        refused = (await registry.cleanup()).refresh_failures["s"]
        assert str(refused) == (
            "the store broke its contract: AnswersWithASet.refresh answered with set, not with "
            "RowAnswers"
        )
        with pytest.raises(StoreUnavailable, match="locate answered with str, not with Holder or"):
            await registry.locate_session("another")
