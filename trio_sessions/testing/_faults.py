"""A store that fails when a test wants it to."""

import enum
import inspect
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import trio

from trio_sessions.abc import (
    Bell,
    DataStore,
    InspectionStore,
    LimitStore,
    LogStore,
    MailStore,
    Part,
    Pool,
    RevocationStore,
    SessionStore,
    Worker,
)
from trio_sessions.errors import StoreUnavailable
from trio_sessions.inspection import Selection, SessionInfo, WorkerInfo
from trio_sessions.revocation import Mark, Revocation, Revoked
from trio_sessions.types import (
    Begun,
    Holder,
    Presence,
    RowAnswers,
    Stamp,
    Stamped,
    StoredEntry,
    StoredMessage,
    Swept,
    Wanted,
)
from trio_sessions.writes import Batch, Committed, Write

__all__ = ["Fault", "FaultyStore"]

T = TypeVar("T")

_OPERATIONS = frozenset(
    name
    for contract in (
        SessionStore,
        InspectionStore,
        RevocationStore,
        DataStore,
        MailStore,
        LogStore,
    )
    for name, value in inspect.getmembers(contract, inspect.isfunction)
    if not name.startswith("_")
)
_KINDS = frozenset(kind.__name__ for kind in Write.__subclasses__())


class Fault(enum.Enum):
    """What becomes of an operation."""

    NONE = "none"
    """It is done, and answered."""
    FAILS = "fails"
    """It raises, and nothing was done: the database is away."""
    HANGS = "hangs"
    """It never ends, and nothing was done."""
    COMMITS_THEN_FAILS = "commits then fails"
    """It is done, and then raises: the answer was lost."""
    BEGINS_LATE = "begins late"
    """It is done after ``seconds``, and then answered."""
    ANSWERS_LATE = "answers late"
    """It is done at once, and answered after ``seconds``."""


_LATE = frozenset({Fault.BEGINS_LATE, Fault.ANSWERS_LATE})


class _PausedBell:
    """A bell that is not heard while its worker is paused."""

    def __init__(self, bell: Bell, while_paused: Callable[[], Awaitable[None]]) -> None:
        self._bell = bell
        self._while_paused = while_paused

    async def wait(self) -> frozenset[str] | None:
        rung = await self._bell.wait()
        await self._while_paused()
        return rung


class FaultyStore(
    SessionStore, InspectionStore, RevocationStore, DataStore, LimitStore, MailStore, LogStore
):
    """Wraps a store; one for each worker makes a fault that only this worker sees.

    `fail` makes all operations, some, or only the next few run into a fault; `heal` ends it.
    `pause` stops the worker's side as SIGSTOP stops a process: whatever is asked, and whatever is
    answered, waits for `resume`.

    Args:
        store: the store that does the work.

    Attributes:
        fault: what becomes of operations from now on.
        operations: the operations that ``fault`` applies to, by the names of the
            methods of `SessionStore`; None: all of them. The name of a kind of write
            (``"Claim"``) stands for each batch that has one in it.
        remaining: how many more operations ``fault`` applies to; None: all until `heal`.
        seconds: by how much an operation is late, where the fault is that.
        error: what a failing operation raises.
        calls: how often each operation was asked for, and batches with each kind of write.
        faults: how often each operation, and batches with each kind of write, ran into a
            fault; assert on it, so that a test has seen its fault happen.
    """

    def __init__(self, store: SessionStore) -> None:
        self.fault = Fault.NONE
        self.operations: frozenset[str] | None = None
        self.remaining: int | None = None
        self.seconds = 0.0
        self.error: Exception = StoreUnavailable("the faulty store is away")
        self.calls: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._store = store
        self._resumed: trio.Event | None = None

    @property
    def parts(self) -> frozenset[Part]:
        """Those of the store that it wraps."""
        return self._store.parts

    @property
    def may_outlast_cancellation(self) -> bool:
        """As of the store that it wraps."""
        return self._store.may_outlast_cancellation

    @property
    def gives_up_after(self) -> float | None:
        """As of the store that it wraps."""
        return self._store.gives_up_after

    def connections(self) -> Pool | None:
        """As of the store that it wraps."""
        return self._store.connections()

    def fail(
        self,
        fault: Fault = Fault.FAILS,
        *operations: str,
        times: int | None = None,
        seconds: float | None = None,
    ) -> None:
        """Let operations run into ``fault``; this takes the place of an earlier fault.

        Args:
            fault: what becomes of them.
            operations: those that are concerned, by name; none: all of them.
            times: only the next so many of these, at least 1; None: until `heal`.
            seconds: how late they are, at least 0; for a fault that is about that, and no other.

        Raises:
            ValueError: there is no such operation, or a number is not as it must be.
            TypeError: ``fault`` is no `Fault`.
        """
        if not isinstance(fault, Fault):
            raise TypeError(f"fault must be one of {[str(one) for one in Fault]}, not {fault!r}")
        unknown = set(operations) - _OPERATIONS - _KINDS
        if unknown:
            raise ValueError(
                f"operations must be methods of SessionStore or writes, not {sorted(unknown)}"
            )
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for 'until heal()', not {times}")
        if (seconds is not None) is not (fault in _LATE):
            raise ValueError(
                f"seconds must be given for {sorted(str(one) for one in _LATE)}, and only for "
                f"these; the fault is {fault}, and seconds is {seconds}"
            )
        if seconds is not None and not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be finite and at least 0, not {seconds}")
        self.fault, self.remaining, self.seconds = fault, times, seconds or 0.0
        self.operations = frozenset(operations) or None

    def heal(self) -> None:
        """Let every operation through again; those that hang go on hanging."""
        self.fault, self.operations, self.remaining = Fault.NONE, None, None

    def pause(self) -> None:
        """Let everything wait from now on: what is asked, what is answered, and the bell."""
        if self._resumed is None:
            self._resumed = trio.Event()

    def resume(self) -> None:
        """Let what waits go on; harmless where nothing is paused."""
        if self._resumed is not None:
            self._resumed.set()
            self._resumed = None

    @property
    def is_paused(self) -> bool:
        """Whether everything waits for `resume`."""
        return self._resumed is not None

    async def _while_paused(self) -> None:
        while self._resumed is not None:
            await self._resumed.wait()

    def _take_fault(self, *names: str) -> Fault:
        """Return what becomes of an operation that begins now, and count it."""
        if self.operations is not None and self.operations.isdisjoint(names):
            return Fault.NONE
        fault = self.fault
        if fault is not Fault.NONE:
            self.faults.update(names)
            if self.remaining is not None:
                self.remaining -= 1
                if self.remaining == 0:
                    self.heal()
        return fault

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        self.calls.update((name, *kinds))
        await self._while_paused()
        seconds, fault = self.seconds, self._take_fault(name, *kinds)
        if fault is Fault.HANGS:
            await trio.sleep_forever()
        if fault is Fault.FAILS:
            await trio.lowlevel.checkpoint()
            raise self.error
        if fault is Fault.BEGINS_LATE:
            await trio.sleep(seconds)
        answer = await operation()
        await self._while_paused()
        if fault is Fault.COMMITS_THEN_FAILS:
            raise self.error
        if fault is Fault.ANSWERS_LATE:
            await trio.sleep(seconds)
        return answer

    async def open(self, worker: Worker) -> None:
        """Open the store, or fail; see `SessionStore.open`."""
        await self._through("open", lambda: self._store.open(worker))

    async def close(self, worker: Worker) -> None:
        """Close the store, always: a fault must not leak what lies below."""
        self.calls["close"] += 1
        await self._store.close(worker)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out writes, or fail; see `Store.commit`."""
        kinds = {type(write).__name__ for write in batch.writes}
        return await self._through("commit", lambda: self._store.commit(worker, batch), *kinds)

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        """Refresh rows, or fail; see `SessionStore.refresh`."""
        return await self._through("refresh", lambda: self._store.refresh(worker, session_ids))

    async def delete_all(self, worker: Worker, *, limit: int) -> Swept:
        """Delete all rows, or fail; see `SessionStore.delete_all`."""
        return await self._through(
            "delete_all", lambda: self._store.delete_all(worker, limit=limit)
        )

    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        """List rows of this incarnation, or fail; see `RowStore.own_rows`."""
        return await self._through(
            "own_rows", lambda: self._store.own_rows(worker, after=after, limit=limit)
        )

    async def begin(
        self, worker: Worker, history: str, presence: Presence, *, after: str | None
    ) -> Begun:
        """Write the worker's row anew, or fail; see `WorkerStore.begin`."""
        return await self._through(
            "begin", lambda: self._store.begin(worker, history, presence, after=after)
        )

    async def stamp(self, worker: Worker, stamp: Stamp, *, passed: bool) -> Stamped:
        """Stamp the worker's row, or fail; see `WorkerStore.stamp`."""
        return await self._through("stamp", lambda: self._store.stamp(worker, stamp, passed=passed))

    async def locate(self, worker: Worker, session_id: str) -> Holder | None:
        """Say who holds a session, or fail; see `SessionStore.locate`."""
        return await self._through("locate", lambda: self._store.locate(worker, session_id))

    async def get_capabilities(self, worker: Worker, session_id: str) -> str | None:
        """Return capabilities, or fail; see `SessionStore.get_capabilities`."""
        return await self._through(
            "get_capabilities", lambda: self._store.get_capabilities(worker, session_id)
        )

    async def elicitation_capable(self, worker: Worker) -> list[str]:
        """List sessions that can be asked, or fail; see `SessionStore.elicitation_capable`."""
        return await self._through(
            "elicitation_capable", lambda: self._store.elicitation_capable(worker)
        )

    @property
    def _inspected(self) -> InspectionStore:
        return cast("InspectionStore", self._store)

    async def announce(self, worker: Worker, *, data: str, draining: bool) -> bool:
        """Replace what the worker says, or fail; see `InspectionStore.announce`."""
        return await self._through(
            "announce",
            lambda: self._inspected.announce(worker, data=data, draining=draining),
        )

    async def list_workers(self, worker: Worker) -> list[WorkerInfo]:
        """List workers, or fail; see `InspectionStore.list_workers`."""
        return await self._through("list_workers", lambda: self._inspected.list_workers(worker))

    async def list_sessions(
        self, worker: Worker, selection: Selection, *, after: str, limit: int
    ) -> list[SessionInfo]:
        """List sessions, or fail; see `InspectionStore.list_sessions`."""
        return await self._through(
            "list_sessions",
            lambda: self._inspected.list_sessions(worker, selection, after=after, limit=limit),
        )

    async def describe(self, worker: Worker, session_id: str) -> SessionInfo | None:
        """Describe a session, or fail; see `InspectionStore.describe`."""
        return await self._through("describe", lambda: self._inspected.describe(worker, session_id))

    @property
    def _revoker(self) -> RevocationStore:
        return cast("RevocationStore", self._store)

    async def revoke(self, worker: Worker, revocation: Revocation, *, limit: int) -> Revoked:
        """Revoke, or fail; see `RevocationStore.revoke`."""
        return await self._through(
            "revoke", lambda: self._revoker.revoke(worker, revocation, limit=limit)
        )

    async def revocations(self, worker: Worker, *, within: float) -> list[Mark]:
        """Return what was revoked, or fail; see `RevocationStore.revocations`."""
        return await self._through(
            "revocations", lambda: self._revoker.revocations(worker, within=within)
        )

    @property
    def _post_office(self) -> MailStore:
        return cast("MailStore", self._store)

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        """Take letters away, or fail; see `MailStore.collect`."""
        return await self._through(
            "collect", lambda: self._post_office.collect(worker, limit=limit, size=size)
        )

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics, or fail; see `MailStore.listen`."""
        await self._through("listen", lambda: self._post_office.listen(worker, topics))

    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics, or fail; see `MailStore.unlisten`."""
        await self._through("unlisten", lambda: self._post_office.unlisten(worker, topics))

    async def living(self, worker: Worker) -> frozenset[str]:
        """Say who can get letters, or fail; see `MailStore.living`."""
        return await self._through("living", lambda: self._post_office.living(worker))

    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Delete old letters, or fail; see `MailStore.expire_mail`."""
        return await self._through(
            "expire_mail",
            lambda: self._post_office.expire_mail(worker, older_than=older_than, limit=limit),
        )

    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """Return data, or fail; see `DataStore.get_data`."""
        described = cast("DataStore", self._store)
        return await self._through("get_data", lambda: described.get_data(worker, session_id))

    @property
    def _logging(self) -> LogStore:
        return cast("LogStore", self._store)

    async def read_log(
        self, worker: Worker, session_id: str, *, after: int, limit: int, size: int
    ) -> Sequence[StoredEntry]:
        """Read a log, or fail; see `LogStore.read_log`."""
        return await self._through(
            "read_log",
            lambda: self._logging.read_log(worker, session_id, after=after, limit=limit, size=size),
        )

    async def expire_logs(self, worker: Worker, *, older_than: float, limit: int) -> int:
        """Expire entries of logs, or fail; see `LogStore.expire_logs`."""
        return await self._through(
            "expire_logs",
            lambda: self._logging.expire_logs(worker, older_than=older_than, limit=limit),
        )

    async def waiting(self, worker: Worker) -> list[str]:
        """List sessions with messages, or fail; see `SessionStore.waiting`."""
        return await self._through("waiting", lambda: self._store.waiting(worker))

    async def fetch(
        self, worker: Worker, wanted: Sequence[Wanted]
    ) -> Mapping[str, Sequence[StoredMessage]]:
        """Fetch messages, or fail; see `SessionStore.fetch`."""
        return await self._through("fetch", lambda: self._store.fetch(worker, wanted))

    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> AsyncIterator[Bell]:
        """Open a bell, or fail; one that is open goes on to ring, but for a pause."""
        await self._through("open_bell", trio.lowlevel.checkpoint)
        async with self._store.open_bell(worker) as bell:
            yield _PausedBell(bell, self._while_paused)

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
        """Vouch and sweep, or fail; see `SessionStore.sweep`."""
        return await self._through(
            "sweep",
            lambda: self._store.sweep(
                worker,
                session_ttl=session_ttl,
                message_ttl=message_ttl,
                max_gap=max_gap,
                limit=limit,
                stamp=stamp,
            ),
        )
