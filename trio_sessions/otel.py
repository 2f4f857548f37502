"""Metrics and traces of a registry by OpenTelemetry.

Needs ``opentelemetry-api``, which the extra ``otel`` brings; nothing else of this package imports
it, and the registry knows nothing of it. What is exported, and how often, is up to the SDK that
the program sets up::

    trio_sessions.otel.instrument(registry)

The names follow OpenTelemetry's semantic conventions. No attribute ever has an id in it, neither
of a session nor of a worker: give each process a ``service.instance.id`` in its resource.
"""

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from trio_sessions._checks import seconds
from trio_sessions._otel_metrics import METRICS, Metric
from trio_sessions._otel_spans import Spans
from trio_sessions._tracing import Tracer
from trio_sessions.errors import MissingDependency, RegistryClosed
from trio_sessions.types import CleanupReport, RegistryHealth, RegistryStatistics

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import TracerProvider

__all__ = ["Watched", "instrument"]

_FRESH = 1.0  # seconds within which a collection is over
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Watched(Protocol):
    """A registry: `trio_sessions.SessionRegistry`, or that of `trio_sessions.aio`."""

    def statistics(self) -> RegistryStatistics:
        """Return counters and gauges."""
        ...

    def health(self) -> RegistryHealth:
        """Return facts."""
        ...

    def trace(self, tracer: Tracer) -> None:
        """Let what it does be traced."""
        ...


def instrument(
    registry: Watched,
    meter_provider: "MeterProvider | None" = None,
    *,
    tracer_provider: "TracerProvider | None" = None,
    slow_operation: float = 0.1,
) -> None:
    """Let the metrics of a registry be read, whenever they are collected, and trace what it does.

    For metrics nothing runs in between, and reading asks no database. A registry that is closed,
    or not opened yet, has no metrics, and it is not kept alive. Two open registries of one process
    need a provider each, for no attribute tells them apart.

    The durations of a pass are recorded when metrics are collected: of several passes since the
    last time only those of the last one. Collect more often than every ``cleanup_interval``.

    Traced are passes with their phases, `revoke` and `drain`, and operations of the store that fail
    or take long. Of a call from a span of yours they are children.

    Args:
        registry: whose metrics.
        meter_provider: that of the SDK; None: the global one.
        tracer_provider: likewise; where nobody has set one up, nothing is traced.
        slow_operation: seconds; operations of the store that take less and do not fail are no
            spans, for there are many. 0.0: all of them are.

    Raises:
        MissingDependency: ``opentelemetry-api`` is missing; the extra ``otel`` brings it.
        TypeError, ValueError: ``slow_operation`` is no such number.
    """
    if slow_operation != 0 or isinstance(slow_operation, bool):
        slow_operation = seconds("slow_operation", slow_operation)
    try:
        from opentelemetry import metrics, trace
    except ImportError as exc:
        raise MissingDependency(
            f"instrument() needs opentelemetry-api, which cannot be imported ({exc}): "
            "pip install 'trio_sessions[otel]'"
        ) from exc
    _Instruments(registry, metrics.get_meter("trio_sessions", meter_provider=meter_provider))
    provider = tracer_provider or trace.get_tracer_provider()
    if not isinstance(provider, trace.NoOpTracerProvider | trace.ProxyTracerProvider):
        tracer = trace.get_tracer("trio_sessions", tracer_provider=tracer_provider)
        registry.trace(Spans(tracer, slow_operation))


_Read = tuple[RegistryStatistics, RegistryHealth]


class _Instruments:
    """The instruments of one registry; their callbacks keep this alive, and not the registry."""

    def __init__(self, registry: Watched, meter: "Meter") -> None:
        from opentelemetry.metrics import Observation

        self._registry = weakref.ref(registry)
        self._observation = Observation
        self._recorded: CleanupReport | None = None
        self._durations = meter.create_histogram(
            "trio_sessions.pass.duration",
            unit="s",
            description="How long passes took.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._phases = meter.create_histogram(
            "trio_sessions.pass.phase.duration",
            unit="s",
            description="How long the phases of passes took.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._read: _Read | None = None
        self._read_at = -math.inf
        for metric in METRICS:
            make = getattr(meter, metric.kind)
            make(metric.name, [self._callback(metric)], metric.unit, metric.description)
        self._now()  # here, and in no thread of the SDK, the loop begins to be measured

    def _callback(self, metric: Metric) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        def observe(_: "CallbackOptions") -> "Iterator[Observation]":
            now = self._now_for(metric)
            if now is None:
                return
            self._record(now[0].last_report)
            for value, attributes in metric.read(*now):
                if value is not None:
                    yield self._observation(value, attributes)

        return observe

    def _now_for(self, metric: Metric) -> "_Read | None":
        """Read the registry for the first metric of a collection, and for others if they are alone.

        An SDK collects them in the order in which they were made.
        """
        if metric is METRICS[0] or time.monotonic() > self._read_at + _FRESH:
            self._read, self._read_at = self._now(), time.monotonic()
        return self._read

    def _now(self) -> "_Read | None":
        registry = self._registry()
        if registry is None:
            return None
        try:
            now = registry.statistics(), registry.health()
        except RegistryClosed:
            return None
        return None if now[0].closed else now

    def _record(self, report: CleanupReport | None) -> None:
        if report is not None and report is not self._recorded:
            self._recorded = report
            self._durations.record(report.duration)
            for name, took in (
                ("check", report.checking),
                ("refresh", report.refreshing),
                ("sweep", report.sweeping),
            ):
                self._phases.record(took, {"trio_sessions.pass.phase": name})
