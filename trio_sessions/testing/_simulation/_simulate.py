"""Many runs, each with a seed of its own that follows from the first."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from trio_sessions.testing._simulation._mixes import MIXES
from trio_sessions.testing._simulation._report import SimulationReport
from trio_sessions.testing._simulation._run import MOST_WORKERS, run_once

__all__ = ["RUN", "Planned", "plan", "play", "simulate"]

RUN = 150
"""Steps in one run; then all faults stop, and the fleet has to come to rest."""
_FEWEST = 2
_OTHERS = [mix for mix in MIXES if mix != "all"]
_MIXES = [mix for n, one in enumerate(_OTHERS) for mix in (("all", one) if n % 6 == 0 else (one,))]
"""Each in turn, and now and then all rules at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A run that is to be made."""

    seed: str
    steps: int
    workers: int
    mix: str


def plan(*, seed: int, steps: int, workers: int | None = None) -> Iterator[Planned]:
    """Divide so many steps into runs; see `simulate`."""
    for number, done in enumerate(range(0, steps, RUN)):
        yield Planned(
            seed=f"{seed}-{number}",
            steps=min(RUN, steps - done),
            workers=workers or _FEWEST + number % (MOST_WORKERS - _FEWEST + 1),
            mix=_MIXES[number % len(_MIXES)],
        )


def play(
    planned: Iterable[Planned], *, on_step: Callable[[], None] | None = None
) -> SimulationReport:
    """Make one run after the other, until one of them fails.

    Args:
        planned: the runs.
        on_step: called after each step.
    """
    report = SimulationReport()
    for one in planned:
        run = run_once(one.seed, steps=one.steps, workers=one.workers, mix=one.mix, on_step=on_step)
        report.add(run)
        if report.failures:
            break
    return report


def simulate(
    *,
    seed: int,
    steps: int = 1000,
    workers: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> SimulationReport:
    """Let real registries run on a simulated database, with faults of every kind.

    The steps are divided into runs of at most 150, each in a Trio run of its own, with a virtual
    clock: nothing sleeps. It ends with the first run in which an invariant does not hold. It is a
    function of its arguments: the same ones give the same trace. Not to be called in a Trio run,
    nor in two threads at once.

    Args:
        seed: of chance. The seed of a failing run stands in the report, and may be given to the
            command ``python -m trio_sessions.testing.simulate --run``.
        steps: in all.
        workers: registries in each run, 2 to 5; None: 2, 3, 4 and 5 in turn.
        on_step: called after each step.

    Returns:
        What has happened; ``failures`` are empty if all is well.

    Raises:
        ValueError: a number is out of its range.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if workers is not None and not _FEWEST <= workers <= MOST_WORKERS:
        raise ValueError(f"workers must be {_FEWEST} to {MOST_WORKERS}, not {workers}")
    return play(plan(seed=seed, steps=steps, workers=workers), on_step=on_step)
