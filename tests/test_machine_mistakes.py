"""`RegistryMachine`: mistakes of whoever uses it, and breaches of a store, are told in words."""

import logging
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from machines import InMemory

from trio_sessions.abc import Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, RegistryMachine
from trio_sessions.testing._machine._overheard import Overheard
from trio_sessions.writes import Committed


def begun(machine: type[RegistryMachine], **more: Any) -> RegistryMachine:
    state = machine()
    state.begin(**{"batch_size": 1, "held_by": {"a": 0}, **more})
    return state


# ---- breaches of the store's contract ----


class StampSaysNothing(MemoryStore):
    async def stamp(self, *args: Any, **settings: Any) -> Any:
        await super().stamp(*args, **settings)


class SweepSaysNothing(MemoryStore):
    async def sweep(self, *args: Any, **settings: Any) -> Any:
        await super().sweep(*args, **settings)


class RefreshSaysNothing(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> Any:
        await super().refresh(worker, session_ids)


class BeginSaysNothing(MemoryStore):
    async def begin(self, *args: Any, **settings: Any) -> Any:
        await super().begin(*args, **settings)


class AsyncBell(MemoryStore):
    async def open_bell(self, worker: Worker) -> Any:  # type: ignore[override]
        return None


class SyncRefresh(MemoryStore):
    def refresh(self, worker: Worker, session_ids: Sequence[str]) -> Any:
        return None


class AnswersTooFew(MemoryStore):
    async def commit(self, worker: Worker, batch: Any) -> Any:
        committed = await super().commit(worker, batch)
        return type(committed)(
            verdict=committed.verdict,
            answers=committed.answers[1:],
            stamp=committed.stamp,
            clock=committed.clock,
        )


class AsyncAtOnce(MemoryStore):
    async def commit_at_once(self, worker: Worker, batch: Any) -> Any:  # type: ignore[override]
        return None


class AnswersAtOnceWithoutAList(MemoryStore):
    def commit_at_once(self, worker: Worker, batch: Any) -> Any:
        return Committed(answers=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("store", "breach"),
    [
        (StampSaysNothing, "StampSaysNothing.stamp returned None; expected is Stamped"),
        (SweepSaysNothing, "SweepSaysNothing.sweep returned None; expected is Swept"),
        (RefreshSaysNothing, "RefreshSaysNothing.refresh returned None; expected is RowAnswers"),
        (BeginSaysNothing, "BeginSaysNothing.begin returned None; expected is Begun"),
        (AsyncBell, "AsyncBell.open_bell answered with coroutine, not with "),
        (SyncRefresh, "SyncRefresh.refresh must be async, and returned NoneType at once"),
        (AnswersTooFew, "it answered 0 of 1 writes"),
        (AsyncAtOnce, "AsyncAtOnce.commit_at_once answered with coroutine, not with Committed or"),
        (
            AnswersAtOnceWithoutAList,
            "AnswersAtOnceWithoutAList.commit_at_once returned Committed with answers: None",
        ),
    ],
)
def test_a_breach_of_contract_ends_the_history(store: Any, breach: str) -> None:
    """With the sentence that a registry logs; it counted as an answer that is unknown."""
    machine = type("Machine", (InMemory,), {"make_shared": store})
    with pytest.raises(AssertionError, match=f"the store broke its contract: {breach}"):
        state = begun(machine)
        state.read(session="a")
        state.clean_up(worker=0)
        state.time_passes(leases=0.7)
    trio.run(trio.lowlevel.checkpoint)


class CommitRaises(MemoryStore):
    def commit_at_once(self, worker: Worker, batch: Any) -> None:
        return None

    async def commit(self, worker: Worker, batch: Any) -> Any:
        raise KeyError("beat")


class CommitAtOnceRaises(MemoryStore):
    def commit_at_once(self, worker: Worker, batch: Any) -> Any:
        raise KeyError("beat")


class RefreshRaisesNowAndThen(MemoryStore):
    refreshes = 0

    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> Any:
        self.refreshes += 1
        if self.refreshes == 2:
            raise KeyError("beat")
        return await super().refresh(worker, session_ids)


class BellRaises(MemoryStore):
    @asynccontextmanager
    async def open_bell(self, worker: Worker) -> Any:
        raise KeyError("beat")
        yield


def nothing(state: RegistryMachine) -> None: ...


def passes(state: RegistryMachine) -> None:
    state.clean_up(worker=0)
    state.clean_up(worker=1)


RAISED = (
    r"broke its contract: it raised KeyError: 'beat', in (commit|refresh|open_bell)\w* \(.*py:\d"
)


@pytest.mark.parametrize(
    ("store", "steps"),
    [
        (CommitRaises, nothing),
        (CommitAtOnceRaises, nothing),
        (RefreshRaisesNowAndThen, passes),
        (RefreshRaisesNowAndThen, nothing),  # by what heals at the end
        (BellRaises, nothing),
    ],
)
def test_what_the_contract_does_not_promise_ends_the_history(store: Any, steps: Any) -> None:
    """With the exception as its cause; it was a fault that passes, and nobody heard of it."""
    machine = type("Machine", (InMemory,), {"make_shared": store})
    with pytest.raises(AssertionError, match=RAISED) as found:
        state = begun(machine)
        steps(state)
        state.teardown()
    assert isinstance(found.value.__cause__, KeyError)
    trio.run(trio.lowlevel.checkpoint)


def test_hypothesis_hands_on_what_the_contract_does_not_promise() -> None:
    """Beside the history that leads there."""
    machine = type("Machine", (InMemory,), {"make_shared": CommitRaises})
    once = settings(
        max_examples=1, stateful_step_count=1, deadline=None, database=None, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError, match=RAISED) as found:
        run_state_machine_as_test(machine, settings=once)
    assert any("state.begin(" in note for note in found.value.__notes__)


class SyncLocate(MemoryStore):
    def locate(self, worker: Worker, session_id: str) -> Any:
        return None


def test_a_method_that_is_not_async_is_named() -> None:
    """Also by whoever looks whether all is empty."""
    machine = type("Machine", (InMemory,), {"make_shared": SyncLocate})
    with pytest.raises(TypeError, match=r"SyncLocate\.locate must be async, and returned NoneType"):
        begun(machine)


class InThreads(MemoryStore):
    async def locate(self, worker: Worker, session_id: str) -> Any:
        await trio.to_thread.run_sync(time.sleep, 0.05, limiter=worker.limiter)
        return await super().locate(worker, session_id)


def test_threads_on_the_virtual_clock_are_told() -> None:
    """It was a bare `trio.TooSlowError`."""
    machine = type("Machine", (InMemory,), {"make_shared": InThreads})
    with pytest.raises(RuntimeError, match=r'works in threads.*set clock = "real"'):
        begun(machine)


# ---- what a subclass defines ----


async def later(self: Any) -> Any: ...


@pytest.mark.parametrize(
    ("make", "given"), [(lambda _self: None, "with .*, not NoneType"), (later, "not a coroutine")]
)
def test_what_makes_no_transport_is_named(make: Any, given: str) -> None:
    """It was added to a registry, which kept it as one that does not answer."""
    machine = type("Machine", (InMemory,), {"make_transport": make})
    with pytest.raises(TypeError, match=f"make_transport must return a Transport, {given}"):
        begun(machine)


def test_a_delete_row_that_is_not_async_is_named() -> None:
    """In place of "object NoneType can't be used in 'await' expression"."""
    machine = type("Machine", (InMemory,), {"delete_row": lambda _self, _session_id: None})
    state = begun(machine)
    with pytest.raises(TypeError, match="delete_row must be async; this one returned NoneType"):
        state.row_vanishes(session="a")


def test_an_init_that_forgets_ours_is_named() -> None:
    """In place of an AttributeError of a private name."""

    class Forgets(InMemory):
        def __init__(self) -> None:
            self.mine = 1

    class Remembers(InMemory):
        def __init__(self) -> None:
            super().__init__()
            self.mine = 1

    with pytest.raises(TypeError, match=r"Forgets.__init__ must call super\(\).__init__\(\)"):
        Forgets()
    begun(Remembers).teardown()


# ---- histories that were edited ----


@pytest.mark.parametrize(
    ("step", "words", "complaint"),
    [
        ("add", {"worker": 7, "session": "a"}, r"add\(worker=...\) must be one of 0, 1, not 7"),
        ("add", {"worker": 0, "session": "q"}, r"add\(session=...\) must be .* 'a', 'b', not 'q'"),
        ("restart", {"worker": 9}, r"restart\(worker=...\) must be one of 0, 1, not 9"),
        (
            "change_transport",
            {"worker": 0, "session": "a", "to": "dead"},
            r"to=...\) must be one of 'lives', 'dies', 'hangs', 'raises', not 'dead'",
        ),
        (
            "outage",
            {"workers": (0,), "answers": "nothing"},
            r"answers=...\) must be one of 'none', 'lost', 'late', not 'nothing'",
        ),
        ("outage", {"workers": (0, 2), "answers": "none"}, r"of \(0,\), .* not \(0, 2\)"),
        ("outage", {"workers": [0], "answers": "none"}, r"of \(0,\), .* not \[0\]"),
        (
            "broadcast",
            {"worker": 0, "session": "a", "durable": True, "count": 99},
            r"broadcast\(count=...\) must be one of 1, 2, 3, 4, not 99",
        ),
        ("read_between", {"worker": 0, "session": "a", "count": 1}, "one of 2, 3, 4, not 1"),
        ("time_passes", {"leases": 5}, r"leases=...\) must be one of 0.03, .*, 1.3, not 5"),
        ("set_owner", {"worker": 0, "session": "a", "owner": "eve"}, "None, 'alice', 'bob', not"),
        ("claim_owner", {"worker": 0, "session": "a", "owner": None}, "'alice', 'bob', not None"),
    ],
)
def test_a_word_that_nobody_knows_is_refused(
    step: str, words: dict[str, Any], complaint: str
) -> None:
    """Where a worker is not there the step did nothing, and all was well."""
    state = begun(InMemory)
    with pytest.raises(ValueError, match=complaint):
        getattr(state, step)(**words)
    state.teardown()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"held_by": {"a": 5}}, "the worker of 'a' in begin.* must be one of 0, 1, not 5"),
        ({"held_by": {"q": 0}}, "a session of begin.* must be one of 'a', 'b', not 'q'"),
        ({"batch_size": 0}, r"begin\(batch_size=...\) must be one of 1, 1000, not 0"),
        ({"seed": 8}, r"begin\(seed=...\) must be one of 0, 1, 2, 3, 4, 5, 6, 7, not 8"),
        ({"longer": 2}, r"begin\(longer=...\) must be one of 1, 5, not 2"),
    ],
)
def test_a_beginning_with_a_word_that_nobody_knows_is_refused(
    words: dict[str, Any], complaint: str
) -> None:
    """Likewise."""
    with pytest.raises(ValueError, match=complaint):
        begun(InMemory, **words)


@pytest.mark.parametrize(
    ("clock", "step", "words", "complaint"),
    [
        ("virtual", "heal", {}, r"heal\(\) is played only after something that it sets right"),
        ("real", "pause", {"workers": (0,)}, r'pause\(\) is played with clock = "virtual" only'),
        ("real", "time_passes", {"leases": 0.2}, "time_passes"),
        ("real", "long_outage", {}, "long_outage"),
    ],
)
def test_a_step_that_is_not_to_be_played_is_refused(
    clock: str, step: str, words: dict[str, Any], complaint: str
) -> None:
    """As Hypothesis never plays it: on the real clock it would have to wait for an hour."""
    state = begun(type("Machine", (InMemory,), {"clock": clock}))
    with pytest.raises(RuntimeError, match=complaint):
        getattr(state, step)(**words)
    state.teardown()


MISTAKES = [
    ("add", {"worker": 0, "session": "z"}, ValueError, "must be one of"),
    ("add", {"worker": 0, "sessions": "a"}, TypeError, "argument: 'session'"),
    ("begin", {"batch_size": 1, "held_by": {"a": 0}}, RuntimeError, "has begun already"),
]


@pytest.mark.parametrize(("step", "words", "kind", "complaint"), MISTAKES)
def test_a_mistake_ends_the_run(
    step: str, words: dict[str, Any], kind: type[Exception], complaint: str
) -> None:
    """Trio ran on, and neither `trio.run` nor another history could begin."""
    state = begun(InMemory)
    with pytest.raises(kind, match=complaint):
        getattr(state, step)(**words)
    trio.run(trio.lowlevel.checkpoint)
    with pytest.raises(RuntimeError, match="nothing runs"):
        state.clean_up(worker=0)
    state.teardown()
    begun(InMemory).teardown()


def test_a_make_store_that_fails_ends_the_run() -> None:
    """Before there is a fleet."""
    with pytest.raises(TypeError, match="make_store must return a SessionStore, not int"):
        begun(type("Machine", (InMemory,), {"make_store": lambda _self: 1}))
    trio.run(trio.lowlevel.checkpoint)


def test_a_history_that_was_not_ended_is_ended_by_the_next_one() -> None:
    """It was said that the next one is run from an async function."""
    first, logger = begun(InMemory), logging.getLogger("trio_sessions")
    with pytest.warns(RuntimeWarning, match="history of InMemory was not ended: call teardown"):
        second = begun(InMemory)
    with pytest.raises(RuntimeError, match="nothing runs"):
        first.clean_up(worker=0)
    first.teardown()
    second.clean_up(worker=0)
    second.teardown()
    assert not any(isinstance(one, Overheard) for one in logger.handlers)
    trio.run(trio.lowlevel.checkpoint)


def test_a_history_within_a_step_of_another_one_is_refused() -> None:
    """That is called from Trio indeed."""

    class Nested(InMemory):
        def make_transport(self) -> FakeTransport:
            begun(InMemory)
            return FakeTransport()

    with pytest.raises(RuntimeError, match="from a plain function"):
        begun(Nested)
    trio.run(trio.lowlevel.checkpoint)
