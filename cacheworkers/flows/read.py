"""Read: serve what is there, ask for what will be needed, and wait for what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Action, Entry, Freshness, decide
from cacheworkers.core.entry_state import EntryState, entry_state
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import CodecError, StoreError
from cacheworkers.events import ReadFailed, Served, UnreadableEntry
from cacheworkers.flows.miss import lapsed, read_without_store, wait_for_load
from cacheworkers.flows.other_release_load import load_beside_other_release
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports, QueueKind
from cacheworkers.flows.read_state import SINGLE, LoadStrategy, ReadOptions, ReadState, StoreResult
from cacheworkers.local.coalescing import Crowd
from cacheworkers.local.flight import Flight
from cacheworkers.store.commands.replies import Claimed

#: By how much instants of the store may seem older than they are, seconds: they are kept in milliseconds, and the
#: store's clock is estimated.
CLOCK_ERROR = 0.1


def read(
    ports: Ports,
    loader: LoaderSpec,
    call: Call,
    options: ReadOptions,
    *,
    is_known_missing: bool = False,
    found: StoreResult | None = None,
    started: float | None = None,
    strategy: LoadStrategy = SINGLE,
    crowd: Crowd | None = None,
) -> Flow[Read]:
    """Return the value of a call, from cache when it can.

    Args:
        is_known_missing: the caller has just looked, and found no entry at all.
        found: what the caller has found, if anything.
        started: monotonic instant from which `wait_for` counts; None for now.
        strategy: how it has the call loaded.
        crowd: those who follow this read.

    Raises:
        LoadError: the load failed, and nothing older is there to serve.
        LoadTimeout: no value within `wait_for`, and this read may not load it.
    """
    if started is None:
        started = ports.clock.monotonic()
    if is_known_missing:
        found = StoreResult(None)
    # Registered before it looks.  Registered after, it would sleep through the push it waits for:
    #   reader: GET (nothing)   worker: write, push   reader: registers and sleeps
    # A look before it registers is as good if a claim comes next, since that compares what was found.
    with ports.waiters.enter(call.text) as waiter:
        state = ReadState(call, options, waiter, started, started + options.wait_for, strategy, crowd)
        try:
            done = yield from _read(ports, loader, state, found)
        except Exception as error:
            # Whatever stops the reload, no time, no room, no worker or no store: the lapsed value is there for it.
            done_lapsed = lapsed(ports, state)
            if done_lapsed is None:
                ports.emit(ReadFailed(loader.name, type(error).__name__, ports.clock.monotonic() - started))
                raise
            done = done_lapsed
    if state.has_asked and done.tier == "store":
        ports.note_served()
    ports.access_counter.count(call.text)
    if ports.has_hook:
        ports.emit(Served(loader.name, done.freshness.value, done.tier, done.age, done.waited))
    if crowd is not None:
        crowd.payload = state.payload
    return done


def _read(ports: Ports, loader: LoaderSpec, state: ReadState, found: StoreResult | None) -> Flow[Read]:
    """Look, and claim, wait or load, until there is something to serve."""
    began_at = ports.clock.now()
    if _is_known_missing(state.waiter.flight, ports.clock.monotonic()):
        found, state.has_looked = found or StoreResult(None), True
    while True:
        state.waiter.rearm()
        state.is_answered = False
        try:
            done = yield from _look(ports, loader, state, began_at, found)
            found, state.is_answered = None, True
            if done is None:
                done = yield from wait_for_load(ports, loader, state)
        except StoreError as error:
            done = yield from read_without_store(ports, loader, state, error)
        if done is not None:
            return done


def fresh_hit(
    ports: Ports, loader: LoaderSpec, text: str, raw: bytes, since: int, decode: Callable[[bytes], Any]
) -> tuple[Entry, Any, float, float] | None:
    """Return `(entry, value, now, until when L1 may answer)`, if the entry is fresh and nothing is to be asked for.

    Most reads that reach the store end here, without a flow and without a place among the waiters.  None: the flow
    must see to it.
    """
    now = ports.clock.now()
    found = fresh_entry(ports, loader, text, raw, since, now)
    if found is None:
        return None
    entry, until = found
    try:
        return entry, decode(entry.payload), now, until
    except CodecError:
        return None


def fresh_entry(
    ports: Ports, loader: LoaderSpec, text: str, raw: bytes, since: int, now: float
) -> tuple[Entry, float] | None:
    """Return `(entry, until when L1 may answer)`; None as of `fresh_hit`."""
    found = entry_state(raw, text, now, since=since, fingerprint=loader.fingerprint)
    entry = found.entry
    if found.other is not None and now < found.other.fresh_until:
        entry = ports.other_release_entries.get(found.other, now)
        if entry is None or entry.seq < since or now >= entry.fresh_until:
            return None
    elif entry is None or found.freshness is not Freshness.FRESH:
        return None
    early_at = entry.early_at(loader.policy.early, 1.0 - ports.chance())
    if now >= early_at:
        return None
    return entry, min(early_at, entry.fresh_until)


def peek(ports: Ports, call: Call, options: ReadOptions) -> Flow[Read | None]:
    """Return what is in the store, fresh, stale or lapsed; never loads and never asks."""
    raw = yield ports.store.get(call.text)
    now = ports.clock.now()
    found = _state_of(ports, call, options, raw, now)
    return (
        None
        if found.entry is None or found.entry.is_unshared
        else Read.of(now, found.entry, found.value, found.freshness, "store", 0.0)
    )


def ask(
    ports: Ports,
    loader: LoaderSpec,
    call: str,
    seen: bytes,
    queue: QueueKind,
    *,
    heeds_backoff: bool = True,
    strategy: LoadStrategy = SINGLE,
) -> Flow[bool]:
    """Claim a call and have workers load it; True if this very call enqueued it."""
    token = new_token()
    try:
        claim = yield ports.store.claim(call, token, lease_for=loader.load_for, seen=seen, heeds_backoff=heeds_backoff)
    except BaseException:
        ports.release_soon(call, token)  # timed out or cancelled: the script may have run all the same
        raise
    if not isinstance(claim, Claimed):
        return False
    if not (yield from strategy.submit(ports, LoadRequest(loader.name, call, token, seen.hex(), queue))):
        ports.release_soon(call, token)
        return False
    return True


def revalidate_soon(ports: Ports, loader: LoaderSpec, entry: Entry, strategy: LoadStrategy = SINGLE) -> Flow[bool]:
    """Ask for one revalidation of an entry that is being served; never breaks the read.

    False: nobody has been asked, for this process asks for too many; a later read is to come here again.  What is
    read often thus gets its turn first, and what a soft invalidation made stale at one instant is spread over time.
    """
    version = (entry.call, entry.write_id, entry.fresh_until)
    now = ports.clock.monotonic()
    if ports.recent_requests.has(version, now):
        return True
    if not ports.revalidations.allows(now) and ports.clock.now() < entry.overdue_at():
        return False
    if not ports.recent_requests.is_due(version, now, loader.load_for):
        return True
    try:
        yield from ask(ports, loader, entry.call, entry.write_id, "revalidate", strategy=strategy)
    except StoreError:
        ports.recent_requests.forget(version)
    return True


def _is_known_missing(flight: Flight, now: float) -> bool:
    """Return whether others have found nothing and know the lease under which it is being loaded.

    Their look is as good as one of this reader's own: the write that ends the lease is pushed, and wakes it too.
    """
    return flight.is_missing and flight.held_until > now


def _look(
    ports: Ports, loader: LoaderSpec, state: ReadState, began_at: float, found: StoreResult | None
) -> Flow[Read | None]:
    """Serve what is in the store, if it is good enough."""
    call, options = state.call, state.options
    if found is None:
        covers = state.cover()
        guard = ports.l1.guard(call.text)
        is_coherent = ports.coherence.is_coherent
        raw = yield ports.store.get(call.text)
        state.has_looked = True
    else:
        covers = state.crowd.covered if state.crowd is not None else 0
        guard, is_coherent, raw = found.guard, found.is_coherent, found.raw
    state.seen = envelope.version_of(raw)
    now = ports.clock.now()
    stored = _state_of(ports, call, options, raw, now)
    entry, freshness = stored.entry, stored.freshness
    if entry is None:
        theirs = stored.other
        if theirs is None or now >= theirs.fresh_until or theirs.seq < options.since:
            return None  # of another release: asked for again, by whichever comes first
        return (yield from load_beside_other_release(ports, loader, state, theirs))
    waited = ports.clock.monotonic() - state.started
    if entry.is_unshared:  # of a load that this read has waited for, or another's
        # A push may be late, and wake a read that has begun after the load that it reports.
        is_new = entry.write_id != state.refused and entry.created + entry.load_time >= began_at - CLOCK_ERROR
        state.refused = entry.write_id
        if not is_new or not (state.has_asked or state.has_waited):
            return None
        state.payload = entry.payload
        return Read(stored.value, Freshness.FRESH, "store", 0.0, entry.seq, waited)
    is_mine = entry.created >= began_at
    if is_mine:
        loader.load_times.note(entry.load_time)
    if freshness is Freshness.LAPSED:
        state.lapsed, state.lapsed_covers = (entry, stored.value), covers
        if is_mine:
            # Loaded while this read waited: served, though it has no life of its own; not to those who came after.
            freshness = Freshness.STALE
            if state.crowd is not None:
                state.crowd.began_before = ports.clock.monotonic() - (now - entry.created)
    early_at = entry.early_at(loader.policy.early, 1.0 - ports.chance())
    match decide(freshness, is_early=early_at <= now):
        case Action.SERVE:
            l1_until = min(early_at, entry.fresh_until)
        case Action.SERVE_AND_ASK:
            is_asked = not is_mine and (yield from revalidate_soon(ports, loader, entry, state.strategy))
            if freshness is Freshness.FRESH:
                l1_until = entry.fresh_until
            else:
                # Asked once; what comes of it is pushed, and drops the slot.  Not asked, the next read must ask.
                l1_until = min(entry.stale_until, now + loader.load_for) if is_asked else now
        case _:
            return None
    if options.keep is not None and is_coherent and l1_until > now:
        options.keep(entry, stored.value, guard, l1_until - now + state.started + waited)
    state.payload = entry.payload
    done = Read.of(ports.clock.now(), entry, stored.value, freshness, "store", waited, state.is_joined)
    if state.has_asked and done.age > waited:  # its own load is no older than its wait: the clock is wrong
        return msgspec.structs.replace(done, age=waited)
    return done


def _state_of(ports: Ports, call: Call, options: ReadOptions, raw: bytes | None, now: float) -> EntryState:
    """Return the state of what the store has, with its value; what cannot be read is reported, and a miss."""
    found = entry_state(
        raw, call.text, now, since=options.since, decode=options.decode, fingerprint=options.fingerprint
    )
    if found.problem and found.other is None:
        ports.emit(UnreadableEntry(call.text, found.problem))
    return found
