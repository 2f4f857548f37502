"""Values: what the registry, the pass and the stores hand to each other and to you.

Nothing here does I/O. Every value is frozen; durations are seconds.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trio_sessions._reports import (
    CleanupReport,
    DrainReport,
    OnRemoved,
    RegistryHealth,
    RegistryStatistics,
    RemovalReason,
)
from trio_sessions.errors import InvalidSessionId

__all__ = [
    "Begun",
    "Capabilities",
    "CleanupReport",
    "DrainReport",
    "Holder",
    "LogEntry",
    "OnRemoved",
    "Presence",
    "RegistryHealth",
    "RegistryStatistics",
    "RemovalReason",
    "RowAnswers",
    "Sent",
    "Stamp",
    "Stamped",
    "StoredEntry",
    "StoredMessage",
    "Swept",
    "Wanted",
    "check_owner",
    "check_session_id",
    "fingerprint",
]

MAX_SESSION_ID = 255
MAX_OWNER = 320


def fingerprint(session_id: str) -> str:
    """Return eight hexadecimal digits that stand for a session id in logs.

    A session id is a credential, so logs and error messages carry this instead. The
    same id always gives the same digits, so an operator who knows an id can search
    for it.
    """
    digest = hashlib.blake2s(session_id.encode("utf-8", "surrogatepass"), digest_size=4)
    return digest.hexdigest()


def check_session_id(session_id: object) -> str:
    """Return ``session_id`` if it may be one.

    Raises:
        InvalidSessionId: if it is not a `str` of 1 to 255 characters that can be
            encoded as UTF-8 and has no NUL. The message does not repeat the id.
    """
    if not isinstance(session_id, str):
        raise InvalidSessionId(
            f"session_id must be a str of 1 to {MAX_SESSION_ID} characters, "
            f"not {type(session_id).__name__}"
        )
    if not 1 <= len(session_id) <= MAX_SESSION_ID:
        raise InvalidSessionId(
            f"session_id must have 1 to {MAX_SESSION_ID} characters, this one has {len(session_id)}"
        )
    if "\0" in session_id:
        raise InvalidSessionId("session_id must not contain a NUL character")
    if not session_id.isascii():
        try:
            check_encodable("session_id", session_id)
        except ValueError as exc:
            raise InvalidSessionId(str(exc)) from None
    return session_id


def check_owner(owner: object) -> str:
    """Return ``owner`` if it may be one.

    Raises:
        TypeError: it is no `str`.
        ValueError: it has not 1 to 320 characters, or cannot be encoded as UTF-8, or has NUL.
    """
    if not isinstance(owner, str):
        raise TypeError(
            f"owner must be a str of 1 to {MAX_OWNER} characters, not {type(owner).__name__}"
        )
    if not 1 <= len(owner) <= MAX_OWNER:
        raise ValueError(f"owner must have 1 to {MAX_OWNER} characters, this one has {len(owner)}")
    if "\0" in owner:
        raise ValueError("owner must not contain a NUL character")
    check_encodable("owner", owner)
    return owner


def check_encodable(what: str, text: str) -> None:
    """Raise ValueError if a text given as ``what`` cannot be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"{what} cannot be encoded as UTF-8: a lone surrogate at index {exc.start}"
        ) from None  # the original error repeats the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a session, as its row says.

    Attributes:
        worker_id: the worker's name (`trio_sessions.abc.Worker`).
        incarnation: which opening of that worker.
        owner: the session's owner; None: nobody.
    """

    worker_id: str
    incarnation: str
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a client can do, as one JSON object.

    Attributes:
        encoded: the JSON object.
        elicitation: whether they have the key ``elicitation``, by which sessions can be listed.
    """

    encoded: str
    elicitation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a store keeps of a worker, as its witness; see `trio_sessions.abc.WorkerStore`.

    Attributes:
        history: a random word; another one means another series of beats.
        beat: counted by the store: so many stamps of this history has it committed.
    """

    history: str
    beat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """What has become of a stamp that was to be set.

    Attributes:
        stamp: the new one; None: the store does not have the history, or a lower beat.
        rows: how many rows this incarnation has; None: not counted, for no pass has ended.
        clock: when it was set, in seconds on the store's clock.
    """

    stamp: Stamp | None
    rows: int | None = None
    clock: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the beginning of a history was answered with.

    Attributes:
        was_swept: the worker's row was swept in the history before: it has lost its lease.
        doubt: seconds for which the store is in doubt from now on, for it went back; 0: it did not.
        clock: when it was begun, in seconds on the store's clock: so the first batch has a last
            moment.
    """

    was_swept: bool
    doubt: float = 0.0
    clock: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a worker says of itself to the others.

    A store that keeps no more than `SessionStore` needs ``session_ttl`` and ``cleanup_interval``,
    and ``stamp_interval`` if it is in doubt by itself (`trio_sessions.abc.WorkerStore`).

    Attributes:
        session_ttl: seconds without a stamp after which its sessions may be swept.
        cleanup_interval: seconds between two passes.
        stamp_interval: seconds between two stamps, at most.
        version: that of trio_sessions.
        data: a JSON object.
        draining: it takes no new sessions.
    """

    session_ttl: float
    cleanup_interval: float
    stamp_interval: float
    version: str
    data: str = "{}"
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswers:
    """A store's committed answer about rows; what is in no field has no row.

    Attributes:
        held: the row is there and is this worker's, and what was asked for has been done with it.
        taken_over: the row is there, and another incarnation holds it.
        taken_ago: of those, how many seconds ago its holder took it, by the store's clock, which
            adds the age of that claim. Where it is not said, the row counts as taken later than the
            asker's own.
        unknown: the store could not say for this row alone, for instance because it is locked; or
            the row is there and this worker's, and something kept it from being refreshed.
        stamp: the worker's, in the very snapshot in which the rows were looked for; None: it has
            none.
    """

    held: frozenset[str]
    taken_over: frozenset[str] = frozenset()
    taken_ago: Mapping[str, float] = field(default_factory=dict)
    unknown: Mapping[str, Exception] = field(default_factory=dict)
    stamp: Stamp | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Messages that a worker has room for, of one session that it holds.

    Attributes:
        session_id: the session.
        held: ids of messages that it has already.
        count: at most so many; above 0.
        size: stop when the encoded ones have reached so many bytes together; above 0, so that there
            is one at least, if there is any.
    """

    session_id: str
    held: frozenset[int]
    count: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message that waits in the store.

    Attributes:
        id: grows with each message that one sender stores for a session.
        payload: its JSON.
        age: seconds since it was stored.
    """

    id: int
    payload: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """An entry of a session's log, as a store has it.

    Attributes:
        id: grows with each entry of its session.
        event: its JSON.
        age: seconds since it was appended.
    """

    id: int
    event: str
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """An entry of a session's log.

    Attributes:
        id: greater than that of every earlier entry of the session.
        event: what was appended: any JSON value.
        age: seconds since it was appended, by the database's clock.
    """

    id: int
    event: Any
    age: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message that was stored.

    Attributes:
        id: the message's.
        holder: who held the session then.
    """

    id: int
    holder: Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one bounded piece of a sweep, or of leaving, has deleted.

    Attributes:
        sessions: rows of sessions.
        messages: messages that were older than ``message_ttl``, or of sessions that go.
        more: there may be more to delete, and this piece has come nearer to it: go on.
        stamped: what has become of the stamp, if a sweep was to set one.
    """

    sessions: int
    messages: int
    more: bool
    stamped: Stamped | None = None
