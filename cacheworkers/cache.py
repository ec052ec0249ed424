"""Cache: the public API of one process: declares loaders, invalidates, watches sessions, inspects, warms, maintains."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

from cacheworkers.config import Config
from cacheworkers.core.driver import Flow, Pause, arun, run
from cacheworkers.core.tag_templates import check_tag
from cacheworkers.errors import CallError
from cacheworkers.events import GarbageCollected, Hook
from cacheworkers.flows.clear import clear
from cacheworkers.flows.explain import Explanation, explain, stored
from cacheworkers.flows.garbage_collection import collect_garbage
from cacheworkers.flows.inspect import Inspection
from cacheworkers.flows.inspect import inspect as inspect_entries
from cacheworkers.flows.invalidate import (
    Invalidation,
    Mode,
    invalidate_loader,
    members_of,
)
from cacheworkers.flows.keep_warm import Warming, hot, report_accesses, warm_round
from cacheworkers.flows.ports import LoaderSpec
from cacheworkers.flows.stats import LoaderStats, StoreStats, loader_stats, store_stats
from cacheworkers.flows.warm_up import UNLIMITED
from cacheworkers.load_context import AroundLoad, AsyncLoad, Load
from cacheworkers.loader import BatchLoader, DeclareBatchLoader, DeclareLoader, Loader
from cacheworkers.policy import LoaderOptions
from cacheworkers.runtime.internals import Internals
from cacheworkers.runtime.message_loads import run_message_loads
from cacheworkers.runtime.registry import LoaderRegistry
from cacheworkers.runtime.tag_invalidation import tag_invalidation
from cacheworkers.runtime.warm_job import Warmer, WarmJob
from cacheworkers.runtime.wiring import Runtime

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    from cacheworkers.sql.outbox.outbox import Backlog, Outbox
    from cacheworkers.sql.tag_options import Mode as WatchMode
    from cacheworkers.sql.triggers.postgres_triggers import Triggers
    from cacheworkers.sql.watch.flush_changes import TagMapping
    from cacheworkers.sql.watch.service import AnySession, WatchService
    from cacheworkers.workers.broker_queues import QueueState

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


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
        around_load: AroundLoad = lambda call: contextlib.nullcontext(),
    ) -> None:
        """
        Args:
            config: this process's settings; None takes them from the environment.
            celery: your Celery app, whose workers will load; None loads on threads of this process.
            sessions: makes the sessions that loaders get; loads use a pool of their own.
            async_sessions: the same for `async def` loaders.
            hook: called with every event; must be quick, must not raise, and must not read by this cache.
            around_load: called with a `LoadCall` for each run of a loader, in workers and in readers; returns a context
                manager that surrounds it: connections, tracing, a tenant's settings.  What it raises fails the load.
        """
        config = Config.from_env() if config is None else config
        self.config = config = config.for_test_process() if config.testing else config
        self._runtime = Runtime(
            self,
            config,
            celery=celery,
            sessions=sessions,
            async_sessions=async_sessions,
            hook=hook,
            loads=lambda *message: run_message_loads(self._runtime, self._loaders, *message),
            around_load=around_load,
            upkeep={
                "collect_garbage": (lambda: self.collect_garbage(config.gc_interval / 2), config.gc_interval),
                "drain_outbox": (self._drain_by_beat, config.drain_interval),
                **({"warm": (self.keep_warm, config.warm_interval)} if config.warm_interval else {}),
            },
        )
        self._ports = self._runtime.ports
        self._loaders = LoaderRegistry(config, self._ports.tag_kinds)
        self._warmer = Warmer(self._runtime)
        self._triggers: list[Triggers] = []
        #: For the command line, doctor and metrics, which look into a cache; not part of the public API.
        self.internals = Internals(self._runtime, self._ports, self._triggers)

    # -- declaring loaders

    @overload
    def loader(self, function: Callable[Concatenate[AsyncLoad, P], Awaitable[T]], /) -> Loader[P, T]: ...
    @overload
    def loader(self, function: Callable[Concatenate[Load, P], T], /) -> Loader[P, T]: ...
    @overload
    def loader(self, **options: Unpack[LoaderOptions]) -> DeclareLoader: ...
    def loader(  # type: ignore[misc]  # mypy does not match an unpacked TypedDict with keywords of any type
        self, function: Callable[..., Any] | None = None, /, **options: Any
    ) -> Any:
        """Declare a function `(load, ...)` as a loader: `@cache.loader`, or `@cache.loader(fresh_for=300)`.

        Args:
            tags: templates such as `"product:{product_id}"`, filled from the arguments.
            name: unique in this cache; None takes the function's.
            rate_limit: most loads of this loader in a second, minute or hour, of all processes together, readers that
                load included: `"100/s"`, `"30/m"`, `"5/h"`.  Each takes a turn in the store.
            replace: a loader of this name that the same module has declared is replaced: in notebooks and shells.  What
                the old one has stored is still served; raise `version`, or invalidate.
            options: besides these the fields of `Policy`, or `policy=` a whole one with some of them changed.

        Raises:
            DeclarationError: the function cannot be a loader, or its name is taken.
            ConfigError: a policy field breaks a rule.
        """
        return self._declare(Loader, function, options)

    @overload
    def batch_loader(self, function: Callable[[AsyncLoad, list[K]], Awaitable[dict[K, V]]], /) -> BatchLoader[K, V]: ...
    @overload
    def batch_loader(self, function: Callable[[Load, list[K]], dict[K, V]], /) -> BatchLoader[K, V]: ...
    @overload
    def batch_loader(self, **options: Unpack[LoaderOptions]) -> DeclareBatchLoader: ...
    def batch_loader(  # type: ignore[misc]  # mypy does not match an unpacked TypedDict with keywords of any type
        self, function: Callable[..., Any] | None = None, /, **options: Any
    ) -> Any:
        """Declare a function `(load, keys: list[K]) -> dict[K, V]` as a loader of many keys together.

        A key left out of the dict is None, or `KeyMissing` if V has no None.  In `tags`, `{key}` is one element.
        Arguments and errors as for `loader`.
        """
        return self._declare(BatchLoader, function, options)

    @property
    def loaders(self) -> Mapping[str, LoaderSpec]:
        """The loaders that are declared here, by name; one that is not is an `UnknownLoader`."""
        return self._loaders

    @property
    def outbox(self) -> Outbox:
        """The outbox table: `create`, `check`, and the `metadata` that a migration names."""
        return self._watching.outbox

    # -- invalidating

    def invalidate(
        self,
        *tags: str,
        mode: Mode = "hard",
        session: AnySession | None = None,
        dry_run: bool = False,
    ) -> Invalidation:
        """Invalidate every entry that has any of the tags; call it after the commit.

        Once this has returned, no read through the store returns a value whose load began before; in other
        processes L1 follows within the push's delay, and at worst within `l1_for`.

        Args:
            mode: "hard", the next read sees new data; "soft", it sees the old as stale while workers reload; "reload",
                soft, and what is hot is reloaded immediately.
            dry_run: invalidate nothing; what is returned has the number 0 and counts the tags' members.
            session: a watched one whose transaction is open, an AsyncSession with `ainvalidate`: the tags go into the
                outbox with it, and are invalidated after its commit.  What is returned then has the number 0: it
                is not done yet.

        Raises:
            InvalidationIncomplete: the store failed; nothing is acknowledged.
            CallError: no tag; or this context has an open transaction that has changed what is watched, and it is not
                given: a load before the commit would bring the old value back.
            TagError: a tag is empty, too long or holds control characters.
            ConfigError: the session is not watched, or is an AsyncSession given to `invalidate`.
        """
        if session is not None and not dry_run:
            self._watching.add(session, self._ports.tag_kinds.with_loaders_texts(tags), mode)
            return Invalidation(0, 0)
        return run(self._invalidation(tags, mode, dry_run))

    async def ainvalidate(
        self,
        *tags: str,
        mode: Mode = "hard",
        session: AnySession | None = None,
        dry_run: bool = False,
    ) -> Invalidation:
        """Invalidate every entry that has any of the tags; see `invalidate`."""
        if session is not None and not dry_run:
            await self._watching.aadd(session, self._ports.tag_kinds.with_loaders_texts(tags), mode)
            return Invalidation(0, 0)
        return await arun(self._invalidation(tags, mode, dry_run))

    def clear(self) -> int:
        """Delete everything of this cache's namespace, from the store and this process's memory; how many keys.

        Loads under way are not stored.  Other processes' memory follows within the push's delay, at worst `l1_for`.

        Raises:
            StoreUnavailable: the store does not answer; some of it may be left.
        """
        return run(clear(self._ports))

    async def aclear(self) -> int:
        """Delete everything of this cache's namespace; see `clear`."""
        return await arun(clear(self._ports))

    def invalidate_loader(self, loader: str) -> Invalidation:
        """Drop all entries of a loader, whatever their tags and version, after a mistake in its code, say.

        What is being loaded by then is not stored either.  It walks through the keys of the store, some hundred
        thousand a second, and disturbs nobody.

        Args:
            loader: its name; one that is not declared here may have entries, too.

        Raises:
            CallError: it is no loader's name.
            InvalidationIncomplete: the store failed; nothing is acknowledged.
        """
        return run(invalidate_loader(self._ports, loader))

    async def ainvalidate_loader(self, loader: str) -> Invalidation:
        """Drop all entries of a loader; see `invalidate_loader`."""
        return await arun(invalidate_loader(self._ports, loader))

    # -- watching what changes

    def watch(
        self,
        sessions: Any,
        mapping: TagMapping | Any,
        *,
        columns: Mapping[Any, Collection[str]] | None = None,
        ignore: Mapping[Any, Collection[str]] | None = None,
        mode: WatchMode | Mapping[Any, WatchMode] = "hard",
        check: bool = False,
    ) -> None:
        """Invalidate with every commit of these sessions what their units of work have changed.

        Tags are made of old and new column values, and written to the outbox in the same transaction: once it is
        committed they will be invalidated, whatever dies.  A session that has joined somebody else's transaction is
        invalidated when that is committed.  Until then reads of its own context run their loaders on the session
        itself, unless the transaction has touched none of their tags.

        The database is not asked now, because migrations import this module, too.  Without the outbox table, a flush
        that changes what is watched raises ConfigError.

        Args:
            sessions: a `sessionmaker`, a `scoped_session`, a `Session` class, or their async kinds.
            mapping: mapped class, or association `Table`, -> function of a row's columns to its tags, or templates:
                `{Product: lambda row: (f"product:{row.id}", f"category:{row.category_id}"), Label: ["label:{id}"]}`.
                Or a declarative base: all its classes and association tables, by the keys in their rows
                (`product:42`, `category:7`: the table's name and its primary key).
            columns: the columns that matter: template, class or table -> names.  An UPDATE that changes none of them
                leaves its tags alone: `{"category:{category_id}": ["name", "price"]}`.  A template's own columns
                always matter.
            ignore: class or table -> columns whose changes concern none of its tags: `{User: ["last_seen"]}`.
            mode: "hard", or "soft": the old value is served as stale while workers reload; for all, or by template,
                class or table: `{Category: "soft"}`.
            check: make sure now that the outbox table is there; for a start that no migration shares.

        Raises:
            ConfigError: a key is neither, an option names what is not there, its tags are illegal or of no column,
                `sessions` is something else, or commits by itself; or, with `check`, the outbox is not there.
        """
        self._watching.watch(sessions, mapping, columns=columns, ignore=ignore, mode=mode, check=check)
        self._watching.compare(self._triggers)

    def triggers(
        self,
        templates: Mapping[str, Sequence[str]],
        *,
        columns: Mapping[str, Collection[str]] | None = None,
        ignore: Mapping[str, Collection[str]] | None = None,
        mode: WatchMode | Mapping[str, WatchMode] = "hard",
        notify: bool = True,
    ) -> Triggers:
        """Return Postgres triggers that write the outbox for whatever changes a table: psql, bulk statements, others.

        Args:
            templates: table -> tags with its columns: `{"price": ["product:{product_id}"]}`.
            columns, ignore, mode: as `watch` has them, by table or template.
            notify: NOTIFY wakes `drain_until`; without it, that finds what is written when it next looks.

        Raises:
            ConfigError: a name or a template is malformed.
        """
        from cacheworkers.sql.triggers.postgres_triggers import Triggers

        declared = Triggers(
            self.config.namespace,
            templates,
            self.outbox.quoted_name,
            max_tag_bytes=self.config.max_tag_bytes,
            tag_kinds=self._ports.tag_kinds,
            columns=columns,
            ignore=ignore,
            mode=mode,
            notify=notify,
        )
        self._triggers.append(declared)
        if self.is_watching:
            self._watching.compare(self._triggers)
        return declared

    def drain(self, engine: Engine | None = None) -> int:
        """Deliver what the outbox still holds, and return how many rows that were.

        If the store was restarted or replaced since the last drain, what was delivered within `replay_for` is
        delivered again.

        Args:
            engine: of the database with the outbox; None takes all that the watched sessions are bound to, async ones
                too, or those of the loaders' sessions where that is not known.

        Raises:
            ConfigError: no engine is known.
            InvalidationIncomplete, StoreUnavailable: the store failed; the rows stay.
            OutboxUnavailable: the database does not answer, or has no outbox.
        """
        return self._watching.drain(engine)

    def drain_until(self, stop: threading.Event, engine: Engine | None = None) -> None:
        """Drain repeatedly until asked to stop: immediately when a trigger notifies, and at least every half second.

        Args:
            engine: as for `drain`, each of several in a thread; with psycopg one connection of each listens.
        """
        self._watching.drain_until(stop, engine, self.internals.triggers)

    def outbox_backlog(self, engine: Engine | None = None) -> Backlog:
        """Return how many outbox rows wait to be delivered, in all databases, and how old the oldest is.

        Args:
            engine: as for `drain`.

        Raises:
            OutboxUnavailable: the database does not answer, or has no outbox.
        """
        return self._watching.backlog(engine)

    @property
    def is_watching(self) -> bool:
        """Whether this cache watches any sessions."""
        return self._runtime.is_watching

    # -- looking inside

    def inspect(self, sample: int = 1000, *, grace: float = 1.0, rate: float = 100.0) -> Inspection:
        """Compare live entries with what their loaders return now: the share that is wrong, with the evidence.

        Safe on production: it only reads, and loads at most `rate` entries a second, in this thread.

        Args:
            sample: most entries to compare, chosen at random.
            grace: seconds after which an entry that differs is compared again; it counts if it still differs.

        Raises:
            ConfigError: `sample`, `grace` or `rate` is out of bounds.
            StoreUnavailable: the store does not answer.
        """
        return run(inspect_entries(self._ports, self._loaders, sample, grace, Pause, rate))

    def explain(self, loader: Loader[..., Any] | str, *args: Any, **kwargs: Any) -> Explanation:
        """Return what a read would get now, tier by tier, and why; nothing is loaded or claimed.

        `cache.explain(product, 42)`, or the call's text alone: `cache.explain("product[42]")`.

        Raises:
            UnknownLoader, CallError: it is not a call of a loader that this process declares.
        """
        return run(self._explanation(loader, args, kwargs))

    async def aexplain(self, loader: Loader[..., Any] | str, *args: Any, **kwargs: Any) -> Explanation:
        """Return what a read would get now, and why; see `explain`."""
        return await arun(self._explanation(loader, args, kwargs))

    def stored(self, call: str) -> bytes | None:
        """Return the stored JSON of a call's text, whatever its freshness; None if there is none."""
        return run(stored(self._ports, *self._loaders.of_call(call)))

    def queues(self) -> list[QueueState]:
        """Return the four queues as the broker has them; none without Celery.

        Raises:
            BrokerUnavailable: it does not answer.
        """
        states: list[QueueState] = self._runtime.workers.queue_states()
        return states

    def store_stats(self) -> StoreStats:
        """Return what the store holds and does now."""
        return run(store_stats(self._ports))

    def loader_stats(self) -> list[LoaderStats]:
        """Return the access score of each loader, the hottest first."""
        return run(loader_stats(self._ports, list(self._loaders)))

    def hot(self, loader: str, limit: int = 100) -> list[tuple[str, float]]:
        """Return the hottest calls of a loader by its name; see `Loader.hot`."""
        return run(hot(self._ports, self._loaders.named(loader), limit))

    def warm(
        self,
        loader: str,
        calls: Iterable[str],
        *,
        max_rate: float = UNLIMITED,
        concurrency: int | None = None,
        min_fresh: float = 1.0,
    ) -> WarmJob:
        """Have workers load many calls of a loader by its name; see `Loader.warm`.

        Args:
            calls: texts, as `call` returns them.

        Raises:
            UnknownLoader, CallError: there is no such loader, or a text is not a call of it.
            ConfigError: `max_rate`, `concurrency` or `min_fresh` is out of bounds.
        """
        spec = self._loaders.named(loader)
        texts = list(dict.fromkeys(spec.signature.parse(text).text for text in calls))
        return self._warmer.job(spec, texts, max_rate, concurrency, min_fresh)

    def call(self, loader: str, /, *args: Any, **kwargs: Any) -> str:
        """Return the text of a loader's call with these arguments: `product[42]`.

        Raises:
            UnknownLoader, CallError: there is no such loader, or they do not fit it.
        """
        return self._loaders.named(loader).signature.bind(args, kwargs).text

    def calls_of(self, tag: str, limit: int = 1000) -> list[str]:
        """Return at most `limit` calls whose entries have a tag: what an invalidation of it would drop."""
        return run(members_of(self._ports, check_tag(tag, self.config.max_tag_bytes), limit))

    # -- upkeep

    def keep_warm(self) -> dict[str, Warming]:
        """Have workers revalidate hot entries that go stale soon; loader -> what was done.  Beat calls it."""
        return run(warm_round(self._ports, dict(self._loaders), self._runtime.queued))

    def report_accesses(self) -> int:
        """Report what this process has read to the store; return how many calls.  A thread does it by itself."""
        return run(report_accesses(self._ports))

    def collect_garbage(self, within: float = math.inf) -> GarbageCollected:
        """Drop what has expired from tag sets, and finish invalidations whose process died.

        Args:
            within: seconds after which it stops; the next garbage collection, in whatever process, continues there.
        """
        return run(collect_garbage(self._ports, within))

    def close(self) -> None:
        """Send what is queued, then stop this process's threads and connections, and leave the app and sessions alone.

        Commits of watched sessions invalidate nothing afterwards: close it once, after the last one, as a script ends.
        A server's process needs no close.
        """
        self._runtime.close()

    # -- inside

    @property
    def _watching(self) -> WatchService:
        return self._runtime.watching

    def _declare(
        self,
        kind: type[Loader[..., Any]],
        function: Callable[..., Any] | None,
        options: dict[str, Any],
    ) -> Any:
        """Return a declared loader, or what declares the function that a decorator is called with."""

        def declare(function: Callable[..., Any]) -> Any:
            spec = self._loaders.add(function, is_batch=kind is BatchLoader, **options)
            self._ports.access_counter.remember(spec.name, spec.policy, self.config.access_half_life)
            self._runtime.register(spec)
            return kind(self._ports, spec, self._warmer)

        return declare if function is None else declare(function)

    def _explanation(
        self, loader: Loader[..., Any] | str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Flow[Explanation]:
        if not isinstance(loader, str):
            call = self.call(loader.name, *args, **kwargs)
        elif args or kwargs:
            raise CallError(
                f"explain takes a loader and its arguments, or a call's text alone; got {loader!r} and more"
            )
        else:
            call = loader
        return explain(self._ports, *self._loaders.of_call(call), self._runtime.waits_for_workers)

    def _drain_by_beat(self) -> None:
        self._watching.drain_by_beat(is_needed=self.is_watching or bool(self._triggers))

    def _invalidation(self, tags: Sequence[str], mode: Mode, dry_run: bool) -> Flow[Invalidation]:
        return tag_invalidation(self._ports, self._loaders, tags, mode, dry_run=dry_run)
