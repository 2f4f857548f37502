"""What workers say to each other, and what must hold of it.

A handler runs at most once for a call, and whoever calls has an answer or an error in bounded time.
A message of a topic comes at most once to each subscriber. Without a fault all of it arrives.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from trio_sessions.abc import Part
from trio_sessions.errors import SessionsError
from trio_sessions.testing._simulation._rules import Rules
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["MailRules"]

_TOPIC = "news"
_SLACK = 1.0  # seconds beyond a timeout
_WAY = 2.0  # seconds in which a letter comes and its answer goes, without a fault
_SPREAD = 8.0  # seconds in which a message of a topic has come to all, without a fault
_LONGEST = 150.0  # seconds after which each of our streams has ended, one way or the other
_DURATIONS = (0.0, 0.0, 0.5, 3.0, 12.0)  # seconds that handlers take
_TIMEOUTS = (1.0, 5.0, 20.0)  # seconds
_STAYS = (1.0, 20.0, 120.0)  # seconds for which somebody is subscribed


@dataclass(eq=False, slots=True)
class _Subscriber:
    """Somebody who listens to the topic at a worker."""

    worker: SimulatedWorker
    seen: dict[int, str] = field(default_factory=dict)
    """The incarnations that have published it, by the number of the message."""


class MailRules(Rules):
    """The rules about mail; a rule that has nothing to do says False."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._letters = 0
        self._ran = Counter[int]()
        """How often a handler has run for each call."""
        self._subscribers: dict[_Subscriber, None] = {}

    def _settings(self, number: int) -> Mapping[str, Any]:
        settings = super()._settings(number)
        if not self._plays(Part.MAIL):
            return settings
        return {**settings, "handlers": {"answer": self._answer, "count": self._count}}

    # ---- calls ----

    def call(self) -> bool:
        """A worker calls another one, or itself."""
        workers, others = self._workers(), self._judge.workers
        if not workers:
            return False
        caller, callee = self._chance.choice(workers), self._chance.choice(others)
        self._letters += 1
        takes, timeout = self._chance.choice(_DURATIONS), self._chance.choice(_TIMEOUTS)
        self._nursery.start_soon(self._call, caller, callee, self._letters, takes, timeout)
        return True

    async def _call(
        self,
        caller: SimulatedWorker,
        callee: SimulatedWorker,
        number: int,
        takes: float,
        timeout: float,
    ) -> None:
        began_at, pauses = trio.current_time(), caller.link.pauses
        to = callee.incarnation or f"worker-{callee.number}"
        payload = {"number": number, "takes": takes}
        self._log.note(caller.number, f"calls w{callee.number}: {number}")
        try:
            answer = await caller.opened.workers.call(to, "answer", payload, timeout=timeout)
        except (SessionsError, TimeoutError) as exc:
            answer = type(exc).__name__
        took = trio.current_time() - began_at
        self._log.note(caller.number, f"call {number}: {answer}")
        if took > timeout + _SLACK and caller.link.pauses == pauses:
            self._log.violate(f"call {number} took {took:.1f} s, with a timeout of {timeout:g} s")
        if isinstance(answer, int):
            if answer != number or not self._ran[number]:
                self._log.violate(f"call {number} of w{caller.number} was answered {answer}")
        elif self._is_calm and callee.is_open and takes + _WAY < timeout:
            self._log.violate(f"call {number} of w{caller.number} has failed: {answer}")

    def _run(self, number: int) -> None:
        self._ran[number] += 1
        if self._ran[number] > 1:
            self._log.violate(f"the handler of call {number} has run {self._ran[number]} times")

    async def _answer(self, payload: Any) -> int:
        """Answer a call with its number."""
        number: int = payload["number"]
        self._run(number)
        await trio.sleep(payload["takes"])
        return number

    def stream(self) -> bool:
        """A worker lets another one, or itself, count."""
        workers, others = self._workers(), self._judge.workers
        if not workers:
            return False
        caller, callee = self._chance.choice(workers), self._chance.choice(others)
        self._letters += 1
        items, pause = self._chance.choice([0, 3, 100]), self._chance.choice([0.0, 0.0, 0.3])
        self._nursery.start_soon(self._stream, caller, callee, self._letters, items, pause)
        return True

    async def _stream(
        self,
        caller: SimulatedWorker,
        callee: SimulatedWorker,
        number: int,
        items: int,
        pause: float,
    ) -> None:
        pauses, came = caller.link.pauses, 0
        to = callee.incarnation or f"worker-{callee.number}"
        payload = {"number": number, "items": items, "pause": pause}
        with trio.move_on_after(_LONGEST) as scope:
            try:
                async with caller.opened.workers.stream(
                    to, "count", payload, timeout=10.0
                ) as found:
                    async for item in found:
                        if item != came:
                            self._log.violate(f"item {came} of stream {number} is {item}")
                        came += 1
                error = None
            except (SessionsError, TimeoutError) as exc:
                error = exc
            if error is None and came != items:
                self._log.violate(f"stream {number} has ended after {came} of {items} items")
            if error is not None and self._is_calm and callee.is_open:
                self._log.violate(f"stream {number} has failed: {error!r}")
        if scope.cancelled_caught and caller.link.pauses == pauses:
            self._log.violate(f"stream {number} has not ended after {_LONGEST:g} s")

    async def _count(self, payload: Any) -> AsyncIterator[int]:
        """Count, slowly or not."""
        self._run(payload["number"])
        for item in range(payload["items"]):
            yield item
            await trio.sleep(payload["pause"])

    # ---- topics ----

    def subscribe(self) -> bool:
        """Somebody subscribes to the topic at a worker, and leaves after a while."""
        workers = self._workers()
        if not workers:
            return False
        self._nursery.start_soon(
            self._listen, self._chance.choice(workers), self._chance.choice(_STAYS)
        )
        return True

    async def _listen(self, worker: SimulatedWorker, stay: float) -> None:
        one = _Subscriber(worker)
        try:
            with trio.move_on_after(stay):
                async with worker.opened.topics.subscribe(_TOPIC) as messages:
                    self._subscribers[one] = None
                    async for publisher, number in messages:
                        self._hear(one, publisher, number)
        except SessionsError:
            return
        finally:
            self._subscribers.pop(one, None)

    def _hear(self, one: _Subscriber, publisher: str, number: int) -> None:
        if number in one.seen:
            self._log.violate(f"message {number} has come twice to a subscriber")
        earlier = [n for n, by in one.seen.items() if by == publisher]
        if self._is_calm and earlier and max(earlier) > number:
            self._log.violate(f"message {number} has come behind {max(earlier)} of its publisher")
        one.seen[number] = publisher

    def publish(self) -> bool:
        """A worker says something to all who are subscribed."""
        workers = self._workers()
        if not workers:
            return False
        self._letters += 1
        self._nursery.start_soon(self._publish, self._chance.choice(workers), self._letters)
        return True

    async def _publish(self, worker: SimulatedWorker, number: int) -> None:
        listening = list(self._subscribers)
        try:
            await worker.opened.topics.publish(_TOPIC, [worker.incarnation, number])
        except SessionsError:
            return
        await trio.sleep(_SPREAD)
        for one in listening:
            if one in self._subscribers and number not in one.seen and self._is_calm:
                self._log.violate(f"message {number} has not come to w{one.worker.number}")
