"""What many runs together have done."""

from collections import Counter
from dataclasses import dataclass, field

from trio_sessions.testing._simulation._mixes import MIXES
from trio_sessions.testing._simulation._run import Run

__all__ = ["SimulationReport", "counted"]


def counted(count: int, what: str) -> str:
    """Return a number of things as words."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


@dataclass(kw_only=True)
class SimulationReport:
    """The sum of some runs; durations are seconds."""

    runs: int = 0
    steps: int = 0
    commits: int = 0
    seconds: float = 0.0
    """Of the host's time."""
    virtual: float = 0.0
    """Of virtual time."""
    rules: Counter[str] = field(default_factory=Counter)
    """How often each rule was followed."""
    faults: Counter[str] = field(default_factory=Counter)
    """Faults injected, by their kind."""
    right: Counter[str] = field(default_factory=Counter)
    """Sessions removed before the end of their run, by the reason that they had."""
    judged: Counter[str] = field(default_factory=Counter)
    """Answers that were held against what is true, by their kind."""
    mixes: Counter[str] = field(default_factory=Counter)
    """How often each mix of rules was played."""
    failures: list[Run] = field(default_factory=list)
    """Runs in which an invariant did not hold."""
    digests: list[str] = field(default_factory=list)
    """Of the trace of each run."""

    def add(self, run: Run) -> None:
        """Add a run."""
        self.runs += 1
        self.steps += run.steps
        self.digests.append(run.digest)
        self.commits += run.commits
        self.seconds += run.seconds
        self.virtual += run.virtual
        self.rules.update(run.rules)
        self.faults.update(run.faults)
        self.right.update(run.right)
        self.judged.update(run.judged)
        self.mixes[run.mix] += 1
        if run.violations:
            self.failures.append(run)

    @property
    def wrong(self) -> int:
        """Violations, of whatever invariant."""
        return sum(len(run.violations) for run in self.failures)

    @property
    def rules_never_followed(self) -> list[str]:
        """Rules of the mixes that were played that had nothing to do in any run."""
        known = dict.fromkeys(name for mix in self.mixes for name in MIXES[mix])
        return [name for name in known if not self.rules[name]]

    @property
    def rate(self) -> float:
        """Steps in a second."""
        return self.steps / self.seconds if self.seconds else 0.0
