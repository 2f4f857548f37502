"""What `writes` compares: sessions added and removed, by the public surface alone.

A program of its own, run with two trees on ``PYTHONPATH`` in turn, so it must work with both:
it imports nothing of `benchmarks`. It prints what was taken, and whose code that was. After
each step it counts the rows in the database: what was not written is not measured.
"""

import argparse
import json
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import sqlalchemy as sa
import trio
from psycopg import sql

import trio_sessions
from trio_sessions import SessionRegistry, open_registry

__all__ = ["MEASURES", "Taken"]

Taken = dict[str, tuple[float, float]]
"""For each kind of call the seconds of one, by the clock and by the processor's.

Of those made one after the other it is the median by the clock; of those made at once, the
seconds of all divided by their number. Of the processor's it is always the mean.
"""

_SETTINGS: Any = {"session_ttl": 7200.0, "cleanup_interval": 3600.0}
_TASKS, _THREADS = 200, 20

_Call = Callable[[int], Awaitable[object]]


class _Connection:
    """Answers at once."""

    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


async def _in_turn(numbers: range, call: _Call) -> tuple[float, float]:
    seconds, began = [], time.process_time()
    for number in numbers:
        start = time.perf_counter()
        await call(number)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), (time.process_time() - began) / len(numbers)


async def _at_once(numbers: range, call: _Call) -> tuple[float, float]:
    """Make the calls by so many tasks, each of which makes the next when one has returned."""
    left = iter(numbers)

    async def work() -> None:
        for number in left:
            await call(number)

    start, began = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(min(_TASKS, len(numbers))):
            nursery.start_soon(work)
    seconds, cpu = time.perf_counter() - start, time.process_time() - began
    return seconds / len(numbers), cpu / len(numbers)


def _row_count(url: str) -> int:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        count: int = connection.scalar(sa.text("SELECT count(*) FROM trio_sessions")) or 0
    return count


async def _check(registry: SessionRegistry, url: str, sessions: int) -> None:
    """Raise unless so many sessions are held, and have their rows."""
    held = registry.statistics().sessions
    assert held == sessions, f"{held} sessions instead of {sessions}"
    if url != "memory:":
        rows = await trio.to_thread.run_sync(_row_count, url)
        assert rows == sessions, f"{rows} rows instead of {sessions}"


_Way = Callable[[range, _Call], Awaitable[tuple[float, float]]]


async def _add_and_remove(
    registry: SessionRegistry, url: str, numbers: range, way: _Way
) -> tuple[tuple[float, float], tuple[float, float]]:
    connections = {number: _Connection() for number in numbers}
    added = await way(numbers, lambda n: registry.add_session(f"s{n:06}", connections[n]))
    await _check(registry, url, len(numbers))
    removed = await way(numbers, lambda n: registry.remove_session(f"s{n:06}"))
    await _check(registry, url, 0)
    return added, removed


async def _opened(url: str, sessions: int, ways: dict[str, _Way]) -> Taken:
    """Add and remove so many sessions in each way, after some that make the connections."""
    taken: Taken = {}
    async with open_registry(url, **_SETTINGS) as registry:
        await registry.cleanup()
        await _add_and_remove(registry, url, range(_TASKS), _at_once)
        for name, way in ways.items():
            numbers = range(_TASKS, _TASKS + sessions)
            added, removed = await _add_and_remove(registry, url, numbers, way)
            taken |= {f"add_session, {name}": added, f"remove_session, {name}": removed}
    return taken


async def _crowd(url: str, sessions: int) -> Taken:
    return await _opened(url, sessions, {"200 tasks": _at_once})


async def _alone(url: str, sessions: int) -> Taken:
    return await _opened(url, sessions, {"alone": _in_turn})


async def _both(url: str, sessions: int) -> Taken:
    return await _opened(url, sessions, {"alone": _in_turn, "200 tasks": _at_once})


async def _many(url: str, sessions: int) -> Taken:
    """Add so many, and leave them to the closing; each figure is for all of them together."""
    async with open_registry(url, **_SETTINGS) as registry:
        added, cpu = await _at_once(
            range(sessions), lambda n: registry.add_session(f"s{n:06}", _Connection())
        )
        await _check(registry, url, sessions)
        start, began = time.perf_counter(), time.process_time()
    closed = time.perf_counter() - start, time.process_time() - began
    rows = _row_count(url)
    assert rows == 0, f"{rows} rows are left"
    return {"added": (added * sessions, cpu * sessions), "closed": closed}


async def _raw(url: str, sessions: int) -> Taken:
    """Insert such rows by psycopg alone, one a statement, each its own commit, by 20 threads.

    It is the table of the registry with its indexes, and a row that a registry has written.
    """
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with open_registry(url, **_SETTINGS) as registry:
        await registry.add_session("row", _Connection())
        with psycopg.connect(plain) as connection:
            cursor = connection.execute("SELECT * FROM trio_sessions")
            [row], columns = cursor.fetchall(), [column.name for column in cursor.description or ()]
    insert = sql.SQL("INSERT INTO trio_sessions ({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
    )
    which = columns.index("session_id")
    connected = threading.Barrier(_THREADS + 1, timeout=30.0)

    def work(numbers: range) -> None:
        with psycopg.connect(plain, autocommit=True) as connection:
            connected.wait()
            for number in numbers:
                connection.execute(
                    insert, (*row[:which], f"s{number:06}", *row[which + 1 :]), prepare=True
                )

    with ThreadPoolExecutor(_THREADS) as threads:
        working = [
            threads.submit(work, range(first, sessions, _THREADS)) for first in range(_THREADS)
        ]
        connected.wait()
        start, began = time.perf_counter(), time.process_time()
        for one in working:
            one.result()
        seconds, cpu = time.perf_counter() - start, time.process_time() - began
    rows = _row_count(url)
    assert rows == sessions, f"{rows} rows instead of {sessions}"
    return {"insert": (seconds / sessions, cpu / sessions)}


MEASURES: dict[str, Callable[[str, int], Awaitable[Taken]]] = {
    "crowd": _crowd,
    "alone": _alone,
    "both": _both,
    "many": _many,
    "raw": _raw,
}
"""What is measured, by its name; each takes the database, which is empty, and a number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--database", required=True, metavar="URL")
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for all")
    arguments = parser.parse_args()

    async def measure() -> Taken:
        with trio.fail_after(arguments.timeout):
            return await MEASURES[arguments.measure](arguments.database, arguments.sessions)

    print(json.dumps({"taken": trio.run(measure), "code": trio_sessions.__file__}))


if __name__ == "__main__":
    main()
