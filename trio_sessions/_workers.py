"""The other workers: who they are, and what can be asked of them."""

from collections.abc import Mapping
from typing import Any

from trio_sessions._checks import a_name, seconds
from trio_sessions._edge import Edge
from trio_sessions._histories import Histories
from trio_sessions._interrupts import uninterrupted
from trio_sessions._library import check_trio
from trio_sessions._mail import Mail, Stream
from trio_sessions._settings import encode_worker_data
from trio_sessions.inspection import WorkerInfo

__all__ = ["Workers"]


@uninterrupted
class Workers:
    """The workers of one database, as `SessionRegistry.workers`."""

    def __init__(self, edge: Edge, histories: Histories, mail: Mail) -> None:
        """Not for users."""
        self._edge = edge
        self._histories = histories
        self._mail = mail

    async def list(self) -> list[WorkerInfo]:
        """Return the workers that the database knows, the oldest first; this one is among them.

        One round trip. A worker that has closed is not there any more; one that has died is
        *late* after three stamps, *gone* after its ``session_ttl``, and not there after the sweep.

        Raises:
            StoreUnavailable: the database cannot say.
            RegistryClosed: the registry is closed.
        """
        check_trio()
        return await self._edge.inspect(lambda store, worker: store.list_workers(worker), list)

    async def set_data(self, data: Mapping[str, Any]) -> None:
        """Replace what this worker tells the others of itself, as an address.

        Args:
            data: a JSON object of at most 65,536 bytes.

        Raises:
            TypeError, ValueError: JSON cannot carry it.
            MessageTooLarge: it is too large.
            StoreUnavailable: the database is away, and may have been told or not: ask again.
            RegistryClosed: the registry is closed.

        Cancellation: it may or may not have been replaced; whoever leaves waits for a thread that
        is at work on it, so that it does not land behind what is said next.
        """
        check_trio()
        await self._histories.announce(data=encode_worker_data("data", data))

    async def call(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> Any:
        """Call a handler of a worker, and return its answer.

        The handler is one of ``handlers`` of that worker's `trio_sessions.open_registry`. It is
        called at most once. This worker may be called, too, which needs no database. A worker
        that collects no letters is not there for calls: it has no handlers, reads no messages,
        has subscribed to nothing and called nobody.

        Args:
            worker_id: the worker, or one incarnation of it; of several that have the id, the one
                that began last. This worker's own id means itself.
            name: the handler's name.
            payload: any JSON value, of at most ``max_message_bytes``.
            timeout: seconds for all of it; then the handler is cancelled.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
            MessageTooLarge: the payload is too large.
            CallFailed: the handler raised, there is none of this name, the worker is busy, or the
                answer was lost. The message says which; the traceback is in that worker's log.
            WorkerGone: no such worker lives, or it has died or closed meanwhile; the handler may
                have run.
            TimeoutError: there was no answer in time; the handler may have run. Also if the
                worker collects no letters, which the message says if it was asked for long enough.
            StoreUnavailable: the call could not be left in the database; it may have been. Or too
                many letters wait for the worker, and it does not collect them.
            NotSupported: the store lacks the parts of the contract for this.
            RegistryClosed: the registry is closed, or was meanwhile.

        Cancellation: the handler is cancelled, too, if it has begun.
        """
        check_trio()
        a_name("worker_id", worker_id)
        a_name("name", name)
        return await self._mail.call(worker_id, name, payload, seconds("timeout", timeout))

    def stream(self, worker_id: str, name: str, payload: Any, *, timeout: float) -> Stream:
        """Call a handler that is an async generator function, and iterate over what it yields.

        ::

            async with registry.workers.stream(worker_id, "tail", 10, timeout=30) as items:
                async for item in items:
                    ...

        The items come in order and without a gap, or the iteration ends with an error. The handler
        is at most 32 items ahead of the loop, and 4 MiB; it is cancelled when the block is left.
        Without ``async with`` the call begins with the first item; then close it with ``aclose()``
        if the loop may end early.

        Args:
            worker_id: as of `call`.
            name: the handler's name.
            payload: as of `call`.
            timeout: seconds for which the worker may give no sign of life. While the handler runs
                it gives one, so a handler may be silent for longer. The same holds the other way
                round, however long an item takes to be consumed.

        Raises:
            TypeError, ValueError, MessageTooLarge: at the call.
            StoreUnavailable, WorkerGone, NotSupported, RegistryClosed: on entering, or with the
                first item, as of `call`.
            CallFailed, WorkerGone, TimeoutError, RegistryClosed: from the iteration, after the
                items that have come.

        Cancellation: leaving the block cancels the handler; it does not wait for that.
        """
        a_name("worker_id", worker_id)
        a_name("name", name)
        return self._mail.stream(worker_id, name, payload, seconds("timeout", timeout))
