"""`SessionRegistry` for asyncio: its methods as coroutines. Over 400 lines, most are docstrings."""

import asyncio
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, TypeVarTuple

from trio_sessions._handlers import Handler
from trio_sessions._logging import get_logger
from trio_sessions._mail import Reader
from trio_sessions._registry import SessionRegistry as TrioRegistry
from trio_sessions._settings import Settings
from trio_sessions.abc import SessionStore, Transport
from trio_sessions.aio._adapters import AdapterMethods
from trio_sessions.aio._generate import binding
from trio_sessions.aio._inbox import AsyncioInbox
from trio_sessions.aio._life import State
from trio_sessions.aio._owners import OwnerMethods
from trio_sessions.aio._reading import AsyncioReader
from trio_sessions.aio._service import Service, running_loop
from trio_sessions.aio._waiting import wait_out
from trio_sessions.errors import RegistryClosed
from trio_sessions.limits import NO_LIMITS, Limits
from trio_sessions.stores import resolve_store
from trio_sessions.types import CleanupReport, OnRemoved, check_session_id, fingerprint

if TYPE_CHECKING:
    import sqlalchemy

__all__ = ["SessionRegistry"]

logger = get_logger("trio_sessions.aio")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SessionRegistry(OwnerMethods, AdapterMethods):
    """The sessions of one worker of an asyncio program; a Trio core does the work.

    It may be built at import time, before a fork and without a loop. `initialize` and
    `shutdown`, or ``async with``, begin and end it on the running loop, which may be
    asyncio's own, uvloop's, or one of trio-asyncio.

    Calls about one session are begun, and what they write is written, in the order of the calls.

    Every ``async`` method here is a coroutine function of **asyncio**, to be awaited on
    that loop, and raises what the same method of `trio_sessions.SessionRegistry` does. Methods
    that only look at the sessions held here never wait and never cross to Trio. The others are
    cancelled with their caller, who then waits until the Trio side has ended; what a
    cancellation leaves behind is what that method of `trio_sessions.SessionRegistry` says.

    Args:
        store: as for `trio_sessions.open_registry`.
        settings: as for `trio_sessions.open_registry`, with the same defaults; ``handlers`` and the
            methods of transports are coroutine functions of asyncio, the former async generator
            functions, too; they run on the loop of `initialize`.

    Raises:
        TypeError, ValueError, MissingDependency: as `trio_sessions.open_registry`.
        RegistryClosed: by every method, before `initialize`, after `shutdown`, and after a crash.
        InvalidSessionId: by every method that takes a ``session_id`` that cannot be one.
    """

    def __init__(
        self,
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
    ) -> None:
        self._settings = Settings(
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
        self._store = resolve_store(store)
        self._service: Service | None = None
        self._claiming = threading.Lock()
        self._turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    # ---- lifetime ----

    async def initialize(self) -> None:
        """Open the registry on the running loop; harmless if it is open there already.

        Returns once the first pass has run.

        Raises:
            StoreUnavailable, StoreSchemaError: as on entering `trio_sessions.open_registry`.
            RuntimeError: it is open, or is just being opened, on another loop; the loop goes on
                in another thread; or Trio runs in this thread already.

        Cancellation: nothing stays open.
        """
        async with self._my_turn():
            if self._service is not None and self._service.life.has_ended:
                await self._finish_closing()
            service = self._claim(running_loop())
            if service.life.state is State.OPENING:
                await service.open()

    def _claim(self, loop: asyncio.AbstractEventLoop) -> Service:
        """Take the registry for this loop, in one step: others may do so in other threads."""
        with self._claiming:
            service = self._service
            if service is None or service.is_over:
                service = self._service = Service(loop, self._store, self._settings)
            service.check_loop()
            return service

    async def shutdown(self) -> None:
        """Close the registry, as leaving `trio_sessions.open_registry` does; harmless twice.

        It may be initialized again afterwards.

        Cancellation: it goes on, in bounded time, and the cancellation is raised at its end.
        """
        if self._service is not None and self._service.is_inherited:
            return  # its parent's to close; and asyncio finds no running loop after a fork
        turn, cancelled = self._my_turn(), None
        try:
            await wait_out(turn.acquire)
        except asyncio.CancelledError as exc:  # it is our turn all the same
            cancelled = exc
        try:
            service = self._service
            if service is not None and not (service.is_inherited or service.life.has_ended):
                service.check_on_loop()
                service.respond_tasks.spare_current()
            await self._finish_closing()
        finally:
            turn.release()
        if cancelled is not None:
            raise cancelled

    async def _finish_closing(self) -> None:
        """Close what is open, or wait until what has ended is closed."""
        service = self._service
        if service is not None and not service.is_inherited and service.is_on_running_loop():
            await service.close()

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    def _my_turn(self) -> asyncio.Lock:
        """Return the lock of the running loop: one initializes or shuts down at a time."""
        loop = running_loop()
        with self._claiming:
            return self._turns.setdefault(loop, asyncio.Lock())

    def _has_closed(self) -> bool:
        """Say whether it was open, and was shut down."""
        service = self._service
        return service is not None and not service.is_inherited and service.life.was_shut_down

    def _opened(self) -> Service:
        service = self._service
        if service is not None and service.is_open:
            return service
        if service is None or service.is_inherited or service.life.state is State.OPENING:
            raise RegistryClosed(
                "the registry is not open: await registry.initialize() first, "
                "or use `async with registry:`"
            )
        raise service.cut_off()

    async def _call(self, method: Callable[[TrioRegistry, *Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await a method of the Trio registry."""
        loop = running_loop()
        service = self._service
        if service is None or not service.is_open:
            if service is not None and service.life.has_ended and service.loop is loop:
                raise await service.why_ended()
            service = self._opened()
        service.check_loop()
        try:
            about = str(args[0]) if args else None
            return await service.crossing.call(method, service.core, *args, about=about)
        except RegistryClosed as exc:
            service.life.go(State.FAILING)  # the core has ended, and nobody has asked it to
            if exc.__cause__ is not None:
                raise
        raise await service.why_ended()

    # ---- sessions ----

    @property
    def worker_id(self) -> str:
        """This worker, as the other workers see it; another one after each `initialize`."""
        return self._opened().core.worker_id

    async def add_session(
        self,
        session_id: str,
        transport: Transport,
        *,
        owner: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold ``session_id``; see `trio_sessions.SessionRegistry.add_session`."""
        service = self._opened()
        running_loop()
        service.respond_tasks.spare_current()
        add = partial(TrioRegistry.add_session, owner=owner, data=data)
        await self._call(add, session_id, transport)

    async def get_session(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None. Does not wait."""
        return self.get_session_sync(session_id)

    def get_session_sync(self, session_id: str) -> Transport | None:
        """Return the transport of a session held here, else None."""
        return self._opened().core.get_session_sync(session_id)

    async def remove_session(self, session_id: str, *, transport: Transport | None = None) -> None:
        """End a session held here; see `trio_sessions.SessionRegistry.remove_session`.

        With a transport only if this very one still holds it, in one step.

        The tasks tied to it by `register_respond_task` are cancelled and awaited, within
        ``disconnect_timeout``; but not one that calls this itself. After `shutdown` there is
        nothing to end, and nothing is raised: streams that are still open then may call this.
        """
        if self._has_closed():
            return
        service = self._opened()
        is_next = service.crossing.is_next(session_id)
        if not is_next and service.core.get_session_sync(session_id) is None:
            return
        running_loop()
        service.respond_tasks.spare_current()
        await self._call(partial(TrioRegistry.remove_session, transport=transport), session_id)

    def _here(self) -> Service:
        service = self._opened()
        service.check_loop()
        return service

    def touch(self, session_id: str) -> None:
        """Note that a session was heard of; see `trio_sessions.SessionRegistry.touch`."""
        self._here().core.touch(session_id)

    async def session_exists(self, session_id: str) -> bool | None:
        """Say whether any worker holds the session: True, False, or None, not verifiable.

        Does not wait for a session that is held here. None after `shutdown`, too.
        """
        if self._has_closed():
            check_session_id(session_id)
            return None
        if self.get_session_sync(session_id) is not None:
            return True
        return await self._call(TrioRegistry.session_exists, session_id)

    async def get_all_session_ids(self) -> list[str]:
        """Return the ids of the sessions held here, in the order they were added."""
        return self._opened().table.ids()

    async def locate_session(self, session_id: str) -> str | None:
        """Return the ``worker_id`` that holds the session, None if there is none.

        Raises:
            StoreUnavailable: the session is not held here and the database cannot say.
        """
        if self.get_session_sync(session_id) is not None:
            return self.worker_id
        return await self._call(TrioRegistry.locate_session, session_id)

    # ---- messages ----

    async def broadcast(self, session_id: str, message: Any, *, durable: bool = False) -> None:
        """Send a message to a session, wherever it is held.

        One to a session held here, with room in its inbox, does not wait and does not cross.
        It raises what `trio_sessions.SessionRegistry.broadcast` does.
        """
        running_loop()
        service = self._here()
        goes_behind = durable or service.crossing.is_next(session_id)
        payload = service.core._take_in(session_id, message, durable=goes_behind)  # noqa: SLF001 -- the two halves of `broadcast`, which both facades share
        if payload is not None:
            send = partial(TrioRegistry._send, durable=durable)  # noqa: SLF001 -- see above
            await self._call(send, session_id, payload)

    def open_inbox(self, session_id: str) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Open the inbox of a session that is held here, for one consumer at a time.

        To be used as `trio_sessions.SessionRegistry.open_inbox`, by ``async with`` and
        ``async for`` of asyncio. A message that is there already is handed out without a
        crossing.
        """
        return self._reader(session_id, streams=True)

    def _reader(self, session_id: str, *, streams: bool) -> AsyncioInbox:
        service = self._opened()
        check_session_id(session_id)
        reader = service.core._reader(session_id, streams=streams)  # noqa: SLF001 -- both facades share it
        return AsyncioInbox(reader, service)

    # ---- cleanup ----

    async def cleanup(self) -> CleanupReport:
        """Run one pass now, or join the one that is running, and return its report.

        Cancellation: the pass goes on; others may have joined it.
        """
        return await self._call(TrioRegistry.cleanup)

    def _read(self, make: Callable[[TrioRegistry], Reader]) -> AsyncioReader:
        service = self._opened()
        return AsyncioReader(make(service.core), service)

    def _core(self) -> TrioRegistry:
        service = self._opened() if self._service is None else self._service
        return service.core

    # ---- responding ----

    async def respond(self, server_id: str | None, user: Any, session_id: str) -> None:
        """Await `generate_response` for each message of a session, until it is removed.

        What `generate_response` raises is logged, its message counts as handled, and the
        next one follows. If the session is not held here (any more), this returns at once.

        Args:
            server_id: handed on to `generate_response`.
            user: handed on to `generate_response`, as it is.
            session_id: a session that is held here.

        Raises:
            TypeError: `generate_response` was overridden by what takes the four in no way.

        Cancellation: the message that is being answered is delivered again to the session's
        next inbox.
        """
        transport = self.get_session_sync(session_id)
        generate = binding(self.generate_response)
        if transport is None:
            return
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        async with self._reader(session_id, streams=False) as inbox:
            async for message in inbox:
                try:
                    await generate(message, transport, server_id, user)
                except (Exception, asyncio.CancelledError) as exc:  # of the user's; logged
                    # What was cancelled may be what it awaited, and not this task.
                    if isinstance(exc, asyncio.CancelledError) and (
                        task.cancelling() > cancellations
                    ):
                        raise
                    logger.exception(
                        "a message to session %s failed, the next one follows",
                        fingerprint(session_id),
                    )

    async def generate_response(
        self, message: Any, transport: Any, server_id: str | None, user: Any
    ) -> None:
        """Answer one message: override this, in a subclass or on the instance.

        An override is called by these names, be they keyword-only; one that names them
        otherwise is called by position, as far as its names differ. `respond` looks once.

        By default the message is handed to the transport, ``await transport.send(message)``.

        Args:
            message: the JSON value that was sent.
            transport: the session's transport.
            server_id: as given to `respond`.
            user: as given to `respond`.
        """
        send = getattr(transport, "send", None)
        if send is None:
            raise TypeError(
                f"{type(transport).__name__} has no async method send(): "
                "override generate_response() to say what becomes of a message"
            )
        await send(message)

    def register_respond_task(self, session_id: str, task: "asyncio.Task[Any]") -> None:
        """Tie a task to a session: it is cancelled and awaited when the session is removed.

        Whatever removes the session, the task gets ``disconnect_timeout`` to end; one that
        goes on is counted as ``stuck_tasks`` in `statistics`. If the session is not held
        here (any more), the task is cancelled at once. A task that ends earlier is forgotten.

        Raises:
            TypeError: ``task`` is no `asyncio.Task`.
            RuntimeError: called elsewhere than on the loop that called `initialize`.
        """
        if not isinstance(task, asyncio.Task):
            raise TypeError(f"task must be an asyncio.Task, not {type(task).__name__}")
        if self._service is not None and self._service.life.has_ended:
            task.cancel()
        service = self._here()
        check_session_id(session_id)
        entry = service.table.get(session_id)
        if entry is not None:
            service.respond_tasks.tie(entry, task)
        else:
            service.end_task(task)
