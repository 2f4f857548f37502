"""What a pass had to do after what was done to its worker, and whether it did just that.

Synchronous, so that it can be tested without a server, a client or a database.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from trio_sessions import CleanupReport, fingerprint

__all__ = ["Deeds", "Finding", "Outcome", "Verdict", "compare", "expect"]

Ids = frozenset[str]
_NONE: Ids = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeds:
    """What was done to one worker before a pass."""

    vanished: Ids = _NONE
    """Sessions whose clients closed their sockets."""
    hung: Ids = _NONE
    """Sessions whose clients are there and do not answer."""
    deleted: Ids = _NONE
    """Sessions whose rows somebody deleted."""
    taken: Ids = _NONE
    """Sessions whose clients are on another worker now."""
    unwritten: Ids = _NONE
    """Sessions added while the database was away."""
    away: bool = False
    """The database is away during the pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one worker's sessions in a pass."""

    checked: int
    """Of the report: transports asked."""
    counted: int
    """Of the report: rows refreshed."""
    refreshed: Ids
    """In the database: rows that were there before, and whose last_accessed moved."""
    disconnected: Ids
    missing: Ids
    restored: Ids
    unanswered: Ids
    """Of the report: check_failures."""
    unrefreshed: Ids
    """Of the report: refresh_failures."""
    held: Ids
    """In the registry, afterwards."""
    rows: Ids
    """In the database, afterwards: the worker's rows."""
    cut: Ids
    """At the clients: they saw the gateway close their connection."""

    @property
    def gone(self) -> Ids:
        """The sessions that the report says were removed."""
        return self.disconnected | self.missing


_WHERE = {
    "refreshed": "rows refreshed in the database",
    "disconnected": "removed as disconnected",
    "missing": "removed as missing",
    "restored": "restored",
    "unanswered": "kept, connection unknown",
    "unrefreshed": "kept, row unknown",
    "held": "held by the registry",
    "rows": "rows in the database",
    "cut": "clients whose connection was closed",
}


def expect(held: Ids, rows: Ids, deeds: Deeds) -> Outcome:
    """Say what a pass has to do: remove the disconnected and the confirmed missing, keep all else.

    Args:
        held: the worker's sessions before the pass.
        rows: the worker's rows before what was done.
        deeds: what was done.
    """
    alive = held - deeds.vanished
    unwritten = alive & deeds.unwritten
    missing = _NONE if deeds.away else alive & (deeds.deleted | deeds.taken) - unwritten
    refreshed = _NONE if deeds.away else alive - unwritten - missing
    return Outcome(
        checked=len(held),
        counted=len(refreshed),
        refreshed=refreshed,
        disconnected=held & deeds.vanished,
        missing=missing,
        restored=_NONE if deeds.away else unwritten,
        unanswered=alive & deeds.hung,
        unrefreshed=alive if deeds.away else _NONE,
        held=alive - missing,
        rows=rows if deeds.away else alive - missing,
        cut=missing,
    )


def compare(expected: Outcome, happened: Outcome) -> tuple[str, ...]:
    """Name every difference, sessions by their fingerprints; nothing if all is as expected."""
    differences = []
    for name, words in (("checked", "transports asked"), ("counted", "rows reported refreshed")):
        wanted, got = getattr(expected, name), getattr(happened, name)
        if wanted != got:
            differences.append(f"{words}: {got} instead of {wanted}")
    for name, words in _WHERE.items():
        wanted, got = getattr(expected, name), getattr(happened, name)
        if got - wanted:
            differences.append(f"{words}: too many: {_fingerprints(got - wanted)}")
        if wanted - got:
            differences.append(f"{words}: too few: {_fingerprints(wanted - got)}")
    return tuple(differences)


def _fingerprints(session_ids: Iterable[str]) -> str:
    return ", ".join(sorted(fingerprint(session_id) for session_id in session_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One pass of one worker: its report, and how it compares."""

    phase: str
    worker: str
    report: CleanupReport
    expected: Outcome
    happened: Outcome

    @property
    def differences(self) -> tuple[str, ...]:
        """What is not as expected."""
        return compare(self.expected, self.happened)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The whole demo."""

    findings: tuple[Finding, ...]
    left_behind: Ids
    """Rows still in the database after all workers closed."""

    @property
    def differences(self) -> tuple[str, ...]:
        """What is not as expected, each with its phase and worker."""
        found = [
            f"{finding.phase}, {finding.worker}: {difference}"
            for finding in self.findings
            for difference in finding.differences
        ]
        if self.left_behind:
            found.append(f"after closing: rows left behind: {_fingerprints(self.left_behind)}")
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether not one session too many or too few is gone, and all else is as expected."""
        return bool(self.findings) and not self.differences

    def count(self, of: Callable[[Finding], Outcome]) -> int:
        """Return how many sessions are gone, of the expected or of the happened."""
        return sum(len(of(finding).gone) for finding in self.findings)
