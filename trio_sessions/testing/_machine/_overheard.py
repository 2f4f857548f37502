"""What registries log in a history: not shown, but for errors that nobody has meant to happen."""

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from trio_sessions.errors import SessionsError

__all__ = ["Overheard", "overhear"]

_BREACH = "the store broke its contract"  # of `trio_sessions._asking.breach`
_UNPROMISED = "in a way that it does not promise"  # of what the store, or its bell, has raised


class Overheard(logging.Handler):
    """Keeps the last traceback that is not of a fault of the machine's own making.

    And the first breach of the store's contract, which no fault of the machine is: what it has
    answered, or raised.
    """

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._last: logging.LogRecord | None = None
        self._breach: str | None = None
        self._cause: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record, if it says something of the store."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, SessionsError):
            self._last = record
        if self._breach is not None:
            return
        if record.msg.startswith(_BREACH):
            self._breach = record.getMessage()
        elif error is not None and _UNPROMISED in record.msg:
            self._breach, self._cause = f"{_BREACH}: it raised {_described(error)}", error

    async def without_breach(self, step: Callable[[], Awaitable[None]]) -> None:
        """Carry out a step; a breach of the store's contract is what has failed, if there is one.

        Raises:
            AssertionError: a registry has logged that the store broke its contract; what the store
                has raised is the cause.
        """
        try:
            await step()
        finally:
            if self._breach is not None:
                raise AssertionError(self._breach) from self._cause

    def tell(self, error: BaseException) -> None:
        """Add what was heard last to the error that ends the history."""
        if self._last is not None:
            error.add_note(f"a registry has logged: {logging.Formatter().format(self._last)}")
            self._last = None


def _described(error: BaseException) -> str:
    """Say what was raised, and where."""
    said = "".join(traceback.format_exception_only(error)).strip()
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{said}, in {place.name} ({place.filename}:{place.lineno})"


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
