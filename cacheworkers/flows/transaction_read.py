"""Reads inside an open transaction that has changed what is watched: it sees its own writes, and caches nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.entry import Freshness
from cacheworkers.core.judgement import Judgement, judge
from cacheworkers.core.read_result import Read
from cacheworkers.errors import StoreError
from cacheworkers.events import Served
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports


class Dirty(Protocol):
    """An open transaction."""

    @property
    def tags(self) -> frozenset[str]: ...
    @property
    def has_pending(self) -> bool: ...
    @property
    def has_untold(self) -> bool: ...


D = TypeVar("D", bound=Dirty)


def read_in_transaction(
    ports: Ports,
    loader: LoaderSpec,
    call: Call,
    decode: Callable[[bytes], Any],
    dirty: Sequence[D],
    run_there: Callable[[D, LoaderSpec, Loading], Step],
) -> Flow[Read]:
    """Return the entry if none of its tags has been touched, else what the loader returns on the session that did.

    Args:
        dirty: the open transactions, newest first; at least one.
        run_there: makes the step that runs a loader on the session of one of them.

    Raises:
        Exception: whatever the loader raised.
    """
    started = ports.clock.monotonic()
    by = _touching(dirty, loader.templates.texts(call.arguments))
    if by is None:
        found = yield from _stored(ports, loader, call, decode)
        entry = found.entry
        by = _touching(dirty, entry.tags) if entry is not None else dirty[0]
        if entry is not None and by is None:
            return Read.of(ports.clock.now(), entry, found.value, found.freshness, "store", 0.0)
    loading = Loading([call], {}, started + loader.load_for, 0)
    values = yield run_there(by or dirty[0], loader, loading)
    value = values[call.text]
    if isinstance(value, BaseException):
        raise value
    waited = ports.clock.monotonic() - started
    ports.emit(Served(loader.name, "fresh", "load", 0.0, waited))
    return Read(decode(loader.codec.encode(value)), Freshness.FRESH, "load", 0.0, 0, waited)


def _touching(dirty: Sequence[D], tags: Iterable[str]) -> D | None:
    """Return the transaction that has touched any of some tags, or may have; rather one that is known to."""
    options = frozenset(tags)
    known = (each for each in dirty if not each.tags.isdisjoint(options))
    unknown = (each for each in dirty if each.has_pending or each.has_untold)
    return next(known, None) or next(unknown, None)


def _stored(ports: Ports, loader: LoaderSpec, call: Call, decode: Callable[[bytes], Any]) -> Flow[Judgement]:
    """Return the entry that a read may be served; none if there is none, or the store does not answer."""
    try:
        raw = yield ports.store.get(call.text)
    except StoreError:
        return Judgement()
    found = judge(raw, call.text, ports.clock.now(), decode=decode, shape=loader.shape)
    return found if found.is_servable else Judgement()
