"""Nested reads: a loader that reads another loader builds its entry on values no older than its own snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read import Read
from cacheworkers.errors import CodecError, EnvelopeError, StoreUnavailable
from cacheworkers.flows.driver import Flow
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports


def nested(ports: Ports, loader: LoaderSpec, call: Call, decode: Callable[[bytes], Any], outer: Loading) -> Flow[Read]:
    """Return a call's value inside another load, and give that load its tags.

    An entry counts only if its load began after the outer snapshot.  Otherwise the loader runs here and now, in the
    outer load's thread, and nothing is stored: waiting for a worker could wait for this very one.
    """
    try:
        raw = yield ports.store.get(call.text)
    except StoreUnavailable:
        raw = None
    if raw is not None:
        try:
            entry = envelope.unpack(raw)
            now = ports.clock.now()
            if entry.seq >= outer.seq and entry.freshness(now) in (Freshness.FRESH, Freshness.STALE):
                value = decode(entry.payload)
                _tag(outer, entry.tags)
                return Read.of(now, entry, value, entry.freshness(now), "store", 0.0)
        except (EnvelopeError, CodecError):
            pass  # loaded anew below; the reader of that entry itself reports it
    inner = Loading([call], {call.text: raw}, outer.deadline, outer.seq)
    values = yield ports.worker.step(loader, inner)
    value = values[call.text]
    if isinstance(value, BaseException):
        raise value
    _tag(outer, (*loader.templates.expand(call.arguments), *inner.tags.get(call.text, ())))
    return Read(decode(loader.codec.encode(value)), Freshness.FRESH, "load", 0.0, outer.seq)


def _tag(outer: Loading, tags: tuple[str, ...]) -> None:
    for call in outer.calls:
        outer.tags.setdefault(call.text, []).extend(tags)
