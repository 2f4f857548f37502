"""Anything at the door: what is refused is refused by its own call, and nothing says a secret.

Three promises, for arguments of every kind, while the store works, fails and refuses rows:

- only documented exceptions come out;
- nothing is stored by a call that was refused;
- no session id, owner, message or password is in any line of a log, nor in the text of an error.
"""

import contextlib
import datetime as dt
import inspect
import logging
import math
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from conftest import Shared, share_database, share_memory
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak import TIMES
from test_json import values

from trio_sessions import (
    InvalidSessionId,
    MessageTooLarge,
    SessionNotFound,
    SessionRegistry,
    SessionsError,
    StoreUnavailable,
    aio,
    open_registry,
)
from trio_sessions.errors import MissingDependency
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

SECRET = "s3cret"
"""Is in every id, owner, message and password here, and nowhere else."""


class Lines(logging.Handler):
    """Keeps what is logged, as it would be written, with its tracebacks."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(threadName)s %(message)s"))
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(self.format(record))


@contextlib.contextmanager
def listening() -> Iterator[list[str]]:
    """Listen to all loggers, at their lowest level; fail if a secret has been said."""
    lines, root = Lines(), logging.getLogger()
    ours = logging.getLogger("trio_sessions")
    before = ours.level
    ours.setLevel(logging.DEBUG)
    root.addHandler(lines)
    try:
        yield lines.said
    finally:
        root.removeHandler(lines)
        ours.setLevel(before)
    told = [line for line in lines.said if SECRET in line]
    assert told == []


def text_of(error: BaseException) -> str:
    """Return all that an error says: as it is printed, and as it and its causes are shown."""
    said = traceback.format_exception(error)
    one: BaseException | None = error
    while one is not None:
        said.append(repr(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return "".join(said)


# ---- what may be an argument, and what may not ----

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
WRONG_TYPES: list[Any] = [None, 7, True, 1.5, SECRET.encode(), [SECRET], {SECRET: 1}, object()]


@st.composite
def bad_texts(draw: st.DrawFn, *, most: int) -> Any:
    """Draw what looks like an id or an owner, and is none."""
    return draw(
        st.sampled_from(
            [
                f"{SECRET}\0{draw(texts)}",
                f"{draw(texts)}{SECRET}\ud800",
                SECRET * most,
                (SECRET + "é" * most)[: most + 1],
                "",
                *WRONG_TYPES,
            ]
        )
    )


few = st.sampled_from([f"{SECRET}-{name}" for name in ("a", "b", "'; DROP TABLE", "%s{}\\")])
ids = few | texts.map(lambda text: f"{SECRET}{text}") | st.just((SECRET + "é" * 255)[:255])
owners = texts.map(lambda text: f"{SECRET}{text}") | st.just((SECRET + "é" * 320)[:320])
messages = st.fixed_dictionaries({SECRET: values})


def contains_itself() -> list[Any]:
    """Return what no JSON can say."""
    one: list[Any] = [SECRET]
    one.append(one)
    return one


BAD_LEAVES: list[Callable[[], Any]] = [
    lambda: math.nan,
    lambda: -math.inf,
    lambda: {SECRET},
    SECRET.encode,
    lambda: f"{SECRET}\ud800",
    lambda: {7: SECRET},
    lambda: complex(0, 1),
    lambda: dt.datetime.now(dt.UTC),
    contains_itself,
    object,
    lambda: SECRET * 1000,
    lambda: "é" * (MOST_BYTES // 2),
]
MOST_BYTES = 4000
MOST_DEEDS = 15


@st.composite
def bad_messages(draw: st.DrawFn) -> Any:
    """Draw what JSON cannot carry, or what is too large, at any depth."""
    value = draw(st.sampled_from(BAD_LEAVES))()
    for _ in range(draw(st.integers(0, 3))):
        value = draw(
            st.sampled_from([[value], [SECRET, value], {SECRET: value}, {"a": [], "b": value}])
        )
    return value


# ---- the calls ----

Deed = tuple[str, tuple[Any, ...], bool]
"""The name of a call, its arguments, and whether they are all that they must be."""


def deed(name: str, *good: st.SearchStrategy[Any]) -> st.SearchStrategy[Deed]:
    return st.tuples(st.just(name), st.tuples(*good), st.just(value=True))


def bad_deed(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Deed]:
    return st.tuples(st.just(name), st.tuples(*arguments), st.just(value=False))


bad_ids, bad_owners = bad_texts(most=255), bad_texts(most=320)
transports = st.builds(
    FakeTransport,
    st.sampled_from(["connected", "closed", "raises"]),
    error=st.builds(OSError, st.just("broken")),
)
bad_capabilities = bad_messages().map(lambda value: {SECRET: value}) | st.sampled_from(
    [one for one in WRONG_TYPES if not isinstance(one, dict)]
)
of_an_id = [
    "get_session",
    "session_exists",
    "locate_session",
    "get_session_owner",
    "get_client_capabilities",
    "has_elicitation_capability",
    "remove_session",
    "read",
]
deeds = st.one_of(
    deed("add_session", ids, transports),
    deed("set_session_owner", ids, owners | st.none()),
    deed("claim_session_owner", ids, owners),
    deed("store_client_capabilities", ids, messages),
    deed("broadcast", ids, messages),
    deed("send", ids, messages),
    deed("cleanup"),
    *(deed(name, ids) for name in of_an_id),
    *(bad_deed(name, bad_ids) for name in of_an_id),
    bad_deed("add_session", bad_ids, transports),
    bad_deed("add_session", ids, st.sampled_from([None, SECRET, 7, FakeTransport])),
    bad_deed("set_session_owner", bad_ids, owners),
    bad_deed("set_session_owner", ids, bad_owners.filter(lambda one: one is not None)),
    bad_deed("claim_session_owner", bad_ids, owners),
    bad_deed("claim_session_owner", ids, bad_owners),
    bad_deed("store_client_capabilities", bad_ids, messages),
    bad_deed("store_client_capabilities", ids, bad_capabilities),
    bad_deed("broadcast", bad_ids, messages),
    bad_deed("broadcast", ids, bad_messages()),
    bad_deed("send", ids, bad_messages()),
    deed("fault", st.sampled_from([Fault.FAILS, Fault.COMMITS_THEN_FAILS, Fault.NONE])),
    deed("refuse", st.booleans()),
)


REFUSED = (InvalidSessionId, MessageTooLarge, TypeError, ValueError)


class Door:
    """A registry, and all that is known of what may come out of it."""

    def __init__(self, registry: SessionRegistry, store: FaultyStore, shared: Shared) -> None:
        self.registry = registry
        self.store = store
        self.shared = shared
        self.refuses = False

    async def knock(self, name: str, arguments: tuple[Any, ...], *, is_good: bool) -> None:
        """Make a call; fail unless what comes out of it is as documented."""
        before = self.look()
        error = await self.call(name, arguments)
        if error is not None:
            assert SECRET not in text_of(error), name
        if not is_good:
            assert isinstance(error, REFUSED), f"{name} takes what it must refuse"
            assert not isinstance(error, SessionNotFound), name
            assert self.look() == before, f"{name} was refused, and has done something"
        elif isinstance(error, StoreUnavailable):
            assert self.refuses or self.store.fault is not Fault.NONE, (name, error)
        else:
            assert isinstance(error, SessionNotFound | None), (name, error)

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Exception | None:
        """Return what a call raises of what is documented."""
        try:
            await self.find(name)(*arguments)
        except (SessionNotFound, StoreUnavailable, *REFUSED) as exc:
            return exc
        return None

    def look(self) -> Any:
        """Return what a call that is refused must not change."""
        backdoor = self.shared.backdoor
        stored = backdoor.rows(), backdoor.owners(), backdoor.messages()
        return stored, self.store.calls.total(), self.registry.statistics().sessions

    def find(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return what a deed calls."""
        found: Callable[..., Awaitable[Any]] = getattr(self, f"do_{name}", None) or getattr(
            self.registry, name
        )
        return found

    # ---- deeds that are no method ----

    async def do_send(self, session_id: str, message: Any) -> None:
        """Send a message by the way of the store."""
        await self.registry.broadcast(session_id, message, durable=True)

    async def do_read(self, session_id: str) -> None:
        """Read what is in memory."""
        async with self.registry.open_inbox(session_id) as inbox:
            inbox.next_nowait()

    async def do_fault(self, fault: Fault) -> None:
        """Let the store fail from now on, or heal it."""
        self.store.fail(fault)

    async def do_refuse(self, refuses: bool) -> None:  # noqa: FBT001 -- drawn
        """Let the database itself refuse rows, with errors of its own; or let it take them."""
        if self.shared.name != "memory" and refuses != self.refuses:
            self.shared.backdoor.execute(  # type: ignore[attr-defined]
                sa.text(REFUSALS[self.shared.name][refuses])
            )
            self.refuses = refuses


REFUSALS = {
    "sqlite": {
        True: "CREATE TRIGGER refusal BEFORE UPDATE ON trio_sessions "
        "BEGIN SELECT RAISE(ABORT, 'this row is refused'); END",
        False: "DROP TRIGGER refusal",
    },
    "postgresql": {
        True: "ALTER TABLE trio_sessions ADD CONSTRAINT refusal "
        "CHECK (session_id = 'another') NOT VALID",
        False: "ALTER TABLE trio_sessions DROP CONSTRAINT refusal",
    },
}


def knock(shared: Shared, history: list[Deed]) -> None:
    """Make calls in their order, on a registry of their own."""

    async def main() -> None:
        store = FaultyStore(shared.make_store())
        async with shared.open(
            store=store, max_message_bytes=MOST_BYTES, store_timeout=20.0
        ) as registry:
            door = Door(registry, store, shared)
            for name, arguments, is_good in history:
                with trio.fail_after(30):
                    await door.knock(name, arguments, is_good=is_good)
            store.heal()
            await door.do_refuse(refuses=False)
            await registry.cleanup()

    with listening() as said:
        trio.run(main)
    if len(history) == len(say_all()):
        for line in ("unconfirmed", "did not say whether", "did not disconnect", "kept for the"):
            assert any(line in one for one in said), line


A, B = f"{SECRET}-a", f"{SECRET}-b"


def say_all() -> list[Deed]:
    """Return calls that bring about each kind of line that is logged, and each error."""
    return [
        ("add_session", (A, FakeTransport("raises", error=OSError("broken"))), True),
        ("add_session", (B, FakeTransport(on_disconnect="raises", error=OSError("broken"))), True),
        ("refuse", (True,), True),
        ("set_session_owner", (A, SECRET), True),
        ("send", (A, SECRET), True),
        ("cleanup", (), True),
        ("refuse", (False,), True),
        ("fault", (Fault.FAILS,), True),
        ("add_session", (A, FakeTransport()), True),
        ("add_session", (f"{SECRET}-c", FakeTransport("closed")), True),
        ("set_session_owner", (A, SECRET), True),
        ("set_session_owner", (SECRET, SECRET), True),
        ("broadcast", (SECRET, SECRET), True),
        ("remove_session", (B,), True),
        ("cleanup", (), True),
        ("fault", (Fault.NONE,), True),
        ("set_session_owner", (SECRET, SECRET), True),
        ("send", (SECRET, SECRET), True),
        ("read", (SECRET,), True),
        ("cleanup", (), True),
    ]


def refuse_all() -> list[Deed]:
    """Return calls with each thing that must be refused, on a session that is held."""
    long = SECRET * 255
    bad_texts: list[Any] = [f"{SECRET}\0", f"{SECRET}\ud800", long, "", *WRONG_TYPES]
    transport = FakeTransport()
    return [
        ("add_session", (A, transport), True),
        *((name, (one,), False) for name in of_an_id for one in bad_texts),
        *(("add_session", (one, transport), False) for one in bad_texts),
        *(("claim_session_owner", (A, one), False) for one in bad_texts),
        *(("set_session_owner", (A, one), False) for one in bad_texts if one is not None),
        *((name, (A, one()), False) for name in ("broadcast", "send") for one in BAD_LEAVES),
        *(("store_client_capabilities", (A, {SECRET: one()}), False) for one in BAD_LEAVES),
        ("remove_session", (A,), True),
    ]


NO_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=25 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, max_size=MOST_DEEDS))
@example(history=say_all())
@example(history=refuse_all())
def test_every_call_in_memory(history: list[Deed]) -> None:
    """Each refuses what it must, says what is documented, and tells nobody's secrets."""
    with share_memory() as shared:
        knock(shared, history)


@settings(max_examples=5 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, min_size=8, max_size=MOST_DEEDS))
@example(history=say_all())
def test_every_call_on_sqlite(history: list[Deed]) -> None:
    """The same, with what the driver says of its own errors."""
    with tempfile.TemporaryDirectory() as folder:
        url = sa.make_url(f"sqlite:///{Path(folder, 'sessions.db')}")
        with share_database("sqlite", url) as shared:
            knock(shared, history)


@settings(max_examples=3 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, min_size=8, max_size=MOST_DEEDS))
@example(history=say_all())
def test_every_call_on_postgresql(module_schema: sa.URL, history: list[Deed]) -> None:
    """The same; PostgreSQL would add the whole row to what it says."""
    with share_database("postgresql", module_schema) as shared:
        try:
            knock(shared, history)
        finally:
            for table in reversed(shared.backdoor.sessions.metadata.sorted_tables):  # type: ignore[attr-defined]
                shared.backdoor.execute(sa.delete(table))  # type: ignore[attr-defined]


# ---- settings ----

SETTINGS = {
    name: parameter.default
    for name, parameter in inspect.signature(open_registry).parameters.items()
    if name != "store"
}
anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    texts,
    st.sampled_from([0, -1, 1e308, 10**400, math.inf, -math.inf, math.nan, b"7", "7", [7], {}]),
    bad_texts(most=255),
)
plausible = st.floats(0.001, 1e6) | st.integers(1, 10_000)


def build_error(build: Callable[..., object], chosen: dict[str, Any]) -> Exception | None:
    """Return how settings are refused."""
    try:
        build("memory:", **chosen)
    except (TypeError, ValueError) as exc:
        return exc
    return None


@settings(max_examples=80 * TIMES)
@example(chosen={"worker_id": SECRET * 255})
@example(chosen={"worker_id": f"{SECRET}\0", "batch_size": SECRET})
@given(chosen=st.dictionaries(st.sampled_from(sorted(SETTINGS)), anything | plausible))
def test_settings_of_every_kind(chosen: dict[str, Any]) -> None:
    """They are taken, or refused by name before anything is opened; by both facades alike."""
    outcomes = set[type[Exception] | None]()
    for build in (open_registry, aio.SessionRegistry):
        error = build_error(build, chosen)
        if error is not None:
            assert any(name in str(error) for name in chosen), error
            assert SECRET not in text_of(error)
        outcomes.add(None if error is None else type(error))
    assert len(outcomes) == 1


# ---- URLs ----

words = st.text(
    st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="@"), max_size=6
)
schemes = st.sampled_from(
    ["postgresql", "postgresql+psycopg", "sqlite", "postgres", "mysql+pymysql", "x", "", "memory"]
)
SECRET_KEYS = ["password", "sslpassword", "passfile", "sslkey", "oauth_client_secret"]


@st.composite
def urls(draw: st.DrawFn) -> str:
    """Draw what looks like a URL with a password, well-formed or not."""
    password = f"{SECRET}{draw(words)}"
    place = draw(st.sampled_from(["127.0.0.1:1", "host:port", "", "[::1]:1", "127.0.0.1:1/db"]))
    name = draw(st.sampled_from(["", "/db", "/a b", "//", "/db/more", "/:memory:"]))
    query = draw(
        st.sampled_from(["", "?", f"?{draw(st.sampled_from(SECRET_KEYS))}={SECRET}", "?a=b&a=c"])
    )
    separator = draw(st.sampled_from(["://", "://", "://", ":", ":/", ""]))
    if draw(st.booleans()):  # somebody has forgotten what stands between password and host
        place = f"@{place}"
    return f"{draw(schemes)}{separator}user:{password}{place}{name}{query}"


def make(url: str) -> DatabaseStore | Exception:
    """Return the store, or how it was refused."""
    try:
        return DatabaseStore(url, connect_timeout=1)
    except (TypeError, ValueError, MissingDependency) as exc:
        return exc


def say(url: str) -> None:
    """Say all that is said of a URL: as a store, of its own errors, and where nobody answers."""
    store = make(url)
    if isinstance(store, Exception):
        assert SECRET not in text_of(store)
        with pytest.raises(type(store)):
            open_registry(url)
        return
    assert SECRET not in f"{store!r} {store}"
    if "127.0.0.1:1" not in url or not url.startswith("postgresql"):
        return

    async def main() -> None:
        async with open_registry(store):
            raise AssertionError("nobody listens there")

    with pytest.raises((SessionsError, ValueError)) as caught:
        trio.run(main)
    assert SECRET not in text_of(caught.value)


@settings(max_examples=60 * TIMES, suppress_health_check=NO_CHECKS)
@given(url=urls() | texts)
def test_urls_of_every_kind(url: str) -> None:
    """They are taken or refused at the call, and no password is said, also by the driver."""
    with listening():
        say(url)
