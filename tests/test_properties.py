"""Only confirmed-missing or disconnected sessions are ever removed, whatever happens."""

from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
import trio.testing
from backdoors import DatabaseBackdoor, MemoryBackdoor
from histories import TTL, Step, histories, play
from hypothesis import HealthCheck, example, given, settings
from soak import SOAK, TIMES

from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover


@settings(max_examples=100 * TIMES if SOAK else 30)
@given(history=histories(with_time=True))
@example(  # the second sleep may, or may not, be long enough for a pass of the worker's own
    history=[
        ("sleep", 0.03),
        ("lose database", 0, Fault.HANGS),
        ("add", 0, "a"),
        ("heal all",),
        ("sleep", 0.45),
        ("delete row", "a"),
    ]
)
@example(  # the other worker's sweeps happen, although it hears nothing of them
    history=[
        ("outage", Fault.COMMITS_THEN_FAILS),
        ("sleep", 0.2),
        ("add", 0, "a"),
        ("lose database", 0, Fault.FAILS),
        ("sleep", 1.3),
    ]
)
@example(  # the newest holder has not written its row when the one before it writes its own
    history=[
        ("add", 0, "b"),
        ("crash", 0),
        ("outage", Fault.FAILS),
        ("add", 0, "b"),
        ("add", 1, "b"),
    ]
)
def test_in_memory_with_time_passing(history: list[Step]) -> None:
    """Adds, re-adds, deaths, hangs, outages, deletions, crashes, passes, and hours between."""
    store = MemoryStore()
    trio.run(
        lambda: play(
            history,
            lambda: store,
            MemoryBackdoor(store),
            {
                "session_ttl": TTL,
                "cleanup_interval": TTL / 2,
                "check_timeout": 1.0,
                "disconnect_timeout": 1.0,
                "store_timeout": 2.0,
            },
            tick=0.01,
        ),
        clock=trio.testing.MockClock(autojump_threshold=0),
    )


def play_on_a_database(history: list[Step], url: sa.URL) -> None:
    backdoor = DatabaseBackdoor(url)
    store = DatabaseStore(url)
    try:
        with backdoor.engine.begin() as connection:
            for table in (backdoor.messages_table, backdoor.sessions, backdoor.fleet):
                if sa.inspect(connection).has_table(table.name):
                    connection.execute(sa.delete(table))
        trio.run(
            lambda: play(
                history,
                lambda: store,
                backdoor,
                {"check_timeout": 0.02, "disconnect_timeout": 1.0},
                tick=0.003,
            )
        )
    finally:
        backdoor.close()


@pytest.fixture(scope="module")
def sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories") / "sessions.db"


@pytest.mark.timeout(180 * TIMES)
@settings(max_examples=8 * TIMES)
@given(history=histories(with_time=False))
def test_on_sqlite(sqlite_file: Path, history: list[Step]) -> None:
    """The same, in real time: no leases expire."""
    play_on_a_database(history, sa.make_url(f"sqlite:///{sqlite_file}"))


@pytest.mark.timeout(180 * TIMES)
@settings(
    max_examples=8 * TIMES,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # emptied for each example
)
@given(history=histories(with_time=False))
def test_on_postgresql(postgresql_schema: sa.URL, history: list[Step]) -> None:
    """The same again."""
    play_on_a_database(history, postgresql_schema)
