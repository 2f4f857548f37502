"""Where sessions are, and how they come to be here: asked, remembered, adopted."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel

from trio_sessions._logging import get_logger
from trio_sessions.errors import (
    RegistryDraining,
    SessionRevoked,
    SessionsError,
    StoreUnavailable,
    TooManySessions,
)
from trio_sessions.mcp._contracts import Registry
from trio_sessions.mcp._conversation import Conversation
from trio_sessions.mcp._held import HeldSession
from trio_sessions.mcp._manager import SdkSessions
from trio_sessions.types import fingerprint

__all__ = ["Place", "Places"]

logger = get_logger("trio_sessions.mcp")

_MOST = 10_000  # places remembered
_AT_ONCE = 20  # sessions adopted at a time: their claims share the writer's batches
_MOST_UNSURE = 1_000  # adoptions whose answer was lost that are remembered, with all of their data
_TRIES = 5  # to take a session over, where others do so, too


@dataclass(frozen=True, slots=True)
class Place:
    """Another worker that holds a session."""

    incarnation: str
    owner: str | None


@dataclass(frozen=True, slots=True)
class _Unsure:
    """An adoption whose answer was lost: the row may be ours, and nobody holds it."""

    data: Mapping[str, Any] | None
    owner: str | None
    from_worker: str


@dataclass(frozen=True, slots=True)
class _Offer:
    """A session that another worker hands over."""

    session_id: str
    owner: str | None
    data: Mapping[str, Any] | None
    idle: float

    @classmethod
    def read(cls, one: Any) -> "_Offer":
        """Return what a letter says.

        Raises:
            KeyError, TypeError, ValueError: it cannot be read.
        """
        session_id, idle = one["id"], max(0.0, float(one["idle"]))
        if not isinstance(session_id, str):
            raise TypeError(f"a session's id cannot be a {type(session_id).__name__}")
        return cls(session_id=session_id, owner=one["owner"], data=one["data"], idle=idle)


class Places:
    """Knows where sessions are.

    What is remembered may be old: whoever is asked in vain says so, and is asked for anew. It saves
    the question to the database that each request would cost.

    Args:
        registry: that says where they are.
        manager: of the SDK's sessions here.
        idle_timeout: seconds, of a session that comes here.
    """

    def __init__(
        self, registry: Registry, manager: SdkSessions, *, idle_timeout: float | None
    ) -> None:
        self._registry = registry
        self._manager = manager
        self._idle_timeout = idle_timeout
        self._known: OrderedDict[str, Place] = OrderedDict()
        self._coming: dict[str, anyio.Event] = {}
        self._unsure: OrderedDict[str, _Unsure] = OrderedDict()

    @property
    def server(self) -> str | None:
        """The name of the SDK's server: one database may serve several."""
        return self._manager.server

    def here(self, session_id: str) -> HeldSession | None:
        """Return a session that is held here, and has not moved since."""
        held = self._registry.get_session_sync(session_id)
        if not isinstance(held, HeldSession) or held.has_moved.is_set():
            return None  # the registry learns of a move a little later
        return held

    async def arrived(self, session_id: str) -> HeldSession | None:
        """Return a session that is held here, or is just coming."""
        coming = self._coming.get(session_id)
        if coming is not None:
            await coming.wait()
        else:
            await anyio.lowlevel.checkpoint()
        return self.here(session_id)

    async def settled(self, session_id: str) -> HeldSession | None:
        """Return a session that is held here, is just coming, or may have come unheard.

        Where the answer to its adoption was lost, it is adopted again: the row may be this
        worker's, which nobody else adopts then, and a pass deletes it when nobody asks.

        Raises:
            StoreUnavailable: nobody knows whether it is here.
        """
        held = await self.arrived(session_id)
        unsure = self._unsure.get(session_id)
        if held is not None or unsure is None:
            return held
        try:
            return await self.adopt(
                session_id, unsure.data, owner=unsure.owner, from_worker=unsure.from_worker
            )
        except (RegistryDraining, TooManySessions):
            return None  # another worker may have it

    def forget(self, session_id: str) -> None:
        """Ask anew where a session is."""
        self._known.pop(session_id, None)

    async def find(self, session_id: str) -> HeldSession | Place | None:
        """Return a session, or where it is; one whose worker is dead is adopted, and is here.

        Returns:
            None: the database has confirmed that there is none, or it was another server's, whose
                worker is dead: it stays for the workers of that one.

        Raises:
            InvalidSessionId: there cannot be one.
            RegistryDraining, TooManySessions: it would have to come here, and may not.
            StoreUnavailable: the database cannot say, or other workers are always faster; or an
                earlier life of this worker has it, of which it is not known yet that it is over.
        """
        for _ in range(_TRIES):
            held = await self.settled(session_id)
            if held is not None:
                return held
            known = self._known.get(session_id)
            if known is not None:
                self._known.move_to_end(session_id)
                return known
            info = await self._registry.describe_session(session_id)
            if info is None or (not info.worker_alive and self._is_of_another(info.data)):
                return None
            if info.worker_alive:
                if info.worker_id == self._registry.worker_id:
                    held = await self.arrived(session_id)
                    # Else it has just ended, or it is a stream of an old client.
                    if held is None and self._registry.get_session_sync(session_id) is None:
                        raise StoreUnavailable("an earlier life of this worker has the session")
                    return held
                return self._remember(session_id, Place(info.incarnation, info.owner))
            held = await self.adopt(
                session_id, info.data, owner=info.owner, from_worker=info.incarnation
            )
            if held is not None or not _can_begin_again(info.data):
                return held
            # Another worker was faster: it has the session, or it has ended there.
        raise StoreUnavailable("the session was taken over by others again and again")

    def _remember(self, session_id: str, place: Place) -> Place:
        self._known[session_id] = place
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return place

    def _is_of_another(self, data: Mapping[str, Any] | None) -> bool:
        """Say whether a session is known to have begun at another server than the one here."""
        return data is not None and data.get("server", self.server) != self.server

    async def adopt(
        self,
        session_id: str,
        data: Mapping[str, Any] | None,
        *,
        owner: str | None,
        from_worker: str,
        idle: float = 0.0,
    ) -> HeldSession | None:
        """Take a session over from a worker that does not live, or leaves.

        It is dormant then: the SDK has none until its client asks for something.

        Args:
            session_id: which.
            data: what it began with; None: nobody can take it over.
            owner: whose it is.
            from_worker: the incarnation that has it, and must have it still.
            idle: seconds for which it was idle there; a dead worker's is asked for just now.

        Returns:
            None: another worker has been faster, or the session has ended; or, for want of
            ``data``, it will.
        """
        if not _can_begin_again(data):
            logger.warning(
                "session %s cannot be taken over: nobody has noted how it began",
                fingerprint(session_id),
            )
            await anyio.lowlevel.checkpoint()
            return None
        if session_id in self._coming:
            return await self.arrived(session_id)
        held = HeldSession(
            session_id,
            self._manager,
            Conversation(session_id),
            owner=owner,
            data=data,
            idle_timeout=self._idle_timeout,
            idle=idle,
        )
        coming = self._coming[session_id] = anyio.Event()
        try:
            won = await self._registry.adopt_session(
                session_id, held, from_worker=from_worker, idle=idle
            )
        except StoreUnavailable:
            self._note_unsure(session_id, _Unsure(data, owner, from_worker))
            raise
        except SessionRevoked:
            self._unsure.pop(session_id, None)
            raise
        finally:
            del self._coming[session_id]
            coming.set()
        self._unsure.pop(session_id, None)
        self.forget(session_id)
        if not won:
            return None
        logger.info("session %s was taken over", fingerprint(session_id))
        return held

    def _note_unsure(self, session_id: str, unsure: _Unsure) -> None:
        self._unsure[session_id] = unsure
        self._unsure.move_to_end(session_id)
        if len(self._unsure) > _MOST_UNSURE:
            self._unsure.popitem(last=False)

    async def take_over(self, payload: Any) -> list[str]:
        """Adopt sessions of a worker that leaves; return the ids of those that came.

        Args:
            payload: what that worker says of them.

        Raises:
            KeyError, TypeError, ValueError: it cannot be read.
        """
        taken: list[str] = []
        if payload["server"] != self.server:
            await anyio.lowlevel.checkpoint()
            return taken
        from_worker = payload["from"]
        offers = [_Offer.read(one) for one in payload["sessions"]]
        is_refused = False

        async def take(offer: _Offer) -> None:
            nonlocal is_refused
            try:
                held = await self.adopt(
                    offer.session_id,
                    offer.data,
                    owner=offer.owner,
                    from_worker=from_worker,
                    idle=offer.idle,
                )
            except SessionsError as exc:
                is_refused = True
                logger.warning(
                    "session %s cannot be taken over: %s", fingerprint(offer.session_id), exc
                )
            else:
                if held is not None:
                    taken.append(held.session_id)

        for i in range(0, len(offers), _AT_ONCE):
            if is_refused:  # what could not be had just now is offered to others at once
                break
            async with anyio.create_task_group() as tasks:
                for offer in offers[i : i + _AT_ONCE]:
                    tasks.start_soon(take, offer)
        return taken


def _can_begin_again(data: Mapping[str, Any] | None) -> bool:
    """Say whether it is known how a session began."""
    return data is not None and isinstance(data.get("initialize"), dict)
