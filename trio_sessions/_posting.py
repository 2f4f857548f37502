"""Letters to other workers on their way to the store."""

from trio_sessions._json import size_of
from trio_sessions._orders import Order
from trio_sessions.errors import InvalidSessionId
from trio_sessions.types import check_session_id
from trio_sessions.writes import Post

__all__ = ["PostOrder"]

_LINE = "\0mail"
"""No session has this id: the letters of a worker are a line of their own, in one order."""


_NOBODY = ""
"""No worker and no topic has this name."""


class PostOrder(Order[int]):
    """One letter on its way to the store; many travel in one batch, in the order of the calls.

    A letter is not repeated after its answer was lost: it may have been left. Answered with the
    number of workers that it was left for.

    Args:
        payload: its JSON.
        to: an incarnation, or the id of a worker. One that no worker can have is nobody's, and
            never reaches a batch, which it would spoil for all others in it.
        topic: or whoever listens to it; likewise.
    """

    is_grouped = True
    is_letter = True

    __slots__ = ("_payload", "_to", "_topic")

    def __init__(self, payload: str, *, to: str | None = None, topic: str | None = None) -> None:
        super().__init__(_LINE, size=size_of(payload))
        self._payload = payload
        self._to = to
        self._topic = topic

    def make(self) -> Post:
        return Post(
            session_id=self.session_id,
            payload=self._payload,
            to=_possible(self._to),
            topic=_possible(self._topic),
        )


def _possible(name: str | None) -> str | None:
    if name is not None:
        try:
            return check_session_id(name)
        except InvalidSessionId:
            return _NOBODY
    return None
