"""Checks of `Store.commit`: claims and deletions, and what a batch is."""

import trio

from trio_sessions.testing._conformance._tools import (
    TICK,
    Check,
    MakeStore,
    opened,
    without_a_thread,
)
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import (
    Acknowledge,
    Claim,
    Claimed,
    ClaimOwner,
    Delete,
    Outcome,
    Send,
    SetCapabilities,
    SetOwner,
    Write,
)

__all__ = ["claim_checks"]

ASKED = Capabilities(encoded='{"elicitation":{}}', elicitation=True)


async def a_claim_says_what_it_found(make_store: MakeStore) -> None:
    """Nothing, the own row, or that of another worker, which may be newer."""
    async with opened(make_store, "a", "b") as (a, b):
        first = await a.claim("s")
        assert first.outcome is Outcome.INSERTED
        assert first.holder == Holder(worker_id="a", incarnation=a.worker.incarnation)
        assert first.capabilities is None
        assert first.dropped == 0
        again = await a.claim("s", 2)
        assert again.outcome is Outcome.KEPT
        assert again.holder == first.holder
        await trio.sleep(TICK)
        taken = await b.claim("s")
        assert taken.outcome is Outcome.TAKEN_OVER
        assert taken.holder == Holder(worker_id="b", incarnation=b.worker.incarnation)
        lost = await a.claim("s", 3, age=10.0)
        assert lost.outcome is Outcome.LOST
        assert lost.holder == taken.holder
        assert first.born == again.born == taken.born == lost.born
        assert await b.holds("s")


async def a_claim_brings_and_is_told_what_was_said(make_store: MakeStore) -> None:
    """Owner and capabilities go with the row, stay in a takeover, and are in the answer."""
    async with opened(make_store, "a", "b") as (a, b):
        said = Claim(session_id="s", generation=1, age=0.0, owner="alice", capabilities=ASKED)
        first = await a.write(said)
        assert (first.holder.owner, first.capabilities) == ("alice", ASKED)
        kept = await a.claim("s", 2)
        assert (kept.holder.owner, kept.capabilities) == ("alice", ASKED)
        await trio.sleep(TICK)
        taken = await b.claim("s")
        assert (taken.holder.owner, taken.capabilities) == ("alice", ASKED)
        nobodys = await b.write(Claim(session_id="s", generation=2, age=0.0, owner=None))
        assert (nobodys.holder.owner, nobodys.capabilities) == (None, ASKED)
        lost = await a.write(Claim(session_id="s", generation=3, age=10.0, owner="alice"))
        assert lost.outcome is Outcome.LOST
        holder = await b.store.locate(b.worker, "s")
        assert holder is not None
        assert holder.owner is None


async def the_newest_claim_takes_over(make_store: MakeStore) -> None:
    """The older holder then finds its row gone."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await trio.sleep(TICK)
        assert (await b.claim("s")).outcome is Outcome.TAKEN_OVER
        assert not (await a.store.refresh(a.worker, ["s"])).held
        assert await a.store.locate(a.worker, "s") == Holder(
            worker_id="b", incarnation=b.worker.incarnation
        )


async def an_older_claim_does_not_take_over(make_store: MakeStore) -> None:
    """A worker that comes late, after an outage, leaves the newer holder alone."""
    async with opened(make_store, "a", "b") as (a, b):
        await b.claim("s")
        await trio.sleep(TICK)
        late, other = await a.commit(
            Claim(session_id="s", generation=1, age=10.0),
            Claim(session_id="t", generation=1, age=10.0),
        )
        assert isinstance(late, Claimed)
        assert isinstance(other, Claimed)
        assert (late.outcome, other.outcome) == (Outcome.LOST, Outcome.INSERTED)
        assert await b.holds("s")
        await trio.sleep(TICK)
        assert (await b.claim("t")).outcome is Outcome.TAKEN_OVER


async def an_older_claim_of_the_holder_sets_nothing_back(make_store: MakeStore) -> None:
    """The moment of the taking stays if it is later than that of the claim."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        assert (await a.claim("s", 2, age=60.0)).outcome is Outcome.KEPT
        assert (await b.claim("s", age=30.0)).outcome is Outcome.LOST
        assert await a.holds("s")


async def a_claim_grows_older_while_it_waits(make_store: MakeStore) -> None:
    """For a thread, too: who is added elsewhere meanwhile is the newer one, and stays.

    It grows no older than that: who was there before is the older one, and gives way.
    """
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("before")
        await trio.sleep(5 * TICK)
        both = [Claim(session_id=one, generation=1, age=0.0) for one in ("before", "s")]
        async with trio.open_nursery() as nursery:
            with without_a_thread(b.worker):
                nursery.start_soon(b.commit, *both)
                await trio.sleep(25 * TICK)  # a busy machine may carry the later ones out late
                await a.claim("s")
                await trio.sleep(5 * TICK)
        assert await a.holds("s"), (
            "a claim that waited for a thread has taken over a session that was added after it: "
            "add the time for which it waits to its age"
        )
        assert await b.holds("before"), (
            "a claim that waited for a thread has lost a session that was added before it: "
            "it looks older than it is, so add the time for which it waits once, in one place"
        )


async def an_earlier_generation_changes_nothing(make_store: MakeStore) -> None:
    """A claim or deletion that comes late spares the session added again meanwhile."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s", 5)
        late = await a.write(Claim(session_id="s", generation=3, age=1.0, owner="alice"))
        assert late.outcome is Outcome.KEPT
        assert late.holder.owner is None
        assert await a.write(Delete(session_id="s", up_to=4)) == 0
        assert await a.holds("s")
        assert await a.write(Delete(session_id="s", up_to=5)) == 0
        assert await a.store.locate(a.worker, "s") is None


async def a_session_has_one_birth(make_store: MakeStore) -> None:
    """It is the same wherever the session goes, and another one after a deletion."""
    async with opened(make_store, "a", "b") as (a, b):
        first = await a.claim("s")
        await trio.sleep(TICK)
        assert (await b.claim("s")).born == first.born
        await trio.sleep(TICK)
        back = await a.claim("s", 2)
        assert (back.outcome, back.born) == (Outcome.TAKEN_OVER, first.born)
        await a.write(Delete(session_id="s", up_to=2))
        await trio.sleep(TICK)
        second = await b.claim("s", 2)
        assert second.outcome is Outcome.INSERTED
        assert second.born != first.born
        await trio.sleep(TICK)
        taken = await a.claim("s", 3)
        assert (taken.outcome, taken.born) == (Outcome.TAKEN_OVER, second.born)


async def what_an_ended_session_left_is_replaced(make_store: MakeStore) -> None:
    """Nothing of it lives on; a row of a later generation, or of another worker, does."""
    async with opened(make_store, "a", "b") as (a, b):
        said = Claim(session_id="s", generation=4, age=0.0, owner="alice", capabilities=ASKED)
        first = await a.write(said)
        for number in range(3):
            await b.write(Send(session_id="s", payload=str(number)))
        await trio.sleep(TICK)
        fresh = await a.write(Claim(session_id="s", generation=7, age=0.0, ended=5))
        assert (fresh.outcome, fresh.dropped) == (Outcome.INSERTED, 3)
        assert (fresh.holder.owner, fresh.capabilities) == (None, None)
        assert fresh.born != first.born
        assert await a.messages("s") == []
        assert await a.store.elicitation_capable(a.worker) == []
        await b.write(Send(session_id="s", payload="4"))
        again = await a.write(Claim(session_id="s", generation=8, age=0.0, ended=5, owner="bob"))
        assert (again.outcome, again.dropped, again.born) == (Outcome.KEPT, 0, fresh.born)
        await trio.sleep(TICK)
        taken = await b.write(Claim(session_id="s", generation=2, age=0.0, ended=1))
        assert (taken.outcome, taken.holder.owner) == (Outcome.TAKEN_OVER, "bob")
        assert await b.payloads("s") == ["4"]


async def what_an_ended_session_left_is_no_session(make_store: MakeStore) -> None:
    """Nothing is said of it and sent to it; its messages may still be acknowledged."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s", 4)
        sent = await b.write(Send(session_id="s", payload="1"))
        assert sent is not None
        for ended in (4, 5):
            assert await a.write(SetOwner(session_id="s", owner="alice", ended=ended)) is None
            assert await a.write(ClaimOwner(session_id="s", owner="alice", ended=ended)) is None
            said = SetCapabilities(session_id="s", capabilities=ASKED, ended=ended)
            assert await a.write(said) is None
            assert await a.write(Send(session_id="s", payload="2", ended=ended)) is None
        assert await a.store.locate(a.worker, "s") == Holder(
            worker_id="a", incarnation=a.worker.incarnation
        )
        assert await a.store.get_capabilities(a.worker, "s") is None
        assert await a.payloads("s") == ["1"]
        assert await a.write(SetOwner(session_id="s", owner="alice", ended=3)) is not None
        # It is no session to whom it has ended for, and to nobody else.
        assert await b.write(SetOwner(session_id="s", owner="bob", ended=9)) is not None
        assert await b.write(Send(session_id="s", payload="2", ended=9)) is not None
        assert await a.write(Acknowledge(session_id="s", message_ids=(sent.id,)))
        assert await a.payloads("s") == ["2"]


async def each_write_of_a_batch_has_its_own_answer(make_store: MakeStore) -> None:
    """In the order of the batch, whatever the kinds; none depends on another's."""
    async with opened(make_store, "a", "b") as (a, b):
        for session_id in ("deleted", "kept", "owned", "said", "sent", "read"):
            await a.claim(session_id)
        await b.claim("theirs")
        read = await b.write(Send(session_id="read", payload="1"))
        assert read is not None
        await b.write(Send(session_id="deleted", payload="1"))
        own = Holder(worker_id="a", incarnation=a.worker.incarnation)
        writes: list[Write[object]] = [
            Send(session_id="sent", payload="1"),
            SetOwner(session_id="nobody's", owner="alice"),
            Claim(session_id="new", generation=2, age=0.0),
            Delete(session_id="deleted", up_to=1),
            Acknowledge(session_id="read", message_ids=(read.id,)),
            Acknowledge(session_id="theirs", message_ids=(read.id,)),
            SetCapabilities(session_id="said", capabilities=ASKED),
            Send(session_id="sent", payload="2"),
            Claim(session_id="kept", generation=2, age=0.0),
            ClaimOwner(session_id="owned", owner="alice"),
            Delete(session_id="unknown", up_to=9),
            Send(session_id="no session's", payload="3"),
        ]
        answers = await a.commit(*writes)
        claimed = [one.outcome for one in answers if isinstance(one, Claimed)]
        assert claimed == [Outcome.INSERTED, Outcome.KEPT]
        assert answers[1] is None
        assert answers[3:6] == [1, True, False]
        assert answers[6] == own
        assert answers[9] == Holder(worker_id="a", incarnation=a.worker.incarnation, owner="alice")
        assert answers[10:] == [0, None]
        assert await a.payloads("sent") == ["1", "2"]
        assert await a.payloads("read") == []
        assert await a.holds("kept", "new", "owned", "said", "sent", "read")
        assert await a.store.locate(a.worker, "deleted") is None
        assert await a.commit() == []


async def many_writes_fit_into_one_batch(make_store: MakeStore) -> None:
    """Some hundred rows, and ids of every alphabet."""
    async with opened(make_store, "a") as (a,):
        ids = [f"sitzung-ß-会话-\U0001f511-'%s:x-\\-\"{number}" for number in range(300)]
        writes = [Claim(session_id=one, generation=1, age=0.0, owner=one) for one in ids]
        answers = await a.commit(*writes)
        assert [one.holder.owner for one in answers if isinstance(one, Claimed)] == ids
        assert await a.holds(*ids)
        assert await a.commit(*(Delete(session_id=one, up_to=1) for one in ids)) == [0] * 300
        assert (await a.store.delete_all(a.worker, limit=1000)).sessions == 0


async def workers_that_cross_each_get_an_answer(make_store: MakeStore) -> None:
    """Batches on the same rows, in the opposite order: one worker holds each row in the end."""
    async with opened(make_store, "a", "b") as clients:
        ids = [f"s{number}" for number in range(20)]
        held: dict[str, set[str]] = {}

        async def cross(turn: int) -> None:
            client = clients[turn]
            order = ids[:: -1 if turn else 1]
            for generation in range(1, 6):
                claims = [Claim(session_id=s, generation=generation, age=0.0) for s in order[:10]]
                sends = [Send(session_id=s, payload="1") for s in order[10:]]
                await client.commit(*claims, *sends)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for turn in range(2):
                    nursery.start_soon(cross, turn)
        for client in clients:
            answers = await client.store.refresh(client.worker, ids)
            held[client.worker.worker_id] = set(answers.held)
        assert held["a"] | held["b"] == set(ids)
        assert not held["a"] & held["b"]


claim_checks: tuple[Check, ...] = (
    a_claim_says_what_it_found,
    a_claim_brings_and_is_told_what_was_said,
    the_newest_claim_takes_over,
    an_older_claim_does_not_take_over,
    an_older_claim_of_the_holder_sets_nothing_back,
    a_claim_grows_older_while_it_waits,
    an_earlier_generation_changes_nothing,
    a_session_has_one_birth,
    what_an_ended_session_left_is_replaced,
    what_an_ended_session_left_is_no_session,
    each_write_of_a_batch_has_its_own_answer,
    many_writes_fit_into_one_batch,
    workers_that_cross_each_get_an_answer,
)
