"""A miss: claim the call and wait for its load, or load it here; and what a read does when that comes to nothing."""

from __future__ import annotations

from msgspec import structs

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Action, Entry, Freshness, decide
from cacheworkers.core.read_result import Read
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import CodecError, KeyMissing, LoadError, LoadTimeout, StoreError, StoreFull, StoreUnavailable
from cacheworkers.events import LeaseTakenOver
from cacheworkers.flows import local_load
from cacheworkers.flows.claim_ahead import outcome_of
from cacheworkers.flows.load_failure import LOAD_REFUSED, NOT_STORED, STORE_FULL
from cacheworkers.flows.ports import LoaderSpec, LoadRequest, Ports
from cacheworkers.flows.read_state import ReadState, wait_for_push, watch_load
from cacheworkers.store.commands.replies import Backoff, Claim, Claimed, Held, Moved, Overtaken

#: A sequence number that no load has: what was left by others cannot be read here.
NO_SEQ = 2**62
#: Why a read ends without a value, and what to do.
SLOW = (
    "it is still being loaded, and later reads get it; or the process that loads it has died, and reads have it loaded "
    "again when its lease has ended, load_for ({:g} s) after it began; where loads take that long raise wait_for, or "
    "give stale_for or error_for"
)
NOT_BEGUN = 'no worker has begun to load it, and on_timeout="raise" keeps readers from loading; the log says why'


def wait_for_load(ports: Ports, loader: LoaderSpec, state: ReadState) -> Flow[Read | None]:
    """Claim, wait or load here: one turn of a read that found nothing to serve.  None: look again."""
    flight = state.waiter.flight
    now = ports.clock.monotonic()
    is_over = now >= state.deadline
    if state.give_up_at and now >= state.give_up_at:
        return give_up(ports, state, SLOW.format(loader.load_for))
    if is_over and now < flight.held_until:
        if flight.is_taken_over:
            state.give_up_at = state.give_up_at or flight.held_until
            yield from wait_for_push(ports, state.waiter, state.give_up_at)
            return None
        if flight.is_begun and flight.claimed_at >= state.deadline:
            return give_up(ports, state, SLOW.format(loader.load_for))
    offered = flight.offered
    if offered is not None and offered[0] >= state.started:
        found = _offered(ports, state, offered[1], is_overtaken=offered[2])
        if found is not None:
            if state.crowd is not None:
                state.crowd.began_before = offered[0]
            return found
    failure = None if state.is_refused or now >= flight.failing_until else flight.failure
    if failure is not None and flight.claim_number > state.waiter.number:
        if state.crowd is not None:
            state.crowd.began_before = flight.claimed_at
        return _failed(ports, loader, state, failure)  # the claim was made after this read had begun
    until = 0.0 if is_over else flight.held_until
    if flight.is_claiming:
        # Not for ever: whoever claims may be a task of an event loop that stands still, for this very read, even.
        until = max(state.deadline, flight.claimed_at + ports.config.store_timeout)
    if now < until:
        if not state.has_looked:
            return None  # the push that ends that lease may have come between the caller's look and this read
        if now >= _half_time(state) and not is_over:
            yield from _learn_seq(ports, state)
        state.has_waited = True
        ends = [at for at in (_half_time(state), state.deadline, flight.held_until, until) if at > now]
        yield from wait_for_push(ports, state.waiter, min(ends))
        return None
    claim, request, wakes = yield from _claim(ports, loader, state, now, is_over)
    match claim:
        case Moved():
            ports.waiters.wake_flight(flight)
            return None
        case Overtaken(raw):
            ports.waiters.wake_flight(flight)
            found = _offered(ports, state, envelope.unpack(raw))
            if found is None:
                state.least_seq = NO_SEQ
            elif state.crowd is not None:
                state.crowd.covered = min(state.crowd.covered, state.least_covers)
            return found
        case Backoff():
            flight.failure, flight.failing_until = claim, now + claim.rest
            ports.waiters.wake_flight(flight)
            return _failed(ports, loader, state, claim)
        case Held(holder, is_begun, is_taken_over, rest):
            if flight.wakes != wakes:
                return None  # that lease may have ended before its holder's reply came
            flight.held_until, flight.token, flight.is_missing = now + rest, holder, not state.seen
            flight.is_begun, flight.is_taken_over = is_begun, is_taken_over
            watch_load(ports, flight)
            if is_over:
                ports.waiters.wake_flight(flight)
                return None
            # Without another look: as where it is granted, see below.
            state.has_waited = True
            yield from wait_for_push(ports, state.waiter, min(_half_time(state), flight.held_until))
            return None
        case Claimed(is_enqueued, snapshot):
            has_published, state.has_asked = state.has_asked or state.has_waited, True
            flight.held_until, flight.token, flight.is_missing = now + loader.load_for, request.token, not state.seen
            flight.is_begun, flight.is_taken_over = False, is_over
            watch_load(ports, flight)
            if is_over and has_published:
                ports.note_taken_over(request)
            request = structs.replace(request, snapshot=snapshot)
            loads_here = is_over or state.is_refused
            if loads_here or not (is_enqueued or (yield from state.strategy.submit(ports, request))):
                # Nobody has begun within `wait_for`, or nobody ever would: the broker is away, or workers are older.
                return (yield from _load_after_claim(ports, loader, state, request))
            # Without another look: the claim has compared, and what is written from now on is pushed.
            yield from wait_for_push(ports, state.waiter, min(_half_time(state), flight.held_until))
            return None


def _claim(
    ports: Ports, loader: LoaderSpec, state: ReadState, now: float, is_over: bool
) -> Flow[tuple[Claim, LoadRequest, int]]:
    """Claim for all who wait in this process; what it came to, the request, and the flight's wake-ups before."""
    flight = state.waiter.flight
    waits = not (is_over or state.is_refused)  # for a worker
    ahead = state.claimed_ahead() if waits else None
    token = new_token() if ahead is None else ahead.token
    request = LoadRequest(loader.name, state.call.text, token, state.seen.hex(), "miss")
    enqueue = state.strategy.message(ports, request) if waits and ahead is None else None
    flight.is_claiming = True
    flight.failure = None
    try:
        wakes = flight.wakes
        flight.claimed_at, flight.claim_number = now, ports.waiters.next_number()
        state.cover()
        claim: Claim
        if ahead is not None:
            claim = yield from outcome_of(ahead)
        else:
            claim = yield ports.store.claim(
                state.call.text,
                token,
                lease_for=loader.load_for,
                seen=state.seen,
                expected=flight.token if is_over else "",
                least_seq=state.least_seq if is_over else None,  # before that, one that is not overtaken may come
                is_last=is_over,
                heeds_backoff=not state.is_refused,
                enqueue=None if enqueue is None else (enqueue.key, *enqueue.message),
            )
    except BaseException:
        ports.release_soon(state.call.text, token)  # timed out or cancelled: the script may have run all the same
        flight.is_claiming = False
        ports.waiters.wake_one(flight)  # the others wait for this claim's outcome: one of them claims
        raise
    flight.is_claiming = False
    if enqueue is not None and isinstance(claim, Claimed) and claim.is_enqueued:
        enqueue.note_sent()
    return claim, request, wakes


def _half_time(state: ReadState) -> float:
    """Return when half of the time is over that this read waits for a worker."""
    return state.started + state.options.wait_for / 2


def _learn_seq(ports: Ports, state: ReadState) -> Flow[None]:
    """Learn from when on this read may be given a value that was overtaken, once.

    It has waited for long: perhaps invalidations overtake each load.  No invalidation that was acknowledged before this
    read began has a larger number than the sequence has now.
    """
    if state.least_seq is None:
        state.least_covers = state.cover()
        state.least_seq = (yield ports.store.snapshot()).seq


def _offered(ports: Ports, state: ReadState, entry: Entry, *, is_overtaken: bool = True) -> Read | None:
    """Return a value that was loaded after this read had begun and was not stored; None if it is not readable."""
    if entry.call != state.call.text or entry.seq < state.options.since:
        return None
    try:
        value = state.options.decode(entry.payload)
    except CodecError:
        return None
    state.payload = entry.payload
    waited = ports.clock.monotonic() - state.started
    freshness = Freshness.STALE if is_overtaken else Freshness.FRESH
    return Read.of(ports.clock.now(), entry, value, freshness, "load", waited, True)


def _failed(ports: Ports, loader: LoaderSpec, state: ReadState, failure: Backoff) -> Read | None:
    """Return what a read is given while the backoff of a failure runs, or raise."""
    if failure.kind in (STORE_FULL, NOT_STORED):
        raise StoreFull(failure.text)
    if failure.kind == LOAD_REFUSED and loader.policy.on_timeout == "load":
        state.is_refused = True
        ports.note_refused(loader.name, failure.text)
        return None
    match decide(Freshness.MISSING if state.lapsed is None else Freshness.LAPSED, is_failing=True):
        case Action.SERVE_MARKED:
            return lapsed(ports, state)
        case _:
            is_left_out = loader.is_batch and failure.kind == KeyMissing.__name__
            kind = KeyMissing if is_left_out else LoadError
            raise kind(loader.name, state.call.text, failure.kind, failure.text, failure.rest)


def _load_after_claim(ports: Ports, loader: LoaderSpec, state: ReadState, request: LoadRequest) -> Flow[Read | None]:
    """Load here, under the lease just claimed; or give it back, if this loader may not run in readers."""
    if loader.policy.on_timeout == "raise":
        ports.release_soon(request.call, request.token)
        return give_up(ports, state, NOT_BEGUN)
    ports.emit(LeaseTakenOver(loader.name, request.call))
    state.waiter.flight.is_taken_over = True
    return (yield from local_load.load_under_lease(ports, loader, state, request))


def read_without_store(ports: Ports, loader: LoaderSpec, state: ReadState, error: StoreError) -> Flow[Read]:
    """Read while the store is of no use: from L1, or the lapsed value it still had, or by loading here."""
    # Not from L1 where the store has answered that it has no such entry: it is right.
    if isinstance(error, StoreUnavailable) and not state.is_answered:
        kept = local_load.kept(ports, state.call, state.options.decode, state.options.since)
        if kept is not None:
            return kept
    if loader.policy.on_timeout == "raise":
        raise LoadTimeout(f'{state.call.text} cannot be read, and on_timeout is "raise": {error}') from error
    return (yield from local_load.load_without_store(ports, loader, state))


def give_up(ports: Ports, state: ReadState, why: str) -> Read:
    """Return the lapsed value; nobody may load this call now but the one who has begun."""
    found = lapsed(ports, state)
    if found is not None:
        return found
    waited = ports.clock.monotonic() - state.started
    allowed = state.options.wait_for
    raise LoadTimeout(f"{state.call.text} has no value after {waited:.3f} s, wait_for is {allowed:g} s: {why}")


def lapsed(ports: Ports, state: ReadState) -> Read | None:
    """Return the lapsed value that was found, if any."""
    if state.lapsed is None:
        return None
    if state.crowd is not None:
        state.crowd.covered = min(state.crowd.covered, state.lapsed_covers)
    entry, value = state.lapsed
    state.payload = entry.payload
    waited = ports.clock.monotonic() - state.started
    return Read.of(ports.clock.now(), entry, value, Freshness.LAPSED, "store", waited)
