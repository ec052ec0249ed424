"""Read many: one round trip for hits, one for the claims of what is missing, one task for a batch loader's misses."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read import Read
from cacheworkers.errors import CacheworkersError, CodecError, EnvelopeError, LoadErrors, StoreError
from cacheworkers.flows.driver import Flow
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.flows.read import revalidate_soon
from cacheworkers.store.store import Claimed

K = TypeVar("K")


def read_many(
    ports: Ports,
    loader: LoaderSpec,
    calls: Mapping[K, Call],
    one: Callable[[Call], Flow[Read]],
    decode: Callable[[bytes], Any],
    since: int,
    slot_value: Callable[[Call], tuple[bool, Any]],
) -> Flow[dict[K, Any]]:
    """Return key -> value for all keys.

    Args:
        one: the flow that reads a single call; takes over for what is neither fresh nor stale.
        slot_value: what L1 has of a call: (whether it has it, value).

    Raises:
        LoadErrors: some keys have no value; it carries those that have.
    """
    values: dict[K, Any] = {}
    missing: dict[K, Call] = {}
    for key, call in calls.items():
        is_there, value = slot_value(call)
        if is_there:
            values[key] = value
        else:
            missing[key] = call
    if missing:
        yield from _from_store(ports, loader, missing, decode, since, values)
        missing = {key: call for key, call in missing.items() if key not in values}
    if missing:
        yield from _ask_together(ports, loader, missing)
        values |= yield from _each(missing, one, values)
    return {key: values[key] for key in calls}


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
    ports: Ports,
    loader: LoaderSpec,
    missing: Mapping[K, Call],
    decode: Callable[[bytes], Any],
    since: int,
    values: dict[K, Any],
) -> Flow[None]:
    """Add what the store has, fresh or stale."""
    try:
        raws = yield ports.store.get_many([call.text for call in missing.values()])
    except StoreError:
        return  # each key's own read finds its way without the store
    now = ports.clock.now()
    for (key, _), raw in zip(missing.items(), raws, strict=True):
        if raw is None:
            continue
        try:
            payload = envelope.fresh_payload(raw, now, since)
            if payload is not None:
                values[key] = decode(payload)
                continue
            entry = envelope.unpack(raw)
            if entry.seq < since or entry.freshness(now) not in (Freshness.FRESH, Freshness.STALE):
                continue
            values[key] = decode(entry.payload)
        except (EnvelopeError, CodecError):
            continue  # reported by its own read
        if entry.freshness(now) is Freshness.STALE:
            yield from revalidate_soon(ports, loader, entry)


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
