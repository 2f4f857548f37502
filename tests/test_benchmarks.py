"""The benchmarks run to their end. What they measure is nobody's test."""

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from soak import longer
from unmeasured import unmeasured_environment

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parent.parent
COLUMNS_OF_RATIOS = {
    "refresh": 2,
    "latency": 1,
    "loop": 0,
    "crossing": 1,
    "delivery": 1,
    "hot_updates": 1,
    "crowd": 2,
    "alone": 3,
    "many": 0,
    "crowd_on_sqlite": 3,
    "in_memory": 2,
    "messages": 3,
    "messages_of_one": 3,
    "messages_offered": 0,
    "metrics": 3,
    "fleet": 0,
    "before": 4,
}
"""Every table, in the order in which they are printed."""

TABLES = {
    "writes": ("crowd", "alone", "many", "crowd_on_sqlite", "in_memory"),
    "messages": ("messages", "messages_of_one", "messages_offered"),
    "before": ("before",),
}
"""The tables of those that have several, or none in a shallow clone."""


@pytest.mark.timeout(600)  # a minute for all on a quiet machine
@pytest.mark.parametrize(
    "benchmarks",
    [
        ("refresh", "latency", "loop", "crossing", "delivery", "hot_updates", "metrics", "before"),
        pytest.param(("writes", "messages", "fleet"), marks=longer),
    ],
    ids=["in few processes", "in many"],
)
def test_the_quick_benchmarks_print_every_table(
    postgresql_url: sa.URL, benchmarks: tuple[str, ...]
) -> None:
    """Each table is there with its rows, and every ratio in it is a finite number."""
    url = postgresql_url.render_as_string(hide_password=False)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", *(f"--only={one}" for one in benchmarks)],
        cwd=ROOT,
        env={**unmeasured_environment(), "TRIO_SESSIONS_TEST_POSTGRESQL_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    printed = re.findall(r"^== (\w+): [^\n]* ==\n(.*?)\n\n", ran.stdout, re.MULTILINE | re.DOTALL)
    skipped = re.findall(r"^(\w+): skipped, ", ran.stdout, re.MULTILINE)
    ran_to_its_end = [one for one in benchmarks if one not in skipped]
    wanted = {table for one in ran_to_its_end for table in TABLES.get(one, (one,))}
    expected = [name for name in COLUMNS_OF_RATIOS if name in wanted]
    assert [name for name, _ in printed] == expected
    for name, table in printed:
        lines = [line for line in table.splitlines() if not line.startswith("  ")]
        rule = [set(line) == {"-", " "} for line in lines].index(True)  # below the headings
        rows = lines[rule + 1 :]
        assert rule <= 1, name
        assert rows, name
        for row in rows:
            ratios = [float(number) for number in re.findall(r"([\d.]+)x(?:\s|$)", row)]
            if "portal" not in row:  # it is only called
                assert len(ratios) == COLUMNS_OF_RATIOS[name], row
            assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios), row
