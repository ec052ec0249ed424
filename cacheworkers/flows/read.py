"""Read: serve what is there, ask for what will be needed, and wait in turn for what is missing."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Action, Entry, Freshness, decide
from cacheworkers.core.read_result import Read
from cacheworkers.core.shape import NO_SHAPE
from cacheworkers.errors import (
    CodecError,
    EnvelopeError,
    KeyMissing,
    LoadError,
    LoadTimeout,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from cacheworkers.events import ClaimDenied, LeaseTakenOver, ReadFailed, Served, UnreadableEntry
from cacheworkers.flows import local_load
from cacheworkers.flows.load import LOAD_REFUSED, NOT_STORED, STORE_FULL
from cacheworkers.flows.load_strategy import SINGLE, LoadStrategy
from cacheworkers.flows.own_load import read_own_entry
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports, QueueKind
from cacheworkers.flows.wait import wait_for_push, watch_load
from cacheworkers.local.waiters import Flight, Waiter
from cacheworkers.store.commands.replies import Backoff, Claim, Claimed, Held, Moved

#: By how much instants of the store may seem older than they are, seconds: they are kept in milliseconds, and the
#: store's clock is estimated.
CLOCK_ERROR = 0.1


class ReadOptions(msgspec.Struct, frozen=True):
    """What one read accepts.

    Attributes:
        decode: payload -> value.
        since: least sequence number; older entries count as missing.
        wait_for: seconds a miss waits for a worker.
        keep: called with entry, value, guard and the monotonic instant until which L1 may answer with it.
        shape: the loader's; entries of another release's are not decoded.
    """

    decode: Callable[[bytes], Any]
    since: int
    wait_for: float
    keep: Callable[[Entry, Any, int, float], None] | None = None
    shape: bytes = NO_SHAPE


class StoreResult(msgspec.Struct, frozen=True):
    """What a caller has found in the store, before the read takes its place among the waiters.

    Attributes:
        raw: the envelope, if there is one.
        guard, is_coherent: L1's guard and whether pushes were heard, in this order, before the store was asked.
    """

    raw: bytes | None
    guard: int = 0
    is_coherent: bool = False


class _ReadState(msgspec.Struct):
    """How far a read has got.

    Attributes:
        seen: the version that was found and could not be served.
        lapsed: what to serve if its reload fails.
        give_up_at: monotonic; a lease that was taken over is waited for to its end, then no longer.
        has_looked: it has looked in the store since it is among the waiters, or knows of somebody who has.
        has_asked, has_waited: it got the lease itself, once; it waited for what somebody was at.
        is_refused: a worker of another release could not load it.
        refused: the version of an entry that is for others, who have waited for its load.
    """

    call: Call
    options: ReadOptions
    waiter: Waiter
    started: float
    deadline: float
    strategy: LoadStrategy
    seen: bytes = b""
    lapsed: tuple[Entry, Any] | None = None
    give_up_at: float = 0.0
    has_looked: bool = False
    has_asked: bool = False
    has_waited: bool = False
    is_refused: bool = False
    refused: bytes = b""

    @property
    def is_joined(self) -> bool:
        """Whether its value is that of a load which another read has asked for."""
        return self.has_waited and not self.has_asked


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
) -> Flow[Read]:
    """Return the value of a call, from cache when it can.

    Args:
        is_known_missing: the caller has just looked, and found no entry at all.
        found: what the caller has found, if anything.
        started: monotonic instant from which `wait_for` counts; None for now.
        means: how it has the call loaded.

    Raises:
        LoadError: the load failed, and nothing older is there to serve.
        LoadTimeout: no value within `wait_for`, and this read may not load it.
    """
    if started is None:
        started = ports.clock.monotonic()
    if is_known_missing:
        found = StoreResult(None)
    try:
        # Registered before it looks.  Registered after, it would sleep through the push it waits for:
        #   reader: GET (nothing)   worker: write, push   reader: registers and sleeps
        # A look before it registers is as good if a claim comes next, for that compares what was found.
        with ports.waiters.enter(call.text) as waiter:
            state = _ReadState(call, options, waiter, started, started + options.wait_for, strategy)
            began_at = ports.clock.now()
            if _is_known_missing(waiter.flight, ports.clock.monotonic()):
                found, state.has_looked = found or StoreResult(None), True
            while True:
                waiter.rearm()
                try:
                    done = yield from _look(ports, loader, state, began_at, found)
                    found = None
                    if done is None:
                        done = yield from _wait_for_load(ports, loader, state)
                except (StoreUnavailable, StoreFull) as error:
                    done = yield from _read_here(ports, loader, state, error)
                if done is not None:
                    break
    except (LoadError, LoadTimeout, StoreError) as error:
        ports.emit(ReadFailed(loader.name, type(error).__name__, ports.clock.monotonic() - started))
        raise
    if state.has_asked and done.tier == "store":
        ports.note_served()
    ports.access_counter.count(call.text)
    if ports.has_hook:
        ports.emit(Served(loader.name, done.freshness.value, done.tier, done.age, done.waited))
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
    try:
        entry = envelope.entry_of(raw, text, loader.shape)
    except envelope.OtherShape as error:
        own = ports.own_entries.get(error.entry, now) if now < error.entry.fresh_until else None
        if own is None:
            return None
        entry = own
    except EnvelopeError:
        return None
    if now >= entry.fresh_until or entry.seq < since:
        return None
    early_at = entry.early_at(loader.policy.early, 1.0 - ports.chance())
    if now >= early_at:
        return None
    return entry, min(early_at, entry.fresh_until)


def peek(ports: Ports, call: Call, options: ReadOptions) -> Flow[Read | None]:
    """Return what is in the store, fresh, stale or lapsed; never loads and never asks."""
    raw = yield ports.store.get(call.text)
    try:
        entry, value = _readable(ports, call, options, raw)
    except envelope.OtherShape:
        return None
    if entry is None or entry.seq < options.since or entry.is_unshared:
        return None
    freshness = entry.freshness(ports.clock.now())
    return None if freshness is Freshness.MISSING else Read.of(ports.clock.now(), entry, value, freshness, "store", 0.0)


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
    token = secrets.token_hex(8)
    try:
        claim = yield ports.store.claim(call, token, lease_for=loader.load_for, seen=seen, heeds_backoff=heeds_backoff)
    except BaseException:
        ports.release_soon(call, token)  # timed out or cancelled: the script may have run all the same
        raise
    if not isinstance(claim, Claimed):
        ports.emit(ClaimDenied(loader.name, type(claim).__name__.lower()))
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
    if ports.asked.has(version, now):
        return True
    if not ports.revalidations.allows(now) and ports.clock.now() < entry.overdue_at():
        return False
    if not ports.asked.is_due(version, now, loader.load_for):
        return True
    try:
        yield from ask(ports, loader, entry.call, entry.write_id, "revalidate", strategy=strategy)
    except StoreError:
        ports.asked.forget(version)
    return True


def _is_known_missing(flight: Flight, now: float) -> bool:
    """Return whether others have found nothing and know the lease under which it is being loaded.

    Their look is as good as one of this reader's own: the write that ends the lease is pushed, and wakes it too.
    """
    return flight.is_missing and flight.held_until > now


def _look(
    ports: Ports, loader: LoaderSpec, state: _ReadState, began_at: float, found: StoreResult | None
) -> Flow[Read | None]:
    """Serve what is in the store, if it is good enough."""
    call, options = state.call, state.options
    if found is None:
        guard = ports.l1.guard(call.text)
        is_coherent = ports.coherence.is_coherent
        raw = yield ports.store.get(call.text)
        state.has_looked = True
    else:
        guard, is_coherent, raw = found.guard, found.is_coherent, found.raw
    state.seen = envelope.version_of(raw)
    try:
        entry, value = _readable(ports, call, options, raw)
    except envelope.OtherShape as error:
        theirs = error.entry
        if ports.clock.now() >= theirs.fresh_until or theirs.seq < options.since:
            return None  # asked for anew, by whichever release comes first
        return (
            yield from read_own_entry(
                ports, loader, call, options.decode, theirs, state.waiter, state.started, state.strategy
            )
        )
    if entry is None or entry.seq < options.since:
        return None
    now = ports.clock.now()
    waited = ports.clock.monotonic() - state.started
    if entry.is_unshared:  # of a load that this read has waited for, or another's
        # A push may be late, and wake a read that has begun after the load which it tells of.
        is_new = entry.write_id != state.refused and entry.created + entry.load_time >= began_at - CLOCK_ERROR
        is_waited_for = is_new and (state.has_asked or state.has_waited)
        state.refused = entry.write_id
        return Read(value, Freshness.FRESH, "store", 0.0, entry.seq, waited) if is_waited_for else None
    freshness = entry.freshness(now)
    is_mine = entry.created >= began_at
    if is_mine:
        loader.pace.note(entry.load_time)
    if freshness is Freshness.LAPSED:
        state.lapsed = (entry, value)
        if is_mine:
            freshness = Freshness.STALE  # loaded while this read waited: served, though it has no life of its own
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
        options.keep(entry, value, guard, l1_until - now + state.started + waited)
    return Read.of(ports.clock.now(), entry, value, freshness, "store", waited, state.is_joined)


def _wait_for_load(ports: Ports, loader: LoaderSpec, state: _ReadState) -> Flow[Read | None]:
    """Claim, wait or load here: one turn of a read that found nothing to serve.  None: look again."""
    flight = state.waiter.flight
    now = ports.clock.monotonic()
    is_over = now >= state.deadline
    if state.give_up_at and now >= state.give_up_at:
        return _give_up(ports, state)
    if is_over and now < flight.held_until:
        if flight.is_taken_over:
            state.give_up_at = state.give_up_at or flight.held_until
            yield from wait_for_push(ports, state.waiter, state.give_up_at)
            return None
        if flight.is_begun:
            return _give_up(ports, state)
    if flight.is_claiming or (not is_over and now < flight.held_until):
        if not state.has_looked:
            return None  # the push that ends that lease may have come between the caller's look and this read
        state.has_waited = True
        ends = [at for at in (state.deadline, flight.held_until) if at > now]
        yield from wait_for_push(ports, state.waiter, min(ends, default=now + loader.load_for))
        return None

    token = secrets.token_hex(8)
    flight.is_claiming = True
    wakes = flight.wakes
    try:
        claim: Claim = yield ports.store.claim(
            state.call.text,
            token,
            lease_for=loader.load_for,
            seen=state.seen,
            expected=flight.token if is_over else "",
            heeds_backoff=not state.is_refused,
        )
    except BaseException:
        ports.release_soon(state.call.text, token)  # timed out or cancelled: the script may have run all the same
        flight.is_claiming = False
        ports.waiters.hand_off(flight)  # pass the baton: the others wait for this claim's outcome
        raise
    flight.is_claiming = False
    match claim:
        case Moved():
            ports.waiters.hand_off_to_all(flight)
            return None
        case Backoff(kind, text, rest):
            ports.waiters.hand_off_to_all(flight)
            if kind in (STORE_FULL, NOT_STORED):
                raise StoreFull(text)
            if kind == LOAD_REFUSED and loader.policy.on_timeout == "load":
                state.is_refused = True  # claimed next, in spite of it, and loaded here
                return None
            if state.lapsed is not None:
                return _lapsed(ports, state)
            is_left_out = loader.is_batch and kind == KeyMissing.__name__
            raise (KeyMissing if is_left_out else LoadError)(loader.name, state.call.text, kind, text, rest)
        case Held(holder, is_begun, is_taken_over, rest):
            ports.emit(ClaimDenied(loader.name, "held"))
            if flight.wakes != wakes:
                return None  # that lease may have ended before its holder's reply came
            flight.held_until, flight.token, flight.is_missing = now + rest, holder, not state.seen
            flight.is_begun, flight.is_taken_over = is_begun, is_taken_over
            watch_load(ports, flight)
            if is_over:
                ports.waiters.hand_off_to_all(flight)
            return None
        case Claimed():
            has_published, state.has_asked = state.has_asked or state.has_waited, True
            flight.held_until, flight.token, flight.is_missing = now + loader.load_for, token, not state.seen
            flight.is_begun, flight.is_taken_over = False, is_over
            watch_load(ports, flight)
            request = LoadRequest(loader.name, state.call.text, token, state.seen.hex(), "miss")
            if is_over and has_published:
                ports.note_taken_over(request)
            if is_over or state.is_refused or not (yield from state.strategy.submit(ports, request)):
                # Nobody has begun within `wait_for`, or nobody ever would: the broker is away, or workers are older.
                return (yield from _load_after_claim(ports, loader, state, request))
            # Without another look: the claim has compared, and what is written from now on is pushed.
            yield from wait_for_push(ports, state.waiter, min(state.deadline, flight.held_until))
            return None


def _load_after_claim(ports: Ports, loader: LoaderSpec, state: _ReadState, request: LoadRequest) -> Flow[Read | None]:
    """Load here, under the lease just claimed; or give it back, if this loader may not run in readers."""
    if loader.policy.on_timeout == "raise":
        ports.release_soon(request.call, request.token)
        return _give_up(ports, state)
    ports.emit(LeaseTakenOver(loader.name, request.call))
    state.waiter.flight.is_taken_over = True
    return (
        yield from local_load.load_under_lease(
            ports, loader, state.call, state.options.decode, request, state.lapsed, state.started, state.strategy
        )
    )


def _read_here(ports: Ports, loader: LoaderSpec, state: _ReadState, error: StoreUnavailable | StoreFull) -> Flow[Read]:
    """Read while the store does not answer, or has no room: from L1, or by loading here."""
    # Not from L1 where the store has answered that it has no such entry: it is right.
    if isinstance(error, StoreUnavailable):
        kept = local_load.kept(ports, state.call, state.options.decode, state.options.since)
        if kept is not None:
            return kept
    try:
        if loader.policy.on_timeout == "raise":
            raise LoadTimeout(f'{state.call.text} cannot be read, and on_timeout is "raise": {error}') from error
        return (
            yield from local_load.load_without_store(
                ports, loader, state.call, state.options.decode, state.waiter, state.started, state.strategy
            )
        )
    except (LoadError, LoadTimeout):
        if state.lapsed is not None:
            return _lapsed(ports, state)
        raise


def _give_up(ports: Ports, state: _ReadState) -> Read:
    """Return the lapsed value; nobody may load this call now but the one who has begun."""
    if state.lapsed is not None:
        return _lapsed(ports, state)
    waited = ports.clock.monotonic() - state.started
    raise LoadTimeout(f"{state.call.text} has no value after {waited:.3f} s; wait_for is {state.options.wait_for:g} s")


def _lapsed(ports: Ports, state: _ReadState) -> Read:
    assert state.lapsed is not None
    entry, value = state.lapsed
    return Read.of(ports.clock.now(), entry, value, Freshness.LAPSED, "store", ports.clock.monotonic() - state.started)


def _readable(ports: Ports, call: Call, options: ReadOptions, raw: bytes | None) -> tuple[Entry | None, Any]:
    """Return an envelope's entry and value; what cannot be read is reported, and a miss.

    Raises:
        OtherShape: it is another release's.
    """
    if raw is None:
        return None, None
    try:
        entry = envelope.entry_of(raw, call.text, options.shape)
        return entry, options.decode(entry.payload)
    except envelope.OtherShape:
        raise
    except (EnvelopeError, CodecError) as error:
        ports.emit(UnreadableEntry(call.text, str(error)))
        return None, None
