"""A user who was recognised before the router is the same user at the worker that answers."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mcp")

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp_fleet import BACKENDS, INITIALIZE, open_fleet, run
from pydantic import Field, SecretStr
from test_mcp_owners import PING, ask, one_store

from trio_sessions.mcp._identity import UserStaysHere, give_user, user_of

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx2:ResourceWarning")

TOKEN: dict[str, Any] = {"token": "t", "client_id": "app", "scopes": ["read"]}


class Token(AccessToken):
    """Has fields of its own, one of which has another name outside."""

    tenant: str
    groups: frozenset[str] = Field(default=frozenset(), alias="memberOf")


class Member(AuthenticatedUser):
    """Knows what its token says."""

    def __init__(self, token: Token) -> None:
        super().__init__(token)
        self.tenant = token.tenant


class Hidden(AccessToken):
    """Has what JSON would not have."""

    key: SecretStr


class Guest(AuthenticatedUser):
    """Knows more than its token, and is made of more."""

    def __init__(self, token: AccessToken, name: str) -> None:
        super().__init__(token)
        self.name = name


class Titled(AuthenticatedUser):
    """Looks into its token for what is not in each."""

    def __init__(self, token: AccessToken, name: str = "") -> None:
        super().__init__(token)
        self.name = name or (token.claims or {})["name"]


class Attached(AuthenticatedUser):
    """Is made of more than its token, without which there is nothing to ask."""

    def __init__(self, token: AccessToken, source: Any = None) -> None:
        super().__init__(token)
        self.name = source.name


class Open(AccessToken):
    """May have anything."""

    extra: Any = None


class Marked(AuthenticatedUser):
    """Learns more later."""

    role = "guest"


def there(user: AuthenticatedUser) -> Any:
    """Return a user as another worker has it."""
    packed = json.loads(json.dumps(user_of({"user": user})))
    scope: dict[str, Any] = {}
    assert give_user(scope, packed) is scope["user"]
    assert scope["auth"].scopes == user.scopes
    return scope["user"]


def member() -> Member:
    return Member(Token(**TOKEN, tenant="acme", memberOf=frozenset("ab")))


def test_classes_and_fields_of_ones_own_go_along() -> None:
    """Of the user and of the token."""
    user = there(member())
    assert type(user) is Member
    assert type(user.access_token) is Token
    assert vars(user) == vars(member())


def test_the_sdks_own_go_along() -> None:
    """With their claims."""
    token = AccessToken(**TOKEN, claims={"iss": "x", "act": {"n": 1.5}}, expires_at=5)
    assert there(AuthenticatedUser(token)).access_token == token
    assert user_of({}) is None


def marked() -> AuthenticatedUser:
    user = Marked(AccessToken(**TOKEN))
    user.role = "admin"
    return user


@pytest.mark.parametrize(
    "make",
    [
        lambda: AuthenticatedUser(Hidden(**TOKEN, key=SecretStr("s"))),
        lambda: AuthenticatedUser(AccessToken(**TOKEN, claims={"groups": {"a"}})),
        lambda: Guest(AccessToken(**TOKEN), "x"),
        lambda: Titled(AccessToken(**TOKEN), "x"),
        lambda: Attached(AccessToken(**TOKEN), SimpleNamespace(name="x")),
        lambda: AuthenticatedUser(Open(**TOKEN, extra=object())),
        marked,
    ],
    ids=[
        "a field that JSON hides",
        "a claim of another type",
        "made of more",
        "made of a claim that is not there",
        "made of an object that is not there",
        "a field that JSON cannot have",
        "has learned more",
    ],
)
def test_a_user_who_would_be_another_one_there_stays(make: Any) -> None:
    """Rights may hang on what would be lost; the message says which class, and nothing of it."""
    with pytest.raises(UserStaysHere, match="token") as caught:
        user_of({"user": make()})
    assert "admin" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["os:system", "builtins:dict", "test_mcp_users:Member", "", 7, None]
)
def test_only_a_class_of_tokens_that_is_loaded_can_be_named(name: Any) -> None:
    """Nothing is imported, and nothing else is called, whatever a letter says."""
    packed: Any = user_of({"user": member()})
    with pytest.raises(ValueError, match="cannot be read"):
        give_user({}, {**packed, "kind": name})


def test_two_classes_of_one_name_are_none() -> None:
    """Nobody could say which of them was meant."""

    def make() -> type[AccessToken]:
        class Local(AccessToken):
            pass

        return Local

    kinds = [make(), make()]
    with pytest.raises(UserStaysHere, match="Local"):
        user_of({"user": AuthenticatedUser(kinds[0](**TOKEN))})


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_other_worker_has_the_same_user(backend: str) -> None:
    """And where that cannot be, the client is told so, by a worker that goes on."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet:
            began = await ask(fleet, 0, {"user": member()}, INITIALIZE)
            session_id = began.headers["mcp-session-id"]
            seen: list[Any] = []
            app = fleet.workers[0].router._sse._app

            async def look(scope: Any, receive: Any, send: Any) -> None:
                seen.append(scope["user"])
                await app(scope, receive, send)

            fleet.workers[0].router._sse._app = look
            answer = await ask(fleet, 1, {"user": member()}, PING, session_id)
            assert answer.status_code == 200
            (user,) = seen
            assert type(user) is Member
            assert user.access_token == member().access_token
            assert (await ask(fleet, 1, {"user": marked()}, PING, session_id)).status_code == 500
            assert (await ask(fleet, 1, {"user": member()}, PING, session_id)).status_code == 200

    run(backend, scenario)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_user_who_cannot_go_along_sends_nothing_ahead(backend: str) -> None:
    """A large body would wait at the other worker for a request that never comes."""

    async def scenario() -> None:
        async with open_fleet(backend, one_store()) as fleet:
            began = await ask(fleet, 0, {"user": member()}, INITIALIZE)
            session_id = began.headers["mcp-session-id"]
            large = {**PING, "params": {"_meta": {"x": "y" * 500_000}}}
            assert (await ask(fleet, 1, {"user": member()}, large, session_id)).status_code == 200
            assert (await ask(fleet, 1, {"user": marked()}, large, session_id)).status_code == 500
            assert fleet.workers[0].router._tunnel._uploads == {}

    run(backend, scenario)
