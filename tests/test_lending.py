"""Schemas that go from test to test: empty, and as they were made."""

import pytest
import sqlalchemy as sa
import trio
from lending import Schemas
from servers import query, run_sql

from trio_sessions import open_registry
from trio_sessions.testing import FakeTransport


@pytest.fixture(params=["counted", "compared"])
def own(administrator: sa.Engine, request: pytest.FixtureRequest) -> Schemas:
    """On our own server, and as on another's, which does not count what changes schemas."""
    own = Schemas(administrator)
    if request.param == "compared":
        own.are_counted = False
    return own


def test_what_a_test_has_stored_is_not_the_next_ones(own: Schemas) -> None:
    """Rows are gone, and numbers begin anew."""

    async def work() -> None:
        async with open_registry(url) as registry:
            await registry.add_session("s", FakeTransport())
            run_sql(url, store)
            assert query(url, "SELECT id FROM trio_messages") == [(1,)]
            assert query(url, "SELECT session_id FROM trio_sessions") == [("s",)]

    store = "INSERT INTO trio_messages (session_id, payload) VALUES ('s', '1')"
    lent = []
    for _ in range(2):
        with own.lend() as url:
            lent.append(url)
            tables = ("sessions", "messages", "workers", "fleet", "gone", "revoked")
            assert [query(url, f"SELECT * FROM trio_{table}") for table in tables] == [[]] * 6
            trio.run(work)
    assert lent[0] == lent[1]
    own.close()
    assert query(url, "SELECT to_regclass('trio_sessions')") == [(None,)]


def test_two_have_not_the_same(own: Schemas) -> None:
    with own.lend() as one, own.lend() as other:
        assert one != other
    own.close()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE trio_sessions ADD COLUMN more text",
        "ALTER TABLE trio_sessions ALTER COLUMN owner SET DEFAULT 'x'",
        "ALTER TABLE trio_sessions ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY nobody ON trio_sessions USING (false)",
        "CREATE RULE nothing AS ON UPDATE TO trio_sessions DO INSTEAD NOTHING",
        "CREATE INDEX more ON trio_sessions (worker_id)",
        "CREATE TABLE more (id integer)",
        "CREATE FUNCTION more() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        """
        CREATE TRIGGER more BEFORE UPDATE ON trio_sessions
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
        """,
        "GRANT SELECT ON trio_sessions TO PUBLIC",
        "GRANT SELECT (owner) ON trio_sessions TO PUBLIC",
        "DROP TABLE trio_topics",
        "DROP TABLE trio_schema",
        "UPDATE trio_schema SET version = version",
        "ANALYZE trio_sessions",
        """
        INSERT INTO trio_gone (incarnation, history)
        SELECT repeat('x', 20) || n, repeat('x', 30) FROM generate_series(1, 20000) AS n
        """,
    ],
)
def test_what_was_changed_is_lent_to_nobody(own: Schemas, change: str) -> None:
    with own.lend() as url:
        run_sql(url, change)
    assert query(url, "SELECT to_regclass('trio_sessions')") == [(None,)]
    with own.lend() as other:
        assert other != url
    own.close()
