"""The local table: the sessions that this worker holds, in memory. Synchronous, no I/O."""

import enum
from collections.abc import Iterable

import trio

from trio_sessions._inbox import Inbox
from trio_sessions.abc import Transport
from trio_sessions.types import Capabilities

__all__ = ["NOBODY", "Entry", "LocalTable", "Row"]

NOBODY = ""
"""No owner, where None says that there is nothing to write."""


class Row(enum.Enum):
    """What this worker knows of the row of a session that it holds."""

    UNWRITTEN = enum.auto()
    """No attempt to write it has been confirmed: it is never read as missing."""
    WRITING = enum.auto()
    """An attempt is under way."""
    CONFIRMED = enum.auto()
    """It was there, in a committed answer: if a later answer lacks it, it is gone."""


class Pending:
    """What is still to be done with the row of a session, however often it was added."""

    __slots__ = ("capabilities", "leftover", "owner")

    def __init__(self) -> None:
        self.owner: str | None = None
        """An owner that is to be written with the row, or `NOBODY`."""
        self.capabilities: Capabilities | None = None
        """The client's capabilities, if they are to be written."""
        self.leftover = False
        """The row of a session that was removed here may be there, and must go first."""

    @property
    def is_noted(self) -> bool:
        """Something was said of the session that is still to be written."""
        return self.owner is not None or self.capabilities is not None

    def forget(self, owner: str | None, capabilities: Capabilities | None) -> None:
        """Forget what has been written, unless it has changed meanwhile."""
        if self.owner == owner:
            self.owner = None
        if self.capabilities is capabilities:
            self.capabilities = None


class Entry:
    """One session as it was added; adding the id again makes another entry."""

    __slots__ = (
        "_ended",
        "_written",
        "added_at",
        "error",
        "generation",
        "has_ended",
        "inbox",
        "pending",
        "row",
        "session_id",
        "tenure",
        "transport",
    )

    def __init__(
        self, session_id: str, transport: Transport, generation: int, added_at: float
    ) -> None:
        self.session_id = session_id
        self.transport = transport
        self.tenure = object()
        """Identifies the time for which one transport holds the session: it stays the same
        when the session is added again with that transport, by whatever call."""
        self.generation = generation
        self.added_at = added_at
        self.row = Row.UNWRITTEN
        self.error: Exception | None = None
        """Why the last attempt to write the row has failed."""
        self.pending = Pending()
        self.inbox: Inbox | None = None
        """Its messages; made when there is a first one, or when somebody opens it."""
        self.has_ended = False
        """It has left the table."""
        self._ended: trio.Event | None = None
        self._written: trio.Event | None = None

    def note_row(self, row: Row, error: Exception | None = None) -> None:
        """Note what has become of the writing of the row."""
        self.row, self.error = row, error
        if self._written is not None:
            self._written.set()
            self._written = None

    async def written(self) -> None:
        """Wait until the writing that is under way has ended."""
        if self._written is None:
            self._written = trio.Event()
        await self._written.wait()

    @property
    def ended(self) -> trio.Event:
        """Set when the entry has left the table; made when somebody first asks for it."""
        if self._ended is None:
            self._ended = trio.Event()
            if self.has_ended:
                self._ended.set()
        return self._ended

    def succeed(self, replaced: "Entry") -> None:
        """Take over what is the session's: its messages, and what is still to be written."""
        self.inbox, self.pending = replaced.inbox, replaced.pending
        if self.transport is replaced.transport:
            self.tenure = replaced.tenure
        elif self.inbox is not None:
            self.inbox.pass_on()
        replaced.end()

    def close(self) -> None:
        """The session has been removed."""
        if self.inbox is not None:
            self.inbox.close()
        self.end()

    def end(self) -> None:
        """Tell whoever waits for it that the entry has left the table."""
        self.has_ended = True
        if self._ended is not None:
            self._ended.set()


class LocalTable:
    """Entries by session id. An entry leaves only by identity, never by its id alone."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._entries

    def get(self, session_id: str) -> Entry | None:
        return self._entries.get(session_id)

    def ids(self) -> list[str]:
        return list(self._entries)

    def snapshot(self) -> list[Entry]:
        return list(self._entries.values())

    def put(self, session_id: str, transport: Transport, now: float) -> tuple[Entry, Entry | None]:
        """Publish a new entry; return it and the one that it replaces."""
        self.generation += 1
        entry = Entry(session_id, transport, self.generation, now)
        replaced = self._entries.get(session_id)
        self._entries[session_id] = entry
        if replaced is not None:
            entry.succeed(replaced)
        return entry, replaced

    def holds(self, entry: Entry) -> bool:
        return self._entries.get(entry.session_id) is entry

    def discard(self, entry: Entry) -> bool:
        """Take ``entry`` out if it is still the one published; say whether it was."""
        if not self.holds(entry):
            return False
        del self._entries[entry.session_id]
        entry.close()
        return True

    def clear(self) -> list[Entry]:
        """Take everything out."""
        entries = self.snapshot()
        self._entries.clear()
        for entry in entries:
            entry.close()
        return entries

    def count(self, rows: Iterable[Row]) -> int:
        """Count the entries whose row is in one of these states."""
        wanted = frozenset(rows)
        return sum(entry.row in wanted for entry in self._entries.values())
