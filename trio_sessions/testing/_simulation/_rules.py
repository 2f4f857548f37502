"""What may happen in a step: what clients do, what workers suffer, what becomes of the database.

Each rule is a method; `WEIGHTS` says how often. A rule that has nothing to do says False.
"""

import math
import random
from collections.abc import Mapping

import trio

from trio_sessions.errors import SessionNotFound, SessionsError
from trio_sessions.testing._simulation._clients import Client, Connection
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._events import DATABASE, Log
from trio_sessions.testing._simulation._judge import Judge
from trio_sessions.testing._simulation._link import Link, LinkFault, Network
from trio_sessions.testing._simulation._workers import SimulatedWorker, start_worker

__all__ = ["APART", "MIXES", "WEIGHTS", "Rules"]

APART = 8.0  # seconds between two connections of one session: more than the longest margin
MOST = 30  # sessions at a time
_FLOOD = 40  # questions at once

WEIGHTS: Mapping[str, int] = {
    "connect": 24,
    "connect_many": 2,
    "move": 10,
    "reconnect": 4,
    "die": 6,
    "remove": 4,
    "change_answers": 3,
    "ask": 10,
    "flood": 1,
    "send": 8,
    "pass_now": 6,
    "break_link": 5,
    "break_database": 3,
    "heal": 9,
    "fail_over": 2,
    "restore": 1,
    "replace": 1,
    "restart_database": 1,
    "lag": 1,
    "fill_up": 1,
    "refuse_rows": 2,
    "hide_rows": 1,
    "set_clock": 1,
    "delete_row": 2,
    "truncate": 1,
    "truncate_by_mistake": 1,
    "pause": 2,
    "resume": 2,
    "crash": 1,
    "leave": 1,
}

_MOVES = {
    "connect": 6,
    "move": 24,
    "reconnect": 12,
    "die": 2,
    "remove": 10,
    "pass_now": 8,
    "break_link": 14,
    "break_database": 3,
    "heal": 10,
}
MIXES: Mapping[str, Mapping[str, int]] = {
    "all": WEIGHTS,
    "moves": _MOVES,
    "losses": {**_MOVES, "connect": 20, "fail_over": 14, "move": 8},
}
"""By name, weights for a run: where everything happens, little of one kind does."""


class Rules:
    """The rules of one run."""

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
        self._connections = 0
        self._clients = 0
        self._healing: list[tuple[float, str]] = []

    # ---- what is there ----

    @property
    def _database(self) -> Database:
        return self._network.database

    def _workers(self) -> list[SimulatedWorker]:
        """Return workers that run."""
        return [one for one in self._judge.workers if one.is_open and not one.link.is_paused]

    def _alive(self) -> list[Client]:
        return [one for one in self._judge.clients.values() if one.is_alive]

    def _free(self) -> list[Client]:
        """Return clients that have not done anything for a while."""
        long_ago = trio.current_time() - APART
        return [
            one for one in self._alive() if one.newest.is_added and one.newest.added_at < long_ago
        ]

    def _fault(self, name: str, text: str, place: int = DATABASE) -> bool:
        self._log.faults[name] += 1
        self._log.note(place, text)
        return True

    # ---- clients ----

    def connect(self) -> bool:
        """A client comes."""
        workers = self._workers()
        if not workers or len(self._alive()) >= MOST:
            return False
        self._clients += 1
        client = Client(f"s{self._clients}")
        self._judge.clients[client.session_id] = client
        self._connect(client, self._chance.choice(workers))
        return True

    def connect_many(self) -> bool:
        """Many clients come to one worker at once."""
        workers = self._workers()
        if not workers or len(self._alive()) >= MOST:
            return False
        worker = self._chance.choice(workers)
        for _ in range(12):
            self._clients += 1
            client = Client(f"s{self._clients}")
            self._judge.clients[client.session_id] = client
            self._connect(client, worker)
        return True

    def _connect(self, client: Client, worker: SimulatedWorker) -> None:
        self._connections += 1
        connection = Connection(
            client,
            worker,
            self._connections,
            trio.current_time(),
            self._judge.disconnected,
        )
        for one in client.connections:
            if one.worker is worker:
                one.was_ended = True
        client.connections.append(connection)
        self._log.note(worker.number, f"add {client.session_id}")
        self._nursery.start_soon(self._add, connection)

    async def _add(self, connection: Connection) -> None:
        registry = connection.worker.opened
        try:
            await registry.add_session(connection.client.session_id, connection)
        except SessionsError:
            connection.was_ended = True  # its worker is gone
            return
        connection.is_added = True
        if connection.number % 3 == 0:
            self._nursery.start_soon(self._consume, connection)

    def move(self) -> bool:
        """A client connects to another worker; the old connection may live on for a while."""
        free = self._free()
        if not free:
            return False
        client = self._chance.choice(free)
        others = [one for one in self._workers() if one is not client.newest.worker]
        if not others:
            return False
        if self._chance.random() < 0.5:  # noqa: PLR2004 -- a coin
            client.newest.is_alive = False
        self._connect(client, self._chance.choice(others))
        return True

    def reconnect(self) -> bool:
        """A client connects to the same worker again."""
        workers = self._workers()
        free = [one for one in self._free() if one.newest.worker in workers]
        if not free:
            return False
        client = self._chance.choice(free)
        self._connect(client, client.newest.worker)
        return True

    def die(self) -> bool:
        """A client goes, and its transport says so."""
        free = self._free()
        if not free:
            return False
        client = self._chance.choice(free)
        self._log.note(client.newest.worker.number, f"{client.session_id} dies")
        client.leave()
        return True

    def remove(self) -> bool:
        """A gateway removes a session."""
        workers = self._workers()
        free = [one for one in self._free() if one.newest.worker in workers]
        if not free:
            return False
        client = self._chance.choice(free)
        client.leave()
        newest = client.newest
        newest.was_ended = True
        self._log.note(newest.worker.number, f"remove {client.session_id}")
        self._nursery.start_soon(self._remove, newest)
        return True

    async def _remove(self, connection: Connection) -> None:
        try:
            await connection.worker.opened.remove_session(connection.client.session_id)
        except SessionsError:
            return  # its worker is gone

    def change_answers(self) -> bool:
        """A transport hangs, raises, or answers again."""
        alive = self._alive()
        if not alive:
            return False
        connection = self._chance.choice(alive).newest
        connection.answers = self._chance.choice(["truly", "hangs", "raises"])
        return True

    # ---- questions and messages ----

    def ask(self) -> bool:
        """Somebody asks for a session."""
        clients, workers = list(self._judge.clients.values()), self._workers()
        if not clients or not workers:
            return False
        alive = self._alive()
        client = self._chance.choice(alive or clients)
        self._nursery.start_soon(self._ask, client, self._chance.choice(workers))
        return True

    def flood(self) -> bool:
        """Somebody asks very much at once."""
        clients, workers = self._alive(), self._workers()
        if not clients or not workers:
            return False
        worker = self._chance.choice(workers)
        for _ in range(_FLOOD):
            self._nursery.start_soon(self._ask, self._chance.choice(clients), worker)
        return self._fault("flood of questions", "a flood of questions", worker.number)

    async def _ask(self, client: Client, worker: SimulatedWorker) -> None:
        connection = client.newest
        was_there = self._judge.is_surely_there(client)
        try:
            answer = await worker.opened.session_exists(client.session_id)
        except SessionsError:
            return
        is_there = self._judge.is_surely_there(client) and client.newest is connection
        if answer is False and was_there and is_there:
            self._log.violate(
                f"w{worker.number} says that {client.session_id} is not there, "
                f"but w{connection.worker.number} holds it, and its row was written"
            )

    def send(self) -> bool:
        """Some messages are sent to a session, one after the other."""
        clients, workers = self._alive(), self._workers()
        if not clients or not workers:
            return False
        client = self._chance.choice(clients)
        self._nursery.start_soon(self._send, client, self._chance.choice(workers))
        return True

    async def _send(self, client: Client, worker: SimulatedWorker) -> None:
        series = client.sent = client.sent + 1
        for number in range(self._chance.randint(1, 4)):
            try:
                await worker.opened.broadcast(client.session_id, [series, number])
            except SessionNotFound:
                return
            except SessionsError:
                continue

    async def _consume(self, connection: Connection) -> None:
        """Read a session's messages as long as the connection lasts."""
        seen: dict[int, int] = {}
        try:
            async with connection.worker.opened.open_inbox(connection.client.session_id) as inbox:
                async for series, number in inbox:
                    if number == seen.get(series, -1) or number > seen.get(series, -1):
                        seen[series] = number
                    elif not connection.worker.is_leaving and self._is_calm:
                        self._log.violate(
                            f"{connection.client.session_id} has got message {number} of a "
                            f"sender after its message {seen[series]}"
                        )
        except (SessionsError, RuntimeError):
            return

    @property
    def _is_calm(self) -> bool:
        """No fault has happened yet that may deliver a message twice."""
        return not self._log.faults

    # ---- workers ----

    def pass_now(self) -> bool:
        """Somebody asks for a pass."""
        workers = self._workers()
        if not workers:
            return False
        self._nursery.start_soon(self._clean_up, self._chance.choice(workers))
        return True

    async def _clean_up(self, worker: SimulatedWorker) -> None:
        try:
            await worker.opened.cleanup()
        except SessionsError:
            return

    def pause(self) -> bool:
        """A worker's process is stopped, for longer than its TTL or not."""
        workers = self._workers()
        if not workers:
            return False
        worker = self._chance.choice(workers)
        worker.link.pause()
        return self._fault("worker paused", "is stopped", worker.number)

    def resume(self) -> bool:
        """A stopped process goes on."""
        paused = [one for one in self._judge.workers if one.link.is_paused]
        if not paused:
            return False
        worker = self._chance.choice(paused)
        worker.link.resume()
        self._log.note(worker.number, "goes on")
        return True

    def crash(self) -> bool:
        """A worker dies, and another one takes its place."""
        workers = self._workers()
        if not workers:
            return False
        worker = self._chance.choice(workers)
        worker.kill()
        self._bury(worker)
        return self._fault("worker crashed", "crashes", worker.number)

    def leave(self) -> bool:
        """A worker closes its registry, and another one takes its place."""
        workers = self._workers()
        if not workers:
            return False
        worker = self._chance.choice(workers)
        worker.end()
        self._bury(worker)
        self._log.note(worker.number, "leaves")
        return True

    def _bury(self, worker: SimulatedWorker) -> None:
        for client in self._judge.clients.values():
            if client.newest.worker is worker:
                client.leave()
            for one in client.connections:
                if one.worker is worker:
                    one.is_alive = False
        self._judge.workers.remove(worker)
        self.start(worker.number)

    def start(self, number: int) -> None:
        """Start a worker."""
        link = Link(self._network, in_threads=self._chance.random() < 0.5)  # noqa: PLR2004 -- a coin
        worker = start_worker(self._nursery, number, link)
        self._judge.workers.append(worker)
        self._judge.workers.sort(key=lambda one: one.number)
        self._judge.all_workers.append(worker)

    # ---- the database ----

    def _some_fault(self) -> LinkFault:
        return self._chance.choice([one for one in LinkFault if one is not LinkFault.NONE])

    def break_link(self) -> bool:
        """One worker alone is cut off, or suffers otherwise."""
        worker = self._chance.choice(self._judge.workers)
        worker.link.fault = fault = self._some_fault()
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
        return self._fault("rows hidden", f"hides {', '.join(hidden)}")

    def set_clock(self) -> bool:
        """The clock of the database is set, forward or back."""
        step = self._chance.choice([-3600.0, -30.0, -1.0, 1.0, 30.0, 3600.0])
        # A statement that was in time by the clock that was set back is in time: not promised.
        self._network.drop_what_is_astray()
        self._database.offset += step
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
