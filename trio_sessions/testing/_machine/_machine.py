"""The property suite: a state machine of Hypothesis that plays with registries on a store.

What its rules do stands in `_fleet.py`, what must be true after them in `_model.py` and
`_said.py`; here are their names and arguments. Hypothesis prints a history as calls of these, so
they stand in one class, which is why this file has over 400 lines.
"""

import contextlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Literal, TypeVarTuple

import trio
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from trio_sessions.abc import SessionStore, Transport
from trio_sessions.testing._conformance._ground import expect_nothing, expect_one_place, made
from trio_sessions.testing._machine._defined import begun, deleted, made_transport
from trio_sessions.testing._machine._door import Reach
from trio_sessions.testing._machine._driver import TrioDriver
from trio_sessions.testing._machine._ended import end_earlier, to_be_ended
from trio_sessions.testing._machine._lines import LineState
from trio_sessions.testing._machine._namesakes import NamesakeFleet
from trio_sessions.testing._machine._overheard import Overheard, overhear
from trio_sessions.testing._machine._pace import REAL, VIRTUAL, Pace
from trio_sessions.testing._machine._pasted import (
    BATCH_SIZES,
    LONGER,
    OUTAGES,
    SEEDS,
    SESSIONS,
    SOME_WORKERS,
    WORKERS,
    rule,
    with_known_words,
)
from trio_sessions.testing._seeded import seeded
from trio_sessions.testing._transports import FakeTransport

__all__ = ["RegistryMachine"]

Ts = TypeVarTuple("Ts")

_PATIENCE = 20_000.0  # seconds for one rule: far more than any takes, unless something hangs

LINE_STATES = tuple(one.value for one in LineState)
OWNERS = ("alice", "bob")


def _on_virtual_clock(machine: "RegistryMachine") -> bool:
    return machine.clock == "virtual"


def _needs_healing(machine: "RegistryMachine") -> bool:
    return machine._is_troubled  # noqa: SLF001 -- a precondition of its own


_VIRTUAL_ONLY = _on_virtual_clock, 'with clock = "virtual" only'
_AFTER_TROUBLE = _needs_healing, "only after something that it sets right"


class RegistryMachine(RuleBasedStateMachine):
    """Plays histories with registries on your store, and looks for sessions that are lost.

    Two workers share what `make_store` leads to. Sessions are added, moved and removed,
    transports die, hang and raise, rows vanish, the store is away, loses its answers or gives
    them late, workers crash, are drained and come back, messages and owners are set. After every
    rule:

    - nobody was removed whose transport lives, and whose row was not confirmed to be gone,
    - a row that was confirmed is there, unless its session has ended or its lease has run out,
    - whoever was removed was disconnected, and nobody else,
    - whoever was revoked goes, and nobody with its id comes while that is refused,
    - who is told to leave by a drain is waited for, and nobody comes in meanwhile,
    - of messages and owners that were accepted while all was well, none is lost.

    At the end everything heals, and what is held, what is stored and what lives must be the same.

    Subclass it, define `make_store` and `reset`, and run its ``TestCase`` by pytest or unittest,
    or hand the class to `hypothesis.stateful.run_state_machine_as_test`, from a plain function,
    not from an async one. A failure ends with the shortest history that Hypothesis has found, as
    code: paste it into a test. ``docs/howto/property-suite.md`` shows all of it.

    Attributes:
        clock: ``"real"``, or ``"virtual"`` for a store that has no clock of its own but goes by
            `trio.current_time`, and starts no threads. With the latter workers are paused, hours
            pass, and leases run out.
    """

    clock: ClassVar[Literal["real", "virtual"]] = "real"

    def __init__(self) -> None:
        super().__init__()
        self._held = contextlib.ExitStack()
        """What is in force for the length of a history: its seed, and silence."""
        self._overheard = Overheard()
        self._driver: TrioDriver | None = None
        self._fleet: NamesakeFleet | None = None
        self._is_troubled = False
        """Something was done since `heal` that it sets right; known without a look, so that
        Hypothesis can play a history again, whatever real time does."""
        self._error_outside = sys.exception()

    def __init_subclass__(cls, **kwargs: object) -> None:
        """Let the settings be those of a search that ends; whoever sets their own replaces them."""
        super().__init_subclass__(**kwargs)
        cls.__init__ = begun(cls.__init__)  # type: ignore[assignment,method-assign]
        cls.TestCase.settings = settings(
            cls.TestCase.settings,
            deadline=None,
            report_multiple_bugs=False,  # each would be shrunk, for minutes
            phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
        )

    # ---- for you to define ----

    def make_store(self) -> SessionStore:
        """Return a store for one worker, on what all of them share; called at each start of one."""
        raise NotImplementedError(
            f"{type(self).__name__} must define make_store(self): return a SessionStore, on what "
            "the workers share"
        )

    def reset(self) -> None:
        """Empty what is shared; called before each history, outside of Trio, and not async."""
        raise NotImplementedError(
            f"{type(self).__name__} must define reset(self): empty what the workers share"
        )

    def make_transport(self) -> Transport:
        """Return a connected transport. Default: a `FakeTransport`.

        Called within Trio, but not async. It is asked as long as no rule has ended it.
        """
        return FakeTransport()

    async def delete_row(self, session_id: str) -> None:
        """Delete a session's row, and its messages, as an operator would by hand.

        Default: by the store's contract, as a worker that takes the session over, and ends it.
        """
        assert self._fleet is not None
        await self._fleet.stranger.delete_row(session_id)

    # ---- how it runs ----

    @property
    def _pace(self) -> Pace:
        if self.clock not in {"real", "virtual"}:
            raise ValueError(
                f"{type(self).__name__}.clock must be 'real' or 'virtual', not {self.clock!r}"
            )
        return VIRTUAL if self.clock == "virtual" else REAL

    @property
    def _running(self) -> NamesakeFleet:
        if self._fleet is None:
            raise RuntimeError("nothing runs: a history begins with state.begin(batch_size=...)")
        return self._fleet

    def _make_store(self) -> SessionStore:
        return made(self.make_store)

    def _make_transport(self) -> Transport:
        return made_transport(self.make_transport)

    async def _delete_row(self, session_id: str) -> None:
        await deleted(self.delete_row, session_id)

    def _call(self, step: Callable[[], Awaitable[None]]) -> None:
        assert self._driver is not None
        try:
            with self._pace.in_time():
                self._driver.call(self._overheard.without_breach, step, patience=_PATIENCE)
        except BaseException as exc:  # is told what was overheard; raised again
            self._overheard.tell(exc)
            raise

    def _play(self, step: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Carry out one step, a moment after the last one, and look at what there is then."""
        fleet = self._running

        async def play() -> None:
            await trio.sleep(self._pace.tick)
            await step(*args)
            await fleet.look()

        self._call(play)

    @initialize(
        batch_size=st.sampled_from(BATCH_SIZES),
        held_by=st.fixed_dictionaries(
            {"a": st.sampled_from(WORKERS)}, optional={"b": st.sampled_from(WORKERS)}
        ),
        seed=st.integers(SEEDS[0], SEEDS[-1]),
        longer=st.sampled_from(LONGER),
    )
    @with_known_words(batch_size=BATCH_SIZES, seed=SEEDS, longer=LONGER)
    def begin(
        self, batch_size: int, held_by: Mapping[str, int], seed: int = 0, longer: int = 1
    ) -> None:
        """Empty what is shared, start the workers, and add a session or two.

        The seed is that of Trio's scheduler: which of the tasks that can go on goes first.
        Worker 1 has so many times the ``session_ttl`` of worker 0.
        """
        if self._driver is not None:
            raise RuntimeError("this history has begun already: begin is its first step, once")
        end_earlier()
        self._is_troubled = False
        if inspect.iscoroutinefunction(self.reset):
            raise TypeError(
                f"{type(self).__name__}.reset() must not be async: Trio does not run yet"
            )
        pace = self._pace
        self.reset()
        self._overheard = self._held.enter_context(overhear())
        self._held.enter_context(seeded(str(seed), is_virtual=pace.is_virtual))
        self._driver = TrioDriver(pace.make_clock())
        self._driver.open()
        self._held.enter_context(to_be_ended(self._driver, self._close, type(self).__name__))
        fleet = self._fleet = NamesakeFleet(
            self._driver.nursery,
            self._make_store,
            SESSIONS,
            pace,
            {"batch_size": batch_size},
            longer=longer,
        )

        async def start() -> None:
            must = f"{type(self).__name__}.reset() must empty what the workers share"
            await expect_nothing(self._make_store, must, SESSIONS)
            await expect_one_place(self._make_store)
            await fleet.stranger.open()
            for number in WORKERS:
                await fleet.start(number)
            for session, number in held_by.items():
                await fleet.add(number, session, self._make_transport())

        self._play(start)

    def teardown(self) -> None:
        """Let everything heal, look at what is left, and close it all."""
        try:
            if (
                self._fleet is not None and sys.exception() is self._error_outside
            ):  # none has failed
                self._call(self._fleet.settle)
        finally:
            self._close()

    def _close(self) -> None:
        driver, fleet = self._driver, self._fleet
        self._driver = self._fleet = None
        with self._held:
            if driver is not None:
                with contextlib.closing(driver):
                    if fleet is not None:
                        driver.call(fleet.stop, patience=_PATIENCE)

    # ---- sessions ----

    async def _add(self, worker: int, session: str) -> None:
        await self._running.add(worker, session, self._make_transport())

    async def _move(self, session: str) -> None:
        await self._running.move(session, self._make_transport())

    @rule(worker=WORKERS, session=SESSIONS)
    def add(self, worker: int, session: str) -> None:
        """Add a session with a new transport, whoever holds it."""
        self._play(self._add, worker, session)

    @rule(worker=WORKERS, session=SESSIONS)
    def add_again(self, worker: int, session: str) -> None:
        """Add the very transport that the worker holds once more."""
        self._play(self._running.add_again, worker, session)

    @rule(session=SESSIONS)
    def move(self, session: str) -> None:
        """Let the session's client come again, to the other worker."""
        self._play(self._move, session)

    @rule(worker=WORKERS, session=SESSIONS)
    def remove(self, worker: int, session: str) -> None:
        """Remove a session from the worker."""
        self._play(self._running.remove, worker, session)

    async def _let_old_writes_land(self, worker: int, session: str) -> None:
        await self._running.let_old_writes_land(
            worker, session, self._make_transport(), self._make_transport()
        )

    @rule(worker=WORKERS, session=SESSIONS)
    def old_writes_land(self, worker: int, session: str) -> None:
        """Add a session, remove it and add it again; what was written first arrives last."""
        self._play(self._let_old_writes_land, worker, session)

    async def _replace(self, worker: int, session: str) -> None:
        fleet = self._running
        await fleet.set_owner(worker, session, "alice")
        for sender in WORKERS:
            await fleet.broadcast(sender, session, durable=True)
        await fleet.set_reach(worker, Reach.AWAY)
        await fleet.remove(worker, session)
        await fleet.add(worker, session, self._make_transport())
        await fleet.set_reach(worker, Reach.WELL)

    @rule(worker=WORKERS, session=SESSIONS)
    def replace(self, worker: int, session: str) -> None:
        """Let a session with an owner and messages end, and another one of its id begin.

        The store is away meanwhile: it hears of both at once.
        """
        self._is_troubled = True
        self._play(self._replace, worker, session)

    @rule(worker=WORKERS, session=SESSIONS, to=LINE_STATES)
    def change_transport(self, worker: int, session: str, to: str) -> None:
        """Let the transport die, hang, raise, or live again."""
        self._play(self._running.change_transport, worker, session, LineState(to))

    @rule(session=SESSIONS)
    def row_vanishes(self, session: str) -> None:
        """Delete the session's row behind everybody's back."""
        self._play(self._running.delete_row, session, self._delete_row)

    @rule(worker=WORKERS, session=SESSIONS)
    def revoke(self, worker: int, session: str) -> None:
        """Revoke the session from the worker, whoever holds it; its id is refused for a while."""
        self._play(self._running.revoke, worker, session)

    # ---- workers, and their way to the store ----

    async def _set_reach(self, workers: tuple[int, ...], reach: Reach) -> None:
        for worker in workers:
            await self._running.set_reach(worker, reach)

    @rule(workers=SOME_WORKERS, answers=tuple(OUTAGES))
    def outage(self, workers: tuple[int, ...], answers: str) -> None:
        """Let the store do nothing and fail, or do all and fail, or do all and answer late."""
        self._is_troubled = True
        self._play(self._set_reach, workers, OUTAGES[answers])

    @rule(_VIRTUAL_ONLY, workers=SOME_WORKERS)
    def pause(self, workers: tuple[int, ...]) -> None:
        """Hold up what is on its way to the store, until `heal`."""
        self._is_troubled = True
        self._play(self._set_reach, workers, Reach.HELD)

    async def _heal(self) -> None:
        await self._set_reach(WORKERS, Reach.WELL)
        for worker in WORKERS:
            await self._running.clean_up(worker)

    @rule(_AFTER_TROUBLE)
    def heal(self) -> None:
        """Let all workers reach the store as they should, and let each of them make a pass."""
        self._is_troubled = False
        self._play(self._heal)

    @rule(worker=WORKERS)
    def crash(self, worker: int) -> None:
        """End a worker without a trace: its rows stay."""
        self._play(self._running.crash, worker)

    @rule(worker=WORKERS)
    def restart(self, worker: int) -> None:
        """Start a worker; if it runs, close it first."""
        self._play(self._running.start, worker)

    async def _drain(self, worker: int) -> None:
        await self._running.drain(worker, self._make_transport)

    @rule(worker=WORKERS)
    def drain(self, worker: int) -> None:
        """Empty a worker, let its clients come again to the other one, and start it anew."""
        self._play(self._drain, worker)

    @rule(worker=WORKERS)
    def namesake(self, worker: int) -> None:
        """Let another registry of the worker's name open, take a session of its own, and close."""
        self._play(self._running.visit, worker)

    @rule(worker=WORKERS)
    def clean_up(self, worker: int) -> None:
        """Let a worker make a pass."""
        self._play(self._running.clean_up, worker)

    @rule(_VIRTUAL_ONLY, leases=(0.03, 0.2, 0.45, 0.7, 1.3))
    def time_passes(self, leases: float) -> None:
        """Let time pass, in parts of ``session_ttl``; workers make their own passes."""
        self._play(trio.sleep, leases * self._pace.session_ttl)

    async def _be_away_for_long(self) -> None:
        await self._set_reach(WORKERS, Reach.AWAY)
        await trio.sleep(1.4 * self._pace.session_ttl)
        await self._heal()

    @rule(_VIRTUAL_ONLY)
    def long_outage(self) -> None:
        """Let the store be away from all for longer than a lease, and heal: nobody has expired."""
        self._is_troubled = False
        self._play(self._be_away_for_long)

    # ---- messages and owners ----

    async def _broadcast(self, worker: int, session: str, durable: bool, count: int) -> None:  # noqa: FBT001
        for _ in range(count):
            await self._running.broadcast(worker, session, durable=durable)

    @rule(worker=WORKERS, session=SESSIONS, durable=(False, True), count=range(1, 5))
    def broadcast(self, worker: int, session: str, durable: bool, count: int) -> None:  # noqa: FBT001
        """Send so many messages from the worker, wherever the session is."""
        self._play(self._broadcast, worker, session, durable, count)

    @rule(session=SESSIONS)
    def read(self, session: str) -> None:
        """Read the session's messages where it is held, by ``open_inbox``."""
        self._play(self._running.read, session)

    @rule(worker=WORKERS, session=SESSIONS, count=range(2, 5))
    def send_and_read(self, worker: int, session: str, count: int) -> None:
        """Send so many messages from the worker while nobody reads them, and read them."""
        self._play(self._running.send_and_read, worker, session, count)

    @rule(worker=WORKERS, session=SESSIONS, count=range(2, 5))
    def read_between(self, worker: int, session: str, count: int) -> None:
        """Send so many from the worker, read one, send two around its receipt, and read on."""
        self._play(self._running.read_between, worker, session, count)

    @rule(session=SESSIONS)
    def respond(self, session: str) -> None:
        """Read them by ``respond``."""
        self._play(self._running.respond, session)

    @rule(worker=WORKERS, session=SESSIONS, owner=(None, *OWNERS))
    def set_owner(self, worker: int, session: str, owner: str | None) -> None:
        """Set the session's owner, from the worker."""
        self._play(self._running.set_owner, worker, session, owner)

    @rule(worker=WORKERS, session=SESSIONS, owner=OWNERS)
    def claim_owner(self, worker: int, session: str, owner: str) -> None:
        """Claim the session for an owner, from the worker."""
        self._play(self._running.claim_owner, worker, session, owner)
