"""The demo's story: what is done to real connections, and a pass of every worker after it."""

import secrets
from contextlib import AsyncExitStack

import sqlalchemy as sa
import trio

from trio_sessions import open_registry
from trio_sessions.cli._database import open_database
from trio_sessions.cli._gateway import Gateway
from trio_sessions.cli._show import Screen
from trio_sessions.cli._stage import Chosen, Meddle, Stage
from trio_sessions.cli._verdict import Deeds, Verdict

__all__ = ["run_demo"]


async def run_demo(
    url: sa.URL,
    *,
    sessions: int,
    workers: int,
    screen: Screen,
    table_prefix: str | None = None,
    meddle: Meddle | None = None,
) -> Verdict:
    """Play the whole story on tables of its own, which are dropped at the end.

    Args:
        url: the database.
        sessions: clients that connect at the beginning.
        workers: registries, at least 2.
        screen: shows what happens.
        table_prefix: by default a fresh one, so that two demos do not meet.
        meddle: interferes, so that the verdict has something to find.

    Raises:
        StoreUnavailable, StoreSchemaError: the database cannot be used.
        ExceptionGroup: of these, if it happens later.
    """
    prefix = table_prefix or f"trio_demo_{secrets.token_hex(3)}_"
    async with open_database(url, table_prefix=prefix) as database:
        async with AsyncExitStack() as stack:
            registries = [
                await stack.enter_async_context(
                    open_registry(
                        database.store(),
                        worker_id=f"worker-{number}",
                        max_concurrent=4,
                        # What the hung client costs; and a thousand answers take time too.
                        check_timeout=0.75 + 0.005 * sessions,
                        disconnect_timeout=1.0,
                    )
                )
                for number in range(1, workers + 1)
            ]
            nursery = await stack.enter_async_context(trio.open_nursery())
            stage = Stage(
                gateways=[Gateway(registry) for registry in registries],
                nursery=nursery,
                database=database,
                screen=screen,
                meddle=meddle,
            )
            await stage.connect_everybody(sessions)
            with screen.watching(registry.worker_id for registry in registries):
                await _play(stage, sessions)
            nursery.cancel_scope.cancel()
        left_behind = frozenset(await database.rows())
    return Verdict(findings=tuple(stage.findings), left_behind=left_behind)


async def _play(stage: Stage, sessions: int) -> None:
    share = max(1, sessions // 10)  # clients that each kind of mishap hits
    await stage.clean_up("1 steady", f"{sessions} clients are connected: all refreshed")
    await _clients_vanish(stage, share)
    await _a_client_hangs(stage)
    await _rows_are_deleted(stage, share)
    await _the_database_goes_away(stage, share)
    await _clients_move(stage, share)


async def _clients_vanish(stage: Stage, share: int) -> None:
    gone = stage.take(share)
    await stage.vanish(gone)
    await stage.clean_up(
        "2 clients vanish",
        f"{_many(gone, 'client')} left without a word: removed",
        {gateway: Deeds(vanished=session_ids) for gateway, session_ids in gone.items()},
    )


async def _a_client_hangs(stage: Stage) -> None:
    hung = stage.take(1)
    clients = stage.clients(hung)
    for client in clients:
        client.hang()
    await stage.clean_up(
        "3 a client hangs",
        f"{_many(hung, 'client')} stopped answering: kept, and its row refreshed",
        {gateway: Deeds(hung=session_ids) for gateway, session_ids in hung.items()},
    )
    for client in clients:
        client.wake()


async def _rows_are_deleted(stage: Stage, share: int) -> None:
    deleted = stage.take(share)
    await stage.database.delete(frozenset[str]().union(*deleted.values()))
    await stage.clean_up(
        "4 rows deleted",
        f"{_many(deleted, 'row')} deleted by somebody else: sessions removed",
        {gateway: Deeds(deleted=session_ids) for gateway, session_ids in deleted.items()},
    )


async def _the_database_goes_away(stage: Stage, share: int) -> None:
    gone, host = stage.take(share), stage.gateways[-1]
    async with stage.database.outage():
        await stage.vanish(gone)
        newcomer = frozenset([await stage.connect(host)])
        await stage.clean_up(
            "5 database away",
            f"{_many(gone, 'client')} left: removed; 1 came; everybody else kept",
            {
                gateway: Deeds(away=True, vanished=session_ids, unwritten=newcomer)
                for gateway, session_ids in gone.items()
            },
        )
    await stage.clean_up(
        "6 database back",
        "all refreshed, the one that came has its row restored",
        {host: Deeds(unwritten=newcomer)},
    )


async def _clients_move(stage: Stage, share: int) -> None:
    movers = stage.take(share)
    for number, gateway in enumerate(stage.gateways, start=1):
        target = stage.gateways[number % len(stage.gateways)]
        for session_id in movers[gateway]:
            await stage.connect(target, session_id)
    await stage.clean_up(
        "7 takeover",
        f"{_many(movers, 'client')} came again on another worker: the old one goes",
        {gateway: Deeds(taken=session_ids) for gateway, session_ids in movers.items()},
    )


def _many(chosen: Chosen, what: str) -> str:
    number = sum(map(len, chosen.values()))
    return f"{number} {what}{'' if number == 1 else 's'}"
