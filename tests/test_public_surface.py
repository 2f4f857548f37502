"""The public names: all there, all documented, none by accident, and as they were promised."""

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
import types
from collections.abc import Iterator

import pytest

import trio_sessions
from trio_sessions import (
    CleanupReport,
    InvalidSessionId,
    MessageTooLarge,
    RegistryClosed,
    SessionNotFound,
    SessionRegistry,
    SessionsError,
    SessionStore,
    StoreInUse,
    StoreSchemaError,
    StoreUnavailable,
    Transport,
    aio,
    open_registry,
    serve_registry,
)
from trio_sessions.stores.database import DatabaseStore, metadata
from trio_sessions.stores.memory import MemoryStore

MODULES = [
    "trio_sessions",
    "trio_sessions.abc",
    "trio_sessions.aio",
    "trio_sessions.aio.transports",
    "trio_sessions.errors",
    "trio_sessions.inspection",
    "trio_sessions.limits",
    "trio_sessions.mcp",
    "trio_sessions.otel",
    "trio_sessions.revocation",
    "trio_sessions.stores",
    "trio_sessions.stores.database",
    "trio_sessions.stores.memory",
    "trio_sessions.testing",
    "trio_sessions.transports",
    "trio_sessions.types",
    "trio_sessions.writes",
]
NOT_OFFERED = {
    "trio_sessions.cli",  # a command
    "trio_sessions.stores.database.portable",  # what databases share
    "trio_sessions.stores.database.postgresql",  # found by the name of a dialect
    "trio_sessions.stores.database.sqlite",  # the same
    "trio_sessions.testing.simulate",  # a command
}
FACADES = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]

SETTINGS = {
    "worker_id": None,
    "session_ttl": 3600.0,
    "message_ttl": 600.0,
    "cleanup_interval": 300.0,
    "max_concurrent": 20,
    "batch_size": 1000,
    "check_timeout": 5.0,
    "disconnect_timeout": 5.0,
    "max_message_bytes": 1_048_576,
}
METHODS = {
    "add_session": ["session_id", "transport", "owner", "data"],
    "adopt_session": ["session_id", "transport", "from_worker", "idle"],
    "set_session_data": ["session_id", "data", "merge"],
    "get_session_data": ["session_id"],
    "get_session": ["session_id"],
    "get_session_sync": ["session_id"],
    "remove_session": ["session_id", "transport"],
    "session_exists": ["session_id"],
    "get_all_session_ids": [],
    "locate_session": ["session_id"],
    "cleanup": [],
    "set_session_owner": ["session_id", "owner"],
    "claim_session_owner": ["session_id", "owner"],
    "get_session_owner": ["session_id"],
    "store_client_capabilities": ["session_id", "capabilities"],
    "get_client_capabilities": ["session_id"],
    "has_elicitation_capability": ["session_id"],
    "get_elicitation_capable_sessions": [],
    "broadcast": ["session_id", "message", "durable"],
    "open_inbox": ["session_id"],
    "respond": ["session_id", "handler"],
    "statistics": [],
    "touch": ["session_id"],
    "list_sessions": ["owner", "worker_id", "older_than", "after", "limit"],
    "describe_session": ["session_id"],
    "revoke": ["session_ids", "owner", "worker_id", "older_than", "reason"],
    "drain": ["timeout"],
    "health": [],
    "trace": ["tracer"],
}
SYNC_METHODS = {"get_session_sync", "statistics", "open_inbox", "touch", "health", "trace"}
PROPERTIES = {"workers", "topics", "logs", "handlers"}
OF_ASYNCIO = {
    "worker_id",  # on Trio an attribute
    "initialize",
    "shutdown",
    "generate_response",
    "register_respond_task",
}


def public_functions(cls: type) -> Iterator[tuple[str, object]]:
    """Yield what a class of ours defines under a public name and that can be called or read."""
    ours = [base for base in reversed(cls.__mro__) if base.__module__.startswith("trio_sessions")]
    defined = {name: value for base in ours for name, value in vars(base).items()}
    for name, value in defined.items():
        if not name.startswith("_") and isinstance(
            value, types.FunctionType | classmethod | staticmethod | property
        ):
            yield name, value


def test_no_public_module_is_left_out() -> None:
    """A module whose name has no underscore in front is for users, or says why not."""
    found = {
        module.name
        for module in pkgutil.walk_packages(trio_sessions.__path__, "trio_sessions.")
        if "._" not in module.name
    }
    assert {"trio_sessions", *found} == NOT_OFFERED.union(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist_in_order_and_none_is_private(name: str) -> None:
    """`__all__` is a promise: it can be kept, and promises nothing private."""
    module = importlib.import_module(name)
    in_order = sorted(set(module.__all__), key=lambda one: (not one.isupper(), one))
    assert list(module.__all__) == in_order  # constants first, as ruff has them
    for public in module.__all__:
        assert hasattr(module, public)
        assert not public.startswith("_")


@pytest.mark.parametrize("name", FACADES)
def test_a_facade_has_nothing_else(name: str) -> None:
    """What a package shows besides its `__all__` are its own modules."""
    module = importlib.import_module(name)
    leaks = [
        found
        for found, value in vars(module).items()
        if not found.startswith("_")
        and found not in module.__all__
        and found != "TYPE_CHECKING"
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"{name}.{found}")
    ]
    assert leaks == [] or name == "trio_sessions.stores"
    assert set(leaks) <= {"SessionStore"}  # imported by trio_sessions.stores for its one function


@pytest.mark.parametrize("name", MODULES)
def test_everything_public_is_documented(name: str) -> None:
    """Modules, functions, classes and their own public methods all have a docstring."""
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if isinstance(value, types.FunctionType | type):
            assert value.__doc__, f"{name}.{public} has no docstring"
        if isinstance(value, type):
            for method, function in public_functions(value):
                assert inspect.getdoc(function), f"{name}.{public}.{method} has no docstring"


@pytest.mark.parametrize(
    ("registry", "own"), [(SessionRegistry, set()), (aio.SessionRegistry, OF_ASYNCIO)]
)
def test_a_registry_has_these_public_names_and_no_others(registry: type, own: set[str]) -> None:
    """What is added is promised, and what goes is missed."""
    names = {name for name in dir(registry) if not name.startswith("_")}
    assert names == METHODS.keys() | PROPERTIES | own
    properties = {name for name, one in public_functions(registry) if isinstance(one, property)}
    assert properties == PROPERTIES | (own & {"worker_id"})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_methods_of_a_registry_are_as_promised(name: str) -> None:
    """Names, parameters, and whether it is to be awaited."""
    method = getattr(SessionRegistry, name)
    _, *parameters = inspect.signature(method).parameters
    assert parameters == METHODS[name]
    assert inspect.iscoroutinefunction(method) is (name not in SYNC_METHODS)


@pytest.mark.parametrize(
    "name",
    [name for name, f in public_functions(SessionRegistry) if inspect.iscoroutinefunction(f)],
)
def test_what_changes_something_says_what_a_cancellation_does(name: str) -> None:
    """A question may simply be asked again; for all else the caller must know."""
    asks_only = (
        name.startswith(("get_", "has_", "list_", "describe_", "locate_"))
        or name == "session_exists"
    )
    documented = getattr(SessionRegistry, name).__doc__
    assert asks_only or "Cancellation:" in documented


@pytest.mark.parametrize("function", [open_registry, serve_registry])
def test_the_settings_have_their_names_and_defaults(function: types.FunctionType) -> None:
    """The store comes first and alone by position; every setting is keyword-only."""
    parameters = inspect.signature(function).parameters
    store, *others = parameters.values()
    assert (store.name, store.default) == ("store", "memory:")
    assert store.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
    defaults = {other.name: other.default for other in others}
    assert SETTINGS.items() <= defaults.items()
    assert {name: type(default) for name, default in defaults.items() if name in SETTINGS} == {
        name: type(default) for name, default in SETTINGS.items()
    }


def test_serving_takes_the_settings_of_opening_and_a_task_status() -> None:
    """The two never drift apart."""
    opening = inspect.signature(open_registry).parameters
    serving = dict(inspect.signature(serve_registry).parameters)
    del serving["task_status"]
    assert serving == dict(opening)
    assert inspect.iscoroutinefunction(serve_registry)
    assert not inspect.iscoroutinefunction(open_registry)


def test_the_facade_has_every_method_with_the_same_parameters() -> None:
    """Same names, same meanings; only what is asyncio's own differs."""
    own = {*OF_ASYNCIO, "respond"}
    theirs = {name: f for name, f in public_functions(SessionRegistry) if callable(f)}
    ours = {name: f for name, f in public_functions(aio.SessionRegistry) if callable(f)}
    assert set(ours) - own == set(theirs) - {"respond"}
    for name in set(ours) - own:
        mine, its = inspect.signature(ours[name]), inspect.signature(theirs[name])
        assert list(mine.parameters.values()) == list(its.parameters.values()), name
        assert inspect.iscoroutinefunction(ours[name]) is inspect.iscoroutinefunction(theirs[name])
    respond = inspect.signature(aio.SessionRegistry.respond)
    assert list(respond.parameters) == ["self", "server_id", "user", "session_id"]
    answer = inspect.signature(aio.SessionRegistry.generate_response)
    assert list(answer.parameters) == ["self", "message", "transport", "server_id", "user"]
    assert not inspect.iscoroutinefunction(aio.SessionRegistry.register_respond_task)
    _, *settings = inspect.signature(aio.SessionRegistry).parameters.values()
    assert settings == list(inspect.signature(open_registry).parameters.values())[1:]


def test_a_report_has_its_fields() -> None:
    """In their order, and frozen."""
    assert [field.name for field in dataclasses.fields(CleanupReport)] == [
        "checked",
        "refreshed",
        "disconnected",
        "missing",
        "restored",
        "taken_over",
        "held",
        "revoked",
        "idle",
        "aged",
        "check_failures",
        "refresh_failures",
        "expired",
        "duration",
        "checking",
        "refreshing",
        "sweeping",
    ]
    report = CleanupReport(
        checked=0, refreshed=0, disconnected=(), missing=(), restored=(), expired=0, duration=0.0
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.checked = 1  # type: ignore[misc]


def test_the_errors_have_one_root() -> None:
    """And those that Python has a word for are that as well."""
    for error in (
        InvalidSessionId,
        MessageTooLarge,
        RegistryClosed,
        SessionNotFound,
        StoreInUse,
        StoreSchemaError,
        StoreUnavailable,
    ):
        assert issubclass(error, SessionsError)
    assert issubclass(SessionNotFound, LookupError)
    assert issubclass(InvalidSessionId, ValueError)
    assert issubclass(MessageTooLarge, ValueError)
    assert issubclass(StoreInUse, StoreUnavailable)
    assert issubclass(StoreInUse, RuntimeError)


def test_a_store_for_databases_has_its_parameters() -> None:
    """As promised; further ones are keyword-only."""
    store, *others = inspect.signature(DatabaseStore).parameters.values()
    assert store.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
    defaults = {other.name: other.default for other in others}
    assert {"table_prefix": "trio_", "create_tables": True}.items() <= defaults.items()
    assert issubclass(DatabaseStore, SessionStore)
    assert issubclass(MemoryStore, SessionStore)


def test_the_tables_have_their_columns() -> None:
    """Other programs may read these."""
    tables = metadata().tables
    assert {"session_id", "worker_id", "owner", "created_at", "last_accessed"} <= set(
        tables["trio_sessions"].columns.keys()
    )
    assert {"id", "session_id", "payload", "created_at"} <= set(
        tables["trio_messages"].columns.keys()
    )
    assert "mine_sessions" in metadata(table_prefix="mine_").tables


def test_a_transport_needs_two_methods() -> None:
    """The protocol is what it was promised to be, and can be checked at run time."""
    assert [name for name, _ in public_functions(Transport)] == ["is_connected", "disconnect"]
    assert not isinstance(object(), Transport)


def test_importing_loads_neither_a_database_nor_another_loop() -> None:
    """The core needs Trio alone; a URL loads what it needs."""
    heavy = [
        "sqlalchemy",
        "asyncio",
        "psycopg",
        "pytest",
        "hypothesis",
        "trio_websocket",
        "opentelemetry",
    ]
    program = f"import sys, trio_sessions; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"
    assert trio_sessions.__doc__
