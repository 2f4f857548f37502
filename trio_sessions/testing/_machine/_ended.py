"""A history that nobody has ended: Trio runs on, and no other run can begin in its thread."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trio_sessions.testing._machine._driver import TrioDriver

__all__ = ["end_earlier", "to_be_ended"]


class _Open(threading.local):
    """Of one thread, as its run of Trio is."""

    driver: TrioDriver | None = None
    close: Callable[[], None]
    name: str


_open = _Open()


@contextmanager
def to_be_ended(driver: TrioDriver, close: Callable[[], None], name: str) -> Iterator[None]:
    """Note a history that has begun, until it has ended.

    Args:
        driver: its run.
        close: ends it, and leaves this block.
        name: of its class.
    """
    _open.driver, _open.close, _open.name = driver, close, name
    try:
        yield
    finally:
        _open.driver = None


def end_earlier() -> None:
    """End the history that was begun in this thread and is still open, if there is one.

    Not from within a step of its own: then Trio runs here, and whoever starts a run is told so.
    """
    if _open.driver is None or _open.driver.is_called:
        return
    name = _open.name
    _open.close()
    warnings.warn(
        f"an earlier history of {name} was not ended: call teardown() at its end",
        RuntimeWarning,
        stacklevel=6,
    )
