"""Checks of `LogStore`: events that are read without being taken away."""

from typing import cast

import trio

from trio_sessions.abc import LogStore
from trio_sessions.errors import RowDoubtful, StoreUnavailable
from trio_sessions.testing._conformance._fleet import LONG, begin, eventually, sweep
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import StoredEntry
from trio_sessions.writes import Append, Batch, Claim, Delete, Outcome

__all__ = ["log_checks"]


def _store(client: Client) -> LogStore:
    return cast("LogStore", client.store)


async def _append(client: Client, session_id: str, event: str, keep: int | None = None) -> int:
    entry_id = await client.write(Append(session_id=session_id, event=event, keep=keep))
    assert entry_id is not None
    return entry_id


async def _read(
    client: Client, session_id: str, *, after: int = 0, limit: int = 100, size: int = 1_000_000
) -> list[StoredEntry]:
    return list(
        await _store(client).read_log(
            client.worker, session_id, after=after, limit=limit, size=size
        )
    )


async def _events(client: Client, session_id: str) -> list[str]:
    return [one.event for one in await _read(client, session_id)]


async def entries_are_read_again_and_again(make_store: MakeStore) -> None:
    """By any worker, in the order of their ids, with their ages; reading takes nothing away."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await a.claim("other")
        ids = [await _append(client, "s", f'"{n}"') for n, client in enumerate((a, b, a, b))]
        await _append(a, "other", '"x"')
        await trio.sleep(TICK)
        assert ids == sorted(set(ids))
        for client in (a, b, a):
            found = await _read(client, "s")
            assert [one.id for one in found] == ids
            assert [one.event for one in found] == ['"0"', '"1"', '"2"', '"3"']
            assert all(TICK / 2 <= one.age < LONG for one in found)
        assert await _read(a, "nobody") == []
        assert await a.payloads("s") == [], "an entry is no message"


async def a_read_goes_on_after_an_id(make_store: MakeStore) -> None:
    """Only greater ids, at most so many, and so many bytes, but one at least."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        ids = [await _append(a, "s", f'"{n:08}"') for n in range(5)]
        assert [one.id for one in await _read(a, "s", after=ids[1])] == ids[2:]
        assert [one.id for one in await _read(a, "s", after=ids[1], limit=2)] == ids[2:4]
        assert await _read(a, "s", after=ids[-1]) == []
        assert [one.id for one in await _read(a, "s", size=25)] == ids[:3]
        assert [one.id for one in await _read(a, "s", size=20)] == ids[:2]
        assert [one.id for one in await _read(a, "s", size=1)] == ids[:1]
        assert [one.id for one in await _read(a, "s", after=ids[0], size=1)] == ids[1:2]


async def a_batch_appends_in_its_order(make_store: MakeStore) -> None:
    """Several to one session, beside others, and those of a session that is not there."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        await a.claim("t")
        answers = await a.commit(
            *(
                Append(session_id=session_id, event=f'"{n}"')
                for n, session_id in enumerate(("t", "s", "nobody", "s", "t", "s"))
            )
        )
        assert answers[2] is None
        for session_id, places in (("s", (1, 3, 5)), ("t", (0, 4))):
            ids = [answers[place] for place in places]
            assert [one.id for one in await _read(a, session_id)] == ids
            assert await _events(a, session_id) == [f'"{place}"' for place in places]


async def an_append_is_for_the_session_that_is_meant(make_store: MakeStore) -> None:
    """Nothing is appended to what an ended session has left, or to one of another birth."""
    async with opened(make_store, "a", "b") as (a, b):
        born = (await a.claim("s", generation=3)).born
        assert await a.write(Append(session_id="s", event="1", ended=3)) is None
        assert await a.write(Append(session_id="s", event="2", ended=2)) is not None
        assert await b.write(Append(session_id="s", event="3", ended=3)) is not None, "it is a's"
        assert await b.write(Append(session_id="s", event="4", born=born)) is not None
        assert await b.write(Append(session_id="s", event="5", born="another")) is None
        assert await _events(b, "s") == ["2", "3", "4"]


async def a_log_stays_when_the_session_is_taken_over(make_store: MakeStore) -> None:
    """It belongs to the session, not to its holder."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        before = await _append(a, "s", '"before"')
        await trio.sleep(TICK)
        assert (await b.claim("s")).outcome is Outcome.TAKEN_OVER
        assert await _append(b, "s", '"after"') > before
        assert (await b.claim("s", generation=2)).outcome is Outcome.KEPT
        assert await _events(a, "s") == ['"before"', '"after"']


async def a_log_goes_with_its_session(make_store: MakeStore) -> None:
    """With a deletion, a claim that replaces it, and with its worker; ids are not used again."""
    async with opened(make_store, "a", "b") as (a, b):
        last = 0

        async def fill(generation: int) -> None:
            nonlocal last
            for _ in range(3):
                entry_id = await _append(a, "s", f'"{generation}"')
                assert entry_id > last
                last = entry_id

        await a.claim("s")
        await fill(1)
        assert await a.write(Delete(session_id="s", up_to=1)) == 0, "entries are no messages"
        assert await _events(b, "s") == []
        assert (await a.claim("s", generation=2)).outcome is Outcome.INSERTED
        assert await _events(b, "s") == []
        await fill(2)
        claimed = await a.write(Claim(session_id="s", generation=3, age=0.0, ended=2))
        assert (claimed.outcome, claimed.dropped) == (Outcome.INSERTED, 0)
        assert await _events(b, "s") == []
        await fill(3)
        while (await a.store.delete_all(a.worker, limit=2)).more:
            pass
        assert await _events(b, "s") == []
        assert (await b.claim("s")).outcome is Outcome.INSERTED
        assert await _events(b, "s") == []


async def a_sweep_takes_the_log_too(make_store: MakeStore) -> None:
    """With the session that has expired, of that alone; however little it may take at a time."""
    async with opened(make_store, "a", "b") as (a, b):
        await b.claim("s")
        for n in range(3):
            await _append(b, "s", f"{n}")
        await a.claim("kept")
        await _append(a, "kept", '"x"')

        async def is_gone() -> bool:
            await sweep(a, max_gap=LONG, limit=1)
            return await a.store.locate(a.worker, "s") is None

        await eventually(is_gone, "it does not expire")
        assert await _events(a, "s") == []
        assert (await a.claim("s")).outcome is Outcome.INSERTED
        assert await _events(a, "s") == []
        assert await _events(a, "kept") == ['"x"']


async def the_newest_are_kept(make_store: MakeStore) -> None:
    """As many as an append says, of its session alone; those of its own batch may stay."""
    async with opened(make_store, "a") as (a,):
        await a.claim("s")
        await a.claim("other")
        await _append(a, "other", '"x"')
        for n in range(5):
            await _append(a, "s", f"{n}")
        await _append(a, "s", "5", keep=10)
        assert await _events(a, "s") == ["0", "1", "2", "3", "4", "5"]
        await _append(a, "s", "6", keep=3)
        assert await _events(a, "s") == ["4", "5", "6"]
        await _append(a, "s", "7", keep=1)
        assert await _events(a, "s") == ["7"]
        assert await _events(a, "other") == ['"x"']


async def old_entries_are_expired(make_store: MakeStore) -> None:
    """Of all sessions, so many at a time; younger ones stay."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await b.claim("t")
        for client, session_id in ((a, "s"), (a, "s"), (b, "t")):
            await _append(client, session_id, '"old"')
        await trio.sleep(50 * TICK)
        await _append(a, "s", '"new"')
        expire = _store(b).expire_logs
        assert await expire(b.worker, older_than=LONG, limit=100) == 0
        assert await expire(b.worker, older_than=40 * TICK, limit=2) == 2
        assert await expire(b.worker, older_than=40 * TICK, limit=2) == 1
        assert await _events(a, "s") == ['"new"']
        assert await _events(a, "t") == []


async def in_doubt_only_what_is_there_has_a_log(make_store: MakeStore) -> None:
    """Nobody is told that there is no such session, or that it has no log, for it."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        await a.claim("empty")
        await _append(a, "s", "1")
        await begin(b)
        assert await _read(b, "nobody") == []
        await begin(a, rewound=True, cleanup_interval=LONG)
        assert await _events(b, "s") == ["1"]
        assert await _read(b, "empty") == []
        await _append(b, "s", "2")
        batch = Batch(writes=[Append(session_id="nobody", event="3")])
        [answer] = (await b.store.commit(b.worker, batch)).answers
        assert isinstance(answer, RowDoubtful)
        try:
            found = await _read(b, "nobody")
        except StoreUnavailable:
            return
        raise AssertionError(f"it is in doubt, and says {found!r}")


log_checks: tuple[Check, ...] = (
    entries_are_read_again_and_again,
    a_read_goes_on_after_an_id,
    a_batch_appends_in_its_order,
    an_append_is_for_the_session_that_is_meant,
    a_log_stays_when_the_session_is_taken_over,
    a_log_goes_with_its_session,
    a_sweep_takes_the_log_too,
    the_newest_are_kept,
    old_entries_are_expired,
    in_doubt_only_what_is_there_has_a_log,
)
