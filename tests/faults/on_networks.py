"""Faults of the network between workers and a PostgreSQL server."""

from collections.abc import AsyncIterator

import trio
from fleets import in_thread, rows

from faults.matrix import Database, fault
from faults.world import WITHIN, World

PG = Database.POSTGRESQL


@fault(PG)
async def the_network_is_cut(world: World) -> AsyncIterator[str]:
    """Every connection is closed, and new ones are refused."""
    async with world.incomplete_passes():
        for proxy in world.proxies:
            await proxy.refuse()
    assert [proxy.connections for proxy in world.proxies] == [0, 0]
    yield "no connection was left, and a pass of each worker was incomplete"
    for proxy in world.proxies:
        await proxy.heal()


@fault(PG, session_ttl=4.0)
async def the_network_is_cut_for_longer_than_the_ttl(world: World) -> AsyncIterator[str]:
    """The same, with a `session_ttl` of 4 s, until all rows are older than that."""
    for proxy in world.proxies:
        await proxy.refuse()
    with trio.fail_after(WITHIN):
        while await world.age() <= 1.25 * world.session_ttl:
            await trio.sleep(0.1)  # the database tells nobody how old its rows are
    yield "all rows were older than session_ttl"
    for proxy in world.proxies:
        await proxy.heal()


@fault(PG)
async def the_network_swallows_everything(world: World) -> AsyncIterator[str]:
    """Nothing arrives any more, in either direction, and no connection is closed."""
    world.listen()
    for proxy in world.proxies:
        proxy.held_back = 0
        proxy.fall_silent()
    for proxy in world.proxies:
        await world.until_said("did not answer within operation_timeout", f":{proxy.url.port}/")
        assert proxy.held_back
    yield "it held back bytes of each worker, whose operations were not answered in time"
    for proxy in world.proxies:
        await proxy.heal()


@fault(PG)
async def the_network_of_one_worker_swallows_everything(world: World) -> AsyncIterator[str]:
    """The same, for one worker of the two; the other one goes on."""
    proxy = world.proxies[0]
    world.listen()
    proxy.held_back = 0
    proxy.fall_silent()
    await world.until_said("did not answer within operation_timeout", f":{proxy.url.port}/")
    assert proxy.held_back
    yield "it held back its bytes, and its operations were not answered in time"
    await proxy.heal()


@fault(PG)
async def the_network_is_slow(world: World) -> AsyncIterator[str]:
    """Each packet takes 0.2 s, in each direction."""
    for proxy in world.proxies:
        proxy.delay = 0.2
    await world.until_passed(lambda report: report.duration > 0.4)
    yield "a pass of each worker took more than one round trip of 0.4 s"
    for proxy in world.proxies:
        proxy.delay = 0.0


@fault(PG)
async def the_connection_is_cut_between_commit_and_its_answer(
    world: World,
) -> AsyncIterator[str]:
    """The answer to the batch of a session that is added is held back, then the connection is
    cut."""
    proxy = world.proxies[0]
    for _ in range(20):
        proxy.fall_silent("answers")
        client = world.crowd.come(0)
        with trio.move_on_after(2.0):
            while not (unanswered := await _unanswered(world)):
                await trio.sleep(0.02)  # nor of what it has committed
        if unanswered:
            break
        await proxy.heal()  # the batch that was under way added nobody
        while client.is_busy:
            await trio.sleep(0.02)  # until its add has ended
    else:
        raise AssertionError("no row was seen before the answer had come")
    proxy.cut()
    yield "rows were committed, and whoever had added their sessions had no answer"
    await proxy.heal()


async def _unanswered(world: World) -> bool:
    """Say whether the first worker has a session that is being added, and whose row is there."""
    adding = world.crowd.adding(0)
    stored = await in_thread(rows, world.url)
    mine = world.registries[0].worker_id
    return any(one.is_busy and stored.get(one.session_id) == mine for one in adding)
