"""How many sessions owners have, in SQL that any database understands."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.stores._crowds import Crowds, is_limited
from trio_sessions.stores.database._clock import ago
from trio_sessions.stores.database._questions import identity, own
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.stores.database.portable._plan import has_ended
from trio_sessions.writes import Batch, Claim

__all__ = ["Count"]


class Count:
    """The count of owners' sessions in one set of tables. Nobody else must write meanwhile."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        row, worker = tables.sessions.c, tables.workers.c
        lives = sa.exists(
            sa.select(worker.incarnation).where(
                worker.incarnation == row.incarnation,
                worker.stamped_at >= ago(worker.session_ttl),
            )
        )
        few = (
            sa.select(sa.literal_column("1"))
            .select_from(tables.sessions)
            .where(row.owner == sa.bindparam("of_owner"), sa.or_(own(tables), lives))
            .limit(sa.bindparam("most", type_=sa.Integer))
            .subquery("few")
        )
        self._count = sa.select(sa.func.count()).select_from(few)

    def __call__(
        self, connection: sa.Connection, worker: Worker, batch: Batch, rows: Mapping[str, Any]
    ) -> Crowds:
        """Count the sessions of each owner for whom a claim of the batch may be refused.

        It reads no more rows of an owner than decide that, but for those of workers that are gone.
        """
        limited = [claim for _, claim in batch.of(Claim) if is_limited(claim)]
        most = dict[str, int]()
        ended = Counter[str]()
        for claim in limited:
            assert isinstance(claim.owner, str)
            assert claim.most_of_owner is not None
            most[claim.owner] = max(most.get(claim.owner, 0), claim.most_of_owner)
            row = rows.get(claim.session_id)
            if row is not None and row.owner is not None and has_ended(worker, row, claim.ended):
                ended[row.owner] += 1
        numbers = dict[str, int]()
        for owner, number in most.items():
            parameters = {**identity(worker), "of_owner": owner, "most": number + ended[owner]}
            found = connection.execute(self._count, parameters).scalar_one()
            numbers[owner] = found - ended[owner]
        return Crowds(numbers)
