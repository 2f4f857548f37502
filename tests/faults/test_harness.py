"""The harness of the matrix sees what it is there for: harm that a fault has done."""

import functools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import in_thread
from servers import run_sql
from soak import longer
from unmeasured import unmeasured

from faults import matrix, test_matrix, world
from faults.matrix import FAULTS, Database, Fault, Memory, Played, assert_harmless, play
from faults.report import make_page
from faults.world import World, nothing, open_world

pytestmark = unmeasured

PAGE = Path(__file__).parents[2] / "docs" / "reliability" / "faults.md"
MARK = "UPDATE trio_sessions SET worker_id = 'another' WHERE session_id LIKE 'stays%'"


def declare(strike: Callable[[World], AsyncIterator[str]], memory: Memory = Memory.KEPT) -> Fault:
    """Declare a fault that stands in no list."""
    return Fault(
        name=strike.__name__,
        how="",
        database=Database.SQLITE,
        strike=asynccontextmanager(strike),
        arrange=nothing,
        options={},
        session_ttl=30.0,
        memory=memory,
    )


async def played(tmp_path: Path, fault: Fault) -> Played:
    url = sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")
    async with open_world(url, None, fault.session_ttl, fault.arrange, 1) as world:
        return await play(world, fault, 2)


async def nothing_at_all(world: World) -> AsyncIterator[str]:
    yield "it did not happen"


async def no_witness(world: World) -> AsyncIterator[str]:
    yield ""


async def rows_move(world: World) -> AsyncIterator[str]:
    """A mark is evidence: whoever moves rows by hand disconnects their sessions."""
    await in_thread(run_sql, world.url, MARK)
    yield "rows have another holder"


async def a_row_stays(world: World) -> AsyncIterator[str]:
    row = "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('nobody', 'another')"
    await in_thread(run_sql, world.url, row)
    yield "there is a row of nobody"


async def a_message_stays(world: World) -> AsyncIterator[str]:
    message = "INSERT INTO trio_messages (session_id, payload) VALUES ('nobody', '1')"
    await in_thread(run_sql, world.url, message)
    yield "there is a message to nobody"


async def a_worker_stays(world: World) -> AsyncIterator[str]:
    await in_thread(
        run_sql,
        world.url,
        "UPDATE trio_workers SET worker_id = 'nobody' WHERE worker_id ="
        f" '{world.registries[0].worker_id}'",
    )
    yield "there is a worker who is not there"


async def messages_go(world: World) -> AsyncIterator[str]:
    """One that was accepted, it is said, and is not there."""
    world.crowd.staying[0].accepted.append(0)
    yield "a message is gone"


async def somebody_is_told_no(world: World) -> AsyncIterator[str]:
    world.crowd.staying[0].denied += 1
    yield "a session does not exist, it was said"


async def an_owner_changes(world: World) -> AsyncIterator[str]:
    client = world.crowd.staying[0]
    client.owners, client.confirmed = ["nobody has written this"], 0
    yield "an owner was confirmed, it is said"


async def test_what_does_no_harm_is_found_to_do_none(tmp_path: Path) -> None:
    fault = declare(nothing_at_all)
    found = await played(tmp_path, fault)
    assert_harmless(fault, found)
    assert found.sessions > 2 * 30
    assert found.messages >= 4
    assert len(found.recoveries) == len(found.witnesses) == 2


async def test_a_fault_without_a_witness_fails(tmp_path: Path) -> None:
    not_witnessed = pytest.RaisesExc(AssertionError, match="not witnessed")
    with pytest.RaisesGroup(not_witnessed, flatten_subgroups=True):
        await played(tmp_path, declare(no_witness))


@pytest.mark.parametrize(
    ("strike", "says"),
    [
        (rows_move, "live sessions were disconnected"),
        (a_row_stays, "something was left over"),
        (messages_go, "messages that have not come"),
        (an_owner_changes, "nobody has written this"),
        pytest.param(a_message_stays, r"'messages': \[\('nobody',\)\]", marks=longer),
        pytest.param(a_worker_stays, "'workers': .*'nobody'", marks=longer),
        pytest.param(somebody_is_told_no, "told that it does not exist", marks=longer),
    ],
    ids=lambda one: getattr(one, "__name__", "seen"),
)
async def test_harm_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strike: matrix.Strike, says: str
) -> None:
    @functools.wraps(strike)
    async def impatient(stricken: World) -> AsyncIterator[str]:
        monkeypatch.setattr(world, "WITHIN", 3.0)  # it is never mended
        async for witness in strike(stricken):
            yield witness

    fault = declare(impatient)
    with pytest.raises(AssertionError, match=says):
        assert_harmless(fault, await played(tmp_path, fault))


async def test_a_database_that_should_have_forgotten_and_has_not(tmp_path: Path) -> None:
    fault = declare(nothing_at_all, Memory.LOST)
    with pytest.raises(AssertionError, match="nobody has noticed"):
        assert_harmless(fault, await played(tmp_path, fault))


# ---- the page ----

RECORD = {
    "fault": "It rains",
    "how": "With a can",
    "database": "SQLite",
    "version": "3.1",
    "python": "3.11",
    "witnesses": ["the ground was wet"],
    "injected": 3,
    "sessions": 120,
    "expired": 0,
    "lost": 0,
    "left_over": 0,
    "messages": 20,
    "messages_lost": 0,
    "median": 1.26,
    "worst": 2.0,
}


def test_the_page_has_what_was_recorded() -> None:
    skipped = {"fault": "It snows", "database": "SQLite", "skipped": "IT IS TOO WARM"}
    page = make_page([RECORD, {**RECORD, "fault": "It hails", "lost": 2}, skipped])
    assert "Python 3.11, SQLite 3.1: 2 kinds of fault, 6 injected, 240 live sessions" in page
    assert "**Lost: 2. Left over: 0.**" in page
    for cell in "* - It rains", "  - With a can", "  - the ground was wet", "  - 1.3; at worst 2.0":
        assert f"\n{cell}\n" in page
    assert "- It snows (SQLite): IT IS TOO WARM" in page


def test_the_page_in_the_docs_has_each_fault_of_the_matrix() -> None:
    """Whoever adds one runs `make reliability`."""
    assert test_matrix.CATALOGUE
    page = PAGE.read_text("utf-8")
    assert [fault.name for fault in FAULTS if f"\n* - {fault.name}\n" not in page] == []
    assert "**Lost: 0. Left over: 0.**" in page
