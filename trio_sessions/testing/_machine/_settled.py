"""What must be the same once everything is healed."""

from collections.abc import Iterable, Mapping

from trio_sessions.testing._machine._lines import LineState
from trio_sessions.testing._machine._model import FleetModel, require
from trio_sessions.types import Holder, RegistryStatistics

__all__ = ["check_all_is_well"]


def check_all_is_well(
    model: FleetModel,
    live: Mapping[str, RegistryStatistics],
    session_ids: Iterable[str],
    *,
    dead_are_swept: bool,
) -> None:
    """Raise unless what is held, what is stored and what lives are the same.

    Args:
        model: what must be.
        live: the statistics of the workers that run, by name.
        session_ids: all that were used.
        dead_are_swept: so much time has passed that no row of the dead is left.
    """
    for name, statistics in live.items():
        left = statistics.unconfirmed, statistics.leftover_rows
        require(
            left == (0, 0),
            f"all is well again, but {name} has (unconfirmed, leftover rows) {left}",
        )
        for session_id, add in model.workers[name].holds.items():
            row = model.row(session_id)
            require(
                not add.must_go,
                f"all is well again, but session {session_id!r}, which was revoked, is held by "
                f"{name}",
            )
            require(
                isinstance(row, Holder) and row.worker_id == name,
                f"all is well again, but session {session_id!r} is held by {name}, "
                f"and its row is {row}",
            )
            require(
                add.line.state is LineState.LIVES,
                f"session {session_id!r} is held by {name}; its transport is dead",
            )
    for session_id in session_ids:
        row = model.row(session_id)
        is_live = isinstance(row, Holder) and row.worker_id in model.workers
        if isinstance(row, Holder) and (is_live or dead_are_swept):
            require(
                not live or any(True for _ in model.holders(session_id)),
                f"all is well again, but the row of session {session_id!r}, which nobody "
                f"holds, is there, of {row.worker_id}",
            )
