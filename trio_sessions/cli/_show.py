"""What the demo shows: a progress bar and a live table on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import IO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from trio_sessions import fingerprint
from trio_sessions.cli._verdict import Finding, Verdict

__all__ = ["Screen"]

_NAMED = 6  # fingerprints shown of one group
_ABREAST = 3  # workers next to each other in 80 columns
_PACE = 0.7  # seconds that each step can be looked at


class Screen:
    """Writes what happens; nothing but ASCII where the encoding of ``file`` has no more.

    Args:
        file: where to; by default stdout.
        plain: no live table and no control characters, also on a terminal.
    """

    def __init__(self, file: IO[str] | None = None, *, plain: bool = False) -> None:
        self._console = Console(file=file, highlight=False, emoji=False, markup=False)
        terminal = self._console.file.isatty() and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._animated = terminal and not plain
        self._headline = ""
        self._waiting = True
        self._latest: dict[str, Finding | None] = {}

    @property
    def pace(self) -> float:
        """Seconds to rest between steps, so that somebody who watches can follow."""
        return _PACE if self._animated else 0.0

    def say(self, line: str, style: str = "") -> None:
        """Write a line."""
        self._console.print(Text(line, style=style))

    @contextlib.contextmanager
    def connecting(self, total: int) -> Iterator[Callable[[], None]]:
        """Show a progress bar; call what this gives for each client that is connected."""
        columns = (TextColumn("connecting clients"), BarColumn(), MofNCompleteColumn())
        progress = Progress(
            *columns, console=self._console, auto_refresh=False, disable=not self._animated
        )
        with progress:
            task = progress.add_task("connect", total=total)

            def advance() -> None:
                progress.advance(task)
                progress.refresh()

            yield advance

    @contextlib.contextmanager
    def watching(self, workers: Iterable[str]) -> Iterator[None]:
        """Show the live table of the workers for the length of the block."""
        self._latest = dict.fromkeys(workers)
        if not self._animated:
            yield
            return
        live = Live(console=self._console, auto_refresh=False, transient=True)
        with live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    def doing(self, phase: str, deed: str) -> None:
        """Show what is being done before the next pass."""
        self._headline = f"{phase}: {deed}"
        self._waiting = True
        self._refresh()

    def passed(self, findings: Sequence[Finding]) -> None:
        """Show what the workers' passes did."""
        for finding in findings:
            self._latest[finding.worker] = finding
        self._waiting = False
        as_expected = not any(finding.differences for finding in findings)
        word, style = ("ok   ", "green") if as_expected else ("WRONG", "bold red")
        line = Text.assemble((word, style), " ", self._headline)
        line.overflow = "fold"
        self._console.print(line)
        self._refresh()

    def _refresh(self) -> None:
        if self._live is not None:
            headline = Text(self._headline, style="bold")
            self._live.update(Group(Text(), headline, self._live_table()), refresh=True)

    def _live_table(self) -> Table:
        table = _table("worker", "held", "rows", "checked", "refreshed")
        for name in ("discon-\nnected", "missing", "restored", "unknown"):
            table.add_column(name, justify="right", no_wrap=True)
        for worker, finding in self._latest.items():
            if finding is None:
                table.add_row(worker)
                continue
            now, report = finding.happened, finding.report
            if self._waiting:  # who is there before the pass; what it does is still to be seen
                table.add_row(worker, str(len(now.held)), str(len(now.rows)))
                continue
            unknown = len(now.unanswered | now.unrefreshed)
            table.add_row(
                worker,
                str(len(now.held)),
                str(len(now.rows)),
                str(report.checked),
                str(report.refreshed),
                _count(len(report.disconnected), "red"),
                _count(len(report.missing), "red"),
                _count(len(report.restored), "green"),
                _count(unknown, "yellow"),
            )
        return table

    # ---- the end ----

    def reports(self, findings: Iterable[Finding]) -> None:
        """Write every `CleanupReport`, phase by phase, the workers next to each other."""
        self.say("\nWhat the passes reported (sessions by their fingerprints)", "bold")
        for phase, found in groupby(findings, key=lambda finding: finding.phase):
            of_phase = list(found)
            for start in range(0, len(of_phase), _ABREAST):
                self.say(f"\n{phase}", "bold")
                self._console.print(_reports(of_phase[start : start + _ABREAST]))

    def verdict(self, verdict: Verdict) -> None:
        """Write what was expected beside what happened, and name every difference."""
        self.say("\nExpected / happened", "bold")
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for name in ("phase", "worker"):  # on a narrow terminal these are folded, no figure is
            table.add_column(name, overflow="fold")
        for name in ("discon-\nnected", "missing", "restored", "unknown", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for finding in verdict.findings:
            wanted, got = finding.expected, finding.happened
            wrong = bool(finding.differences)
            table.add_row(
                finding.phase,
                finding.worker,
                f"{len(wanted.disconnected)} / {len(got.disconnected)}",
                f"{len(wanted.missing)} / {len(got.missing)}",
                f"{len(wanted.restored)} / {len(got.restored)}",
                f"{len(wanted.unanswered | wanted.unrefreshed)} / "
                f"{len(got.unanswered | got.unrefreshed)}",
                Text("WRONG", style="bold red") if wrong else Text("ok", style="green"),
            )
        self._console.print(table)
        for difference in verdict.differences:
            self.say(f"WRONG {difference}", "red")
        wanted_gone = verdict.count(lambda finding: finding.expected)
        gone = verdict.count(lambda finding: finding.happened)
        if verdict.passed:
            self.say(
                f"As expected: gone are {gone} sessions, not one too many and not one too few.",
                "bold green",
            )
        else:
            self.say(
                f"NOT as expected: {wanted_gone} sessions should be gone, {gone} are; "
                f"differences: {len(verdict.differences)}.",
                "bold red",
            )


def _table(*columns: str, left: int = 1) -> Table:
    # Two spaces between columns, so that a worker's row fits into 80.
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def _count(number: int, style: str) -> Text:
    return Text(str(number), style=style if number else "")


def _reports(findings: Sequence[Finding]) -> Table:
    table = _table("")
    for finding in findings:
        table.add_column(finding.worker, overflow="fold")
    reports = [finding.report for finding in findings]
    for name in ("checked", "refreshed"):
        table.add_row(name, *(str(getattr(report, name)) for report in reports))
    for name in ("disconnected", "missing", "restored", "check_failures", "refresh_failures"):
        table.add_row(name, *(_named(getattr(report, name)) for report in reports))
    table.add_row("expired", *(str(report.expired) for report in reports))
    table.add_row("duration", *(f"{report.duration:.3f} s" for report in reports))
    return table


def _named(session_ids: Iterable[str]) -> str:
    """Return how many sessions these are, and which."""
    names = [fingerprint(session_id) for session_id in session_ids]
    if not names:
        return "0"
    more = f" + {len(names) - _NAMED}" if len(names) > _NAMED else ""
    return f"{len(names)}: {' '.join(names[:_NAMED])}{more}"
