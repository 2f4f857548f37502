"""How SQLite says what SQL has no one word for."""

import json
import time
from collections.abc import Sequence

import sqlalchemy as sa

from trio_sessions.stores.database._database import Clock

__all__ = ["CLOCK", "among", "check", "each_id", "encode_ids", "octets", "read_clock"]

# Its clock has milliseconds. A moment in the past is taken a little further back, so that
# rounding never makes a row older than it is.
_FORMAT = "'%Y-%m-%d %H:%M:%f'"

CLOCK = Clock(
    now=f"(strftime({_FORMAT}, 'now'))",
    ago=lambda seconds: f"strftime({_FORMAT}, 'now', (-({seconds}) - 0.001) || ' seconds')",
    age_of=lambda moment: f"((julianday('now') - julianday({moment})) * 86400.0)",
)


def read_clock() -> float:
    """Return the seconds on its clock, which is that of the machine.

    https://sqlite.org/c3ref/vfs.html (xCurrentTimeInt64)
    """
    return time.time()


def octets(text: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    """Return the bytes of a text: its length alone is that in characters."""
    return sa.func.length(sa.cast(text, sa.LargeBinary), type_=sa.Integer)


def each_id() -> sa.FromClause:
    """Return the ids of the bind parameter session_ids, as a table with a column ``value``."""
    return sa.func.json_each(sa.bindparam("session_ids", type_=sa.Text)).table_valued("value")


def among(column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return "the column is one of the bind parameter session_ids"."""
    return column.in_(sa.select(each_id().c.value))


def encode_ids(session_ids: Sequence[str]) -> str:
    """Return the value for the bind parameter of `among` and `each_id`."""
    return json.dumps(session_ids, ensure_ascii=False)


def check(url: sa.URL) -> None:
    """Raise `ValueError` unless the database is a file."""
    name = url.database or ""
    in_memory = any(
        text in url.query.get(key, "") for key, text in (("mode", "memory"), ("vfs", "memdb"))
    )
    if in_memory or name.removeprefix("file:") == "" or ":memory:" in name:
        raise ValueError(
            "store is an in-memory SQLite database, of which every thread would see another "
            "one: use 'memory:' or a file, as in sqlite:///sessions.db"
        )
