"""Metrics of a registry by OpenTelemetry.

Needs ``opentelemetry-api``, which the extra ``otel`` brings; nothing else of this package imports
it, and the registry knows nothing of it. What is exported, and how often, is up to the SDK that
the program sets up::

    trio_sessions.otel.instrument(registry)

The names follow OpenTelemetry's semantic conventions. No attribute ever has an id in it, neither
of a session nor of a worker: give each process a ``service.instance.id`` in its resource.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trio_sessions.errors import MissingDependency, RegistryClosed
from trio_sessions.types import CleanupReport, RegistryHealth, RegistryStatistics

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation

__all__ = ["Watched", "instrument"]

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Watched(Protocol):
    """A registry: `trio_sessions.SessionRegistry`, or that of `trio_sessions.aio`."""

    def statistics(self) -> RegistryStatistics:
        """Return counters and gauges."""
        ...

    def health(self) -> RegistryHealth:
        """Return facts."""
        ...


def instrument(registry: Watched, meter_provider: "MeterProvider | None" = None) -> None:
    """Let the metrics of a registry be read, whenever they are collected.

    Nothing runs in between, and reading asks no database. A registry that is closed, or not
    opened yet, has no metrics, and it is not kept alive. Two open registries of one process need
    a provider each, for no attribute tells them apart.

    The duration of a pass is recorded when metrics are collected: of several passes since the last
    time only the last one is. Collect more often than every ``cleanup_interval``.

    Args:
        registry: whose metrics.
        meter_provider: that of the SDK; None: the global one.

    Raises:
        MissingDependency: ``opentelemetry-api`` is missing; the extra ``otel`` brings it.
    """
    try:
        from opentelemetry import metrics
    except ImportError as exc:
        raise MissingDependency(
            f"instrument() needs opentelemetry-api, which cannot be imported ({exc}): "
            "pip install 'trio_sessions[otel]'"
        ) from exc
    _Instruments(registry, metrics.get_meter("trio_sessions", meter_provider=meter_provider))


Values = Sequence[tuple[float | None, Mapping[str, str]]]
"""What is observed: values and their attributes; None: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Metric:
    """A metric that is read from the registry."""

    name: str
    kind: str
    """The method of a meter that makes it."""
    unit: str
    description: str
    read: Callable[[RegistryStatistics, RegistryHealth], Values]


def _by(attribute: str, **values: float) -> Values:
    return [(value, {attribute: name}) for name, value in values.items()]


def _one(value: float | None) -> Values:
    return [(value, {})]


_COUNTER = "create_observable_counter"
_LEVEL = "create_observable_up_down_counter"
_GAUGE = "create_observable_gauge"

_METRICS = (
    _Metric(
        name="trio_sessions.passes",
        kind=_COUNTER,
        unit="{pass}",
        description="Passes: complete, without an answer of the database for all, or failed.",
        read=lambda now, _: _by(
            "trio_sessions.pass.outcome",
            complete=now.passes - now.incomplete_passes,
            incomplete=now.incomplete_passes,
            failed=now.failed_passes,
        ),
    ),
    _Metric(
        name="trio_sessions.session.removals",
        kind=_COUNTER,
        unit="{session}",
        description="Sessions that passes have removed, by the reason.",
        read=lambda now, _: _by(
            "trio_sessions.removal.reason",
            disconnected=now.removed_disconnected,
            missing=now.removed_missing,
        ),
    ),
    _Metric(
        name="trio_sessions.failures",
        kind=_COUNTER,
        unit="{failure}",
        description="Transports and rows about which nothing could be learned, and failed closes.",
        read=lambda now, _: _by(
            "trio_sessions.failure.kind",
            check=now.check_failures,
            refresh=now.refresh_failures,
            disconnect=now.disconnect_failures,
        ),
    ),
    _Metric(
        name="trio_sessions.row.restored",
        kind=_COUNTER,
        unit="{row}",
        description="Rows that passes have written: unconfirmed, or forgotten by the database.",
        read=lambda now, _: _one(now.restored),
    ),
    _Metric(
        name="trio_sessions.row.swept",
        kind=_COUNTER,
        unit="{row}",
        description="Expired rows of dead workers that were deleted.",
        read=lambda now, _: _one(now.expired),
    ),
    _Metric(
        name="trio_sessions.brakes",
        kind=_COUNTER,
        unit="{pass}",
        description="Passes that held sessions, for too many rows were missing at once.",
        read=lambda now, _: _one(now.brakes),
    ),
    _Metric(
        name="trio_sessions.database.rewinds",
        kind=_COUNTER,
        unit="{rewind}",
        description="How often the database had forgotten what it had confirmed.",
        read=lambda now, _: _one(now.database_rewinds),
    ),
    _Metric(
        name="trio_sessions.message.dropped",
        kind=_COUNTER,
        unit="{message}",
        description="Messages that nobody will read.",
        read=lambda now, _: _one(now.messages_dropped),
    ),
    _Metric(
        name="trio_sessions.topic.message.dropped",
        kind=_COUNTER,
        unit="{message}",
        description="Messages of topics that a subscriber did not take in time.",
        read=lambda now, _: _one(now.topic_messages_dropped),
    ),
    _Metric(
        name="trio_sessions.session.count",
        kind=_LEVEL,
        unit="{session}",
        description="Sessions held, by whether their row is confirmed to be written.",
        read=lambda now, _: _by(
            "trio_sessions.session.state",
            confirmed=now.sessions - now.unconfirmed,
            unconfirmed=now.unconfirmed,
        ),
    ),
    _Metric(
        name="trio_sessions.message.count",
        kind=_LEVEL,
        unit="{message}",
        description="Messages that wait in memory.",
        read=lambda now, _: _one(now.messages_in_memory),
    ),
    _Metric(
        name="trio_sessions.operation.count",
        kind=_LEVEL,
        unit="{operation}",
        description="Database operations that run, and those that wait for the limiter.",
        read=lambda now, _: _by(
            "trio_sessions.operation.state",
            running=now.operations_running,
            waiting=now.operations_waiting,
        ),
    ),
    _Metric(
        name="trio_sessions.row.leftover",
        kind=_LEVEL,
        unit="{row}",
        description="Rows of removed sessions that are still to be deleted.",
        read=lambda now, _: _one(now.leftover_rows),
    ),
    _Metric(
        name="trio_sessions.stuck.count",
        kind=_LEVEL,
        unit="{call}",
        description="Calls into transports, and tasks, that ignore their cancellation.",
        read=lambda now, _: _by(
            "trio_sessions.stuck.kind", call=now.stuck_calls, task=now.stuck_tasks
        ),
    ),
    _Metric(
        name="trio_sessions.session.held",
        kind=_GAUGE,
        unit="{session}",
        description="Sessions held by the brake in the last pass.",
        read=lambda _, health: _one(health.held),
    ),
    _Metric(
        name="trio_sessions.database.away",
        kind=_GAUGE,
        unit="s",
        description="How long the database has answered nothing; 0 while it answers.",
        read=lambda _, health: _one(health.database_away),
    ),
    _Metric(
        name="trio_sessions.pass.age",
        kind=_GAUGE,
        unit="s",
        description="Since when the last pass has ended for which the database answered.",
        read=lambda _, health: _one(health.since_good_pass),
    ),
    _Metric(
        name="trio_sessions.loop.lag",
        kind=_GAUGE,
        unit="s",
        description="The longest delay of a task on the event loop in the last ten seconds.",
        read=lambda _, health: _one(health.loop_lag),
    ),
)


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
        for metric in _METRICS:
            make = getattr(meter, metric.kind)
            make(metric.name, [self._callback(metric)], metric.unit, metric.description)
        self._now()  # here, and in no thread of the SDK, the loop begins to be measured

    def _callback(self, metric: _Metric) -> "Callable[[CallbackOptions], Iterable[Observation]]":
        def observe(_: "CallbackOptions") -> "Iterator[Observation]":
            now = self._now()
            if now is None:
                return
            self._record(now[0].last_report)
            for value, attributes in metric.read(*now):
                if value is not None:
                    yield self._observation(value, attributes)

        return observe

    def _now(self) -> tuple[RegistryStatistics, RegistryHealth] | None:
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
