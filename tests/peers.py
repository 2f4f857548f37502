"""Connections whose peer is the test."""

from typing import Any

import trio

__all__ = ["Fakes"]


class Fakes:
    """A fake, whose peer is the test."""

    def __init__(self, transport: Any) -> None:
        self.transport = transport

    async def hang_up(self) -> None:
        await trio.lowlevel.checkpoint()
        self.transport.state = "closed"

    async def send(self) -> None:
        await self.transport.send("hello")
