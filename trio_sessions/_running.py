"""Calls into transports that had to wait and have not ended, of all rounds. Synchronous, no I/O.

The one owner of that fact: a round tells it of each call that begins to wait, and of its end, and
asks it whom not to call again. See docs/decisions/0002-transports-in-a-system-task.md.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from trio_sessions._entry import Entry

__all__ = ["Running", "Scope"]


class Scope(Protocol):
    """A scope that can cancel the calls of one leading task."""

    @property
    def cancel_called(self) -> bool: ...

    def cancel(self) -> None: ...


class Running:
    """The calls of one registry that wait."""

    __slots__ = ("_scopes", "calls")

    def __init__(self) -> None:
        self._scopes: dict[tuple[Entry, str], Scope] = {}
        self.calls: Mapping[tuple[Entry, str], Scope] = MappingProxyType(self._scopes)
        """Sessions and names of methods, to be read only; a view, for it is read before each call
        that is made, and most of these do not wait."""

    def begin(self, entry: Entry, name: str, scope: Scope) -> None:
        """Note that a call has to wait, in a scope that can cancel it."""
        self._scopes[entry, name] = scope

    def end(self, entry: Entry, name: str) -> None:
        """Note that it has ended; it need not have been noted."""
        self._scopes.pop((entry, name), None)

    def overdue(self) -> int:
        """Count the calls that were cancelled and have not ended."""
        return sum(scope.cancel_called for scope in self._scopes.values())

    def cancel(self) -> None:
        """Cancel them all."""
        for scope in list(self._scopes.values()):
            scope.cancel()
