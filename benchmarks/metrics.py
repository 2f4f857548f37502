"""What metrics and traces cost a pass: one with all of them, against one with none."""

import cProfile
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa
import trio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks._database import postgresql_schema
from benchmarks._tables import Table, median, ms, quarters, ratio
from benchmarks._workers import hold_sessions
from trio_sessions import SessionRegistry, SessionStore
from trio_sessions._tracing import Tracing
from trio_sessions.otel import instrument
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore

__all__ = ["run"]

Taken = tuple[float, float]
"""Seconds by the clock, and the processor's."""

_CLOCKS = ("by the clock", "our processor time")


class _Watcher:
    """Collects all metrics, and every span, into memory; spans can be turned off."""

    def __init__(self, registry: SessionRegistry) -> None:
        self._reader = InMemoryMetricReader()
        self._spans = InMemorySpanExporter()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        instrument(registry, MeterProvider([self._reader]), tracer_provider=tracers)
        self._tracing: Tracing = registry._house.settings.tracing
        self._tracer = self._tracing._tracer

    def turn(self, *, on: bool) -> None:
        self._tracing._tracer = self._tracer if on else None
        self._spans.clear()

    def collect(self) -> None:
        assert self._reader.get_metrics_data() is not None
        # By name: a stamp that began while passes were traced may end its spans later.
        names = {span.name for span in self._spans.get_finished_spans()}
        assert ("trio_sessions.pass" in names) == (self._tracing._tracer is not None)


@dataclass(slots=True)
class _Passes:
    """What passes took, one after the other, and what collecting the metrics after each."""

    alone: list[Taken] = field(default_factory=list)
    collected: list[Taken] = field(default_factory=list)

    def note(self, began: Taken, ended: Taken, collected: Taken) -> None:
        self.alone.append((ended[0] - began[0], ended[1] - began[1]))
        self.collected.append((collected[0] - began[0], collected[1] - began[1]))


def _now() -> Taken:
    return time.perf_counter(), time.process_time()


async def _pass(
    registry: SessionRegistry, watcher: _Watcher, passes: _Passes, *, traced: bool
) -> None:
    watcher.turn(on=traced)
    gc.collect()
    began = _now()
    report = await registry.cleanup()
    ended = _now()
    watcher.collect()
    passes.note(began, ended, _now())
    assert report.refreshed == registry.statistics().sessions


async def _measure(store: SessionStore, sessions: int, pairs: int) -> tuple[_Passes, _Passes]:
    """Return what passes took with spans and without, pair by pair."""
    traced, bare = _Passes(), _Passes()
    async with hold_sessions(store, sessions) as registry:
        watcher = _Watcher(registry)
        await _pass(registry, watcher, _Passes(), traced=True)  # makes connections
        for number in range(pairs):
            for on in (True, False) if number % 2 else (False, True):
                await _pass(registry, watcher, traced if on else bare, traced=on)
    return traced, bare


async def _count_calls(sessions: int) -> tuple[int, int, int]:
    """Count the calls of functions: of a bare pass, with metrics, and with spans, too."""
    counted: list[int] = []
    async with hold_sessions(MemoryStore(), sessions) as registry:
        watcher = _Watcher(registry)
        await _pass(registry, watcher, _Passes(), traced=True)
        for traced, collects in ((False, False), (False, True), (True, True)):
            watcher.turn(on=traced)
            profile = cProfile.Profile()
            with profile:
                await registry.cleanup()
                if collects:
                    watcher.collect()
            counted.append(sum(entry.callcount for entry in profile.getstats()))
    bare, metrics, spans = counted
    return bare, metrics, spans


def _row(
    name: str, show: Callable[[float], str], watched: Sequence[float], bare: Sequence[float]
) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(watched, bare, strict=True)]
    middle = ratio(median(ratios), 1.0)
    return name, show(median(watched)), show(median(bare)), middle, *quarters(ratios)


def _rows(name: str, traced: _Passes, bare: _Passes) -> list[tuple[str, ...]]:
    rows = []
    for what, watched in (("metrics", bare.collected), ("and spans", traced.collected)):
        for place, clock in enumerate(_CLOCKS):
            parts = [[one[place] for one in taken] for taken in (watched, bare.alone)]
            rows.append(_row(f"{name}, {what}, {clock}", ms, *parts))
    return rows


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, pairs = (20, 3) if quick else (10_000, 21)
    rows = []
    with postgresql_schema(server) as url:
        for name, store in (("memory", MemoryStore()), ("PostgreSQL", DatabaseStore(url))):
            rows += _rows(name, *trio.run(_measure, store, sessions, pairs))
    bare, *watched = trio.run(_count_calls, sessions)
    for what, calls in zip(("metrics", "and spans"), watched, strict=True):
        rows.append(_row(f"memory, {what}, calls of functions", "{:,}".format, [calls], [bare]))
    return [
        Table(
            title=f"metrics: a pass over {sessions:,} sessions, with metrics, and with spans, too",
            columns=(
                "",
                "with",
                "without",
                "median of the ratios",
                "lower quarter",
                "upper quarter",
            ),
            rows=rows,
            notes=(
                "metrics: a pass and the collection of all metrics after it, against that very",
                "pass, for nothing of them is done meanwhile; the target is 1.03x at most",
                f"and spans: such a pass with spans, against one without; {pairs} pairs in turn",
                "calls of functions: how many there are, which a busy machine does not change",
            ),
        )
    ]
