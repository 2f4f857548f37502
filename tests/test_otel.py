"""Metrics: what the SDK collects, what Prometheus scrapes, and what dashboards may name."""

import asyncio
import gc
import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from backdoors import MemoryBackdoor
from conftest import Shared
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import REGISTRY, start_http_server
from trio.testing import MockClock

from trio_sessions import Limits, RemovalReason, SessionRegistry, aio, open_registry
from trio_sessions.otel import instrument
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore
from trio_sessions.types import RegistryHealth, RegistryStatistics

ROOT = Path(__file__).parent.parent
OBSERVABILITY = ROOT / "docs/observability"

Points = dict[str, dict[str, Any]]


class Collector:
    """An SDK of its own, which keeps what it collects in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def collect(self) -> Points:
        """Return values by metric and attribute; of a histogram its points."""
        data = self._reader.get_metrics_data()
        found: Points = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points = found.setdefault(metric.name, {})
                    for point in metric.data.data_points:
                        label = ",".join(map(str, (point.attributes or {}).values()))
                        points[label] = getattr(point, "value", point)
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.provider.shutdown()


async def test_the_metrics_say_what_the_registry_has_done(collector: Collector) -> None:
    """Sessions by state, passes by outcome, removals by reason, failures by kind."""
    store = FaultyStore(memory := MemoryStore())
    async with open_registry(store) as registry:
        instrument(registry, collector.provider)
        gone, broken = FakeTransport("closed"), FakeTransport("raises")
        for session_id, transport in (
            ("gone", gone),
            ("broken", broken),
            ("lost", FakeTransport()),
            ("kept", FakeTransport()),
        ):
            await registry.add_session(session_id, transport)
        MemoryBackdoor(memory).delete("lost")
        await registry.cleanup()
        store.fail(Fault.FAILS)
        await registry.add_session("unconfirmed", FakeTransport())
        await registry.cleanup()
        assert store.faults
        found = collector.collect()
        assert found["trio_sessions.passes"] == {"complete": 2, "incomplete": 1, "failed": 0}
        removals = found["trio_sessions.session.removals"]
        assert set(removals) == {str(one) for one in RemovalReason}
        assert {k: v for k, v in removals.items() if v} == {"disconnected": 1, "missing": 1}
        assert found["trio_sessions.failures"]["check"] == 2
        assert found["trio_sessions.failures"]["refresh"] >= 2
        assert found["trio_sessions.session.count"] == {"confirmed": 2, "unconfirmed": 1}
        assert found["trio_sessions.failures"]["write"] >= 1
        assert found["trio_sessions.unknown.age"]["transport"] > 0
        assert found["trio_sessions.unknown.age"]["row"] > 0
        assert found["trio_sessions.database.away"][""] > 0
        assert found["trio_sessions.pass.age"][""] > 0
        store.heal()


async def test_every_reason_is_counted(collector: Collector, everywhere: Shared) -> None:
    """Whatever has ended a session, here or elsewhere; a transport that is replaced ends none."""
    limits = Limits(max_age=3600.0)
    async with everywhere.open(limits=limits) as other, everywhere.open(limits=limits) as registry:
        instrument(registry, collector.provider)
        ids = ("removed", "revoked", "moved", "closed", "gone", "drained")
        for session_id in ids:
            await registry.add_session(session_id, FakeTransport())
        await registry.add_session("closed", FakeTransport())
        await registry.remove_session("removed")
        await registry.revoke("revoked")
        await other.add_session("moved", FakeTransport())
        registry.get_session_sync("gone").state = "closed"  # type: ignore[union-attr]
        await registry.cleanup()
        await registry.drain(0)
        counted = collector.collect()["trio_sessions.session.removals"]
    assert {reason: number for reason, number in counted.items() if number} == {
        "removed": 1,
        "revoked": 1,
        "taken_over": 1,
        "disconnected": 1,
        "drained": 2,
    }


async def test_a_closing_counts_too() -> None:
    async with open_registry() as registry:
        for session_id in ("a", "b"):
            await registry.add_session(session_id, FakeTransport())
    assert registry.statistics().removals[RemovalReason.CLOSED] == 2


async def test_messages_are_counted_by_their_route(collector: Collector, database: Shared) -> None:
    """Those that need no database, those that are stored, and how long these have waited."""
    async with database.open() as a, database.open() as b:
        instrument(a, collector.provider)
        await a.add_session("s", FakeTransport())
        await a.broadcast("s", "near")
        await b.broadcast("s", "far")
        await a.broadcast("s", "stored here", durable=True)
        database.backdoor.age_messages(30.0)
        async with a.open_inbox("s") as inbox:
            assert {await anext(inbox) for _ in range(3)} == {"near", "far", "stored here"}
        found = collector.collect()
        assert found["trio_sessions.message.sent"] == {"memory": 1, "stored": 1}
        delays = found["trio_sessions.message.fetched"]
        assert delays == {"0.1": 0, "1": 0, "10": 0, "60": 2, "more": 0}
        assert b.statistics().messages_stored == 1


async def test_the_writers_batches_are_counted_by_their_size(
    collector: Collector, database: Shared
) -> None:
    """A lone call is a batch of one; what comes meanwhile shares the next one."""
    async with database.open() as registry:
        instrument(registry, collector.provider)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(registry.add_session, f"s{number}", FakeTransport())
        found = collector.collect()
        batches, writes = found["trio_sessions.batches"], found["trio_sessions.writes"][""]
        assert writes == 50
        assert batches["100"] == 1
        assert sum(batches.values()) <= 3
        pool = found["trio_sessions.connection.count"]
        assert pool["used"] + pool["idle"] >= 1
        assert found["trio_sessions.operation.limit"] == {"": 20}


async def test_how_long_something_is_unknown(autojump_clock: MockClock) -> None:
    """It grows from pass to pass, and is over when the last of them is known."""
    transport = FakeTransport("raises")
    async with open_registry() as registry:
        await registry.add_session("s", transport)
        await registry.cleanup()
        await trio.sleep(70)
        await registry.cleanup()
        assert registry.health().unknown_transport == 70.0
        assert registry.health().unknown_row == 0.0
        other = FakeTransport("raises")
        await registry.add_session("s", other)  # another session, of which nothing was asked yet
        await registry.cleanup()
        assert registry.health().unknown_transport == 0.0
        other.state = "connected"
        await trio.sleep(5)
        await registry.cleanup()
        assert registry.health().unknown_transport == 0.0


async def test_the_phases_of_a_pass_are_recorded(collector: Collector) -> None:
    """Together they are no longer than the pass."""
    async with open_registry() as registry:
        instrument(registry, collector.provider)
        await registry.add_session("s", FakeTransport())
        report = await registry.cleanup()
        collector.collect()  # what is recorded meanwhile may come with the next one
        phases = collector.collect()["trio_sessions.pass.phase.duration"]
        assert {name: point.count for name, point in phases.items()} == {
            "check": 1,
            "refresh": 1,
            "sweep": 1,
        }
        assert 0 < report.checking + report.refreshing + report.sweeping <= report.duration


async def test_each_pass_that_is_collected_is_one_duration(collector: Collector) -> None:
    """However often it is collected in between."""

    def count() -> int:
        found: int = collector.collect()["trio_sessions.pass.duration"][""].count
        return found

    async with open_registry() as registry:
        instrument(registry, collector.provider)
        collector.collect()  # what is recorded meanwhile may come with the next one
        assert [count(), count()] == [1, 1]
        await registry.cleanup()
        collector.collect()
        assert [count(), count()] == [2, 2]


class Read:
    """A registry that counts how often it is read."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._registry = registry
        self.trace = registry.trace
        self.reads: Counter[str] = Counter()

    def statistics(self) -> RegistryStatistics:
        self.reads["statistics"] += 1
        return self._registry.statistics()

    def health(self) -> RegistryHealth:
        self.reads["health"] += 1
        return self._registry.health()


async def test_metrics_cost_one_reading_for_each_collection(collector: Collector) -> None:
    """However many metrics, sessions and passes there are; and nothing in between."""
    async with open_registry() as registry:
        read = Read(registry)
        instrument(read, collector.provider)
        read.reads.clear()
        for number in range(50):
            await registry.add_session(f"s{number}", FakeTransport())
        await registry.cleanup()
        await registry.cleanup()
        assert not read.reads
        assert len(collector.collect()) > 20
        assert read.reads == {"statistics": 1, "health": 1}
        collector.collect()
        assert read.reads == {"statistics": 2, "health": 2}


async def test_no_id_is_ever_an_attribute(collector: Collector) -> None:
    """Neither a session's nor a worker's nor an owner's."""
    async with open_registry(worker_id="the-worker") as registry:
        instrument(registry, collector.provider)
        await registry.add_session("the-session", FakeTransport())
        await registry.set_session_owner("the-session", "the-owner")
        await registry.cleanup()
        found = collector.collect()
    assert len(found) == 25  # the loop is not measured yet, and there is no pool
    for one in ("the-worker", "the-session", "the-owner"):
        assert one not in repr(found)


async def test_a_closed_registry_has_no_metrics_and_is_let_go(collector: Collector) -> None:
    """So nobody sees sessions that are gone; and nothing keeps it in memory."""
    async with open_registry() as registry:
        instrument(registry, collector.provider)
        assert collector.collect()["trio_sessions.session.count"]
    assert not any(collector.collect().get("trio_sessions.session.count", {}))
    del registry
    gc.collect()
    assert not any(collector.collect().get("trio_sessions.session.count", {}))


def test_it_may_be_called_before_the_registry_is_open(collector: Collector) -> None:
    """A registry of asyncio is made at import time."""
    registry = aio.SessionRegistry()
    instrument(registry, collector.provider)

    async def main() -> Points:
        assert collector.collect() == {}
        async with registry:
            return await asyncio.to_thread(collector.collect)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        assert runner.run(main())["trio_sessions.passes"]["complete"] == 1


# ---- Prometheus ----


@pytest.fixture
def scrape() -> Iterator[tuple[MeterProvider, Callable[[], str]]]:
    """Serve the metrics of a provider by HTTP, as a program does."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    server, thread = start_http_server(0, "127.0.0.1")

    def get() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            text: str = answer.read().decode()
            return text

    yield provider, get
    server.shutdown()
    server.server_close()
    thread.join()
    provider.shutdown()
    assert "trio_sessions" not in repr(list(REGISTRY.collect()))


def named(text: str) -> set[str]:
    return set(re.findall(r"\btrio_sessions_\w+", text))


async def test_dashboards_and_alerts_name_what_prometheus_scrapes(
    scrape: tuple[MeterProvider, Callable[[], str]], sqlite: Shared
) -> None:
    """Metrics and labels, of a real scrape from another thread; and each alert says what to do."""
    provider, get = scrape
    async with sqlite.open() as registry:
        instrument(registry, provider)
        await registry.add_session("alice", FakeTransport())
        while (text := await trio.to_thread.run_sync(get)).count("loop_lag_seconds") < 3:
            await trio.sleep(0.1)  # it is measured once a second
    known = named(text)
    assert "trio_sessions_session_count{" in text
    assert 'trio_sessions_session_state="confirmed"} 1.0' in text
    dashboard = (OBSERVABILITY / "grafana-dashboard.json").read_text("utf-8")
    alerts = (OBSERVABILITY / "prometheus-alerts.yml").read_text("utf-8")
    howto = (ROOT / "docs/howto/metrics.md").read_text("utf-8")
    assert json.loads(dashboard)["panels"]
    for document in (dashboard, alerts, howto):
        assert named(document)
        assert named(document) <= known
    assert alerts.count("- alert:") == alerts.count("description:") == alerts.count("expr:") > 3


def test_the_howto_lists_every_metric() -> None:
    """By its name in OpenTelemetry."""
    from trio_sessions._otel_metrics import METRICS

    howto = (ROOT / "docs/howto/metrics.md").read_text("utf-8")
    table, _, _ = howto.partition("## The metrics")[2].partition("## ")
    listed = set(re.findall(r"^\| `(trio_sessions\.[\w.]+)`", table, re.MULTILINE))
    histograms = {"trio_sessions.pass.duration", "trio_sessions.pass.phase.duration"}
    assert listed == {metric.name for metric in METRICS} | histograms


def test_a_missing_package_is_named_with_its_extra() -> None:
    """And importing the module, or the package, does not need it."""
    program = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "import trio_sessions, trio_sessions.otel\n"
        "try: trio_sessions.otel.instrument(object())\n"
        "except Exception as exc: print(type(exc).__name__, exc)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("MissingDependency instrument() needs opentelemetry-api")
    assert "pip install 'trio_sessions[otel]'" in ran.stdout
