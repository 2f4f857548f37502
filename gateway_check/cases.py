"""The cases: one gateway each, used by all clients, and what was seen."""

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from gateway_check.clients import Timings, hit_and_run, hold_idle, measure, quick_client
from gateway_check.common import TABLES
from gateway_check.process import Gateway, register_tool, start_gateway, wait_until_up
from gateway_check.stopwatch import processes_of_group
from gateway_check.surroundings import DATABASES, Database, echo_server, statements


@dataclass
class Case:
    """One gateway, and what was seen of it."""

    database: str
    workers: int
    registry: str
    timings: Timings = field(default_factory=Timings)
    quick_answers: int = 0
    rows_after_sessions: int = 0
    rows_after_hit_and_run: int = 0
    rows_after_idle: int = 0
    rows_after_stop: int = 0
    idle_sessions: int = 0
    idle_per_second: float = 0.0
    error: str = ""

    @property
    def title(self) -> str:
        """Name the case."""
        return f"{self.database}, {self.workers} worker{'s'[: self.workers - 1]}, {self.registry}"


async def run_case(
    case: Case, database: Database, tool_url: str, folder: Path, options: argparse.Namespace
) -> None:
    """Start a gateway, use it, stop it; what goes wrong is kept in the case."""
    await asyncio.to_thread(database.clear, TABLES[case.registry])
    gateway = start_gateway(database, case.registry, case.workers, folder)
    try:
        async with asyncio.timeout(options.patience):
            await wait_until_up(gateway, case.workers)
            await register_tool(gateway, tool_url)
            await use_gateway(case, gateway, database, options)
    except Exception as error:  # noqa: BLE001 -- reported, and the other cases go on
        case.error = f"{type(error).__name__}: {error}"
        print(f"{case.title}: {case.error}\nthe gateway's last words:\n{gateway.last_words()}")
    finally:
        await asyncio.to_thread(gateway.stop)
    case.rows_after_stop = await rows_left(database, case.registry, 0)


async def use_gateway(
    case: Case, gateway: Gateway, database: Database, options: argparse.Namespace
) -> None:
    """Do everything that clients do, and note what was seen."""
    registry = case.registry
    pids = processes_of_group(gateway.process.pid)
    patience = 10.0 if registry == "ours" else 3.0
    if registry == "ours":
        case.timings = await measure(gateway.url, options.rounds, case.workers, pids)
        case.quick_answers = await quick_client(gateway.url)
    else:  # where a call arrives makes no difference to one that waits for a poll
        case.timings = await measure(gateway.url, min(options.rounds, 5), 1, pids)
    case.rows_after_sessions = await rows_left(database, registry, patience)
    for start in range(0, 30, 5):
        await asyncio.gather(*(hit_and_run(gateway.url, start + i) for i in range(5)))
    case.rows_after_hit_and_run = await rows_left(database, registry, patience)
    case.idle_sessions, count = await idle_statements(
        gateway, database, registry, options.idle_clients, options.idle_seconds
    )
    case.idle_per_second = count / options.idle_seconds
    case.rows_after_idle = await rows_left(database, registry, patience * 2)


async def idle_statements(
    gateway: Gateway, database: Database, registry: str, clients: int, seconds: float
) -> tuple[int, int]:
    """Return how many sessions there are, and statements, while ``clients`` clients are idle.

    On ours, all statements count that are on connections which ever touched its tables or
    listened. On the gateway's own registry it is those that name its tables, for the same
    connections do other things too.
    """
    leave = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):  # one after the other: a storm is not what is measured
            ready = asyncio.Event()
            task = group.create_task(hold_idle(gateway.url, ready, leave))
            await asyncio.wait(
                [task, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED
            )
        await asyncio.sleep(5)
        before = database.log.stat().st_size
        await asyncio.sleep(seconds)
        log = await asyncio.to_thread(database.log.read_bytes)
        sessions = await asyncio.to_thread(database.count, TABLES[registry][:1])
        leave.set()
    return sessions, count_statements(statements(log), statements(log[before:]), registry)


def count_statements(
    ever: list[tuple[str, str]], lately: list[tuple[str, str]], registry: str
) -> int:
    """Count those of ``lately`` that are the registry's; ``ever`` tells which processes are."""
    marks = TABLES[registry] if registry == "own" else (*TABLES["ours"], "LISTEN ")

    def marked(text: str) -> bool:
        return any(mark in text for mark in marks)

    if registry == "own":
        return sum(marked(text) for _, text in lately)
    ours = {process for process, text in ever if marked(text)}
    return sum(process in ours for process, _ in lately)


async def rows_left(database: Database, registry: str, patience: float) -> int:
    """Return how many rows of the registry remain, once there are none or patience ends."""
    deadline = time.monotonic() + patience
    while True:
        rows = await asyncio.to_thread(database.count, TABLES[registry])
        if not rows or time.monotonic() > deadline:
            return rows
        await asyncio.sleep(0.5)


async def run(options: argparse.Namespace) -> list[Case]:
    """Run all cases, one after the other."""
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="gw-") as name, echo_server() as tool_url:
        for kind in options.databases:
            folder = Path(name) / kind
            folder.mkdir()
            with DATABASES[kind](folder) as database:
                for workers in map(int, options.workers):
                    for registry in options.registries:
                        case = Case(kind, workers, registry)
                        start = time.monotonic()
                        await run_case(case, database, tool_url, folder, options)
                        print(f"{case.title}: {time.monotonic() - start:.0f} s", flush=True)
                        cases.append(case)
    return cases
