"""What the results say: which survivors are explained, and the figures."""

import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mutants.mutant import Mutant
from mutants.running import Result

__all__ = ["LEAST", "Explained", "Judgement", "read_explained"]

LEAST = 0.95
"""The share that has to be killed of the mutants that are no equivalents."""

_KINDS = {"equivalent", "accepted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A survivor, of which kind it is, and why.

    An ``equivalent`` one changes nothing that anybody could notice, so no test can kill it, and it
    is left out of the score. An ``accepted`` one could be noticed, and counts as not killed.
    """

    module: str
    function: str
    mutation: str
    kind: str
    why: str

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"{self}: {self.kind!r} is no kind: {' or '.join(sorted(_KINDS))}")

    def __str__(self) -> str:
        return f"{self.module} {self.function}: {self.mutation}"


def read_explained(path: Path) -> list[Explained]:
    """Read the list; each entry needs all five."""
    return [Explained(**one) for one in tomllib.loads(path.read_text("utf-8")).get("mutant", [])]


class Judgement:
    """Judge what became of the mutants that were run.

    Args:
        made: all mutants of the modules that were asked for.
        results: of those that were run.
        explained: the whole list, of other modules too.
        killed_at_first: how many of those that were run were killed when they were run first.
    """

    def __init__(
        self,
        made: Sequence[Mutant],
        results: Mapping[Mutant, Result],
        explained: Iterable[Explained],
        killed_at_first: int,
    ) -> None:
        self._killed_at_first = killed_at_first
        self._made, self._results = made, results
        modules = {mutant.module for mutant in made}
        names = {str(mutant) for mutant in made}
        explained = list(explained)
        self._kinds = {str(one): one.kind for one in explained}
        self.stale = [one for one in explained if one.module in modules and str(one) not in names]
        """Explanations of what is not in the code any more."""
        self.open = [
            mutant
            for mutant, result in results.items()
            if not result.is_killed and str(mutant) not in self._kinds
        ]
        """Survivors that nobody has explained."""

    @property
    def raw_score(self) -> float:
        """The share that was killed of all mutants that were run."""
        return _share(self._count_killed(), len(self._results))

    @property
    def score(self) -> float:
        """The same without the equivalents, which no test can kill."""
        return _share(self._count_killed(), self._count_noticeable())

    @property
    def score_at_first(self) -> float:
        """The same when they were run first: before tests were written for this sample."""
        return _share(self._killed_at_first, self._count_noticeable())

    def _count_noticeable(self) -> int:
        return sum(
            result.is_killed or self._kinds.get(str(mutant)) != "equivalent"
            for mutant, result in self._results.items()
        )

    def _count_killed(self) -> int:
        return sum(result.is_killed for result in self._results.values())

    @property
    def is_good(self) -> bool:
        """Whether the command succeeds."""
        return not self.stale and not self.open and self.score >= LEAST

    @property
    def summary(self) -> str:
        """The figures in one line."""
        return (
            f"{len(self._results)} of {len(self._made)} mutants run, {self.raw_score:.1%} killed, "
            f"{self.score:.1%} without equivalents (at least {LEAST:.0%} have to be), "
            f"{len(self.open)} open, {len(self.stale)} stale"
        )

    def report(self, *, seed: int) -> str:
        """Return the figures as Markdown, by module and by kind of fault."""
        ran, all_ = len(self._results), len(self._made)
        sample = f"{ran:,}, a sample stratified by module of seed {seed}," if ran < all_ else "all"
        text = (
            f"Of {all_:,} small faults, {sample} were put into the code one by one. "
            f"{self.raw_score:.1%} were noticed by the tests that meet their lines: in memory and "
            "on SQLite, and last those on PostgreSQL that were recorded; "
            f"{self.score:.1%} without the equivalents, which change nothing that "
            "anybody could notice. Accepted ones, which could be noticed, count as not noticed; "
            "`tests/mutants/explained.toml` has the reason of each of both. "
            f"{len(self.open)} are open. "
            f"When this sample was run first, {self.score_at_first:.1%} were noticed without the "
            "equivalents, before tests were written for the others: that is what to expect of the "
            "rest of the code. A fault that makes a test hang is noticed, too. One is given up "
            "after some seconds of tests, so a slow test may notice what is open."
        )
        by_module = self._table("module", lambda mutant: f"`{mutant.module}`")
        by_kind = self._table("kind of fault", lambda mutant: mutant.operator)
        head = ["<!-- Written by `make mutants`. -->", "", text, ""]
        return "\n".join([*head, *by_module, "", *by_kind, ""])

    def _table(self, what: str, name: Callable[[Mutant], str]) -> list[str]:
        made = Counter(name(mutant) for mutant in self._made)
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for mutant, result in self._results.items():
            verdict = result.verdict
            if not result.is_killed:
                verdict = self._kinds.get(str(mutant), "open")
            counts[name(mutant)].update([verdict, "ran"])
        columns = ["ran", "killed", "timeout", "equivalent", "accepted", "open"]
        rows = {one: [made[one], *(counts[one][column] for column in columns)] for one in made}
        rows = dict(sorted(rows.items())) | {
            "**all**": [sum(at) for at in zip(*rows.values(), strict=True)]
        }
        head = [what, "made", "run", "killed", "hung", "equivalent", "accepted", "open"]
        return [
            f"| {' | '.join(head)} |",
            f"| --- |{' ---: |' * 7}",
            *(f"| {one} | {' | '.join(map(str, row))} |" for one, row in rows.items()),
        ]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
