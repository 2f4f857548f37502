"""The letters to workers in memory, and who listens to which topic. Synchronous, no clock."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trio_sessions.errors import RowUnavailable
from trio_sessions.stores.memory._workers import Workers
from trio_sessions.writes import Post

__all__ = ["Mail"]

_MOST = 10_000  # letters that wait for one worker; more are not left


@dataclass(slots=True)
class _Letter:
    payload: str
    left_at: float


class Mail:
    """Letters by the incarnation that they are for, the oldest first."""

    def __init__(self) -> None:
        self._letters: dict[str, deque[_Letter]] = {}
        self._topics: dict[str, set[str]] = {}

    def restart_clock(self, now: float) -> None:
        """Set all moments to now, on a new clock that has nothing to do with the one before."""
        for letter in itertools.chain.from_iterable(self._letters.values()):
            letter.left_at = now

    def post(self, post: Post, workers: Workers, now: float) -> list[str] | RowUnavailable:
        """Leave a letter; return the incarnations that it was left for.

        One for a single worker whose box is full was not left, and may be left again later. Of
        those that listen to a topic, some with full boxes hold up no other.

        Args:
            post: the letter.
            workers: know who lives.
            now: the moment, on whatever clock the workers have.
        """
        if post.to is not None:
            found = workers.addressee(post.to, now)
            recipients = set() if found is None else {found}
        else:
            recipients = self._topics.get(post.topic or "", set()) & set(workers.alive(now))
        left = []
        for incarnation in sorted(recipients):
            box = self._letters.setdefault(incarnation, deque())
            if len(box) < _MOST:
                box.append(_Letter(post.payload, now))
                left.append(incarnation)
        if recipients and post.to is not None and not left:
            return RowUnavailable(
                f"{_MOST} letters wait for the worker already, which does not collect them: "
                "try again later"
            )
        return left

    def collect(self, incarnation: str, limit: int, size: int) -> list[str]:
        """Take letters away, the oldest first, until they are as many or as large as this."""
        box = self._letters.get(incarnation, deque())
        taken = list[str]()
        while box and len(taken) < limit and size > 0:
            taken.append(box.popleft().payload)
            size -= len(taken[-1].encode())
        if not box:
            self._letters.pop(incarnation, None)
        return taken

    def listen(self, incarnation: str, topics: Sequence[str]) -> None:
        """Add topics to those that a worker listens to."""
        for topic in topics:
            self._topics.setdefault(topic, set()).add(incarnation)

    def unlisten(self, incarnation: str, topics: Iterable[str]) -> None:
        """Remove topics from those that a worker listens to."""
        for topic in topics:
            listeners = self._topics.get(topic, set())
            listeners.discard(incarnation)
            if not listeners:
                self._topics.pop(topic, None)

    def forget(self, incarnation: str) -> None:
        """Drop what a worker that has gone leaves behind."""
        self._letters.pop(incarnation, None)
        self.unlisten(incarnation, list(self._topics))

    def expire(self, workers: Workers, now: float, older_than: float, limit: int) -> int:
        """Drop old letters, so many at most, and as many topics of workers without a row.

        Returns:
            How many letters.
        """
        known = workers.incarnations()
        strays = (
            (incarnation, topic)
            for topic, listeners in self._topics.items()
            for incarnation in listeners - known
        )
        for incarnation, topic in list(itertools.islice(strays, limit)):
            self.unlisten(incarnation, [topic])
        expired = 0
        for incarnation, box in list(self._letters.items()):
            while box and expired < limit and now - box[0].left_at > older_than:
                box.popleft()
                expired += 1
            if not box:
                del self._letters[incarnation]
        return expired
