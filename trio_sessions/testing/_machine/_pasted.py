"""What a history that was pasted, and edited, may say: a word that nobody knows is refused."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

from hypothesis import stateful
from hypothesis import strategies as st

from trio_sessions.testing._machine._door import Reach

__all__ = [
    "BATCH_SIZES",
    "LONGER",
    "OUTAGES",
    "SEEDS",
    "SESSIONS",
    "SOME_WORKERS",
    "WORKERS",
    "rule",
    "with_known_words",
]


class _Machine(Protocol):
    def _close(self) -> None: ...


M = TypeVar("M", bound=_Machine)
P = ParamSpec("P")

SESSIONS = ("a", "b")
WORKERS = (0, 1)
OUTAGES = {"none": Reach.AWAY, "lost": Reach.ANSWERS_LOST, "late": Reach.SLOW}

SOME_WORKERS = ((0,), (1,), WORKERS)
BATCH_SIZES = (1, 1000)
SEEDS = range(8)
LONGER = (1, 5)

Step = Callable[Concatenate[M, P], None]
Only = tuple[Callable[[Any], bool], str]
"""Whether a step can be played, of a machine, and what is said where it cannot."""


def with_known_words(
    only: Only | None = None, **words: Collection[object]
) -> Callable[[Step[M, P]], Step[M, P]]:
    """Let a rule refuse what it is never given by Hypothesis.

    With `ValueError` for a word that is none of ``words``, by argument; with `RuntimeError` where
    it is not to be played. Whatever it raises ends the history, with its run of Trio: pasted code
    has no ``finally``, and no other run could begin.
    """

    def mark(step: Step[M, P]) -> Step[M, P]:
        signature = inspect.signature(step)

        @functools.wraps(step)
        def checked(machine: M, /, *args: P.args, **kwargs: P.kwargs) -> None:
            try:
                given = signature.bind(machine, *args, **kwargs).arguments
                for name, value in given.items():
                    _check(step.__name__, name, value, words)
                if only is not None and not only[0](machine):
                    raise RuntimeError(f"{step.__name__}() is played {only[1]}")
                step(machine, *args, **kwargs)
            except BaseException:  # the fleet is closed; raised again
                machine._close()  # noqa: SLF001 -- of the class whose rules these are
                raise

        return checked

    return mark


def rule(only: Only | None = None, **words: Sequence[Any]) -> Callable[[Step[M, P]], Step[M, P]]:
    """Mark a rule of Hypothesis', as its ``rule`` does; it is one `with_known_words`.

    Args:
        only: its precondition.
        words: by argument, what it may be given.
    """
    of_hypothesis: Any = stateful  # whose types know rules with targets, and no mapping
    drawn = {name: _drawn(values) for name, values in words.items()}

    def mark(step: Step[M, P]) -> Step[M, P]:
        marked = of_hypothesis.rule(**drawn)(with_known_words(only, **words)(step))
        if only is not None:
            marked = of_hypothesis.precondition(only[0])(marked)
        return cast("Step[M, P]", marked)

    return mark


def _drawn(values: Sequence[Any]) -> st.SearchStrategy[Any]:
    if isinstance(values, range):
        return st.integers(values[0], values[-1])
    return st.sampled_from(values)


def _check(step: str, name: str, value: Any, words: Mapping[str, Collection[object]]) -> None:
    if name == "held_by":
        for session, worker in value.items():
            _expect(f"a session of {step}(held_by=...)", session, SESSIONS)
            _expect(f"the worker of {session!r} in {step}(held_by=...)", worker, WORKERS)
    elif name in words:
        _expect(f"{step}({name}=...)", value, words[name])


def _expect(what: str, value: object, known: Collection[object]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {', '.join(map(repr, known))}, not {value!r}")
