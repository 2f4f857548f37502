"""Anything at the door: what is refused is refused by its own call, and nothing says a secret.

Three promises, for arguments of every kind, while the store works, fails and refuses rows:

- only documented exceptions come out;
- nothing is stored by a call that was refused;
- no session id, owner, message or password is in any line of a log, nor in the text of an error.
"""

import contextlib
import inspect
import logging
import math
import operator
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trio
from conftest import Shared, share_database, share_memory
from deeds import (
    BAD,
    BAD_AGES,
    BAD_DATA,
    BAD_ENTRIES,
    BAD_HANDLERS,
    BAD_LEAVES,
    BAD_NUMBERS,
    BAD_REASONS,
    BAD_SECONDS,
    GOOD,
    MOST_BYTES,
    SECRET,
    WRONG_TYPES,
    Deed,
    bad_texts,
    deeds,
    of_an_id,
    texts,
)
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak import TIMES

from trio_sessions import (
    CallFailed,
    InvalidSessionId,
    Logs,
    MessageTooLarge,
    RegistryDraining,
    SessionNotFound,
    SessionRegistry,
    SessionRevoked,
    SessionsError,
    StoreUnavailable,
    Topics,
    WorkerGone,
    Workers,
    aio,
    open_registry,
)
from trio_sessions.errors import MissingDependency
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.testing import FakeTransport, Fault, FaultyStore

# Measuring would double the time of long searches; others reach the same code.
pytestmark = pytest.mark.no_cover

MOST_DEEDS = 15


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


REFUSED = (InvalidSessionId, MessageTooLarge, TypeError, ValueError)
MAY_SAY = (SessionNotFound, StoreUnavailable)
NOT_LET_IN = (SessionRevoked, RegistryDraining)
NO_ANSWER = (CallFailed, WorkerGone, TimeoutError)
OWN: dict[str, tuple[type[Exception], ...]] = {
    "add_session": NOT_LET_IN,
    "add_with": NOT_LET_IN,
    "adopt_session": NOT_LET_IN,
    "workers.call": NO_ANSWER,
    "workers.stream": NO_ANSWER,
}
"""What else a call may say of what is documented, if its arguments are all that they must be."""


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
        elif error is not None:
            assert isinstance(error, (SessionNotFound, *OWN.get(name, ()))), (name, error)

    async def call(self, name: str, arguments: tuple[Any, ...]) -> Exception | None:
        """Return what a call raises of what is documented."""
        documented: tuple[type[Exception], ...] = (*MAY_SAY, *OWN.get(name, ()), *REFUSED)
        try:
            answer = self.find(name)(*arguments)
            if inspect.isawaitable(answer):
                await answer
        except documented as exc:
            return exc
        return None

    def look(self) -> Any:
        """Return what a call that is refused must not change."""
        backdoor = self.shared.backdoor
        stored = backdoor.rows(), backdoor.owners(), backdoor.messages()
        return stored, self.store.calls.total(), self.registry.statistics().sessions

    def find(self, name: str) -> Callable[..., Any]:
        """Return what a deed calls."""
        found: Callable[..., Any] | None = getattr(self, f"do_{name.replace('.', '_')}", None)
        return found or operator.attrgetter(name)(self.registry)

    # ---- deeds that are no method ----

    async def do_send(self, session_id: str, message: Any) -> None:
        """Send a message by the way of the store."""
        await self.registry.broadcast(session_id, message, durable=True)

    async def do_add_with(self, session_id: Any, transport: Any, owner: Any, data: Any) -> None:
        await self.registry.add_session(session_id, transport, owner=owner, data=data)

    async def do_adopt_session(
        self, session_id: Any, transport: Any, holder: Any, idle: Any
    ) -> None:
        await self.registry.adopt_session(session_id, transport, from_worker=holder, idle=idle)

    async def do_set_session_data(self, session_id: Any, data: Any, merge: Any) -> None:
        await self.registry.set_session_data(session_id, data, merge=merge)

    async def do_list_sessions(self, selection: dict[str, Any]) -> None:
        await self.registry.list_sessions(**selection)

    async def do_select(self, selection: dict[str, Any]) -> None:
        """Revoke what is chosen."""
        await self.registry.revoke(**selection)

    async def do_revoke_both(self, session_id: str, selection: dict[str, Any]) -> None:
        await self.registry.revoke(session_id, **selection)

    async def do_read_log(self, session_id: str, after: Any, limit: Any) -> None:
        await self.registry.logs.read(session_id, after=after, limit=limit)

    async def do_logs_append_soon(self, session_id: Any, event: Any) -> None:
        """Append an event, and raise what it has come to."""
        appending = self.registry.logs.append_soon(session_id, event)
        await appending.wait()
        if isinstance(appending.result, BaseException):
            raise appending.result

    async def do_respond(self, session_id: Any) -> None:
        """Handle what comes at once."""
        with trio.move_on_after(0.01):
            await self.do_respond_by(session_id, handle)

    async def do_respond_by(self, session_id: Any, handler: Any) -> None:
        await self.registry.respond(session_id, handler)

    async def do_topics_subscribe(self, topic: Any) -> None:
        async with self.registry.topics.subscribe(topic):
            pass

    async def do_workers_call(self, worker_id: Any, name: Any, payload: Any, timeout: Any) -> None:
        await self.registry.workers.call(worker_id, name, payload, timeout=timeout)

    async def do_workers_stream(
        self, worker_id: Any, name: Any, payload: Any, timeout: Any
    ) -> None:
        async with self.registry.workers.stream(worker_id, name, payload, timeout=timeout) as items:
            async for _ in items:
                pass

    async def do_open_inbox(self, session_id: str) -> None:
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


async def handle(message: Any, transport: Any) -> None:
    await trio.lowlevel.checkpoint()


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
        ("open_inbox", (SECRET,), True),
        ("cleanup", (), True),
    ]


def say_more() -> list[Deed]:
    """Return the other calls, while all is well, in both faults, and while rows are refused."""
    return [
        one
        for trouble in (
            ("fault", (Fault.NONE,), True),
            ("fault", (Fault.FAILS,), True),
            ("fault", (Fault.COMMITS_THEN_FAILS,), True),
            ("fault", (Fault.NONE,), True),
            ("refuse", (True,), True),
            ("refuse", (False,), True),
        )
        for one in (trouble, *other_calls(), ("cleanup", (), True))
    ] + [("drain", (0.001,), True), ("add_session", (f"{SECRET}-new", FakeTransport()), True)]


def other_calls() -> list[Deed]:
    data, event = {SECRET: SECRET}, [SECRET]
    calls: list[tuple[str, tuple[Any, ...]]] = [
        ("add_with", (A, FakeTransport(), SECRET, data)),
        ("add_session", (B, FakeTransport())),
        ("adopt_session", (f"{SECRET}-d", FakeTransport(), "another", 7)),
        *(("set_session_data", (A, data, merge)) for merge in (False, True)),
        *((name, (A,)) for name in ("describe_session", "get_session_data", "touch")),
        ("list_sessions", ({"owner": SECRET, "older_than": 0, "limit": 7, "after": A},)),
        ("logs.append", (A, event)),
        ("logs.append_soon", (A, event)),
        ("read_log", (A, 0, 7)),
        ("topics.subscribe", ("prices",)),
        ("topics.publish", ("prices", event)),
        *((name, ("another", "it", event, 1)) for name in ("workers.call", "workers.stream")),
        ("workers.set_data", (data,)),
        ("workers.list", ()),
        ("broadcast", (A, SECRET)),
        ("respond", (A,)),
        ("select", ({"owner": SECRET, "reason": "none"},)),
        ("revoke", (B,)),
        ("add_session", (B, FakeTransport())),
    ]
    return [(name, arguments, True) for name, arguments in calls]


def refuse_all() -> list[Deed]:
    """Return calls with each thing that must be refused, on a session that is held."""
    long = SECRET * 255
    bad_texts: list[Any] = [f"{SECRET}\0", f"{SECRET}\ud800", long, "", *WRONG_TYPES]
    some_bad = [one for one in bad_texts if one is not None]
    choose, ask = ("select", "list_sessions"), ("workers.call", "workers.stream")
    say = ("broadcast", "send", "logs.append", "logs.append_soon")
    transport = FakeTransport()
    return [
        ("add_session", (A, transport), True),
        *((name, (one,), False) for name in of_an_id for one in bad_texts),
        *(("add_session", (one, transport), False) for one in bad_texts),
        *(("respond", (one,), False) for one in bad_texts),
        *(("respond_by", (A, one), False) for one in BAD_HANDLERS),
        *(("adopt_session", (A, transport, one, 0.0), False) for one in bad_texts if one != ""),
        *(("adopt_session", (A, transport, "another", one), False) for one in BAD_SECONDS),
        *((name, ({"worker_id": one},), False) for name in choose for one in some_bad),
        *((name, ({"owner": one},), False) for name in choose for one in some_bad),
        *((name, ({"older_than": one},), False) for name in choose for one in BAD_AGES),
        *(("select", ({"owner": SECRET, "reason": one},), False) for one in BAD_REASONS),
        *(("list_sessions", ({"after": one},), False) for one in some_bad),
        *(("list_sessions", ({"limit": one},), False) for one in BAD_NUMBERS),
        *(("read_log", (A, one, 1), False) for one in BAD_ENTRIES),
        *(("read_log", (A, 0, one), False) for one in BAD_NUMBERS),
        *(("drain", (one,), False) for one in BAD_SECONDS),
        *(("topics.publish", (one, SECRET), False) for one in bad_texts),
        *(("topics.subscribe", (one,), False) for one in bad_texts),
        *((name, (one, "it", SECRET, 1), False) for name in ask for one in bad_texts),
        *((name, ("another", one, SECRET, 1), False) for name in ask for one in bad_texts),
        *((name, ("another", "it", SECRET, one), False) for name in ask for one in BAD_SECONDS),
        *((name, ("another", "it", one(), 1), False) for name in ask for one in BAD_LEAVES),
        *(("workers.set_data", ({SECRET: one()},), False) for one in BAD_DATA),
        *(("set_session_data", (A, {SECRET: one()}, False), False) for one in BAD_DATA),
        *(("topics.publish", ("prices", one()), False) for one in BAD_LEAVES),
        *(("claim_session_owner", (A, one), False) for one in bad_texts),
        *(("set_session_owner", (A, one), False) for one in bad_texts if one is not None),
        *((name, (A, one()), False) for name in say for one in BAD_LEAVES),
        *(("store_client_capabilities", (A, {SECRET: one()}), False) for one in BAD_LEAVES),
        ("remove_session", (A,), True),
    ]


NO_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]


@settings(max_examples=25 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, max_size=MOST_DEEDS))
@example(history=say_all())
@example(history=say_more())
@example(history=refuse_all())
def test_every_call_in_memory(history: list[Deed]) -> None:
    """Each refuses what it must, says what is documented, and tells nobody's secrets."""
    with share_memory() as shared:
        knock(shared, history)


@settings(max_examples=5 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, min_size=8, max_size=MOST_DEEDS))
@example(history=say_all())
@example(history=say_more())
def test_every_call_on_sqlite(history: list[Deed]) -> None:
    """The same, with what the driver says of its own errors."""
    with tempfile.TemporaryDirectory() as folder:
        url = sa.make_url(f"sqlite:///{Path(folder, 'sessions.db')}")
        with share_database("sqlite", url) as shared:
            knock(shared, history)


@settings(max_examples=3 * TIMES, suppress_health_check=NO_CHECKS)
@given(history=st.lists(deeds, min_size=8, max_size=MOST_DEEDS))
@example(history=say_all())
@example(history=say_more())
def test_every_call_on_postgresql(module_schema: sa.URL, history: list[Deed]) -> None:
    """The same; PostgreSQL would add the whole row to what it says."""
    with share_database("postgresql", module_schema) as shared:
        try:
            knock(shared, history)
        finally:
            for table in reversed(shared.backdoor.sessions.metadata.sorted_tables):  # type: ignore[attr-defined]
                shared.backdoor.execute(sa.delete(table))  # type: ignore[attr-defined]


ROOMS = {"logs": Logs, "topics": Topics, "workers": Workers}
"""What has methods of its own, by the property that leads to it."""
METHODS = {
    prefix + name: method
    for prefix, room in {
        "": SessionRegistry,
        **{f"{p}.": room for p, room in ROOMS.items()},
    }.items()
    for name, method in inspect.getmembers(room, inspect.isfunction)
    if not name.startswith("_")
}
LEFT_OUT = {"trace"}
"""It takes code of the program's own, as `open_registry` takes handlers: nothing comes by it."""
WAYS = {
    "send": "broadcast",
    "add_with": "add_session",
    "respond_by": "respond",
    "read_log": "logs.read",
    "select": "revoke",
    "revoke_both": "revoke",
}
"""Deeds that are calls of a method in another way."""


def test_every_public_method_is_called() -> None:
    """With what it must take; and with what it must refuse, if it takes anything at all."""
    properties = inspect.getmembers(SessionRegistry, lambda one: isinstance(one, property))
    assert {name for name, _ in properties if name[0] != "_"} == {*ROOMS, "handlers"}
    methods = METHODS.keys() - LEFT_OUT
    assert {WAYS.get(name, name) for name in GOOD} - {"fault", "refuse"} == methods
    takes = {name for name in methods if len(inspect.signature(METHODS[name]).parameters) > 1}
    assert {WAYS.get(name, name) for name in BAD} == takes


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
