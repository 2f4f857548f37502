"""Values: what the registry, the pass and the stores hand to each other and to you.

Nothing here does I/O. Every value is frozen; durations are seconds.
"""

import enum
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
            session_id.encode()
        except UnicodeEncodeError as exc:
            raise InvalidSessionId(
                f"session_id cannot be encoded as UTF-8: a lone surrogate at index {exc.start}"
            ) from None  # the original error repeats the id
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
    try:
        owner.encode()
    except UnicodeEncodeError as exc:
        raise ValueError(
            f"owner cannot be encoded as UTF-8: a lone surrogate at index {exc.start}"
        ) from None
    return owner


class RemovalReason(enum.StrEnum):
    """Why a session has ended here; a transport may tell its client, by a close code for instance.

    It is handed to ``disconnect(reason)`` where a transport's method takes an argument.
    """

    DISCONNECTED = "disconnected"
    """The transport said that it is not connected."""
    MISSING = "missing"
    """The database confirmed that its row is gone."""
    TAKEN_OVER = "taken_over"
    """Its id was added again: a newer connection holds the session, here or at another worker."""
    REVOKED = "revoked"
    """`SessionRegistry.revoke` ended it, from whichever worker or from the command line."""
    IDLE = "idle"
    """Nothing was heard of it for ``limits.idle_timeout``."""
    AGED = "aged"
    """It was older than ``limits.max_age``."""
    DRAINED = "drained"
    """This worker is being drained: the client may connect to another one at once."""
    REMOVED = "removed"
    """`SessionRegistry.remove_session` was called."""
    CLOSED = "closed"
    """The registry was closed."""


OnRemoved = Callable[[str, RemovalReason], Awaitable[object]]
"""Is told of each removal: the session's id, and why it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanupReport:
    """What one pass did. Session ids in it are the real ones: do not log it whole."""

    checked: int
    """Transports that were asked whether they are connected."""
    refreshed: int
    """Rows confirmed present, their ``last_accessed`` set to the database's clock."""
    disconnected: tuple[str, ...]
    """Removed: the transport said that it is disconnected."""
    missing: tuple[str, ...]
    """Removed: the database confirmed that the row is gone, or is another worker's."""
    restored: tuple[str, ...]
    """Rows written now: no earlier attempt was confirmed, or the database has forgotten it."""
    taken_over: tuple[str, ...] = ()
    """Those of ``missing`` that have a mark: another worker holds them now, or held them when it
    won the session, or has swept them after this worker had lost its lease."""
    held: tuple[str, ...] = ()
    """Kept by the brake: missing in this pass, and asked for again in the next one."""
    revoked: tuple[str, ...] = ()
    """Removed since the last pass: `SessionRegistry.revoke` has ended them, from wherever."""
    idle: tuple[str, ...] = ()
    """Removed: nothing was heard of them for ``limits.idle_timeout``."""
    aged: tuple[str, ...] = ()
    """Removed: this worker has held them for longer than ``limits.max_age``."""
    check_failures: Mapping[str, Exception] = field(default_factory=dict)
    """Kept: ``is_connected()`` raised this, or timed out (`TimeoutError`)."""
    refresh_failures: Mapping[str, Exception] = field(default_factory=dict)
    """Kept: the database could not say, and why."""
    expired: int
    """Rows of other, dead workers that were swept."""
    duration: float
    """Seconds that the pass took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainReport:
    """What a drain did. Session ids in it are the real ones: do not log it whole."""

    drained: tuple[str, ...]
    """Told to leave, with `RemovalReason.DRAINED`, when nothing was under way for them."""
    left: tuple[str, ...]
    """Gone by themselves meanwhile."""
    cut: tuple[str, ...]
    """Told so at the end, although a message was being handled, or waited in memory alone."""
    waiting: int
    """Of ``drained``: those that have not come back at another worker in time. Their rows, with
    owner and stored messages, are deleted by the next pass, or by closing."""
    duration: float
    """Seconds that the drain took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryStatistics:
    """A registry at one moment; counters run from its opening."""

    worker_id: str
    closed: bool
    sessions: int
    """Sessions held now."""
    unconfirmed: int
    """Of these, sessions whose row is not confirmed to be written."""
    leftover_rows: int
    """Rows of sessions already removed here, still to be deleted from the database."""
    passes: int
    """Passes that ran to their end."""
    failed_passes: int
    """Passes that ended in an unexpected error (logged with its traceback)."""
    incomplete_passes: int
    """Of ``passes``: those in which the database could not answer for every session."""
    brakes: int
    """Of ``passes``: those that held sessions by ``mass_missing_brake`` (logged as an error)."""
    database_rewinds: int
    """How often the database had forgotten what it had confirmed: it was restored, replaced or
    truncated, or failed over to an older copy (logged as an error). All rows were written anew."""
    removed_disconnected: int
    removed_missing: int
    restored: int
    expired: int
    check_failures: int
    refresh_failures: int
    disconnect_failures: int
    """``disconnect()`` calls that raised or timed out."""
    stuck_calls: int
    """Calls into transports that ignore their cancellation and still run."""
    messages_in_memory: int
    """Messages to sessions held here that wait in memory for their inbox to be read."""
    messages_dropped: int
    """Messages dropped by ``message_ttl``, or with the removal of their session."""
    topic_messages_dropped: int
    """Messages of topics that a subscriber here was too slow for: the oldest go first."""
    stuck_tasks: int
    """Respond tasks of removed sessions that ignore their cancellation and still run; only
    `trio_sessions.aio` has such tasks."""
    operations_running: int
    """Tokens of the limiter that are borrowed now."""
    operations_waiting: int
    """Database operations that wait for a token."""
    last_report: CleanupReport | None
    """The last pass that ran to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryHealth:
    """How a registry is at one moment: facts, from which you decide what is alive, and ready."""

    worker_id: str
    closed: bool
    """It is closed, or closing."""
    draining: bool
    """It takes no new sessions, and lets those that it has leave."""
    database_answers: bool
    """Whether the last operation that has ended was answered, be it with a "cannot"."""
    database_away: float
    """Seconds since an operation first ended without an answer; 0.0 while the database answers."""
    since_good_pass: float | None
    """Seconds since a pass ended in which the database answered for all; None: none has yet."""
    held: int
    """Sessions that the last pass held by ``mass_missing_brake``: the brake is on while it is above
    0."""
    bell_alive: bool | None
    """Whether the worker hears at once what others have for it, else at its next look; None: it
    has not begun to listen, for nothing here reads messages."""
    loop_lag: float | None
    """Seconds: the longest delay of a task in the last ten seconds; None: not measured yet, which
    begins with the first call on the registry's own thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a session, as its row says."""

    worker_id: str
    incarnation: str
    owner: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a client can do, as one JSON object."""

    encoded: str
    elicitation: bool
    """Whether they have the key ``elicitation``, by which sessions can be listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a store keeps of a worker, as its witness; see `trio_sessions.abc.WorkerStore`."""

    history: str
    """A random word; another one means another series of beats."""
    beat: int
    """Counted by the store: so many stamps of this history has it committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamped:
    """What has become of a stamp that was to be set."""

    stamp: Stamp | None
    """The new one; None: the store does not have the history, or a lower beat."""
    rows: int | None = None
    """How many rows this incarnation has; None: not counted, for no pass has ended."""
    clock: float = 0.0
    """When it was set, in seconds on the store's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the beginning of a history was answered with."""

    was_swept: bool
    """The worker's row was swept in the history before: it has lost its lease."""
    doubt: float = 0.0
    """Seconds for which the store is in doubt from now on, for it went back; 0: it did not."""
    clock: float | None = None
    """When it was begun, in seconds on the store's clock: so the first batch has a last moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What a worker says of itself to the others."""

    session_ttl: float
    """Seconds without a stamp after which its sessions may be swept."""
    cleanup_interval: float
    """Seconds between two passes."""
    stamp_interval: float
    """Seconds between two stamps, at most."""
    version: str
    """That of trio_sessions."""
    data: str = "{}"
    """A JSON object."""
    draining: bool = False
    """It takes no new sessions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowAnswers:
    """A store's committed answer about rows; what is in no field has no row."""

    held: frozenset[str]
    """The row is there and is this worker's, and what was asked for has been done with it."""
    taken_over: frozenset[str] = frozenset()
    """The row is there, and another incarnation holds it."""
    unknown: Mapping[str, Exception] = field(default_factory=dict)
    """The store could not say for this row alone, for instance because it is locked; or the row
    is there and this worker's, and something kept it from being refreshed."""
    stamp: Stamp | None = None
    """The worker's, in the very snapshot in which the rows were looked for; None: it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Messages that a worker has room for, of one session that it holds."""

    session_id: str
    held: frozenset[int]
    """Ids of messages that it has already."""
    count: int
    """At most so many."""
    size: int
    """Stop when the encoded ones have reached so many bytes together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """A message that waits in the store."""

    id: int
    """Grows with each message that one sender stores for a session."""
    payload: str
    """Its JSON."""
    age: float
    """Seconds since it was stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """An entry of a session's log, as a store has it."""

    id: int
    event: str
    """Its JSON."""
    age: float
    """Seconds since it was appended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """An entry of a session's log."""

    id: int
    """Greater than that of every earlier entry of the session."""
    event: Any
    """What was appended: any JSON value."""
    age: float
    """Seconds since it was appended, by the database's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message that was stored."""

    id: int
    holder: Holder
    """Who held the session then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What one bounded piece of a sweep, or of leaving, has deleted."""

    sessions: int
    messages: int
    """Messages that were older than ``message_ttl``, or of sessions that go."""
    more: bool
    """There may be more to delete, and this piece has come nearer to it: go on."""
    stamped: Stamped | None = None
    """What has become of the stamp, if a sweep was to set one."""
