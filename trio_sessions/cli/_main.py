"""The command group ``trio-sessions``: options, exit codes, and errors of one line."""

import contextlib
import logging
import resource
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import sqlalchemy as sa
import trio

from trio_sessions import SessionsError
from trio_sessions._version import version
from trio_sessions.cli._bench import bench
from trio_sessions.cli._database import check_database
from trio_sessions.cli._demo import run_demo
from trio_sessions.cli._doctor._command import doctor
from trio_sessions.cli._operators import COMMANDS
from trio_sessions.cli._revoke import revoke
from trio_sessions.cli._schema import init_db
from trio_sessions.cli._show import Screen
from trio_sessions.cli._sweep import sweep
from trio_sessions.cli._top import top
from trio_sessions.cli._verdict import Verdict

__all__ = ["conclude", "guarded", "run", "until_signalled"]

T = TypeVar("T")

_MAX_SESSIONS = 10_000  # each takes two file descriptors and one port
_MAX_WORKERS = 16  # each takes up to four connections to the database
_SPARE_DESCRIPTORS = 200
_INTERRUPTED = 128  # plus the signal's number, as shells have it


class Interrupted(Exception):
    """A signal asked the program to end, and it has cleaned up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted")
        self.exit_code = _INTERRUPTED + signal_number


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name, and return the exit code."""
    return guarded(
        lambda: commands.main(
            args=None if arguments is None else list(arguments),
            prog_name="trio-sessions",
            standalone_mode=False,
        )
    )


def guarded(command: Callable[[], object]) -> int:
    """Call ``command``; what a user can be blamed or consoled for becomes one line on stderr.

    Returns:
        The command's answer if that is an exit code, else 0 for no error.
    """
    try:
        try:
            answer = command()
        except BaseExceptionGroup as group:
            raise _first(group) from group
    except click.UsageError as exc:
        return _complain(exc.format_message(), exc.exit_code)
    except click.ClickException as exc:
        return _complain(exc.format_message(), exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted", _INTERRUPTED + signal.SIGINT)
    except Interrupted as exc:
        return _complain(str(exc), exc.exit_code)
    except (SessionsError, OSError) as exc:
        return _complain(str(exc), 1)
    return answer if isinstance(answer, int) else 0


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that a group is about: what nurseries add to it is of no interest."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _complain(message: str, exit_code: int) -> int:
    click.echo(f"trio-sessions: {' '.join(message.split())}", err=True)
    return exit_code


def _show_version(context: click.Context, option: click.Parameter, wanted: bool) -> None:  # noqa: FBT001 -- click calls it
    if wanted:
        click.echo(f"trio-sessions {version()}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=False)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def commands() -> None:
    """Look at, and try out, the sessions that gateways share in a database.

    \b
    Examples:
      trio-sessions demo
      trio-sessions workers --database-url sqlite:///sessions.db
      trio-sessions doctor --help
    """  # noqa: D301 -- click: do not wrap what follows


@commands.command(short_help="Show on real connections what a cleanup pass does.")
@click.option(
    "--sessions",
    type=click.IntRange(1, _MAX_SESSIONS),
    default=100,
    show_default=True,
    help="Clients that connect, over real sockets.",
)
@click.option(
    "--workers",
    type=click.IntRange(2, _MAX_WORKERS),
    default=2,
    show_default=True,
    help="Registries that share the database.",
)
@click.option(
    "--database-url",
    envvar="TRIO_SESSIONS_DATABASE_URL",
    show_envvar=True,
    metavar="URL",
    help="sqlite:///file.db or postgresql+psycopg://user:password@host/name; "
    "by default an SQLite file in a temporary folder. The demo makes tables of its own, "
    "trio_demo_..., and drops them at the end. An SQLite file is locked for some seconds, "
    "a PostgreSQL server is not disturbed.",
)
@click.option("--verbose", is_flag=True, help="Log to stderr, and show no live table.")
def demo(sessions: int, workers: int, database_url: str | None, *, verbose: bool) -> int:
    """Show on real connections which sessions a cleanup pass removes, and which it keeps.

    Clients vanish, hang and move, rows are deleted, the database goes away and returns;
    after each of these every worker runs a pass. The exit code is 1 if one session too
    many or too few is gone.

    \b
    Examples:
      trio-sessions demo
      trio-sessions demo --sessions 1000 --database-url postgresql+psycopg://me@host/name
    """  # noqa: D301 -- click: do not wrap what follows
    _configure_logging(verbose=verbose)
    url = _checked(database_url)
    _allow_descriptors(2 * sessions + _SPARE_DESCRIPTORS, sessions)
    screen = Screen(plain=verbose)
    with _database(url) as opened:
        screen.say(
            f"{sessions} clients, {workers} workers, "
            + (f"your {opened.get_backend_name()} database" if url else "an SQLite file of our own")
        )
        story = partial(run_demo, opened, sessions=sessions, workers=workers, screen=screen)
        verdict = trio.run(until_signalled, story, 60.0 + 0.05 * sessions)
    return conclude(screen, verdict)


for _command in (*COMMANDS, bench, init_db, revoke, sweep, top, doctor):
    commands.add_command(_command)


def conclude(screen: Screen, verdict: Verdict) -> int:
    """Write what was found, and return the exit code that it makes."""
    screen.reports(verdict.findings)
    screen.verdict(verdict)
    return 0 if verdict.passed else 1


def _checked(database_url: str | None) -> sa.URL | None:
    if database_url is None:
        return None
    try:
        return check_database(database_url)
    except (TypeError, ValueError) as exc:
        raise click.BadParameter(str(exc), param_hint="--database-url") from exc


@contextlib.contextmanager
def _database(url: sa.URL | None) -> Iterator[sa.URL]:
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="trio-sessions-demo-") as folder:
        yield sa.URL.create("sqlite", database=str(Path(folder) / "sessions.db"))


def _configure_logging(*, verbose: bool) -> None:
    """Keep the log out of the way unless it is wanted: the demo shows what it would say."""
    root = logging.getLogger()
    if not verbose:
        root.addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    logging.getLogger("trio_sessions").setLevel(logging.INFO)


def _allow_descriptors(needed: int, sessions: int) -> None:
    """Raise the soft limit of open files as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(
            f"{sessions} sessions need {needed} open files and the limit is {hard}: raise it "
            f"(ulimit -n {needed}, or your system's limits) or ask for fewer --sessions"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


async def until_signalled(story: Callable[[], Awaitable[T]], limit: float) -> T:
    """Run the story to its end; a signal or the limit (seconds) makes it clean up and stop."""
    received: list[int] = []
    results: list[T] = []
    scope = trio.CancelScope()

    async def watch(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                received.append(number)
                scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        with scope, trio.move_on_after(limit):
            results.append(await story())
        nursery.cancel_scope.cancel()
    if results:
        return results[0]
    if received:
        raise Interrupted(received[0])
    raise click.ClickException(f"the demo did not come to its end within {limit:g} seconds")
