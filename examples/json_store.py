"""A store of your own: sessions in one JSON file, for workers on one host.

It keeps the whole contract of `trio_sessions.abc.SessionStore`, and `tests/test_json_store.py` puts
it to the test. It rewrites the file with every change, so it is for reading, not for many sessions.
`json_book.py` beside it has the rules; here are the file, the threads, and the bell.
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
from json_book import EMPTY, Book, Row, fetch, holder_of, sweep

from trio_sessions.abc import Bell, SessionStore, Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Batch, Committed, Verdict

T = TypeVar("T")

PATIENCE = 5.0  # seconds for which an operation waits for the file
LOOK = 0.05  # seconds between two looks for new messages
GAP = 0.4  # a silence of the fleet is an outage from this share of the longest session_ttl on


class JsonStore(SessionStore):
    """Sessions in a JSON file, which all workers of a host share.

    Args:
        path: the file; it is made when there is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._told: dict[str, Stamp] = {}  # by incarnation: what the file must have, or went back

    @property
    def gives_up_after(self) -> float:
        """The seconds for which an operation waits for the file."""
        return PATIENCE

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

    def _transact(self, worker: Worker, work: Callable[[Book], T], asked_at: float) -> T:
        """Read the file, change it, and put it in place as a whole, on disk."""
        is_in_place = False
        try:
            with self._locked():
                state = self._read()
                waited = time.monotonic() - asked_at  # for a thread, the lock, and the file
                book = Book(state, worker, time.time(), waited)
                answer = work(book)
                new = self._path.with_suffix(".new")
                with new.open("w", encoding="utf-8") as file:
                    json.dump(book.state, file)
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._path)
                is_in_place = True
                return answer
        except (OSError, ValueError) as exc:
            raise StoreUnavailable(
                "the JSON file cannot be read or written", did_nothing=not is_in_place
            ) from exc

    async def _run(self, worker: Worker, work: Callable[[Book], T]) -> T:
        """Do one operation in one thread, started with the worker's own limiter.

        The wait of what was told an age is measured from here, and added in `Book` alone.
        """
        return await trio.to_thread.run_sync(
            self._transact, worker, work, time.monotonic(), limiter=worker.limiter
        )

    async def open(self, worker: Worker) -> None:
        await self._run(worker, Book.seen)

    async def close(self, worker: Worker) -> None:
        self._told.pop(worker.incarnation, None)
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

        committed = await self._run(worker, work)
        self._note(worker, committed.stamp)
        return committed

    def _note(self, worker: Worker, stamp: Stamp | None) -> None:
        """Note what a worker is told of, if it is the highest beat of its history."""
        told = self._told.get(worker.incarnation)
        if told is not None and stamp is not None and stamp.history == told.history:
            self._told[worker.incarnation] = max(told, stamp, key=lambda one: one.beat)

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
        self._told.pop(worker.incarnation, None)

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
                return Begun(was_swept=after is not None, clock=book.now)
            doubtful_until = book.now + 2 * book.longest("cleanup_interval")
            book.state["doubtful_until"] = max(book.state["doubtful_until"], doubtful_until)
            book.state["unbroken_since"] = book.now
            doubt = book.state["doubtful_until"] - book.now
            return Begun(was_swept=False, doubt=doubt, clock=book.now)

        begun = await self._run(worker, work)
        self._told[worker.incarnation] = Stamp(history=history, beat=1)
        return begun

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        def work(book: Book) -> Stamped:
            new = book.stamp(stamp, passed=passed)
            if new is not None:
                book.vouch(GAP * book.longest("session_ttl"))
            return Stamped(stamp=new, rows=len(book.own()) if passed else None, clock=book.now)

        stamped = await self._run(worker, work)
        self._note(worker, stamped.stamp)
        return stamped

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

        swept = await self._run(worker, work)
        self._note(worker, None if swept.stamped is None else swept.stamped.stamp)
        return swept

    # ---- asking ----

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        def work(book: Book) -> list[tuple[str, int]]:
            own = [(one, row["generation"]) for one, row in book.own() if one > after]
            return own[:limit]

        return await self._run(worker, work)

    def _refuse_in_doubt(self, book: Book) -> None:
        told = self._told.get(book.worker.incarnation)
        if book.in_doubt or (told is not None and not book.has(told)):
            raise StoreUnavailable("the file was restored or replaced: who is missing is unknown")

    async def _find(self, worker: Worker, session_id: str) -> Row | None:
        def work(book: Book) -> Row | None:
            row = book.rows.get(session_id)
            if row is None:
                self._refuse_in_doubt(book)
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
            self._refuse_in_doubt(book)
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
