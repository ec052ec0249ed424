"""Runs all of doctor's checks in parallel, each with a timeout; a server that is away is a finding."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from cacheworkers.errors import NamespaceTaken, StoreUnavailable, UnsafeStore
from cacheworkers.ops.doctor import database_checks, namespace_checks, store_checks, worker_checks
from cacheworkers.ops.doctor.findings import LEVELS, Finding, Rule
from cacheworkers.sql.outbox.connections import shown_url
from cacheworkers.sql.outbox.diagnostics import DatabaseUnavailable
from cacheworkers.workers.diagnostics import BrokerFull, BrokerUnreachable, app_facts, worker_facts

if TYPE_CHECKING:
    from cacheworkers.cache import Cache
    from cacheworkers.config import Config
    from cacheworkers.runtime.namespace_marks import NamespaceMarks

log = logging.getLogger("cacheworkers")

#: How long one check may take, seconds; they run side by side.
CHECK_WITHIN = 5.0

FAILED = Rule(
    "check-failed",
    "warning",
    "A check could not be made.",
    "What it looks at is not known.",
    "Read the message: rights that are missing (see acl), or a hosted server that refuses a command.",
)
RULES = (*store_checks.RULES, *namespace_checks.RULES, *worker_checks.RULES, *database_checks.RULES, FAILED)
_AWAY: dict[type[Exception], Rule] = {
    StoreUnavailable: store_checks.AWAY,
    BrokerUnreachable: worker_checks.AWAY,
    BrokerFull: worker_checks.BROKER_FULL,
    DatabaseUnavailable: database_checks.AWAY,
}


class Check(msgspec.Struct, frozen=True):
    """One check of one part; `away` is the rule when that does not answer."""

    name: str
    away: Rule
    find: Callable[[], Iterable[Finding]]


def diagnose(
    cache: Cache,
    *,
    timeout: float = CHECK_WITHIN,
    is_running: bool = True,
    from_outside: bool = False,
    now: Callable[[], float] = time.time,
) -> list[Finding]:
    """Return the findings about a cache's store, broker, workers and database; worst first.

    Looks only: probe keys in the store are gone within a second.  Takes a second or two, and never raises.

    Args:
        timeout: how long one check may take, seconds; what has not answered by then is away.
        is_running: look also at what needs running processes: workers, queues, beat.
        from_outside: this process is none of the application's, as the command line's.
        now: this machine's clock, seconds since the epoch.
    """
    app = cache.internals.app
    # First, and in this thread: an app reads its configuration and makes its tasks at first use.
    settings = [] if app is None else _run(_settings(app))
    checks = list(_checks(cache, app, is_running, from_outside, now))
    found: queue.Queue[tuple[Check, list[Finding]]] = queue.Queue()
    for check in checks:
        # Daemons: one that hangs for ever must not keep the process.
        threading.Thread(
            target=lambda check=check: found.put((check, _run(check))), name=f"doctor-{check.name}", daemon=True
        ).start()
    end = time.monotonic() + timeout
    late = {check.name: check for check in checks}
    findings = settings
    while late:
        try:
            check, theirs = found.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        findings += theirs
        del late[check.name]
    findings += [check.away.finding(True, f"no answer to {check.name} within {timeout:g} s") for check in late.values()]
    return _ordered(findings)


def log_diagnosis(cache: Cache, *, timeout: float = CHECK_WITHIN, is_running: bool = True) -> list[Finding]:
    """Log warnings and errors, one line each with the finding's fields, and return all findings."""
    findings = diagnose(cache, timeout=timeout, is_running=is_running)
    for finding in findings:
        if finding.level in ("warning", "error"):
            level = logging.ERROR if finding.level == "error" else logging.WARNING
            fields = {"check": finding.check, "what": finding.what, "why": finding.why, "fix": finding.fix}
            log.log(level, "doctor: %s: %s. %s", finding.check, finding.what.rstrip("."), finding.fix, extra=fields)
    return findings


def log_when_workers_start(cache: Cache) -> None:
    """Let each worker log what is wrong with its set-up, from a thread of its own, once it is ready.

    What needs running processes is left out: they all start now.  Nothing happens where there is no Celery.
    """
    on_ready = getattr(cache.internals.runtime.workers, "on_ready", None)
    if on_ready is not None:
        on_ready(lambda: log_diagnosis(cache, is_running=False))


def _settings(app: Any) -> Check:
    return Check("settings", worker_checks.AWAY, lambda: worker_checks.check_settings(app))


def _checks(cache: Cache, app: Any, is_running: bool, from_outside: bool, now: Callable[[], float]) -> Iterator[Check]:
    """Yield what there is to ask others: no broker without Celery, no outbox where nothing is watched."""
    config, internals = cache.config, cache.internals
    runtime, watching, triggers = internals.runtime, internals.watching, internals.triggers
    engines, databases = watching.engines, watching.databases
    has_outbox = bool(cache.is_watching or triggers)

    store, link = store_checks.AWAY, internals.ports.store
    yield Check("store-servers", store, lambda: store_checks.check_servers(config, has_outbox=has_outbox, now=now))
    yield Check("store-sentinels", store, lambda: store_checks.check_sentinels(config))
    yield Check("store-pushes", store, lambda: store_checks.check_pushes(config))
    yield Check("namespace", store, lambda: namespace_checks.check_namespace(runtime))
    yield Check("unstored", store, lambda: namespace_checks.check_unstored(runtime))
    yield Check("failures", store, lambda: namespace_checks.check_failures(runtime))
    yield Check("foreign", store, lambda: namespace_checks.check_foreign(runtime))
    yield Check("store-rights", store, lambda: store_checks.check_rights(config))
    if app is None and is_running and not config.testing and (has_outbox or cache.loaders):
        yield Check("celery", store, lambda: worker_checks.check_no_celery(config))
    if app is not None:
        broker = worker_checks.AWAY
        yield Check("loaders", store, lambda: worker_checks.check_loaders(sorted(cache.loaders), runtime.marks))
        yield Check("broker", broker, lambda: worker_checks.check_broker(app, config))
        if is_running:
            yield Check("queues", broker, lambda: worker_checks.check_backlog(app, config))
            yield Check("workers", broker, lambda: worker_checks.check_workers(app, config, link, runtime.marks))
            yield Check("beat", store, lambda: _check_beat(app, config, runtime.marks))
    database = database_checks.AWAY
    with_outbox = {engine.url: engine for engine in engines}
    # One look at each database, however many engines there are for it.
    for engine in ({engine.url: engine for engine in databases} | with_outbox).values():
        where = "" if len(databases) == 1 else f" at {shown_url(engine)}"
        yield Check(f"database{where}", database, partial(database_checks.check_database, engine))
        yield Check(f"pooler{where}", database, partial(database_checks.check_pooler, engine))
        if engine in databases:
            policies = {name: cache.loaders[name].policy for name in cache.loaders}
            yield Check(f"limits{where}", database, partial(database_checks.check_limits, engine, policies))
        if has_outbox and engine.url in with_outbox:
            outbox = partial(database_checks.check_outbox, engine, cache.outbox, config)
            yield Check(f"outbox{where}", database, outbox)
            if engine.dialect.name == "postgresql":
                left = partial(database_checks.check_left, engine, cache.outbox, triggers)
                yield Check(f"triggers-left{where}", database, left)
    if has_outbox:
        yield Check(
            "outbox-engines", database, lambda: database_checks.check_engines(engines, link, from_outside=from_outside)
        )
    if triggers and engines:
        yield Check("triggers", database, lambda: database_checks.check_triggers(engines, triggers))


def _check_beat(app: Any, config: Config, marks: NamespaceMarks) -> Iterator[Finding]:
    try:
        workers = [worker for worker in worker_facts(app) if config.queues.upkeep in worker.queues]
        known = [worker.uptime for worker in workers if worker.uptime is not None]
        has_worker = bool(workers)
    except BrokerUnreachable:  # has a finding of its own
        known, has_worker = [], True
    command, _, late = marks.worker_command(app, asks=True).partition("  # ")
    beat = f"`celery -A {command.split()[2]} beat`" + (f", or with {late}" if late else "")
    upkeep = sorted(app_facts(app).upkeep.items())
    yield from store_checks.check_beat(config, upkeep, max(known, default=None), beat, has_worker=has_worker)


def _run(check: Check) -> list[Finding]:
    try:
        return list(check.find())
    except (UnsafeStore, NamespaceTaken):
        return []  # errors of their own: eviction-policy, namespace-taken
    except Exception as error:  # whatever it was, the other checks go on
        away = _AWAY.get(type(error))
        if away is not None:
            return [away.finding(True, str(error))]
        return [FAILED.finding(True, f"{check.name}: {type(error).__name__}: {error}")]


def _ordered(findings: list[Finding]) -> list[Finding]:
    """Return findings worst first; what is away is said once, and not also that it answers."""
    rank = {rule.check: place for place, rule in enumerate(RULES)}
    findings.sort(key=lambda finding: (-LEVELS.index(finding.level), rank[finding.check], finding.what))
    is_away = {rule.check for rule in _AWAY.values()}
    said: set[str] = set()
    kept = []
    for finding in findings:
        if finding.check in is_away and finding.level != "ok":
            if finding.check in said:
                continue
            said.add(finding.check)
        elif finding.check in said:
            continue
        kept.append(finding)
    return kept
