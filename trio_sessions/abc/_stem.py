"""What holds for every part of a store's contract."""

import abc
import enum
import functools
from dataclasses import dataclass
from typing import ClassVar

import trio

from trio_sessions.writes import Batch, Committed

__all__ = ["Part", "Pool", "Store", "Worker"]


class Part(enum.Enum):
    """A part of the contract.

    Attributes:
        ROWS: `RowStore`.
        MESSAGES: `MessageStore`.
        WORKERS: `WorkerStore`.
        INSPECTION: `InspectionStore`; a registry works without it, and says so when it is asked.
        REVOCATION: `RevocationStore`; likewise.
        DATA: `DataStore`; likewise, and adoption of sessions.
        LIMITS: `LimitStore`; a registry that has such a limit does not open without it.
        LOGS: `LogStore`; likewise.
        MAIL: `MailStore`; likewise.
    """

    ROWS = "rows"
    MESSAGES = "messages"
    WORKERS = "workers"
    INSPECTION = "inspection"
    REVOCATION = "revocation"
    DATA = "data"
    LIMITS = "limits"
    LOGS = "logs"
    MAIL = "mail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Who asks a store: one opening of one registry.

    Attributes:
        worker_id: names the worker; users may choose it, and may use one again after a restart.
        incarnation: made fresh at each opening, so that a restart is never taken for what it
            follows.
        limiter: every thread that a store starts for this worker is started with this limiter
            (``trio.to_thread.run_sync(..., limiter=worker.limiter)``); nobody else enters it.
        migrate: a store that keeps a schema may bring an older one up to its version when it opens.
    """

    worker_id: str
    incarnation: str
    limiter: trio.CapacityLimiter
    migrate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Connections that a store keeps for all who have it open.

    Attributes:
        in_use: those that somebody uses now.
        idle: those that wait for somebody.
    """

    in_use: int
    idle: int


@functools.cache
def _parts_of(kind: type) -> frozenset[Part]:
    return frozenset(one.__dict__["part"] for one in kind.__mro__ if "part" in vars(one))


class Store(abc.ABC):
    """What workers share. One store may be opened by several workers at once.

    **Time is the store's own**, one clock for each row: no method takes a moment, only
    durations and ages in seconds.

    Rules for every method:

    - It is a checkpoint, also when there is nothing to do.
    - What it returns is committed.
    - When the store cannot say, it raises `StoreUnavailable` (the cause chained), or
      `RowUnavailable` where fewer rows could succeed. It bounds itself in time; the
      registry cancels it after ``store_timeout``, and treats that and every other
      exception as "unknown".
    - It changes no more than it says, and what it changes may be asked for again, but for
      `Send`, `Append` and `Post`: an earlier attempt may have been committed although its
      answer was lost.
    - It never refreshes or deletes a row of another incarnation, except by a `Claim` (a
      takeover), by `RowStore.sweep` (an expired lease) and by `RevocationStore.revoke`.
    - When it is cancelled, the operation may or may not have happened.
    """

    part: ClassVar[Part]
    """Each class that is a part of the contract says which."""

    @property
    def parts(self) -> frozenset[Part]:
        """The parts of the contract that it keeps. A store that wraps another one asks that."""
        return _parts_of(type(self))

    @property
    def may_outlast_cancellation(self) -> bool:
        """Whether a question that is cancelled may go on for a while, as one in a thread does.

        If it may, the registry asks in a task of its own, so that nobody who leaves waits for it.
        """
        return True

    @property
    def gives_up_after(self) -> float | None:
        """Seconds after which it gives an operation up by itself; None: it does not.

        A write that reaches what the store rests on later than that does nothing
        (`trio_sessions.writes.Batch.not_after`), for its caller was told that it failed.
        """
        return None

    def connections(self) -> Pool | None:
        """Return how its pool of connections is; None: it has none, or is not open.

        Synchronous, and asks nobody: any thread may call it.
        """
        return None

    @abc.abstractmethod
    async def open(self, worker: Worker) -> None:
        """Make the store ready for ``worker``.

        Raises:
            StoreUnavailable: the store cannot be reached. Nothing stays open.
            StoreSchemaError: its tables are not ours. Nothing was altered.
        """

    @abc.abstractmethod
    async def close(self, worker: Worker) -> None:
        """Give back what was opened for ``worker``; harmless without an `open` before.

        It does not delete rows, and does not raise when the store is away.
        """

    @abc.abstractmethod
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        """Carry out the writes of a batch, each on the row of its session.

        The writes are independent of each other, and a store may carry them out in any order,
        except that the messages for one session, and the entries of its log, are stored in theirs,
        with ascending ids. Each is done as a whole or not at all. The whole batch may be one
        transaction, and on a database should be one, with one round trip.

        **A row that is locked by somebody else is not waited for**: its writes are answered
        with `RowUnavailable`, and the others are done. The same holds for any other reason
        that the store can tell apart row by row.

        **Messages are deleted so many at a time**: where a `Claim` or `Delete` finds more of
        them than the store deletes in one batch, the write is answered with `Unfinished`. Its
        row goes, or is claimed, with the last of them, and not before. So it may with a long log.

        What each kind of write does, with the row of its session as it is at that moment (see
        `trio_sessions.writes` for ``ended`` and ``born``):

        `Claim`:
            No row: it is inserted, with no messages and no log. A row of this incarnation that
            ``ended`` covers: the same, after it was deleted with its messages and its log. A row of
            this incarnation of a later generation than the claim's: it is refreshed, no more.
            Another one of this incarnation: it is refreshed, and gets the claim's generation, and
            owner and capabilities if the claim brings them, and as the moment of its taking that of
            the claim, its age ago, unless its own is later. A row of another incarnation that was
            taken no later than the claim's age ago: it is taken over likewise; the rest, messages,
            log, birth and moment of creation, stays. One that was taken later: nothing is done. A
            moment in the future, which a clock has left that was ahead, is no later moment but
            older than every claim; the next claim or refresh sets it right. The claim's age is that
            at the moment when the store is asked: **the store adds the time for which the claim
            then waits** for a thread, a connection or a lock, once. So with the age of a `Send`.
        `Delete`:
            A row of this incarnation of a generation <= ``up_to``: it is deleted with its
            messages and its log. Otherwise nothing is done.
        `SetOwner`, `ClaimOwner`, `SetCapabilities`, `Send`, `Append`:
            No row, or one that ``ended`` covers: nothing is done, and the answer is None. In doubt
            (`WorkerStore`) it is `RowDoubtful` where there is no row; one that ``ended`` covers is
            there, so the answer is None as ever.
        `Append`:
            Entries of one session become visible in the order of their ids: whoever has seen one
            has seen, or can see, all that have a smaller id. The rest is as with a `Send`.
        `Acknowledge`:
            A row of this incarnation: the messages are deleted.

        A takeover and a `Send` to the same session exclude each other: who takes a session
        over finds the message, or its bell is rung for it. So do a takeover and an
        `Acknowledge`: what was acknowledged is never seen by the next holder.

        **A batch that names a stamp** is carried out only where the store has its history, and no
        lower beat, and stamps the worker's row in the same transaction (`WorkerStore`). One that
        names a last moment is carried out only if it begins no later, on the store's own clock; a
        wait for a lock comes after that, and is not lateness. A store may look again, or only,
        when it has the lock: it refuses more then, which costs another round and no more.
        Otherwise nothing is done, and the answer says which.

        For all messages of a batch that one worker holds the sessions of, its bell is rung once.
        A bell that cannot be rung is no error.

        Args:
            worker: who asks.
            batch: the writes; it may be empty.

        Returns:
            An answer for each write, in their order.

        Raises:
            RowUnavailable: nothing was done, because of a row that is not known; a batch of
                fewer writes could succeed.
            StoreUnavailable: the batch may have been committed, or not.
        """

    def commit_at_once(self, worker: Worker, batch: Batch) -> Committed | None:
        """Carry out a batch as `commit` does, if nothing has to be waited for; None: it has.

        Synchronous; where it returns None, nothing was done. A registry asks for this first: what
        waits for nothing needs neither a deadline nor a turn of the loop.
        """
        return None
