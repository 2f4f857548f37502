"""The lane to one worker: letters on it come at most once and in order, whatever becomes of it.

The other end of the socket is the test itself; what goes by the database reaches a registry.
"""

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio.testing
from callees import TOO_LONG, Handlers
from trio.testing import MockClock

from trio_sessions import CallFailed, RegistryClosed, SessionRegistry, open_registry
from trio_sessions._mail._letters import Letter, seal, unseal
from trio_sessions._mail._sockets import (
    Unpacking,
    connected,
    listen,
    pack,
    stop_listening,
)
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore

BIG = "x" * 1_000_000


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ts-") as name:
        yield name


class Peer:
    """The other end of a lane."""

    def __init__(self, folder: str, incarnation: str) -> None:
        self._listener = trio.socket.from_stdlib_socket(listen(folder, incarnation))
        self._unpacking = Unpacking()
        self._come: list[str] = []
        self.connection: trio.socket.SocketType | None = None

    async def letter(self) -> Letter:
        """Take the next letter from the connection."""
        with trio.fail_after(TOO_LONG):
            if self.connection is None:
                self.connection, _ = await self._listener.accept()
            while not self._come:
                data = await self.connection.recv(65_536)
                assert data, "there is no letter"
                self._come += self._unpacking.take(data)
        letter = unseal(self._come.pop(0))
        assert letter is not None
        return letter

    def hang_up(self) -> None:
        """Close the connection; there will be no other one."""
        if self.connection is not None:
            self.connection.close()
        if self._listener.fileno() >= 0:
            stop_listening(socket.socket(fileno=self._listener.detach()))


@dataclass
class Pair:
    """A caller, and a callee whose lane ends in the test."""

    caller: SessionRegistry
    callee: SessionRegistry
    store: FaultyStore
    to: str
    peer: Peer

    async def call(self, payload: Any, name: str = "echo", timeout: float = TOO_LONG) -> Any:
        return await self.caller.workers.call(self.to, name, payload, timeout=timeout)


@asynccontextmanager
async def open_pair(folder: str, handlers: Handlers) -> AsyncIterator[Pair]:
    store = FaultyStore(MemoryStore())
    settings: dict[str, Any] = {"session_ttl": 1e6, "cleanup_interval": 1e5}
    async with (
        open_registry(store, handlers=handlers.all(), worker_id="w", **settings) as callee,
        open_registry(store, mail_sockets=folder, **settings) as caller,
    ):
        workers = await caller.workers.list()
        [to] = [one.incarnation for one in workers if one.worker_id == "w"]
        pair = Pair(caller, callee, store, to, Peer(folder, to))
        try:
            yield pair
        finally:
            pair.peer.hang_up()


async def test_a_letter_that_was_sent_is_never_sent_again(folder: str) -> None:
    """When the connection ends, calls that have gone are lost; others go by the database."""
    async with open_pair(folder, Handlers()) as pair:
        lost: list[Any] = []

        async def lose(number: int) -> None:
            with pytest.raises(CallFailed, match="was lost"):
                await pair.call(number)
            lost.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(lose, number)
                await trio.testing.wait_all_tasks_blocked()
            assert [(await pair.peer.letter()).contents for _ in range(3)] == ["0", "1", "2"]
            assert pair.store.calls["Post"] == 0
            pair.peer.hang_up()
            assert await pair.call(3) == 3
            assert pair.store.calls["Post"] == 2
        assert sorted(lost) == [0, 1, 2]


async def test_a_stream_is_open_when_its_call_has_left(folder: str) -> None:
    """At once where the kernel takes all of the letter, which is left once in either case."""
    async with open_pair(folder, Handlers()) as pair:
        streams = [
            pair.caller.workers.stream(pair.to, "count", payload, timeout=TOO_LONG)
            for payload in (1, 2, BIG, 4)
        ]
        assert not streams[0].open_nowait()  # nobody knows yet where the worker is
        await streams[0].open()
        assert streams[1].open_nowait()
        assert not streams[2].open_nowait()
        assert not streams[3].open_nowait()  # something waits before it
        with trio.fail_after(TOO_LONG):
            async with trio.open_nursery() as nursery:
                for stream in streams[2:]:
                    nursery.start_soon(stream.open)
                    await trio.testing.wait_all_tasks_blocked()
                come = [(await pair.peer.letter()).contents for _ in range(4)]
        assert come == ["1", "2", f'"{BIG}"', "4"]
        with pytest.raises(RuntimeError, match="entered once"):
            streams[1].open_nowait()
        for stream in streams:
            stream.close()


async def test_a_worker_that_takes_nothing_has_broken_the_connection(
    folder: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten seconds; what waits goes by the database, in order, each once; others go on."""
    async with (
        open_pair(folder, Handlers()) as pair,
        open_registry(
            pair.store, mail_sockets=folder, handlers=Handlers().all(), worker_id="other"
        ),
    ):
        workers = await pair.caller.workers.list()
        [other] = [one.incarnation for one in workers if one.worker_id == "other"]
        answered: list[Any] = []
        began = trio.current_time()

        async def call(number: int) -> None:
            answered.append((await pair.call([number, BIG]))[0])

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(call, number)
                await trio.testing.wait_all_tasks_blocked()
            assert await pair.caller.workers.call(other, "echo", 7, timeout=1) == 7
            assert trio.current_time() - began < 1
        assert sorted(answered) == [0, 1, 2]
        assert 10 <= trio.current_time() - began < 12
    assert [one.message for one in caplog.records if one.name == "trio_sessions.mail"] == [
        "a worker takes no letters by its socket any more"
    ]
    caplog.clear()


async def test_what_waits_goes_on_as_it_is_taken(folder: str) -> None:
    """Each letter whole, in the order of the calls."""
    async with open_pair(folder, Handlers()) as pair, trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(pair.call, [number, BIG])
            await trio.testing.wait_all_tasks_blocked()
        come = [await pair.peer.letter() for _ in range(5)]
        assert [one.contents[:3] for one in come] == [f"[{number}," for number in range(5)]
        assert pair.store.calls["Post"] == 0
        nursery.cancel_scope.cancel()


async def test_whoever_would_send_too_much_waits(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leaves while waiting has sent nothing; what may be lost is not kept."""
    monkeypatch.setattr("trio_sessions._mail._lanes._FULL", 500_000)
    async with open_pair(folder, Handlers()) as pair, trio.open_nursery() as nursery:
        lanes = pair.caller._house._mail._lanes
        nursery.start_soon(pair.call, ["first", BIG])
        await trio.testing.wait_all_tasks_blocked()
        leaves = trio.CancelScope()

        async def leave() -> None:
            with leaves:
                await pair.call("leaves")

        nursery.start_soon(leave)
        nursery.start_soon(pair.call, "stays")
        await trio.testing.wait_all_tasks_blocked()
        assert len(lanes._connected[pair.to].waiting) == 1
        leaves.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert len(lanes._connected[pair.to].waiting) == 1
        assert [(await pair.peer.letter()).contents[:8] for _ in range(2)] == [
            '["first"',
            '"stays"',
        ]
        assert lanes._connected[pair.to].size == 0
        nursery.cancel_scope.cancel()


async def test_a_lane_is_chosen_anew_after_a_silence(
    folder: str, autojump_clock: MockClock
) -> None:
    """Of a minute: no letter is in the database then."""
    async with open_pair(folder, Handlers()) as pair:
        pair.peer.hang_up()
        assert await pair.call(1) == 1
        pair.peer = Peer(folder, pair.to)
        await trio.sleep(59)
        assert await pair.call(2) == 2
        await trio.sleep(61)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.call, 3)
            assert (await pair.peer.letter()).contents == "3"
            nursery.cancel_scope.cancel()


async def test_a_letter_that_is_too_large_goes_by_the_database(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what follows it, for it comes behind."""
    monkeypatch.setattr("trio_sessions._mail._lanes.MOST", 1000)
    async with open_pair(folder, Handlers()) as pair:
        assert await pair.call("x" * 1000) == "x" * 1000
        assert await pair.call(1) == 1
        assert pair.store.calls["Post"] == 4


async def test_closing_waits_for_no_socket(folder: str) -> None:
    """What waits goes by the database, and the connection is closed."""
    async with open_pair(folder, Handlers()) as pair, trio.open_nursery() as nursery:
        async with open_registry(pair.store, mail_sockets=folder) as closing:

            async def call() -> None:
                with pytest.raises(RegistryClosed):
                    await closing.workers.call(pair.to, "echo", BIG, timeout=TOO_LONG)

            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
        assert closing._house._mail._lanes._connected == {}


@contextmanager
def sending_to(folder: str, incarnation: str) -> Iterator[socket.socket]:
    peer = connected(folder, incarnation)
    assert peer is not None
    with peer:
        yield peer


async def test_what_came_by_a_socket_is_older_than_what_comes_by_the_database(folder: str) -> None:
    """Its sender has given the connection up by then."""
    peers: list[socket.socket] = []

    def call(number: int) -> str:
        return seal("call", "somebody", number, "hang", 1000.0, 0)

    class Store(MemoryStore):
        async def collect(self, worker: Worker, *, limit: int, size: int) -> Any:
            letters = await super().collect(worker, limit=limit, size=size)
            for peer in peers if letters else ():
                peer.send(pack(call(1)) + pack(call(2)))
                peer.close()
            return letters

    store = Store()
    async with (
        open_registry(
            store, mail_sockets=folder, handlers=Handlers().all(), worker_id="w"
        ) as callee,
        open_registry(store) as caller,
    ):
        [to] = [one.incarnation for one in await caller.workers.list() if one.worker_id == "w"]
        with sending_to(folder, to) as peer:
            peers.append(peer)
            await caller._house._mail._sender.post(to, call(3))
            with trio.fail_after(TOO_LONG):
                while len(running := list(callee._house._mail._serving._running)) < 3:
                    await trio.sleep(0.01)
        assert running == [("somebody", number) for number in (1, 2, 3)]
