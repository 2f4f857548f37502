"""What registries log in a history: not shown, but for errors that nobody has meant to happen."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from trio_sessions.errors import SessionsError
from trio_sessions.testing._machine._model import require

__all__ = ["Overheard", "overhear"]

_BREACH = "the store broke its contract"  # of `trio_sessions._asking.breach`


class Overheard(logging.Handler):
    """Keeps the last traceback that is not of a fault of the machine's own making.

    And the first breach of the store's contract, which no fault of the machine is.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._last: logging.LogRecord | None = None
        self._breach: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, if it has a traceback that says something of the store."""
        if self._breach is None and record.msg.startswith(_BREACH):
            self._breach = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, SessionsError):
            self._last = record

    async def without_breach(self, step: Callable[[], Awaitable[None]]) -> None:
        """Carry out a step; a breach of the store's contract is what has failed, if there is one.

        Raises:
            AssertionError: a registry has logged that the store broke its contract.
        """
        try:
            await step()
        finally:
            require(self._breach is None, str(self._breach))

    def tell(self, error: BaseException) -> None:
        """Add what was heard last to the error that ends the history."""
        if self._last is not None:
            error.add_note(f"a registry has logged: {logging.Formatter().format(self._last)}")
            self._last = None


@contextmanager
def overhear() -> Iterator[Overheard]:
    """Keep the log of this package to ourselves."""
    logger, overheard = logging.getLogger("trio_sessions"), Overheard()
    before = logger.level, logger.propagate, logger.handlers
    logger.setLevel(logging.ERROR)
    logger.propagate, logger.handlers = False, [overheard]
    try:
        yield overheard
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]
