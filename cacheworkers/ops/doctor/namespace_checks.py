"""Doctor's checks of a namespace: another application in it, and loaders whose values cannot be stored."""

from __future__ import annotations

import time
from collections.abc import Iterator

from cacheworkers.core.signature import loader_name_of
from cacheworkers.errors import NamespaceTaken
from cacheworkers.ops.doctor.findings import Finding, Rule, rules_in
from cacheworkers.ops.output import counted
from cacheworkers.runtime.namespace_marks import conflicts
from cacheworkers.runtime.wiring import Runtime

#: Failures are looked for among as many keys of the store, a thousand to a step.
SCANNED_KEYS = 100_000
#: Of a loader's failed calls, as many are asked for their reason.
ASKED = 20

SHARED = Rule(
    "namespace-shared",
    "warning",
    "Caches of one namespace load from different databases, or have a loader of the same name in different modules.",
    "If they are two applications, or staging and production, each is served the other's values, drops the other's "
    "entries, and has its workers load for the other.",
    "Give each its own `Config.namespace`. One database under two addresses, as through a pooler, is well: say "
    "`allow_shared_namespace=True`. After a move of a database or module the finding goes within 15 minutes of the "
    "last old process's end.",
)
TAKEN = Rule(
    "namespace-taken",
    "error",
    "Another application runs under this namespace: it has a loader of the same name, in another module, and another "
    "database.",
    "Each would be served the other's values.  So this one does not use the store: its reads load, its invalidations "
    "fail, and its workers do not start (`NamespaceTaken`).",
    "Give it its own `Config.namespace`.  If both are one application, whose module and database were moved in one "
    "release, say `allow_shared_namespace=True` until the last old process has ended.",
)
UNSTORED = Rule(
    "unstored-values",
    "warning",
    "Values of a loader had no place in the store within a day.",
    "Each read of them is a load: they outgrow `max_tags`, `max_tag_bytes` or `max_entry_bytes`, have a tag that "
    "nothing could invalidate, or met a key that something else has written.",
    "Read the reason; give the entry fewer or shorter tags, split it, or raise the limit.",
)
FOREIGN = Rule(
    "foreign-keys",
    "warning",
    "Keys of the namespace hold what something else has written.",
    "What the library notes there is missing: which calls are hot, why values are not stored; without the sequence or "
    "the numbers of shards no invalidation is acknowledged.",
    "Find out who writes there, and give it another prefix, or this application another `Config.namespace`; then "
    "delete the key, which the library writes again.",
)
FAILED = Rule(
    "failed-loads",
    "warning",
    f"Loads have failed, and not succeeded since; looked for among {SCANNED_KEYS:,} keys of the store.",
    "Until one succeeds, readers get the lapsed value while `error_for` lasts, then `LoadError`: 503s, or "
    "500s where nothing catches it.",
    'The process that ran it, a worker or a web process, has logged the traceback as "load of ... failed"; '
    "`cacheworkers explain` with the call says when it is loaded again.",
)
RULES = rules_in(globals())


def check_namespace(runtime: Runtime) -> Iterator[Finding]:
    """Yield whether others use this namespace for another database, or another module's loader of the same name."""
    marks = {mark: time.time() for each in runtime.siblings for mark in each.marks.own()}
    config = runtime.ports.config
    try:
        noted = runtime.ports.store.marks().run()
    except NamespaceTaken as error:
        yield TAKEN.finding(True, str(error))
        return
    found = {} if config.allow_shared_namespace else conflicts(runtime.marks.own(), {**noted, **marks})
    for mark, others in found.items():
        used = f"the namespace {config.namespace} is used for {mark}, and by others for {', '.join(others)}"
        yield SHARED.finding(True, used)
    if not found:
        yield SHARED.finding(False, f"nobody is seen to use the namespace {config.namespace} for something else")


def check_unstored(runtime: Runtime) -> Iterator[Finding]:
    """Yield which loaders return what cannot be stored."""
    unstored = runtime.ports.store.unstored().run()
    for loader, reason in sorted(unstored.items()):
        yield UNSTORED.finding(True, f"{loader} is served uncached: {reason}")
    if not unstored:
        yield UNSTORED.finding(False, "all that was loaded within a day was stored")


def check_failures(runtime: Runtime) -> Iterator[Finding]:
    """Yield of which loaders calls have failed, and why one of them has."""
    store = runtime.ports.store
    failed: dict[str, list[str]] = {}
    cursor = 0
    for _ in range(SCANNED_KEYS // 1000):
        cursor, keys = store.scan(cursor, f"{store.keys.failures_prefix}*").run()
        for call in filter(None, (store.keys.call_of(key.encode()) for key in keys)):
            failed.setdefault(loader_name_of(call), []).append(call)
        if not cursor:
            break
    found = False
    for loader, calls in sorted(failed.items()):
        for call in calls[:ASKED]:
            failure = store.failures(call).run()
            if failure.get("kind", "KeyMissing") != "KeyMissing":  # a key that a batch loader left out is an answer
                found = True
                text = ": ".join(filter(None, (failure["kind"], failure.get("text", "").partition("\n")[0])))
                many = counted(len(calls), "call", "calls")
                yield FAILED.finding(True, f"{many} of {loader} failed, {call} with {text}")
                break
    if not found:
        yield FAILED.finding(False, "no load has failed lately")


def check_foreign(runtime: Runtime) -> Iterator[Finding]:
    """Yield which of the library's own keys are of another type."""
    found = runtime.ports.store.foreign_keys(sorted(runtime.marks.modules)).run()
    for key in found:
        yield FOREIGN.finding(True, f"{key} holds what something else has written")
    if not found:
        yield FOREIGN.finding(False, "the keys of the namespace and of its loaders are the library's own")
