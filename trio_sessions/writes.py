"""What a worker asks a store to write, in one batch, and what the store answers.

A `Batch` is what the registry's writer commits at a time. Each `Write` in it is for one
session, and has an answer of its own: a row is the unit that is atomic, a batch need not be.

A session's life here has a *generation*, and the session itself has a *birth*: it stays the
same while the row lives, whoever takes it over, and is another one as soon as the row has
been deleted and inserted again. Two facts travel with the writes so that nothing of a removed
session is ever seen by a later one of the same id:

- ``ended``: a row **of this incarnation**, of this generation or an earlier one, is what a
  session that has ended here left behind. A claim replaces it, and to every other write there
  is no such session. 0: no session of this id has ended here.
- ``born``: the birth of the session that is meant.

Over 400 lines, most are what the fields mean: whoever writes a store reads all of them.
"""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from trio_sessions.errors import RowUnavailable
from trio_sessions.types import Capabilities, Holder, Sent, Stamp

__all__ = [
    "ANSWERS",
    "Acknowledge",
    "Answer",
    "Append",
    "Batch",
    "Claim",
    "ClaimOwner",
    "Claimed",
    "Committed",
    "Delete",
    "Differs",
    "Keep",
    "Outcome",
    "Post",
    "Send",
    "SetCapabilities",
    "SetData",
    "SetOwner",
    "Unfinished",
    "Verdict",
    "Write",
]

A_co = TypeVar("A_co", covariant=True)
W = TypeVar("W", bound="Write[object]")


class Keep(enum.Enum):
    """Leave what is there, where None would say that there is nothing.

    Attributes:
        AS_IS: the one word for it.
    """

    AS_IS = "as is"


# ---- what is asked ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Write(Generic[A_co]):
    """One write for one session; the store's answer to it is of that type, or `RowUnavailable`.

    `RowUnavailable`: the store could not do it for a reason of this row alone, for instance because
    it is locked; it was not done, and may be asked again.

    Attributes:
        session_id: whose row it is about; not `Post`.
    """

    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(Write["Claimed"]):
    """Write the row of a session that this worker holds.

    Attributes:
        generation: counts the sessions added by this incarnation, from 1: a larger one is newer.
        age: seconds since the session was added, at the moment when the store is asked. The store
            adds the time for which the claim then waits for a thread or a lock.
        ended: see the head of `trio_sessions.writes`; less than ``generation``.
        owner: to be written with the row; None: nobody; as it is: leave what is there.
        capabilities: to be written with the row; None: leave what is there.
        data: JSON, to be written with the row; None: nothing; as it is: leave what is there.
        most_of_owner: only if the ``owner`` that the claim brings has fewer other sessions than
            this, of workers that are not gone, else `Outcome.TOO_MANY`
            (`trio_sessions.abc.LimitStore`). None: in any case. Where somebody else counts these
            just now, it may be answered as locked.
        only_from: adopt the session: only if another incarnation of this name, or of this worker
            id, holds its row, however lately it was taken. Otherwise nothing is done
            (`Outcome.NOT_ADOPTED`), also where there is no row. A row of this incarnation and of
            this very generation was won by an earlier attempt whose answer was lost:
            `Outcome.KEPT`. None: as `trio_sessions.abc.Store.commit` says of any claim.
    """

    generation: int
    age: float
    ended: int = 0
    owner: str | Keep | None = Keep.AS_IS
    capabilities: Capabilities | None = None
    data: str | Keep | None = Keep.AS_IS
    most_of_owner: int | None = None
    only_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Write[int]):
    """Delete the row of a session removed here, if it is this incarnation's, and its messages.

    Answered with the number of messages that went with it; 0, too, where there is no such row,
    though the store is in doubt (`trio_sessions.abc.WorkerStore`).

    Attributes:
        up_to: a row of a later generation stays.
    """

    up_to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOwner(Write[Holder | None]):
    """Set a session's owner, whoever holds it.

    Answered with its holder and the owner that it has now; None: there is no such session.

    Attributes:
        owner: the new one; None: nobody.
        ended: as with `Claim`.
    """

    owner: str | None
    ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimOwner(Write[Holder | None]):
    """Set a session's owner unless it has one: atomic, so that the first claim wins.

    Answered as `SetOwner`.

    Attributes:
        owner: the one to be set.
        ended: as with `Claim`.
    """

    owner: str
    ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCapabilities(Write[Holder | None]):
    """Replace a session's capabilities, whoever holds it; answered as `SetOwner`.

    Attributes:
        capabilities: the new ones.
        ended: as with `Claim`.
    """

    capabilities: Capabilities
    ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetData(Write["Holder | Differs | None"]):
    """Replace a session's data, whoever holds it; answered as `SetOwner`, or with `Differs`.

    Attributes:
        data: a JSON object; None: nothing.
        only_if: only where the data is this very text (None: where there is none), compared and
            replaced in one step: whoever changes a part of it makes sure that nobody has changed it
            meanwhile. As it is: whatever it is.
        ended: as with `Claim`.
    """

    data: str | None
    only_if: str | Keep | None = Keep.AS_IS
    ended: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Write[Sent | None]):
    """Store a message for a session, whoever holds it, and tell its holder.

    Answered with its id and the holder; None: there is no such session. It is the one write
    that must not be repeated after its answer was lost.

    Attributes:
        payload: its JSON.
        age: seconds since it was sent: more than 0 if it was in memory before.
        ended: as with `Claim`.
        born: only for the session of this birth, else the answer is None; None: of any.
        elsewhere: only if another incarnation holds the session.
    """

    payload: str
    age: float = 0.0
    ended: int = 0
    born: str | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge(Write[bool]):
    """Delete messages of a session that were handled, if this incarnation holds its row.

    Answered with whether it does; otherwise they are for its holder to deliver, whatever was
    done with them here. An unknown message is no error.

    Attributes:
        message_ids: those that `Send` was answered with.
    """

    message_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Append(Write[int | None]):
    """Append an event to a session's log, whoever holds it.

    Answered with its id, which is greater than that of every entry of this session that was ever
    seen; None: there is no such session. Like `Send` it must not be repeated.

    Attributes:
        event: its JSON.
        ended: as with `Claim`.
        born: only to the log of the session of this birth; None: of any.
        keep: of this session's entries, keep as many as this, the newest; None: all. More may stay
            that were appended in the same batch.
    """

    event: str
    ended: int = 0
    born: str | None = None
    keep: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Post(Write[int]):
    """Leave a letter for one worker, or for all that listen to a topic, and ring for each.

    Answered with the number of workers that it was left for; those that are late (three stamps
    missed) get none. With ``to``, `RowUnavailable` says that the worker lives and too many letters
    wait for it; of those that listen to a topic, such ones are passed over. Its ``session_id``
    names no session but the line in which letters stay in order; a store does not look at it. Like
    `Send` it must not be repeated.

    Attributes:
        payload: JSON.
        to: an incarnation, or the id of a worker; of several that have it, the one that began last.
        topic: or everybody who listens to it, the sender too if it does.
    """

    payload: str
    to: str | None = None
    topic: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Writes that are committed together.

    For one session there is one kind of write in it: a single one, or several `Send` or several
    `Append`, which are stored in the order in which they stand here; as are all `Post`.

    Attributes:
        writes: each for the row of its session.
        stamp: the highest that was acknowledged to this worker before the batch left: the batch is
            to be carried out only if the store has this history, and no lower beat. None: in any
            case, and nothing is stamped.
        not_after: the last moment at which the batch may begin, as `Committed.clock` tells it;
            None: any.
    """

    writes: Sequence[Write[object]]
    stamp: Stamp | None = None
    not_after: float | None = None

    def of(self, kind: type[W]) -> Iterator[tuple[int, W]]:
        """Return the writes of a kind, each with its place in the batch."""
        return (
            (place, write) for place, write in enumerate(self.writes) if isinstance(write, kind)
        )


# ---- what is answered ----


class Verdict(enum.Enum):
    """What has become of a batch.

    Attributes:
        DONE: each write has its answer.
        FORGOTTEN: nothing was done: the store does not have the stamp that the batch names, or a
            lower beat.
        LATE: nothing was done: the batch began later than it may.
    """

    DONE = "done"
    FORGOTTEN = "forgotten"
    LATE = "late"


class Outcome(enum.Enum):
    """What has become of a claim.

    Attributes:
        INSERTED: there was no row, or one of a session that had ended here: this is a new session.
        KEPT: the row was this incarnation's, and still is.
        TAKEN_OVER: another incarnation held the row; owner and messages of the session live on.
        LOST: another incarnation holds the row and has taken it later. Nothing was changed.
        REVOKED: the id was revoked, and is refused for a time
            (`trio_sessions.abc.RevocationStore`). Nothing was changed; what the answer says of a
            row means nothing.
        TOO_MANY: the owner has as many sessions as it may have (``most_of_owner``). Nothing was
            changed; what the answer says of a row means nothing.
        NOT_ADOPTED: the session is not held by whom it was to be taken from (``only_from``), or by
            nobody. Nothing was changed; what the answer says of a row means nothing.
    """

    INSERTED = "inserted"
    KEPT = "kept"
    TAKEN_OVER = "taken over"
    LOST = "lost"
    REVOKED = "revoked"
    TOO_MANY = "too many"
    NOT_ADOPTED = "not adopted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """The row of a claimed session as it stands now.

    Attributes:
        outcome: what has become of the claim.
        holder: this worker, unless the claim is lost; with the owner that the session has now.
        capabilities: those that the session has now.
        data: that which the session has now, JSON.
        born: the session's birth: to be compared, not read. A claim that is repeated after its
            answer was lost is told `Outcome.KEPT`, but the same birth.
        dropped: messages of a session that had ended, which went with its row.
    """

    outcome: Outcome
    holder: Holder
    capabilities: Capabilities | None
    data: str | None = None
    born: str
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Differs:
    """The answer to a `SetData` that was not done, for the data is not what it was to be.

    Attributes:
        data: that which the session has now.
    """

    data: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """The answer to a `Claim` or `Delete` of a session that ended with too many messages.

    Or with too long a log. Some of them, the oldest, are deleted; the row is as it was. The write
    is to be asked for again, at once: it goes on with the rest.

    Attributes:
        dropped: messages that are deleted; they are not counted again in the answer at the end.
    """

    dropped: int


ANSWERS: Mapping[type[Write[object]], tuple[type, ...]] = {
    Claim: (Claimed, Unfinished),
    Delete: (int, Unfinished),
    SetOwner: (Holder, type(None)),
    ClaimOwner: (Holder, type(None)),
    SetCapabilities: (Holder, type(None)),
    SetData: (Holder, Differs, type(None)),
    Append: (int, type(None)),
    Post: (int,),
    Send: (Sent, type(None)),
    Acknowledge: (bool,),
}
"""Of which class the answer to a write is, unless it is `RowUnavailable`."""

Answer = Claimed | Holder | Differs | Sent | int | bool | None | Unfinished | RowUnavailable
"""What a write is answered with; which of them a write may get stands in `ANSWERS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What has become of a batch; if it is done, all of it is on disk.

    Attributes:
        answers: to its writes, in their order; to none of them unless it is done.
        verdict: whether it is done.
        stamp: the one that the batch has set, if it had one and is done.
        clock: when the batch began, in seconds on the store's clock; wanted if it had a stamp.
    """

    answers: Sequence[Answer]
    verdict: Verdict = Verdict.DONE
    stamp: Stamp | None = None
    clock: float | None = None
