"""Checks of `DataStore`: the data of sessions."""

from typing import cast

import trio

from trio_sessions.abc import InspectionStore, Part
from trio_sessions.testing._conformance._said import ask_for_data, bring, replacing, set_data
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities, Holder
from trio_sessions.writes import (
    Claim,
    ClaimOwner,
    Delete,
    Differs,
    Outcome,
    SetCapabilities,
    SetOwner,
)

__all__ = ["data_checks"]

_ODD = (
    "{}",
    '{ "spaces" :\t1 , "twice": 1, "twice": 2 }',
    '{"numbers":[1e5,1.0,-0.0,12345678901234567890123,0.1000]}',
    '{"texts":["\\u0000","\\u00e9","é","😀","\\"\\\\"],"\\u0000":1,"":2}',
    '{"deep":' + "[" * 5000 + "]" * 5000 + "}",
    '{"large":"' + "x" * 65_000 + '"}',
)
"""Texts that a store that parses them would change, or refuse."""


async def data_is_written_with_the_row(make_store: MakeStore) -> None:
    """The claim brings it, and its answer tells what the session has."""
    async with opened(make_store, "a", "b") as (a, b):
        claimed = await a.write(
            Claim(session_id="s", generation=1, age=0.0, owner="alice", data='{"n":1}')
        )
        assert (claimed.outcome, claimed.data) == (Outcome.INSERTED, '{"n":1}')
        assert claimed.holder.owner == "alice"
        assert await ask_for_data(b, "s") == '{"n":1}'
        assert (await a.claim("s", 2)).data == '{"n":1}'
        assert (await a.write(bring("s", '{"n":2}', generation=3))).data == '{"n":2}'
        assert await ask_for_data(b, "s") == '{"n":2}'
        assert (await a.write(bring("s", None, generation=4))).data is None
        assert await ask_for_data(b, "s") is None
        assert (await a.claim("none")).data is None
        assert await ask_for_data(b, "none") is None
        assert await ask_for_data(b, "nobody") is None


async def anybody_replaces_data(make_store: MakeStore) -> None:
    """Of a session that there is; the answer says who holds it. Nothing else is changed."""
    async with opened(make_store, "a", "b") as (a, b):
        assert await set_data(b, "s", "{}") is None
        assert await ask_for_data(b, "s") is None
        await a.claim("s")
        await a.claim("other")
        await a.write(SetOwner(session_id="s", owner="alice"))
        await a.write(SetCapabilities(session_id="s", capabilities=_ABLE))
        for client, text in ((a, '{"n":1}'), (b, '{"n":2}'), (b, '{"n":2}')):
            holder = await set_data(client, "s", text)
            assert isinstance(holder, Holder)
            assert (holder.worker_id, holder.owner) == ("a", "alice")
            assert await ask_for_data(a, "s") == text
        assert await ask_for_data(b, "other") is None
        assert await b.store.get_capabilities(b.worker, "s") == _ABLE.encoded
        assert await b.store.elicitation_capable(b.worker) == ["s"]
        await b.write(SetOwner(session_id="s", owner="bob"))
        await b.write(SetCapabilities(session_id="s", capabilities=_ABLE))
        await b.write(ClaimOwner(session_id="s", owner="carol"))
        assert await ask_for_data(a, "s") == '{"n":2}'
        assert isinstance(await set_data(b, "s", None), Holder)
        assert await ask_for_data(a, "s") is None


async def texts_are_kept_as_they_are(make_store: MakeStore) -> None:
    """Spaces, numbers, escapes, what nests deep: all comes back character by character."""
    async with opened(make_store, "a", "b") as (a, b):
        for generation, text in enumerate(_ODD, 1):
            assert (await a.write(bring("brought", text, generation=generation))).data == text
            assert await ask_for_data(b, "brought") == text
            assert isinstance(await set_data(b, "brought", None), Holder)
            assert isinstance(await set_data(b, "brought", text, only_if=None), Holder)
            assert await ask_for_data(a, "brought") == text
            assert isinstance(await set_data(b, "brought", "{}", only_if=text), Holder)


async def data_is_compared_and_replaced_in_one_step(make_store: MakeStore) -> None:
    """Where it is another text nothing is done, and the answer brings it."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.claim("s")
        assert await set_data(b, "s", '{"n":2}', only_if='{"n":1}') == Differs(data=None)
        assert isinstance(await set_data(b, "s", '{"n":1}', only_if=None), Holder)
        assert await set_data(a, "s", '{"n":3}', only_if=None) == Differs(data='{"n":1}')
        assert await set_data(a, "s", '{"n":3}', only_if='{"n": 1}') == Differs(data='{"n":1}')
        assert await ask_for_data(a, "s") == '{"n":1}'
        assert isinstance(await set_data(a, "s", '{"n":3}', only_if='{"n":1}'), Holder)
        assert await ask_for_data(b, "s") == '{"n":3}'
        assert await set_data(b, "nobody", "{}", only_if=None) is None


async def of_many_that_compare_at_once_one_wins(make_store: MakeStore) -> None:
    """The others are told what it has written, or what came after it."""
    async with opened(make_store, "a", "b", "c") as clients:
        await clients[0].write(bring("s", "{}"))
        answers: list[Holder | Differs | None] = []

        async def replace(client: Client) -> None:
            text = f'{{"by":"{client.worker.worker_id}"}}'
            answers.append(await set_data(client, "s", text, only_if="{}"))

        for _ in range(5):
            await set_data(clients[0], "s", "{}")
            answers.clear()
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(replace, client)
            now = await ask_for_data(clients[1], "s")
            assert now != "{}"
            assert [one for one in answers if not isinstance(one, Holder)] == [
                Differs(data=now),
                Differs(data=now),
            ]


async def data_goes_with_the_session(make_store: MakeStore) -> None:
    """A later one of its id has none of it, and nothing is said of one that has ended."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.write(bring("deleted", "{}"))
        await a.write(Delete(session_id="deleted", up_to=1))
        assert (await b.claim("deleted")).data is None
        await a.write(bring("replaced", "{}"))
        assert await set_data(a, "replaced", '{"late":1}', ended=1) is None
        assert await set_data(a, "replaced", '{"late":1}', only_if="{}", ended=1) is None
        assert await ask_for_data(b, "replaced") == "{}"
        claimed = await a.write(Claim(session_id="replaced", generation=2, age=0.0, ended=1))
        assert (claimed.outcome, claimed.data) == (Outcome.INSERTED, None)
        assert await ask_for_data(b, "replaced") is None


async def a_takeover_keeps_or_brings_data(make_store: MakeStore) -> None:
    """A claim that is lost, or comes late, brings nothing; the answer tells it all the same."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.write(bring("s", '{"n":1}', generation=7))
        await trio.sleep(TICK)
        lost = await b.write(Claim(session_id="s", generation=1, age=1000.0, data='{"lost":1}'))
        assert (lost.outcome, lost.data) == (Outcome.LOST, '{"n":1}')
        late = await a.write(bring("s", '{"late":1}', generation=6))
        assert (late.outcome, late.data) == (Outcome.KEPT, '{"n":1}')
        await trio.sleep(TICK)
        taken = await b.claim("s")
        assert (taken.outcome, taken.data) == (Outcome.TAKEN_OVER, '{"n":1}')
        await trio.sleep(TICK)
        brought = await a.write(bring("s", '{"n":2}', generation=8))
        assert (brought.outcome, brought.data) == (Outcome.TAKEN_OVER, '{"n":2}')
        assert await ask_for_data(b, "s") == '{"n":2}'


async def one_batch_carries_all_kinds_of_data(make_store: MakeStore) -> None:
    """New sessions with some and without, and what is said of others."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.commit(bring("x", '{"x":1}'), bring("y", '{"y":1}'))
        await b.commit(
            bring("new", '{"new":1}'),
            Claim(session_id="bare", generation=1, age=0.0),
            replacing("x", '{"x":2}'),
            replacing("y", None),
        )
        found = [await ask_for_data(a, one) for one in ("new", "bare", "x", "y")]
        assert found == ['{"new":1}', None, '{"x":2}', None]


async def whoever_describes_a_session_tells_its_data(make_store: MakeStore) -> None:
    """In a store that answers operators, too (`InspectionStore`)."""
    async with opened(make_store, "a", "b") as (a, b):
        await a.write(bring("s", '{"deep":' + "[" * 2000 + "]" * 2000 + ',"n":1}'))
        await a.claim("none")
        if Part.INSPECTION not in b.store.parts:
            return
        store = cast("InspectionStore", b.store)
        told = await store.describe(b.worker, "s")
        assert told is not None
        assert told.data is not None
        assert (set(told.data), told.data["n"]) == ({"deep", "n"}, 1)
        bare = await store.describe(b.worker, "none")
        assert bare is not None
        assert bare.data is None


_ABLE = Capabilities(encoded='{"elicitation":{}}', elicitation=True)


data_checks: tuple[Check, ...] = (
    data_is_written_with_the_row,
    anybody_replaces_data,
    texts_are_kept_as_they_are,
    data_is_compared_and_replaced_in_one_step,
    of_many_that_compare_at_once_one_wins,
    data_goes_with_the_session,
    a_takeover_keeps_or_brings_data,
    one_batch_carries_all_kinds_of_data,
    whoever_describes_a_session_tells_its_data,
)
