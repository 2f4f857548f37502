"""`trio-sessions bench`: it measures on tables of its own, and leaves nothing behind."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from conftest import Shared
from fleets import in_thread
from test_cli_operators import run, url_of

from trio_sessions.cli import _bench
from trio_sessions.errors import StoreUnavailable
from trio_sessions.testing import FakeTransport

SMALL = ("--sessions", "30", "--seconds", "3")


def tables_of(url: sa.URL) -> set[str]:
    """Return what tables there are; SQLite keeps one for itself."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    names = set(sa.inspect(engine).get_table_names())
    engine.dispose()
    return names


async def test_it_says_what_the_database_carries(database: Shared) -> None:
    """As JSON: seconds, all of them above zero; and no table is left."""
    url = url_of(database)
    before = await in_thread(partial(tables_of, url))
    done = await in_thread(partial(run, "bench", *SMALL, "--json", url=url))
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["database"] == database.name
    assert told["added"] == 30
    assert told["added_per_second"] > 0
    for what in ("round_trip", "question", "whole_pass", "message"):
        assert 0 < told[what]["median"] <= told[what]["upper"] < 60, what
        assert told[what]["count"] >= 1
    assert 0 < told["refreshing"] < told["whole_pass"]["upper"]
    assert await in_thread(partial(tables_of, url)) == before


@pytest.mark.parametrize("width", [60, 120])
async def test_a_narrow_terminal_is_enough(sqlite_url: sa.URL, width: int) -> None:
    """Each figure stands in one piece on its line."""
    done = await in_thread(partial(run, "bench", *SMALL, url=sqlite_url, width=width))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in done.stdout
    assert sum(" ms" in line for line in lines) == 4
    assert lines[-1].startswith("30 sessions added at once: ")


async def test_where_workers_are_alive_it_refuses(database: Shared) -> None:
    """They would feel it; whoever says so may."""
    async with database.open() as registry:
        await registry.add_session("s", FakeTransport())
        url = url_of(database)
        refused = await in_thread(partial(run, "bench", *SMALL, url=url))
        assert refused.exit_code == 1
        assert "1 worker is alive on this database" in refused.output
        done = await in_thread(partial(run, "bench", *SMALL, "--anyway", url=url))
        assert done.exit_code == 0, done.output
        assert (await registry.cleanup()).refreshed == 1
        assert database.backdoor.rows() == {"s": registry.worker_id}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--sessions", "0"), "--sessions"),
        (("--sessions", "1000000000"), "--sessions"),
        (("--seconds", "0"), "--seconds must be 1 to 600"),
        (("--seconds", "nan"), "--seconds must be 1 to 600"),
        (("--table-prefix", "A B"), "table_prefix"),
    ],
)
def test_a_mistake_is_bad_usage(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """And nothing is opened for it."""
    done = run("bench", *arguments, url=f"sqlite:///{tmp_path / 'none.db'}")
    assert done.exit_code == 2
    assert told in done.output
    assert not list(tmp_path.iterdir())


def test_a_url_that_cannot_be_used_is_named() -> None:
    done = run("bench", url="mysql://host/name")
    assert done.exit_code == 2
    assert "mysql" in done.output


def test_what_cannot_be_reached_is_told_in_a_line() -> None:
    """With the exit code of a failure."""
    from trio_sessions.cli._main import commands, guarded

    url = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    called = ["bench", *SMALL, "--database-url", url]
    assert guarded(lambda: commands.main(called, standalone_mode=False)) == 1


async def test_tables_are_dropped_whatever_happens(database: Shared) -> None:
    """Also if it is interrupted while it measures, and if the measure fails."""
    url = url_of(database)
    before = await in_thread(partial(tables_of, url))
    with trio.move_on_after(30) as scope:
        async with _bench._two_workers(url, "trio_bench_cut_") as (_, holder, _sender):
            await holder.add_session("s", FakeTransport())
            assert len(await in_thread(partial(tables_of, url))) > len(before)
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert await in_thread(partial(tables_of, url)) == before
    with pytest.raises(StoreUnavailable, match="so it fails"):
        async with _bench._two_workers(url, "trio_bench_cut_"):
            raise StoreUnavailable("so it fails")
    assert await in_thread(partial(tables_of, url)) == before


async def test_a_slow_database_gets_less_of_everything(sqlite_url: sa.URL) -> None:
    """What is done again and again ends with its time, after the least that says anything."""
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await trio.sleep(0.05)

    spread = await _bench._again(call, 1000, 0.0, lambda _: None)
    assert spread is not None
    assert (spread.count, calls) == (2, 3)
    assert 0.05 <= spread.median <= spread.upper < 5
