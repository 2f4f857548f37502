"""Cures that are turned off, one at a time: with each of them the simulated fleet must fail.

Longer than other files, for it is one list.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from lease_cures import (
    lease_by_the_stamp_alone,
    older_marks_are_believed,
    swept_is_not_remembered,
)

from trio_sessions import _brake, _cleanup, _estimate, _verdicts, _witness, inspection
from trio_sessions._admission import Admission
from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._draining import Draining
from trio_sessions._entry import Entry, Row
from trio_sessions._inspection import Inspection
from trio_sessions._limiting import OverLimits
from trio_sessions._logs import LogRoom
from trio_sessions._mail._pending import Incoming
from trio_sessions._mail._seen import Seen
from trio_sessions._pending import Pending
from trio_sessions._strays import Strays
from trio_sessions._table import LocalTable
from trio_sessions._undecided import Undecided
from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import SessionInfo
from trio_sessions.stores.memory._revoked import Marks
from trio_sessions.stores.memory._rows import Rows
from trio_sessions.stores.memory._workers import Workers
from trio_sessions.testing._simulation._database import Database
from trio_sessions.types import RemovalReason, Stamp
from trio_sessions.writes import Claim, Claimed, Keep, Outcome, Unfinished

__all__ = ["SWITCHES", "Switch"]


@dataclass(frozen=True)
class Switch:
    name: str
    turn_off: Callable[[pytest.MonkeyPatch], None]
    complaint: str
    """What a violation says then, among other words."""
    seed: str
    """With it the fleet fails soon, if the cure is off."""
    steps: int = 60
    workers: int = 3
    mix: str = "all"


def _witness_not_judged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_witness, "_goes_on", lambda shown, confirmed: True)

    def land(self: _witness.Witness, flight: _witness.Flight, stamp: Stamp | None) -> None:
        self._flights.discard(flight)
        if stamp is not None:
            self.known = stamp

    patch.setattr(_witness.Witness, "land", land)


def _stamp_in_any_case(patch: pytest.MonkeyPatch) -> None:
    original = Workers.stamp

    def stamp(
        self: Workers, worker: Any, named: Stamp, now: float, *, passed: bool = False
    ) -> Stamp | None:
        row = self._rows.get(worker.incarnation)
        if row is not None and row.stamp.history == named.history:
            row.stamp = Stamp(history=named.history, beat=max(row.stamp.beat, named.beat))
        return original(self, worker, named, now, passed=passed)

    patch.setattr(Workers, "stamp", stamp)


def _no_brake(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_brake, "is_too_much", lambda **evidence: False)


def _lease_of_the_row(patch: pytest.MonkeyPatch) -> None:
    def has_expired(
        self: Workers, incarnation: str, last_accessed: float, now: float, session_ttl: float
    ) -> bool:
        holder = self._rows.get(incarnation)
        ttl = session_ttl if holder is None else holder.presence.session_ttl
        return now - last_accessed > ttl and now - self._unbroken_since >= ttl

    patch.setattr(Workers, "has_expired", has_expired)


def _no_marks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Marks, "mark", lambda self, session_id, now, ttl: None)


def _no_gap(patch: pytest.MonkeyPatch) -> None:
    def vouch(self: Workers, now: float, session_ttl: float, max_gap: float) -> None:
        self._vouched_at = now

    patch.setattr(Workers, "vouch", vouch)


def _late_statements(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_estimate.ClockEstimate, "not_after", lambda self, writes: None)


def _no_doubt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Database, "_is_in_doubt", lambda self, worker, now: False)


def _nothing_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Claims, "write_anew", lambda self, entry: False)


def _departures_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Departures, "due", lambda self: [])


def _unknown_is_gone(patch: pytest.MonkeyPatch) -> None:
    original = _verdicts.judge_rows

    def judge_rows(entries: Iterable[Entry], *details: Any) -> Any:
        verdict = original(entries, *details)
        gone = [*verdict.gone, *(e for e in entries if e.session_id in verdict.unknown)]
        return _verdicts.RowVerdict(
            there=verdict.there, taken_over=verdict.taken_over, gone=gone, unknown={}
        )

    patch.setattr(_cleanup, "judge_rows", judge_rows)


def _unwritten_is_judged(patch: pytest.MonkeyPatch) -> None:
    def add(self: _verdicts.Leases, entries: Iterable[Entry]) -> None:
        self.refresh.extend(entry for entry in entries if entry.row is not Row.WRITING)

    patch.setattr(_verdicts.Leases, "add", add)
    patch.setattr(_witness.Witness, "vouches", lambda self, shown, confirmed: True)


def _silence_is_an_answer(patch: pytest.MonkeyPatch) -> None:
    original = _verdicts.judge_connection

    def judge_connection(answer: Any) -> bool | Exception:
        return original(answer) is True

    patch.setattr(_cleanup, "judge_connection", judge_connection)


def _rewind_without_a_grace(patch: pytest.MonkeyPatch) -> None:
    original = Workers.begin

    def begin(self: Workers, *args: Any, **details: Any) -> Any:
        series = self._unbroken_since
        begun = original(self, *args, **details)
        self._unbroken_since = series
        return begun

    patch.setattr(Workers, "begin", begin)


def _beats_counted_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_witness.Witness, "is_suspect", lambda self, confirmed: False)


def _only_told_beats_are_suspect(patch: pytest.MonkeyPatch) -> None:
    def lose(self: _witness.Witness, flight: _witness.Flight) -> None:
        self._flights.discard(flight)
        told = flight.acknowledged
        if flight.counts and told and flight.known.history == self.known.history:
            self._suspect.append(range(min(told), max(told) + 1))

    patch.setattr(_witness.Witness, "lose", lose)


def _generations_ignored(patch: pytest.MonkeyPatch) -> None:
    original = Rows._claim

    def claim(self: Rows, worker: Worker, claim: Claim, *details: Any) -> Claimed | Unfinished:
        row = self._living(worker, claim.session_id, claim.ended)
        if row is not None and row.is_of(worker):
            row.generation = min(row.generation, claim.generation)
        return original(self, worker, claim, *details)

    patch.setattr(Rows, "_claim", claim)


def _strays_not_looked_for(patch: pytest.MonkeyPatch) -> None:
    async def delete(self: Strays, rows: int | None) -> None: ...

    patch.setattr(Strays, "delete", delete)


def _removal_by_id(patch: pytest.MonkeyPatch) -> None:
    def discard(self: LocalTable, entry: Entry, reason: RemovalReason) -> bool:
        held = self._entries.pop(entry.session_id, None)
        if held is not None:
            held.end(reason)
        return held is not None

    patch.setattr(LocalTable, "discard", discard)


def _age_not_told(patch: pytest.MonkeyPatch) -> None:
    original = Claims.make

    def make(self: Claims, entry: Entry) -> Claim | None:
        claim = original(self, entry)
        return None if claim is None else replace(claim, age=0.0)

    patch.setattr(Claims, "make", make)


def _leftovers_inherited(patch: pytest.MonkeyPatch) -> None:
    original = Claims.make

    def make(self: Claims, entry: Entry) -> Claim | None:
        claim = original(self, entry)
        return None if claim is None else replace(claim, ended=0)

    patch.setattr(Claims, "make", make)


def _data_not_restored(patch: pytest.MonkeyPatch) -> None:
    original = Pending.note_again

    def note_again(self: Pending, holder: Any, capabilities: Any, data: Any) -> None:
        original(self, holder, capabilities, Keep.AS_IS)

    patch.setattr(Pending, "note_again", note_again)


def _appended_again(patch: pytest.MonkeyPatch) -> None:
    original = LogRoom.append

    async def append(self: LogRoom, session_id: str, event: Any) -> int:
        try:
            return await original(self, session_id, event)
        except StoreUnavailable:
            return await original(self, session_id, event)

    patch.setattr(LogRoom, "append", append)


def _anybody_adopts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rows, "_may_adopt", lambda self, worker, claim: claim.session_id in self)


def _unheard_is_stray(patch: pytest.MonkeyPatch) -> None:
    original = Undecided.lose

    def lose(self: Undecided, session_id: str, generation: int) -> None:
        original(self, session_id, generation)
        self._records[session_id].is_awaited = False

    patch.setattr(Undecided, "lose", lose)


def _letters_come_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seen, "is_new", lambda self, sender, number: True)


def _lost_items_not_missed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Incoming, "check", lambda self, left: None)


def _owners_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Rows, "crowds", lambda self, worker, batch, lives: None)


def _silence_is_welcome(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_cleanup, "over_limits", lambda *evidence: OverLimits())


def _lets_in_while_it_drains(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Admission, "drain", lambda self: None)


def _drained_rows_wait_for_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Departures, "due", lambda self: [*self._gone, *self._again])


def _drain_not_announced(patch: pytest.MonkeyPatch) -> None:
    async def announce(self: Draining) -> None: ...

    patch.setattr(Draining, "_announce", announce)


def _asked_again_as_another(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Undecided, "unanswered", lambda self, session_id: 0)


def _adopted_without_a_log(patch: pytest.MonkeyPatch) -> None:
    original = Rows._claim

    def claim(self: Rows, worker: Worker, claim: Claim, *details: Any) -> Claimed | Unfinished:
        claimed = original(self, worker, claim, *details)
        if (
            isinstance(claimed, Claimed)
            and claim.only_from
            and claimed.outcome is Outcome.TAKEN_OVER
        ):
            self[claim.session_id].log.clear()
        return claimed

    patch.setattr(Rows, "_claim", claim)


def _silence_is_life(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(inspection, "MISSED", 1000)


def _rows_told_as_they_are(patch: pytest.MonkeyPatch) -> None:
    async def describe(self: Inspection, session_id: str) -> SessionInfo | None:
        return await self._edge.inspect(
            lambda store, worker: store.describe(worker, session_id), SessionInfo | None
        )

    patch.setattr(Inspection, "describe", describe)


REMOVED = "but its transport is connected, nobody has removed it"
SWEPT = "was swept"
STORED = "in peace at last: stored, and not alive"
OLDER = "has taken its row from the newer one"
DATA = "was stored before it asked"

SWITCHES = [
    Switch("the witness is not judged", _witness_not_judged, REMOVED, "0"),
    Switch("a batch is carried out whatever stamp it names", _stamp_in_any_case, REMOVED, "0"),
    Switch("no brake", _no_brake, "was removed in the first pass", "128", 20),
    Switch("a lease is as old as its row", _lease_of_the_row, SWEPT, "13"),
    Switch("no gap is an outage", _no_gap, SWEPT, "30"),
    Switch(
        "a rewind begins no series",
        _rewind_without_a_grace,
        SWEPT,
        "30",
        workers=5,
        mix="losses",
    ),
    Switch("late statements are carried out", _late_statements, OLDER, "21", mix="moves"),
    Switch("no doubt in questions", _no_doubt, "not there, but", "2"),
    Switch("nothing is restored", _nothing_restored, "live, and not stored", "2"),
    Switch("rows of removed sessions are not deleted later", _departures_forgotten, STORED, "32"),
    Switch("unknown is gone", _unknown_is_gone, REMOVED, "45"),
    Switch("what was never written is judged", _unwritten_is_judged, REMOVED, "3"),
    Switch("a transport that does not answer is disconnected", _silence_is_an_answer, REMOVED, "1"),
    Switch(
        "beats that are counted twice are believed", _beats_counted_twice, REMOVED, "8", mix="beats"
    ),
    Switch(
        "what was lost has counted no beat",
        _only_told_beats_are_suspect,
        REMOVED,
        "1-464",
        150,
        workers=2,
        mix="losses",
    ),
    Switch("generations are ignored", _generations_ignored, REMOVED, "25", mix="overlaps"),
    Switch("stray rows are not looked for", _strays_not_looked_for, STORED, "31", mix="returns"),
    Switch("revoked ids are not marked", _no_marks, STORED, "1", steps=100, mix="revokes"),
    Switch(
        "a removal is by id",
        _removal_by_id,
        "any more, and nobody has removed it",
        "13",
        mix="overlaps",
    ),
    Switch("the age of a claim is not told", _age_not_told, OLDER, "21", mix="moves"),
    Switch("what has ended here is inherited", _leftovers_inherited, DATA, "9", mix="words again"),
    Switch("data is not restored", _data_not_restored, DATA, "0", mix="forgotten words"),
    Switch(
        "what may be appended is appended again",
        _appended_again,
        "is there twice",
        "6",
        mix="words again",
    ),
    Switch(
        "whoever asks adopts", _anybody_adopts, "two workers have adopted", "4", mix="adoptions"
    ),
    Switch(
        "what is adopted unheard is a stray row",
        _unheard_is_stray,
        REMOVED,
        "51",
        steps=80,
        mix="lost adoptions",
    ),
    Switch(
        "letters that come again are heard",
        _letters_come_again,
        "has come twice",
        "5",
        workers=4,
        mix="lost mail",
    ),
    Switch(
        "lost items are not missed",
        _lost_items_not_missed,
        "has not ended after",
        "0",
        workers=4,
        mix="lost mail",
    ),
    Switch(
        "owners are not counted", _owners_not_counted, "sessions, and may have", "18", mix="limits"
    ),
    Switch("silence ends no session", _silence_is_welcome, "is silent for", "0", mix="limits"),
    Switch(
        "a worker that is drained lets others in",
        _lets_in_while_it_drains,
        "is drained, and has let",
        "22",
        mix="drains",
    ),
    Switch(
        "drained rows wait for nobody",
        _drained_rows_wait_for_nobody,
        "before the drain was over",
        "1",
        mix="drains",
    ),
    Switch(
        "a drain is not announced", _drain_not_announced, "does not say that", "9", mix="drains"
    ),
    Switch(
        "an adoption that is asked for again is another one",
        _asked_again_as_another,
        REMOVED,
        "8",
        steps=80,
        mix="lost adoptions",
    ),
    Switch(
        "whoever asks inherits", _anybody_adopts, "two workers have adopted", "6", mix="orphans"
    ),
    Switch(
        "who is adopted loses its log",
        _adopted_without_a_log,
        "its log has lost",
        "13",
        mix="orphans",
    ),
    Switch(
        "no doubt in what operators ask", _no_doubt, "not there, but", "11", mix="lost questions"
    ),
    Switch(
        "silence is life",
        _silence_is_life,
        "is alive, which has not stamped",
        "34",
        mix="lost questions",
    ),
    Switch(
        "rows are told as they are",
        _rows_told_as_they_are,
        "itself, and does not",
        "14",
        mix="lost questions",
    ),
    Switch(
        "an older copy's mark is believed",
        older_marks_are_believed,
        "was removed in the first pass",
        "2",
        steps=20,
        mix="old marks",
    ),
    Switch(
        "who was swept is not remembered",
        swept_is_not_remembered,
        "says that the database has gone back",
        "7",
        steps=30,
        mix="leases",
    ),
    Switch(
        "a lease is as old as its stamp",
        lease_by_the_stamp_alone,
        "and its row of",
        "5",
        steps=30,
        mix="leases",
    ),
]
