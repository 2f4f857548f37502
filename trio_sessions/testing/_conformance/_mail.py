"""Checks of `MailStore`, and of the write that leaves letters."""

from collections.abc import Awaitable, Callable
from typing import cast

import trio
import trio.testing

from trio_sessions.abc import MailStore
from trio_sessions.abc._mail import MAIL
from trio_sessions.testing._conformance._fleet import (
    LONG,
    PATIENCE,
    TTL,
    begin,
    claim,
    commit,
    eventually,
    sweep,
)
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Sent, Stamp
from trio_sessions.writes import Claimed, Post, Send, Verdict

__all__ = ["mail_checks"]

_LINE = "\0a line"  # it names no session, and no database takes it


def _mail(client: Client) -> MailStore:
    return cast("MailStore", client.store)


def _post(payload: str, *, to: str | None = None, topic: str | None = None) -> Post:
    return Post(session_id=_LINE, payload=payload, to=to, topic=topic)


async def _begin(client: Client, *, session_ttl: float = LONG) -> Stamp:
    """Let a worker begin; it is late no sooner than any machine is slow."""
    return await begin(client, session_ttl=session_ttl, cleanup_interval=LONG)


async def _collect(client: Client, limit: int = 1000, size: int = 10**9) -> list[str]:
    return list(await _mail(client).collect(client.worker, limit=limit, size=size))


async def _listen(client: Client, *topics: str) -> None:
    await _mail(client).listen(client.worker, topics)


async def letters_are_collected_once_and_in_their_order(make_store: MakeStore) -> None:
    """The oldest first, so many as were asked for, whatever else was in their batches."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin(b)
        letters = [_post(f'["ü", {number}]', to=b.worker.incarnation) for number in range(30)]
        first = await a.commit(claim("s"), *letters[:10], claim("t"))
        assert first[1:-1] == [1] * 10
        assert all(isinstance(one, Claimed) for one in (first[0], first[-1]))
        second = await a.commit(*letters[10:], Send(session_id="s", payload="1"))
        assert second[:-1] == [1] * 20
        assert isinstance(second[-1], Sent)
        payloads = [one.payload for one in letters]
        assert await _collect(b, 7) == payloads[:7]
        assert await _collect(a) == []
        assert await a.write(_post("[30]", to=b.worker.incarnation)) == 1
        assert await _collect(b) == [*payloads[7:], "[30]"]
        assert await _collect(b) == []
        assert await a.payloads("s") == ["1"]


async def letters_are_collected_until_they_are_large(make_store: MakeStore) -> None:
    """No more after those that reach so many bytes; but one, however large."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin(b)
        payloads = [f'"{letter * 100}"' for letter in "aübcd"]
        assert await a.commit(*(_post(one, to="b") for one in payloads)) == [1] * 5
        sizes = [len(one.encode()) for one in payloads]
        assert await _collect(b, size=sum(sizes[:2])) == payloads[:2]
        assert await _collect(b, size=sizes[2] + 1) == payloads[2:4]
        assert await _collect(b, size=1) == payloads[4:]
        assert await _collect(b, size=1) == []


async def the_bell_says_mail(make_store: MakeStore) -> None:
    """From the moment when it is open; no session is called so, and messages ring beside it."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin(a)
        await _listen(a, "news")
        await a.claim("s")
        with trio.fail_after(PATIENCE):
            async with a.store.open_bell(a.worker) as bell:
                for post in (_post("1", to=a.worker.incarnation), _post("2", topic="news")):
                    assert await b.write(post) == 1
                    rung: frozenset[str] | None = frozenset()
                    while rung is not None and MAIL not in rung:
                        rung = await bell.wait()
                    assert await _collect(a) == [post.payload]
                await b.commit(_post("3", topic="news"), Send(session_id="s", payload="4"))
                told: set[str] = set()
                while not told.issuperset({MAIL, "s"}):
                    rung = await bell.wait()
                    told.update({MAIL, "s"} if rung is None else rung)


async def a_letter_goes_to_the_worker_that_is_meant(make_store: MakeStore) -> None:
    """An incarnation, or of all that have a worker id the one that began last: itself, too."""
    async with opened(make_store, "x", "a", "a", "b") as (x, old, new, b):
        for client in (x, old, new, b):
            await _begin(client)
            await trio.sleep(TICK)
        answers = await x.commit(
            _post("1", to="a"),
            _post("2", to=old.worker.incarnation),
            _post("3", to="b"),
            _post("4", to="x"),
            _post("5", to="nobody"),
        )
        assert answers == [1, 1, 1, 1, 0]
        assert [await _collect(one) for one in (x, old, new, b)] == [["4"], ["2"], ["1"], ["3"]]
        # Who begins a history anew has not begun later for that.
        await begin(old, cleanup_interval=LONG, rewound=True)
        assert await x.write(_post("6", to="a")) == 1
        assert await _collect(new) == ["6"]


async def who_is_late_or_has_gone_gets_none(make_store: MakeStore) -> None:
    """Nor who has never begun; and the answer says so. Who stamps its row again is back."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await _begin(a)
        known = await begin(b, cleanup_interval=TICK)
        everywhere = [
            *(
                _post("1", to=to)
                for one in (b, c)
                for to in (one.worker.incarnation, one.worker.worker_id)
            ),
            _post("2", topic="news"),
        ]
        for client in (b, c):
            await _listen(client, "news")
        await trio.sleep(5 * TICK)
        assert await a.commit(*everywhere) == [0] * 5
        known = await _begin(b)
        assert await a.commit(*everywhere) == [1, 1, 0, 0, 1]
        assert await _collect(c) == []
        assert not (await b.store.delete_all(b.worker, limit=100)).more
        assert await a.commit(*everywhere) == [0] * 5
        assert (await commit(b, known)).verdict is Verdict.FORGOTTEN


async def who_is_late_or_has_gone_is_not_among_the_living(make_store: MakeStore) -> None:
    """Neither by incarnation nor by worker id, unless another one of that id lives."""
    async with opened(make_store, "a", "b", "b", "c") as (a, late, b, c):
        await _begin(a)
        assert await _mail(b).living(b.worker) == {a.worker.incarnation, "a"}
        await begin(late, cleanup_interval=TICK)
        await trio.sleep(5 * TICK)
        assert await _mail(a).living(a.worker) == {a.worker.incarnation, "a"}
        await _begin(b)
        await _begin(c)
        living = {
            name for one in (a, b, c) for name in (one.worker.incarnation, one.worker.worker_id)
        }
        assert await _mail(a).living(a.worker) == living
        assert not (await c.store.delete_all(c.worker, limit=100)).more
        assert await _mail(a).living(a.worker) == living - {c.worker.incarnation, "c"}


async def a_late_one_of_the_name_hides_no_other(make_store: MakeStore) -> None:
    """The last of a worker id that is not late, as after a restart that has failed."""
    async with opened(make_store, "x", "a", "a") as (x, old, new):
        await _begin(old)
        await trio.sleep(TICK)
        await begin(new, cleanup_interval=TICK)
        await trio.sleep(5 * TICK)
        assert await x.write(_post("1", to="a")) == 1
        assert await _collect(old) == ["1"]


async def a_topic_reaches_all_that_listen(make_store: MakeStore) -> None:
    """Each once, however often it has said so, and the sender too if it does."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        for client in (a, b, c):
            await _begin(client)
        await _listen(a, "news", "ü")
        await _listen(b, "news")
        await _listen(b, "news", "other")
        answers = await a.commit(
            _post("1", topic="news"),
            _post("2", topic="other"),
            _post("3", topic="ü"),
            _post("4", topic="nobody's"),
            _post("5", topic="news"),
        )
        assert answers == [2, 1, 1, 0, 2]
        assert await _collect(a) == ["1", "3", "5"]
        assert await _collect(b) == ["1", "2", "5"]
        assert await _collect(c) == []


async def who_listens_no_longer_gets_no_more(make_store: MakeStore) -> None:
    """Of those topics; what was left before stays, and others go on listening."""
    async with opened(make_store, "a", "b") as (a, b):
        for client in (a, b):
            await _begin(client)
            await _listen(client, "news", "other")
        assert await a.write(_post("1", topic="news")) == 2
        for _ in range(2):
            await _mail(b).unlisten(b.worker, ["news", "never listened to"])
        answers = await a.commit(_post("2", topic="news"), _post("3", topic="other"))
        assert answers == [1, 2]
        assert await _collect(a) == ["1", "2", "3"]
        assert await _collect(b) == ["1", "3"]


async def another_incarnation_does_not_get_them(make_store: MakeStore) -> None:
    """Neither the letters nor the topics of the one before, though it has the same worker id."""
    async with opened(make_store, "a", "b", "b") as (a, before, after):
        await _begin(before)
        await _listen(before, "news")
        assert await a.commit(_post("1", to="b"), _post("2", topic="news")) == [1, 1]
        await _begin(after)
        assert await _collect(after) == []
        assert await a.write(_post("3", topic="news")) == 1
        assert await _collect(after) == []
        assert await _collect(before) == ["1", "2", "3"]


async def what_a_worker_that_closes_leaves_goes_with_its_row(make_store: MakeStore) -> None:
    """Its letters and its topics; nothing of it waits for whoever begins under that name."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin(b)
        await _listen(b, "news")
        assert await a.commit(_post("1", to="b"), _post("2", topic="news")) == [1, 1]
        while (await b.store.delete_all(b.worker, limit=100)).more:
            pass
        await _begin(b)
        assert await _collect(b) == []
        assert await a.write(_post("3", topic="news")) == 0


async def what_a_swept_worker_leaves_goes_with_its_row(make_store: MakeStore) -> None:
    """Likewise, though it never says that it leaves."""
    async with opened(make_store, "a", "b") as (a, b):
        await sweep(a, limit=0)
        await _begin(b, session_ttl=TTL)
        await _listen(b, "news")
        posted = await a.commit(_post("1", to=b.worker.incarnation), _post("2", topic="news"))
        assert posted == [1, 1]

        async def is_gone() -> bool:
            await sweep(a, max_gap=LONG)
            return await a.write(_post("3", to=b.worker.incarnation)) == 0

        await eventually(is_gone, "the row of a worker that has gone is not swept")
        await _begin(b)
        assert await _collect(b) == []
        assert await a.write(_post("4", topic="news")) == 0


async def what_nobody_takes_away_expires(make_store: MakeStore) -> None:
    """By its age alone, piece by piece; and topics of workers that have no row."""
    async with opened(make_store, "a", "b") as (a, b):
        await _begin(b)
        await _listen(a, "news")
        await a.commit(*(_post(str(number), to="b") for number in range(5)))
        await trio.sleep(50 * TICK)
        assert await _mail(a).expire_mail(a.worker, older_than=LONG, limit=100) == 0
        assert await _mail(a).expire_mail(a.worker, older_than=40 * TICK, limit=2) == 2
        assert await a.write(_post('"young"', to="b")) == 1
        assert await _mail(a).expire_mail(a.worker, older_than=LONG, limit=100) == 0
        expired = await _mail(b).expire_mail(b.worker, older_than=40 * TICK, limit=100)
        left = await _collect(b)
        assert (expired, left) == (3, ['"young"']) or left == []  # a machine may be slow
        await _begin(a)
        assert await b.write(_post("1", topic="news")) == 0


async def topics_of_nobody_go_piece_by_piece(make_store: MakeStore) -> None:
    """No call drops more of them than it may, and they are gone after some."""
    topics = [f"topic {number}" for number in range(5)]
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await _begin(b)
        await _listen(b, *topics)
        for client, calls, listening in ((a, 1, 5 + 3), (c, 5, 5 + 3)):
            await _listen(client, *topics)
            for _ in range(calls):
                assert await _mail(b).expire_mail(b.worker, older_than=LONG, limit=2) == 0
            await _begin(client)
            heard = await b.commit(*(_post("1", topic=one) for one in topics))
            assert sum(one for one in heard if isinstance(one, int)) == listening


async def a_batch_that_does_nothing_leaves_no_letter(make_store: MakeStore) -> None:
    """One that names a stamp that is not there, or comes too late; one that does leaves each."""
    async with opened(make_store, "a", "b") as (a, b):
        known = await _begin(a)
        await _begin(b)
        post = _post("1", to="b")
        unknown = Stamp(history="another", beat=1)
        assert (await commit(a, unknown, post)).verdict is Verdict.FORGOTTEN
        done = await commit(a, known, _post("2", to="b"))
        assert (done.verdict, list(done.answers)) == (Verdict.DONE, [1])
        assert done.clock is not None
        late = await commit(a, known, post, not_after=done.clock - LONG)
        assert late.verdict is Verdict.LATE
        assert await _collect(b) == ["2"]


async def every_operation_on_mail_is_a_checkpoint(make_store: MakeStore) -> None:
    """Also when there is nothing to do."""
    async with opened(make_store, "a") as (a,):
        store, me = _mail(a), a.worker
        operations: list[Callable[[], Awaitable[object]]] = [
            lambda: a.write(_post("1", to="nobody")),
            lambda: store.collect(me, limit=10, size=10),
            lambda: store.listen(me, []),
            lambda: store.listen(me, ["news"]),
            lambda: store.unlisten(me, []),
            lambda: store.unlisten(me, ["news"]),
            lambda: store.living(me),
            lambda: store.expire_mail(me, older_than=LONG, limit=10),
        ]
        for operation in operations:
            with trio.testing.assert_checkpoints():
                await operation()


mail_checks: tuple[Check, ...] = (
    letters_are_collected_once_and_in_their_order,
    letters_are_collected_until_they_are_large,
    the_bell_says_mail,
    a_letter_goes_to_the_worker_that_is_meant,
    who_is_late_or_has_gone_gets_none,
    who_is_late_or_has_gone_is_not_among_the_living,
    a_late_one_of_the_name_hides_no_other,
    a_topic_reaches_all_that_listen,
    who_listens_no_longer_gets_no_more,
    another_incarnation_does_not_get_them,
    what_a_worker_that_closes_leaves_goes_with_its_row,
    what_a_swept_worker_leaves_goes_with_its_row,
    what_nobody_takes_away_expires,
    topics_of_nobody_go_piece_by_piece,
    a_batch_that_does_nothing_leaves_no_letter,
    every_operation_on_mail_is_a_checkpoint,
)
