"""The decisions of the pass, without a loop: evidence in, actions out."""

from itertools import product

import outcome
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_sessions._edge import chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._pacing import pause_after
from trio_sessions._table import LocalTable
from trio_sessions._verdicts import Leases, judge_claims, judge_connection, judge_rows
from trio_sessions._witness import WentBack, Witness
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.testing import FakeTransport
from trio_sessions.types import Holder, RemovalReason, RowAnswers, Stamp, fingerprint
from trio_sessions.writes import Claimed, Outcome

ids = st.text(min_size=1, max_size=3, alphabet="abc")


STAMP = Stamp(history="h", beat=5)
NOW = 100.0  # seconds after each entry was added


def entry(session_id: str) -> Entry:
    return Entry(session_id, FakeTransport(), 1, 0.0)


def test_a_claim_is_judged_by_its_answer() -> None:
    """One that was not answered is unknown if there was an error, and not spoken of if not."""
    there, lost, failed, waiting, untouched = (entry(name) for name in "abcde")
    for one in (there, lost, failed, waiting):
        one.claim()
    for one, what in ((there, Outcome.KEPT), (lost, Outcome.LOST)):
        holder = Holder(worker_id="w", incarnation="i")
        one.confirm(Claimed(outcome=what, holder=holder, capabilities=None, born="b"), STAMP)
    error = OSError()
    failed.fail(error)
    verdict = judge_claims([there, lost, failed, waiting, untouched])
    assert (verdict.there, verdict.taken_over, verdict.gone) == ([there], [lost], [])
    assert verdict.unknown == {"c": error}


def test_only_a_plain_false_is_disconnected() -> None:
    """Everything else is connected or unknown."""
    error = OSError()
    assert judge_connection(False) is False
    assert judge_connection(True) is True
    assert judge_connection(outcome.Error(error)) is error
    answers: list[object] = [None, 0, "", [], outcome.Value(False)]
    for answer in answers:
        assert isinstance(judge_connection(answer), TypeError)


@given(asked=st.sets(ids), held=st.sets(ids), taken_over=st.sets(ids), unknown=st.sets(ids))
def test_exactly_what_is_absent_from_the_answer_is_gone(
    asked: set[str], held: set[str], taken_over: set[str], unknown: set[str]
) -> None:
    """There, unknown, taken over and gone share the sessions among them."""
    error = OSError()
    answers = RowAnswers(
        held=frozenset(held),
        taken_over=frozenset(taken_over - held - unknown),
        unknown=dict.fromkeys(unknown - held, error),
        stamp=STAMP,
    )
    verdict = judge_rows(
        [confirmed_entry(session_id) for session_id in asked], answers, steady(), NOW
    )
    assert {e.session_id for e in verdict.there} == asked & held
    assert {e.session_id for e in verdict.taken_over} == (asked & taken_over) - held - unknown
    assert {e.session_id for e in verdict.gone} == asked - held - taken_over - unknown


@pytest.mark.parametrize(
    ("shown", "is_believed"),
    [
        (None, False),
        (Stamp(history="another", beat=99), False),
        (Stamp(history="h", beat=4), False),
        (Stamp(history="h", beat=5), True),
        (Stamp(history="h", beat=6), True),
    ],
    ids=str,
)
def test_an_answer_counts_only_if_the_witness_vouches_for_it(
    shown: Stamp | None, *, is_believed: bool
) -> None:
    """It shows the history in which the row was confirmed, and no lower beat."""
    gone, moved, there = (confirmed_entry(name) for name in ("gone", "moved", "there"))
    answers = RowAnswers(held=frozenset({"there"}), taken_over=frozenset({"moved"}), stamp=shown)
    verdict = judge_rows([gone, moved, there], answers, steady(), NOW)
    assert verdict.there == [there]
    assert verdict.gone == [gone] * is_believed
    assert verdict.taken_over == [moved] * is_believed
    assert verdict.unknown.keys() == (set() if is_believed else {"gone", "moved"})


@pytest.mark.parametrize(
    ("taken_ago", "is_a_mark"),
    [(None, True), (-5.0, True), (50.0, True), (100.5, True), (101.5, False)],
)
def test_a_row_that_was_taken_before_the_session_came_is_no_mark(
    taken_ago: float | None, *, is_a_mark: bool
) -> None:
    """Found by the fleet: rows were deleted, and an older connection's was written late.

    Then so many may be missing at once that the brake has to hold them.
    """
    moved = confirmed_entry("moved")
    ages = {} if taken_ago is None else {"moved": taken_ago}
    others = frozenset({"moved"})
    answers = RowAnswers(held=frozenset(), taken_over=others, taken_ago=ages, stamp=STAMP)
    verdict = judge_rows([moved], answers, steady(), NOW)
    assert (verdict.taken_over, verdict.gone) == (([moved], []) if is_a_mark else ([], [moved]))


def test_who_was_lost_to_a_newer_holder_has_a_mark() -> None:
    """That it is gone by now is no riddle: the newer holder has ended it."""
    lost, confirmed = entry("lost"), entry("confirmed")
    for one, how in ((lost, Outcome.LOST), (confirmed, Outcome.KEPT)):
        one.claim()
        one.confirm(claimed(how), STAMP)
    verdict = judge_rows(
        [lost, confirmed], RowAnswers(held=frozenset(), stamp=STAMP), steady(), NOW
    )
    assert (verdict.taken_over, verdict.gone) == ([lost], [confirmed])


def test_a_row_is_judged_only_if_it_was_once_confirmed() -> None:
    """Unwritten: to be written. Being written: left alone. Lost: asked for again."""
    leases = Leases()
    entries = {row: entry(row.name) for row in Row}
    for row, one in entries.items():
        if row is not Row.UNWRITTEN:
            one.claim()
        if row in (Row.CONFIRMED, Row.LOST):
            one.confirm(claimed(Outcome.LOST if row is Row.LOST else Outcome.KEPT), STAMP)
        assert one.row is row
        leases.add([one])
    assert leases.refresh == [entries[Row.CONFIRMED], entries[Row.LOST]]
    assert leases.restore == [entries[Row.UNWRITTEN]]


def test_a_row_goes_only_where_it_may() -> None:
    """An answer without a claim, or a second claim, is a mistake of ours."""
    one = entry("s")
    with pytest.raises(RuntimeError, match="from UNWRITTEN to CONFIRMED"):
        one.confirm(claimed(Outcome.INSERTED), STAMP)
    one.claim()
    with pytest.raises(RuntimeError, match="from WRITING to WRITING"):
        one.claim()
    one.fail(OSError())
    assert (one.row, one.is_certain) == (Row.UNWRITTEN, False)
    one.claim()
    one.confirm(claimed(Outcome.INSERTED), STAMP)
    assert (one.row, one.is_certain, one.born) == (Row.CONFIRMED, True, "1")


def test_a_lease_that_was_lost_is_a_mark() -> None:
    """Of sessions that were there, and of those that a newer holder had won before."""
    later = Stamp(history="later", beat=1)
    for how in (Outcome.KEPT, Outcome.LOST):
        one = entry("s")
        one.claim()
        one.confirm(claimed(how), STAMP)
        one.lapse(later)
        assert one.row is Row.LOST
        absent = RowAnswers(held=frozenset(), stamp=later)
        assert judge_rows([one], absent, steady(), NOW).taken_over == [one]


def steady() -> Witness:
    witness = Witness()
    witness.begin("h")
    return witness


def test_what_was_confirmed_with_a_beat_that_may_be_another_flight_s_is_written_anew() -> None:
    """The one flight is not answered; the other's beat was acknowledged while it was out."""
    witness, session = steady(), confirmed_entry("s")
    answers = RowAnswers(held=frozenset(), stamp=STAMP)
    assert judge_rows([session], answers, witness, NOW).gone == [session]
    lost, heard = witness.depart(), witness.depart()
    witness.land(heard, STAMP)
    for _ in range(2):
        verdict = judge_rows([session], answers, witness, NOW)
        assert (verdict.gone, verdict.suspect, list(verdict.unknown)) == ([], [session], ["s"])
        witness.lose(lost)
    lost_to_another = entry("t")
    lost_to_another.claim()
    lost_to_another.confirm(claimed(Outcome.LOST), STAMP)
    for marks in ({}, {"s": 1.0}, {"t": 1.0}):
        marked = RowAnswers(
            held=frozenset(), stamp=STAMP, taken_over=frozenset(marks), taken_ago=marks
        )
        verdict = judge_rows([session, lost_to_another], marked, witness, NOW)
        won = [lost_to_another] if "t" in marks else []
        assert verdict.taken_over == won, "whoever has won it has it yet"
        assert len(verdict.suspect) == 2 - len(won)
    elsewhere = RowAnswers(
        held=frozenset(), stamp=None, taken_over=frozenset("t"), taken_ago={"t": 1.0}
    )
    assert not judge_rows([lost_to_another], elsewhere, witness, NOW).taken_over
    with pytest.raises(WentBack):
        witness.show(witness.depart(counts=False), None)
    witness.begin("later")
    assert not judge_rows([session], answers, witness, NOW).suspect, (
        "for it is written anew already"
    )


def confirmed_entry(session_id: str) -> Entry:
    one = entry(session_id)
    one.claim()
    one.confirm(claimed(Outcome.INSERTED), STAMP)
    return one


def claimed(outcome_: Outcome) -> Claimed:
    return Claimed(
        outcome=outcome_,
        holder=Holder(worker_id="w", incarnation="i"),
        capabilities=None,
        born="1",
    )


@given(items=st.lists(st.integers()), size=st.integers(1, 10))
def test_chunks_are_all_there_is_in_order(items: list[int], size: int) -> None:
    """Each of at most the size, and none empty."""
    chunks = list(chunked(items, size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(1 <= len(chunk) <= size for chunk in chunks)


def test_an_entry_leaves_the_table_only_by_identity() -> None:
    """The one that was added again under the same id stays."""
    table = LocalTable()
    old, nothing = table.put("s", FakeTransport(), 0.0)
    new, replaced = table.put("s", FakeTransport(), 1.0)
    assert nothing is None
    assert replaced is old
    assert new.generation > old.generation
    assert not table.discard(old, RemovalReason.MISSING)
    assert table.get("s") is new
    assert table.discard(new, RemovalReason.MISSING)
    assert not table.discard(new, RemovalReason.MISSING)
    assert len(table) == 0


@given(
    interval=st.floats(0.01, 1e6),
    chance=st.floats(0, 1, exclude_max=True),
    complete=st.booleans(),
)
def test_the_jitter_only_shortens(interval: float, chance: float, complete: bool) -> None:  # noqa: FBT001 -- drawn
    """By a tenth at most; a tenth of the interval after a pass that was not complete."""
    pause = pause_after(interval=interval, complete=complete, chance=chance)
    whole = interval if complete else interval / 10
    assert whole * 0.899 <= pause <= whole * 1.001


@pytest.mark.parametrize(("interval", "outage"), list(product([0.01, 0.25, 0.5], [0.0, 0.2, 0.4])))
def test_the_sum_behind_the_grace_adds_up(interval: float, outage: float) -> None:
    """An outage that shows no gap ends early enough for everyone to refresh in time."""
    assert outage <= MAX_GAP
    last_refresh_to_next_attempt = interval
    retry = pause_after(interval=interval, complete=False, chance=0.0)
    assert last_refresh_to_next_attempt + outage + retry < 1.0


def test_fingerprints_are_short_stable_and_do_not_show_the_id() -> None:
    """Eight hexadecimal digits, the same in every process."""
    assert fingerprint("secret") == fingerprint("secret")
    assert fingerprint("secret") != fingerprint("secret2")
    assert len(fingerprint("secret")) == 8
    assert fingerprint("") == "36e9d246"
    assert len(fingerprint("\ud800")) == 8
