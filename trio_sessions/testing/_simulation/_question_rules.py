"""What operators ask, and what the answers may say.

An answer may be unknown, never wrong: nobody says of a session that is held, and whose row was
confirmed, that it is not there, or that another worker holds it; nobody tells of one that has
ended; and what is said of workers is judged by their stamps (`_states`). A list is in order, and
has everything that was there all the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from trio_sessions.errors import SessionsError
from trio_sessions.inspection import SessionInfo
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._states import States
from trio_sessions.testing._simulation._words import WordRules
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["QuestionRules"]

_LIMITS = (1, 3, 1000)  # sessions in one page
_ANNOUNCED = 10.0  # seconds in which the others know of a drain, without a fault


@dataclass(frozen=True, slots=True)
class _Sure:
    """What is sure of a session when somebody asks."""

    client: Client
    newest: Connection
    is_there: bool
    """Everybody has to know of it."""
    is_settled: bool
    """And everybody has to know who holds it."""
    has_ended: bool
    """It has no row, and nobody holds it."""


class QuestionRules(WordRules):
    """The rules about questions; a rule that has nothing to do says False."""

    def describe(self) -> bool:
        """Somebody asks at some worker for all that is known of a session."""
        clients, workers = list(self._judge.clients.values()), self._running()
        if not clients or not workers:
            return False
        alive = self._alive()
        client = self._chance.choice(alive if alive and self._chance.random() < 0.7 else clients)  # noqa: PLR2004
        self._nursery.start_soon(self._describe, client, self._chance.choice(workers))
        return True

    def list_sessions(self) -> bool:
        """Somebody asks for all sessions, page by page, or for those of one worker."""
        workers = self._running()
        if not workers:
            return False
        asked, of = self._chance.choice(workers), self._chance.choice([None, *workers])
        limit = self._chance.choice(_LIMITS)
        self._nursery.start_soon(self._list_sessions, asked, of, limit)
        return True

    def list_workers(self) -> bool:
        """Somebody asks for all workers."""
        workers = self._running()
        if not workers:
            return False
        self._nursery.start_soon(self._list_workers, self._chance.choice(workers))
        return True

    # ---- what is sure ----

    def _states(self) -> States:
        return States(self._judge, self._database, self._log)

    def _sure(self, client: Client) -> _Sure:
        held = any(
            one.worker.opened.get_session_sync(client.session_id) is one
            for one in client.connections
            if one.worker.registry is not None
        )
        return _Sure(
            client=client,
            newest=client.newest,
            is_there=self._judge.is_surely_there(client),
            is_settled=self._settled_key(client) is not None,
            has_ended=not held and self._database.born(client.session_id) is None,
        )

    def _stayed(self, before: _Sure, since: float) -> _Sure:
        """Return what was sure before, and is so still: all the time, as far as one can see."""
        now = self._sure(before.client)
        is_same = now.newest is before.newest
        has_told = self._words.can_tell(since) and self._database.changed_at < since
        is_unchanged = self._judge.changed_at.get(before.client.session_id, -1.0) < since
        return _Sure(
            client=now.client,
            newest=now.newest,
            is_there=is_same and before.is_there and now.is_there,
            is_settled=is_same and has_told and before.is_settled and now.is_settled,
            has_ended=is_same
            and has_told
            and is_unchanged
            and self._database.undeleted_at < since
            and before.has_ended
            and now.has_ended,
        )

    # ---- one session ----

    async def _describe(self, client: Client, worker: SimulatedWorker) -> None:
        states, before, place = self._states(), self._sure(client), f"w{worker.number}"
        name = client.session_id
        try:
            info = await worker.opened.describe_session(name)
        except SessionsError:
            return
        self._log.note(worker.number, f"describes {name}: {'none' if info is None else 'there'}")
        sure = self._stayed(before, states.asked_at)
        holder = sure.newest.worker
        if info is None:
            self._log.judged["sessions: not there"] += 1
            if sure.is_there:
                self._log.violate(
                    f"{place} describes {name} as not there, but w{holder.number} holds it, and "
                    "its row was written"
                )
            return
        self._log.judged["sessions: there"] += 1
        self._judge_info(place, info, sure)
        states.judge(place, info.incarnation, info.worker_state)
        self._judge_own(worker, info)

    def _judge_info(self, place: str, info: SessionInfo, sure: _Sure) -> None:
        name, holder = info.session_id, sure.newest.worker
        if sure.has_ended:
            self._log.violate(f"{place} tells of {name}, which has ended, and has no row")
        if sure.is_settled and info.incarnation != holder.incarnation:
            self._log.violate(
                f"{place} says that {info.worker_id} holds {name}, not {holder.number}"
            )

    def _judge_own(self, worker: SimulatedWorker, info: SessionInfo) -> None:
        """Object if a worker says that it holds a session itself, which it does not."""
        if info.incarnation != worker.incarnation or not worker.is_open:
            return
        if worker.opened.get_session_sync(info.session_id) is None:
            self._log.violate(
                f"w{worker.number} says that it holds {info.session_id} itself, and does not"
            )

    # ---- many ----

    async def _list_sessions(
        self, worker: SimulatedWorker, of: SimulatedWorker | None, limit: int
    ) -> None:
        states, place = self._states(), f"w{worker.number}"
        hidden = set(self._database.weather.hidden)
        before = [self._sure(client) for client in self._judge.clients.values()]
        found, after = list[SessionInfo](), None
        while True:
            try:
                page = await worker.opened.list_sessions(
                    worker_id=None if of is None else f"worker-{of.number}",
                    after=after,
                    limit=limit,
                )
            except SessionsError:
                return
            for info in page:
                states.judge(place, info.incarnation, info.worker_state)
                self._judge_own(worker, info)
            if not page:
                break
            found += page
            after = page[-1].session_id
        self._log.note(worker.number, f"lists {len(found)} sessions")
        self._judge_pages(place, found, of)
        hidden |= self._database.weather.hidden
        if self._database.hid_at < states.asked_at:
            self._judge_list(
                place,
                found,
                of,
                [one for one in before if one.client.session_id not in hidden],
                states.asked_at,
            )

    def _judge_pages(
        self, place: str, found: Sequence[SessionInfo], of: SimulatedWorker | None
    ) -> None:
        if any(one.session_id >= following.session_id for one, following in pairwise(found)):
            self._log.violate(f"{place} lists sessions out of order, or twice")
        if of is not None and any(one.worker_id != f"worker-{of.number}" for one in found):
            self._log.violate(f"{place} was asked for sessions of w{of.number}, and lists others")

    def _judge_list(
        self,
        place: str,
        found: Sequence[SessionInfo],
        of: SimulatedWorker | None,
        before: Sequence[_Sure],
        since: float,
    ) -> None:
        self._log.judged["lists of sessions"] += 1
        infos = {one.session_id: one for one in found}
        for one in before:
            sure, name = self._stayed(one, since), one.client.session_id
            is_asked_for = of is None or sure.newest.worker is of
            if name in infos:
                self._judge_info(place, infos[name], sure)
            elif sure.is_settled and is_asked_for:
                self._log.violate(
                    f"{place} does not list {name}, but w{sure.newest.worker.number} holds it, and "
                    "its row was written"
                )

    async def _list_workers(self, worker: SimulatedWorker) -> None:
        states, place = self._states(), f"w{worker.number}"
        is_calm, before = self._is_calm, list(self._judge.workers)
        try:
            found = await worker.opened.workers.list()
        except SessionsError:
            return
        self._log.note(worker.number, f"lists {len(found)} workers")
        self._log.judged["lists of workers"] += 1
        infos = {one.incarnation: one for one in found}
        if len(infos) < len(found):
            self._log.violate(f"{place} lists one worker twice")
        for info in found:
            states.judge(place, info.incarnation, info.state)
            known = self._judge.worker_of(info.incarnation)
            if info.draining and known is not None and not known.is_draining:
                self._log.violate(f"{place} says that {info.worker_id} is drained, and it is not")
        for one in before:
            if not states.must_be_there(one):
                continue
            if one.incarnation not in infos:
                self._log.violate(f"{place} does not list w{one.number}, which lives")
            elif (
                is_calm
                and one.drain_began_at is not None
                and one.drain_began_at + _ANNOUNCED < states.asked_at
                and not infos[one.incarnation].draining
            ):
                self._log.violate(f"{place} does not say that w{one.number} is drained")
