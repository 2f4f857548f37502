"""Statements are made and compiled once in a process of tests, not once for each engine.

SQLAlchemy keeps what it has compiled by the dialect, and each engine has a dialect of its own;
likewise the statements by which it asks PostgreSQL for its tables. To open a store is half making
and compiling; the tests open thousands.
"""

from collections.abc import Iterator, MutableMapping
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql.base import PGDialect

__all__ = ["share_statements"]

_Key = tuple[Any, ...]


class _Shared(MutableMapping[_Key, Any]):
    """Takes two dialects for one if they compile alike: one kind, one version of the server."""

    def __init__(self) -> None:
        self._compiled: dict[_Key, Any] = {}

    @staticmethod
    def _alike(key: _Key) -> _Key:
        dialect, *statement = key
        return type(dialect), dialect.server_version_info, *statement

    def __getitem__(self, key: _Key) -> Any:
        return self._compiled[self._alike(key)]

    def __setitem__(self, key: _Key, compiled: Any) -> None:
        self._compiled[self._alike(key)] = compiled

    def __delitem__(self, key: _Key) -> None:
        del self._compiled[self._alike(key)]

    def __iter__(self) -> Iterator[_Key]:
        return iter(self._compiled)

    def __len__(self) -> int:
        return len(self._compiled)


def share_statements() -> None:
    """Let all engines of this process, from now on, keep what is made and compiled together."""
    _share_questions_for_tables()
    shared = _Shared()

    def share(connection: sa.Connection) -> None:
        connection.execution_options(compiled_cache=shared)

    sa.event.listen(sa.Engine, "engine_connect", share)


def _share_questions_for_tables() -> None:
    """Have the dialects of PostgreSQL take each other's, of one version of the server."""
    for name, found in list(vars(PGDialect).items()):
        if not name.endswith("_query"):
            continue
        if hasattr(found, "__wrapped__"):  # kept by dialect and arguments
            method = partial(_shared, {}, found.__wrapped__)
            setattr(PGDialect, name, lambda self, *args, method=method: method(self, *args))
        elif hasattr(found, "fget"):  # a property that is kept in the dialect
            setattr(PGDialect, name, property(partial(_shared, {}, found.fget)))


def _shared(kept: dict[_Key, Any], make: Any, dialect: Any, *args: Any) -> Any:
    key = dialect.server_version_info, *args
    if key not in kept:
        kept[key] = make(dialect, *args)
    return kept[key]
