"""Topics: what is published reaches every subscriber of every worker, at most once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio.testing
from conftest import Shared
from trio.testing import MockClock

from trio_sessions import (
    MessageTooLarge,
    NotSupported,
    RegistryClosed,
    StoreUnavailable,
    Topics,
    open_registry,
)
from trio_sessions.abc import Part
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import Fault, FaultyStore

TOO_LONG = 20  # seconds


async def take(messages: AsyncIterator[Any], count: int) -> list[Any]:
    """Return the next messages."""
    with trio.fail_after(TOO_LONG):
        return [await anext(messages) for _ in range(count)]


async def nothing_more(messages: AsyncIterator[Any]) -> None:
    """Assert that nothing comes: a last message, behind all others, is the next one."""
    with trio.move_on_after(0.3):
        raise AssertionError(f"{await anext(messages)!r} came")


async def test_every_subscriber_of_every_worker_hears_it_once(everywhere: Shared) -> None:
    """Two on one worker, one on the other, one of the publisher's own; in order."""
    async with (
        everywhere.open() as one,
        everywhere.open() as other,
        one.topics.subscribe("t") as first,
        one.topics.subscribe("t") as second,
        other.topics.subscribe("t") as third,
        other.topics.subscribe("another") as fourth,
    ):
        for number in range(5):
            await other.topics.publish("t", {"number": number})
        for messages in (first, second, third):
            assert await take(messages, 5) == [{"number": number} for number in range(5)]
        await other.topics.publish("another", None)
        assert await take(fourth, 1) == [None]
        await nothing_more(first)


async def test_each_subscriber_gets_a_value_of_its_own() -> None:
    async with (
        open_registry() as registry,
        registry.topics.subscribe("t") as first,
        registry.topics.subscribe("t") as second,
    ):
        await registry.topics.publish("t", {"list": []})
        [message] = await take(first, 1)
        message["list"].append("changed")
        assert await take(second, 1) == [{"list": []}]


async def test_nobody_hears_what_was_published_before_or_after(shared: Shared) -> None:
    async with shared.open() as one, shared.open() as other:
        await other.topics.publish("t", "before")
        async with one.topics.subscribe("t") as messages:
            await other.topics.publish("t", "in the block")
            assert await take(messages, 1) == ["in the block"]
        with trio.fail_after(TOO_LONG):
            while one._house._mail._topics._written or one._house._mail._topics._surplus:
                await trio.sleep(0.01)
        await other.topics.publish("t", "between")
        async with one.topics.subscribe("t") as messages:
            await other.topics.publish("t", "again")
            assert await take(messages, 1) == ["again"]


async def test_the_store_is_told_once_and_at_the_end() -> None:
    """However many subscribers of a topic there are: one listens, and the last one's end counts."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        async with registry.topics.subscribe("t"), registry.topics.subscribe("t"):
            async with registry.topics.subscribe("t"):
                pass
            await trio.testing.wait_all_tasks_blocked()
            assert (store.calls["listen"], store.calls["unlisten"]) == (1, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert (store.calls["listen"], store.calls["unlisten"]) == (1, 1)


async def test_a_registry_that_uses_nothing_of_it_asks_nothing() -> None:
    """No bell, no collecting; publishing alone needs neither."""
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        await registry.topics.publish("t", 1)
        await trio.testing.wait_all_tasks_blocked()
        assert not {"open_bell", "collect", "listen", "living"} & set(store.calls)
        assert registry.health().bell_alive is None


async def test_a_slow_subscriber_loses_the_oldest_and_they_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By their number, and by their size."""
    monkeypatch.setattr("trio_sessions._mail._topics._MOST", 10)
    monkeypatch.setattr("trio_sessions._mail._topics._SIZE", 500)
    async with open_registry() as registry, registry.topics.subscribe("t") as messages:
        for number in range(25):
            await registry.topics.publish("t", number)
        await trio.testing.wait_all_tasks_blocked()
        assert registry.statistics().topic_messages_dropped == 15
        assert await take(messages, 10) == list(range(15, 25))
        for letter in "abc":
            await registry.topics.publish("t", letter * 200)
        await registry.topics.publish("t", "d" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert await take(messages, 1) == ["d" * 1000]
        assert registry.statistics().topic_messages_dropped == 18


async def test_closing_the_registry_ends_the_iteration(everywhere: Shared) -> None:
    """After what has come."""
    heard: list[Any] = []
    ended = trio.Event()

    async def hear(*, task_status: trio.TaskStatus[None]) -> None:
        async with registry.topics.subscribe("t") as messages:
            task_status.started()
            async for message in messages:
                heard.append(message)
        ended.set()

    async with trio.open_nursery() as nursery:
        async with everywhere.open() as registry:
            await nursery.start(hear)
            await registry.topics.publish("t", 1)
            with trio.fail_after(TOO_LONG):
                while not heard:
                    await trio.sleep(0.01)
        with trio.fail_after(TOO_LONG):
            await ended.wait()
    assert heard == [1]
    with pytest.raises(RegistryClosed):
        await registry.topics.publish("t", 2)
    with pytest.raises(RegistryClosed):
        async with registry.topics.subscribe("t"):
            pass


async def test_an_outage_ends_no_subscription(shared: Shared) -> None:
    """What is published afterwards is heard; who subscribes meanwhile is told."""
    faulty = FaultyStore(shared.make_store())
    async with (
        shared.open(store=faulty) as one,
        shared.open() as other,
        one.topics.subscribe("t") as messages,
    ):
        await other.topics.publish("t", "before")
        assert await take(messages, 1) == ["before"]
        faulty.fail()
        with pytest.raises(StoreUnavailable):
            await one.topics.publish("t", "from one")
        with pytest.raises(StoreUnavailable):
            async with one.topics.subscribe("new"):
                raise AssertionError("it is not open")
        await other.topics.publish("t", "meanwhile")
        with trio.fail_after(TOO_LONG):
            while not faulty.faults["collect"]:
                await trio.sleep(0.01)
        faulty.heal()
        await other.topics.publish("t", "afterwards")
        assert await take(messages, 2) == ["meanwhile", "afterwards"]
        async with one.topics.subscribe("new") as new:
            await other.topics.publish("new", 1)
            assert await take(new, 1) == [1]


async def test_topics_outlive_a_database_that_went_back(shared: Shared) -> None:
    """It has forgotten the worker's row and its topics: both are written anew."""
    async with (
        shared.open(cleanup_interval=1.0) as one,
        shared.open(cleanup_interval=1.0) as other,
        one.topics.subscribe("t") as messages,
    ):
        await one.topics.publish("t", "before")
        assert await take(messages, 1) == ["before"]
        shared.backdoor.go_back(None)
        with trio.fail_after(TOO_LONG):
            while not one.statistics().database_rewinds:
                await trio.sleep(0.01)
            heard: list[Any] = []
            while not heard:
                await other.topics.publish("t", "after")
                with trio.move_on_after(0.1):
                    heard.append(await anext(messages))
        assert heard == ["after"]


async def test_a_message_that_comes_again_is_heard_once() -> None:
    """Found by the fleet: a database that went back brings letters again."""
    store = MemoryStore()
    async with open_registry(store) as a, open_registry(store) as b:
        office = a._house._mail._office
        receive, letters = office.receive, list[str]()

        def note(text: str) -> None:
            letters.append(text)
            receive(text)

        office.receive = note  # type: ignore[method-assign]
        async with a.topics.subscribe("t") as messages:
            for number in range(2):
                await b.topics.publish("t", number)
                await a.topics.publish("t", number + 10)
            heard = [await anext(messages) for _ in range(4)]
            for letter in letters:
                receive(letter)
            await b.topics.publish("t", 2)
            assert await anext(messages) == 2
            assert sorted(heard) == [0, 1, 10, 11]


async def test_whoever_leaves_in_the_middle_of_joining_listens_to_nothing(
    autojump_clock: MockClock,
) -> None:
    store = FaultyStore(MemoryStore())
    async with open_registry(store) as registry:
        store.fail(Fault.ANSWERS_LATE, "listen", seconds=3600)
        with trio.move_on_after(0.05) as scope:
            async with registry.topics.subscribe("t"):
                raise AssertionError("it is not open")
        assert scope.cancelled_caught
        store.heal()
        async with registry.topics.subscribe("t") as messages:
            await registry.topics.publish("t", 1)
            assert await take(messages, 1) == [1]


async def leave_once_done(store: FaultyStore, scope: trio.CancelScope) -> None:
    while not store.faults["listen"]:
        await trio.sleep(0.001)
    await trio.testing.wait_all_tasks_blocked()
    scope.cancel()


@pytest.mark.parametrize("fault", [Fault.COMMITS_THEN_FAILS, Fault.ANSWERS_LATE])
@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_who_may_have_been_listening_is_taken_off(
    fault: Fault, *, is_cancelled: bool
) -> None:
    """The answer was lost, or nobody waited for it: the store may know of the topic."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with open_registry(store, store_timeout=0.3) as registry:
        seconds = 3600.0 if fault is Fault.ANSWERS_LATE else None
        store.fail(fault, "listen", seconds=seconds)
        async with trio.open_nursery() as nursery:
            if is_cancelled:
                nursery.start_soon(leave_once_done, store, nursery.cancel_scope)
            with pytest.raises(StoreUnavailable):
                async with registry.topics.subscribe("t"):
                    raise AssertionError("it is not open")
            nursery.cancel_scope.cancel()
        assert store.faults["listen"] >= 1
        store.heal()
        with trio.fail_after(TOO_LONG):
            while memory._mail._topics or registry._house._mail._topics._surplus:
                await trio.sleep(0.01)
        assert store.calls["unlisten"] >= 1


async def test_who_joins_while_others_are_taken_off_hears_it() -> None:
    """Its topic is one that the store may know of, and that nobody wanted for a moment."""
    memory = MemoryStore()
    store = FaultyStore(memory)
    async with open_registry(store) as registry:
        store.fail(Fault.COMMITS_THEN_FAILS, "listen")
        with pytest.raises(StoreUnavailable):
            async with registry.topics.subscribe("t"):
                raise AssertionError("it is not open")
        store.heal()
        async with registry.topics.subscribe("t") as messages:
            await trio.testing.wait_all_tasks_blocked()
            await registry.topics.publish("t", 1)
            assert await take(messages, 1) == [1]
        with trio.fail_after(TOO_LONG):
            while memory._mail._topics:
                await trio.sleep(0.01)


async def test_two_readers_of_one_subscription_share_it() -> None:
    """Each message goes to one of them, and the end to both."""
    heard: list[Any] = []
    async with open_registry() as registry, trio.open_nursery() as nursery:
        async with registry.topics.subscribe("t") as messages:

            async def read() -> None:
                async for message in messages:
                    heard.append(message)

            for _ in range(2):
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
            for number in range(4):
                await registry.topics.publish("t", number)
                await trio.testing.wait_all_tasks_blocked()
            assert heard == [0, 1, 2, 3]
        nursery.cancel_scope.deadline = trio.current_time() + TOO_LONG
    assert not nursery.cancel_scope.cancelled_caught


async def test_a_message_that_cannot_be_read_ends_no_subscription(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody else may have left it."""
    async with open_registry() as registry, registry.topics.subscribe("t") as messages:
        for number, contents in enumerate(("no JSON", "]", "[1}}")):
            registry._house._mail._office.receive(f'[["topic","t","x",{number}],{contents}]')
        await registry.topics.publish("t", 1)
        assert await take(messages, 1) == [1]
    assert "that cannot be read" in caplog.text
    caplog.clear()


@pytest.mark.parametrize(
    ("topic", "error"),
    [("", ValueError), ("x" * 256, ValueError), (7, TypeError), ("a\0", ValueError)],
)
async def test_a_bad_topic_is_refused_by_name(topic: Any, error: type[Exception]) -> None:
    async with open_registry() as registry:
        with pytest.raises(error, match="topic"):
            await registry.topics.publish(topic, 1)
        with pytest.raises(error, match="topic"):
            registry.topics.subscribe(topic)


async def test_a_bad_message_is_refused() -> None:
    async with open_registry(max_message_bytes=10) as registry:
        with pytest.raises(MessageTooLarge, match="the message"):
            await registry.topics.publish("t", "x" * 10)
        with pytest.raises(TypeError, match="the message"):
            await registry.topics.publish("t", object())


async def test_a_store_without_mail_says_so() -> None:
    class Plain(FaultyStore):
        @property
        def parts(self) -> frozenset[Part]:
            return super().parts - {Part.MAIL}

    async with open_registry(Plain(MemoryStore())) as registry:
        with pytest.raises(NotSupported, match="MailStore"):
            async with registry.topics.subscribe("t"):
                pass
        with pytest.raises(NotSupported, match="MailStore"):
            await registry.topics.publish("t", 1)

    async def handler(payload: Any) -> None: ...

    with pytest.raises(NotSupported, match="MailStore"):
        async with open_registry(Plain(MemoryStore()), handlers={"h": handler}):
            pass


async def test_a_subscription_is_read_in_its_block_only() -> None:
    async with open_registry() as registry:
        assert isinstance(registry.topics, Topics)
        subscription: Any = registry.topics.subscribe("t")
        with pytest.raises(RuntimeError, match="async with"):
            await anext(subscription)
        async with subscription:
            pass
        with pytest.raises(StopAsyncIteration):
            await anext(subscription)
        with pytest.raises(RuntimeError, match="again"):
            async with subscription:
                pass
