"""How much a sweep asks for at once, and for how long it goes on."""

import logging
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from trio_sessions import OperationTooLong, RowUnavailable, StoreUnavailable
from trio_sessions._counters import Counters
from trio_sessions._edge import Edge
from trio_sessions._settings import Settings
from trio_sessions._sweeping import Sweeper
from trio_sessions.types import Stamp, Stamped, Swept

INTERVAL = 400.0


class Backlog:
    """An edge behind which as much has expired as was said, or a sweep fails."""

    def __init__(self, *, pieces: int = 1, takes: float = 0.0) -> None:
        self.asked: list[int] = []
        self.pieces = pieces
        self.takes = takes
        self.error: Exception | None = None

    async def sweep(self, *, limit: int) -> Swept:
        await trio.sleep(self.takes)
        self.asked.append(limit)
        if self.error is not None:
            raise self.error
        self.pieces -= 1
        stamped = Stamped(stamp=Stamp(history="h", beat=1), rows=7, clock=0.0)
        return Swept(sessions=2, messages=3, more=self.pieces > 0, stamped=stamped)


def make_sweeper(backlog: Backlog, counters: Counters | None = None) -> Sweeper:
    settings = Settings(batch_size=64, cleanup_interval=INTERVAL, session_ttl=2 * INTERVAL)
    return Sweeper(cast("Edge", backlog), counters or Counters(), settings)


async def test_it_goes_on_until_nothing_is_left(autojump_clock: MockClock) -> None:
    """What went is counted, and the last piece says how many rows this worker has."""
    counters, backlog = Counters(), Backlog(pieces=3)
    sweeper = make_sweeper(backlog, counters)
    assert await sweeper.sweep() == 6
    assert (sweeper.finished, sweeper.rows) == (True, 7)
    assert counters.messages_dropped == 9
    assert backlog.asked == [64, 64, 64]


async def test_a_backlog_does_not_keep_the_next_pass_from_its_beginning(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A quarter of the interval is what it gets; then it says that something is left."""
    caplog.set_level(logging.INFO)
    backlog = Backlog(pieces=1000, takes=INTERVAL / 20)
    sweeper = make_sweeper(backlog)
    assert await sweeper.sweep() == 10
    assert trio.current_time() == INTERVAL / 4
    assert not sweeper.finished
    told = ["more has expired than there is time for, the next pass goes on"]
    assert caplog.messages == told
    backlog.pieces = 1
    await sweeper.sweep()
    assert sweeper.finished
    assert caplog.messages == told, "all has its time"


@pytest.mark.parametrize("error", [OperationTooLong("too long"), StoreUnavailable("cut off")])
async def test_a_piece_that_fails_makes_those_after_it_smaller(
    autojump_clock: MockClock, error: Exception
) -> None:
    """Also in the next passes; each that is done makes them larger again, up to batch_size."""
    backlog = Backlog()
    sweeper = make_sweeper(backlog)
    await sweeper.sweep()
    backlog.error = error
    for _ in range(3):
        assert await sweeper.sweep() == 0
        assert (sweeper.finished, sweeper.rows) == (False, None)
    backlog.error, backlog.pieces = None, 8
    await sweeper.sweep()
    assert backlog.asked == [64, 64, 8, 1, 1, 2, 4, 8, 16, 32, 64, 64]


async def test_a_piece_that_somebody_else_is_at_teaches_nothing(
    autojump_clock: MockClock,
) -> None:
    """Rows are locked: the next piece is as large as ever."""
    backlog: Any = Backlog()
    sweeper = make_sweeper(backlog)
    backlog.error = RowUnavailable("locked")
    for _ in range(2):
        await sweeper.sweep()
    assert backlog.asked == [64, 64]
