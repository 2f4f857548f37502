"""`trio-sessions init-db`: it creates or upgrades the tables, and says what it has done."""

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from fleets import in_thread
from test_cli import clean_environment, complaint, quick_command
from test_database_schema import OURS, open_and_add
from test_schema_versions import Older

from trio_sessions.cli import main
from trio_sessions.cli._main import commands
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._versions import VERSION


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest) -> Iterator[Older]:
    fixture = "sqlite_url" if request.param == "sqlite" else "empty_schema"
    empty = Older(request.param, request.getfixturevalue(fixture))
    yield empty
    empty.engine.dispose()


def init_db(url: sa.URL, *arguments: str) -> Result:
    text = url.render_as_string(hide_password=False)
    environment = {**clean_environment(), "TRIO_SESSIONS_DATABASE_URL": text}
    return CliRunner().invoke(commands, ["init-db", *arguments], env=environment)


async def test_it_creates_the_tables_once(empty: Older) -> None:
    """Then it says that there is nothing to do, and a worker needs to create nothing."""
    first = await in_thread(lambda: init_db(empty.url))
    assert first.exit_code == 0, first.output
    assert first.output.startswith(f"created schema version {VERSION} in {empty.name}")
    assert {f"  added table {name}" for name in OURS} == set(first.output.splitlines()[1:])
    made = empty.tables()
    assert made.keys() == OURS
    second = await in_thread(lambda: init_db(empty.url))
    assert second.exit_code == 0
    assert second.output.startswith("nothing to do: ")
    assert second.output.endswith(f" has schema version {VERSION}\n")
    await open_and_add(DatabaseStore(empty.url, create_tables=False))
    assert empty.tables() == made


async def test_it_upgrades_an_older_schema(empty: Older) -> None:
    """It names each thing that it has added."""
    empty.make("first")
    done = await in_thread(lambda: init_db(empty.url))
    assert done.exit_code == 0, done.output
    assert f"where no version was noted, to schema version {VERSION}:" in done.output
    for added in (
        "table trio_workers",
        "column trio_fleet.doubtful_until",
        "index ix_trio_sessions_incarnation",
    ):
        assert f"  added {added}\n" in done.output
    await open_and_add(DatabaseStore(empty.url))


async def test_it_says_from_which_version(empty: Older) -> None:
    """A step that adds nothing but its number is one, too."""
    await in_thread(lambda: init_db(empty.url))
    empty.execute("UPDATE trio_schema SET version = 0")
    done = await in_thread(lambda: init_db(empty.url))
    assert f"from schema version 0 to {VERSION}:\n  added nothing but the note" in done.output
    empty.execute("DROP INDEX ix_trio_sessions_owner")
    done = await in_thread(lambda: init_db(empty.url))
    assert done.output.startswith("repaired ")
    assert "  added index ix_trio_sessions_owner\n" in done.output


async def test_it_takes_a_prefix(empty: Older) -> None:
    """That of the store."""
    done = await in_thread(lambda: init_db(empty.url, "--table-prefix", "app_"))
    assert done.exit_code == 0, done.output
    assert "  added table app_sessions\n" in done.output
    await open_and_add(DatabaseStore(empty.url, table_prefix="app_", create_tables=False))


async def test_it_prints_the_statements(empty: Older) -> None:
    """They make what the store would make; nothing is connected to."""
    elsewhere = empty.url.set(database="/no-folder/x" if empty.name == "sqlite" else "no-database")
    done = init_db(elsewhere, "--sql")
    assert done.exit_code == 0, done.output
    assert "%%" not in done.output
    empty.execute(*(one for one in done.output.split(";\n") if one.strip()))
    printed = empty.tables()
    await open_and_add(DatabaseStore(empty.url, create_tables=False))
    empty.execute(*(f"DROP TABLE {name}" for name in sorted(OURS - {"trio_sessions"})))
    empty.execute("DROP TABLE trio_sessions")
    await in_thread(lambda: init_db(empty.url))
    assert empty.tables() == printed


# ---- mistakes ----


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (("--database-url", "nonsense"), 2, "cannot be read as a database URL"),
        (("--database-url", "memory:"), 2, "memory has no tables"),
        (("--database-url", "sqlite://"), 2, "in-memory"),
        (("--database-url", "mysql://h/d", "--sql"), 2, "'mysql'"),
        (("--database-url", "sqlite:///x.db", "--table-prefix", "Ä"), 2, "table_prefix"),
        (("--database-url", "sqlite:////no-such-folder/x.db"), 1, "/no-such-folder"),
        ((), 2, "--database-url"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    exit_code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback, and an exit code that tells whose mistake it is."""
    monkeypatch.delenv("TRIO_SESSIONS_DATABASE_URL", raising=False)
    assert main(["init-db", *arguments]) == exit_code
    line = capsys.readouterr().err
    assert re.fullmatch(r"trio-sessions: .*\n", line)
    assert said in line


async def test_tables_that_are_not_ours(empty: Older) -> None:
    """It alters nothing, and names the column."""
    empty.execute("CREATE TABLE trio_sessions (x INTEGER)")
    url = empty.url.render_as_string(hide_password=False)
    said = complaint(await in_thread(lambda: quick_command("init-db", "--database-url", url)), 1)
    assert "'session_id'" in said
    assert empty.tables().keys() == {"trio_sessions"}


async def test_an_operator_on_an_older_schema_is_told_the_command(empty: Older) -> None:
    """Commands that only look create nothing."""
    empty.make(0)
    if empty.name == "sqlite":
        empty.execute("PRAGMA journal_mode = WAL")  # as a store has put it
    url = empty.url.render_as_string(hide_password=False)
    said = complaint(await in_thread(lambda: quick_command("workers", "--database-url", url)), 1)
    assert "init-db" in said
    assert "mode=ro" not in said
    assert "trio_schema" not in empty.tables()
