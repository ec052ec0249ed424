"""Doctor's checks of what a namespace holds: one application's entries, and all that loaders return."""

from __future__ import annotations

from collections.abc import Iterator

from cacheworkers.ops.doctor.findings import Finding, Rule
from cacheworkers.runtime.database_mark import recent_databases
from cacheworkers.runtime.wiring import Runtime

SHARED = Rule(
    "namespace-shared",
    "warning",
    "Caches of one namespace load from different databases.",
    "If they are two applications, or staging and production, each is served the other's values, drops the other's "
    "entries, and has its workers load for the other.",
    "Give each its own `Config.namespace`. One database under two addresses, as through a pooler, is well: say "
    "`allow_shared_namespace=True`.",
)
UNSTORED = Rule(
    "unstored-values",
    "warning",
    "Values of a loader had no place in the store within a day.",
    "Each read of them is a load: they outgrow `max_tags`, `max_tag_bytes` or `max_entry_bytes`, have a tag that "
    "nothing could invalidate, or met a key that something else has written.",
    "Read the reason; give the entry fewer or shorter tags, split it, or raise the limit.",
)
RULES = (SHARED, UNSTORED)


def check_namespace(runtime: Runtime) -> Iterator[Finding]:
    """Yield whether other databases are loaded from under this namespace."""
    noted = runtime.ports.store.databases().run()
    own = [each.database_mark.database for each in (runtime, *runtime.siblings)]
    databases = sorted({*filter(None, own), *recent_databases(noted)})
    config = runtime.ports.config
    shown = ", ".join(databases) or "no database that is known"
    is_wrong = len(databases) > 1 and not config.allow_shared_namespace
    yield SHARED.finding(is_wrong, f"the namespace {config.namespace} is loaded from {shown}")


def check_unstored(runtime: Runtime) -> Iterator[Finding]:
    """Yield which loaders return what cannot be stored."""
    unstored = runtime.ports.store.unstored().run()
    for loader, reason in sorted(unstored.items()):
        yield UNSTORED.finding(True, f"{loader} is served uncached: {reason}")
    if not unstored:
        yield UNSTORED.finding(False, "all that was loaded within a day was stored")
