"""What the commands that ask a database have in common: options, and how they ask."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import trio
from rich.console import Console

from trio_sessions.cli._inspect import Access, Visitor, open_visitor
from trio_sessions.errors import StoreSchemaError

__all__ = [
    "ask",
    "asks_a_database",
    "console",
    "full_ids",
    "names_a_database",
    "run_asking",
]

T = TypeVar("T")

_PATIENCE = 60.0  # seconds for one command; the store bounds its operations well below that


def asks_a_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that asks a database, and prints what it says."""
    as_json = click.option("--json", "plain", is_flag=True, help="Print JSON, for programs.")
    return names_a_database(as_json(command))


def names_a_database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the tables are."""
    for option in (
        click.option(
            "--table-prefix",
            default="trio_",
            show_default=True,
            metavar="PREFIX",
            help="As given to DatabaseStore.",
        ),
        click.option(
            "--database-url",
            envvar="TRIO_SESSIONS_DATABASE_URL",
            show_envvar=True,
            required=True,
            metavar="URL",
            help="sqlite:///file.db or postgresql+psycopg://user:password@host/name",
        ),
    ):
        command = option(command)
    return command


full_ids = click.option(
    "--full-ids",
    is_flag=True,
    help="Print session ids, which are credentials, and not their fingerprints.",
)


def ask(
    url: str,
    prefix: str,
    question: Callable[[Visitor], Awaitable[T]],
    *,
    access: Access = Access.READ,
    patience: float = _PATIENCE,
) -> T:
    """Open the database, ask, and close it.

    Args:
        url: where it is.
        prefix: of its tables.
        question: what is asked.
        access: what that may do.
        patience: seconds for all of it.
    """
    answers: list[T] = []

    async def main() -> None:
        with trio.move_on_after(patience):
            async with open_visitor(url, table_prefix=prefix, access=access) as visitor:
                answers.append(await question(visitor))

    run_asking(main)
    if not answers:
        raise click.ClickException(f"the database did not answer within {patience:g} seconds")
    return answers[0]


def run_asking(main: Callable[[], Awaitable[object]]) -> None:
    """Run what opens a database, and tell a user's mistakes as such."""
    try:
        trio.run(main)
    except (TypeError, ValueError) as exc:
        raise click.BadParameter(str(exc), param_hint="--database-url, --table-prefix") from exc
    except StoreSchemaError as exc:
        raise click.ClickException(
            f"these are not the tables of a registry, and this command makes none: look at "
            f"--database-url and --table-prefix ({exc})"
        ) from exc


def console() -> Console:
    """Return a console that prints text as it is."""
    return Console(highlight=False, emoji=False, markup=False)
