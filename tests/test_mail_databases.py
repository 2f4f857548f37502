"""Mail between workers on databases: what it costs, which plans it has, what it waits for."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from backdoors import DatabaseBackdoor
from conftest import Shared
from proxy import Proxy
from statements import noting_engine

from trio_sessions.abc._mail import MAIL
from trio_sessions.errors import StoreUnavailable
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.database._schema import tables
from trio_sessions.stores.database.portable._mail import Mail
from trio_sessions.stores.database.postgresql._listen import _sessions
from trio_sessions.stores.database.postgresql._posts import MAIL_TOLD
from trio_sessions.stores.database.sqlite import _GRAMMAR
from trio_sessions.testing._conformance._fleet import LONG, begin, claim, commit, sweep
from trio_sessions.testing._conformance._tools import Client, opened
from trio_sessions.writes import Post, Send

MANY = 20_000


def back(shared: Shared) -> DatabaseBackdoor:
    assert isinstance(shared.backdoor, DatabaseBackdoor)
    return shared.backdoor


def url_of(shared: Shared) -> sa.URL:
    return back(shared).engine.url


def post(payload: object, *, to: str | None = None, topic: str | None = None) -> Post:
    return Post(session_id="\0", payload=json.dumps(payload), to=to, topic=topic)


async def collect(client: Client, limit: int = 100_000) -> list[Any]:
    assert isinstance(client.store, DatabaseStore)
    return [
        json.loads(one)
        for one in await client.store.collect(client.worker, limit=limit, size=10**9)
    ]


async def listen(client: Client, *topics: str) -> None:
    assert isinstance(client.store, DatabaseStore)
    await client.store.listen(client.worker, topics)


def count(shared: Shared, table: str) -> int:
    [[number]] = back(shared).execute(sa.text(f"SELECT count(*) FROM trio_{table}"))
    return int(number)


# ---- what goes over the wire ----


async def test_letters_share_a_round_trip_with_the_batch_and_are_collected_in_one(
    proxy: Proxy,
) -> None:
    """However many there are, and for however many workers; each is one statement."""
    store = DatabaseStore(proxy.url)
    async with opened(lambda: store, "a", "b") as (a, b):
        known = await begin(a, cleanup_interval=LONG)
        await begin(b, cleanup_interval=LONG)
        for client in (a, b):
            await listen(client, "news")
        for many in (1, 1, 1, 500):
            letters = [post(number, to="b") for number in range(many)]
            proxy.reset()
            done = await commit(a, known, claim("s"), *letters, post("all", topic="news"))
            assert done.answers[1:] == [1] * many + [2]
            [posted] = proxy.round_trips
            assert "INSERT INTO trio_mail" in posted
            assert "beat = w.beat + 1" in posted
            proxy.reset()
            assert await collect(b) == [*range(many), "all"]
            [collected] = proxy.round_trips
            assert "DELETE FROM trio_mail" in collected
            assert await collect(a) == ["all"]
        for operation in (
            lambda: listen(a, "x", "y"),
            lambda: store.unlisten(a.worker, ["x", "y"]),
            lambda: store.expire_mail(a.worker, older_than=60.0, limit=100),
        ):
            await operation()
            proxy.reset()
            await operation()
            assert len(proxy.round_trips) == 1


async def test_each_recipient_is_notified_once_for_a_batch(postgresql: Shared) -> None:
    """And nobody is by who does not listen."""
    for listens in (True, False):
        with back(postgresql).engine.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            store = DatabaseStore(url_of(postgresql), listen=listens)
            async with opened(lambda store=store: store, "a", "b") as (a, b):  # type: ignore[misc]
                for client in (a, b):
                    await begin(client, cleanup_interval=LONG)
                    await listen(client, "news")
                    connection.exec_driver_sql(f'LISTEN "trio_{client.worker.incarnation}"')
                connection.commit()
                await a.claim("s")
                await b.commit(
                    *(post(number, to="a") for number in range(100)),
                    *(post(number, topic="news") for number in range(100)),
                    Send(session_id="s", payload="1"),
                )
                told = [(one.channel, one.payload) for one in driver.notifies(timeout=0.3)]
                one, other = (f"trio_{client.worker.incarnation}" for client in (a, b))
                expected = {(one, MAIL_TOLD), (one, "s"), (other, MAIL_TOLD)}
                assert Counter(told) == Counter(expected if listens else ())


def test_a_notification_of_mail_is_no_session_of_a_worker_of_an_earlier_version() -> None:
    """It takes it for two sessions, none of which there is."""
    assert _sessions(MAIL_TOLD) == {MAIL, MAIL_TOLD}
    assert MAIL_TOLD == '[""]'


async def test_without_listen_a_poll_tells_of_mail(postgresql: Shared) -> None:
    """As often as there are letters, also where they look like those of the poll before."""
    async with opened(lambda: DatabaseStore(url_of(postgresql), listen=False), "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        with trio.fail_after(30):
            async with b.store.open_bell(b.worker) as bell:
                for number in range(3):
                    await a.write(post(number, to="b"))
                    assert await bell.wait() == frozenset({MAIL})
                    assert await bell.wait() == frozenset({MAIL})
                    assert await collect(b) == [number]


# ---- plans ----


@pytest.fixture
def noted(postgresql: Shared) -> Iterator[tuple[sa.Engine, dict[str, Any]]]:
    with noting_engine(url_of(postgresql)) as (engine, seen):
        yield engine, seen


@pytest.mark.parametrize("believed", ["nothing", "all are mine", "none is mine", "few"])
async def test_letters_are_found_by_their_index(
    postgresql: Shared, noted: tuple[sa.Engine, dict[str, Any]], believed: str
) -> None:
    """Whatever the planner believes: of one's own by the worker, of all others by their age."""
    engine, seen = noted
    fill = sa.text(
        "INSERT INTO trio_mail (incarnation, payload) "
        f"SELECT :whose, '1' FROM generate_series(1, {MANY})"
    )
    store = DatabaseStore(engine)
    async with opened(lambda: store, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        seen.clear()
        await listen(b, "news")
        await store.unlisten(b.worker, ["other"])
        await a.write(post(1, to="b"))
        await a.write(post(1, topic="news"))
        await collect(b, 10)
        await store.expire_mail(a.worker, older_than=LONG, limit=10)
        mail = store._operations.mail
        await store.run(b.worker, lambda connection: mail.backlog(connection, b.worker))  # type: ignore[attr-defined]
        whose = {"all are mine": b.worker.incarnation, "none is mine": "another"}.get(believed)
        if believed == "few":
            await a.write(post(1, to="b"))
        elif whose:
            back(postgresql).execute(fill.bindparams(whose=whose))
        back(postgresql).execute(sa.text("ANALYZE"))
        back(postgresql).execute(fill.bindparams(whose="yet another"))
        expected = {
            "taken AS ( DELETE FROM trio_mail": ("ix_trio_mail_incarnation_id"),
            "UNION ALL SELECT ''": "ix_trio_mail_incarnation_id",
            "AS expired": "ix_trio_mail_created_at",
            "INSERT INTO trio_mail": "trio_topics_pkey",
            "WITH gone": "trio_topics",
        }
        found = set()
        with engine.connect() as connection:
            connection.exec_driver_sql("SET enable_seqscan = off")
            for text, parameters in list(seen.items()):
                flat = " ".join(str(text).replace("expired AS (", "AS expired").split())
                for what, index in expected.items():
                    if what not in flat:
                        continue
                    rows = connection.exec_driver_sql(f"EXPLAIN {text}", parameters)
                    plan = "\n".join(row[0] for row in rows)
                    assert index in plan, plan
                    # Workers are few; for strays all topics are read, now and then.
                    read = {"trio_workers", *(["trio_topics"] if what == "AS expired" else [])}
                    assert set(re.findall(r"Seq Scan on (trio_\w+)", plan)) <= read, plan
                    found.add(what)
                    if index == "ix_trio_mail_incarnation_id":
                        scans = [row for row in plan.splitlines() if "using trio_mail_pkey" in row]
                        assert len(scans) <= 1, plan  # of what is deleted
        assert found == set(expected)


def test_letters_are_found_by_an_index_in_a_file() -> None:
    """Only the workers are read as a whole, and now and then the topics."""
    ours, engine = tables("trio_"), sa.create_engine("sqlite://")
    ours.metadata.create_all(engine)
    mail, read = Mail(ours, _GRAMMAR), set[str]()
    statements = [one for one in vars(mail).values() if isinstance(one, sa.Executable)]
    assert len(statements) >= 9
    with engine.connect() as connection:
        for statement in statements:
            compiled = statement.compile(dialect=engine.dialect)  # type: ignore[attr-defined]
            values = tuple(compiled.params[name] for name in compiled.positiontup)
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)
            read |= {row[3] for row in rows if row[3].startswith("SCAN trio_")}
    engine.dispose()
    assert read == {"SCAN trio_workers", "SCAN trio_topics"}


# ---- locks ----


async def test_whoever_leaves_a_letter_waits_for_no_row(postgresql: Shared) -> None:
    """Neither of a worker, which is stamped all the time, nor of a letter or topic."""
    store = DatabaseStore(url_of(postgresql), lock_timeout=0.5)
    async with opened(lambda: store, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        await listen(b, "news")
        await a.write(post(1, to="b"))
        with back(postgresql).engine.connect() as another:
            for table in ("workers", "mail", "topics"):
                another.exec_driver_sql(f"SELECT FROM trio_{table} FOR UPDATE")
            with trio.fail_after(20):
                assert await a.commit(post(2, to="b"), post(3, topic="news")) == [1, 1]
                assert await collect(b) == [2, 3], "what is locked is passed over"
                assert await store.expire_mail(a.worker, older_than=0.0, limit=100) == 0
            another.rollback()
        assert await collect(b) == [1]


async def test_who_closes_or_sweeps_waits_for_no_letter(postgresql: Shared) -> None:
    """What somebody else holds is left to its age."""
    store = DatabaseStore(url_of(postgresql), lock_timeout=0.5)
    async with opened(lambda: store, "a", "b") as (a, b):
        await begin(b, cleanup_interval=LONG)
        await listen(b, "news")
        await a.commit(post(1, to="b"), post(2, topic="news"))
        with back(postgresql).engine.connect() as another:
            for table in ("mail", "topics"):
                another.exec_driver_sql(f"SELECT FROM trio_{table} FOR UPDATE")
            with trio.fail_after(20):
                assert not (await store.delete_all(b.worker, limit=100)).more
            another.rollback()
        assert (count(postgresql, "mail"), count(postgresql, "topics")) == (2, 1)
        assert await store.expire_mail(a.worker, older_than=0.0, limit=100) == 2
        assert (count(postgresql, "mail"), count(postgresql, "topics")) == (0, 0)


async def test_a_locked_table_of_mail_is_no_rows_error(postgresql: Shared) -> None:
    """It splits no batch, and what has no letter in it is written all the same."""
    store = DatabaseStore(url_of(postgresql), lock_timeout=0.5)
    async with opened(lambda: store, "a") as (a,):
        with back(postgresql).engine.connect() as another:
            another.exec_driver_sql("LOCK TABLE trio_mail IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable):
                await a.write(post(1, to="b"))
            await a.claim("s")
            another.rollback()
        assert await a.write(post(1, to="b")) == 0


@pytest.mark.timeout(120)
async def test_many_that_write_to_each_other_lose_no_letter_and_meet_no_deadlock(
    database: Shared,
) -> None:
    """Each letter arrives once, those of one sender in their order, whoever else is at work."""
    names = ("a", "b", "c", "d")
    letters = 60

    def make_store() -> DatabaseStore:  # of whoever waits for one file on a busy machine, too
        return DatabaseStore(url_of(database), lock_timeout=15.0, operation_timeout=30.0)

    async with opened(make_store, *names) as clients:
        for client in clients:
            await begin(client, cleanup_interval=LONG)
            await listen(client, "news")
        got: dict[str, list[Any]] = {name: [] for name in names}

        async def write(client: Client) -> None:
            me = client.worker.worker_id
            for number in range(0, letters, 3):
                others = [name for name in names if name != me]
                answers = await client.commit(
                    *(post([me, number], to=name) for name in others),
                    post([me, number + 1], topic="news"),
                    *(post([me, number + 2], to=name) for name in others),
                )
                assert answers == [1, 1, 1, 4, 1, 1, 1]

        async def read(client: Client, wanted: int) -> None:
            mine = got[client.worker.worker_id]
            while len(mine) < wanted:
                mine += await collect(client, 7)

        async def disturb(client: Client) -> None:
            assert isinstance(client.store, DatabaseStore)
            while True:
                await client.store.expire_mail(client.worker, older_than=600.0, limit=100)
                await sweep(client, session_ttl=LONG)
                await listen(client, "news", "other")
                await client.store.unlisten(client.worker, ["other"])

        with trio.fail_after(100):
            async with trio.open_nursery() as noise:
                noise.start_soon(disturb, clients[0])
                async with trio.open_nursery() as work:
                    for client in clients:
                        work.start_soon(write, client)
                        work.start_soon(read, client, letters * 3 + letters // 3)
                noise.cancel_scope.cancel()
        for name in names:
            for sender in names:
                numbers = [number for one, number in got[name] if one == sender]
                expected = range(1, letters, 3) if sender == name else range(letters)
                assert numbers == list(expected), (name, sender)
            assert Counter(map(tuple, got[name])).most_common(1)[0][1] == 1
