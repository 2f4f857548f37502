"""The benchmarks run to their end. What they measure is nobody's test."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

ROOT = Path(__file__).parent.parent
TABLES = ["refresh", "latency", "loop", "crossing", "delivery", "hot_updates", "before"]
COLUMNS_OF_RATIOS = {
    "refresh": 2,
    "latency": 1,
    "loop": 0,
    "crossing": 1,
    "delivery": 1,
    "hot_updates": 1,
    "before": 4,
}


@pytest.mark.timeout(120)
def test_the_quick_benchmarks_print_every_table(postgresql_url: sa.URL) -> None:
    """Each table is there with its rows, and every ratio in it is a finite number."""
    url = postgresql_url.render_as_string(hide_password=False)
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=ROOT,
        env={**os.environ, "TRIO_SESSIONS_TEST_POSTGRESQL_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    printed = re.findall(r"^== (\w+): [^\n]* ==\n(.*?)\n\n", ran.stdout, re.MULTILINE | re.DOTALL)
    skipped = ["before"] if "before: skipped" in ran.stdout else []  # in a shallow clone
    assert [name for name, _ in printed] + skipped == TABLES
    for name, table in printed:
        rule, *rows = [line for line in table.splitlines() if not line.startswith("  ")]
        assert set(rule) == {"-", " "}, name
        assert len(rows) >= 2, name
        for row in rows:
            ratios = [float(number) for number in re.findall(r"([\d.]+)x(?:\s|$)", row)]
            if "portal" not in row:  # it is only called
                assert len(ratios) == COLUMNS_OF_RATIOS[name], row
            assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios), row
