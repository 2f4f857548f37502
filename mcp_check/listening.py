"""Clients that listen: to what changes, or in vain."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import anyio
import anyio.abc
import httpx2
import sqlalchemy as sa
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost
from mcp.shared.exceptions import MCPError

from mcp_check.common import Seen, begin, of
from mcp_check.fleet import START, URL, Fleet, Worker, connect_without_session, raw

_STATEMENT = re.compile(rb"LOG: +(?:statement|execute [^:]*): .*(?:\n\t.*)*")
FEW = 2  # listeners, against which many are held
LOOKS = 40  # whether all was heard, within SETTLE
SETTLE = 2.0  # seconds after the last has begun to listen
MORE = 2.0
"""Statements a second that many listeners may cost beyond what a few do: the pass of a minute falls
into one of the two times, or not. One for each session and minute would be 3.3 a second.

Letters between workers are apart: by each stream that is passed on, the two workers give signs of
life, which share letters if they are due at once. By sockets they are no statements."""


async def subscribers(fleet: Fleet, seen: Seen, *, events: int) -> None:
    """Let a client listen at each worker, and others tell of changes, by chance at either.

    Args:
        fleet: the workers.
        seen: what is seen.
        events: that are told of, and that each of the clients should hear.
    """
    uris = [f"check://{number}" for number in range(events)]
    heard: dict[int, list[str]] = {worker.port: [] for worker in fleet.workers}
    lost: list[str] = []

    async def listen(
        worker: Worker, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        try:
            async with (
                connect_without_session(fleet, only=worker) as client,
                client.listen(resource_subscriptions=uris) as changes,
            ):
                task_status.started()
                async for event in changes:
                    if isinstance(event, ResourceUpdated):
                        heard[worker.port].append(event.uri)
        except (SubscriptionLost, MCPError) as exc:
            lost.append(repr(exc))

    async with anyio.create_task_group() as tasks:
        for worker in fleet.workers:
            await tasks.start(listen, worker)
        async with connect_without_session(fleet, "bob") as client:
            for uri in uris:
                await client.call_tool("touch", {"uri": uri})
        for _ in range(LOOKS):
            if all(len(one) >= events for one in heard.values()):
                break
            await anyio.sleep(SETTLE / LOOKS)
        tasks.cancel_scope.cancel()
    counts = " and ".join(str(len(set(one))) for one in heard.values())
    seen.note(
        not lost and all(sorted(one) == sorted(uris) for one in heard.values()),
        f"of {events} events, told at workers by chance, those who listen at each have heard "
        f"{counts}" + "".join(f"; {error}" for error in lost),
    )


async def idle(fleet: Fleet, seen: Seen, *, listeners: int, seconds: float) -> None:
    """Let clients listen and say nothing; on PostgreSQL, count what they cost beyond a few.

    Args:
        fleet: the workers.
        seen: what is seen.
        listeners: how many.
        seconds: for which they all listen; a few do for a third of that before.
    """
    with _logged(fleet):
        few = await _listen(fleet, seen, FEW, seconds / 3) if fleet.log is not None else _Cost()
        many = await _listen(fleet, seen, listeners, seconds)
    if fleet.log is not None:
        seen.note(
            many.others <= few.others + MORE,
            f"{listeners} idle listeners cost {many.others:.1f} statements a second besides "
            f"letters, {FEW} cost {few.others:.1f} (at most {MORE:g} more)",
        )
        seen.aim(
            many.letters <= few.letters + MORE,
            f"letters of {listeners} idle listeners cost {many.letters:.1f} statements a second, "
            f"those of {FEW} cost {few.letters:.1f} (target {MORE:g} more)",
        )


async def _listen(fleet: Fleet, seen: Seen, listeners: int, seconds: float) -> "_Cost":
    """Let so many listen, and return the statements a second, where they are logged."""
    statuses: dict[int, int] = {}
    scopes: list[anyio.CancelScope] = []
    all_answered = anyio.Event()
    lasted = 0

    def answered(number: int, status: int) -> None:
        statuses.setdefault(number, status)
        if len(statuses) == listeners:
            all_answered.set()

    async def one(number: int) -> None:
        nonlocal lasted
        async with raw(fleet, f"user{number}") as (http, at):
            at.only = fleet.workers[number % 2]
            session_id = await begin(http)
            at.only = fleet.workers[(number // 2) % 2]
            with suppress(httpx2.HTTPError), anyio.CancelScope() as listening:
                scopes.append(listening)
                async with http.stream("GET", URL, headers=of(session_id)) as stream:
                    answered(number, stream.status_code)
                    async for _ in stream.aiter_bytes():
                        pass
            answered(number, 0)  # if it was not
            lasted += statuses[number] == httpx2.codes.OK and listening.cancelled_caught
            await http.delete(URL, headers=of(session_id))

    async with anyio.create_task_group() as tasks:
        for number in range(listeners):
            tasks.start_soon(one, number)
        with anyio.move_on_after(START):
            await all_answered.wait()
        await anyio.sleep(SETTLE)
        before = _statements(fleet)
        await anyio.sleep(seconds)
        after = _statements(fleet)
        for scope in scopes:
            scope.cancel()
    begun = sum(status == httpx2.codes.OK for status in statuses.values())
    seen.note(
        begun == lasted == listeners,
        f"{listeners} idle listeners: {begun} have got a stream, {lasted} had it for {seconds:g} s",
    )
    return _Cost(
        letters=(after.letters - before.letters) / seconds,
        others=(after.others - before.others) / seconds,
    )


@dataclass(frozen=True)
class _Cost:
    """Statements, or statements a second."""

    letters: float = 0.0
    others: float = 0.0


def _statements(fleet: Fleet) -> _Cost:
    """Return how many statements the server has logged so far."""
    if fleet.log is None:
        return _Cost()
    found = _STATEMENT.findall(fleet.log.read_bytes())
    letters = sum(b"trio_mail" in statement for statement in found)
    return _Cost(letters, len(found) - letters)


@contextmanager
def _logged(fleet: Fleet) -> Iterator[None]:
    """Let PostgreSQL log every statement. Its own counters may lag by ten seconds."""
    if fleet.log is None:
        yield
        return
    engine = sa.create_engine(fleet.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")

    def say(*statements: str) -> None:
        with engine.connect() as connection:
            for statement in (*statements, "SELECT pg_reload_conf()"):
                connection.exec_driver_sql(statement)

    say("ALTER SYSTEM SET log_statement = 'all'")
    try:
        yield
    finally:
        say("ALTER SYSTEM RESET log_statement")
