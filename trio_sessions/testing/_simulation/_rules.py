"""What may happen in a step: what clients do, what workers suffer, what becomes of the database.

Each rule is a method; `_mixes` says how often. A rule that has nothing to do says False. Over 400
lines: more than twenty rules, none of them long, on one fleet.
"""

from collections.abc import Mapping
from typing import Any

import trio

from trio_sessions.errors import (
    RegistryClosed,
    SessionNotFound,
    SessionsError,
    StoreUnavailable,
)
from trio_sessions.testing._simulation._clients import Client, Connection, Ended
from trio_sessions.testing._simulation._disasters import Disasters
from trio_sessions.testing._simulation._link import Link
from trio_sessions.testing._simulation._way import LinkFault
from trio_sessions.testing._simulation._workers import (
    CHECK_TIMEOUT,
    SETTINGS,
    SimulatedWorker,
    start_worker,
)

__all__ = ["Rules"]

MOST = 30  # sessions at a time
_FLOOD = 40  # questions at once
_AGAIN = 1.0  # seconds until an operator asks again
_TURNS = 8  # of a client that comes and goes
_DIED = "disconnected"  # why a connection was removed whose peer has gone
_ABSENCES = (0.0, 0.05, 0.1, 0.3)  # seconds


class Rules(Disasters):
    """The rules of one run."""

    _connections = 0
    _clients = 0

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
        self._nursery.start_soon(self._add, self._make_connection(client, worker))

    def _make_connection(self, client: Client, worker: SimulatedWorker) -> Connection:
        self._connections += 1
        connection = Connection(
            client,
            worker,
            self._connections,
            trio.current_time(),
            self._judge.disconnected,
        )
        if self._begins_anew(client, worker):
            client.life += 1
            client.life_began_at = trio.current_time()
            client.left_over = self._database.born(client.session_id)
        for one in client.connections:
            if one.worker is worker:
                one.end(Ended.REPLACED)
        client.connections.append(connection)
        self._log.note(worker.number, f"add {client.session_id}")
        return connection

    def _begins_anew(self, client: Client, worker: SimulatedWorker) -> bool:
        """Say whether a connection of this client to a worker begins another session of its id.

        Everybody has let go of the last one, for it had ended; and its row is gone, or is known to
        that worker as what has ended there.
        """
        if not client.connections or client.newest.why not in {*Ended, _DIED}:
            return False
        holder = self._database.holders().get(client.session_id)
        return all(one.disconnected_at is not None for one in client.connections) and (
            holder is None or (holder == worker.incarnation and client.newest.worker is worker)
        )

    async def _add(self, connection: Connection) -> None:
        registry = connection.worker.opened
        try:
            await registry.add_session(
                connection.client.session_id, connection, **self._brought(connection)
            )
        except SessionsError as exc:
            connection.end(Ended.NOT_ADDED)
            connection.refusal = exc
            return
        connection.is_added = True
        if connection.number % 3 == 0:
            connection.is_read = True
            self._nursery.start_soon(self._consume, connection)

    def _brought(self, connection: Connection) -> dict[str, Any]:
        """Return what is said of a session when it is added."""
        return {}

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
        newest.end(Ended.REMOVED)
        self._log.note(newest.worker.number, f"remove {client.session_id}")
        self._nursery.start_soon(self._remove, newest)
        return True

    async def _remove(self, connection: Connection) -> None:
        try:
            await connection.worker.opened.remove_session(
                connection.client.session_id, transport=connection
            )
        except SessionsError:
            return  # its worker is gone

    def revoke(self) -> bool:
        """An operator ends a session for good; its transports live, so nothing else removes it."""
        known = [one for one in self._free() if one.newest.is_added]
        if not known or not self._workers():
            return False
        client = self._chance.choice(known)
        for one in client.connections:
            one.end(Ended.REVOKED)
        self._log.note(client.newest.worker.number, f"revoke {client.session_id}")
        self._nursery.start_soon(self._revoke, client)
        return True

    async def _revoke(self, client: Client) -> None:
        while True:
            workers = self._workers()
            if workers:
                try:
                    await self._chance.choice(workers).opened.revoke(client.session_id)
                except (StoreUnavailable, RegistryClosed):
                    pass  # it may be done all the same
                else:
                    return
            await trio.sleep(_AGAIN)

    def come_back(self) -> bool:
        """A session ends, and others of its id begin and end at the same worker, in quick turns."""
        workers = self._workers()
        known = [one for one in self._alive() if one.newest.is_added and not one.is_restless]
        here = [one for one in known if one.newest.worker in workers]
        if not here:
            return False
        held_up = [one for one in here if one.newest.worker.link.fault is LinkFault.UNSTEADY]
        client = self._chance.choice(held_up or here)
        client.is_restless = True
        self._nursery.start_soon(self._come_and_go, client, client.newest.worker)
        return True

    async def _come_and_go(self, client: Client, worker: SimulatedWorker) -> None:
        for _ in range(self._chance.randint(1, _TURNS)):
            last = client.newest
            client.leave()
            if self._chance.random() < 0.5:  # noqa: PLR2004 -- a coin
                last.end(Ended.REMOVED)
                self._log.note(worker.number, f"remove {client.session_id}")
                self._nursery.start_soon(self._remove, last)
            else:
                self._log.note(worker.number, f"{client.session_id} dies")
            await trio.sleep(self._chance.choice(_ABSENCES))
            if not worker.is_open or self._chance.random() < 0.15:  # noqa: PLR2004 -- some stay away
                break
            self._connect(client, worker)
            await trio.sleep(self._chance.choice(_ABSENCES))
        client.is_restless = False

    def old_writes_land(self) -> bool:
        """A session begins, ends and begins again; what is written first arrives last."""
        workers = [one for one in self._workers() if one.link.fault is LinkFault.NONE]
        known = [one for one in self._alive() if one.newest.is_added and not one.is_restless]
        here = [one for one in known if one.newest.worker in workers]
        if not here:
            return False
        client = self._chance.choice(here)
        client.is_restless = True
        self._nursery.start_soon(self._let_old_writes_land, client, client.newest.worker)
        return True

    async def _let_old_writes_land(self, client: Client, worker: SimulatedWorker) -> None:
        worker.link.fault = fault = LinkFault.OVERTAKES
        self._fault(f"one worker: {fault.value}", f"database {fault.value}", worker.number)
        await self._add(self._make_connection(client, worker))
        last = client.newest
        client.leave()
        last.end(Ended.REMOVED)
        self._log.note(worker.number, f"remove {client.session_id}")
        await self._remove(last)
        if worker.link.fault is fault:
            worker.link.fault = LinkFault.NONE
        if worker.is_open:
            self._connect(client, worker)
        client.is_restless = False

    def return_during_a_pass(self) -> bool:
        """A connection breaks, a pass finds that out, and its client is back before it ends."""
        workers = self._workers()
        known = [one for one in self._alive() if one.newest.is_added and not one.is_restless]
        here = [one for one in known if one.newest.worker in workers]
        if not here:
            return False
        client = self._chance.choice(here)
        worker = client.newest.worker
        for other in here:
            if other is not client and other.newest.worker is worker:
                other.newest.answers = "hangs"  # so that the pass waits
        client.leave()
        self._log.note(worker.number, f"{client.session_id} dies")
        self._nursery.start_soon(self._clean_up, worker)
        client.is_restless = True
        self._nursery.start_soon(self._return, client, worker)
        return True

    async def _return(self, client: Client, worker: SimulatedWorker) -> None:
        await trio.sleep(self._chance.uniform(0.0, CHECK_TIMEOUT))
        if worker.is_open:
            self._connect(client, worker)
        client.is_restless = False

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

    def _settings(self, number: int) -> Mapping[str, Any]:
        """Return settings of a worker."""
        return SETTINGS[number]

    def start(self, number: int) -> None:
        """Start a worker."""
        link = Link(self._network, in_threads=self._chance.random() < 0.5)  # noqa: PLR2004 -- a coin
        worker = start_worker(self._nursery, number, link, self._settings(number))
        self._judge.workers.append(worker)
        self._judge.workers.sort(key=lambda one: one.number)
        self._judge.all_workers.append(worker)
