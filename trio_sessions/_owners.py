"""Owners and capabilities of sessions: said, claimed, asked for.

How it goes to the store, and where it waits, stands in `trio_sessions._saying`. Who is *first*
cannot be noted: that is asked again. See docs/decisions/0009-one-writer.md.
"""

import outcome
import trio

from trio_sessions._edge import chunked
from trio_sessions._entry import Entry, Row
from trio_sessions._json import decode_object, size_of
from trio_sessions._pending import Pending
from trio_sessions._saying import Said, Saying, SayOrder, What, not_found
from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import ClaimOwner, Keep, SetCapabilities, SetOwner

__all__ = ["Owners"]

_SLICE = 1000  # sessions looked at before the event loop gets its turn


class _SetOwner(SayOrder):
    __slots__ = ("_owner",)
    changes = What.OWNER

    def __init__(self, owners: "Owners", session_id: str, owner: str | None) -> None:
        super().__init__(owners, session_id)
        self._owner = owner

    def _write(self, ended: int) -> SetOwner:
        return SetOwner(session_id=self.session_id, owner=self._owner, ended=ended)

    def _note(self, entry: Entry) -> None:
        entry.pending.note_owner(self._owner)

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_owner(self._owner)


class _ClaimOwner(SayOrder):
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

    def conclude(self, result: outcome.Outcome[Said] | None) -> None:
        """Note nothing: a first claim cannot be, `Owners.claim_owner` asks again."""
        if not isinstance(result, outcome.Value) or not isinstance(result.value, Holder):
            return
        if self._is_contradicted(result.value):
            self.is_doubtful = True
        else:
            self._learn(result.value)

    def _is_contradicted(self, holder: Holder) -> bool:
        """Say whether the session had another owner, which is to be written once more.

        The database went back, and this was in a batch that was under way when that was noted.
        """
        entry = self._entry()
        return entry is not None and entry.pending.owner_again not in {None, holder.owner}


class _SetCapabilities(SayOrder):
    __slots__ = ("_capabilities",)
    changes = What.CAPABILITIES

    def __init__(self, owners: "Owners", session_id: str, capabilities: Capabilities) -> None:
        super().__init__(owners, session_id, size=size_of(capabilities.encoded))
        self._capabilities = capabilities

    def _write(self, ended: int) -> SetCapabilities:
        return SetCapabilities(
            session_id=self.session_id, capabilities=self._capabilities, ended=ended
        )

    def _note(self, entry: Entry) -> None:
        entry.pending.note_capabilities(self._capabilities)

    def _tell(self, entry: Entry) -> None:
        entry.learn_capabilities(self._capabilities)

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_capabilities(self._capabilities)


class Owners(Saying):
    """The owners and capabilities of sessions, wherever they are held.

    Nothing is answered from memory when the store can be asked: another worker may have
    removed the session, or changed what is said of it.
    """

    async def set_owner(self, session_id: str, owner: str | None) -> None:
        """See `SessionRegistry.set_session_owner`."""
        if not await self.say(_SetOwner(self, session_id, owner)):
            raise not_found(session_id)

    async def claim_owner(self, session_id: str, owner: str) -> str | None:
        """See `SessionRegistry.claim_session_owner`."""
        while True:
            entry = self.held(session_id)
            order = _ClaimOwner(self, session_id, owner)
            try:
                said = await self.give(order)
            except SessionsError:
                return None
            if isinstance(said, Holder):
                return None if order.is_doubtful else said.owner
            if self.held(session_id) in {None, entry}:
                return None
            # It was added again meanwhile: this time it is asked behind that claim.

    async def set_capabilities(self, session_id: str, capabilities: Capabilities) -> None:
        """See `SessionRegistry.store_client_capabilities`."""
        if not await self.say(_SetCapabilities(self, session_id, capabilities)):
            raise not_found(session_id)

    # ---- asking ----

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
        asked = self._told(session_id)
        holder, is_left_over = await self._locate(session_id)
        if holder is None or is_left_over:
            return None
        entry, _ = asked
        if entry is not None and self._edge.is_own(holder):
            known = entry.told.holder
            is_known = known is not None and known.owner == holder.owner
            if not is_known and await self._is_newer(session_id, asked):
                entry.learn(holder)
        return holder.owner

    async def get_capabilities(self, session_id: str) -> dict[str, object] | None:
        """See `SessionRegistry.get_client_capabilities`."""
        entry = await self._noted(session_id)
        if entry is not None and entry.pending.capabilities is not None:
            return decode_object(entry.pending.capabilities.encoded)
        while True:
            if await self._is_left_behind(session_id):
                return None
            known, asked = self._known(session_id), self._told(session_id)
            encoded = await self._edge.get_capabilities(session_id)
            if self._known(session_id) == known:
                break
        decoded = decode_object(encoded)
        if encoded is None or decoded is None:
            return None
        entry, _ = asked
        if entry is not None:
            told = entry.told.capabilities
            is_told = told is not None and told.encoded == encoded
            if not is_told and await self._is_newer(session_id, asked):
                elicitation = decoded.get("elicitation") not in (None, False)
                entry.learn_capabilities(Capabilities(encoded=encoded, elicitation=elicitation))
        return decoded

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
