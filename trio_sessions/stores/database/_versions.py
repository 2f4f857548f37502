"""The versions of the schema: what each step adds to the tables of the one before.

To change the schema, define it in `_schema` and add a `Step` here: nothing else. What a step adds
is missing in an older database, and an upgrade adds it by comparing the definition with what is
there. So only tables, indexes, and columns that are nullable or have a default can be added: the
statements of an older worker name neither, and that worker may go on beside.

What no comparison can see stands in the table of versions: a row for each version that a database
has been brought to. An empty one is that of somebody's own migrations, which keep count themselves.
See docs/decisions/0012-operate.md.
"""

from dataclasses import dataclass

__all__ = ["NEEDS", "STEPS", "VERSION", "Step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one version of the schema has that the one before lacks; names without the prefix."""

    version: int
    summary: str
    tables: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """As ``table.column``."""
    indexes: tuple[str, ...] = ()
    """As ``table_columns``, without ``ix_``."""
    ends_older: bool = False
    """Workers that do not know this version must not go on, and are refused when they open."""


STEPS = (
    Step(
        version=1,
        summary="presence of workers, doubt, draining, revocations, and versions themselves",
        tables=("workers", "gone", "revoked", "schema"),
        columns=("fleet.doubtful_until", "fleet.server", "workers.draining"),
        indexes=("sessions_incarnation", "sessions_owner"),
    ),
    Step(
        version=2,
        summary="data of sessions, their logs, and mail and topics between workers",
        tables=("logs", "mail", "topics"),
        columns=("sessions.data",),
    ),
)
"""In their order. Version 0 is whatever was there before versions were counted."""

VERSION = STEPS[-1].version
"""That of the tables in `_schema`."""

NEEDS = max((step.version for step in STEPS if step.ends_older), default=0)
"""The lowest version that a worker must know, to go on beside workers of this one."""
