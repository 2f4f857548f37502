"""What other workers call in these tests, and what has become of it."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trio.testing
from conftest import Shared

from trio_sessions import (
    SessionRegistry,
)

TOO_LONG = 30  # seconds


def by_lane(shared: Shared, request: pytest.FixtureRequest) -> Iterator[Shared]:
    """Let what workers share have sockets, too, if the test is to."""
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        shared.mail_sockets = folder if request.param == "sockets" else None
        yield shared


class Handlers:
    """What may be called in these tests, and what has become of it."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.yielded = 0

    def all(self) -> dict[str, Callable[[Any], Any]]:
        names = ("echo", "fail", "hang", "huge", "count", "count_and_fail", "count_and_hang")
        return {name: getattr(self, name) for name in names}

    async def echo(self, payload: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return payload

    async def fail(self, payload: Any) -> Any:
        raise LookupError(f"no {payload}")

    async def hang(self, payload: Any) -> Any:
        self.begun.append("hang")
        try:
            await trio.sleep_forever()
        finally:
            self.ended.append("hang")

    async def huge(self, payload: Any) -> Any:
        return "x" * payload

    async def count(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append("count")
        try:
            for number in range(payload):
                self.yielded += 1
                yield number
        finally:
            self.ended.append("count")

    async def count_and_fail(self, payload: Any) -> AsyncIterator[Any]:
        for number in range(payload):
            yield number
        raise LookupError("no more")

    async def count_and_hang(self, payload: Any) -> AsyncIterator[Any]:
        self.begun.append("count_and_hang")
        try:
            for number in range(payload):
                yield number
            await trio.sleep_forever()
        finally:
            self.ended.append("count_and_hang")

    async def until(self, what: list[str], name: str) -> None:
        with trio.fail_after(TOO_LONG):
            while name not in what:
                await trio.sleep(0.01)  # a handler may be of a worker on another loop: no event


def waiting(registry: SessionRegistry) -> tuple[int, int]:
    """Return how many calls are under way there: of its own, and of others."""
    mail = registry._house._mail
    return len(mail._calling._pending), len(mail._serving._running)


async def until_quiet(registry: SessionRegistry) -> None:
    """Wait until nothing is under way there."""
    with trio.fail_after(TOO_LONG):
        while waiting(registry) != (0, 0):
            await trio.sleep(0.01)  # the registry tells nobody when its last call ends
