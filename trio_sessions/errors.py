"""The errors, named by whose fault they are; all descend from `SessionsError`."""

from typing import TypeVar, cast

__all__ = [
    "CallFailed",
    "InvalidSessionId",
    "MessageTooLarge",
    "MissingDependency",
    "NotSupported",
    "OperationTooLong",
    "RegistryClosed",
    "RegistryDraining",
    "RowDoubtful",
    "RowLocked",
    "RowUnavailable",
    "SessionNotFound",
    "SessionRevoked",
    "SessionsError",
    "StoreInUse",
    "StoreSchemaError",
    "StoreUnavailable",
    "TooManySessions",
    "WorkerGone",
    "bare",
]

E = TypeVar("E", bound=BaseException)


class SessionsError(Exception):
    """The root of every error that this package raises on purpose."""


class StoreUnavailable(SessionsError):
    """The store could not say, or could not confirm that it did what was asked.

    The driver's error is kept as ``__cause__``. A write that ends in this error may
    or may not have happened; every write of a store is safe to repeat.

    Attributes:
        did_nothing: nothing of what was asked for was carried out, or will be: no connection
            was to be had, or the database has said no. A store that can tell should set it: after
            an outage in which nothing reached the database, its rows are evidence at once.
    """

    did_nothing: bool = False

    def __init__(self, *args: object, did_nothing: bool = False) -> None:
        super().__init__(*args)
        if did_nothing:
            self.did_nothing = True


class RowUnavailable(StoreUnavailable):
    """The error belongs to single rows and not to the connection.

    A store answers a single write of a batch with it where it can tell whose row it is, as
    with a lock. It raises it from an operation on many rows when the same operation on fewer
    rows could succeed: a deadlock, a constraint or trigger that refuses a row. Whoever asked
    then asks again in halves, so that one bad row costs only itself.
    """


class OperationTooLong(StoreUnavailable):
    """The store was reached, and the operation was ended because it took too long.

    The same on fewer rows could succeed. The pass asks for fewer then, at once and from then on.
    """


class RowLocked(RowUnavailable):
    """Another transaction was in the way, or both in each other's: nothing is wrong with the row.

    Whoever asked may ask for the same again, after a pause.
    """


class RowDoubtful(RowUnavailable):
    """There is no such row, and the store may have forgotten it: it was restored or replaced.

    Until every worker has had the time to write its rows anew, nobody can say more.
    """


class NotSupported(SessionsError, NotImplementedError):
    """The store lacks the part of the contract that this call needs; nothing else is amiss."""


class StoreInUse(StoreUnavailable, RuntimeError):
    """The store may not be opened here, and the message says what to do.

    Another Trio run, or event loop, of this process has it open: a store belongs to one run at
    a time, which several registries may share. Or it is on an SQLite file that was open when
    this process was forked.
    """


class StoreSchemaError(SessionsError):
    """The database is not as the store needs it; nothing was altered.

    It has tables of our names that are not our tables, or in which two ids may be one, or tables of
    an older version that nobody has said to upgrade, or of a later one; or the role lacks a right,
    is not shown all rows, or has a setting under which the store would go wrong.
    The message names it, and says what to do.
    """


class SessionNotFound(SessionsError, LookupError):
    """The store has confirmed that no worker holds the session.

    From `SessionRegistry.open_inbox` and `SessionRegistry.respond`: this worker does not hold
    it; another one may.
    """


class InvalidSessionId(SessionsError, ValueError):
    """A session id must be a `str` of 1 to 255 characters, valid as UTF-8, without NUL."""


class MessageTooLarge(SessionsError, ValueError):
    """A message, encoded, is larger than ``max_message_bytes``."""


class RegistryClosed(SessionsError):
    """The registry is closed or closing, and the call would change something, or ask the store."""


class RegistryDraining(SessionsError):
    """The worker is being drained: it takes no new sessions, another one may."""


class TooManySessions(SessionsError):
    """A limit does not let another session in; nothing was written. The message names it."""


class SessionRevoked(SessionsError):
    """The session was revoked, and its id is refused for ``limits.revocation_ttl``."""


class WorkerGone(SessionsError):
    """The worker that was called does not live: it has closed, or has missed three stamps."""


class CallFailed(SessionsError):
    """What was called at another worker raised, is not there, or has been lost on the way.

    The message says which: of an exception it has type and text; the traceback is in the log of
    the worker that was called.
    """


class MissingDependency(SessionsError, ImportError):
    """An optional package is missing; the message names the extra that brings it."""


def bare(error: E) -> E:
    """Take off the groups that nurseries of ours have put around a single error."""
    bared: BaseException = error
    while isinstance(bared, BaseExceptionGroup) and len(bared.exceptions) == 1:
        bared = bared.exceptions[0]
    return cast("E", bared)
