"""Named phases of a step, for whoever wants to know what each of them takes.

    with span("ascend"):
        ...

does nothing, without an object of its own and in less than 0.2 us, in less than 0.4 us while another thread listens, unless somebody
listens in this one::

    with listen(recorder):  # anything with enter(name) and leave(name)
        optimizer.step(closure)

The optimizers mark ``first pass``, ``second pass``, ``ascend`` and ``descend``, and inside of them what they do themselves; code that is
called by them, a closure for example, may mark more: ``forward``, ``backward``. Spans nest, and end when an exception passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from threading import Lock
from typing import ParamSpec, Protocol, TypeVar

from torch.compiler import is_dynamo_compiling

P = ParamSpec("P")
R = TypeVar("R")


class Listener(Protocol):
    def enter(self, name: str) -> None:
        """A phase begins."""

    def leave(self, name: str) -> None:
        """The phase that began last ends, normally or by an exception."""


_current: ContextVar[Listener | None] = ContextVar("sam_kernels_listener", default=None)  # threads begin with the default
_lock = Lock()


class _Nothing:
    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, value: object, trace: object) -> None:  # no *args: they would be packed
        pass


class _Span:
    __slots__ = ("_listener", "_name")

    def __init__(self, listener: Listener, name: str) -> None:
        self._listener, self._name = listener, name

    def __enter__(self) -> None:
        self._listener.enter(self._name)

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._listener.leave(self._name)


class _Several:
    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def enter(self, name: str) -> None:
        for listener in self._listeners:
            listener.enter(name)

    def leave(self, name: str) -> None:
        for listener in reversed(self._listeners):
            listener.leave(name)


_NOTHING = _Nothing()
_listening = 0  # calls of listen() in all threads: a plain number is what torch.compile can look at without cutting a graph


def span(name: str) -> AbstractContextManager[None]:
    """A context for one phase. The listener that it begins with is the one that hears of its end."""
    if not _listening:
        return nullcontext() if is_dynamo_compiling() else _NOTHING  # dynamo traces a context that it sees being made
    listener = _current.get()
    return _NOTHING if listener is None else _Span(listener, name)


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: every call is a span."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _listening:
                return function(*args, **kwargs)
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def listen(*listeners: Listener) -> Iterator[None]:
    """Inside, in this thread, spans are told to ``listeners``, instead of to those of an outer ``listen``."""
    global _listening
    token = _current.set(listeners[0] if len(listeners) == 1 else _Several(*listeners))
    with _lock:
        _listening += 1
    try:
        yield
    finally:
        with _lock:
            _listening -= 1
        _current.reset(token)


def listener() -> Listener | None:
    """Who listens in this thread: for ``carried``."""
    return _current.get() if _listening else None


def carried(listener: Listener | None) -> AbstractContextManager[None]:
    """Inside, the listener of another thread that waits for this one: that of a forward, in the thread where autograd runs the backward
    of a GPU."""
    if listener is None:
        return nullcontext() if is_dynamo_compiling() else _NOTHING
    return _NOTHING if listener is _current.get() else listen(listener)
