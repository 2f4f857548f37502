"""What a history that was pasted, and edited, may say: a word that nobody knows is refused."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from hypothesis import stateful
from hypothesis import strategies as st

from trio_sessions.testing._machine._door import Reach
from trio_sessions.testing._machine._lines import LineState

__all__ = ["OUTAGES", "SESSIONS", "WORKERS", "rule", "with_known_words"]


class _Machine(Protocol):
    def _close(self) -> None: ...


M = TypeVar("M", bound=_Machine)
P = ParamSpec("P")

SESSIONS = ("a", "b")
WORKERS = (0, 1)
OUTAGES = {"none": Reach.AWAY, "lost": Reach.ANSWERS_LOST, "late": Reach.SLOW}

_WORDS: Mapping[str, Collection[object]] = {
    "worker": WORKERS,
    "session": SESSIONS,
    "answers": tuple(OUTAGES),
    "to": tuple(one.value for one in LineState),
}


def with_known_words(
    step: Callable[Concatenate[M, P], None],
) -> Callable[Concatenate[M, P], None]:
    """Let a rule raise `ValueError` for a worker, a session or a word that it does not know.

    Whatever it raises ends the history, with its run of Trio: pasted code has no ``finally``, and
    no other run could begin.
    """
    signature = inspect.signature(step)

    @functools.wraps(step)
    def checked(machine: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            given = signature.bind(machine, *args, **kwargs).arguments
            for name, value in given.items():
                _check(step.__name__, name, value)
            step(machine, *args, **kwargs)
        except BaseException:  # the fleet is closed; raised again
            machine._close()  # noqa: SLF001 -- of the class whose rules these are
            raise

    return checked


def rule(
    **strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[Concatenate[M, P], None]], Callable[Concatenate[M, P], None]]:
    """Mark a rule of Hypothesis', as its ``rule`` does; it is one `with_known_words`."""
    of_hypothesis: Any = stateful.rule  # whose types know rules with targets, and no mapping

    def mark(step: Callable[Concatenate[M, P], None]) -> Callable[Concatenate[M, P], None]:
        marked: Callable[Concatenate[M, P], None]
        marked = of_hypothesis(**strategies)(with_known_words(step))
        return marked

    return mark


def _check(step: str, name: str, value: Any) -> None:
    if name == "workers":
        for one in value:
            _expect(f"a worker of {step}(workers=...)", one, WORKERS)
    elif name == "held_by":
        for session, worker in value.items():
            _expect(f"a session of {step}(held_by=...)", session, SESSIONS)
            _expect(f"the worker of {session!r} in {step}(held_by=...)", worker, WORKERS)
    elif name in _WORDS:
        _expect(f"{step}({name}=...)", value, _WORDS[name])


def _expect(what: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}")
