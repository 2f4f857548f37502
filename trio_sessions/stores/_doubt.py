"""What a store says while it is in doubt; see `trio_sessions.abc.WorkerStore`."""

from trio_sessions.abc import Worker
from trio_sessions.errors import RowDoubtful
from trio_sessions.types import Stamp

__all__ = ["IN_DOUBT", "Acknowledged", "doubtful"]

IN_DOUBT = (
    "the database was restored, replaced or failed over, and may have forgotten sessions that "
    "their workers are still to write anew: whether there is such a session is unknown until then"
)


def doubtful() -> RowDoubtful:
    """Return the answer to a write for a session that is not there."""
    return RowDoubtful(IN_DOUBT)


class Acknowledged:
    """The highest stamp that each worker was told of, if it must have a row.

    A question names it: a database in which its asker's row is not there, or is of another history
    or lower, is another one, or has gone back, and may have forgotten rows of others as well.
    """

    def __init__(self) -> None:
        self._stamps: dict[str, Stamp] = {}

    def begin(self, worker: Worker, history: str) -> None:
        """Note that a history was begun."""
        self._stamps[worker.incarnation] = Stamp(history=history, beat=1)

    def note(self, worker: Worker, stamp: Stamp | None) -> None:
        """Note that a stamp was set; None: none was."""
        known = self.of(worker)
        if stamp is None or known is None or stamp.history != known.history:
            return
        if stamp.beat > known.beat:
            self._stamps[worker.incarnation] = stamp

    def forget(self, worker: Worker) -> None:
        """Note that the worker leaves, and that its row goes."""
        self._stamps.pop(worker.incarnation, None)

    def of(self, worker: Worker) -> Stamp | None:
        """Return the highest stamp; None: the worker need not have a row."""
        return self._stamps.get(worker.incarnation)
