"""Load: what a loader is given; LoadCall, what `around_load` is given; and which load runs now."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, cast

from cacheworkers.core import envelope
from cacheworkers.errors import CallError, CodecError, ConfigError, EnvelopeError
from cacheworkers.flows.ports import LoaderSpec, Loading
from cacheworkers.policy import duration

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session
    from typing_extensions import TypeVar

    T = TypeVar("T", default=Any)
else:
    from typing import TypeVar

    T = TypeVar("T")

_EVERY: Any = object()


@dataclass(frozen=True, slots=True)
class LoadCall:
    """What `around_load` is given: one run of a loader.

    Attributes:
        loader: the loader's name.
        calls: texts of the calls that it loads, `product[42]`; several of a batch loader.
        where: "worker", or "reader" where a reader's process loads itself.
    """

    loader: str
    calls: tuple[str, ...]
    where: str

    def __str__(self) -> str:
        return self.calls[0] if len(self.calls) == 1 else f"{self.calls[0]} +{len(self.calls) - 1}"


#: Returns what surrounds a load: a context manager; for `async def` loaders it may be an async one.
AroundLoad = Callable[[LoadCall], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]


class _Load(Generic[T]):
    """What `Load` and `AsyncLoad` share."""

    __slots__ = ("_loader", "_loading", "_session", "_texts")

    def __init__(self, loader: LoaderSpec, loading: Loading, session: Any) -> None:
        self._loader = loader
        self._loading = loading
        self._session = session
        self._texts: Mapping[Hashable, str] = (
            {call.arguments[0]: call.text for call in loading.calls} if loader.is_batch else {}
        )

    def tag(self, *tags: str, key: Any = _EVERY) -> None:
        """Tag the entry with what is known only from the data.

        Args:
            tags: invalidating any of them drops the entry.
            key: in a batch loader, the key whose entry is meant; without it, all of the batch.

        Raises:
            CallError: the key is not one of this batch.
        """
        for text in self._texts_for(key):
            self._loading.tags.setdefault(text, []).extend(tags)

    def fresh_for(self, seconds: float, *, key: Any = _EVERY) -> None:
        """Let this entry be fresh for `seconds` instead of the policy's `fresh_for`; 0 stores it stale.

        Raises:
            ConfigError: not a number >= 0.
        """
        duration("fresh_for", seconds)
        for text in self._texts_for(key):
            self._loading.fresh_for[text] = seconds

    def no_store(self, *, key: Any = _EVERY) -> None:
        """Give this value to the reads that wait for it, and to no later one: half a page, a fallback.

        Whatever is built on it by a loader that reads this one is not stored either.

        Args:
            key: in a batch loader, the key whose value is meant; without it, all of the batch.

        Raises:
            CallError: the key is not one of this batch.
        """
        self._loading.unshared.update(self._texts_for(key))

    @contextlib.contextmanager
    def for_key(self, key: Any) -> Iterator[None]:
        """Say for which key of a batch other loaders are read: `with load.for_key(7): author.get(...)`.

        Their tags go to that key's entry alone.  Without it they go to all of the batch, unless `get_many` is given the
        very list of keys that the loader was given: then each key's go to its own.

        Raises:
            CallError: the key is not one of this batch.
        """
        [text] = self._texts_for(key)
        [call] = [each for each in self._loading.calls if each.text == text]
        inside = current.get()
        owner = None if inside is None else inside[0]
        token = current.set((owner, self._loading.only(call)))
        try:
            yield
        finally:
            current.reset(token)

    @property
    def previous(self) -> T | None:
        """The value that is in the store now, or None; a dict of them by key in a batch loader."""
        if self._loader.is_batch:
            found = {key: self._previous(text) for key, text in self._texts.items()}
            return cast(T, {key: value for key, value in found.items() if value is not None})
        return cast("T | None", self._previous(self._loading.calls[0].text))

    @property
    def deadline(self) -> float:
        """When the lease ends, on `time.monotonic()`'s clock, seconds."""
        return self._loading.deadline

    @property
    def remaining(self) -> float:
        """Seconds left until the deadline; never negative."""
        return max(0.0, self._loading.deadline - time.monotonic())

    def _previous(self, text: str) -> Any:
        raw = self._loading.previous.get(text)
        if raw is None:
            return None
        try:
            return self._loader.codec.decode(envelope.entry_of(raw, text, self._loader.fingerprint).payload)
        except (EnvelopeError, CodecError):
            return None

    def _texts_for(self, key: Any) -> list[str]:
        if key is _EVERY:
            return [call.text for call in self._loading.calls]
        if key not in self._texts:
            raise CallError(f"key must be one of this batch of {self._loader.name}, got {key!r}")
        return [self._texts[key]]

    def _the_session(self, option: str) -> Any:
        if self._session is None:
            raise ConfigError(f"{self._loader.name} uses load.session: give Cache(..., {option}=...)")
        return self._session


class Load(_Load[T]):
    """One load: a session of its own, and what to say about the entry."""

    __slots__ = ()

    @property
    def session(self) -> Session:
        """A new SQLAlchemy session, read-only, with the load's deadline as its statement timeout.

        It takes a connection at its first query, from the library's own pool, and is closed when the loader returns.

        Raises:
            ConfigError: the cache was made without `sessions`.
        """
        session: Session = self._the_session("sessions")
        return session


class AsyncLoad(_Load[T]):
    """One load by an `async def` loader."""

    __slots__ = ()

    @property
    def session(self) -> AsyncSession:
        """A new SQLAlchemy AsyncSession; see `Load.session`.

        Raises:
            ConfigError: the cache was made without `async_sessions`.
        """
        session: AsyncSession = self._the_session("async_sessions")
        return session


#: The load this thread or task is in; reads of other loaders then accept nothing older than its snapshot.
current: contextvars.ContextVar[tuple[object, Loading] | None] = contextvars.ContextVar(
    "cacheworkers_load", default=None
)
