"""PostgreSQL: whether who listens is told, by the very code by which workers are told."""

import secrets

import sqlalchemy as sa
import trio

from trio_sessions.cli._doctor._findings import Case, Finding, Listening, fail, ok
from trio_sessions.cli._doctor._patient import Patient
from trio_sessions.cli._inspect import duration

__all__ = ["listens"]

_HEARD_WITHIN = 3.0  # seconds


async def listens(patient: Patient, case: Case) -> Finding:
    """Ring once, on a channel of one's own, and listen: no table is read or written.

    Raises:
        StoreUnavailable: the database does not answer.
    """
    if case.listening is Listening.POLL:
        return ok("not used (--no-listen)")
    from trio_sessions.stores.database.postgresql._listen import listen

    channel = f"trio_sessions_doctor_{secrets.token_hex(8)}"

    def ring(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"NOTIFY \"{channel}\", 'doctor'")

    async with listen(patient.connections, patient.worker, channel) as bell:
        await patient.connections.run(patient.worker, ring)
        began = trio.current_time()
        with trio.move_on_after(_HEARD_WITHIN):
            if await bell.wait() == frozenset({"doctor"}):
                return ok(f"heard after {duration(trio.current_time() - began)}")
    return fail(
        f"NOTIFY was not heard within {_HEARD_WITHIN:g} s: messages from other workers wait for "
        "up to a minute",
        "see pooler and transactions; behind PgBouncer DatabaseStore(url, server_timeouts=False, "
        "listen=False) for all workers",
    )
