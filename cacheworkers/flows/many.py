"""Read many: one round trip for hits, one for the claims of what is missing, one task for a batch loader's misses."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read import Read
from cacheworkers.errors import CacheworkersError, CodecError, EnvelopeError, LoadErrors, StoreError
from cacheworkers.events import Served
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.read import fresh_entry, revalidate_soon
from cacheworkers.store.shapes import Claimed

K = TypeVar("K")


class ManyWanted(msgspec.Struct, frozen=True):
    """What a read of many accepts, and how its loader reads one.

    Attributes:
        since: least sequence number; older entries count as missing.
        decode: payload -> value.
        decode_each: payloads -> values.
        call_of: key -> call.
        one: the flow that reads a single call; takes over for what is neither fresh nor stale.
        from_l1: key -> text -> (key -> value of what L1 has, key -> text of the rest); None where L1 does not answer.
        keep: called with (key, entry, monotonic instant until which L1 may answer, guard) of each, and their values.
    """

    since: int
    decode: Callable[[bytes], Any]
    decode_each: Callable[[Iterable[bytes]], list[Any]]
    call_of: Callable[[Any], Call]
    one: Callable[[Call], Flow[Read]]
    from_l1: Callable[[Mapping[Any, str]], tuple[dict[Any, Any], Mapping[Any, str]]] | None
    keep: Callable[[list[tuple[Any, Entry, float, int]], list[Any]], None] | None


def read_many(ports: Ports, loader: LoaderSpec, texts: Mapping[K, str], wanted: ManyWanted) -> Flow[dict[K, Any]]:
    """Return key -> value for all keys, of which the call texts are given.

    Raises:
        LoadErrors: some keys have no value; it carries those that have.
    """
    values, missing = ({}, texts) if wanted.from_l1 is None else wanted.from_l1(texts)
    if not missing:
        return values
    found = yield from _from_store(ports, loader, missing, wanted)
    if len(found) == len(texts):
        return found
    values |= found
    if len(values) < len(texts):
        calls = {key: wanted.call_of(key) for key in missing if key not in values}
        yield from _ask_together(ports, loader, calls)
        values |= yield from _each(calls, wanted.one, values)
    return {key: values[key] for key in texts}


def one_by_one(calls: Mapping[K, Call], one: Callable[[Call], Flow[Read]]) -> Flow[dict[K, Any]]:
    """Return key -> value, each read by itself: inside a transaction that has changed what is watched.

    Raises:
        LoadErrors: some keys have no value.
    """
    return (yield from _each(calls, one, {}))


def _each(calls: Mapping[K, Call], one: Callable[[Call], Flow[Read]], there: Mapping[K, Any]) -> Flow[dict[K, Any]]:
    values: dict[K, Any] = {}
    errors: dict[K, CacheworkersError] = {}
    for key, call in calls.items():
        try:
            values[key] = (yield from one(call)).value
        except CacheworkersError as error:
            errors[key] = error
    if errors:
        raise LoadErrors({**there, **values}, errors)
    return values


def _from_store(ports: Ports, loader: LoaderSpec, missing: Mapping[K, str], wanted: ManyWanted) -> Flow[dict[K, Any]]:
    """Return key -> value of what the store has, fresh or stale, in the order of the keys."""
    started = ports.clock.monotonic()
    texts = list(missing.values())
    guards = [ports.l1.guard(text) for text in texts] if wanted.keep is not None and ports.gate.is_coherent else None
    try:
        raws = yield ports.store.get_many(texts)
    except StoreError:
        return {}  # each key's own read finds its way without the store
    if guards is None:
        values = _fresh(ports, loader, missing, raws, wanted, started)
    else:
        values = _kept_fresh(ports, loader, missing, raws, guards, wanted, started)
    if len(values) == len(missing):
        return values  # of most keys nothing else is ever asked
    now = ports.clock.now()
    for (key, text), raw in zip(missing.items(), raws, strict=True):
        if raw is None or key in values:
            continue
        try:
            entry = envelope.unpack(raw)
            freshness = entry.freshness(now)
            if entry.call != text or entry.seq < wanted.since or freshness not in (Freshness.FRESH, Freshness.STALE):
                continue
            values[key] = wanted.decode(entry.payload)
        except (EnvelopeError, CodecError):
            continue  # reported by its own read
        if freshness is Freshness.STALE or entry.early_at(loader.policy.early, 1.0 - ports.chance()) <= now:
            yield from revalidate_soon(ports, loader, entry)
        _count(ports, loader, [text], [now - entry.created], freshness, started)
    return {key: values[key] for key in missing if key in values}


def _fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    wanted: ManyWanted,
    started: float,
) -> dict[K, Any]:
    """Return what is fresh, by as few steps a key as can be."""
    now = ports.clock.now()
    found = envelope.fresh_payloads(raws, now, wanted.since, loader.policy.early)
    keys: Collection[K] = missing
    texts: Collection[str] = missing.values()
    if None in found:
        there = [payload is not None for payload in found]
        keys, texts = [*itertools.compress(keys, there)], [*itertools.compress(texts, there)]
        raws, found = [*itertools.compress(raws, there)], [*itertools.compress(found, there)]
    try:
        values = wanted.decode_each(cast(list[bytes], found))
    except CodecError:
        return {}  # one by one, then: the others are good
    ages = [now - envelope.created_of(raw) for raw in raws if raw is not None] if ports.is_heard else []
    _count(ports, loader, texts, ages, Freshness.FRESH, started)
    return dict(zip(keys, values, strict=True))


def _kept_fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    guards: list[int],
    wanted: ManyWanted,
    started: float,
) -> dict[K, Any]:
    """Return what is fresh, and keep it in L1."""
    assert wanted.keep is not None
    now, at = ports.clock.now(), ports.clock.monotonic()
    hits: list[tuple[K, Entry, float, int]] = []
    for (key, text), raw, guard in zip(missing.items(), raws, guards, strict=True):
        found = None if raw is None else fresh_entry(ports, loader, text, raw, wanted.since, now)
        if found is not None:
            entry, until = found
            hits.append((key, entry, at + until - now, guard))
    try:
        values = wanted.decode_each([entry.payload for _, entry, _, _ in hits])
    except CodecError:
        return {}  # one by one, then: the others are good
    wanted.keep(hits, values)
    ages = [now - entry.created for _, entry, _, _ in hits] if ports.is_heard else []
    _count(ports, loader, [entry.call for _, entry, _, _ in hits], ages, Freshness.FRESH, started)
    return dict(zip([key for key, _, _, _ in hits], values, strict=True))


def _count(
    ports: Ports, loader: LoaderSpec, texts: Iterable[str], ages: list[float], freshness: Freshness, started: float
) -> None:
    """Count reads that the store has answered."""
    ports.heat.count_each(texts)
    if ports.is_heard:
        waited = ports.clock.monotonic() - started
        for age in ages:
            ports.emit(Served(loader.name, freshness.value, "store", age, waited))


def _ask_together(ports: Ports, loader: LoaderSpec, missing: Mapping[K, Call]) -> Flow[None]:
    """Claim all misses in one round trip and hand those claimed to the dispatcher, which groups them into one task."""
    asks = [(call.text, secrets.token_hex(8), b"") for call in missing.values()]
    try:
        claims = yield ports.store.claim_many(asks, lease_for=loader.load_for)
    except BaseException as error:
        for text, token, _ in asks:
            ports.release_soon(text, token)
        if isinstance(error, StoreError):
            return
        raise
    claimed = [
        Ask(loader.name, text, token, "", "miss")
        for (text, token, _), claim in zip(asks, claims, strict=True)
        if isinstance(claim, Claimed)
    ]
    taken = ports.dispatcher.submit_all(claimed)
    for left in claimed[taken:]:
        ports.release_soon(left.call, left.token)
