"""The files that are open in this process, and those that its parent had open at the fork.

**A file that was deleted or replaced goes on answering** whoever has it open: what is written there
is lost, and what is asked of it says nothing of the file that the others have. So each
connection is compared with its path before it is used, by device and inode.

SQLite knows which locks a process has on a file, and asks the system for no other. A fork
copies that knowledge and not the locks. A child that opened the file once more would
hold none: its parent, closing, takes itself for the last user and deletes the log that the
child is writing to. See https://sqlite.org/howtocorrupt.html, section 2.6.
"""

import os
import weakref
from pathlib import Path

import sqlalchemy as sa

from trio_sessions.errors import StoreInUse, StoreUnavailable

__all__ = ["PATH", "has_closed", "leads_elsewhere", "opens", "path_of"]

PATH = "trio_sessions_path"
"""An execution option: where the file is, whatever becomes of the working directory."""

_FILE = "trio_sessions_file"


class _Files:
    """The paths of open files, by what has opened them: an opening, or an engine handed in."""

    def __init__(self) -> None:
        self.open: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()
        self.inherited: set[str] = set()

    def inherit(self) -> None:
        """Note, in a forked child, that the files that are open are its parent's."""
        self.inherited.update(self.open.values())
        self.open.clear()


_files = _Files()
os.register_at_fork(after_in_child=_files.inherit)


def path_of(url: sa.URL) -> str:
    """Return where the file of a URL is; links are followed when somebody looks at it."""
    return str(Path((url.database or "").removeprefix("file:").partition("?")[0]).absolute())


def leads_elsewhere(connection: sa.Connection) -> bool:
    """Say whether there is another file at the path by now, or none; one ``stat``.

    Which file a connection has open is noted when it is seen for the first time. Where nobody can
    say what is at the path, or an engine that was handed in opens another, it stays unknown.
    """
    here: tuple[int, int] | None = None
    try:
        found = Path(connection.get_execution_options()[PATH]).stat()
        here = found.st_dev, found.st_ino
    except FileNotFoundError:
        pass
    except OSError:
        return False
    noted = connection.info.setdefault(_FILE, here)
    return noted is not None and noted != here


def opens(opening: object, url: sa.URL) -> None:
    """Note that a file is opened, or raise `StoreInUse` if it must not be; see `Database.opens`."""
    path = os.path.realpath(path_of(url))
    if path in _files.inherited:
        raise StoreInUse(
            f"{path} was open when this process was forked, and SQLite keeps its locks by the "
            "process: what is written here could be lost. Open the store after the fork only, "
            "start the process by 'spawn', or use PostgreSQL"
        )
    folder = Path(path).parent
    if not folder.is_dir():
        raise StoreUnavailable(
            f"the folder {folder} of the SQLite file {Path(path).name} does not exist, and only "
            "the file is made here: create the folder, or look whether the path is right (three "
            "slashes begin a relative one, four an absolute one)"
        )
    _files.open[opening] = path


def has_closed(opening: object) -> None:
    """Note that a file is closed."""
    _files.open.pop(opening, None)
