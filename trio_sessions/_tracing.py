"""What is told to whoever traces a registry: spans that begin and end. Nobody does by default."""

import contextlib
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, TypeVar

import trio

__all__ = ["Phase", "Span", "Tracer", "Tracing"]

S = TypeVar("S")


class Span(Protocol):
    """A span: something that takes time, and is under way."""

    def note(self, **facts: float) -> None:
        """Note numbers of it; never an id."""
        ...


class Tracer(Protocol):
    """A maker of spans of what a registry does."""

    def span(self, name: str) -> AbstractContextManager[Span]:
        """Return a span, which lasts as long as its block."""
        ...

    def watch(self, store: S) -> S:
        """Return the store, wrapped so that its operations are traced."""
        ...


class _NoSpan(contextlib.nullcontext["_NoSpan"]):
    def __enter__(self) -> Self:
        return self

    def note(self, **facts: float) -> None:
        pass


_NO_SPAN = _NoSpan()


class Tracing:
    """The tracer of a registry, once `use` has set one."""

    def __init__(self) -> None:
        self._tracer: Tracer | None = None

    @property
    def is_used(self) -> bool:
        """Whether anybody traces."""
        return self._tracer is not None

    def use(self, tracer: Tracer) -> None:
        """Trace by ``tracer`` from now on, in the place of an earlier one."""
        self._tracer = tracer

    def span(self, name: str) -> AbstractContextManager[Span]:
        """Return a span of the package's; one that costs nothing if nobody traces."""
        return _NO_SPAN if self._tracer is None else self._tracer.span(f"trio_sessions.{name}")

    def watch(self, store: S) -> S:
        """Return the store, to be asked once; watched, if anybody traces."""
        return store if self._tracer is None else self._tracer.watch(store)


class Phase:
    """A phase of a pass: a span, and the seconds that it took."""

    def __init__(self, tracing: Tracing, name: str) -> None:
        self.seconds = 0.0
        self._span = tracing.span(f"pass.{name}")
        self._began = 0.0

    def __enter__(self) -> Self:
        self._span.__enter__()
        self._began = trio.current_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.seconds = trio.current_time() - self._began
        self._span.__exit__(kind, error, traceback)
