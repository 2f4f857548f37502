"""Faults of workers, which are processes of their own here: killed, asleep, in another time."""

import time
from collections.abc import AsyncIterator

import trio
from fleets import in_thread, rows

from faults.matrix import Database, fault
from faults.process import Worker
from faults.world import WITHIN, World

PG = Database.POSTGRESQL
TTL = 5.0  # seconds, where a lease is to be lost


async def _until_swept(world: World, worker: Worker) -> None:
    """Wait until others have removed the rows of a worker."""
    with trio.fail_after(WITHIN):
        while worker.worker_id in (await in_thread(rows, world.url)).values():
            await trio.sleep(0.1)


@fault(PG, session_ttl=TTL)
async def a_worker_is_killed(world: World) -> AsyncIterator[str]:
    """SIGKILL; half of its clients come to another worker, the others do not come back."""
    worker = await world.enlist()
    had = sorted(await worker.kill())
    assert worker.worker_id in (await in_thread(rows, world.url)).values()
    world.expired += had[1::2]
    for number, session_id in enumerate(had[::2]):
        world.crowd.come_as(session_id, number % len(world.registries))
    yield "the process had ended, and its rows were there"


@fault(PG, session_ttl=TTL)
async def a_worker_sleeps_for_longer_than_its_lease(world: World) -> AsyncIterator[str]:
    """SIGSTOP; half of its clients come to another worker; SIGCONT when its rows were swept."""
    worker = await world.enlist()
    await worker.pause()
    had = sorted(worker.give_up())
    world.expired += had[1::2]
    for number, session_id in enumerate(had[::2]):
        world.crowd.come_as(session_id, number % len(world.registries))
    await _until_swept(world, worker)
    yield "its process stood still, and others had swept its rows"
    worker.go_on()
    await worker.add(5)
    assert (await worker.status())["rewinds"] == 0, "it takes its lost lease for a rewind"


@fault(PG, session_ttl=TTL)
async def all_workers_are_cut_off_or_asleep(world: World) -> AsyncIterator[str]:
    """SIGSTOP to some, silent networks for the others, for longer than `session_ttl`: nobody
    sweeps meanwhile."""
    await world.enlist()
    for proxy in world.proxies:
        proxy.fall_silent()
    for worker in world.processes:
        await worker.pause()
    with trio.fail_after(WITHIN):
        while await world.age() <= 1.25 * TTL:
            await trio.sleep(0.1)
    yield "all rows were older than session_ttl"
    for worker in world.processes:
        worker.go_on()
    for proxy in world.proxies:
        await proxy.heal()
    for worker in world.processes:
        assert (await worker.status())["rewinds"] == 0


@fault(PG)
async def the_clock_of_a_worker_is_wrong_by_an_hour(world: World) -> AsyncIterator[str]:
    """Its host's clock steps an hour ahead, for two passes of each worker, then an hour behind
    for two, then back; sessions come to it, and go from it, meanwhile."""
    worker = await world.enlist()
    wrong_by = []
    for offset in (3600.0, -3600.0):
        wrong_by.append((await worker.status(clock=offset))["clock"] - time.time())
        passes = (await worker.status())["passes"]
        await worker.add(5)
        world.crowd.come_as(worker.lives.pop(), 0)
        with trio.fail_after(WITHIN):
            while (await worker.status())["passes"] < passes + 2:
                await trio.sleep(0.05)
    assert wrong_by[0] > 3500, wrong_by
    assert wrong_by[1] < -3500, wrong_by
    yield "it was 3,600 s ahead of ours, then 3,600 s behind it"
    await worker.status(clock=0.0)
