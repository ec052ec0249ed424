"""Reads inside an open transaction that has changed what is watched: StoreReads sends them here, past the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.entry import Freshness
from cacheworkers.core.entry_state import EntryState, entry_state
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import StoreError, TagError
from cacheworkers.events import Served
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports


class Unflushed(NamedTuple):
    """What a session has changed and not flushed yet.

    Attributes:
        tags: of its changed instances, old and new, as far as memory has their values.
        is_complete: whether that is all of them.
        can_flush: whether a flush has what it needs: no required column is empty.
    """

    tags: frozenset[str]
    is_complete: bool
    can_flush: bool


class Dirty(Protocol):
    """An open transaction."""

    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def unflushed(self) -> Unflushed: ...
    @property
    def has_unknown(self) -> bool: ...
    @property
    def is_usable(self) -> bool: ...


D = TypeVar("D", bound=Dirty)


def read_in_transaction(
    ports: Ports,
    loader: LoaderSpec,
    call: Call,
    decode: Callable[[bytes], Any],
    dirty: Sequence[D],
    run_there: Callable[[D, LoaderSpec, Loading, bool], Step],
    read_elsewhere: Callable[[], Flow[Read]],
) -> Flow[Read]:
    """Return the entry if none of its tags has been touched, else what the loader returns on the session that did.

    The session is flushed for it only if the read's own tags are among those of what waits to be flushed: a look-up
    must not write objects that are still being built.

    Args:
        dirty: the open transactions, newest first; at least one.
        run_there: makes the step that runs a loader on the session of one of them, which may be flushed or not.
        read_elsewhere: makes the flow that reads as outside the transactions, if none of them can run a loader.

    Raises:
        Exception: whatever the loader raised.
    """
    started = ports.clock.monotonic()
    states = [(each, each.unflushed) for each in dirty]
    try:
        tags = frozenset(loader.templates.texts(call.arguments))
        by = _touching(states, tags)
    except TagError:  # nothing is known of an entry with such a tag
        tags, by = frozenset(), dirty[0]
    if by is None:
        found = yield from _stored(ports, loader, call, decode)
        if found.entry is not None:
            tags = frozenset(found.entry.tags)
            by = _touching(states, tags)
            if by is None:
                return Read.of(ports.clock.now(), found.entry, found.value, found.freshness, "store", 0.0)
    if by is None:
        by = next((each for each in dirty if each.is_usable), None)
    if by is None:
        return (yield from read_elsewhere())
    unflushed = next(unflushed for each, unflushed in states if each is by)
    may_flush = unflushed.can_flush and not tags.isdisjoint(unflushed.tags)
    loading = Loading([call], {}, started + loader.load_for, 0)
    values = yield run_there(by, loader, loading, may_flush)
    value = values[call.text]
    if isinstance(value, BaseException):
        raise value
    waited = ports.clock.monotonic() - started
    ports.emit(Served(loader.name, "fresh", "load", 0.0, waited))
    return Read(decode(loader.codec.encode(value)), Freshness.FRESH, "load", 0.0, 0, waited)


def _touching(dirty: Iterable[tuple[D, Unflushed]], tags: frozenset[str]) -> D | None:
    """Return the transaction that has touched any of some tags, or may have; rather one that is known to."""
    maybe = None
    for each, unflushed in dirty:
        if not tags.isdisjoint(each.tags) or not tags.isdisjoint(unflushed.tags):
            return each
        if maybe is None and each.is_usable and (each.has_unknown or not unflushed.is_complete):
            maybe = each
    return maybe


def _stored(ports: Ports, loader: LoaderSpec, call: Call, decode: Callable[[bytes], Any]) -> Flow[EntryState]:
    """Return the entry that a read may be served; none if there is none, or the store does not answer."""
    try:
        raw = yield ports.store.get(call.text)
    except StoreError:
        return EntryState()
    found = entry_state(raw, call.text, ports.clock.now(), decode=decode, fingerprint=loader.fingerprint)
    return found if found.is_servable else EntryState()
