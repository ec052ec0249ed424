"""Warm: hot entries are revalidated before they go stale, and cold ones loaded before somebody asks.

Nobody waits for these loads: they go to the `warm` queue, a bounded number at a time, and wait while readers' misses
are queued.  Claims make it harmless to do this twice at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.calls import loader_name_of
from cacheworkers.errors import EnvelopeError
from cacheworkers.events import HeatTold, MemoryHits, MemoryUsed, Warmed
from cacheworkers.flows.driver import Flow
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports
from cacheworkers.store.store import Claimed


class Warming(msgspec.Struct, frozen=True):
    """What one round of warming did.

    Attributes:
        looked: calls that were looked at.
        fresh: those that needs nothing.
        asked: those that workers will load.
        held: those that somebody else is loading, or whose last load failed lately.
    """

    looked: int
    fresh: int
    asked: int
    held: int


def tell_heat(ports: Ports) -> Flow[int]:
    """Add this process's reads to the store's heat, by loader; how many calls were told."""
    config = ports.config
    counts = ports.heat.taken(list(ports.l1.slots.values()), config.heat_told)
    for name, hits in ports.heat.hits().items():
        ports.emit(MemoryHits(name, hits))
    ports.emit(MemoryUsed(len(ports.l1), ports.l1.bytes, ports.l1.evictions))
    if not config.heat_every:
        return 0
    by_loader: dict[str, list[tuple[str, int]]] = {}
    for call, count in counts.items():
        by_loader.setdefault(loader_name_of(call), []).append((call, count))
    for name, told in by_loader.items():
        yield ports.store.add_heat(name, told, half_life=config.heat_half_life, most=config.heat_kept)
        ports.emit(HeatTold(name, len(told)))
    return len(counts)


def hot(ports: Ports, loader: str, most: int) -> Flow[list[tuple[str, float]]]:
    """Return the hottest calls of a loader, with their heat: reads, halved with every half-life."""
    found = yield ports.store.heat(loader, most)
    return list(found)


def warm_hot(ports: Ports, loader: LoaderSpec) -> Flow[Warming]:
    """Ask for the hot calls of a loader that go stale before the next round but one."""
    found: list[tuple[str, float]] = yield ports.store.heat(loader.name, ports.config.warm_most)
    calls = [call for call, reads in found if reads >= ports.config.warm_least]
    calls = list(dict.fromkeys(filter(None, map(loader.signature.of_this_version, calls))))
    return (yield from warm(ports, loader, calls, lead=3 * ports.config.warm_every))


def warm(ports: Ports, loader: LoaderSpec, calls: Sequence[str], *, lead: float) -> Flow[Warming]:
    """Ask for those calls that are missing, or are not fresh any more in `lead` seconds."""
    fresh = asked = held = 0
    size = ports.config.batch_size
    for start in range(0, len(calls), size):
        wanted = []
        chunk = calls[start : start + size]
        raws = yield ports.store.get_many(chunk)
        now = ports.clock.now()
        for call, raw in zip(chunk, raws, strict=True):
            if is_fresh_for(raw, now, lead):
                fresh += 1
            else:
                wanted.append((call, secrets.token_hex(8), envelope.version_of(raw)))
        claims = (yield ports.store.claim_many(wanted, lease_for=loader.load_for)) if wanted else []
        asks = [
            Ask(loader.name, call, token, seen.hex(), "warm")
            for (call, token, seen), claim in zip(wanted, claims, strict=True)
            if isinstance(claim, Claimed)
        ]
        taken = ports.dispatcher.submit_all(asks)
        for left in asks[taken:]:
            ports.release_soon(left.call, left.token)
        asked += taken
        held += len(wanted) - taken
    warmed = Warming(len(calls), fresh, asked, held)
    if calls:
        ports.emit(Warmed(loader.name, warmed.looked, warmed.fresh, warmed.asked, warmed.held))
    return warmed


def is_fresh_for(raw: bytes | None, now: float, lead: float) -> bool:
    """Return whether an envelope is that of an entry which is still fresh in `lead` seconds.

    An entry's own life may be shorter than the lead: then half of it has to pass first.
    """
    if raw is None:
        return False
    try:
        entry = envelope.unpack(raw)
    except EnvelopeError:
        return False
    return now < max(entry.fresh_until - lead, (entry.created + entry.fresh_until) / 2)
