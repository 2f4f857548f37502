"""What may name a database, what is loaded for it, and engines that were handed in."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from warm import Program

from trio_sessions import open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport

BAD_URLS = {
    "mysql://user:s3cret@host/db": "mysql",
    "mysql+pymysql://user:s3cret@host/db": "mysql",
    "postgres://user:s3cret@host/db": "'postgres': write 'postgresql'",
    "oracle://user:s3cret@host/db": "oracle",
    "s3cret": "cannot be read",
    "": "cannot be read",
    "memory": "cannot be read",
    "://": "cannot be read",
    "postgresql://user:s3cret@host:port/db": "cannot be read",
    "postgresql+asyncpg://user:s3cret@host/db": "asyncpg",
    "postgresql+psycopg2://user:s3cret@host/db": "psycopg2",
    "postgresql+psycopg_async://user:s3cret@host/db": "psycopg_async",
    "sqlite+aiosqlite:///file.db": "aiosqlite",
    "sqlite+pysqlcipher://:s3cret@/file.db": "pysqlcipher",
    "sqlite://": "in-memory",
    "sqlite+pysqlite://": "in-memory",
    "sqlite:///": "in-memory",
    "sqlite:///:memory:": "in-memory",
    "sqlite:///file::memory:?uri=true": "in-memory",
    "sqlite:///file::memory:?cache=shared&uri=true": "in-memory",
    "sqlite:///file:name?mode=memory&cache=shared&uri=true": "in-memory",
    "sqlite:///file:/name?vfs=memdb&uri=true": "in-memory",
    "sqlite:///file:?uri=true": "in-memory",
}


@pytest.mark.parametrize(("url", "named"), BAD_URLS.items())
def test_a_url_that_cannot_be_used(url: str, named: str) -> None:
    """The call itself refuses it, names ``store`` and why, and repeats no password."""
    with pytest.raises(ValueError, match=r"^store\b") as caught:
        open_registry(url)
    assert named in str(caught.value)
    assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("store", [None, 7, b"sqlite:///file.db", Path("file.db"), DatabaseStore])
def test_what_is_no_store_at_all(store: Any) -> None:
    """The call itself raises, and names ``store``."""
    with pytest.raises(TypeError, match=r"^store\b"):
        open_registry(store)


def test_an_engine_on_sqlite_in_memory() -> None:
    """Every thread would see another database, also under a pool that shares one connection."""
    for pool in (sa.StaticPool, sa.SingletonThreadPool):
        engine = sa.create_engine("sqlite://", poolclass=pool)
        with pytest.raises(ValueError, match=r"^store\b.*in-memory"):
            open_registry(engine)
        engine.dispose()


@pytest.mark.parametrize("pool", [sa.StaticPool, sa.SingletonThreadPool, sa.AssertionPool])
def test_an_engine_whose_pool_serves_one_thread_only(tmp_path: Path, pool: type[sa.Pool]) -> None:
    """Threads would share one connection: rows get lost, and SQLite crashes the process."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'sessions.db'}", poolclass=pool)
    with pytest.raises(ValueError, match=rf"^store\b.*{pool.__name__}.*QueuePool"):
        open_registry(engine)
    engine.dispose()


async def test_an_engine_with_a_small_pool_is_never_waited_for(database: Shared) -> None:
    """There are as many operations at a time as its pool keeps connections."""
    backdoor = database.backdoor
    assert isinstance(backdoor, DatabaseBackdoor)
    url = backdoor.engine.url
    engine = sa.create_engine(url, pool_size=2, max_overflow=0, pool_timeout=0.01)
    try:
        async with open_registry(engine, batch_size=1) as registry:
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
            assert (await registry.cleanup()).refreshed == 40
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    finally:
        engine.dispose()


def test_a_url_object_and_an_engine_are_checked_like_text(tmp_path: Path) -> None:
    """And a good one makes no file before it is opened."""
    with pytest.raises(ValueError, match="asyncpg"):
        open_registry(sa.make_url("postgresql+asyncpg://host/db"))
    url = sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")
    engine = sa.create_engine(url)
    for store in (url, str(url), engine, DatabaseStore(url)):
        open_registry(store)
    assert list(tmp_path.iterdir()) == []
    engine.dispose()


@pytest.mark.parametrize(
    "query", ["password=s3cret", "sslpassword=s3cret", "passfile=s3cret", "user=s3cret"]
)
def test_a_password_in_the_query_is_masked(query: str) -> None:
    """Wherever the password stands, it is not shown."""
    store = DatabaseStore(f"postgresql+psycopg://user:s3cret@host/db?{query}&application_name=x")
    assert "s3cret" not in repr(store)
    assert "application_name=x" in repr(store)


# ---- what is loaded ----


def run_python(program: str, *arguments: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        timeout=30,
        text=True,
    ).stdout.strip()


LOADED = (
    "import sys; print(sorted({m.partition('.')[0] for m in sys.modules} "
    "& {'sqlalchemy', 'asyncio', 'psycopg', 'trio_asyncio'}))"
)


def test_importing_loads_no_database() -> None:
    """Neither SQLAlchemy nor a driver nor asyncio."""
    assert run_python(f"import trio_sessions\n{LOADED}") == "[]"


def test_the_memory_store_loads_no_database() -> None:
    """A registry without a database works where SQLAlchemy is not installed."""
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "import trio, trio_sessions\n"
        "async def main():\n"
        "    async with trio_sessions.open_registry('memory:') as registry:\n"
        "        await registry.cleanup()\n"
        "trio.run(main)\n"
        "del sys.modules['sqlalchemy']\n"
    )
    assert run_python(program + LOADED) == "[]"


def test_sqlite_loads_no_other_driver() -> None:
    """A URL loads what it needs."""
    program = "import trio_sessions; trio_sessions.open_registry('sqlite:///never-made.db')\n"
    loaded = run_python(program + LOADED)
    assert "sqlalchemy" in loaded
    assert "psycopg" not in loaded


@pytest.mark.parametrize(
    "fault",
    [
        "ModuleNotFoundError('No module named psycopg', name='psycopg')",
        "ImportError('no pq wrapper available')",
    ],
)
def test_a_missing_driver_names_the_extra(fault: str) -> None:
    """Already at the call, also where the driver is installed and does not work."""
    program = (
        "import sys, importlib.abc, trio_sessions\n"
        "class Blocker(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] == 'psycopg':\n"
        f"            raise {fault}\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "try:\n"
        "    trio_sessions.open_registry('postgresql+psycopg://user:s3cret@host/db')\n"
        "except trio_sessions.MissingDependency as exc:\n"
        "    print(isinstance(exc, ImportError), exc)\n"
    )
    printed = run_python(program)
    assert printed.startswith("True store ")
    assert "trio_sessions[postgresql]" in printed
    assert "s3cret" not in printed


@pytest.mark.parametrize("url", ["sqlite_url", "postgresql_schema"])
def test_a_store_made_before_a_fork_works_on_both_sides(
    url: str, request: pytest.FixtureRequest
) -> None:
    """Parent and child share no connection, no lock and no worker id."""
    program = (
        "import os, sys, trio, trio_sessions, warnings\n"
        "from trio_sessions.stores.database import DatabaseStore\n"
        "from trio_sessions.testing import FakeTransport\n"
        "warnings.simplefilter('error')\n"
        "store = DatabaseStore(sys.argv[1])\n"
        "opening = trio_sessions.open_registry(store)\n"
        "pid = os.fork()\n"
        "async def main():\n"
        "    async with opening as registry:\n"
        "        assert str(os.getpid()) in registry.worker_id\n"
        "        await registry.add_session(f'session of {os.getpid()}', FakeTransport())\n"
        "        report = await registry.cleanup()\n"
        "        assert report.refreshed == 1, report\n"
        "trio.run(main)\n"
        "if pid == 0:\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    database: sa.URL = request.getfixturevalue(url)
    ran = Program(program, database.render_as_string(hide_password=False), folder=Path.cwd())
    assert ran.communicate(30) == ("7\n", "")
    assert ran.returncode == 0


# ---- engines that were handed in ----


@pytest.fixture
async def engine(database: Shared) -> AsyncIterator[sa.Engine]:
    url = database.backdoor.engine.url  # type: ignore[attr-defined]  # both are databases
    level = "SERIALIZABLE" if database.name == "sqlite" else "REPEATABLE READ"
    engine = sa.create_engine(url, isolation_level=level, pool_size=1, max_overflow=0)
    yield engine
    await trio.to_thread.run_sync(engine.dispose)


def isolation(engine: sa.Engine) -> object:
    with engine.connect() as connection:
        return connection.get_isolation_level(), connection.default_isolation_level


async def test_an_engine_of_yours_is_left_as_it_was(engine: sa.Engine) -> None:
    """Its isolation level, its listeners and its pool are yours; it is never disposed."""
    before = isolation(engine)
    pool = engine.pool
    disposed: list[object] = []
    sa.event.listen(engine, "engine_disposed", disposed.append)
    names = [name for name in dir(engine.dispatch) if not name.startswith("_")]
    listeners = {name: list(getattr(engine.dispatch, name)) for name in names}
    async with open_registry(engine, max_concurrent=1) as registry:
        await registry.add_session("s", FakeTransport())
        assert (await registry.cleanup()).refreshed == 1
        assert isolation(engine) == before
        with engine.begin() as connection:  # a transaction that can be rolled back
            connection.exec_driver_sql("UPDATE trio_sessions SET owner = 'somebody'")
            connection.rollback()
        with engine.connect() as connection:
            owner = connection.exec_driver_sql("SELECT owner FROM trio_sessions").scalar_one()
            assert owner is None
    assert isolation(engine) == before
    assert engine.pool is pool
    assert disposed == []
    assert {name: list(getattr(engine.dispatch, name)) for name in names} == listeners
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trio_sessions").scalar_one() == 0


async def test_two_registries_share_one_engine(database: Shared) -> None:
    """Closing one leaves the other working."""
    url = database.backdoor.engine.url  # type: ignore[attr-defined]  # both are databases
    engine = sa.create_engine(url)
    async with open_registry(engine) as a:
        async with open_registry(engine) as b:
            await b.add_session("s", FakeTransport())
            assert await a.locate_session("s") == b.worker_id
        assert await a.locate_session("s") is None
        await a.add_session("s", FakeTransport())
        assert (await a.cleanup()).refreshed == 1
    await trio.to_thread.run_sync(engine.dispose)


async def test_two_registries_share_one_store(database: Shared) -> None:
    """Its engine is made by the first that opens it, and given back by the last."""
    store = database.make_store()
    assert isinstance(store, DatabaseStore)
    assert not store._opened.is_open
    async with open_registry(store) as a:
        async with open_registry(store) as b:
            await b.add_session("s", FakeTransport())
            assert await a.locate_session("s") == b.worker_id
        assert store._opened.is_open
        assert await a.locate_session("s") is None
    assert not store._opened.is_open
    async with open_registry(store) as again:
        assert await again.locate_session("s") is None


@pytest.mark.parametrize("lock_timeout", [2.0, 3.0])
def test_a_wait_for_a_lock_is_shorter_than_the_operation(
    sqlite_url: sa.URL, lock_timeout: float
) -> None:
    """Else each lock would cost its connection, and be told as a database that is away."""
    with pytest.raises(ValueError, match=r"^lock_timeout .* shorter than operation_timeout"):
        DatabaseStore(sqlite_url, operation_timeout=2.0, lock_timeout=lock_timeout)
    assert DatabaseStore(sqlite_url, operation_timeout=2.0, lock_timeout=1.9).lock_timeout == 1.9
