"""Which tests meet which lines, and how long they take: recorded once, outside of git."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from itertools import chain
from keyword import kwlist
from pathlib import Path

from coverage import CoverageData

from mutants.mutant import Mutant

__all__ = ["WITH_POSTGRESQL", "Meeting", "digest"]

WITH_POSTGRESQL = " and PostgreSQL"
"""What is added to the digest of a file whose tests that need a server were recorded, too."""


def digest(paths: Iterable[Path]) -> str:
    """Return a short word for the content of files."""
    return sha256(b"\0".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:12]


@dataclass(kw_only=True)
class Meeting:
    """What was recorded."""

    code: str = ""
    """The digest of the modules that can be mutated; lines of other ones lie elsewhere."""
    files: dict[str, str] = field(default_factory=dict)
    """The digests of the files of tests."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each test takes that has passed."""
    postgresql: list[str] = field(default_factory=list)
    """The tests that need a server, which come last."""
    lines: dict[str, dict[int, list[str]]] = field(default_factory=dict)
    """The tests that meet a line, by module and line."""

    @classmethod
    def load(cls, path: Path) -> "Meeting":
        """Read what was recorded; nothing was, if there is no file."""
        if not path.exists():
            return cls()
        read = json.loads(path.read_text("utf-8"))
        names = list(read["seconds"])
        read["lines"] = {
            module: {int(line): [names[one] for one in tests] for line, tests in lines.items()}
            for module, lines in read["lines"].items()
        }
        return cls(**read)

    def save(self, path: Path) -> None:
        """Write what was recorded, with a number for each test: their names would be much."""
        numbers = {test: number for number, test in enumerate(self.seconds)}
        lines = {
            module: {line: [numbers[test] for test in tests] for line, tests in lines.items()}
            for module, lines in self.lines.items()
        }
        known = {one.name: getattr(self, one.name) for one in fields(self)}
        path.write_text(json.dumps({**known, "lines": lines}), "utf-8")

    def forget(self, files: Iterable[str]) -> None:
        """Drop what was recorded of these files of tests, because they have changed."""
        gone = tuple(f"{file}::" for file in files)
        self.seconds = {t: s for t, s in self.seconds.items() if not t.startswith(gone)}
        for lines in self.lines.values():
            for line, tests in lines.items():
                lines[line] = [test for test in tests if not test.startswith(gone)]

    def add(self, data: Path, root: Path, postgresql: Iterable[str]) -> None:
        """Take over what coverage has recorded, of tests that have passed."""
        passed = json.loads(data.with_suffix(".json").read_text("utf-8"))
        self.seconds |= passed
        self.postgresql = sorted({*self.postgresql, *postgresql})
        read = CoverageData(str(data))
        read.read()
        for file in read.measured_files():
            module = Path(file).relative_to(root).as_posix()
            lines = self.lines.setdefault(module, {})
            for line, tests in read.contexts_by_lineno(file).items():
                lines.setdefault(line, []).extend(test for test in tests if test in passed)

    def tests(self, mutant: Mutant, *, patience: float) -> list[str]:
        """Return the tests that meet the lines of a mutant, up to so many seconds in all.

        And up to as many of those that need a server, which come last.

        The fastest are first, and of these the ones that meet little else, and of the module what
        few others meet: they look more closely than those for which the line is one of many.
        Whoever makes a store meets each statement where it is made; who uses it, meets more. Most
        of all count other lines with names of the fault's, which few lines have: what an attribute
        is set to is noticed where it is read; first of all those of what was changed. A line that
        runs at the import is met by whoever meets the module.
        """
        lines = self.lines.get(mutant.module, {})
        met = {test for line in mutant.lines for test in lines.get(line, ())}
        if not met and not mutant.in_function:
            met = {test for tests in lines.values() for test in tests}
        postgresql, close = set(self.postgresql), _closeness(lines, _kinship(mutant))
        ordered = sorted(
            met, key=lambda one: (one in postgresql, self._costs[one] / close[one], one)
        )
        chosen, left = list[str](), {False: patience, True: patience}
        for test in ordered:
            left[test in postgresql] -= self.seconds[test]
            if left[test in postgresql] >= 0 or not chosen:
                chosen.append(test)
        return chosen

    @cached_property
    def _costs(self) -> dict[str, float]:
        """How dear a test is for what it may notice: its seconds, times the lines that it meets."""
        met = Counter(chain.from_iterable(t for m in self.lines.values() for t in m.values()))
        return {test: seconds * met[test] for test, seconds in self.seconds.items()}

    def mark(self, test: str) -> str:
        """Return a short word for a test as it stands in its file now."""
        file = self.files[test.partition("::")[0]].removesuffix(WITH_POSTGRESQL)
        return sha256(f"{file} {test}".encode()).hexdigest()[:8]

    def limits(self, tests: Iterable[str]) -> Mapping[str, float]:
        """Return the seconds after which each of these tests hangs."""
        return {test: 10 + 10 * self.seconds.get(test, 30.0) for test in tests}


def _closeness(lines: Mapping[int, list[str]], kinship: Mapping[int, float]) -> Mapping[str, float]:
    """Return how much each test meets of a module; a line counts less, the more tests meet it."""
    found = defaultdict[str, float](float)
    for line, tests in lines.items():
        for test in tests:
            found[test] += (0.02 + kinship.get(line, 0.0)) / len(tests)
    return found


def _kinship(mutant: Mutant) -> Mapping[int, float]:
    """Return what each other line shares with the fault: names count less, the more have them."""
    names = [_names(line) for line in mutant.source.splitlines()]
    have = Counter(chain.from_iterable(names))
    before, after = map(_names, mutant.mutation.split(" => ", 1))
    weights = dict.fromkeys(before | after, 1.0) | dict.fromkeys(before ^ after, 5.0)
    return {
        line: sum(weights[name] / have[name] for name in weights.keys() & found)
        for line, found in enumerate(names, start=1)
        if line not in mutant.lines
    }


def _names(text: str) -> set[str]:
    return set(re.findall(r"[A-Za-z_]\w+", text)).difference(kwlist)
