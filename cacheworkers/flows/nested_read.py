"""Nested reads: a loader that reads another loader builds its entry on values no older than its own snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Freshness
from cacheworkers.core.entry_state import entry_state
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CacheworkersError, LoadErrors, StoreUnavailable, TagError
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports

K = TypeVar("K")


def nested(ports: Ports, loader: LoaderSpec, call: Call, decode: Callable[[bytes], Any], outer: Loading) -> Flow[Read]:
    """Return a call's value inside another load, and give that load its tags.

    An entry counts only if its load began after the outer snapshot.  Otherwise the loader runs here and now, in the
    outer load's thread, and nothing is stored: waiting for a worker could wait for this very one.
    """
    try:
        raw = yield ports.store.get(call.text)
    except StoreUnavailable:
        raw = None
    read = _stored(ports, loader, call, raw, decode, outer)
    if read is not None:
        return read
    [loaded] = yield from _loaded(ports, loader, [call], {call.text: raw}, decode, outer)
    if isinstance(loaded, BaseException):
        raise loaded
    return loaded


def nested_many(
    ports: Ports,
    loader: LoaderSpec,
    calls: Mapping[K, Call],
    decode: Callable[[bytes], Any],
    outer: Loading,
    *,
    is_by_key: bool = False,
) -> Flow[dict[K, Any]]:
    """Return key -> value inside another load, as `nested` does for one; a batch loader is run once.

    Args:
        is_by_key: what is read for a key belongs to the outer batch's entry of that key, and to no other.

    Raises:
        LoadErrors: some keys have no value; it carries those that have.
    """
    try:
        raws = yield ports.store.get_many([call.text for call in calls.values()])
    except StoreUnavailable:
        raws = [None] * len(calls)
    outers: dict[Any, Loading] = {}
    if is_by_key:
        outers = {each.arguments[0]: outer.only(each) for each in outer.calls}
    found: dict[K, Read | BaseException] = {}
    missing: dict[K, tuple[Call, bytes | None]] = {}
    for (key, call), raw in zip(calls.items(), raws, strict=True):
        stored = _stored(ports, loader, call, raw, decode, outers.get(key, outer))
        if stored is None:
            missing[key] = (call, raw)
        else:
            found[key] = stored
    keys = list(missing)
    for group in [keys] if loader.is_batch and keys else [[key] for key in keys]:
        group_calls = [missing[key][0] for key in group]
        previous = {call.text: raw for call, raw in (missing[key] for key in group)}
        loaded = yield from _loaded(
            ports, loader, group_calls, previous, decode, outer, [outers.get(key, outer) for key in group]
        )
        found.update(zip(group, loaded, strict=True))
    values = {key: read.value for key in calls if isinstance(read := found[key], Read)}
    errors = {key: error for key in calls if isinstance(error := found[key], CacheworkersError)}
    for other in found.values():
        if isinstance(other, BaseException) and not isinstance(other, CacheworkersError):
            raise other  # the inner loader's own: the outer load fails of it, as it does of a single read
    if errors:
        raise LoadErrors(values, errors)
    return values


def _stored(
    ports: Ports, loader: LoaderSpec, call: Call, raw: bytes | None, decode: Callable[[bytes], Any], outer: Loading
) -> Read | None:
    """Return what the store has, if the outer load may be built on it."""
    now = ports.clock.now()
    # What cannot be read is loaded again; the reader of that entry itself reports it.
    found = entry_state(raw, call.text, now, since=outer.seq, decode=decode, fingerprint=loader.fingerprint)
    if found.entry is None or not found.is_servable:
        return None
    _tag(outer, found.entry.tags)
    return Read.of(now, found.entry, found.value, found.freshness, "store", 0.0)


def _loaded(
    ports: Ports,
    loader: LoaderSpec,
    calls: Sequence[Call],
    previous: dict[str, bytes | None],
    decode: Callable[[bytes], Any],
    outer: Loading,
    outers: Sequence[Loading] = (),
) -> Flow[list[Read | BaseException]]:
    """Run the loader here, and return what became of each call; `outers` are what each of them belongs to."""
    inner = Loading(list(calls), previous, outer.deadline, outer.seq)
    values = yield ports.worker.step(loader, inner)
    found: list[Read | BaseException] = []
    for call, owner in zip(calls, outers or [outer] * len(calls), strict=True):
        value = values[call.text]
        try:  # a failure, too: what the outer loader makes of an absence ends when the absence does
            _tag(owner, (*loader.templates.texts(call.arguments), *inner.tags.get(call.text, ())))
        except TagError:  # nothing could invalidate what is made of it
            inner.unshared.add(call.text)
        if call.text in inner.unshared:  # what is made of it is not to be stored either
            owner.unshared.update(each.text for each in owner.calls)
        if not isinstance(value, BaseException):
            value = Read(decode(loader.codec.encode(value)), Freshness.FRESH, "load", 0.0, outer.seq)
        found.append(value)
    return found


def _tag(outer: Loading, tags: tuple[str, ...]) -> None:
    for call in outer.calls:
        outer.tags.setdefault(call.text, []).extend(tags)
