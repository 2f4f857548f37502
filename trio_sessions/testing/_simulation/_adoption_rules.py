"""How sessions are adopted, and what must hold of it.

Several workers try to adopt a session from the one that holds it, at once. One of them wins, at
most, and the older holder lets go. Where none has won, and each was told so, it stays where it is.
"""

import trio

from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._rules import Rules
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["Adoption", "AdoptionRules"]

_PATIENCE = 60.0  # seconds for which an adopter asks again
_AGAIN = 0.5  # seconds until it does


class Adoption:
    """The attempts to adopt one session at a time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.holder = client.newest
        self.began_at = trio.current_time()
        self.winners: list[Connection] = []
        self.is_certain = True
        """Whoever tried was told what has become of it."""


class AdoptionRules(Rules):
    """The rules about adoption; a rule that has nothing to do says False."""

    def adopt(self) -> bool:
        """Some workers try to adopt a session, whether its holder lives or is stopped."""
        free = [one for one in self._free() if not one.is_restless]
        if not free:
            return False
        client = self._chance.choice(free)
        others = [one for one in self._workers() if one is not client.newest.worker]
        if not others:
            return False
        adopters = self._chance.sample(others, self._chance.randint(1, len(others)))
        client.is_restless = True
        client.adopters = frozenset(adopters)
        self._nursery.start_soon(self._adopt, Adoption(client), adopters)
        return True

    async def _adopt(self, adoption: Adoption, adopters: list[SimulatedWorker]) -> None:
        client = adoption.client
        async with trio.open_nursery() as nursery:
            for worker in adopters:
                self._connections += 1
                connection = Connection(
                    client,
                    worker,
                    self._connections,
                    trio.current_time(),
                    self._judge.disconnected,
                )
                nursery.start_soon(self._try_to_adopt, adoption, connection)
        client.adopters = frozenset()
        # Who took the row unheard is told no if somebody has deleted it meanwhile, by mistake say.
        was_deleted = any(
            "deleted by hand"
            in self._database.truth.ends(one.incarnation, client.session_id, adoption.began_at)
            for one in adopters
        )
        adoption.holder.may_be_adopted |= was_deleted or not adoption.is_certain
        client.is_restless = False
        if not client.is_alive:
            client.leave()
        holder = adoption.holder
        was_kept = self._database.undeleted_at < adoption.began_at and adoption.is_certain
        was_kept &= not any(
            self._database.truth.ends(one.incarnation, client.session_id, adoption.began_at)
            for one in adopters
        )
        if not adoption.winners and holder.why == "adopted" and was_kept:
            self._log.violate(
                f"w{holder.worker.number} has let go of {client.session_id}, and nobody has it"
            )

    async def _try_to_adopt(self, adoption: Adoption, connection: Connection) -> None:
        client, worker = adoption.client, connection.worker
        from_worker = adoption.holder.worker.incarnation
        self._log.note(worker.number, f"adopts {client.session_id}")
        while True:
            was_there = self._may_be_adopted(adoption, worker)
            try:
                has_won = await worker.opened.adopt_session(
                    client.session_id, connection, from_worker=from_worker
                )
            except StoreUnavailable:
                if trio.current_time() < adoption.began_at + _PATIENCE and worker.is_open:
                    await trio.sleep(_AGAIN)
                    continue
                adoption.is_certain = False
                return
            except SessionsError:
                adoption.is_certain &= worker.is_open  # else its process may have won
                return
            break
        self._log.note(worker.number, f"adopts {client.session_id}: {has_won}")
        if has_won:
            self._win(adoption, connection)
        elif worker.is_open and self._database.undeleted_at < adoption.began_at:
            self._judge_refusal(adoption, worker, was_there=was_there)

    def _may_be_adopted(self, adoption: Adoption, worker: SimulatedWorker) -> bool:
        """Say whether the holder that is named holds it still, and this worker does not."""
        session_id = adoption.client.session_id
        return (
            worker.is_open
            and self._database.holders().get(session_id) == adoption.holder.worker.incarnation
            and worker.opened.get_session_sync(session_id) is None
        )

    def _judge_refusal(
        self, adoption: Adoption, worker: SimulatedWorker, *, was_there: bool
    ) -> None:
        """Object if somebody was told no, who may adopt it, or has."""
        self._log.judged["adoptions that were refused"] += 1
        session_id, place = adoption.client.session_id, f"w{worker.number}"
        is_there = self._may_be_adopted(adoption, worker)
        if was_there and is_there:
            self._log.violate(
                f"{place} was told that w{adoption.holder.worker.number} does not hold "
                f"{session_id} any more, and it does"
            )
        is_here = self._database.holders().get(session_id) == worker.incarnation
        if was_there and is_here and worker.opened.get_session_sync(session_id) is None:
            self._log.violate(f"{place} was told that it has not adopted {session_id}, and it has")

    def _win(self, adoption: Adoption, connection: Connection) -> None:
        client, worker = adoption.client, connection.worker
        self._log.judged["adoptions that were won"] += 1
        if not self._database.truth.was_written(
            worker.incarnation, client.session_id, adoption.began_at
        ):
            self._log.violate(
                f"w{worker.number} was told that it has adopted {client.session_id}, and the row "
                "was never its own"
            )
        is_second = any(one.is_held for one in adoption.winners)
        if is_second and self._database.undeleted_at < adoption.began_at:
            self._log.violate(f"two workers have adopted {client.session_id}")
        adoption.winners.append(connection)
        connection.is_added = True
        client.connections.append(connection)
        client.connections.sort(key=_number)


def _number(connection: Connection) -> int:
    return connection.number
