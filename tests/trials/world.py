"""The sessions of a trial, and what must be true of them whoever was cut."""

import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import trio
from backdoors import Backdoor

from trials.sides import Door, Ended, Side, Way
from trio_sessions import RegistryClosed, SessionNotFound
from trio_sessions.abc import SessionStore
from trio_sessions.testing import FaultyStore

__all__ = ["Connection", "UnevenStore", "World", "Wrong"]

T = TypeVar("T")
BOUND = 8.0  # seconds that any step may take on a busy machine; most need milliseconds
TIMEOUT = 0.03  # seconds for one call into a transport
_REFUSES = 0.08  # seconds that a stubborn call goes on after its deadline

Check = Literal["steady", "waits", "anyio", "hangs", "raises", "refuses", "closed", "dies"]
Parting = Literal["closes", "waits", "anyio", "hangs", "raises", "refuses"]
MAY_GO: set[Check] = {"closed", "dies"}


class Wrong(AssertionError):
    """A trial saw what must not be."""


class UnevenStore(FaultyStore):
    """Needs a few turns for each operation, before it and after it."""

    def __init__(self, store: SessionStore, rng: random.Random) -> None:
        super().__init__(store)
        self._rng = rng

    async def _through(self, name: str, operation: Callable[[], Awaitable[T]], *kinds: str) -> T:
        for _ in range(self._rng.randrange(4)):
            await trio.lowlevel.checkpoint()
        answer = await super()._through(name, operation, *kinds)
        if self._rng.random() < 0.2:
            await trio.sleep(self._rng.random() / 500)
        return answer


class Connection:
    """A transport of either side: it waits, hangs, raises, or refuses to be cancelled."""

    def __init__(self, side: Side, check: Check, parting: Parting, pause: float) -> None:
        self.check = check
        self.parting = parting
        self.checks = 0
        self.disconnects = 0
        self.added = 0
        self.surely_added = False
        self._side = side
        self._pause = pause

    async def _do(self, what: Check | Parting) -> None:
        match what:
            case "waits":
                await self._side.sleep(self._pause)
            case "anyio":
                import anyio

                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep, self._pause)
            case "hangs":
                await self._side.sleep(3600.0)
            case "refuses":
                await self._side.refuse(TIMEOUT + _REFUSES)
            case "raises":
                await self._side.turn()
                raise OSError("the connection is broken")
            case _:
                pass

    async def is_connected(self) -> bool:
        self.checks += 1
        await self._do(self.check)
        return self.check != "closed" and not (self.check == "dies" and self.checks > 2)

    async def disconnect(self) -> None:
        self.disconnects += 1
        await self._do(self.parting)

    async def send(self, message: Any) -> None:
        await self._side.turn()


@dataclass(slots=True)
class Act:
    """One call that adds or removes, for the ledger."""

    kind: Literal["add", "remove", "end"]
    session_id: str
    connection: Connection | None
    begun: int
    ended: int | None = None
    outcome: Ended | None = None


@dataclass(slots=True)
class World:
    """Everything that a trial has made, and its ledger."""

    side: Side
    rng: random.Random
    door: Door
    backdoor: Backdoor
    ids: list[str]
    acts: list[Act] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    tied: list[tuple[str, Any]] = field(default_factory=list)
    clock: int = 0
    slowest: float = 0.0

    @property
    def registry(self) -> Any:
        return self.door.registry

    # ---- what is done ----

    def connection(self) -> Connection:
        kinds: list[Check] = ["steady", "waits", "anyio", "hangs", "raises", "refuses", "closed"]
        check = self.rng.choices([*kinds, "dies"], [6, 6, 3, 1, 2, 1, 1, 1])[0]
        partings: list[Parting] = ["closes", "waits", "anyio", "hangs", "raises", "refuses"]
        parting = self.rng.choices(partings, [5, 5, 3, 1, 1, 1])[0]
        made = Connection(self.side, check, parting, self.rng.random() / 200)
        self.connections.append(made)
        return made

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    async def timed(self, what: str, function: Callable[[], Awaitable[T]]) -> T:
        """Await a function that may not take long. One that never ends is the parent's to see."""
        start = time.monotonic()
        try:
            return await function()
        finally:
            taken = time.monotonic() - start
            self.slowest = max(self.slowest, taken)
            if taken > BOUND:
                raise Wrong(f"{what} took {taken:.1f} s")

    async def act(
        self, kind: Literal["add", "remove", "end"], session_id: str, way: Way, after: int
    ) -> None:
        """Add or remove a session, and note how that went."""
        act = Act(kind, session_id, None, self.tick())
        self.acts.append(act)
        if kind == "add":
            held = None
            if self.rng.random() < 0.25:
                with contextlib.suppress(RegistryClosed):
                    held = self.registry.get_session_sync(session_id)
            act.connection = held or self.connection()
            act.connection.added += 1

            async def call() -> None:
                await self.registry.add_session(session_id, act.connection)
        else:

            async def call() -> None:
                await self.registry.remove_session(session_id)

        act.outcome = await self.cut(way, after, call)
        if act.outcome is Ended.RETURNED and act.connection is not None:
            act.connection.surely_added = True
        act.ended = self.tick()

    async def cut(self, way: Way, after: int, call: Callable[[], Awaitable[object]]) -> Ended:
        """Await a call and cut it; one that comes too late, or to nobody, never began."""
        try:
            return await self.timed("a call", lambda: self.side.cut(way, after, call))
        except (RegistryClosed, SessionNotFound):
            return Ended.NEVER_BEGAN
        except RuntimeError as exc:
            if "open already" in str(exc):  # somebody else reads this inbox
                return Ended.NEVER_BEGAN
            raise

    def note_end(self, begun: int) -> None:
        """Note that the registry was closed: whatever it held is gone."""
        for session_id in self.ids:
            act = Act("end", session_id, None, begun, self.tick(), Ended.RETURNED)
            self.acts.append(act)

    # ---- what must be true ----

    def _acts(self, session_id: str) -> Iterator[Act]:
        return (act for act in self.acts if act.session_id == session_id)

    def must_hold(self, session_id: str) -> list[Connection]:
        """Return the connections of which one must be held, if one must."""
        for add in self._acts(session_id):
            if add.kind != "add" or add.outcome is not Ended.RETURNED:
                continue
            later = [
                act
                for act in self._acts(session_id)
                if act is not add and act.ended is not None and act.ended > add.begun
            ]
            adds = [add, *(act for act in later if act.kind == "add")]
            if all(act.kind == "add" for act in later):
                found = [act.connection for act in adds if act.connection is not None]
                if not any(one.check in MAY_GO for one in found):
                    return found
        return []

    def must_not_hold(self, session_id: str) -> bool:
        return any(
            gone.kind != "add"
            and gone.outcome is Ended.RETURNED
            and not any(
                act.kind == "add" and act.ended is not None and act.ended > gone.begun
                for act in self._acts(session_id)
            )
            for gone in self._acts(session_id)
        )

    async def until(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until something is so that takes a while, and for which there is no event."""
        end = time.monotonic() + BOUND
        while not is_so():
            if time.monotonic() > end:
                raise Wrong(f"it never came that {what}")
            await self.side.sleep(0.002)

    async def check(self) -> None:
        """Ask for passes, and compare everything that can be seen."""
        registry = self.registry
        for connection in self.connections:
            if connection.check in MAY_GO:
                connection.check = "closed"
        for _ in range(2):  # the first one may join a pass that has asked the transports already
            await self.timed("cleanup()", registry.cleanup)
        held = await registry.get_all_session_ids()
        right = dict.fromkeys(held, registry.worker_id)
        await self.until("a row stood for each session", lambda: self.backdoor.rows() == right)
        report = await self.timed("cleanup()", registry.cleanup)
        expect("held", await registry.get_all_session_ids(), held)
        expect("checked", report.checked, len(held))
        expect("refreshed", report.refreshed, len(held))
        expect("missing, restored", (report.missing, report.restored), ((), ()))
        expect("refresh failures", dict(report.refresh_failures), {})
        for session_id in self.ids:
            transport = registry.get_session_sync(session_id)
            wanted = self.must_hold(session_id)
            if wanted and transport not in wanted:
                raise Wrong(f"{session_id} was added and is held by {transport!r}")
            if self.must_not_hold(session_id) and transport is not None:
                raise Wrong(f"{session_id} was removed and is held by {transport!r}")
        for session_id, task in self.tied:
            if registry.get_session_sync(session_id) is None:
                await self.until(f"a task of {session_id}, removed, ended", task.done)
        await self.until("no call was stuck", lambda: registry.statistics().stuck_calls == 0)
        await self.until("no task was stuck", lambda: registry.statistics().stuck_tasks == 0)
        await self.until("no row was left", lambda: registry.statistics().leftover_rows == 0)
        seen = registry.statistics()
        expect("sessions", seen.sessions, len(held))
        expect("unconfirmed", seen.unconfirmed, 0)
        expect("failed passes", seen.failed_passes, 0)
        for session_id in self.rng.sample(held, min(2, len(held))):
            await self.timed("reading", lambda s=session_id: self._read_to_the_end(s))  # type: ignore[misc]

    async def _read_to_the_end(self, session_id: str) -> None:
        """Send a last message; it arrives, behind whatever waits."""
        await self.registry.broadcast(session_id, "last")
        async with self.registry.open_inbox(session_id) as inbox:
            async for message in inbox:
                if message == "last":
                    return
        raise Wrong("the inbox of a session that is held came to an end")

    async def check_closed(self, tasks: int) -> None:
        """Look at what is left after the end, where there were so many tasks before."""
        expect("rows after the end", self.backdoor.rows(), {})
        try:
            await self.until("no task was left", lambda: len(self.side.tasks()) <= tasks)
        except Wrong as exc:
            raise Wrong("; ".join(self.side.tasks())) from exc
        for _, task in self.tied:
            expect("a tied task has ended", task.done(), True)
        for connection in self.connections:
            if not connection.surely_added <= connection.disconnects <= connection.added:
                raise Wrong(
                    f"a connection ({connection.check}, {connection.parting}) was added "
                    f"{connection.added} times and disconnected {connection.disconnects} times"
                )


def expect(what: str, seen: object, right: object) -> None:
    if seen != right:
        raise Wrong(f"{what}: {seen!r} instead of {right!r}")
