"""Explain: what a read of a call would get now, tier by tier, and why."""

from __future__ import annotations

from typing import Any

import msgspec

from cacheworkers.core.access_score import score_of
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Action, Freshness, decide
from cacheworkers.core.entry_state import entry_state
from cacheworkers.flows.keep_warm import MARGIN, half_life_of, kept_warm, turns_of
from cacheworkers.flows.load_failure import static_tags
from cacheworkers.flows.ports import LoaderSpec, Ports


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
        freshness: of the stored entry: fresh, stale, lapsed or missing.
        age, fresh_for, stale_for, kept_for: since its load began, and until it ends.
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
        lease: token, fence and what else is known of a load under way; empty for none.
        failure: kind, text, count of the last load that failed; empty for none.
        access_score: reads by all processes, halved with every half-life.
    """

    call: str
    verdict: str
    freshness: str
    age: float | None = None
    fresh_for: float | None = None
    stale_for: float | None = None
    kept_for: float | None = None
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
    access_score: float = 0.0
    at: float = 0.0


def explain(ports: Ports, loader: LoaderSpec, call: str) -> Flow[Explanation]:
    """Return what is known of a call, without loading, claiming or counting anything.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    raw = yield ports.store.get(call)
    lease: dict[str, str]
    failure: dict[str, str]
    read_at: float | None
    attempts: int
    lease, failure, read_at, attempts = yield ports.store.call_state(loader.name, call)
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
    if entry is None:
        if stored.other is not None:
            verdict = f"load it for this process alone: {stored.problem}"
        elif stored.problem:
            verdict = f"load it: what is stored cannot be read ({stored.problem})"
        else:
            verdict = _missing(lease, failure, is_failing)
        return Explanation(call, verdict, "missing", **common)
    freshness = stored.freshness
    action = decide(freshness, is_failing=is_failing)
    lead = yield from _lead(ports, loader, call)
    return Explanation(
        call,
        _verdict(action, in_l1, lease),
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


def _missing(lease: dict[str, str], failure: dict[str, str], is_failing: bool) -> str:
    if lease.get("fence"):
        return "wait: it is being loaded"
    if lease and not lease.get("warm"):  # a read takes one of those that warm, and asks for it itself
        return "wait: a worker has been asked to load it"
    if decide(Freshness.MISSING, is_failing=is_failing) is Action.RAISE:
        return f"raise LoadError: the last load failed with {failure.get('kind', '?')}, and its backoff is running"
    return "ask a worker to load it, and wait"


def _verdict(action: Action, in_l1: bool, lease: dict[str, str]) -> str:
    where = "from this process's memory" if in_l1 else "from the store"
    match action:
        case Action.SERVE:
            return f"serve it {where}"
        case Action.SERVE_AND_ASK:
            return f"serve it {where}; " + ("it is being revalidated" if lease else "ask a worker to revalidate it")
        case Action.SERVE_MARKED:
            return "serve it although it has lapsed: its reload fails"
        case _:
            return "load it again, and wait: it has lapsed"
