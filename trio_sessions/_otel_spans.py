"""Spans of OpenTelemetry, of what a registry tells about what it does."""

import inspect
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

__all__ = ["Spans"]

S = TypeVar("S")


class Spans:
    """What `trio_sessions._tracing.Tracing` is told of, as spans.

    Args:
        tracer: makes them.
        slow: seconds from which on an operation of the store is one, if it does not fail.
    """

    def __init__(self, tracer: "Tracer", slow: float) -> None:
        self._tracer = tracer
        self._slow = slow

    @contextmanager
    def span(self, name: str) -> Iterator["_Noted"]:
        """Open a span for the block, the parent of those that begin in it."""
        # Else the SDK would record texts of errors with their tracebacks.
        with self._tracer.start_as_current_span(
            name, _parent(), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield _Noted(span)
            except Exception as exc:  # noted in the span; raised again
                _blame(span, exc)
                raise

    def watch(self, store: S) -> S:
        """Return the store, wrapped so that its operations make spans."""
        return cast("S", _Watched(store, self))

    async def operate(
        self, name: str, operation: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
    ) -> Any:
        """Await an operation of the store. Its span is made afterwards, if there is to be one."""
        moment, began = time.time_ns(), time.perf_counter()
        error: Exception | None = None
        try:
            return await operation(*args, **kwargs)
        except Exception as exc:  # noted in the span; raised again
            error = exc
            raise
        finally:
            took = time.perf_counter() - began
            if error is not None or took >= self._slow:
                self._note_operation(name, moment, took, error)

    def _note_operation(self, name: str, moment: int, took: float, error: Exception | None) -> None:
        from opentelemetry.trace import SpanKind

        span = self._tracer.start_span(
            f"trio_sessions.store.{name}", _parent(), SpanKind.CLIENT, start_time=moment
        )
        if error is not None:
            _blame(span, error)
        span.end(moment + int(took * 1e9))


class _Noted:
    def __init__(self, span: "Span") -> None:
        self._span = span

    def note(self, **facts: float) -> None:
        for name, fact in facts.items():
            self._span.set_attribute(f"trio_sessions.{name}", fact)


class _Watched:
    def __init__(self, store: object, spans: Spans) -> None:
        self._store = store
        self._spans = spans

    def commit_at_once(self, *args: object) -> None:
        """Leave it to ``commit``: an operation has a span where it is awaited."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        def operate(*args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
            operation: Any = self._spans.operate(name, found, *args, **kwargs)
            operation.__qualname__ = found.__qualname__  # it is named where its answer is no answer
            return cast("Coroutine[Any, Any, Any]", operation)

        return operate


def _parent() -> "Context | None":
    """Return an empty context where the current span is one that has ended; None: the current one.

    What goes on in the background was begun in a span, perhaps that of the program's start.
    """
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span

    return None if getattr(get_current_span(), "end_time", None) is None else Context()


def _blame(span: "Span", error: Exception) -> None:
    """Note an error's type in the span, and not its text: that may have secrets in it."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR))
    span.set_attribute("error.type", type(error).__name__)
