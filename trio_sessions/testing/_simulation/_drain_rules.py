"""How a worker is emptied before it is started anew, and what must hold of it.

Nobody new comes in. Whoever is told to leave is disconnected, and its row stays until its client
comes back at another worker, as the same session, or the drain is over. The report tells of
everybody who was there, and the drain ends in time.
"""

import trio

from trio_sessions.errors import RegistryDraining, SessionsError
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._words import Key, WordRules
from trio_sessions.testing._simulation._workers import DISCONNECT_TIMEOUT, SimulatedWorker
from trio_sessions.types import DrainReport

__all__ = ["DrainRules"]

_TIMEOUTS = (0.0, 1.0, 5.0, 30.0)  # seconds
_ABSENCES = (0.0, 0.05, 0.5, 4.0, 40.0)  # seconds until a client comes back
_STAYS = (0.0, 0.2, 3.0)  # seconds from the end of a drain until the worker leaves
_LOOK = 0.1  # seconds until a client that was told to leave notices it
_SLACK = 0.5  # seconds for what is done beside
_ROUNDING = 0.001  # seconds


class DrainRules(WordRules):
    """The rules about drains; a rule that has nothing to do says False."""

    def drain(self) -> bool:
        """A worker is emptied, leaves, and another one takes its place."""
        workers = self._workers()
        if len(workers) <= 1:
            return False
        worker, timeout = self._chance.choice(workers), self._chance.choice(_TIMEOUTS)
        self._log.note(worker.number, f"is drained for {timeout:g} s")
        self._nursery.start_soon(self._drain, worker, timeout)
        return True

    def knock(self) -> bool:
        """A client comes to a worker that lets nobody new in."""
        drained = [one for one in self._running() if one.is_draining]
        if not drained:
            return False
        worker = self._chance.choice(drained)
        self._clients += 1
        client = Client(f"s{self._clients}")
        self._judge.clients[client.session_id] = client
        self._nursery.start_soon(self._knock, self._make_connection(client, worker))
        return True

    async def _knock(self, connection: Connection) -> None:
        await self._add(connection)
        worker, name = connection.worker, connection.client.session_id
        if connection.is_added and worker.is_open:
            self._log.violate(f"w{worker.number} is drained, and has let {name} in")
        if isinstance(connection.refusal, RegistryDraining):
            self._log.judged["refused by a drain"] += 1

    async def _drain(self, worker: SimulatedWorker, timeout: float) -> None:
        before = [
            client.newest
            for client in self._alive()
            if client.newest.worker is worker
            and client.newest.is_added
            and worker.opened.get_session_sync(client.session_id) is client.newest
        ]
        pauses = worker.link.pauses
        worker.drain_began_at = trio.current_time()
        worker.held_at_drain = frozenset(worker.opened._house.table.ids())
        async with trio.open_nursery() as nursery:
            for connection in before:
                nursery.start_soon(self._come_back, connection)
            try:
                report = await worker.opened.drain(timeout)
            except SessionsError:
                nursery.cancel_scope.cancel()
                return  # it leaves already
            worker.drain_ended_at = trio.current_time()
            self._log.note(
                worker.number, f"is drained: {len(report.drained)} told, {report.waiting} wait"
            )
            if worker.is_open:
                self._judge_report(worker, report, before)
                if worker.link.pauses == pauses:
                    self._judge_duration(worker, report, timeout)
            nursery.cancel_scope.cancel()
        await trio.sleep(self._chance.choice(_STAYS))
        if worker in self._judge.workers:
            worker.end()
            self._bury(worker)
            self._log.note(worker.number, "leaves, empty")

    # ---- a client that is told to leave ----

    async def _come_back(self, connection: Connection) -> None:
        """Wait until a client is told, and let it come back at another worker, or stay away."""
        client, worker = connection.client, connection.worker
        key = self._settled_key(client)
        while not connection.was_drained:
            if connection.disconnected_at is not None:
                return
            await trio.sleep(_LOOK)
        if client.newest is not connection or connection.why != "drained":
            return
        if key != self._words.key(client):
            key = None
        told_at = trio.current_time()
        await trio.sleep(self._chance.choice(_ABSENCES))
        others = [one for one in self._workers() if one is not worker]
        if not others or client.newest is not connection:
            return
        again = self._make_connection(client, self._chance.choice(others))
        with trio.CancelScope(shield=True):
            await self._add(again)
        client.is_waiting = False
        self._judge_return(again, connection, key, told_at)

    def _judge_return(
        self, again: Connection, before: Connection, key: Key | None, told_at: float
    ) -> None:
        """Object if it came back in time, and is another session."""
        client = again.client
        ends = self._database.truth.ends(before.worker.incarnation, client.session_id, told_at)
        if before.worker.drain_ended_at is not None or set(ends) - {"taken over"}:
            return
        if key is None or not again.is_added or self._database.undeleted_at >= told_at:
            return
        now = self._settled_key(client)
        if now is None or client.newest is not again:
            return
        self._log.judged["came back from a drain"] += 1
        if now != key:
            self._log.violate(
                f"{client.session_id} was told to leave by w{before.worker.number}, and is another "
                f"session at w{again.worker.number}"
            )

    # ---- the report ----

    def _judge_report(
        self, worker: SimulatedWorker, report: DrainReport, before: list[Connection]
    ) -> None:
        self._log.judged["reports of drains"] += 1
        place = f"w{worker.number}"
        if worker.opened.statistics().sessions:
            self._log.violate(f"{place} was drained, and holds sessions still")
        told, left = {*report.drained, *report.cut}, set(report.left)
        if told & left or set(report.drained) & set(report.cut):
            self._log.violate(f"the report of {place} says two things of one session")
        for connection in before:
            name = connection.client.session_id
            if name in told and connection.disconnected_at is None:
                self._log.violate(f"{name} was told to leave {place}, and is not disconnected")
            if name not in told | left and connection.why in {"", "drained"}:
                self._log.violate(f"the report of {place} does not tell of {name}")
        rows = [
            one for one, holder in self._database.holders().items() if holder == worker.incarnation
        ]
        waiting = told.intersection(rows)
        if self._is_calm and len(waiting) > report.waiting + len(report.cut):
            self._log.violate(
                f"{len(waiting)} rows wait for their clients, and the report of {place} says "
                f"{report.waiting}"
            )

    def _judge_duration(self, worker: SimulatedWorker, report: DrainReport, timeout: float) -> None:
        place = f"w{worker.number}"
        if report.duration > timeout + DISCONNECT_TIMEOUT + _SLACK:
            self._log.violate(f"the drain of {place} took {report.duration:.1f} s, not {timeout:g}")
        if self._is_calm and report.waiting and report.duration < timeout - _ROUNDING:
            self._log.violate(f"the drain of {place} has not waited for {report.waiting} clients")
