"""Letters on their way out: to other workers by their lanes, to ourselves at once."""

from typing import Protocol

import trio

from trio_sessions._edge import Edge
from trio_sessions._logging import get_logger
from trio_sessions._mail._lanes import Lanes
from trio_sessions._orders import Order, Stage
from trio_sessions._persisting import jittered
from trio_sessions._posting import PostOrder
from trio_sessions._writer import Writer
from trio_sessions.errors import SessionsError

__all__ = ["Receiver", "Sender"]

logger = get_logger("trio_sessions.mail")

_PAUSES = (0.1, 2.0)  # seconds between two attempts, the first and the longest


class Receiver(Protocol):
    """A receiver of letters."""

    def receive(self, text: str) -> None:
        """Take a letter in. Synchronous."""
        ...


class Sender:
    """The sender of one worker's letters.

    Args:
        writer: takes them to the store, in the order of the calls.
        lanes: take those for one worker to it.
        edge: knows who we are.
    """

    def __init__(self, writer: Writer, lanes: Lanes, edge: Edge) -> None:
        self._writer = writer
        self._lanes = lanes
        self._edge = edge
        self._receiver: Receiver | None = None

    @property
    def own(self) -> str:
        """Our incarnation, which the others answer to."""
        return self._edge.worker.incarnation

    def receive_by(self, receiver: Receiver) -> None:
        """Hand letters to ourselves to this receiver, without the store."""
        self._receiver = receiver

    def is_own(self, to: str) -> bool:
        """Say whether this worker is meant."""
        return to in {self._edge.worker.incarnation, self._edge.worker.worker_id}

    def _hand_over(self, text: str) -> None:
        assert self._receiver is not None
        self._receiver.receive(text)

    async def post(self, to: str, text: str) -> bool:
        """Leave a letter for a worker, once; say whether there is such a worker.

        Raises:
            StoreUnavailable: it may have been left, or not.

        Cancellation: it is withdrawn, unless it is on its way already.
        """
        if self.is_own(to):
            await trio.lowlevel.checkpoint()
            self._hand_over(text)
            return True
        if not await self._lanes.has_room(to):
            await self._writer.admit()
        order = self._lanes.give(to, text)
        return order is None or await self.was_left(order)

    async def was_left(self, order: Order[int]) -> bool:
        """Wait until it is known what has become of a letter; returns and raises as `post`."""
        return bool(await self._lanes.answer(order))

    def is_near(self, to: str) -> bool:
        """Say whether a letter to another worker leaves at once, most likely."""
        return self._lanes.is_clear(to)

    def post_nowait(self, to: str, text: str) -> Order[int] | None:
        """Leave a letter for another worker, where `is_near` has said so.

        Returns:
            What waits to be sent, for `was_left`; None: it has left.
        """
        return self._lanes.give(to, text)

    async def publish(self, topic: str, text: str) -> None:
        """Leave a letter for everybody who listens to a topic; raises as `post`."""
        await self._writer.admit()
        await self._writer.answer(self._writer.give(PostOrder(text, topic=topic)))

    def post_soon(
        self, to: str, text: str, *, earlier: Order[int] | None = None
    ) -> Order[int] | None:
        """Leave a letter for which nobody waits, and that may be lost.

        Args:
            to: for whom.
            text: the letter.
            earlier: what this returned for another one that says the same, but less: while that
                one waits, nothing more is left.

        Returns:
            What waits now; None: nothing.
        """
        if earlier is not None and earlier.stage is not Stage.SETTLED:
            return earlier
        if self.is_own(to):
            self._hand_over(text)
            return None
        return self._lanes.give(to, text, may_be_lost=True)

    async def deliver(self, to: str, text: str, order: Order[int] | None = None) -> None:
        """Leave a letter again and again until there is somebody who may get it.

        Only for letters of which a second one does no harm.

        Args:
            to: for whom.
            text: the letter.
            order: what waits to be sent, where it is on its way for the first time.

        Cancellation: what is on its way goes on.
        """
        if self.is_own(to):
            await trio.lowlevel.checkpoint()
            self._hand_over(text)
            return
        pause, longest = _PAUSES
        while True:
            try:
                if order is None:
                    await self._lanes.has_room(to)
                    order = self._lanes.give(to, text)
                if order is None or await order.wait():
                    return
            except SessionsError as exc:
                logger.debug("a letter could not be left, and is left again: %s", exc)
            order = None
            await trio.sleep(jittered(pause))
            pause = min(2 * pause, longest)
