"""Make the page of the fault matrix: ``python -m faults.report RECORDS PAGE``.

The records are what a run of ``tests/faults`` has appended to the file that
``TRIO_SESSIONS_RELIABILITY`` names, a line of JSON for each fault.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["make_page"]

Record = Mapping[str, Any]

_TABLE = """
```{list-table}
:header-rows: 1
:widths: 18 26 22 9 9 7 9

* - Fault
  - How it is made
  - Witnessed
  - Injected
  - Sessions
  - Lost
  - Recovery, s
"""


def make_page(records: Iterable[Record]) -> str:
    """Return the page, in Markdown."""
    told = list(records)
    assert told, "there are no records: nothing was run"
    ran = [one for one in told if "skipped" not in one]
    return "\n".join([*_introduction(ran), *_tables(ran), *_skipped(told), ""])


def _introduction(ran: list[Record]) -> Iterator[str]:
    total = {name: sum(one[name] for one in ran) for name in _SUMS}
    versions = sorted({f"{one['database']} {one['version']}" for one in ran})
    python = " and ".join(sorted({one["python"] for one in ran}))
    yield "% Made by `make reliability`: do not edit."
    yield ""
    yield (
        f"On Python {python}, {' and '.join(versions)}: {len(ran)} kinds of fault, "
        f"{total['injected']} injected, {total['sessions']:,} live sessions met them. "
        f"**Lost: {total['lost']}. Left over: {total['left_over']}.** "
        f"{total['messages']:,} messages were accepted on the way; {total['messages_lost']} of "
        "them never came: databases had forgotten them."
    )


_SUMS = ("injected", "sessions", "lost", "left_over", "messages", "messages_lost")


def _tables(ran: list[Record]) -> Iterator[str]:
    for database in sorted({one["database"] for one in ran}):
        yield f"\n### {database}"
        rows = [_row(one) for one in ran if one["database"] == database]
        yield _TABLE + "\n".join(rows) + "\n```"


def _row(one: Record) -> str:
    sessions = f"{one['sessions']:,}"
    if one["expired"]:
        sessions += f", of which {one['expired']:,} expired with their worker"
    lost = f"{one['lost']}"
    if one["messages_lost"]:
        lost += f"; {one['messages_lost']} of {one['messages']} messages"
    cells = [
        one["fault"],
        one["how"],
        "; ".join(one["witnesses"]),
        str(one["injected"]),
        sessions,
        lost,
        f"{one['median']:.1f}; at worst {one['worst']:.1f}",
    ]
    return "\n".join(f"{'* -' if first else '  -'} {cell}" for first, cell in _firsts(cells))


def _firsts(cells: list[str]) -> Iterator[tuple[bool, str]]:
    for number, cell in enumerate(cells):
        yield number == 0, cell


def _skipped(told: list[Record]) -> Iterator[str]:
    skipped = [one for one in told if "skipped" in one]
    if skipped:
        yield "\nNot tried in this run:\n"
    for one in skipped:
        yield f"- {one['fault']} ({one['database']}): {one['skipped']}"


def main() -> None:
    """Read the records, write the page."""
    records, page = Path(sys.argv[1]), Path(sys.argv[2])
    lines = records.read_text("utf-8").splitlines()
    page.write_text(make_page(json.loads(line) for line in lines), "utf-8")
    sys.stdout.write(f"{page} is made of {len(lines)} records\n")


if __name__ == "__main__":
    main()
