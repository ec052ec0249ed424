"""Cache: wires this process's parts together, declares loaders, and invalidates."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from cacheworkers.config import Config
from cacheworkers.core.calls import Signature, loader_name_of
from cacheworkers.core.codec import Codec, annotation_of
from cacheworkers.core.keys import Keyspace
from cacheworkers.core.tags import TagTemplates, check_tag
from cacheworkers.errors import CallError, ConfigError, DeclarationError, StoreError, UnknownLoader
from cacheworkers.events import Event, Hook, MalformedTask, StoreBack, StoreLost, Swept, Undelivered, UnknownTask
from cacheworkers.flows.driver import Flow, arun, run
from cacheworkers.flows.explain import Explanation, explain, stored
from cacheworkers.flows.inspect import Inspection
from cacheworkers.flows.inspect import inspect as inspect_entries
from cacheworkers.flows.invalidate import Invalidation, Mode, invalidate_tags, members_of
from cacheworkers.flows.load import load
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.reload import count_entries, reload_tags
from cacheworkers.flows.sweep import sweep
from cacheworkers.flows.wait import Pause
from cacheworkers.flows.warm import Warming, hot, tell_heat, warm, warm_hot
from cacheworkers.load import AsyncLoad, Load
from cacheworkers.loader import BatchLoader, Loader
from cacheworkers.local.breaker import Breaker
from cacheworkers.local.bulkhead import Bulkhead
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.gate import Gate
from cacheworkers.local.l1 import L1
from cacheworkers.local.ticker import Ticker
from cacheworkers.local.waiters import Waiters
from cacheworkers.policy import Policy
from cacheworkers.runner import LoaderRunner
from cacheworkers.sql.delivery import Delivered
from cacheworkers.sql.drain import drain_outbox, sync_engine_of
from cacheworkers.sql.outbox import Outbox
from cacheworkers.sql.postgres import Ear, Triggers
from cacheworkers.sql.sessions import Sessions
from cacheworkers.sql.watch import AnySession, TagsOf, Watch, dirty_here
from cacheworkers.store.link import Link
from cacheworkers.store.listener import Listener
from cacheworkers.store.store import Store
from cacheworkers.workers import LoaderInfo, bind
from cacheworkers.workers.local import LocalWorkers

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

log = logging.getLogger("cacheworkers")
#: How long a draining process waits at most before it looks again, seconds.
DRAIN_WITHIN = 1.0
_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


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


class Cache:
    """One process's way to cached values; make one at import, next to the Celery app and the engine."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        celery: Celery | None = None,
        sessions: sessionmaker[Session] | None = None,
        async_sessions: async_sessionmaker[AsyncSession] | None = None,
        hook: Hook | None = None,
    ) -> None:
        """
        Args:
            config: this process's settings; None takes them from the environment.
            celery: your Celery app, whose workers will load; None loads on threads of this process.
            sessions: makes the sessions that loaders get; loads use a pool of their own.
            async_sessions: the same for `async def` loaders.
            hook: called with every event; must be quick and must not raise.
        """
        self.config = config = Config.from_env() if config is None else config
        self._hook = hook
        self._loaders: dict[str, LoaderSpec] = {}
        self._background: ThreadPoolExecutor | None = None
        self._undeliverable_until = 0.0

        keys = Keyspace(config.namespace, config.tag_shards)
        clock, gate = StoreClock(), Gate()
        breaker = Breaker(config.breaker_for)
        link = Link(
            config,
            breaker,
            clock,
            on_lost=lambda error: self._emit(StoreLost(error)),
            on_back=lambda: self._emit(StoreBack()),
        )
        l1, waiters = L1(config.l1_entries, config.l1_bytes), Waiters()

        def on_entry(call: str) -> None:
            l1.drop(call)
            waiters.wake(call)

        def on_lost() -> None:
            l1.bump_all()
            waiters.wake_all()

        def on_gap() -> None:
            l1.clear()
            waiters.wake_all()

        listener = Listener(
            link,
            keys,
            gate,
            clock,
            timeout=max(1.0, config.store_timeout),
            on_entry=on_entry,
            on_failure=waiters.wake,
            on_lost=on_lost,
            on_gap=on_gap,
            emit=self._emit,
        )
        self.outbox = Outbox(config.namespace)
        self._delivered = Delivered(self.outbox)
        self._watches: list[Watch] = []
        self._triggers: list[Triggers] = []
        self._outbox_engine: Engine | None = sync_engine_of(sessions.kw.get("bind")) if sessions else None
        self._bulkhead = Bulkhead(config.bulkhead)
        self._sessions = Sessions(sessions, async_sessions, pool_size=config.bulkhead)
        self._ports = ports = Ports(
            config=config,
            store=Store(link, keys, batch_size=config.batch_size),
            listener=listener,
            clock=clock,
            gate=gate,
            l1=l1,
            waiters=waiters,
            dispatcher=None,  # type: ignore[arg-type]  # set below: it needs what is made from these ports
            reader=LoaderRunner(self, "reader", self._sessions, self._bulkhead, gate),
            worker=LoaderRunner(self, "worker", self._sessions, self._bulkhead, gate),
            emit=self._emit,
            release_soon=self._release_soon,
        )
        l1.on_gone = ports.heat.note_gone
        self._teller = Ticker("cacheworkers-heat", config.heat_every, self.tell_heat)
        listener.on_start = self._teller.start
        if celery is None:
            self._workers: Any = LocalWorkers(config, perform=self.perform)
        else:
            self._workers = bind(
                celery,
                config,
                perform=self.perform,
                undelivered=self._undelivered,
                upkeep={
                    "sweep": (self.sweep, config.sweep_every),
                    "drain_outbox": (self._drain_if_watching, config.drain_every),
                    **({"warm": (self.warm, config.warm_every)} if config.warm_every else {}),
                },
                emit=self._emit,
                reset_after_fork=self._reset_after_fork,
                waited_for=lambda: ports.waiters.calls,
                has_run=lambda task: ports.store.note_beat(task).run(),
            )
        ports.dispatcher = _Deliverable(self, self._workers)
        _caches.add(self)

    # -- declaring loaders

    def loader(
        self, *, tags: Iterable[str] = (), name: str | None = None, rate_limit: str | None = None, **policy: Any
    ) -> DeclareLoader:
        """Declare a function `(load, ...)` as a loader.

        Args:
            tags: templates such as `"product:{product_id}"`, filled from the arguments.
            name: unique in this cache; None takes the function's.
            rate_limit: Celery's, for this loader's task: `"100/s"`.
            policy: the fields of `Policy`, or `policy=` a whole one with some of them changed.

        Raises:
            DeclarationError: the function cannot be a loader, or its name is taken.
            ConfigError: a policy field breaks a rule.
        """

        def declare(function: Callable[..., Any]) -> Loader[..., Any]:
            return Loader(self, self._ports, self._declare(function, tags, name, rate_limit, policy, is_batch=False))

        return declare  # type: ignore[return-value]  # one function answers both overloads

    def batch_loader(
        self, *, tags: Iterable[str] = (), name: str | None = None, rate_limit: str | None = None, **policy: Any
    ) -> DeclareBatchLoader:
        """Declare a function `(load, keys: list[K]) -> dict[K, V]` as a loader of many keys at once.

        A key left out of the dict is None, or `KeyMissing` if V has no None.  In `tags`, `{key}` is one element.
        Arguments and errors as for `loader`.
        """

        def declare(function: Callable[..., Any]) -> BatchLoader[Any, Any]:
            return BatchLoader(
                self, self._ports, self._declare(function, tags, name, rate_limit, policy, is_batch=True)
            )

        return declare

    # -- invalidating

    def invalidate(
        self, *tags: str, mode: Mode = "hard", session: AnySession | None = None, dry_run: bool = False
    ) -> Invalidation:
        """Invalidate every entry that has any of the tags; call it after the commit.

        Once this has returned, no read through the store returns a value whose load began before; in other
        processes L1 follows within the push's delay, and at worst within `l1_for`.

        Args:
            mode: "hard", the next read sees new data; "soft", it sees the old as stale while workers reload; "reload",
                soft, and what is hot is reloaded at once.
            dry_run: invalidate nothing; what is returned has the number 0 and counts the tags' members.
            session: a watched one whose transaction is open: the tags go into the outbox with it, and are invalidated
                after its commit.  What is returned then has the number 0: it is not done yet.

        Raises:
            InvalidationIncomplete: the store failed; nothing is acknowledged.
            CallError: no tag; or this context has an open transaction that has changed what is watched, and it is not
                given: a load before the commit would bring the old value back.
            TagError: a tag is empty, too long or holds control characters.
        """
        if session is not None:
            self._watch_of(session, mode).add(session, tags)
            return Invalidation(0, 0)
        return run(self._invalidation(tags, mode, dry_run))

    async def ainvalidate(
        self, *tags: str, mode: Mode = "hard", session: AnySession | None = None, dry_run: bool = False
    ) -> Invalidation:
        """Invalidate every entry that has any of the tags; see `invalidate`."""
        if session is not None:
            await self._watch_of(session, mode).aadd(session, tags)
            return Invalidation(0, 0)
        return await arun(self._invalidation(tags, mode, dry_run))

    # -- watching what changes

    def watch(self, sessions: Any, mapping: Mapping[Any, TagsOf], *, check: bool = True) -> None:
        """Invalidate with every commit of these sessions what their units of work have changed.

        Tags are made of old and new column values, and written to the outbox in the same transaction: once it is
        committed they will be invalidated, whatever dies.  Until then reads of its own context run their loaders on
        the session itself, unless the transaction has touched none of their tags; a deletion counts from its flush.

        Args:
            sessions: a `sessionmaker`, a `Session` class, or their async kinds.
            mapping: mapped class, or association `Table`, -> function of a row's columns to its tags:
                `{Product: lambda row: (f"product:{row.id}", f"category:{row.category_id}")}`.
            check: make sure now that the outbox table is there; False where this module is also what migrates, which
                then calls `cache.outbox.check(engine)` itself before it serves.

        Raises:
            ConfigError: a key is neither, `sessions` is something else, or the outbox table is not there.
        """
        watch = Watch(
            mapping,
            self.outbox,
            max_tag_bytes=self.config.max_tag_bytes,
            invalidation=lambda tags: invalidate_tags(self._ports, tags, "hard"),
            delivered=self._delivered.note,
            undelivered=self._left_in_outbox,
            dirty=self._ports.gate.bypass,
            clean=self._ports.gate.unbypass,
        )
        watch.install(sessions, self._watches, check=check)
        self._watches.append(watch)
        bind = getattr(sessions, "kw", {}).get("bind")
        self._outbox_engine = self._outbox_engine or sync_engine_of(bind)

    def triggers(self, templates: Mapping[str, Sequence[str]]) -> Triggers:
        """Return Postgres triggers that write the outbox for whatever changes a table: psql, bulk statements, others.

        Args:
            templates: table -> tags with its columns: `{"price": ["product:{product_id}"]}`.

        Raises:
            ConfigError: a name or a template is malformed.
        """
        declared = Triggers(self.config.namespace, templates, self.outbox.table.name)
        self._triggers.append(declared)
        return declared

    def drain(self, engine: Engine | None = None) -> int:
        """Deliver what the outbox still holds, and return how many rows that were.

        If the store was restarted or replaced since the last drain, what was delivered within `replay_for` is
        delivered anew.

        Args:
            engine: of the database with the outbox; None takes that of the watched sessions.

        Raises:
            ConfigError: there is no engine to be had.
            InvalidationIncomplete, StoreUnavailable: the store failed; the rows stay.
        """
        engine = engine or self._outbox_engine
        if engine is None:
            raise ConfigError("drain needs an engine: no session that this cache watches is bound to one")
        return drain_outbox(self._ports, self.outbox, engine)

    def drain_until(self, stop: threading.Event, engine: Engine | None = None) -> None:
        """Drain again and again until told to stop: at once when a trigger notifies, and every second at the least.

        Args:
            engine: as for `drain`; on Postgres with psycopg, one connection of it listens.
        """
        engine = engine or self._outbox_engine
        if engine is None:
            raise ConfigError("drain_until needs an engine: no session that this cache watches is bound to one")
        while not stop.is_set():
            try:
                with engine.connect() as connection:
                    ear = Ear(connection, self.config.namespace) if engine.dialect.driver == "psycopg" else None
                    while not stop.is_set():
                        self.drain(engine)
                        if ear is None:
                            stop.wait(DRAIN_WITHIN)
                        else:
                            ear.wait(DRAIN_WITHIN)
            except Exception as error:  # the database or the store is away; the rows stay
                log.warning("the drain goes on in a second: %s", error)
                stop.wait(DRAIN_WITHIN)

    # -- looking inside

    def inspect(self, sample: int = 1000, *, grace: float = 1.0, rate: float = 100.0) -> Inspection:
        """Compare live entries with what their loaders return now: the share that is wrong, with the evidence.

        Safe on production: it only reads, and loads at most `rate` entries a second, in this thread.

        Args:
            sample: most entries to compare, chosen at random.
            grace: an entry that differs is looked at again so many seconds later; it counts if it still does.
        """
        return run(inspect_entries(self._ports, self._loaders, sample, grace, Pause, rate))

    async def ainspect(self, sample: int = 1000, *, grace: float = 1.0, rate: float = 100.0) -> Inspection:
        """Compare live entries with what their loaders return now; see `inspect`."""
        return await arun(inspect_entries(self._ports, self._loaders, sample, grace, Pause, rate))

    def explain(self, call: str) -> Explanation:
        """Return what a read of a call's text would get now, tier by tier, and why; nothing is loaded or claimed.

        Raises:
            UnknownLoader, CallError: it is no call of a loader that this process declares.
        """
        return run(explain(self._ports, self._spec_of(call), call))

    async def aexplain(self, call: str) -> Explanation:
        """Return what a read of a call's text would get now, and why; see `explain`."""
        return await arun(explain(self._ports, self._spec_of(call), call))

    def stored(self, call: str) -> bytes | None:
        """Return the stored JSON of a call's text, whatever its freshness; None if there is none."""
        return run(stored(self._ports, self._spec_of(call), call))

    async def astored(self, call: str) -> bytes | None:
        """Return the stored JSON of a call's text; see `stored`."""
        return await arun(stored(self._ports, self._spec_of(call), call))

    def hot(self, loader: str, most: int = 100) -> list[tuple[str, float]]:
        """Return the hottest calls of a loader by its name; see `Loader.hot`."""
        return run(hot(self._ports, self._named(loader).name, most))

    async def ahot(self, loader: str, most: int = 100) -> list[tuple[str, float]]:
        """Return the hottest calls of a loader by its name; see `hot`."""
        return await arun(hot(self._ports, self._named(loader).name, most))

    def warm_many(self, loader: str, keys: Iterable[Any]) -> Warming:
        """Have workers load many keys of a loader by its name; see `Loader.warm_many`."""
        return run(self._warming(loader, keys))

    async def awarm_many(self, loader: str, keys: Iterable[Any]) -> Warming:
        """Have workers load many keys of a loader by its name; see `warm_many`."""
        return await arun(self._warming(loader, keys))

    def call(self, loader: str, *args: Any, **kwargs: Any) -> str:
        """Return the text of a loader's call with these arguments: `product[42]`.

        Raises:
            UnknownLoader, CallError: there is no such loader, or they do not fit it.
        """
        return self._named(loader).signature.bind(args, kwargs).text

    def calls_of(self, tag: str, most: int = 1000) -> list[str]:
        """Return calls whose entries have a tag, at most so many: what an invalidation of it would drop."""
        return run(members_of(self._ports, check_tag(tag, self.config.max_tag_bytes), most))

    async def acalls_of(self, tag: str, most: int = 1000) -> list[str]:
        """Return calls whose entries have a tag; see `calls_of`."""
        return await arun(members_of(self._ports, check_tag(tag, self.config.max_tag_bytes), most))

    # -- upkeep

    def warm(self) -> dict[str, Warming]:
        """Have workers revalidate hot entries that go stale soon; loader -> what was done.  Beat calls it."""
        return {name: run(warm_hot(self._ports, spec)) for name, spec in list(self._loaders.items())}

    async def awarm(self) -> dict[str, Warming]:
        """Have workers revalidate hot entries that go stale soon; see `warm`."""
        return {name: await arun(warm_hot(self._ports, spec)) for name, spec in list(self._loaders.items())}

    def tell_heat(self) -> int:
        """Add what this process has read to the store's heat; how many calls.  A thread does it by itself."""
        return run(tell_heat(self._ports))

    async def atell_heat(self) -> int:
        """Add what this process has read to the store's heat; see `tell_heat`."""
        return await arun(tell_heat(self._ports))

    def sweep(self) -> Swept:
        """Drop what has expired from tag sets, and finish invalidations whose process died."""
        return run(sweep(self._ports))

    async def asweep(self) -> Swept:
        """Drop what has expired from tag sets; see `sweep`."""
        return await arun(sweep(self._ports))

    def perform(self, loader: str, asks: Sequence[Ask], is_redelivered: bool = False) -> None:
        """Load what the asks name, in this thread; workers call it.

        Raises:
            UnknownLoader: this process does not declare the loader.
            StoreUnavailable: the store does not answer.
        """
        if loader not in self._loaders:
            self._emit(UnknownTask(loader, len(asks)))
            self._undelivered(list(asks))
        spec = self._named(loader)
        readable = []
        for ask in asks:
            try:
                spec.signature.parse(ask.call)
                bytes.fromhex(ask.seen)
                readable.append(ask)
            except (CallError, ValueError) as error:
                self._emit(MalformedTask(f"cacheworkers.load.{loader}", str(error)))
                self._release_soon(ask.call, ask.token)
        if readable:
            run(load(self._ports, spec, readable, self._ports.worker, is_redelivered=is_redelivered))

    def close(self) -> None:
        """Send what is queued, then stop this process's threads and connections."""
        self._teller.close()
        self._workers.close()
        self._delivered.close()
        self._ports.listener.close()
        if self._background is not None:
            self._background.shutdown(wait=True)
        self._ports.store.link.close()

    # -- inside

    def _declare(
        self,
        function: Callable[..., Any],
        tags: Iterable[str],
        name: str | None,
        rate_limit: str | None,
        options: dict[str, Any],
        *,
        is_batch: bool,
    ) -> LoaderSpec:
        name = name or str(getattr(function, "__name__", ""))
        if name in self._loaders:
            raise DeclarationError(f"a loader's name must be unique in its cache, {name!r} is declared already")
        base = options.pop("policy", None) or Policy()
        try:
            policy = base.replace(**options)
        except TypeError:
            fields = ", ".join(sorted(Policy.__dataclass_fields__))
            wrong = ", ".join(sorted(set(options) - set(Policy.__dataclass_fields__)))
            raise ConfigError(f"loader {name!r} has no option {wrong}; options are {fields}") from None
        signature = Signature(
            name, function, version=policy.version, max_bytes=self.config.max_call_bytes, is_batch=is_batch
        )
        if isinstance(tags, str):
            raise DeclarationError(f"tags of {name} must be a tuple of templates, got the text {tags!r}")
        templates = TagTemplates(
            tuple(tags), ("key",) if is_batch else signature.parameters, max_bytes=self.config.max_tag_bytes
        )
        spec = LoaderSpec(
            name,
            function,
            policy,
            signature,
            Codec(annotation_of(function, is_batch)),
            templates,
            is_batch,
            inspect.iscoroutinefunction(function),
            rate_limit,
        )
        self._loaders[name] = spec
        self._workers.register(_info(spec, self.config))
        return spec

    def _named(self, loader: str) -> LoaderSpec:
        spec = self._loaders.get(loader)
        if spec is None:
            declared = ", ".join(sorted(self._loaders)) or "none"
            raise UnknownLoader(f"no loader is named {loader!r}; declared are {declared}")
        return spec

    def _spec_of(self, call: str) -> LoaderSpec:
        spec = self._named(loader_name_of(call))
        spec.signature.parse(call)
        return spec

    def _warming(self, loader: str, keys: Iterable[Any]) -> Flow[Warming]:
        spec = self._named(loader)
        calls = list(dict.fromkeys(spec.signature.bind((key,), {}).text for key in keys))
        return warm(self._ports, spec, calls, lead=3 * self.config.warm_every)

    def _invalidation(self, tags: Sequence[str], mode: Mode, dry_run: bool) -> Flow[Invalidation]:
        if mode not in ("hard", "soft", "reload"):
            raise ConfigError(f'mode must be "hard", "soft" or "reload", got {mode!r}')
        if not tags:
            raise CallError("invalidate takes at least one tag")
        for tag in tags:
            check_tag(tag, self.config.max_tag_bytes)
        named = list(dict.fromkeys(tags))
        if dry_run:
            return count_entries(self._ports, named)
        if dirty_here() is not None:
            raise CallError(
                f"invalidate({', '.join(tags)}) within an open transaction that has changed what is watched would be "
                f"undone by a load before its commit; give session=, or call it after the commit"
            )
        if mode == "reload":
            return reload_tags(self._ports, self._loaders, named)
        return invalidate_tags(self._ports, named, mode)

    def _emit(self, event: Event) -> None:
        hook = self._hook
        if hook is not None:
            try:
                hook(event)
            except Exception:
                log.exception("the hook raised on %r", event)

    def _watch_of(self, session: AnySession, mode: Mode) -> Watch:
        if mode != "hard":
            raise ConfigError(f'invalidate(session=...) is always "hard", got mode {mode!r}')
        for watch in self._watches:
            if watch.covers(session):
                return watch
        raise ConfigError(f"invalidate(session=...) takes a session that cache.watch covers, got {session!r}")

    def _left_in_outbox(self, rows: tuple[int, ...], error: Exception) -> None:
        """A commit's invalidation failed: this process at least forgets what it had; the drain does the rest."""
        self._ports.l1.clear()
        self._emit(Undelivered(len(rows), f"{type(error).__name__}: {error}"))

    def _drain_if_watching(self) -> None:
        if self._outbox_engine is not None:
            self.drain()

    def _undelivered(self, asks: list[Ask]) -> None:
        """Give leases back whose message did not go out; this process loads its own misses for a while."""
        self._undeliverable_until = monotonic() + self.config.breaker_for
        with contextlib.suppress(StoreError):
            self._ports.store.release([(ask.call, ask.token) for ask in asks]).run()
        for ask in asks:
            self._ports.waiters.wake(ask.call)

    def _release_soon(self, call: str, name: str) -> None:
        """Give a lease back on a background thread: its holder is cancelled, or must not wait."""
        if self._background is None:
            self._background = ThreadPoolExecutor(1, "cacheworkers-release")

        def release() -> None:
            with contextlib.suppress(StoreError):
                self._ports.store.release([(call, name)]).run()
            self._ports.waiters.wake(call)

        with contextlib.suppress(RuntimeError):  # closed, or the interpreter is ending: the lease runs out by itself
            self._background.submit(release)

    def _reset_after_fork(self) -> None:
        """Forget threads, sockets and connections: they are the parent's."""
        self._background = None
        self._ports.gate.reset()
        self._teller.reset()
        self._ports.heat.reset()
        self._ports.l1.reset()
        self._ports.waiters.reset()
        self._ports.store.reset()
        self._ports.listener.reset()
        self._bulkhead.reset()
        self._delivered.reset()
        self._sessions.reset_after_fork()
        self._workers.reset_after_fork()


class _Deliverable:
    """The dispatcher, unless its last message did not go out: then asks are refused, and readers load here."""

    def __init__(self, cache: Cache, dispatcher: Any) -> None:
        self._cache = cache
        self._dispatcher = dispatcher

    def submit(self, ask: Ask) -> bool:
        if monotonic() < self._cache._undeliverable_until:
            return False
        accepted: bool = self._dispatcher.submit(ask)
        return accepted

    def submit_all(self, asks: Sequence[Ask]) -> int:
        if monotonic() < self._cache._undeliverable_until:
            return 0
        accepted: int = self._dispatcher.submit_all(asks)
        return accepted

    def close(self) -> None:
        self._dispatcher.close()


def _info(spec: LoaderSpec, config: Config) -> LoaderInfo:
    return LoaderInfo(spec.name, spec.load_for, spec.is_batch, config.batch_size, spec.rate_limit, spec.pace)


def _after_fork_in_child() -> None:
    for cache in list(_caches):
        cache._reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
