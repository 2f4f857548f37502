"""The schema over time: versions are noted, and older ones are upgraded if that is said.

Just over 400 lines: all of them need the databases of earlier versions.
"""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
import trio
from openings import open_at_once
from servers import make_role
from test_database_schema import OURS, Database, create_old_tables, open_and_add
from test_postgresql_sessions import schema
from workers_before import WorkerOfVersion0

from trio_sessions import StoreSchemaError, WorkerState, aio, open_registry
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.stores.database._script import schema_script
from trio_sessions.stores.database._versions import NEEDS, STEPS, VERSION
from trio_sessions.testing import FakeTransport

KEPT = Path(__file__).parent / "schemas"
"""The schema of each version, as `trio-sessions init-db --sql` has printed it then."""


class Older(Database):
    """A database whose tables are those of an earlier version."""

    def make(self, version: int | str) -> None:
        if version == "first":
            create_old_tables(self)
            return
        text = (KEPT / f"{self.name}-{version}.sql").read_text("utf-8")
        self.execute(*(one for one in text.split(";\n") if one.strip()))

    def noted(self) -> list[tuple[int, int]]:
        with self.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version, needs FROM trio_schema")
            return sorted((row.version, row.needs) for row in found)


@pytest.fixture(params=["sqlite", "postgresql"])
def older(request: pytest.FixtureRequest) -> Iterator[Older]:
    fixture = "sqlite_url" if request.param == "sqlite" else "empty_schema"
    older = Older(request.param, request.getfixturevalue(fixture))
    yield older
    older.engine.dispose()


EARLIER = ["first", *range(VERSION)]


async def refusal(store: DatabaseStore) -> str:
    with pytest.raises(StoreSchemaError) as caught:
        await open_and_add(store)
    return str(caught.value)


# ---- what the next version relies on ----


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_the_schema_of_this_version_is_kept(name: str) -> None:
    """If it is another: is there a new `Step`? Then keep the script under its number."""
    kept = (KEPT / f"{name}-{VERSION}.sql").read_text("utf-8")
    url = {"sqlite": "sqlite:///x.db", "postgresql": "postgresql+psycopg://"}[name]
    script = "\n\n".join(schema_script(url, table_prefix="trio_")) + "\n"
    if sa.__version__.startswith("2.0."):  # it adds parentheses of its own
        kept, script = (re.sub("[()]", "", one) for one in (kept, script))
    assert kept == script


def test_each_step_names_what_the_tables_have() -> None:
    """And the steps are numbered without a gap."""
    assert [step.version for step in STEPS] == list(range(1, VERSION + 1))
    tables = metadata("").tables
    indexes = {index.name for table in tables.values() for index in table.indexes}
    for step in STEPS:
        assert step.summary
        assert tables.keys() >= set(step.tables)
        assert indexes >= {f"ix_{name}" for name in step.indexes}
        for name in step.columns:
            table, column = name.split(".")
            added = tables[table].columns[column]
            assert added.nullable or added.server_default is not None


# ---- an older schema ----


@pytest.mark.parametrize("version", EARLIER)
async def test_an_older_schema_is_refused(older: Older, version: int | str) -> None:
    """The error names what is lacking and the command that helps; nothing is altered."""
    older.make(version)
    before = older.tables()
    said = await refusal(DatabaseStore(older.url))
    assert "table trio_mail" in said
    assert "trio-sessions init-db --database-url" in said
    assert "migrate=True" in said
    is_counted = version not in {"first", 0}
    assert (f"has version {version}," if is_counted else "was made before versions were") in said
    assert older.tables() == before


async def test_the_error_shows_no_password(empty_schema: sa.URL) -> None:
    """And its command has the prefix, if that is another one."""
    older = Older("postgresql", empty_schema)
    prefixed = (KEPT / "postgresql-0.sql").read_text("utf-8").replace("trio_", "app_")
    older.execute(*(one for one in prefixed.split(";\n") if one.strip()))
    with make_role(empty_schema) as url:
        older.execute(
            f"GRANT USAGE, CREATE ON SCHEMA {schema(url)} TO {url.username}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA {schema(url)} TO {url.username}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema(url)} TO {url.username}",
        )
        said = await refusal(DatabaseStore(url.set(password="geheim"), table_prefix="app_"))
    assert "geheim" not in said
    assert "--table-prefix app_" in said


async def test_the_command_of_the_error_has_the_prefix(sqlite_url: sa.URL) -> None:
    """Else it would make other tables."""
    said = await refusal(DatabaseStore(sqlite_url, table_prefix="app_", create_tables=False))
    assert "init-db --database-url" in said
    assert "--table-prefix app_" in said


@pytest.mark.parametrize(
    ("version", "by"),
    [
        *((version, "store") for version in EARLIER),
        (VERSION - 1, "registry"),
        (VERSION - 1, "aio"),
    ],
)
async def test_an_older_schema_is_upgraded_if_that_is_said(
    older: Older, version: int | str, by: str
) -> None:
    """It is then what a new one would be, and says so; the next opening finds nothing to do."""
    older.make(version)
    if by == "store":
        await open_and_add(DatabaseStore(older.url, migrate=True))
    elif by == "registry":
        async with open_registry(older.url, migrate=True) as registry:
            await registry.add_session("s", FakeTransport())
    else:
        await trio.to_thread.run_sync(asyncio.run, upgrade_on_asyncio(older.url))
    assert older.noted()[-1] == (VERSION, NEEDS)
    upgraded = older.tables()
    await open_and_add(DatabaseStore(older.url, migrate=True))
    await open_and_add(DatabaseStore(older.url))
    assert older.noted()[-1] == (VERSION, NEEDS)
    metadata().drop_all(older.engine)
    metadata().create_all(older.engine)
    assert older.tables() == upgraded


async def upgrade_on_asyncio(url: sa.URL) -> None:
    async with aio.SessionRegistry(url, migrate=True) as registry:
        assert await registry.get_all_session_ids() == []


def test_workers_that_upgrade_at_once(older: Older) -> None:
    """Eight threads, each with a Trio run and a store of its own, as processes have."""
    older.make(VERSION - 1)
    assert open_at_once(older.url, migrate=True) == []
    assert older.tables().keys() == OURS
    assert older.noted()[-1] == (VERSION, NEEDS)


async def test_an_upgrade_keeps_what_the_tables_hold(older: Older) -> None:
    """Rows, also those of sessions whose worker goes on."""
    older.make(VERSION - 1)
    older.execute("INSERT INTO trio_sessions (session_id, worker_id) VALUES ('s', 'w')")
    async with open_registry(older.url, migrate=True) as registry:
        assert await registry.locate_session("s") == "w"


async def test_workers_of_two_versions_on_one_database(older: Older) -> None:
    """The older one is at work while the schema is upgraded, and goes on; nobody is lost."""
    older.make(0)
    old = WorkerOfVersion0(older.engine)
    old.begin()
    for name in ("a", "b", "moves"):
        old.claim(name)
    async with open_registry(older.url, migrate=True) as new:
        assert older.noted()[-1] == (VERSION, NEEDS)
        transports = {name: FakeTransport() for name in ("moves", "n", "leaves")}
        for name, transport in transports.items():
            await new.add_session(name, transport)
        assert old.pass_() == {"a", "b"}  # it sees that one was taken over
        assert (await new.cleanup()).refreshed == 3
        assert await new.locate_session("a") == old.worker_id
        found = {one.worker_id: (one.state, one.sessions) for one in await new.workers.list()}
        assert found[old.worker_id] == (WorkerState.ALIVE, 2)

        old.claim("leaves")
        report = await new.cleanup()
        assert (report.taken_over, report.expired) == (("leaves",), 0)
        await new.broadcast("a", "from the new one")
        assert old.receive("a") == ['"from the new one"']
        old.send("n", '"from the old one"')
        async with new.open_inbox("n") as inbox:
            await new.broadcast("n", "wake up")
            assert await anext(inbox) == "from the old one"

        late = WorkerOfVersion0(older.engine)  # one of before that starts after the upgrade
        late.begin()
        late.claim("b")
        assert (await new.cleanup()).expired == 0
        assert (old.pass_(), late.pass_()) == ({"a", "leaves"}, {"b"})
        old.leave()
        assert await new.session_exists("a") is False
        assert await new.session_exists("b") is True
        assert [transports[name].disconnects for name in ("moves", "n")] == [0, 0]


async def test_what_a_dead_worker_of_the_version_before_has_left(older: Older) -> None:
    """It is swept by one of this version when its lease has run out, and not before."""
    older.make(0)
    old = WorkerOfVersion0(older.engine)
    old.begin()
    old.claim("a")
    async with open_registry(older.url, migrate=True) as new:
        assert (await new.cleanup()).expired == 0
        hours = "datetime('now', '-2 hours')"
        if older.name == "postgresql":
            hours = "now() - interval '2 h'"
        older.execute(
            f"UPDATE trio_sessions SET last_accessed = {hours}",
            f"UPDATE trio_workers SET stamped_at = {hours}, passed_at = {hours} "
            f"WHERE incarnation = '{old.incarnation}'",
            f"UPDATE trio_fleet SET unbroken_since = {hours}",
        )
        assert (await new.cleanup()).expired == 1
        assert await new.session_exists("a") is False


async def test_columns_that_a_later_version_adds_while_workers_run(older: Older) -> None:
    """No statement that the server has prepared, and none that names no columns, breaks by it."""
    async with open_registry(older.url) as a, open_registry(older.url) as b:
        for session_id in ("s", "t"):
            await a.add_session(session_id, FakeTransport())

        async def use_everything() -> None:
            for _ in range(2):
                report = await a.cleanup()
                assert (report.refreshed, report.refresh_failures) == (2, {})
                assert await b.locate_session("s") == a.worker_id
                assert len(await b.workers.list()) == len(await b.list_sessions()) == 2
                await b.set_session_owner("t", "alice")
                await b.add_session("x", FakeTransport())
                await a.broadcast("x", "hello", durable=True)
                async with b.open_inbox("x") as inbox:
                    assert await anext(inbox) == "hello"
                await b.remove_session("x")

        await use_everything()
        older.execute(*(f"ALTER TABLE {name} ADD COLUMN later VARCHAR(9)" for name in sorted(OURS)))
        await use_everything()
    await open_and_add(DatabaseStore(older.url))


# ---- versions that are noted ----


async def test_a_new_database_notes_its_version(older: Older) -> None:
    """Once, whoever opens it."""
    await open_and_add(DatabaseStore(older.url))
    await open_and_add(DatabaseStore(older.url, migrate=True))
    assert older.noted()[-1] == (VERSION, NEEDS)


async def test_a_later_schema_that_suits_older_workers(older: Older) -> None:
    """This one goes on beside workers of that version, and changes nothing."""
    await open_and_add(DatabaseStore(older.url))
    later = f"INSERT INTO trio_schema (version, needs) VALUES ({VERSION + 1}, {VERSION})"
    older.execute(later, "CREATE TABLE trio_later (x INTEGER)")
    for migrate in (False, True):
        await open_and_add(DatabaseStore(older.url, migrate=migrate))
    assert older.noted() == [(VERSION, NEEDS), (VERSION + 1, VERSION)]


@pytest.mark.parametrize("create_tables", [True, False])
async def test_a_later_schema_that_needs_later_workers(
    older: Older, *, create_tables: bool
) -> None:
    """It is refused, and says what to do."""
    await open_and_add(DatabaseStore(older.url))
    needs = VERSION + 1
    older.execute(f"INSERT INTO trio_schema (version, needs) VALUES ({needs}, {needs})")
    said = await refusal(DatabaseStore(older.url, create_tables=create_tables))
    assert f"has version {needs}" in said
    assert "install a later trio_sessions" in said


async def test_tables_of_this_version_that_are_missing(older: Older) -> None:
    """They are no older schema, and created as in a new one."""
    await open_and_add(DatabaseStore(older.url))
    older.execute("DROP TABLE trio_gone", "DROP INDEX ix_trio_sessions_owner")
    await open_and_add(DatabaseStore(older.url))
    assert older.tables().keys() == OURS
    assert "ix_trio_sessions_owner" in older.tables()["trio_sessions"][2]


async def test_a_column_that_is_missing_is_added_by_an_upgrade_only(older: Older) -> None:
    """Of tables that exist an opening alters nothing by itself."""
    await open_and_add(DatabaseStore(older.url))
    made = older.tables()
    older.execute("ALTER TABLE trio_workers DROP COLUMN draining")
    lacking = older.tables()
    assert "column trio_workers.draining" in await refusal(DatabaseStore(older.url))
    assert "lacks the column 'draining'" in await refusal(
        DatabaseStore(older.url, create_tables=False)
    )
    assert older.tables() == lacking
    await open_and_add(DatabaseStore(older.url, migrate=True))
    assert older.tables() == made


@pytest.mark.parametrize(
    "lost",
    ["DROP TABLE trio_mail", "ALTER TABLE trio_workers DROP COLUMN draining"],
    ids=["a table", "a column"],
)
async def test_what_is_lacking_where_no_version_is_noted(older: Older, lost: str) -> None:
    """One thing is enough: it is taken for an older schema, and nothing is altered unasked."""
    await open_and_add(DatabaseStore(older.url))
    older.execute("DELETE FROM trio_schema", lost)
    lacking = older.tables()
    assert "was made before versions were counted" in await refusal(DatabaseStore(older.url))
    assert older.tables() == lacking


@pytest.mark.parametrize(
    ("create_tables", "migrate"), [(True, False), (True, True), (False, False)]
)
async def test_an_opening_that_changes_nothing_tells_the_version(
    sqlite_url: sa.URL, *, create_tables: bool, migrate: bool
) -> None:
    """That is what `trio-sessions init-db` says of it."""
    await open_and_add(DatabaseStore(sqlite_url))
    again = DatabaseStore(sqlite_url, create_tables=create_tables, migrate=migrate)
    await open_and_add(again)
    assert again.changes.before == VERSION
    assert not again.changes.added


async def test_whoever_comes_second_to_an_upgrade_tells_its_version(
    sqlite_url: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for the lock somebody else creates the tables."""
    store = DatabaseStore(sqlite_url)
    creation = store._preparation._operations.creation

    def late(connection: sa.Connection) -> AbstractContextManager[None]:
        Older("sqlite", sqlite_url).make(VERSION)
        return creation(connection)

    late_operations = replace(store._preparation._operations, creation=late)
    monkeypatch.setattr(store._preparation, "_operations", late_operations)
    await open_and_add(store)
    assert store.changes.before == VERSION
    assert not store.changes.added


async def test_a_version_that_was_lost(older: Older) -> None:
    """Who empties all tables empties this one, too: nothing is lacking, so it opens."""
    await open_and_add(DatabaseStore(older.url))
    older.execute("DELETE FROM trio_schema")
    await open_and_add(DatabaseStore(older.url))
    assert older.noted() == []
    await open_and_add(DatabaseStore(older.url, migrate=True))
    assert older.noted()[-1] == (VERSION, NEEDS)


def test_an_upgrade_of_tables_that_must_not_be_altered(sqlite_url: sa.URL) -> None:
    """One says that migrations of one's own do it, the other that the store does."""
    with pytest.raises(ValueError, match=r"migrate.*create_tables"):
        DatabaseStore(sqlite_url, create_tables=False, migrate=True)


async def test_a_registry_that_wants_to_upgrade_them(sqlite_url: sa.URL, tmp_path: Path) -> None:
    """The same, before anything is opened."""
    with pytest.raises(StoreSchemaError, match=r"migrate.*create_tables"):
        async with open_registry(DatabaseStore(sqlite_url, create_tables=False), migrate=True):
            raise AssertionError("it opened")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["create_tables", "migrate"])
def test_yes_and_no_are_words_of_their_own(name: str) -> None:
    """Text that is true, as from an environment, is no yes."""
    with pytest.raises(TypeError, match=name):
        DatabaseStore("sqlite:///never-made.db", **{name: "false"})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="migrate"):
        open_registry(migrate="false")  # type: ignore[arg-type]


async def test_stores_without_a_schema_have_nothing_to_migrate() -> None:
    """One setting suits a program that runs on memory in its tests."""
    async with open_registry("memory:", migrate=True) as registry:
        await registry.add_session("s", FakeTransport())


# ---- how tables are stored ----


async def test_rows_that_are_updated_have_room_in_their_page(empty_schema: sa.URL) -> None:
    """For HOT updates, also of tables that an upgrade has added; SQLAlchemy 2.0 cannot say it."""
    older = Older("postgresql", empty_schema)
    await open_and_add(DatabaseStore(older.url))
    with older.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL "
            "AND relnamespace = CAST(current_schema() AS regnamespace)"
        )
        stored = {row.relname: row.reloptions for row in found}
    assert stored == {"trio_sessions": ["fillfactor=70"], "trio_workers": ["fillfactor=10"]}


async def test_letters_wait_for_no_disk(empty_schema: sa.URL) -> None:
    """A commit that has changed nothing but a table that is not logged is not synced."""
    older = Older("postgresql", empty_schema)
    await open_and_add(DatabaseStore(older.url))
    with older.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind IN ('r', 'S') "
            "AND relnamespace = CAST(current_schema() AS regnamespace) ORDER BY relname"
        )
        assert list(found.scalars()) == ["trio_mail", "trio_mail_id_seq"]
