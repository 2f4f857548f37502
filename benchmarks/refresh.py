"""A pass over many connected sessions, against a raw loop and against gather and semaphore."""

import time

import sqlalchemy as sa
import trio

from benchmarks._database import connect_raw, postgresql_schema
from benchmarks._gather import GatherWay
from benchmarks._tables import Table, median, ms, ratio
from benchmarks._workers import TimedStore, hold_sessions

__all__ = ["run"]

_CHUNK = 1000


def raw_loop(url: sa.URL, session_ids: list[str], worker_id: str) -> float:
    """Refresh by the barest means; return the seconds, without those to connect."""
    statement = (
        "UPDATE trio_sessions SET last_accessed = now() "
        "WHERE session_id = ANY(%s) AND worker_id = %s RETURNING session_id"
    )
    present: set[str] = set()
    with connect_raw(url) as connection:
        connection.execute("SELECT 1")
        start = time.perf_counter()
        for first in range(0, len(session_ids), _CHUNK):
            chunk = session_ids[first : first + _CHUNK]
            present.update(row[0] for row in connection.execute(statement, (chunk, worker_id)))
        seconds = time.perf_counter() - start
    assert len(present) == len(session_ids)
    return seconds


def _vacuum(url: sa.URL) -> None:
    with connect_raw(url) as connection:
        connection.execute("VACUUM trio_sessions")


async def _measure(url: sa.URL, sessions: int, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"raw": [], "refresh": [], "whole": [], "gather": []}
    store = TimedStore(url)
    async with hold_sessions(store, sessions) as registry:
        ids = await registry.get_all_session_ids()
        gather = GatherWay(url, ids, threads=None)
        for _ in range(rounds):
            _vacuum(url)
            refresh, whole = await store.time_pass(registry)
            seconds["refresh"].append(refresh.seconds)
            seconds["whole"].append(whole.seconds)
            _vacuum(url)
            seconds["raw"].append(raw_loop(url, ids, registry.worker_id))
            _vacuum(url)
            start = time.perf_counter()
            assert await trio.to_thread.run_sync(gather.run_pass) == sessions
            seconds["gather"].append(time.perf_counter() - start)
        gather.close()
    return {key: taken[1:] for key, taken in seconds.items()}  # the first makes connections


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, rounds = (20, 2) if quick else (10_000, 6)
    with postgresql_schema(server) as url:
        seconds = trio.run(_measure, url, sessions, rounds)
    raw = median(seconds["raw"])
    names = {
        "raw": f"raw psycopg loop, chunks of {_CHUNK:,}",
        "refresh": "trio_sessions, check and refresh",
        "whole": "trio_sessions, whole pass with its sweep",
        "gather": "gather and semaphore (20)",
    }
    ours = median(seconds["refresh"])
    return [
        Table(
            title=f"refresh: {sessions:,} connected sessions on PostgreSQL",
            columns=("", "median", "least", "most", "to raw loop", "to trio_sessions"),
            rows=[
                (
                    names[key],
                    ms(median(taken)),
                    ms(min(taken)),
                    ms(max(taken)),
                    ratio(median(taken), raw),
                    ratio(median(taken), ours),
                )
                for key, taken in seconds.items()
            ],
            notes=(
                f"{rounds - 1} interleaved rounds, after one that makes the connections",
                "target: check and refresh at most 3 times the raw loop",
            ),
        )
    ]
