"""What a worker's row says in a batch: whether the batch may be carried out, and the next beat.

```
 snapshot of the statement                                locks, until the commit
 witness ── reads the worker's row plainly, and the clock
    │ holds?
    ├──▶ what is asked of each kind, else nothing    ──▶  rows of sessions, messages
    └──▶ stamped: beat + 1, once all that is done    ──▶  the worker's row, last
```

The row is read in the snapshot and locked at the end, and may have been changed in between: by the
same worker's stamp, which has only made the beat higher; or by a new history of it, or a sweep
that took the row. In the latter two nothing is updated, so the statement raises an error, and all
of it is undone. See docs/decisions/0010-evidence.md.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from trio_sessions.abc import Worker
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database.postgresql._errors import LOCK_NOT_AVAILABLE, sqlstate
from trio_sessions.stores.database.postgresql._kinds import HOLDS, OWN, Names
from trio_sessions.types import Stamp
from trio_sessions.writes import Answer, Batch, Committed, Verdict

__all__ = [
    "CLOCK",
    "STAMPED",
    "WITNESS",
    "check_workers_row",
    "has_lost_its_row",
    "judged",
    "known",
    "stamp_cte",
    "told",
    "vouched_for",
    "witness_answers",
    "witness_cte",
]

WITNESS = "witness"
"""The kind of the row of answers that is about the batch itself."""

_HISTORY = "CAST(%(history)s AS text)"
_BEAT = "CAST(%(beat)s AS bigint)"
CLOCK = "CAST(extract(epoch FROM statement_timestamp()) AS float8)"

_CHANGED = "trio_sessions: not the history of the snapshot"
"""What cannot be made an integer: there is no plainer way to raise an error in SQL."""
_INVALID_TEXT_REPRESENTATION = "22P02"


def known(alias: str, beat: str = ">=") -> str:
    """Return "this is the worker's row, with the history and no lower beat".

    Args:
        alias: the row's.
        beat: how its beat compares to that of the parameters.
    """
    return (
        f"{alias}.incarnation = {OWN['incarnation']} AND {alias}.history = {_HISTORY} "
        f"AND {alias}.beat {beat} {_BEAT}"
    )


def vouched_for(names: Names) -> str:
    """Return "the statement before has set the stamp, if one was named"."""
    return f"""({_HISTORY} IS NULL OR EXISTS (
                SELECT FROM {names.workers} AS own WHERE {known("own", ">")}
            ))"""


STAMPED = "beat = w.beat + 1, stamped_at = clock_timestamp()"
"""What each stamp sets in the worker's row, ``w``."""


def told(stamp: Stamp | None) -> dict[str, str | None]:
    """Return the parameters, as texts: a statement is prepared anew where a type has changed."""
    if stamp is None:
        return {"history": None, "beat": None}
    return {"history": stamp.history, "beat": str(stamp.beat)}


def witness_cte(names: Names) -> str:
    """Return the CTE that says whether the batch may be carried out."""
    return f"""witness AS MATERIALIZED (
            SELECT seen.*, seen.verdict = '{Verdict.DONE.value}' AS holds FROM (
                SELECT {CLOCK} AS clock, CASE
                    WHEN {CLOCK} > CAST(%(not_after)s AS float8) THEN '{Verdict.LATE.value}'
                    WHEN {_HISTORY} IS NOT NULL AND NOT EXISTS (
                        SELECT FROM {names.workers} AS w WHERE {known("w")}
                    ) THEN '{Verdict.FORGOTTEN.value}'
                    ELSE '{Verdict.DONE.value}' END AS verdict
            ) AS seen
        )"""


def stamp_cte(names: Names, writing: Sequence[str]) -> str:
    """Return the CTE that stamps the worker's row.

    Args:
        names: the names of our tables.
        writing: the CTEs that come before; to count what they have written is to wait for it.
    """
    before = " + ".join(["0", *(f"(SELECT count(*) FROM {name})" for name in writing)])
    return f"""stamped AS (
            UPDATE {names.workers} AS w
            SET {STAMPED}, passed_at = least(w.passed_at, clock_timestamp())
            WHERE {known("w")} AND {HOLDS} AND {before} >= 0
            RETURNING w.beat
        )"""


def witness_answers(*, stamps: bool) -> str:
    """Return the select of the batch's own row of answers: its ``number`` is the new beat."""
    if not stamps:
        return f"""
        SELECT '{WITNESS}', 0, x.verdict, NULL, NULL, NULL, NULL, false, CAST(x.clock AS text), 0
        FROM witness AS x"""
    return f"""
        SELECT '{WITNESS}', 0, CASE
                WHEN x.holds AND s.beat IS NULL
                THEN CAST(CAST('{_CHANGED} at ' || x.clock AS integer) AS text)
                ELSE x.verdict END,
            NULL, NULL, NULL, NULL, false, CAST(x.clock AS text), coalesce(s.beat, 0)
        FROM witness AS x LEFT JOIN stamped AS s ON true"""


def judged(batch: Batch, row: Any, answers: Sequence[Answer]) -> Committed:
    """Return what has become of a batch, of its own row of answers."""
    verdict, clock = Verdict(row.state), float(row.born)
    if verdict is not Verdict.DONE:
        return Committed(answers=(), verdict=verdict, clock=clock)
    stamp = None
    if batch.stamp is not None:
        stamp = Stamp(history=batch.stamp.history, beat=row.number)
    return Committed(answers=answers, stamp=stamp, clock=clock)


def has_lost_its_row(error: DBAPIError) -> bool:
    """Say whether the worker's row was changed under a batch; the next snapshot shows it."""
    return sqlstate(error) == _INVALID_TEXT_REPRESENTATION and _CHANGED in str(error.orig)


def check_workers_row(
    connection: sa.Connection, names: Names, worker: Worker, error: DBAPIError
) -> None:
    """Raise if a lock was on the worker's row: it is no write's fault, and splits no batch."""
    context = getattr(getattr(error.orig, "diag", None), "context", None) or ""
    if f'"{names.workers}"' not in context:
        try:
            connection.exec_driver_sql(
                f"SELECT FROM {names.workers} AS w WHERE w.incarnation = {OWN['incarnation']} "
                "FOR NO KEY UPDATE NOWAIT",
                {"own_incarnation": worker.incarnation},
            )
        except DBAPIError as exc:
            if sqlstate(exc) != LOCK_NOT_AVAILABLE:
                raise
        else:
            return
    raise StoreUnavailable(
        "PostgreSQL: another transaction has locked this worker's row, which each batch stamps"
    ) from error
