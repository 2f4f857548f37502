"""Checks of `LimitStore`: an owner has no more sessions than it may."""

from dataclasses import replace

import trio

from trio_sessions.testing._conformance._fleet import LONG, TTL, begin, eventually
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Holder
from trio_sessions.writes import Answer, Claim, Claimed, Keep, Outcome, SetOwner

__all__ = ["limit_checks"]


def _limited(
    session_id: str,
    *,
    owner: str | Keep | None = "alice",
    most: int | None = 2,
    generation: int = 1,
    ended: int = 0,
) -> Claim:
    return Claim(
        session_id=session_id,
        generation=generation,
        age=0.0,
        owner=owner,
        most_of_owner=most,
        ended=ended,
    )


async def _outcome(client: Client, claim: Claim) -> Outcome:
    return (await client.write(claim)).outcome


def _let_in(answers: list[Answer]) -> int:
    told = [one.outcome for one in answers if isinstance(one, Claimed)]
    assert len(told) == len(answers)
    return len(told) - told.count(Outcome.TOO_MANY)


async def _begin_all(*clients: Client) -> None:
    for client in clients:
        await begin(client, session_ttl=LONG)


async def who_has_as_many_gets_no_other(make_store: MakeStore) -> None:
    """Whoever holds those that there are; nothing is written, and other owners have their own."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        assert await _outcome(a, _limited("1")) is Outcome.INSERTED
        assert await _outcome(b, _limited("2")) is Outcome.INSERTED
        for client in (a, b):
            assert await _outcome(client, _limited("3")) is Outcome.TOO_MANY
        assert await a.store.locate(a.worker, "3") is None
        assert await _outcome(a, _limited("3", most=3)) is Outcome.INSERTED
        assert await _outcome(a, _limited("4", most=3)) is Outcome.TOO_MANY
        assert await _outcome(a, _limited("bob's", owner="bob", most=1)) is Outcome.INSERTED
        assert await _outcome(b, _limited("bob's 2", owner="bob", most=1)) is Outcome.TOO_MANY


async def who_names_no_owner_or_no_limit_is_let_in(make_store: MakeStore) -> None:
    """And is counted all the same."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        for number in range(3):
            assert await _outcome(a, _limited(f"{number}", most=None)) is Outcome.INSERTED
        assert await _outcome(b, _limited("limited")) is Outcome.TOO_MANY
        for owner in (None, Keep.AS_IS):
            assert await _outcome(b, _limited(f"{owner}", owner=owner, most=1)) is Outcome.INSERTED
            assert await _outcome(b, _limited(f"{owner} 2", owner=owner)) is Outcome.INSERTED


async def what_an_owner_has_already_is_no_further_one(make_store: MakeStore) -> None:
    """It may be claimed again, and be taken over. Another's session is a further one."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        for session_id in ("1", "2"):
            await a.write(_limited(session_id))
        assert await _outcome(a, _limited("1", generation=2)) is Outcome.KEPT
        await trio.sleep(TICK)
        assert await _outcome(b, _limited("2", generation=2)) is Outcome.TAKEN_OVER
        await a.write(_limited("bob's", owner="bob"))
        await trio.sleep(TICK)
        for client, generation in ((a, 2), (b, 3)):
            claim = _limited("bob's", generation=generation)
            assert await _outcome(client, claim) is Outcome.TOO_MANY
        holder = await b.store.locate(b.worker, "bob's")
        assert holder == Holder(worker_id="a", incarnation=a.worker.incarnation, owner="bob")


async def what_has_ended_does_not_count(make_store: MakeStore) -> None:
    """Where a claim replaces it, it is one session, and no two."""
    async with opened(make_store, "a") as (a,):
        await _begin_all(a)
        for session_id in ("1", "2"):
            await a.write(_limited(session_id))
        again = _limited("2", generation=2, ended=1)
        assert await _outcome(a, again) is Outcome.INSERTED
        assert await _outcome(a, _limited("3")) is Outcome.TOO_MANY


async def what_another_has_left_makes_no_room(make_store: MakeStore) -> None:
    """A claim replaces an ended session of another owner: that is none of the others, not one less.

    Of those who come after it in the batch; and it makes room for one where it had been the last.
    """
    async with opened(make_store, "a") as (a,):
        await _begin_all(a)
        for session_id in ("left", "bob's", "bob's 2"):
            await a.write(_limited(session_id, owner="bob", most=3))
        claims = [_limited(f"more {number}", owner="bob") for number in range(3)]
        answers = await a.commit(_limited("left", generation=2, ended=1), *claims)
        assert [_let_in(answers[:1]), _let_in(answers[1:])] == [1, 0]
        await a.write(_limited("left", owner="bob", most=3, generation=3, ended=2))
        claims = [_limited(f"more {number}", owner="bob", most=3) for number in range(3)]
        answers = await a.commit(_limited("left", generation=4, ended=3), *claims)
        assert [_let_in(answers[:1]), _let_in(answers[1:])] == [1, 1]


async def what_has_ended_of_many_makes_no_room(make_store: MakeStore) -> None:
    """Who has far more than it may, and whose sessions end here, still has more than it may."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        for number in range(4):
            await a.write(_limited(f"a{number}", most=None))
            await b.write(_limited(f"b{number}", most=None))
        again = [_limited(f"a{number}", generation=2, ended=1) for number in range(3)]
        answers = await a.commit(*again, _limited("new"))
        assert _let_in(answers) == 0
        answers = await a.commit(*[replace(one, most_of_owner=7) for one in again])
        assert _let_in(answers) == 2


async def a_session_that_is_not_handed_on_counts(make_store: MakeStore) -> None:
    """A claim for another owner is refused: the session stays with the one that has it."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        await a.write(_limited("alice's"))
        for session_id in ("bob's", "bob's 2"):
            await b.write(_limited(session_id, owner="bob"))
        await trio.sleep(TICK)
        further = _limited("bob's", most=1)
        answers = await a.commit(further, _limited("bob's 3", owner="bob"))
        assert _let_in(answers) == 0


async def an_owner_that_is_set_counts_from_then(make_store: MakeStore) -> None:
    """It is never refused, however many there are."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin_all(a, b)
        for session_id in ("1", "2", "3"):
            await a.claim(session_id)
            assert isinstance(await b.write(SetOwner(session_id=session_id, owner="alice")), Holder)
        assert await _outcome(b, _limited("4")) is Outcome.TOO_MANY
        for session_id in ("1", "2"):
            await b.write(SetOwner(session_id=session_id, owner=None))
        assert await _outcome(b, _limited("4")) is Outcome.INSERTED
        assert await _outcome(b, _limited("5")) is Outcome.TOO_MANY


async def sessions_of_workers_that_are_gone_do_not_count(make_store: MakeStore) -> None:
    """Those that have not stamped within their own ttl; the asker counts, whatever it has done."""
    async with opened(make_store, "gone", "a", "b") as (gone, a, b):
        await begin(gone, session_ttl=TTL)
        await begin(b, session_ttl=LONG)
        for session_id in ("1", "2"):
            await gone.write(_limited(session_id))
        number = 0

        async def is_let_in() -> bool:
            nonlocal number
            number += 1
            return await _outcome(a, _limited(f"a{number}")) is Outcome.INSERTED

        await eventually(is_let_in, "a worker that is gone counts for ever")
        assert await _outcome(a, _limited("a's second")) is Outcome.INSERTED
        assert await _outcome(a, _limited("a's third")) is Outcome.TOO_MANY


async def of_many_in_one_batch_as_many_as_may_come_in(make_store: MakeStore) -> None:
    """In their order, and each owner has its own places."""
    async with opened(make_store, "a") as (a,):
        await _begin_all(a)
        await a.write(_limited("alice's"))
        claims = [_limited(f"{number}", most=3) for number in range(5)]
        bobs = [_limited(f"bob's {number}", owner="bob", most=3) for number in range(5)]
        again = _limited("alice's", most=3, generation=2)
        answers = await a.commit(*claims, *bobs, again)
        assert [_let_in(answers[:5]), _let_in(answers[5:10]), _let_in(answers[10:])] == [2, 3, 1]
        assert _let_in(answers[:2]) == 2
        assert _let_in(answers[5:8]) == 3


async def of_many_at_once_as_many_as_may_come_in(make_store: MakeStore) -> None:
    """Of several workers: to count and to write is one step."""
    async with opened(make_store, "a", "b", "c") as clients:
        await _begin_all(*clients)
        for turn in range(3):
            owner, let_in = f"owner{turn}", list[int]()

            async def claim(client: Client, owner: str = owner, let_in: list[int] = let_in) -> None:
                mine = [
                    _limited(f"{owner} {client.worker.worker_id}{number}", owner=owner, most=5)
                    for number in range(4)
                ]
                let_in.append(_let_in(await client.commit(*mine)))

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(claim, client)
            assert sum(let_in) == 5


limit_checks: tuple[Check, ...] = (
    who_has_as_many_gets_no_other,
    who_names_no_owner_or_no_limit_is_let_in,
    what_an_owner_has_already_is_no_further_one,
    what_has_ended_does_not_count,
    what_another_has_left_makes_no_room,
    what_has_ended_of_many_makes_no_room,
    a_session_that_is_not_handed_on_counts,
    an_owner_that_is_set_counts_from_then,
    sessions_of_workers_that_are_gone_do_not_count,
    of_many_in_one_batch_as_many_as_may_come_in,
    of_many_at_once_as_many_as_may_come_in,
)
