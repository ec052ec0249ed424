"""Doctor's checks of Celery: the app's settings, the broker, its queues and the workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cacheworkers.config import Config
from cacheworkers.errors import CacheworkersError, StoreError
from cacheworkers.ops.doctor.findings import Finding, Rule, rules_in
from cacheworkers.runtime.namespace_marks import LIVES_FOR, NamespaceMarks
from cacheworkers.store.commands.store import Store
from cacheworkers.store.diagnostics.server_facts import StoreDiagnostics
from cacheworkers.workers.binding import ALIVE_EVERY
from cacheworkers.workers.diagnostics import AppFacts, BrokerFacts, app_facts, broker_facts, worker_facts

#: A queue with this many messages counts as backed up: readers wait for the first queue, nobody for the others.
MISS_BACKLOG = 100
BACKLOG = 1000

AWAY = Rule(
    "broker-away",
    "error",
    "The broker does not answer.",
    "Nothing is revalidated or warmed, and tag sets grow; readers load their own misses, a few at a time.",
    "Start it, or correct the app's `broker_url`.",
)
BROKER_FULL = Rule(
    "broker-full",
    "error",
    "The broker is a Redis at its `maxmemory` that evicts nothing: it answers, and takes no messages.",
    "Nothing is revalidated or warmed, and tag sets grow; readers load their own misses, a few at a time.",
    "Raise the broker's `maxmemory`, or start workers that empty its queues; where it is the store as well, set "
    "`maxmemory-policy volatile-lru`, which evicts entries and never a queue, or give it a server of its own.",
)
BROKER_EVICTION = Rule(
    "broker-eviction",
    "error",
    "The broker is a Redis with a `maxmemory-policy` of `allkeys-*`.",
    "It may evict whole queues, with every message in them.",
    "`CONFIG SET maxmemory-policy noeviction` on the broker; volatile-lru where it is the store as well.",
)
SHARED = Rule(
    "shared-instance",
    "note",
    "Broker and store are one server.",
    "They fail together, `FLUSHALL` empties both, and a large invalidation slows the queues. Database numbers change "
    "nothing in that.",
    "Give the broker a server of its own, with `appendonly yes` and noeviction, once the application depends on it.",
)
SHARED_MEMORY = Rule(
    "shared-memory",
    "warning",
    "Broker and store are one server, and its policy is noeviction with a `maxmemory`.",
    "A full cache refuses the queues' messages too: no worker receives anything until entries expire.",
    "maxmemory-policy volatile-lru, which evicts entries and never a queue; or a server of its own for the broker.",
)
BACKED_UP = Rule(
    "queue-backlog",
    "warning",
    f"More than {MISS_BACKLOG:,} messages wait in the miss queue, or {BACKLOG:,} in another.",
    "Workers are too few or too slow for what is asked of them. Readers of misses take over and load for themselves; "
    "what is stale stays stale for longer.",
    "Start more workers on that queue, make its loaders quicker or batch loaders, or let entries be fresh for longer.",
)
ANSWERS = "`worker_enable_remote_control` must be on for it to answer."
UNSERVED = Rule(
    "queue-unserved",
    "warning",
    "No worker that answers consumes one of the four queues.",
    "miss: readers load for themselves, a few at a time. revalidate: what is stale stays so until it lapses. "
    "warm: nothing is loaded ahead. upkeep: tag sets grow, and the outbox is not drained.",
    f"`celery -A module worker -Q` with the queue's name; {ANSWERS}",
)
UNKNOWN = Rule(
    "loader-unknown",
    "warning",
    "A worker that consumes a load queue does not know a loader of this process, or of a web process that runs.",
    "It gives such work back, and the reader loads for itself.",
    "Restart workers that are older than the loader; have the worker's app import the module with the loader, as by "
    "`app.conf.include = [...]`.",
)
OTHER_SCHEMA = Rule(
    "loader-release",
    "warning",
    "A worker has a loader with another version, return type, parameters or tags than this process.",
    "It gives messages of another version back, and what it loads of other types the new release cannot read: readers "
    "wait for it, and load for themselves.",
    "Restart the workers with the release that web processes run.",
)
OTHER_STORE = Rule(
    "worker-store",
    "error",
    "A worker takes this cache's queues, and the store does not have the mark that it leaves each minute.",
    "It loads into another store, database or namespace: readers wait for values that never come, and load themselves.",
    "Give workers and web processes the same `redis_url`, database number included, and the same `namespace`.",
)
PREFETCH = Rule(
    "prefetch",
    "note",
    "A worker that takes misses reserves more messages than it can run at a time.",
    "What it has reserved waits behind its running loads, while other workers have nothing to do; readers wait for it.",
    "Start workers of the cache's queues with `--prefetch-multiplier 1`; Celery's default is 4.",
)
EARLY_ACKS = Rule(
    "acks-late",
    "warning",
    "A loader's task is acknowledged before it has run: `task_annotations` take `acks_late` from it.",
    "A worker that is killed takes its messages with it; their readers wait until the lease ends.",
    "Take `acks_late` of `cacheworkers.load.*` out of `task_annotations`.",
)
VISIBILITY = Rule(
    "visibility-timeout",
    "warning",
    "`visibility_timeout` is shorter than the longest load may take.",
    "The broker gives a message to a second worker while the first still runs it: the work is done twice.",
    "Raise it in `broker_transport_options` above the time limit, or shorten `load_for`.",
)
NO_LOADERS = Rule(
    "no-loaders",
    "warning",
    "This process declares no loader.",
    "Doctor cannot check workers' loaders; and a worker that imports only what this process does loads nothing.",
    "Name a module that imports the loaders, as web processes do, `cacheworkers -A shop.web doctor`; for workers, name "
    "theirs in `app.conf.include`.",
)
EAGER = Rule(
    "eager",
    "warning",
    "`task_always_eager` is on.",
    "Celery runs tasks where they are sent, and no worker sees any: production behaves differently.",
    "Leave it off outside of tests; for tests give `Cache` no Celery app, which loads on threads of the process.",
)
NO_JSON = Rule(
    "accept-content",
    "error",
    "The app's `accept_content` leaves JSON out.",
    "Workers refuse the library's messages, which are JSON: nothing is revalidated or warmed, and readers load misses.",
    'Add "json" to `accept_content`.',
)
NO_CELERY = Rule(
    "no-celery",
    "warning",
    "The cache has no Celery app, and no garbage collection has run under its namespace for a day.",
    "Loads run in the processes that read. Nothing is warmed, tag sets grow, and where sessions are watched nobody "
    "delivers what a crash left in the outbox.",
    "`Cache(..., celery=app)`, workers and beat. Without Celery run `cacheworkers gc` every few minutes, and keep "
    "`cacheworkers drain --follow` running where sessions are watched.",
)
#: How long after its time a worker may leave its mark, seconds.
ALIVE_MARGIN = 10.0
RULES = rules_in(globals())


def check_no_celery(config: Config) -> Iterator[Finding]:
    """Yield whether anybody does the upkeep of a cache without Celery; another process may."""
    with StoreDiagnostics(config) as probe:
        age = probe.upkeep_age(["collect_garbage"])["collect_garbage"]
    ran = "has left no sign of having run within a day" if age is None else f"last ran {age:,.0f} s ago"
    yield NO_CELERY.finding(age is None, f"this cache has no Celery app; garbage collection {ran}")


def check_settings(app: Any) -> Iterator[Finding]:
    """Yield how the app is set up; nothing is asked of anybody."""
    yield from judge_app(app_facts(app))


def judge_app(app: AppFacts) -> Iterator[Finding]:
    """Yield what is to be said of an app's settings."""
    late = f"{', '.join(app.early_acks)} acknowledged early" if app.early_acks else "all loads are acknowledged late"
    yield EARLY_ACKS.finding(bool(app.early_acks), late)
    if app.visibility is not None:
        shown = f"visibility_timeout is {app.visibility:g} s, the longest time limit of a load {app.longest:g} s"
        yield VISIBILITY.finding(app.visibility <= app.longest, shown)
    yield EAGER.finding(app.is_eager, f"task_always_eager is {'on' if app.is_eager else 'off'}")
    yield NO_JSON.finding(app.refuses_json, f"accept_content {'leaves JSON out' if app.refuses_json else 'has JSON'}")


def check_loaders(loaders: Sequence[str], marks: NamespaceMarks) -> Iterator[Finding]:
    """Yield whether this process declares loaders; if none, which running processes do, in which modules."""
    if loaders:
        yield NO_LOADERS.finding(False, f"{len(loaders)} loader{'s' if len(loaders) != 1 else ''} declared")
        return
    try:
        modules = marks.noted_modules()
    except StoreError:  # has a finding of its own
        modules = {}
    known = ", ".join(f"{loader} in {module}" for loader, module in sorted(modules.items()))
    yield NO_LOADERS.finding(True, "no loader declared" + (f"; running processes declare {known}" if known else ""))


def check_broker(app: Any, config: Config) -> Iterator[Finding]:
    """Yield what the broker says of itself, and whether it is the store."""
    broker = broker_facts(app, ())
    yield AWAY.finding(False, f"{broker.where} answers")
    if not broker.run_id:
        return
    policy = f"{broker.where} has maxmemory-policy {broker.policy}"
    yield BROKER_EVICTION.finding(broker.policy.startswith("allkeys"), policy)
    yield from _check_shared(broker, config)


def _check_shared(broker: BrokerFacts, config: Config) -> Iterator[Finding]:
    try:
        with StoreDiagnostics(config) as probe:
            servers = probe.servers()
    except CacheworkersError:  # has a finding of its own
        return
    same = [server for server in servers if server.run_id == broker.run_id]
    is_stuck = any(server.maxmemory and server.policy == "noeviction" for server in same)
    shown = f"the broker is {'' if same else 'not '}the store, {broker.where}"
    yield SHARED.finding(bool(same), shown)
    if same:
        yield SHARED_MEMORY.finding(is_stuck, f"{shown}, with maxmemory-policy {same[0].policy}")


def check_backlog(app: Any, config: Config) -> Iterator[Finding]:
    """Yield how many messages wait."""
    queues = _queues(config)
    for queue, length in broker_facts(app, queues).lengths.items():
        most = MISS_BACKLOG if queue == config.queues.miss else BACKLOG
        yield BACKED_UP.finding(length > most, f"{queue} has {length:,} messages")


def check_workers(app: Any, config: Config, store: Store, marks: NamespaceMarks) -> Iterator[Finding]:
    """Yield which queues are consumed, and by workers that know what is in them and load into this store."""
    workers = worker_facts(app)
    consumers = {queue: [each.name for each in workers if queue in each.queues] for queue in _queues(config)}
    command = marks.worker_command(app, [queue for queue, names in consumers.items() if not names], asks=True)
    for queue, names in consumers.items():
        shown = f"{queue} is consumed by {', '.join(names) or 'no worker'}"
        yield UNSERVED.finding(not names, shown, f"{command}; {ANSWERS}")
    ours_of = {worker.name: worker for worker in workers if worker.queues & set(_queues(config))}
    marked, uptime = _marks(store, list(ours_of))
    for name, is_marked in zip(ours_of, marked, strict=True):
        shown = f"the store at {store.link.where} {'has' if is_marked else 'does not have'} the mark of {name}"
        is_early = not is_marked and uptime < min(ours_of[name].uptime or 0.0, ALIVE_EVERY + ALIVE_MARGIN)
        if is_early:  # the worker is older than the store, which has lost its mark
            shown += f" yet: the store was started {uptime:g} s ago, and workers leave theirs every {ALIVE_EVERY:g} s"
        yield OTHER_STORE.finding(not (is_marked or is_early), shown)
    ours = app_facts(app).loaders
    # Workers of another queue prefix are another app's, with loaders of its own.
    modules = ({} if config.queue_prefix else _running_modules(marks)) | marks.modules
    wanted = {*ours, *modules}
    loading = {config.queues.miss, config.queues.revalidate, config.queues.warm}
    for worker in workers:
        if worker.queues & loading and wanted:
            missing = sorted(wanted - worker.loaders)
            of_them = ", ".join(sorted({modules[name] for name in missing if name in modules}))
            lacking = f"does not know {', '.join(missing)}, of {of_them}"
            shown = lacking if missing else f"knows all {len(wanted)} loaders"
            yield UNKNOWN.finding(bool(missing), f"{worker.name} {shown}")
            known = worker.loaders & ours.keys()
            others = [name for name in sorted(known) if not worker.loads(name, *ours[name])]
            differs = "types and tags are those of here"
            if others:
                differs = f"version, types or tags of {', '.join(others)} differ"
            yield OTHER_SCHEMA.finding(bool(others), f"{worker.name}: {differs}")
        if config.queues.miss in worker.queues and worker.slots:
            reserved = f"{worker.name} reserves {worker.prefetch} messages for {worker.slots} slots"
            yield PREFETCH.finding(worker.prefetch > worker.slots, reserved)


def _running_modules(marks: NamespaceMarks) -> dict[str, str]:
    try:
        return marks.noted_modules(LIVES_FOR)
    except StoreError:  # has a finding of its own
        return {}


def _marks(store: Store, names: list[str]) -> tuple[list[bool], float]:
    """Return whether the store has the mark of each worker, and for how long it has been running, seconds."""
    try:
        infos = store.info().run()
        return store.have_workers(names).run(), min(float(each.get("uptime_in_seconds", "inf")) for each in infos)
    except StoreError:  # has a finding of its own
        return [True] * len(names), 0.0


def _queues(config: Config) -> tuple[str, str, str, str]:
    queues = config.queues
    return queues.miss, queues.revalidate, queues.warm, queues.upkeep
