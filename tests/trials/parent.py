"""Runs trials in a process of their own, and counts; a hang ends the process, not the count."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmeasured import unmeasured_environment

__all__ = ["Tally", "make_trials"]

_TESTS = Path(__file__).parent.parent
_PATIENCE = 30.0  # seconds without a result after which a trial hangs; most need a tenth of one


@dataclass
class Tally:
    """What came out on one host."""

    host: str
    kind: str
    trials: int = 0
    presses: int = 0
    stalls: int = 0
    """Programs that a third press had to end."""
    slowest: float = 0.0
    hangs: dict[int, str] = field(default_factory=dict)
    """By their seed; where they hung."""
    wrong: dict[int, str] = field(default_factory=dict)
    """By their seed; what was wrong."""

    def __str__(self) -> str:
        presses = ""
        if "press" in self.kind:
            presses = f"{self.presses:,} presses, {self.stalls} needed one more, "
        return (
            f"{self.host}, {self.kind}: {self.trials:,} trials, {presses}"
            f"{len(self.hangs)} hangs, {len(self.wrong)} wrong answers, "
            f"the slowest {self.slowest:.1f} s"
        )

    def explain(self) -> str:
        """Show the first failures, and how to see them again."""
        failures = [
            *((seed, f"hangs\n{where}") for seed, where in self.hangs.items()),
            *((seed, f"wrong\n{what}") for seed, what in self.wrong.items()),
        ]
        again = f"PYTHONPATH={_TESTS.name} python -m trials '{self.host}' '{self.kind}'"
        shown = [f"{again} {seed} 1\n{text}" for seed, text in failures[:3]]
        seeds = f"seeds that hang: {list(self.hangs)}\nseeds with wrong answers: {list(self.wrong)}"
        return "\n".join([str(self), seeds, *shown])


def make_trials(host: str, kind: str, first: int, count: int) -> Tally:
    """Make so many trials from a seed on."""
    tally = Tally(host, kind)
    while tally.trials < count:
        _run_child(tally, first + tally.trials, count - tally.trials)
    return tally


def _run_child(tally: Tally, first: int, count: int) -> None:
    """Count what a child prints, until it has made all, or one has failed."""
    path = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
    made, is_last = 0, False
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            [sys.executable, "-m", "trials", tally.host, tally.kind, str(first), str(count)],
            env={**unmeasured_environment(), "PYTHONPATH": path},
            cwd=_TESTS.parent,
            stdout=subprocess.PIPE,
            stderr=said,
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in _lines(child.stdout.fileno()):
                result = json.loads(line)
                _count(tally, result)
                made, is_last = made + 1, result["is_last"]
            how = f"its process ended with {child.wait(timeout=_PATIENCE)}"
        except (TimeoutError, subprocess.TimeoutExpired):
            how = "it goes on for ever"
            child.send_signal(signal.SIGUSR1)  # it tells where
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=2)
        finally:
            child.kill()
        if made < count and not is_last:
            said.seek(0)
            tally.trials += 1
            tally.hangs[first + made] = f"{how}\n{said.read()[-6000:]}"


def _count(tally: Tally, result: dict[str, Any]) -> None:
    tally.trials += 1
    tally.presses += result["presses"]
    tally.stalls += result["stalled"]
    tally.slowest = max(tally.slowest, result["seconds"])
    if result["wrong"]:
        tally.wrong[result["seed"]] = result["wrong"]


def _lines(stdout: int) -> Iterator[bytes]:
    """Hand out what is printed, line by line.

    Raises:
        TimeoutError: nothing has come for too long.
    """
    waiting = b""
    while True:
        ready, _, _ = select.select([stdout], [], [], _PATIENCE)
        if not ready:
            raise TimeoutError
        read = os.read(stdout, 65536)
        if not read:
            return
        *lines, waiting = (waiting + read).split(b"\n")
        yield from lines
