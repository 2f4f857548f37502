"""The brake: what is missing in masses is asked for once more before anybody is removed."""

import logging
from collections.abc import Sequence

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from backdoors import DatabaseBackdoor, MemoryBackdoor
from conftest import Shared
from hypothesis import given
from hypothesis import strategies as st

from trio_sessions import SessionNotFound, SessionRegistry, open_registry
from trio_sessions._brake import AT_LEAST, Brake, Decision, is_too_much
from trio_sessions._entry import Entry
from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, FaultyStore
from trio_sessions.types import RemovalReason, RowAnswers

# ---- the decision ----


@pytest.mark.parametrize(
    ("newly_missing", "answers", "share", "brakes"),
    [
        (9, 9, 0.0, False),
        (10, 10, 0.0, True),
        (10, 1000, 0.0, True),
        (10, 20, 0.5, False),
        (11, 21, 0.5, True),
        (10, 19, 0.5, True),
        (29, 100, 0.29, False),  # 0.29 * 100 is less than 29, in binary
        (30, 100, 0.29, True),
        (100, 100, 0.99, True),
        (100, 100, 1.0, False),
        (0, 0, 0.0, False),
    ],
)
def test_more_than_the_share_and_at_least_ten(
    *, newly_missing: int, answers: int, share: float, brakes: bool
) -> None:
    """Exactly the share is not too much, and 1.0 is off."""
    assert is_too_much(newly_missing=newly_missing, answers=answers, share=share) is brakes


def entries(amount: int, name: str = "s") -> list[Entry]:
    return [Entry(f"{name}{number}", FakeTransport(), number, 0.0) for number in range(amount)]


def decide(
    brake: Brake,
    gone: list[Entry],
    there: list[Entry] | None = None,
    taken_over: list[Entry] | None = None,
) -> Decision:
    """Play a pass, in which whatever is not named is unknown."""
    brake.begin()
    brake.note(there=there or [], taken_over=[], gone=gone[:5])
    brake.note(there=[], taken_over=taken_over or [], gone=gone[5:])
    return brake.decide()


def test_what_is_missing_again_goes_whatever_the_share() -> None:
    """And who was found again is not suspected any more."""
    brake, all_ = Brake(0.5), entries(20)
    first = decide(brake, all_)
    assert (first.remove, first.hold, first.brakes, first.answers) == ([], all_, True, 20)
    second = decide(brake, all_[:19], there=all_[19:])
    assert (second.remove, second.hold, second.brakes) == (all_[:19], (), False)
    for entry in all_[:19]:
        entry.end(RemovalReason.MISSING)
    others = entries(9, "other")
    assert decide(brake, [*others, all_[19]]).hold == [*others, all_[19]]


def test_what_is_unknown_neither_confirms_nor_clears() -> None:
    """However often: it goes when it is missing again, and not before."""
    brake, all_ = Brake(0.5), entries(12)
    assert decide(brake, all_).hold == all_
    for _ in range(3):
        silence = decide(brake, [])
        assert (silence.remove, silence.hold) == ([], ())
    assert decide(brake, all_).remove == all_


def test_two_floods_do_not_hide_behind_each_other() -> None:
    """What was held before counts on neither side of the share."""
    brake, first, second = Brake(0.5), entries(60), entries(40, "other")
    assert decide(brake, first, there=second).hold == first
    decision = decide(brake, [*first, *second[:30]], there=second[30:])
    assert (decision.remove, decision.hold, decision.answers) == (first, second[:30], 40)
    for entry in first:
        entry.end(RemovalReason.MISSING)
    assert decide(brake, second[:30], there=second[30:]).remove == second[:30]


def test_a_mark_counts_as_an_answer_and_is_never_held() -> None:
    """Thirty that moved to another worker, as it happens at a roll-out, hold ten that are gone."""
    brake, moved, gone = Brake(0.5), entries(30, "moved"), entries(10)
    decision = decide(brake, gone, taken_over=moved)
    assert (decision.remove, decision.hold, decision.answers) == (gone, (), 40)


def test_who_has_left_meanwhile_does_not_count() -> None:
    """Removed by its own gateway during the pass: then its row is gone, rightly."""
    brake, leaving, staying = Brake(0.5), entries(50, "leaving"), entries(30)
    brake.begin()
    brake.note(there=staying[1:], taken_over=[], gone=[*leaving, staying[0]])
    for entry in leaving:
        entry.end(RemovalReason.MISSING)
    decision = brake.decide()
    assert (decision.remove, decision.hold, decision.answers) == ([staying[0]], (), 30)


def test_a_pass_that_was_cut_leaves_no_evidence() -> None:
    """The next one begins anew, and has nobody twice."""
    brake, all_ = Brake(0.5), entries(12)
    brake.begin()
    brake.note(there=[], taken_over=[], gone=all_)
    decision = decide(brake, all_)
    assert (decision.hold, decision.answers) == (all_, 12)


def test_what_is_absent_and_decides_nothing_speaks_against_the_rest() -> None:
    """Nine are gone, and one is as absent as they are: ten."""
    for suspect, held in ((0, 0), (1, 9)):
        brake, all_ = Brake(0.5), entries(10)
        brake.begin()
        brake.note(there=[], taken_over=[], gone=all_[1:], suspect=all_[:suspect])
        decision = brake.decide()
        assert (len(decision.hold), len(decision.remove)) == (held, 9 - held)


def test_nothing_is_kept_of_sessions_that_have_ended() -> None:
    """They would be kept for ever: nobody asks for their rows any more."""
    brake, all_ = Brake(0.5), entries(12)
    assert decide(brake, all_).hold == all_
    for entry in all_[1:]:
        entry.end(RemovalReason.MISSING)
    brake.begin()
    assert brake._suspected == {all_[0]}


STATES = ("there", "taken over", "gone", "suspect", "unknown")


@given(
    share=st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    passes=st.lists(
        st.lists(st.sampled_from(STATES), min_size=24, max_size=24), min_size=1, max_size=6
    ),
    chunk=st.integers(1, 24),
)
def test_nobody_goes_but_by_the_rule(share: float, passes: list[list[str]], chunk: int) -> None:
    """Beside a model: who goes was held before, or was gone with few others; the rest stays."""
    brake, here = Brake(share), entries(24)
    suspected: set[Entry] = set()
    for states in passes:
        now = {entry: states[entry.generation] for entry in here}
        found = {state: [e for e in here if now[e] == state] for state in STATES}
        brake.begin()
        for start in range(0, len(here), chunk):
            part = here[start : start + chunk]
            kinds = {state: [e for e in part if now[e] == state] for state in STATES}
            brake.note(
                there=kinds["there"],
                taken_over=kinds["taken over"],
                gone=kinds["gone"],
                suspect=kinds["suspect"],
            )
        decision = brake.decide()
        again = suspected & set(found["gone"])
        newly = set(found["gone"]) - suspected
        absent = len(newly) + len(found["suspect"])
        answers = len(found["there"]) + len(found["taken over"]) + absent
        brakes = absent >= AT_LEAST and absent / answers > share
        assert set(decision.hold) == (newly if brakes else set())
        assert set(decision.remove) == (again if brakes else again | newly)
        assert len(decision.remove) + len(decision.hold) == len(found["gone"])
        assert decision.answers == answers
        suspected = suspected - set(found["there"]) | set(decision.hold)
        for entry in [*decision.remove, *found["taken over"]]:
            entry.end(RemovalReason.MISSING)
        here = [entry for entry in here if entry.removal is None]
        suspected &= set(here)


# ---- real passes ----


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


async def add(registry: SessionRegistry, amount: int) -> dict[str, FakeTransport]:
    transports = {f"session-{number:03}": FakeTransport() for number in range(amount)}
    async with trio.open_nursery() as nursery:
        for session_id, transport in transports.items():
            nursery.start_soon(registry.add_session, session_id, transport)
    assert (await registry.cleanup()).refreshed == amount
    return transports


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_everybody_missing_at_once_is_held_for_a_pass(
    everywhere: Shared, batch_size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The second pass removes them; it is logged as an error with the numbers, and counted."""
    async with everywhere.open(batch_size=batch_size) as registry:
        transports = await add(registry, 30)
        everywhere.backdoor.delete(*transports)
        report = await registry.cleanup()
        assert (report.missing, report.taken_over, report.refreshed) == ((), (), 0)
        assert sorted(report.held) == list(transports)
        assert registry.statistics().brakes == 1
        assert registry.statistics().sessions == 30
        assert not any(transport.disconnects for transport in transports.values())
        [record] = [one for one in caplog.records if one.levelno >= logging.ERROR]
        assert "30 of 30" in record.getMessage()
        assert "mass_missing_brake (0.5)" in record.getMessage()
        report = await registry.cleanup()
        assert sorted(report.missing) == list(transports)
        assert report.held == ()
        assert registry.statistics().brakes == 1
        assert all(transport.disconnects == 1 for transport in transports.values())
        assert everywhere.backdoor.rows() == {}


async def test_who_leaves_while_others_are_held_is_not_reported_as_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The report names whom the next pass will ask for again."""
    monkeypatch.setattr("trio_sessions._cleanup._SLICE", 4)
    store = MemoryStore()
    async with open_registry(store) as registry, trio.open_nursery() as nursery:
        transports = await add(registry, 12)
        last = list(transports)[-1]
        brake = registry._house.passes._brake
        decide = brake.decide

        def decide_and_remove() -> Decision:
            nursery.start_soon(registry.remove_session, last)
            return decide()

        monkeypatch.setattr(brake, "decide", decide_and_remove)
        MemoryBackdoor(store).delete(*transports)
        report = await registry.cleanup()
        assert sorted(report.held) == sorted(set(transports) - {last})


async def empty_the_table(shared: Shared, statement: str, batch_size: int) -> None:
    async with shared.open(batch_size=batch_size) as registry:
        transports = await add(registry, 30)
        back(shared).execute(sa.text(statement))
        assert sorted((await registry.cleanup()).held) == list(transports)
        assert sorted((await registry.cleanup()).missing) == list(transports)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_a_delete_without_a_condition(database: Shared, batch_size: int) -> None:
    """How to end everybody on purpose, too: wait for two passes."""
    await empty_the_table(database, "DELETE FROM trio_sessions", batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_a_table_that_is_truncated(postgresql: Shared, batch_size: int) -> None:
    """An older fault: 6,000 of 6,000 were disconnected by the next pass."""
    await empty_the_table(postgresql, "TRUNCATE trio_sessions CASCADE", batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
async def test_nine_of_nine_go_at_once(everywhere: Shared, batch_size: int) -> None:
    """So few may well have been meant."""
    async with everywhere.open(batch_size=batch_size) as registry:
        transports = await add(registry, 9)
        everywhere.backdoor.delete(*transports)
        report = await registry.cleanup()
        assert sorted(report.missing) == list(transports)
        assert (report.held, registry.statistics().brakes) == ((), 0)


@pytest.mark.parametrize(
    ("share", "deleted", "is_held"),
    [(0.5, 15, False), (0.5, 16, True), (0.0, 10, True), (1.0, 30, False), (0.9, 27, False)],
)
async def test_the_share_is_a_setting(
    shared: Shared, share: float, deleted: int, *, is_held: bool
) -> None:
    """Of thirty, in chunks that each look harmless or terrible."""
    async with shared.open(batch_size=7, mass_missing_brake=share) as registry:
        transports = await add(registry, 30)
        gone = list(transports)[:deleted]
        shared.backdoor.delete(*gone)
        report = await registry.cleanup()
        assert sorted(report.held) == (gone if is_held else [])
        assert sorted(report.missing) == ([] if is_held else gone)
        assert report.refreshed == 30 - deleted


async def test_an_outage_between_neither_confirms_nor_clears(everywhere: Shared) -> None:
    """Held before the outage, missing after it: gone."""
    store = FaultyStore(everywhere.make_store())
    async with everywhere.open(store=store) as registry:
        transports = await add(registry, 12)
        everywhere.backdoor.delete(*transports)
        assert sorted((await registry.cleanup()).held) == list(transports)
        store.fail()
        for _ in range(2):
            report = await registry.cleanup()
            assert (report.missing, report.held) == ((), ())
            assert sorted(report.refresh_failures) == list(transports)
        store.heal()
        assert sorted((await registry.cleanup()).missing) == list(transports)
        assert registry.statistics().brakes == 1


async def test_rows_that_come_back_clear_the_suspicion(database: Shared) -> None:
    """As when somebody puts a deletion right in time; the next one is held again."""
    deeds = [
        sa.text(deed)
        for deed in (
            "CREATE TABLE kept AS SELECT * FROM trio_sessions",
            "DELETE FROM trio_sessions",
            "INSERT INTO trio_sessions SELECT * FROM kept",
        )
    ]
    async with database.open() as registry:
        transports = await add(registry, 12)
        back(database).execute(deeds[0])
        back(database).execute(deeds[1])
        assert sorted((await registry.cleanup()).held) == list(transports)
        back(database).execute(deeds[2])
        report = await registry.cleanup()
        assert (report.refreshed, report.missing, report.held) == (12, (), ())
        back(database).execute(deeds[1])
        assert sorted((await registry.cleanup()).held) == list(transports)
        assert registry.statistics().brakes == 2
        back(database).execute(sa.text("DROP TABLE kept"))


async def test_nothing_writes_a_held_row_anew(everywhere: Shared) -> None:
    """Whatever is said of such a session: it has no row, and is judged by the next pass."""
    async with everywhere.open() as registry:
        transports = await add(registry, 12)
        first = next(iter(transports))
        everywhere.backdoor.delete(*transports)
        assert len((await registry.cleanup()).held) == 12
        with pytest.raises(SessionNotFound):
            await registry.set_session_owner(first, "owner")
        assert await registry.claim_session_owner(first, "owner") is None
        with pytest.raises(SessionNotFound):
            await registry.store_client_capabilities(first, {"elicitation": {}})
        with pytest.raises(SessionNotFound):
            await registry.broadcast(first, "hello", durable=True)
        await registry.get_elicitation_capable_sessions()
        assert everywhere.backdoor.rows() == {}
        assert len((await registry.cleanup()).missing) == 12


async def test_a_held_session_that_is_added_again_is_a_new_one(everywhere: Shared) -> None:
    """Its row is written by its adding, and it stays; one that is removed is not missing."""
    async with everywhere.open(worker_id="w") as registry:
        transports = await add(registry, 12)
        again, removed, *others = transports
        everywhere.backdoor.delete(*transports)
        assert len((await registry.cleanup()).held) == 12
        await registry.add_session(again, transports[again])
        await registry.remove_session(removed)
        report = await registry.cleanup()
        assert (report.refreshed, sorted(report.missing)) == (1, others)
        assert everywhere.backdoor.rows() == {again: "w"}


async def test_a_roll_out_is_not_held(shared: Shared) -> None:
    """Who was taken over has a mark, and goes at once, however many there are."""
    async with shared.open(worker_id="a") as a, shared.open(worker_id="b") as b:
        transports = await add(a, 30)
        await trio.sleep(0.02)  # the database's clock must move, SQLite's by a millisecond
        for session_id in transports:
            await b.add_session(session_id, FakeTransport())
        report = await a.cleanup()
        assert sorted(report.taken_over) == sorted(report.missing) == list(transports)
        assert (report.held, a.statistics().brakes) == ((), 0)
        assert (await b.cleanup()).refreshed == 30


async def test_nobody_goes_before_all_chunks_have_been_answered() -> None:
    """The first chunks may say "missing" long before the last one shows how many it is."""
    last_asked, go_on = trio.Event(), trio.Event()

    class SlowAtTheEnd(FaultyStore):
        async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
            if self.is_slow and "session-011" in session_ids:
                last_asked.set()
                await go_on.wait()
            return await super().refresh(worker, session_ids)

        is_slow = False

    inner = MemoryStore()
    store = SlowAtTheEnd(inner)
    async with open_registry(store, batch_size=4) as registry:
        transports = await add(registry, 12)
        gone = list(transports)[:4]
        MemoryBackdoor(inner).delete(*gone)
        store.is_slow = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.cleanup)
            await last_asked.wait()
            await trio.testing.wait_all_tasks_blocked()
            assert store.calls["refresh"] >= 2
            assert not any(transport.disconnects for transport in transports.values())
            go_on.set()
        assert [name for name, one in transports.items() if one.disconnects] == gone
