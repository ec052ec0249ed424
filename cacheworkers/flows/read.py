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
from cacheworkers.core.read import Read
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
from cacheworkers.events import ClaimDenied, ReadFailed, Served, TookOver, UnreadableEntry
from cacheworkers.flows import here
from cacheworkers.flows.load import STORE_FULL
from cacheworkers.flows.ports import Ask, LoaderSpec, Ports, QueueKind
from cacheworkers.flows.wait import wait_for_push
from cacheworkers.local.waiters import Flight, Waiter
from cacheworkers.store.shapes import Backoff, Claim, Claimed, Held, Moved


class Wanted(msgspec.Struct, frozen=True):
    """What one read accepts.

    Attributes:
        decode: payload -> value.
        since: least sequence number; older entries count as missing.
        wait_for: seconds a miss waits for a worker.
        keep: called with entry, value, guard and the monotonic instant until which L1 may answer with it.
    """

    decode: Callable[[bytes], Any]
    since: int
    wait_for: float
    keep: Callable[[Entry, Any, int, float], None] | None = None


class _Turn(msgspec.Struct):
    """How far a read has got.

    Attributes:
        seen: the version that was found and could not be served.
        lapsed: what to serve if its reload fails.
        give_up_at: monotonic; a lease that was taken over is waited for to its end, then no longer.
        has_asked, has_waited: it got the lease itself, once; it waited for what somebody was at.
    """

    call: Call
    wanted: Wanted
    waiter: Waiter
    started: float
    deadline: float
    seen: bytes = b""
    lapsed: tuple[Entry, Any] | None = None
    give_up_at: float = 0.0
    has_asked: bool = False
    has_waited: bool = False

    @property
    def is_joined(self) -> bool:
        """Whether its value is that of a load which another read has asked for."""
        return self.has_waited and not self.has_asked


def read(ports: Ports, loader: LoaderSpec, call: Call, wanted: Wanted, *, is_known_missing: bool = False) -> Flow[Read]:
    """Return the value of a call, from cache when it can.

    Args:
        is_known_missing: the caller has just looked, and found no entry at all.

    Raises:
        LoadError: the load failed, and nothing older is there to serve.
        LoadTimeout: no value within `wait_for`, and this read may not load it.
    """
    started = ports.clock.monotonic()
    try:
        # Registered before it looks.  Registered after, it would sleep through the push it waits for:
        #   reader: GET (nothing)   worker: write, push   reader: registers and sleeps
        # A look before it registers is as good, for what it found is compared by the claim that must come first.
        with ports.waiters.enter(call.text) as waiter:
            turn = _Turn(call, wanted, waiter, started, started + wanted.wait_for)
            began_at = ports.clock.now()
            is_known_missing = is_known_missing or _is_known_missing(waiter.flight, started)
            while True:
                waiter.rearm()
                try:
                    found = None
                    if not is_known_missing:
                        found = yield from _look(ports, loader, turn, began_at)
                    is_known_missing = False
                    if found is None:
                        found = yield from _wait_in_turn(ports, loader, turn)
                except (StoreUnavailable, StoreFull) as error:
                    found = yield from _read_here(ports, loader, turn, error)
                if found is not None:
                    break
    except (LoadError, LoadTimeout, StoreError) as error:
        ports.emit(ReadFailed(loader.name, type(error).__name__, ports.clock.monotonic() - started))
        raise
    ports.heat.count(call.text)
    if ports.is_heard:
        ports.emit(Served(loader.name, found.freshness.value, found.tier, found.age, found.waited))
    return found


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
        entry = envelope.unpack(raw)
    except EnvelopeError:
        return None
    if now >= entry.fresh_until or entry.call != text or entry.seq < since:
        return None
    early_at = entry.early_at(loader.policy.early, 1.0 - ports.chance())
    if now >= early_at:
        return None
    return entry, min(early_at, entry.fresh_until)


def peek(ports: Ports, call: Call, wanted: Wanted) -> Flow[Read | None]:
    """Return what is in the store, fresh, stale or lapsed; never loads and never asks."""
    raw = yield ports.store.get(call.text)
    entry, value = _readable(ports, call, wanted, raw)
    if entry is None or entry.seq < wanted.since:
        return None
    freshness = entry.freshness(ports.clock.now())
    return None if freshness is Freshness.MISSING else Read.of(ports.clock.now(), entry, value, freshness, "store", 0.0)


def ask(
    ports: Ports, loader: LoaderSpec, call: str, seen: bytes, queue: QueueKind, *, heeds_backoff: bool = True
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
    if not ports.dispatcher.submit(Ask(loader.name, call, token, seen.hex(), queue)):
        ports.release_soon(call, token)
        return False
    return True


def revalidate_soon(ports: Ports, loader: LoaderSpec, entry: Entry) -> Flow[bool]:
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
        yield from ask(ports, loader, entry.call, entry.write_id, "revalidate")
    except StoreError:
        ports.asked.forget(version)
    return True


def _is_known_missing(flight: Flight, now: float) -> bool:
    """Return whether others have found nothing and know the lease under which it is being loaded.

    Their look is as good as one of this reader's own: the write that ends the lease is pushed, and wakes it too.
    """
    return flight.is_missing and flight.held_until > now


def _look(ports: Ports, loader: LoaderSpec, turn: _Turn, began_at: float) -> Flow[Read | None]:
    """Serve what is in the store, if it is good enough."""
    call, wanted = turn.call, turn.wanted
    guard = ports.l1.guard(call.text)
    is_coherent = ports.gate.is_coherent
    raw = yield ports.store.get(call.text)
    turn.seen = envelope.version_of(raw)
    entry, value = _readable(ports, call, wanted, raw)
    if entry is None or entry.seq < wanted.since:
        return None
    now = ports.clock.now()
    waited = ports.clock.monotonic() - turn.started
    freshness = entry.freshness(now)
    is_mine = entry.created >= began_at
    if is_mine:
        loader.pace.note(entry.load_time)
    if freshness is Freshness.LAPSED:
        turn.lapsed = (entry, value)
        if is_mine:
            freshness = Freshness.STALE  # loaded while this read waited: served, though it has no life of its own
    early_at = entry.early_at(loader.policy.early, 1.0 - ports.chance())
    match decide(freshness, is_early=early_at <= now):
        case Action.SERVE:
            l1_until = min(early_at, entry.fresh_until)
        case Action.SERVE_AND_ASK:
            is_asked = not is_mine and (yield from revalidate_soon(ports, loader, entry))
            if freshness is Freshness.FRESH:
                l1_until = entry.fresh_until
            else:
                # Asked once; what comes of it is pushed, and drops the slot.  Not asked, the next read must ask.
                l1_until = min(entry.stale_until, now + loader.load_for) if is_asked else now
        case _:
            return None
    if wanted.keep is not None and is_coherent and l1_until > now:
        wanted.keep(entry, value, guard, l1_until - now + turn.started + waited)
    return Read.of(ports.clock.now(), entry, value, freshness, "store", waited, turn.is_joined)


def _wait_in_turn(ports: Ports, loader: LoaderSpec, turn: _Turn) -> Flow[Read | None]:
    """Claim, wait or load here: one turn of a read that found nothing to serve.  None: look again."""
    flight = turn.waiter.flight
    now = ports.clock.monotonic()
    is_over = now >= turn.deadline
    if turn.give_up_at and now >= turn.give_up_at:
        return _give_up(ports, turn)
    if is_over and now < flight.held_until:
        if flight.is_taken_over:
            turn.give_up_at = turn.give_up_at or flight.held_until
            yield from wait_for_push(ports, turn.waiter, turn.give_up_at)
            return None
        if flight.is_begun:
            return _give_up(ports, turn)
    if flight.is_claiming or (not is_over and now < flight.held_until):
        turn.has_waited = True
        ends = [at for at in (turn.deadline, flight.held_until) if at > now]
        yield from wait_for_push(ports, turn.waiter, min(ends, default=now + loader.load_for))
        return None

    token = secrets.token_hex(8)
    flight.is_claiming = True
    wakes = flight.wakes
    try:
        claim: Claim = yield ports.store.claim(
            turn.call.text,
            token,
            lease_for=loader.load_for,
            seen=turn.seen,
            expected=flight.token if is_over else "",
        )
    except BaseException:
        ports.release_soon(turn.call.text, token)  # timed out or cancelled: the script may have run all the same
        flight.is_claiming = False
        ports.waiters.nudge(flight)  # pass the baton: the others wait for this claim's outcome
        raise
    flight.is_claiming = False
    match claim:
        case Moved():
            ports.waiters.nudge_all(flight)
            return None
        case Backoff(kind, text, rest):
            ports.waiters.nudge_all(flight)
            if kind == STORE_FULL:
                raise StoreFull(text)
            if turn.lapsed is not None:
                return _lapsed(ports, turn)
            is_left_out = loader.is_batch and kind == KeyMissing.__name__
            raise (KeyMissing if is_left_out else LoadError)(loader.name, turn.call.text, kind, text, rest)
        case Held(holder, is_begun, is_taken_over, rest):
            ports.emit(ClaimDenied(loader.name, "held"))
            if flight.wakes != wakes:
                return None  # that lease may have ended before its holder's reply came
            flight.held_until, flight.token, flight.is_missing = now + rest, holder, not turn.seen
            flight.is_begun, flight.is_taken_over = is_begun, is_taken_over
            if is_over:
                ports.waiters.nudge_all(flight)
            return None
        case Claimed():
            turn.has_asked = True
            flight.held_until, flight.token, flight.is_missing = now + loader.load_for, token, not turn.seen
            flight.is_begun, flight.is_taken_over = False, is_over
            the_ask = Ask(loader.name, turn.call.text, token, turn.seen.hex(), "miss")
            if is_over or not ports.dispatcher.submit(the_ask):
                # Nobody has begun within `wait_for`, or nobody ever would: the broker is away.
                return (yield from _load_in_turn(ports, loader, turn, the_ask))
            return None


def _load_in_turn(ports: Ports, loader: LoaderSpec, turn: _Turn, the_ask: Ask) -> Flow[Read | None]:
    """Load here, under the lease just claimed; or give it back, if this loader may not run in readers."""
    if loader.policy.on_timeout == "raise":
        ports.release_soon(the_ask.call, the_ask.token)
        return _give_up(ports, turn)
    ports.emit(TookOver(loader.name, the_ask.call))
    turn.waiter.flight.is_taken_over = True
    return (
        yield from here.load_under_lease(
            ports, loader, turn.call, turn.wanted.decode, the_ask, turn.lapsed, turn.started
        )
    )


def _read_here(ports: Ports, loader: LoaderSpec, turn: _Turn, error: StoreUnavailable | StoreFull) -> Flow[Read]:
    """Read while the store does not answer, or has no room: from L1, or by loading here."""
    # Not from L1 where the store has answered that it has no such entry: it is right.
    if isinstance(error, StoreUnavailable):
        kept = here.kept(ports, turn.call, turn.wanted.decode, turn.wanted.since)
        if kept is not None:
            return kept
    try:
        if loader.policy.on_timeout == "raise":
            raise LoadTimeout(f'{turn.call.text} cannot be read, and on_timeout is "raise": {error}') from error
        return (
            yield from here.load_without_store(ports, loader, turn.call, turn.wanted.decode, turn.waiter, turn.started)
        )
    except (LoadError, LoadTimeout):
        if turn.lapsed is not None:
            return _lapsed(ports, turn)
        raise


def _give_up(ports: Ports, turn: _Turn) -> Read:
    """Return the lapsed value; nobody may load this call now but the one who has begun."""
    if turn.lapsed is not None:
        return _lapsed(ports, turn)
    waited = ports.clock.monotonic() - turn.started
    raise LoadTimeout(f"{turn.call.text} has no value after {waited:.3f} s; wait_for is {turn.wanted.wait_for:g} s")


def _lapsed(ports: Ports, turn: _Turn) -> Read:
    assert turn.lapsed is not None
    entry, value = turn.lapsed
    return Read.of(ports.clock.now(), entry, value, Freshness.LAPSED, "store", ports.clock.monotonic() - turn.started)


def _readable(ports: Ports, call: Call, wanted: Wanted, raw: bytes | None) -> tuple[Entry | None, Any]:
    """Return an envelope's entry and value; what cannot be read is reported, and a miss."""
    if raw is None:
        return None, None
    try:
        entry = envelope.unpack(raw)
        if entry.call != call.text:
            raise EnvelopeError(f"the entry of {call.text} says it is {entry.call}")
        return entry, wanted.decode(entry.payload)
    except (EnvelopeError, CodecError) as error:
        ports.emit(UnreadableEntry(call.text, str(error)))
        return None, None
