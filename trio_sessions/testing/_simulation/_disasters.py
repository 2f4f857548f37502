"""What becomes of the database, and of the ways to it."""

import math
import random

import trio

from trio_sessions.abc import Part
from trio_sessions.testing._simulation._clients import Client
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._events import DATABASE, Log
from trio_sessions.testing._simulation._judge import Judge
from trio_sessions.testing._simulation._way import LinkFault, Network
from trio_sessions.testing._simulation._workers import SimulatedWorker

__all__ = ["APART", "Disasters"]

APART = 8.0  # seconds between two connections of one session: more than the longest margin
_OF_ALL_STATEMENTS = (
    LinkFault.REFUSES,
    LinkFault.HANGS,
    LinkFault.SLOW,
    LinkFault.LOSES,
    LinkFault.LATE,
)


class Disasters:
    """The rules about the database; a rule that has nothing to do says False."""

    def __init__(
        self,
        *,
        nursery: trio.Nursery,
        network: Network,
        judge: Judge,
        log: Log,
        chance: random.Random,
    ) -> None:
        self._nursery = nursery
        self._network = network
        self._judge = judge
        self._log = log
        self._chance = chance

    # ---- what is there ----

    @property
    def _database(self) -> Database:
        return self._network.database

    def _plays(self, part: Part) -> bool:
        """Say whether a part of the contract that is optional is played."""
        return part in self._network.parts

    def _workers(self) -> list[SimulatedWorker]:
        """Return workers that run, and let sessions in."""
        return [one for one in self._running() if not one.is_draining]

    def _running(self) -> list[SimulatedWorker]:
        """Return workers that run, those that are drained among them."""
        return [one for one in self._judge.workers if one.is_open and not one.link.is_paused]

    def _alive(self) -> list[Client]:
        return [one for one in self._judge.clients.values() if one.is_alive]

    def _free(self) -> list[Client]:
        """Return clients that have not done anything for a while."""
        long_ago = trio.current_time() - APART
        return [
            one
            for one in self._alive()
            if one.newest.is_added and one.newest.added_at < long_ago and not one.adopters
        ]

    def _fault(self, name: str, text: str, place: int = DATABASE) -> bool:
        self._log.faults[name] += 1
        self._log.note(place, text)
        return True

    # ---- the database ----

    def _some_fault(self) -> LinkFault:
        return self._chance.choice(_OF_ALL_STATEMENTS)

    def break_link(self) -> bool:
        """One worker alone is cut off, or suffers otherwise."""
        worker = self._chance.choice(self._judge.workers)
        worker.link.fault = fault = self._some_fault()
        return self._fault(f"one worker: {fault.value}", f"database {fault.value}", worker.number)

    def hold_up(self) -> bool:
        """What one worker sends arrives in any order, and much of it is told as lost."""
        return self._hold_up(LinkFault.UNSTEADY)

    def hold_up_stamps(self) -> bool:
        """The stamps of one worker arrive later than what it sends after them."""
        return self._hold_up(LinkFault.HOLDS_STAMPS)

    def _hold_up(self, fault: LinkFault) -> bool:
        worker = self._chance.choice(self._judge.workers)
        worker.link.fault = fault
        return self._fault(f"one worker: {fault.value}", f"database {fault.value}", worker.number)

    def break_database(self) -> bool:
        """The database is away for all, or worse."""
        self._network.fault = fault = self._some_fault()
        return self._fault(f"all workers: {fault.value}", f"{fault.value}, for all")

    def heal(self) -> bool:
        """Whatever is wrong with the database is not any more."""
        self._network.fault = LinkFault.NONE
        for worker in self._judge.workers:
            worker.link.fault = LinkFault.NONE
        weather = self._database.weather
        weather.is_full, weather.lag = False, 0
        weather.hidden.clear()
        weather.refused.clear()
        self._log.note(DATABASE, "all is well again")
        return True

    def fail_over(self) -> bool:
        """Another server goes on, without the last commits."""
        lost = self._chance.choice([0, 1, 1, 2, 3, 5, 10, 30])
        self._network.drop_what_is_astray()
        self._database.go_back(lost)
        return self._fault("fail-over", f"fails over, {lost} commits are lost")

    def lose_the_next(self) -> bool:
        """Another server goes on as soon as the next claim is answered, and without it."""
        self._nursery.start_soon(self._lose_the_next)
        return True

    async def _lose_the_next(self) -> None:
        database, before = self._database, self._database.server
        await database.claimed.wait()
        kept = database.commits
        await trio.sleep(self._chance.uniform(0.0, 0.3))
        if database.server == before:
            self._network.drop_what_is_astray()
            lost = database.commits - kept + 1
            database.go_back(lost)
            self._fault("fail-over", f"fails over, {lost} commits are lost, a claim first")

    def restore(self) -> bool:
        """An older copy is restored."""
        lost = self._chance.randrange(1, max(2, self._database.states))
        self._network.drop_what_is_astray()
        self._database.go_back(lost)
        return self._fault("restored", f"an older copy is restored, {lost} commits are lost")

    def replace(self) -> bool:
        """An empty database answers."""
        self._network.drop_what_is_astray()
        self._database.be_emptied()
        return self._fault("replaced by an empty one", "is replaced by an empty one")

    def restart_database(self) -> bool:
        """The server is started again."""
        self._database.restart()
        return self._fault("restarted", "is restarted")

    def lag(self) -> bool:
        """A replica answers that lags behind, and takes no writes."""
        self._database.weather.lag = self._chance.choice([1, 5, 30])
        return self._fault("replica that lags", "a replica answers, which lags")

    def fill_up(self) -> bool:
        """The disk is full."""
        self._database.weather.is_full = True
        return self._fault("full", "is full")

    def _rows(self) -> list[str]:
        return sorted(self._database.holders())

    def refuse_rows(self) -> bool:
        """Some rows cannot be written."""
        rows = self._rows()
        if not rows:
            return False
        refused = self._chance.sample(rows, min(len(rows), 3))
        self._database.weather.refused.update(refused)
        return self._fault("rows refused", f"refuses {', '.join(refused)}")

    def hide_rows(self) -> bool:
        """Some rows are hidden by row level security."""
        rows = self._rows()
        if not rows:
            return False
        hidden = self._chance.sample(rows, min(len(rows), 5))
        self._database.weather.hidden.update(hidden)
        self._database.hid_at = trio.current_time()
        return self._fault("rows hidden", f"hides {', '.join(hidden)}")

    def set_clock(self) -> bool:
        """The clock of the database is set, forward or back."""
        step = self._chance.choice([-3600.0, -30.0, -1.0, 1.0, 30.0, 3600.0])
        # A statement that was in time by the clock that was set back is in time: not promised.
        self._network.drop_what_is_astray()
        self._database.set_clock(step)
        until = trio.current_time() + max(0.0, -step) + 60.0
        for client in self._judge.clients.values():
            newest = client.newest
            is_written = self._database.truth.was_written(
                newest.worker.incarnation, client.session_id, newest.added_at
            )
            has_settled = all(
                one.disconnected_at is not None or one.worker.is_leaving
                for one in client.connections[:-1]
            )
            client.blurred_until = until if is_written and has_settled else math.inf
        return self._fault("clock set", f"the clock is set by {step:g} s")

    def delete_row(self) -> bool:
        """An operator deletes the row of a session."""
        rows = self._rows()
        if not rows:
            return False
        session_id = self._chance.choice(rows)
        self._database.delete(session_id)
        return self._fault("row deleted", f"the row of {session_id} is deleted")

    def truncate(self) -> bool:
        """An operator deletes all rows."""
        return self._truncate() and self._fault("table truncated", "all rows are deleted")

    def _truncate(self) -> bool:
        rows = self._rows()
        if not rows:
            return False
        for worker in self._judge.workers:
            mine = [
                one.newest
                for one in self._alive()
                if one.newest.worker is worker
                and self._database.holders().get(one.session_id) == worker.incarnation
            ]
            for connection in mine:
                self._judge.truncated[connection] = trio.current_time()
        self._database.delete(*rows)
        return True

    def truncate_by_mistake(self) -> bool:
        """An operator deletes all rows, and puts them back before long."""
        if not self._truncate():
            return False
        self._nursery.start_soon(self._put_back, self._database.commits)
        return self._fault("truncated by mistake", "all rows are deleted, by mistake")

    async def _put_back(self, commits: int) -> None:
        server = self._database.server
        await trio.sleep(self._chance.uniform(0.1, 8.0))
        if self._database.server == server:
            self._database.put_back(self._database.commits - commits + 1)
            self._log.note(DATABASE, "the deleted rows are put back")
