"""What was said of sessions, with the lives of their ids in which it may be seen.

A session that is removed ends a life of its id, and nothing that was said of it is ever seen by a
later one (invariant 14). What is under way when the next life begins is of either; but not what was
said where the session was held. What was said elsewhere is under way for a while, too, when whoever
said it was told that it may have been stored or not. See docs/decisions/0011-proof.md.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.testing._simulation._clients import Client
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._events import Log
from trio_sessions.testing._simulation._rules import Rules
from trio_sessions.testing._simulation._way import PATIENCE
from trio_sessions.testing._simulation._workers import STORE_TIMEOUT, SimulatedWorker

__all__ = ["Key", "Word", "WordRules", "Words"]

Key = tuple[int, str]
"""The server, and the birth of a row: while it is the same, nothing of the session was lost."""


@dataclass(eq=False, slots=True)
class Word:
    """Something that was said of a session once."""

    client: Client
    number: int
    began_in: int
    """The life of the id in which it was said."""
    ended_in: int | None = None
    """The one in which whoever said it was answered; None: nobody was yet."""
    lands_until: float = float("-inf")
    """Until then it may be stored yet, although whoever said it has an error."""

    def fail(self, error: SessionsError) -> None:
        """Note that whoever said it has an error; a batch has a last moment at which it begins."""
        is_answered = self.ended_in is not None  # it was said where the session was held
        if not is_answered and isinstance(error, StoreUnavailable) and not error.did_nothing:
            self.lands_until = trio.current_time() + STORE_TIMEOUT + PATIENCE

    def end(self) -> None:
        """Note that whoever said it was answered."""
        if self.ended_in is None:
            self.ended_in = self.client.life


class Words:
    """All that was said in a run; each is another number.

    Args:
        database: knows the rows.
        log: is told of what must not be.
    """

    def __init__(self, database: Database, log: Log) -> None:
        self._database = database
        self._log = log
        self._all: dict[int, Word] = {}

    def say(self, client: Client, worker: SimulatedWorker) -> Word:
        """Return a new one, which is said at a worker."""
        word = Word(client, len(self._all) + 1, client.life)
        if worker.opened.get_session_sync(client.session_id) is client.newest:
            word.end()
        self._all[word.number] = word
        return word

    def key(self, client: Client) -> Key | None:
        """Return where what is said of a session is stored now; None: it has no row."""
        born = self._database.born(client.session_id)
        return None if born is None else (self._database.server, born)

    def saw(
        self, what: str, worker: SimulatedWorker, client: Client, number: int, since: int
    ) -> Word:
        """Judge that something was seen of a session, and return what it was.

        Args:
            what: for whoever reads it.
            worker: by whom.
            client: the session.
            number: of the word.
            since: the life in which it was asked for; it was answered in the present one.
        """
        word = self._all[number]
        place = f"w{worker.number}"
        if word.client is not client:
            self._log.violate(
                f"{what} of {word.client.session_id} was seen by {place} for {client.session_id}"
            )
        was_before = (
            word.ended_in is not None
            and word.ended_in < since
            and word.lands_until < client.life_began_at
        )
        is_known = client.left_over is None or (
            worker is client.newest.worker
            or self._database.born(client.session_id) != client.left_over
        )
        if was_before and is_known and self._database.undeleted_at < client.life_began_at:
            self._log.violate(
                f"{what} of an earlier life of {client.session_id} was seen by {place}"
            )
        return word

    def can_tell(self, since: float) -> bool:
        """Say whether all that was asked since a moment was answered by the database as it is."""
        return self._database.lagged_at < since


class WordRules(Rules):
    """What the rules about words have in common."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._words = Words(self._database, self._log)

    def _at_any_worker(self, do: Callable[[Client, SimulatedWorker], Awaitable[None]]) -> bool:
        """Do something with a session at some worker, wherever the session is held."""
        clients, workers = self._alive(), self._workers()
        if not clients or not workers:
            return False
        client, worker = self._chance.choice(clients), self._chance.choice(workers)
        self._nursery.start_soon(do, client, worker)
        return True

    def _settled_key(self, client: Client) -> Key | None:
        """Return where what is said of a session is stored, if its holder knows so, too.

        For a while after the database went back, a holder that has not noticed it may yet write
        the row anew, with what it knows.
        """
        if not self._judge.is_surely_there(client, has_settled=True):
            return None
        return self._words.key(client)
