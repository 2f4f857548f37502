"""The part of the registry's public surface that is about all workers, for operators."""

from trio_sessions._checks import seconds
from trio_sessions._house import House
from trio_sessions._interrupts import uninterrupted
from trio_sessions._library import check_trio
from trio_sessions._tracing import Tracer
from trio_sessions._workers import Workers
from trio_sessions.inspection import Selection, SessionInfo, check_limit, select
from trio_sessions.types import DrainReport, RegistryHealth, check_encodable, check_session_id

__all__ = ["OperatorMethods"]

_REASON = 1000  # characters


@uninterrupted
class OperatorMethods:
    """What `SessionRegistry` can be asked about all workers and their sessions."""

    def __init__(self, house: House) -> None:
        """Not for users."""
        self._house = house

    def _check_open(self) -> None:
        self._house.check_open()

    @property
    def workers(self) -> Workers:
        """The workers of this database: who lives, what each holds and tells of itself."""
        return self._house.workers

    def health(self) -> RegistryHealth:
        """Return how this registry is now: facts, for probes. No checkpoint, no database.

        The first call begins to measure the loop, by a task that wakes once a second. Another
        thread may call it, too, as a server of metrics does; that begins nothing.
        """
        return self._house.health()

    def trace(self, tracer: Tracer) -> None:
        """Let what this registry does be traced; `trio_sessions.otel.instrument` calls it."""
        self._house.settings.tracing.use(tracer)

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

    async def drain(self, timeout: float) -> DrainReport:
        """Let this worker's sessions leave for other workers, before it is stopped.

        From now on `add_session` raises `RegistryDraining` for ids that are not held here, and
        `workers.list()` shows it. Each session is told to leave (`RemovalReason.DRAINED`) as soon
        as no message to it is being handled or waits in memory alone; those that are busy when the
        time is over are cut. The row of a session that was told stays until its client comes back
        at another worker, which gets owner and stored messages with it; the drain waits for that,
        too, so it lasts as long as it may where a client does not come back. Close the registry
        afterwards: what nobody has come for is deleted then.

        Args:
            timeout: seconds, 0 or more; then it takes ``disconnect_timeout`` at most. One that is
                called while another runs waits for that one first.

        Raises:
            TypeError, ValueError: ``timeout`` is no such number.
            RegistryClosed: the registry is closed.

        Cancellation: it stays closed to new sessions, and may be drained again.
        """
        check_trio()
        if timeout != 0 or isinstance(timeout, bool):
            timeout = seconds("timeout", timeout)
        self._check_open()
        with self._house.settings.tracing.span("drain") as span:
            report = await self._house.draining.drain(timeout)
            span.note(drained=len(report.drained), left=len(report.left), cut=len(report.cut))
        return report

    async def revoke(
        self,
        *session_ids: str,
        owner: str | None = None,
        worker_id: str | None = None,
        older_than: float | None = None,
        reason: str = "",
    ) -> int:
        """End sessions for good, whoever holds them, and refuse their ids for a time.

        Their rows go with messages, owner and capabilities, in the same step in which the ids are
        marked; this worker lets go of its own at once, every other one within a second (where tens
        of thousands were revoked just now, within five), and disconnects their transports with
        `RemovalReason.REVOKED`. For ``limits.revocation_ttl`` of this worker nothing brings them
        back: `add_session` raises `SessionRevoked` at every worker.

        Args:
            session_ids: these sessions; an id without a session is marked, too.
            owner: or: all sessions of this owner; with what follows, those that fit all of it.
            worker_id: all sessions that a worker of this name holds.
            older_than: all sessions that were created more than so many seconds ago.
            reason: for whoever reads the table; at most 1,000 characters.

        Returns:
            How many sessions the database knew of them. Those of a selection are found by their
            rows: one that could not be written yet is not among them.

        Raises:
            TypeError, ValueError: an argument is wrong, or there are ids and a selection, or
                neither: nobody is meant by everybody.
            StoreUnavailable: the database is away, or a row is locked: some may have been revoked.
                It may be asked for again.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.

        Cancellation: some may have been revoked.
        """
        check_trio()
        for session_id in session_ids:
            check_session_id(session_id)
        selection = select(owner=owner, worker_id=worker_id, older_than=older_than)
        is_selected = selection != Selection()
        if is_selected is bool(session_ids):
            raise ValueError(
                "revoke() takes session ids, or at least one of owner, worker_id and older_than; "
                "not both, and not neither"
            )
        _check_reason(reason)
        self._check_open()
        with self._house.settings.tracing.span("revoke") as span:
            revoked = await self._house.revoking.revoke(
                session_ids, selection if is_selected else None, reason
            )
            span.note(sessions=revoked)
        return revoked

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


def _check_reason(reason: object) -> None:
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}")
    if len(reason) > _REASON or "\0" in reason:
        raise ValueError(f"reason must have at most {_REASON} characters, and no NUL")
    check_encodable("reason", reason)
