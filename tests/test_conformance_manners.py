"""How the conformance checks tell what is wrong, to whoever is new to them."""

import pydoc
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import trio_sessions.abc
from trio_sessions import StoreUnavailable
from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import (
    FaultyStore,
    conformance_tests,
    data_conformance,
    inspection_conformance,
    limit_conformance,
    log_conformance,
    mail_conformance,
    revocation_conformance,
    row_conformance,
    store_conformance,
    transport_conformance,
)
from trio_sessions.types import RowAnswers
from trio_sessions.writes import Batch

Make = Callable[[], Any]


def run(make_store: Any, index: int = 0) -> None:
    """Run one of the checks of rows, the first by default."""
    trio.run(row_conformance[index], make_store, clock=MockClock(autojump_threshold=0))


# ---- values, and the rule ----

KINDS: tuple[Any, ...] = (store_conformance, transport_conformance)

FILE = """
import pytest
from dataclasses import replace
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import conformance_tests, row_conformance

class TakesNobodyOver(MemoryStore):
    async def refresh(self, worker, session_ids):
        answers = await super().refresh(worker, session_ids)
        return replace(answers, taken_over=frozenset())

@pytest.fixture
def make_store():
    store = TakesNobodyOver()
    return lambda: store

test_it = conformance_tests([c for c in row_conformance if "what_is_not_there" in c.__name__])
"""


@pytest.mark.parametrize("first", ["", "import trio_sessions.testing.simulate\n"])
def test_pytest_shows_values_and_the_rule(tmp_path: Path, first: str) -> None:
    """Not a bare AssertionError: what came, and what was expected."""
    (tmp_path / "test_file.py").write_text(first + FILE, "utf-8")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed" in ran.stdout, ran.stdout
    assert "assert frozenset() == {" in ran.stdout
    assert "The rule of what_is_not_there_is_in_no_field: What is not there" in ran.stdout


def test_the_rule_is_told_without_pytest_too() -> None:
    """As a note of the error, for stores and for transports."""
    for checks in KINDS:
        with pytest.raises(ZeroDivisionError) as raised:
            trio.run(checks[0], lambda: 1 // 0)
        [note] = raised.value.__notes__
        assert note.startswith(f"The rule of {checks[0].__name__}: ")


PLAIN_FILE = """
from dataclasses import replace

import trio

from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import message_conformance, row_conformance
from trio_sessions.writes import Send

class SeesNoTakeover(MemoryStore):
    async def refresh(self, worker, session_ids):
        answers = await super().refresh(worker, session_ids)
        return replace(answers, taken_over=frozenset())

class DoesNotAnswerSends(MemoryStore):
    async def commit(self, worker, batch):
        committed = await super().commit(worker, batch)
        return replace(committed, answers=() if any(batch.of(Send)) else committed.answers)

for kind, checks, name in (
    (SeesNoTakeover, row_conformance, "what_is_not_there_is_in_no_field"),
    (DoesNotAnswerSends, message_conformance, "a_message_grows_older_while_it_waits"),
):
    [check] = [one for one in checks if one.__name__ == name]
    store = kind()
    try:
        trio.run(check, lambda: store)
    except (AssertionError, ExceptionGroup) as group:
        depth, failed = 0, group
        while isinstance(failed, BaseExceptionGroup):
            depth, [failed] = depth + 1, failed.exceptions
        print(f"<{depth} {failed}>")
"""


def test_a_check_says_without_pytest_what_failed(tmp_path: Path) -> None:
    """Nobody rewrites its assertions there, and a bare one has no text, alone or in a group."""
    ran = subprocess.run(
        [sys.executable, "-c", PLAIN_FILE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, second, end = ran.stdout.split(">\n")
    assert first.startswith("<0 assert answers.taken_over == {'")
    assert "\nThe rule of what_is_not_there_is_in_no_field: What is not there is in" in first
    assert second.startswith("<1 assert len(answers) == len(writes)\n")
    assert "\nThe rule of a_message_grows_older_while_it_waits: A message grows older" in second
    assert not end


def test_a_rule_stands_alone() -> None:
    """It begins with a sentence: the name of its check."""
    check: Any = next(one for one in store_conformance if "a_worker_s_row" in one.__name__)
    with pytest.raises(ZeroDivisionError) as raised:
        trio.run(check, lambda: 1 // 0)
    [note] = raised.value.__notes__
    assert ": A worker's row goes after its sessions. So a row that is left over is never" in note


def test_a_check_alone_is_refused() -> None:
    """`conformance_tests` expects a sequence."""
    check: Any = row_conformance[0]
    with pytest.raises(TypeError, match=f"a sequence of checks, .*: .{check.__name__}"):
        conformance_tests(check)


PLAIN = frozenset({Part.ROWS, Part.MESSAGES, Part.WORKERS})


@pytest.mark.parametrize(
    ("checks", "contract"),
    [
        (data_conformance, "DataStore"),
        (inspection_conformance, "InspectionStore"),
        (limit_conformance, "LimitStore"),
        (log_conformance, "LogStore"),
        (mail_conformance, "MailStore"),
        (revocation_conformance, "RevocationStore"),
    ],
)
def test_checks_of_a_part_that_is_not_claimed_say_so(checks: Any, contract: str) -> None:
    """In place of an AttributeError, or of a rule that nobody has promised to keep."""
    assert hasattr(trio_sessions.abc, contract)
    kind = type("Plain", (MemoryStore,), {"parts": property(lambda _: PLAIN)})
    for check in checks:
        with pytest.raises(AssertionError, match=f"Plain does not say .*[.]abc[.]{contract}, too"):
            trio.run(check, kind, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (store_conformance, "The contract of a `SessionStore`, one check a rule"),
        (row_conformance, "`Store` and `RowStore`, one check a rule"),
        (transport_conformance, "The contract of a `Transport`, one check a rule"),
    ],
)
def test_help_says_what_the_checks_are(checks: Sequence[Any], said: str) -> None:
    """And not what a tuple is; they are one all the same."""
    told = pydoc.plain(pydoc.render_doc(checks))
    assert f"<{len(checks)} conformance checks>\n    {said}" in told
    assert isinstance(checks, tuple)


# ---- the first check ----


class SyncLocate(MemoryStore):
    def locate(self, worker: Worker, session_id: str) -> Any:
        return None


class SyncOpen(MemoryStore):
    def open(self, worker: Worker) -> Any:
        return None


class BeginSaysNothing(MemoryStore):
    async def begin(self, *args: Any, **settings: Any) -> Any:
        await super().begin(*args, **settings)


class NoCheckpoint(MemoryStore):
    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> list[tuple[str, int]]:
        return []


class OldSweep(MemoryStore):
    async def sweep(self, worker: Worker, session_ttl: float) -> Any:  # type: ignore[override]
        raise NotImplementedError


class NeedsAStamp(MemoryStore):
    async def sweep(  # type: ignore[override]
        self,
        worker: Worker,
        *,
        session_ttl: float,
        message_ttl: float,
        max_gap: float,
        limit: int,
        stamp: Any,
    ) -> Any:
        raise NotImplementedError


class AsyncBell(MemoryStore):
    async def open_bell(self, worker: Worker) -> Any:  # type: ignore[override]
        return None


class BellWithoutWait(MemoryStore):
    def open_bell(self, worker: Worker) -> Any:
        return trio.open_nursery()


class ListOfHeld(MemoryStore):
    async def refresh(self, worker: Worker, session_ids: Sequence[str]) -> RowAnswers:
        answers = await super().refresh(worker, session_ids)
        held: Any = sorted(answers.held)
        return replace(answers, held=held)


class NumbersForRows(MemoryStore):
    async def own_rows(self, worker: Worker, *, after: str, limit: int) -> Any:
        return [(number, one) for one, number in await super().own_rows(worker, after="", limit=9)]


class AnswersAsAList(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Any:
        return (await super().commit(worker, batch)).answers


class AnswersTooFew(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Any:
        committed = await super().commit(worker, batch)
        return replace(committed, answers=committed.answers[1:])


class OldDescribe(MemoryStore):
    """In a part that is optional."""

    async def describe(self, session_id: str) -> Any:  # type: ignore[override]
        raise NotImplementedError


class AsyncAtOnce(MemoryStore):
    async def commit_at_once(self, worker: Worker, batch: Batch) -> Any:  # type: ignore[override]
        return None


class AwaitableAtOnce(MemoryStore):
    def commit_at_once(self, worker: Worker, batch: Batch) -> Any:
        return self.commit(worker, batch)


class SaysDoneAtOnce(MemoryStore):
    def commit_at_once(self, worker: Worker, batch: Batch) -> Any:
        return True


class AsyncConnections(MemoryStore):
    async def connections(self) -> Any:  # type: ignore[override]
        return None


class ConnectionsAsAProperty(MemoryStore):
    connections: Any = property(lambda _self: None)


class CountsConnections(MemoryStore):
    def connections(self) -> Any:
        return 3


class GivesUpByAMethod(MemoryStore):
    def gives_up_after(self) -> Any:  # type: ignore[override]
        return 3.0


class GivesUpByAText(MemoryStore):
    @property
    def gives_up_after(self) -> Any:
        return "3"


MISTAKES = [
    (SyncLocate, "SyncLocate.locate must be an async method; this one returned NoneType at once"),
    (SyncOpen, "SyncOpen.open must be an async method"),
    (BeginSaysNothing, "BeginSaysNothing.begin returned None; expected is Begun"),
    (NoCheckpoint, "NoCheckpoint.own_rows must be a checkpoint"),
    (OldSweep, "OldSweep.sweep(worker, session_ttl) must take what the contract passes, sweep("),
    (NeedsAStamp, "missing a required argument: 'stamp'"),
    (AsyncBell, "AsyncBell.open_bell must be no async method"),
    (BellWithoutWait, "BellWithoutWait.open_bell must give the block a Bell"),
    (ListOfHeld, "RowAnswers with held: list ['s']; expected is frozenset[str]"),
    (NumbersForRows, "returned list with tuple with int 1; expected is str"),
    (AnswersAsAList, "AnswersAsAList.commit returned list"),
    (AnswersTooFew, "answered Claim with []; expected is one answer: Claimed or Unfinished"),
    (OldDescribe, "OldDescribe.describe(session_id) must take"),
    (AsyncAtOnce, "AsyncAtOnce.commit_at_once must not be async"),
    (AwaitableAtOnce, "AwaitableAtOnce.commit_at_once must not be async"),
    (SaysDoneAtOnce, "SaysDoneAtOnce.commit_at_once returned bool True; expected is"),
    (AsyncConnections, "AsyncConnections.connections must not be async"),
    (ConnectionsAsAProperty, "ConnectionsAsAProperty.connections must be a method"),
    (CountsConnections, "CountsConnections.connections returned int 3; expected is"),
    (GivesUpByAMethod, "GivesUpByAMethod.gives_up_after must be a property"),
    (GivesUpByAText, "GivesUpByAText.gives_up_after is str '3'; expected is"),
]


@pytest.mark.parametrize(("mistaken", "message"), MISTAKES)
def test_the_first_check_names_the_method(mistaken: type[MemoryStore], message: str) -> None:
    """With what came and what was expected."""
    store = mistaken()
    with pytest.raises(AssertionError) as raised:
        run(lambda: store)
    assert message in str(raised.value)


# ---- make_store, and what is shared ----


async def make_later() -> SessionStore:
    return MemoryStore()


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("make_store", "message"),
    [
        (lambda: None, "make_store must return a SessionStore, not NoneType"),
        (lambda: MemoryStore, r"not the class itself: call it, MemoryStore\(\)"),
        (make_later, "make_store must return a SessionStore, and must not be async"),
        (MemoryStore(), "make_store must be a function .*, not MemoryStore"),
    ],
)
def test_what_makes_no_store_is_named(make_store: Any, message: str, index: int) -> None:
    """By whichever check."""
    with pytest.raises(TypeError, match=message) as raised:
        run(make_store, index)
    assert not hasattr(raised.value, "__notes__"), "it is no rule of the contract that is broken"


def test_stores_that_share_nothing_are_found_by_a_check_of_its_own() -> None:
    """The second one."""
    with pytest.raises(AssertionError, match="two workers see nothing of each other: make_store"):
        run(MemoryStore, 1)


def test_what_was_not_emptied_is_told_by_the_next_check() -> None:
    """And by none of the rules of the contract, which have nothing to do with it."""
    store = MemoryStore()
    run(lambda: store, 2)
    with pytest.raises(
        RuntimeError, match=f"what {row_conformance[2].__name__} has left is still"
    ) as raised:
        run(lambda: FaultyStore(store), 3)
    assert not hasattr(raised.value, "__notes__")


def test_a_store_that_is_in_doubt_is_not_empty() -> None:
    """An earlier check has said that it went back."""

    class InDoubt(MemoryStore):
        async def locate(self, worker: Worker, session_id: str) -> Any:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("in doubt")

    with pytest.raises(RuntimeError, match="must be empty when a check begins"):
        run(InDoubt, 2)
