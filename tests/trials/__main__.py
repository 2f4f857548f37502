"""Make trials, and print a line of JSON for each."""

import asyncio
import gc
import json
import logging
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy as sa
from backdoors import Backdoor, DatabaseBackdoor, MemoryBackdoor
from trio._core import _run

from trials.hosts import PLAIN, run_on
from trials.presses import PressTrial
from trials.sides import Side, Way
from trials.storm import CANCELLATIONS, DEADLINES, storm
from trials.world import Wrong
from trio_sessions.abc import SessionStore
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore

_SQLITE = 10  # one trial in so many is on SQLite


class _Heard(logging.Handler):
    """What nobody may hear in a trial: errors that are logged, warned of, or cannot be raised."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if "ignore their cancellation" not in text:
            self.heard.append(text)

    def unraisable(self, what: Any) -> None:
        lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
        self.heard.append(f"cannot be raised in {what.object!r}: {''.join(lines)}")

    def warned(self, message: object, category: type[Warning], *_: Any, **__: Any) -> None:
        # A press may come between the making of a coroutine and its start: not ours to prevent.
        if issubclass(category, (ResourceWarning, RuntimeWarning)) and "._main" not in str(message):
            self.heard.append(f"warning: {message}")


@contextmanager
def _heard() -> Iterator[_Heard]:
    heard, root = _Heard(), logging.getLogger()
    root.addHandler(heard)
    hook, sys.unraisablehook = sys.unraisablehook, heard.unraisable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", ResourceWarning)
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = heard.warned
            yield heard
            gc.collect()
    finally:
        sys.unraisablehook = hook
        root.removeHandler(heard)


@contextmanager
def _store(seed: int) -> Iterator[tuple[SessionStore, Backdoor]]:
    if seed % _SQLITE:
        memory = MemoryStore()
        yield memory, MemoryBackdoor(memory)
        return
    with tempfile.TemporaryDirectory() as folder:
        url = sa.make_url(f"sqlite:///{Path(folder) / 'sessions.db'}")
        backdoor = DatabaseBackdoor(url)
        try:
            yield DatabaseStore(url), backdoor
        finally:
            backdoor.close()


def _run_storm(host: str, seed: int, ways: list[Way]) -> None:
    with _store(seed) as (store, backdoor):

        async def main(side: Side) -> None:
            await storm(side, seed, ways, store, backdoor)

        run_on(host, main)


def _try(host: str, kind: str, seed: int) -> dict[str, Any]:
    """Make one trial; return what is to be printed."""
    _run._r.seed(seed)  # Trio's scheduler takes tasks in any order; the same one for a seed
    presses = {"one press": 1, "two presses": 2}.get(kind, 0)
    trial = PressTrial(host, seed, presses)
    wrong, start = "", time.monotonic()
    try:
        with _heard() as heard:
            if presses:
                trial.run()
            else:
                _run_storm(host, seed, CANCELLATIONS if kind == "cancellations" else DEADLINES)
        if heard.heard and presses < 2:  # plain asyncio is not silent after a second one, either
            raise Wrong("it was not silent: " + "\n".join(heard.heard[:3]))
    except Exception:  # noqa: BLE001 -- whatever it is, this trial failed, and the next one follows
        wrong = traceback.format_exc()
    taken = round(time.monotonic() - start, 3)
    return {
        "seed": seed,
        "presses": trial.made,
        "stalled": trial.stalled,
        "is_last": bool(wrong) or trial.is_thread_spoilt,
        "wrong": wrong,
        "seconds": taken,
    }


def _tell_where(number: int, frame: FrameType | None) -> None:
    """Say what everybody waits for; the parent asks when nothing comes any more."""
    traceback.print_stack(frame)
    for task in gc.get_objects():
        if isinstance(task, asyncio.Task) and not task.done():
            task.print_stack()
    runner = getattr(_run.GLOBAL_RUN_CONTEXT, "runner", None)
    for each in getattr(runner, "tasks", ()):
        lines = [f"{at.f_code.co_filename}:{line}" for at, line in each.iter_await_frames()]
        sys.stderr.write(f"Trio's {each.name} waits in {lines}\n")
    sys.stderr.flush()


def main() -> None:
    host, kind, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    assert host != PLAIN or kind.endswith(("press", "presses"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may ignore it
    signal.signal(signal.SIGUSR1, _tell_where)
    logging.getLogger("trio_sessions").setLevel(logging.ERROR)
    random.seed(first)  # what passes take for their jitter
    gc.collect()
    gc.freeze()
    for seed in range(first, first + count):
        result = _try(host, kind, seed)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        if result["is_last"]:
            break  # the next one needs a thread in which nothing is left of this one


if __name__ == "__main__":
    main()
