"""Mail between workers, in SQL that any database understands.

Each method but `Mail.news` is, or is part of, a transaction that has the rows to itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from trio_sessions.abc import Worker
from trio_sessions.abc._mail import MAIL
from trio_sessions.inspection import MISSED
from trio_sessions.stores.database._clock import ago, now
from trio_sessions.stores.database._schema import Tables
from trio_sessions.stores.database.portable._grammar import Grammar
from trio_sessions.writes import Post

__all__ = ["Mail"]


class Mail:
    """Letters and topics in one set of tables."""

    def __init__(self, tables: Tables, grammar: Grammar) -> None:
        self._transaction = grammar.transaction
        self._encode = grammar.encode_ids
        worker, letter, topic = tables.workers.c, tables.mail.c, tables.topics.c
        limit = sa.bindparam("limit", type_=sa.Integer)
        mine: sa.BindParameter[str] = sa.bindparam("own_incarnation", type_=sa.String)
        is_alive = worker.stamped_at >= ago(worker.stamp_interval * MISSED)
        to: sa.BindParameter[str] = sa.bindparam("addressee", type_=sa.String)
        content: sa.BindParameter[str] = sa.bindparam("content", type_=sa.Text)
        columns = [letter.incarnation.name, letter.payload.name, letter.created_at.name]
        addressee = (
            sa.select(worker.incarnation, content, now())
            .where(is_alive, sa.or_(worker.incarnation == to, worker.worker_id == to))
            .order_by(
                sa.case((worker.incarnation == to, 0), else_=1),
                worker.started_at.desc(),
                worker.incarnation.desc(),
            )
            .limit(1)
        )
        listeners = (
            sa.select(worker.incarnation, content, now())
            .join_from(tables.topics, tables.workers, topic.incarnation == worker.incarnation)
            .where(topic.topic == sa.bindparam("asked_topic", type_=sa.String), is_alive)
        )
        self._living = sa.select(worker.incarnation, worker.worker_id).where(is_alive)
        self._post_to = sa.insert(tables.mail).from_select(columns, addressee)
        self._publish = sa.insert(tables.mail).from_select(columns, listeners)

        length = sa.func.length(sa.cast(letter.payload, sa.LargeBinary))
        oldest = (
            sa.select(letter.id, length.label("length"))
            .where(letter.incarnation == mine)
            .order_by(letter.id)
            .limit(limit)
            .subquery("oldest")
        )
        before = sa.func.sum(oldest.c.length).over(order_by=oldest.c.id) - oldest.c.length
        few = sa.select(oldest.c.id, before.label("before")).subquery("few")
        self._collect = (
            sa.delete(tables.mail)
            .where(letter.id.in_(sa.select(few.c.id).where(few.c.before < sa.bindparam("size"))))
            .returning(letter.id, letter.payload)
        )
        self._newest = sa.select(sa.func.max(letter.id)).where(letter.incarnation == mine)

        self._listen = (
            grammar.insert(tables.topics)
            .values(topic=sa.bindparam("asked_topic"), incarnation=mine)
            .on_conflict_do_nothing()
        )
        self._unlisten = sa.delete(tables.topics).where(
            topic.incarnation == mine, grammar.among(topic.topic)
        )

        old = (
            sa.select(letter.id)
            .where(letter.created_at < ago(sa.bindparam("older_than", type_=sa.Float)))
            .order_by(letter.created_at)
            .limit(limit)
        )
        self._expire = sa.delete(tables.mail).where(letter.id.in_(old))
        known = sa.select(worker.incarnation)
        each = sa.tuple_(topic.topic, topic.incarnation)
        strays = (
            sa.select(topic.topic, topic.incarnation)
            .where(topic.incarnation.not_in(known))
            .limit(limit)
        )
        self._forget_strays = sa.delete(tables.topics).where(each.in_(strays))
        of_some = sa.select(letter.id).where(grammar.among(letter.incarnation)).limit(limit)
        self._forget_letters = sa.delete(tables.mail).where(letter.id.in_(of_some))
        self._forget_topics = sa.delete(tables.topics).where(grammar.among(topic.incarnation))

    def post(self, connection: sa.Connection, post: Post) -> int:
        """Leave a letter, in the transaction of its batch; return for how many workers."""
        if post.to is not None:
            asked = {"addressee": post.to, "content": post.payload}
            return connection.execute(self._post_to, asked).rowcount
        asked = {"asked_topic": post.topic or "", "content": post.payload}
        return connection.execute(self._publish, asked).rowcount

    def collect(
        self, connection: sa.Connection, worker: Worker, limit: int, size: int
    ) -> list[str]:
        """Take letters away, the oldest first, until they are as many or as large as this."""
        parameters = {"own_incarnation": worker.incarnation, "limit": limit, "size": size}
        with self._transaction(connection):
            taken = connection.execute(self._collect, parameters).all()
        return [row.payload for row in sorted(taken, key=lambda row: int(row.id))]

    def news(
        self, connection: sa.Connection, worker: Worker, seen: int
    ) -> tuple[int, frozenset[str]]:
        """Return the newest letter to a worker, and `MAIL` if it came after ``seen``.

        For a database where ids are committed in their order, and are never used again.
        """
        asked = {"own_incarnation": worker.incarnation}
        newest: int | None = connection.execute(self._newest, asked).scalar_one()
        if newest is None or newest <= seen:
            return seen, frozenset()
        return newest, frozenset({MAIL})

    def listen(self, connection: sa.Connection, worker: Worker, topics: Sequence[str]) -> None:
        """Add topics that a worker listens to."""
        mine = worker.incarnation
        if topics:
            values = [{"asked_topic": one, "own_incarnation": mine} for one in sorted(set(topics))]
            with self._transaction(connection):
                connection.execute(self._listen, values)

    def unlisten(self, connection: sa.Connection, worker: Worker, topics: Sequence[str]) -> None:
        """Remove topics that a worker listens to."""
        asked = {"own_incarnation": worker.incarnation, "session_ids": self._encode(topics)}
        if topics:
            with self._transaction(connection):
                connection.execute(self._unlisten, asked)

    def living(self, connection: sa.Connection) -> frozenset[str]:
        """Return the incarnations, and the ids, of workers that are not late."""
        return frozenset(name for row in connection.execute(self._living) for name in row)

    def expire(self, connection: sa.Connection, older_than: float, limit: int) -> int:
        """Delete old letters, and topics of incarnations without a row; return how many letters."""
        parameters = {"older_than": older_than, "limit": limit}
        with self._transaction(connection):
            expired = connection.execute(self._expire, parameters).rowcount
            connection.execute(self._forget_strays, parameters)
        return expired

    def forget(self, connection: sa.Connection, incarnations: Iterable[str], limit: int) -> None:
        """Delete what workers leave behind whose rows go, in the same transaction.

        Args:
            connection: in the transaction.
            incarnations: whose.
            limit: letters, at most; the others go by their age.
        """
        asked: dict[str, Any] = {"session_ids": self._encode(sorted(incarnations)), "limit": limit}
        connection.execute(self._forget_letters, asked)
        connection.execute(self._forget_topics, asked)
