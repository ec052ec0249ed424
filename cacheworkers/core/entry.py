"""Entry: a stored value with its instants, its freshness at one of them, and the table of what a read does about it.

All instants are seconds of the store's clock.  Pure: `now` and chance are arguments.
"""

from __future__ import annotations

import enum
import math
import zlib
from collections.abc import Callable

import msgspec

from cacheworkers.core.schema_fingerprint import NO_FINGERPRINT
from cacheworkers.policy import Policy

#: By how much a process may misjudge the store's clock, seconds: what must not be fresh ended so long ago.
CLOCK_MARGIN = 1.0


class Freshness(enum.Enum):
    """How far through its life an entry is."""

    FRESH = "fresh"
    STALE = "stale"
    LAPSED = "lapsed"
    MISSING = "missing"


class Action(enum.Enum):
    """What a read does with what it found."""

    SERVE = "serve"
    SERVE_AND_ASK = "serve, and ask for one revalidation"
    LOAD = "have it loaded, and wait"
    SERVE_MARKED = "serve, marked lapsed"
    RAISE = "raise LoadError"


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One value in the store, with its life.

    Attributes:
        call: `product[42]`.
        tags: what invalidates it.
        payload: the value as JSON.
        created: when its load began (its snapshot was taken).
        fresh_until, stale_until, expires_at: the three ends of its life.
        stale_for: seconds, what a soft invalidation leaves it at most.
        load_time: seconds its load took; feeds XFetch.
        seq: the invalidation sequence when its load began; every invalidation with a larger number is newer.
        write_id: 8 random bytes, its version; what a claim names.  Empty until it is stored.
        digest: 8 bytes of BLAKE2b of the payload, computed when it was loaded; the ETag.
        is_negative: the loader returned None.
        fingerprint: 8 bytes of its loader's schema (`core/schema_fingerprint.py`); zeros fit every reader.
        is_unshared: for the reads that waited for its load, and for no other (`load.no_store()`).
    """

    call: str
    tags: tuple[str, ...]
    payload: bytes
    created: float
    fresh_until: float
    stale_until: float
    expires_at: float
    stale_for: float
    load_time: float
    seq: int
    write_id: bytes
    digest: bytes
    is_negative: bool = False
    fingerprint: bytes = NO_FINGERPRINT
    is_unshared: bool = False

    def freshness(self, now: float) -> Freshness:
        """Return how far through its life this entry is at `now`."""
        if now < self.fresh_until:
            return Freshness.FRESH
        if now < self.stale_until:
            return Freshness.STALE
        return Freshness.LAPSED if now < self.expires_at else Freshness.MISSING

    def early_at(self, beta: float, chance: float) -> float:
        """Return when one reader should revalidate this entry although it is still fresh.

        XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015):
        the instant moves ahead of `fresh_until` by the load's time, times an exponential chance.

        Args:
            beta: how eager; 0 is never early.
            chance: uniform in (0, 1].
        """
        return self.fresh_until + self.load_time * beta * math.log(chance)

    def overdue_at(self) -> float:
        """Return when a stale entry is to be revalidated at its next read, whatever else there is to do.

        In the third quarter of its stale period, each call at an instant of its own, the same in all processes.
        """
        share = 0.5 + 0.25 * zlib.crc32(self.call.encode()) / 2**32
        return self.fresh_until + share * (self.stale_until - self.fresh_until)

    def held_off(self) -> Entry:
        """Return this entry as one that may have been old when it was loaded: stale now, and for `stale_for`."""
        until = min(self.stale_until, self.created + self.stale_for)
        return msgspec.structs.replace(self, fresh_until=self.created - CLOCK_MARGIN, stale_until=until)


#: What a read does with an entry, by its freshness; and what it does while a failure's backoff is running.
DECISIONS: dict[Freshness, tuple[Action, Action]] = {
    Freshness.FRESH: (Action.SERVE, Action.SERVE),
    Freshness.STALE: (Action.SERVE_AND_ASK, Action.SERVE),
    Freshness.LAPSED: (Action.LOAD, Action.SERVE_MARKED),
    Freshness.MISSING: (Action.LOAD, Action.RAISE),
}


def decide(freshness: Freshness, *, is_early: bool = False, is_failing: bool = False) -> Action:
    """Return what a read does with what it found.

    Args:
        is_early: this read is the one that has a fresh entry revalidated before it goes stale.
        is_failing: the last load failed, and its backoff is running.
    """
    found = Freshness.STALE if is_early and freshness is Freshness.FRESH else freshness
    return DECISIONS[found][is_failing]


class Life(msgspec.Struct, frozen=True):
    """The instants of an entry that is about to be written."""

    created: float
    fresh_until: float
    stale_until: float
    expires_at: float
    stale_for: float
    load_time: float


#: An entry is kept at least this long after its load, so that those who waited for it find it.
MIN_KEPT_FOR = 2.0


def life_of(
    policy: Policy,
    *,
    created: float,
    load_time: float,
    is_negative: bool,
    fresh_for: float | None,
    chance: Callable[[], float],
) -> Life:
    """Return the life of a value loaded from `created` on, for `load_time` seconds.

    Args:
        fresh_for: what the load itself asked for, instead of the policy's.
        chance: uniform in [0, 1); shortens the life by at most the policy's jitter.
    """
    if fresh_for is None:
        fresh_for = policy.negative_for if is_negative else policy.fresh_for
        fresh_for *= 1.0 - policy.jitter * chance()
    stale_for = 0.0 if is_negative else policy.stale_for
    error_for = 0.0 if is_negative else policy.error_for
    fresh_until = created + fresh_for
    stale_until = fresh_until + stale_for
    expires_at = max(stale_until + error_for, created + load_time + MIN_KEPT_FOR)
    return Life(created, fresh_until, stale_until, expires_at, stale_for, load_time)
