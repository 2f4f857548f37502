"""The stores keep the part of the contract by which workers write to each other."""

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import trio
from conftest import Shared
from trio.testing import MockClock

from trio_sessions.abc import Part, SessionStore, Worker
from trio_sessions.errors import RowUnavailable
from trio_sessions.stores.memory import MemoryStore
from trio_sessions.testing import FaultyStore, mail_conformance
from trio_sessions.testing._conformance._fleet import LONG, begin
from trio_sessions.testing._conformance._tools import opened
from trio_sessions.writes import Batch, Committed, Post, Verdict

Check = Callable[[Callable[[], SessionStore]], Awaitable[None]]


def name(check: Check) -> str:
    return check.__name__


@pytest.mark.parametrize("check", mail_conformance, ids=name)
async def test_our_stores_keep_it(database: Shared, check: Check) -> None:
    assert Part.MAIL in database.make_store().parts
    await check(database.make_store)


@pytest.mark.parametrize("check", mail_conformance, ids=name)
async def test_the_memory_store_keeps_it(autojump_clock: MockClock, check: Check) -> None:
    """And so does the fake that wraps it."""
    store = MemoryStore()
    await check(lambda: FaultyStore(store))


# ---- stores that break it ----


class Returns(MemoryStore):
    """A letter whose answer may have been lost is returned again."""

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        box = list(self._mail._letters.get(worker.incarnation, ()))
        taken = await super().collect(worker, limit=limit, size=size)
        if box:
            self._mail._letters[worker.incarnation] = deque(box)
        return taken


class TheNewestFirst(MemoryStore):
    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        return list(reversed(await super().collect(worker, limit=limit, size=size)))


class TakesThemAllAway(MemoryStore):
    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        return (await super().collect(worker, limit=10**9, size=size))[:limit]


class TakesAnySize(MemoryStore):
    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        return await super().collect(worker, limit=limit, size=10**9)


class CountsCharacters(MemoryStore):
    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        taken = list[str]()
        while sum(map(len, taken)) < size:
            one = await super().collect(worker, limit=1, size=1)
            if not one:
                break
            taken += one
        return taken


class NeverMoreThanTheSize(MemoryStore):
    """A letter that is larger is in the way of all others, for ever."""

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        box = self._mail._letters.get(worker.incarnation)
        if box and len(box[0].payload) > size:
            return await super().collect(worker, limit=0, size=size)
        return await super().collect(worker, limit=limit, size=size)


class RingsForNoMail(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        bells = self._opened.state
        kept = dict(bells)
        if any(batch.of(Post)):
            bells.clear()
        try:
            return await super().commit(worker, batch)
        finally:
            bells.update(kept)


class TheFirstOfTheName(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        began = {one: row.started_at for one, row in self._workers._rows.items()}
        for row in self._workers._rows.values():
            row.started_at = -row.started_at
        try:
            return await super().commit(worker, batch)
        finally:
            for one, moment in began.items():
                self._workers._rows[one].started_at = moment


class ByTheWorkerIdAlone(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        writes = [
            replace(one, to=one.to.split("-", maxsplit=1)[0])
            if isinstance(one, Post) and one.to
            else one
            for one in batch.writes
        ]
        return await super().commit(worker, replace(batch, writes=writes))


class BoxesOfTheDead(MemoryStore):
    """Who is late is taken for alive."""

    def __init__(self) -> None:
        super().__init__()
        self._workers.alive = self._all  # type: ignore[method-assign]
        self._workers.addressee = self._addressee  # type: ignore[method-assign]

    def _all(self, now: float) -> Iterator[str]:
        return iter(self._workers.incarnations())

    def _addressee(self, to: str, now: float) -> str | None:
        rows = self._workers._rows
        if to in rows:
            return to
        named = [(row.started_at, one) for one, row in rows.items() if row.worker_id == to]
        return max(named)[1] if named else None


class IncarnationsAlone(MemoryStore):
    async def living(self, worker: Worker) -> frozenset[str]:
        return frozenset(self._workers.alive(self._now()))


class TheDeadAmongTheLiving(MemoryStore):
    async def living(self, worker: Worker) -> frozenset[str]:
        return await super().living(worker) | self._workers.incarnations()


class CountsForNobody(MemoryStore):
    """The answer says that it was left though there is nobody."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        answers = [
            max(1, answer) if isinstance(write, Post) and isinstance(answer, int) else answer
            for write, answer in zip(batch.writes, committed.answers, strict=False)
        ]
        return replace(committed, answers=answers)


class OncePerListening(MemoryStore):
    """Who says twice that it listens hears all twice."""

    def __init__(self) -> None:
        super().__init__()
        self._said: Counter[tuple[str, str]] = Counter()

    async def listen(self, worker: Worker, topics: Sequence[str]) -> None:
        self._said.update((worker.incarnation, one) for one in topics)
        await super().listen(worker, topics)

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        for _, post in batch.of(Post):
            for (incarnation, topic), times in self._said.items():
                box = self._mail._letters.get(incarnation)
                if topic == post.topic and box is not None:
                    box.extend([box[-1]] * (times - 1))
        return committed


class NotToTheSender(MemoryStore):
    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        topics = self._mail._topics
        heard = [topic for topic, listeners in topics.items() if worker.incarnation in listeners]
        self._mail.unlisten(worker.incarnation, heard)
        try:
            return await super().commit(worker, batch)
        finally:
            self._mail.listen(worker.incarnation, heard)


class NeverStopsListening(MemoryStore):
    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        await super().unlisten(worker, [])


class StopsListeningAtAll(MemoryStore):
    async def unlisten(self, worker: Worker, topics: Sequence[str]) -> None:
        await super().unlisten(worker, list(self._mail._topics))


class ByTheNameOfTheWorker(MemoryStore):
    """A box for each worker id: whoever begins under it reads the letters of the one before."""

    async def collect(self, worker: Worker, *, limit: int, size: int) -> Sequence[str]:
        for incarnation, row in self._workers._rows.items():
            if row.worker_id == worker.worker_id:
                taken = self._mail.collect(incarnation, limit, size)
                if taken:
                    await super().collect(worker, limit=0, size=0)
                    return taken
        return await super().collect(worker, limit=limit, size=size)


class KeepsWhatIsLeft(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self._mail.forget = self._keep  # type: ignore[method-assign]

    def _keep(self, incarnation: str) -> None:
        pass


class ExpiresAll(MemoryStore):
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_mail(worker, older_than=-1.0, limit=limit)


class ExpiresAtOnce(MemoryStore):
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_mail(worker, older_than=older_than, limit=10**9)


class ExpiresNothing(MemoryStore):
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        return await super().expire_mail(worker, older_than=1e9, limit=limit)


class KeepsTheTopicsOfNobody(MemoryStore):
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        topics = {topic: set(listeners) for topic, listeners in self._mail._topics.items()}
        expired = await super().expire_mail(worker, older_than=older_than, limit=limit)
        self._mail._topics.update(topics)
        return expired


class DropsAllTopicsAtOnce(MemoryStore):
    async def expire_mail(self, worker: Worker, *, older_than: float, limit: int) -> int:
        expired = await super().expire_mail(worker, older_than=older_than, limit=limit)
        await super().expire_mail(worker, older_than=1e9, limit=10**9)
        return expired


class PostsFirst(MemoryStore):
    """Letters are left, whatever becomes of the rest of the batch."""

    async def commit(self, worker: Worker, batch: Batch) -> Committed:
        committed = await super().commit(worker, batch)
        if committed.verdict is not Verdict.DONE:
            for _, post in batch.of(Post):
                self._mail.post(post, self._workers, self._now())
        return committed


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        (Returns, "letters_are_collected_once_and_in_their_order"),
        (TheNewestFirst, "letters_are_collected_once_and_in_their_order"),
        (TakesThemAllAway, "letters_are_collected_once_and_in_their_order"),
        (IncarnationsAlone, "who_is_late_or_has_gone_is_not_among_the_living"),
        (TheDeadAmongTheLiving, "who_is_late_or_has_gone_is_not_among_the_living"),
        (TakesAnySize, "letters_are_collected_until_they_are_large"),
        (CountsCharacters, "letters_are_collected_until_they_are_large"),
        (NeverMoreThanTheSize, "letters_are_collected_until_they_are_large"),
        (RingsForNoMail, "the_bell_says_mail"),
        (TheFirstOfTheName, "a_letter_goes_to_the_worker_that_is_meant"),
        (ByTheWorkerIdAlone, "a_letter_goes_to_the_worker_that_is_meant"),
        (CountsForNobody, "a_letter_goes_to_the_worker_that_is_meant"),
        (BoxesOfTheDead, "who_is_late_or_has_gone_gets_none"),
        (BoxesOfTheDead, "a_late_one_of_the_name_hides_no_other"),
        (OncePerListening, "a_topic_reaches_all_that_listen"),
        (NotToTheSender, "a_topic_reaches_all_that_listen"),
        (NeverStopsListening, "who_listens_no_longer_gets_no_more"),
        (StopsListeningAtAll, "who_listens_no_longer_gets_no_more"),
        (ByTheNameOfTheWorker, "another_incarnation_does_not_get_them"),
        (KeepsWhatIsLeft, "what_a_worker_that_closes_leaves_goes_with_its_row"),
        (KeepsWhatIsLeft, "what_a_swept_worker_leaves_goes_with_its_row"),
        (ExpiresAll, "what_nobody_takes_away_expires"),
        (ExpiresAtOnce, "what_nobody_takes_away_expires"),
        (ExpiresNothing, "what_nobody_takes_away_expires"),
        (DropsAllTopicsAtOnce, "topics_of_nobody_go_piece_by_piece"),
        (KeepsTheTopicsOfNobody, "what_nobody_takes_away_expires"),
        (PostsFirst, "a_batch_that_does_nothing_leaves_no_letter"),
    ],
)
async def test_a_broken_store_fails_the_check_of_its_rule(
    autojump_clock: MockClock, broken: type[MemoryStore], rule: str
) -> None:
    store = broken()
    [check] = [one for one in mail_conformance if name(one) == rule]
    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check(lambda: store)


async def test_so_many_letters_wait_in_memory_at_most(autojump_clock: MockClock) -> None:
    """The worker that does not collect holds up no other, and is not taken for dead.

    What is not left is not counted, and may be left again.
    """
    store = MemoryStore()
    async with opened(lambda: store, "a", "b", "c") as (a, b, c):
        for client in (b, c):
            await begin(client, cleanup_interval=LONG)
            await store.listen(client.worker, ["news"])
        posts = [Post(session_id="", payload=str(n), to="b") for n in range(10_010)]
        news = Post(session_id="", payload="news", topic="news")
        answers = (await store.commit(a.worker, Batch(writes=[*posts, news]))).answers
        assert set(answers[:10_000]) == {answers[-1]} == {1}
        assert [type(one) for one in answers[10_000:-1]] == [RowUnavailable] * 10
        assert await a.write(Post(session_id="", payload="to all", topic="news")) == 1
        assert await store.collect(b.worker, limit=2, size=100) == ["0", "1"]
        assert await store.collect(c.worker, limit=3, size=100) == ["news", "to all"]
        again = (await store.commit(a.worker, Batch(writes=posts[:3]))).answers
        assert list(again[:2]) == [1, 1]
        assert isinstance(again[2], RowUnavailable)
