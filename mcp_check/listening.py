"""Clients that listen: to what changes, or in vain."""

from contextlib import suppress

import anyio
import anyio.abc
import httpx2
import sqlalchemy as sa
from mcp.client.subscriptions import ResourceUpdated, SubscriptionLost
from mcp.shared.exceptions import MCPError

from mcp_check.common import Seen, begin, of
from mcp_check.fleet import START, URL, Fleet, Worker, connect_without_session, raw

FEW = 2  # listeners, against which many are held
LOOKS = 40  # whether all was heard, within SETTLE
SETTLE = 2.0  # seconds after the last has begun to listen
MORE = 1.0
"""Transactions a second that many listeners may cost beyond what a few do. They are counted up to
some seconds late; one for each session, in each interval of any kind, would be several a second."""


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
        seconds: for which they all listen; a few do for half as long before.
    """
    few = await _listen(fleet, seen, FEW, seconds / 2) if fleet.is_on_postgresql else None
    many = await _listen(fleet, seen, listeners, seconds)
    if few is not None and many is not None:
        seen.note(
            many <= few + MORE,
            f"{listeners} idle listeners cost {many:.1f} transactions a second, {FEW} cost "
            f"{few:.1f} (at most {MORE:g} more)",
        )


async def _listen(fleet: Fleet, seen: Seen, listeners: int, seconds: float) -> float | None:
    """Let so many listen, and return the transactions a second, where somebody counts them."""
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

    rate = None
    async with anyio.create_task_group() as tasks:
        for number in range(listeners):
            tasks.start_soon(one, number)
        with anyio.move_on_after(START):
            await all_answered.wait()
        await anyio.sleep(SETTLE)
        before = _transactions(fleet.url) if fleet.is_on_postgresql else 0
        await anyio.sleep(seconds)
        if fleet.is_on_postgresql:
            rate = (_transactions(fleet.url) - before) / seconds
        for scope in scopes:
            scope.cancel()
    begun = sum(status == httpx2.codes.OK for status in statuses.values())
    seen.note(
        begun == lasted == listeners,
        f"{listeners} idle listeners: {begun} have got a stream, {lasted} had it for {seconds:g} s",
    )
    return rate


def _transactions(url: str) -> int:
    """Return how many a PostgreSQL database has ended so far."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        asked = (
            "SELECT xact_commit + xact_rollback FROM pg_stat_database "
            "WHERE datname = current_database()"
        )
        return int(connection.exec_driver_sql(asked).scalar_one())
