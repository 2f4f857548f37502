"""The loggers of the package, and of which worker a record is: ``record.worker_id``.

A registry's own tasks have it in their context. What a caller's own task logs is of the one
registry that is open in the process; of several nobody could say which, and it is None.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["get_logger", "logs_of", "speak_for", "speaker"]

_speaker: ContextVar[str | None] = ContextVar("trio_sessions: on whose behalf", default=None)
_open: list[str] = []
"""The ids of the workers whose registries are open in this process."""


class _NamesWorker(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Add the worker's id to the record, and let it through."""
        record.worker_id = speaker()
        return True


_NAMES_WORKER = _NamesWorker()


def get_logger(name: str) -> logging.Logger:
    """Return a logger of the package, whose records name their worker."""
    logger = logging.getLogger(name)
    logger.addFilter(_NAMES_WORKER)
    return logger


def speaker() -> str | None:
    """Return the id of the worker on whose behalf the running code speaks; None: nobody knows."""
    speaking = _speaker.get()
    if speaking is None and len(set(_open)) == 1:
        return _open[0]
    return speaking


def speak_for(worker_id: str | None) -> None:
    """Speak for a worker from now on, in this task and in those that it starts."""
    _speaker.set(worker_id)


@contextmanager
def logs_of(worker_id: str) -> Iterator[None]:
    """Note for the block that a registry of this worker is open; speak for it in this task."""
    speak_for(worker_id)
    _open.append(worker_id)
    try:
        yield
    finally:
        _open.remove(worker_id)
