"""One session as it was added: the states of its row, and what is to be written with it."""

import pytest
import trio
import trio.testing

from trio_sessions._entry import Entry, Row
from trio_sessions._pending import Pending
from trio_sessions._table import LocalTable
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Capabilities, Holder, RemovalReason, Stamp
from trio_sessions.writes import Claim, Claimed, Keep, Outcome

STAMP = Stamp(history="h", beat=7)
ABLE = Capabilities(encoded='{"elicitation":{}}', elicitation=True)


def make_entry(replaced: Entry | None = None, transport: FakeTransport | None = None) -> Entry:
    return Entry("s", transport or FakeTransport(), 1, 0.0, replaced=replaced)


def answer(
    outcome: Outcome, *, owner: str | None = None, capabilities: Capabilities | None = None
) -> Claimed:
    holder = Holder(worker_id="w", incarnation="i", owner=owner)
    return Claimed(outcome=outcome, holder=holder, capabilities=capabilities, born="b", dropped=0)


def confirmed(**words: str | Capabilities | None) -> Entry:
    entry = make_entry()
    entry.claim()
    entry.confirm(answer(Outcome.INSERTED, **words), STAMP)  # type: ignore[arg-type]
    return entry


# ---- the row ----


@pytest.mark.parametrize(
    ("outcome", "row", "born"),
    [
        (Outcome.INSERTED, Row.CONFIRMED, "b"),
        (Outcome.KEPT, Row.CONFIRMED, "b"),
        (Outcome.TAKEN_OVER, Row.CONFIRMED, "b"),
        (Outcome.LOST, Row.LOST, None),
    ],
)
def test_what_an_answer_makes_of_a_row(outcome: Outcome, row: Row, born: str | None) -> None:
    """Only what is this worker's has its birth; every answer has the stamp that proves it."""
    entry = make_entry()
    assert (entry.row, entry.born, entry.confirmed_by.beat) == (Row.UNWRITTEN, None, 0)
    entry.claim()
    assert entry.row is Row.WRITING
    entry.confirm(answer(outcome), STAMP)
    assert (entry.row, entry.born, entry.confirmed_by) == (row, born, STAMP)
    assert (entry.error, entry.is_certain) == (None, True)


def test_a_claim_that_failed_may_have_been_carried_out() -> None:
    """Until one is answered; a claim that was not made leaves it as certain as it was."""
    entry = make_entry()
    entry.claim()
    entry.fail(None)
    assert (entry.row, entry.error, entry.is_certain) == (Row.UNWRITTEN, None, True)
    lost = ValueError("lost")
    entry.claim()
    entry.fail(lost)
    assert (entry.row, entry.error, entry.is_certain) == (Row.UNWRITTEN, lost, False)
    entry.claim()
    entry.fail(None)
    assert not entry.is_certain
    assert not make_entry(entry).is_certain, "nor is it of the next one"
    entry.claim()
    entry.confirm(answer(Outcome.KEPT), STAMP)
    assert (entry.error, entry.is_certain) == (None, True)
    assert make_entry(entry).is_certain


def test_no_state_is_skipped() -> None:
    """A row is not confirmed that nobody has claimed, nor claimed twice."""
    entry = make_entry()
    with pytest.raises(RuntimeError, match="cannot go from UNWRITTEN to CONFIRMED"):
        entry.confirm(answer(Outcome.KEPT), STAMP)
    entry.claim()
    with pytest.raises(RuntimeError, match="cannot go from WRITING to WRITING"):
        entry.claim()


def test_a_claim_that_failed_was_not_refused() -> None:
    """Though the one before was: a database that went back may not know of the revocation."""
    entry = make_entry()
    entry.claim()
    entry.confirm(answer(Outcome.REVOKED), STAMP)
    assert (entry.row, entry.refusal) == (Row.LOST, Outcome.REVOKED)
    entry.forget()
    entry.claim()
    entry.fail(ValueError("away"))
    assert (entry.row, entry.refusal) == (Row.UNWRITTEN, None)


def test_a_lapse_loses_what_was_confirmed_only() -> None:
    """What is asked again is judged by the stamp with which the worker begins again."""
    later = Stamp(history="later", beat=1)
    written, unwritten = confirmed(), make_entry()
    for entry, row in ((written, Row.LOST), (unwritten, Row.UNWRITTEN)):
        entry.lapse(later)
        assert (entry.row, entry.confirmed_by) == (row, later)


async def test_whoever_waits_for_an_answer_gets_it() -> None:
    """At once where none is under way; each of several where one is."""
    entry = make_entry()
    await entry.answered()
    entry.claim()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(entry.answered)
            nursery.start_soon(entry.answered)
            await trio.testing.wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 2
            entry.fail(ValueError("away"))
        entry.claim()
        entry.confirm(answer(Outcome.KEPT), STAMP)
        await entry.answered()


async def test_the_end_is_told_to_whoever_asks_before_or_after() -> None:
    """It is one event, made when somebody first asks."""
    before, after = make_entry(), make_entry()
    assert not before.ended.is_set()
    for entry in (before, after):
        assert entry.removal is None
        entry.end(RemovalReason.MISSING)
        assert entry.removal is not None
        assert entry.ended.is_set()
        assert entry.ended is entry.ended


# ---- what is to be written with it ----


def test_what_was_said_goes_on_to_the_next_entry() -> None:
    """And so does the birth; the tenure only with the transport."""
    entry = confirmed()
    entry.pending.note_owner("o")
    again = make_entry(entry)
    assert again.pending is entry.pending
    assert (again.born, again.row) == ("b", Row.UNWRITTEN)
    assert again.tenure is not entry.tenure
    same = make_entry(again, transport=again.transport)  # type: ignore[arg-type]
    assert same.tenure is again.tenure
    assert make_entry().tenure is not make_entry().tenure


def test_what_the_database_has_forgotten_is_written_once_more() -> None:
    """Owner and capabilities as the last answer had them; the birth may be another."""
    entry = confirmed(owner="o", capabilities=ABLE)
    entry.forget()
    assert (entry.row, entry.born, entry.was_forgotten) == (Row.UNWRITTEN, None, True)
    assert (entry.pending.owner, entry.pending.capabilities) == ("o", ABLE)
    assert make_entry(entry).was_forgotten
    assert not make_entry(confirmed()).was_forgotten
    entry.claim()
    entry.confirm(answer(Outcome.INSERTED), STAMP)
    assert not entry.was_forgotten


def test_what_was_learnt_since_is_what_is_written_once_more() -> None:
    """Who says nothing of the capabilities has not changed them."""
    entry = confirmed(owner="o", capabilities=ABLE)
    entry.learn(Holder(worker_id="w", incarnation="i", owner="p"))
    entry.forget()
    assert (entry.pending.owner, entry.pending.capabilities) == ("p", ABLE)
    other = confirmed()
    other.learn(Holder(worker_id="w", incarnation="i"))
    other.learn_capabilities(ABLE)
    other.learn_data("{}")
    other.forget()
    assert (other.pending.owner, other.pending.capabilities) == (Keep.AS_IS, ABLE)
    assert other.pending.data == other.data == "{}"


def test_what_is_to_be_written_already_comes_first() -> None:
    """What was known is older than what was said since, also that nobody owns it."""
    pending, newer = Pending(), Capabilities(encoded="{}", elicitation=False)
    assert pending.is_empty
    pending.note_owner(None)
    assert not pending.is_empty
    pending.note_capabilities(newer)
    pending.note_again(Holder(worker_id="w", incarnation="i", owner="old"), ABLE, "{}")
    assert (pending.owner, pending.capabilities, pending.data) == (None, newer, "{}")
    able = Pending()
    able.note_capabilities(ABLE)
    assert not able.is_empty


def test_only_what_was_written_is_forgotten() -> None:
    """Something else may have been said while the claim was under way."""
    pending = Pending()
    pending.note_owner("o")
    pending.note_capabilities(ABLE)
    assert (Pending().size, pending.size) == (0, len(ABLE.encoded))
    claim = Claim(session_id="s", generation=1, age=0.0, owner="o", capabilities=ABLE)
    other = Claim(session_id="s", generation=1, age=0.0, owner="p", capabilities=None)
    pending.forget(other)
    assert (pending.owner, pending.capabilities) == ("o", ABLE)
    pending.forget(claim)
    assert pending.is_empty


# ---- the table ----


def test_an_entry_leaves_the_table_by_identity_only() -> None:
    """What was added again stays, and who was replaced has ended."""
    table = LocalTable()
    transport = FakeTransport()
    first, nobody = table.put("s", transport, 1.5)
    second, replaced = table.put("s", transport, 2.5)
    assert (nobody, replaced, first.removal, second.removal) == (
        None,
        first,
        RemovalReason.TAKEN_OVER,
        None,
    )
    assert (first.generation, second.generation, second.added_at) == (1, 2, 2.5)
    assert second.tenure is first.tenure, "it has been told whom it replaces"
    assert not table.discard(first, RemovalReason.MISSING)
    assert (table.holds(first), table.holds(second)) == (False, True)
    assert ("s" in table, len(table), table.ids(), table.snapshot()) == (True, 1, ["s"], [second])
    table.put("t", transport, 3.0)[0].claim()
    assert (table.count(Row.UNWRITTEN), table.count(Row.WRITING, Row.UNWRITTEN)) == (1, 2)
    assert table.discard(second, RemovalReason.MISSING)
    assert second.removal is not None
    assert table.get("s") is None
