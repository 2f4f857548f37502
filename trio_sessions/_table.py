"""The local table: the sessions that this worker holds, in memory. Synchronous, no I/O.

See docs/decisions/0009-one-writer.md, "By identity".
"""

from trio_sessions._entry import Entry, Row, RowCounts
from trio_sessions.abc import Transport
from trio_sessions.types import RemovalReason

__all__ = ["LocalTable"]


class LocalTable:
    """Entries by session id. An entry leaves only by identity, never by its id alone."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._generation = 0
        self._rows = RowCounts()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._entries

    def get(self, session_id: str) -> Entry | None:
        """Return the entry that is held under this id."""
        return self._entries.get(session_id)

    def ids(self) -> list[str]:
        """Return the ids, in the order in which they were first added."""
        return list(self._entries)

    def snapshot(self) -> list[Entry]:
        """Return the entries as they are now."""
        return list(self._entries.values())

    def next_generation(self) -> int:
        """Return the generation of a session that may be put here later."""
        self._generation += 1
        return self._generation

    def put(
        self, session_id: str, transport: Transport, now: float, *, generation: int | None = None
    ) -> tuple[Entry, Entry | None]:
        """Publish a new entry; return it and the one that it replaces.

        Args:
            session_id: its id.
            transport: the live connection.
            now: when it was added.
            generation: one that was given out before; None: the next one.
        """
        replaced = self._entries.get(session_id)
        entry = Entry(
            session_id,
            transport,
            self.next_generation() if generation is None else generation,
            now,
            replaced=replaced,
            counts=self._rows,
        )
        self._entries[session_id] = entry
        if replaced is not None:
            replaced.end(RemovalReason.TAKEN_OVER)
        return entry, replaced

    def holds(self, entry: Entry) -> bool:
        """Say whether ``entry`` is the one published."""
        return self._entries.get(entry.session_id) is entry

    def discard(self, entry: Entry, reason: RemovalReason) -> bool:
        """Take ``entry`` out if it is still the one published; say whether it was."""
        if not self.holds(entry):
            return False
        del self._entries[entry.session_id]
        entry.end(reason)
        return True

    def count(self, *rows: Row) -> int:
        """Count the entries whose row is in one of these states, however many there are."""
        return self._rows.of(*rows)
