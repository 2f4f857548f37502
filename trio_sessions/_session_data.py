"""The data of sessions: a JSON object for each, replaced, changed in part, and asked for.

How it goes to the store, and where it waits, stands in `trio_sessions._saying`.

**A part of it is changed by comparing**: the whole is made here, of what the data is as far as this
worker knows, and written only where it is still that. Where it is not, the store says what it is,
and it is made once more. So no store parses JSON, the size is checked here, and the holder of a
session, who knows what it has written last, needs one round trip. What is not known cannot be
changed in part: of a session whose row is still to be written it may be another's.

**What was known before the database went back is no answer.** It is written anew with the row; but
until then it may be older than what another worker has said, or another one may hold the session.
See docs/decisions/0013-mcp.md.
"""

from collections.abc import Mapping

import outcome

from trio_sessions._entry import Entry
from trio_sessions._json import decode_object, encode_object, size_of
from trio_sessions._pending import Pending
from trio_sessions._saying import Said, Saying, SayOrder, What, not_found
from trio_sessions.abc import Part
from trio_sessions.errors import StoreUnavailable
from trio_sessions.types import Holder
from trio_sessions.writes import Differs, Keep, SetData

__all__ = ["SessionData"]

_UNKNOWN = (
    "the session's row could not be written yet, and another worker may have stored data of it: "
    "what is to be merged with is unknown; replace all of it, or ask again"
)
_FORGOTTEN = (
    "the database went back, and the session's row could not be written anew yet: its data is "
    "unknown until then"
)


class _Replace(SayOrder):
    __slots__ = ("_data",)
    changes = What.DATA

    def __init__(self, saying: Saying, session_id: str, data: str) -> None:
        super().__init__(saying, session_id, size=size_of(data))
        self._data = data

    def _write(self, ended: int) -> SetData:
        return SetData(session_id=self.session_id, data=self._data, ended=ended)

    def _note(self, entry: Entry) -> None:
        entry.pending.note_data(self._data)

    def _tell(self, entry: Entry) -> None:
        entry.learn_data(self._data)

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_data(self._data)


class _Merge(SayOrder):
    """An order to replace members of the data, if that is what this worker knows when it leaves.

    Args:
        saying: whose.
        session_id: of whom.
        members: what is to be replaced.
        base: what is known of the data of a session that is held elsewhere.
    """

    __slots__ = ("_base", "_data", "_members")
    changes = What.DATA

    def __init__(
        self, saying: Saying, session_id: str, members: Mapping[str, object], base: str | None
    ) -> None:
        super().__init__(saying, session_id, size=size_of(base or ""))
        self._members = members
        self._base = base
        self._data = ""

    def _merged(self, base: str | None) -> str:
        data = {**(decode_object(base) or {}), **self._members}
        return encode_object(data, what="the session's data, merged,")

    def _write(self, ended: int) -> SetData:
        entry = self._entry()
        if entry is not None and entry.data is not Keep.AS_IS:
            self._base = entry.data
        self._data = self._merged(self._base)
        return SetData(session_id=self.session_id, data=self._data, only_if=self._base, ended=ended)

    def _note(self, entry: Entry) -> None:
        if entry.data is Keep.AS_IS or _is_forgotten(entry):
            raise StoreUnavailable(_UNKNOWN) from entry.error
        entry.pending.note_data(self._merged(entry.data))

    def conclude(self, result: outcome.Outcome[Said] | None) -> None:
        """Note nothing: `SessionData.set` asks again, behind the claim of the row."""
        if not isinstance(result, outcome.Value):
            return
        if isinstance(result.value, Holder):
            self._learn(result.value)
        elif isinstance(result.value, Differs):
            entry = self._entry()
            # Else the database went back, and the row is about to be written anew.
            if entry is not None and entry.pending.data is Keep.AS_IS:
                entry.learn_data(result.value.data)

    def _tell(self, entry: Entry) -> None:
        entry.learn_data(self._data)

    def _supersede(self, pending: Pending) -> None:
        pending.supersede_data(self._data)


class SessionData(Saying):
    """The data of all sessions, wherever they are held."""

    def check_supported(self) -> None:
        """Raise `NotSupported` unless the store keeps data."""
        self._edge.check_keeps(Part.DATA, "DataStore")

    async def set(self, session_id: str, encoded: str, *, merge: bool) -> None:
        """See `SessionRegistry.set_session_data`."""
        self.check_supported()
        if merge:
            members = decode_object(encoded)
            assert members is not None
            await self._merge(session_id, members)
        elif not await self.say(_Replace(self, session_id, encoded)):
            raise not_found(session_id)

    async def _merge(self, session_id: str, members: Mapping[str, object]) -> None:
        base: str | None = None
        while True:
            entry = self.held(session_id)
            order = _Merge(self, session_id, members, base)
            said = await self.give(order)
            if isinstance(said, Differs):
                base = said.data  # somebody else was quicker, so they all get on
            elif order.noted_for is not None:
                await order.noted_for.answered()
                return
            elif said is not None:
                return
            elif self.held(session_id) in {None, entry}:
                raise not_found(session_id)
            # Else it was added again meanwhile: this time it is asked behind that claim.

    async def get(self, session_id: str) -> dict[str, object] | None:
        """See `SessionRegistry.get_session_data`."""
        self.check_supported()
        entry = await self._noted(session_id)
        if entry is not None:
            if _is_forgotten(entry):
                raise StoreUnavailable(_FORGOTTEN) from entry.error
            if entry.pending.data is not Keep.AS_IS:
                return decode_object(entry.pending.data)
        while True:
            if await self._is_left_behind(session_id):
                return None
            known, asked = self._known(session_id), self._told(session_id)
            encoded = await self._edge.get_data(session_id)
            if self._known(session_id) == known:
                break
        data = decode_object(encoded)
        entry, _ = asked
        if entry is not None and entry.data != encoded and await self._is_newer(session_id, asked):
            entry.learn_data(encoded)
        return data


def _is_forgotten(entry: Entry) -> bool:
    """Say whether a session's data is only known from before the database went back."""
    return entry.was_forgotten and not entry.pending.is_data_said
