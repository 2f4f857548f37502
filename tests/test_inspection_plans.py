"""What operators ask is answered by an index, however many sessions there are."""

import pytest
import sqlalchemy as sa
from conftest import Shared
from soak import SOAK

from trio_sessions.inspection import Selection
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._schema import tables

MANY = 1_000_000 if SOAK else 20_000

FILL = {
    "sqlite": """
        WITH RECURSIVE n(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < {many})
        INSERT INTO trio_sessions (session_id, worker_id, incarnation, owner)
        SELECT printf('s%08d', n), 'w' || n % 10, 'i' || n % 10,
               CASE WHEN n % 1000 = 7 THEN 'alice' WHEN n % 3 = 0 THEN 'o' || n END FROM n""",
    "postgresql": """
        INSERT INTO trio_sessions (session_id, worker_id, incarnation, owner)
        SELECT 's' || lpad(n::text, 8, '0'), 'w' || n % 10, 'i' || n % 10,
               CASE WHEN n % 1000 = 7 THEN 'alice' WHEN n % 3 = 0 THEN 'o' || n END
        FROM generate_series(0, {many}) AS n""",
}


@pytest.fixture
async def filled(database: Shared) -> DatabaseStore:
    """A store with many rows, whose statistics are known to the planner."""
    store = database.make_store()
    async with database.open(store=store):
        pass
    assert isinstance(store, DatabaseStore)
    database.backdoor.execute(sa.text(FILL[database.name].format(many=MANY)))  # type: ignore[attr-defined]
    database.backdoor.execute(sa.text("ANALYZE"))  # type: ignore[attr-defined]
    return store


@pytest.mark.parametrize(
    ("selection", "index"),
    [
        (Selection(), "primary key"),
        (Selection(worker_id="w3"), "primary key"),
        (Selection(owner="alice"), "ix_trio_sessions_owner"),
    ],
)
async def test_a_page_is_found_by_an_index(
    database: Shared, filled: DatabaseStore, selection: Selection, index: str
) -> None:
    """Nobody walks all sessions; a few of one owner may be sorted."""
    page = filled._inspection.page(selection, "s00005000", 100)
    explain = "EXPLAIN QUERY PLAN" if database.name == "sqlite" else "EXPLAIN"
    dialect = filled._database.create_engine(filled._url, 1, filled).dialect
    sql = page.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    rows = database.backdoor.execute(sa.text(f"{explain} {sql}".replace(":", r"\:")))  # type: ignore[attr-defined]
    plan = "\n".join(str(row) for row in rows)
    names = {"sqlite": "sqlite_autoindex_trio_sessions_1", "postgresql": "trio_sessions_pkey"}
    assert names.get(database.name if index == "primary key" else "", index) in plan, plan
    assert selection.owner is not None or "Sort" not in plan
    assert "TEMP B-TREE" not in plan
    assert "Seq Scan on trio_sessions" not in plan


def test_the_index_of_owners_is_no_burden_to_refreshes() -> None:
    """A column that a pass updates would end HOT updates on PostgreSQL."""
    indexed = {
        column.name for index in tables("trio_").sessions.indexes for column in index.columns
    }
    assert indexed.isdisjoint({"last_accessed", "taken_at"})
