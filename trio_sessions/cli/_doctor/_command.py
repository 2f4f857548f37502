"""The command ``doctor``: its options, and what it prints."""

from collections.abc import Sequence
from dataclasses import asdict

import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trio_sessions.cli._doctor._examine import examine
from trio_sessions.cli._doctor._findings import Case, Finding, Level, Listening
from trio_sessions.cli._inspect import as_json, count, printable
from trio_sessions.cli._options import asks_a_database, console
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database._urls import check_url

__all__ = ["doctor"]

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command(short_help="Look for what is wrong, and say what to do.")
@click.option(
    "--max-concurrent",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="As given to open_registry: how many connections a worker may need.",
)
@click.option(
    "--pool-size",
    type=click.IntRange(min=1),
    help="Of the engine that is handed to DatabaseStore, if one is.",
)
@click.option(
    "--listen/--no-listen", default=True, show_default=True, help="As given to DatabaseStore."
)
@asks_a_database
def doctor(
    database_url: str,
    table_prefix: str,
    *,
    max_concurrent: int,
    pool_size: int | None,
    listen: bool,
    plain: bool,
) -> int:
    """Look at a database in every way: rights, settings, tables, clocks, workers, room.

    Each check says ok, warn or fail, and what to do. The exit code is 1 if one fails. Nothing is
    written, and no table is made; on PostgreSQL one NOTIFY is sent, to itself. Run it where a
    worker runs, as the worker's user.

    \b
    Examples:
      trio-sessions doctor --database-url sqlite:///sessions.db
      trio-sessions doctor --max-concurrent 40 --json
      trio-sessions doctor --no-listen            # behind PgBouncer
    """  # noqa: D301 -- click: do not wrap what follows
    try:
        case = Case(
            url=check_url(database_url),
            tables=tables(table_prefix),
            max_concurrent=max_concurrent,
            pool_size=pool_size,
            listening=Listening.LISTEN if listen else Listening.POLL,
        )
    except (TypeError, ValueError) as exc:
        raise click.BadParameter(str(exc), param_hint="--database-url, --table-prefix") from exc
    found = trio.run(examine, case)
    if plain:
        click.echo(as_json([_facts(one) for one in found]))
    else:
        _show(console(), found)
    return int(any(one.level is Level.FAIL for one in found))


def _facts(finding: Finding) -> dict[str, object]:
    facts = asdict(finding)
    return {"check": facts.pop("check"), **facts}


def _show(console: Console, found: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    for one in found:
        says = printable(one.says)
        if one.todo:
            says = says + Text("\n-> ", style="bold") + printable(one.todo)
        table.add_row(printable(one.check), Text(one.level, style=_STYLES[one.level]), says)
    console.print(table)
    levels = [one.level for one in found]
    console.print(
        f"{count(len(levels), 'finding')}: {levels.count(Level.FAIL)} fail, "
        f"{levels.count(Level.WARN)} warn, {levels.count(Level.OK)} ok"
    )
