"""The door of the room of mail: what the registry asks of it."""

import itertools
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

from trio_sessions._asking import INHERITED
from trio_sessions._background import Background
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import encode
from trio_sessions._listening import Listening
from trio_sessions._logging import get_logger
from trio_sessions._mail._calling import Calling, Stream
from trio_sessions._mail._incoming import Incoming
from trio_sessions._mail._lanes import Lanes
from trio_sessions._mail._letters import seal
from trio_sessions._mail._office import Office
from trio_sessions._mail._sending import Sender
from trio_sessions._mail._serving import Serving
from trio_sessions._mail._topics import Subscription, Subscriptions
from trio_sessions._mail._watch import Watch
from trio_sessions._persisting import persist
from trio_sessions._settings import Settings
from trio_sessions._writer import Writer
from trio_sessions.abc import Part
from trio_sessions.abc._mail import MAIL
from trio_sessions.errors import NotSupported, RegistryClosed

__all__ = ["Mail"]

logger = get_logger("trio_sessions.mail")

Loop = Callable[[], Awaitable[None]]

_ID = 4096  # bytes of an id in a letter, far more than there can be
_SAID = 4096 * 1024  # bytes of what was said of a thousand sessions, likewise


@uninterrupted
class Mail:
    """The mail of one worker: topics and calls.

    Args:
        edge: the way to the store.
        writer: takes letters to it.
        listening: hears the bell.
        background: where loops and handlers run.
        counters: count what was dropped.
        settings: ``handlers``, ``mail_sockets``, ``max_message_bytes`` and ``cleanup_interval``.
    """

    def __init__(
        self,
        *,
        edge: Edge,
        writer: Writer,
        listening: Listening,
        background: Background,
        counters: Counters,
        settings: Settings,
    ) -> None:
        self._edge = edge
        self._listening = listening
        self._background = background
        self._settings = settings
        self._watch = Watch(edge)
        folder = None
        if settings.mail_sockets is not None and edge.keeps(Part.MAIL):
            folder = os.fspath(settings.mail_sockets)
        self._lanes = Lanes(folder, writer=writer, edge=edge, background=background)
        self._incoming = Incoming(folder, edge=edge, background=background)
        self._sender = Sender(writer, self._lanes, edge)
        self._topics = Subscriptions(edge, counters)
        self._calling = Calling(self._sender, self._watch.wake)
        self._serving = Serving(
            settings.handlers or {},
            sender=self._sender,
            background=background,
            limit=settings.max_message_bytes,
            wake=self._watch.wake,
        )
        self._office = Office(
            edge,
            incoming=self._incoming,
            topics=self._topics,
            calling=self._calling,
            serving=self._serving,
        )
        self._sender.receive_by(self._office)
        self._incoming.receive_by(self._office)
        listening.tell(self)
        self._published = itertools.count(1)
        self._started: set[Loop] = set()
        self._is_closed = False

    # ---- its life ----

    def open(self) -> None:
        """Take letters that come by sockets, if there are to be some: before others know of us.

        Raises:
            ValueError: the setting cannot be used.
        """
        self._incoming.open()

    def start(self) -> None:
        """Begin to collect letters, unless it does; most programs need it never.

        Raises:
            NotSupported: the store keeps no mail.
        """
        self._check_store()
        self._listening.start()
        look_anyway = self._office.look_anyway
        self._start(self._collect, look_anyway, self._keep_topics, self._look_after, self._expire)

    def _start(self, *loops: Loop) -> None:
        for loop in loops:
            if loop not in self._started:
                self._started.add(loop)
                self._background.start_lasting(loop)

    async def rung(self, session_ids: Collection[str] | None) -> None:
        """Collect letters if the bell says so; see `trio_sessions._listening.BellListener`.

        Who hears the bell for messages alone begins to collect with the first letter.
        """
        is_mail = session_ids is not None and MAIL in session_ids
        if is_mail and not self._is_closed and self._edge.keeps(Part.MAIL):
            self.start()
        if is_mail or session_ids is None:
            self._office.look()

    async def _collect(self) -> None:
        await persist("collecting letters", self._office.collect, logger)

    async def _keep_topics(self) -> None:
        await persist("listening to topics", self._topics.keep, logger)

    async def _look_after(self) -> None:
        await self._watch.run(self._calling, self._serving)

    async def _expire(self) -> None:
        await self._office.expire(self._settings.cleanup_interval)

    def restore(self) -> None:
        """Write anew what the store may have forgotten."""
        self._topics.restore()

    def close(self) -> None:
        """Refuse new work, end subscriptions, fail all calls, and tell the callees.

        The handlers are to be interrupted next; each tells its caller.
        """
        self._is_closed = True
        self._serving.close()
        self._topics.close()
        self._calling.close(_closed)
        self._incoming.close()
        self._lanes.close()

    def end(self) -> None:
        """Close the connections: the handlers have said their last words."""
        self._incoming.end()
        self._lanes.end()

    def check_open(self) -> None:
        """Raise `RegistryClosed` unless it is open, and this process's."""
        if self._edge.is_inherited:
            raise RegistryClosed(INHERITED)
        if self._is_closed:
            raise _closed()

    def _check_store(self) -> None:
        if not self._edge.keeps(Part.MAIL):
            raise NotSupported(
                "calls between workers and topics need a store that keeps the part of the "
                "contract trio_sessions.abc.MailStore; this one does not"
            )

    # ---- sessions that move ----

    def tell_moved(self, session_id: str, from_worker: str) -> None:
        """Tell a worker that a session of it is held here now, if the store keeps mail.

        Not an earlier opening of this very worker: it is gone, and its letters would come here.
        It may hear no bell, and never collect: who leaves such letters deletes the old ones.
        """
        is_own = self._sender.is_own(from_worker)
        if self._edge.keeps(Part.MAIL) and not is_own and not self._is_closed:
            self._start(self._expire)
            contents = encode(session_id, what="a session id", limit=_ID)
            self._sender.post_soon(from_worker, seal("moved", contents=contents))

    def notify_moved(self, listener: Callable[[str], None]) -> None:
        """Tell ``listener`` of each session that another worker says to hold now."""
        self._office.notify_moved(listener)

    def tell_said(self, incarnation: str, things: Sequence[tuple[str, str]]) -> None:
        """Tell the holder of sessions what was changed of them here, if the store keeps mail.

        As with `tell_moved` it may never collect.
        """
        if self._edge.keeps(Part.MAIL) and not self._is_closed:
            self._start(self._expire)
            contents = encode(list(map(list, things)), what="what was said", limit=_SAID)
            self._sender.post_soon(incarnation, seal("said", contents=contents))

    def notify_said(self, listener: Callable[[Sequence[tuple[str, str]]], None]) -> None:
        """Tell ``listener`` what other workers say to have changed: of which session, and what."""
        self._office.notify_said(listener)

    # ---- topics ----

    async def publish(self, topic: str, message: object) -> None:
        """See `Topics.publish`."""
        limit = self._settings.max_message_bytes
        contents = encode(message, what="the message", limit=limit)
        self.check_open()
        self._check_store()
        number = next(self._published)
        letter = seal("topic", topic, self._sender.own, number, contents=contents)
        await self._sender.publish(topic, letter)

    def subscribe(self, topic: str) -> Subscription:
        """See `Topics.subscribe`."""
        return Subscription(topic, self._topics, self._begin)

    # ---- calls ----

    async def call(self, to: str, name: str, payload: object, timeout: float) -> Any:
        """See `Workers.call`."""
        encoded = self._encode(payload)
        self._begin_call(to)
        return await self._calling.call(to, name, encoded, timeout)

    def stream(self, to: str, name: str, payload: object, timeout: float) -> Stream:
        """See `Workers.stream`."""
        encoded = self._encode(payload)
        begin = partial(self._begin_call, to)
        return Stream(self._calling, begin, to=to, name=name, payload=encoded, timeout=timeout)

    def _encode(self, payload: object) -> str:
        limit = self._settings.max_message_bytes
        return encode(payload, what="the payload", limit=limit)

    def _begin(self) -> None:
        self.check_open()
        self.start()

    def _begin_call(self, to: str) -> None:
        self.check_open()
        if self._sender.is_own(to):
            self._start(self._look_after)  # it asks no store of oneself
        else:
            self.start()


def _closed() -> RegistryClosed:
    return RegistryClosed(
        "the registry is closed: use it inside the `async with open_registry(...)` block"
    )
