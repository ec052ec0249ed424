"""The consistency protocol as an explicit-state model: one call, one tag, all interleavings of its atomic steps.

Loads read the database, or a replica that lags no longer than an invalidation holds entries off.

Each step is one script, one statement of the database, or one thing that goes wrong.  `explore` visits every state
that can be reached, breadth first, so that the trace of a violation is a shortest one.  A mutant is the protocol with
one of its parts left out; each must lead to a violation, or that part would not be needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

#: Steps of a load; a load that was overtaken begins again at SNAPSHOT, if it may.
CLAIM, BEGIN, SNAPSHOT, LOAD, REGISTER, WRITE, ENDED = (
    "claim", "begin", "snapshot", "load", "register", "write", "ended"
)  # fmt: skip
#: Steps of an invalidation.
COMMIT, NUMBER, DETACH, DROP, DROP_REST, REMOVE = "commit", "number", "detach", "drop", "drop the rest", "remove"
ACKNOWLEDGE, DEAD = "ack", "dead"


@dataclass(frozen=True)
class Protocol:
    """Which parts there are; a mutant has one of them the other way."""

    snapshot_before_load: bool = True
    register_before_write: bool = True
    compare_after_register: bool = True
    lease_checked_at_write: bool = True
    drop_deletes_lease: bool = True
    drop_deletes_lease_first: bool = True
    drop_before_remove: bool = True
    drains_what_others_left: bool = True
    gc_spares_what_may_be_written: bool = True
    holds_off: bool = True
    holds_off_by_snapshot: bool = True
    takes_what_is_warmed: bool = True
    spares_what_has_begun: bool = True
    begin_asks_for_the_lease: bool = True
    failures_are_registered: bool = True
    drop_ends_failures: bool = True
    quick_writes_ask_for_the_lease: bool = True
    quick_writes_ask_who_has_begun: bool = True
    quick_loads_compare_with_their_claim: bool = True
    marks_ask_for_the_lease: bool = True


class Loader(msgspec.Struct, frozen=True, cache_hash=True):
    """A load under way; `token` and `claimed` are its claim's, `settled` what was settled at its snapshot.

    Attributes:
        fence: of its begin; 0 before, and for a quick load, which never begins.
        is_repeated: its message was delivered before.
        has_failed: the database had an error, or no row, of the version `value`.
        warms: nobody waits for it; between claim and begin its message may wait for long.
    """

    at: str = CLAIM
    token: int = 0
    claimed: int = 0
    fence: int = 0
    snapshot: int = 0
    value: int = -1
    tries: int = 1
    settled: int = 0
    is_held_off: bool = False
    warms: bool = False
    has_failed: bool = False
    is_repeated: bool = False


class Invalidator(msgspec.Struct, frozen=True, cache_hash=True):
    """An invalidation under way, after its own commit; `todo` are the detached sets it still has to drain.

    Attributes:
        is_by_key: it drops the one call, and leaves no mark.
    """

    at: str = COMMIT
    committed: int = 0
    number: int = 0
    todo: tuple[int, ...] = ()
    is_by_key: bool = False


class State(msgspec.Struct, frozen=True, cache_hash=True):
    """Everything: the database, the store, and who is doing what.

    Attributes:
        database: version of the row.
        replica: version of the row where loads read it.
        settled: number of the last invalidation that is longer ago than a replica may lag.
        entry: version that is cached, and fresh; None for no entry, and for one that is stored stale.
        failure: version of which a load has failed, or found no row; None for no failure on record.
        failures: how many loads may fail.
        mark: number of the tag's last invalidation.
        is_member: the call is in the tag's set.
        detached: sets put aside that still name the call, by the number of their invalidation.
        lease: token of the lease; 0 for none.
        is_warm: that lease is of a load that warms.
        begun: fence of the load that has begun under it; 0 for none.
        names: how many tokens and fences there have been.
        acknowledged: newest version whose invalidation has returned.
        lags: loads read a replica that may lag; else they read the database.
        is_collecting: the collector has half dropped what a detached set names.
        is_joined: one server has all keys: a claim also enqueues, a load begins and takes its snapshot in one step, and
            registers and writes in one; an invalidation draws its number and detaches in one, drops and removes in one.
        lost: how many replies to claims may be lost; whoever has claimed gives the lease back, and its message waits.
        is_quick: loads may do without begin where steps are joined, with the snapshot of their claim.
        repeats: how many messages may be delivered again.
    """

    database: int
    replica: int
    settled: int
    entry: int | None
    seq: int
    mark: int
    is_member: bool
    detached: tuple[int, ...]
    lease: int
    is_warm: bool
    begun: int
    names: int
    acknowledged: int
    expiries: int
    evictions: int
    crashes: int
    collections: int
    lags: bool
    loaders: tuple[Loader, ...]
    invalidators: tuple[Invalidator, ...]
    is_collecting: bool = False
    failures: int = 0
    failure: int | None = None
    is_joined: bool = False
    lost: int = 0
    is_quick: bool = False
    repeats: int = 0


Step = tuple[str, State]


def start(
    *,
    loaders: int = 2,
    invalidators: int = 2,
    expiries: int = 1,
    evictions: int = 1,
    crashes: int = 1,
    collections: int = 2,
    lags: bool = False,
    warmers: int = 0,
    failures: int = 0,
    is_joined: bool = False,
    lost: int = 0,
    is_quick: bool = False,
    repeats: int = 0,
    by_key: int = 0,
) -> State:
    """Return a warm cache, and how often each thing may go wrong; some loaders warm, some invalidate by key."""
    return State(
        database=0, replica=0, settled=0, entry=0, seq=0, mark=0, is_member=True, detached=(), lease=0, is_warm=False,
        begun=0, names=0,
        acknowledged=0, expiries=expiries, evictions=evictions, crashes=crashes, collections=collections, lags=lags,
        failures=failures, loaders=(Loader(),) * (loaders - warmers) + (Loader(warms=True),) * warmers,
        invalidators=(Invalidator(),) * (invalidators - by_key) + (Invalidator(is_by_key=True),) * by_key,
        is_joined=is_joined, lost=lost, is_quick=is_quick,
        repeats=repeats,
    )  # fmt: skip


def is_violated(state: State) -> bool:
    """Return whether a read through the store would be older than an acknowledged invalidation."""
    return any(version is not None and version < state.acknowledged for version in (state.entry, state.failure))


def is_loaded_twice(state: State) -> bool:
    """Return whether two load together; without invalidations and leases that run out, one of them for nothing."""
    return sum(loader.at in (SNAPSHOT, LOAD, REGISTER, WRITE) for loader in state.loaders) > 1


def is_kept_waiting(protocol: Protocol, state: State) -> bool:
    """Return whether somebody cannot claim what nobody loads, for it is to be warmed some time."""
    return any(
        loader.at == CLAIM and not loader.warms and state.is_warm and not state.begun
        and not list(_loader_steps(protocol, state, loader))
        for loader in state.loaders
    )  # fmt: skip


def steps(protocol: Protocol, state: State) -> Iterator[Step]:
    """Yield what may happen next, and the state after it."""
    for at, loader in enumerate(state.loaders):
        for first in state.loaders if state.repeats and loader.at == CLAIM else ():
            if first.at not in (CLAIM, ENDED):
                again = replace(loader, at=BEGIN, token=first.token, claimed=first.claimed, is_repeated=True)
                after = replace(state, repeats=state.repeats - 1)
                yield f"loader {at}: the same message", replace(after, loaders=_with(state.loaders, at, again))
        for name, after, moved in _loader_steps(protocol, state, loader):
            yield f"loader {at}: {name}", replace(after, loaders=_with(state.loaders, at, moved))
    for at, invalidator in enumerate(state.invalidators):
        for name, after, other in _invalidator_steps(protocol, state, invalidator):
            yield f"invalidator {at}: {name}", replace(after, invalidators=_with(state.invalidators, at, other))
    if state.expiries and state.lease:
        yield "the lease runs out", replace(state, lease=0, begun=0, expiries=state.expiries - 1)
    if state.evictions and state.entry is not None:
        yield "the entry is evicted", replace(state, entry=None, evictions=state.evictions - 1)
    if state.replica < state.database:
        yield "the replica follows", replace(state, replica=state.replica + 1)
    elif state.lags and state.settled < state.seq:
        # As long as a replica may lag: it has caught up with what was committed before.
        yield "time passes", replace(state, settled=state.seq)
    if state.is_collecting:
        what, after = _rest_dropped(protocol, state)
        yield f"gc: drop the {what}, and the set", replace(after, is_collecting=False, detached=state.detached[1:])
    if state.collections:
        yield from _collector_steps(protocol, state)


def _loader_steps(protocol: Protocol, state: State, loader: Loader) -> Iterator[tuple[str, State, Loader]]:
    order = [CLAIM, SNAPSHOT, LOAD, REGISTER, WRITE]
    if not protocol.snapshot_before_load:
        order = [CLAIM, LOAD, SNAPSHOT, REGISTER, WRITE]
    if not protocol.register_before_write:
        order = [CLAIM, SNAPSHOT, LOAD, WRITE, REGISTER]
    following = dict(zip(order, [*order[1:], ENDED], strict=True)).get(loader.at, ENDED)
    is_quick = state.is_quick and not loader.fence
    name = loader.token if is_quick else loader.fence  # what its write names
    is_begun_by_me = state.begun in (name, loader.fence) or not protocol.quick_writes_ask_who_has_begun
    is_mine = state.lease == loader.token and is_begun_by_me
    if is_quick and not protocol.quick_writes_ask_for_the_lease:
        is_mine = True
    again = replace(loader, at=ENDED)
    if loader.tries:
        again = replace(loader, at=order[1], tries=loader.tries - 1)
    if is_quick and loader.at not in (CLAIM, BEGIN, ENDED) and _may_be_marked(protocol, state, loader):
        yield "mark as begun", replace(state, lease=loader.token, begun=loader.token), loader
    match loader.at:
        case "claim" if not state.lease or _may_take(protocol, state, loader):
            token = state.names + 1
            waits = loader.warms or state.is_joined
            fence = 0 if waits else token  # begun in the same step
            claimed = replace(state, lease=token, names=token, is_warm=loader.warms, begun=fence)
            after = replace(loader, at=BEGIN if waits else following, token=token, fence=fence)
            yield "claim and snapshot", claimed, replace(after, claimed=state.seq)
        case "begin":
            if state.lost and state.lease == loader.token and not state.begun:
                yield "the claim's reply is lost", replace(state, lease=0, lost=state.lost - 1), loader
            if state.is_quick and loader.tries == 1:
                yield "do without begin", state, replace(loader, at=LOAD, snapshot=loader.claimed)
            is_free = state.lease == 0 or (state.lease == loader.token and (not state.begun or loader.is_repeated))
            if not is_free and protocol.begin_asks_for_the_lease:
                yield "leave", state, replace(loader, at=ENDED)
                return
            fence = state.names + 1
            begun, began = replace(state, lease=loader.token, begun=fence, names=fence), replace(loader, fence=fence)
            if state.is_joined and protocol.snapshot_before_load:
                yield "begin and snapshot", begun, replace(began, at=LOAD, snapshot=state.seq, settled=state.settled)
            else:
                yield "begin", begun, replace(began, at=order[1])
        case "snapshot":
            yield "snapshot", state, replace(loader, at=following, snapshot=state.seq, settled=state.settled)
        case "load":
            yield "load", state, replace(loader, at=following, value=state.replica, has_failed=False)
            if state.failures:
                fewer = replace(state, failures=state.failures - 1)
                yield "load fails", fewer, replace(loader, at=following, value=state.replica, has_failed=True)
        case "register" if loader.has_failed and not protocol.failures_are_registered:
            yield "go on", state, replace(loader, at=following, is_held_off=False)
        case "register":
            overtaken = protocol.compare_after_register and state.mark > loader.snapshot
            if is_quick and not protocol.quick_loads_compare_with_their_claim:
                overtaken = False
            settled = loader.settled if protocol.holds_off_by_snapshot else state.settled
            is_held_off = state.lags and protocol.holds_off and state.mark > settled
            registered = replace(loader, at=following, is_held_off=is_held_off)
            member = replace(state, is_member=True)
            if state.is_joined and following == WRITE and not overtaken and not loader.has_failed:
                for _, after, written in _loader_steps(protocol, member, registered):
                    yield "register and write", after, written
            else:
                yield "register", member, again if overtaken else registered
        case "write":
            if loader.has_failed and is_mine:
                failure = state.failure if loader.is_held_off else loader.value
                yield "fail", replace(state, failure=failure, lease=0, begun=0), replace(loader, at=following)
            elif not loader.has_failed and (is_mine or not protocol.lease_checked_at_write):
                value = None if loader.is_held_off else loader.value
                written = replace(state, entry=value, lease=0, begun=0, failure=None)
                yield "write", written, replace(loader, at=following)
            else:
                yield "write is refused", state, replace(loader, at=ENDED)


def _may_be_marked(protocol: Protocol, state: State, loader: Loader) -> bool:
    """Return whether a quick load that takes long may say that it has begun: under the lease that it has claimed."""
    return not state.begun and (state.lease == loader.token or not protocol.marks_ask_for_the_lease)


def _may_take(protocol: Protocol, state: State, loader: Loader) -> bool:
    is_open = not state.begun or not protocol.spares_what_has_begun
    return protocol.takes_what_is_warmed and state.is_warm and is_open and not loader.warms


def _invalidator_steps(
    protocol: Protocol, state: State, invalidator: Invalidator
) -> Iterator[tuple[str, State, Invalidator]]:
    if state.crashes and invalidator.at not in (COMMIT, DEAD):
        yield "dies", replace(state, crashes=state.crashes - 1), replace(invalidator, at=DEAD)
    first, second = (DROP, REMOVE) if protocol.drop_before_remove else (REMOVE, DROP)
    match invalidator.at:
        case "commit":
            version = state.database + 1
            replica = state.replica if state.lags else version
            yield (
                "commit",
                replace(state, database=version, replica=replica),
                replace(invalidator, at=NUMBER, committed=version),
            )
        case "number" if invalidator.is_by_key:
            _, half = _half_dropped(protocol, state)
            yield "drop the call", _rest_dropped(protocol, half)[1], replace(invalidator, at=ACKNOWLEDGE)
        case "number":
            drawn = replace(state, seq=state.seq + 1)
            numbered = replace(invalidator, at=DETACH, number=state.seq + 1)
            if state.is_joined:
                yield "number and detach", *_detached(protocol, drawn, numbered, first)
            else:
                yield "number", drawn, numbered
        case "detach":
            yield "detach", *_detached(protocol, state, invalidator, first)
        case "drop" if state.is_joined and first == DROP:
            _, half = _half_dropped(protocol, state)
            _, after = _rest_dropped(protocol, half)
            left = tuple(n for n in state.detached if n != invalidator.todo[0])
            yield "drop and remove", replace(after, detached=left), _drained(invalidator)
        case "drop":
            what, after = _half_dropped(protocol, state)
            yield f"drop the {what}", after, replace(invalidator, at=DROP_REST)
        case "drop the rest":
            what, after = _rest_dropped(protocol, state)
            done = _drained(invalidator) if first == REMOVE else replace(invalidator, at=second)
            yield f"drop the {what}", after, done
        case "remove":
            after = replace(state, detached=tuple(n for n in state.detached if n != invalidator.todo[0]))
            yield "remove", after, _drained(invalidator) if first == DROP else replace(invalidator, at=second)
        case "ack":
            after = replace(state, acknowledged=max(state.acknowledged, invalidator.committed))
            yield "acknowledge", after, replace(invalidator, at=DEAD)


def _detached(protocol: Protocol, state: State, invalidator: Invalidator, first: str) -> tuple[State, Invalidator]:
    """Return what is left of the tag's set, marked and detached, and what comes next."""
    detached = (*state.detached, invalidator.number) if state.is_member else state.detached
    todo = detached if protocol.drains_what_others_left else tuple(n for n in detached if n == invalidator.number)
    after = replace(state, mark=max(state.mark, invalidator.number), is_member=False, detached=detached)
    return after, replace(invalidator, at=first if todo else ACKNOWLEDGE, todo=todo)


def _collector_steps(protocol: Protocol, state: State) -> Iterator[Step]:
    """Drop members whose entries are gone, and finish what dead invalidators left."""
    left = replace(state, collections=state.collections - 1)
    may_be_written = state.lease != 0 and protocol.gc_spares_what_may_be_written
    if state.is_member and state.entry is None and state.failure is None and not may_be_written:
        yield "gc: trim", replace(left, is_member=False)
    if state.detached and not state.is_collecting:
        what, after = _half_dropped(protocol, left)
        yield f"gc: drop the {what} of a detached set", replace(after, is_collecting=True)


def _half_dropped(protocol: Protocol, state: State) -> tuple[str, State]:
    """Return what goes first, the lease or the entry, and the state without it."""
    return _without_lease(protocol, state) if protocol.drop_deletes_lease_first else _without_entry(state)


def _rest_dropped(protocol: Protocol, state: State) -> tuple[str, State]:
    return _without_entry(state) if protocol.drop_deletes_lease_first else _without_lease(protocol, state)


def _without_entry(state: State) -> tuple[str, State]:
    return "entry", replace(state, entry=None)


def _without_lease(protocol: Protocol, state: State) -> tuple[str, State]:
    failure = None if protocol.drop_ends_failures else state.failure
    if not protocol.drop_deletes_lease:
        return "lease", replace(state, failure=failure)
    return "lease", replace(state, lease=0, begun=0, failure=failure)


def _drained(invalidator: Invalidator) -> Invalidator:
    todo = invalidator.todo[1:]
    return replace(invalidator, at=DROP if todo else ACKNOWLEDGE, todo=todo)


def _with(all_of_them: tuple[Any, ...], at: int, one: Any) -> tuple[Any, ...]:
    return (*all_of_them[:at], one, *all_of_them[at + 1 :])
