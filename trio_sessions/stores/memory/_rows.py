"""The rows in memory, and what each kind of write does with one. Synchronous, no clock."""

import itertools
from collections.abc import Callable, Iterable

from trio_sessions.abc import Worker
from trio_sessions.stores._adoption import adopts, is_of_whom_it_names
from trio_sessions.stores._crowds import Crowds, is_limited
from trio_sessions.stores._doubt import doubtful
from trio_sessions.stores._pieces import PIECE
from trio_sessions.stores._refusals import REFUSALS
from trio_sessions.stores.memory._owned import Owned
from trio_sessions.stores.memory._revoked import Marks
from trio_sessions.stores.memory._row import LogLine, Message, Row
from trio_sessions.types import Holder, Sent
from trio_sessions.writes import (
    Acknowledge,
    Answer,
    Append,
    Batch,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Differs,
    Keep,
    Outcome,
    Send,
    SetCapabilities,
    SetData,
    SetOwner,
    Unfinished,
    Write,
)

__all__ = ["Numbers", "Rows"]


class Numbers:
    """A counter that says where it stands, and can be copied."""

    def __init__(self, following: int = 1) -> None:
        self.following = following

    def __next__(self) -> int:
        self.following += 1
        return self.following - 1


class Rows(dict[str, Row]):
    """The rows by session id."""

    def __init__(self) -> None:
        super().__init__()
        self.marks = Marks()
        self._births = Numbers()
        self._message_ids = Numbers()
        self._entry_ids = Numbers()
        self._owned = Owned()

    def __setitem__(self, session_id: str, row: Row) -> None:
        """Put a row in, in the place of any other of its id."""
        before = self.get(session_id)
        super().__setitem__(session_id, row)
        self._owned.change(session_id, None if before is None else before.owner, row.owner)

    def take(self, session_id: str) -> Row | None:
        """Take a row out, whatever belongs to it; None: there is none."""
        row = self.pop(session_id, None)
        if row is not None:
            self._owned.change(session_id, row.owner, None)
        return row

    def give(self, session_id: str, owner: str | None) -> None:
        """Set the owner of a row; None: nobody."""
        row = self[session_id]
        self._owned.change(session_id, row.owner, owner)
        row.owner = owner

    def own(self, worker: Worker, session_ids: Iterable[str]) -> dict[str, Row]:
        """Return those of these rows that are there and are held by this incarnation."""
        own_id, own = worker.worker_id, worker.incarnation
        return {
            session_id: row
            for session_id in session_ids
            if (row := self.get(session_id)) is not None
            and row.incarnation == own
            and row.worker_id == own_id
        }

    def of_others(self, worker: Worker) -> list[tuple[str, "Row"]]:
        """Return the rows that another incarnation holds."""
        own_id, own = worker.worker_id, worker.incarnation
        return [
            (session_id, row)
            for session_id, row in self.items()
            if row.incarnation != own or row.worker_id != own_id
        ]

    def crowds(self, worker: Worker, batch: Batch, lives: Callable[[str], bool]) -> Crowds | None:
        """Return how many sessions the owners have that a batch may be refused for.

        Args:
            worker: whose batch it is.
            batch: the batch.
            lives: says whether an incarnation is not gone.
        """
        limited = [write for write in batch.writes if is_limited(write)]
        if not limited:
            return None
        ended = {claim.session_id: claim.ended for claim in limited}
        most = dict[str, int]()
        for claim in limited:
            assert isinstance(claim.owner, str)
            assert claim.most_of_owner is not None
            most[claim.owner] = max(most.get(claim.owner, 0), claim.most_of_owner)

        def counts(session_id: str, owner: str) -> bool:
            row = self.get(session_id)
            if row is None or row.owner != owner:
                return False
            if not row.is_of(worker):
                return lives(row.incarnation)
            return row.generation > ended.get(session_id, 0)

        return Crowds(
            {
                owner: sum(
                    1
                    for _ in itertools.islice(
                        (one for one in self._owned.of(owner) if counts(one, owner)), number
                    )
                )
                for owner, number in most.items()
            }
        )

    def set_right(self, now: float) -> None:
        """Take back refreshes in the future: the clock was set back."""
        for row in [row for row in self.values() if row.last_accessed > now]:
            row.last_accessed = now

    def count(self, worker: Worker) -> int:
        """Return how many rows this incarnation holds."""
        incarnations = [
            row.incarnation for row in self.values() if row.worker_id == worker.worker_id
        ]
        return incarnations.count(worker.incarnation)

    def remove(self, session_id: str, limit: int) -> tuple[int, bool]:
        """Remove messages of a row, the oldest first, and the row with the last of them.

        Args:
            session_id: the row's.
            limit: messages, at most.

        Returns:
            How many messages went, and whether the row did.
        """
        messages = self[session_id].messages
        if len(messages) <= limit:
            self.take(session_id)
            return len(messages), True
        for message_id in list(itertools.islice(messages, limit)):
            del messages[message_id]
        return limit, False

    def remove_some(self, session_ids: Iterable[str], limit: int) -> tuple[int, int]:
        """Remove rows as `remove` does; return how many, and how many messages."""
        sessions = messages = 0
        for session_id in session_ids:
            dropped, is_gone = self.remove(session_id, limit - messages)
            sessions += is_gone
            messages += dropped
        return sessions, messages

    def drop_older(self, moment: float, limit: int) -> int:
        """Remove messages that were stored before a moment; return how many."""
        return _drop_older((row.messages for row in self.values() if row.messages), moment, limit)

    def expire_logs(self, moment: float, limit: int) -> int:
        """Remove entries of logs that were appended before a moment; return how many."""
        return _drop_older((row.log for row in self.values() if row.log), moment, limit)

    def carry_out(
        self,
        worker: Worker,
        write: Write[object],
        now: float,
        *,
        in_doubt: bool = False,
        crowds: Crowds | None = None,
    ) -> Answer:
        """Do what a write says.

        Args:
            worker: whose write it is.
            write: the write.
            now: the moment, on whatever clock the rows have.
            in_doubt: what is not there may have been forgotten.
            crowds: of the owners that a claim may be refused for.
        """
        if in_doubt and self._is_doubtful(worker, write):
            return doubtful()
        match write:
            case Claim():
                return self._claim(worker, write, now, now - write.age, crowds)
            case Delete():
                return self._delete(worker, write)
            case SetOwner() | ClaimOwner() | SetCapabilities() | SetData():
                return self._say(worker, write)
            case Send() | Append():
                return self._add(worker, write, now)
            case Acknowledge():
                return self._acknowledge(worker, write)
        raise TypeError(f"unknown write: {type(write).__name__}")

    def _is_doubtful(self, worker: Worker, write: Write[object]) -> bool:
        """Say whether the answer would rest on what is not there, or on an older copy."""
        if adopts(write):
            return True
        if not isinstance(write, SetOwner | ClaimOwner | SetCapabilities | SetData | Send | Append):
            return False
        row = self.get(write.session_id)
        if row is None:
            return True
        return isinstance(write, ClaimOwner) and row.owner is None and not row.is_of(worker)

    def _living(self, worker: Worker, session_id: str, ended: int) -> Row | None:
        """Return the row of a session, unless it is what an ended one has left."""
        row = self.get(session_id)
        if row is None or (row.is_of(worker) and row.generation <= ended):
            return None
        return row

    def _claim(
        self,
        worker: Worker,
        claim: Claim,
        now: float,
        taken_at: float,
        crowds: Crowds | None,
    ) -> Claimed | Unfinished:
        refusal = self._refusal(worker, claim, now, crowds)
        if refusal is not None:
            return refusal
        dropped = 0
        row = self._living(worker, claim.session_id, claim.ended)
        if row is None:
            if claim.session_id in self:
                dropped, is_gone = self.remove(claim.session_id, PIECE)
                if not is_gone:
                    return Unfinished(dropped=dropped)
            row = self[claim.session_id] = Row(
                born=str(next(self._births)),
                created_at=now,
                worker_id=worker.worker_id,
                incarnation=worker.incarnation,
            )
            outcome = Outcome.INSERTED
        elif row.is_of(worker):
            outcome = Outcome.KEPT
        elif taken_at < row.taken_at <= now and claim.only_from is None:
            outcome = Outcome.LOST
        else:
            row.worker_id, row.incarnation = worker.worker_id, worker.incarnation
            row.generation = 0
            outcome = Outcome.TAKEN_OVER
        if outcome is not Outcome.LOST:
            row.last_accessed = now
            if row.generation <= claim.generation:
                row.generation = claim.generation
                row.taken_at = taken_at if row.taken_at > now else max(row.taken_at, taken_at)
                if claim.owner is not Keep.AS_IS:
                    self.give(claim.session_id, claim.owner)
                row.capabilities = claim.capabilities or row.capabilities
                row.data = row.data if claim.data is Keep.AS_IS else claim.data
        return Claimed(
            outcome=outcome,
            holder=row.holder(),
            capabilities=row.capabilities,
            data=row.data,
            born=row.born,
            dropped=dropped,
        )

    def _refusal(
        self, worker: Worker, claim: Claim, now: float, crowds: Crowds | None
    ) -> Claimed | None:
        """Return the answer to a claim that may not be done; else None."""
        if self.marks.has(claim.session_id, now):
            return REFUSALS[Outcome.REVOKED]
        if claim.only_from is not None and not self._may_adopt(worker, claim):
            return REFUSALS[Outcome.NOT_ADOPTED]
        if crowds is not None and is_limited(claim):
            row = self._living(worker, claim.session_id, claim.ended)
            has_already = row is not None and row.owner == claim.owner
            if not crowds.let_in(claim, has_already=has_already):
                return REFUSALS[Outcome.TOO_MANY]
        return None

    def _may_adopt(self, worker: Worker, claim: Claim) -> bool:
        row = self._living(worker, claim.session_id, claim.ended)
        if row is None:
            return False
        if row.is_of(worker):
            return row.generation == claim.generation
        return is_of_whom_it_names(claim, worker_id=row.worker_id, incarnation=row.incarnation)

    def _delete(self, worker: Worker, write: Delete) -> int | Unfinished:
        row = self.get(write.session_id)
        if row is None or not row.is_of(worker) or row.generation > write.up_to:
            return 0
        dropped, is_gone = self.remove(write.session_id, PIECE)
        return dropped if is_gone else Unfinished(dropped=dropped)

    def _say(
        self, worker: Worker, write: SetOwner | ClaimOwner | SetCapabilities | SetData
    ) -> Holder | Differs | None:
        row = self._living(worker, write.session_id, write.ended)
        if row is None:
            return None
        if isinstance(write, SetData):
            if write.only_if is not Keep.AS_IS and write.only_if != row.data:
                return Differs(data=row.data)
            row.data = write.data
        elif isinstance(write, SetCapabilities):
            row.capabilities = write.capabilities
        elif isinstance(write, SetOwner) or row.owner is None:
            self.give(write.session_id, write.owner)
        return row.holder()

    def _add(self, worker: Worker, write: Send | Append, now: float) -> Sent | int | None:
        """Store what belongs to a session."""
        row = self._living(worker, write.session_id, write.ended)
        if row is None or (write.born is not None and row.born != write.born):
            return None
        if isinstance(write, Append):
            return self._append(row, write, now)
        if write.elsewhere and row.is_of(worker):
            return None
        message_id = next(self._message_ids)
        row.messages[message_id] = Message(payload=write.payload, stored_at=now - write.age)
        return Sent(id=message_id, holder=row.holder())

    def _append(self, row: Row, write: Append, now: float) -> int:
        entry_id = next(self._entry_ids)
        row.log[entry_id] = LogLine(event=write.event, stored_at=now)
        if write.keep is not None:
            for old in list(itertools.islice(row.log, max(0, len(row.log) - write.keep))):
                del row.log[old]
        return entry_id

    def _acknowledge(self, worker: Worker, write: Acknowledge) -> bool:
        row = self.get(write.session_id)
        if row is None or not row.is_of(worker):
            return False
        for message_id in write.message_ids:
            row.messages.pop(message_id, None)
        return True


def _drop_older(
    of_rows: Iterable[dict[int, Message] | dict[int, LogLine]], moment: float, limit: int
) -> int:
    """Remove what was stored before a moment, of each row; return how many."""
    old = (
        (stored, number)
        for stored in of_rows
        for number, one in stored.items()
        if one.stored_at < moment
    )
    found = list(itertools.islice(old, limit))
    for stored, number in found:
        del stored[number]
    return len(found)
