"""Traces: passes with their phases, slow and failing operations of the store, revoke and drain."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from conftest import Shared
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from trio_sessions import SessionsError, StoreUnavailable, aio, open_registry
from trio_sessions.abc import Worker
from trio_sessions.otel import instrument
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore


class Tracer:
    """An SDK of its own, which keeps the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def take(self) -> list[ReadableSpan]:
        """Return the spans that have ended since this was last asked."""
        spans = self._exporter.get_finished_spans()
        self._exporter.clear()
        return [*spans]


@pytest.fixture
def tracer() -> Iterator[Tracer]:
    one = Tracer()
    yield one
    one.provider.shutdown()


def parent_of(span: ReadableSpan, among: list[ReadableSpan]) -> str | None:
    if span.parent is None:
        return None
    [found] = [one for one in among if one.context.span_id == span.parent.span_id]
    return found.name


async def test_a_pass_has_its_phases_and_operations(tracer: Tracer, everywhere: Shared) -> None:
    """The operations of a phase are children of it, and a pass is nobody's child."""
    with tracer.provider.get_tracer("test").start_as_current_span("the program starts"):
        opening = everywhere.open()
        registry = await opening.__aenter__()
    try:
        await registry.add_session("s", FakeTransport())
        instrument(registry, tracer_provider=tracer.provider, slow_operation=0)
        tracer.take()
        await registry.cleanup()
        spans = tracer.take()
    finally:
        await opening.__aexit__(None, None, None)
    parents = {one.name: parent_of(one, spans) for one in spans}
    assert parents["trio_sessions.pass"] is None
    for phase in ("check", "refresh", "sweep"):
        assert parents[f"trio_sessions.pass.{phase}"] == "trio_sessions.pass"
    assert parents["trio_sessions.store.refresh"] == "trio_sessions.pass.refresh"
    assert parents["trio_sessions.store.sweep"] == "trio_sessions.pass.sweep"
    [one] = [one for one in spans if one.name == "trio_sessions.pass"]
    assert dict(one.attributes or {}) == {
        "trio_sessions.checked": 1,
        "trio_sessions.refreshed": 1,
        "trio_sessions.expired": 0,
    }


async def test_a_question_is_a_child_of_the_callers_span(tracer: Tracer, shared: Shared) -> None:
    """Also where it is asked in a task of its own."""
    async with shared.open() as registry:
        instrument(registry, tracer_provider=tracer.provider, slow_operation=0)
        tracer.take()
        with tracer.provider.get_tracer("test").start_as_current_span("a request"):
            assert await registry.locate_session("nobody's") is None
        spans = tracer.take()
    parents = {one.name: parent_of(one, spans) for one in spans}
    assert parents["trio_sessions.store.locate"] == "a request"
    assert "nobody's" not in repr([one.to_json() for one in spans])


def test_so_it_is_across_from_asyncio(tracer: Tracer) -> None:
    async def main() -> None:
        async with aio.SessionRegistry() as registry:
            instrument(registry, tracer_provider=tracer.provider, slow_operation=0)
            tracer.take()
            with tracer.provider.get_tracer("test").start_as_current_span("a request"):
                assert await registry.locate_session("nobody's") is None

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    spans = [
        one for one in tracer.take() if one.name in {"trio_sessions.store.locate", "a request"}
    ]
    assert [parent_of(one, spans) for one in spans] == ["a request", None]


async def test_only_slow_and_failing_operations_are_spans(tracer: Tracer) -> None:
    """A quick one is none; what fails says of which kind its error is, and no more."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        instrument(registry, tracer_provider=tracer.provider, slow_operation=0.05)
        await registry.locate_session("s")
        assert tracer.take() == []
        store.fail(Fault.ANSWERS_LATE, "locate", seconds=0.06)
        await registry.locate_session("s")
        [slow] = tracer.take()
        assert slow.name == "trio_sessions.store.locate"
        assert slow.kind is SpanKind.CLIENT
        assert slow.status.status_code is StatusCode.UNSET
        assert slow.start_time is not None
        assert slow.end_time is not None
        assert 0.05e9 <= slow.end_time - slow.start_time < 5e9
        store.fail(Fault.FAILS, "locate")
        with pytest.raises(SessionsError):
            await registry.locate_session("s")
        [failed] = tracer.take()
        assert failed.status.status_code is StatusCode.ERROR
        assert dict(failed.attributes or {}) == {"error.type": "StoreUnavailable"}
        assert (failed.status.description, failed.events) == (None, ())
        store.heal()


async def test_whoever_leaves_has_not_failed(tracer: Tracer) -> None:
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        instrument(registry, tracer_provider=tracer.provider)
        store.fail(Fault.HANGS, "locate")
        with trio.move_on_after(0.01) as scope:
            await registry.locate_session("s")
        assert scope.cancelled_caught
        assert tracer.take() == []


async def test_revoke_and_drain_are_spans(tracer: Tracer, shared: Shared) -> None:
    """With how many they have ended, and never which."""
    async with shared.open() as registry:
        instrument(registry, tracer_provider=tracer.provider, slow_operation=3600)
        await registry.add_session("the-session", FakeTransport(), owner="the-owner")
        assert await registry.revoke(owner="the-owner", reason="the-reason") == 1
        await registry.drain(0)
        revoked, drained = tracer.take()
    assert revoked.name == "trio_sessions.revoke"
    assert dict(revoked.attributes or {}) == {"trio_sessions.sessions": 1}
    assert drained.name == "trio_sessions.drain"
    for secret in ("the-session", "the-owner", "the-reason", registry.worker_id):
        assert secret not in revoked.to_json() + drained.to_json()


def test_it_may_be_traced_before_it_is_open(tracer: Tracer) -> None:
    """A registry of asyncio is made at import time, and its first pass is traced."""
    registry = aio.SessionRegistry()
    instrument(registry, tracer_provider=tracer.provider)

    async def main() -> None:
        async with registry:
            pass

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())
    assert "trio_sessions.pass" in [one.name for one in tracer.take()]


async def test_where_nobody_collects_nothing_is_traced() -> None:
    """Neither by the global provider that nobody has set up, nor by one that does nothing."""
    async with open_registry() as registry:
        instrument(registry)
        instrument(registry, tracer_provider=NoOpTracerProvider())
        assert not registry._house.settings.tracing.is_used


@pytest.mark.parametrize("slow", [-1.0, float("nan"), True])
async def test_a_wrong_threshold_is_named(slow: float) -> None:
    async with open_registry() as registry:
        with pytest.raises((TypeError, ValueError), match="slow_operation"):
            instrument(registry, slow_operation=slow)


class AnswersWithAName(MemoryStore):
    async def locate(self, worker: Worker, session_id: str) -> Any:
        await super().locate(worker, session_id)
        return "alice"


async def test_what_breaks_the_contract_is_named_as_without_spans(tracer: Tracer) -> None:
    """By the method of the store, not by what watches it."""
    async with open_registry(AnswersWithAName()) as registry:
        instrument(registry, tracer_provider=tracer.provider, slow_operation=0)
        with pytest.raises(StoreUnavailable, match=r": AnswersWithAName\.locate answered with"):
            await registry.locate_session("nobody")
