"""Trials of cancellations and of deadlines: calls of every kind, most of them cut."""

import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from backdoors import Backdoor

from trials.sides import Ended, Side, Way, choose
from trials.world import TIMEOUT, UnevenStore, World, expect
from trio_sessions import RegistryClosed
from trio_sessions.abc import SessionStore

__all__ = ["CANCELLATIONS", "DEADLINES", "storm"]

CANCELLATIONS = [Way.TASK, Way.TASK_TWICE, Way.SCOPE]
DEADLINES = [Way.TIMEOUT, Way.WAIT_FOR, Way.MOVE_ON]
_UNCUT = 0.3


async def storm(
    side: Side, seed: int, ways: list[Way], store: SessionStore, backdoor: Backdoor
) -> None:
    """Make one trial.

    Raises:
        Wrong: something was not as it must be.
    """
    rng = random.Random(seed)
    tasks = len(side.tasks())
    door = side.door(
        UnevenStore(store, rng),
        check_timeout=TIMEOUT,
        disconnect_timeout=TIMEOUT,
        cleanup_interval=rng.choice([0.02, 1000.0]),
        session_ttl=3600.0,
        batch_size=rng.choice([1, 3, 1000]),
    )
    transports = rng.randint(5, 40)
    ids = [f"s{number}" for number in range(max(2, transports // rng.choice([1, 2, 4])))]
    world = World(side=side, rng=rng, door=door, backdoor=backdoor, ids=ids)
    calls = _Calls(world, ways)

    await calls.open()
    await side.all_of([lambda: calls.add(rng.choice(ids)) for _ in range(transports)])
    kinds: list[Callable[[str], Coroutine[Any, Any, None]]] = [
        calls.add,
        calls.remove,
        calls.clean_up,
        calls.broadcast,
        calls.broadcast_durably,
        calls.read,
        calls.respond,
        calls.claim,
        calls.ask,
    ]
    if hasattr(door.registry, "register_respond_task"):
        kinds.append(calls.tie)
    chosen = rng.choices(kinds, k=rng.randint(5, 40))
    functions = [calls.later(kind, rng.choice(ids), rng.randrange(30)) for kind in chosen]
    if rng.random() < 0.3:
        functions.append(calls.later(calls.reopen, "", rng.randrange(60)))
    await side.all_of(functions)

    await world.timed("opening", door.open)
    await world.check()
    await calls.close()
    await world.check_closed(tasks)


class _Calls:
    """The calls of a trial, each cut in a way of its own."""

    def __init__(self, world: World, ways: list[Way]) -> None:
        self._world = world
        self._ways = ways

    def _choose(self, *, uncut: float = _UNCUT) -> tuple[Way, int]:
        return choose(self._world.rng, self._ways, uncut=uncut)

    def later(
        self, call: Callable[[str], Coroutine[Any, Any, None]], session_id: str, turns: int
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        async def function() -> None:
            for _ in range(turns):
                await self._world.side.turn()
            await call(session_id)

        return function

    async def _cut(self, call: Callable[[], Any], *, uncut: float = _UNCUT) -> Ended:
        return await self._world.cut(*self._choose(uncut=uncut), call)

    # ---- lifetime ----

    async def open(self) -> None:
        """Open the registry; an opening that is cut leaves nothing open."""
        world = self._world
        while await world.cut(*self._choose(uncut=0.5), world.door.open) is not Ended.RETURNED:
            pass
        expect("rows at the beginning", world.backdoor.rows(), {})

    async def close(self) -> None:
        """Close the registry; cut, it goes on, and its caller waits for the end."""
        world = self._world
        begun = world.tick()
        ended = await world.cut(*self._choose(uncut=0.5), world.door.close)
        if ended is Ended.NEVER_BEGAN:
            await world.timed("closing", world.door.close)
        world.note_end(begun)

    async def reopen(self, _: str) -> None:
        await self.close()
        await self._world.timed("opening", self._world.door.open)

    # ---- sessions ----

    async def add(self, session_id: str) -> None:
        await self._world.act("add", session_id, *self._choose())

    async def remove(self, session_id: str) -> None:
        await self._world.act("remove", session_id, *self._choose())

    async def clean_up(self, session_id: str) -> None:
        await self._cut(self._world.registry.cleanup)

    async def ask(self, session_id: str) -> None:
        await self._cut(lambda: self._world.registry.session_exists(session_id + "?"))

    async def claim(self, session_id: str) -> None:
        await self._cut(lambda: self._world.registry.claim_session_owner(session_id, "me"))

    # ---- messages ----

    async def broadcast(self, session_id: str) -> None:
        await self._cut(lambda: self._world.registry.broadcast(session_id, [session_id]))

    async def broadcast_durably(self, session_id: str) -> None:
        await self._cut(
            lambda: self._world.registry.broadcast(session_id, session_id, durable=True)
        )

    async def read(self, session_id: str) -> None:
        async def read() -> None:
            async with self._world.registry.open_inbox(session_id) as inbox:
                async for _ in inbox:
                    await self._world.side.turn()

        await self._cut(read, uncut=0.0)

    async def respond(self, session_id: str) -> None:
        registry = self._world.registry

        async def handle(message: object, transport: object) -> None:
            await self._world.side.turn()

        if hasattr(registry, "generate_response"):
            await self._cut(lambda: registry.respond(None, None, session_id), uncut=0.0)
        else:
            await self._cut(lambda: registry.respond(session_id, handle), uncut=0.0)

    async def tie(self, session_id: str) -> None:
        """Tie a task to a session; it waits, or is in no hurry to end."""
        world = self._world

        async def serve() -> None:
            try:
                await world.side.sleep(3600.0)
            finally:
                if stubborn:
                    await world.side.refuse(TIMEOUT)

        stubborn = world.rng.random() < 0.2
        task = world.side.start(serve)
        with contextlib.suppress(RegistryClosed):
            world.registry.register_respond_task(session_id, task)
            world.tied.append((session_id, task))
            return
        task.cancel()
