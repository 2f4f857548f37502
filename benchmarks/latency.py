"""A pass over a slow network: what counts there is the number of round trips."""

import statistics
import time

import sqlalchemy as sa
import trio

from benchmarks._database import postgresql_schema
from benchmarks._gather import GatherWay
from benchmarks._proxy import SlowNetwork
from benchmarks._tables import Table, median, ms, ratio
from benchmarks._workers import Cost, TimedStore, hold_sessions

__all__ = ["run"]

_OURS = "trio_sessions, check and refresh"
_WHOLE = "trio_sessions, whole pass with its sweep"


async def _measure(
    server: sa.URL, *, sessions: int, delay: float, rounds: int
) -> dict[str, list[Cost]]:
    network = SlowNetwork(server, delay)
    async with network.open() as url:
        store = TimedStore(url, lambda: network.round_trips)
        async with hold_sessions(store, sessions) as registry:
            ids = await registry.get_all_session_ids()
            ways = {
                "gather and semaphore (20), a pool of 20 threads": GatherWay(url, ids, threads=20),
                "gather and semaphore (20), asyncio's own pool": GatherWay(url, ids, threads=None),
            }
            costs: dict[str, list[Cost]] = {name: [] for name in (_OURS, _WHOLE, *ways)}
            for _ in range(rounds):
                refresh, whole = await store.time_pass(registry)
                costs[_OURS].append(refresh)
                costs[_WHOLE].append(whole)
                for name, way in ways.items():
                    before, start = network.round_trips, time.perf_counter()
                    assert await trio.to_thread.run_sync(way.run_pass) == sessions
                    seconds = time.perf_counter() - start
                    costs[name].append(
                        Cost(seconds=seconds, round_trips=network.round_trips - before)
                    )
            for way in ways.values():
                way.close()
    return {name: taken[1:] for name, taken in costs.items()}  # connections are made in the first


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, delay, rounds = (10, 0.01, 2) if quick else (100, 0.05, 8)

    async def measure(url: sa.URL) -> dict[str, list[Cost]]:
        return await _measure(url, sessions=sessions, delay=delay, rounds=rounds)

    with postgresql_schema(server) as url:
        costs = trio.run(measure, url)
    ours = median([cost.seconds for cost in costs[_OURS]])
    rows = []
    for name, taken in costs.items():
        seconds = median([cost.seconds for cost in taken])
        round_trips = statistics.median(cost.round_trips for cost in taken)
        rows.append((name, ms(seconds), f"{round_trips:g}", ratio(seconds, ours)))
    return [
        Table(
            title=f"latency: {sessions} sessions, {delay * 1000:g} ms added to each round trip",
            columns=("", "median", "round trips", "to trio_sessions"),
            rows=rows,
            notes=(f"{rounds - 1} interleaved rounds, after one that makes the connections",),
        )
    ]
