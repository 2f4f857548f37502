"""One run: a fleet, so many steps, then peace; a function of its seed."""

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio
import trio.testing

from trio_sessions.testing._seeded import seeded
from trio_sessions.testing._simulation._data_rules import DataRules
from trio_sessions.testing._simulation._database import Database
from trio_sessions.testing._simulation._drain_rules import DrainRules
from trio_sessions.testing._simulation._events import DATABASE, Event, Log
from trio_sessions.testing._simulation._judge import Judge
from trio_sessions.testing._simulation._lease_rules import LeaseRules
from trio_sessions.testing._simulation._limit_rules import LimitRules
from trio_sessions.testing._simulation._mail_rules import MailRules
from trio_sessions.testing._simulation._mixes import MIXES, parts_of
from trio_sessions.testing._simulation._orphan_rules import OrphanRules
from trio_sessions.testing._simulation._question_rules import QuestionRules
from trio_sessions.testing._simulation._quiet import quiet
from trio_sessions.testing._simulation._way import Network
from trio_sessions.testing._simulation._workers import SETTINGS

__all__ = ["MOST_WORKERS", "Run", "run_once"]

MOST_WORKERS = len(SETTINGS)
_PAUSES = (
    0.01,
    0.01,
    0.05,
    0.05,
    0.2,
    0.2,
    0.2,
    1.0,
    1.0,
    1.0,
    3.0,
    3.0,
    10.0,
    40.0,
)  # seconds between two steps


class _Rules(OrphanRules, DataRules, DrainRules, LeaseRules, LimitRules, MailRules, QuestionRules):
    """All rules; a mix says which of them are followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What has become of one run."""

    seed: str
    workers: int
    mix: str
    """Which rules were followed, and how often."""
    asked: int
    """Steps that were asked for."""
    steps: int
    """Steps that were made; fewer where it failed."""
    violations: tuple[str, ...]
    rules: Counter[str]
    faults: Counter[str]
    right: Counter[str]
    """Removals of sessions that had a reason, by the reason."""
    judged: Counter[str]
    """Answers that were held against what is true, by their kind."""
    commits: int
    seconds: float
    """Of the host's time."""
    virtual: float
    """Seconds of virtual time."""
    digest: str
    """The same for the same trace."""
    events: tuple[Event, ...]
    """The last ones."""


def run_once(
    seed: str,
    *,
    steps: int,
    workers: int,
    mix: str = "all",
    on_step: Callable[[], None] | None = None,
) -> Run:
    """Make one run in a Trio run of its own.

    Args:
        seed: the run is a function of it, and of the other arguments.
        steps: how many.
        workers: how many registries, 2 to 5.
        mix: which rules are followed, and how often; one of `MIXES`.
        on_step: called after each step.
    """
    log = Log()
    judge = Judge(log)
    chance = random.Random(seed)  # noqa: S311 -- to be replayed
    database = judge.database = Database(judge.changed)
    made = 0
    ended_at = 0.0

    async def main() -> None:
        nonlocal made, ended_at
        ways = random.Random(f"{seed} network")  # noqa: S311 -- to be replayed
        network = Network(database, ways, latency=0.01, parts=parts_of(mix))
        async with network.running(), trio.open_nursery() as nursery:
            rules = _Rules(nursery=nursery, network=network, judge=judge, log=log, chance=chance)
            for number in range(workers):
                rules.start(number)
            await trio.sleep(1.0)
            while made < steps and not log.wrong:
                _step(rules, log, chance, MIXES[mix])
                await trio.sleep(chance.choice(_PAUSES))
                judge.look()
                rules.look()
                made += 1
                if on_step is not None:
                    on_step()
            if not log.wrong:
                await _make_peace(rules, judge, log)
            ended_at = trio.current_time()
            log.is_over = True
            for worker in judge.workers:
                worker.kill()
            nursery.cancel_scope.cancel()

    started = time.perf_counter()
    with seeded(seed), quiet():
        try:
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        except Exception as exc:  # a registry raised what it must not raise
            exc.add_note(f"in --run {seed} --steps {steps} --workers {workers} --mix {mix!r}")
            raise
    return Run(
        seed=seed,
        workers=workers,
        mix=mix,
        asked=steps,
        steps=made,
        violations=tuple(log.wrong),
        rules=log.rules,
        faults=log.faults,
        right=log.right,
        judged=log.judged,
        commits=database.commits,
        seconds=time.perf_counter() - started,
        virtual=ended_at,
        digest=log.digest,
        events=tuple(log.recent),
    )


def _step(rules: _Rules, log: Log, chance: random.Random, weights: Mapping[str, int]) -> None:
    """Follow one rule that has something to do."""
    while True:
        [name] = chance.choices(list(weights), list(weights.values()))
        if getattr(rules, name)():
            log.rules[name] += 1
            return


async def _make_peace(rules: _Rules, judge: Judge, log: Log) -> None:
    """Let all faults stop; in bounded time what lives is held and stored, and nothing else."""
    rules.heal()
    for worker in judge.workers:
        worker.link.resume()
    for client in judge.clients.values():
        for one in client.connections:
            one.answers = "truly"
    longest = max(worker.session_ttl for worker in judge.all_workers)
    interval = max(worker.cleanup_interval for worker in judge.all_workers)
    log.note(DATABASE, "peace")
    await trio.sleep(2 * longest + 4 * interval)
    judge.look()
    for name, found in judge.what_is_left().items():
        log.violate(f"in peace at last: {name}: {', '.join(found)}")
