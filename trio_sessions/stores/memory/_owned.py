"""Which sessions each owner may have, so that nobody looks through all for those of one."""

from collections.abc import Collection

__all__ = ["Owned"]


class Owned:
    """Ids of sessions by their owner. Whoever asks looks at the rows, too: they are what counts."""

    def __init__(self) -> None:
        self._ids: dict[str, set[str]] = {}

    def of(self, owner: str) -> Collection[str]:
        """Return the ids of an owner's sessions, and perhaps some others."""
        return self._ids.get(owner, ())

    def change(self, session_id: str, before: str | None, after: str | None) -> None:
        """Note that a session has another owner now; None: nobody, or that there is none."""
        if before is not None and before in self._ids:
            self._ids[before].discard(session_id)
            if not self._ids[before]:
                del self._ids[before]
        if after is not None:
            self._ids.setdefault(after, set()).add(session_id)
