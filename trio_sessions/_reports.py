"""What a registry says of itself: why sessions have ended, what a pass did, counters, facts.

All of it is public, as `trio_sessions.types`.
"""

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "BATCH_SIZES",
    "MESSAGE_AGES",
    "CleanupReport",
    "DrainReport",
    "OnRemoved",
    "RegistryHealth",
    "RegistryStatistics",
    "RemovalReason",
]

BATCH_SIZES = (1, 10, 100, 1000)
"""By these numbers of writes batches are counted apart."""
MESSAGE_AGES = (0.1, 1.0, 10.0, 60.0)
"""By these seconds messages are counted apart that were fetched."""


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
    """Seconds that the pass took: the three below, and what it waited for transports that it had
    told to disconnect."""
    checking: float = 0.0
    """Seconds until every transport had said whether it is connected, or had had its time."""
    refreshing: float = 0.0
    """Seconds until the database had said what it knows of the rows, and what was missing was
    removed or restored."""
    sweeping: float = 0.0
    """Seconds for deleting what is left of removed sessions, the stamp, and the sweep."""


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
    """Sessions that passes have removed, for their transports said that they are disconnected."""
    removed_missing: int
    """Sessions that passes have removed, for their rows were gone, or another worker's."""
    removals: Mapping[RemovalReason, int]
    """Sessions that have ended here since the opening, by why, whatever has ended them; each
    reason is there. Those that ``missing`` counts have no mark: see `taken_over` for the others."""
    restored: int
    expired: int
    check_failures: int
    refresh_failures: int
    disconnect_failures: int
    """``disconnect()`` calls that raised or timed out."""
    write_failures: int
    """Writes that the database did not carry out: it was away, or refused the row for too long."""
    sweep_failures: int
    """Sweeps that did not come to their end."""
    listener_failures: int
    """Calls of ``on_removed`` that raised or timed out."""
    batches: int
    """Batches of writes that the database has carried out."""
    writes: int
    """Writes in them."""
    batches_by_size: tuple[int, ...]
    """``batches``, by how many writes they had: at most 1, 10, 100, 1000, more."""
    stuck_calls: int
    """Calls into transports that ignore their cancellation and still run."""
    messages_in_memory: int
    """Messages to sessions held here that wait in memory for their inbox to be read."""
    messages_dropped: int
    """Messages dropped by ``message_ttl``, or with the removal of their session."""
    topic_messages_dropped: int
    """Messages of topics that a subscriber here was too slow for: the oldest go first."""
    messages_kept: int
    """Messages sent here that went straight to the inbox of a session of this worker."""
    messages_stored: int
    """Messages sent here that were stored in the database, for whichever worker."""
    messages_fetched_by_age: tuple[int, ...]
    """Messages that were fetched from the database, by how many seconds they had waited there: at
    most 0.1, 1, 10, 60, longer. One that is delivered again counts again."""
    stuck_tasks: int
    """Respond tasks of removed sessions that ignore their cancellation and still run; only
    `trio_sessions.aio` has such tasks."""
    operations_running: int
    """Tokens of the limiter that are borrowed now."""
    operations_waiting: int
    """Database operations that wait for a token."""
    operations_limit: int
    """Tokens of the limiter, ``max_concurrent``."""
    connections_in_use: int | None
    """Connections of the store's pool that are lent now; None: it has no pool, or none that can be
    asked. One that waits for messages is none of the pool's."""
    connections_idle: int | None
    """Connections that lie idle in the pool; None: likewise."""
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
    unknown_transport: float
    """Seconds since a transport that is still held has begun not to say whether it is connected, as
    the passes have seen it; of several the longest. 0.0: in the last pass every one said so."""
    unknown_row: float
    """The same for rows: seconds since the database has begun not to say whether one is there."""
    bell_alive: bool | None
    """Whether the worker hears at once what others have for it, else at its next look; None: it
    has not begun to listen, for nothing here reads messages."""
    loop_lag: float | None
    """Seconds: the longest delay of a task in the last ten seconds; None: not measured yet, which
    begins with the first call on the registry's own thread."""
