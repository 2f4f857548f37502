"""`trio-sessions doctor`: each fault that is made is found, and no other; nothing is written."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from conftest import Shared
from looks import look, make_tables, only
from servers import _user, make_database, make_role, query, run_sql
from test_cli import clean_environment

from trio_sessions.cli._doctor._findings import Level, Listening, Thresholds
from trio_sessions.cli._main import commands, guarded
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._schema import tables
from trio_sessions.testing import FakeTransport


def url_of(shared: Shared) -> sa.URL:
    store = shared.make_store()
    assert isinstance(store, DatabaseStore)
    return store._url


# ---- where nothing is wrong ----


async def test_it_finds_nothing_where_nothing_is_wrong(database: Shared) -> None:
    """Two workers at work, a session and a message."""
    async with database.open() as a, database.open():
        await a.add_session("a", FakeTransport())
        await a.broadcast("a", "hello", durable=True)
        assert await look(url_of(database)) == []


async def test_it_writes_nothing_on_postgresql(postgresql: Shared) -> None:
    """Each row has the version that it had, also as the server numbers them; no table is new."""
    async with postgresql.open() as a:
        await a.add_session("a", FakeTransport())
    url = url_of(postgresql)
    run_sql(
        url,
        "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('a', 'w')",
        "INSERT INTO trio_messages (session_id, payload) VALUES ('a', '1')",
    )
    questions = [f"SELECT xmin, t.* FROM {one} AS t" for one in tables("trio_").metadata.tables]
    questions.append("SELECT relname FROM pg_class ORDER BY relname")
    before = [query(url, one) for one in questions]
    await look(url)
    assert [query(url, one) for one in questions] == before


@pytest.mark.parametrize("missing", sorted(tables("trio_").metadata.tables))
async def test_it_survives_any_table_that_is_missing(
    missing: str, sqlite_url: sa.URL, empty_schema: sa.URL
) -> None:
    """It is named, and whatever needs it is not looked at; the rest is."""
    for url in (sqlite_url, empty_schema):
        cascade = " CASCADE" if url is empty_schema else ""
        run_sql(make_tables(url), f"DROP TABLE {missing}{cascade}")
        found = await look(url)
        [failed] = [one for one in found if one.level is Level.FAIL]
        assert (failed.check, failed.says) == ("schema", f"table {missing} missing")
        others = [one for one in found if one.level is Level.WARN and one.check != "journal"]
        assert all("not looked at" in one.says for one in others), others


# ---- PostgreSQL ----

SOON = "now() + interval '1 hour'"
STALE = "now() - interval '2 hours'"
WORKER = (
    "INSERT INTO trio_workers (incarnation, worker_id, history, beat, stamped_at, passed_at, "
    "session_ttl, cleanup_interval, stamp_interval) VALUES ('{}', '{}', 'h', 1, {}, {}, {}, {}, 5)"
)
ROWS = "INSERT INTO trio_sessions (session_id, worker_id, incarnation) VALUES"
INVALIDATE = (
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_trio_sessions_owner'::regclass"
)
ALIVE = WORKER.format("i", "w", "now()", "now()", 3600, 300)


@pytest.mark.parametrize(
    ("statements", "check", "level", "says", "todo"),
    [
        (
            ["ALTER TABLE trio_sessions ENABLE ROW LEVEL SECURITY",
             "ALTER TABLE trio_sessions FORCE ROW LEVEL SECURITY"],
            "row security", Level.FAIL, "hides rows of table 'trio_sessions'", "BYPASSRLS",
        ),
        (
            ["ALTER TABLE trio_messages DROP CONSTRAINT trio_messages_session_id_fkey",
             "ALTER TABLE trio_sessions ALTER COLUMN session_id TYPE character(255)"],
            "collation", Level.FAIL, "two different ids may be one", 'COLLATE "C"',
        ),
        (
            ["ALTER TABLE trio_workers DROP COLUMN draining"],
            "schema", Level.FAIL, "column trio_workers.draining missing", "trio-sessions init-db",
        ),
        (
            ["ALTER TABLE trio_messages ALTER COLUMN payload TYPE integer USING 1"],
            "schema", Level.FAIL, "'payload'", "migrate the table",
        ),
        (
            ["INSERT INTO trio_schema (version, needs) VALUES (99, 98)"],
            "schema", Level.FAIL, "has version 99, and needs", "a later trio_sessions",
        ),
        (
            ["DROP INDEX ix_trio_sessions_owner"],
            "indexes", Level.WARN, "an index is missing", "CREATE INDEX ix_trio_sessions_owner",
        ),
        (
            [INVALIDATE],
            "hot updates", Level.WARN, "is invalid", "REINDEX INDEX CONCURRENTLY",
        ),
        (
            ["CREATE INDEX mine ON trio_sessions (last_accessed)"],
            "hot updates", Level.WARN, "no update is HOT", "DROP INDEX mine",
        ),
        (
            [WORKER.format("i", "w", "now()", "now()", 3600, 3000)],
            "intervals", Level.FAIL, "cleanup_interval 3000 s", "at most half of session_ttl",
        ),
        (
            [WORKER.format("i", "w", "now()", "now() - interval '40 minutes'", 3600, 300)],
            "intervals", Level.WARN, "no pass of w has ended for 40.0 min", "look into its log",
        ),
        (
            [ALIVE, WORKER.format("j", "v", "now()", "now()", 1800, 300)],
            "settings", Level.WARN, "session_ttl: 1800.0, 3600.0", "same settings",
        ),
        (
            [ALIVE, WORKER.format("j", "w", "now()", "now()", 3600, 300)],
            "worker ids", Level.WARN, "2 living workers have the id w", "own worker_id",
        ),
        (
            [WORKER.format("i", "w", "now() - interval '60 s'", "now()", 3600, 300)],
            "workers", Level.WARN, "w is late: no stamp for 1.0 min", "its session_ttl (1.0 h)",
        ),
        (
            [WORKER.format("i", "w", SOON, SOON, 3600, 300)],
            "moments", Level.FAIL, "60.0 min in the future", "NTP",
        ),
        (
            [f"{ROWS} ('a', 'w', 'i')"],
            "dead workers", Level.WARN, "1 row of sessions are of workers without a row", "expire",
        ),
        (
            [WORKER.format("i", "w", STALE, STALE, 3600, 300),
             f"INSERT INTO trio_fleet (id, vouched_at, unbroken_since) VALUES (1, now(), {STALE})",
             f"{ROWS} ('a', 'w', 'i'), ('b', 'w', 'i')"],
            "dead workers", Level.WARN, "1 worker gone, with 2 rows", "sweep --dry-run",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)  # fmt: skip
async def test_it_finds_what_is_wrong_with_tables_and_workers(
    *,
    statements: list[str],
    check: str,
    level: Level,
    says: str,
    todo: str,
    empty_schema: sa.URL,
) -> None:
    url = make_tables(empty_schema)
    with make_role(url) as role:
        run_sql(
            url,
            *statements,
            f"GRANT USAGE ON SCHEMA {schema_of(url)} TO {role.username}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA {schema_of(url)} TO {role.username}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema_of(url)} TO {role.username}",
        )
        only(await look(role), check, level, says=says, todo=todo)


def schema_of(url: sa.URL) -> str:
    return str(url.query["options"]).rpartition("=")[2]


@pytest.mark.parametrize(
    ("grant", "says"),
    [
        ("SELECT ON trio_messages", "GRANT INSERT, UPDATE, DELETE ON"),
        ("ALL ON trio_messages", "GRANT USAGE ON SEQUENCE"),
    ],
)
async def test_it_finds_rights_that_are_missing(
    grant: str, says: str, empty_schema: sa.URL
) -> None:
    url = make_tables(empty_schema)
    with make_role(url) as role:
        others = ", ".join(tables("trio_").metadata.tables.keys() - {"trio_messages"})
        run_sql(
            url,
            f"GRANT USAGE ON SCHEMA {schema_of(url)} TO {role.username}",
            f"GRANT ALL ON {others} TO {role.username}",
            f"GRANT {grant} TO {role.username}",
        )
        only(await look(role), "rights", Level.FAIL, says="lacks rights", todo=says)


@pytest.mark.parametrize(
    ("setting", "check", "level", "todo"),
    [
        ("default_transaction_isolation = 'serializable'", "isolation", Level.WARN, "ALTER ROLE"),
        ("default_transaction_read_only = on", "writes", Level.FAIL, "read_only = off"),
    ],
)
async def test_it_finds_what_the_role_inherits(
    setting: str, check: str, level: Level, todo: str, empty_schema: sa.URL
) -> None:
    url = make_tables(empty_schema)
    with make_role(url, setting) as role:
        run_sql(url, f"ALTER ROLE {role.username} SUPERUSER")
        found = await look(role)
        only(
            [one for one in found if one.check != "listen"],
            check, level, says=str(role.username), todo=todo,
        )  # fmt: skip


async def test_it_finds_an_encoding_that_cannot_carry_every_id(postgresql_url: sa.URL) -> None:
    with make_database(postgresql_url, encoding="LATIN1") as url:
        found = await look(make_tables(url))
        only(found, "encoding", Level.WARN, says="LATIN1", todo="UTF8")


async def test_it_finds_too_few_connections(empty_schema: sa.URL) -> None:
    """Of the role here; a larger limiter finds the server's."""
    url = make_tables(empty_schema)
    only(
        await look(url, max_concurrent=5000),
        "connections", Level.FAIL, says="the server allows", todo="max_connections",
    )  # fmt: skip
    only(
        await look(url, pool_size=10), "connections", Level.WARN, says="10 connections",
        todo="raise pool_size",
    )  # fmt: skip
    only(
        await look(url, pool_size=3), "connections", Level.FAIL, says="a pool of 3 is too small",
        todo="4 or more",
    )  # fmt: skip
    only(
        await look(url, max_concurrent=8, pool_size=8), "connections", Level.WARN,
        says="may use 9", todo="raise pool_size",
    )  # fmt: skip
    assert not await look(url, max_concurrent=8, pool_size=9)
    with make_role(url) as role:
        run_sql(url, f"ALTER ROLE {role.username} SUPERUSER CONNECTION LIMIT 7")
        only(
            await look(role), "connections", Level.FAIL, says="the role allows 7",
            todo="CONNECTION LIMIT",
        )  # fmt: skip


async def test_it_finds_a_clock_that_differs(empty_schema: sa.URL) -> None:
    url = make_tables(empty_schema)
    found = await look(url, host_clock=lambda: time.time() - 3600)
    only(found, "clock", Level.WARN, says="ahead of this host's", todo="NTP")


async def test_it_finds_updates_that_are_not_hot(empty_schema: sa.URL) -> None:
    """By the server's own count, whatever the reason."""
    url = make_tables(empty_schema)
    insert = "INSERT INTO trio_sessions (session_id, worker_id) VALUES ('a', 'w')"
    of_the_owner = "UPDATE trio_sessions SET owner = owner || 'x'"
    run_sql(url, insert, "UPDATE trio_sessions SET owner = 'o'")
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for _ in range(20):
            connection.exec_driver_sql(of_the_owner)
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    found = [
        one
        for one in await look(url, thresholds=Thresholds(updates=20))
        if one.check != "dead workers"
    ]
    only(found, "hot updates", Level.WARN, says="of trio_sessions were HOT", todo="fillfactor")


async def test_it_finds_a_transaction_that_stays_open(empty_schema: sa.URL) -> None:
    url = make_tables(empty_schema)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(0.05)")
        pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        found = await look(url, thresholds=Thresholds(oldest_transaction=0.05))
    mine = [one for one in found if f"process {pid} " in one.says]
    only(mine, "transactions", Level.WARN, says="is open for", todo=f"pg_terminate_backend({pid})")


async def test_it_finds_a_queue_that_fills(empty_schema: sa.URL) -> None:
    """Who listens and does not end its transaction keeps all that was said since."""
    url = make_tables(empty_schema)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("LISTEN a")
        connection.commit()
        connection.exec_driver_sql("SELECT 1")
        run_sql(url, f"DO $$BEGIN FOR i IN 1..50 LOOP PERFORM pg_notify('a', i || '{'x' * 7000}'); "
                "END LOOP; END$$")  # fmt: skip
        found = await look(url, thresholds=Thresholds(notify_queue=0.00001))
    only(found, "notify queue", Level.WARN, says="of the queue of NOTIFY", todo="pg_stat_activity")


async def test_it_tells_of_a_server_that_is_not_there(tmp_path: Path) -> None:
    url = sa.make_url(f"postgresql+psycopg://me:secret@/db?host={tmp_path}")
    found = await look(url)
    only(found, "connection", Level.FAIL, says="postgresql", todo="--database-url")
    assert "secret" not in found[0].says


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path) -> None:
    """It takes the connection, and never answers."""
    path = tmp_path / ".s.PGSQL.5432"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        url = sa.make_url(f"postgresql+psycopg://me@/db?host={tmp_path}&connect_timeout=2")
        only(await look(url), "connection", Level.FAIL, says="timeout", todo="--database-url")


async def test_a_table_that_is_locked_costs_a_moment(empty_schema: sa.URL) -> None:
    """Who needs it says so; the others are not kept."""
    url = make_tables(empty_schema)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql("LOCK TABLE trio_workers IN ACCESS EXCLUSIVE MODE")
        found = await look(url)
    assert {one.level for one in found} == {Level.WARN}, found
    assert all("looked at" in one.says for one in found), found
    assert any("lock timeout" in one.says for one in found), found
    assert "worker ids" in {one.check for one in found}
    assert not {"rights", "listen", "connections"} & {one.check for one in found}


POOLER = """
[databases]
* = host={server} user=postgres
[pgbouncer]
pool_mode = transaction
auth_type = any
listen_port = 6432
unix_socket_dir = {folder}
ignore_startup_parameters = options
"""


@pytest.fixture
def pooler(postgresql_url: sa.URL) -> Iterator[sa.URL]:
    """A PgBouncer in front of the server, in transaction mode."""
    program = shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")
    if program is None or not isinstance(postgresql_url.query.get("host"), str):
        pytest.skip("no pgbouncer, or no server of the test suite's own")
    with tempfile.TemporaryDirectory(prefix="ts-pb-") as folder:
        settings = Path(folder) / "settings.ini"
        settings.write_text(POOLER.format(server=postgresql_url.query["host"], folder=folder))
        if (user := _user()) is not None:
            shutil.chown(folder, user)
        url = postgresql_url.update_query_dict({"host": folder}).set(port=6432)
        process = subprocess.Popen([program, settings], stderr=subprocess.DEVNULL, user=user)
        try:
            deadline = time.monotonic() + 30.0
            while not (Path(folder) / ".s.PGSQL.6432").exists():
                assert time.monotonic() < deadline
                time.sleep(0.02)  # it tells nobody when it is ready
            yield url
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


async def test_it_finds_a_pooler_in_between(postgresql_url: sa.URL, pooler: sa.URL) -> None:
    """LISTEN is lost, and so are the store's timeouts: the role must have them."""
    with make_database(postgresql_url) as direct:
        behind = (
            make_tables(direct)
            .set(host=None, port=pooler.port)
            .update_query_dict({"host": str(pooler.query["host"])})
        )
        found = await look(behind)
        assert {one.check for one in found} == {"pooler", "listen"}, found
        assert "loses LISTEN" in found[0].says
        assert {one.level for one in found if one.check == "listen"} == {Level.FAIL}
        found = await look(behind, listening=Listening.POLL)
        assert [one.check for one in found] == ["pooler", "pooler"], found
        assert "statement_timeout = '8s'" in found[0].todo
        for setting in ("statement_timeout = '8s'", "lock_timeout = '3s'"):
            run_sql(direct, f"ALTER DATABASE {direct.database} SET {setting}")
        run_sql(direct, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()")  # fmt: skip
        assert await look(behind, listening=Listening.POLL) == []


# ---- the command ----


def doctor(*arguments: str, url: sa.URL, monkeypatch: pytest.MonkeyPatch, width: int = 120) -> int:
    """Return the exit code, as a shell gets it."""
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", str(width))
    text = url.render_as_string(hide_password=False)
    called = ["doctor", "--database-url", text, *arguments]
    return guarded(lambda: commands.main(called, standalone_mode=False))


def test_the_exit_code_says_whether_something_fails(
    sqlite_url: sa.URL, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning alone is none; bad usage is another one; JSON has the same findings."""
    run = partial(doctor, url=make_tables(sqlite_url), monkeypatch=monkeypatch)
    assert run() == 0
    assert "1 warn" in capsys.readouterr().out
    run_sql(sqlite_url, "DROP TABLE trio_gone")
    assert run("--json") == 1
    told = json.loads(capsys.readouterr().out)
    [failed] = [one for one in told if one["level"] == "fail"]
    assert failed["check"] == "schema"
    assert set(failed) == {"check", "level", "says", "todo"}
    assert run("--max-concurrent", "0") == 2
    assert run("--table-prefix", "1;") == 2
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.parametrize("width", [60, 120])
def test_a_narrow_terminal_shows_all_of_it(
    width: int,
    empty_schema: sa.URL,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor(url=empty_schema, monkeypatch=monkeypatch, width=width) == 1
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    assert "trio_messages" in out
