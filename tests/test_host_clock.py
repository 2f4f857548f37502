"""Whose clock it is: no moment that the store is told comes from the host's."""

import datetime as dt
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from backdoors import DatabaseBackdoor
from statements import noting_engine

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

pytestmark = pytest.mark.usefixtures("nothing_in_between")

HOUR = 3600.0
DAY = 24 * HOUR


def parts_of(sent: object) -> Iterator[object]:
    """Yield a value, and all that is in it."""
    yield sent
    if isinstance(sent, Mapping):
        sent = [*sent.keys(), *sent.values()]
    if isinstance(sent, Sequence) and not isinstance(sent, str | bytes):
        for one in sent:
            yield from parts_of(one)


def is_moment(sent: object, now: float) -> bool:
    """Say whether a value is, or has in it, a moment within an hour, in whatever unit or notation.

    Of a day that is written out no hour is looked at.
    """
    if isinstance(sent, dt.date | dt.time):
        return True
    if isinstance(sent, int | float):
        return any(abs(sent / unit - now) < HOUR for unit in (1, 1e3, 1e6, 1e9))
    if isinstance(sent, str):
        days = {time.strftime("%Y-%m-%d", time.gmtime(now + away)) for away in (-DAY, 0.0, DAY)}
        numbers = re.findall(r"\d{10,}(?:\.\d+)?", sent)
        return any(one in sent for one in days) or any(is_moment(float(n), now) for n in numbers)
    return False


async def test_no_moment_comes_from_the_host_s_clock(
    postgresql_schema: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's clock is wrong by hours: what is stored is as the server's clock says."""
    backdoor = DatabaseBackdoor(postgresql_schema)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 5 * HOUR)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + 5 * HOUR) * 1e9))
    sent: list[Any] = []
    with noting_engine(postgresql_schema) as (engine, seen):

        @sa.event.listens_for(engine, "before_cursor_execute")
        def note(
            _: object, cursor: object, statement: str, parameters: object, *__: object
        ) -> None:
            sent.append((statement, parameters))

        store = DatabaseStore(engine)
        async with open_registry(store, session_ttl=HOUR, cleanup_interval=HOUR / 2) as registry:
            for session_id in ("s", "t"):
                await registry.add_session(session_id, FakeTransport())
                await registry.broadcast(session_id, "hello", durable=True)
            await registry.set_session_owner("s", "alice")
            await registry.add_session("s", FakeTransport())
            await registry.remove_session("t")
            backdoor.insert("dead", "another", age=2 * HOUR)
            forget_series_of = sa.update(backdoor.fleet).values(unbroken_since=None)
            backdoor.execute(forget_series_of)
            assert (await registry.cleanup()).expired == 1
            for table in backdoor.sessions.metadata.sorted_tables:
                moments = [one.name for one in table.c if isinstance(one.type, sa.DateTime)]
                away = [
                    sa.func.abs(sa.func.extract("epoch", sa.func.now() - table.c[name]))
                    for name in moments
                ]
                for found in backdoor.execute(sa.select(*away)):
                    assert all(one is None or one < HOUR for one in found), (table.name, moments)
        sent += seen.items()
    backdoor.close()
    values = list(parts_of(sent))
    assert any("alice" in one for one in values if isinstance(one, str)), "claims are seen"
    assert [one for one in values if is_moment(one, time.time())] == [], "as the host's clock says"


@pytest.mark.parametrize(
    "make",
    [
        lambda now: now,
        lambda now: now + HOUR / 2,
        lambda now: int(now * 1e9),
        dt.datetime.fromtimestamp,
        lambda now: dt.datetime.fromtimestamp(now, dt.UTC).isoformat(),
        lambda now: f"SELECT to_timestamp({now})",
        lambda now: json.dumps({"at": now}),
    ],
)
def test_moments_are_seen(make: Callable[[float], object]) -> None:
    """However they are written, and in whatever they are."""
    now = time.time()
    assert any(is_moment(one, now) for one in parts_of([("a", {"b": [make(now)]})]))
    assert not any(
        is_moment(one, now) for one in parts_of(["2020-01-01", 3600.0, now - 5 * HOUR, "s", 7])
    )
