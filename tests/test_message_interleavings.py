"""Messages while everything takes time: senders, consumers, passes and moves at once.

The store answers when it likes, on a clock that jumps. Without a fault nothing may be lost,
nothing doubled, nothing out of order, and nothing read by the next session of the same id.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, TypeVar
from unittest.mock import patch

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from soak import SOAK, TIMES

from trio_sessions import SessionNotFound, SessionRegistry, SessionStore, open_registry
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

T = TypeVar("T")

SESSIONS = ("s", "t")


class SlowStore(FaultyStore):
    """Takes its time before and after each operation."""

    def __init__(self, store: SessionStore, random: Random) -> None:
        super().__init__(store)
        self._random = random

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        await trio.sleep(self._random.choice((0, 0, 0.01, 0.1)))
        answer = await super()._through(name, operation, *kinds)
        await trio.sleep(self._random.choice((0, 0, 0.01, 0.1)))
        return answer


class Unfinished(Exception):
    """A consumer gives up."""


@dataclass
class Message:
    """What was sent, and in which lives of its session."""

    session_id: str
    began_in: int
    ended_in: int | None = None
    """None: it was not sent."""
    received_in: list[int] = field(default_factory=list)


class Play:
    """One history: what a session lives through, while others send to it."""

    def __init__(self, random: Random, count: int) -> None:
        self.random = random
        self.count = count
        self.lives = dict.fromkeys(SESSIONS, 0)
        self.sent: dict[tuple[str, int], Message] = {}
        self.received: dict[str, list[tuple[str, int]]] = {name: [] for name in SESSIONS}
        self.nursery: trio.Nursery
        self.workers: list[SessionRegistry]

    async def pause(self, *choices: float) -> None:
        await trio.sleep(self.random.choice(choices))

    async def send(self, sender: str, registry: SessionRegistry) -> None:
        for number in range(self.count):
            await self.pause(0, 0.01, 0.3)
            session_id = self.random.choice(SESSIONS)
            message = Message(session_id, began_in=self.lives[session_id])
            self.sent[sender, number] = message
            durable = self.random.random() < 0.3
            try:
                await registry.broadcast(session_id, [sender, number], durable=durable)
            except SessionNotFound:
                continue
            message.ended_in = self.lives[session_id]

    async def consume(self, registry: SessionRegistry, session_id: str, life: int) -> None:
        while True:
            try:
                async with registry.open_inbox(session_id) as inbox:
                    async for received in inbox:
                        await self.take(received, session_id, life)
            except Unfinished:
                continue
            except (SessionNotFound, RuntimeError):  # it is removed, or a newer one reads
                pass
            return

    async def take(self, received: Any, session_id: str, life: int) -> None:
        if self.random.random() < 0.1:
            raise Unfinished
        sender, number = received
        assert self.sent[sender, number].session_id == session_id
        self.sent[sender, number].received_in.append(life)
        self.received[session_id].append((sender, number))
        await self.pause(0, 0, 0.02, 0.5)

    async def live(self, session_id: str, steps: list[tuple[str, int]]) -> None:
        transport = FakeTransport()
        for step, index in [("add", 0), *steps]:
            registry = self.workers[index]
            if step == "remove":
                self.lives[session_id] += 1  # what is sent from now on goes the same way
                await registry.remove_session(session_id)
                self.lives[session_id] += 1
            else:
                if step == "add":
                    transport = FakeTransport()
                adding = self.random.random() < 0.5  # the inbox is opened before, or after
                consumer = partial(self.consume, registry, session_id, self.lives[session_id])
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(registry.add_session, session_id, transport)
                    if adding:
                        await trio.testing.wait_all_tasks_blocked()
                        self.nursery.start_soon(consumer)
                if not adding:
                    self.nursery.start_soon(consumer)
            await self.pause(0, 0.05, 1, 5)

    async def run(self, histories: list[list[tuple[str, int]]]) -> None:
        shared = MemoryStore()
        stores = [SlowStore(shared, self.random) for _ in range(2)]
        async with (
            open_registry(stores[0]) as a,
            open_registry(stores[1]) as b,
            trio.open_nursery() as self.nursery,
        ):
            self.workers = [a, b]
            async with trio.open_nursery() as acting:
                for session_id, steps in zip(SESSIONS, histories, strict=True):
                    acting.start_soon(self.live, session_id, steps)
                acting.start_soon(self.send, "a", a)
                acting.start_soon(self.send, "b", b)
            for _ in range(2):
                for registry in self.workers:
                    await registry.cleanup()
                await trio.sleep(20)
            for session_id in SESSIONS:  # whoever holds it now reads what is left
                for registry in self.workers:
                    self.nursery.start_soon(
                        self.consume, registry, session_id, self.lives[session_id]
                    )
            await trio.sleep(60)
            self.check(shared)
            self.nursery.cancel_scope.cancel()

    def check(self, shared: MemoryStore) -> None:
        for name, message in self.sent.items():
            final = self.lives[message.session_id]
            if message.ended_in is not None and message.began_in == final:
                held = message.session_id in shared._rows
                assert not held or message.received_in, f"{name} is lost"
            for life in message.received_in:
                assert message.ended_in is None or life <= message.ended_in, (
                    f"{name} was read by the next session of its id"
                )
        assert sum(len(row.messages) for row in shared._rows.values()) == 0

    def check_once_and_in_order(self) -> None:
        for session_id in SESSIONS:
            for sender in ("a", "b"):
                numbers = [n for name, n in self.received[session_id] if name == sender]
                assert numbers == sorted(set(numbers)), f"{session_id} from {sender}: {numbers}"


here = st.sampled_from([("add", 0), ("add", 0), ("again", 0), ("remove", 0)])
anywhere = st.sampled_from([("add", 0), ("add", 1), ("again", 0)])
seeds = st.integers(0, 2**32)
counts = st.sampled_from([5, 25])


@contextmanager
def few_in_memory() -> Iterator[None]:
    """Let six messages fill the memory of a session."""
    with (
        patch("trio_sessions._messages._inbox.MOST", 6),
        patch("trio_sessions._messages._fetching.MOST", 6),
    ):
        yield


def lives(steps: st.SearchStrategy[tuple[str, int]]) -> st.SearchStrategy[Any]:
    return st.tuples(*(st.lists(steps, max_size=8) for _ in SESSIONS)).map(list)


@pytest.mark.timeout(180 * TIMES)
@settings(max_examples=50 * TIMES if SOAK else 20)
@given(histories=lives(here), seed=seeds, count=counts)
def test_sessions_of_one_worker(
    histories: list[list[tuple[str, int]]], seed: int, count: int
) -> None:
    """Added again, by the same transport or another, and removed."""
    play = Play(Random(seed), count)
    with few_in_memory():
        trio.run(play.run, histories, clock=trio.testing.MockClock(autojump_threshold=0))
    play.check_once_and_in_order()


@pytest.mark.timeout(180 * TIMES)
@settings(max_examples=50 * TIMES if SOAK else 20)
@given(histories=lives(anywhere), seed=seeds, count=counts)
def test_sessions_that_move(histories: list[list[tuple[str, int]]], seed: int, count: int) -> None:
    """From worker to worker: a message may come twice then, but none is lost."""
    play = Play(Random(seed), count)
    with few_in_memory():
        trio.run(play.run, histories, clock=trio.testing.MockClock(autojump_threshold=0))
