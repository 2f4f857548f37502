"""The tables, as this version defines them; `_versions` says what was added when."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from trio_sessions.stores.database._clock import now
from trio_sessions.stores.database._database import Database, known

__all__ = ["Tables", "metadata", "tables"]

_Type = sa.types.TypeEngine[Any]
_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,37}|")


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables of one prefix."""

    prefix: str
    metadata: sa.MetaData
    sessions: sa.Table
    messages: sa.Table
    fleet: sa.Table
    workers: sa.Table
    gone: sa.Table
    revoked: sa.Table
    schema: sa.Table
    logs: sa.Table
    mail: sa.Table
    topics: sa.Table


def metadata(table_prefix: str = "trio_") -> sa.MetaData:
    """Return the tables as a `sqlalchemy.MetaData`, for your own Alembic migrations.

    Args:
        table_prefix: as given to `DatabaseStore`.

    Raises:
        ValueError: the prefix is no lower-case identifier of at most 38 characters.
    """
    return _define(table_prefix).metadata  # yours: you may add to it


@lru_cache(maxsize=8)
def tables(prefix: str) -> Tables:
    """Return the tables, the same for all stores of a prefix: not to be changed."""
    return _define(prefix)


def _define(prefix: str) -> Tables:
    """Define the tables. Everything but the two ids has a default, for rows from elsewhere."""
    if not isinstance(prefix, str):
        raise TypeError(f"table_prefix must be a str, not {type(prefix).__name__}")
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            "table_prefix must be lower-case letters, digits and underscores, not begin "
            f"with a digit and have at most 38 characters, not {prefix!r}"
        )
    meta = sa.MetaData()
    moment = sa.TIMESTAMP(timezone=True)
    databases = known().values()
    session_id, message_id = _session_id(databases), _message_id(databases)
    # No index on last_accessed: on PostgreSQL it would end HOT updates of the column
    # that every pass updates (benchmarks/hot_updates.py measures it).
    sessions = sa.Table(
        f"{prefix}sessions",
        meta,
        sa.Column("session_id", session_id, primary_key=True),
        sa.Column("worker_id", sa.String(255), nullable=False),
        sa.Column("incarnation", sa.String(32), nullable=False, server_default=""),
        sa.Column("generation", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("owner", sa.String(320)),
        sa.Column("capabilities", sa.Text),
        sa.Column("elicitation", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("created_at", moment, nullable=False, server_default=now()),
        sa.Column("taken_at", moment, nullable=False, server_default=now()),
        sa.Column("last_accessed", moment, nullable=False, server_default=now()),
        sa.Column("data", sa.Text),
    )

    def numbered(name: str, text: str) -> sa.Table:
        """Define the table of what goes with a session, text by text; no id is used again."""
        table = sa.Table(
            f"{prefix}{name}",
            meta,
            sa.Column("id", message_id, primary_key=True, autoincrement=True),
            sa.Column(
                "session_id",
                session_id,
                sa.ForeignKey(sessions.c.session_id, ondelete="CASCADE"),
                nullable=False,
            ),
            sa.Column(text, sa.Text, nullable=False),
            sa.Column("created_at", moment, nullable=False, server_default=now(), index=True),
            **_options(database.messages_options for database in databases),
        )
        sa.Index(f"ix_{prefix}{name}_session_id_id", table.c.session_id, table.c.id)
        return table

    messages = numbered("messages", "payload")
    # To list who can be asked, without a look at the others. As text: Alembic writes a bare column
    # into a migration as a str, which `upgrade` cannot compile.
    asked = sa.text(sessions.c.elicitation.name)
    sa.Index(
        f"ix_{prefix}sessions_elicitation",
        sessions.c.session_id,
        **_options({f"{one.name}_where": asked} for one in databases if one.has_partial_indexes),
    )
    # To count and find the rows of one incarnation; a refresh does not touch it.
    sa.Index(f"ix_{prefix}sessions_incarnation", sessions.c.incarnation)
    # To list the sessions of an owner by id; those without one are not in it.
    sa.Index(
        f"ix_{prefix}sessions_owner",
        sessions.c.owner,
        sessions.c.session_id,
        **_options(
            {f"{one.name}_where": sessions.c.owner.is_not(None)}
            for one in databases
            if one.has_partial_indexes
        ),
    )
    fleet = sa.Table(
        f"{prefix}fleet",
        meta,
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("vouched_at", moment, nullable=False),
        sa.Column("unbroken_since", moment),
        sa.Column("doubtful_until", moment),
        sa.Column("server", sa.String(255)),
    )
    workers = sa.Table(
        f"{prefix}workers",
        meta,
        sa.Column("incarnation", sa.String(32), primary_key=True),
        sa.Column("worker_id", sa.String(255), nullable=False),
        sa.Column("history", sa.String(32), nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("stamped_at", moment, nullable=False),
        sa.Column("passed_at", moment, nullable=False),
        sa.Column("session_ttl", sa.Double, nullable=False),
        sa.Column("cleanup_interval", sa.Double, nullable=False),
        sa.Column("stamp_interval", sa.Double, nullable=False),
        sa.Column("started_at", moment, nullable=False, server_default=now()),
        sa.Column("version", sa.String(64), nullable=False, server_default=""),
        sa.Column("data", sa.Text, nullable=False, server_default="{}"),
        sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    gone = sa.Table(
        f"{prefix}gone",
        meta,
        sa.Column("incarnation", sa.String(32), primary_key=True),
        sa.Column("history", sa.String(32), nullable=False, server_default=""),
        sa.Column("gone_at", moment, nullable=False, server_default=now()),
    )
    revoked = sa.Table(
        f"{prefix}revoked",
        meta,
        sa.Column("session_id", session_id, primary_key=True),
        sa.Column("revoked_at", moment, nullable=False, server_default=now(), index=True),
        sa.Column("until", moment, nullable=False, index=True),
        sa.Column("reason", sa.Text, nullable=False, server_default=""),
    )
    schema = sa.Table(
        f"{prefix}schema",
        meta,
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("needs", sa.Integer, nullable=False),
        sa.Column("applied_at", moment, nullable=False, server_default=now()),
    )
    # Ids of entries ascend and are never used again: "after this one" means the same for ever.
    logs = numbered("logs", "event")
    # No foreign keys to workers: whoever leaves a letter must wait for no worker's row.
    mail = sa.Table(
        f"{prefix}mail",
        meta,
        sa.Column("id", message_id, primary_key=True, autoincrement=True),
        sa.Column("incarnation", sa.String(32), nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created_at", moment, nullable=False, server_default=now(), index=True),
        **_options(database.messages_options for database in databases),
    )
    sa.Index(f"ix_{prefix}mail_incarnation_id", mail.c.incarnation, mail.c.id)
    topics = sa.Table(
        f"{prefix}topics",
        meta,
        sa.Column("topic", session_id, primary_key=True),
        sa.Column("incarnation", sa.String(32), primary_key=True, index=True),
    )
    return Tables(
        prefix,
        meta,
        sessions,
        messages,
        fleet,
        workers,
        gone,
        revoked,
        schema,
        logs,
        mail,
        topics,
    )


def _session_id(databases: Iterable[Database]) -> _Type:
    column: _Type = sa.String(255)
    for database in databases:
        if database.session_id is not None:
            column = column.with_variant(database.session_id, database.name)
    return column


def _message_id(databases: Iterable[Database]) -> _Type:
    column: _Type = sa.BigInteger()
    for database in databases:
        if database.message_id is not None:
            column = column.with_variant(database.message_id, database.name)
    return column


def _options(options: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the arguments of each database: their names begin with that of its dialect."""
    return {name: value for one in options for name, value in one.items()}
