"""Tables: created once, checked before use, never altered."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from openings import open_at_once

from trio_sessions import StoreSchemaError, open_registry
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.testing import FakeTransport

OURS = {
    "trio_sessions",
    "trio_messages",
    "trio_fleet",
    "trio_workers",
    "trio_gone",
    "trio_revoked",
    "trio_schema",
    "trio_logs",
    "trio_mail",
    "trio_topics",
}


class Database:
    """A database whose tables a test makes and looks at."""

    def __init__(self, name: str, url: sa.URL) -> None:
        self.name = name
        self.url = url
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)

    def execute(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)

    def tables(self) -> dict[str, Any]:
        """Return what the database knows of its tables, to be compared."""
        inspector = sa.inspect(self.engine)
        return {
            name: (
                [
                    (c["name"], str(c["type"]), c["nullable"], str(c["default"]).strip("()"))
                    for c in columns  # SQLAlchemy 2.0 adds parentheses of its own
                ],
                inspector.get_pk_constraint(name)["constrained_columns"],
                sorted(str(index["name"]) for index in inspector.get_indexes(name)),
            )
            for name in inspector.get_table_names()
            for columns in [inspector.get_columns(name)]
        }


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    fixture = "sqlite_url" if request.param == "sqlite" else "empty_schema"
    database = Database(request.param, request.getfixturevalue(fixture))
    yield database
    database.engine.dispose()


async def open_and_add(store: DatabaseStore) -> None:
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        assert (await registry.cleanup()).refreshed == 1


# ---- creating ----


async def test_missing_tables_are_created_and_found_again(database: Database) -> None:
    """The second opening changes nothing."""
    first, second = DatabaseStore(database.url), DatabaseStore(database.url)
    await open_and_add(first)
    created = database.tables()
    assert created.keys() == OURS
    assert not first.changes.had_tables
    await open_and_add(second)
    assert database.tables() == created
    assert second.changes.had_tables


async def test_a_store_opens_in_a_few_round_trips(empty_schema: sa.URL) -> None:
    """All tables are looked at together; in front of a far server each statement costs."""
    asked: list[str] = []
    engine = sa.create_engine(empty_schema)
    async with open_registry(DatabaseStore(engine)):
        pass
    sa.event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    async with open_registry(DatabaseStore(engine)):
        pass
    engine.dispose()
    of_the_catalogue = [sql for sql in asked if "pg_catalog" in sql or "pg_class" in sql]
    # Session and rights; columns, and two of their types; keys; indexes.
    assert len(of_the_catalogue) == 6, of_the_catalogue
    assert len(asked) <= 10, asked


async def test_only_what_is_missing_is_created(database: Database) -> None:
    """A table of ours that is there already is used as it is."""
    metadata().tables["trio_sessions"].create(database.engine)
    await open_and_add(DatabaseStore(database.url))
    assert database.tables().keys() == OURS


async def test_tables_made_by_migrations_of_yours(database: Database) -> None:
    """`metadata` makes the same tables, which do for ``create_tables=False``."""
    metadata().create_all(database.engine)
    made = database.tables()
    await open_and_add(DatabaseStore(database.url, create_tables=False))
    assert database.tables() == made


async def test_missing_tables_that_may_not_be_created(database: Database) -> None:
    """The error names the table, and nothing is made."""
    with pytest.raises(StoreSchemaError, match=r"'trio_.*create_tables"):
        await open_and_add(DatabaseStore(database.url, create_tables=False))
    assert database.tables() == {}


async def test_a_prefix_keeps_registries_apart(database: Database) -> None:
    """Two prefixes are two worlds in one database."""
    async with (
        open_registry(DatabaseStore(database.url, table_prefix="a_")) as a,
        open_registry(DatabaseStore(database.url, table_prefix="")) as b,
    ):
        await a.add_session("s", FakeTransport())
        assert await b.locate_session("s") is None
        assert (await b.cleanup()).expired == 0
        assert await b.locate_session("s") is None
        assert await a.locate_session("s") == a.worker_id
    expected = {f"{prefix}{name}" for prefix in ("a_", "") for name in ("sessions", "messages")}
    assert expected < database.tables().keys()
    assert metadata("a_").tables.keys() == {name.replace("trio_", "a_") for name in OURS}


async def test_the_longest_prefix(database: Database) -> None:
    """Every name that is made of it is still short enough for PostgreSQL."""
    prefix = "p" * 38
    await open_and_add(DatabaseStore(database.url, table_prefix=prefix))
    assert f"{prefix}messages" in database.tables()


@pytest.mark.parametrize("prefix", ["A", "1a", "a-b", "a b", "a;", "ä", "a" * 39, 'a"', "a\n"])
def test_what_cannot_be_a_prefix(prefix: str) -> None:
    """It is refused by name, before anything is opened."""
    with pytest.raises(ValueError, match="table_prefix"):
        DatabaseStore("sqlite:///never-made.db", table_prefix=prefix)
    with pytest.raises(ValueError, match="table_prefix"):
        metadata(prefix)


def test_a_prefix_is_text() -> None:
    """Anything else is a TypeError."""
    with pytest.raises(TypeError, match="table_prefix"):
        metadata(None)  # type: ignore[arg-type]  # the mistake under test


@pytest.mark.parametrize("by_hand", [False, True])
def test_workers_that_start_at_once_create_the_tables_once(
    database: Database, *, by_hand: bool
) -> None:
    """Eight threads, each with a Trio run and a store of its own, as processes have."""
    if by_hand:
        metadata().create_all(database.engine)
    assert open_at_once(database.url) == []
    assert database.tables().keys() == OURS


# ---- tables of the version before ----


def create_old_tables(database: Database) -> None:
    """Create what 0.1 had: no workers, no doubt, no index on the incarnation."""
    is_sqlite = database.name == "sqlite"
    moment, number, session_id, now = (
        ("TIMESTAMP", "INTEGER", "VARCHAR(255)", "(strftime('%Y-%m-%d %H:%M:%f', 'now'))")
        if is_sqlite
        else ("TIMESTAMPTZ", "BIGSERIAL", 'VARCHAR(255) COLLATE "C"', "clock_timestamp()")
    )
    autoincrement, no = ("AUTOINCREMENT", "0") if is_sqlite else ("", "false")
    database.execute(
        f"""CREATE TABLE trio_sessions (session_id {session_id} NOT NULL PRIMARY KEY,
        worker_id VARCHAR(255) NOT NULL, incarnation VARCHAR(32) DEFAULT '' NOT NULL,
        generation BIGINT DEFAULT '0' NOT NULL, owner VARCHAR(320), capabilities TEXT,
        elicitation BOOLEAN DEFAULT {no} NOT NULL, created_at {moment} DEFAULT {now} NOT NULL,
        taken_at {moment} DEFAULT {now} NOT NULL, last_accessed {moment} DEFAULT {now} NOT NULL)""",
        "CREATE INDEX ix_trio_sessions_elicitation ON trio_sessions (session_id) WHERE elicitation",
        f"""CREATE TABLE trio_messages (id {number} NOT NULL PRIMARY KEY {autoincrement},
        session_id {session_id} NOT NULL REFERENCES trio_sessions (session_id) ON DELETE CASCADE,
        payload TEXT NOT NULL, created_at {moment} DEFAULT {now} NOT NULL)""",
        "CREATE INDEX ix_trio_messages_session_id_id ON trio_messages (session_id, id)",
        "CREATE INDEX ix_trio_messages_created_at ON trio_messages (created_at)",
        f"""CREATE TABLE trio_fleet (id INTEGER NOT NULL PRIMARY KEY,
        vouched_at {moment} NOT NULL, unbroken_since {moment})""",
    )


def write_as_before(database: Database) -> None:
    """Write what a worker of that version writes."""
    sqlite, postgresql = "strftime('%Y-%m-%d %H:%M:%f', 'now')", "clock_timestamp()"
    now = sqlite if database.name == "sqlite" else postgresql
    database.execute(
        f"""INSERT INTO trio_fleet (id, vouched_at, unbroken_since) VALUES (1, {now}, NULL)
        ON CONFLICT (id) DO UPDATE SET vouched_at = {now}""",
        f"""INSERT INTO trio_sessions (session_id, worker_id, incarnation, generation, owner,
        capabilities, elicitation, created_at, taken_at, last_accessed)
        VALUES ('old', 'old', 'old', 1, NULL, NULL, false, {now}, {now}, {now})
        ON CONFLICT (session_id) DO UPDATE SET last_accessed = {now}""",
        "INSERT INTO trio_messages (session_id, payload) VALUES ('old', '1')",
    )


async def test_tables_of_the_version_before_are_upgraded(database: Database) -> None:
    """They get what they lack, and keep what they have; a worker of that version may go on."""
    create_old_tables(database)
    write_as_before(database)
    async with open_registry(DatabaseStore(database.url, migrate=True)) as registry:
        assert await registry.locate_session("old") == "old"
        await registry.add_session("s", FakeTransport())
        write_as_before(database)
        assert (await registry.cleanup()).refreshed == 1
        assert await registry.locate_session("old") == "old"
        long_ago = (
            "datetime('now', '-2 hours')" if database.name == "sqlite" else "now() - interval '2 h'"
        )
        database.execute(
            f"UPDATE trio_sessions SET last_accessed = {long_ago} WHERE session_id = 'old'"
        )
        assert (await registry.cleanup()).expired == 1
    upgraded = database.tables()
    assert upgraded.keys() == OURS
    metadata().drop_all(database.engine)
    metadata().create_all(database.engine)
    assert database.tables() == upgraded


async def test_tables_of_the_version_before_that_must_not_be_altered(database: Database) -> None:
    """Opening says what is missing, and alters nothing."""
    create_old_tables(database)
    before = database.tables()
    with pytest.raises(StoreSchemaError, match=r"'trio_(fleet|workers|gone|revoked)'"):
        await open_and_add(DatabaseStore(database.url, create_tables=False))
    assert database.tables() == before


def test_workers_that_start_at_once_upgrade_the_tables_once(database: Database) -> None:
    """Eight threads, each with a Trio run and a store of its own, as processes have."""
    create_old_tables(database)
    write_as_before(database)
    assert open_at_once(database.url, migrate=True) == []
    assert database.tables().keys() == OURS


# ---- tables that are not ours ----


def columns_of(table: sa.Table, **changes: sa.Column[Any] | None) -> sa.Table:
    """Return a table of the same name whose columns differ."""
    made = sa.Table(table.name, sa.MetaData())
    for column in table.columns:
        new = changes.pop(column.name, column)
        if new is column:
            new = sa.Column(
                column.name,
                column.type,
                primary_key=column.primary_key,
                nullable=column.nullable,
                server_default=column.server_default,
            )
        if new is not None:
            made.append_column(new)
    for new in changes.values():
        if new is not None:
            made.append_column(new)
    return made


@pytest.mark.parametrize(
    ("table", "changes", "named"),
    [
        pytest.param("sessions", {"last_accessed": None}, "last_accessed", id="missing"),
        pytest.param("sessions", {"incarnation": None}, "incarnation", id="missing, and ours"),
        pytest.param("messages", {"payload": None}, "payload", id="missing message"),
        pytest.param("fleet", {"vouched_at": None}, "vouched_at", id="missing fleet"),
        pytest.param(
            "sessions",
            {"session_id": sa.Column("session_id", sa.Integer, primary_key=True)},
            "session_id",
            id="id of another type",
        ),
        pytest.param(
            "sessions",
            {"last_accessed": sa.Column("last_accessed", sa.Text, nullable=False)},
            "last_accessed",
            id="moment of another type",
        ),
        pytest.param(
            "sessions",
            {"session_id": sa.Column("session_id", sa.String(255), nullable=False)},
            "session_id",
            id="no primary key",
        ),
        pytest.param(
            "sessions",
            {"worker_id": sa.Column("worker_id", sa.String(255), primary_key=True)},
            "session_id",
            id="wider primary key",
        ),
        pytest.param(
            "sessions",
            {"tenant": sa.Column("tenant", sa.Text, nullable=False)},
            "tenant",
            id="another column that is required",
        ),
        pytest.param(
            "sessions",
            {"session_id": sa.Column("session_id", sa.String(36), primary_key=True)},
            "session_id",
            id="id too short",
        ),
    ],
)
async def test_a_table_of_our_name_that_is_not_ours(
    database: Database, table: str, changes: dict[str, sa.Column[Any] | None], named: str
) -> None:
    """The error names table and column; nothing is altered, and nothing created."""
    copies = {n: None if c is None else c._copy() for n, c in changes.items()}
    theirs = columns_of(metadata().tables[f"trio_{table}"], **copies)
    theirs.create(database.engine)
    before = database.tables()
    for create_tables in (True, False):
        with pytest.raises(StoreSchemaError) as caught:
            await open_and_add(DatabaseStore(database.url, create_tables=create_tables))
        assert f"'trio_{table}'" in str(caught.value)
        assert f"'{named}'" in str(caught.value)
    assert database.tables() == before


async def test_moments_without_a_time_zone(empty_schema: sa.URL) -> None:
    """PostgreSQL would compare them by the time zone of each worker's connection."""
    database = Database("postgresql", empty_schema)
    moment = sa.Column("last_accessed", sa.TIMESTAMP(timezone=False), nullable=False)
    columns_of(metadata().tables["trio_sessions"], last_accessed=moment).create(database.engine)
    with pytest.raises(StoreSchemaError, match=r"'last_accessed'.*time zone"):
        await open_and_add(DatabaseStore(database.url))


async def test_columns_of_yours_that_are_optional(database: Database) -> None:
    """Nullable ones, those with a default, and those that the database fills in are fine."""
    extra: dict[str, sa.Column[Any]] = {
        "note": sa.Column("note", sa.Text),
        "region": sa.Column("region", sa.Text, nullable=False, server_default="here"),
        "size": sa.Column(
            "size", sa.Integer, sa.Computed("length(session_id)", persisted=True), nullable=False
        ),
    }
    if database.name == "postgresql":
        extra["number"] = sa.Column("number", sa.BigInteger, sa.Identity(), nullable=False)
    columns_of(metadata().tables["trio_sessions"], **extra).create(database.engine)
    await open_and_add(DatabaseStore(database.url))


async def test_wider_columns_than_ours(database: Database) -> None:
    """TEXT where we would make VARCHAR is fine."""
    wider = {
        "session_id": sa.Column("session_id", sa.Text, primary_key=True),
        "worker_id": sa.Column("worker_id", sa.Text, nullable=False),
        "owner": sa.Column("owner", sa.String(1000)),
    }
    columns_of(metadata().tables["trio_sessions"], **wider).create(database.engine)
    await open_and_add(DatabaseStore(database.url))


async def test_rows_from_elsewhere_need_two_columns(database: Database) -> None:
    """A session id and a worker id are enough: such rows are found, swept and taken over."""
    async with open_registry(DatabaseStore(database.url)) as registry:
        for session_id in ("old", "young"):
            database.execute(
                "INSERT INTO trio_sessions (session_id, worker_id) "
                f"VALUES ('{session_id}', 'somebody')"
            )
        assert await registry.locate_session("young") == "somebody"
        long_ago = (
            "datetime('now', '-2 hours')" if database.name == "sqlite" else "now() - interval '2 h'"
        )
        database.execute(
            f"UPDATE trio_sessions SET last_accessed = {long_ago} WHERE session_id = 'old'"
        )
        assert (await registry.cleanup()).expired == 1
        assert await registry.locate_session("old") is None
        await registry.add_session("young", FakeTransport())
        assert (await registry.cleanup()).refreshed == 1
        assert await registry.locate_session("young") == registry.worker_id


async def test_a_table_in_a_schema_out_of_sight(empty_schema: sa.URL) -> None:
    """A table of our name elsewhere than on the search path is none of our business."""
    database = Database("postgresql", empty_schema)
    with database.engine.connect() as connection:
        other = f"{connection.exec_driver_sql('SELECT current_schema()').scalar_one()}_other"
    database.execute(f"CREATE SCHEMA {other}", f"CREATE TABLE {other}.trio_sessions (x int)")
    try:
        await open_and_add(DatabaseStore(database.url))
    finally:
        database.execute(f"DROP SCHEMA {other} CASCADE")


# ---- what is promised to migrations ----


def test_which_columns_may_be_empty_and_which_have_a_default() -> None:
    """Migrations are made from this: another nullability or default would be another schema."""
    columns = {
        f"{one.table.name}.{one.name}": one for t in metadata().sorted_tables for one in t.columns
    }
    assert {name for name, one in columns.items() if one.nullable} == {
        "trio_sessions.owner",
        "trio_sessions.capabilities",
        "trio_fleet.unbroken_since",
        "trio_sessions.data",
        "trio_fleet.doubtful_until",
        "trio_fleet.server",
    }
    assert {name for name, one in columns.items() if one.server_default is not None} == {
        "trio_sessions.incarnation",
        "trio_sessions.generation",
        "trio_sessions.elicitation",
        "trio_sessions.created_at",
        "trio_sessions.taken_at",
        "trio_sessions.last_accessed",
        "trio_messages.created_at",
        "trio_workers.started_at",
        "trio_workers.version",
        "trio_workers.data",
        "trio_workers.draining",
        "trio_gone.history",
        "trio_gone.gone_at",
        "trio_revoked.revoked_at",
        "trio_revoked.reason",
        "trio_schema.applied_at",
        "trio_logs.created_at",
        "trio_mail.created_at",
    }
    assert {name for name, one in columns.items() if one.primary_key} == {
        "trio_sessions.session_id",
        "trio_messages.id",
        "trio_fleet.id",
        "trio_workers.incarnation",
        "trio_gone.incarnation",
        "trio_revoked.session_id",
        "trio_schema.version",
        "trio_logs.id",
        "trio_mail.id",
        "trio_topics.topic",
        "trio_topics.incarnation",
    }


def test_how_long_a_text_may_be() -> None:
    """As long as what is checked at the door, and an incarnation's random word."""
    lengths = {
        f"{table.name}.{one.name}": one.type.length
        for table in metadata().sorted_tables
        for one in table.columns
        if isinstance(one.type, sa.String) and one.type.length is not None
    }
    assert {name: length for name, length in lengths.items() if "session_id" not in name} == {
        "trio_sessions.worker_id": 255,
        "trio_sessions.incarnation": 32,
        "trio_sessions.owner": 320,
        "trio_fleet.server": 255,
        "trio_workers.incarnation": 32,
        "trio_workers.worker_id": 255,
        "trio_workers.history": 32,
        "trio_workers.version": 64,
        "trio_gone.incarnation": 32,
        "trio_gone.history": 32,
        "trio_mail.incarnation": 32,
        "trio_topics.incarnation": 32,
        "trio_topics.topic": 255,
    }
