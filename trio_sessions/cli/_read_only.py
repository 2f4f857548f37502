"""How an SQLite file is opened by who only looks: nothing is made, neither it nor beside it."""

from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa

from trio_sessions.stores.database.sqlite._files import path_of

__all__ = ["is_at_rest", "read_only"]

_WAL = 2  # https://www.sqlite.org/fileformat.html#file_format_version_numbers


def read_only(url: sa.URL) -> sa.URL:
    """Return the URL that opens the file for reading, and makes none beside it.

    A file in WAL mode that nobody has open gets a log and an index as soon as somebody reads it,
    and keeps them, unless that one says that it does not change.
    """
    path = Path(path_of(url))
    query = {"mode": "ro", "uri": "true"}
    if is_at_rest(path):
        query["immutable"] = "1"
    return sa.URL.create(url.drivername, database=f"file:{quote(str(path))}", query=query)


def is_at_rest(path: Path) -> bool:
    """Say whether a file is in WAL mode, and nobody has it open."""
    if path.with_name(f"{path.name}-shm").exists():
        return False
    # It is not open in this process either: closing it would lose the locks that SQLite has on it.
    with path.open("rb") as file:
        return file.read(20)[18:20] == bytes((_WAL, _WAL))
