"""LoaderBase: a loader's parts and the ways to L1 and to flows that its public methods share; warm jobs."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import Any, Generic, NoReturn, TypeVar

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow, arun, run
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CallError
from cacheworkers.flows import read as reading
from cacheworkers.flows.invalidate import Invalidation, invalidate_calls
from cacheworkers.flows.keep_warm import hot
from cacheworkers.flows.loader_memory import LoaderMemory
from cacheworkers.flows.nested_read import nested_many
from cacheworkers.flows.ports import LoaderSpec, Ports, QueueKind
from cacheworkers.flows.read_many import one_by_one, read_many
from cacheworkers.flows.warm_up import UNLIMITED
from cacheworkers.local.blocking_call import warn_if_blocking
from cacheworkers.local.l1 import MISSING, Slot
from cacheworkers.runtime.loader_runner import LoaderRunner
from cacheworkers.runtime.store_reads import StoreReads
from cacheworkers.runtime.tag_invalidation import refuse_in_dirty_transaction
from cacheworkers.runtime.warm_job import Warmer, WarmJob
from cacheworkers.sql.watch.dirty_transactions import is_dirty

T = TypeVar("T")
#: Python 3.11 takes longer to look up a member of an Enum than to look in L1.
_FRESH = Freshness.FRESH


class LoaderBase(Generic[T]):
    """What `Loader` builds on: from arguments to a call, to its slot in L1, or to a flow."""

    def __init__(self, ports: Ports, spec: LoaderSpec, warmer: Warmer) -> None:
        self._warmer = warmer
        self._ports = ports
        self._spec = spec
        self._decode = spec.codec.decode  # one bound method for all reads
        self._bind = spec.signature.bind
        self._coherence = ports.coherence
        self._since = 0
        self._memory = LoaderMemory(ports, spec)
        self._l1_for = self._memory.keeps_for
        assert isinstance(ports.reader, LoaderRunner)
        self._runner = ports.reader
        self._reads = StoreReads(ports, spec, self._memory, ports.reader)
        self._index = self._memory.index
        self._value = self._memory.value
        self.__name__ = spec.name
        self.__qualname__: str = getattr(spec.function, "__qualname__", spec.name)
        self.__module__ = spec.function.__module__
        self.__doc__ = spec.function.__doc__
        self.__wrapped__ = spec.function

    @property
    def name(self) -> str:
        """The loader's name, first part of its calls."""
        return self._spec.name

    @property
    def policy(self) -> Any:
        """The loader's policy."""
        return self._spec.policy

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._spec.name}>"

    def __reduce__(self) -> str:
        """Pickle it by its name, as a function is pickled: another process has this loader of its own."""
        return self.__qualname__

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise CallError: a loader is read by its methods."""
        name = self._spec.name
        raise CallError(f"{name} is a loader: read it by {name}.get(...), or in a coroutine by await {name}.aget(...)")

    # -- from arguments to a flow

    def _slot(self, text: str) -> Slot | None:
        """Return the L1 slot that may answer now: not within a load, nor where a session is dirty."""
        slot = self._ports.l1.slots.get(text)
        if slot is None or not self._l1_for or self._reads.is_alone():
            return None
        now = monotonic()
        if now < slot.until and now - self._coherence.proven_at < self._l1_for and slot.entry.seq >= self._since:
            slot.reads += 1
            return slot
        return None

    def _read_slot(self, text: str) -> Read | None:
        slot = self._slot(text)
        value = MISSING if slot is None else self._value(slot)
        if value is MISSING:
            return None
        assert slot is not None
        entry: Entry = slot.entry
        now = self._ports.clock.now()
        return Read.of(now, entry, value, _served(entry, now), "l1", 0.0)

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, tuple[Any, ...] | None]:
        """Return the call, and the raw arguments if they may lead to it: there are no others, and they have a hash."""
        call = self._bind(args, kwargs)
        if kwargs:
            return call, None
        try:
            hash(args)
        except TypeError:
            return call, None
        return call, args

    def _revalidation(self, call: Call) -> Flow[bool]:
        """Claim whatever version is there, and enqueue it; a running backoff is not heeded."""
        raw = yield self._ports.store.get(call.text)
        seen = envelope.version_of(raw)
        queue: QueueKind = "revalidate" if seen else "miss"
        return (yield from reading.ask(self._ports, self._spec, call.text, seen, queue, heeds_backoff=False))

    def warm(
        self,
        calls: Iterable[Any] | None = None,
        *,
        max_rate: float = UNLIMITED,
        concurrency: int | None = None,
        min_fresh: float = 1.0,
    ) -> WarmJob:
        """Have workers load many calls before anybody reads them; return the job, which is already under way.

        Readers should not notice: fewer loads are under way while the `warm` queue is long, and none is asked for while
        readers' misses are queued.  Fresh entries are passed over.

        Args:
            calls: the argument of each, or a tuple of its arguments; None takes the hottest, `Config.warm_max_calls`.
            max_rate: most calls a second.
            concurrency: most calls under way; None takes `Config.warm_concurrency`.
            min_fresh: the share of calls that has to be fresh, 0 to 1; what is left then is not asked for.

        Raises:
            CallError: a call does not fit the loader; nothing is asked for.
            ConfigError: `max_rate`, `concurrency` or `min_fresh` is out of bounds.
            StoreUnavailable: without `calls`, the store does not answer.
        """
        texts = run(self._hottest()) if calls is None else self._texts(calls)
        return self._warmer.job(self._spec, texts, max_rate, concurrency, min_fresh)

    async def awarm(
        self,
        calls: Iterable[Any] | None = None,
        *,
        max_rate: float = UNLIMITED,
        concurrency: int | None = None,
        min_fresh: float = 1.0,
    ) -> WarmJob:
        """Have workers load many calls before anybody reads them; see `warm`.  The job can be awaited."""
        texts = await arun(self._hottest()) if calls is None else self._texts(calls)
        return self._warmer.job(self._spec, texts, max_rate, concurrency, min_fresh)

    def hot(self, limit: int = 100) -> list[tuple[str, float]]:
        """Return the hottest calls, each with its access score: reads by all processes, halved with every half-life."""
        return run(hot(self._ports, self._spec, limit))

    async def ahot(self, limit: int = 100) -> list[tuple[str, float]]:
        """Return the hottest calls; see `hot`."""
        return await arun(hot(self._ports, self._spec, limit))

    def _hottest(self) -> Flow[list[str]]:
        found = yield from hot(self._ports, self._spec, self._ports.config.warm_max_calls)
        return [call for call, _ in found]

    def _texts(self, calls: Iterable[Any]) -> list[str]:
        return list(dict.fromkeys(self._call_of(each).text for each in calls))

    def _call_of(self, arguments: Any) -> Call:
        """Return the call with an argument, or with a tuple of several where the loader takes several."""
        takes = len(self._spec.signature.parameters)
        if takes == 1:
            return self._one_key(arguments)
        if not isinstance(arguments, tuple):
            raise CallError(f"{self._spec.name} takes {takes} arguments: give a tuple of them, got {arguments!r}")
        return self._bind(arguments, {})

    # -- L1, and the flows of other reads

    def _json_hit(self, args: tuple[Any, ...]) -> Read | None:
        """Return what L1 has for raw positional arguments, if it may answer now."""
        try:
            slot = self._index.get(args)
        except TypeError:  # unhashable arguments have no place in the index
            return None
        if slot is not None:
            now, coherence = monotonic(), self._coherence
            if now < slot.until and now - coherence.usable_at < self._l1_for:
                slot.reads += 1
                return self._json_slot(slot, now)
        return None

    def _json_slot(self, slot: Slot, now: float) -> Read:
        entry: Entry = slot.entry
        now += self._ports.clock.offset  # `clock.now()`, without a call and a second look at the time
        age = now - entry.created
        freshness = _FRESH if now < entry.fresh_until else Freshness.STALE
        return Read(slot.payload, freshness, "l1", age if age > 0 else 0.0, entry.seq, 0.0, entry)

    def _peek(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Read | None]:
        call, _ = self._bound(args, kwargs)
        return reading.peek(self._ports, call, self._memory.options(call, None))

    def _invalidation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Flow[Invalidation]:
        call, _ = self._bound(args, kwargs)
        refuse_in_dirty_transaction(
            self._ports, f"invalidating {call.text}", "give its tags to cache.invalidate(..., session=)"
        )
        return invalidate_calls(self._ports, [call.text], "hard")

    def _warn_if_blocking(self) -> None:
        """Report a read that waits on this thread while an event loop runs there."""
        warn_if_blocking(self._spec.name)

    def _many(self, keys: Iterable[Any]) -> Flow[dict[Any, T]]:
        texts = self._spec.signature.texts(keys)
        outer = self._reads.outer_load()
        if is_dirty(self._ports):
            return one_by_one({key: self._one_key(key) for key in texts}, self._one)
        if outer is not None:
            calls = {key: self._one_key(key) for key in texts}
            # The batch's own list: what is read for a key is of that key, for a batch is any keys that came together.
            is_by_key = keys is outer.keys
            return nested_many(self._ports, self._spec, calls, self._decode, outer, is_by_key=is_by_key)
        self._ports.listener.start()
        return read_many(self._ports, self._spec, texts, self._memory)

    def _one_key(self, key: Any) -> Call:
        return self._bind((key,), {})

    def _one(self, call: Call) -> Flow[Read]:
        return self._reads.flow(call, call.arguments, self._decode)


def _served(entry: Entry, now: float) -> Freshness:
    """Return what L1 served an entry as: it may have expired by the time its age is computed."""
    freshness = entry.freshness(now)
    return freshness if freshness in (Freshness.FRESH, Freshness.STALE) else Freshness.STALE
