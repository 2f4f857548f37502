"""What the portable operations need to be told of a database's SQL."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

__all__ = ["Grammar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """How a database says what SQL has no one word for."""

    among: Callable[[sa.ColumnElement[str]], sa.ColumnElement[bool]]
    """Return "the column is one of the bind parameter session_ids"."""
    each_id: Callable[[], sa.FromClause]
    """Return the ids of the bind parameter session_ids, as a table with a column ``value``."""
    encode_ids: Callable[[Sequence[str]], Any]
    """Return the value for the bind parameter of ``among`` and ``each_id``."""
    insert: Callable[[sa.Table], Any]
    """Return an INSERT that knows ``on_conflict_do_update``."""
    transaction: Callable[[sa.Connection], AbstractContextManager[None]]
    """Run a block of several statements as one writing transaction."""
    clock: Callable[[], float]
    """Return the seconds on the database's clock, asking nobody who could be waiting."""
