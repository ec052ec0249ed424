"""Read many: one round trip for what is fresh; the rest are reads that go on together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar, cast

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CacheworkersError, CodecError, LoadErrors, StoreError
from cacheworkers.events import Served
from cacheworkers.flows.loader_memory import LoaderMemory
from cacheworkers.flows.merged_reads import BATCHED, merge_reads
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.flows.read import fresh_entry, read
from cacheworkers.flows.read_state import StoreResult

K = TypeVar("K")


def read_many(ports: Ports, loader: LoaderSpec, texts: Mapping[K, str], memory: LoaderMemory) -> Flow[dict[K, Any]]:
    """Return key -> value for all keys, of which the call texts are given.

    Raises:
        LoadErrors: some keys have no value; it carries those that have.
    """
    started = ports.clock.monotonic()
    values, missing = memory.values_of(texts)
    if not missing:
        return values
    fresh, rest = yield from _from_store(ports, loader, missing, memory, started)
    if len(fresh) == len(texts):
        return fresh
    values |= fresh
    if rest:
        calls = {key: memory.call_of(key) for key in rest}
        wants = {key: memory.options(call, call.arguments) for key, call in calls.items()}
        done, errors = yield from merge_reads(
            ports,
            loader,
            rest,
            lambda key: read(ports, loader, calls[key], wants[key], found=rest[key], started=started, strategy=BATCHED),
        )
        values |= {key: each.value for key, each in done.items()}
        if errors:
            raise LoadErrors(values, errors)
    return {key: values[key] for key in texts}


def one_by_one(calls: Mapping[K, Call], one: Callable[[Call], Flow[Read]]) -> Flow[dict[K, Any]]:
    """Return key -> value, each read by itself: inside a transaction that has changed what is watched.

    Raises:
        LoadErrors: some keys have no value.
    """
    values: dict[K, Any] = {}
    errors: dict[K, CacheworkersError] = {}
    for key, call in calls.items():
        try:
            values[key] = (yield from one(call)).value
        except CacheworkersError as error:
            errors[key] = error
    if errors:
        raise LoadErrors(values, errors)
    return values


def _from_store(
    ports: Ports, loader: LoaderSpec, missing: Mapping[K, str], memory: LoaderMemory, started: float
) -> Flow[tuple[dict[K, Any], dict[K, StoreResult | None]]]:
    """Return key -> value of what is fresh in the store, and key -> what it has of the rest, None without an answer."""
    texts = list(missing.values())
    guards = None
    if memory.keeps_for:
        guards = [ports.l1.guard(text) for text in texts]
        if not ports.coherence.is_coherent:  # asked after: what is lost from here on changes the guards
            guards = None
    try:
        raws = yield ports.store.get_many(texts)
    except StoreError:
        return {}, dict.fromkeys(missing)  # each read finds its way without the store
    if guards is None:
        fresh = _fresh(ports, loader, missing, raws, memory, started)
    else:
        fresh = _kept_fresh(ports, loader, missing, raws, guards, memory, started)
    if len(fresh) == len(missing):
        return fresh, {}  # of most keys nothing else is ever asked
    if guards is None:
        return fresh, {key: StoreResult(raw) for key, raw in zip(missing, raws, strict=True) if key not in fresh}
    found = zip(missing, raws, guards, strict=True)
    return fresh, {key: StoreResult(raw, guard, is_coherent=True) for key, raw, guard in found if key not in fresh}


def _fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    memory: LoaderMemory,
    started: float,
) -> dict[K, Any]:
    """Return what is fresh, by as few steps a key as can be."""
    now = ports.clock.now()
    found = envelope.fresh_payloads(raws, now, memory.since, loader.policy.early, loader.fingerprint)
    keys: Collection[K] = missing
    texts: Collection[str] = missing.values()
    if None in found:
        there = [payload is not None for payload in found]
        keys, texts = [*itertools.compress(keys, there)], [*itertools.compress(texts, there)]
        raws, found = [*itertools.compress(raws, there)], [*itertools.compress(found, there)]
    try:
        values = loader.codec.decode_each(cast(list[bytes], found))
    except CodecError:
        return {}  # each by itself, then: the others are good
    ages = [now - envelope.created_of(raw) for raw in raws if raw is not None] if ports.has_hook else []
    _count(ports, loader, texts, ages, started)
    return dict(zip(keys, values, strict=True))


def _kept_fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    guards: list[int],
    memory: LoaderMemory,
    started: float,
) -> dict[K, Any]:
    """Return what is fresh, and keep it in L1."""
    now, at = ports.clock.now(), ports.clock.monotonic()
    hits: list[tuple[K, Entry, float, int]] = []
    for (key, text), raw, guard in zip(missing.items(), raws, guards, strict=True):
        found = None if raw is None else fresh_entry(ports, loader, text, raw, memory.since, now)
        if found is not None:
            entry, until = found
            hits.append((key, entry, at + until - now, guard))
    try:
        values = loader.codec.decode_each([entry.payload for _, entry, _, _ in hits])
    except CodecError:
        return {}  # each by itself, then: the others are good
    memory.keep_each(hits, values)
    ages = [now - entry.created for _, entry, _, _ in hits] if ports.has_hook else []
    _count(ports, loader, [entry.call for _, entry, _, _ in hits], ages, started)
    return dict(zip([key for key, _, _, _ in hits], values, strict=True))


def _count(ports: Ports, loader: LoaderSpec, texts: Iterable[str], ages: list[float], started: float) -> None:
    """Count reads that the store has answered with what is fresh."""
    ports.access_counter.count_each(texts)
    if ports.has_hook:
        waited = ports.clock.monotonic() - started
        for age in ages:
            ports.emit(Served(loader.name, Freshness.FRESH.value, "store", age, waited))
