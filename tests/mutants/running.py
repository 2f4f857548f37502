"""How mutants are run: in copies of the tree, in a fixed order, until the time is up."""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from mutants.meeting import WITH_POSTGRESQL, Meeting, digest
from mutants.mutant import Mutant

__all__ = ["Copy", "Results", "in_order", "record"]

_COLLECTING = 180.0  # seconds
_TOGETHER = 10  # files of tests that are recorded before what they meet is kept
_LEFT_OUT = {
    # They start programs, whose lines nobody records, or read documents.
    "test_aio_processes.py",
    "test_benchmarks.py",
    "test_cli.py",
    "test_documents.py",
    "test_examples.py",
    "test_forks.py",
    "test_interrupts.py",
    "test_mutants.py",
    "test_public_surface.py",
    "test_trials.py",
}


def in_order(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """Order mutants so that the first ones, however many, are a sample stratified by module."""
    modules = defaultdict(list)
    for mutant in mutants:
        lot = sha256(f"{seed} {mutant}".encode()).digest()  # others may come and go
        modules[mutant.module].append((lot, mutant))
    placed = [
        ((place + 0.5) / len(found), module, mutant)
        for module, found in modules.items()
        for place, (_, mutant) in enumerate(sorted(found, key=lambda one: one[0]))
    ]
    return [mutant for _, _, mutant in sorted(placed, key=lambda one: one[:2])]


@dataclass(kw_only=True)
class Result:
    """What became of a mutant."""

    mutant: str
    verdict: str
    """killed, timeout, survived, or unmet: no test meets its lines."""
    module: str
    """The digest of its module's text."""
    by: str = ""
    """The test that noticed it."""
    ran: list[str] = field(default_factory=list)
    """The marks of the tests that a survivor has survived."""
    seconds: float = 0.0

    @property
    def is_killed(self) -> bool:
        """Whether a test has noticed it."""
        return self.verdict in {"killed", "timeout"}


class Results:
    """What is known, in a file to which lines are added: whoever is stopped goes on there."""

    def __init__(self, path: Path, modules: dict[str, str]) -> None:
        """Read what was found; it holds for modules whose digests are as they were."""
        self._path, self._known, self._modules = path, dict[str, Result](), modules
        self._at_first: dict[str, Result] = {}
        if path.exists():
            for line in path.read_text("utf-8").splitlines():
                self._keep(Result(**json.loads(line)))

    def find(self, mutant: Mutant) -> Result | None:
        """Return what is known of a mutant."""
        found = self._known.get(str(mutant))
        return found if found and found.module == self._modules[mutant.module] else None

    def _keep(self, result: Result) -> None:
        self._known[result.mutant] = result
        first = self._at_first.get(result.mutant)
        if first is None or first.module != result.module:
            self._at_first[result.mutant] = result

    def count_killed_at_first(self, mutants: Iterable[Mutant]) -> int:
        """Return how many of these were noticed when they were run for the first time."""
        known = (self._at_first[str(mutant)] for mutant in mutants if self.find(mutant))
        return sum(result.is_killed for result in known)

    def of(self, mutants: Iterable[Mutant]) -> dict[Mutant, Result]:
        """Return what is known of these."""
        found = ((mutant, self.find(mutant)) for mutant in mutants)
        return {mutant: result for mutant, result in found if result is not None}

    def note(self, mutant: Mutant, **what: Any) -> Result:
        """Keep what became of a mutant."""
        result = Result(mutant=str(mutant), module=self._modules[mutant.module], **what)
        self._keep(result)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        return result


class _Running:
    """A server of forks, and the pipes to it."""

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        theirs, self._jobs = os.pipe()
        self._answers, ours = os.pipe()
        environment = os.environ | {"PYTHONPATH": f"{root}:{Path(__file__).parent.parent}"}
        self._log = root / ".log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mutants.server", str(theirs), str(ours), *files],
                cwd=root,
                env=environment,
                pass_fds=(theirs, ours),
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the command, which ends it
            )
        os.close(theirs)
        os.close(ours)
        self._left = b""
        try:
            self.tests: dict[str, dict[str, Any]] = self._read(_COLLECTING)
        except BaseException:
            self.close()
            raise

    def _read(self, timeout: float | None = None) -> Any:
        while b"\n" not in self._left:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise TimeoutError("the tests are not collected in time")
            if not (read := os.read(self._answers, 1 << 16)):
                raise EOFError(f"the server has ended:\n{self._log.read_text()[-2000:]}")
            self._left += read
        line, _, self._left = self._left.partition(b"\n")
        return json.loads(line)

    def ask(self, **job: Any) -> Any:
        """Have a job done."""
        os.write(self._jobs, (json.dumps(job) + "\n").encode())
        return self._read()

    def close(self) -> None:
        """End the server, and what it has started."""
        os.close(self._jobs)
        os.close(self._answers)
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


class Copy:
    """A copy of the tree, in which faults are made, and its server."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.path = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(listed, cwd=root, check=True, capture_output=True, text=True).stdout
        for name in filter(None, names.split("\0")):
            if (root / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, folder / name)
        self._texts: dict[str, str] = {}
        self._clock = 1_000_000_000
        self._server: _Running | None = None

    def files(self) -> list[str]:
        """Return the files of tests."""
        found = sorted((self.path / "tests").glob("test_*.py"))
        return [f"tests/{path.name}" for path in found if path.name not in _LEFT_OUT]

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.close()
            self._server = None

    @property
    def server(self) -> _Running:
        """The server that has collected everything."""
        if self._server is None:
            self._server = _Running(self.path, self.files())
        return self._server

    def text(self, module: str) -> str:
        """Return the text of a module, without any fault."""
        return self._texts.setdefault(module, (self.path / module).read_text("utf-8"))

    def _write(self, module: str, text: str) -> str:
        """Write the text of a module, for programs that tests start; return its path."""
        path = self.path / module
        path.write_text(text, "utf-8")
        self._clock += 1  # else what was compiled for the last mutant might pass for it
        os.utime(path, (self._clock, self._clock))
        return str(path)

    def run(self, mutant: Mutant, tests: list[str], limits: Any) -> dict[str, Any]:
        """Put a fault in, run these tests until one fails, and take it out again."""
        everything = self.server  # it imports what is there, and that must have no fault yet
        self.text(mutant.module)
        path = self._write(mutant.module, mutant.source)
        job = {"path": path, "tests": tests, "limits": limits, "record": None}
        try:
            answer = everything.ask(text=mutant.source, **job)
            if answer["verdict"] == "elsewhere":
                files = dict.fromkeys(test.partition("::")[0] for test in tests)
                try:
                    server = _Running(self.path, files)
                except (EOFError, TimeoutError):
                    return {"verdict": "killed", "by": "the import"}
                try:
                    answer = server.ask(text=None, **job)
                finally:
                    server.close()
        finally:
            self._write(mutant.module, self.text(mutant.module))
        found: dict[str, Any] = answer
        return found


def record(copy: Copy, kept: Path, modules: Iterable[str], *, postgresql: bool) -> Meeting:
    """Find out which tests meet which lines, of files of tests of which that is not known.

    Args:
        copy: where they run.
        kept: where what was found is kept.
        modules: those that can be mutated.
        postgresql: whether there is a server for those tests that need one.
    """
    path = kept / "meeting.json"
    meeting = Meeting.load(path)
    code = digest(copy.path / name for name in modules)
    if meeting.code != code:
        meeting = Meeting(code=code)
    files = {file: digest([copy.path / file]) for file in copy.files()}
    known = {file: one.removesuffix(WITH_POSTGRESQL) for file, one in meeting.files.items()}
    changed = [file for file in files if known.get(file) != files[file]]
    meeting.forget(changed)
    _record_all(copy, meeting, kept, {file: files[file] for file in changed}, postgresql=False)
    if postgresql:
        files = {file: f"{one}{WITH_POSTGRESQL}" for file, one in files.items()}
        lacking = {file: one for file, one in files.items() if meeting.files[file] != one}
        _record_all(copy, meeting, kept, lacking, postgresql=True)
    return meeting


def _record_all(
    copy: Copy, meeting: Meeting, kept: Path, files: Mapping[str, str], *, postgresql: bool
) -> None:
    names = list(files)
    for at in range(0, len(names), _TOGETHER):
        part = names[at : at + _TOGETHER]
        _record(copy, meeting, kept / "coverage", part, postgresql=postgresql)
        meeting.files |= {file: files[file] for file in part}
        meeting.save(kept / "meeting.json")  # whoever is stopped goes on here


def _record(
    copy: Copy, meeting: Meeting, data: Path, files: Iterable[str], *, postgresql: bool
) -> None:
    """Run the tests of these files, and add which lines they meet."""
    of_these = tuple(f"{file}::" for file in files)
    tests = [
        test
        for test, about in copy.server.tests.items()
        if test.startswith(of_these)
        and "no_cover" not in about["marks"]
        and about["postgresql"] == postgresql
    ]
    if not tests:
        return
    data = data.absolute()
    data.unlink(missing_ok=True)
    limits = dict.fromkeys(tests, 310.0)  # pytest's own is 300
    answer = copy.server.ask(text=None, path="", tests=tests, limits=limits, record=str(data))
    if answer["verdict"] != "survived":
        raise RuntimeError(f"recording stopped at {answer['by']}: {answer['verdict']}")
    needing = [test for test, about in copy.server.tests.items() if about["postgresql"]]
    meeting.add(data, copy.path, needing)


class Runner:
    """Runs one mutant after the other, with the tests that meet its lines."""

    def __init__(self, copy: Copy, meeting: Meeting, results: Results, patience: float) -> None:
        self._copy, self._meeting, self._results = copy, meeting, results
        self._patience = patience

    def _tests(self, mutant: Mutant) -> list[str]:
        """Return the tests that have not had their say: a survivor has to meet new ones only."""
        known = self._results.find(mutant)
        if known is not None and known.is_killed:
            return []
        had = set() if known is None else set(known.ran)
        return [
            test
            for test in self._meeting.tests(mutant, patience=self._patience)
            if self._meeting.mark(test) not in had
        ]

    def knows(self, mutant: Mutant) -> bool:
        """Say whether there is nothing to run."""
        return self._results.find(mutant) is not None and not self._tests(mutant)

    def run(self, mutant: Mutant) -> Result:
        """Find out what becomes of a mutant."""
        known, tests = self._results.find(mutant), self._tests(mutant)
        if known is not None and not tests:
            return known
        if not tests:
            return self._results.note(mutant, verdict="unmet")
        started = time.monotonic()
        answer = self._ask(mutant, tests)
        ran = set(known.ran if known else ()).union(map(self._meeting.mark, tests))
        return self._results.note(
            mutant,
            verdict=answer["verdict"],
            by=answer["by"],
            ran=sorted(ran) if answer["verdict"] == "survived" else [],
            seconds=time.monotonic() - started,
        )

    def _ask(self, mutant: Mutant, tests: list[str]) -> dict[str, Any]:
        """Run the tests; one that fails has to fail again, for some fail by chance."""
        limits = self._meeting.limits(tests)
        left = tests
        while True:
            answer = self._copy.run(mutant, left, limits)
            by = answer["by"]
            if answer["verdict"] != "killed" or by not in left:
                return answer
            if self._copy.run(mutant, [by], limits)["verdict"] != "survived":
                return answer
            left = left[left.index(by) + 1 :]
            if not left:
                return {"verdict": "survived", "by": by}
