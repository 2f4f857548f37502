"""What runs mutants: a pytest that collects once, and forks for each job.

``python -m mutants.server JOBS ANSWERS FILE...`` reads a job from the file descriptor JOBS, a line
of JSON, and writes its answer to ANSWERS. Collecting takes longer than most tests that notice a
mutant. So the modules are imported and the tests collected once, without any fault; in the forked
child, the functions that are there are given the code of the mutated text. Where none is changed (a
constant, a default, a field of a class), the answer is "elsewhere": such a mutant needs a server
that is started after its text was written.

What the package has cached is forgotten before each test: whoever finds an answer there does not
meet the lines that have made it, and they stand before the fault was put in.

The parent waits no longer for a test than the job says: a mutant that hangs is noticed, too.
"""

import contextlib
import functools
import gc
import json
import os
import resource
import select
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import coverage
import pytest

__all__ = ["Server"]

_MOST_MEMORY = 4 << 30  # bytes; a mutant may make lists without end
_FAILED, _ELSEWHERE = 1, 3  # how a child ends


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _change(functions: Iterable[FunctionType], path: str, text: str) -> bool:
    """Give functions of this file their code in ``text``; say whether any was changed."""
    fresh: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
    for code in _codes(compile(text, path, "exec", dont_inherit=True)):
        fresh[code.co_qualname, code.co_firstlineno].append(code)
    changed = False
    for function in functions:
        old = function.__code__
        match fresh[old.co_qualname, old.co_firstlineno]:
            case [new] if new != old:
                if len(new.co_freevars) != len(old.co_freevars):
                    return False
                function.__code__ = new
                changed = True
    return changed


def _caches() -> list[Any]:
    """Return the functions of the package that keep what they have answered."""
    return [
        found
        for found in gc.get_objects()
        if isinstance(found, functools._lru_cache_wrapper)
        and found.__module__.partition(".")[0] == "trio_sessions"
    ]


class Server:
    """The plugin that stands in for pytest's own loop over the tests."""

    def __init__(self, jobs: int, answers: int) -> None:
        self._jobs, self._answers = jobs, answers

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Greet with the tests that were collected, then do what is asked."""
        gc.unfreeze()  # the conftest hides what was there when the tests were collected
        live = defaultdict(list)
        for found in gc.get_objects():
            if isinstance(found, FunctionType):
                live[found.__code__.co_filename].append(found)
        caches = _caches()
        gc.collect()
        gc.freeze()
        self._say({item.nodeid: _describe(item) for item in session.items})
        with os.fdopen(self._jobs, encoding="utf-8") as jobs:
            for line in jobs:
                self._say(_fork(session, live, caches, json.loads(line)))
        return True

    def _say(self, answer: Mapping[str, Any]) -> None:
        os.write(self._answers, (json.dumps(answer) + "\n").encode())


def _describe(item: pytest.Item) -> dict[str, Any]:
    fixtures = getattr(item, "fixturenames", ())
    return {
        "postgresql": "postgresql_url" in fixtures or "postgresql" in item.name,
        "marks": [mark.name for mark in item.iter_markers()],
    }


def _fork(
    session: pytest.Session, live: Mapping[str, Any], caches: list[Any], job: Mapping[str, Any]
) -> Any:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            code = _work(session, live, caches, job, writing)
        finally:
            os._exit(code)
    os.close(writing)
    test, verdict = "", "killed"
    try:
        while True:
            limit = job["limits"].get(test, 30.0)
            if not select.select([reading], [], [], limit)[0]:
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    verdict = "timeout"
                break  # else somebody whom the child has started has the pipe
            if not (heard := os.read(reading, 1 << 16)):
                break
            test = heard.decode().splitlines()[-1]
    finally:
        os.close(reading)
        if verdict == "timeout" or sys.exc_info()[0] is not None:
            _end_group(pid)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _end_group(pid)
    if verdict != "timeout":
        verdict = {0: "survived", _ELSEWHERE: "elsewhere"}.get(code, "killed")
    return {"verdict": verdict, "by": test, "code": code}


def _end_group(pid: int) -> None:
    """End what the tests have started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _work(
    session: pytest.Session, live: Any, caches: list[Any], job: Mapping[str, Any], heard: int
) -> int:
    """Run the tests of a job in the child; return how the child ends."""
    if job["text"] is not None and not _change(live[job["path"]], job["path"], job["text"]):
        return _ELSEWHERE
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    at = {nodeid: place for place, nodeid in enumerate(job["tests"])}
    items = sorted((i for i in session.items if i.nodeid in at), key=lambda i: at[i.nodeid])
    recording = job["record"] and coverage.Coverage(
        data_file=job["record"], include=["trio_sessions/*"], config_file=False
    )
    if recording:
        recording.start()
    passed = {}
    for item, following in zip(items, [*items[1:], None], strict=True):
        os.write(heard, f"{item.nodeid}\n".encode())
        for cache in caches:
            cache.cache_clear()
        before, started = session.testsfailed, time.monotonic()
        if recording:
            recording.switch_context(item.nodeid)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed == before:
            passed[item.nodeid] = time.monotonic() - started
        elif not recording:
            return _FAILED
    if recording:
        recording.stop()
        recording.save()
        Path(job["record"]).with_suffix(".json").write_text(json.dumps(passed), "utf-8")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    _, jobs, answers, *files = sys.argv
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp=.basetemp", *files]
    sys.exit(pytest.main(options, plugins=[Server(int(jobs), int(answers))]))
