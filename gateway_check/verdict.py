"""What was seen, as tables for people, and the checks that must hold."""

import argparse
import statistics
from collections.abc import Iterator

from gateway_check.cases import Case
from gateway_check.common import CALLS, QUICK_CALLS, SPEED_UP


def median(times: list[float]) -> str:
    """Return a median in milliseconds, for people."""
    return f"{statistics.median(times) * 1000:.0f} ms" if times else "-"


def print_cases(cases: list[Case]) -> None:
    """Print what was seen, a line for each case and place."""
    print(f"\n{'case':<30}{'request at':<14}" + "".join(f"{call:>14}" for call in CALLS))
    for case in cases:
        places = {"same worker": case.timings.same, "other worker": case.timings.other}
        for place, times in places.items():
            if times:
                cells = [f"{median(times[c])} ({len(times[c])})" for c in CALLS]
                print(f"{case.title:<30}{place:<14}" + "".join(f"{cell:>14}" for cell in cells))
    heads = ("sessions", "hit-and-run", "idle", "stop")
    print(f"\n{'rows left after':<30}" + "".join(f"{head:>12}" for head in heads) + "  queries/s")
    for case in cases:
        rows = [case.rows_after_sessions, case.rows_after_hit_and_run]
        rows += [case.rows_after_idle, case.rows_after_stop]
        print(
            f"{case.title:<30}"
            + "".join(f"{count:>12}" for count in rows)
            + f"{case.idle_per_second:>11.2f}"
        )


def checks(cases: list[Case], options: argparse.Namespace) -> Iterator[tuple[bool, str]]:
    """Yield each check of the cases on our registry, as (it holds, what it says)."""
    for case in cases:
        if case.error:
            yield False, f"{case.title}: {case.error}"
    for case in (case for case in cases if case.registry == "ours" and not case.error):
        own = [c for c in cases if (c.database, c.workers) == (case.database, case.workers)]
        for other in (c for c in own if c.registry == "own"):
            yield from speed_checks(case, other)
        places = "at the session's worker" + (" and elsewhere" if case.workers > 1 else "")
        enough = case.timings.enough(options.rounds, case.workers)
        yield enough, f"{case.title}: {options.rounds} requests of each kind arrived {places}"
        quick = case.quick_answers
        yield quick == QUICK_CALLS, f"{case.title}: {quick} of {QUICK_CALLS} quick calls answered"
        for moment in ("sessions", "hit_and_run", "idle", "stop"):
            rows: int = getattr(case, f"rows_after_{moment}")
            yield rows == 0, f"{case.title}: {rows} rows left after {moment}"
        asked = options.idle_clients
        yield case.idle_sessions == asked, f"{case.title}: {asked} idle clients are all there"
        # A stamp of each worker in five seconds. On SQLite that is a transaction of three
        # statements, and whenever the file has changed, each worker looks once for messages.
        # On PostgreSQL each looks twice a second whether one of its sessions was revoked.
        each = 3 + case.workers if case.database == "sqlite" else 1
        looks = 0 if case.database == "sqlite" else 2
        edges = looks / options.idle_seconds  # one more of each may fall into the window
        limit = case.workers * (options.idle_queries * each + looks + edges)
        yield (
            case.idle_per_second <= limit,
            f"{case.title}: they cost {case.idle_per_second:.2f} queries/s (limit {limit:.2f})",
        )


def speed_checks(ours: Case, own: Case) -> Iterator[tuple[bool, str]]:
    """Yield, for each call and place, whether ours takes at most a fifth of own's time."""
    places = {"same worker": ours.timings.same, "other worker": ours.timings.other}
    for place, times in list(places.items())[: ours.workers]:
        for call in CALLS:
            text = f"{ours.title}: {call}, {place}:"
            both = own.timings.all(call), times.get(call, [])
            if not all(both):
                yield False, f"{text} there are no figures to compare"
                continue
            ratio = statistics.median(both[0]) / statistics.median(both[1])
            text = f"{text} {ratio:.1f} times as fast as own"
            yield ratio >= SPEED_UP, f"{text} (at least {SPEED_UP:.0f})"
