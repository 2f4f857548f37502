"""``python -m benchmarks [--quick] [--only NAME] [--before REVISION] [--postgresql URL]``."""

import argparse
import gc
import os
import platform
import time
from collections.abc import Callable
from functools import partial

from benchmarks import (
    before,
    crossing,
    delivery,
    fleet,
    hot_updates,
    latency,
    loop,
    messages,
    metrics,
    refresh,
    writes,
)
from benchmarks._before import BEFORE
from benchmarks._database import postgresql_server, server_version
from benchmarks._tables import Table
from benchmarks.measures import MEASURES

_BENCHMARKS = {
    "refresh": refresh.run,
    "latency": latency.run,
    "loop": loop.run,
    "crossing": crossing.run,
    "delivery": delivery.run,
    "hot_updates": hot_updates.run,
    "writes": writes.run,
    "messages": messages.run,
    "metrics": metrics.run,
    "fleet": fleet.run,
    "before": before.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: does it all run?")
    parser.add_argument(
        "--only", action="append", choices=_BENCHMARKS, help="run this one (may be repeated)"
    )
    parser.add_argument(
        "--postgresql",
        metavar="URL",
        help="measure on this PostgreSQL; default: TRIO_SESSIONS_TEST_POSTGRESQL_URL, "
        "else a throwaway server",
    )
    parser.add_argument(
        "--before",
        metavar="REVISION",
        default=BEFORE,
        help="what `writes`, `messages` and `before` compare this tree with (default: %(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="append",
        choices=MEASURES,
        metavar="NAME",
        help="compare this one by `before` (may be repeated): " + ", ".join(MEASURES),
    )
    arguments = parser.parse_args()
    benchmarks: dict[str, Callable[..., list[Table]]] = {
        **_BENCHMARKS,
        "writes": partial(writes.run, before=arguments.before),
        "messages": partial(messages.run, before=arguments.before),
        "before": partial(before.run, before=arguments.before, only=arguments.measure or ()),
    }
    with postgresql_server(arguments.postgresql) as server:
        print(
            f"{os.cpu_count()} processors, Python {platform.python_version()}, "
            f"PostgreSQL {server_version(server)}"
        )
        if arguments.quick:
            print("quick: the sizes are too small for the figures to mean anything")
            gc.freeze()  # to look for garbage in all that was imported would take the most time
        print()
        for name in arguments.only or benchmarks:
            start = time.perf_counter()
            for table in benchmarks[name](server, quick=arguments.quick):
                print(table)
            print(f"({name} took {time.perf_counter() - start:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
