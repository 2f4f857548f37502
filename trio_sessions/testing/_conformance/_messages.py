"""Checks of `MessageStore`, and of the writes that are about messages."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from trio_sessions.testing._conformance._tools import (
    TICK,
    Check,
    MakeStore,
    opened,
    wanted,
    without_a_thread,
)
from trio_sessions.types import Sent, Swept
from trio_sessions.writes import Acknowledge, Claim, Delete, Outcome, Send

__all__ = ["message_checks"]


async def messages_wait_until_they_are_acknowledged(make_store: MakeStore) -> None:
    """In order, within the bounds that were asked for, and for the holder alone."""
    async with opened(make_store, "a", "b") as (a, b):
        store, me = a.store, a.worker
        assert await b.write(Send(session_id="s", payload="1")) is None
        await a.claim("s")
        await a.claim("t")
        sent = [
            await b.write(Send(session_id="s", payload=payload))
            for payload in ('"ü"', '"ü"', "[1]", "2")
        ]
        first, second, third, fourth = [one.id for one in sent if one is not None]
        assert first < second < third < fourth
        assert sent[0] is not None
        assert sent[0].holder.worker_id == "a"
        assert await store.waiting(me) == ["s"]
        assert await b.store.waiting(b.worker) == []
        assert await b.messages("s") == []
        found = await store.fetch(me, [wanted("s"), wanted("t"), wanted("nobody")])
        assert [one.payload for one in found["s"]] == ['"ü"', '"ü"', "[1]", "2"]
        assert [one.id for one in found["s"]] == [first, second, third, fourth]
        assert all(0 <= one.age < 60 for one in found["s"])
        assert not found.get("t")
        assert not found.get("nobody")
        few = (await store.fetch(me, [wanted("s", first, count=2)]))["s"]
        assert [one.id for one in few] == [second, third]
        small = (await store.fetch(me, [wanted("s", size=1)]))["s"]
        assert [one.id for one in small] == [first]
        # It is not for that worker to say so, nor for another session.
        assert not await b.write(Acknowledge(session_id="s", message_ids=(second,)))
        assert await a.write(Acknowledge(session_id="t", message_ids=(second,)))
        assert not await a.write(Acknowledge(session_id="nobody", message_ids=(second,)))
        assert await a.write(Acknowledge(session_id="s", message_ids=(10**9,)))
        assert len(await a.messages("s")) == 4
        for _ in range(2):
            assert await a.write(Acknowledge(session_id="s", message_ids=(second, third, 10**9)))
        assert await a.write(Acknowledge(session_id="s", message_ids=()))
        assert [one.id for one in await a.messages("s")] == [first, fourth]
        assert await a.write(Delete(session_id="s", up_to=9)) == 2
        assert await store.waiting(me) == []


async def a_new_message_overwrites_none(make_store: MakeStore) -> None:
    """Its id is greater than all earlier ones of its session, also of those acknowledged."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        ids: list[int] = []
        for payload in ("1", "2", "3", "4", "5"):
            sent = await b.write(Send(session_id="s", payload=payload))
            assert sent is not None
            assert sent.id > max(ids, default=0)
            ids.append(sent.id)
            if payload in ("3", "4"):
                done = ids[0] if payload == "3" else sent.id
                assert await a.write(Acknowledge(session_id="s", message_ids=(done,)))
        assert await a.payloads("s") == ["2", "3", "5"]


async def messages_of_several_sessions_are_fetched_at_once(make_store: MakeStore) -> None:
    """Each session that is asked for, and each one that something waits for, is in the answer."""
    async with opened(make_store, "a", "b") as (a, b):
        names = ["s", "t", "u"]
        for name in names:
            await a.claim(name)
            await b.write(Send(session_id=name, payload=f'"{name}"'))
        for holder in (a, b):
            assert sorted(await holder.store.waiting(holder.worker)) == names
            found = await holder.store.fetch(holder.worker, [wanted(name) for name in names])
            payloads = {name: [one.payload for one in found.get(name, ())] for name in names}
            assert payloads == {name: [f'"{name}"'] for name in names}
            for name in names:
                await b.claim(name)
        assert await a.store.waiting(a.worker) == []


async def messages_of_one_batch_are_stored_in_its_order(make_store: MakeStore) -> None:
    """For each session, with ascending ids, whatever stands in between."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await b.claim("t")
        sends = [
            Send(session_id=session_id, payload=str(number))
            for number in range(50)
            for session_id in ("t", "s", "nobody's")
        ]
        answers = await a.commit(*sends)
        for client, session_id in ((a, "s"), (b, "t")):
            ids = [
                answer.id
                for send, answer in zip(sends, answers, strict=True)
                if send.session_id == session_id and isinstance(answer, Sent)
            ]
            assert [one.id for one in await client.messages(session_id)] == ids == sorted(ids)
            assert await client.payloads(session_id) == [str(number) for number in range(50)]
        assert answers[2::3] == [None] * 50


async def messages_go_with_their_session_or_their_ttl(make_store: MakeStore) -> None:
    """A sweep says how many; a takeover leaves them to the new holder."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await a.write(Send(session_id="s", payload="1"))
        await trio.sleep(TICK)
        await b.claim("s")
        assert await b.payloads("s") == ["1"]
        assert await a.messages("s") == []
        await trio.sleep(0.05)
        swept = await a.store.sweep(
            a.worker, session_ttl=3600.0, message_ttl=0.01, max_gap=3600.0, limit=10
        )
        assert (swept.sessions, swept.messages) == (0, 1)
        assert await b.store.waiting(b.worker) == []


async def a_dead_session_goes_piece_by_piece(make_store: MakeStore) -> None:
    """At most ``limit`` messages at a time, the oldest first; its row with the last of them."""
    async with opened(make_store, "a", "b") as (a, b):
        durations: dict[str, Any] = {"session_ttl": 0.5, "message_ttl": 3600.0, "max_gap": 3600.0}
        for session_id in ("s", "t"):
            await b.claim(session_id)
        await b.commit(*(Send(session_id="s", payload=str(number)) for number in range(7)))
        await a.store.sweep(a.worker, **durations, limit=0)
        await trio.sleep(0.6)
        swept: list[Swept] = []
        with trio.fail_after(20):
            while not swept or swept[-1].more:
                swept.append(await a.store.sweep(a.worker, **durations, limit=3))
                assert swept[-1].messages <= 3
                if await a.store.locate(a.worker, "s") is not None:
                    left = await b.payloads("s")
                    assert left == [str(number) for number in range(7)][-len(left) :]
                    assert len(left) == 7 - sum(one.messages for one in swept)
        assert sum(one.messages for one in swept) == 7
        assert sum(one.sessions for one in swept) == 2
        assert len(swept) >= 3
        assert (await b.claim("s")).outcome is Outcome.INSERTED
        assert await b.messages("s") == []


async def stale_messages_go_piece_by_piece(make_store: MakeStore) -> None:
    """Whosesoever they are."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        await a.commit(*(Send(session_id="s", payload="1", age=100.0) for _ in range(5)))
        await a.write(Send(session_id="s", payload="2"))
        durations: dict[str, Any] = {"session_ttl": 3600.0, "message_ttl": 50.0, "max_gap": 3600.0}
        swept = [await a.store.sweep(a.worker, **durations, limit=2) for _ in range(3)]
        assert [one.messages for one in swept] == [2, 2, 1]
        assert [one.more for one in swept] == [True, True, False]
        assert await a.payloads("s") == ["2"]


async def all_messages_of_a_sweep_share_its_limit(make_store: MakeStore) -> None:
    """Those of the dead, and those that are too old; with ``limit=0`` none goes."""
    async with opened(make_store, "a", "b") as (a, b):
        durations: dict[str, Any] = {"session_ttl": 0.5, "message_ttl": 50.0, "max_gap": 3600.0}
        await a.store.sweep(a.worker, **durations, limit=0)
        await a.claim("alive")
        for session_id in ("s", "t"):
            await b.claim(session_id)
            await a.commit(*(Send(session_id=session_id, payload="1") for _ in range(2)))
        await a.commit(*(Send(session_id="alive", payload="1", age=100.0) for _ in range(5)))
        await trio.sleep(0.6)
        none = await a.store.sweep(a.worker, **durations, limit=0)
        assert (none.sessions, none.messages, none.more) == (0, 0, False)
        swept: list[Swept] = []
        while not swept or swept[-1].more:
            swept.append(await a.store.sweep(a.worker, **durations, limit=3))
            assert swept[-1].messages <= 3, "more messages than the limit"
            assert swept[-1].sessions <= 3
            assert len(swept) < 20, "it says that there is more, and comes no nearer to the end"
        assert sum(one.messages for one in swept) == 9
        assert sum(one.sessions for one in swept) == 2
        assert await a.payloads("alive") == []


async def leaving_with_messages_goes_piece_by_piece(make_store: MakeStore) -> None:
    """A row goes with the last of its messages."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        await a.commit(*(Send(session_id="s", payload=str(number)) for number in range(5)))
        first = await a.store.delete_all(a.worker, limit=2)
        assert first == Swept(sessions=0, messages=2, more=True)
        assert await a.payloads("s") == ["2", "3", "4"]
        second = await a.store.delete_all(a.worker, limit=2)
        assert second == Swept(sessions=0, messages=2, more=True)
        assert await a.store.delete_all(a.worker, limit=2) == Swept(
            sessions=1, messages=1, more=False
        )


async def many_messages_of_an_ended_session(make_store: MakeStore) -> None:
    """They may go in pieces; the row goes, or is claimed, with the last of them."""
    async with opened(make_store, "a") as (a,):
        for write in (Delete(session_id="s", up_to=1), None):
            await a.claim("s")
            for _ in range(3):
                await a.commit(*(Send(session_id="s", payload="1") for _ in range(1000)))
            a.pieces.clear()
            if write is not None:
                dropped = await a.write(write)
                assert isinstance(dropped, int)
                assert await a.store.locate(a.worker, "s") is None
            else:
                claimed = await a.write(Claim(session_id="s", generation=2, age=0.0, ended=1))
                assert claimed.outcome is Outcome.INSERTED
                dropped = claimed.dropped
                assert await a.messages("s") == []
            assert dropped + sum(one.dropped for one in a.pieces) == 3000


async def a_message_may_be_for_the_next_holder_only(make_store: MakeStore) -> None:
    """With its age; what was in memory here must not be stored here again."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("moved")
        await a.claim("mine")
        await trio.sleep(TICK)
        await b.claim("moved")
        with trio.fail_after(20):
            async with b.store.open_bell(b.worker) as bell:
                answers = await a.commit(
                    *(
                        Send(session_id=s, payload=str(number), age=1000.0, elsewhere=True)
                        for number in range(20)
                        for s in ("moved", "mine", "nobody's")
                    )
                )
                assert [isinstance(one, Sent) for one in answers] == [True, False, False] * 20
                rung = await bell.wait()
                assert rung is None or "moved" in rung
        found = await b.messages("moved")
        assert [one.payload for one in found] == [str(number) for number in range(20)]
        assert all(1000 <= one.age < 1060 for one in found)
        assert await a.store.waiting(a.worker) == []


async def a_message_grows_older_while_it_waits(make_store: MakeStore) -> None:
    """For a thread, too: it is not kept for longer than its ttl, nor shorter."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        asked_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            with without_a_thread(b.worker):
                nursery.start_soon(b.write, Send(session_id="s", payload="1", age=10.0))
                await trio.sleep(25 * TICK)
        [message] = await a.messages("s")
        passed = trio.current_time() - asked_at
        assert message.age >= 10.0 + 20 * TICK, (
            "a message that waited for a thread looks younger than it is: add the time for which "
            "it waits to its age"
        )
        assert message.age <= 10.0 + passed + 5 * TICK, (
            "a message that waited for a thread looks older than it is: add the time for which it "
            "waits once, in one place"
        )


async def a_message_may_be_for_one_birth_only(make_store: MakeStore) -> None:
    """The session may have moved, but another one of the same id does not get it."""
    async with opened(make_store, "a", "b") as (a, b):
        born = (await a.claim("s")).born
        await trio.sleep(TICK)
        await b.claim("s")
        first = Send(session_id="s", payload="1", born=born, ended=1)
        assert await a.write(first) is not None
        assert await b.write(Delete(session_id="s", up_to=1)) == 1
        assert await a.write(first) is None
        await trio.sleep(TICK)
        assert (await b.claim("s", 2)).outcome is Outcome.INSERTED
        assert await a.write(first) is None
        assert await b.messages("s") == []
        assert await a.write(Send(session_id="s", payload="2", ended=1)) is not None
        assert await b.payloads("s") == ["2"]


async def a_new_session_has_no_messages(make_store: MakeStore) -> None:
    """Those of an earlier one of its id went with that."""
    async with opened(make_store, "a") as (a,):
        for generation in range(1, 4):
            claimed = await a.write(
                Claim(session_id="s", generation=generation, age=0.0, ended=generation - 1)
            )
            assert claimed.outcome is Outcome.INSERTED
            assert claimed.dropped == (0 if generation == 1 else 2)
            assert await a.messages("s") == []
            for payload in ("1", "2"):
                assert await a.write(Send(session_id="s", payload=payload)) is not None
            await trio.sleep(TICK)


async def the_bell_rings_for_the_holder(make_store: MakeStore) -> None:
    """From the moment when it is open, no message goes unnoticed."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        with trio.fail_after(30):
            async with a.store.open_bell(a.worker) as bell:
                for _ in range(3):
                    sent = await b.write(Send(session_id="s", payload="1"))
                    assert sent is not None
                    rung: frozenset[str] | None = frozenset()
                    while rung is not None and "s" not in rung:
                        rung = await bell.wait()
                    assert sent.id in {one.id for one in await a.messages("s")}


async def the_bell_tells_of_every_session_of_a_batch(make_store: MakeStore) -> None:
    """However many there are, and however long their names."""
    async with opened(make_store, "a", "b") as (a, b):
        for number in (3, 300):
            ids = [f"s-{number:05}-{'ü' * 200}" for number in range(number)]
            await a.commit(*(Claim(session_id=one, generation=1, age=0.0) for one in ids))
            with trio.fail_after(30):
                async with a.store.open_bell(a.worker) as bell:
                    await b.commit(*(Send(session_id=one, payload="1") for one in ids))
                    told: set[str] = set()
                    while not told.issuperset(ids):
                        rung = await bell.wait()
                        waiting = await a.store.waiting(a.worker)
                        told.update(waiting if rung is None else rung)


async def every_operation_on_messages_is_a_checkpoint(make_store: MakeStore) -> None:
    """Also when there is nothing to do."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        store, me = a.store, a.worker
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: a.write(Send(session_id="s", payload="1")),
            lambda: store.waiting(me),
            lambda: store.fetch(me, []),
            lambda: store.fetch(me, [wanted("s")]),
            lambda: a.write(Acknowledge(session_id="s", message_ids=())),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()


message_checks: tuple[Check, ...] = (
    messages_wait_until_they_are_acknowledged,
    a_new_message_overwrites_none,
    messages_of_several_sessions_are_fetched_at_once,
    messages_of_one_batch_are_stored_in_its_order,
    messages_go_with_their_session_or_their_ttl,
    a_dead_session_goes_piece_by_piece,
    stale_messages_go_piece_by_piece,
    all_messages_of_a_sweep_share_its_limit,
    leaving_with_messages_goes_piece_by_piece,
    many_messages_of_an_ended_session,
    a_message_may_be_for_the_next_holder_only,
    a_message_grows_older_while_it_waits,
    a_message_may_be_for_one_birth_only,
    a_new_session_has_no_messages,
    the_bell_rings_for_the_holder,
    the_bell_tells_of_every_session_of_a_batch,
    every_operation_on_messages_is_a_checkpoint,
)
