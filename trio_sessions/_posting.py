"""Letters to other workers on their way to the store."""

from trio_sessions._json import size_of
from trio_sessions._orders import Order
from trio_sessions.writes import Post

__all__ = ["PostOrder"]

_LINE = "\0mail"
"""No session has this id: the letters of a worker are a line of their own, in one order."""


class PostOrder(Order[int]):
    """One letter on its way to the store; many travel in one batch, in the order of the calls.

    A letter is not repeated after its answer was lost: it may have been left. Answered with the
    number of workers that it was left for.

    Args:
        payload: its JSON.
        to: an incarnation, or the id of a worker.
        topic: or whoever listens to it.
    """

    is_grouped = True

    __slots__ = ("_payload", "_to", "_topic")

    def __init__(self, payload: str, *, to: str | None = None, topic: str | None = None) -> None:
        super().__init__(_LINE, size=size_of(payload))
        self._payload = payload
        self._to = to
        self._topic = topic

    def make(self) -> Post:
        return Post(
            session_id=self.session_id, payload=self._payload, to=self._to, topic=self._topic
        )
