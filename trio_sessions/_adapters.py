"""The part of the registry's public surface that adapters of protocols are built on."""

from collections.abc import Mapping
from typing import Any

from trio_sessions._calls import check_transport
from trio_sessions._checks import a_name, silence
from trio_sessions._handlers import Handler
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import encode_object
from trio_sessions._library import check_trio
from trio_sessions._logs import Logs
from trio_sessions._operators import OperatorMethods
from trio_sessions._settings import Settings
from trio_sessions._topics import Topics
from trio_sessions.abc import Transport
from trio_sessions.types import check_session_id

__all__ = ["AdapterMethods"]


@uninterrupted
class AdapterMethods(OperatorMethods):
    """What `SessionRegistry` offers to adapters, as for MCP."""

    @property
    def topics(self) -> Topics:
        """What is said to whoever listens, at every worker."""
        return self._house.topics

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What other workers may call, as `open_registry` was given it."""
        return self._house.settings.handlers or {}

    @property
    def _settings(self) -> Settings:
        """What it was opened with, for adapters of this package."""
        return self._house.settings

    # ---- data ----

    async def set_session_data(
        self, session_id: str, data: Mapping[str, Any], *, merge: bool = False
    ) -> None:
        """Replace the data of a session, for all workers to see, wherever it is held.

        It stays when the session is taken over or adopted, and goes with it. For a session held
        here whose row cannot be written now, it is written with that later.

        Args:
            session_id: the session.
            data: what JSON can carry as an object, of at most 65,536 bytes encoded.
            merge: replace only the members that ``data`` names, the others stay: in one step, so
                that of two who merge at once neither is lost. A member that is None is null.

        Raises:
            TypeError, ValueError: JSON cannot carry it.
            MessageTooLarge: it, or what comes of the merge, is too large.
            SessionNotFound: the database has confirmed that no worker holds the session.
            StoreUnavailable: the database is away; the data may or may not have been set. Or it is
                to be merged with what is not known, for the session's row is still to be written.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed.

        Cancellation: the data may or may not have been set.
        """
        check_trio()
        check_session_id(session_id)
        if not isinstance(merge, bool):
            raise TypeError(f"merge must be True or False, not {type(merge).__name__}")
        encoded = encode_object(data, what="data")
        self._check_open()
        await self._house.session_data.set(session_id, encoded, merge=merge)

    async def get_session_data(self, session_id: str) -> dict[str, Any] | None:
        """Return the data of a session, a fresh dict; None: it has none, or there is no session.

        The database is asked each time, as by `SessionRegistry.get_session_owner`.

        Raises:
            StoreUnavailable: the database cannot say; or it has gone back, and the row could not be
                written anew yet.
            NotSupported: the store lacks this part of the contract.
            RegistryClosed: the registry is closed, so it cannot ask.
        """
        check_trio()
        check_session_id(session_id)
        self._check_open()
        return await self._house.session_data.get(session_id)

    def _encode_data(self, data: Mapping[str, Any] | None) -> str | None:
        """Return data that is to be written with a row."""
        if data is None:
            return None
        encoded = encode_object(data, what="data")
        self._house.session_data.check_supported()
        return encoded

    # ---- adoption ----

    async def adopt_session(
        self, session_id: str, transport: Transport, *, from_worker: str, idle: float = 0.0
    ) -> bool:
        """Hold a session that another worker holds and that is dead, in its place.

        Of all who try at once one wins, and it wins all of the session: owner, capabilities, data
        and the messages that are stored. Whether that worker is dead is for you to say
        (`describe_session` tells its state): one that lives loses the session likewise, of which
        it is told at once if it listens (an inbox, a topic, handlers or a call), else learns at its
        next pass, and disconnects its transport (`RemovalReason.TAKEN_OVER`).

        Args:
            session_id: the session.
            transport: the connection that is to hold it; the registry disconnects it from then on.
            from_worker: the incarnation that held it, or the id of the worker, as `SessionInfo`
                has them. The incarnation is safer: the worker may have begun again.
            idle: seconds for which nothing was heard of its client, which ``limits.idle_timeout``
                counts on from; 0.0: its client has just asked for it.

        Returns:
            True: this worker holds the session now. False: that worker does not hold it any more,
            somebody else does or nobody, or it is held here already; the transport is yours still,
            as after every error.

        Raises:
            InvalidSessionId: as for every method.
            TypeError, ValueError: ``transport``, ``from_worker`` or ``idle`` cannot be one.
            TooManySessions, RegistryDraining, RegistryClosed: it was not let in.
            SessionRevoked: the id was revoked.
            StoreUnavailable: the database cannot say, or went back not long ago: then nobody knows
                who holds what. Ask again here: what was won all the same is yours then. If nobody
                asks before the next pass, that deletes it.
            NotSupported: the store lacks this part of the contract.

        Cancellation: what has not left for the database is withdrawn. What has left goes on, and
        the session may be held here with this transport, as `get_session` says: keep it, or
        ``remove_session(session_id, transport=transport)``.
        """
        check_trio()
        check_session_id(session_id)
        check_transport(transport)
        if from_worker != "":  # as a row has it that an older version has written
            a_name("from_worker", from_worker)
        idle = silence("idle", idle)
        self._check_open()
        return await self._house.adopting.adopt(
            session_id, transport, from_worker=from_worker, idle=idle
        )

    # ---- logs ----

    @property
    def logs(self) -> Logs:
        """The logs of sessions, for events that any worker appends, and reads again and again."""
        return self._house.logs
