"""Adoption: a session that another worker holds, and is dead, is held here from now on.

::

    adopt ──> a claim that names the older holder ──> somebody else won: not ours
                       │                       └────> won: into the table, in the step in which
                       │                              the answer is heard
                       └── the answer is lost: it may be ours, and nobody holds it

A session is in the table only when its row has been won, for only a winner may hold it. So a row of
this incarnation may be there for a moment before its session is, which `trio_sessions._undecided`
knows.

Who adds the id here meanwhile is newer, and has the session: the claim of that stands behind this
one in the line, and finds the row of its own incarnation.

Where the answer was lost, the same is asked for again with the same generation, by which the row
says whose it is, until an answer has decided. Where nobody asks again, a pass finds the row, and
the next one deletes it.
See docs/decisions/0013-mcp.md.
"""

from collections.abc import Callable

import outcome
import trio

from trio_sessions._admission import Admission
from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge
from trio_sessions._entry import Entry
from trio_sessions._orders import Order
from trio_sessions._table import LocalTable
from trio_sessions._undecided import Undecided
from trio_sessions._writer import Writer
from trio_sessions.abc import Part, Transport
from trio_sessions.errors import RegistryClosed, RowUnavailable, SessionRevoked
from trio_sessions.types import fingerprint
from trio_sessions.writes import Claim, Claimed, Outcome

__all__ = ["Adopting"]


class _AdoptOrder(Order[Claimed]):
    """The claim of a session that is not held here yet."""

    __slots__ = (
        "_adopting",
        "_made",
        "added_at",
        "entry",
        "from_worker",
        "idle",
        "transport",
    )

    def __init__(
        self,
        adopting: "Adopting",
        session_id: str,
        transport: Transport,
        *,
        from_worker: str,
        idle: float,
    ) -> None:
        super().__init__(session_id)
        self._adopting = adopting
        self._made: Claim | None = None
        self.added_at = trio.current_time()
        self.transport = transport
        self.from_worker = from_worker
        self.idle = idle
        """Seconds for which nothing was heard of it elsewhere."""
        self.entry: Entry | None = None
        """The session, since it is held here."""

    def make(self) -> Claim | None:
        before = 0 if self._made is None else self._made.generation
        self._made = self._adopting.make(self, before)
        return self._made

    def conclude(self, result: outcome.Outcome[Claimed] | None) -> None:
        self.entry = self._adopting.conclude(self, self._made, result)


class Adopting:
    """The adoptions of one registry."""

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        claims: Claims,
        table: LocalTable,
        undecided: Undecided,
        departures: Departures,
        admission: Admission,
    ) -> None:
        self._edge = edge
        self._writer = writer
        self._claims = claims
        self._table = table
        self._undecided = undecided
        self._departures = departures
        self._admission = admission
        self._is_closed = False
        self._listeners: list[Callable[[str, str], None]] = []

    def notify(self, listener: Callable[[str, str], None]) -> None:
        """Tell ``listener`` of each session that was adopted: its id, and from whom.

        In the step in which it is held here. Whoever tells the older holder, which would learn of
        it at its next pass, is told so here.
        """
        self._listeners.append(listener)

    def close(self) -> None:
        """Put nothing into the table any more; the rows go with all others of this worker."""
        self._is_closed = True

    async def adopt(
        self, session_id: str, transport: Transport, *, from_worker: str, idle: float
    ) -> bool:
        """See `SessionRegistry.adopt_session`."""
        self._edge.check_keeps(Part.DATA, "DataStore")
        if session_id in self._table:
            await trio.lowlevel.checkpoint()
            return False
        self._admission.check(session_id)
        await self._writer.admit()
        self._admission.check(session_id)  # it may have waited
        order = _AdoptOrder(self, session_id, transport, from_worker=from_worker, idle=idle)
        self._admission.expect()
        self._undecided.begin(session_id)
        claimed = await self._writer.answer(self._writer.give(order))
        if claimed is not None and claimed.outcome is Outcome.REVOKED:
            raise SessionRevoked(
                f"session {fingerprint(session_id)} was revoked, and its id is refused for "
                "limits.revocation_ttl: it was not adopted, and its transport left alone"
            )
        if order.entry is None and self._is_closed:
            raise RegistryClosed("the registry was closed while the session was adopted")
        return order.entry is not None

    def make(self, order: _AdoptOrder, before: int) -> Claim | None:
        """Return the claim; None: the session is held here by now, or nobody is let in any more.

        Its generation is that of an earlier attempt, else a new one. An earlier one does not count
        if the session was added here since, and has gone.

        Args:
            order: asks for it.
            before: the generation that the order has claimed it with; 0: it has not yet.

        Raises:
            RegistryDraining: it may not come in any more.
        """
        if self._is_closed or order.session_id in self._table:
            return None
        self._admission.check_draining()
        ended = self._departures.ended(order.session_id)
        attempts = (self._undecided.unanswered(order.session_id), before)
        earlier = next((one for one in attempts if one > ended), None)
        return Claim(
            session_id=order.session_id,
            generation=self._table.next_generation() if earlier is None else earlier,
            age=trio.current_time() - order.added_at,
            ended=ended,
            only_from=order.from_worker,
        )

    def conclude(
        self, order: _AdoptOrder, made: Claim | None, result: outcome.Outcome[Claimed] | None
    ) -> Entry | None:
        """Take note of the answer; return the session if it is held here since."""
        self._admission.expect_no_more()
        self._undecided.end(order.session_id)
        if made is None:
            return None
        if isinstance(result, outcome.Error):
            if not isinstance(result.error, RowUnavailable):  # else it is sure that nothing is done
                self._undecided.lose(order.session_id, made.generation)
            return None
        if not isinstance(result, outcome.Value):
            return None
        claimed = result.value
        self._undecided.settle(order.session_id)  # this, and nothing else, has decided it
        if claimed.outcome not in {Outcome.TAKEN_OVER, Outcome.KEPT}:
            return None
        if self._is_newer_here(made):
            return None
        entry, _ = self._table.put(
            order.session_id, order.transport, order.added_at, generation=made.generation
        )
        entry.note_activity(order.added_at - order.idle)
        self._claims.adopted(entry, made, claimed)
        for listener in self._listeners:
            listener(order.session_id, order.from_worker)
        return entry

    def _is_newer_here(self, claim: Claim) -> bool:
        """Say whether the id was added here since the adoption was asked for, or all is closed."""
        return (
            self._is_closed
            or claim.session_id in self._table
            or self._departures.ended(claim.session_id) >= claim.generation
        )
