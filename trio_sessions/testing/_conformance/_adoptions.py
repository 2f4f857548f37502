"""Checks of `DataStore`: sessions that are adopted from a worker that is named."""

from typing import cast

import trio

from trio_sessions.abc import Part, RevocationStore
from trio_sessions.errors import RowDoubtful
from trio_sessions.revocation import Revocation
from trio_sessions.testing._conformance._fleet import LONG, begin
from trio_sessions.testing._conformance._said import adoption, ask_for_data
from trio_sessions.testing._conformance._tools import TICK, Check, Client, MakeStore, opened
from trio_sessions.types import Capabilities, Sent
from trio_sessions.writes import Batch, Claim, Claimed, Delete, Outcome, Send

__all__ = ["adoption_checks"]

_ABLE = Capabilities(encoded='{"elicitation":{}}', elicitation=True)


async def _add(client: Client, session_id: str, *, generation: int = 1) -> None:
    claimed = await client.write(
        Claim(
            session_id=session_id,
            generation=generation,
            age=0.0,
            owner="alice",
            capabilities=_ABLE,
            data='{"n":1}',
        )
    )
    assert claimed.outcome is Outcome.INSERTED


async def _outcome(client: Client, claim: Claim) -> Outcome:
    return (await client.write(claim)).outcome


async def whoever_adopts_gets_all_of_a_session(make_store: MakeStore) -> None:
    """However lately it was taken: owner, capabilities, data, messages, and it is the same one."""
    async with opened(make_store, "a", "b") as (a, b):
        for session_id, named in (("one", a.worker.incarnation), ("two", "a")):
            await _add(a, session_id, generation=7)
            again = await a.claim(session_id, 7)
            assert isinstance(await a.write(Send(session_id=session_id, payload='"m"')), Sent)
            adopted = await b.write(adoption(session_id, named, generation=2, age=1000.0))
            assert (adopted.outcome, adopted.born) == (Outcome.TAKEN_OVER, again.born)
            assert adopted.holder.incarnation == b.worker.incarnation
            assert (adopted.holder.worker_id, adopted.holder.owner) == ("b", "alice")
            assert (adopted.capabilities, adopted.data) == (_ABLE, '{"n":1}')
            assert await b.holds(session_id)
            assert await a.store.get_capabilities(a.worker, session_id) == _ABLE.encoded
            assert await ask_for_data(a, session_id) == '{"n":1}'
            assert await b.payloads(session_id) == ['"m"']
        assert await b.store.own_rows(b.worker, after="", limit=10) == [("one", 2), ("two", 2)]


async def nobody_is_adopted_from_another(make_store: MakeStore) -> None:
    """Not where somebody else holds it, or it is the asker's own, and nothing is changed then."""
    async with opened(make_store, "a", "b", "c") as (a, b, c):
        await _add(a, "a's")
        await _add(b, "b's", generation=3)
        await trio.sleep(TICK)
        for claim in (
            adoption("a's", c.worker.incarnation),
            adoption("a's", "c"),
            adoption("a's", "nobody"),
            adoption("a's", "b"),
            adoption("b's", "b", generation=9),
            adoption("b's", b.worker.incarnation, generation=2),
            adoption("b's", "a", generation=4),
        ):
            assert await _outcome(b, claim) is Outcome.NOT_ADOPTED, claim
        assert await a.holds("a's")
        assert await b.store.own_rows(b.worker, after="", limit=10) == [("b's", 3)]


async def who_is_not_there_cannot_be_adopted(make_store: MakeStore) -> None:
    """No row is written, and what has ended here stays what it is."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(b, "ended")
        ended = Claim(session_id="ended", generation=2, age=0.0, ended=1, only_from="a")
        bringing = Claim(session_id="nobody", generation=1, age=0.0, data="{}", only_from="a")
        for claim in (adoption("nobody", "a"), bringing, ended):
            assert await _outcome(b, claim) is Outcome.NOT_ADOPTED
        assert await a.store.locate(a.worker, "nobody") is None
        assert await b.store.own_rows(b.worker, after="", limit=10) == [("ended", 1)]
        assert await b.write(Delete(session_id="ended", up_to=1)) == 0
        assert await a.store.locate(a.worker, "ended") is None


async def of_many_who_adopt_one_wins(make_store: MakeStore) -> None:
    """Though all of them name the same worker, and all at once."""
    async with opened(make_store, "a", "b", "c", "d") as (a, *others):
        for number in range(5):
            session_id = f"s{number}"
            await _add(a, session_id)
            outcomes: dict[str, Outcome] = {}

            async def adopt(
                client: Client, session_id: str = session_id, told: dict[str, Outcome] = outcomes
            ) -> None:
                claim = adoption(session_id, a.worker.incarnation)
                told[client.worker.worker_id] = await _outcome(client, claim)

            async with trio.open_nursery() as nursery:
                for client in others:
                    nursery.start_soon(adopt, client)
            assert sorted(one.value for one in outcomes.values()) == [
                Outcome.NOT_ADOPTED.value,
                Outcome.NOT_ADOPTED.value,
                Outcome.TAKEN_OVER.value,
            ]
            [winner] = [one for one, told in outcomes.items() if told is Outcome.TAKEN_OVER]
            holder = await a.store.locate(a.worker, session_id)
            assert holder is not None
            assert holder.worker_id == winner


async def an_adoption_may_be_asked_for_again(make_store: MakeStore) -> None:
    """After its answer was lost: it says that the row is this worker's. Later ones do not."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(a, "s")
        claim = adoption("s", "a", generation=5)
        first = await b.write(claim)
        assert first.outcome is Outcome.TAKEN_OVER
        again = await b.write(claim)
        assert (again.outcome, again.born, again.data) == (Outcome.KEPT, first.born, '{"n":1}')
        assert again.holder.owner == "alice"
        assert await _outcome(b, adoption("s", "a", generation=6)) is Outcome.NOT_ADOPTED
        ended = Claim(session_id="s", generation=5, age=0.0, ended=5, only_from="a")
        assert await _outcome(b, ended) is Outcome.NOT_ADOPTED
        assert await b.holds("s")


async def whoever_is_adopted_may_come_back(make_store: MakeStore) -> None:
    """By a claim that is newer; an older one has lost it."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(a, "s")
        await trio.sleep(TICK)
        assert await _outcome(b, adoption("s", "a")) is Outcome.TAKEN_OVER
        assert (await a.claim("s", age=1000.0)).outcome is Outcome.LOST
        await trio.sleep(TICK)
        assert (await a.claim("s", 2)).outcome is Outcome.TAKEN_OVER


async def in_doubt_nobody_is_adopted(make_store: MakeStore) -> None:
    """The row may be an older copy: its holder may be another one by now, or not be dead."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(a, "s")
        await begin(b)
        await begin(a, rewound=True, cleanup_interval=LONG)
        for session_id in ("s", "nobody"):
            batch = Batch(writes=[adoption(session_id, "a")])
            [answer] = (await b.store.commit(b.worker, batch)).answers
            assert isinstance(answer, RowDoubtful)
        assert await a.holds("s")


async def a_revoked_session_is_not_adopted(make_store: MakeStore) -> None:
    """In a store that knows marks, too (`RevocationStore`)."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(a, "s")
        if Part.REVOCATION not in b.store.parts:
            return
        revoker = cast("RevocationStore", b.store)
        await revoker.revoke(b.worker, Revocation(session_ids=["s"], ttl=LONG), limit=10)
        assert await _outcome(b, adoption("s", "a")) is Outcome.REVOKED


async def adoptions_share_a_batch_with_claims(make_store: MakeStore) -> None:
    """Each has its own answer."""
    async with opened(make_store, "a", "b") as (a, b):
        await _add(a, "s")
        await a.claim("t")
        await trio.sleep(TICK)
        answers = await b.commit(
            adoption("s", "a"),
            Claim(session_id="t", generation=2, age=0.0),
            Claim(session_id="u", generation=3, age=0.0),
            adoption("nobody", "a", generation=4),
        )
        assert [one.outcome for one in answers if isinstance(one, Claimed)] == [
            Outcome.TAKEN_OVER,
            Outcome.TAKEN_OVER,
            Outcome.INSERTED,
            Outcome.NOT_ADOPTED,
        ]
        assert await b.holds("s", "t", "u")


adoption_checks: tuple[Check, ...] = (
    whoever_adopts_gets_all_of_a_session,
    nobody_is_adopted_from_another,
    who_is_not_there_cannot_be_adopted,
    of_many_who_adopt_one_wins,
    an_adoption_may_be_asked_for_again,
    whoever_is_adopted_may_come_back,
    in_doubt_nobody_is_adopted,
    a_revoked_session_is_not_adopted,
    adoptions_share_a_batch_with_claims,
)
