"""How leases are lost though the database is well, and how an old claim comes behind a deletion.

A worker sleeps for longer than its TTL, or its passes hang while it stamps and writes as before.
Both times it has lost its lease: its rows are swept, and it is told so. That is no rewind, for the
database has forgotten nothing. Where all rows are deleted, a worker that had not heard of a move
writes its older row anew: that is no mark of a newer holder.
"""

from typing import Any

import trio

from trio_sessions.testing._simulation._clients import Client
from trio_sessions.testing._simulation._disasters import APART
from trio_sessions.testing._simulation._limit_rules import LimitRules
from trio_sessions.testing._simulation._rules import MOST
from trio_sessions.testing._simulation._way import LinkFault
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["LeaseRules"]

_MANY = 14  # sessions, more than the brake needs
_SETTLED = 1.0  # seconds, in which a claim is answered, or a pass ends, without a fault
_INTERVALS = 3  # in which what has lapsed is swept: first its rows, then its own row
_SLEPT, _HUNG = "worker sleeps for longer than its TTL", "pass hangs for longer than its TTL"


class LeaseRules(LimitRules):
    """The rules about leases; a rule that has nothing to do says False."""

    def __init__(self, **details: Any) -> None:
        super().__init__(**details)
        self._without_pass: SimulatedWorker | None = None
        """It has no pass: one at a time, so that others sweep."""
        self._is_moving = False

    def oversleep(self) -> bool:
        """A worker's process is stopped until others have swept all that it had."""
        return self._stop(_SLEPT, "is stopped, for longer than its TTL")

    def hang_pass(self) -> bool:
        """A statement of a pass hangs, beyond all bounds; the worker stamps and writes on."""
        return self._stop(_HUNG, "its pass hangs, for longer than its TTL")

    def _stop(self, kind: str, text: str) -> bool:
        here = [one for one in self._workers() if one.opened.statistics().sessions]
        if self._without_pass is not None or len(self._workers()) < 2 or not here:  # noqa: PLR2004
            return False
        worker = self._without_pass = self._chance.choice(here)
        if kind == _SLEPT:
            worker.link.pause()
        else:
            worker.link.hang()
        self._nursery.start_soon(self._go_on, worker)
        return self._fault(kind, text, worker.number)

    async def _go_on(self, worker: SimulatedWorker) -> None:
        await trio.sleep(worker.session_ttl + _INTERVALS * self._longest_interval + _SETTLED)
        self._look_at_leases()
        worker.link.resume()
        self._without_pass = None
        self._log.note(worker.number, "goes on")
        await trio.sleep(self._longest_interval)
        self._look_at_leases()

    @property
    def _longest_interval(self) -> float:
        return max(one.cleanup_interval for one in self._judge.all_workers)

    def delete_what_moved(self) -> bool:
        """Sessions move away from a worker that is cut off, and all rows are deleted.

        It had never written theirs; now it does, before their new holder looks.
        """
        workers = [one for one in self._workers() if one.link.fault is LinkFault.NONE]
        if self._is_moving or len(workers) < 2 or len(self._alive()) > MOST - _MANY:  # noqa: PLR2004
            return False
        self._is_moving = True
        before, after = self._chance.sample(workers, 2)
        self._nursery.start_soon(self._delete_what_moved, before, after)
        return True

    async def _delete_what_moved(self, before: SimulatedWorker, after: SimulatedWorker) -> None:
        before.link.fault = fault = LinkFault.REFUSES
        self._fault(f"one worker: {fault.value}", f"database {fault.value}", before.number)
        clients = list[Client]()
        for _ in range(_MANY):
            self._clients += 1
            client = Client(f"s{self._clients}")
            self._judge.clients[client.session_id] = client
            self._connect(client, before)
            clients.append(client)
        await trio.sleep(APART + _SETTLED)
        for client in clients:
            if client.is_alive and client.newest.worker is before:
                self._connect(client, after)
        await trio.sleep(_SETTLED)
        if self._truncate():
            self._fault("table truncated", "all rows are deleted")
        before.link.fault = LinkFault.NONE
        await self._clean_up(before)
        await self._clean_up(after)
        self._is_moving = False

    # ---- after every step ----

    def look(self) -> None:
        """Look at what can be seen at any time."""
        super().look()
        self._look_at_leases()

    def _look_at_leases(self) -> None:
        """Object if a lease outlasts the passes of its holder, or its loss is called a rewind.

        Both are allowed where anything else is wrong, too.
        """
        if not self._log.faults or not self._log.faults.keys() <= {_SLEPT, _HUNG}:
            return
        truth, (now, _) = self._database.truth, self._database.moment()
        for worker in self._judge.workers:
            if not worker.is_open:
                continue
            place = f"w{worker.number}"
            if worker.opened.statistics().database_rewinds:
                self._log.violate(f"{place} says that the database has gone back, and it has not")
            passed, _ = truth.passed.get(worker.incarnation, (now, now))
            longest = worker.session_ttl + 2 * self._longest_interval + _SETTLED
            if now - passed <= longest:
                continue
            self._log.judged["leases without a pass"] += 1
            for session_id in self._database.held_since(worker.incarnation, now - longest):
                self._log.violate(
                    f"no pass of {place} has ended for {now - passed:.0f} s, and its row of "
                    f"{session_id} is there"
                )
