"""A session registry for gateways on Trio.

A session is removed only when its transport says that it is disconnected, or the
database has confirmed that its row is gone. Whatever is unknown is kept.

Layers, lower never imports higher (checked by import-linter)::

    cli | aio | mcp          for operators, for programs on asyncio, for servers of MCP
    testing, transports, otel  use the public names
    _otel_metrics, _otel_spans  which metrics there are; spans
    _open, _keeper           opening and closing; the task that holds a registry open
    _registry                what users call
    _adapters                what of it is for adapters of protocols
    _operators               what of it is about all workers
    _house                   the parts of one registry, put together
    _moves | _hearsay        what other workers tell: of sessions that moved, of what they changed
    _passes                  when a pass runs
    _cleanup | _pacing       what a pass does
    _verdicts, _tally        what answers mean for sessions; what a pass has done
    _brake | _portions       masses that are missing at once; how much is asked for at once
    _strays | _stamping      rows that no session has; stamps between the passes
    _restoring               what a new history means for the sessions
    _sessions                what has to happen when a session comes or goes
    _draining                sessions that leave for another worker
    _revoking                sessions that somebody has ended for good
    _leaving                 sessions on their way out
    _topics | _workers       what is said to all workers, and asked of them
    _messages | _owners      their messages, one room; owners and capabilities
    _session_data | _logs    their data; what is appended to them
    _adopting                sessions that are taken from a worker that is dead
    _mail | _inspection      topics and calls between workers, one room; what operators ask
    _saying                  how what is said of a session goes to the store, and where it waits
    _claims                  the rows of the sessions held here
    _writer | _departures    all that is written; what removed sessions have left behind
    _undecided               adoptions whose sessions may have a row before they are held
    _posting | _listening    letters to other workers on their way; the bell
    _histories | _lines      a worker's histories, begun and begun anew; what waits to be written
    _edge | _orders | _calls the edges: to the store, to transports; one write and its answer
    _questions               what a store is asked at the gate
    _asking                  how a store is asked: with a deadline, at a gate
    _persisting              work that goes on through outages
    _rounds | _counters      one method called on many transports
    _contact, _lag           whether the store answers; how late the loop is
    _unknown                 for how long something of a session is unknown
    _witness | _estimate     whether the database has forgotten nothing; what its clock may say
    _admission, _limiting    who may come in; who has been here for too long
    _table | stores          siblings
    _farewell | _running     what is said when a session has ended; calls into transports that wait
    _entry                   one session, and what is known of its row
    abc, _settings           contracts, settings
    _handlers                what other workers may call
    _pending                 what is said of a session, until it is written with its row
    _background, _one_call   tasks; one call of a transport's method
    _tracing                 who is told of what the registry does
    inspection, _json        what operators are told; encoding
    writes, _process, _forked_run, _interrupts, _library  what is written; forks, Ctrl-C
    _life                    the phase in which a registry is, from its opening to its end
    _logging                 of which worker a log record is
    types, errors, _version  values
    _reports                 of them: what a registry says of itself
"""

from typing import TYPE_CHECKING

from trio_sessions._logs import Appending, Logs
from trio_sessions._open import open_registry, serve_registry
from trio_sessions._registry import SessionRegistry
from trio_sessions._topics import Topics
from trio_sessions._workers import Workers
from trio_sessions.abc import SessionStore, Transport
from trio_sessions.errors import (
    CallFailed,
    InvalidSessionId,
    MessageTooLarge,
    MissingDependency,
    NotSupported,
    OperationTooLong,
    RegistryClosed,
    RegistryDraining,
    RowLocked,
    RowUnavailable,
    SessionNotFound,
    SessionRevoked,
    SessionsError,
    StoreInUse,
    StoreSchemaError,
    StoreUnavailable,
    TooManySessions,
    WorkerGone,
)
from trio_sessions.inspection import SessionInfo, WorkerInfo, WorkerState
from trio_sessions.limits import Limits
from trio_sessions.types import (
    CleanupReport,
    DrainReport,
    LogEntry,
    RegistryHealth,
    RegistryStatistics,
    RemovalReason,
    fingerprint,
)

__all__ = [
    "Appending",
    "CallFailed",
    "CleanupReport",
    "DrainReport",
    "InvalidSessionId",
    "Limits",
    "LogEntry",
    "Logs",
    "MessageTooLarge",
    "MissingDependency",
    "NotSupported",
    "OperationTooLong",
    "RegistryClosed",
    "RegistryDraining",
    "RegistryHealth",
    "RegistryStatistics",
    "RemovalReason",
    "RowLocked",
    "RowUnavailable",
    "SessionInfo",
    "SessionNotFound",
    "SessionRegistry",
    "SessionRevoked",
    "SessionStore",
    "SessionsError",
    "StoreInUse",
    "StoreSchemaError",
    "StoreUnavailable",
    "TooManySessions",
    "Topics",
    "Transport",
    "WorkerGone",
    "WorkerInfo",
    "WorkerState",
    "Workers",
    "fingerprint",
    "open_registry",
    "serve_registry",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return ``__version__``, which is looked up in files: not at each import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from trio_sessions._version import version

        return version()
