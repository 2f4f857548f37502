"""How PostgreSQL says what SQL has no one word for."""

import json
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from trio_sessions.stores.database._database import Clock

__all__ = ["CLOCK", "among", "chosen", "each_id", "encode_ids"]

CLOCK = Clock(
    now="clock_timestamp()",
    ago=lambda seconds: f"(now() - make_interval(secs => {seconds}))",
    age_of=lambda moment: (
        f"CAST(extract(epoch FROM clock_timestamp() - {moment}) AS double precision)"
    ),
)

# Ids travel as one JSON text: psycopg makes arrays in Python, and twenty threads that do so
# keep the event loop waiting for the interpreter's lock. See
# docs/decisions/0004-one-json-text-and-only-what-is-missing.md.


def each_id() -> sa.ColumnElement[str]:
    """Return the ids of the bind parameter session_ids, one in a row."""
    return sa.func.json_array_elements_text(
        sa.cast(sa.bindparam("session_ids", type_=sa.Text), postgresql.JSON)
    )


def among(column: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return "the column is one of the bind parameter session_ids".

    By the index, whatever the planner knows of them.
    """
    each = sa.select(each_id()).scalar_subquery()
    return column == sa.any_(sa.func.array(each, type_=postgresql.ARRAY(sa.Text())))


def chosen(column: sa.ColumnElement[int], ids: sa.Select[tuple[int]]) -> sa.ColumnElement[bool]:
    """Return "the column is one of these ids", which are selected, and locked, once.

    With IN a planner may join, and carry out the select again and again: each time others are
    locked, and more than its limit.
    """
    found = sa.func.array(ids.scalar_subquery(), type_=postgresql.ARRAY(sa.BigInteger()))
    return column == sa.any_(found)


def encode_ids(session_ids: Sequence[str]) -> str:
    """Return the value for the bind parameter of `each_id` and `among`."""
    return json.dumps(session_ids, ensure_ascii=False)
