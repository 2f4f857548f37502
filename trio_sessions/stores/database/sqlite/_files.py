"""The files that are open in this process, and those that its parent had open at the fork.

SQLite knows which locks a process has on a file, and asks the system for no other. A fork
copies that knowledge and not the locks. A child that opened the file once more would
hold none: its parent, closing, takes itself for the last user and deletes the log that the
child is writing to. See https://sqlite.org/howtocorrupt.html, section 2.6.
"""

import os
import weakref

import sqlalchemy as sa

from trio_sessions.errors import StoreInUse

__all__ = ["has_closed", "opens"]


class _Files:
    """Paths by what has opened them: an opening, or an engine that was handed in."""

    def __init__(self) -> None:
        self.open: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
        self.inherited: set[str] = set()

    def inherit(self) -> None:
        """In a forked child: what is open is the parent's."""
        self.inherited.update(self.open.values())
        self.open.clear()


_files = _Files()
os.register_at_fork(after_in_child=_files.inherit)


def opens(opening: object, url: sa.URL) -> None:
    """Note that a file is opened; see `Database.opens`."""
    path = os.path.realpath((url.database or "").removeprefix("file:").partition("?")[0])
    if path in _files.inherited:
        raise StoreInUse(
            f"{path} was open when this process was forked, and SQLite keeps its locks by the "
            "process: what is written here could be lost. Open the store after the fork only, "
            "start the process by 'spawn', or use PostgreSQL"
        )
    _files.open[opening] = path


def has_closed(opening: object) -> None:
    """Note that a file is closed."""
    _files.open.pop(opening, None)
