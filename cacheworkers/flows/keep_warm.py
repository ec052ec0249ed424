"""Keep warm: report accesses, refresh often-read entries before they end, reload what was invalidated.

These loads go to the `warm` queue, a bounded number at a time, and pause while readers' misses are queued.  Claims
make it harmless to ask twice.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.access_score import score_of
from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.envelope import Head
from cacheworkers.core.signature import loader_name_of
from cacheworkers.core.tokens import new_token
from cacheworkers.events import MemoryHits, MemoryUsed, Warmed, WarmingPaused
from cacheworkers.flows.invalidate import Invalidation, invalidate_tags
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports, submit
from cacheworkers.local.read_forecasts import Known, ReadForecasts
from cacheworkers.store.commands.replies import Claimed

#: Most calls in one exchange about scores or heads: each is a millisecond of the store.
CHUNK = 500
#: The maximum number of calls in one access report.
MAX_REPORTED_CALLS = 5000
#: With more messages than this in the miss queue, readers wait for workers: nothing new is asked for.
BUSY = 8
#: A round asks for entries that go stale before the next round, or within this many seconds after it: the time that the
#: message and the load take.
MARGIN = 1.0
#: The interval of a round that is started by hand where beat does none, seconds.
BY_HAND = 2.0
#: All calls that are kept warm are checked once in this share of `fresh_for`, part of them in each round.
TURN = 0.025
#: A call is kept warm by default if at least this many reads are expected while its entry is fresh ...
MIN_READS = 1.5
#: ... and if the loads that nobody will read stay below this share of the calls that were read in the last period.
EXTRA_LOADS = 0.044


class Warming(msgspec.Struct, frozen=True):
    """What one round of warming did.

    Attributes:
        looked: calls that were looked at.
        fresh: those that need nothing.
        asked: those that workers will load.
        held: those that another process is loading, or whose last load failed recently.
        left: those for a later round: this one has asked for as many as it may.
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
    counts = ports.access_counter.taken(list(ports.l1.slots.values()), MAX_REPORTED_CALLS)
    for name, hits in ports.access_counter.hits().items():
        ports.emit(MemoryHits(name, hits))
    ports.emit(MemoryUsed(len(ports.l1), ports.l1.bytes, ports.l1.evictions, ports.l1.unchanged_drops))
    if not config.access_report_interval:
        return 0
    by_loader: dict[str, list[tuple[str, int]]] = {}
    for call, count in counts.items():
        by_loader.setdefault(loader_name_of(call), []).append((call, count))
    try:
        while by_loader:
            name, counted = next(iter(by_loader.items()))
            remembered, half_life = ports.access_counter.loaders.get(name), half_life_of(ports, name)
            while counted:
                yield ports.store.add_accesses(
                    name,
                    counted[:CHUNK],
                    half_life=half_life,
                    most=config.max_hot_calls,
                    warm_for=0.0 if remembered is None else remembered.warm_for,
                )
                del counted[:CHUNK]
            del by_loader[name]
    finally:
        # The store is away: what has not been reported is reported when it is back.
        for left in by_loader.values():
            ports.access_counter.put_back(left)
    return len(counts)


def hottest(ports: Ports, loader: str, most: int, since: float = float("-inf")) -> Flow[list[tuple[str, float]]]:
    """Return the hottest calls of a loader, each with its `read_at`, which is at least `since`."""
    found: dict[str, float] = {}
    for first in range(0, most, CHUNK):
        wanted = min(CHUNK, most - first)
        chunk = yield ports.store.most_read(loader, first, wanted, since)
        found.update(chunk)  # what has moved meanwhile may be there already
        if len(chunk) < wanted:
            break
    return list(found.items())


def hot(ports: Ports, loader: LoaderSpec, most: int) -> Flow[list[tuple[str, float]]]:
    """Return the hottest calls of a loader, with their access score: reads, halved with every half-life.

    What was hot under another version counts as the same call under this one, and together with it.
    """
    now, half_life = ports.clock.now(), half_life_of(ports, loader.name)
    scores: dict[str, float] = {}
    seen: set[str] = set()  # what has moved meanwhile comes again
    first, wanted = 0, min(CHUNK, most)
    while len(scores) < most:
        chunk = yield ports.store.most_read(loader.name, first, wanted, float("-inf"))
        for text, read_at in chunk:
            call = None if text in seen else loader.signature.of_this_version(text)
            if call is not None:
                scores[call] = scores.get(call, 0.0) + score_of(read_at, now, half_life)
            seen.add(text)
        if len(chunk) < wanted:
            break
        first, wanted = first + wanted, CHUNK
    return sorted(scores.items(), key=itemgetter(1), reverse=True)[:most]


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
    # Another loader is the first in each round; what the others leave goes to the last.
    specs = [spec for spec in loaders.values() if spec.policy.warm_for != 0]
    first = _round_at(ports) % len(specs) if specs else 0
    for at, spec in enumerate(specs[first:] + specs[:first]):
        done[spec.name] = yield from _keep_warm(ports, spec, room // (len(specs) - at))
        room -= done[spec.name].asked
    return done


def _keep_warm(ports: Ports, loader: LoaderSpec, most: int) -> Flow[Warming]:
    """Ask for at most `most` of the calls of a loader that are kept warm and go stale soon.

    Each call is checked once in `turns_of` rounds, so that a round costs little however many are kept warm.
    """
    every = _every(ports)
    turns = turns_of(loader.policy.fresh_for, every)
    turn = _round_at(ports) % turns
    kept = yield from kept_warm(ports, loader)
    calls = [call for call in kept if zlib.crc32(call.encode()) % turns == turn]
    due = yield from _find_due(ports, calls, turns * every + MARGIN)
    asked, held = yield from _ask(ports, loader, due[:most])
    return _noted(ports, loader, Warming(len(calls), len(calls) - len(due), asked, held, max(0, len(due) - most)))


def kept_warm(ports: Ports, loader: LoaderSpec) -> Flow[list[str]]:
    """Return the calls of a loader that are kept warm now, the most read first, under its present version.

    With `warm_for`: all that were read lately enough.  By default: those that are expected to be read about twice or
    more while their entry is fresh, as far as warming costs few loads more than readers cause by themselves.  That is
    estimated: each call costs the chance that nobody reads its next entry, which is learnt from what came of earlier
    forecasts, and else the part of a load by which it comes early; all together may cost `EXTRA_LOADS` of the calls
    that were read within one period, each of which costs about one load anyway.
    """
    policy, now = loader.policy, ports.clock.now()
    if policy.warm_for is not None:
        found = yield from hottest(ports, loader.name, ports.config.max_hot_calls, now - policy.warm_for)
        return _of_this_version(loader, [call for call, _ in found])
    half_life = half_life_of(ports, loader.name)
    reads_per_score = math.log(2) * policy.fresh_for / half_life
    room = EXTRA_LOADS * (yield ports.store.count_read_since(loader.name, now - policy.fresh_for))
    known: Known = yield ports.store.known(loader.name)
    forecasts = ports.forecasts.setdefault(loader.name, ReadForecasts())
    are_due = forecasts.are_due(now, policy.fresh_for)
    if are_due and (calls := forecasts.calls):
        found = yield ports.store.read_ats(loader.name, calls)
        known = forecasts.judged(known, dict(zip(calls, found, strict=True)))
        yield ports.store.keep_known(loader.name, known)
    kept: list[str] = []
    while True:
        chunk = yield ports.store.most_read(loader.name, len(kept), CHUNK, float("-inf"))
        expected = [(call, at, reads_per_score * score_of(at, now, half_life)) for call, at in chunk]
        if are_due:
            forecasts.make(now, [each for each in expected if each[2] >= MIN_READS])
            are_due = False
        for call, _, reads in expected:
            room -= known.cost(reads)
            if reads < MIN_READS or room < 0:
                return _of_this_version(loader, kept)
            kept.append(call)
        if len(chunk) < CHUNK:
            return _of_this_version(loader, kept)


def ask_for(ports: Ports, loader: LoaderSpec, calls: Sequence[str]) -> Flow[Warming]:
    """Ask for those calls that are missing or stale."""
    due = yield from _find_due(ports, calls, 0.0)
    asked, held = yield from _ask(ports, loader, due)
    return _noted(ports, loader, Warming(len(calls), len(calls) - len(due), asked, held))


def reload_tags(ports: Ports, loaders: Mapping[str, LoaderSpec], tags: Sequence[str]) -> Flow[Invalidation]:
    """Make everything that has any of the tags stale, and have workers load the hottest of it; readers do the rest.

    A tag may have a million members: at most `warm_max_calls` of each loader are asked for.

    Raises:
        InvalidationIncomplete: the store failed on the way; nothing is acknowledged.
    """
    done = yield from invalidate_tags(ports, tags, "soft")
    for loader in list(loaders.values()):
        found = yield from hot(ports, loader, ports.config.warm_max_calls)
        calls = [call for call, _ in found]
        members: set[str] = set()
        for tag in tags:
            members.update((yield ports.store.members(tag, calls)))
        yield from ask_for(ports, loader, [call for call in calls if call in members])
    return done


def half_life_of(ports: Ports, loader: str) -> float:
    """Return after how many seconds a read of a loader counts half."""
    remembered = ports.access_counter.loaders.get(loader)
    return ports.config.access_half_life if remembered is None else remembered.half_life


def turns_of(fresh_for: float, every: float) -> int:
    """Return in how many rounds, one every `every` seconds, all that is kept warm is checked once."""
    return max(1, int(fresh_for * TURN / (every or BY_HAND)))


def is_fresh_for(head: Head | None, now: float, lead: float) -> bool:
    """Return whether an entry is still fresh in `lead` seconds.

    Its own life may be shorter than the lead: then half of it has to pass first.
    """
    return head is not None and now < max(head.fresh_until - lead, (head.created + head.fresh_until) / 2)


def _of_this_version(loader: LoaderSpec, calls: Sequence[str]) -> list[str]:
    """Return the same calls under the loader's version: what was hot under another is hot now."""
    return list(dict.fromkeys(filter(None, map(loader.signature.of_this_version, calls))))


def _find_due(ports: Ports, calls: Sequence[str], lead: float) -> Flow[list[tuple[str, bytes]]]:
    """Return the calls that are missing or not fresh for `lead` seconds more, each with the version that is there."""
    due = []
    for start in range(0, len(calls), CHUNK):
        chunk = calls[start : start + CHUNK]
        raws = yield ports.store.heads(chunk)
        now = ports.clock.now()
        for call, raw in zip(chunk, raws, strict=True):
            if not is_fresh_for(envelope.head_of(raw), now, lead):
                due.append((call, envelope.version_of(raw)))
    return due


def _ask(ports: Ports, loader: LoaderSpec, due: Sequence[tuple[str, bytes]]) -> Flow[tuple[int, int]]:
    """Claim calls and have workers load them; return how many are asked for, and how many others hold."""
    asked = held = 0
    size = ports.config.batch_size
    for start in range(0, len(due), size):
        claims = [(call, new_token(), seen) for call, seen in due[start : start + size]]
        answers = yield ports.store.claim_many(claims, lease_for=loader.load_for, warms=True)
        asks = [
            LoadRequest(loader.name, call, token, seen.hex(), "warm")
            for (call, token, seen), answer in zip(claims, answers, strict=True)
            if isinstance(answer, Claimed)
        ]
        taken = yield from submit(ports, asks)
        for left in asks[taken:]:
            ports.release_soon(left.call, left.token)
        asked += taken
        held += len(claims) - taken
    return asked, held


def _noted(ports: Ports, loader: LoaderSpec, warming: Warming) -> Warming:
    if warming.looked:
        ports.emit(Warmed(loader.name, warming.looked, warming.fresh, warming.asked, warming.held, warming.left))
    return warming


def _round_at(ports: Ports) -> int:
    """Return the number of the present round, the same in all processes."""
    return int(ports.clock.now() / _every(ports))


def _every(ports: Ports) -> float:
    """Return the seconds from one round to the next."""
    return ports.config.warm_interval or BY_HAND
