"""Checks of `Store.commit`: what a takeover keeps, brings, and excludes."""

import trio

from trio_sessions.testing._conformance._fleet import PATIENCE
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities, Holder, Sent
from trio_sessions.writes import Acknowledge, Claim, Claimed, Delete, Outcome, Send

__all__ = ["takeover_checks"]

ASKED = Capabilities(encoded='{"elicitation":{}}', elicitation=True)
ROOTS = Capabilities(encoded='{"roots":{}}', elicitation=False)


async def a_takeover_keeps_or_brings_what_was_said(make_store: MakeStore) -> None:
    """Owner and capabilities stay in the row, unless the claim brings others."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):

        async def said(client: Client) -> tuple[str | None, str | None, list[str]]:
            holder = await client.store.locate(client.worker, "s")
            assert holder is not None
            assert holder.incarnation == client.worker.incarnation
            return (
                holder.owner,
                await client.store.get_capabilities(client.worker, "s"),
                await client.store.elicitation_capable(client.worker),
            )

        await a.write(
            Claim(session_id="s", generation=1, age=0.0, owner="alice", capabilities=ASKED)
        )
        await trio.sleep(TICK)
        assert (await b.claim("s")).outcome is Outcome.TAKEN_OVER
        assert await said(b) == ("alice", ASKED.encoded, ["s"])
        await trio.sleep(TICK)
        brought = Claim(session_id="s", generation=1, age=0.0, owner="bob", capabilities=ROOTS)
        taken = await c.write(brought)
        assert taken.outcome is Outcome.TAKEN_OVER
        assert (taken.holder.owner, taken.capabilities) == ("bob", ROOTS)
        assert await said(c) == ("bob", ROOTS.encoded, [])
        await trio.sleep(TICK)
        nobodys = await a.write(Claim(session_id="s", generation=2, age=0.0, owner=None))
        assert (nobodys.holder.owner, nobodys.capabilities) == (None, ROOTS)
        assert await said(a) == (None, ROOTS.encoded, [])


async def a_row_of_another_says_since_when(make_store: MakeStore) -> None:
    """Since its holder's claim, and for as long as that has waited; a store need not say it."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("old", 1, age=1000.0)
        await a.claim("new", 1)
        answers = await b.store.refresh(b.worker, ["new", "nobody", "old"])
        assert answers.taken_over == {"new", "old"}
        assert answers.taken_ago.keys() <= answers.taken_over
        assert 0.0 <= answers.taken_ago.get("new", 0.0) < PATIENCE
        assert 0.0 <= answers.taken_ago.get("old", 1000.0) - 1000.0 < PATIENCE


async def a_takeover_counts_in_its_own_generations(make_store: MakeStore) -> None:
    """They are counted by each incarnation: a smaller one of another is not an earlier one."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s", 7)
        await trio.sleep(TICK)
        assert (await b.claim("s", 2)).outcome is Outcome.TAKEN_OVER
        assert await b.store.own_rows(b.worker, after="", limit=10) == [("s", 2)]
        assert await a.store.own_rows(a.worker, after="", limit=10) == []
        assert await a.write(Delete(session_id="s", up_to=9)) == 0
        assert await b.write(Delete(session_id="s", up_to=1)) == 0
        assert await b.holds("s")
        assert await b.write(Delete(session_id="s", up_to=2)) == 0
        assert await b.store.locate(b.worker, "s") is None


async def to_add_again_is_to_take_again(make_store: MakeStore) -> None:
    """Who was added in between is older than the newest connection of the holder."""
    async with opened(make_store, "a", "b") as (a, b):
        for session_id in ("again", "once"):
            await a.claim(session_id, 1, age=1000.0)
        assert (await a.claim("again", 2)).outcome is Outcome.KEPT
        assert (await b.claim("again", age=500.0)).outcome is Outcome.LOST
        assert (await b.claim("once", age=500.0)).outcome is Outcome.TAKEN_OVER


async def of_two_claims_of_one_moment_the_second_wins(make_store: MakeStore) -> None:
    """What the store hears later is newer, where nothing else tells: no later is enough.

    Where the second claim might be the older one by a hair, either may win, but one does.
    """
    async with opened(make_store, "a", "b") as (a, b):
        started = trio.current_time()
        first = await a.commit(*(_brought("a", s) for s in ("second's", "either's")))
        # Of one age: the clock of a store that is coarse, or virtual, has not moved meanwhile.
        second = await b.write(_brought("b", "second's"))
        assert second.outcome is Outcome.TAKEN_OVER
        passed = trio.current_time() - started
        either = await b.write(_brought("b", "either's", passed))
        assert either.outcome in {Outcome.TAKEN_OVER, Outcome.LOST}
        ids = ["either's", "second's"]
        of_a = await a.store.refresh(a.worker, ids)
        of_b = await b.store.refresh(b.worker, ids)
        assert of_a.held == of_b.taken_over
        assert of_b.held == of_a.taken_over
        assert of_a.held | of_b.held == set(ids)
        for session_id, before, claimed in zip(ids, reversed(first), (either, second), strict=True):
            assert isinstance(before, Claimed)
            assert (before.outcome, before.holder.owner) == (Outcome.INSERTED, "a")
            assert claimed.born == before.born
            winner = b if claimed.outcome is Outcome.TAKEN_OVER else a
            name = winner.worker.worker_id
            holder = Holder(worker_id=name, incarnation=winner.worker.incarnation, owner=name)
            assert claimed.holder == await a.store.locate(a.worker, session_id) == holder


def _brought(owner: str, session_id: str, later: float = 0.0) -> Claim:
    """Return the claim of a session that was added a second ago, and so long more."""
    return Claim(session_id=session_id, generation=1, age=1.0 + later, owner=owner)


async def a_message_that_crosses_a_takeover_is_noticed(make_store: MakeStore) -> None:
    """Who takes a session over finds it, or the bell rings for it."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        turn = [b, a]
        await a.claim("s")
        for number in range(6):
            await trio.sleep(TICK)
            taker = turn[number % 2]
            sent: list[int] = []

            async def send(payload: str, sent: list[int] = sent) -> None:
                answer = await c.write(Send(session_id="s", payload=payload))
                assert isinstance(answer, Sent)
                sent.append(answer.id)

            found: set[int] = set()

            async def take(
                taker: Client = taker, generation: int = number + 2, found: set[int] = found
            ) -> None:
                await taker.claim("s", generation)
                found.update(one.id for one in await taker.messages("s"))

            async with taker.store.open_bell(taker.worker) as bell:
                async with trio.open_nursery() as nursery:
                    for payload in ("1", "2", "3"):
                        nursery.start_soon(send, payload)
                    nursery.start_soon(take)
                await send("4")
                while not found.issuperset(sent):
                    with trio.move_on_after(PATIENCE) as scope:
                        await bell.wait()
                    assert not scope.cancelled_caught, "no bell rings for the new holder"
                    found.update(one.id for one in await taker.messages("s"))
            assert await taker.holds("s")


async def what_is_acknowledged_is_not_seen_by_the_next(make_store: MakeStore) -> None:
    """A takeover and an acknowledgement exclude each other."""
    async with opened(make_store, "a", "b") as (a, b):
        for number in range(6):
            session_id = f"s{number}"
            await a.claim(session_id)
            sent = await a.write(Send(session_id=session_id, payload="1"))
            assert sent is not None
            acknowledge = Acknowledge(session_id=session_id, message_ids=(sent.id,))
            is_acknowledged: list[bool] = []
            await trio.sleep(TICK)

            async def confirm(
                write: Acknowledge = acknowledge, answers: list[bool] = is_acknowledged
            ) -> None:
                answers.append(await a.write(write))

            if number == 0:
                await confirm()
            async with trio.open_nursery() as nursery:
                if number != 0:
                    nursery.start_soon(confirm)
                nursery.start_soon(b.claim, session_id)
            left = [one.id for one in await b.messages(session_id)]
            assert left == ([] if is_acknowledged == [True] else [sent.id])


takeover_checks: tuple[Check, ...] = (
    a_takeover_keeps_or_brings_what_was_said,
    a_row_of_another_says_since_when,
    a_takeover_counts_in_its_own_generations,
    to_add_again_is_to_take_again,
    of_two_claims_of_one_moment_the_second_wins,
    a_message_that_crosses_a_takeover_is_noticed,
    what_is_acknowledged_is_not_seen_by_the_next,
)
