"""What metrics and traces cost a pass: one with all of them, against one with none."""

import gc
import time
from contextlib import AsyncExitStack

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


class _Watcher:
    """Collects all metrics, and every span, into memory; can be turned off."""

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

    def collect(self) -> None:
        assert self._reader.get_metrics_data() is not None
        assert self._spans.get_finished_spans()
        self._spans.clear()


async def _pass(registry: SessionRegistry, watcher: _Watcher, sessions: int, *, on: bool) -> Taken:
    """Return the seconds by the clock, and the processor's."""
    watcher.turn(on=on)
    gc.collect()
    start, began = time.perf_counter(), time.process_time()
    report = await registry.cleanup()
    if on:
        watcher.collect()
    taken = time.perf_counter() - start, time.process_time() - began
    assert report.refreshed == sessions
    return taken


async def _measure(
    store: SessionStore, sessions: int, pairs: int
) -> tuple[list[Taken], list[Taken]]:
    """Return what passes took with and without, pair by pair."""
    watched, bare = list[Taken](), list[Taken]()
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(hold_sessions(store, sessions))
        watcher = _Watcher(registry)
        for number in range(pairs + 1):
            for on in (True, False) if number % 2 else (False, True):
                taken = await _pass(registry, watcher, sessions, on=on)
                (watched if on else bare).append(taken)
    return watched[1:], bare[1:]  # the first pair makes connections


def _row(name: str, watched: list[float], bare: list[float]) -> tuple[str, ...]:
    ratios = [a / b for a, b in zip(watched, bare, strict=True)]
    middle = ratio(median(ratios), 1.0)
    return name, ms(median(watched)), ms(median(bare)), middle, *quarters(ratios)


def run(server: sa.URL, *, quick: bool) -> list[Table]:
    sessions, pairs = (200, 3) if quick else (10_000, 21)
    rows = []
    with postgresql_schema(server) as url:
        for name, store in (("memory", MemoryStore()), ("PostgreSQL", DatabaseStore(url))):
            watched, bare = trio.run(_measure, store, sessions, pairs)
            for place, what in enumerate(("by the clock", "our processor time")):
                parts = [[one[place] for one in taken] for taken in (watched, bare)]
                rows.append(_row(f"{name}, {what}", *parts))
    return [
        Table(
            title=f"metrics: a pass over {sessions:,} sessions, with metrics and spans",
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
                f"{pairs} interleaved pairs; after each pass with them all metrics are collected,",
                "and the pass, its phases and slow operations are spans",
                "target: at most 1.03x",
            ),
        )
    ]
