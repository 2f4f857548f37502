"""The part of a store's contract that is about a session's data, and about adoption."""

import abc

from trio_sessions.abc._stem import Part, Store, Worker

__all__ = ["DataStore"]


class DataStore(Store):
    """A JSON object for each session, in its row, and claims of sessions whose holder is dead.

    A store that keeps this part carries out `trio_sessions.writes.SetData`, and of a
    `trio_sessions.writes.Claim` also ``data`` and ``only_from``. The data goes with the row, and
    stays when the session is taken over. A claim that comes late, of an earlier generation than
    that of the row, brings no data, as it brings no owner. What is no claim finds no session where
    there is no row, or one that ``ended`` covers, as in `Store.commit`.

    **Texts are kept as they are**: what is read is what was written, character by character, for
    `SetData.only_if` compares it. A store neither parses nor normalizes it.

    **Adoption.** A claim with ``only_from`` has one winner: whoever takes the row over is its next
    holder, and every other one that names the same incarnation is `Outcome.NOT_ADOPTED`. It takes
    the row over as any claim does (`Store.commit`), and what it brings is written. A mark refuses
    it likewise (`RevocationStore`). While the store is in doubt (`WorkerStore`) it is answered with
    `RowDoubtful`, whatever the row says: that may be an older copy.
    """

    part = Part.DATA

    @abc.abstractmethod
    async def get_data(self, worker: Worker, session_id: str) -> str | None:
        """Return a session's data; None: it has none, or there is no such session.

        Raises:
            StoreUnavailable: also if there is none, and the store is in doubt (`WorkerStore`).
        """
