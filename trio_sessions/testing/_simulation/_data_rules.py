"""What happens with the data of sessions, and what must hold of it.

Nobody sees data of an earlier life of an id. What is stored stays, whoever holds the session, until
something else is said: only what was not answered, or noted for later, may come behind it.
"""

import json
from collections import defaultdict
from typing import Any

import trio

from trio_sessions.abc import Part
from trio_sessions.errors import SessionsError
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._words import Key, Word, WordRules
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["DataRules"]


class DataRules(WordRules):
    """The rules about data; a rule that has nothing to do says False."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._stored: dict[Key, int] = {}
        """The number of what was there last when somebody was told so, by the row."""
        self._astray: dict[Client, set[int]] = defaultdict(set)
        """What may be written yet: it was not answered, or only noted."""
        self._known: dict[Connection, int] = {}
        """What was said last where the session was held, and stored: a row that is written anew
        after the database went back brings it."""
        self._brought_by: dict[Connection, Word] = {}

    def say_data(self) -> bool:
        """Somebody replaces the data of a session, at whatever worker."""
        return self._at_any_worker(self._say_data)

    def ask_data(self) -> bool:
        """Somebody asks for the data of a session."""
        return self._at_any_worker(self._ask_data)

    def _brought(self, connection: Connection) -> dict[str, Any]:
        brought = super()._brought(connection)
        if not self._plays(Part.DATA) or self._chance.random() < 0.5:  # noqa: PLR2004 -- a coin
            return brought
        word = self._brought_by[connection] = self._words.say(connection.client, connection.worker)
        self._log.note(connection.worker.number, f"brings data {word.number}")
        self._astray[connection.client].add(word.number)
        return {**brought, "data": {"word": word.number}}

    async def _add(self, connection: Connection) -> None:
        await super()._add(connection)
        word = self._brought_by.pop(connection, None)
        if word is not None:
            word.end()
            self._note_data(connection.client, word, connection.worker)

    async def _say_data(self, client: Client, worker: SimulatedWorker) -> None:
        word = self._words.say(client, worker)
        self._astray[client].add(word.number)
        try:
            await worker.opened.set_session_data(client.session_id, {"word": word.number})
        except SessionsError as exc:
            word.fail(exc)
            self._log.note(worker.number, f"data {word.number} of {client.session_id}?")
            return
        finally:
            word.end()
        self._log.note(worker.number, f"data {word.number} of {client.session_id}")
        self._note_data(client, word, worker)

    def _note_data(self, client: Client, word: Word, worker: SimulatedWorker) -> None:
        """Note that something was said; it may be only noted, to be written with the row."""
        key = self._settled_key(client)
        if key is not None and _number(self._database.data(client.session_id)) == word.number:
            self._astray[client].discard(word.number)
            self._stored[key] = word.number
            known, is_holder = self._known.get(client.newest), worker is client.newest.worker
            if is_holder or (known is not None and known > word.number):
                self._known[client.newest] = word.number

    async def _ask_data(self, client: Client, worker: SimulatedWorker) -> None:
        begun_at, life, key = trio.current_time(), client.life, self._settled_key(client)
        newest = client.newest
        stored = 0 if key is None else max(self._stored.get(key, 0), self._known.get(newest, 0))
        try:
            data = await worker.opened.get_session_data(client.session_id)
        except SessionsError:
            return
        number = 0 if data is None else int(data["word"])
        self._log.note(worker.number, f"reads data {number} of {client.session_id}")
        if number:
            self._words.saw("data", worker, client, number, life)
        is_settled = newest is client.newest and key == self._settled_key(client)
        if _holds_another(worker, newest):
            return
        if key is None or not is_settled or not self._words.can_tell(begun_at):
            return
        if number < stored and number not in self._astray[client]:
            self._log.violate(
                f"w{worker.number} reads data {number} of {client.session_id}, but {stored} was "
                "stored before it asked"
            )


def _holds_another(worker: SimulatedWorker, newest: Connection) -> bool:
    """Say whether a worker holds an older connection, whose row it could not write.

    In doubt it does not believe that the session has moved, and tells what it has noted of it.
    """
    entry = worker.opened._house.table.get(newest.client.session_id)
    return entry is not None and entry.transport is not newest and not entry.pending.is_empty


def _number(data: str | None) -> int:
    return 0 if data is None else int(json.loads(data)["word"])
