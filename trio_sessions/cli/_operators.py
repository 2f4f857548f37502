"""The commands ``workers``, ``list`` and ``show``: their options, and what they print."""

import click

from trio_sessions.cli._inspect import (
    as_json,
    session_facts,
    show_session,
    show_sessions,
    show_workers,
    worker_facts,
)
from trio_sessions.cli._options import ask, asks_a_database, console, full_ids
from trio_sessions.inspection import check_limit, select
from trio_sessions.types import check_session_id, fingerprint

__all__ = ["COMMANDS"]


@click.command(name="workers", short_help="List the workers, and whether they live.")
@asks_a_database
def list_workers(database_url: str, table_prefix: str, *, plain: bool) -> int:
    """List the workers that share a database: who lives, what each holds and says of itself.

    A worker is late when it has missed three stamps, and gone when its lease has run out.

    \b
    Example:
      trio-sessions workers --database-url sqlite:///sessions.db
    """  # noqa: D301 -- click: do not wrap what follows
    workers = ask(database_url, table_prefix, lambda visitor: visitor.workers())
    if plain:
        click.echo(as_json([worker_facts(one) for one in workers]))
    else:
        show_workers(console(), workers)
    return 0


@click.command(name="list", short_help="List sessions: who holds them, and since when.")
@click.option("--owner", metavar="OWNER", help="Only sessions of this owner.")
@click.option("--worker-id", metavar="WORKER", help="Only sessions that this worker holds.")
@click.option(
    "--older-than", type=float, metavar="SECONDS", help="Only sessions created longer ago."
)
@click.option("--after", metavar="ID", help="Only sessions with a greater id: the next page.")
@click.option("--limit", type=int, default=100, show_default=True, help="At most so many.")
@full_ids
@asks_a_database
def list_sessions(
    database_url: str,
    table_prefix: str,
    *,
    owner: str | None,
    worker_id: str | None,
    older_than: float | None,
    after: str | None,
    limit: int,
    full_ids: bool,
    plain: bool,
) -> int:
    """List sessions by id, as their rows say.

    \b
    Examples:
      trio-sessions list --owner alice
      trio-sessions list --older-than 86400 --limit 1000 --json
    """  # noqa: D301 -- click: do not wrap what follows
    try:
        selection = select(owner=owner, worker_id=worker_id, older_than=older_than)
        check_limit(limit)
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    found = ask(
        database_url,
        table_prefix,
        lambda visitor: visitor.sessions(selection, after=after or "", limit=limit),
    )
    if plain:
        click.echo(as_json([session_facts(one, full_ids=full_ids) for one in found]))
    else:
        show_sessions(console(), found, full_ids=full_ids, limit=limit)
    return 0


@click.command(name="show", short_help="Show one session.")
@click.argument("session_id", metavar="ID")
@full_ids
@asks_a_database
def describe_session(
    session_id: str, database_url: str, table_prefix: str, *, full_ids: bool, plain: bool
) -> int:
    """Show who holds a session, whether that worker lives, its owner and its age.

    The exit code is 1 if no worker holds it, or the database cannot say.

    \b
    Example:
      trio-sessions show 5f0c7a --json
    """  # noqa: D301 -- click: do not wrap what follows
    try:
        check_session_id(session_id)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="ID") from exc
    found = ask(database_url, table_prefix, lambda visitor: visitor.session(session_id))
    if found is None:
        raise click.ClickException(f"no worker holds session {fingerprint(session_id)}")
    if plain:
        click.echo(as_json(session_facts(found, full_ids=full_ids)))
    else:
        show_session(console(), found, full_ids=full_ids)
    return 0


COMMANDS = (list_workers, list_sessions, describe_session)
