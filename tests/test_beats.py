"""Beats: who still waits says so, in as few letters as there are workers."""

from collections import Counter
from typing import Any, cast

import trio
from trio.testing import MockClock

from trio_sessions._mail._calling import Calling
from trio_sessions._mail._pending import Incoming
from trio_sessions._orders import Order

MINUTE = 60.0
LOOK = 0.1


class Posting:
    """A sender that counts the letters it is given, by worker."""

    own = "me"

    def __init__(self) -> None:
        self.letters: Counter[str] = Counter()
        self.texts: list[str] = []

    def is_own(self, to: str) -> bool:
        return to == self.own

    def post_soon(self, to: str, text: str, *, earlier: object = None) -> Order[int] | None:
        self.letters[to] += 1
        self.texts.append(text)
        return None

    def post_nowait(self, to: str, text: str) -> Order[int] | None:
        return self.post_soon(to, text)


def called(calling: Calling, to: str) -> Incoming:
    """Return a stream whose letter has left."""
    stream = calling.new_stream(to, "listen", timeout=30.0)
    assert calling.ask_nowait(stream, "listen", "null", 1) is None
    return stream


async def test_streams_of_one_worker_share_their_beats(autojump_clock: MockClock) -> None:
    """Each had beats of its own: so many idle streams cost so many letters."""
    posting = Posting()
    calling = Calling(cast("Any", posting), lambda _: None)
    streams = []
    for number in range(60):
        to = "one" if number % 2 else "another"
        streams.append(called(calling, to))
        await trio.sleep(0.13)
    posting.letters.clear()
    beaten_at = {one.number: trio.current_time() for one in streams}
    for _ in range(int(MINUTE / LOOK)):
        before = {one.number: one.beat_at for one in streams}
        calling.beat()
        for one in streams:
            if one.beat_at != before[one.number]:
                assert trio.current_time() - beaten_at[one.number] <= one.beat_interval + LOOK
                beaten_at[one.number] = trio.current_time()
        await trio.sleep(LOOK)
    assert set(posting.letters) == {"one", "another"}
    assert all(6 <= letters <= 13 for letters in posting.letters.values())


async def test_an_abandoned_stream_has_no_beat(autojump_clock: MockClock) -> None:
    """It is left instead, and does not hold up those that wait."""
    posting = Posting()
    calling = Calling(cast("Any", posting), lambda _: None)
    kept, lost = called(calling, "one"), called(calling, "one")
    posting.letters.clear()
    lost.is_abandoned = True
    await trio.sleep(1.0)
    calling.beat()
    assert posting.letters == {"one": 2}, "one that leaves, and one beat"
    assert kept.beat_at == trio.current_time() + kept.beat_interval
    assert calling.pause == kept.beat_interval


async def test_a_call_whose_letter_is_still_to_go_is_in_no_beat(autojump_clock: MockClock) -> None:
    """The beat of another call came first, and the callee said that it knew nothing of it."""
    posting = Posting()
    calling = Calling(cast("Any", posting), lambda _: None)
    called(calling, "one")
    await trio.sleep(1.0)
    waits = calling.new_stream("one", "listen", timeout=30.0)
    calling.beat()
    assert posting.texts[-1].endswith("[[1,0]]]")
    for _ in range(3):
        await trio.sleep(10.0)
        calling.beat()
        assert posting.texts[-1].endswith("[[1,0]]]")
        assert calling.pause == waits.beat_interval, "nobody is busy with it meanwhile"
    assert calling.ask_nowait(waits, "listen", "null", 1) is None
    await trio.sleep(10.0)
    calling.beat()
    assert posting.texts[-1].endswith("[[1,0],[2,0]]]")
