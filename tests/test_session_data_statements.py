"""What data and adoptions cost on PostgreSQL: round trips, and which rows are read."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from proxy import Proxy
from statements import noting_engine

from trio_sessions import open_registry
from trio_sessions._mail import Mail
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")


async def test_each_call_is_one_round_trip(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With data as without; a merge, too, by whoever holds the session and knows what is there.

    Without the letter to the older holder, which leaves by itself, and for which nobody waits.
    """
    monkeypatch.setattr(Mail, "tell_moved", lambda *_: None)
    async with (
        open_registry(DatabaseStore(proxy.url)) as a,
        open_registry(DatabaseStore(proxy.url)) as b,
    ):
        for _ in range(3):  # until every statement is prepared
            await a.add_session("s", FakeTransport(), owner="alice", data={"n": 0})
            await a.set_session_data("s", {"n": 1})
            await a.set_session_data("s", {"m": 1}, merge=True)
            await a.get_session_data("s")
            await a.describe_session("s")
            await b.adopt_session("s", FakeTransport(), from_worker=a.worker_id)
            await b.adopt_session("t", FakeTransport(), from_worker=a.worker_id)
            await b.remove_session("s")
            await a.cleanup()
        costs: list[int] = []
        for call in (
            lambda: a.add_session("s", FakeTransport(), owner="alice", data={"n": 0}),
            lambda: a.set_session_data("s", {"n": 1}),
            lambda: a.set_session_data("s", {"m": 1}, merge=True),
            lambda: a.get_session_data("s"),
            lambda: a.describe_session("s"),
            lambda: b.adopt_session("t", FakeTransport(), from_worker=a.worker_id),
            lambda: b.adopt_session("s", FakeTransport(), from_worker=a.worker_id),
        ):
            proxy.reset()
            await call()
            costs.append(len(proxy.round_trips))
        assert costs == [1] * 7
        assert await b.get_session_data("s") == {"n": 1, "m": 1}


async def test_who_adopts_nobody_sends_no_word_of_it(postgresql_schema: sa.URL) -> None:
    """A statement that only claims is no longer than it must be."""
    with noting_engine(postgresql_schema) as (engine, noted):
        async with open_registry(DatabaseStore(engine)) as registry:
            await registry.add_session("s", FakeTransport(), data={"n": 1})
            await registry.set_session_data("s", {"n": 2})
        statements = [one for one in noted if "claims_asked" in one or "sayings_asked" in one]
        assert statements
        assert not [one for one in statements if "adoption" in one]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def test_adoptions_and_data_use_the_primary_key(postgresql_schema: sa.URL) -> None:
    """In a table of 20,000 rows none of them reads the whole."""
    async with contextlib.AsyncExitStack() as stack:
        engine, noted = stack.enter_context(noting_engine(postgresql_schema))
        registry = await stack.enter_async_context(open_registry(DatabaseStore(engine)))
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO trio_sessions (session_id, worker_id, incarnation) "
                "SELECT 'other-' || i, 'dead', 'dead' FROM generate_series(1, 20000) i"
            )
            connection.exec_driver_sql("ANALYZE trio_sessions")
        assert await registry.adopt_session("other-7", FakeTransport(), from_worker="dead")
        await registry.set_session_data("other-8", {"n": 1})
        await registry.get_session_data("other-8")
        seen = {
            name: (statement, parameters)
            for statement, parameters in noted.items()
            for name, word in {
                "adopt": "adoptions_asked",
                "set": "sayings_asked",
                "get": "SELECT trio_sessions.data",
            }.items()
            if word in " ".join(statement.split())
        }
        assert set(seen) == {"adopt", "set", "get"}
        with engine.connect() as connection:
            for name, (statement, parameters) in seen.items():
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
                explain = f"EXPLAIN (FORMAT JSON) {statement}"
                [plan] = connection.exec_driver_sql(explain, parameters).scalar_one()
                found = list(nodes(plan["Plan"]))
                used = {node["Index Name"] for node in found if "Index Name" in node}
                assert "trio_sessions_pkey" in used, name
                assert used <= {
                    "trio_sessions_pkey",
                    "trio_revoked_pkey",
                    "trio_workers_pkey",
                    "trio_fleet_pkey",
                    "ix_trio_revoked_until",
                }, name
                assert not [node for node in found if node["Node Type"] == "Seq Scan"], name
