"""How many sessions there may be and for how long, and what must hold of it.

Without a fault no owner ever has more sessions than it may, and who is silent for too long, or
there for too long, goes in time; never earlier, whatever happens (that is for the judge to say).
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import trio

from trio_sessions import Limits, TooManySessions
from trio_sessions.abc import Part
from trio_sessions.testing._simulation._clients import Connection
from trio_sessions.testing._simulation._rules import Rules

__all__ = ["LimitRules"]

_OWNERS = 6
_MOST = 3  # sessions of one owner
_MOST_HERE = 12  # sessions of one of the workers
_IDLE, _AGE = 90.0, 240.0  # seconds
_SLACK = 6.0  # seconds that a pass takes, and more


class LimitRules(Rules):
    """The rules about limits; a rule that has nothing to do says False."""

    def _settings(self, number: int) -> Mapping[str, Any]:
        settings = super()._settings(number)
        if not self._plays(Part.LIMITS):
            return settings
        limits = Limits(
            max_sessions_per_owner=_MOST,
            max_sessions=_MOST_HERE if number == 1 else None,
            idle_timeout=_IDLE if number != 1 else None,
            max_age=_AGE if number % 2 else None,
        )
        return {**settings, "limits": limits}

    def _brought(self, connection: Connection) -> dict[str, Any]:
        brought, client = super()._brought(connection), connection.client
        if not self._plays(Part.LIMITS):
            return brought
        client.owner = client.owner or f"o{self._chance.randrange(_OWNERS)}"
        return {**brought, "owner": client.owner}

    async def _add(self, connection: Connection) -> None:
        client = connection.client
        was_there = self._database.owner(client.session_id) == client.owner is not None
        await super()._add(connection)
        if isinstance(connection.refusal, TooManySessions):
            self._refused(connection, was_there=was_there)

    def _refused(self, connection: Connection, *, was_there: bool) -> None:
        client = connection.client
        self._log.note(connection.worker.number, f"refuses {client.session_id}")
        if len(client.connections) > 1:  # it stays where it was
            client.connections.remove(connection)
        is_there = self._database.owner(client.session_id) == client.owner
        if was_there and is_there and self._is_calm and connection.worker.number != 1:
            self._log.violate(f"{client.session_id} was refused, which its owner has already")

    def touch(self) -> bool:
        """A gateway hears of a session."""
        workers = self._workers()
        here = [one for one in self._alive() if one.newest.worker in workers]
        if not here:
            return False
        newest = self._chance.choice(here).newest
        if newest.worker.opened.get_session_sync(newest.client.session_id) is newest:
            newest.worker.opened.touch(newest.client.session_id)
            newest.touched_at = trio.current_time()
        return True

    # ---- after every step ----

    def look(self) -> None:
        """Look at what can be seen at any time."""
        if not self._plays(Part.LIMITS) or not self._is_calm:
            return
        for owner, number in Counter(self._database.owners()).items():
            if number > _MOST:
                self._log.violate(f"{owner} has {number} sessions, and may have {_MOST}")
        for worker in self._judge.workers:
            if worker.number == 1 and worker.is_open:
                number = worker.opened.statistics().sessions
                if number > _MOST_HERE:
                    self._log.violate(f"w1 holds {number} sessions, and may hold {_MOST_HERE}")
        for client in self._alive():
            self._judge_silence(client.newest)

    def _judge_silence(self, connection: Connection) -> None:
        """Object if somebody is here who should have gone."""
        worker = connection.worker
        limits = worker.settings["limits"]
        now, patience = trio.current_time(), 2 * worker.cleanup_interval + _SLACK
        silent_since = max(connection.added_at, connection.touched_at)
        # A connection that was replaced meanwhile may have opened the inbox after the newest one.
        is_read = any(one.is_read for one in connection.client.connections if one.worker is worker)
        name = connection.client.session_id
        if (
            limits.idle_timeout is not None
            and now - silent_since > limits.idle_timeout + patience
            and not is_read
        ):
            self._log.violate(f"{name} is silent for {now - silent_since:.0f} s, and is held")
        if limits.max_age is not None and now - connection.added_at > limits.max_age + patience:
            self._log.violate(f"{name} is here for {now - connection.added_at:.0f} s, and is held")
