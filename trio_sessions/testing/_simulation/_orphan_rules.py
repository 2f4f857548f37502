"""How sessions are adopted from a worker that has died, and what must hold of it.

Beside what holds of every adoption: the row waits for an adopter for as long as its holder's lease
lasts, and who wins has the whole session, its log too, as far as that is kept.
"""

import trio

from trio_sessions.abc import Part
from trio_sessions.errors import SessionsError
from trio_sessions.testing._simulation._adoption_rules import Adoption, AdoptionRules
from trio_sessions.testing._simulation._clients import Client
from trio_sessions.testing._simulation._log_rules import LOG_TTL, LogRules
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["OrphanRules"]

_MOST = 4  # sessions that are adopted from one worker
_DELAYS = (0.0, 0.1, 2.0, 20.0, 50.0)  # seconds until somebody hears of the end of a worker
_MOST_ENTRIES = 10_000  # of one log


class OrphanRules(AdoptionRules, LogRules):
    """The rules about sessions whose worker died; a rule that has nothing to do says False."""

    def crash_and_adopt(self) -> bool:
        """A worker dies, and others adopt its sessions, at once or before its lease is over."""
        workers = self._workers()
        worker = self._chance.choice(workers) if workers else None
        others = [one for one in workers if one is not worker]
        known = [
            one
            for one in self._alive()
            if one.newest.worker is worker and self._can_be_orphaned(one)
        ]
        if worker is None or not others or not known:
            return False
        orphans = self._chance.sample(known, min(len(known), _MOST))
        for client in orphans:
            client.is_restless = client.is_orphan = True
        worker.kill()
        self._bury(worker)
        for client in orphans:
            adopters = self._chance.sample(others, self._chance.randint(1, len(others)))
            client.adopters = frozenset(adopters)
            adoption = Adoption(client)
            self._nursery.start_soon(self._adopt_orphan, adoption, adopters)
        return self._fault("worker crashed, and was adopted from", "crashes", worker.number)

    def _can_be_orphaned(self, client: Client) -> bool:
        return (
            client.newest.is_added
            and not client.is_restless
            and not client.adopters
            and self._settled_key(client) is not None
        )

    async def _adopt_orphan(self, adoption: Adoption, adopters: list[SimulatedWorker]) -> None:
        client = adoption.client
        key, began_at = self._words.key(client), trio.current_time()
        entries = {} if key is None else dict(self._log_of(key).appended)
        await trio.sleep(self._chance.choice(_DELAYS))
        await self._adopt(adoption, adopters)
        client.is_orphan = False
        if len(adoption.winners) == 1 and key is not None and self._plays(Part.LOGS):
            newest = adoption.winners[0]
            due = {
                entry_id: word
                for entry_id, (word, at) in entries.items()
                if at > trio.current_time() - LOG_TTL
            }
            if newest is client.newest and self._database.undeleted_at < began_at:
                await self._read_what_was_kept(client, newest.worker, due)

    async def _read_what_was_kept(
        self, client: Client, worker: SimulatedWorker, due: dict[int, int]
    ) -> None:
        """Object if the winner does not have what was in the log before."""
        newest, began_at = client.newest, trio.current_time()
        try:
            found = await worker.opened.logs.read(client.session_id, limit=_MOST_ENTRIES)
        except SessionsError:
            return
        if client.newest is not newest or self._settled_key(client) is None:
            return
        if not self._words.can_tell(began_at) or self._database.undeleted_at >= began_at:
            return
        self._log.judged["logs that were adopted"] += 1
        lost = due.items() - {entry.id: entry.event for entry in found}.items()
        if lost:
            self._log.violate(
                f"w{worker.number} has adopted {client.session_id}, and its log has lost "
                f"{sorted(lost)}"
            )
