"""Warm: hot entries are revalidated before they go stale, and cold ones loaded before somebody asks.

Nobody waits for these loads: they go to the `warm` queue, a bounded number at a time, and wait while readers' misses
are queued.  Claims make it harmless to do this twice at once.
"""

from __future__ import annotations

import math
import secrets
import statistics
import zlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.access_frequency import score_of
from cacheworkers.core.calls import loader_name_of
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.envelope import Head
from cacheworkers.events import AccessesReported, MemoryHits, MemoryUsed, Warmed, WarmingPaused
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports
from cacheworkers.local.aimd_window import SLACK, SLOW
from cacheworkers.store.commands.replies import Claimed

#: Most calls in one exchange about scores or heads: each is a millisecond of the store.
CHUNK = 500
#: With more messages than this in the miss queue, readers wait for workers: nothing new is asked for.
BUSY = 8
#: A round asks for what goes stale before the next one, and so many seconds after that: for the message and the load.
MARGIN = 1.0
#: Where beat does no rounds, one that is done by hand counts as one of so many seconds.
BY_HAND = 2.0
#: What is not among the hottest is looked at in turns, all of it once in this share of `fresh_for`.
TURN = 0.025
#: Loads that began within so many seconds tell how slow the database is now ...
LATELY = 10.0
#: ... if there are so many of them.
ENOUGH = 8


class Warming(msgspec.Struct, frozen=True):
    """What one round of warming did.

    Attributes:
        looked: calls that were looked at.
        fresh: those that needs nothing.
        asked: those that workers will load.
        held: those that somebody else is loading, or whose last load failed lately.
        left: those that the next rounds will see to, for this one has asked for enough.
    """

    looked: int
    fresh: int
    asked: int
    held: int
    left: int = 0


class Queued(NamedTuple):
    """Messages that no worker has taken yet, and the age of the oldest of each queue, seconds; None if nobody knows."""

    miss: int
    warm: int
    oldest_miss: float | None = None
    oldest_warm: float | None = None


def report_accesses(ports: Ports) -> Flow[int]:
    """Add this process's reads to the access scores in the store, by loader; return how many calls were reported."""
    config = ports.config
    counts = ports.access_counter.taken(list(ports.l1.slots.values()), config.max_reported_calls)
    for name, hits in ports.access_counter.hits().items():
        ports.emit(MemoryHits(name, hits))
    ports.emit(MemoryUsed(len(ports.l1), ports.l1.bytes, ports.l1.evictions))
    if not config.access_report_interval:
        return 0
    by_loader: dict[str, list[tuple[str, int]]] = {}
    for call, count in counts.items():
        by_loader.setdefault(loader_name_of(call), []).append((call, count))
    try:
        while by_loader:
            name, told = next(iter(by_loader.items()))
            count = len(told)
            while told:
                yield ports.store.add_accesses(
                    name,
                    told[:CHUNK],
                    half_life=config.access_half_life,
                    most=config.max_hot_calls,
                    warm_for=ports.access_counter.warm_for.get(name, 0.0),
                )
                del told[:CHUNK]
            del by_loader[name]
            ports.emit(AccessesReported(name, count))
    finally:
        # The store is away: what has not been told is told when it is back.
        for left in by_loader.values():
            ports.access_counter.put_back(left)
    return len(counts)


def hottest(ports: Ports, loader: str, most: int, since: float = float("-inf")) -> Flow[list[tuple[str, float]]]:
    """Return the hottest calls of a loader, each with its `read_at`, which is at least `since`."""
    found: dict[str, float] = {}
    for first in range(0, most, CHUNK):
        options = min(CHUNK, most - first)
        chunk = yield ports.store.most_read(loader, first, options, since)
        found.update(chunk)  # what has moved meanwhile may be there already
        if len(chunk) < options:
            break
    return list(found.items())


def hot(ports: Ports, loader: LoaderSpec, most: int) -> Flow[list[tuple[str, float]]]:
    """Return the hottest calls of a loader, with their access score: reads, halved with every half-life.

    What was hot under another version counts as the same call under this one, and together with it.
    """
    now = ports.clock.now()
    heats: dict[str, float] = {}
    seen: set[str] = set()  # what has moved meanwhile comes again
    first, options = 0, min(CHUNK, most)
    while len(heats) < most:
        chunk = yield ports.store.most_read(loader.name, first, options, float("-inf"))
        for text, read_at in chunk:
            call = None if text in seen else loader.signature.of_this_version(text)
            if call is not None:
                heats[call] = heats.get(call, 0.0) + score_of(read_at, now, ports.config.access_half_life)
            seen.add(text)
        if len(chunk) < options:
            break
        first, options = first + options, CHUNK
    return sorted(heats.items(), key=itemgetter(1), reverse=True)[:most]


def warm_round(ports: Ports, loaders: Mapping[str, LoaderSpec], queued: Callable[[], Step]) -> Flow[dict[str, Warming]]:
    """Do one round of warming: ask for what is kept warm and goes stale before it is looked at again.

    Nothing is asked for while readers' misses are queued, or what earlier rounds have asked for.

    Args:
        queued: makes the step that returns how many messages are `Queued`.
    """
    config = ports.config
    waiting: Queued = yield queued()
    if waiting.miss > BUSY or waiting.warm > BUSY:
        ports.emit(WarmingPaused(waiting.miss, waiting.warm))
        return {}
    done: dict[str, Warming] = {}
    room = min(int(config.warm_rate * _every(ports)), config.warm_concurrency)
    # Each in turn is the first: what the others leave goes to the last.
    specs = [spec for spec in loaders.values() if spec.policy.kept_warm_for > 0]
    first = _round_at(ports) % len(specs) if specs else 0
    for at, spec in enumerate(specs[first:] + specs[:first]):
        done[spec.name] = yield from warm_hot(ports, spec, room // (len(specs) - at))
        room -= done[spec.name].asked
    return done


def warm_hot(ports: Ports, loader: LoaderSpec, most: int) -> Flow[Warming]:
    """Ask for at most so many of the calls of a loader that are kept warm; fewer while the database is slow.

    The hottest are looked at in each round, and asked for just before they go stale.  The others are looked at in
    turns, so that a round costs little however many they are, and are asked for a little sooner.
    """
    config, every = ports.config, _every(ports)
    since = ports.clock.now() - loader.policy.kept_warm_for
    found: list[tuple[str, float]] = yield from hottest(ports, loader.name, config.max_hot_calls, since)
    turns = turns_of(loader.policy.fresh_for, every)
    state = _round_at(ports) % turns
    others = [call for call, _ in found[config.warm_max_calls :] if zlib.crc32(call.encode()) % turns == state]
    heads: list[Head] = []
    looked, options = 0, []
    for some, lead in (([call for call, _ in found[: config.warm_max_calls]], every), (others, turns * every)):
        calls = _of_this_version(loader, some)
        looked += len(calls)
        options += yield from _look(ports, calls, lead + MARGIN, heads)
    allowed = options[: math.ceil(most * quickness(heads, ports.clock.now()))]
    asked, held = yield from _ask(ports, loader, allowed)
    left = len(options) - len(allowed)
    return _told(ports, loader, Warming(looked, looked - len(options), asked, held, left))


def warm(ports: Ports, loader: LoaderSpec, calls: Sequence[str], *, lead: float) -> Flow[Warming]:
    """Ask for those calls that are missing, or are not fresh any more in `lead` seconds."""
    options = yield from _look(ports, calls, lead, [])
    asked, held = yield from _ask(ports, loader, options)
    return _told(ports, loader, Warming(len(calls), len(calls) - len(options), asked, held))


def turns_of(fresh_for: float, every: float) -> int:
    """Return in how many rounds, one `every` so many seconds, all that is not among the hottest is looked at."""
    return max(1, int(fresh_for * TURN / (every or BY_HAND)))


def is_fresh_for(head: Head | None, now: float, lead: float) -> bool:
    """Return whether an entry is still fresh in `lead` seconds.

    Its own life may be shorter than the lead: then half of it has to pass first.
    """
    return head is not None and now < max(head.fresh_until - lead, (head.created + head.fresh_until) / 2)


def quickness(heads: Sequence[Head], now: float) -> float:
    """Return 1 while loads take as long as they do, and less while they are slow: half, if they take twice as long.

    Entries tell how long their loads took: those of the last seconds are compared with all.  As many are then under
    way as at other times: a rate by a time is a number.
    """
    lately = [head.load_time for head in heads if head.created > now - LATELY]
    if len(lately) < ENOUGH:
        return 1.0
    usually, slow = statistics.median(head.load_time for head in heads), statistics.median(lately)
    return usually / slow if slow > SLOW * usually + SLACK else 1.0


def _of_this_version(loader: LoaderSpec, calls: Sequence[str]) -> list[str]:
    """Return the same calls under the loader's version: what was hot under another is hot now."""
    return list(dict.fromkeys(filter(None, map(loader.signature.of_this_version, calls))))


def _look(ports: Ports, calls: Sequence[str], lead: float, heads: list[Head]) -> Flow[list[tuple[str, bytes]]]:
    """Return the calls that are to be loaded, each with the version that is there, and add all heads to `heads`."""
    options = []
    for start in range(0, len(calls), CHUNK):
        chunk = calls[start : start + CHUNK]
        raws = yield ports.store.heads(chunk)
        now = ports.clock.now()
        for call, raw in zip(chunk, raws, strict=True):
            head = envelope.head_of(raw)
            if head is not None:
                heads.append(head)
            if not is_fresh_for(head, now, lead):
                options.append((call, envelope.version_of(raw)))
    return options


def _ask(ports: Ports, loader: LoaderSpec, options: Sequence[tuple[str, bytes]]) -> Flow[tuple[int, int]]:
    """Claim calls and have workers load them; how many are asked for, and how many are held by others."""
    asked = held = 0
    size = ports.config.batch_size
    for start in range(0, len(options), size):
        claims = [(call, secrets.token_hex(8), seen) for call, seen in options[start : start + size]]
        answers = yield ports.store.claim_many(claims, lease_for=loader.load_for, warms=True)
        asks = [
            LoadRequest(loader.name, call, token, seen.hex(), "warm")
            for (call, token, seen), answer in zip(claims, answers, strict=True)
            if isinstance(answer, Claimed)
        ]
        taken = ports.dispatcher.submit_all(asks)
        for left in asks[taken:]:
            ports.release_soon(left.call, left.token)
        asked += taken
        held += len(claims) - taken
    return asked, held


def _told(ports: Ports, loader: LoaderSpec, warming: Warming) -> Warming:
    if warming.looked:
        ports.emit(Warmed(loader.name, warming.looked, warming.fresh, warming.asked, warming.held, warming.left))
    return warming


def _round_at(ports: Ports) -> int:
    """Return the number of the round that it is time for, the same in all processes."""
    return int(ports.clock.now() / _every(ports))


def _every(ports: Ports) -> float:
    """Return the seconds from one round to the next; one that is done by hand, where beat does none, is like beat's."""
    return ports.config.warm_interval or BY_HAND
