"""What the rows of the workers tell of them."""

from collections import Counter
from collections.abc import Iterator

import sqlalchemy as sa

from trio_sessions.cli._doctor._findings import Case, Check, Finding, fail, ok, warn
from trio_sessions.cli._inspect import count, duration
from trio_sessions.inspection import WorkerInfo, WorkerState
from trio_sessions.stores.database._clock import age_of
from trio_sessions.stores.database._inspection import Inspection
from trio_sessions.stores.database._questions import Questions

__all__ = ["CHECKS", "workers"]

_AHEAD = 1.0  # seconds; two statements of one moment may come in the other order
_LATE_PASSES = 3  # cleanup_intervals: jitter and one slow pass are no fault
_MANY = 1001  # rows that nobody holds; more are not counted


def workers(connection: sa.Connection, case: Case) -> list[WorkerInfo]:
    """Return the workers that have a row."""
    return Inspection(case.tables, Questions(case.tables, None)).list_workers(connection)


def _not_gone(case: Case) -> list[WorkerInfo]:
    return [one for one in case.workers or () if one.state is not WorkerState.GONE]


def _living(case: Case) -> list[WorkerInfo]:
    return [one for one in case.workers or () if one.state is WorkerState.ALIVE]


def _lives(_: sa.Connection, case: Case) -> Iterator[Finding]:
    late = [one for one in case.workers or () if one.state is WorkerState.LATE]
    for one in late:
        yield warn(
            f"{one.worker_id} is late: no stamp for {duration(one.silence)}",
            "look whether it runs and has a way to the database; after its session_ttl "
            f"({duration(one.session_ttl)}) others take its rows",
        )
    if not late:
        yield ok(f"{count(len(_living(case)), 'worker')} alive")


def _intervals(_: sa.Connection, case: Case) -> Iterator[Finding]:
    there = _not_gone(case)
    wrong = [one for one in there if one.cleanup_interval > one.session_ttl / 2]
    for one in wrong:
        yield fail(
            f"{one.worker_id} has cleanup_interval {one.cleanup_interval:g} s and session_ttl "
            f"{one.session_ttl:g} s: one late pass lets live sessions expire",
            "cleanup_interval must be at most half of session_ttl",
        )
    passed = {one.incarnation: (one.last_stamp - one.last_pass).total_seconds() for one in there}
    slow = [
        one
        for one in there
        if one not in wrong and passed[one.incarnation] > _LATE_PASSES * one.cleanup_interval
    ]
    for one in slow:
        yield warn(
            f"no pass of {one.worker_id} has ended for {duration(passed[one.incarnation])}, and "
            f"its cleanup_interval is {one.cleanup_interval:g} s",
            "look into its log: a worker whose passes do not end loses its lease after "
            f"session_ttl ({duration(one.session_ttl)})",
        )
    if not wrong and not slow:
        yield ok("each worker's passes keep its lease")


def _settings(_: sa.Connection, case: Case) -> Iterator[Finding]:
    there = _not_gone(case)
    differ = False
    for name in ("session_ttl", "cleanup_interval", "version"):
        values = sorted({str(getattr(one, name)) for one in there})
        if len(values) > 1:
            differ = True
            yield warn(
                f"workers differ in {name}: {', '.join(value or 'unknown' for value in values)}",
                "harmless while a deploy goes on; else start all with the same settings",
            )
    if not differ:
        yield ok("all workers have the same settings")


def _ids(_: sa.Connection, case: Case) -> Iterator[Finding]:
    names = Counter(one.worker_id for one in _living(case))
    twice = sorted(name for name, number in names.items() if number > 1)
    for name in twice:
        yield warn(
            f"{names[name]} living workers have the id {name}",
            "give each its own worker_id, or leave it out: whoever looks for one finds another",
        )
    if not twice:
        yield ok("each living worker has an id of its own")


def _dead(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    gone = [one for one in case.workers or () if one.state is WorkerState.GONE]
    rows = sum(one.sessions for one in gone)
    if rows:
        yield warn(
            f"{count(len(gone), 'worker')} gone, with {count(rows, 'row')} of sessions",
            "trio-sessions sweep --dry-run; a living worker's next pass sweeps them",
        )
    session, worker = case.tables.sessions.c, case.tables.workers.c
    has_holder = sa.exists().where(worker.incarnation == session.incarnation)
    some = sa.select(session.session_id).where(sa.not_(has_holder)).limit(_MANY).subquery()
    nobodys = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
    if nobodys:
        at_least = "at least " if nobodys == _MANY else ""
        yield warn(
            f"{at_least}{count(nobodys, 'row')} of sessions are of workers without a row",
            "they expire by the longest session_ttl; who has written them if no other version?",
        )
    if not rows and not nobodys:
        yield ok("no rows of dead workers")


def _clock(connection: sa.Connection, case: Case) -> Iterator[Finding]:
    """Look for moments that are still to come: the database's clock was ahead."""
    worker = case.tables.workers.c
    ahead = sa.select(
        sa.func.max(-age_of(worker.stamped_at)), sa.func.max(-age_of(worker.passed_at))
    )
    seconds = max(float(one or 0.0) for one in connection.execute(ahead).one())
    if seconds > _AHEAD:
        yield fail(
            f"a worker was stamped {duration(seconds)} in the future: the database's clock was "
            "set back, or another server with another clock has taken over",
            "set the clocks of all servers by NTP; sweeps put the rows right",
        )
    else:
        yield ok("no moment is in the future")


CHECKS = (
    Check("workers", _lives, needs=("workers",)),
    Check("intervals", _intervals, needs=("workers",)),
    Check("settings", _settings, needs=("workers",)),
    Check("worker ids", _ids, needs=("workers",)),
    Check("dead workers", _dead, needs=("workers", "sessions")),
    Check("moments", _clock, needs=("workers",)),
)
