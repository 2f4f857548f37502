"""When a batch may begin at the latest: an estimate of the database's clock, with a margin."""

import pytest
import trio
from trio.testing import MockClock

from trio_sessions._estimate import ClockEstimate
from trio_sessions.writes import Claim, SetOwner

PATIENCE = 30.0
CLAIM = [SetOwner(session_id="t", owner="o"), Claim(session_id="s", generation=1, age=0.0)]
OTHERS = [SetOwner(session_id="t", owner="o")]


class Host:
    """The host's clock, which a test moves."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr("trio_sessions._estimate.time", host)
    return host


def read(round_trip: float) -> ClockEstimate:
    """Return an estimate of a database that has just said that it is 1000."""
    estimate = ClockEstimate(PATIENCE)
    estimate.read(1000.0, trio.current_time() - round_trip)
    return estimate


async def test_before_the_first_reading_nothing_is_late(host: Host) -> None:
    """An answer without a reading changes nothing either."""
    estimate = ClockEstimate(PATIENCE)
    assert estimate.not_after(CLAIM) is None
    estimate.read(None, 0.0)
    assert estimate.not_after(CLAIM) is None


@pytest.mark.parametrize(("round_trip", "margin"), [(0.2, 0.4), (0.001, 0.05), (40.0, PATIENCE)])
async def test_a_claim_may_be_held_up_for_two_round_trips(
    host: Host, mock_clock: MockClock, round_trip: float, margin: float
) -> None:
    """By 50 ms at least, and never for longer than its caller waits."""
    estimate = read(round_trip)
    assert estimate.not_after(CLAIM) == pytest.approx(1000.0 + margin)
    mock_clock.jump(7.0)
    assert estimate.not_after(CLAIM) == pytest.approx(1007.0 + margin)


async def test_everything_else_may_be_held_up_until_its_caller_is_told(
    host: Host, mock_clock: MockClock
) -> None:
    """However near the database is."""
    assert read(0.001).not_after(OTHERS) == pytest.approx(1000.0 + PATIENCE)


async def test_the_margin_grows_with_each_batch_that_came_late(
    host: Host, mock_clock: MockClock
) -> None:
    """So that a slow network is no reason to go round for ever; one in time ends that."""
    estimate = read(0.1)
    margins = []
    for _ in range(3):
        estimate.note_verdict(late=True)
        last = estimate.not_after(CLAIM)
        assert last is not None
        margins.append(last - 1000.0)
    assert margins == pytest.approx([0.4, 0.8, 1.6])
    estimate.note_verdict(late=False)
    assert estimate.not_after(CLAIM) == pytest.approx(1000.2)


@pytest.mark.parametrize("clock", ["trio", "host"])
async def test_what_has_passed_is_told_by_whichever_clock_has_moved(
    host: Host, mock_clock: MockClock, clock: str
) -> None:
    """A clock of a test stands still, or jumps: too late a moment refuses nobody."""
    estimate = read(0.1)
    if clock == "trio":
        mock_clock.jump(5.0)
    else:
        host.now += 5.0
    assert estimate.not_after(CLAIM) == pytest.approx(1005.2)
