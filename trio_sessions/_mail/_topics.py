"""Topics: what is published reaches every subscriber of every worker, at most once.

A worker listens to a topic once, for all its subscribers, and as long as it has one. What the store
should know is told to it by whoever subscribes, who waits for that, and by a loop for the rest.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import trio

from trio_sessions._counters import Counters
from trio_sessions._edge import Edge, chunked
from trio_sessions._interrupts import uninterrupted
from trio_sessions._json import decode, size_of
from trio_sessions._logging import get_logger
from trio_sessions._mail._reader import Reader
from trio_sessions._mail._seen import Seen

__all__ = ["Subscription", "Subscriptions"]

logger = get_logger("trio_sessions.mail")

_MOST = 1000  # messages that wait for one subscriber
_SIZE = 16 * 1024 * 1024  # bytes that they may have together; one message may wait in any case
_TOPICS = 1000  # written by one operation


class Subscriptions:
    """The subscribers of one worker, by topic.

    Args:
        edge: the way to the store.
        counters: count what was dropped.
    """

    def __init__(self, edge: Edge, counters: Counters) -> None:
        self._edge = edge
        self._counters = counters
        self._subscribers: dict[str, dict[Subscription, None]] = {}
        self._written: set[str] = set()
        """What the store knows: we are told of these."""
        self._surplus: set[str] = set()
        """What the store may know, and nobody here wants any more."""
        self._seen = Seen()
        """The messages that have come."""
        self._epoch = 0
        """Counts how often the store may have forgotten it."""
        self._turn = trio.Lock()
        self._changed = trio.Event()
        self._is_closed = False

    # ---- who listens ----

    async def join(self, subscription: "Subscription") -> None:
        """Add a subscriber, and wait until the store knows that this worker listens.

        Raises:
            StoreUnavailable: it may know, or not; nobody listens.
            NotSupported: the store keeps no mail.
        """
        topic = subscription.topic
        self._subscribers.setdefault(topic, {})[subscription] = None
        try:
            await trio.lowlevel.checkpoint()
            while topic not in self._written:
                await self._listen([topic])
        except BaseException:  # whoever does not come in has nothing to leave
            self.leave(subscription)
            raise

    def leave(self, subscription: "Subscription") -> None:
        """Remove a subscriber; after the last of a topic, `keep` tells the store."""
        ones = self._subscribers.get(subscription.topic, {})
        ones.pop(subscription, None)
        if not ones and self._subscribers.pop(subscription.topic, None) is not None:
            self._changed.set()

    def deliver(self, topic: str, contents: str, *, sender: str, number: int) -> None:
        """Hand a message to all who are subscribed here; one that comes again is ignored."""
        if not self._seen.is_new(sender, number):
            return
        for one in self._subscribers.get(topic, ()):
            self._counters.count_topic_dropped(one.put(contents))

    def close(self) -> None:
        """End every subscription: after what has come already."""
        self._is_closed = True
        for ones in list(self._subscribers.values()):
            for one in list(ones):
                one.end()

    # ---- what the store knows ----

    def restore(self) -> None:
        """Write all topics anew: the store may have forgotten them."""
        self._epoch += 1
        self._written.clear()
        self._changed.set()

    async def keep(self, worked: Callable[[], None]) -> None:
        """Tell the store what it should know, whenever that has changed.

        Raises:
            SessionsError: it could not be told; call it again.
        """
        while True:
            self._changed = trio.Event()
            await self._listen([one for one in self._subscribers if one not in self._written])
            await self._unlisten()
            worked()
            await self._changed.wait()

    async def _listen(self, topics: list[str]) -> None:
        for part in chunked(topics, _TOPICS):
            async with self._turn:
                epoch, new = self._epoch, [one for one in part if one not in self._written]
                self._surplus.update(new)  # unless it is answered, the store may know of them
                if new:
                    await self._edge.listen(new)
                self._surplus.difference_update(new)
                if epoch == self._epoch:
                    self._written.update(new)

    async def _unlisten(self) -> None:
        self._surplus.update(one for one in self._written if one not in self._subscribers)
        for part in chunked(list(self._surplus), _TOPICS):
            async with self._turn:
                left = [one for one in part if one not in self._subscribers]
                self._written.difference_update(left)  # whoever joins meanwhile listens behind this
                if left:
                    await self._edge.unlisten(left)
                self._surplus.difference_update(left)


@uninterrupted
class Subscription(Reader):
    """The messages of one topic for one subscriber; made by `Topics.subscribe`."""

    ends_with_registry = True

    def __init__(
        self, topic: str, subscriptions: Subscriptions, check_open: Callable[[], None]
    ) -> None:
        self.topic = topic
        self._subscriptions = subscriptions
        self._check_open = check_open
        self._waiting: deque[tuple[str, int]] = deque()
        self._size = 0
        self._arrived = trio.Event()
        self._is_open = False
        self._has_ended = False

    async def open(self) -> None:
        if self._is_open or self._has_ended:
            raise RuntimeError("a subscription is entered once: subscribe again")
        self._check_open()
        self._is_open = True
        await self._subscriptions.join(self)

    @property
    def needs_opening(self) -> bool:
        return not self._is_open

    async def prepare(self) -> None:
        raise RuntimeError(
            "the subscription is not open: write "
            "async with registry.topics.subscribe(topic) as messages"
        )

    def close(self) -> None:
        self._subscriptions.leave(self)
        self._waiting.clear()
        self.end()

    def end(self) -> None:
        """End the subscription; what has come already may still be read."""
        self._has_ended = True
        self._arrived.set()

    def put(self, contents: str) -> int:
        """Add a message; return how many older ones were dropped for it."""
        size = size_of(contents)
        dropped = 0
        while self._waiting and (len(self._waiting) >= _MOST or self._size + size > _SIZE):
            self._size -= self._waiting.popleft()[1]
            dropped += 1
        self._waiting.append((contents, size))
        self._size += size
        self._arrived.set()
        return dropped

    def next_nowait(self) -> tuple[bool, Any]:
        while self._waiting:
            contents, size = self._waiting.popleft()
            self._size -= size
            try:
                return True, decode(contents)
            except (ValueError, LookupError) as exc:
                logger.warning(
                    "a message of a topic was dropped that cannot be read: %s", type(exc).__name__
                )
        return False, not self._has_ended

    async def wait(self) -> None:
        if not self._waiting and not self._has_ended and self._arrived.is_set():
            self._arrived = trio.Event()  # another reader may wait for the one that is not set
        await self._arrived.wait()
