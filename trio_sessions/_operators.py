"""The part of the registry's public surface that is about all workers, for operators."""

from trio_sessions._edge import INHERITED
from trio_sessions._house import House
from trio_sessions._inspection import Workers
from trio_sessions._interrupts import uninterrupted
from trio_sessions._library import check_trio
from trio_sessions.errors import RegistryClosed
from trio_sessions.inspection import SessionInfo, check_limit, select
from trio_sessions.types import check_session_id

__all__ = ["OperatorMethods"]


@uninterrupted
class OperatorMethods:
    """What `SessionRegistry` can be asked about all workers and their sessions."""

    def __init__(self, house: House) -> None:
        """Not for users."""
        self._house = house

    def _check_open(self) -> None:
        if self._house.is_closed:
            raise RegistryClosed(
                "the registry is closed: use it inside the `async with open_registry(...)` block"
            )
        if self._house.is_inherited:
            raise RegistryClosed(INHERITED)

    @property
    def workers(self) -> Workers:
        """The workers of this database: who lives, what each holds and tells of itself."""
        return self._house.workers

    async def list_sessions(
        self,
        *,
        owner: str | None = None,
        worker_id: str | None = None,
        older_than: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> list[SessionInfo]:
        """Return sessions of all workers, by id, as their rows say; one round trip.

        For the next page, ask with ``after`` the last id of this one; the end is a page with
        nothing in it. Sessions that come and go meanwhile shift nothing. A session whose row
        could not be written yet is not among them.

        Args:
            owner: only sessions of this owner.
            worker_id: only sessions that a worker of this name holds.
            older_than: only sessions that were created more than so many seconds ago.
            after: only sessions with a greater id, in the database's order.
            limit: at most so many, 1 to 10,000.

        Raises:
            TypeError, ValueError: an argument is wrong; the message names it.
            StoreUnavailable: the database cannot say.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.
        """
        check_trio()
        selection = select(owner=owner, worker_id=worker_id, older_than=older_than)
        check_limit(limit)
        if after is not None:
            check_session_id(after)
        self._check_open()
        return await self._house.inspection.page(selection, after=after or "", limit=limit)

    async def describe_session(self, session_id: str) -> SessionInfo | None:
        """Return what the database knows of a session, whoever holds it; None: there is none.

        One round trip, and enough to choose between 404 (None), 503 (`StoreUnavailable`, or a
        holder that does not live) and 403 (another owner).

        Raises:
            StoreUnavailable: the database cannot say; or the session is held here, and its row
                could not be written yet.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        return await self._house.inspection.describe(session_id)
