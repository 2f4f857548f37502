"""How long the event loop was held: every task step, and every garbage collection, timed."""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

__all__ = ["Stalls", "watch_loop"]


@dataclass(slots=True)
class Stalls:
    """The longest of each kind, in seconds."""

    wall: float = 0.0
    """A task step on the wall clock: waits for the interpreter's lock and a processor count."""
    cpu: float = 0.0
    """The processor time of a step on this thread, collections in it excluded."""
    cpu_task: str = ""
    """The task of that step."""
    collection: float = 0.0
    """A garbage collection on this thread, processor time."""


class _Watch(trio.abc.Instrument):
    def __init__(self, stalls: Stalls) -> None:
        self._stalls = stalls
        self._wall, self._cpu = time.perf_counter(), time.thread_time()
        self._collection_began: float | None = None
        self._collected = 0.0  # seconds of this step that were spent on collections

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._collected = 0.0
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        cpu = time.thread_time() - self._cpu - self._collected
        wall = time.perf_counter() - self._wall - self._collected
        self._stalls.wall = max(self._stalls.wall, wall)
        if cpu > self._stalls.cpu:
            self._stalls.cpu, self._stalls.cpu_task = cpu, task.name

    def on_collection(self, phase: str, info: dict[str, int]) -> None:
        # Collections also happen on other threads, whose clock says nothing about ours.
        if phase == "start":
            self._collection_began = time.thread_time()
        elif self._collection_began is not None:
            seconds = time.thread_time() - self._collection_began
            self._collection_began = None
            self._collected += seconds
            self._stalls.collection = max(self._stalls.collection, seconds)


@contextmanager
def watch_loop() -> Iterator[Stalls]:
    """Watch the loop that this is called on."""
    gc.collect()
    stalls = Stalls()
    watch = _Watch(stalls)
    gc.callbacks.append(watch.on_collection)
    trio.lowlevel.add_instrument(watch)
    try:
        yield stalls
    finally:
        trio.lowlevel.remove_instrument(watch)
        gc.callbacks.remove(watch.on_collection)
