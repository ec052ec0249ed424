"""Explain: what a read of a call would get now, tier by tier, and why."""

from __future__ import annotations

from typing import Any

import msgspec

from cacheworkers.core.access_score import score_of
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Action, Freshness, decide
from cacheworkers.core.entry_state import entry_state
from cacheworkers.errors import KeyMissing
from cacheworkers.flows.keep_warm import MARGIN, half_life_of, kept_warm, turns_of
from cacheworkers.flows.load_failure import LOAD_REFUSED, NOT_STORED, STORE_FULL, static_tags
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.policy import Policy

#: Workers that take misses say so once a minute; after this long without, seconds, none is there.
UNSEEN_AFTER = 90.0
FROM_MEMORY = "serve it from this process's memory"
UNSHARED = "it is for the reads alone that waited for its load (load.no_store)"
#: Verdicts where the store has a fresh entry of another release.
OTHER_LOADS = "load it for the reader's process alone: the store has another release's"
OTHER_KEPT = "serve what this process has loaded for itself: the store has another release's"
OTHER_RAISES = 'raise LoadTimeout: the store has another release\'s, and on_timeout is "raise"'


class TagState(msgspec.Struct, frozen=True):
    """One tag of an entry.

    Attributes:
        last_invalidation: the number of its last one; 0 for none that is remembered.
        ago: seconds since then; None for none.
    """

    tag: str
    last_invalidation: int
    ago: float | None = None


class Explanation(msgspec.Struct, frozen=True):
    """What is known of a call.  Instants are seconds from now: negative ones have passed.

    Attributes:
        at: now, in seconds since the epoch, on the store's clock.
        verdict: what a read would do, in a sentence.
        freshness: of the stored entry: fresh, stale, lapsed, or missing, also where `problem` says why it is of no use.
        problem: why what is stored cannot be read; empty if it can, or if there is nothing.
        age, fresh_for, stale_for, kept_for: since its load began, and until it ends.
        jitter: the policy's; `fresh_for` ends by up to this share of the policy's earlier than that after the load.
        load_time: how long its load took.
        seq: the invalidation sequence when its load began.
        size: bytes of its JSON.
        tags: its tags, at most `max_tags`; of a missing entry those that its arguments make, without what a load adds.
        more_tags: how many it has besides them: written with a larger `max_tags`, or not by this library.
        in_l1: this process's memory would answer.
        l1_reads: how often it has, since it was kept.
        is_listening: this process receives invalidation messages.
        revalidates_in: until it is revalidated, by warming if it is hot, else by the first reader then; early
            revalidation may come before.
        attempts: how many loads have begun since the last that ended: more than one, and workers have died of it.
        lease: token, fence, left_ms and what else is known of a load under way; empty for none.  A dead process's lease
            ends after `left_ms` milliseconds, and the load is another's.
        failure: kind, text, count of the last load that failed; empty for none.
        has_workers: loads go to workers of Celery.
        miss_queue: the queue of what readers wait for.
        workers_seen: since a worker last took a message from it, or began to; None for more than ten minutes.
        access_score: reads by all processes, halved with every half-life.
    """

    call: str
    verdict: str
    freshness: str
    problem: str = ""
    age: float | None = None
    fresh_for: float | None = None
    stale_for: float | None = None
    kept_for: float | None = None
    jitter: float = 0.0
    load_time: float | None = None
    seq: int = 0
    size: int = 0
    tags: tuple[TagState, ...] = ()
    more_tags: int = 0
    in_l1: bool = False
    l1_reads: int = 0
    is_listening: bool = False
    revalidates_in: float | None = None
    attempts: int = 0
    lease: dict[str, str] = {}
    failure: dict[str, str] = {}
    has_workers: bool = False
    miss_queue: str = ""
    workers_seen: float | None = None
    access_score: float = 0.0
    at: float = 0.0


def explain(ports: Ports, loader: LoaderSpec, call: str, waits_for_workers: bool | None = None) -> Flow[Explanation]:
    """Return what is known of a call, without loading, claiming or counting anything.

    Args:
        waits_for_workers: readers of this process do; None where loads do not go to workers.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    raw = yield ports.store.get(call)
    lease: dict[str, str]
    failure: dict[str, str]
    read_at: float | None
    attempts: int
    seen: float | None
    lease, failure, read_at, attempts, seen = yield ports.store.call_state(loader.name, call)
    slot = ports.l1.get(call)
    monotonic, now = ports.clock.monotonic(), ports.clock.now()
    access_score = 0.0 if read_at is None else score_of(read_at, now, half_life_of(ports, loader.name))
    in_l1 = slot is not None and monotonic < slot.until
    is_failing = bool(failure) and float(failure.get("until_ms", 0)) / 1000 > now
    stored = entry_state(raw, call, now, decode=loader.codec.decode, fingerprint=loader.fingerprint)
    entry = stored.entry
    common: dict[str, Any] = {
        "in_l1": in_l1,
        "l1_reads": slot.reads if slot is not None else 0,
        "is_listening": ports.listener.is_up,
        "attempts": attempts,
        "lease": lease,
        "failure": failure,
        "has_workers": waits_for_workers is not None,
        "jitter": loader.policy.jitter,
        "miss_queue": ports.config.queues.miss,
        "workers_seen": seen,
        "access_score": access_score,
        "at": now,
    }
    # Of a value that is not stored, those tags are known that its arguments make.
    shown = static_tags(loader, loader.signature.parse(call)) if entry is None else entry.tags
    shown = shown[: ports.config.max_tags]
    numbers: list[int] = (yield ports.store.last_invalidations(shown, call)) if shown else []
    # Numbers are the store's clock in milliseconds; many in one millisecond are a little ahead of it.
    common["tags"] = tags = tuple(
        TagState(tag, last, max(0.0, now - last / 1000) if last else None)
        for tag, last in zip(shown, numbers, strict=True)
    )
    miss = Miss(
        loader.policy,
        lease,
        failure if is_failing else {},
        waits_for_workers is not None,
        not waits_for_workers or seen is None or seen > UNSEEN_AFTER,
        loader.is_batch,
    )
    theirs = stored.other
    if entry is None or entry.is_unshared:
        common["problem"] = UNSHARED if entry is not None else stored.problem
        if theirs is not None and theirs.fresh_until > now:
            common["fresh_for"] = theirs.fresh_until - now
            own = ports.other_release_entries.get(theirs, now)
            verdict = (
                OTHER_RAISES if loader.policy.on_timeout == "raise" else OTHER_LOADS if own is None else OTHER_KEPT
            )
        else:
            verdict = miss.verdict()
        return Explanation(call, FROM_MEMORY if in_l1 else verdict, "missing", **common)
    freshness = stored.freshness
    lead = yield from _lead(ports, loader, call)
    return Explanation(
        call,
        FROM_MEMORY if in_l1 else miss.verdict(freshness),
        freshness.value,
        age=now - entry.created,
        fresh_for=entry.fresh_until - now,
        stale_for=entry.stale_until - now,
        kept_for=entry.expires_at - now,
        load_time=entry.load_time,
        seq=entry.seq,
        revalidates_in=max(0.0, entry.fresh_until - now - lead),
        size=len(entry.payload),
        more_tags=len(entry.tags) - len(tags),
        **common,
    )


def _lead(ports: Ports, loader: LoaderSpec, call: str) -> Flow[float]:
    """Return how long before it goes stale warming revalidates an entry at the latest; 0 if it is not kept warm."""
    every = ports.config.warm_interval
    if not every or call not in (yield from kept_warm(ports, loader)):
        return 0.0
    return turns_of(loader.policy.fresh_for, every) * every + MARGIN


def stored(ports: Ports, loader: LoaderSpec, call: str) -> Flow[bytes | None]:
    """Return the stored JSON of a call; None if there is none, or nothing that can be read."""
    raw = yield ports.store.get(call)
    found = entry_state(raw, call, ports.clock.now(), fingerprint=loader.fingerprint)
    return None if found.entry is None else found.entry.payload


class Miss(msgspec.Struct, frozen=True):
    """What decides on a read that memory does not answer.

    Attributes:
        failure: the last one, while its backoff runs; else empty.
        is_unserved: no worker is seen, or readers of this process do not wait for them.
    """

    policy: Policy
    lease: dict[str, str] = {}
    failure: dict[str, str] = {}
    has_workers: bool = True
    is_unserved: bool = False
    is_batch: bool = False

    def verdict(self, freshness: Freshness = Freshness.MISSING) -> str:
        """Return what the read does, in a sentence."""
        match decide(freshness, is_failing=bool(self.failure)):
            case Action.SERVE if self.failure and freshness is Freshness.STALE:
                return "serve it from the store; nobody revalidates it before the backoff of its failure ends"
            case Action.SERVE:
                return "serve it from the store"
            case Action.SERVE_AND_ASK if self.lease:
                return "serve it from the store; it is being revalidated"
            case Action.SERVE_AND_ASK:
                how = "ask a worker to revalidate it" if self.has_workers else "revalidate it in the reader's process"
                return f"serve it from the store; {how}"
            case Action.LOAD:
                return self._load("serve the lapsed value" if freshness is Freshness.LAPSED else "raise LoadTimeout")
            case action:
                return self._fail(action is Action.SERVE_MARKED)

    def _fail(self, has_lapsed: bool) -> str:
        """Return what a read does while the backoff of a failure runs."""
        kind, text = self.failure.get("kind", "?"), self.failure.get("text", "")
        is_unstored = kind in (STORE_FULL, NOT_STORED)
        if self.policy.on_timeout == "load" and (is_unstored or kind == LOAD_REFUSED):
            return f"load it in the reader{' and store nothing' if is_unstored else ''}: {text}"
        if has_lapsed:
            return "serve it although it has lapsed: its reload fails"
        if is_unstored:
            return f"raise LoadTimeout: {text}"
        if self.is_batch and kind == KeyMissing.__name__:
            return "raise KeyMissing: the batch loader left it out, and its backoff is running"
        return f"raise LoadError: the last load failed with {kind}, and its backoff is running"

    def _load(self, otherwise: str) -> str:
        """Return how a read has it loaded."""
        within = f"within {self.policy.wait_for:g} s"
        loads_here = self.policy.on_timeout == "load"
        late = f"load it in the reader if none has begun {within}" if loads_here else f"{otherwise} after {within[7:]}"
        if self.lease.get("taken_over"):
            return "wait: another reader loads it"
        if self.lease.get("fence"):
            return f"wait: it is being loaded; {otherwise} if that has not ended {within}"
        if self.lease and not self.lease.get("warm"):  # a read takes one of those that warm, and asks for it itself
            return f"wait: a load has been asked for; {late}"
        if not self.has_workers:
            return "load it in the reader's process"
        if self.is_unserved and loads_here:
            return f"load it in the reader, after at most {self.policy.wait_for:g} s: no worker has begun a load lately"
        if self.is_unserved:
            return f"{otherwise} after {self.policy.wait_for:g} s: no worker has begun a load lately"
        return f"ask a worker to load it, and wait; {late}"
