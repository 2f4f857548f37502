"""What a session of PostgreSQL is told, whatever the database and the role would have it be."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import trio
from lending import make_schema
from openings import open_at_once
from proxy import Proxy
from servers import make_database, make_role, make_standby, query, run_sql

from trio_sessions import RowUnavailable, StoreSchemaError, StoreUnavailable, open_registry
from trio_sessions.abc import Worker
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.stores.database.postgresql import DATABASE
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

BELL = 40.0  # seconds; a look without a bell comes after a minute


async def receive_from_elsewhere(a: DatabaseStore, b: DatabaseStore, session_id: str) -> None:
    """Send a message from one worker to a session of another, whose bell must ring."""
    async with open_registry(a) as holder, open_registry(b) as sender:
        await holder.add_session(session_id, FakeTransport())
        assert await sender.locate_session(session_id) == holder.worker_id
        async with holder.open_inbox(session_id) as inbox:
            await trio.sleep(0.2)  # until the first look is over, and only the bell is left
            await sender.broadcast(session_id, f"to {session_id}")
            with trio.fail_after(BELL):
                assert await anext(inbox) == f"to {session_id}"
        assert (await holder.cleanup()).refreshed == 1


def settings_of(engine: sa.Engine, *names: str) -> dict[str, Any]:
    with engine.connect() as connection:
        return {n: connection.exec_driver_sql(f"SHOW {n}").scalar_one() for n in names}


# ---- what our own connections are ----


async def test_our_own_connections_inherit_nothing(empty_schema: sa.URL) -> None:
    """Role and URL say otherwise: what the promise rests on is ours, timeouts are the URL's."""
    ours = {
        "client_encoding": "UTF8",
        "row_security": "off",
        "transaction_isolation": "read committed",
        "lock_timeout": "777ms",
        "statement_timeout": "8s",
    }
    asked = {
        "client_encoding": "LATIN1",
        "row_security": "on",
        "default_transaction_isolation": "serializable",
    }
    with make_role(empty_schema, *(f"{n} = '{v}'" for n, v in asked.items())) as url:
        run_sql(empty_schema, f"GRANT ALL ON SCHEMA {schema(url)} TO {url.username}")
        options = " ".join(f"-c {name}={value}" for name, value in asked.items())
        store = DatabaseStore(
            url.update_query_dict(
                {"options": f"{url.query['options']} {options} -c lock_timeout=777"}
            )
        )
        async with open_registry(store):
            engine = store._opened.state._engine
            assert engine is not None
            assert settings_of(engine, *ours) == ours


def schema(url: sa.URL) -> str:
    return str(url.query["options"]).removeprefix("-csearch_path=")


# ---- encodings ----


@pytest.mark.parametrize("engine", [False, True])
async def test_a_database_that_cannot_carry_every_id(
    postgresql_url: sa.URL, caplog: pytest.LogCaptureFixture, *, engine: bool
) -> None:
    """Fifty rows are restored after an outage, and the one that cannot be written is named."""
    ids = [f"sé-{number:02}" for number in range(50)]
    with make_database(postgresql_url, encoding="LATIN1") as url:
        given = sa.create_engine(url)
        store = FaultyStore(DatabaseStore(given if engine else url))
        async with open_registry(store) as registry:
            assert "LATIN1" in caplog.text
            store.fail(Fault.FAILS, "Claim")
            async with trio.open_nursery() as nursery:
                for session_id in [*ids, "€"]:
                    nursery.start_soon(registry.add_session, session_id, FakeTransport())
            store.heal()
            report = await registry.cleanup()
            assert sorted(report.restored) == ids
            assert list(report.refresh_failures) == ["€"]
            assert isinstance(report.refresh_failures["€"], RowUnavailable)
            report = await registry.cleanup()
            assert report.refreshed == 50
            assert list(report.refresh_failures) == ["€"]
            assert len(await registry.get_all_session_ids()) == 51
        given.dispose()


@pytest.mark.parametrize("told", ["by us", "in the URL", "when it connects"])
async def test_a_database_without_an_encoding(postgresql_url: sa.URL, told: str) -> None:
    """SQL_ASCII keeps what it is given, once a connection is told what to speak."""
    with make_database(postgresql_url, encoding="SQL_ASCII") as url:
        says_so = url.update_query_dict({"client_encoding": "utf8"})
        arguments = {"client_encoding": "utf8"}
        engines = {
            "by us": [],
            "in the URL": [sa.create_engine(says_so) for _ in "ab"],
            "when it connects": [sa.create_engine(url, connect_args=arguments) for _ in "ab"],
        }[told]
        a, b = map(DatabaseStore, engines or (url, url))
        await receive_from_elsewhere(a, b, "日本-é")
        for one in engines:
            one.dispose()


async def test_an_engine_that_is_told_no_encoding(postgresql_url: sa.URL) -> None:
    """SQL_ASCII answers it in bytes, on which SQLAlchemy fails: opening says what to do."""
    with make_database(postgresql_url, encoding="SQL_ASCII") as url:
        given = sa.create_engine(url)
        with pytest.raises(TypeError, match="bytes"):
            given.connect()
        with pytest.raises(StoreSchemaError, match=r"\?client_encoding=utf8, .*connect_args"):
            async with open_registry(DatabaseStore(given)):
                raise AssertionError("it opened")
        given.dispose()


async def test_another_error_of_a_first_connection(postgresql_url: sa.URL) -> None:
    """It stays what it is: that of the engine's own code."""
    given = sa.create_engine(postgresql_url)

    @sa.event.listens_for(given, "connect")
    def fail(*_: object) -> None:
        raise TypeError("of the program's own")

    store = DatabaseStore(given)
    worker = Worker(worker_id="a", incarnation="a", limiter=trio.CapacityLimiter(3))
    with pytest.raises(TypeError, match="of the program's own"):
        await store.open(worker)
    await store.close(worker)
    given.dispose()


@pytest.mark.parametrize("engine", [False, True])
async def test_a_role_with_another_client_encoding(postgresql_url: sa.URL, *, engine: bool) -> None:
    """Ids and bells that LATIN1 cannot carry arrive."""
    with (
        make_database(postgresql_url) as database,
        make_role(database, "client_encoding = 'LATIN1'") as url,
    ):
        run_sql(database, f"GRANT ALL ON SCHEMA public TO {url.username}")
        engines = [sa.create_engine(url), sa.create_engine(url)]
        a, b = map(DatabaseStore, engines if engine else (url, url))
        await receive_from_elsewhere(a, b, "日本-é")
        for one in engines:
            one.dispose()


# ---- isolation ----


@pytest.fixture
def repeatable(postgresql_url: sa.URL) -> Iterator[sa.URL]:
    setting = "default_transaction_isolation = 'repeatable read'"
    with make_database(postgresql_url, setting) as url:
        yield url


def test_eight_openings_of_an_empty_database_at_once(repeatable: sa.URL) -> None:
    """Its default is repeatable read, and each opening creates the tables, or finds them."""
    for _ in range(3):
        assert open_at_once(repeatable) == []
        metadata().drop_all(engine := sa.create_engine(repeatable))
        engine.dispose()


@pytest.mark.parametrize("engine", [False, True])
async def test_what_cannot_be_told_is_a_condition_of_opening(
    repeatable: sa.URL, *, engine: bool
) -> None:
    """An engine that was handed in, or PgBouncer: the error names the ALTER ROLE that helps."""
    given = sa.create_engine(repeatable)
    store = DatabaseStore(given) if engine else DatabaseStore(repeatable, server_timeouts=False)
    with pytest.raises(StoreSchemaError, match="ALTER ROLE") as caught:
        async with open_registry(store):
            raise AssertionError("it opened")
    advice = str(caught.value).partition("ALTER ROLE")[2].partition(";")[0]
    assert "repeatable read" in str(caught.value)
    run_sql(repeatable, f"ALTER ROLE{advice}")
    given.dispose()
    async with open_registry(store) as registry:
        await registry.add_session("s", FakeTransport())
        assert (await registry.cleanup()).refreshed == 1
    given.dispose()


@pytest.mark.parametrize(("settings", "warned"), [("", True), ("-c lock_timeout=3s", False)])
async def test_timeouts_that_nobody_has_set(
    postgresql_schema: sa.URL, caplog: pytest.LogCaptureFixture, settings: str, *, warned: bool
) -> None:
    """Opening warns once, and names the ALTER ROLE; our own connections have theirs."""
    timeouts = f"{settings} -c statement_timeout=8s" if settings else ""
    options = f"{postgresql_schema.query['options']} {timeouts}"
    engine = sa.create_engine(postgresql_schema.update_query_dict({"options": options}))
    for store in DatabaseStore(postgresql_schema), DatabaseStore(engine):
        async with open_registry(store):
            pass
    warnings = [one for one in caplog.messages if "ALTER ROLE" in one]
    assert len(warnings) == warned
    assert all("no statement_timeout and no lock_timeout" in one for one in warnings)
    engine.dispose()


# ---- an engine that was handed in ----


async def test_a_connection_of_yours_is_told_once(empty_schema: sa.URL) -> None:
    """Only the encoding, only where it is another one; all else stays what it was."""
    names = ("row_security", "statement_timeout", "lock_timeout", "transaction_isolation")
    with make_role(empty_schema, "client_encoding = 'LATIN1'") as url:
        run_sql(empty_schema, f"GRANT ALL ON SCHEMA {schema(url)} TO {url.username}")
        engine = sa.create_engine(url, pool_size=1, max_overflow=0)
        statements: list[str] = []
        sa.event.listen(
            engine,
            "before_cursor_execute",
            lambda _c, _cursor, statement, *_: statements.append(statement),
        )
        before = settings_of(engine, *names)
        async with open_registry(engine, max_concurrent=1) as registry:
            await registry.add_session("s", FakeTransport())
            assert (await registry.cleanup()).refreshed == 1
        assert settings_of(engine, *names) == before
        assert len([one for one in statements if one.startswith("SET")]) == 1
        engine.dispose()


# ---- a server that takes no writes ----


async def test_a_search_path_that_was_left_behind(
    administrator: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """On one connection of an engine, by other code: it is no database that has gone back."""
    with make_schema(administrator) as url, make_schema(administrator) as elsewhere:
        async with open_registry(DatabaseStore(elsewhere)):
            pass  # tables of the same names
        given = sa.create_engine(url)
        ids = {f"s{number}" for number in range(12)}
        async with open_registry(DatabaseStore(given)) as registry:
            for session_id in ids:
                await registry.add_session(session_id, FakeTransport())
            for _ in range(2):
                with given.begin() as connection:
                    connection.exec_driver_sql(f"SET search_path TO {schema(elsewhere)}")
                for _ in range(5):
                    report = await registry.cleanup()
                    assert (report.missing, report.held, report.restored) == ((), (), ())
                assert report.refreshed == 12
            assert registry.statistics().database_rewinds == 0
        assert "search_path" in caplog.text
        assert query(elsewhere, "SELECT session_id FROM trio_sessions") == []
        given.dispose()


def end_connections(url: sa.URL, *, but: set[int]) -> None:
    run_sql(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        f"AND pid NOT IN ({', '.join(map(str, [0, *but]))}, pg_backend_pid())",
    )


def fill_pool(store: DatabaseStore, number: int) -> None:
    """Let the pool have so many connections, all of them made now."""
    engine = store._opened.state._engine
    assert engine is not None
    for connection in [engine.connect() for _ in range(number)]:
        connection.invalidate()
        connection.close()
    for connection in [engine.connect() for _ in range(number)]:
        connection.close()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(BELL):
        while not holds():
            await trio.sleep(0.05)


@pytest.mark.parametrize("engine", [False, True])
async def test_connections_to_a_server_that_takes_no_writes(
    postgresql_url: sa.URL, caplog: pytest.LogCaptureFixture, *, engine: bool
) -> None:
    """They are thrown away, all of them; and the bell's with them.

    The database is read-only for who connects meanwhile, as an old primary that has come back
    as a standby is; such connections stay so, although the address leads to the new primary.
    """
    with make_database(postgresql_url) as url:
        given = sa.create_engine(url, pool_size=8)
        store = DatabaseStore(given if engine else url)
        async with (
            open_registry(store, batch_size=1) as a,
            open_registry(DatabaseStore(url)) as sender,
        ):
            for number in range(4):
                await a.add_session(f"s{number}", FakeTransport())
            async with a.open_inbox("s0") as inbox:
                await until(lambda: bool(listeners(url)))
                bells = listeners(url)
                set_read_only(url, "on")
                end_connections(url, but=bells)
                fill_pool(store, 4)
                await a.add_session("new", FakeTransport())  # is the only one that finds out
                assert a.statistics().unconfirmed == 1
                assert "takes no writes" in caplog.text
                await until(lambda: not listeners(url))
                set_read_only(url, "off")
                reports = [await a.cleanup()]
                if reports[0].refresh_failures:
                    # A stamp, or the bell, has connected anew before; now these are gone, too.
                    reports.append(await a.cleanup())
                assert dict(reports[-1].refresh_failures) == {}
                assert [one for report in reports for one in report.restored] == ["new"]
                assert reports[-1].refreshed + len(reports[-1].restored) == 5
                assert all(report.missing == () for report in reports)
                await until(lambda: bool(listeners(url)))
                with trio.fail_after(BELL):
                    while (await sender.cleanup()).refresh_failures:
                        await trio.sleep(0.05)
                    await sender.broadcast("s0", "rung")
                    assert await anext(inbox) == "rung"
        given.dispose()


@pytest.mark.usefixtures("nothing_in_between")
async def test_a_server_that_shuts_down(postgresql_url: sa.URL) -> None:
    """The first that is told throws away all connections of an engine that was handed in."""
    with make_database(postgresql_url) as url:
        engine = sa.create_engine(url, pool_size=8)
        store = DatabaseStore(engine)
        async with open_registry(store, batch_size=1) as registry:
            for number in range(4):
                await registry.add_session(f"s{number}", FakeTransport())
            fill_pool(store, 4)
            end_connections(url, but=set())
            await registry.add_session("new", FakeTransport())
            assert registry.statistics().unconfirmed == 1
            report = await registry.cleanup()
            assert (report.refreshed, report.restored) == (4, ("new",))
        engine.dispose()


@pytest.mark.usefixtures("nothing_in_between")
@pytest.mark.parametrize("engine", [False, True])
async def test_an_old_primary_that_comes_back_as_a_standby(
    postgresql_schema: sa.URL, proxy: Proxy, *, engine: bool
) -> None:
    """The address follows later; whoever is on the standby by then moves on at once."""
    with make_standby(postgresql_schema) as standby:
        given = sa.create_engine(proxy.url)
        a_store = DatabaseStore(given if engine else proxy.url)
        async with open_registry(a_store) as a, open_registry(postgresql_schema) as b:
            await a.add_session("s", FakeTransport())
            async with a.open_inbox("s") as inbox:
                await until(lambda: bool(listeners(postgresql_schema)))
                proxy.lead_to(standby)
                proxy.cut()
                await until(lambda: not listeners(postgresql_schema))
                with trio.fail_after(BELL):
                    error = ""
                    while "read-only" not in error:
                        report = await a.cleanup()
                        assert report.missing == ()
                        error = str(report.refresh_failures.get("s"))
                proxy.lead_to(postgresql_schema)
                report = await a.cleanup()
                assert (report.refreshed, report.missing) == (1, ())
                await until(lambda: bool(listeners(postgresql_schema)))
                await b.broadcast("s", "rung")
                with trio.fail_after(BELL):
                    assert await anext(inbox) == "rung"
        given.dispose()


async def test_letters_to_a_standby(postgresql_schema: sa.URL, proxy: Proxy) -> None:
    """It refuses their table as one that is not logged; whoever learns of it moves on, too."""

    async def echo(said: object) -> object:
        await trio.lowlevel.checkpoint()
        return said

    with make_standby(postgresql_schema) as standby:
        async with (
            open_registry(DatabaseStore(proxy.url)) as a,
            open_registry(postgresql_schema, handlers={"echo": echo}, worker_id="b"),
        ):
            assert await a.workers.call("b", "echo", 1, timeout=BELL) == 1
            proxy.lead_to(standby)
            proxy.cut()
            with trio.fail_after(BELL):
                error = ""
                while "takes no writes" not in error:
                    with pytest.raises(StoreUnavailable) as caught:
                        await a.workers.call("b", "echo", 2, timeout=BELL)
                    error = str(caught.value)
            proxy.lead_to(postgresql_schema)
            assert await a.workers.call("b", "echo", 3, timeout=BELL) == 3


def set_read_only(url: sa.URL, value: str) -> None:
    """Set what who connects from now on will find."""
    run_sql(
        url,
        "SET default_transaction_read_only = off",
        f"ALTER DATABASE {url.database} SET default_transaction_read_only = {value}",
    )


def listeners(url: sa.URL) -> set[int]:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT pid FROM pg_stat_activity "
            "WHERE datname = current_database() AND query LIKE 'SHOW%%LISTEN%%'"
        )
        return set(found.scalars())


@pytest.mark.parametrize(
    ("says", "astray"),
    [
        ("cannot access temporary or unlogged relations during recovery", True),
        ("cached plan must not change result type", False),
    ],
)
def test_only_a_standbys_lack_of_a_feature_leads_elsewhere(says: str, *, astray: bool) -> None:
    """PostgreSQL has one code for every feature that is not there."""
    error = sa.exc.DBAPIError("SELECT 1", None, psycopg.errors.FeatureNotSupported(says))
    assert DATABASE.leads_astray(error) is astray
    assert ("takes no writes" in DATABASE.advice(error)) is astray
