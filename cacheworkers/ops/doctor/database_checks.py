"""Doctor's checks of the database: it answers, the outbox exists and is drained, triggers are as declared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cacheworkers.config import Config
from cacheworkers.ops.doctor.findings import Finding, Rule, rules_in
from cacheworkers.policy import Policy
from cacheworkers.runtime.namespace_marks import DATABASE, live_marks
from cacheworkers.sql.outbox.connections import shown_url
from cacheworkers.sql.outbox.diagnostics import (
    answers,
    left_triggers,
    outbox_facts,
    pooler_facts,
    server_limits,
    trigger_faults,
)
from cacheworkers.sql.outbox.outbox import GRACE, Outbox
from cacheworkers.sql.triggers.postgres_triggers import Triggers
from cacheworkers.store.commands.store import Store

#: How long rows of another namespace wait until nobody seems to drain them, seconds.
_LEFT_FOR = 3600.0
AWAY = Rule(
    "database-away",
    "error",
    "The database does not answer.",
    "Nothing can be loaded: what is cached is served, stale after a while, and all else fails.",
    "Start it, or correct the engine's URL; look at its log, its limit of connections and the network between.",
)
POOLER = Rule(
    "pooler",
    "warning",
    "A pooler such as PgBouncer is between the engine and PostgreSQL, and the driver keeps prepared statements.",
    "In its transaction mode statements fail now and then with `prepared statement ... does not exist`.  NOTIFY does "
    "not pass it either: draining processes look twice a second instead.",
    '`create_engine(..., connect_args={"prepare_threshold": None})` for psycopg; see How to invalidate, PgBouncer.',
)
REPLICA_LOADS = Rule(
    "replica-loads",
    "warning",
    "Loaders read a replica, and have no `hold_off_for`.",
    "A load that begins after an invalidation may read the old row there. For ten seconds after one, what is loaded is "
    "kept as stale and soon loaded again; a replica that lags for longer leaves the old row fresh.",
    "Bind the loaders' sessions to the primary, or declare them with a `hold_off_for` above the lag of the replica.",
)
LIMITS = Rule(
    "transaction-limits",
    "warning",
    "The database ends transactions earlier than loaders' deadlines.",
    "A loader that computes, or calls something else, between two statements loses its connection, and its load fails.",
    "Raise `idle_in_transaction_session_timeout` and `transaction_timeout` for the loaders' role above `load_for`, "
    "or shorten `load_for`.",
)
UNKNOWN = Rule(
    "outbox-unknown",
    "error",
    "Sessions are watched, or triggers declared, and no engine of a database with the outbox is known.",
    "Nothing drains it: what a crash, an outage of the store or a trigger leaves there is never invalidated.",
    "Give `cache.watch` a sessionmaker that is bound, with `bind` or `binds`; or, where your sessions choose their "
    "engine themselves, `Cache(sessions=)` one that is bound to the database with the outbox.",
)
UNBOUND = Rule(
    "outbox-unbound",
    "note",
    "The command's process has bound its sessions to no engine; a running process has, or none runs.",
    "The application's factory, or a worker's start, binds them, and neither has run in this process: the database, "
    "its outbox and its triggers are not looked at.",
    "Give `-A` the factory, which is called as Flask and `uvicorn --factory` do: `cacheworkers -A "
    "'shop.web:create_app()' doctor`; or a module that binds the sessions.",
)
MISSING = Rule(
    "outbox-missing",
    "error",
    "Sessions are watched, or triggers declared, and the outbox table is not there, or lacks a column.",
    "Every commit that changes what is watched fails.",
    "`cache.outbox.create(engine)`; or a migration, where `cache.outbox.table.to_metadata(Base.metadata)` puts it "
    "beside your tables: generate it, and run it.",
)
LAG = Rule(
    "outbox-lag",
    "warning",
    "A row of the outbox has waited for longer than three rounds of the drain, and at least 15 s.",
    "It was committed, and a trigger's row is not invalidated yet: readers may see what it changed as it was before. A "
    "session's row may have been, and its mark is missing, as after a process that was killed.",
    "Run the drain (beat and a worker on the upkeep queue, or `cache.drain_until`); `cacheworkers drain` delivers now, "
    "and says why it cannot: not while the store is away.",
)
TRIGGERS = Rule(
    "triggers",
    "error",
    "Declared triggers are not in the database, or not as they are declared now.",
    "What psql, bulk statements and other services change in these tables is not invalidated, or by old tags.",
    "Run the migrations, with Django that is all; then `triggers.install(connection)`, after each run of "
    "migrations with `skip_missing=True`; with an AsyncEngine `await connection.run_sync(triggers.install)`.",
)
LEFT = Rule(
    "triggers-left",
    "warning",
    "Triggers write the outbox, and nothing declares them, or nobody has drained their namespace for an hour.",
    "Each write of their table fails once one of their columns is renamed or dropped; rows that nobody drains are kept "
    "for ever.",
    "If a module declares them that this command did not import, name that one with `-A`.  Else declare the table with "
    "an empty list, `cache.triggers({table: []})`, until `triggers.install` has run everywhere.  Where the namespace "
    "is gone, as after a change of `Config.namespace`, drop the function with `CASCADE`.",
)
RULES = rules_in(globals())


def check_engines(engines: Sequence[Any], store: Store, *, from_outside: bool) -> Iterator[Finding]:
    """Yield whether the databases are known whose outbox is to be drained.

    Args:
        from_outside: this process is none of the application's: others may have bound what it has not.
    """
    shown = ", ".join(shown_url(engine) for engine in engines) or "no engine"
    if engines or not from_outside:
        yield UNKNOWN.finding(not engines, f"{shown} is drained")
        return
    marks = live_marks(store.marks().run())
    databases = [mark.removeprefix(f"{DATABASE} ") for mark in marks if mark.startswith(DATABASE)]
    if marks and not databases:
        yield UNKNOWN.finding(True, "no engine is drained: no running process has bound its sessions to one")
        return
    others = f"running processes have {', '.join(databases)}" if databases else "no other process runs"
    yield UNBOUND.finding(True, f"the sessions of this process are bound to no engine; {others}")


def check_database(engine: Any) -> Iterator[Finding]:
    """Yield whether the database answers."""
    yield AWAY.finding(False, f"{answers(engine)} answers")


def check_pooler(engine: Any) -> Iterator[Finding]:
    """Yield whether prepared statements are kept behind a pooler."""
    facts = pooler_facts(engine)
    if facts is None or not facts.is_there:
        yield POOLER.finding(False, f"{shown_url(engine)} answers itself")
        return
    kept = (
        f"keeps prepared statements; {facts.setting} keeps none" if facts.prepares else "keeps no prepared statements"
    )
    yield POOLER.finding(facts.prepares, f"a pooler answers for {shown_url(engine)}, and its driver {kept}")


def check_limits(engine: Any, policies: Mapping[str, Policy]) -> Iterator[Finding]:
    """Yield whether a database suits loaders: no replica without `hold_off_for`, transactions that may last as long.

    Args:
        policies: of the loaders, by name.
    """
    limits = server_limits(engine)
    if limits is None:
        return
    hasty = sorted(name for name, policy in policies.items() if not policy.hold_off_for) if limits.is_replica else []
    kind = "a replica" if limits.is_replica else "no replica"
    shown = f"{shown_url(engine)} is {kind}" + (f", and {', '.join(hasty)} would keep what it lacks" if hasty else "")
    yield REPLICA_LOADS.finding(bool(hasty), shown)
    given = [limit for limit in (limits.idle_for, limits.transaction_for) if limit]
    longer = sorted(name for name, policy in policies.items() if given and policy.load_for > min(given))
    allowed = (
        f"{shown_url(engine)} ends a transaction after {min(given):g} s" if given else f"{shown_url(engine)} ends none"
    )
    yield LIMITS.finding(bool(longer), allowed + (f"; {', '.join(longer)} may take longer" if longer else ""))


def check_outbox(engine: Any, outbox: Outbox, config: Config) -> Iterator[Finding]:
    """Yield whether the outbox is there, and how long its oldest row has waited."""
    facts = outbox_facts(engine, outbox)
    shown = f"lacks {', '.join(facts.missing)}" if facts.missing else f"has {outbox.table.fullname}"
    yield MISSING.finding(bool(facts.missing), f"{facts.where} {shown}")
    if not facts.missing:
        most = max(15.0, GRACE + 3 * config.drain_interval)
        shown = f"{facts.waiting:,} rows wait, the oldest for {facts.lag:,.1f} s"
        yield LAG.finding(facts.lag > most, shown)


def check_left(engine: Any, outbox: Outbox, declared: Sequence[Triggers]) -> Iterator[Finding]:
    """Yield whether a database has triggers that nothing declares, or that write for nobody."""
    shown = [
        f"{each.tables} has triggers that this application does not declare, of function {each.function}"
        if each.namespace == outbox.namespace
        else f"{each.tables} has triggers of namespace {each.namespace}, whose rows wait for {each.lag:,.0f} s, of "
        f"function {each.function}"
        for each in left_triggers(engine, outbox, declared)
        if each.namespace == outbox.namespace or each.lag > _LEFT_FOR
    ]
    yield LEFT.finding(bool(shown), "; ".join(shown) or f"{shown_url(engine)} has none but those that are declared")


def check_triggers(engines: Sequence[Any], declared: Sequence[Triggers]) -> Iterator[Finding]:
    """Yield whether triggers are as declared, each in one of the databases."""
    faults = trigger_faults(engines, declared)
    yield TRIGGERS.finding(bool(faults), "; ".join(faults.values()) or "all are there")
