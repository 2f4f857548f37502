"""What happens with the logs of sessions, and what must hold of them.

Ids grow. A reader who goes on after the last id misses nothing that was appended, sees nothing
twice, and nothing of an earlier life of the id. Where the database has gone back it begins anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import trio

from trio_sessions.errors import SessionsError
from trio_sessions.testing._simulation._clients import Client
from trio_sessions.testing._simulation._words import Key, WordRules
from trio_sessions.testing._simulation._workers import SimulatedWorker
from trio_sessions.types import LogEntry

__all__ = ["LOG_TTL", "LogRules"]

LOG_TTL = 590.0  # seconds, a bit less than log_ttl: older entries may be gone
_FEW, _MANY = 3, 1000  # entries of one read


@dataclass(slots=True)
class _Reading:
    """The log in one row, on one server, as one reader knows it."""

    appended: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Words and moments, by the id that whoever appended them was told."""
    seen: dict[int, int] = field(default_factory=dict)
    """Words by their ids."""
    last: int = 0
    """The id of the last entry that was seen."""


class LogRules(WordRules):
    """The rules about logs; a rule that has nothing to do says False."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._logs: dict[Key, _Reading] = {}

    def append(self) -> bool:
        """Somebody appends to the log of a session, at whatever worker."""
        return self._at_any_worker(self._append)

    def read_on(self) -> bool:
        """Somebody reads what has come to the log of a session."""
        return self._at_any_worker(self._read_on)

    def _log_of(self, key: Key) -> _Reading:
        return self._logs.setdefault(key, _Reading())

    async def _append(self, client: Client, worker: SimulatedWorker) -> None:
        word, key = self._words.say(client, worker), self._settled_key(client)
        try:
            entry_id = await worker.opened.logs.append(client.session_id, word.number)
        except SessionsError:
            return
        finally:
            word.end()
        self._log.note(worker.number, f"appends {entry_id}: {word.number} to {client.session_id}")
        if key is None or key != self._settled_key(client):
            return
        log = self._log_of(key)
        if entry_id in log.appended:
            self._log.violate(f"two entries of the log of {client.session_id} have one id")
        log.appended[entry_id] = word.number, trio.current_time()
        if entry_id <= log.last and entry_id not in log.seen:
            self._log.violate(
                f"entry {entry_id} of {client.session_id} came to be seen behind {log.last}: "
                "whoever reads on misses it"
            )

    async def _read_on(self, client: Client, worker: SimulatedWorker) -> None:
        begun_at, life, key = trio.current_time(), client.life, self._settled_key(client)
        log = _Reading() if key is None else self._log_of(key)
        after, limit = log.last, self._chance.choice([_FEW, _MANY])
        due = {
            one: word
            for one, (word, at) in log.appended.items()
            if one > after and at > begun_at - LOG_TTL
        }
        try:
            entries = await worker.opened.logs.read(client.session_id, after=after, limit=limit)
        except SessionsError:
            return
        self._log.note(worker.number, f"reads {len(entries)} of {client.session_id}, from {after}")
        for entry in entries:
            self._words.saw("an entry of the log", worker, client, entry.event, life)
        self._judge_order(client, after, entries)
        if key is None or key != self._settled_key(client):
            return
        if self._words.can_tell(begun_at):
            self._judge_gaps(client, due, entries, limit)
        self._take_note(client, log, entries)

    def _judge_order(self, client: Client, after: int, entries: Sequence[LogEntry]) -> None:
        ids = [after, *(entry.id for entry in entries)]
        if any(one >= following for one, following in pairwise(ids)):
            self._log.violate(f"the log of {client.session_id} is read in the order {ids}")

    def _judge_gaps(
        self, client: Client, due: dict[int, int], entries: Sequence[LogEntry], limit: int
    ) -> None:
        """Object if something is missing that was appended before the log was read."""
        found = {entry.id: entry.event for entry in entries}
        until = entries[-1].id if len(entries) >= limit else None
        for entry_id, word in due.items():
            if (until is None or entry_id <= until) and found.get(entry_id) != word:
                self._log.violate(
                    f"entry {entry_id} of the log of {client.session_id} was appended, and is "
                    f"read as {found.get(entry_id, 'nothing')}"
                )

    def _take_note(self, client: Client, log: _Reading, entries: Sequence[LogEntry]) -> None:
        for entry in entries:
            before = [one for one, word in log.seen.items() if word == entry.event]
            if before not in ([], [entry.id]):
                self._log.violate(f"one entry of the log of {client.session_id} is there twice")
            log.seen[entry.id] = entry.event
            log.last = max(log.last, entry.id)
