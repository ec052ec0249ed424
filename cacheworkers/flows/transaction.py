"""Reads inside an open transaction that has changed what is watched: it sees its own writes, and caches nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read import Read
from cacheworkers.errors import CodecError, EnvelopeError, StoreError
from cacheworkers.events import Served
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports


class Dirty(Protocol):
    """An open transaction."""

    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def has_pending(self) -> bool: ...


def read_in_transaction(
    ports: Ports,
    loader: LoaderSpec,
    call: Call,
    decode: Callable[[bytes], Any],
    dirty: Dirty,
    run_there: Callable[[LoaderSpec, Loading], Step],
) -> Flow[Read]:
    """Return the entry if none of its tags has been touched, else what the loader returns on that session.

    Args:
        run_there: makes the step that runs a loader on that session.

    Raises:
        Exception: whatever the loader raised.
    """
    started = ports.clock.monotonic()
    untouched = None if dirty.has_pending else (yield from _untouched(ports, loader, call, decode, dirty))
    if untouched is not None:
        return untouched
    loading = Loading([call], {}, started + loader.load_for, 0)
    values = yield run_there(loader, loading)
    value = values[call.text]
    if isinstance(value, BaseException):
        raise value
    waited = ports.clock.monotonic() - started
    ports.emit(Served(loader.name, "fresh", "load", 0.0, waited))
    return Read(decode(loader.codec.encode(value)), Freshness.FRESH, "load", 0.0, 0, waited)


def _untouched(
    ports: Ports, loader: LoaderSpec, call: Call, decode: Callable[[bytes], Any], dirty: Dirty
) -> Flow[Read | None]:
    """Return the stored entry, if the transaction has touched none of its tags."""
    tags = dirty.tags
    if not tags.isdisjoint(loader.templates.expand(call.arguments)):
        return None
    try:
        raw = yield ports.store.get(call.text)
        entry = envelope.unpack(raw) if raw is not None else None
        if entry is None or not tags.isdisjoint(entry.tags):
            return None
        now = ports.clock.now()
        freshness = entry.freshness(now)
        if freshness not in (Freshness.FRESH, Freshness.STALE):
            return None
        return Read.of(now, entry, decode(entry.payload), freshness, "store", 0.0)
    except (StoreError, EnvelopeError, CodecError):
        return None
