"""What the rules of a `RegistryMachine` do: to real workers, and to the models beside them.

In one file of over 400 lines: whatever a rule does is told to all the models in the same step.
"""

import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import trio
import trio.testing

from trio_sessions import SessionNotFound, StoreUnavailable
from trio_sessions.abc import SessionStore, Transport
from trio_sessions.testing._machine._door import Reach
from trio_sessions.testing._machine._lines import Line, LineState
from trio_sessions.testing._machine._model import FleetModel, Seen, require
from trio_sessions.testing._machine._pace import Pace
from trio_sessions.testing._machine._readers import Reader, read_by_handler, read_inbox
from trio_sessions.testing._machine._revocations import Revocations
from trio_sessions.testing._machine._said import Mailbox, Owner
from trio_sessions.testing._machine._settled import check_all_is_well
from trio_sessions.testing._machine._workers import LiveWorker, Stranger
from trio_sessions.types import Holder

__all__ = ["Fleet"]


class Fleet:
    """Workers by their number; one that has crashed is not there until it is started again.

    Every async method is one step; `look` says what must not be after it.

    Args:
        nursery: for what workers do.
        make_store: makes a store for each of them.
        session_ids: all that there may be.
        pace: how time passes.
        settings: of each registry.
        longer: ``session_ttl`` of each worker but the first, in those of the first.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        make_store: Callable[[], SessionStore],
        session_ids: Sequence[str],
        pace: Pace,
        settings: Mapping[str, Any],
        *,
        longer: int = 1,
    ) -> None:
        self.pace = pace
        self.model = FleetModel(hearing=pace.hearing)
        self.stranger = Stranger("stranger", make_store)
        self._revocations = Revocations(self.model, pace.revocation_ttl)
        self._nursery = nursery
        self._make_store = make_store
        self._ids = session_ids
        self._settings = {**pace.settings(), **settings}
        self._longer = longer
        self._live: dict[int, LiveWorker] = {}
        self._mailboxes = {session_id: Mailbox(session_id) for session_id in session_ids}
        self._owners = {session_id: Owner(session_id) for session_id in session_ids}
        self._removed_by: dict[str, str] = {}
        """By whom a session was removed that nobody else held, and that was not added since."""
        self._messages = itertools.count(1)
        self._starts = itertools.count(1)

    # ---- workers ----

    async def start(self, number: int) -> None:
        """Start a worker; one that runs is closed first, as it should be."""
        await self.close(number)
        name = f"worker-{number}-{next(self._starts)}"
        worker = LiveWorker(name, self._make_store(), self.pace.lateness)
        session_ttl = self.pace.session_ttl * (self._longer if number else 1)
        await worker.start(self._nursery, {**self._settings, "session_ttl": session_ttl})
        self._live[number] = worker
        self.model.opened(name, session_ttl)

    async def close(self, number: int) -> None:
        """Let a worker leave: its sessions end."""
        worker = self._live.pop(number, None)
        if worker is None:
            return
        for session_id in self.model.workers[worker.name].holds:
            self._doubt(session_id)
        was_well = self.model.all_is_well
        await worker.close()
        self.model.ended(worker.name)
        for session_id in self._ids if was_well else ():
            row = await self.stranger.row(session_id)
            require(
                not isinstance(row, Holder) or row.worker_id != worker.name,
                f"{worker.name} was closed, and has left the row of session {session_id!r}",
            )

    async def crash(self, number: int) -> None:
        """Let a worker end without a trace: its rows stay."""
        worker = self._live.pop(number, None)
        if worker is None:
            return
        for session_id in self.model.workers[worker.name].holds:
            self._mailboxes[session_id].lose_memory()
        await worker.crash()
        self.model.ended(worker.name)

    async def set_reach(self, number: int, reach: Reach) -> None:
        """Change how a worker reaches what is shared."""
        worker = self._live.get(number)
        if worker is not None:
            worker.door.set_reach(reach)
            self.model.reaches(worker.name, reach)
            for mailbox in self._mailboxes.values():
                mailbox.disturb()

    async def clean_up(self, number: int) -> None:
        """Let a worker make a pass."""
        worker = self._live.get(number)
        if worker is not None:
            await worker.registry.cleanup()

    # ---- sessions ----

    async def add(self, number: int, session_id: str, transport: Transport) -> None:
        """Add a session to a worker, whoever holds it."""
        await self._add(number, session_id, Line(transport))

    async def add_again(self, number: int, session_id: str) -> None:
        """Add the very transport that a worker holds."""
        line = self._line(number, session_id)
        if line is not None:
            await self._add(number, session_id, line, again=True)

    async def move(self, session_id: str, transport: Transport) -> None:
        """Add a session to a worker that does not hold it, if another one does."""
        holders = {worker.name for worker, _ in self.model.holders(session_id)}
        others = [number for number, one in self._live.items() if one.name not in holders]
        if holders and others:
            await self._add(others[0], session_id, Line(transport))

    async def _add(self, number: int, session_id: str, line: Line, *, again: bool = False) -> None:
        worker = self._live.get(number)
        if worker is None:
            return
        model, mailbox = self.model, self._mailboxes[session_id]
        holders = list(model.holders(session_id))
        row = model.row(session_id)
        is_certain = model.all_is_well and (
            model.sole_holder(session_id) is not None
            if holders
            else row is None or isinstance(row, Holder)
        )
        mailbox.disturb()
        if not is_certain:
            self._doubt(session_id)
        elif row is None:  # a new session
            mailbox.end()
            self._owners[session_id].may_be = frozenset({None})
        self._begin_anew(worker, session_id)
        await self._go(worker, self._revocations.add(worker, session_id, line, again=again))
        for holder, _ in holders if is_certain else ():
            if holder.name != worker.name:  # it learns of the move, and sends on what it knows
                await self._named(holder.name).registry.cleanup()
                mailbox.in_memory.clear()

    async def remove(self, number: int, session_id: str) -> None:
        """Let a worker end a session that it holds."""
        worker = self._live.get(number)
        if worker is None:
            return
        model = self.model
        holder = model.sole_holder(session_id)
        was_alone = holder is not None and holder.name == worker.name
        is_certain = model.all_is_well and was_alone
        if was_alone and worker.door.reach is not Reach.HELD:
            self._removed_by[session_id] = worker.name
        if session_id in model.workers[worker.name].holds:
            self._doubt(session_id)
        model.removed(worker.name, session_id)
        await self._go(worker, worker.registry.remove_session, session_id)
        if is_certain:
            row = await self.stranger.row(session_id)
            require(row is None, f"session {session_id!r} was removed, and its row is there")

    async def let_old_writes_land(
        self, number: int, session_id: str, first: Transport, second: Transport
    ) -> None:
        """Add a session, remove it, and add it again; what was written first arrives last.

        It is still in time: of what a worker writes, the generation says what came later.
        """
        worker = self._live.get(number)
        if worker is None or worker.door.reach is not Reach.WELL:
            return
        self._doubt(session_id)
        self._begin_anew(None, session_id)
        worker.door.lead_astray()
        for transport in (first, second):
            line = Line(transport)
            await self._revocations.add(worker, session_id, line)()
            if transport is first:
                self.model.removed(worker.name, session_id)
                await worker.registry.remove_session(session_id)
                worker.door.lead_straight()
        await worker.door.arrive()

    async def change_transport(self, number: int, session_id: str, state: LineState) -> None:
        """Let something happen to the connection of a session."""
        line = self._line(number, session_id)
        if line is not None and line.state is not LineState.DIED:
            line.state = state
            if state is LineState.DIED:
                self._doubt(session_id)

    async def revoke(self, number: int, session_id: str) -> None:
        """Let a worker end a session for good, whoever holds it."""
        worker = self._live.get(number)
        if worker is not None:
            self._doubt(session_id)
            await self._revocations.revoke(worker, session_id)

    async def delete_row(
        self, session_id: str, delete_row: Callable[[str], Awaitable[None]]
    ) -> None:
        """Let a row vanish behind everybody's back."""
        self.model.row_deleted(session_id)
        self._doubt(session_id)
        await delete_row(session_id)

    # ---- messages and owners ----

    async def broadcast(self, number: int, session_id: str, *, durable: bool) -> None:
        """Send the next message to a session, from some worker."""
        worker = self._live.get(number)
        if worker is None:
            return
        holder = self.model.sole_holder(session_id)
        is_certain = holder is not None and self.model.all_is_well
        message = next(self._messages)
        try:
            await worker.registry.broadcast(session_id, message, durable=durable)
        except (SessionNotFound, StoreUnavailable) as exc:
            self._must_not_raise(exc, session_id, is_certain=is_certain)
            is_certain = False
        in_memory = not durable and holder is not None and holder.name == worker.name
        self._mailboxes[session_id].sent(
            message, number, is_certain=is_certain, in_memory=in_memory
        )

    async def read(self, session_id: str) -> None:
        """Read what has come to a session, by an inbox."""
        await self._read(session_id, read_inbox)

    async def respond(self, session_id: str) -> None:
        """Read what has come to a session, by a handler."""
        await self._read(session_id, read_by_handler)

    async def _read(self, session_id: str, reader: Reader, *, is_all: bool = True) -> None:
        found = next(self.model.holders(session_id), None)
        if found is None:
            return
        holder, _ = found
        mailbox = self._mailboxes[session_id]
        is_certain = self.model.all_is_well and self.model.sole_holder(session_id) is holder
        if not is_certain:
            mailbox.disturb()
        worker = self._named(holder.name)
        patience = self.pace.patience if is_certain else self.pace.moment
        if worker.registry.get_session_sync(session_id) is not None:
            await reader(worker.registry, mailbox, patience, self.pace.moment)
        if not is_certain or not is_all:
            return
        lost = list(mailbox.must_come)
        require(not lost, f"messages {lost} were accepted for session {session_id!r}, and are lost")
        mailbox.calm_down()

    async def set_owner(self, number: int, session_id: str, owner: str | None) -> None:
        """Set a session's owner, from some worker."""
        worker, known = self._live.get(number), self._owners[session_id]
        if worker is None:
            return
        known.say(owner)
        is_certain = self._lives_certainly(session_id)
        try:
            await worker.registry.set_session_owner(session_id, owner)
        except (SessionNotFound, StoreUnavailable) as exc:
            self._must_not_raise(exc, session_id, is_certain=is_certain)
        known.may_be = frozenset({owner}) if is_certain else None

    async def claim_owner(self, number: int, session_id: str, owner: str) -> None:
        """Claim a session for an owner, from some worker."""
        worker, known = self._live.get(number), self._owners[session_id]
        if worker is None:
            return
        known.say(owner)
        is_certain = self._lives_certainly(session_id)
        effective: str | None = None
        try:
            effective = await worker.registry.claim_session_owner(session_id, owner)
        except (SessionNotFound, StoreUnavailable) as exc:
            self._must_not_raise(exc, session_id, is_certain=is_certain)
        if is_certain:
            known.claimed(owner, effective)
        else:
            known.may_be = None

    # ---- what is there ----

    async def look(self) -> None:
        """Look at everything, and say what must not be.

        Raises:
            AssertionError: what it is.
        """
        confirmed = {one.name for one in self._live.values() if self._is_confirmed(one)}
        rows = {session_id: await self.stranger.row(session_id) for session_id in self._ids}
        held: dict[str, dict[str, object]] = {}
        passes: dict[str, int] = {}
        for worker in self._live.values():
            require(
                not any(
                    add.line.has_lied for add in self.model.workers[worker.name].holds.values()
                ),
                "make_transport() has made one that says it is disconnected, and nobody has ended "
                "it: it must be connected when it is made, and stay so",
            )
            found = {one: worker.registry.get_session_sync(one) for one in self._ids}
            held[worker.name] = {one: line for one, line in found.items() if line is not None}
            statistics = worker.registry.statistics()
            passes[worker.name] = statistics.passes - statistics.incomplete_passes
            require(
                statistics.failed_passes == 0,
                f"a pass of {worker.name} has ended in an error",
            )
            if statistics.unconfirmed:
                confirmed.discard(worker.name)
        self.model.judge(
            Seen(
                now=trio.current_time(),
                rows=rows,
                held=held,
                confirmed=frozenset(confirmed),
                passes=passes,
                listening=frozenset(
                    one.name for one in self._live.values() if one.door.is_answering
                ),
            )
        )
        for session_id, row in rows.items():
            if row is None or any(add.excuse for _, add in self.model.holders(session_id)):
                self._doubt(session_id)
            elif isinstance(row, Holder) and self._lives_certainly(session_id):
                self._owners[session_id].check(row.owner, "in its row")

    async def settle(self) -> None:
        """Heal everything; then what is held, what is stored and what lives must be the same.

        Raises:
            AssertionError: they are not.
        """
        for number in self._live:
            await self.set_reach(number, Reach.WELL)
        for worker in self.model.workers.values():
            for add in worker.holds.values():
                if add.line.state is not LineState.DIED:
                    add.line.state = LineState.LIVES
        for _ in range(2):
            for number in self._live:  # twice: the first one may join a pass that began before
                await self.clean_up(number)
            await self.look()
        if self.pace.until_all_dead_are_swept and self._live:
            await trio.sleep(self._longer * self.pace.until_all_dead_are_swept)
            await self.look()
        check_all_is_well(
            self.model,
            {one.name: one.registry.statistics() for one in self._live.values()},
            self._ids,
            dead_are_swept=bool(self.pace.until_all_dead_are_swept),
        )
        for session_id in self._ids:
            await self.read(session_id)
        await self.look()
        for number in list(self._live):
            await self.close(number)

    async def stop(self) -> None:
        """Close what runs, whatever has happened."""
        for worker in self._live.values():
            worker.door.set_reach(Reach.WELL)
        for number in list(self._live):
            await self._live.pop(number).close()
        await self.stranger.close()

    # ---- helpers ----

    @staticmethod
    def _is_confirmed(worker: LiveWorker) -> bool:
        return worker.registry.statistics().unconfirmed == 0

    def _lives_certainly(self, session_id: str) -> bool:
        return self.model.all_is_well and self.model.sole_holder(session_id) is not None

    def _begin_anew(self, worker: LiveWorker | None, session_id: str) -> None:
        """Note an add: by whoever has removed the session it begins another one for certain.

        By anybody else: the row of an earlier session may be there, and what is left of it counts.
        """
        mailbox, owner = self._mailboxes[session_id], self._owners[session_id]
        removed_by = self._removed_by.pop(session_id, None)
        if worker is not None and removed_by == worker.name and worker.door.reach is not Reach.HELD:
            mailbox.begin_anew()
            owner.begin_anew()
        elif worker is None or worker.name not in {
            one.name for one, _ in self.model.holders(session_id)
        }:
            mailbox.left, owner.said = 0, None

    def _doubt(self, session_id: str) -> None:
        self._mailboxes[session_id].doubt()
        self._owners[session_id].may_be = None

    def _must_not_raise(self, error: Exception, session_id: str, *, is_certain: bool) -> None:
        if is_certain:
            raise AssertionError(
                f"session {session_id!r} lives, and all is well, but a worker says otherwise"
            ) from error

    def _named(self, name: str) -> LiveWorker:
        [found] = [one for one in self._live.values() if one.name == name]
        return found

    def _line(self, number: int, session_id: str) -> Line | None:
        worker = self._live.get(number)
        add = None if worker is None else self.model.workers[worker.name].holds.get(session_id)
        return None if add is None else add.line

    async def _go(
        self, worker: LiveWorker, operation: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        """Await an operation, unless its worker is held up: then it goes on beside."""
        if worker.door.reach is Reach.HELD:
            self._nursery.start_soon(operation, *args)
            await trio.testing.wait_all_tasks_blocked()
        else:
            await operation(*args)
