"""Run the check; ``--help`` says what can be left out."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable

import gateway_check
from gateway_check.cases import run
from gateway_check.surroundings import DATABASES
from gateway_check.verdict import checks, print_cases


def words(allowed: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated words."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := set(chosen) - set(allowed):
            raise argparse.ArgumentTypeError(
                f"{', '.join(sorted(unknown))}: choose from {', '.join(allowed)}"
            )
        return chosen

    return parse


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="gateway_check", description=(gateway_check.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--databases", type=words(tuple(DATABASES)), default=[*DATABASES])
    parser.add_argument("--workers", type=words(("1", "2")), default=["1", "2"])
    parser.add_argument("--registries", type=words(("own", "ours")), default=["own", "ours"])
    parser.add_argument("--rounds", type=int, default=7, help="figures for each call and place")
    parser.add_argument("--idle-clients", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=15.0)
    parser.add_argument(
        "--idle-queries",
        type=float,
        default=0.2,
        help="stamps a second that one worker may cost while all are idle",
    )
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for one case")
    return parser.parse_args()


def main() -> int:
    """Run the cases, print what was seen and which checks fail."""
    options = parse_options()
    logging.getLogger("mcp.client.sse").setLevel(logging.ERROR)  # keepalives are news to it
    cases = asyncio.run(run(options))
    print_cases(cases)
    print()
    verdicts = list(checks(cases, options))
    for holds, text in verdicts:
        print(f"{'ok  ' if holds else 'FAIL'} {text}")
    return 0 if all(holds for holds, _ in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
