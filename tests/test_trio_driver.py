"""A Trio run that is driven by synchronous calls."""

import threading

import pytest
import trio
import trio.testing

from trio_sessions.testing._machine._driver import TrioDriver


def test_what_a_call_starts_lives_on_until_the_next() -> None:
    """Tasks of the nursery go on while a call is carried out, and rest in between."""
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            await trio.sleep(1)
            ticks.append(trio.current_time())

    with TrioDriver(trio.testing.MockClock(autojump_threshold=0)) as driver:

        async def begin() -> str:
            driver.nursery.start_soon(tick)
            return "begun"

        assert driver.call(begin) == "begun"
        assert ticks == []
        driver.call(trio.sleep, 10.5)
        assert len(ticks) == 10


def test_threads_are_waited_for_in_real_time() -> None:
    """What a thread returns wakes the host."""
    with TrioDriver() as driver:
        here = threading.get_ident()
        there = driver.call(trio.to_thread.run_sync, threading.get_ident)
        assert there != here


def test_an_error_comes_out_of_its_call_and_ends_nothing() -> None:
    """The run goes on after a call that raised, or was too slow."""

    async def fail() -> None:
        raise KeyError("as it is")

    with TrioDriver(trio.testing.MockClock(autojump_threshold=0)) as driver:
        with pytest.raises(KeyError, match="as it is"):
            driver.call(fail)
        with pytest.raises(trio.TooSlowError):
            driver.call(trio.sleep_forever, patience=5)
        assert driver.call(trio.to_thread.run_sync, lambda: 3) == 3


def test_an_error_of_a_task_ends_the_run_and_says_so() -> None:
    """A call that it takes along says why, and so does the end."""
    driver = TrioDriver()

    async def fail() -> None:
        raise KeyError("of a task")

    async def begin() -> None:
        driver.nursery.start_soon(fail)
        await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as ended, driver:
        with pytest.raises(RuntimeError) as caught:
            driver.call(begin)
        assert isinstance(caught.value.__cause__, ExceptionGroup)
        with pytest.raises(RuntimeError, match="has ended"):
            driver.call(trio.sleep, 0)
    assert ended.group_contains(KeyError)


def test_its_end_cancels_what_runs_and_the_thread_is_free_again() -> None:
    """Cleaning up is waited for; after it Trio can run here in any other way."""
    cleaned: list[bool] = []

    async def stay() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.01)
            cleaned.append(True)

    with TrioDriver() as driver:

        async def begin() -> None:
            driver.nursery.start_soon(stay)
            await trio.testing.wait_all_tasks_blocked()

        driver.call(begin)
    assert cleaned == [True]
    trio.run(trio.sleep, 0)


async def test_inside_of_trio_it_says_what_is_wrong() -> None:
    """An async test cannot drive another run of its own thread."""
    with pytest.raises(RuntimeError, match="plain function"), TrioDriver():
        pass
