"""A store of your own: sessions in one JSON file, for workers on one host.

It keeps the whole contract of `trio_sessions.abc.SessionStore`, and `tests/test_json_store.py` puts
it to the test. It rewrites the file with every change, so it is for reading, not for many sessions.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import trio

from trio_sessions.abc import Bell, SessionStore, Worker
from trio_sessions.errors import RowDoubtful, StoreUnavailable
from trio_sessions.types import (
    Begun,
    Capabilities,
    Holder,
    Presence,
    RowAnswers,
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
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Committed,
    Delete,
    Keep,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Unfinished,
    Verdict,
    Write,
)

T = TypeVar("T")
Row = dict[str, Any]

PATIENCE = 5.0  # seconds for which an operation waits for the file
LOOK = 0.05  # seconds between two looks for new messages
PIECE = 1000  # messages that one write deletes at most
GAP = 0.4  # a silence of the fleet is an outage from this share of the longest session_ttl on
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
    """

    def __init__(self, state: dict[str, Any], worker: Worker, now: float) -> None:
        self.state = state
        self.rows: dict[str, Row] = state["rows"]
        self.workers: dict[str, Row] = state["workers"]
        self.worker = worker
        self.now = now

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

    def stamp(self, known: Stamp, *, passed: bool) -> Stamp | None:
        row = self.workers.get(self.worker.incarnation)
        if row is None or row["history"] != known.history or row["beat"] < known.beat:
            return None
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
        taken_at, dropped = self.now - claim.age, 0
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
        if claim.owner is not Keep.OWNER:
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
            stored = {"id": message_id, "payload": write.payload, "at": self.now - write.age}
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


class JsonStore(SessionStore):
    """Sessions in a JSON file, which all workers of a host share.

    Args:
        path: the file; it is made when there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    # ---- the file ----

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the file; the operation bounds itself, as a thread cannot be cut off."""
        with self._path.with_suffix(".lock").open("a") as lock:
            deadline = time.monotonic() + PATIENCE
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.001)
            yield

    def _read(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            state = json.loads(json.dumps(dict(EMPTY)))
        return state

    def _transact(self, worker: Worker, work: Callable[[Book], T]) -> T:
        """Read the file, change it, and put it in place as a whole, on disk."""
        try:
            with self._locked():
                book = Book(self._read(), worker, time.time())
                answer = work(book)
                new = self._path.with_suffix(".new")
                with new.open("w", encoding="utf-8") as file:
                    json.dump(book.state, file)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._path)
                return answer
        except (OSError, ValueError) as exc:
            raise StoreUnavailable("the JSON file cannot be read or written") from exc

    async def _run(self, worker: Worker, work: Callable[[Book], T]) -> T:
        """Do one operation in one thread, started with the worker's own limiter."""
        return await trio.to_thread.run_sync(self._transact, worker, work, limiter=worker.limiter)

    async def open(self, worker: Worker) -> None:
        await self._run(worker, Book.seen)

    async def close(self, worker: Worker) -> None:
        await trio.lowlevel.checkpoint()  # nothing is kept open

    # ---- writing ----

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        def work(book: Book) -> Committed:
            if batch.not_after is not None and book.now > batch.not_after:
                return Committed(answers=(), verdict=Verdict.LATE, clock=book.now)
            stamp = None if batch.stamp is None else book.stamp(batch.stamp, passed=False)
            if batch.stamp is not None and stamp is None:
                return Committed(answers=(), verdict=Verdict.FORGOTTEN, clock=book.now)
            answers = [book.carry_out(write) for write in batch.writes]
            return Committed(answers=answers, stamp=stamp, clock=book.now)

        return await self._run(worker, work)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        def work(book: Book) -> RowAnswers:
            there = book.rows.keys() & set(session_ids)
            held = frozenset(one for one in there if book.is_own(book.rows[one]))
            for session_id in held:
                row = book.rows[session_id]
                row["last_accessed"], row["taken_at"] = book.now, min(row["taken_at"], book.now)
            return RowAnswers(held=held, taken_over=frozenset(there - held), stamp=book.seen())

        return await self._run(worker, work)

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        def work(book: Book) -> Swept:
            swept = book.remove_some([one for one, _ in book.own()][:limit], limit)
            if not swept.more:
                book.workers.pop(worker.incarnation, None)
            return swept

        return await self._run(worker, work)

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        def work(book: Book) -> Begun:
            lease = {"beat": 1, "stamped_at": book.now, "passed_at": book.now}
            book.workers[worker.incarnation] = {**asdict(presence), **lease, "history": history}
            swept, _ = book.state["gone"].get(worker.incarnation, ("", 0.0))
            if after is None or swept == after:
                return Begun(was_swept=after is not None)
            doubtful_until = book.now + 2 * book.longest("cleanup_interval")
            book.state["doubtful_until"] = max(book.state["doubtful_until"], doubtful_until)
            return Begun(was_swept=False, doubt=book.state["doubtful_until"] - book.now)

        return await self._run(worker, work)

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        def work(book: Book) -> Stamped:
            new = book.stamp(stamp, passed=passed)
            if new is not None:
                book.vouch(GAP * book.longest("session_ttl"))
            return Stamped(stamp=new, rows=len(book.own()) if passed else None, clock=book.now)

        return await self._run(worker, work)

    async def sweep(
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Stamp | None = None,
    ) -> Swept:
        def work(book: Book) -> Swept:
            stamped = None
            if stamp is not None:
                new = book.stamp(stamp, passed=True)
                stamped = Stamped(stamp=new, rows=len(book.own()), clock=book.now)
                if new is None:
                    return Swept(sessions=0, messages=0, more=False, stamped=stamped)
            book.vouch(max_gap * book.longest("session_ttl", session_ttl) / session_ttl)
            if limit == 0:
                return Swept(sessions=0, messages=0, more=False, stamped=stamped)
            return sweep(book, session_ttl, message_ttl, limit, stamped)

        return await self._run(worker, work)

    # ---- asking ----

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        def work(book: Book) -> list[tuple[str, int]]:
            own = [(one, row["generation"]) for one, row in book.own() if one > after]
            return own[:limit]

        return await self._run(worker, work)

    async def _find(self, worker: Worker, session_id: str) -> Row | None:
        def work(book: Book) -> Row | None:
            row = book.rows.get(session_id)
            if row is None and book.in_doubt:
                raise StoreUnavailable("the file was restored: who is not there is unknown")
            return row

        return await self._run(worker, work)

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        row = await self._find(worker, session_id)
        return None if row is None else holder_of(row)

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        row = await self._find(worker, session_id)
        return (
            None if row is None or row["capabilities"] is None else row["capabilities"]["encoded"]
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        def work(book: Book) -> list[str]:
            if book.in_doubt:
                raise StoreUnavailable("the file was restored: some sessions may be missing")
            rows = book.rows.items()
            return [one for one, row in rows if (row["capabilities"] or {}).get("elicitation")]

        return await self._run(worker, work)

    # ---- messages ----

    async def waiting(self, worker: Worker) -> list[str]:
        return await self._run(
            worker, lambda book: [one for one, row in book.own() if row["messages"]]
        )

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        def work(book: Book) -> Mapping[str, Sequence[StoredMessage]]:
            own = dict(book.own())
            return {
                w.session_id: fetch(book, own[w.session_id], w)
                for w in wanted
                if w.session_id in own
            }

        return await self._run(worker, work)

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        seen = await self._run(worker, lambda book: int(book.state["next"]))
        yield LookingBell(self, worker, seen)

    async def news(self, worker: Worker, seen: int) -> tuple[int, frozenset[str]]:
        """Return sessions for which there are messages from this id on, and the next id."""

        def work(book: Book) -> tuple[int, frozenset[str]]:
            own = book.own()
            new = [one for one, row in own if any(m["id"] >= seen for m in row["messages"])]
            return book.state["next"], frozenset(new)

        return await self._run(worker, work)


class LookingBell:
    """Looks from time to time."""

    def __init__(self, store: JsonStore, worker: Worker, seen: int) -> None:
        self._store, self._worker, self._seen = store, worker, seen

    async def wait(self) -> frozenset[str]:
        while True:
            self._seen, news = await self._store.news(self._worker, self._seen)
            if news:
                return news
            await trio.sleep(LOOK)


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
