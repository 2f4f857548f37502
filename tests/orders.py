"""Orders for tests of what waits, and of what writes."""

from typing import Any

from trio_sessions._orders import Order
from trio_sessions.writes import (
    Send,
    SetOwner,
    Write,
)


class One(Order[Any]):
    """A write of a kind that a batch has once for a session."""

    def __init__(self, session_id: str = "s", size: int = 0, name: str = "") -> None:
        super().__init__(session_id, size)
        self.name = name
        self.concluded: list[Any] = []

    def make(self) -> Write[Any] | None:
        return SetOwner(session_id=self.session_id, owner=self.name or None)

    def conclude(self, result: Any) -> None:
        self.concluded.append(result)


class Many(One):
    """One of which a batch has several."""

    is_grouped = True

    def make(self) -> Write[Any] | None:
        return Send(session_id=self.session_id, payload=self.name)
