"""The command ``init-db``: create the tables, or bring an older schema up to this version."""

import secrets

import click
import trio

from trio_sessions.abc import Worker
from trio_sessions.cli._options import names_a_database
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.stores.database._script import schema_script
from trio_sessions.stores.database._upgrade import Changes
from trio_sessions.stores.database._urls import check_url, masked
from trio_sessions.stores.database._versions import VERSION

__all__ = ["init_db"]

_PATIENCE = 3600.0  # seconds: an index on a large table takes its time
_LOCK_TIMEOUT = 10.0  # seconds: whoever waits for a table makes all who come later wait behind


@click.command(name="init-db", short_help="Create the tables, or upgrade them.")
@names_a_database
@click.option(
    "--sql",
    is_flag=True,
    help="Print the statements that create the tables in an empty database, and do not connect.",
)
def init_db(database_url: str, table_prefix: str, *, sql: bool) -> int:
    """Create the tables, or bring those of an older version up to this one.

    It does so under a lock, and does nothing where nothing is lacking: run it at each deploy,
    before the first worker of the new version starts. Workers of the version before may go on.
    The role that runs it owns what it creates.

    \b
    Examples:
      trio-sessions init-db --database-url sqlite:///sessions.db
      trio-sessions init-db --database-url postgresql+psycopg:// --sql | psql
    """  # noqa: D301 -- click: do not wrap what follows
    try:
        metadata(table_prefix)
        if database_url == "memory:":
            raise ValueError(
                "memory has no tables: give the URL of the database that workers share"
            )
        if sql:
            click.echo("\n\n".join(schema_script(database_url, table_prefix=table_prefix)))
            return 0
        url = check_url(database_url)
    except (TypeError, ValueError) as exc:
        raise click.BadParameter(str(exc), param_hint="--database-url, --table-prefix") from exc
    store = DatabaseStore(
        url,
        table_prefix=table_prefix,
        migrate=True,
        listen=False,
        operation_timeout=_PATIENCE,
        lock_timeout=_LOCK_TIMEOUT,
    )
    trio.run(_open_once, store)
    for line in _report(store.changes, masked(url)):
        click.echo(line)
    return 0


async def _open_once(store: DatabaseStore) -> None:
    worker = Worker(
        worker_id="trio-sessions",
        incarnation=secrets.token_hex(8),
        limiter=trio.CapacityLimiter(1),
    )
    await store.open(worker)
    with trio.CancelScope(shield=True):
        await store.close(worker)


def _report(changes: Changes, where: str) -> list[str]:
    if not changes.added and not changes.noted:
        return [f"nothing to do: {where} has schema version {changes.before}"]
    if not changes.had_tables:
        done = f"created schema version {VERSION} in {where}:"
    elif changes.noted and changes.before is None:
        done = f"brought {where}, where no version was noted, to schema version {VERSION}:"
    elif changes.noted:
        done = f"brought {where} from schema version {changes.before} to {VERSION}:"
    else:
        done = f"repaired {where}, of schema version {VERSION}:"
    return [done, *(f"  added {name}" for name in changes.added or ("nothing but the note",))]
