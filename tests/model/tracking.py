"""Memory and waiting readers against the store's tracking of keys, as explicit-state models of one key.

A reader's process has one tracking connection.  What it sends there is queued, and executed by the server in order;
replies and invalidation messages come back in order.  Reads of values go over other connections.  The server forgets
who tracks a key when it reports the key's first change.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

#: Steps of a read that fills memory.
GUARD, GET, TRACK, FILL, DONE = "guard", "get", "track", "fill", "done"
#: Steps of an invalidation by the reader's own process.
CHANGE, REFUSE, PING, AWAIT = "change", "refuse", "ping", "await"
PUSH = "push"


@dataclass(frozen=True)
class Memory:
    """The parts of the protocol that keep memory coherent; a mutant has one of them the other way."""

    guard_before_get: bool = True
    track_before_fill: bool = True
    reply_is_compared: bool = True
    mismatch_refuses_fills: bool = True
    push_refuses_fills: bool = True
    ping_refuses_fills: bool = True
    refuses_before_ping: bool = True
    ping_keeps_the_order: bool = True
    loss_refuses_fills: bool = True
    loss_closes: bool = True
    reconnect_empties: bool = True
    lost_ping_empties: bool = True


class Reader(msgspec.Struct, frozen=True, cache_hash=True):
    """A read under way, what it has seen, and whether its fill is refused: its guard has been overtaken."""

    at: str = ""
    value: int = -1
    has_guard: bool = False
    is_refused: bool = False


class Invalidator(msgspec.Struct, frozen=True, cache_hash=True):
    """An invalidation by the reader's own process; `link` is the connection that its ping went over."""

    at: str = CHANGE
    version: int = 0
    link: int = 0


class MemoryState(msgspec.Struct, frozen=True, cache_hash=True):
    """The store, the tracking connection and the reader's process.

    Attributes:
        version: of the entry in the store.
        is_tracked: the server will report the next change.
        queued: what is to be sent: `("track", expected)` or `("ping", version when it was sent)`.
        arriving: what the server has sent: "push", `("track", expected, found)` or `("ping", version)`.
        slot: the version in memory; None for none.
        link: number of the connection; `is_dead` once it brings nothing more, unnoticed.
        is_open: memory answers.
        proven: the version below which memory may not answer any more.
    """

    version: int = 0
    is_tracked: bool = False
    queued: tuple[Any, ...] = ()
    arriving: tuple[Any, ...] = ()
    slot: int | None = None
    link: int = 1
    is_dead: bool = False
    is_connected: bool = True
    is_open: bool = True
    proven: int = 0
    changes: int = 1
    evictions: int = 1
    losses: int = 1
    pings: int = 1
    timeouts: int = 1
    readers: tuple[Reader, ...] = (Reader(), Reader())
    invalidators: tuple[Invalidator, ...] = (Invalidator(),)


def is_older_than_proven(state: MemoryState) -> bool:
    """Return whether memory answers with what is older than a ping's answer, or an invalidation of its own, allows."""
    return state.is_open and state.slot is not None and state.slot < state.proven


def is_old_for_good(state: MemoryState) -> bool:
    """Return whether memory answers with an old value, and nothing is on its way that would end that."""
    is_still = not state.queued and not state.arriving and not state.is_dead
    is_read = all(reader.at in ("", DONE) for reader in state.readers)
    return is_still and is_read and state.is_open and state.slot is not None and state.slot < state.version


def memory_steps(protocol: Memory, state: MemoryState) -> Iterator[tuple[str, MemoryState]]:
    """Yield what may happen next, and the state after it."""
    for at, reader in enumerate(state.readers):
        for name, after, moved in _reader_steps(protocol, state, reader):
            readers = _with(after.readers, at, moved)
            # Which of them is the first makes no difference.
            yield f"reader {at}: {name}", replace(after, readers=tuple(sorted(readers, key=astuple)))
    for at, invalidator in enumerate(state.invalidators):
        for name, after, other in _invalidator_steps(protocol, state, invalidator):
            yield f"invalidator: {name}", replace(after, invalidators=_with(state.invalidators, at, other))
    if state.changes:
        yield "another process changes it", _changed(replace(state, changes=state.changes - 1))
    if state.evictions and state.is_tracked:
        yield "the server's table is full", _pushed(replace(state, evictions=state.evictions - 1))
    if state.pings and state.is_connected:
        yield "ping", _pinged(protocol, replace(state, pings=state.pings - 1))
    if state.queued and not state.is_dead:
        yield "the server executes a request", _executed(state)
    if state.arriving:
        yield "a reply is processed", _processed(protocol, state)
    if state.losses and not state.is_dead and state.is_connected:
        lost = replace(state, losses=state.losses - 1, is_dead=True, is_tracked=False, arriving=())
        yield "the connection dies", lost
    if state.is_dead:
        is_open = state.is_open and not protocol.loss_closes
        closed = replace(state, is_dead=False, is_connected=False, is_open=is_open, queued=(), arriving=())
        yield "its death is noticed", _refused(closed) if protocol.loss_refuses_fills else closed
    if not state.is_connected:
        slot = None if protocol.reconnect_empties else state.slot
        back = replace(state, is_connected=True, is_open=True, link=state.link + 1, slot=slot)
        yield "the connection is back", _refused(back) if protocol.loss_refuses_fills else back


def _reader_steps(protocol: Memory, state: MemoryState, reader: Reader) -> Iterator[tuple[str, MemoryState, Reader]]:
    first, second = (GUARD, GET) if protocol.guard_before_get else (GET, GUARD)
    third, fourth = (TRACK, FILL) if protocol.track_before_fill else (FILL, TRACK)
    order = [first, second, third, fourth, DONE]
    following = dict(itertools.pairwise(order))
    match reader.at or first:
        case "guard" if state.is_open:
            yield "guard", state, replace(reader, at=following[GUARD], has_guard=True)
        case "get":
            yield "get", state, replace(reader, at=following[GET], value=state.version)
        case "track":
            if state.is_connected:
                queued = (*state.queued, ("track", reader.value))
                yield "track", replace(state, queued=queued), replace(reader, at=following[TRACK])
            else:
                yield "cannot track", state, replace(reader, at=DONE)
        case "fill":
            slot = state.slot if reader.is_refused else reader.value
            after = Reader(following[FILL]) if following[FILL] == DONE else replace(reader, at=following[FILL])
            yield "fill", replace(state, slot=slot), after


def _invalidator_steps(
    protocol: Memory, state: MemoryState, invalidator: Invalidator
) -> Iterator[tuple[str, MemoryState, Invalidator]]:
    match invalidator.at:
        case "change":
            after = _changed(state)
            yield "change", after, replace(invalidator, at=PING, version=after.version)
        case "ping" if state.is_connected:
            yield "ping", _pinged(protocol, state), replace(invalidator, at=AWAIT, link=state.link)
        case "ping":
            yield "empty memory", _emptied(protocol, state, invalidator.version), replace(invalidator, at=DONE)
        case "await" if state.proven >= invalidator.version:
            yield "return", state, replace(invalidator, at=DONE)
        case "await" if state.timeouts or state.link != invalidator.link or not state.is_connected:
            after = _emptied(protocol, replace(state, timeouts=0), invalidator.version)
            yield "empty memory", after, replace(invalidator, at=DONE)


def _emptied(protocol: Memory, state: MemoryState, version: int) -> MemoryState:
    if protocol.lost_ping_empties:
        state = _dropped(state)
    return replace(state, proven=max(state.proven, version))


def _pinged(protocol: Memory, state: MemoryState) -> MemoryState:
    if protocol.ping_refuses_fills and protocol.refuses_before_ping:
        state = _refused(state)
    ping = ("ping", state.version)
    queued = (*state.queued, ping) if protocol.ping_keeps_the_order else (ping, *state.queued)
    return replace(state, queued=queued)


def _changed(state: MemoryState) -> MemoryState:
    after = replace(state, version=state.version + 1)
    return _pushed(after) if state.is_tracked else after


def _pushed(state: MemoryState) -> MemoryState:
    return replace(state, is_tracked=False, arriving=(*state.arriving, PUSH))


def _executed(state: MemoryState) -> MemoryState:
    request, *rest = state.queued
    left = replace(state, queued=tuple(rest))
    if request[0] == "track":
        return replace(left, is_tracked=True, arriving=(*state.arriving, (*request, state.version)))
    return replace(left, arriving=(*state.arriving, request))


def _processed(protocol: Memory, state: MemoryState) -> MemoryState:
    reply, *rest = state.arriving
    left = replace(state, arriving=tuple(rest))
    if reply == PUSH:
        return _dropped(left) if protocol.push_refuses_fills else replace(left, slot=None)
    if reply[0] == "ping":
        proven = replace(left, proven=max(state.proven, reply[1]))
        return proven if protocol.refuses_before_ping else _refused(proven)
    _, expected, found = reply
    if expected == found or not protocol.reply_is_compared:
        return left
    return _dropped(left) if protocol.mismatch_refuses_fills else replace(left, slot=None)


def _dropped(state: MemoryState) -> MemoryState:
    return replace(_refused(state), slot=None)


def _refused(state: MemoryState) -> MemoryState:
    """Refuse the fills that have begun."""
    return replace(state, readers=tuple(replace(reader, is_refused=reader.has_guard) for reader in state.readers))


# -- a reader that waits for a load


@dataclass(frozen=True)
class Waiting:
    """The parts of the protocol that wake who waits; a mutant has one of them the other way."""

    watches: bool = True
    watches_failures: bool = True
    lease_is_compared: bool = True
    tracks_before_it_compares: bool = True
    watches_again: bool = True
    loss_wakes: bool = True
    error_wakes: bool = True
    asks_again_while_slots_move: bool = True


class WaitingState(msgspec.Struct, frozen=True, cache_hash=True):
    """The store, the tracking connection, a reader that waits and the worker that loads.

    Attributes:
        reader: "claim", "watch", "sleep" or "served".
        lease: token of the lease; 0 for none.  `known` is the one that the reader waits for.
        entry, failure: whether there is one; `tracked` are those whose next change is reported, "e" or "f".
        queued: what is to be sent: "exists", `("lease", expected)`.
        is_moved: the slot has another master: what is tracked is not reported, and requests are refused.
        worker: "load" under `fence`, or "ended".
    """

    reader: str = "claim"
    known: int = 0
    lease: int = 0
    leases: int = 0
    entry: bool = False
    failure: bool = False
    tracked: frozenset[str] = frozenset()
    queued: tuple[Any, ...] = ()
    arriving: tuple[Any, ...] = ()
    is_watched: bool = False
    is_moved: bool = False
    is_known_moved: bool = False
    is_lost: bool = False
    worker: str = "none"
    fence: int = 0
    invalidations: int = 1
    failures: int = 1
    evictions: int = 1
    losses: int = 1
    moves: int = 0
    asks_again: int = 0


def sleeps_for_good(state: WaitingState) -> bool:
    """Return whether the reader sleeps though nobody loads any more, and nothing is on its way that would wake it."""
    is_still = not state.queued and not state.arriving and not state.is_lost
    may_ask = state.is_moved and state.asks_again > 0
    return state.reader == "sleep" and is_still and state.worker == "ended" and not may_ask


def waiting_steps(protocol: Waiting, state: WaitingState) -> Iterator[tuple[str, WaitingState]]:
    """Yield what may happen next, and the state after it."""
    yield from _waiter_steps(protocol, state)
    if state.worker == "load":
        if state.lease != state.fence:
            token = state.leases + 1
            yield "worker: refused, claims again", replace(state, lease=token, leases=token, fence=token)
        else:
            yield "worker: write", _reported(replace(state, entry=True, failure=False, lease=0, worker="ended"), "e")
            if state.failures:
                failed = replace(state, failure=True, lease=0, worker="ended", failures=state.failures - 1)
                yield "worker: fail", _reported(failed, "f")
    if state.invalidations and (state.entry or state.lease):
        after = replace(state, entry=False, lease=0, invalidations=state.invalidations - 1)
        yield "invalidate", _reported(after, "e") if state.entry else after
    if state.evictions and state.tracked:
        after = replace(state, evictions=state.evictions - 1)
        yield "the server's table is full", _reported(after, *state.tracked)
    if state.losses and not state.is_lost and state.reader == "sleep":
        after = replace(state, losses=state.losses - 1, is_lost=True, tracked=frozenset(), queued=(), arriving=())
        yield "the connection dies", after
    if state.is_lost:
        after = replace(state, is_lost=False)
        yield "the connection is back", _woken(after) if protocol.loss_wakes else after
    if state.moves:
        yield "its slot moves", replace(state, moves=state.moves - 1, is_moved=True, tracked=frozenset())
    if state.queued and not state.is_lost:
        yield "the server executes a request", _watch_executed(state)
    if state.arriving:
        yield "a reply is processed", _watch_processed(protocol, state)
    if state.reader == "sleep" and state.is_moved and state.asks_again and not state.queued and not state.arriving:
        after = replace(state, asks_again=state.asks_again - 1)
        if protocol.asks_again_while_slots_move:
            after = replace(after, queued=_watch(protocol, state))
        yield "time passes, and it is asked again", after


def _waiter_steps(protocol: Waiting, state: WaitingState) -> Iterator[tuple[str, WaitingState]]:
    match state.reader:
        case "claim" if state.entry or state.failure:
            yield "reader: served", replace(state, reader="served", is_known_moved=state.is_moved)
        case "claim":
            lease, after = state.lease, replace(state, is_known_moved=state.is_moved)  # it was redirected, and knows
            if not lease:
                lease = state.leases + 1
                after = replace(after, lease=lease, leases=lease, worker="load", fence=lease)
            yield "reader: claim", replace(after, reader="watch", known=lease)
        case "watch" if not protocol.watches or (state.is_watched and not protocol.watches_again):
            yield "reader: sleep", replace(state, reader="sleep")
        case "watch":
            asked = replace(state, queued=(*state.queued, *_watch(protocol, state)), is_watched=True)
            yield "reader: watch, sleep", replace(asked, reader="sleep")


def _watch(protocol: Waiting, state: WaitingState) -> tuple[Any, ...]:
    exists, lease = ("exists", protocol.watches_failures), ("lease", state.known)
    return (exists, lease) if protocol.tracks_before_it_compares else (lease, exists)


def _watch_executed(state: WaitingState) -> WaitingState:
    request, *rest = state.queued
    left = replace(state, queued=tuple(rest))
    if state.is_moved and not state.is_known_moved:
        return replace(left, arriving=(*state.arriving, ("error",)))
    if request[0] == "exists":
        return replace(left, tracked=frozenset("ef" if request[1] else "e"))
    return replace(left, arriving=(*state.arriving, (*request, state.lease)))


def _watch_processed(protocol: Waiting, state: WaitingState) -> WaitingState:
    reply, *rest = state.arriving
    left = replace(state, arriving=tuple(rest))
    match reply:
        case ("error",):
            return _woken(left) if protocol.error_wakes else left
        case ("lease", expected, found):
            is_over = found != expected and protocol.lease_is_compared
            return _woken(left) if is_over else left
    return _woken(left)


def _reported(state: WaitingState, *keys: str) -> WaitingState:
    hit = state.tracked.intersection(keys)
    return replace(state, tracked=state.tracked - hit, arriving=(*state.arriving, *[PUSH] * len(hit)))


def _woken(state: WaitingState) -> WaitingState:
    return replace(state, reader="claim", known=0) if state.reader in ("sleep", "watch") else state


def _with(all_of_them: tuple[Any, ...], at: int, one: Any) -> tuple[Any, ...]:
    return (*all_of_them[:at], one, *all_of_them[at + 1 :])


# -- memory alone, while its master does not answer


@dataclass(frozen=True)
class Alone:
    """What keeps memory from answering alone with what this process could know to be old; a mutant leaves one out."""

    answers_end_it: bool = True
    terms_are_compared: bool = True
    lease_is_asked: bool = True
    reconnect_empties: bool = True


class AloneState(msgspec.Struct, frozen=True, cache_hash=True):
    """A process whose memory may answer while the master is away, and another that invalidates.

    Attributes:
        version: of the entry, by the last invalidation that was acknowledged.
        term: how many masters there have been; the one of this number is used by others.
        is_away: this process reaches no master.
        listened_to: the term of the master whose messages it has received last; `is_listening` while it does.
        has_answered: the store has answered this process since it stopped to listen.
        lease: the term that most Sentinels named last; `is_over` once that is too long ago.
        floor: the version that memory alone must not fall short of: of the last answer, or of another master.
        is_old: it has.
        is_pending: a message is on its way to the listener, and arrives when the master is back.
    """

    version: int = 0
    term: int = 1
    is_away: bool = False
    is_listening: bool = True
    listened_to: int = 1
    has_answered: bool = False
    lease: int = 1
    is_over: bool = False
    slot: int | None = 0
    floor: int = 0
    is_old: bool = False
    is_pending: bool = False
    changes: int = 2
    failovers: int = 2
    losses: int = 2


def alone_steps(protocol: Alone, state: AloneState) -> Iterator[tuple[str, AloneState]]:
    """Yield what may happen next, and the state after it."""
    is_reported = state.is_listening and not state.is_away and state.listened_to == state.term
    if state.changes:
        after = replace(state, version=state.version + 1, changes=state.changes - 1)
        if is_reported:
            yield "it is changed, and that is reported", replace(after, slot=None)
        elif state.listened_to != state.term:
            yield "it is changed on another master", replace(after, floor=after.version)
        else:
            yield "it is changed, and that is not reported yet", replace(after, is_pending=state.is_listening)
    if state.failovers and state.is_over:  # no confirmation of the old one is left
        yield "another is the master", replace(state, term=state.term + 1, failovers=state.failovers - 1)
    yield "the confirmation ends", replace(state, is_over=True)
    yield "the master is confirmed", replace(state, lease=state.term, is_over=False)
    yield "the master is away", replace(state, is_away=True)
    if state.is_listening and state.losses:
        lost = replace(state, is_listening=False, is_pending=False, has_answered=False)
        yield "the listener is lost", replace(lost, losses=state.losses - 1)
    if state.is_away:
        slot = None if state.is_pending else state.slot
        yield "the master is back", replace(state, is_away=False, is_pending=False, slot=slot)
        is_refused = (
            (protocol.answers_end_it and state.has_answered)
            or (protocol.terms_are_compared and state.lease != state.listened_to)
            or (protocol.lease_is_asked and state.is_over)
        )
        if state.slot is not None and not is_refused:
            yield "memory answers", replace(state, is_old=state.slot < state.floor)
    elif not state.is_over and state.lease == state.term:
        answered = replace(state, floor=state.version, has_answered=not state.is_listening)
        yield "the store answers", answered
        if not state.is_listening:
            slot = None if protocol.reconnect_empties else state.slot
            back = replace(state, is_listening=True, listened_to=state.term, has_answered=False, slot=slot)
            yield "the listener is back", back
        elif is_reported:
            yield "memory is filled", replace(answered, slot=state.version)
