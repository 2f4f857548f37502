"""`trio-sessions sweep`: what it says would go goes, and nothing else."""

import json
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from conftest import Shared
from fleets import in_thread
from rich.console import Console
from test_cli_operators import run, url_of
from trio.testing import MockClock

from trio_sessions.cli._main import commands, guarded
from trio_sessions.cli._sweep import progress
from trio_sessions.testing import FakeTransport

AGE = 7200.0  # seconds, twice the workers' session_ttl


async def leave_rows(database: Shared) -> None:
    """A worker that died two hours ago has left two rows, one with a message."""
    database.backdoor.insert("d1", "dead", age=AGE)
    database.backdoor.insert("d2", "dead", age=AGE)
    database.backdoor.insert("young", "dead", age=AGE / 4)
    write = "INSERT INTO trio_messages (session_id, payload) VALUES ('d1', '1')"
    database.backdoor.execute(sa.text(write))  # type: ignore[attr-defined]


async def told_by(*arguments: str, database: Shared) -> Any:
    call = partial(run, "sweep", "--json", *arguments, url=url_of(database))
    return json.loads((await in_thread(call)).stdout)


async def test_a_dry_run_says_what_a_sweep_does(database: Shared) -> None:
    """The same rows and messages, to the number; a dry run writes nothing, and a second finds
    the same."""
    async with database.open() as a:
        await a.cleanup()  # the first pass would sweep them, too
        await a.add_session("a", FakeTransport())
        await leave_rows(database)
        database.backdoor.age(AGE, "a")  # its worker lives
        before = database.backdoor.rows(), database.backdoor.messages()
        for _ in range(2):
            told = await told_by("--dry-run", database=database)
            assert (told["dry_run"], told["sessions"], told["messages"]) == (True, 2, 1)
            assert [(one["worker_id"], one["sessions"]) for one in told["holders"]] == [("dead", 2)]
            assert (database.backdoor.rows(), database.backdoor.messages()) == before
        told = await told_by(database=database)
        assert (told["dry_run"], told["sessions"], told["messages"]) == (False, 2, 1)
        assert database.backdoor.rows() == {"a": a.worker_id, "young": "dead"}
        assert database.backdoor.messages() == []
        again = await in_thread(lambda: run("sweep", url=url_of(database)))
        assert again.stdout == "0 sessions and 0 messages deleted\n"


async def test_more_than_one_piece_is_swept(postgresql: Shared) -> None:
    fill = """INSERT INTO trio_sessions (session_id, worker_id, last_accessed)
        SELECT 'd' || n, 'dead', now() - interval '2 hours' FROM generate_series(1, 2500) AS n"""
    async with postgresql.open() as a:
        await a.cleanup()  # the first pass would sweep them, too
        postgresql.backdoor.execute(sa.text(fill))  # type: ignore[attr-defined]
        swept = await in_thread(lambda: run("sweep", url=url_of(postgresql)))
        assert swept.stdout.endswith("2500 sessions and 0 messages deleted\n")
        assert postgresql.backdoor.rows() == {}


async def test_old_messages_go_only_if_that_is_said(database: Shared) -> None:
    """Nobody but the workers knows their message_ttl."""
    async with database.open() as a:
        await a.add_session("a", FakeTransport())
        await a.cleanup()  # the first pass would sweep it, too
        await a.broadcast("a", "old", durable=True)
        database.backdoor.age_messages(3000.0)
        look = await in_thread(lambda: run("sweep", url=url_of(database)))
        assert look.stdout == "0 sessions and 0 messages deleted\n"
        ttl = ("--message-ttl", "600")
        look = await in_thread(lambda: run("sweep", "--dry-run", *ttl, url=url_of(database)))
        assert look.stdout == "0 sessions and 1 message would be deleted; nothing was\n"
        look = await in_thread(lambda: run("sweep", *ttl, url=url_of(database)))
        assert look.stdout == "0 sessions and 1 message deleted\n"
        assert database.backdoor.messages() == []


async def test_where_nobody_is_alive_nothing_is_deleted(
    database: Shared, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever swept would vouch in the place of workers that may only be cut off."""
    async with database.open():
        pass
    await leave_rows(database)
    fleet = sa.text("SELECT vouched_at FROM trio_fleet")
    before = database.backdoor.rows(), database.backdoor.execute(fleet)  # type: ignore[attr-defined]
    called = ["sweep", "--database-url", url_of(database).render_as_string(hide_password=False)]
    code = await in_thread(lambda: guarded(lambda: commands.main(called, standalone_mode=False)))
    assert code == 1
    assert "no worker is alive" in capsys.readouterr().err
    after = database.backdoor.rows(), database.backdoor.execute(fleet)  # type: ignore[attr-defined]
    assert after == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--message-ttl", "-1"], "message_ttl must be a positive"),
        (["--session-ttl", "nan"], "session_ttl must be a positive"),
        (["--table-prefix", "1;"], "table_prefix"),
    ],
)
def test_a_mistake_is_bad_usage(arguments: list[str], says: str, tmp_path: Path) -> None:
    found = run("sweep", *arguments, url=f"sqlite:///{tmp_path / 'none.db'}")
    assert found.exit_code == 2
    assert says in found.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seconds", "is_terminal", "is_shown"),
    [(2.0, True, True), (0.5, True, False), (9.0, False, False)],
)
async def test_a_bar_is_shown_for_what_takes_longer_than_a_second(
    seconds: float, autojump_clock: MockClock, *, is_terminal: bool, is_shown: bool
) -> None:
    """In a terminal only; a moment's work leaves it alone."""
    out = Console(file=StringIO(), force_terminal=is_terminal, width=60)
    async with progress(10, out) as advance:
        advance(1)
        await trio.sleep(seconds)
        advance(3)
    written = out.file
    assert isinstance(written, StringIO)
    assert ("4/10" in written.getvalue()) is is_shown
    assert bool(written.getvalue()) is is_shown
