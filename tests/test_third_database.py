"""A further database is one folder, found by the name of SQLAlchemy's dialect; no edit elsewhere.

The one here speaks as SQLite does, under a name of its own.
"""

import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import registry as dialects
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from trio_sessions import open_registry
from trio_sessions.abc import SessionStore
from trio_sessions.cli._doctor._examine import examine
from trio_sessions.cli._doctor._findings import Case, Level
from trio_sessions.stores import database
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._database import known
from trio_sessions.stores.database._schema import tables
from trio_sessions.testing import FakeTransport, store_conformance

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]

_FOLDER = '''
"""A database of which nothing else in the package has heard."""

from dataclasses import replace

from trio_sessions.stores.database.sqlite import DATABASE as LIKE

DATABASE = replace(LIKE, name="thirdbase")
'''
_PREFIX = "third_"  # of its own: tables that were made before know nothing of the folder


class Dialect(SQLiteDialect_pysqlite):
    """SQLAlchemy's part of it."""

    name = "thirdbase"
    supports_statement_cache = True


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Add the folder, as somebody would who writes one; return where a database of it is."""
    folder = tmp_path / "folders" / "thirdbase"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(_FOLDER)
    monkeypatch.setattr(database, "__path__", [*database.__path__, str(folder.parent)])
    dialects.register("thirdbase", __name__, "Dialect")
    dialects.register("thirdbase.pysqlite", __name__, "Dialect")
    known.cache_clear()
    yield f"thirdbase:///{tmp_path / 'sessions.db'}"
    known.cache_clear()
    sys.modules.pop(f"{database.__name__}.thirdbase", None)
    dialects.impls.pop("thirdbase", None)
    dialects.impls.pop("thirdbase.pysqlite", None)


@pytest.mark.parametrize("check", store_conformance[::8], ids=lambda check: check.__name__)
async def test_a_folder_makes_a_store_that_keeps_the_contract(url: str, check: Check) -> None:
    await check(lambda: DatabaseStore(url, table_prefix=_PREFIX))


async def test_a_registry_has_its_sessions_there(url: str) -> None:
    stores = [DatabaseStore(url, table_prefix=_PREFIX) for _ in range(2)]
    async with open_registry(stores[0]) as red, open_registry(stores[1]) as blue:
        await red.add_session("s", FakeTransport(), owner="alice")
        assert await blue.locate_session("s") == red.worker_id
        assert await blue.get_session_owner("s") == "alice"
        report = await red.cleanup()
        assert (report.refreshed, report.missing) == (1, ())
    engine = sa.create_engine(url)
    found = sa.inspect(engine).get_table_names()
    engine.dispose()
    assert "third_sessions" in found


async def test_what_is_supported_is_told_with_it(url: str) -> None:
    with pytest.raises(ValueError, match=r"'thirdbase\+pysqlite'"):
        DatabaseStore("mysql://localhost/name")


async def test_the_doctor_says_that_it_does_not_know_it(url: str) -> None:
    """What it looks at is each database's own."""
    [finding] = await examine(Case(url=sa.make_url(url), tables=tables(_PREFIX)))
    assert (finding.check, finding.level) == ("connection", Level.WARN)
    assert "knows nothing of thirdbase" in finding.says
    assert finding.todo == "it knows postgresql and sqlite"


def test_without_its_folder_it_is_unknown() -> None:
    with pytest.raises(ValueError, match="URL scheme 'thirdbase'"):
        DatabaseStore("thirdbase:///sessions.db")
