"""What goes to PostgreSQL, as psycopg gets it: batches do not pass through SQLAlchemy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa

__all__ = ["noting_engine", "updates_of"]


@contextmanager
def noting_engine(url: sa.URL, **arguments: Any) -> Iterator[tuple[sa.Engine, dict[str, Any]]]:
    """Yield an engine, and what it notes: the latest parameters of each statement."""
    seen: dict[str, Any] = {}

    class NotingCursor(psycopg.Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **kwargs: Any) -> "NotingCursor":
            seen[query] = params
            return super().execute(query, params, **kwargs)

    engine = sa.create_engine(url, connect_args={"cursor_factory": NotingCursor}, **arguments)
    try:
        yield engine, seen
    finally:
        engine.dispose()


def updates_of(engine: sa.Engine, table: str) -> tuple[int, int]:
    """Return how often rows of a table were updated, and how often of these as HOT updates.

    Args:
        engine: has one connection, so that it can be told to hand in its statistics.
        table: its name, in the current schema.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    with engine.begin() as connection:
        row = connection.execute(
            sa.text(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
                "WHERE relname = :name AND schemaname = current_schema()"
            ),
            {"name": table},
        ).one()
        return row[0], row[1]
