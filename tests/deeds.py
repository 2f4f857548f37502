"""Calls at the door, for test_fuzz.py: each method with what it must take, and must refuse."""

import datetime as dt
import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from test_json import values

from trio_sessions.testing import FakeTransport, Fault

__all__ = [
    "BAD",
    "BAD_AGES",
    "BAD_DATA",
    "BAD_ENTRIES",
    "BAD_HANDLERS",
    "BAD_LEAVES",
    "BAD_NUMBERS",
    "BAD_REASONS",
    "BAD_SECONDS",
    "GOOD",
    "MOST_BYTES",
    "SECRET",
    "WRONG_TYPES",
    "Deed",
    "bad_texts",
    "deeds",
    "of_an_id",
    "texts",
]

SECRET = "s3cret"
"""Is in every id, owner, message and password here, and nowhere else."""

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
]
MOST_BYTES = 4000
LARGE: list[Callable[[], Any]] = [lambda: SECRET * 1000, lambda: "é" * (MOST_BYTES // 2)]
BAD_LEAVES += LARGE


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


GOOD, BAD = set[str](), set[str]()
"""The names of the deeds that there are with good arguments, and with bad ones."""


def deed(name: str, *good: st.SearchStrategy[Any]) -> st.SearchStrategy[Deed]:
    GOOD.add(name)
    return st.tuples(st.just(name), st.tuples(*good), st.just(value=True))


def bad_deed(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Deed]:
    BAD.add(name)
    return st.tuples(st.just(name), st.tuples(*arguments), st.just(value=False))


bad_ids, bad_owners = bad_texts(most=255), bad_texts(most=320)
transports = st.builds(
    FakeTransport,
    st.sampled_from(["connected", "closed", "raises"]),
    error=st.builds(OSError, st.just("broken")),
)
bad_transports = st.sampled_from([None, SECRET, 7, FakeTransport])
bad_capabilities = bad_messages().map(lambda value: {SECRET: value}) | st.sampled_from(
    [one for one in WRONG_TYPES if not isinstance(one, dict)]
)
BAD_DATA: list[Callable[[], Any]] = [
    *(leaf for leaf in BAD_LEAVES if leaf not in LARGE),
    lambda: SECRET * 11_000,
]
bad_data = st.sampled_from(BAD_DATA).map(lambda leaf: {SECRET: leaf()}) | st.sampled_from(
    [one for one in WRONG_TYPES if not isinstance(one, dict)]
)
names = st.sampled_from(["another", "it's", "%s{}\\", "é" * 127])
"""Of workers, handlers and topics, which are no secrets."""
BAD_SECONDS: list[Any] = [-1.0, math.nan, math.inf, 10**400, None, True, "7", SECRET, [SECRET]]
bad_seconds = st.sampled_from(BAD_SECONDS)
ages = st.sampled_from([0, 0.0, 3600, 1e12, 1e300, 10**400])
BAD_AGES: list[Any] = [-1.0, math.nan, math.inf, True, "7", SECRET, [SECRET]]
BAD_REASONS: list[Any] = [f"{SECRET}\0", f"{SECRET}\ud800", SECRET * 200, *WRONG_TYPES]
BAD_ENTRIES: list[Any] = [-1, 2**63, 10**400, 1.0, None, True, "7", SECRET]
BAD_NUMBERS: list[Any] = [0, -1, 10_001, 10**400, 1.0, None, True, "7", SECRET]
BAD_HANDLERS = [one for one in WRONG_TYPES if not callable(one)]
of_an_id = [
    "get_session",
    "get_session_sync",
    "session_exists",
    "locate_session",
    "describe_session",
    "get_session_owner",
    "get_session_data",
    "get_client_capabilities",
    "has_elicitation_capability",
    "touch",
    "remove_session",
    "open_inbox",
    "revoke",
    "logs.read",
]
of_nothing = [
    "cleanup",
    "get_all_session_ids",
    "get_elicitation_capable_sessions",
    "health",
    "statistics",
    "workers.list",
]


def selections(
    *,
    owner: st.SearchStrategy[Any] | None = None,
    worker_id: st.SearchStrategy[Any] | None = None,
    older_than: st.SearchStrategy[Any] | None = None,
    **more: st.SearchStrategy[Any],
) -> st.SearchStrategy[dict[str, Any]]:
    """Draw keywords that choose sessions: at least one, and what stands in ``more``."""
    given = {"owner": owner, "worker_id": worker_id, "older_than": older_than}
    bad = {name: strategy for name, strategy in given.items() if strategy is not None}
    good = {"owner": owners, "worker_id": names, "older_than": ages}
    return st.sampled_from(sorted(bad or good)).flatmap(
        lambda one: st.fixed_dictionaries(
            {**more, one: (bad or good)[one]},
            optional={
                name: strategy for name, strategy in good.items() if name not in bad and name != one
            },
        )
    )


BAD_SELECTIONS = {
    "owner": bad_owners.filter(lambda one: one is not None),
    "worker_id": bad_ids.filter(lambda one: one is not None),
    "older_than": st.sampled_from(BAD_AGES),
}
deeds = st.one_of(
    deed("add_session", ids, transports),
    deed("add_with", ids, transports, owners | st.none(), messages | st.none()),
    deed("adopt_session", ids, transports, names, st.sampled_from([0, 0.0, 7, 1e300])),
    deed("set_session_owner", ids, owners | st.none()),
    deed("claim_session_owner", ids, owners),
    deed("set_session_data", ids, messages, st.booleans()),
    deed("store_client_capabilities", ids, messages),
    deed("broadcast", ids, messages),
    deed("send", ids, messages),
    deed("respond", ids),
    deed("logs.append", ids, messages),
    deed("logs.append_soon", ids, messages),
    deed("read_log", ids, st.sampled_from([0, 7, 2**63 - 1]), st.sampled_from([1, 10_000])),
    deed("topics.publish", names, messages),
    deed("topics.subscribe", names),
    deed("workers.set_data", messages),
    *(
        deed(name, names, names, messages, st.sampled_from([0.001, 1]))
        for name in ("workers.call", "workers.stream")
    ),
    deed("select", selections()),
    deed("list_sessions", st.just({}) | selections()),
    deed("list_sessions", selections(after=ids, limit=st.sampled_from([1, 10_000]))),
    deed("drain", st.sampled_from([0, 0.0, 0.001])),
    *(deed(name) for name in of_nothing),
    *(deed(name, ids) for name in of_an_id),
    *(bad_deed(name, bad_ids) for name in (*of_an_id, "respond")),
    bad_deed("add_session", bad_ids, transports),
    bad_deed("add_session", ids, bad_transports),
    bad_deed("add_with", ids, transports, bad_owners.filter(lambda one: one is not None), messages),
    bad_deed("add_with", ids, transports, owners, bad_data.filter(lambda one: one is not None)),
    bad_deed("adopt_session", bad_ids, transports, names, st.just(0.0)),
    bad_deed("adopt_session", ids, bad_transports, names, st.just(0.0)),
    bad_deed("adopt_session", ids, transports, bad_ids.filter(lambda one: one != ""), st.just(0.0)),
    bad_deed("adopt_session", ids, transports, names, bad_seconds),
    bad_deed("set_session_owner", bad_ids, owners),
    bad_deed("set_session_owner", ids, bad_owners.filter(lambda one: one is not None)),
    bad_deed("claim_session_owner", bad_ids, owners),
    bad_deed("claim_session_owner", ids, bad_owners),
    bad_deed("set_session_data", bad_ids, messages, st.booleans()),
    bad_deed("set_session_data", ids, bad_data, st.booleans()),
    bad_deed("set_session_data", ids, messages, st.sampled_from([None, 1, SECRET])),
    bad_deed("store_client_capabilities", bad_ids, messages),
    bad_deed("store_client_capabilities", ids, bad_capabilities),
    bad_deed("broadcast", bad_ids, messages),
    bad_deed("broadcast", ids, bad_messages()),
    bad_deed("send", ids, bad_messages()),
    bad_deed("respond_by", ids, st.sampled_from(BAD_HANDLERS)),
    *(bad_deed(name, bad_ids, messages) for name in ("logs.append", "logs.append_soon")),
    *(bad_deed(name, ids, bad_messages()) for name in ("logs.append", "logs.append_soon")),
    bad_deed("read_log", ids, st.sampled_from(BAD_ENTRIES), st.just(1)),
    bad_deed("read_log", ids, st.just(0), st.sampled_from(BAD_NUMBERS)),
    bad_deed("topics.publish", bad_ids, messages),
    bad_deed("topics.publish", names, bad_messages()),
    bad_deed("topics.subscribe", bad_ids),
    bad_deed("workers.set_data", bad_data),
    *(
        bad_deed(name, *arguments)
        for name in ("workers.call", "workers.stream")
        for arguments in (
            (bad_ids, names, messages, st.just(1)),
            (names, bad_ids, messages, st.just(1)),
            (names, names, bad_messages(), st.just(1)),
            (names, names, messages, bad_seconds),
        )
    ),
    *(
        bad_deed(name, selections(**{one: bad}))
        for name in ("select", "list_sessions")
        for one, bad in BAD_SELECTIONS.items()
    ),
    bad_deed("select", st.just({})),
    bad_deed("select", selections(reason=st.sampled_from(BAD_REASONS))),
    bad_deed("revoke_both", ids, selections()),
    bad_deed("list_sessions", selections(after=bad_ids.filter(lambda one: one is not None))),
    bad_deed("list_sessions", selections(limit=st.sampled_from(BAD_NUMBERS))),
    bad_deed("drain", bad_seconds),
    deed("fault", st.sampled_from([Fault.FAILS, Fault.COMMITS_THEN_FAILS, Fault.NONE])),
    deed("refuse", st.booleans()),
)
