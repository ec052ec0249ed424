"""Config: the settings of one process."""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cacheworkers.errors import ConfigError
from cacheworkers.policy import duration

_NAMESPACE = re.compile(r"[a-z0-9_-]{1,32}")
ENV_PREFIX = "CACHEWORKERS_"


class CredentialProvider(Protocol):
    """Gives the store's user and password to each new connection."""

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return `(password,)` or `(user, password)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one process.  Durations are seconds, sizes bytes.

    Attributes:
        redis_url: the store: `redis://`, `rediss://`, `unix://`, `sentinel://host:port,host:port/service`, or
            `cluster://host:port,host:port`.  Not shown in `repr`, since it may hold a password.
        credential_provider: gives user and password to each new connection, so that they may change: an object with
            `get_credentials()`, which returns `(password,)` or `(user, password)`, as redis-py's `CredentialProvider`.
        secret_file: path of a file with the password, read for each new connection; the user is `redis_url`'s.
        namespace: first part of every key in Redis; two namespaces never meet.
        store_timeout: how long one call to the store may take without any progress, and a connection to it; a large
            reply that keeps coming may take 20 times as long.
        replicas: how many replicas of each master must have an invalidation before it is acknowledged, and an entry's
            tags before it is written; 0 waits for none.  Fewer in time: neither happens.
        breaker_for: while the store does not answer, nobody asks it but a thread of this process: soon at first, later
            once in this time.  One late reply, or one connection that was cut, is confirmed over another connection
            first.  0 lets every call ask.
        l1_entries: most entries kept in this process's memory; 0 turns L1 off.
        l1_bytes: most bytes kept there, about: payloads, decoded values that callers share, 1,000 an entry.
        l1_for: how long L1 may answer since the listener last proved that it receives invalidation messages.
        l1_on_loss_for: how long L1 may answer while the store is gone.
        bulkhead: how many loads this process may run itself concurrently.
        max_tag_bytes: longest tag.
        max_tags: most tags of one entry.
        max_entry_bytes: largest envelope that is stored.
        batch_size: most keys in one task of a batch loader, and in one MGET.
        load_attempts: how often a load is tried within its lease when invalidations overtake it.
        poison_after: how many begun loads of a call may die with their worker before it becomes a cached failure.
        backoff_for: first backoff after a failed load; doubles up to `max_backoff_for`.
        max_backoff_for: longest backoff after failed loads.
        tag_shards: tag prefix -> number of shards of its tag sets (a power of two).
        queue_prefix: first part of the queue names; empty takes the namespace.
        revalidate_rate: most revalidations a second that this process asks for; what is stale beyond that is served,
            and asked for at a later read, so that a soft invalidation of many does not load all of them together; 0
            does not limit.
        gc_interval: how often beat has garbage collected: expired members of tag sets.
        drain_interval: how often beat delivers what the outbox still holds.
        outbox_schema: database schema of the outbox table, the same for every process; empty takes the connection's
            default.
        access_report_interval: how often a process reports to the store what it has read; 0 reports nothing.
        max_hot_calls: most calls whose access score is kept, of each loader; a call without one is not kept warm.
        access_half_life: how long until a read counts half.
        warm_interval: how often beat looks for hot entries that go stale soon; 0 never.
        warm_max_calls: how many of the hottest calls of each loader are looked at a round, and reloaded immediately by
            an invalidation that reloads; others are looked at in turns.
        warm_rate: most calls a second that beat has loaded, of all loaders together.
        warm_concurrency: most calls that one round of warming, or one warm-up, has under way.
        replay_for: how long delivered outbox rows are kept, and delivered again when the store has been restarted.
        testing: for test suites: loads run inside the call that asks for them, in its thread, on the cache's own
            `sessions`, and so in whatever transaction they are bound to; a Celery app gets no messages; the namespace
            ends in `-test`, or in the process's name of pytest-xdist, so that tests never meet what development has in
            the same store; nothing is kept in memory.
        allow_shared_namespace: several databases, or modules of one loader, under one namespace are meant: neither warn
            nor refuse.
        allow_evicting_store: write to a store whose eviction policy may drop tag sets.
    """

    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    credential_provider: CredentialProvider | None = field(default=None, repr=False, compare=False)
    secret_file: str = ""
    namespace: str = "cw"
    store_timeout: float = 0.25
    replicas: int = 0
    breaker_for: float = 1.0
    l1_entries: int = 10_000
    l1_bytes: int = 64 * 1024 * 1024
    l1_for: float = 3.0
    l1_on_loss_for: float = 60.0
    bulkhead: int = 8
    max_tag_bytes: int = 200
    max_tags: int = 200
    max_entry_bytes: int = 8 * 1024 * 1024
    batch_size: int = 100
    load_attempts: int = 5
    poison_after: int = 3
    backoff_for: float = 1.0
    max_backoff_for: float = 60.0
    tag_shards: Mapping[str, int] = field(default_factory=dict)
    queue_prefix: str = ""
    revalidate_rate: float = 500.0
    gc_interval: float = 60.0
    drain_interval: float = 5.0
    outbox_schema: str = ""
    access_report_interval: float = 5.0
    max_hot_calls: int = 100_000
    access_half_life: float = 60.0
    warm_interval: float = 2.0
    warm_max_calls: int = 500
    warm_rate: float = 300.0
    warm_concurrency: int = 600
    replay_for: float = 600.0
    testing: bool = False
    allow_shared_namespace: bool = False
    allow_evicting_store: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.redis_url, str) or "://" not in self.redis_url:
            raise ConfigError("redis_url must be a URL such as redis://host:6379/0")  # what it is may hold a password
        if self.credential_provider is not None and not callable(
            getattr(self.credential_provider, "get_credentials", None)
        ):
            kind = type(self.credential_provider).__name__
            raise ConfigError(f"credential_provider must have a method get_credentials(), got an object of {kind}")
        if not isinstance(self.secret_file, str):
            raise ConfigError(f"secret_file must be a path, got {self.secret_file!r}")
        if not isinstance(self.outbox_schema, str) or "\0" in self.outbox_schema:
            raise ConfigError(f"outbox_schema must be a schema's name, got {self.outbox_schema!r}")
        if not isinstance(self.namespace, str) or not _NAMESPACE.fullmatch(self.namespace):
            raise ConfigError(f"namespace must match [a-z0-9_-]{{1,32}}, got {self.namespace!r}")
        for name in (
            "store_timeout",
            "gc_interval",
            "drain_interval",
            "replay_for",
            "access_half_life",
            "backoff_for",
            "max_backoff_for",
        ):
            duration(name, getattr(self, name), most=86400.0, positive=True)
        for name in ("breaker_for", "l1_for", "l1_on_loss_for", "access_report_interval", "warm_interval"):
            duration(name, getattr(self, name), most=86400.0)
        duration("revalidate_rate", self.revalidate_rate, most=1e6, unit=" a second")
        duration("warm_rate", self.warm_rate, most=1e6, unit=" a second")
        for name, least in _MINIMUMS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"{name} must be a whole number >= {least}, got {value!r}")
        for prefix, shards in self.tag_shards.items():
            if not isinstance(shards, int) or shards < 1 or shards & (shards - 1) or shards > 1024:
                raise ConfigError(f"tag_shards[{prefix!r}] must be a power of two from 1 to 1024, got {shards!r}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Config:
        """Return the settings found in the environment: `CACHEWORKERS_NAMESPACE=shop`, and so on.

        `CACHEWORKERS_REDIS_URL` falls back to `REDIS_URL`.  Keyword arguments win over the environment.

        Raises:
            ConfigError: a variable names no setting, or its value breaks a rule.
        """
        env = os.environ if environ is None else environ
        hints = typing.get_type_hints(cls)
        names = {f.name for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        if "REDIS_URL" in env:
            values["redis_url"] = env["REDIS_URL"]
        for variable, text in env.items():
            if not variable.startswith(ENV_PREFIX):
                continue
            name = variable[len(ENV_PREFIX) :].lower()
            if name not in names:
                raise ConfigError(f"{variable} names no setting; settings are {', '.join(sorted(names))}")
            if name == "credential_provider":
                raise ConfigError(
                    f"{variable} must not be set: give the object to Config, or set {ENV_PREFIX}SECRET_FILE"
                )
            values[name] = _parse(variable, text, hints[name])
        return cls(**{**values, **overrides})

    def for_test_process(self) -> Config:
        """Return these settings for one process of a test suite: a namespace of its own, and nothing kept in memory.

        Memory follows the store a moment later, which a test would have to wait for.
        """
        suffix = os.environ.get("PYTEST_XDIST_WORKER") or "test"
        namespace = self.namespace
        if not namespace.endswith(f"-{suffix}"):
            namespace = f"{namespace[: 31 - len(suffix)]}-{suffix}"
        return dataclasses.replace(self, namespace=namespace, l1_entries=0)

    @property
    def queues(self) -> Queues:
        """The names of the four queues."""
        prefix = self.queue_prefix or self.namespace
        return Queues(*(f"{prefix}.{name}" for name in ("miss", "revalidate", "warm", "upkeep")))


@dataclass(frozen=True, slots=True)
class Queues:
    """The four queues: what readers wait for, what they do not, what nobody asked for yet, and housekeeping."""

    miss: str
    revalidate: str
    warm: str
    upkeep: str


_MINIMUMS = {
    "replicas": 0,
    "l1_entries": 0,
    "l1_bytes": 0,
    "bulkhead": 1,
    "max_tag_bytes": 8,
    "max_tags": 1,
    "max_entry_bytes": 256,
    "batch_size": 1,
    "max_hot_calls": 1,
    "warm_max_calls": 0,
    "warm_concurrency": 1,
    "load_attempts": 1,
    "poison_after": 1,
}


def _parse(variable: str, text: str, annotation: Any) -> Any:
    """Return an environment variable's text as its setting's type."""
    origin = typing.get_origin(annotation) or annotation
    if origin in (types.UnionType, typing.Union):
        origin = typing.get_args(annotation)[0]
    try:
        if origin is bool:
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if origin is int:
            return int(text)
        if origin is float:
            return float(text)
        if origin is str:
            return text
        return {key: int(value) for key, _, value in (part.partition("=") for part in text.split(",") if part)}
    except (KeyError, ValueError):
        kind = getattr(origin, "__name__", str(origin))
        raise ConfigError(f"{variable} must be a {kind}, got {text!r}") from None
