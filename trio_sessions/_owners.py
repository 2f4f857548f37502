"""Owners and capabilities: the store's answer, and what waits for an unwritten row.

What is said of a session stands in its line at the writer between the claims of its row, and may
leave before there is a row: a claim has failed, or was superseded because the session was added
again, and the next one is behind. Then it is noted, for that claim to write. It is noted for the
very session that it was said of (`Pending` stays the same as long as one is held here), never for
a later one of the same id (invariant 14). Who is *first* cannot be noted: that is asked again.
See docs/decisions/0009-one-writer.md.
"""

import abc

import outcome
import trio

from trio_sessions._claims import Claims
from trio_sessions._departures import Departures
from trio_sessions._edge import Edge, chunked
from trio_sessions._entry import Entry, Pending, Row
from trio_sessions._json import decode, size_of
from trio_sessions._orders import Order
from trio_sessions._table import LocalTable
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionNotFound, SessionsError, StoreUnavailable
from trio_sessions.types import Capabilities, Holder, fingerprint
from trio_sessions.writes import ClaimOwner, Keep, SetCapabilities, SetOwner, Write

__all__ = ["Owners"]

_SLICE = 1000  # sessions looked at before the event loop gets its turn

_NOT_OURS = (
    "the database says that this worker holds the session, which it does not: it lags behind, or a "
    "statement came late, and the next pass deletes the row; who holds the session is unknown"
)


class _SayOrder(Order[Holder | None]):
    """Something that is said of a session, behind the claim of its row.

    Args:
        owners: whose.
        session_id: of whom.
        size: bytes, about.
    """

    __slots__ = ("_owners", "_pending", "noted_for")

    def __init__(self, owners: "Owners", session_id: str, size: int = 0) -> None:
        super().__init__(session_id, size)
        self._owners = owners
        entry = owners.held(session_id)
        self._pending = None if entry is None else entry.pending
        self.noted_for: Entry | None = None
        """It is to be written with the row of this one."""

    def _note_if(self, *rows: Row) -> bool:
        """Note it if the session is still held here, and its row in one of these states."""
        entry = self._owners.held(self.session_id)
        if entry is None or entry.pending is not self._pending or entry.row not in rows:
            return False
        self._note(entry)
        self.noted_for = entry
        return True

    def make(self) -> Write[Holder | None] | None:
        if self._note_if(Row.UNWRITTEN):
            return None
        return self._write(self._owners.ended(self.session_id))

    def conclude(self, result: outcome.Outcome[Holder | None] | None) -> None:
        if isinstance(result, outcome.Value):
            if result.value is None:
                self._note_if(Row.WRITING)  # by a claim that stands behind this in the line
            else:
                self._learn(result.value)

    def _learn(self, holder: Holder) -> None:
        """Tell the session, if it is still held here, what the store has said of it."""
        entry = self._owners.held(self.session_id)
        if entry is not None and entry.pending is self._pending:
            entry.learn(holder, self._capabilities_written())
            self._supersede(entry.pending)

    def _capabilities_written(self) -> Capabilities | None:
        """Return what is known of the capabilities now."""
        return None

    def _supersede(self, pending: Pending) -> None:
        """Have this written where what was known before is to be written once more."""

    @abc.abstractmethod
    def _write(self, ended: int) -> Write[Holder | None]:
        """Return what is to be written now."""

    @abc.abstractmethod
    def _note(self, entry: Entry) -> None:
        """Keep it, to be written with the row."""


class _SetOwner(_SayOrder):
    __slots__ = ("_owner",)

    def __init__(self, owners: "Owners", session_id: str, owner: str | None) -> None:
        super().__init__(owners, session_id)
        self._owner = owner

    def _write(self, ended: int) -> SetOwner:
        return SetOwner(session_id=self.session_id, owner=self._owner, ended=ended)

    def _note(self, entry: Entry) -> None:
        entry.pending.note_owner(self._owner)

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_owner(self._owner)


class _ClaimOwner(_SayOrder):
    __slots__ = ("_owner", "is_doubtful")

    def __init__(self, owners: "Owners", session_id: str, owner: str) -> None:
        super().__init__(owners, session_id)
        self._owner = owner
        self.is_doubtful = False
        """The answer is the owner in an older copy, not the session's."""

    def _write(self, ended: int) -> ClaimOwner:
        return ClaimOwner(session_id=self.session_id, owner=self._owner, ended=ended)

    def _note(self, entry: Entry) -> None:
        raise StoreUnavailable("who is first cannot be told without the store") from entry.error

    def conclude(self, result: outcome.Outcome[Holder | None] | None) -> None:
        """Note nothing: a first claim cannot be, `Owners.claim_owner` asks again."""
        if not isinstance(result, outcome.Value) or result.value is None:
            return
        if self._is_contradicted(result.value):
            self.is_doubtful = True
        else:
            self._learn(result.value)

    def _is_contradicted(self, holder: Holder) -> bool:
        """Say whether the session had another owner, which is to be written once more.

        The database went back, and this was in a batch that was under way when that was noted.
        """
        entry = self._owners.held(self.session_id)
        if entry is None or entry.pending is not self._pending:
            return False
        return entry.pending.owner_again not in {None, holder.owner}


class _SetCapabilities(_SayOrder):
    __slots__ = ("_capabilities",)

    def __init__(self, owners: "Owners", session_id: str, capabilities: Capabilities) -> None:
        super().__init__(owners, session_id, size=size_of(capabilities.encoded))
        self._capabilities = capabilities

    def _write(self, ended: int) -> SetCapabilities:
        return SetCapabilities(
            session_id=self.session_id, capabilities=self._capabilities, ended=ended
        )

    def _note(self, entry: Entry) -> None:
        entry.pending.note_capabilities(self._capabilities)

    def _capabilities_written(self) -> Capabilities:
        return self._capabilities

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_capabilities(self._capabilities)


class Owners:
    """What is said about sessions, wherever they are held.

    Nothing is answered from memory when the store can be asked: another worker may have
    removed the session, or changed what is said of it.
    """

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        claims: Claims,
        table: LocalTable,
        departures: Departures,
    ) -> None:
        self._edge = edge
        self._writer = writer
        self._claims = claims
        self._table = table
        self._departures = departures

    # ---- saying ----

    def held(self, session_id: str) -> Entry | None:
        """Return the session if it is held here."""
        return self._table.get(session_id)

    def _unwritten(self, session_id: str) -> Entry | None:
        """Return the session if it is held here and its row could not be written."""
        entry = self._table.get(session_id)
        return entry if entry is not None and entry.row is Row.UNWRITTEN else None

    def ended(self, session_id: str) -> int:
        """Return the generation up to which the session's row is left over."""
        return self._departures.ended(session_id)

    async def _say(self, order: _SayOrder) -> bool:
        """Have something written, behind the row if that is still to be; False: no session."""
        holder = await self._give(order)
        if order.noted_for is not None:
            await order.noted_for.answered()
        return holder is not None or order.noted_for is not None

    async def _give(self, order: _SayOrder) -> Holder | None:
        entry = self._unwritten(order.session_id)
        if entry is not None:
            self._claims.write(entry)
        return await self._writer.do(order)

    async def set_owner(self, session_id: str, owner: str | None) -> None:
        """See `SessionRegistry.set_session_owner`."""
        if not await self._say(_SetOwner(self, session_id, owner)):
            raise _not_found(session_id)

    async def claim_owner(self, session_id: str, owner: str) -> str | None:
        """See `SessionRegistry.claim_session_owner`."""
        while True:
            entry = self.held(session_id)
            order = _ClaimOwner(self, session_id, owner)
            try:
                holder = await self._give(order)
            except SessionsError:
                return None
            if holder is not None:
                return None if order.is_doubtful else holder.owner
            if self.held(session_id) in {None, entry}:
                return None
            # It was added again meanwhile: this time it is asked behind that claim.

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> None:
        """See `SessionRegistry.store_client_capabilities`."""
        if not await self._say(_SetCapabilities(self, session_id, capabilities)):
            raise _not_found(session_id)

    # ---- asking ----

    async def _noted(self, session_id: str) -> Entry | None:
        """Return the session if something is noted of it that cannot be written now.

        One attempt to write it is made, unless one is under way already: many may ask at once.
        """
        entry = self._table.get(session_id)
        if entry is None or entry.pending.is_empty:
            return None
        await self._claims.attempt([entry])
        return self._unwritten(session_id)

    async def _locate(self, session_id: str) -> tuple[Holder | None, bool]:
        """Return the holder as its row says, and whether the row is only left over.

        Where the session, or what was left over, has been replaced while the store was asked, it is
        asked again: the answer may be of either session.

        Raises:
            StoreUnavailable: the row is this worker's, which neither holds the session nor has
                left it over. A replica lags, and it is another's by now; or a late statement has
                written it, and the next pass deletes it.
        """
        while True:
            known = ended, _ = self._known(session_id)
            holder = await self._edge.locate(session_id)
            if self._known(session_id) == known:
                if holder is None or not self._edge.is_own(holder):
                    return holder, False
                if not ended and session_id not in self._table:
                    raise StoreUnavailable(_NOT_OURS)
                return holder, ended > 0

    def _known(self, session_id: str) -> tuple[int, Pending | None]:
        """Return what is another as soon as an answer may be of another session of this id."""
        entry = self._table.get(session_id)
        return self._departures.ended(session_id), None if entry is None else entry.pending

    async def _is_elsewhere(self, session_id: str) -> bool:
        holder = await self._edge.locate(session_id)
        return holder is not None and not self._edge.is_own(holder)

    async def _is_left_behind(self, session_id: str) -> bool:
        """Say whether the session's row is only what one that was removed here has left."""
        if not self._departures.ended(session_id):
            return False
        holder, is_left_over = await self._locate(session_id)
        return holder is None or is_left_over

    async def locate(self, session_id: str) -> str | None:
        """See `SessionRegistry.locate_session`, for a session that is not held here.

        A row that a removed session has left here means that nobody holds it.
        """
        holder, is_left_over = await self._locate(session_id)
        return None if holder is None or is_left_over else holder.worker_id

    async def get_owner(self, session_id: str) -> str | None:
        """See `SessionRegistry.get_session_owner`."""
        entry = await self._noted(session_id)
        if entry is not None and entry.pending.owner is not Keep.AS_IS:
            return entry.pending.owner
        holder, is_left_over = await self._locate(session_id)
        if holder is None or is_left_over:
            return None
        entry = self._table.get(session_id)
        if entry is not None and self._edge.is_own(holder):
            entry.learn(holder)
        return holder.owner

    async def get_capabilities(self, session_id: str) -> dict[str, object] | None:
        """See `SessionRegistry.get_client_capabilities`."""
        encoded = await self._encoded_capabilities(session_id)
        if encoded is None:
            return None
        decoded = decode(encoded)
        assert isinstance(decoded, dict)
        return decoded

    async def _encoded_capabilities(self, session_id: str) -> str | None:
        entry = await self._noted(session_id)
        if entry is not None and entry.pending.capabilities is not None:
            return entry.pending.capabilities.encoded
        while True:
            if await self._is_left_behind(session_id):
                return None
            known = self._known(session_id)
            encoded = await self._edge.get_capabilities(session_id)
            if self._known(session_id) == known:
                return encoded

    async def elicitation_capable(self) -> list[str]:
        """See `SessionRegistry.get_elicitation_capable_sessions`."""
        unwritten = list[Entry]()
        for part in chunked(self._table.snapshot(), _SLICE):
            unwritten += [one for one in part if not one.pending.is_empty]
            await trio.lowlevel.checkpoint()
        await self._claims.attempt(unwritten)
        found = dict[str, bool]()
        for part in chunked(self._table.snapshot(), _SLICE):
            for entry in part:
                noted = entry.pending.capabilities
                if noted is not None and entry.row is not Row.CONFIRMED:
                    found[entry.session_id] = noted.elicitation
            await trio.lowlevel.checkpoint()
        capable, ended = await self._written_as_capable()
        for ids in chunked(capable, _SLICE):
            for one in ids:
                if one not in ended or await self._is_elsewhere(one):
                    found.setdefault(one, True)
            await trio.lowlevel.checkpoint()
        return [session_id for session_id, asked in found.items() if asked]

    async def _written_as_capable(self) -> tuple[list[str], dict[str, int]]:
        """Return whose rows say that they can be asked, and what was left over at that moment."""
        while True:
            ended = self._departures.all()
            capable = await self._edge.elicitation_capable()
            for ids in chunked(capable, _SLICE):
                if any(self._departures.ended(one) != ended.get(one, 0) for one in ids):
                    break  # one that was left over has been replaced meanwhile
                await trio.lowlevel.checkpoint()
            else:
                return capable, ended


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"session {fingerprint(session_id)} is held by no worker")
