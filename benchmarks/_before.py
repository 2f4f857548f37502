"""The package as it was in an earlier revision, and programs that run with either."""

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["BEFORE", "NOW", "exported", "in_turn", "run_with"]

BEFORE = "b2d4a57"
"""The revision to compare with: the last one before the edges were rebuilt."""

NOW = Path(__file__).parent.parent
"""The folder of today's package."""

_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
"""Python 3.11 knows it from its fourth release on; what is unpacked is our own."""

_TAKEN = TypeVar("_TAKEN")


@contextmanager
def exported(revision: str) -> Iterator[Path | None]:
    """Make a folder with the package as it was; None: there is no such revision here."""
    try:
        archive = subprocess.run(
            ["git", "archive", revision, "trio_sessions"],
            cwd=NOW,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="trio-sessions-before-") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, **_SAFELY)
        yield Path(folder)


def run_with(tree: Path, program: Path, *arguments: str, timeout: float = 300.0) -> Any:
    """Run a program with the package of one tree.

    Args:
        tree: the folder of the package.
        program: a script that prints JSON with what it has taken, and whose code that was.
        arguments: of the script.
        timeout: seconds after which it has failed.

    Returns:
        What it has taken.
    """
    ran = subprocess.run(
        [sys.executable, "-P", str(program), *arguments],
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        check=True,
        timeout=timeout,
    )
    said = json.loads(ran.stdout)
    assert Path(said["code"]).is_relative_to(tree), "it has measured something else"
    return said["taken"]


def in_turn(
    take: Callable[[Path], _TAKEN], before: Path, count: int
) -> list[tuple[_TAKEN, _TAKEN]]:
    """Measure in turn; who is first changes each time, for a machine that warms up.

    Returns:
        Pairs: what was taken with the package of ``before``, and with today's.
    """
    pairs: list[tuple[_TAKEN, _TAKEN]] = []
    for number in range(count):
        first, second = (before, NOW) if number % 2 else (NOW, before)
        one, other = take(first), take(second)
        pairs.append((one, other) if number % 2 else (other, one))
    return pairs
