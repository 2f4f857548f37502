"""What goes to PostgreSQL, as psycopg gets it: batches do not pass through SQLAlchemy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa

__all__ = ["noting_engine"]


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
