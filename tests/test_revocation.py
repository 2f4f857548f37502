"""Sessions that are ended for good, from anywhere, and do not come back."""

import contextlib
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared

from trio_sessions import (
    Limits,
    NotSupported,
    RegistryClosed,
    RemovalReason,
    SessionRegistry,
    SessionRevoked,
    SessionsError,
    StoreUnavailable,
    open_registry,
)
from trio_sessions.abc import Part
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.stores.memory._revoked import Marks
from trio_sessions.testing import FakeTransport, Fault, FaultyStore


async def until_gone(registry: SessionRegistry, session_id: str) -> None:
    """Wait until a worker has let go of a session, without a pass."""
    passes = registry.statistics().passes
    with trio.fail_after(30):
        while registry.get_session_sync(session_id) is not None:
            await trio.sleep(0.02)
    assert registry.statistics().passes == passes


async def test_whoever_holds_it_lets_go_without_a_pass(shared: Shared) -> None:
    """Another worker has revoked it; its transport is told why, and the report names it."""
    removals: list[Any] = []

    async def removed(session_id: str, reason: RemovalReason) -> None:
        removals.append((session_id, reason))

    async with shared.open(on_removed=removed) as holder, shared.open() as other:
        transport, kept = FakeTransport(), FakeTransport()
        await holder.add_session("s", transport)
        await holder.add_session("kept", kept)
        assert await other.revoke("s", reason="test") == 1
        assert set(shared.backdoor.rows()) == {"kept"}
        assert await other.locate_session("s") is None
        assert await other.describe_session("s") is None
        await until_gone(holder, "s")
        report = await holder.cleanup()
        assert (report.revoked, report.missing, report.held) == (("s",), (), ())
        assert (await holder.cleanup()).revoked == ()
        assert transport.reasons == [RemovalReason.REVOKED]
        assert (kept.disconnects, removals) == (0, [("s", RemovalReason.REVOKED)])


async def test_a_workers_own_session_goes_before_the_call_returns(shared: Shared) -> None:
    async with shared.open() as registry:
        await registry.add_session("s", FakeTransport())
        assert await registry.revoke("s", "nobody", "s") == 1
        assert registry.get_session_sync("s") is None


async def test_nothing_brings_it_back(shared: Shared) -> None:
    """Neither who held it nor anybody else; the refused transport is disconnected, and told why."""
    async with shared.open() as holder, shared.open() as other:
        await holder.add_session("held once", FakeTransport())
        await other.revoke("held once", "never added")
        for registry, session_id in (
            (holder, "held once"),
            (other, "held once"),
            (other, "never added"),
        ):
            refused = FakeTransport()
            with pytest.raises(SessionRevoked, match="was revoked") as raised:
                await registry.add_session(session_id, refused)
            assert isinstance(raised.value, SessionsError)
            assert session_id not in str(raised.value)
            assert registry.get_session_sync(session_id) is None
            await shared.settle()
            assert refused.reasons == [RemovalReason.REVOKED]
        assert shared.backdoor.rows() == {}


async def test_after_its_time_an_id_is_like_any_other(shared: Shared) -> None:
    """The mark is the revoker's: its own limit says for how long."""
    limits = Limits(revocation_ttl=0.3)
    async with shared.open(limits=limits) as revoker, shared.open() as other:
        await revoker.revoke("s")
        with pytest.raises(SessionRevoked):
            await other.add_session("s", FakeTransport())
        with trio.fail_after(30):
            while True:
                try:
                    await other.add_session("s", FakeTransport())
                except SessionRevoked:
                    await trio.sleep(0.05)
                else:
                    break
        await other._house.revoking.look()
        assert other.get_session_sync("s") is not None
        assert set(shared.backdoor.rows()) == {"s"}


async def test_a_longer_mark_stays(shared: Shared) -> None:
    """A second revocation with a shorter time does not make the first one shorter."""
    async with shared.open() as first, shared.open(limits=Limits(revocation_ttl=0.01)) as second:
        await first.revoke("s")
        await second.revoke("s")
        await trio.sleep(0.05)
        with pytest.raises(SessionRevoked):
            await second.add_session("s", FakeTransport())


# ---- which ----


async def test_a_selection_means_those_that_fit_all_of_it(shared: Shared) -> None:
    async with shared.open(worker_id="a") as a, shared.open(worker_id="b") as b:
        for registry, session_id, owner in (
            (a, "a-mallory", "mallory"),
            (b, "b-mallory", "mallory"),
            (b, "b-alice", "alice"),
            (b, "b-nobody", None),
        ):
            await registry.add_session(session_id, FakeTransport())
            await registry.set_session_owner(session_id, owner)
        assert await a.revoke(owner="mallory", older_than=3600.0) == 0
        assert await a.revoke(owner="mallory", worker_id="b") == 1
        assert set(shared.backdoor.rows()) == {"a-mallory", "b-alice", "b-nobody"}
        await until_gone(b, "b-mallory")
        assert await b.revoke(worker_id="b") == 2
        assert await b.get_all_session_ids() == []
        assert await a.get_all_session_ids() == ["a-mallory"]
        with pytest.raises(SessionRevoked):
            await a.add_session("b-alice", FakeTransport())


@pytest.mark.parametrize(
    ("ids", "selection", "error"),
    [
        ((), {}, ValueError),
        (("s",), {"owner": "alice"}, ValueError),
        (("",), {}, ValueError),
        ((), {"owner": ""}, ValueError),
        ((), {"older_than": -1}, ValueError),
        ((), {"older_than": "1 h"}, TypeError),
        (("s",), {"reason": 3}, TypeError),
        (("s",), {"reason": "x" * 1001}, ValueError),
        (("s",), {"reason": "a\0b"}, ValueError),
        (("s",), {"reason": "a\ud800"}, ValueError),
        ((), {"worker_id": "w\0"}, ValueError),
    ],
)
async def test_nobody_is_meant_by_everybody(
    ids: tuple[str, ...], selection: dict[str, Any], error: type[Exception]
) -> None:
    """No argument, or two kinds of them, revoke nothing."""
    async with open_registry() as registry:
        await registry.add_session("s", FakeTransport())
        with pytest.raises(error):
            await registry.revoke(*ids, **selection)
        assert registry.get_session_sync("s") is not None
    with pytest.raises(RegistryClosed):
        await registry.revoke("s")


async def test_a_claim_that_has_not_seen_the_mark_is_found(shared: Shared) -> None:
    """The mark was made before the session was added, and committed while its claim was on its way.

    Then both stand side by side. While a mark counts, nobody may hold its id.
    """
    async with shared.open() as holder, shared.open() as other:
        await other.revoke("s")
        shared.backdoor.insert("s", "nobody")  # as if the claim had not seen it
        entry, _ = holder._house.table.put("s", FakeTransport(), trio.current_time())
        assert holder._house.table.holds(entry)
        await holder._house.revoking.look()
        assert holder.get_session_sync("s") is None


async def test_whoever_is_let_go_before_the_claim_is_answered_is_told(
    autojump_clock: object,
) -> None:
    """The look for marks was quicker than the claim: the caller must not take it for added."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await registry.revoke("s")
        store.fail(Fault.BEGINS_LATE, "commit", seconds=2.0)
        transport = FakeTransport()
        with pytest.raises(SessionRevoked):
            await registry.add_session("s", transport)
        assert transport.reasons == [RemovalReason.REVOKED]
        assert registry.get_session_sync("s") is None


async def test_a_client_that_tries_again_is_reported_once(shared: Shared) -> None:
    """However often it is refused between two passes."""
    async with shared.open() as registry:
        await registry.revoke("s")
        for _ in range(5):
            with pytest.raises(SessionRevoked):
                await registry.add_session("s", FakeTransport())
        assert (await registry.cleanup()).revoked == ("s",)


async def test_claims_and_revocations_at_once_leave_no_session(shared: Shared) -> None:
    """Whichever comes first, and however they cross: the revoked end, and nobody is stuck."""
    async with shared.open() as holder, shared.open() as other:
        ids = [f"s{number}" for number in range(40)]

        async def add(session_id: str) -> None:
            with contextlib.suppress(SessionRevoked):
                await holder.add_session(session_id, FakeTransport(), owner="mallory")

        async def revoke(*session_ids: str, owner: str | None = None) -> None:
            with contextlib.suppress(StoreUnavailable):  # another one has the rows for too long
                await other.revoke(*session_ids, owner=owner)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number, session_id in enumerate(ids):
                    nursery.start_soon(add, session_id)
                    if number % 10 == 5:
                        nursery.start_soon(revoke, *ids)
                        nursery.start_soon(partial(revoke, owner="mallory"))
            await other.revoke(*ids)
            await holder._house.revoking.look()
        assert await holder.get_all_session_ids() == []
        await holder.cleanup()
        assert shared.backdoor.rows() == {}


# ---- what belongs to a session, and the brake ----


async def test_what_belonged_to_it_goes_with_it(shared: Shared) -> None:
    """Messages that wait, the owner, the capabilities: a later session of the id has none."""
    limits = Limits(revocation_ttl=0.05)
    async with shared.open(limits=limits) as holder, shared.open(limits=limits) as other:
        await holder.add_session("s", FakeTransport())
        await holder.set_session_owner("s", "alice")
        await holder.store_client_capabilities("s", {"elicitation": {}})
        await other.broadcast("s", "for the first one")
        assert shared.backdoor.messages() != []
        await other.revoke("s")
        assert shared.backdoor.messages() == []
        await until_gone(holder, "s")
        await trio.sleep(0.1)
        await holder.add_session("s", FakeTransport())
        assert await other.get_session_owner("s") is None
        assert await other.get_client_capabilities("s") is None


async def test_many_at_once_are_no_reason_to_brake(shared: Shared) -> None:
    """A pass that comes before the worker has looked finds out why so many rows are gone."""
    async with shared.open() as holder, shared.open() as other:
        for number in range(40):
            await holder.add_session(f"s{number}", FakeTransport())
        await holder.set_session_owner("s0", "alice")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trio_sessions._revoking._LOOK", 3600.0)
            await trio.sleep(0.6)
            assert await other.revoke(older_than=0.0) == 40
            report = await holder.cleanup()
        assert (len(report.revoked), report.missing, report.held) == (40, (), ())
        assert holder.statistics().brakes == 0


async def test_a_session_that_could_not_be_written_does_not_come_back(shared: Shared) -> None:
    """It was added in an outage of its worker alone, and revoked by its id meanwhile."""
    store = FaultyStore(shared.make_store())
    transport = FakeTransport()
    async with shared.open(store=store) as holder, shared.open() as other:
        store.fail()
        await holder.add_session("s", transport)
        assert await other.revoke("s") == 0
        store.heal()
        await holder.cleanup()
        assert holder.get_session_sync("s") is None
        await shared.settle()
        assert transport.reasons == [RemovalReason.REVOKED]
        assert shared.backdoor.rows() == {}


async def test_what_was_revoked_is_told_though_the_look_fails(shared: Shared) -> None:
    """The database goes away just then: the sessions are revoked, and found by a later look."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as registry:
        await registry.add_session("s", FakeTransport())
        store.fail(Fault.FAILS, "revocations")
        assert await registry.revoke("s") == 1
        assert registry.get_session_sync("s") is not None
        store.heal()
        await until_gone(registry, "s")


async def test_an_outage_delays_it_and_nothing_else(shared: Shared) -> None:
    """Who cannot look keeps its sessions, and looks again."""
    store = FaultyStore(shared.make_store())
    async with shared.open(store=store) as holder, shared.open() as other:
        await holder.add_session("s", FakeTransport())
        await holder.add_session("t", FakeTransport())
        store.fail()
        await other.revoke("s")
        await trio.sleep(1.2)
        assert await holder.get_all_session_ids() == ["s", "t"]
        store.heal()
        await until_gone(holder, "s")
        assert await holder.get_all_session_ids() == ["t"]


async def test_a_store_without_the_part_says_so() -> None:
    """Everything else works."""

    class Plain(MemoryStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.REVOCATION}

    async with open_registry(Plain()) as registry:
        await registry.add_session("s", FakeTransport())
        with pytest.raises(NotSupported, match="RevocationStore"):
            await registry.revoke("s")
        assert (await registry.cleanup()).checked == 1


@pytest.mark.usefixtures("nothing_in_between")
async def test_ten_thousand_take_few_statements(database: Shared) -> None:
    """All of one owner, with the marks and the rows."""
    assert isinstance(database.backdoor, DatabaseBackdoor)
    engine = sa.create_engine(database.backdoor.engine.url)
    told: list[str] = []

    def note(*event: Any) -> None:
        told.append(event[2])

    store = DatabaseStore(engine)
    try:
        async with database.open(store=store) as registry:
            now = "now()" if engine.dialect.name == "postgresql" else "CURRENT_TIMESTAMP"
            with engine.begin() as connection:
                connection.execute(
                    sa.text(
                        "INSERT INTO trio_sessions (session_id, worker_id, owner, created_at, "
                        f"last_accessed) VALUES (:s, 'w', 'mallory', {now}, {now})"
                    ),
                    [{"s": f"s{number:05}"} for number in range(10_000)],
                )
            sa.event.listen(engine, "before_cursor_execute", note)
            assert await registry.revoke(owner="mallory") == 10_000
            sa.event.remove(engine, "before_cursor_execute", note)
    finally:
        engine.dispose()
    said = [one for one in told if one not in {"BEGIN", "BEGIN IMMEDIATE", "COMMIT"}]
    assert 4 <= len(said) <= 12, said


def test_a_mark_in_memory_at_the_edges_of_its_time() -> None:
    """It is fresh up to the last moment, and refuses until the moment when it is over."""
    marks = Marks()
    marks.mark("s", 10.0, 5.0)
    assert [one.session_id for one in marks.fresh(12.0, 2.0)] == ["s"]
    assert marks.fresh(12.5, 2.0) == []
    assert marks.has("s", 14.5)
    assert not marks.has("s", 15.0)
    assert [one.is_over for one in marks.fresh(15.0, 5.0)] == [True]


def test_a_mark_that_is_over_refuses_nobody() -> None:
    """At one and the same moment it is told as over, and lets the id in again."""
    marks = Marks()
    marks.mark("s", 10.0, 5.0)
    for now, is_over in ((14.9, False), (15.0, True)):
        [mark] = marks.fresh(now, 100.0)
        assert mark.is_over is is_over
        assert marks.has("s", now) is not is_over
