"""Many workers with many sessions on one PostgreSQL: what their passes take, and ask of it."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

import psycopg
import sqlalchemy as sa
import trio

from benchmarks._database import connect_raw, postgresql_schema
from benchmarks._proxy import SlowNetwork
from benchmarks._tables import Table, ms
from benchmarks._workers import hold_sessions
from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore

__all__ = ["run"]

_IDLE = 15.0  # seconds in which only stamps come


# ---- a worker, in a process of its own ----


async def _serve(url: str, name: str, sessions: int) -> None:
    """Hold sessions, and run a pass for each line that comes; say what it took."""
    async with hold_sessions(DatabaseStore(url), sessions, worker_id=name) as registry:
        _say(rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        while (await trio.to_thread.run_sync(sys.stdin.readline)).strip() == "pass":
            began = time.process_time()
            report = await registry.cleanup()
            assert report.refreshed == sessions, "not every row was confirmed"
            _say(seconds=report.duration, cpu=time.process_time() - began)


async def _create_tables(url: sa.URL) -> None:
    async with open_registry(url):
        pass


def _say(**facts: float) -> None:
    print(json.dumps(facts), flush=True)


class _Workers:
    """The processes; one line there, one line back."""

    def __init__(self, url: sa.URL, workers: int, sessions: int) -> None:
        text = url.render_as_string(hide_password=False)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.fleet", text, f"w{number}", str(sessions)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(workers)
        ]

    def listen(self) -> list[dict[str, float]]:
        return [json.loads(_end(one.stdout).readline()) for one in self._processes]

    def pass_at_once(self) -> list[dict[str, float]]:
        for one in self._processes:
            _tell(one, "pass")
        return self.listen()

    def pass_in_turn(self) -> list[dict[str, float]]:
        found = []
        for one in self._processes:
            _tell(one, "pass")
            found.append(json.loads(_end(one.stdout).readline()))
        return found

    def close(self) -> None:
        for one in self._processes:
            _tell(one, "end")
        for one in self._processes:
            one.wait(120)

    def kill(self) -> None:
        for one in self._processes:
            one.kill()
            one.wait()


def _tell(process: "subprocess.Popen[str]", word: str) -> None:
    pipe = _end(process.stdin)
    pipe.write(f"{word}\n")
    pipe.flush()


def _end(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


# ---- what one pass asks ----


async def _count(server: sa.URL, sessions: int) -> tuple[int, int]:
    """Return the statements and the round trips of a steady pass of one worker."""
    statements = 0

    class Counting(psycopg.Cursor[Any]):
        def execute(self, *args: Any, **kwargs: Any) -> "Counting":
            nonlocal statements
            statements += 1
            return super().execute(*args, **kwargs)

    network = SlowNetwork(server, 0.0)
    async with network.open() as url:
        engine = sa.create_engine(url, connect_args={"cursor_factory": Counting}, pool_size=20)
        async with hold_sessions(DatabaseStore(engine), sessions) as registry:
            await registry.cleanup()
            asked, trips = statements, network.round_trips
            assert (await registry.cleanup()).refreshed == sessions
            found = statements - asked, network.round_trips - trips
        engine.dispose()
    return found


def _transactions(server: sa.URL) -> int:
    with connect_raw(server) as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(row[0])


def _idle(server: sa.URL, seconds: float) -> float:
    """Return the transactions a second, while no pass runs."""
    time.sleep(2.0)  # a server counts those of a session when that has been idle for a second
    before = _transactions(server)
    time.sleep(seconds)
    return (_transactions(server) - before) / seconds


def _size(url: sa.URL, rows: int) -> float:
    """Return the bytes that a session takes in the database, with its indexes."""
    with connect_raw(url) as connection:
        row = connection.execute("SELECT pg_total_relation_size('trio_sessions')").fetchone()
    return int(row[0]) / rows


def _passes(name: str, found: Sequence[dict[str, float]]) -> tuple[str, ...]:
    seconds = [one["seconds"] for one in found]
    cpu = [one["cpu"] for one in found]
    return name, ms(statistics.median(seconds)), ms(max(seconds)), ms(statistics.median(cpu))


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    workers, sessions, rounds, idle = (2, 100, 1, 1.0) if quick else (10, 10_000, 3, _IDLE)
    load = os.getloadavg()[0]
    with postgresql_schema(server) as url:
        statements, trips = trio.run(_count, url, sessions)
    with postgresql_schema(server) as url:
        trio.run(_create_tables, url)  # before ten workers want to at once
        fleet = _Workers(url, workers, sessions)
        try:
            started = fleet.listen()
            fleet.pass_at_once()  # makes the connections
            in_turn = [one for _ in range(rounds) for one in fleet.pass_in_turn()]
            at_once = [one for _ in range(rounds) for one in fleet.pass_at_once()]
            size = _size(url, workers * sessions)
            rate = _idle(server, idle)
            fleet.close()
        finally:
            fleet.kill()
    memory = statistics.median(one["rss"] for one in started) / 1024
    return [
        Table(
            title=f"fleet: {workers} workers with {sessions:,} sessions each on one PostgreSQL",
            columns=("a pass", "median", "most", "our processor time"),
            rows=[_passes("one after the other", in_turn), _passes("all at once", at_once)],
            notes=(
                f"a pass of a worker: {statements} statements in {trips} round trips",
                f"no pass: {rate:.1f} transactions a second of all workers together",
                f"a session's row with its indexes, in use: {size:,.0f} bytes",
                f"a worker's memory, its whole process: {memory:,.0f} MiB",
                f"load of the machine when it began: {load:.1f}",
            ),
        )
    ]


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1], sys.argv[2], int(sys.argv[3]))
