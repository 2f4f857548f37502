"""The invariants, as they can be seen from outside: what may become of whom, and why.

The judge knows the clients, and what has truly become of each row. It decides nothing by itself
that a registry has said. See docs/decisions/0011-proof.md.
"""

import trio

from trio_sessions._entry import Row
from trio_sessions.abc._workers import MAX_GAP
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._database import Change, Database
from trio_sessions.testing._simulation._events import DATABASE, Log
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["Judge"]

_SLACK = 2.0  # seconds between what the database has noted, and what we have
_MASS, _MOST = 12, 0.6  # rows, and a share of all; of these, the brake holds surely
_SIGNS = 8.0  # seconds, less than two stamp intervals, in which another server is unknown
_PASSES = 2  # in which they must be missing


class Judge:
    """Judges one run."""

    def __init__(self, log: Log) -> None:
        self.clients: dict[str, Client] = {}
        self.workers: list[SimulatedWorker] = []
        self.all_workers: list[SimulatedWorker] = []
        self.database: Database
        self.truncated: dict[Connection, float] = {}
        """Whose row went with all the others of its worker, and when."""
        self.changed_at: dict[str, float] = {}
        """When the row of each session last had another holder, or none."""
        self._log = log

    def worker_of(self, incarnation: str) -> SimulatedWorker | None:
        """Return the worker that holds, or held, rows by this name."""
        for worker in reversed(self.all_workers):
            if incarnation and worker.incarnation == incarnation:
                return worker
        return None

    # ---- invariants 1 to 5: nobody is removed without a reason ----

    def disconnected(self, connection: Connection) -> None:
        """Judge a call of ``disconnect()``."""
        why = self._reason(connection, is_told_to_leave=connection.was_drained)
        place, name = connection.worker.number, connection.client.session_id
        if why is None:
            self._log.violate(
                f"{name} was removed from w{place}, but its transport is connected, nobody has "
                "removed it or taken it over, and nobody has deleted its row"
            )
            return
        self._log.remove(why)
        connection.why = why
        if connection is connection.client.newest:
            connection.client.is_waiting = why == "drained"
        if connection is connection.client.newest and not connection.client.adopters:
            connection.client.leave()
        self._log.note(place, f"disconnects {name}: {why}")

    def _reason(self, connection: Connection, *, is_told_to_leave: bool) -> str | None:
        if connection.ended is not None:
            return connection.ended
        if connection.worker.is_leaving:
            return "its worker leaves"
        if connection.worker.is_draining and is_told_to_leave:
            return "drained"
        if not connection.is_alive:
            return "disconnected"
        client = connection.client
        if client.newest.number > connection.number:
            return "taken over"
        incarnation = connection.worker.incarnation
        truth = self.database.truth
        ends = truth.ends(incarnation, client.session_id, connection.added_at)
        if "sweep" in ends or incarnation in truth.lapsed:
            return "its lease was lost"
        if "deleted by hand" in ends:
            self._judge_brake(connection)
            return "its row was deleted"
        if client.blurred_until > trio.current_time():
            return "the clock was set while it moved"
        if connection.is_over_limits:
            return "it was silent, or here, for too long"
        return "adopted" if client.adopters or connection.may_be_adopted else None

    def _judge_brake(self, connection: Connection) -> None:
        """Object if a mass of rows was missing for the first time, and was believed at once.

        Of rows that are hidden nobody knows whether they are missing.
        """
        truncated_at = self.truncated.get(connection)
        now = trio.current_time()
        here = [
            one
            for client in self.clients.values()
            if client.session_id not in self.database.weather.hidden
            for one in client.connections
            if one.worker is connection.worker and (one.is_held or one.disconnected_at == now)
        ]
        truth, incarnation = self.database.truth, connection.worker.incarnation
        # Of the others it has no such answer: they were put back before it asked for them.
        mass = sum(
            self.truncated.get(one) == truncated_at
            and truth.absences[incarnation, one.client.session_id] > 0
            for one in here
        )
        key = incarnation, connection.client.session_id
        if (
            truncated_at is not None
            and mass >= _MASS
            and mass > _MOST * len(here)
            and truth.last_end(*key, "deleted by hand") == truncated_at
            and truth.absences[key] < _PASSES
        ):
            self._log.violate(
                f"{connection.client.session_id} was removed in the first pass after "
                f"{mass} rows of its worker were deleted at once"
            )

    # ---- invariants 5 to 7 and 13: whose row goes, and to whom ----

    def changed(self, change: Change) -> None:
        """Judge what a statement has done to a row."""
        by = "somebody" if change.by is None else change.by.worker_id
        before, after = self.worker_of(change.before), self.worker_of(change.after)
        self.changed_at[change.session_id] = trio.current_time()
        self._log.note(
            DATABASE,
            f"{change.kind} of {by}: {change.session_id} "
            f"{_name(before, change.before)} -> {_name(after, change.after)}",
        )
        if change.kind == "sweep" and before is not None:
            self._judge_sweep(change, before)
        elif change.kind in {"commit", "delete_all"} and change.by is not None:
            own = change.by.incarnation
            if not change.after and change.before != own:
                self._log.violate(f"{by} has deleted the row of another worker")
            elif not change.after and before is not None:
                self._judge_deletion(change, before)
            if change.before and change.after and before is not None and after is not None:
                self._judge_takeover(change, before, after)

    def _judge_deletion(self, change: Change, holder: SimulatedWorker) -> None:
        """Object if a row is deleted that waits for its client, who was told to leave."""
        client = self.clients.get(change.session_id)
        if client is None or not holder.is_draining or holder.drain_ended_at is not None:
            return
        told = [one for one in client.connections if one.worker is holder and one.was_drained]
        if told and not holder.is_leaving and client.is_waiting:
            self._log.violate(
                f"w{holder.number} has told {change.session_id} to leave, and deleted its row "
                "before the drain was over"
            )

    def _judge_sweep(self, change: Change, holder: SimulatedWorker) -> None:
        now = self.database.moment()
        client = self.clients.get(change.session_id)
        if client is None:
            return
        is_held = any(one.worker is holder and one.is_held for one in client.connections)
        if not is_held and not client.is_orphan:
            return
        truth, ttl = self.database.truth, holder.session_ttl
        gap = MAX_GAP * max(one.session_ttl for one in self.all_workers)
        if not truth.lease_has_run_out(change.before, ttl - _SLACK, now):
            self._log.violate(f"{change.session_id} was swept, but w{holder.number} has its lease")
        elif truth.longest_silence(ttl, now) > gap + _SLACK:
            self._log.violate(f"{change.session_id} was swept for an outage of the whole fleet")

    def _judge_takeover(
        self, change: Change, before: SimulatedWorker, after: SimulatedWorker
    ) -> None:
        """Object if an older connection has taken a row from a newer one."""
        client = self.clients.get(change.session_id)
        if client is None or client.blurred_until > trio.current_time():
            return
        if after in client.adopters:
            return
        older = [c for c in client.connections if c.worker is after]
        newer = [
            one
            for one in client.connections
            if one.worker is before
            and self.database.truth.is_remembered(change.before, client.session_id, one.added_at)
        ]
        if older and newer and older[-1].number < newer[-1].number and newer[-1].is_held:
            self._log.violate(
                f"the older connection of {change.session_id} on w{after.number} has taken its "
                f"row from the newer one on w{before.number}"
            )

    # ---- answers ----

    def is_surely_there(self, client: Client, *, has_settled: bool = False) -> bool:
        """Say whether everybody has to know of a session: its worker was told of its row.

        Args:
            client: the session.
            has_settled: the database has not gone back for a while.
        """
        newest = client.newest
        if not newest.is_held or not newest.worker.is_open or self.ends_of(client):
            return False
        entry = newest.worker.opened._house.table.get(client.session_id)
        if entry is None or entry.transport is not newest or entry.row is not Row.CONFIRMED:
            return False
        # A database that went back has other signs for a while; then it is for the holder to tell.
        has_just_gone_back = trio.current_time() - self.database.changed_at < _SIGNS
        has_row = self.database.has(newest.worker.incarnation, entry.confirmed_by)
        return not has_just_gone_back and has_row if has_settled else has_just_gone_back or has_row

    def ends_of(self, client: Client) -> list[str]:
        """Return why the row of its newest connection has truly ended."""
        newest = client.newest
        return self.database.truth.ends(
            newest.worker.incarnation, client.session_id, newest.added_at
        )

    # ---- after every step ----

    def look(self) -> None:
        """Look at what can be seen at any time."""
        for worker in self.workers:
            if not worker.is_open:
                continue
            statistics = worker.opened.statistics()
            if statistics.failed_passes:
                self._log.violate(f"a pass of w{worker.number} has failed")
            if statistics.operations_running > 20:  # noqa: PLR2004 -- max_concurrent
                self._log.violate(f"w{worker.number} has more operations than max_concurrent")
            if statistics.messages_in_memory > 101 * max(1, statistics.sessions):
                self._log.violate(f"w{worker.number} keeps too many messages in memory")
            if worker.is_draining:
                self._look_at_drain(worker)
        self._look_at_connections()

    def _look_at_drain(self, worker: SimulatedWorker) -> None:
        """Object if somebody came in who was not there, and is not adopted."""
        for session_id in worker.opened._house.table.ids():
            if session_id in worker.held_at_drain or self.clients[session_id].adopters:
                continue
            self._log.violate(f"w{worker.number} is drained, and holds {session_id}, which is new")

    def _look_at_connections(self) -> None:
        for client in self.clients.values():
            for one in client.connections:
                if one.is_added and one.is_held and one.worker.is_open:
                    held = one.worker.opened.get_session_sync(client.session_id)
                    if held is not one and self._reason(one, is_told_to_leave=True) is None:
                        self._log.violate(
                            f"{client.session_id} is not held by w{one.worker.number} any more, "
                            "and nobody has removed it"
                        )

    # ---- invariant 18 ----

    def what_is_left(self) -> dict[str, list[str]]:
        """Compare what is held, what is stored and what lives; return where they differ."""
        lives, held = set[tuple[str, int]](), set[tuple[str, int]]()
        for client in self.clients.values():
            if client.is_alive:
                lives.add((client.session_id, client.newest.worker.number))
        for worker in self.workers:
            if worker.is_open:
                held |= {(one, worker.number) for one in worker.opened._house.table.ids()}
        numbers = {one.incarnation: one.number for one in self.workers if one.is_open}
        stored = {
            (one, numbers.get(incarnation, DATABASE))
            for one, incarnation in self.database.holders().items()
        }
        left = {
            "live, and not held": lives - held,
            "live, and not stored": lives - stored,
            "held, and not alive": held - lives,
            "stored, and not alive": stored - lives,
        }
        return {
            name: [f"{session_id} on w{number}" for session_id, number in sorted(found)]
            for name, found in left.items()
            if found
        }


def _name(worker: SimulatedWorker | None, incarnation: str) -> str:
    if not incarnation:
        return "nobody"
    return "one that is gone" if worker is None else f"w{worker.number}"
