"""Opening and closing: from a store and settings to a running registry, and back."""

import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_sessions._calls import TransportCalls, TrioHost
from trio_sessions._edge import Edge
from trio_sessions._forked_run import part_on_fork
from trio_sessions._handlers import Handler
from trio_sessions._interrupts import Uninterrupted
from trio_sessions._keeper import Keeper
from trio_sessions._library import check_trio
from trio_sessions._life import Life
from trio_sessions._registry import SessionRegistry
from trio_sessions._settings import Settings
from trio_sessions._table import LocalTable
from trio_sessions._witness import Witness
from trio_sessions.abc import SessionStore, Worker
from trio_sessions.errors import bare
from trio_sessions.limits import NO_LIMITS, Limits
from trio_sessions.stores import resolve_store
from trio_sessions.types import OnRemoved

if TYPE_CHECKING:
    import sqlalchemy

__all__ = ["open_registry", "open_with", "serve_registry"]


def open_registry(
    store: "SessionStore | sqlalchemy.Engine | sqlalchemy.URL | str" = "memory:",
    *,
    worker_id: str | None = None,
    session_ttl: float = 3600.0,
    message_ttl: float = 600.0,
    cleanup_interval: float = 300.0,
    max_concurrent: int = 20,
    batch_size: int = 1000,
    check_timeout: float = 5.0,
    disconnect_timeout: float = 5.0,
    max_message_bytes: int = 1_048_576,
    store_timeout: float = 30.0,
    mass_missing_brake: float = 0.5,
    limits: Limits = NO_LIMITS,
    worker_data: Mapping[str, Any] | None = None,
    handlers: Mapping[str, Handler] | None = None,
    mail_sockets: str | os.PathLike[str] | None = None,
    on_removed: OnRemoved | None = None,
    migrate: bool = False,
) -> AbstractAsyncContextManager[SessionRegistry]:
    """Open a registry for the length of an ``async with`` block.

    The first pass has run when the block begins; further ones follow every
    ``cleanup_interval``. Leaving the block ends them, disconnects every transport held,
    deletes this worker's rows and gives the database connections back: in bounded time,
    also when the database is away or the surrounding scope is cancelled. What the block
    raises comes out as it is, not inside an exception group. A process that is forked in the
    block leaves it without touching anything: sessions and rows are its parent's.

    Workers of one database may have different settings: a worker's lease is as long as its own
    ``session_ttl``. Where they are far apart, an outage may be too short to be noticed, and too
    long for the shorter one; docs/explanation.md says how far.

    Args:
        store: ``"memory:"``, a database URL (``sqlite:///file.db``,
            ``postgresql+psycopg://user:pw@host/db``), an engine (left usable, never
            disposed), or a `SessionStore`.
        worker_id: the name other workers see; by default a fresh one from host, process
            and chance, made when the block is entered.
        session_ttl: seconds after which a worker that was not stamped, or of which no pass has
            ended, has lost its lease: others sweep the rows of its sessions.
        message_ttl: seconds after which an undelivered message is dropped.
        cleanup_interval: seconds between the starts of two passes, less a jitter of up
            to a tenth; at most half of ``session_ttl``.
        max_concurrent: database operations, and so threads, at a time. The stamp that keeps the
            lease has a thread and a connection beside these, or for a moment two.
        batch_size: sessions refreshed by one statement.
        check_timeout: seconds for one transport's ``is_connected()``.
        disconnect_timeout: seconds for one transport's ``disconnect()``.
        max_message_bytes: the size of one message, encoded.
        store_timeout: seconds for one operation of the store. A store on a database
            bounds itself well below that; this is for stores that do not.
        mass_missing_brake: a share, 0.0 to 1.0. Where more than this share of the rows that a
            pass has an answer for, and at least ten, are newly gone without another holder,
            their sessions are kept until the next pass, and removed only if their rows are
            missing in that one, too. 1.0 turns it off.
        limits: how many sessions this worker takes, and when it ends some by itself; see `Limits`.
        worker_data: a JSON object of at most 65,536 bytes that other workers may read, an address
            for instance; see `SessionRegistry.workers`.
        handlers: what other workers may call, by name: async functions of one JSON value, which
            return one, and async generator functions, for streams; see `Workers.call`.
        mail_sockets: a folder, the same for the workers of one host: there they listen on Unix
            sockets of this user, and what they say to each other needs no database. It is made
            if there is none, may be written to by nobody else, and its path has at most 76 bytes.
            Other workers, and those that do not listen there, are reached by the database.
        on_removed: an async function of a session's id and a `RemovalReason`, called when a
            session has ended here and its transport was disconnected, at most once for each, and
            several at a time. It gets ``disconnect_timeout``, what it raises is logged. It is not
            called when a session is added again here with another transport: the session goes on.
        migrate: bring the database's schema up to this version, if it is an older one, when the
            block is entered, under a lock. Without it an older schema is refused. Stores that
            have no schema do not look at it.

    Raises:
        TypeError, ValueError: at the call: a setting is wrong; the message names it.
        MissingDependency: at the call: the URL needs a driver that is not installed.
        StoreUnavailable: on entering: the database cannot be reached.
        NotSupported: on entering: there are ``handlers``, and the store keeps no mail.
        StoreInUse: on entering: another Trio run has this very store object open.
        StoreSchemaError: on entering: its tables are not ours, or are those of an older version
            and ``migrate`` was not said; the message names the command that upgrades them.

    Cancellation: entering and leaving are checkpoints; leaving is shielded and bounded.
    Ctrl-C arrives at checkpoints only, and comes out bare; leaving goes on to its end, also
    when there are more of them.
    """
    settings = Settings(
        worker_id=worker_id,
        session_ttl=session_ttl,
        message_ttl=message_ttl,
        cleanup_interval=cleanup_interval,
        max_concurrent=max_concurrent,
        batch_size=batch_size,
        check_timeout=check_timeout,
        disconnect_timeout=disconnect_timeout,
        max_message_bytes=max_message_bytes,
        store_timeout=store_timeout,
        mass_missing_brake=mass_missing_brake,
        limits=limits,
        worker_data=worker_data,
        handlers=handlers,
        mail_sockets=mail_sockets,
        on_removed=on_removed,
        migrate=migrate,
    )
    return open_with(resolve_store(store), settings)


@trio.lowlevel.enable_ki_protection
async def serve_registry(
    store: "SessionStore | sqlalchemy.Engine | sqlalchemy.URL | str" = "memory:",
    *,
    worker_id: str | None = None,
    session_ttl: float = 3600.0,
    message_ttl: float = 600.0,
    cleanup_interval: float = 300.0,
    max_concurrent: int = 20,
    batch_size: int = 1000,
    check_timeout: float = 5.0,
    disconnect_timeout: float = 5.0,
    max_message_bytes: int = 1_048_576,
    store_timeout: float = 30.0,
    mass_missing_brake: float = 0.5,
    limits: Limits = NO_LIMITS,
    worker_data: Mapping[str, Any] | None = None,
    handlers: Mapping[str, Handler] | None = None,
    mail_sockets: str | os.PathLike[str] | None = None,
    on_removed: OnRemoved | None = None,
    migrate: bool = False,
    task_status: "trio.TaskStatus[SessionRegistry]" = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Serve a registry until cancelled: ``registry = await nursery.start(serve_registry, store)``.

    The arguments and errors are those of `open_registry`; settings go in by
    `functools.partial`. The registry is reported by ``task_status`` once its first pass
    has run.

    Cancellation: the only way to end it; it closes the registry first.
    """
    opening = open_registry(
        store,
        worker_id=worker_id,
        session_ttl=session_ttl,
        message_ttl=message_ttl,
        cleanup_interval=cleanup_interval,
        max_concurrent=max_concurrent,
        batch_size=batch_size,
        check_timeout=check_timeout,
        disconnect_timeout=disconnect_timeout,
        max_message_bytes=max_message_bytes,
        store_timeout=store_timeout,
        mass_missing_brake=mass_missing_brake,
        limits=limits,
        worker_data=worker_data,
        handlers=handlers,
        mail_sockets=mail_sockets,
        on_removed=on_removed,
        migrate=migrate,
    )
    async with opening as registry:
        task_status.started(registry)
        await trio.sleep_forever()
    raise AssertionError("unreachable: sleep_forever only ends by an exception")


def _fresh_worker_id() -> str:
    return f"{socket.gethostname()[:200]}-{os.getpid()}-{secrets.token_hex(4)}"


def open_with(
    store: SessionStore,
    settings: Settings,
    *,
    table: LocalTable | None = None,
    calls: TransportCalls | None = None,
) -> AbstractAsyncContextManager[SessionRegistry]:
    """Open a registry on parts that have been checked; see `open_registry`.

    Args:
        store: the store.
        settings: the settings.
        table: where to hold the sessions, for who wants to look into it.
        calls: how transports are called.
    """
    return Uninterrupted(
        _open(
            store,
            settings,
            LocalTable() if table is None else table,
            TransportCalls(TrioHost()) if calls is None else calls,
        )
    )


@asynccontextmanager
async def _open(
    store: SessionStore, settings: Settings, table: LocalTable, calls: TransportCalls
) -> AsyncIterator[SessionRegistry]:
    check_trio()
    worker = Worker(
        worker_id=settings.worker_id or _fresh_worker_id(),
        incarnation=secrets.token_hex(8),
        limiter=trio.CapacityLimiter(settings.max_concurrent),
        migrate=settings.migrate,
    )
    witness = Witness()
    life = Life()
    edge = Edge(store, worker, witness, settings, life)
    keeper = Keeper(
        table=table, calls=calls, edge=edge, witness=witness, life=life, settings=settings
    )
    body_error: BaseException | None = None
    crash: BaseException | None = None
    try:
        part_on_fork()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.keep, nursery)
            try:
                yield await keeper.opened()
            except BaseException as exc:  # noqa: BLE001 -- kept from the nursery, which would wrap it; raised below
                body_error = exc
                if not keeper.is_open:
                    nursery.cancel_scope.cancel()
            finally:
                keeper.stop()
    except BaseExceptionGroup as group:
        crash = group.split(trio.Cancelled)[1]  # of whoever has cancelled the block, too
    if crash is not None:
        raise _summary(crash, body_error)
    if body_error is not None:
        raise body_error


def _summary(crash: BaseException, body_error: BaseException | None) -> BaseException:
    """Return what comes out when the background has crashed, or Ctrl-C came while it closed."""
    bared = bare(crash)
    errors = list(bared.exceptions) if isinstance(bared, BaseExceptionGroup) else [bared]
    errors = [bare(error) for error in errors]
    # The crash cancelled the block, so a Cancelled is no news.
    if body_error is not None and not isinstance(body_error, trio.Cancelled):
        errors.append(body_error)
    for error in errors:
        if isinstance(error, KeyboardInterrupt):  # it ends the program, whatever else there is
            error.__cause__ = next((other for other in errors if other is not error), None)
            return error
    if len(errors) == 1:
        return errors[0]
    return BaseExceptionGroup("the registry crashed", errors)
