"""Policy: how long one loader's entries and load leases live, and how its reads behave."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from cacheworkers.errors import ConfigError

OnTimeout = Literal["load", "raise"]

#: No duration may exceed this; an invalidation is remembered for twice the longest load.
MAX_LOAD_FOR = 1800.0
MAX_FOR = 366 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The rules of one loader.  Durations are seconds.

    Attributes:
        fresh_for: how long after its load an entry is fresh; 0 stores it stale.
        stale_for: how long after that it is still served while a worker revalidates it.
        error_for: how long after that it is kept, served only when its load fails (stale-if-error, RFC 5861).
        negative_for: how long a None result is fresh; None results have no stale period.
        load_for: deadline of one load; also the life of its lease, and the database's statement timeout.
        wait_for: how long a miss waits for a worker.
        on_timeout: what a miss does then: "load" here, if nobody has begun; or "raise" LoadTimeout.
        early: XFetch's beta: how eagerly entries are revalidated before they go stale; 0 never.
        jitter: share of `fresh_for` (0 to 0.5) by which each entry's life is shortened at random.
        l1_for: how long this process's memory may answer without proof that it is coherent; 0 keeps
            the loader out of L1; None takes `Config.l1_for`.
        warm_for: how long after its last read an entry is kept warm by beat, one that is read often longer; 0 never;
            None keeps warm what is expected to be read about twice or more within `fresh_for`, and costs few loads.
        version: raise it when a value's meaning changes, and not only its type, which entries say themselves; part of
            the call's text.
        hold_off_for: entries whose load began within this time of an invalidation of any of their tags are stored
            stale, for `stale_for`, so that a replica that lags no longer cannot keep an old row fresh; 0 for loads
            that read the primary, ten seconds where a Postgres says that it is a replica.  An invalidation by key is
            not remembered: use tags.
    """

    fresh_for: float = 60.0
    stale_for: float = 60.0
    error_for: float = 300.0
    negative_for: float = 10.0
    load_for: float = 10.0
    wait_for: float = 2.0
    on_timeout: OnTimeout = "load"
    early: float = 1.0
    jitter: float = 0.05
    l1_for: float | None = None
    warm_for: float | None = None
    version: int = 1
    hold_off_for: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fresh_for", "stale_for", "error_for", "negative_for", "hold_off_for"):
            duration(name, getattr(self, name))
        for name in ("l1_for", "warm_for"):
            if getattr(self, name) is not None:
                duration(name, getattr(self, name))
        duration("load_for", self.load_for, most=MAX_LOAD_FOR, positive=True)
        duration("wait_for", self.wait_for, most=MAX_LOAD_FOR)
        duration("early", self.early, most=100.0, unit="")
        duration("jitter", self.jitter, most=0.5, unit="")
        if self.on_timeout not in ("load", "raise"):
            raise ConfigError(f'on_timeout must be "load" or "raise", got {self.on_timeout!r}')
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise ConfigError(f"version must be a whole number >= 1, got {self.version!r}")

    def replace(self, **changes: Any) -> Policy:
        """Return this policy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)


class PolicyOptions(TypedDict, total=False):
    """The fields of `Policy`, or a whole one with some of them changed."""

    policy: Policy | None
    fresh_for: float
    stale_for: float
    error_for: float
    negative_for: float
    load_for: float
    wait_for: float
    on_timeout: OnTimeout
    early: float
    jitter: float
    l1_for: float | None
    warm_for: float | None
    version: int
    hold_off_for: float


class LoaderOptions(PolicyOptions, total=False):
    """The keywords of `Cache.loader` and `Cache.batch_loader`."""

    tags: Iterable[str]
    name: str | None
    rate_limit: str | None
    replace: bool


def duration(
    name: str, value: object, *, most: float = MAX_FOR, positive: bool = False, unit: str = " seconds"
) -> None:
    """Check that a setting is a finite number within its bounds.

    Raises:
        ConfigError: it is not; the message names the field, the value and the rule.
    """
    rule = f"> 0{unit}" if positive else f">= 0{unit}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        raise ConfigError(f"{name} must be a number {rule}, got {value!r}")
    if value < 0 or (positive and value == 0):
        raise ConfigError(f"{name} must be {rule}, got {value!r}")
    if value > most:
        raise ConfigError(f"{name} must be <= {most:g}{unit}, got {value!r}")
