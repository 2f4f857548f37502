"""The tables of the simulated database, which can be copied as they stand."""

import copy

from trio_sessions.stores.memory._mail import Mail
from trio_sessions.stores.memory._rows import Numbers, Row, Rows
from trio_sessions.stores.memory._workers import Workers

__all__ = ["Fleet", "Letters", "Table"]


def _copy_row(row: Row) -> Row:
    """Return a copy; what is in it is never changed, but for its messages and log."""
    return Row(
        born=row.born,
        created_at=row.created_at,
        worker_id=row.worker_id,
        incarnation=row.incarnation,
        generation=row.generation,
        owner=row.owner,
        capabilities=row.capabilities,
        data=row.data,
        messages=dict(row.messages),
        log=dict(row.log),
        taken_at=row.taken_at,
        last_accessed=row.last_accessed,
    )


class Table(Rows):
    """The rows of sessions.

    Args:
        births: where births come from. No two sessions ever have the same, also not where the
            database went back; ids of messages begin again, as a restored sequence does.
    """

    def __init__(self, births: Numbers | None = None) -> None:
        super().__init__()
        self._births = births or Numbers()

    def copy(self) -> "Table":
        """Return the table as it stands."""
        copied = Table(self._births)
        copied._message_ids = Numbers(self._message_ids.following)
        copied.marks = self.marks.copy()
        copied._entry_ids = Numbers(self._entry_ids.following)
        for session_id, row in self.items():
            copied[session_id] = _copy_row(row)
        return copied

    def emptied(self) -> "Table":
        """Return the table of another database, which is empty."""
        return Table(self._births)


class Fleet(Workers):
    """The rows of workers, and the fleet's row, which says under which server it was stamped."""

    def __init__(self, server: int | None = None) -> None:
        super().__init__()
        self.server = server
        self._settled_at = float("-inf")

    def copy(self) -> "Fleet":
        """Return the rows as they stand."""
        copied = copy.copy(self)
        copied._rows = {one: copy.copy(row) for one, row in self._rows.items()}
        copied._gone = dict(self._gone)
        return copied

    def note_server(self, server: int, now: float) -> None:
        """Note the server under which the fleet is stamped; others find out in a while."""
        if self.server != server:
            self.server = server
            longest = max((row.presence.stamp_interval for row in self._rows.values()), default=0.0)
            self._settled_at = now + 2 * longest

    def is_unsettled(self, server: int, now: float) -> bool:
        """Say whether this server is another one than the one that the fleet is known to use."""
        return self.server != server or now < self._settled_at


class Letters(Mail):
    """The letters to workers, and who listens to which topic."""

    def copy(self) -> "Letters":
        """Return them as they stand."""
        copied = Letters()
        copied._letters = {one: copy.deepcopy(box) for one, box in self._letters.items()}
        copied._topics = {topic: set(ones) for topic, ones in self._topics.items()}
        return copied
