"""`trio-sessions workers`, `list` and `show`, on databases in use."""

import contextlib
import json
import re
import sqlite3
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result
from conftest import Shared
from fleets import in_thread
from test_cli import clean_environment

from trio_sessions import SessionRegistry, fingerprint, open_registry
from trio_sessions.cli._main import commands, guarded
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

SECRET = "a-session-id-that-is-a-credential"


def run(*arguments: str, url: sa.URL | str, width: int = 120) -> Result:
    text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
    environment = {**clean_environment(), "TRIO_SESSIONS_DATABASE_URL": text, "COLUMNS": str(width)}
    return CliRunner().invoke(commands, list(arguments), env=environment)


def url_of(database: Shared) -> sa.URL:
    store = database.make_store()
    assert isinstance(store, DatabaseStore)
    return store._url


async def fill(registry: SessionRegistry) -> None:
    for session_id in (SECRET, "b", "c"):
        await registry.add_session(session_id, FakeTransport())
    await registry.set_session_owner("b", "alice [bold]\x1b[31m")
    await registry.broadcast("c", "hello", durable=True)


async def test_workers_are_listed(database: Shared) -> None:
    async with database.open(worker_data={"port": 8000}) as a, database.open() as b:
        await fill(a)
        plain = await in_thread(lambda: run("workers", url=url_of(database)))
        assert plain.exit_code == 0
        assert a.worker_id in plain.stdout
        assert b.worker_id in plain.stdout
        assert re.search(r"alive +3 ", plain.stdout)
        assert plain.stdout.endswith("2 workers\n")
        told = json.loads(
            (await in_thread(lambda: run("workers", "--json", url=url_of(database)))).stdout
        )
        assert [one["worker_id"] for one in told] == [a.worker_id, b.worker_id]
        assert (told[0]["state"], told[0]["sessions"], told[0]["data"]) == (
            "alive",
            3,
            {"port": 8000},
        )
    empty = await in_thread(lambda: run("workers", url=url_of(database)))
    assert empty.stdout.endswith("0 workers\n")


async def test_sessions_are_listed_by_fingerprint(database: Shared) -> None:
    """An id is shown only to who asks for it; nothing in a name is obeyed by the terminal."""
    async with database.open() as a:
        await fill(a)
        listed = await in_thread(lambda: run("list", url=url_of(database)))
        assert listed.exit_code == 0
        assert listed.stdout.endswith("3 sessions\n")
        assert fingerprint(SECRET) in listed.stdout
        assert SECRET not in listed.stdout
        assert "alice [bold]" in listed.stdout
        assert "\x1b" not in listed.stdout
        full = await in_thread(lambda: run("list", "--full-ids", url=url_of(database)))
        assert SECRET in full.stdout
        one = await in_thread(lambda: run("list", "--limit", "1", url=url_of(database)))
        assert one.stdout.endswith("1 session, there may be more: see --limit and --after\n")
        page = await in_thread(
            lambda: run("list", "--after", "b", "--json", "--full-ids", url=url_of(database))
        )
        [told] = json.loads(page.stdout)
        assert (told["session_id"], told["waiting"], told["worker_alive"]) == ("c", 1, True)
        assert told["created"].endswith("+00:00")
        mine = await in_thread(
            lambda: run("list", "--worker-id", "nobody", "--json", url=url_of(database))
        )
        assert json.loads(mine.stdout) == []


@pytest.mark.parametrize("width", [60, 120])
async def test_a_narrow_terminal_is_enough(sqlite: Shared, width: int) -> None:
    """No line is longer, and nothing is cut off."""
    async with sqlite.open(worker_id="a-worker-with-a-rather-long-name-of-its-own") as a:
        await fill(a)
        for arguments in (["workers"], ["list"], ["list", "--full-ids"]):
            found = await in_thread(partial(run, *arguments, url=url_of(sqlite), width=width))
            assert max(map(len, found.stdout.splitlines())) <= width
            assert "…" not in found.stdout


@pytest.mark.parametrize("width", [60, 120])
async def test_only_names_are_folded(sqlite: Shared, width: int) -> None:
    """However long they are, what is short stands in one piece on the line of its session."""
    owner = "somebody-with-a-rather-long-name@an-organisation.example.org"
    async with sqlite.open(worker_id="a-worker-with-a-rather-long-name-of-its-own") as a:
        await a.add_session("s", FakeTransport(), owner=owner)
        found = await in_thread(partial(run, "list", url=url_of(sqlite), width=width))
    head, first, *_ = found.stdout.splitlines()
    assert head.split()[:6] == ["session", "worker", "state", "owner", "age", "waiting"]
    assert (head.split()[-1] == "refreshed") is (width >= 80)
    assert re.match(rf"{fingerprint('s')} .* alive .* [\d.]+ (ms|s) +0\b", first)


@pytest.mark.parametrize("width", [60, 120])
async def test_revoke_and_doctor_fit_too(sqlite: Shared, width: int) -> None:
    async with sqlite.open(worker_id="a-worker-with-a-rather-long-name-of-its-own") as a:
        await fill(a)
        for arguments in (["revoke", "--owner", "nobody", "--dry-run"], ["doctor"]):
            found = await in_thread(partial(run, *arguments, url=url_of(sqlite), width=width))
            assert found.exit_code == 0, found.output
            assert max(map(len, found.stdout.splitlines())) <= width
            assert "…" not in found.stdout


async def test_one_session_is_shown(database: Shared) -> None:
    async with database.open() as a:
        await fill(a)
        shown = await in_thread(lambda: run("show", SECRET, url=url_of(database)))
        assert shown.exit_code == 0
        assert SECRET not in shown.stdout
        assert re.search(rf"^session +{fingerprint(SECRET)}$", shown.stdout, re.MULTILINE)
        assert re.search(rf"^worker +{a.worker_id}$", shown.stdout, re.MULTILINE)
        assert re.search(r"^owner +nobody$", shown.stdout, re.MULTILINE)
        told = json.loads(
            (await in_thread(lambda: run("show", "c", "--json", url=url_of(database)))).stdout
        )
        assert (told["session"], told["waiting"]) == (fingerprint("c"), 1)
        nobody = await in_thread(lambda: run("show", "nobody", url=url_of(database)))
        assert nobody.exit_code == 1
        assert "no worker holds" in nobody.output


async def test_looking_leaves_no_trace(database: Shared) -> None:
    """No worker, no row, no table: whoever looks is none of the workers."""
    async with database.open() as a:
        await fill(a)
        before = database.backdoor.workers()
        for arguments in (["workers"], ["list"], ["show", "c"]):
            assert (await in_thread(partial(run, *arguments, url=url_of(database)))).exit_code == 0
        assert database.backdoor.workers().keys() == before.keys()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["list", "--limit", "0"], 2, "limit must be from 1"),
        (["list", "--older-than", "-1"], 2, "older_than must be"),
        (["list", "--older-than", "soon"], 2, "not a valid float"),
        (["list", "--owner", ""], 2, "owner must have"),
        (["show"], 2, "Missing argument"),
        (["show", "x" * 256], 2, "256"),
        (["workers", "--table-prefix", "1;"], 2, "table_prefix"),
        (["workers", "--database-url", "mysql://host/db"], 2, "mysql"),
    ],
)
def test_a_user_s_mistake_is_told(
    arguments: list[str], exit_code: int, says: str, tmp_path: Path
) -> None:
    found = run(*arguments, url=f"sqlite:///{tmp_path / 'sessions.db'}")
    assert found.exit_code == exit_code
    assert says in found.output
    assert not list(tmp_path.iterdir()), "it has made a file"


@pytest.mark.parametrize("command", ["workers", "list", "sweep"])
def test_memory_is_told_to_be_nobody_elses(command: str) -> None:
    found = run(command, url="memory:")
    assert found.exit_code == 2
    assert "the database that workers share" in found.output


def test_a_database_without_our_tables_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another program's file stays as it is, to the byte."""
    path = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE theirs (id INTEGER)")
    before = path.read_bytes()
    assert complaint(f"sqlite:///{path}") == 1
    said = capsys.readouterr().err
    assert "--table-prefix" in said
    assert said.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["typo.db", "nowhere/sessions.db"])
def test_a_mistyped_file_is_told_and_not_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert complaint(f"sqlite:///{tmp_path / name}") == 1
    assert f"there is no file {tmp_path / name}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def complaint(url: str) -> int:
    """Return the exit code, as a shell gets it."""
    arguments = ["list", "--database-url", url]
    return guarded(lambda: commands.main(arguments, standalone_mode=False))


@pytest.mark.parametrize("name", ["sessions.db", "50% of #1.db"])
async def test_a_file_that_nobody_has_open_is_left_alone(name: str, tmp_path: Path) -> None:
    """SQLite would make a log and an index beside it, and leave them there."""
    url = sa.URL.create("sqlite", database=str(tmp_path / name))
    async with open_registry(url):
        pass
    before = [(one.name, one.read_bytes()) for one in files_in(tmp_path)]
    for arguments in (["workers"], ["list"], ["sweep", "--dry-run"]):
        found = await in_thread(partial(run, *arguments, url=url))
        assert found.exit_code == 0, found.output
    assert [(one.name, one.read_bytes()) for one in files_in(tmp_path)] == before


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())
