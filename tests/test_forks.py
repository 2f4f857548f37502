"""A forked child owns nothing that its parent has opened: it drops it, and its parent goes on."""

import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa
from soak import SOAK, longer
from warm import Program

PRELUDE = """
import multiprocessing, os, signal, sys, threading, time, warnings
import sqlalchemy as sa
import trio
from trio_sessions import RegistryClosed, SessionsError, StoreInUse, aio, open_registry
from trio_sessions.stores.database import DatabaseStore
from trio_sessions.stores.memory import MemoryStore

warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
url = sys.argv[1]
signal.alarm(45)  # nobody hangs for ever
os.register_at_fork(after_in_child=lambda: signal.alarm(30))  # nor do children

class Connection:
    def __init__(self, hangs=False):
        self.hangs = hangs
    async def is_connected(self):
        if self.hangs:
            await trio.sleep_forever()
        return True
    async def disconnect(self):
        by = "by the parent" if os.getpid() == parent else "BY THE CHILD"
        print("disconnected", by, flush=True)

parent = os.getpid()
store = DatabaseStore(url, lock_timeout=1.0)

def in_a_thread(main, *args):
    thread = threading.Thread(target=trio.run, args=(main, *args))
    thread.start()
    thread.join()

def run_to_its_end(main):
    try:
        trio.run(main)
        print("the parent works")
    except BaseExceptionGroup as group:
        # In a child that leaves by sys.exit calls that were under way may fail, too.
        if os.getpid() == parent or group.split((SystemExit, SessionsError))[1] is not None:
            raise
        sys.exit(7)

async def end_of(pid):
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        await trio.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])

async def add(registry, count=20):
    for number in range(count):
        await registry.add_session(f"s{number} of {os.getpid() == parent}", Connection())

async def own(store=store):
    try:
        await work(store)
    except StoreInUse as exc:
        assert "SQLite" in str(exc)
        print("the child is refused", flush=True)

async def work(store):
    async with open_registry(store) as registry:
        await add(registry)
        report = await registry.cleanup()
        assert report.refreshed == 20 and not report.missing, report
        assert await registry.locate_session("s0 of True") is not None
        print("the child works", flush=True)

async def check_parent(registry):
    started = time.monotonic()
    report = await registry.cleanup()
    in_time = time.monotonic() - started < 60
    print(report.refreshed, report.missing, "in time" if in_time else "LATE")

async def ring(registry):
    # Whatever wakes the parent, and its connection for LISTEN: they are still its own.
    with trio.fail_after(40):
        await registry.broadcast("s1 of True", "hello", durable=True)
        async with registry.open_inbox("s1 of True") as inbox:
            print(await anext(inbox), flush=True)
"""


def run(program: str, url: sa.URL) -> list[str]:
    """Run a program on a database and return what it printed; it must end well."""
    source = PRELUDE + textwrap.dedent(program)
    ran = Program(source, url.render_as_string(hide_password=False), folder=Path.cwd())
    out, err = ran.communicate(55)
    assert ran.returncode == 0, out + err
    assert "Traceback" not in err, err
    return out.splitlines()


@pytest.fixture(params=["sqlite_url", "postgresql_schema"])
def url(request: pytest.FixtureRequest) -> sa.URL:
    url: sa.URL = request.getfixturevalue(request.param)
    return url


on_a_server = pytest.mark.parametrize(
    "url", ["postgresql_schema", pytest.param("sqlite_url", marks=longer)], indirect=True
)
"""On SQLite a child may do less; that it may not is tried by itself."""
FORKS = 12 if SOAK else 2

IN_THE_CHILD = ["the child works"] + ["disconnected BY THE CHILD"] * 20  # its own ones


def in_the_child(url: sa.URL) -> list[str]:
    """Return what a child prints that opens what its parent has open: an SQLite file it may not."""
    return IN_THE_CHILD if url.get_backend_name() == "postgresql" else ["the child is refused"]


@pytest.mark.parametrize(
    "make",
    ["store", "sa.create_engine(url)", "sa.create_engine(url, pool_pre_ping=True)"],
)
def test_a_child_opens_the_store_that_its_parent_has_open(
    postgresql_schema: sa.URL, make: str
) -> None:
    """On connections of its own, also where an engine was handed in; both are right then."""
    printed = run(
        f"""
        store = {make}
        if store.__class__ is not DatabaseStore:
            engine, store = store, DatabaseStore(store)
        async def main():
            async with open_registry(store) as registry:
                await add(registry)
                async with registry.open_inbox("s0 of True"):  # whatever listens, listens
                    await registry.cleanup()
                pid = os.fork()
                if not pid:
                    in_a_thread(own, store)
                    os._exit(0)
                for _ in range(20):
                    assert (await registry.cleanup()).refreshed == 20
                assert await end_of(pid) == 0
                await ring(registry)
                await check_parent(registry)
        trio.run(main)
        """,
        postgresql_schema,
    )
    assert sorted(printed) == sorted(
        [*IN_THE_CHILD, "hello", "20 () in time", *["disconnected by the parent"] * 20]
    )


@pytest.mark.parametrize(
    "waits",
    [
        "await end_of(pid)",
        pytest.param("os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])", marks=longer),
    ],
)
def test_a_child_that_leaves_the_block_touches_nothing(url: sa.URL, waits: str) -> None:
    """SystemExit goes through the block: no row, no transport, no connection is its own."""
    printed = run(
        f"""
        async def main():
            async with open_registry(store) as registry:
                await add(registry)
                async with registry.open_inbox("s0 of True"):  # whatever listens, listens
                    await registry.cleanup()
                pid = os.fork()
                if not pid:
                    sys.exit(7)
                assert {waits} == 7
                await check_parent(registry)
                await ring(registry)
        trio.run(main)
        """,
        url,
    )
    assert printed == ["20 () in time", "hello", *["disconnected by the parent"] * 20]


@on_a_server
def test_a_child_that_leaves_the_block_may_open_its_own(url: sa.URL) -> None:
    """In the same thread, on the same store object."""
    printed = run(
        """
        async def main():
            async with open_registry(store) as registry:
                await add(registry)
                pid = os.fork()
                if not pid:
                    sys.exit()
                assert await end_of(pid) == 7
                await check_parent(registry)
        try:
            trio.run(main)
        except SystemExit:
            trio.run(own)
            os._exit(7)
        """,
        url,
    )
    assert sorted(printed) == sorted(
        [*in_the_child(url), "20 () in time", *["disconnected by the parent"] * 20]
    )


@on_a_server
def test_a_child_that_leaves_while_much_is_under_way(url: sa.URL) -> None:
    """Threads that are not there, a pass, a removal: none of it keeps the child."""
    printed = run(
        """
        disconnected = trio.Event()
        async def noted():
            disconnected.set()
        async def main():
            async with open_registry(store, check_timeout=30) as registry:
                await add(registry)
                async with trio.open_nursery() as nursery:
                    engine = sa.create_engine(url)
                    with engine.connect() as blocker:  # the rows are locked
                        blocker.exec_driver_sql("DELETE FROM trio_sessions")
                        registry._house.table._entries["s0 of True"].transport.disconnect = noted
                        nursery.start_soon(registry.remove_session, "s0 of True")
                        await disconnected.wait()
                        nursery.start_soon(registry.add_session, "late", Connection(hangs=True))
                        nursery.start_soon(registry.locate_session, "elsewhere")
                        while registry.statistics().operations_running < 2:
                            await trio.sleep(0)
                        global child
                        child = not (pid := os.fork())
                        if child:
                            sys.exit()
                        started = time.monotonic()
                        assert await end_of(pid) == 7
                        print("left", "in time" if time.monotonic() - started < 60 else "LATE")
                        blocker.rollback()
                    engine.dispose()
                assert len(await registry.get_all_session_ids()) == 20
        try:
            trio.run(main)
        except BaseExceptionGroup as group:
            assert child and group.split(SystemExit)[1] is None, group
            os._exit(7)
        """,
        url,
    )
    assert printed == ["left in time", *["disconnected by the parent"] * 20]


@on_a_server
def test_a_child_that_stays_in_the_block(url: sa.URL) -> None:
    """It may look at what is in memory; it changes nothing, and its loops do nothing."""
    printed = run(
        """
        async def main():
            async with open_registry(store, session_ttl=2, cleanup_interval=0.1) as registry:
                await add(registry)
                async with registry.open_inbox("s0 of True"):
                    await registry.cleanup()
                pid = os.fork()
                if not pid:
                    passes = registry.statistics().passes
                    assert registry.get_session_sync("s0 of True") is not None
                    for call in (
                        lambda: registry.add_session("s", Connection()),
                        lambda: registry.remove_session("s0 of True"),
                        lambda: registry.set_session_owner("s0 of True", "me"),
                        lambda: registry.broadcast("s0 of True", 1),
                        lambda: registry.respond("s0 of True", print),
                        registry.cleanup,
                    ):
                        try:
                            await call()
                        except RegistryClosed as exc:
                            assert "fork" in str(exc)
                        else:
                            print("IT WENT THROUGH", flush=True)
                    await trio.sleep(1)  # ten intervals
                    assert registry.statistics().passes == passes
                    sys.exit(7)
                await ring(registry)
                assert await end_of(pid) == 7
                await check_parent(registry)
        trio.run(main)
        """,
        url,
    )
    assert printed == ["hello", "20 () in time", *["disconnected by the parent"] * 20]


def test_the_memory_of_a_child_is_its_own(sqlite_url: sa.URL) -> None:
    """A `MemoryStore` that its parent has open works in both."""
    printed = run(
        """
        store = MemoryStore()
        async def main():
            async with open_registry(store) as registry:
                await add(registry)
                pid = os.fork()
                if not pid:
                    in_a_thread(own, store)
                    os._exit(0)
                assert await end_of(pid) == 0
                await check_parent(registry)
        trio.run(main)
        """,
        sqlite_url,
    )
    assert sorted(printed) == sorted(
        [*IN_THE_CHILD, "20 () in time", *["disconnected by the parent"] * 20]
    )


@pytest.mark.parametrize("start", ["in the loop's thread", "in another thread"])
def test_multiprocessing_forks(postgresql_schema: sa.URL, start: str) -> None:
    """Its children do not leave the block: they end in `os._exit`."""
    printed = run(
        f"""
        def child(main_thread):
            in_a_thread(own) if main_thread else trio.run(own)

        async def main():
            context = multiprocessing.get_context("fork")
            async with open_registry(store) as registry:
                await add(registry)
                if {start == "in the loop's thread"}:
                    process = context.Process(target=child, args=(True,))
                    process.start()
                else:
                    process = context.Process(target=child, args=(False,))
                    await trio.to_thread.run_sync(process.start)
                while process.is_alive():
                    await trio.sleep(0.01)
                assert process.exitcode == 0
                await check_parent(registry)
        trio.run(main)
        """,
        postgresql_schema,
    )
    assert sorted(printed) == sorted(
        [*IN_THE_CHILD, "20 () in time", *["disconnected by the parent"] * 20]
    )


def test_what_is_collected_in_a_child_closes_nothing(postgresql_schema: sa.URL) -> None:
    """The garbage collector of the child may run whenever it likes."""
    printed = run(
        """
        import gc
        async def main():
            async with open_registry(store) as registry:
                await add(registry)
                async with registry.open_inbox("s0 of True"):
                    await registry.cleanup()
                pid = os.fork()
                if not pid:
                    in_a_thread(own)
                    globals().pop("store")
                    gc.collect()
                    sys.exit(7)
                assert await end_of(pid) == 7
                await ring(registry)
                await check_parent(registry)
        try:
            trio.run(main)
        finally:
            gc.collect()
        """,
        postgresql_schema,
    )
    assert sorted(printed) == sorted(
        [*IN_THE_CHILD, "hello", "20 () in time", *["disconnected by the parent"] * 20]
    )


def test_an_aio_child_opens_what_its_parent_has_open(postgresql_schema: sa.URL) -> None:
    """The same registry object, on an asyncio loop of its own."""
    printed = run(
        """
        import asyncio
        class Connection:
            async def is_connected(self): return True
            async def disconnect(self): pass
        registry = aio.SessionRegistry(store)
        async def own():
            async with registry:
                for number in range(20):
                    await registry.add_session(f"c{number}", Connection())
                print("child", (await registry.cleanup()).refreshed, flush=True)
        async def main():
            async with registry:
                for number in range(20):
                    await registry.add_session(f"s{number}", Connection())
                pid = os.fork()
                if not pid:
                    thread = threading.Thread(target=asyncio.run, args=(own(),))
                    thread.start()
                    thread.join()
                    os._exit(0)
                for _ in range(20):
                    assert (await registry.cleanup()).refreshed == 20
                while not os.waitpid(pid, os.WNOHANG)[0]:
                    await asyncio.sleep(0.01)
                print("parent", (await registry.cleanup()).refreshed)
        asyncio.run(main())
        """,
        postgresql_schema,
    )
    assert printed == ["child 20", "parent 20"]


@on_a_server
@pytest.mark.parametrize("runner", ["asyncio.run", pytest.param("uvloop.run", marks=longer)])
def test_an_aio_child_that_leaves_the_block_has_its_own_exit_code(url: sa.URL, runner: str) -> None:
    """What it raises comes out of the block as it is; the registry is its parent's to close."""
    printed = run(
        f"""
        import asyncio, uvloop
        class Connection:
            async def is_connected(self): return True
            async def disconnect(self):
                print("disconnected by the", "parent" if os.getpid() == parent else "CHILD")
        async def main():
            async with aio.SessionRegistry(store) as registry:
                await registry.add_session("s", Connection())
                for leave in (lambda: sys.exit(5), lambda: os._exit(6)):
                    pid = os.fork()
                    if not pid:
                        leave()
                    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
                        await asyncio.sleep(0.01)
                    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
                print((await registry.cleanup()).refreshed, flush=True)
        {runner}(main())
        """,
        url,
    )
    assert printed == ["5", "6", "1", "disconnected by the parent"]


@on_a_server
def test_a_child_does_not_wait_for_its_parents_threads(url: sa.URL) -> None:
    """It leaves at once, though the parent's write waits for a lock and may do so for a minute."""
    printed = run(
        """
        async def main():
            store = DatabaseStore(url, lock_timeout=20, operation_timeout=100)
            async with open_registry(store) as registry, trio.open_nursery() as nursery:
                await registry.add_session("before", Connection())
                engine = sa.create_engine(url)
                with engine.connect() as connection:
                    connection.exec_driver_sql(
                        "BEGIN IMMEDIATE" if url.startswith("sqlite")
                        else "LOCK TABLE trio_sessions IN EXCLUSIVE MODE"
                    )
                    nursery.start_soon(registry.add_session, "waits", Connection())
                    await trio.sleep(0.3)
                    pid = os.fork()
                    if not pid:
                        sys.exit(7)
                    with trio.fail_after(40):
                        assert await end_of(pid) == 7
                    connection.rollback()
        run_to_its_end(main)
        """,
        url,
    )
    assert "the parent works" in printed


def test_forks_at_any_moment(url: sa.URL) -> None:
    """While statements run, locks are held and transports are asked: the parent loses nothing."""
    printed = run(
        f"""
        import random
        from trio_sessions.testing import FakeTransport
        chance = random.Random(1)

        async def own():
            if url.startswith("sqlite"):
                return
            async with open_registry(store) as registry:
                await registry.add_session("own", FakeTransport())
                assert (await registry.cleanup()).refreshed == 1

        async def churn(registry, name):
            while True:
                await registry.add_session(name, FakeTransport())
                await registry.broadcast(name, 1, durable=True)
                await registry.cleanup()
                await registry.remove_session(name)

        async def main():
            async with open_registry(store, batch_size=5, max_concurrent=4) as registry:
                for number in range(20):
                    await registry.add_session(f"s{{number}}", FakeTransport())
                async with registry.open_inbox("s0"), trio.open_nursery() as nursery:
                    for number in range(3):
                        nursery.start_soon(churn, registry, f"churn {{number}}")
                    for _ in range({FORKS}):
                        for _ in range(chance.randrange(100)):
                            await trio.sleep(0)
                        how = chance.choice(["exit", "_exit", "own"])
                        pid = os.fork()
                        if not pid:
                            if how == "exit":
                                sys.exit(7)
                            if how == "own":
                                in_a_thread(own)
                            os._exit(7)
                        with trio.fail_after(40):
                            assert await end_of(pid) == 7, how
                            assert not (await registry.cleanup()).missing
                    nursery.cancel_scope.cancel()
                await registry.cleanup()
                report = await registry.cleanup()
                assert not report.missing and report.refreshed >= 20, report
        run_to_its_end(main)
        """,
        url,
    )
    assert printed == ["the parent works"]


SQLITE = """
async def hold(url, child):
    async with open_registry(url) as registry:
        await registry.add_session("s", Connection())
        pid = os.fork()
        if not pid:
            in_a_thread(child)
            os._exit(7)
        assert await end_of(pid) == 7

async def open_it(store):
    try:
        async with open_registry(store) as registry:
            checked = (await registry.cleanup()).checked
            os.write(1, f"opened {checked}\\n".encode())  # in one piece: two may write at once
    except StoreInUse as exc:
        print("refused", "sessions.db" in str(exc), "spawn" in str(exc), flush=True)
"""


@pytest.mark.parametrize(
    ("opens", "printed"),
    [
        ("url", "refused True True"),  # by whichever store object
        ("url.replace('sessions', 'others')", "opened 0"),
        ("url.replace('///', '///file:') + '?uri=true'", "refused True True"),
        ("sa.create_engine(url)", "refused True True"),
    ],
)
def test_a_child_may_not_open_the_sqlite_file_of_its_parent(
    sqlite_url: sa.URL, opens: str, printed: str
) -> None:
    """It would hold no lock, and lose what it writes as soon as its parent closes the file."""
    lines = run(SQLITE + f"trio.run(hold, url, lambda: open_it({opens}))", sqlite_url)
    assert lines == [printed, "disconnected by the parent"]


def test_an_sqlite_file_that_was_closed_before_the_fork(sqlite_url: sa.URL) -> None:
    """It is nobody's, and may be opened on both sides."""
    program = """
        async def child():
            await open_it(store)
        trio.run(open_it, store)
        pid = os.fork()
        trio.run(open_it, store)
        if not pid:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        """
    assert run(SQLITE + textwrap.dedent(program), sqlite_url) == ["opened 0"] * 3


def test_a_fork_between_the_limiter_and_the_thread(postgresql_schema: sa.URL) -> None:
    """What has waited for its turn in the parent does not begin in the child."""
    printed = run(
        """
        async def main():
            async with open_registry(store, max_concurrent=7) as registry:
                await add(registry)
                limiter = registry._house._edge.worker.limiter
                answers, taken = [], [object() for _ in range(7)]
                async def ask():
                    answers.append(await registry.session_exists("elsewhere"))
                async with trio.open_nursery() as nursery:
                    for one in taken:
                        await limiter.acquire_on_behalf_of(one)
                    for _ in range(5):
                        nursery.start_soon(ask)
                    while limiter.statistics().tasks_waiting < 5:
                        await trio.sleep(0)
                    global child
                    child = not (pid := os.fork())
                    if child:
                        limiter.total_tokens = 12
                        while len(answers) < 5:
                            await trio.sleep(0)
                        assert answers == [None] * 5, answers
                        sys.exit()
                    assert await end_of(pid) == 7
                    for one in taken:
                        limiter.release_on_behalf_of(one)
                assert answers == [False] * 5
                await check_parent(registry)
        try:
            trio.run(main)
        except BaseExceptionGroup as group:
            assert child and group.split(SystemExit)[1] is None, group
            os._exit(7)
        """,
        postgresql_schema,
    )
    assert printed == ["20 () in time", *["disconnected by the parent"] * 20]
