"""Doctor's checks of the store: eviction, memory, persistence, connections, tracking, rights, upkeep."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cacheworkers.config import Config
from cacheworkers.ops.doctor.findings import Finding, Rule, rules_in
from cacheworkers.store.connections.server_check import SAFE_POLICIES
from cacheworkers.store.diagnostics.sentinel_facts import SentinelFacts
from cacheworkers.store.diagnostics.server_facts import ServerFacts, StoreDiagnostics

#: Of `maxmemory`: from here on the store counts as full.
FULL = 0.85
#: With a smaller share of keys that may go, eviction makes no more room.
EVICTABLE = 0.1
#: How far two clocks may be apart, seconds: the shortest upkeep task expires after five.
SKEW = 2.0
#: Of `maxclients`: from here on connections are short.
BUSY_CLIENTS = 0.8
#: Of fewer, one is enough to name the master.
MIN_SENTINELS = 3

AWAY = Rule(
    "store-away",
    "error",
    "The store does not answer.",
    "Reads are served from memory for at most `l1_on_loss_for`, then every process loads for itself; "
    "invalidations fail, and wait in the outbox if there is one.",
    "Start it, or correct `Config.redis_url`; look at its log, its password and the network between.",
)
VERSION = Rule(
    "store-version",
    "error",
    "The store is older than Redis 7.0.",
    "Its scripts cannot run while memory is full, so that nothing could be invalidated then; the library refuses it.",
    "Use Redis 7.0 or Valkey 7.2, or later.",
)
REPLICA = Rule(
    "store-replica",
    "error",
    "`redis_url` leads to a replica.",
    "Replicas refuse writes: nothing is stored, nothing is invalidated.",
    "Give the master's address, or `sentinel://host:port/service`, which follows it through a failover.",
)
SENTINELS = Rule(
    "sentinels",
    "warning",
    "`redis_url` names fewer Sentinels than most of those that there are, or fewer than three.",
    "Where most of those that it names do not answer, the store counts as unavailable, though the others may have "
    "elected a master. Of one or two, the word of one is enough: if it has missed a failover, reads go to the old "
    "master, and get old values.",
    "Name all in `redis_url`, `sentinel://host1:26379,host2:26379,host3:26379/service`; one name for several, as of a "
    "Kubernetes service, counts as one. `redis-cli -h host1 -p 26379 SENTINEL SENTINELS service` lists the others.",
)
EVICTION = Rule(
    "eviction-policy",
    "error",
    "`maxmemory-policy` is none of noeviction, volatile-lru and volatile-lfu.",
    "`allkeys-*` may evict tag sets, the marks of invalidations and `seq`: entries then outlive their invalidation, "
    "and nothing reports it. `volatile-ttl` and `volatile-random` evict leases first: loads are done twice.",
    "`CONFIG SET maxmemory-policy volatile-lru`, and the same in the server's configuration. `allow_evicting_store` "
    "only silences the library.",
)
UNLIMITED = Rule(
    "maxmemory",
    "warning",
    "`maxmemory` is not set.",
    "The store grows until the kernel kills it, and every key is lost.",
    "`CONFIG SET maxmemory` to about three quarters of what the machine can spare, with maxmemory-policy volatile-lru.",
)
HEADROOM = Rule(
    "memory-headroom",
    "warning",
    f"More than {FULL:.0%} of `maxmemory` is used, and eviction cannot make room: the policy is noeviction, or fewer "
    f"than {EVICTABLE:.0%} of the keys have an expiry.",
    "Soon no entry can be stored, and every miss is loaded again and again. Invalidations still work.",
    "Raise `maxmemory`, set volatile-lru, shorten `stale_for` and `error_for`, or move what else lives there.",
)
SNAPSHOTS = Rule(
    "persistence-snapshots",
    "warning",
    "The store keeps snapshots only, and they may be older than what the drain replays.",
    "A restart brings back entries as the snapshot has them, and with them what was invalidated since. The drain "
    "delivers again what the outbox delivered within `replay_for`, and nothing without an outbox, or on a Cluster.",
    '`appendonly yes`; or no persistence at all, `save ""`; or set `replay_for` above the longest interval of `save`.',
)
EPHEMERAL = Rule(
    "persistence-none",
    "note",
    "The store keeps nothing on disk.",
    "After a restart it is empty: nothing old can come back, but every read is a miss at first.",
    "`appendonly yes`, if the database does not take all misses together.",
)
HIDDEN = Rule(
    "config-hidden",
    "note",
    "The store refuses `CONFIG GET`.",
    "Doctor cannot see whether it keeps snapshots; the other checks do without.",
    "Allow the user `+config|get`, or look up `save` at who runs the store.",
)
CLIENTS = Rule(
    "maxclients",
    "warning",
    f"More than {BUSY_CLIENTS:.0%} of the connections that the store takes are in use.",
    "The next process gets none: its reads go to the database, and its invalidations fail.",
    "Raise `maxclients`, and the limit of open files with it; a web process holds a connection for each thread or "
    "event loop, and one that listens.",
)
OUTPUT = Rule(
    "output-buffer",
    "note",
    "`client-output-buffer-limit normal` has no limit, and `maxmemory` is set.",
    "Invalidation messages for a process that stands still (a debugger, a suspended container) count as memory: they "
    "push everybody's entries out.",
    "`CONFIG SET client-output-buffer-limit 'normal 32mb 8mb 60'`, well above the largest entry; or "
    "`maxmemory-clients 5%`.",
)
CLOCK = Rule(
    "clock-skew",
    "warning",
    f"This machine's clock and the store's are more than {SKEW:g} s apart.",
    "Entries are not affected: they use the store's clock. Celery is: a message expires by its sender's clock and is "
    "judged by its worker's, and upkeep tasks expire after as little as 30 s: workers throw them away unseen.",
    "Run NTP (chrony, systemd-timesyncd) on every machine.",
)
TABLE = Rule(
    "tracking-table",
    "warning",
    "The store tracks nearly as many keys as `tracking-table-max-keys` allows.",
    "What it forgets it reports like a change: processes drop from memory what has not changed, and read it again.",
    "`CONFIG SET tracking-table-max-keys` to the number of different entries that all processes keep, at 150 bytes for "
    "each process that keeps one; or lower `l1_entries`.",
)
TRACKING = Rule(
    "tracking",
    "error",
    "`CLIENT TRACKING` on RESP3 does not work: a write is not reported to the process that keeps its entry.",
    "L1 stays off, and readers who wait for a load are not woken: they find its value when their wait ends.",
    "Connect to the server itself, not through a proxy or a load balancer; allow `CLIENT` and `HELLO`; "
    "ask for RESP3 where the store is hosted.",
)
DENIED = Rule(
    "acl",
    "error",
    "The store's user may not run what the library runs.",
    "The first read, load, invalidation or upkeep task that needs it fails with NOPERM.",
    "`ACL SETUSER name ~namespace:* +@read +@write +@scripting +@connection -@dangerous +info +time +config|get`, with "
    "`Config.namespace` for namespace; on a Cluster `+cluster` too.",
)
BEAT = Rule(
    "beat",
    "warning",
    "An upkeep task has not ended well for three times its interval, and at least a minute.",
    "Without upkeep nothing is warmed, tag sets grow, and rows that triggers or a crash left in the outbox wait "
    "for a drain.",
    "Run `celery -A module beat`, and a worker on the upkeep queue; look into its log if both are there, and at "
    "clock-skew.",
)
RULES = rules_in(globals())


def check_servers(config: Config, *, has_outbox: bool, now: Callable[[], float]) -> Iterator[Finding]:
    """Yield what each master says of itself."""
    with StoreDiagnostics(config) as probe:
        servers = probe.servers(now)
        # An outbox is replayed where a restart is noticed, and on a Cluster it is not.
        replay_for = config.replay_for if has_outbox and not config.redis_url.startswith("cluster") else 0.0
    for server in servers:
        yield from judge_server(server, replay_for)


def judge_server(server: ServerFacts, replay_for: float) -> Iterator[Finding]:
    """Yield what is to be said of one master.

    Args:
        replay_for: how far back invalidations are delivered again after a restart, seconds; 0 for not at all.
    """
    where = server.where
    yield AWAY.finding(False, f"{where} answers")
    yield VERSION.finding(int(server.version.split(".")[0]) < 7, f"{where} is {server.product}")
    yield REPLICA.finding(server.role != "master", f"{where} is a {server.role}")
    policy = f"{where} has maxmemory-policy {server.policy}"
    yield EVICTION.finding(server.policy not in SAFE_POLICIES, policy)
    limit = f"{server.maxmemory:,} bytes" if server.maxmemory else "no limit"
    yield UNLIMITED.finding(not server.maxmemory, f"{where} has maxmemory {limit}")
    if server.maxmemory:
        used = server.used_memory / server.maxmemory
        is_stuck = server.policy == "noeviction" or server.evictable < EVICTABLE
        shown = f"{where} uses {used:.0%} of maxmemory; {server.evictable:.0%} of its keys have an expiry"
        yield HEADROOM.finding(used > FULL and is_stuck, shown)
    yield TABLE.finding(server.tracked > 0.9, f"{where} has {server.tracked:.0%} of its tracking table in use")
    yield from _judge_persistence(server, replay_for)
    yield from _judge_connections(server)
    yield CLOCK.finding(abs(server.clock_ahead) > SKEW, f"{where} is {server.clock_ahead:+.2f} s from this machine")


def _judge_persistence(server: ServerFacts, replay_for: float) -> Iterator[Finding]:
    where = server.where
    yield HIDDEN.finding(
        server.is_config_hidden, f"{where} {'hides' if server.is_config_hidden else 'shows'} its CONFIG"
    )
    if server.is_appending:
        yield SNAPSHOTS.finding(False, f"{where} has appendonly yes")
    elif server.save_every is not None:
        shown = f"{where} may have a snapshot {server.save_every:,.0f} s old, and {replay_for:,.0f} s are replayed"
        yield SNAPSHOTS.finding(server.save_every > replay_for, shown)
    elif not server.is_config_hidden:
        yield EPHEMERAL.finding(True, f"{where} has appendonly no and no snapshots")


def _judge_connections(server: ServerFacts) -> Iterator[Finding]:
    where = server.where
    if server.max_clients:
        shown = f"{where} has {server.clients:,} connections of maxclients {server.max_clients:,}"
        yield CLIENTS.finding(server.clients > BUSY_CLIENTS * server.max_clients, shown)
    if server.output_limit is not None:
        limit = f"{server.output_limit:,} bytes" if server.output_limit else "no limit"
        yield OUTPUT.finding(
            bool(server.maxmemory) and not server.output_limit, f"{where} keeps {limit} for a client that does not read"
        )


def check_sentinels(config: Config) -> Iterator[Finding]:
    """Yield whether the URL names enough of the Sentinels; nothing where there are none."""
    with StoreDiagnostics(config) as probe:
        facts = probe.sentinels()
    if facts is not None:
        yield judge_sentinels(facts)


def judge_sentinels(facts: SentinelFacts) -> Finding:
    """Return what is to be said of the number of Sentinels that the URL names."""
    named, known = len(facts.named), len(facts.known)
    listed = ", ".join(f"{host}:{port}" for host, port in sorted(facts.known))
    there_are = f"{known} watch {facts.service!r} ({listed})" if known else f"none lists who watches {facts.service!r}"
    is_few = named < max(MIN_SENTINELS, known // 2 + 1)
    return SENTINELS.finding(is_few, f"redis_url names {named} Sentinel{'s' * (named != 1)}; {there_are}")


def check_pushes(config: Config) -> Iterator[Finding]:
    """Yield whether a write is pushed to who listens."""
    with StoreDiagnostics(config) as probe:
        unreceived_pushes = probe.unreceived_pushes()
    yield TRACKING.finding(bool(unreceived_pushes), unreceived_pushes or "a write by another connection was pushed")


def check_rights(config: Config) -> Iterator[Finding]:
    """Yield whether the store's user may do what the library does."""
    with StoreDiagnostics(config) as probe:
        denied = probe.denied()
    yield DENIED.finding(bool(denied), f"not allowed: {', '.join(denied)}" if denied else "every command is allowed")


def check_beat(
    config: Config,
    upkeep: Sequence[tuple[str, float]],
    running_for: float | None = None,
    beat: str = "",
    *,
    has_worker: bool = True,
) -> Iterator[Finding]:
    """Yield whether upkeep tasks run.

    Args:
        upkeep: each task's name, and every how many seconds it is due.
        running_for: how long the oldest worker of the upkeep queue has run, seconds; None if that is not known.
        beat: the command that starts it.
        has_worker: whether any worker that answers takes the upkeep queue.
    """
    with StoreDiagnostics(config) as probe:
        ages = probe.upkeep_age([task for task, _ in upkeep])
    fix = BEAT.fix.replace("`celery -A module beat`", beat) if beat else BEAT.fix
    for task, every in upkeep:
        age = ages[task]
        due_within = max(3 * every, 60.0)
        shown = "has left no sign of having run" if age is None else f"last ran {age:,.1f} s ago"
        is_late = age is None or age > due_within
        hint = ""
        if age is None and running_for is not None and running_for < due_within:
            is_late, hint = (
                False,
                f"; workers were started {running_for:,.0f} s ago, and have {due_within:,.0f} s for it",
            )
        elif not has_worker:
            hint = f"; no worker that answers takes queue {config.queues.upkeep}, which runs it" if is_late else ""
        elif age is None:
            hint = "; where workers do run it, they write to another store or namespace than this process reads"
        yield BEAT.finding(is_late, f"{task} {shown}, and is due every {every:g} s{hint}", fix)
