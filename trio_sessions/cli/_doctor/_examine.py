"""The examination: every check, whatever becomes of the others, within bounded time."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import sqlalchemy as sa
import trio
from sqlalchemy.exc import SQLAlchemyError

from trio_sessions.cli._doctor import _activity, _file, _server, _tables, _workers
from trio_sessions.cli._doctor._bell import listens
from trio_sessions.cli._doctor._findings import Case, Check, Finding, fail, ok, warn
from trio_sessions.cli._doctor._patient import Patient, open_patient
from trio_sessions.errors import SessionsError, StoreUnavailable
from trio_sessions.stores.database._urls import masked
from trio_sessions.stores.database.sqlite._files import path_of

__all__ = ["examine"]

_TIME = 60.0  # seconds; each look has a bound of its own, and none begins later than this

_CHECKS = {
    "postgresql": (*_server.CHECKS, *_tables.CHECKS, *_activity.CHECKS, *_workers.CHECKS),
    "sqlite": (*_file.CHECKS, *_tables.CHECKS, *_workers.CHECKS),
}


async def examine(case: Case) -> list[Finding]:
    """Look at a database in every way, and return what was found, in the order of the checks.

    It raises nothing for a database that is not there, is somebody else's or is broken: that is a
    finding.
    """
    found: list[Finding] = []
    backend = case.url.get_backend_name()
    if backend not in _CHECKS:
        says, todo = f"the doctor knows nothing of {backend}", f"it knows {' and '.join(_CHECKS)}"
        return _named("connection", [warn(says, todo)])
    try:
        _check_file(case.url)
        async with open_patient(case.url) as patient:
            found += _named("connection", [ok(f"to {masked(case.url)}")])
            async for findings in _looks(patient, case):
                found += findings
    except (SessionsError, OSError) as exc:
        says, todo = str(exc), "look at --database-url, at the server, and at what is in between"
        found += _named("connection", [fail(says, todo)])
    return found


async def _looks(patient: Patient, case: Case) -> AsyncIterator[list[Finding]]:
    until = trio.current_time() + _TIME
    try:
        case = replace(case, there=await patient.ask(partial(_there, case=case)))
    except (StoreUnavailable, SQLAlchemyError) as exc:
        says = f"could not be looked at: {exc}"
        yield _named("schema", [fail(says, "is this the database of the registry?")])
    if not _lacking(case, ("workers", "sessions", "fleet")):
        try:
            case = replace(case, workers=await patient.ask(partial(_workers.workers, case=case)))
        except (StoreUnavailable, SQLAlchemyError) as exc:
            yield _named("workers", [_unknown(exc)])
    looks: list[tuple[str, Callable[[], Awaitable[Iterable[Finding]]]]] = [
        (check.name, partial(_look, patient, case, check))
        for check in _CHECKS[case.url.get_backend_name()]
    ]
    if case.url.get_backend_name() == "postgresql":
        looks.append(("listen", partial(_bell, patient, case)))
    for name, look in looks:
        if trio.current_time() > until:
            yield _named(name, [warn("not looked at: there was no time left", "ask again")])
            continue
        try:
            yield _named(name, await look())
        except (StoreUnavailable, SQLAlchemyError) as exc:  # a table may go while we look
            yield _named(name, [_unknown(exc)])


async def _look(patient: Patient, case: Case, check: Check) -> list[Finding]:
    lacking = _lacking(case, check.needs)
    if lacking:
        return [warn(f"not looked at: {' and '.join(lacking)} missing", "see schema")]
    if "workers" in check.needs and case.workers is None:
        return [warn("not looked at: the workers could not be read", "see workers")]
    return await patient.ask(lambda connection: list(check.look(connection, case)))


async def _bell(patient: Patient, case: Case) -> list[Finding]:
    return [await listens(patient, case)]


def _check_file(url: sa.URL) -> None:
    if url.get_backend_name() == "sqlite" and not Path(path_of(url)).is_file():
        raise FileNotFoundError(f"there is no file {path_of(url)}")


def _there(connection: sa.Connection, case: Case) -> frozenset[str]:
    inspector = sa.inspect(connection)
    tables = case.tables.metadata.sorted_tables
    return frozenset(one.name for one in tables if inspector.has_table(one.name))


def _lacking(case: Case, needs: Iterable[str]) -> list[str]:
    names = (getattr(case.tables, one).name for one in needs)
    return [name for name in names if name not in case.there]


def _unknown(error: Exception) -> Finding:
    return warn(f"could not be looked at: {error}", "see what else is found, and ask again")


def _named(name: str, findings: Iterable[Finding]) -> list[Finding]:
    return [replace(one, check=name) for one in findings]
