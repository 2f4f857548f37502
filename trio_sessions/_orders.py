"""One write that was asked for: whoever gives it, waits for it, or carries it out. No I/O.

::

                  ┌──── to go again ────┐
                  v                     │
    (given) ──> WAITING ── sent ─────> OUT ── answered ──> SETTLED
                  └── withdrawn, or given up ─────────────────^

The one owner of how far a write has come; the writer, and what carries letters, tell it.
See docs/decisions/0009-one-writer.md.
"""

import abc
import copy
import enum
from typing import Any, ClassVar, Generic, TypeVar

import outcome
import trio

from trio_sessions.writes import Unfinished, Write

__all__ = ["Order", "Stage"]

T = TypeVar("T")


class Stage(enum.Enum):
    """Where an order is."""

    WAITING = enum.auto()
    """In the line of its session."""
    OUT = enum.auto()
    """In the batch under way: it happens or not."""
    SETTLED = enum.auto()
    """Answered, or withdrawn before it was out."""

    __hash__ = object.__hash__  # an enum's own is slow before Python 3.12


_NEXT = {
    Stage.WAITING: {Stage.WAITING, Stage.OUT, Stage.SETTLED},
    Stage.OUT: {Stage.WAITING, Stage.SETTLED},
    Stage.SETTLED: set[Stage](),
}


class Order(abc.ABC, Generic[T]):
    """One write that was asked for, and its answer.

    Args:
        session_id: whose row is written.
        size: bytes, about.
    """

    is_grouped: ClassVar[bool] = False
    """A batch takes several of this kind for one session."""
    group: ClassVar[str] = ""
    """And several of those that have the same group, of no other."""
    is_letter: ClassVar[bool] = False
    """It waits for no disk, unless something else is in its batch; letters have their own line."""

    __slots__ = (
        "_settled",
        "attempts",
        "error",
        "given_at",
        "may_wait",
        "session_id",
        "size",
        "stage",
        "value",
    )

    def __init__(self, session_id: str, size: int = 0) -> None:
        self.session_id = session_id
        self.size = size
        # What follows is read by many, for each write: attributes. Only the methods below set it.
        self.stage = Stage.WAITING
        self.given_at = 0.0
        """When it was given, or a part of it was done last, on Trio's clock."""
        self.may_wait = False
        """No batch is made for it at once: it goes with another, or a little later."""
        self.attempts = 0
        """How often its row was locked."""
        self.value: T | None = None
        """What it was answered with; None: it is not, or with an error, or was not needed."""
        self.error: BaseException | None = None
        """The error that it was answered with; None: there is none, or no answer."""
        self._settled: trio.Event | None = None

    @abc.abstractmethod
    def make(self) -> Write[T] | None:
        """Return the write as it is to leave just now; None: it is not needed any more.

        Raises:
            SessionsError: it cannot be written; that is its answer.
        """

    def goes_with(self, other: "Order[Any]") -> bool:
        """Say whether one batch may take both, for one session."""
        return self.is_grouped and other.is_grouped and self.group == other.group

    @property
    def is_in_a_queue(self) -> bool:
        """Whether many take turns with the lock of its row: then it asks again sooner."""
        return False

    def advance(self, part: Unfinished) -> None:
        """Take note that a part of it is done; it goes again, for the rest."""

    def note_undone(self) -> None:
        """Take note that it has surely not happened so far: it goes again, or is given up."""

    def conclude(self, result: outcome.Outcome[T] | None) -> None:
        """Take note of the answer, whoever waits for it; None: it was not needed any more."""

    # ---- its way ----

    def give(self, now: float, *, may_wait: bool = False) -> None:
        """Note that it waits from now on."""
        self._go(Stage.WAITING)
        self.given_at = now
        self.may_wait = may_wait

    def hasten(self) -> None:
        """Note that it waits for no other's batch any more."""
        self.may_wait = False

    def send(self) -> None:
        """Note that it is on its way: it happens or not."""
        self._go(Stage.OUT)
        self.may_wait = False

    def go_again(self) -> None:
        """Note that it has not happened, and waits to go again."""
        self._go(Stage.WAITING)

    def note_locked(self) -> None:
        """Note that it could not be done, for its row was locked."""
        self.attempts += 1

    def settle(self, result: outcome.Outcome[T] | None) -> None:
        """Settle the order with its result, and wake whoever waits for it."""
        self._go(Stage.SETTLED)
        if isinstance(result, outcome.Value):
            self.value = result.value
        elif isinstance(result, outcome.Error):
            self.error = result.error
        self.conclude(result)
        if self._settled is not None:
            self._settled.set()

    def _go(self, stage: Stage) -> None:
        if stage not in _NEXT[self.stage]:
            raise RuntimeError(f"an order cannot go from {self.stage.name} to {stage.name}")
        self.stage = stage

    async def settled(self) -> None:
        """Wait until it is answered; no checkpoint if it is."""
        if self.stage is not Stage.SETTLED:
            if self._settled is None:
                self._settled = trio.Event()
            await self._settled.wait()

    async def wait(self) -> T | None:
        """Wait for the answer; None: it was not needed any more. Raises what was answered."""
        if self.stage is Stage.SETTLED:
            await trio.lowlevel.checkpoint()
        await self.settled()
        if self.error is not None:  # others of its batch are told the same
            raise copy.copy(self.error) from self.error.__cause__
        return self.value
