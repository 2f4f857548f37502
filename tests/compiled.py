"""Statements are compiled once in a process of tests, not once for each engine.

SQLAlchemy keeps what it has compiled by the dialect, and each engine has a dialect of its own. To
open a store is a third compiling; the tests open thousands.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import sqlalchemy as sa

__all__ = ["share_compiled_statements"]

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


def share_compiled_statements() -> None:
    """Let every engine of this process, from now on, keep what is compiled in one place."""
    shared = _Shared()

    def share(connection: sa.Connection) -> None:
        connection.execution_options(compiled_cache=shared)

    sa.event.listen(sa.Engine, "engine_connect", share)
