"""The demo's stage: workers, clients, the model of who should be left, and the look at what is."""

import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence

import trio

from trio_sessions import CleanupReport
from trio_sessions.cli._database import Database, DatabaseRow
from trio_sessions.cli._gateway import Client, Gateway
from trio_sessions.cli._show import Screen
from trio_sessions.cli._verdict import Deeds, Finding, Outcome, expect

__all__ = ["Chosen", "Meddle", "Stage"]

_AT_A_TIME = 32  # clients that connect
_NOTICING = 5.0  # seconds that one end of a socket has to see what the other one did
_SETTLING = 10  # passes until every row is written, when the database was too busy for some
_CLOCK = 0.005  # seconds: more than one tick of any database's clock

Chosen = Mapping[Gateway, frozenset[str]]
"""Sessions, by the worker that holds them."""

Meddle = Callable[[str, "Stage"], Awaitable[None]]
"""For tests of the verdict: called before each pass, with the phase's name."""


class Stage:
    """Everything that plays, and what the demo knows of it because it did it."""

    def __init__(
        self,
        *,
        gateways: Sequence[Gateway],
        nursery: trio.Nursery,
        database: Database,
        screen: Screen,
        meddle: Meddle | None,
    ) -> None:
        self.findings: list[Finding] = []
        self.gateways = gateways
        self.database = database
        self.screen = screen
        self._nursery = nursery
        self._meddle = meddle
        self._clients: dict[str, dict[str, Client]] = {gateway.name: {} for gateway in gateways}
        self._untouched: list[tuple[Gateway, str]] = []
        self._held: dict[str, frozenset[str]] = dict.fromkeys(self._clients, frozenset())
        self._rows = dict(self._held)

    # ---- deeds ----

    async def connect_everybody(self, sessions: int) -> None:
        """Open the servers, and connect the clients to them in turn."""
        for gateway in self.gateways:
            await self._nursery.start(gateway.serve)
        limiter = trio.CapacityLimiter(_AT_A_TIME)
        with self.screen.connecting(sessions) as advance:

            async def connect(gateway: Gateway, session_id: str) -> None:
                async with limiter:
                    await self.connect(gateway, session_id)
                advance()

            async with trio.open_nursery() as nursery:
                for number in range(sessions):
                    gateway = self.gateways[number % len(self.gateways)]
                    session_id = secrets.token_urlsafe(16)
                    self._untouched.append((gateway, session_id))
                    nursery.start_soon(connect, gateway, session_id)
        for gateway in self.gateways:
            passes = 0
            while gateway.registry.statistics().unconfirmed and passes < _SETTLING:
                await gateway.registry.cleanup()
                passes += 1
        self._rows = dict(self._held)

    async def connect(self, gateway: Gateway, session_id: str | None = None) -> str:
        """Connect a client to a worker; returns once it is a session there."""
        client = Client(session_id or secrets.token_urlsafe(16))
        await self._nursery.start(client.run, gateway.port)
        self._clients[gateway.name][client.session_id] = client
        self._held[gateway.name] |= {client.session_id}
        return client.session_id

    def take(self, count: int) -> Chosen:
        """Choose clients to which nothing was done so far, fewer if there are no more."""
        taken, self._untouched = self._untouched[:count], self._untouched[count:]
        return {
            gateway: frozenset(session_id for on, session_id in taken if on is gateway)
            for gateway in self.gateways
        }

    async def vanish(self, chosen: Chosen) -> None:
        """Let clients close their sockets; returns once the other ends have seen it."""
        for client in self.clients(chosen):
            client.vanish()
        with trio.move_on_after(_NOTICING):  # one that never sees it is found out by the pass
            for gateway, session_ids in chosen.items():
                for session_id in session_ids:
                    self._clients[gateway.name].pop(session_id, None)
                    if (transport := gateway.transport_of(session_id)) is not None:
                        await transport.peer_gone.wait()

    def clients(self, chosen: Chosen) -> list[Client]:
        """Return the clients of sessions, but for those that are cut off already."""
        return [
            self._clients[gateway.name][session_id]
            for gateway, session_ids in chosen.items()
            for session_id in session_ids
            if session_id in self._clients[gateway.name]
        ]

    # ---- a pass of every worker ----

    async def clean_up(
        self, phase: str, deed: str, deeds: Mapping[Gateway, Deeds] | None = None
    ) -> None:
        """Let every worker run a pass at once, and compare with what had to come of it.

        Args:
            phase: its name.
            deed: what was done, and what should come of it, in a few words.
            deeds: what was done to each worker.
        """
        self.screen.doing(phase, deed)
        await trio.sleep(self.screen.pace + _CLOCK)
        if self._meddle is not None:
            await self._meddle(phase, self)
        expected = {
            gateway: expect(
                self._held[gateway.name],
                self._rows[gateway.name],
                (deeds or {}).get(gateway, Deeds()),
            )
            for gateway in self.gateways
        }
        before = await self.database.rows()
        reports = await self._passes()
        await self._let_clients_notice(expected)
        after = await self.database.rows()
        found = []
        for gateway in self.gateways:
            happened = await self._look(gateway, reports[gateway], before, after)
            # From here on the model follows the facts, so that each difference is named once.
            self._held[gateway.name], self._rows[gateway.name] = happened.held, happened.rows
            found.append(
                Finding(
                    phase=phase,
                    worker=gateway.name,
                    report=reports[gateway],
                    expected=expected[gateway],
                    happened=happened,
                )
            )
        self._untouched = [(on, i) for on, i in self._untouched if i in self._held[on.name]]
        self.findings += found
        self.screen.passed(found)
        await trio.sleep(self.screen.pace)

    async def _passes(self) -> Mapping[Gateway, CleanupReport]:
        reports: dict[Gateway, CleanupReport] = {}

        async def one(gateway: Gateway) -> None:
            reports[gateway] = await gateway.registry.cleanup()

        async with trio.open_nursery() as nursery:
            for gateway in self.gateways:
                nursery.start_soon(one, gateway)
        return reports

    async def _let_clients_notice(self, expected: Mapping[Gateway, Outcome]) -> None:
        """Wait for clients to see their connection closed; those that never do are found out."""
        with trio.move_on_after(_NOTICING):
            for client in self.clients({gateway: found.cut for gateway, found in expected.items()}):
                await client.cut.wait()

    async def _look(
        self,
        gateway: Gateway,
        report: CleanupReport,
        before: Mapping[str, DatabaseRow],
        after: Mapping[str, DatabaseRow],
    ) -> Outcome:
        """Put together what the report, the registry, the database and the clients say."""
        clients = self._clients[gateway.name]
        cut = frozenset(session_id for session_id, client in clients.items() if client.cut.is_set())
        for session_id in cut:
            del clients[session_id]
        rows = {i: row for i, row in after.items() if row.worker == gateway.name}
        was = {i: row.last_accessed for i, row in before.items() if row.worker == gateway.name}
        return Outcome(
            checked=report.checked,
            counted=report.refreshed,
            refreshed=frozenset(i for i in rows if i in was and rows[i].last_accessed > was[i]),
            disconnected=frozenset(report.disconnected),
            missing=frozenset(report.missing),
            restored=frozenset(report.restored),
            unanswered=frozenset(report.check_failures),
            unrefreshed=frozenset(report.refresh_failures),
            held=frozenset(await gateway.registry.get_all_session_ids()),
            rows=frozenset(rows),
            cut=cut,
        )
