"""The rules of `json_store.py`: what each operation does with the contents of the file.

Synchronous, and without a clock of its own: it is told the moment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from trio_sessions.abc import Worker
from trio_sessions.errors import RowDoubtful
from trio_sessions.types import (
    Capabilities,
    Holder,
    Sent,
    Stamp,
    Stamped,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Keep,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Unfinished,
    Write,
)

Row = dict[str, Any]

PIECE = 1000  # messages that one write deletes at most
WEEK = 7 * 86400.0  # seconds for which a lost lease is remembered
EMPTY: Mapping[str, Any] = {
    "rows": {},  # by session id
    "workers": {},  # by incarnation
    "gone": {},  # by incarnation: which history was swept, and when
    "vouched_at": None,
    "unbroken_since": 0.0,
    "doubtful_until": 0.0,
    "next": 1,  # the next message's id, and the next session's birth
}


class Book:
    """What is in the file, and what each operation does with it. Synchronous.

    Args:
        state: the contents of the file.
        worker: who asks.
        now: the moment, on the host's clock: one clock for all rows.
        waited: seconds since it was asked; what was told an age is older by that.
    """

    def __init__(self, state: dict[str, Any], worker: Worker, now: float, waited: float) -> None:
        self.state = state
        self.rows: dict[str, Row] = state["rows"]
        self.workers: dict[str, Row] = state["workers"]
        self.worker = worker
        self.now = now
        self.waited = waited

    def is_own(self, row: Row) -> bool:
        return bool(row["incarnation"] == self.worker.incarnation)

    def own(self) -> list[tuple[str, Row]]:
        return sorted((one, row) for one, row in self.rows.items() if self.is_own(row))

    def number(self) -> int:
        number: int = self.state["next"]
        self.state["next"] = number + 1
        return number

    @property
    def in_doubt(self) -> bool:
        return bool(self.now < self.state["doubtful_until"])

    # ---- the witness, and the lease ----

    def seen(self) -> Stamp | None:
        row = self.workers.get(self.worker.incarnation)
        return None if row is None else Stamp(history=row["history"], beat=row["beat"])

    def has(self, known: Stamp) -> bool:
        """Say whether nothing was forgotten since the worker was told of that stamp."""
        seen = self.seen()
        return seen is not None and seen.history == known.history and seen.beat >= known.beat

    def stamp(self, known: Stamp, *, passed: bool) -> Stamp | None:
        if not self.has(known):
            return None
        row = self.workers[self.worker.incarnation]
        row["beat"] += 1
        row["stamped_at"] = self.now
        row["passed_at"] = self.now if passed else min(row["passed_at"], self.now)
        return self.seen()

    def longest(self, duration: str, least: float = 0.0) -> float:
        longest: float = max([least, *(row[duration] for row in self.workers.values())])
        return longest

    def vouch(self, gap: float) -> None:
        vouched_at = self.state["vouched_at"]
        if vouched_at is not None and abs(self.now - vouched_at) > gap:
            self.state["unbroken_since"] = self.now
        self.state["vouched_at"] = self.now
        self.state["unbroken_since"] = min(self.state["unbroken_since"], self.now)

    def has_lapsed(self, worker: Row) -> bool:
        last = min(worker["stamped_at"], worker["passed_at"])
        ttl = worker["session_ttl"]
        return bool(self.now - last > ttl and self.now - self.state["unbroken_since"] >= ttl)

    def has_expired(self, row: Row, session_ttl: float) -> bool:
        holder = self.workers.get(row["incarnation"])
        if self.is_own(row) or (holder is not None and not self.has_lapsed(holder)):
            return False
        ttl = self.longest("session_ttl", session_ttl) if holder is None else holder["session_ttl"]
        series = self.now - self.state["unbroken_since"]
        return bool(self.now - row["last_accessed"] > ttl and series >= ttl)

    # ---- deleting, piece by piece ----

    def remove(self, session_id: str, limit: int) -> tuple[int, bool]:
        """Remove the oldest messages, and the row with the last of them."""
        messages = self.rows[session_id]["messages"]
        dropped = min(len(messages), limit)
        del messages[:dropped]
        if messages:
            return dropped, False
        del self.rows[session_id]
        return dropped, True

    def remove_some(self, session_ids: Sequence[str], limit: int) -> Swept:
        sessions = messages = 0
        for session_id in session_ids[:limit]:
            dropped, is_gone = self.remove(session_id, limit - messages)
            sessions, messages = sessions + is_gone, messages + dropped
        more = (len(session_ids) >= limit or messages >= limit) and sessions + messages > 0
        return Swept(sessions=sessions, messages=messages, more=more)

    # ---- writes ----

    def carry_out(self, write: Write[object]) -> Answer:
        match write:
            case Claim():
                return self._claim(write)
            case Delete():
                return self._delete(write)
            case SetOwner() | ClaimOwner() | SetCapabilities() | Send():
                if self._is_doubtful(write):
                    return RowDoubtful("the file was restored, and may have forgotten the session")
                return self._say(write)
            case Acknowledge():
                row = self.rows.get(write.session_id)
                if row is None or not self.is_own(row):
                    return False
                row["messages"] = [m for m in row["messages"] if m["id"] not in write.message_ids]
                return True
        raise TypeError(f"unknown write: {type(write).__name__}")

    def living(self, session_id: str, ended: int) -> Row | None:
        """Return a session's row, unless it is what an ended session has left here."""
        row = self.rows.get(session_id)
        is_left = row is not None and self.is_own(row) and row["generation"] <= ended
        return None if is_left else row

    def _is_doubtful(self, write: Write[object]) -> bool:
        row = self.rows.get(write.session_id)
        if row is None or not self.in_doubt:
            return self.in_doubt
        return isinstance(write, ClaimOwner) and row["owner"] is None and not self.is_own(row)

    def _claim(self, claim: Claim) -> Claimed | Unfinished:
        taken_at, dropped = self.now - claim.age - self.waited, 0
        row = self.living(claim.session_id, claim.ended)
        if row is None:
            if claim.session_id in self.rows:
                dropped, is_gone = self.remove(claim.session_id, PIECE)
                if not is_gone:
                    return Unfinished(dropped=dropped)
            outcome = Outcome.INSERTED
            row = self.rows[claim.session_id] = {
                "born": str(self.number()),
                "created_at": self.now,
                "owner": None,
                "capabilities": None,
                "messages": [],
                "taken_at": taken_at,
                "generation": 0,
            }
        elif self.is_own(row):
            outcome = Outcome.KEPT
        elif taken_at < row["taken_at"] <= self.now:
            outcome = Outcome.LOST
        else:
            outcome = Outcome.TAKEN_OVER
            row["generation"] = 0
        if outcome is not Outcome.LOST:
            row["worker_id"] = self.worker.worker_id
            row["incarnation"] = self.worker.incarnation
            row["last_accessed"] = self.now
            if row["generation"] <= claim.generation:
                self._bring(row, claim, taken_at)
        return Claimed(
            outcome=outcome,
            holder=holder_of(row),
            capabilities=None
            if row["capabilities"] is None
            else Capabilities(**row["capabilities"]),
            born=row["born"],
            dropped=dropped,
        )

    def _bring(self, row: Row, claim: Claim, taken_at: float) -> None:
        row["generation"] = claim.generation
        is_ahead = row["taken_at"] > self.now
        row["taken_at"] = taken_at if is_ahead else max(row["taken_at"], taken_at)
        if claim.owner is not Keep.AS_IS:
            row["owner"] = claim.owner
        if claim.capabilities is not None:
            row["capabilities"] = asdict(claim.capabilities)

    def _delete(self, write: Delete) -> int | Unfinished:
        row = self.rows.get(write.session_id)
        if row is None or not self.is_own(row) or row["generation"] > write.up_to:
            return 0
        dropped, is_gone = self.remove(write.session_id, PIECE)
        return dropped if is_gone else Unfinished(dropped=dropped)

    def _say(self, write: SetOwner | ClaimOwner | SetCapabilities | Send) -> Answer:
        row = self.living(write.session_id, write.ended)
        if row is None:
            return None
        if isinstance(write, Send):
            is_other = write.born is not None and write.born != row["born"]
            if is_other or (write.elsewhere and self.is_own(row)):
                return None
            message_id = self.number()
            sent_at = self.now - write.age - self.waited
            stored = {"id": message_id, "payload": write.payload, "at": sent_at}
            row["messages"].append(stored)
            return Sent(id=message_id, holder=holder_of(row))
        if isinstance(write, SetCapabilities):
            row["capabilities"] = asdict(write.capabilities)
        elif isinstance(write, SetOwner) or row["owner"] is None:
            row["owner"] = write.owner
        return holder_of(row)


def holder_of(row: Row) -> Holder:
    """Return who holds a session, as its row says."""
    return Holder(worker_id=row["worker_id"], incarnation=row["incarnation"], owner=row["owner"])


def sweep(
    book: Book, session_ttl: float, message_ttl: float, limit: int, stamped: Stamped | None
) -> Swept:
    """Delete a piece of what has expired; a moment in the future counts as now."""
    for worker in book.workers.values():
        for moment in ("stamped_at", "passed_at"):
            worker[moment] = min(worker[moment], book.now)
    for row in book.rows.values():
        row["last_accessed"] = min(row["last_accessed"], book.now)
    expired = [one for one, row in book.rows.items() if book.has_expired(row, session_ttl)]
    swept = book.remove_some(expired[:limit], limit)
    left, dropped = limit - swept.messages, 0
    for row in book.rows.values():
        old = [m for m in row["messages"] if book.now - m["at"] > message_ttl][: left - dropped]
        row["messages"] = [m for m in row["messages"] if m not in old]
        dropped += len(old)
    holders = {row["incarnation"] for row in book.rows.values()} | {book.worker.incarnation}
    for incarnation in [i for i, w in book.workers.items() if book.has_lapsed(w)]:
        if incarnation not in holders:
            history = book.workers.pop(incarnation)["history"]
            book.state["gone"][incarnation] = (history, book.now)
    gone = book.state["gone"].items()
    book.state["gone"] = {one: note for one, note in gone if book.now - note[1] < WEEK}
    messages = swept.messages + dropped
    more = swept.more or (messages >= limit and messages > 0)
    return Swept(sessions=swept.sessions, messages=messages, more=more, stamped=stamped)


def fetch(book: Book, row: Row, wanted: Wanted) -> list[StoredMessage]:
    """Return the oldest messages that the worker does not have, within its bounds."""
    found: list[StoredMessage] = []
    size = 0
    for message in row["messages"]:
        if len(found) >= wanted.count or size >= wanted.size:
            break
        if message["id"] not in wanted.held:
            size += len(message["payload"].encode())
            age = book.now - message["at"]
            found.append(StoredMessage(id=message["id"], payload=message["payload"], age=age))
    return found
