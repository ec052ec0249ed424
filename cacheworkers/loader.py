"""Loader and BatchLoader: the sync and async reads of one declared loader; `get` answers a hit in L1 right here.

Each async method is the sync one with `a` in front; same parameters, same semantics.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.core.read_result import Read
from cacheworkers.flows.invalidate import Invalidation
from cacheworkers.flows.loader_memory import LoaderMemory, as_is
from cacheworkers.load_context import AsyncLoad, Load
from cacheworkers.local.l1 import MISSING
from cacheworkers.runtime.loader_base import LoaderBase
from cacheworkers.runtime.store_reads import StoreReads

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Key = TypeVar("Key", contravariant=True)
Value = TypeVar("Value", covariant=True)


class OneArgument(Protocol[Key, Value]):
    """A loader as `get_many` needs it, for type checkers: one key is all that it takes."""

    def get(self, key: Key, /) -> Value:
        """Return the value for a key."""
        ...

    def _many(self, keys: Iterable[Any]) -> Flow[dict[Any, Any]]: ...

    def _warn_if_blocking(self) -> None: ...


class Loader(LoaderBase[T], Generic[P, T]):
    """A cached function: reads serve entries, workers run the function.

    Made by `Cache.loader`.
    """

    def get(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the value for these arguments, from cache when it can.

        A fresh entry is returned as is.  A stale one is returned too, and one reader among all processes asks a
        worker to revalidate it.  A miss waits up to `policy.wait_for` seconds for the one worker that loads it.

        Two loads of one key can still overlap if a lease runs out or is taken over; only the one that holds the lease
        is stored.

        Raises:
            CallError: the arguments do not fit the loader.
            LoadTimeout: no value within `wait_for`, and this reader may not load it.
            LoadError: the load failed; kept until its backoff ends.
        """
        arguments = None
        if not kwargs:
            try:
                slot = self._index.get(args)
                arguments = args
            except TypeError:  # unhashable arguments lead nowhere
                slot = None
            if slot is not None:
                now, coherence = monotonic(), self._coherence
                if now < slot.until and now - coherence.usable_at < self._l1_for:
                    slot.reads += 1
                    value: T = slot.value
                    if value is not MISSING:
                        return value
                    value = self._value(slot)
                    if value is not MISSING:
                        return value
        call = self._bind(args, kwargs)
        if self._l1_for and (slot := self._slot(call.text)) is not None and (value := self._value(slot)) is not MISSING:
            return value
        found: T = self._reads.find(call, arguments, self._decode, False)
        return found

    async def aget(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the value for these arguments; see `get`."""
        reads, followed, arguments = self._reads, None, None
        if not kwargs:
            try:
                slot = self._index.get(args)
                arguments = args
                if slot is None and reads.crowds:
                    followed = reads.crowds.get(args)
            except TypeError:
                slot = None
            if slot is not None:
                now, coherence = monotonic(), self._coherence
                if now < slot.until and now - coherence.usable_at < self._l1_for:
                    slot.reads += 1
                    value: T = slot.value
                    if value is not MISSING:
                        return value
                    value = self._value(slot)
                    if value is not MISSING:
                        return value
        # What `StoreReads.afind` does, without a coroutine of its own for each task; those that follow in a crowd need
        # not even know the text of their call.
        started, call, crowd, found = monotonic(), None, None, None
        place = None if followed is None else reads.follow(followed, started)
        if place is None:
            call = self._bind(args, kwargs)
            slot = self._slot(call.text) if self._l1_for else None
            if slot is not None and (value := self._value(slot)) is not MISSING:
                return value
            place, crowd = reads.join(call.text, arguments, started)
        if place is not None:
            try:
                found = await place
            except BaseException as error:
                if not reads.is_only_the_look(error, place, crowd, started):
                    raise
            else:
                value = reads.settled(call, arguments, self._decode, False, started, crowd, found)
                if value is not MISSING:
                    return value
        value = await reads.alead(
            call or self._bind(args, kwargs), arguments, self._decode, False, started, crowd, found
        )
        return value

    def read(self, *args: P.args, **kwargs: P.kwargs) -> Read[T]:
        """Return the value with its freshness, tier, age in seconds and sequence number; raises as `get` does."""
        call, arguments = self._bound(args, kwargs)
        kept = self._read_slot(call.text)
        return kept or self._reads.find(call, arguments, self._decode, True)

    async def aread(self, *args: P.args, **kwargs: P.kwargs) -> Read[T]:
        """Return the value with its freshness, tier, age and sequence number; see `read`."""
        call, arguments = self._bound(args, kwargs)
        kept = self._read_slot(call.text)
        return kept or await self._reads.afind(call, arguments, self._decode, True)

    def get_json(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the value's JSON, never decoded: straight into a response; raises as `get` does."""
        call, arguments = self._bound(args, kwargs)
        slot = self._slot(call.text)
        payload: bytes = slot.payload if slot else self._reads.find(call, arguments, as_is, False)
        return payload

    async def aget_json(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the value's JSON, never decoded; see `get_json`."""
        call, arguments = self._bound(args, kwargs)
        slot = self._slot(call.text)
        payload: bytes = slot.payload if slot else await self._reads.afind(call, arguments, as_is, False)
        return payload

    def read_json(self, *args: P.args, **kwargs: P.kwargs) -> Read[bytes]:
        """Return what `read` does, with the value's JSON, never decoded, for a value; raises as `get` does."""
        if not kwargs and (hit := self._json_hit(args)):
            return hit
        call, arguments = self._bound(args, kwargs)
        slot = self._slot(call.text)
        return self._json_slot(slot, monotonic()) if slot else self._reads.find(call, arguments, as_is, True)

    async def aread_json(self, *args: P.args, **kwargs: P.kwargs) -> Read[bytes]:
        """Return what `aread` does, with the value's JSON for a value; see `read_json`."""
        if not kwargs and (hit := self._json_hit(args)):
            return hit
        call, arguments = self._bound(args, kwargs)
        slot = self._slot(call.text)
        return self._json_slot(slot, monotonic()) if slot else await self._reads.afind(call, arguments, as_is, True)

    def get_many(self: OneArgument[K, T], keys: Iterable[K]) -> dict[K, T]:
        """Return key -> value of a loader with one argument, in the keys' order, duplicates once.

        One round trip for hits, one for the claims of misses, one wait of `wait_for` seconds for all of them.  Each
        miss is a load of its own.  Misses of a batch loader are one task for each `Config.batch_size` keys, and those
        that no worker has begun in time are one call of the function here.

        Raises:
            CallError: the loader does not take exactly one argument.
            LoadErrors: some keys have no value; it carries those that have.
        """
        return run(self._many(keys), self._warn_if_blocking)

    async def aget_many(self: OneArgument[K, T], keys: Iterable[K]) -> dict[K, T]:
        """Return key -> value of a loader with one argument; see `get_many`."""
        return await arun(self._many(keys))

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Read[T] | None:
        """Return what is in the store, fresh, stale or lapsed; never loads, never enqueues.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return run(self._peek(args, kwargs), self._warn_if_blocking)

    async def apeek(self, *args: P.args, **kwargs: P.kwargs) -> Read[T] | None:
        """Return what is in the store; see `peek`."""
        return await arun(self._peek(args, kwargs))

    def revalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Ask workers to load this now; True if this call enqueued it, False if it is being loaded already."""
        return run(self._revalidation(self._bind(args, kwargs)))

    async def arevalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Ask workers to load this now; see `revalidate`."""
        return await arun(self._revalidation(self._bind(args, kwargs)))

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Invalidation:
        """Drop one entry: no read that begins after this returns sees a value loaded before.

        Raises:
            InvalidationIncomplete: the store failed; nothing is acknowledged.
            CallError: this context has an open transaction that has changed what is watched.
        """
        return run(self._invalidation(args, kwargs))

    async def ainvalidate(self, *args: P.args, **kwargs: P.kwargs) -> Invalidation:
        """Drop one entry; see `invalidate`."""
        return await arun(self._invalidation(args, kwargs))

    def since(self, done: Invalidation) -> Self:
        """Return a view of this loader that takes nothing loaded before an invalidation: read your own writes."""
        view = object.__new__(type(self))
        view.__dict__ |= self.__dict__
        view._since = done.seq
        view._memory = LoaderMemory(self._ports, self._spec, done.seq)
        view._index, view._value = view._memory.index, view._memory.value
        view._reads = StoreReads(self._ports, self._spec, view._memory, self._runner)
        return view


class BatchLoader(Loader[[K], V], Generic[K, V]):
    """A cached function of many keys: one query loads what is missing of a batch.

    Made by `Cache.batch_loader`, and read as a `Loader` whose one argument is a key.  A key that the function leaves
    out is None, or raises `KeyMissing` if V has no None.
    """


class DeclareLoader(Protocol):
    """What `Cache.loader(...)` returns: takes the function, keeps its arguments' and result's types."""

    @overload
    def __call__(self, function: Callable[Concatenate[AsyncLoad, P], Awaitable[T]], /) -> Loader[P, T]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Load, P], T], /) -> Loader[P, T]: ...


class DeclareBatchLoader(Protocol):
    """What `Cache.batch_loader(...)` returns."""

    @overload
    def __call__(self, function: Callable[[AsyncLoad, list[K]], Awaitable[dict[K, V]]], /) -> BatchLoader[K, V]: ...
    @overload
    def __call__(self, function: Callable[[Load, list[K]], dict[K, V]], /) -> BatchLoader[K, V]: ...
