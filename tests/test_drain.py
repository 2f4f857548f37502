"""A worker is emptied before it is stopped: sessions go to other workers, with their messages."""

import contextlib
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import trio
from conftest import Shared

from trio_sessions import (
    DrainReport,
    RegistryClosed,
    RegistryDraining,
    RemovalReason,
    SessionNotFound,
    SessionRegistry,
    SessionsError,
    open_registry,
)
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore


async def test_sessions_are_told_to_leave(shared: Shared) -> None:
    """And nobody new comes in; the other workers see it."""
    removals: list[Any] = []

    async def removed(session_id: str, reason: RemovalReason) -> None:
        removals.append((session_id, reason))

    async with shared.open(on_removed=removed) as registry, shared.open() as other:
        transports = {name: FakeTransport() for name in ("a", "b")}
        for name, transport in transports.items():
            await registry.add_session(name, transport)
        report = await registry.drain(0.5)
        assert (set(report.drained), report.left, report.cut) == ({"a", "b"}, (), ())
        assert (report.waiting, await registry.get_all_session_ids()) == (2, [])
        for transport in transports.values():
            assert transport.reasons == [RemovalReason.DRAINED]
        refused = FakeTransport()
        with pytest.raises(RegistryDraining, match="another") as raised:
            await registry.add_session("c", refused)
        assert isinstance(raised.value, SessionsError)
        assert refused.disconnects == 0
        draining = {one.worker_id: one.draining for one in await other.workers.list()}
        assert draining == {registry.worker_id: True, other.worker_id: False}
    assert sorted(removals) == [("a", RemovalReason.DRAINED), ("b", RemovalReason.DRAINED)]
    assert shared.backdoor.rows() == {}


async def test_a_drain_without_time_says_that_all_wait(shared: Shared) -> None:
    """Found by the fleet: cut while it told them, it reported that nobody waited."""
    async with shared.open() as registry:
        for name in ("a", "b"):
            await registry.add_session(name, FakeTransport())
        report = await registry.drain(0)
        assert (set(report.drained), report.cut, report.waiting) == ({"a", "b"}, (), 2)


async def test_a_message_that_is_handled_is_waited_for(shared: Shared) -> None:
    """Those in memory behind it, too; then the session is told."""
    handled: list[Any] = []
    begun, may_end = trio.Event(), trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        begun.set()
        await may_end.wait()
        handled.append(message)

    async with shared.open() as registry, trio.open_nursery() as nursery:
        transport = FakeTransport()
        await registry.add_session("s", transport)
        nursery.start_soon(registry.respond, "s", handler)
        for number in range(3):
            await registry.broadcast("s", number)
        await begun.wait()
        reports: list[DrainReport] = []

        async def drain() -> None:
            reports.append(await registry.drain(2.0))

        nursery.start_soon(drain)
        await trio.sleep(0.3)
        assert (transport.disconnects, handled, reports) == (0, [], [])
        may_end.set()
        with trio.fail_after(30):
            while not reports:
                await trio.sleep(0.01)
        assert (handled, reports[0].drained, reports[0].cut) == ([0, 1, 2], ("s",), ())
        assert registry.statistics().messages_dropped == 0


async def test_who_is_busy_to_the_end_is_cut(shared: Shared) -> None:
    """The report says who, and how many there were."""
    begun = trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        begun.set()
        await trio.sleep_forever()

    async with shared.open() as registry, trio.open_nursery() as nursery:
        busy, gone = FakeTransport(), FakeTransport()
        await registry.add_session("busy", busy)
        await registry.add_session("gone", gone)
        nursery.start_soon(registry.respond, "busy", handler)
        await registry.broadcast("busy", "work")
        await begun.wait()
        await registry.remove_session("gone")
        report = await registry.drain(0.2)
        assert (report.drained, report.cut) == ((), ("busy",))
        assert busy.reasons == [RemovalReason.DRAINED]
        assert await registry.get_all_session_ids() == []
        nursery.cancel_scope.cancel()


async def test_who_leaves_meanwhile_has_left(shared: Shared) -> None:
    """Neither told nor cut."""
    begun, may_end = trio.Event(), trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        begun.set()
        await may_end.wait()

    async with shared.open() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        nursery.start_soon(registry.respond, "s", handler)
        await registry.broadcast("s", "work")
        await begun.wait()
        reports: list[DrainReport] = []

        async def drain() -> None:
            reports.append(await registry.drain(60.0))

        nursery.start_soon(drain)
        await trio.sleep(0.2)
        await registry.remove_session("s")
        may_end.set()
        with trio.fail_after(30):
            while not reports:
                await trio.sleep(0.01)
        assert (reports[0].left, reports[0].drained, reports[0].cut) == (("s",), (), ())


async def test_stored_messages_go_along_with_the_client(shared: Shared) -> None:
    """They wait in the row until it comes back elsewhere, and the drain waits, too."""
    async with shared.open() as old, shared.open() as new, trio.open_nursery() as nursery:
        await old.add_session("s", FakeTransport())
        await old.set_session_owner("s", "alice")
        for number in range(3):
            await new.broadcast("s", number)
        reports: list[DrainReport] = []

        async def drain() -> None:
            reports.append(await old.drain(60.0))

        nursery.start_soon(drain)
        with trio.fail_after(30):
            while old.get_session_sync("s") is not None:
                await trio.sleep(0.01)
        await new.broadcast("s", 3)  # between two workers: its row is still there
        await trio.sleep(0.3)
        assert reports == []
        await new.add_session("s", FakeTransport())
        with trio.fail_after(30):
            while not reports:
                await trio.sleep(0.01)
        assert reports[0].drained == ("s",)
        await old.cleanup()
        async with new.open_inbox("s") as inbox:
            assert [await anext(inbox) for _ in range(4)] == [0, 1, 2, 3]
        assert await new.get_session_owner("s") == "alice"


async def test_the_owner_is_there_when_the_client_comes_back(shared: Shared) -> None:
    """Without a message that would hold anything up: nobody may claim the session meanwhile."""
    async with shared.open() as new, trio.open_nursery() as nursery:
        reports: list[DrainReport] = []

        async def serve(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            async with shared.open() as old:
                await old.add_session("s", FakeTransport(), owner="alice")
                await old.store_client_capabilities("s", {"elicitation": {}})
                task_status.started(old)
                reports.append(await old.drain(30.0))

        old = await nursery.start(serve)
        with trio.fail_after(30):
            while old.get_session_sync("s") is not None:
                await trio.sleep(0.01)
        assert await new.claim_session_owner("s", "mallory") == "alice"
        await trio.sleep(0.5)
        await new.add_session("s", FakeTransport())
        with trio.fail_after(30):
            while not reports:
                await trio.sleep(0.01)
        assert reports[0].waiting == 0
    async with shared.open() as new:
        await new.cleanup()


async def test_a_session_that_comes_again_is_told_again(shared: Shared) -> None:
    """Adding a held id is always possible; its drain does not last for that."""
    begun, may_end = trio.Event(), trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        begun.set()
        await may_end.wait()

    async with shared.open() as registry, trio.open_nursery() as nursery:
        first, second = FakeTransport(), FakeTransport()
        await registry.add_session("s", first)
        nursery.start_soon(registry.respond, "s", handler)
        await registry.broadcast("s", "work")
        await begun.wait()
        reports: list[DrainReport] = []

        async def drain() -> None:
            reports.append(await registry.drain(2.0))

        nursery.start_soon(drain)
        await trio.sleep(0.2)
        await registry.add_session("s", second)
        may_end.set()
        with trio.fail_after(30):
            while not reports:
                await trio.sleep(0.01)
        assert (reports[0].drained, reports[0].cut) == (("s",), ())
        assert first.reasons == [RemovalReason.TAKEN_OVER]
        assert second.reasons == [RemovalReason.DRAINED]


async def test_what_a_cut_session_had_in_memory_waits_in_its_row(shared: Shared) -> None:
    """Its client finds it at the next worker."""
    begun = trio.Event()

    async def handler(message: Any, transport: Any) -> None:
        begun.set()
        await trio.sleep_forever()

    async with shared.open() as old, shared.open() as new, trio.open_nursery() as nursery:
        await old.add_session("s", FakeTransport())
        nursery.start_soon(old.respond, "s", handler)
        for number in range(3):
            await old.broadcast("s", number)
        await begun.wait()
        report = await old.drain(0.2)
        assert report.cut == ("s",)
        await new.add_session("s", FakeTransport())
        with trio.fail_after(30):
            async with new.open_inbox("s") as inbox:
                assert [await anext(inbox) for _ in range(2)] == [1, 2]
        nursery.cancel_scope.cancel()


async def test_two_drains_take_turns(shared: Shared) -> None:
    """The second finds nothing left to do, and says so."""
    async with shared.open() as registry, trio.open_nursery() as nursery:
        await registry.add_session("s", FakeTransport())
        reports: list[DrainReport] = []

        async def drain() -> None:
            reports.append(await registry.drain(0.3))

        nursery.start_soon(drain)
        nursery.start_soon(drain)
        with trio.fail_after(30):
            while len(reports) < 2:
                await trio.sleep(0.01)
        assert [(one.drained, one.left, one.cut) for one in reports] == [
            (("s",), (), ()),
            ((), (), ()),
        ]


async def test_what_nobody_comes_for_is_told_and_goes(shared: Shared) -> None:
    """When the time is over, the next pass deletes it."""
    async with shared.open() as old, shared.open() as new:
        await old.add_session("s", FakeTransport())
        await new.broadcast("s", "lost")
        report = await old.drain(0.3)
        assert (report.drained, report.waiting) == (("s",), 1)
        await old.cleanup()
        assert shared.backdoor.rows() == {}
        with pytest.raises(SessionNotFound):
            await new.broadcast("s", "late")


async def test_a_drain_in_an_outage_ends(shared: Shared) -> None:
    """In its time; sessions are told all the same."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        transport = FakeTransport()
        await registry.add_session("s", transport)
        store.fail()
        report = await registry.drain(0.3)
        assert (report.drained, transport.reasons) == (("s",), [RemovalReason.DRAINED])
        store.heal()
    assert shared.backdoor.rows() == {}


async def test_a_thread_that_is_at_work_does_not_hold_a_drain() -> None:
    """The other workers are told beside it: nothing there can be cancelled."""
    may_end = threading.Event()

    class Slow(MemoryStore):
        async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
            await trio.to_thread.run_sync(may_end.wait, 60)
            return await super().announce(worker, data=data, draining=draining)

    async with open_registry(Slow()) as registry:
        await registry.add_session("s", FakeTransport())
        assert (await registry.drain(0.1)).drained == ("s",)
        may_end.set()


async def test_a_drain_of_no_time_cuts_at_once() -> None:
    async with open_registry() as registry:
        transport = FakeTransport()
        await registry.add_session("s", transport)
        report = await registry.drain(0)
        assert set(report.drained) | set(report.cut) == {"s"}
        assert transport.reasons == [RemovalReason.DRAINED]
        for wrong, error in ((-1, ValueError), ("1", TypeError), (float("nan"), ValueError)):
            with pytest.raises(error, match="timeout"):
                await registry.drain(wrong)  # type: ignore[arg-type]
    with pytest.raises(RegistryClosed):
        await registry.drain(1)


# ---- a rolling restart ----


class Client:
    """Counts messages, and comes back to whichever worker takes it when it is told to leave."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.got: list[int] = []
        self.holder: SessionRegistry | None = None

    async def live(self, workers: list[SessionRegistry], done: trio.Event) -> None:
        while not done.is_set():
            for registry in list(workers):
                try:
                    await registry.add_session(self.name, FakeTransport())
                except (RegistryDraining, RegistryClosed):
                    continue
                await self._read(registry)
                break
            else:
                await trio.sleep(0.01)

    async def _read(self, registry: SessionRegistry) -> None:
        try:
            async with registry.open_inbox(self.name) as inbox:
                async for message in inbox:
                    self.got.append(message)
        except (SessionNotFound, RegistryClosed):
            pass


async def test_a_rolling_restart_loses_no_message(shared: Shared) -> None:
    """Two workers are drained, closed and replaced in turn, while messages go to every client."""
    clients = [Client(f"c{number}") for number in range(6)]
    done, sent = trio.Event(), {client.name: 0 for client in clients}
    workers: list[SessionRegistry] = []

    async def serve(may_end: trio.Event, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        async with shared.open() as registry:
            workers.append(registry)
            task_status.started(registry)
            await may_end.wait()
            report = await registry.drain(30.0)
            assert (report.cut, report.waiting) == ((), 0)
            workers.remove(registry)

    async with shared.open() as sender, trio.open_nursery() as nursery:
        ends = [trio.Event(), trio.Event()]
        for end in ends:
            await nursery.start(serve, end)
        for client in clients:
            nursery.start_soon(client.live, workers, done)
        with trio.fail_after(60):
            for client in clients:
                while await sender.locate_session(client.name) is None:
                    await trio.sleep(0.02)
        for end in ends:
            await nursery.start(serve, trio.Event())  # the new one, which stays
            end.set()
            for _ in range(15):
                for client in clients:
                    with contextlib.suppress(SessionNotFound):  # it is on its way: send it later
                        await sender.broadcast(client.name, sent[client.name])
                        sent[client.name] += 1
                await trio.sleep(0.02)
            with trio.fail_after(60):
                while len(workers) > 2:
                    await trio.sleep(0.02)
        assert min(sent.values()) > 15, "hardly any message was sent meanwhile"
        with trio.fail_after(60):
            while any(len(set(one.got)) < sent[one.name] for one in clients):
                await trio.sleep(0.02)
        assert {one.name: sorted(set(one.got)) for one in clients} == {
            name: list(range(number)) for name, number in sent.items()
        }
        done.set()
        nursery.cancel_scope.cancel()


_PROGRAM = """
import signal
import sys

import trio

from trio_sessions import open_registry
from trio_sessions.testing import FakeTransport


async def drain_on_sigterm(registry, scope):
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        await registry.add_session("s", FakeTransport())
        print("ready", flush=True)
        async for _ in signals:
            report = await registry.drain(2.0)
            print(f"drained {len(report.drained)}", flush=True)
            scope.cancel()


async def main():
    async with open_registry(sys.argv[1]) as registry, trio.open_nursery() as nursery:
        nursery.start_soon(drain_on_sigterm, registry, nursery.cancel_scope)
        await trio.sleep_forever()


trio.run(main)
"""


def test_sigterm_drains_a_trio_program(sqlite: Shared) -> None:
    """As the how-to says: nothing of it stays, and it ends well."""
    url = sqlite.backdoor.engine.url.render_as_string(hide_password=False)  # type: ignore[attr-defined]
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, url], stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            assert set(sqlite.backdoor.rows()) == {"s"}
            program.send_signal(signal.SIGTERM)
            assert program.stdout.readline() == "drained 1\n"
            assert program.wait(60) == 0
        finally:
            program.kill()
    assert sqlite.backdoor.rows() == {}
