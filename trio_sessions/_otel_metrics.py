"""Which metrics there are, and how each is read from a registry's statistics and health."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trio_sessions._reports import BATCH_SIZES, MESSAGE_AGES, RegistryHealth, RegistryStatistics

__all__ = ["METRICS", "Metric", "Values"]

Values = Sequence[tuple[float | None, Mapping[str, str]]]
"""What is observed: values and their attributes; None: nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric that is read from the registry."""

    name: str
    kind: str
    """The method of a meter that makes it."""
    unit: str
    description: str
    read: Callable[[RegistryStatistics, RegistryHealth], Values]


def _by(attribute: str, of: Mapping[Any, float | None] | None = None, **more: float) -> Values:
    values = {**(of or {}), **more}
    return [(value, {attribute: str(name)}) for name, value in values.items()]


def _in_classes(attribute: str, limits: Sequence[float], counts: Sequence[int]) -> Values:
    """Return counts by the greatest number that is in a class."""
    names = [f"{one:g}" for one in limits] + ["more"]
    return _by(attribute, dict(zip(names, counts, strict=True)))


def _one(value: float | None) -> Values:
    return [(value, {})]


_COUNTER = "create_observable_counter"
_LEVEL = "create_observable_up_down_counter"
_GAUGE = "create_observable_gauge"

METRICS: tuple[Metric, ...] = (
    Metric(
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
    Metric(
        name="trio_sessions.session.removals",
        kind=_COUNTER,
        unit="{session}",
        description="Sessions that have ended here, by the reason.",
        read=lambda now, _: _by("trio_sessions.removal.reason", dict(now.removals)),
    ),
    Metric(
        name="trio_sessions.failures",
        kind=_COUNTER,
        unit="{failure}",
        description="What could not be learned of transports and rows, and what could not be done.",
        read=lambda now, _: _by(
            "trio_sessions.failure.kind",
            check=now.check_failures,
            refresh=now.refresh_failures,
            disconnect=now.disconnect_failures,
            write=now.write_failures,
            sweep=now.sweep_failures,
            on_removed=now.listener_failures,
        ),
    ),
    Metric(
        name="trio_sessions.row.restored",
        kind=_COUNTER,
        unit="{row}",
        description="Rows that passes have written: unconfirmed, or forgotten by the database.",
        read=lambda now, _: _one(now.restored),
    ),
    Metric(
        name="trio_sessions.row.swept",
        kind=_COUNTER,
        unit="{row}",
        description="Expired rows of dead workers that were deleted.",
        read=lambda now, _: _one(now.expired),
    ),
    Metric(
        name="trio_sessions.brakes",
        kind=_COUNTER,
        unit="{pass}",
        description="Passes that held sessions, for too many rows were missing at once.",
        read=lambda now, _: _one(now.brakes),
    ),
    Metric(
        name="trio_sessions.database.rewinds",
        kind=_COUNTER,
        unit="{rewind}",
        description="How often the database had forgotten what it had confirmed.",
        read=lambda now, _: _one(now.database_rewinds),
    ),
    Metric(
        name="trio_sessions.batches",
        kind=_COUNTER,
        unit="{batch}",
        description="Batches of writes that were carried out, by how many writes they had at most.",
        read=lambda now, _: _in_classes(
            "trio_sessions.batch.size", BATCH_SIZES, now.batches_by_size
        ),
    ),
    Metric(
        name="trio_sessions.writes",
        kind=_COUNTER,
        unit="{write}",
        description="Writes in these batches.",
        read=lambda now, _: _one(now.writes),
    ),
    Metric(
        name="trio_sessions.message.sent",
        kind=_COUNTER,
        unit="{message}",
        description="Messages sent here: straight to a session of this worker, or stored.",
        read=lambda now, _: _by(
            "trio_sessions.message.route", memory=now.messages_kept, stored=now.messages_stored
        ),
    ),
    Metric(
        name="trio_sessions.message.fetched",
        kind=_COUNTER,
        unit="{message}",
        description="Messages fetched from the database, by how many seconds they waited at most.",
        read=lambda now, _: _in_classes(
            "trio_sessions.message.delay", MESSAGE_AGES, now.messages_fetched_by_age
        ),
    ),
    Metric(
        name="trio_sessions.message.dropped",
        kind=_COUNTER,
        unit="{message}",
        description="Messages that nobody will read.",
        read=lambda now, _: _one(now.messages_dropped),
    ),
    Metric(
        name="trio_sessions.topic.message.dropped",
        kind=_COUNTER,
        unit="{message}",
        description="Messages of topics that a subscriber did not take in time.",
        read=lambda now, _: _one(now.topic_messages_dropped),
    ),
    Metric(
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
    Metric(
        name="trio_sessions.message.count",
        kind=_LEVEL,
        unit="{message}",
        description="Messages that wait in memory.",
        read=lambda now, _: _one(now.messages_in_memory),
    ),
    Metric(
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
    Metric(
        name="trio_sessions.operation.limit",
        kind=_LEVEL,
        unit="{operation}",
        description="Database operations that may run at once: max_concurrent.",
        read=lambda now, _: _one(now.operations_limit),
    ),
    Metric(
        name="trio_sessions.connection.count",
        kind=_LEVEL,
        unit="{connection}",
        description="Connections of the store's pool, lent and idle; nothing where it has none.",
        read=lambda now, _: _by(
            "trio_sessions.connection.state",
            {"used": now.connections_in_use, "idle": now.connections_idle},
        ),
    ),
    Metric(
        name="trio_sessions.row.leftover",
        kind=_LEVEL,
        unit="{row}",
        description="Rows of removed sessions that are still to be deleted.",
        read=lambda now, _: _one(now.leftover_rows),
    ),
    Metric(
        name="trio_sessions.stuck.count",
        kind=_LEVEL,
        unit="{call}",
        description="Calls into transports, and tasks, that ignore their cancellation.",
        read=lambda now, _: _by(
            "trio_sessions.stuck.kind", call=now.stuck_calls, task=now.stuck_tasks
        ),
    ),
    Metric(
        name="trio_sessions.session.held",
        kind=_GAUGE,
        unit="{session}",
        description="Sessions held by the brake in the last pass.",
        read=lambda _, health: _one(health.held),
    ),
    Metric(
        name="trio_sessions.database.away",
        kind=_GAUGE,
        unit="s",
        description="How long the database has answered nothing; 0 while it answers.",
        read=lambda _, health: _one(health.database_away),
    ),
    Metric(
        name="trio_sessions.unknown.age",
        kind=_GAUGE,
        unit="s",
        description="For how long nobody could tell of a session; the longest, 0: all is known.",
        read=lambda _, health: _by(
            "trio_sessions.unknown.kind",
            transport=health.unknown_transport,
            row=health.unknown_row,
        ),
    ),
    Metric(
        name="trio_sessions.pass.age",
        kind=_GAUGE,
        unit="s",
        description="Since when the last pass has ended for which the database answered.",
        read=lambda _, health: _one(health.since_good_pass),
    ),
    Metric(
        name="trio_sessions.loop.lag",
        kind=_GAUGE,
        unit="s",
        description="The longest delay of a task on the event loop in the last ten seconds.",
        read=lambda _, health: _one(health.loop_lag),
    ),
)
