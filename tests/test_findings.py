"""What a store finds is shared between openings, while nothing can have changed it."""

from typing import Any

import pytest
import sqlalchemy as sa
import trio
from findings import share_findings
from lending import Schemas
from servers import make_role, run_sql

from trio_sessions import open_registry
from trio_sessions.errors import StoreSchemaError
from trio_sessions.stores.database import DatabaseStore, _columns


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[sa.URL]:
    """Where a database was asked; none was before."""
    asked = []

    def find(connection: sa.Connection, ours: Any) -> _columns.Found:
        asked.append(connection.engine.url)
        return find_tables(connection, ours)

    find_tables = _columns.find_tables
    monkeypatch.setattr("findings.find_tables", find)
    share_findings(monkeypatch)
    return asked


def _open(url: sa.URL, prefix: str = "trio_") -> None:
    async def open_it() -> None:
        async with open_registry(DatabaseStore(url, table_prefix=prefix)):
            pass

    trio.run(open_it)


@pytest.fixture(params=["sqlite_file", "postgresql_schema"])
def url(request: pytest.FixtureRequest) -> sa.URL:
    url = request.getfixturevalue(request.param)
    assert isinstance(url, sa.URL)
    if request.param == "postgresql_schema" and not request.getfixturevalue("schemas").are_counted:
        pytest.skip("the server is another's: nobody counts what changes it")
    return url


def test_tables_as_we_make_them_are_asked_for_once(url: sa.URL, asked: list[sa.URL]) -> None:
    for _ in range(3):
        _open(url)
    assert len(asked) == 1


def test_a_change_is_seen(url: sa.URL, asked: list[sa.URL]) -> None:
    """By the opening that follows it, which fails."""
    _open(url)
    run_sql(url, "ALTER TABLE trio_sessions RENAME COLUMN owner TO somebody")
    with pytest.raises(StoreSchemaError, match="lacks the column 'owner'"):
        _open(url)
    assert len(asked) == 2


def test_tables_of_another_prefix_are_others(url: sa.URL, asked: list[sa.URL]) -> None:
    _open(url)
    _open(url, "other_")
    assert len(asked) > 1


def test_a_schema_that_is_just_being_changed_is_asked(
    postgresql_schema: sa.URL, asked: list[sa.URL]
) -> None:
    """What is found under an open transaction is not what will be there."""
    engine = sa.create_engine(postgresql_schema)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE more (id integer)")
        for _ in range(2):
            _open(postgresql_schema)
    engine.dispose()
    assert len(asked) == 2


def test_another_role_asks_for_itself(postgresql_schema: sa.URL, asked: list[sa.URL]) -> None:
    """It may see other tables."""
    with make_role(postgresql_schema) as role:
        _open(postgresql_schema)
        with pytest.raises(StoreSchemaError):
            _open(role)
    assert role in asked


def test_a_connection_that_looks_elsewhere_is_asked(
    postgresql_schema: sa.URL, empty_schema: sa.URL, schemas: Schemas, asked: list[sa.URL]
) -> None:
    """Whatever its URL says."""
    elsewhere = str(empty_schema.query["options"]).removeprefix("-csearch_path=")
    with schemas.lend() as url:
        _open(url)
        engine = sa.create_engine(url)

        @sa.event.listens_for(engine, "connect")
        def turn(connection: Any, _: object) -> None:
            connection.execute(f"SET search_path = {elsewhere}")
            connection.commit()

        async def open_it() -> None:
            async with open_registry(DatabaseStore(engine)):
                pass

        before = len(asked)
        trio.run(open_it)
        engine.dispose()
    assert len(asked) > before
