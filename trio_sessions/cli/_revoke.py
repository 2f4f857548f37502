"""The command ``revoke``: end sessions for good, wherever they are held."""

from collections.abc import Sequence

import click

from trio_sessions._checks import seconds
from trio_sessions.cli._inspect import Access, Visitor, as_json, count
from trio_sessions.cli._options import ask, asks_a_database
from trio_sessions.inspection import Selection, select
from trio_sessions.limits import NO_LIMITS
from trio_sessions.revocation import Revocation
from trio_sessions.types import check_session_id

__all__ = ["revoke"]

_PIECE = 10_000  # rows; one transaction
_PATIENCE = 3600.0  # seconds


@click.command(short_help="End sessions for good, whoever holds them.")
@click.argument("session_ids", nargs=-1, metavar="[ID]...")
@click.option("--owner", metavar="OWNER", help="All sessions of this owner.")
@click.option("--worker-id", metavar="WORKER", help="All sessions that this worker holds.")
@click.option(
    "--older-than", type=float, metavar="SECONDS", help="All sessions created longer ago."
)
@click.option("--reason", default="", metavar="TEXT", help="For whoever reads the table.")
@click.option(
    "--ttl",
    type=float,
    default=NO_LIMITS.revocation_ttl,
    show_default=True,
    metavar="SECONDS",
    help="For so long their ids are refused.",
)
@click.option("--dry-run", is_flag=True, help="Say how many there are, and end none.")
@asks_a_database
def revoke(
    database_url: str,
    table_prefix: str,
    *,
    session_ids: tuple[str, ...],
    owner: str | None,
    worker_id: str | None,
    older_than: float | None,
    reason: str,
    ttl: float,
    dry_run: bool,
    plain: bool,
) -> int:
    """End sessions, and refuse their ids for a time.

    Their workers let go of them within a second, and disconnect their clients. Name ids, or say
    which by the options: all of them must fit. Ids are credentials, and others may see the
    arguments of a command: with - they are read from the standard input, one a line.

    \b
    Examples:
      trio-sessions revoke --owner mallory --reason "ticket 4711"
      trio-sessions revoke --older-than 86400 --dry-run
      trio-sessions revoke - < ids.txt
    """  # noqa: D301 -- click: do not wrap what follows
    ids = _read_ids() if session_ids == ("-",) else session_ids
    try:
        for one in ids:
            check_session_id(one)
        seconds("--ttl", ttl)
        selection = select(owner=owner, worker_id=worker_id, older_than=older_than)
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    if bool(ids) is (selection != Selection()):
        raise click.UsageError(
            "name session ids, or at least one of --owner, --worker-id and --older-than; "
            "not both, and not neither"
        )

    async def act(visitor: Visitor) -> int:
        if dry_run:
            return await _count(visitor, ids, selection)
        if ids:
            return await _revoke(visitor, ids, ttl, reason)
        meant = Revocation(selection=selection, ttl=ttl, reason=reason)
        return await _revoke_selected(visitor, meant)

    access = Access.READ if dry_run else Access.WRITE
    number = ask(database_url, table_prefix, act, access=access, patience=_PATIENCE)
    if plain:
        click.echo(as_json({"sessions": number, "dry_run": dry_run}))
    else:
        click.echo(f"{count(number, 'session')} {'would be revoked' if dry_run else 'revoked'}")
    return 0


def _read_ids() -> tuple[str, ...]:
    with click.open_file("-") as lines:
        return tuple(line for line in lines.read().splitlines() if line)


async def _revoke(visitor: Visitor, ids: Sequence[str], ttl: float, reason: str) -> int:
    number = 0
    for start in range(0, len(ids), _PIECE):
        part = ids[start : start + _PIECE]
        one = Revocation(session_ids=part, ttl=ttl, reason=reason)
        number += (await visitor.revoke(one, limit=_PIECE)).sessions
    return number


async def _revoke_selected(visitor: Visitor, meant: Revocation) -> int:
    number, more = 0, True
    while more:
        revoked = await visitor.revoke(meant, limit=_PIECE)
        number += revoked.sessions
        more = revoked.more
    return number


async def _count(visitor: Visitor, ids: Sequence[str], selection: Selection) -> int:
    if ids:
        found = [await visitor.session(one) for one in dict.fromkeys(ids)]
        return sum(one is not None for one in found)
    number, after = 0, ""
    while page := await visitor.sessions(selection, after=after, limit=_PIECE):
        number += len(page)
        after = page[-1].session_id
    return number
