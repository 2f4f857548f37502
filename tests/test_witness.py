"""The witness and the estimate, without a loop's help: what is believed, and what is refused."""

from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st
from soak import SOAK
from trio.testing import MockClock

from trio_sessions._estimate import ClockEstimate
from trio_sessions._witness import Fate, Flight, Standing, WentBack, Witness
from trio_sessions.types import Stamp
from trio_sessions.writes import Claim, SetOwner


def stamp(beat: int, history: str = "h") -> Stamp:
    return Stamp(history=history, beat=beat)


def steady() -> Witness:
    witness = Witness()
    witness.begin("h")
    return witness


def test_a_history_that_just_begins_says_nothing_of_a_lease() -> None:
    """It was lost only where that is said; and nothing is in doubt."""
    assert not steady().has_lapsed
    witness = Witness()
    witness.begin("h", has_lapsed=True)
    assert witness.has_lapsed


def test_what_is_acknowledged_is_named_by_what_departs_later() -> None:
    """The highest beat, also where the answers come in another order."""
    witness = steady()
    one, two = witness.depart(), witness.depart()
    witness.land(two, stamp(3))
    witness.land(one, stamp(2))
    assert witness.known == stamp(3)
    assert witness.depart().known == stamp(3)


@pytest.mark.parametrize(
    "answer", [None, stamp(1), stamp(0), stamp(9, "another")], ids=["none", "same", "lower", "new"]
)
def test_an_answer_that_contradicts_it(answer: Stamp | None) -> None:
    """Nothing departs until another history has begun."""
    witness = steady()
    with pytest.raises(WentBack):
        witness.land(witness.depart(), answer)
    assert witness.standing is Standing.CONTRADICTED
    with pytest.raises(WentBack):
        witness.depart()
    witness.begin("later")
    assert witness.depart().known == stamp(1, "later")


def test_a_beat_that_is_counted_twice_contradicts_it() -> None:
    """The database went back behind the first, and forward again with the second."""
    witness = steady()
    one, two = witness.depart(), witness.depart()
    witness.land(one, stamp(2))
    with pytest.raises(WentBack):
        witness.land(two, stamp(2))


def test_what_departed_in_an_earlier_history_decides_nothing() -> None:
    """Neither that the database has forgotten it, nor anything else."""
    witness = steady()
    old, older = witness.depart(), witness.depart()
    with pytest.raises(WentBack):
        witness.show(witness.depart(), None)
    witness.begin("later")
    for flight, answer in ((old, None), (older, stamp(2))):
        with pytest.raises(WentBack):
            witness.land(flight, answer)
        assert witness.is_steady
    assert witness.known == stamp(1, "later")


def test_a_lower_beat_is_shown_by_a_snapshot_that_is_older() -> None:
    """What was acknowledged after a question had departed is not held against its answer."""
    witness = steady()
    question, batch = witness.depart(), witness.depart()
    witness.land(batch, stamp(2))
    witness.show(question, stamp(1))
    assert witness.is_steady
    assert not witness.vouches(stamp(1), stamp(2)), (
        "but it does not vouch for what was confirmed since"
    )


def test_a_question_of_an_earlier_history_decides_nothing() -> None:
    """Neither before the next one has begun, nor after."""
    witness = steady()
    before, after = witness.depart(counts=False), witness.depart(counts=False)
    with pytest.raises(WentBack):
        witness.land(witness.depart(), None)
    with pytest.raises(WentBack, match="the database has gone back"):
        witness.show(before, stamp(1))
    witness.begin("later")
    with pytest.raises(WentBack):
        witness.show(after, stamp(1))
    assert witness.is_steady


def test_a_beat_may_have_been_counted_for_what_was_not_answered() -> None:
    """While that is out, and for ever if it is lost; a question counts none."""
    witness = steady()
    question, lost, landed = witness.depart(counts=False), witness.depart(), witness.depart()
    witness.land(landed, stamp(2))
    assert witness.is_suspect(stamp(2))
    witness.lose(lost)
    witness.lose(lost)
    assert witness.is_suspect(stamp(2))
    assert not witness.vouches(stamp(9), stamp(2))
    assert not witness.is_suspect(stamp(1))
    witness.land(witness.depart(), stamp(3))
    assert witness.is_suspect(stamp(3)), "what was lost may be the third on a server left behind"
    witness.land(witness.depart(), stamp(4))
    assert not witness.is_suspect(stamp(4)), "only the question is out"
    witness.lose(question)
    assert not witness.is_suspect(stamp(4))
    assert witness.vouches(stamp(4), stamp(4))
    with pytest.raises(WentBack):
        witness.show(witness.depart(counts=False), None)
    witness.begin("later")
    assert not witness.is_suspect(stamp(2, "later")), "beats begin again with the history"
    assert not witness._flights, "nothing is kept of what has come back"


def suspect(witness: Witness) -> list[int]:
    return [
        beat for beat in range(1, 400) if witness.is_suspect(stamp(beat, witness.known.history))
    ]


def test_as_many_beats_are_suspect_as_were_lost() -> None:
    """One after the other, and beside others that are on their way or were answered."""
    witness = steady()
    for _ in range(3):
        witness.lose(witness.depart())
    assert suspect(witness) == [2, 3, 4]
    with pytest.raises(WentBack):
        witness.show(witness.depart(counts=False), None)
    witness.begin("later")
    witness.lose(witness.depart())
    assert suspect(witness) == [2], "a history has beats of its own"


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_what_is_on_its_way_may_have_been_counted_first(lost: int) -> None:
    """Whichever is lost may have been the last of them."""
    witness = steady()
    for beat in range(2, 6):
        witness.land(witness.depart(), stamp(beat))
    flights = [witness.depart() for _ in range(3)]
    witness.lose(flights[lost])
    assert suspect(witness) == [6, 7, 8]


def test_what_is_on_its_way_from_an_earlier_history_counts_no_beat() -> None:
    witness = steady()
    for _ in range(9):
        witness.depart()
    with pytest.raises(WentBack):
        witness.show(witness.depart(counts=False), None)
    witness.begin("later")
    witness.lose(witness.depart())
    assert suspect(witness) == [2]


def test_what_was_suspect_stays_so() -> None:
    """However many there are: of the oldest, what lies between two is suspect, too."""
    witness = steady()
    witness.lose(witness.depart())
    witness.land(witness.depart(), stamp(2))
    witness.lose(witness.depart())
    assert suspect(witness) == [2, 3]
    for beat in range(3, 200):
        witness.land(witness.depart(), stamp(beat))
        if not beat % 3:
            witness.lose(witness.depart())
    lost = {2, 3, *(beat + 1 for beat in range(3, 200, 3))}
    assert lost <= {*suspect(witness)}
    assert {beat for beat in suspect(witness) if beat > 20} == {one for one in lost if one > 20}
    assert len(witness._suspect) <= 64, "they are bounded"


async def test_whoever_waits_for_a_contradiction_is_told() -> None:
    """At once where there is one; again with the next."""
    witness = steady()
    for history in ("second", "third"):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(witness.contradicted)
                await trio.testing.wait_all_tasks_blocked()
                assert nursery.child_tasks
                with pytest.raises(WentBack):
                    witness.show(witness.depart(), None)
            await witness.contradicted()
        witness.begin(history)


async def test_a_doubt_ends_with_its_time(autojump_clock: MockClock) -> None:
    """At that very moment."""
    witness = Witness()
    witness.begin("h", doubtful_until=trio.current_time() + 5.0)
    assert witness.is_in_doubt
    await trio.sleep(5.0)
    assert not witness.is_in_doubt


@dataclass
class Database:
    """Counts beats; may forget the last of its commits, and be again what it was before."""

    commits: list[int] = field(default_factory=lambda: [0])
    left_behind: list[list[int]] = field(default_factory=list)

    @property
    def beat(self) -> int:
        return len(self.commits)

    def commit(self, flight: Flight, number: int) -> Stamp | None:
        if self.beat < flight.known.beat:
            return None
        self.commits.append(number)
        return stamp(self.beat)

    def forget(self, commits: int) -> None:
        self.left_behind.append(self.commits)
        self.commits = self.commits[: max(1, self.beat - commits)]

    def come_back(self, which: int) -> None:
        """Be a server that was left behind, as it was then."""
        if self.left_behind:
            self.left_behind.append(self.commits)
            self.commits = list(self.left_behind[-2 - which % (len(self.left_behind) - 1)])


def plain(steps: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the steps that those are short for, which are about one that departs then."""
    return [
        (one, 0 if step in ALONE else which)
        for step, which in steps
        for one in ALONE.get(step, (step,))
    ]


ALONE = {
    "land": ("depart", "carry out", "answer"),
    "fail": ("depart", "carry out", "lose"),
    "leave": ("depart", "carry out"),
}
STEPS = [*ALONE, "depart", "carry out", "answer", "lose", "refuse", "forget", "come back", "show"]


@dataclass
class Out:
    """A flight that is out."""

    flight: Flight
    number: int
    is_carried_out: bool = False
    answer: Stamp | None = None


@settings(max_examples=300 if not SOAK else 20_000)
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 3)), max_size=30))
@example([("fail", 0), ("fail", 0), ("forget", 1), ("land", 0), ("come back", 0)])
@example(  # two are carried out behind one that is acknowledged
    [
        *([("depart", 0)] * 2 + [("land", 0), ("carry out", 0), ("carry out", 1)]),
        *([("lose", 0)] * 2 + [("forget", 1), ("land", 0), ("land", 0), ("come back", 0)]),
    ]
)
@example(  # one is answered when others were acknowledged elsewhere, behind one that was lost
    [("leave", 0), ("forget", 1), ("fail", 0), ("land", 0), ("land", 0), ("answer", 0)]
)
def test_nothing_that_was_acknowledged_is_missing_where_it_vouches(
    steps: list[tuple[str, int]],
) -> None:
    """Four at once, carried out and answered in any order; a server is left, and comes back.

    The last one that departed is what is meant, unless a number says another.
    """
    witness, database = steady(), Database()
    acknowledged: dict[int, Stamp] = {}
    out: list[Out] = []
    number = 0
    for step, which in [*plain(steps), ("show", 0)]:
        try:
            one = out[-1 - which % len(out)] if out else None
            if step == "depart" and len(out) < 4:
                number += 1
                out.append(Out(witness.depart(), number))
            elif step == "carry out" and one is not None and not one.is_carried_out:
                one.is_carried_out = True
                one.answer = database.commit(one.flight, one.number)
            elif step == "answer" and one is not None and one.is_carried_out:
                out.remove(one)
                witness.land(one.flight, one.answer)
                acknowledged[one.number] = witness.landed
            elif step == "lose" and one is not None:
                out.remove(one)
                witness.lose(one.flight)
            elif step == "refuse":
                witness.withdraw(witness.depart())
            elif step == "forget":
                database.forget(which * 2)
            elif step == "come back":
                database.come_back(which)
            elif step == "show":
                question = witness.depart(counts=False)
                shown = stamp(database.beat)
                witness.show(question, shown)
                for landed, confirmed in acknowledged.items():
                    assert not witness.vouches(shown, confirmed) or landed in database.commits
        except WentBack:
            return


# ---- the estimate ----

CLAIM = Claim(session_id="s", generation=1, age=0.0)


@pytest.fixture(autouse=True)
def no_other_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only Trio's goes on."""
    monkeypatch.setattr("trio_sessions._estimate.time.monotonic", lambda: 0.0)


async def test_an_estimate_goes_on_with_the_time(autojump_clock: MockClock) -> None:
    """A claim may be held up for two round trips, everything else as long as somebody waits."""
    estimate = ClockEstimate(10.0)
    assert estimate.not_after([CLAIM]) is None, "nothing is known yet"
    asked_at = trio.current_time()
    await trio.sleep(0.1)
    estimate.read(1000.0, asked_at)
    await trio.sleep(5)
    assert estimate.not_after([CLAIM]) == pytest.approx(1005.2)
    assert estimate.not_after([CLAIM, SetOwner(session_id="t", owner=None)]) == pytest.approx(
        1005.2
    )
    assert estimate.not_after([SetOwner(session_id="t", owner=None)]) == pytest.approx(1015.0)


async def test_a_margin_grows_with_each_refusal(autojump_clock: MockClock) -> None:
    """Up to what a caller waits for, and is small again once a batch was in time."""
    estimate = ClockEstimate(10.0)
    estimate.read(0.0, trio.current_time())
    margins = []
    for _ in range(10):
        moment = estimate.not_after([CLAIM])
        assert moment is not None
        margins.append(moment)
        estimate.note_verdict(late=True)
    assert margins[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert margins[-1] == pytest.approx(10.0)
    estimate.note_verdict(late=False)
    assert estimate.not_after([CLAIM]) == pytest.approx(0.05)


# ---- what became of what was lost ----


def test_a_beat_that_nobody_was_told_of_is_that_of_what_was_lost() -> None:
    """Until something that departs later is acknowledged, nobody can say."""
    for is_there in (False, True):
        witness = steady()
        before = witness.account()
        flight = witness.depart()
        witness.lose(flight)
        departed = witness.departed
        assert witness.fate(before, departed) is Fate.UNKNOWN
        witness.land(witness.depart(), stamp(3 if is_there else 2))
        expected = Fate.PERHAPS_THERE if is_there else Fate.NOT_THERE
        assert witness.fate(before, departed) is expected


def test_what_was_lost_before_is_not_taken_for_what_is_lost_now() -> None:
    witness = steady()
    witness.lose(witness.depart())
    witness.land(witness.depart(), stamp(3))
    before = witness.account()
    witness.lose(witness.depart())
    departed = witness.departed
    witness.land(witness.depart(), stamp(4))
    assert witness.fate(before, departed) is Fate.NOT_THERE


def test_what_was_under_way_beside_it_may_have_taken_its_beat() -> None:
    """That is no evidence: better lost than delivered twice."""
    witness = steady()
    beside = witness.depart()
    before = witness.account()
    lost = witness.depart()
    witness.lose(lost)
    departed = witness.departed
    witness.land(beside, stamp(2))
    assert witness.fate(before, departed) is Fate.UNKNOWN, "it departed earlier"
    witness.land(witness.depart(), stamp(3))
    assert witness.fate(before, departed) is Fate.PERHAPS_THERE


def test_who_was_under_way_when_it_was_given_up_says_nothing_of_it() -> None:
    """The last that had departed by then may have overtaken it: it may come still."""
    witness = steady()
    before = witness.account()
    lost, later = witness.depart(), witness.depart()
    witness.lose(lost)
    departed = witness.departed
    witness.land(later, stamp(2))
    assert witness.fate(before, departed) is Fate.UNKNOWN
    witness.land(witness.depart(), stamp(3))
    assert witness.fate(before, departed) is Fate.NOT_THERE


def test_in_another_history_nobody_knows_what_became_of_it() -> None:
    witness = steady()
    before = witness.account()
    witness.lose(witness.depart())
    departed = witness.departed
    with pytest.raises(WentBack):
        witness.land(witness.depart(), None)
    witness.begin("later")
    witness.land(witness.depart(), stamp(2, "later"))
    assert witness.fate(before, departed) is Fate.PERHAPS_THERE
