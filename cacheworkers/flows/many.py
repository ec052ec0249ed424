"""Read many: one round trip for hits, one for the claims of what is missing, one task for a batch loader's misses."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read import Read
from cacheworkers.errors import CacheworkersError, CodecError, EnvelopeError, LoadErrors, StoreError
from cacheworkers.events import Served
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.read import fresh_hit, revalidate_soon
from cacheworkers.store.store import Claimed

K = TypeVar("K")


class ManyWanted(msgspec.Struct, frozen=True):
    """What a read of many accepts, and how its loader reads one.

    Attributes:
        since: least sequence number; older entries count as missing.
        decode: payload -> value.
        decode_each: payloads -> values.
        call_of: key -> call.
        one: the flow that reads a single call; takes over for what is neither fresh nor stale.
        slot_value: what L1 has of a call's text: (whether it has it, value); None where L1 does not answer.
        keep: called with key, call text, entry, value, guard and the monotonic instant until which L1 may answer.
    """

    since: int
    decode: Callable[[bytes], Any]
    decode_each: Callable[[Iterable[bytes]], list[Any]]
    call_of: Callable[[Any], Call]
    one: Callable[[Call], Flow[Read]]
    slot_value: Callable[[str], tuple[bool, Any]] | None
    keep: Callable[[Any, str, Entry, Any, int, float], None] | None


def read_many(ports: Ports, loader: LoaderSpec, texts: Mapping[K, str], wanted: ManyWanted) -> Flow[dict[K, Any]]:
    """Return key -> value for all keys, of which the call texts are given.

    Raises:
        LoadErrors: some keys have no value; it carries those that have.
    """
    values: dict[K, Any] = {}
    missing = texts
    if wanted.slot_value is not None:
        missing = {}
        for key, text in texts.items():
            is_there, value = wanted.slot_value(text)
            if is_there:
                values[key] = value
            else:
                missing[key] = text
    if missing:
        yield from _from_store(ports, loader, missing, wanted, values)
    if len(values) == len(texts) == len(missing):
        return values if list(values) == list(texts) else {key: values[key] for key in texts}
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


def _from_store(
    ports: Ports, loader: LoaderSpec, missing: Mapping[K, str], wanted: ManyWanted, values: dict[K, Any]
) -> Flow[None]:
    """Add what the store has, fresh or stale."""
    started = ports.clock.monotonic()
    is_kept = wanted.keep is not None and ports.gate.is_coherent
    guards = [ports.l1.guard(text) for text in missing.values()] if is_kept else []
    try:
        raws = yield ports.store.get_many(list(missing.values()))
    except StoreError:
        return  # each key's own read finds its way without the store
    if is_kept:
        _keep_fresh(ports, loader, missing, raws, guards, wanted, values, started)
    else:
        _take_fresh(ports, loader, missing, raws, wanted, values, started)
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


def _take_fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    wanted: ManyWanted,
    values: dict[K, Any],
    started: float,
) -> None:
    """Add what is fresh, by as few steps a key as can be: of most keys nothing else is ever asked."""
    now = ports.clock.now()
    payloads = envelope.fresh_payloads(raws, now, wanted.since, loader.policy.early)
    fresh = (
        missing
        if None not in payloads
        else {key: text for (key, text), payload in zip(missing.items(), payloads, strict=True) if payload is not None}
    )
    try:
        found = wanted.decode_each(payload for payload in payloads if payload is not None)
    except CodecError:
        return  # one by one, then: the others are good
    values.update(zip(fresh, found, strict=True))
    ages = []
    if ports.is_heard:
        pairs = zip(raws, payloads, strict=True)
        ages = [now - envelope.created_of(raw) for raw, payload in pairs if raw is not None and payload is not None]
    _count(ports, loader, fresh.values(), ages, Freshness.FRESH, started)


def _keep_fresh(
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, str],
    raws: list[bytes | None],
    guards: list[int],
    wanted: ManyWanted,
    values: dict[K, Any],
    started: float,
) -> None:
    """Add what is fresh, and keep it in L1."""
    assert wanted.keep is not None
    at = ports.clock.monotonic()
    for (key, text), raw, guard in zip(missing.items(), raws, guards, strict=True):
        found = None if raw is None else fresh_hit(ports, loader, text, raw, wanted.since, wanted.decode)
        if found is not None:
            entry, values[key], now, until = found
            wanted.keep(key, text, entry, values[key], guard, at + until - now)
            _count(ports, loader, [text], [now - entry.created], Freshness.FRESH, started)


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
