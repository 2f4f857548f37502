"""What all inboxes of a worker share: which rows are too old, and only left for the sweep."""

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

from trio_sessions._counters import Counters
from trio_sessions._messages import _held
from trio_sessions._messages._held import Stage
from trio_sessions._messages._inbox import Inbox
from trio_sessions._messages._inboxes import Inboxes
from trio_sessions._settings import Settings
from trio_sessions.types import StoredMessage

FEW = 20
READER = "reader"


def make_inboxes() -> Inboxes:
    return Inboxes(Settings(), Counters())


def fetch(inbox: Inbox, *rows: int) -> None:
    """Have rows fetched by a reader, and nothing else be there."""
    inbox.open(READER, 0.0)
    asked = inbox.ask(1_000_000, 0.0)
    assert asked is not None
    inbox.answer(asked, [StoredMessage(id=row, payload="1", age=0.0) for row in rows], 0.0)


def expire_one(inbox: Inbox) -> None:
    """Take out the next row, and let it be too old."""
    assert inbox.take(READER, 0.0) is not None
    assert inbox.held.expire_in_hand(READER) == 0, "the sweep counts it"


def handed_out(inbox: Inbox) -> frozenset[int]:
    return inbox.held.rows(Stage.IN_HAND, Stage.OVERTAKEN, Stage.HANDLED)


def with_expired_rows(sessions: int) -> tuple[Inboxes, list[Inbox]]:
    """Return inboxes each of which has two rows that are left for the sweep."""
    inboxes = make_inboxes()
    all_of_them = [inboxes.of(f"s{number}") for number in range(sessions)]
    for number, inbox in enumerate(all_of_them):
        fetch(inbox, 2 * number, 2 * number + 1)
        expire_one(inbox)
        expire_one(inbox)
    return inboxes, all_of_them


def count_steps(work: Callable[[], None]) -> int:
    """Count the instructions of the interpreter in the file that is tested."""
    return (_monitored if sys.version_info >= (3, 12) else _traced)(work)


def _monitored(work: Callable[[], None]) -> int:
    """Count them by PEP 669: tracing tells of no single instruction any more."""
    steps = 0
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    tool = 4  # one that nobody has spoken for
    instruction = monitoring.events.INSTRUCTION

    def step(code: CodeType, _: int) -> None:
        nonlocal steps
        steps += code.co_filename == _held.__file__

    monitoring.use_tool_id(tool, "test_inboxes")
    monitoring.register_callback(tool, instruction, step)
    monitoring.set_events(tool, instruction)
    try:
        work()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return steps


def _traced(work: Callable[[], None]) -> int:
    steps = 0

    def step(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        nonlocal steps
        frame.f_trace_opcodes = frame.f_code.co_filename == _held.__file__
        steps += event == "opcode"
        return step

    before = sys.gettrace()
    sys.settrace(step)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps


def test_a_rewind_is_as_much_work_for_each_session_however_many_there_are() -> None:
    """Each claim tells it of one inbox, and nobody looks at the rows of all the others."""

    def work_for(sessions: int) -> int:
        _, all_of_them = with_expired_rows(sessions)

        def rewind() -> None:
            for inbox in all_of_them:
                inbox.forget_rows()

        return count_steps(rewind)

    few = work_for(FEW)
    assert few > FEW, "it was counted"
    assert work_for(10 * FEW) <= 11 * few


def test_what_is_left_for_the_sweep_is_in_nobodys_hand() -> None:
    """It is not acknowledged when its session leaves: the sweep deletes and counts it."""
    inboxes = make_inboxes()
    inbox, other = inboxes.of("s"), inboxes.of("other")
    fetch(inbox, 1, 2, 3)
    fetch(other, 4)
    expire_one(inbox)
    expire_one(other)
    assert inbox.take(READER, 0.0) is not None
    assert handed_out(inbox) == {2}
    assert handed_out(other) == set()


def test_after_a_rewind_the_ids_of_old_rows_say_nothing() -> None:
    """The database may give them to other messages; those of other sessions are not concerned."""
    inboxes = make_inboxes()
    inbox, other = inboxes.of("s"), inboxes.of("other")
    fetch(inbox, 1)
    fetch(other, 2)
    expire_one(inbox)
    expire_one(other)
    inbox.forget_rows()
    fetch(inbox, 1)
    assert inbox.take(READER, 0.0) is not None
    assert handed_out(inbox) == {1}
    assert handed_out(other) == set()


async def test_what_was_swept_is_forgotten() -> None:
    """Nobody holds it any longer, for it is not there; what comes with its id is as any other."""
    inboxes = make_inboxes()
    inbox = inboxes.of("s")
    fetch(inbox, 1)
    expire_one(inbox)
    await inboxes.after_pass(swept=True)
    assert len(inbox.held) == 0
    inbox.expect_more()
    asked = inbox.ask(1_000_000, 0.0)
    assert asked is not None
    inbox.answer(asked, [StoredMessage(id=1, payload="2", age=0.0)], 0.0)
    assert inbox.take(READER, 0.0) is not None
    assert handed_out(inbox) == {1}


async def test_an_inbox_that_has_ended_leaves_nothing_for_the_next_one() -> None:
    """The next session of its id reads the row as its own."""
    inboxes = make_inboxes()
    fetch(inboxes.of("s"), 1)
    expire_one(inboxes.of("s"))
    inboxes.end("s")
    following = inboxes.of("s")
    fetch(following, 1)
    assert following.take(READER, 0.0) is not None
    assert handed_out(following) == {1}
    await inboxes.after_pass(swept=True)
    assert following.held.rows(Stage.IN_HAND) == {1}


async def test_an_inbox_that_has_ended_is_not_kept_until_the_next_sweep() -> None:
    """There may be none for as long as the database is away."""
    inboxes, ended = with_expired_rows(1)
    inboxes.end("s0")
    while_it_waits = sys.getrefcount(ended[0])
    await inboxes.after_pass(swept=True)
    afterwards = sys.getrefcount(ended[0])
    assert while_it_waits == afterwards
