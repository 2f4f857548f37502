"""How an overridden `generate_response` is called."""

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from trio_sessions.aio import SessionRegistry


class Connection:
    async def is_connected(self) -> bool:
        return True

    async def disconnect(self) -> None:
        pass


async def keyword_only(
    asked: list[Any], *, message: Any, transport: Any, server_id: Any, user: Any
) -> None:
    asked.append((message, transport, server_id, user))


async def keywords_in_another_order(
    asked: list[Any], *, user: Any, server_id: Any, transport: Any, message: Any
) -> None:
    asked.append((message, transport, server_id, user))


async def of_the_same_names(
    asked: list[Any], message: Any, transport: Any, server_id: Any, user: Any
) -> None:
    asked.append((message, transport, server_id, user))


async def of_other_names(asked: list[Any], msg: Any, conn: Any, server: Any, who: Any) -> None:
    asked.append((msg, conn, server, who))


async def mixed(asked: list[Any], msg: Any, transport: Any, *, server_id: Any, user: Any) -> None:
    asked.append((msg, transport, server_id, user))


async def positional_only(asked: list[Any], a: Any, b: Any, c: Any, d: Any, /) -> None:
    asked.append((a, b, c, d))


async def first_two_and_more(asked: list[Any], message: Any, transport: Any, *more: Any) -> None:
    asked.append((message, transport, *more))


async def any_positions(asked: list[Any], *values: Any) -> None:
    asked.append(values)


async def any_keywords(asked: list[Any], **values: Any) -> None:
    asked.append(tuple(values[name] for name in ("message", "transport", "server_id", "user")))


async def anything(asked: list[Any], *values: Any, **more: Any) -> None:
    """Takes what it needs by position, as a wrapper without `functools.wraps` does."""
    message, transport, server_id, user = values
    assert more == {}
    asked.append((message, transport, server_id, user))


async def more_with_a_default(  # noqa: PLR0917 -- one more than four
    asked: list[Any], message: Any, transport: Any, server_id: Any, user: Any, retries: int = 3
) -> None:
    asked.append((message, transport, server_id, user))


OVERRIDES = [
    keyword_only,
    keywords_in_another_order,
    of_the_same_names,
    of_other_names,
    mixed,
    positional_only,
    first_two_and_more,
    any_positions,
    any_keywords,
    anything,
    more_with_a_default,
]


async def answer_once(registry: SessionRegistry, asked: Callable[[], list[Any]]) -> None:
    """Let a message be answered, and look at what was handed on."""
    transport = Connection()
    async with registry, asyncio.timeout(20):
        await registry.add_session("s", transport)
        await registry.broadcast("s", {"a": 1})
        task = asyncio.create_task(registry.respond("server", "user", "s"))
        while not asked():
            await asyncio.sleep(0)
        assert asked() == [({"a": 1}, transport, "server", "user")]
        await registry.remove_session("s")
        await task


@pytest.mark.parametrize("override", OVERRIDES)
@pytest.mark.parametrize("where", ["method", "instance"])
def test_an_override_gets_what_its_names_ask_for(
    override: Callable[..., Any], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a method of a subclass, or as an attribute of the instance."""
    asked: list[Any] = []

    method = functools.partial(override, asked)
    if where == "method":
        overridden = type(
            "Overridden", (SessionRegistry,), {"generate_response": staticmethod(method)}
        )
        registry = overridden()
    else:
        registry = SessionRegistry()
        registry.generate_response = method  # type: ignore[method-assign]
    asyncio.run(answer_once(registry, lambda: asked))
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_keyword_only_method() -> None:
    """As API.md names them, written as users write it."""
    asked: list[Any] = []

    class Answers(SessionRegistry):
        async def generate_response(  # type: ignore[override]
            self, *, message: Any, transport: Any, server_id: str | None, user: Any
        ) -> None:
            asked.append((message, transport, server_id, user))

    asyncio.run(answer_once(Answers(), lambda: asked))


def test_a_mock() -> None:
    """As gateways do in their tests."""
    registry, mock = SessionRegistry(), AsyncMock()
    registry.generate_response = mock  # type: ignore[method-assign]
    asyncio.run(
        answer_once(registry, lambda: [(*c.args, *c.kwargs.values()) for c in mock.mock_calls])
    )


async def of_none() -> None: ...


async def of_one(message: Any) -> None: ...


async def of_five(message: Any, transport: Any, server_id: Any, user: Any, more: Any) -> None: ...


@pytest.mark.parametrize("bad", [of_none, of_one, of_five])
def test_one_that_takes_them_in_no_way_is_refused_by_respond(bad: Callable[..., Any]) -> None:
    """At once, and not by a log line for each message."""
    names = "message, transport, server_id, user"

    async def main() -> None:
        async with SessionRegistry() as registry:
            registry.generate_response = bad  # type: ignore[method-assign]
            await registry.add_session("s", Connection())
            with pytest.raises(TypeError, match=f"cannot be called with {names}"):
                await registry.respond("server", "user", "s")

    asyncio.run(main())
