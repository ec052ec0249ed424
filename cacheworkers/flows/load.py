"""Load calls under their leases: snapshot, run the loader, register, write; drop what an invalidation has overtaken.

The order is the protocol's (docs/explanation/protocol.md): nothing here may be swapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry
from cacheworkers.core.signature import Call
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import EntryTooLarge, LoadError, LoadTimeout, RateLimited, StoreError, TagError
from cacheworkers.events import Loaded, NotStored, Poisoned
from cacheworkers.flows.joint_writes import WAITS_FOR, JointWrites
from cacheworkers.flows.load_failure import (
    NOT_STORED,
    Failure,
    as_load_error,
    legal_tags,
    record_failures,
    static_tags,
)
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports, Runner
from cacheworkers.flows.run_loader import run_loader
from cacheworkers.flows.write_loaded import Pending, Result, entry_of_value, registration, write
from cacheworkers.store.commands.replies import Alone, Snapshot, snapshot_of
from cacheworkers.store.commands.steps import Exchange, Write

#: The `hold_off_for` of loaders that have none and read a replica, seconds: more than one lags as a rule.
REPLICA_HOLD_OFF = 10.0
#: When a snapshot was asked for, monotonic, and the snapshot; None for one that is still to be taken.
_Snapshot = tuple[float, Snapshot] | None
#: Calls that come with one message end within this, seconds, unless one load has longer: it must not keep its worker,
#: nor its redelivery, for longer.
TOGETHER_FOR = 80.0
#: Loads that take no longer, seconds, do without `begin`: a round trip of these would be felt.
QUICK = 0.02
#: ... for this share of `wait_for` and `load_for` after their claim: its lease is neither taken over then nor run out.
_CLAIMED_WITHIN = 0.5
#: After one whose lease was broken loads of its loader begin for so long, seconds: what is invalidated faster than its
#: message is taken would be loaded twice each time.
_BEGINS_FOR = 1.0
#: One that is under way for so long is marked as begun, seconds; how often that is looked at.
MARKED_AFTER = 0.05


def load(
    ports: Ports,
    loader: LoaderSpec,
    requests: Sequence[LoadRequest],
    runner: Runner,
    *,
    is_redelivered: bool = False,
    until: float = math.inf,
) -> Flow[dict[str, Result]]:
    """Load what the requests name, and return what became of each call.

    A batch loader loads them together, another one after the other.  A call whose last load died, alone or with others,
    is loaded by itself after them.  A load that fails is recorded in the store and wakes whoever waits for it.

    Args:
        until: monotonic instant at which it ends, if that is before its leases do.

    Raises:
        StoreUnavailable: the store went away before the loader ran.
        RateLimited: the only call got no turn.
    """
    calls = {}
    for request in requests:
        calls[request.call] = (loader.signature.parse(request.call), request)
    groups = [list(calls.values())] if loader.is_batch else [[one] for one in calls.values()]
    begun: dict[str, list[tuple[Call, LoadRequest]]] = {}
    results: dict[str, Result] = {}
    waiting = dict(calls)
    are_joint = len(groups) > 1 and _is_very_quick(loader)

    def may_wait(name: str, write: Write[Any]) -> bool:
        return are_joint and ports.slow_loads.may_wait(calls[name][1].token, write)

    writes = JointWrites[dict[str, Result]](ports.clock.monotonic, may_wait)
    try:
        if len(calls) > 1:
            most = loader.load_for if loader.is_batch else max(loader.load_for, TOGETHER_FOR)
            until = min(until, ports.clock.monotonic() + most)
        while groups or writes:
            if groups and not writes.is_due:
                group = groups.pop(0)
                name = group[0][0].text
                begun[name] = group
                try:
                    yield from writes.drive(name, _load_together(ports, loader, group, runner, is_redelivered, until))
                except RateLimited:
                    if len(calls) == 1 and runner.where == "reader":
                        raise
                    writes.ended[name] = {call.text: Result("left") for call, _ in group}
                except LoadTimeout:  # which ends the message; what was loaded before is no matter of it
                    while writes:
                        yield from writes.perform()
                    raise
            else:
                yield from writes.perform()
            for name in list(writes.ended):
                found = writes.ended.pop(name)
                results.update(found)
                group = begun.pop(name)
                for call, _ in group:
                    waiting.pop(call.text, None)
                # Not begun: one of those that were loaded together when their worker died.
                alone = [one for one in group if one[0].text not in found]
                waiting.update((one[0].text, one) for one in alone)
                groups += [[one] for one in alone]
            if groups and ports.clock.monotonic() >= until:
                groups = []
    finally:
        writes.close()
        for text, (_, request) in waiting.items():
            ports.release_soon(text, request.token)
    for text in waiting:
        results[text] = Result("left")
    return results


def _is_very_quick(loader: LoaderSpec) -> bool:
    """Return whether several loads are over before a write that waits for them would be missed."""
    expected = loader.load_times.load_time
    return loader.limiter is None and expected is not None and expected <= WAITS_FOR


def _load_together(
    ports: Ports,
    loader: LoaderSpec,
    group: list[tuple[Call, LoadRequest]],
    runner: Runner,
    is_redelivered: bool,
    until: float,
) -> Flow[dict[str, Result]]:
    started = ports.clock.monotonic()
    deadline = min(started + loader.load_for, until)
    results: dict[str, Result] = {}
    pending: dict[str, Pending] = {}
    attempts = 0
    snapshot = None if is_redelivered else _of_quick_load(ports, loader, group, runner)
    quick_token = "" if snapshot is None else group[0][1].token
    try:
        if quick_token:
            [(call, request)] = group
            pending[call.text] = Pending(call, request.token, b"", None)
            ports.slow_loads.begin(call.text, request.token, loader.load_for)
        else:
            snapshot = yield from _begin(ports, loader, group, is_redelivered, pending, results)
        while pending and attempts < ports.config.load_attempts:
            attempts += 1
            try:
                yield from _attempt(ports, loader, runner, pending, results, deadline, snapshot)
                snapshot = None
            except RateLimited:
                if attempts == 1:
                    raise
                break
            if ports.clock.monotonic() >= deadline:
                break
    finally:
        if quick_token:
            ports.slow_loads.end(quick_token)
            if "refused" in [result.outcome for result in results.values()] or attempts > 1:
                loader.load_times.begins_until = ports.clock.monotonic() + _BEGINS_FOR
        # Out of attempts, out of time, or cancelled: give the leases back, so that the next reader need not wait.
        for text, left in pending.items():
            ports.release_soon(text, left.fence)
    took = ports.clock.monotonic() - started
    for text, result in results.items():
        error = result.error if result.outcome == "failed" else None
        ports.emit(Loaded(loader.name, text, result.outcome, took, attempts, runner.where, error))
    return results


def _of_quick_load(
    ports: Ports, loader: LoaderSpec, group: list[tuple[Call, LoadRequest]], runner: Runner
) -> _Snapshot:
    """Return the snapshot with which a load may run without `begin`, under its claim's token: its claim's; else None.

    A load that lasts says that it has begun, so that no reader takes its lease over, and counts its attempt, so that
    one that ends its worker is noticed.  A quick one is over before anybody could ask.
    """
    [(_, request), *others] = group
    expected = loader.load_times.load_time
    if others or expected is None or expected > QUICK or runner.where != "worker":
        return None
    if loader.limiter is not None or loader.policy.hold_off_for:
        return None
    if ports.clock.monotonic() < loader.load_times.begins_until:
        return None
    snapshot, now = snapshot_of(request.snapshot), ports.clock.now()
    within = _CLAIMED_WITHIN * min(loader.policy.wait_for, loader.load_for)
    if snapshot is None or abs(now - snapshot.now) > within or within < 2 * MARKED_AFTER:
        return None
    if ports.store.keys.own_tag_shards:  # these are to be declared first
        return None
    # The number is the claim's; the entry is as old as its data.
    return ports.clock.monotonic(), Snapshot(snapshot.seq, max(now, snapshot.now))


def _begin(
    ports: Ports,
    loader: LoaderSpec,
    group: list[tuple[Call, LoadRequest]],
    is_redelivered: bool,
    pending: dict[str, Pending],
    results: dict[str, Result],
) -> Flow[_Snapshot]:
    """Begin under the leases that the requests name; a call whose workers keep dying becomes a cached failure.

    A call that has to be loaded alone ends up neither in `pending` nor in `results`.  Returns the snapshot where one
    server has all keys: it is taken right behind.
    """
    began_at = ports.clock.monotonic()
    snapshot: Snapshot | None = None
    store = ports.store
    fences = [new_token() for _ in group]
    wanted = [
        (request.call, request.token, fence, bytes.fromhex(request.seen))
        for (_, request), fence in zip(group, fences, strict=True)
    ]
    try:
        begin_all = store.begin(wanted, load_for=loader.load_for, is_redelivered=is_redelivered)
        if store.has_one_slot:
            begun, snapshot = yield Exchange.joint((begin_all, store.snapshot()))
        else:
            begun = yield begin_all
    except BaseException:
        # Timed out or cancelled: the script may have run all the same, and nobody loads under that lease.
        for text, _, fence, _ in wanted:
            ports.release_soon(text, fence)
        raise
    poisoned = []
    for (call, request), fence, begin in zip(group, fences, begun, strict=True):
        if begin is None:
            results[call.text] = Result("left")
        elif isinstance(begin, Alone):
            continue
        elif begin.attempts > ports.config.poison_after:
            text = f"{begin.attempts - 1} loads left no result: their worker died, or they took longer than load_for"
            poisoned.append(Failure(call.text, fence, "Poisoned", text, static_tags(loader, call)))
            results[call.text] = Result("failed", error=LoadError(loader.name, call.text, "Poisoned", text))
            ports.emit(Poisoned(loader.name, call.text, begin.attempts - 1))
        else:
            pending[call.text] = Pending(call, fence, bytes.fromhex(request.seen), begin.raw)
    if poisoned:
        try:
            yield registration(ports, loader, [], poisoned)
        except StoreError:  # it has no room: then the record is short
            yield from record_failures(ports, poisoned, most_for=ports.config.backoff_for)
        else:
            yield from record_failures(ports, poisoned)
    return None if snapshot is None else (began_at, snapshot)


def _attempt(
    ports: Ports,
    loader: LoaderSpec,
    runner: Runner,
    pending: dict[str, Pending],
    results: dict[str, Result],
    deadline: float,
    taken: _Snapshot,
) -> Flow[None]:
    """Load all pending calls once; those that stay pending were overtaken and may be loaded again.

    Args:
        taken: the snapshot, if it has been taken already.
    """
    # The snapshot is taken before loading.  Taken after, an old row would be stored as current:
    #   worker: load (old row)   writer: commit, invalidate   worker: snapshot, register, write
    if taken is None:
        taken = ports.clock.monotonic(), (yield ports.store.snapshot())
    began_at, snapshot = taken
    began = ports.clock.monotonic()
    loading = Loading(
        [left.call for left in pending.values()],
        {text: left.previous for text, left in pending.items()},
        deadline,
        snapshot.seq,
    )
    # A new session and transaction for every attempt: a reload inside the old one would read the old rows again.
    values = yield from run_loader(ports, loader, loading, runner)
    load_time = ports.clock.monotonic() - began

    written: list[tuple[Entry, str]] = []
    failed: list[Failure] = []
    for text, value in values.items():
        left = pending[text]
        try:
            if isinstance(value, BaseException):
                raise value
            payload = loader.codec.encode(value)
        except Exception as error:
            failure = as_load_error(loader, text, error)
            tags = (*static_tags(loader, left.call), *legal_tags(ports, loading.tags.get(text, ())))
            failed.append(Failure(text, left.fence, failure.kind, failure.text, tags))
            results[text] = Result("failed", error=failure)
            continue
        try:
            entry = entry_of_value(ports, loader, left.call, value, payload, loading, snapshot, load_time)
        except (TagError, EntryTooLarge) as error:
            # Reported as a failure is, so that those who wait are woken, and load for themselves.
            ports.emit(NotStored(loader.name, text, str(error)))
            tags = (*static_tags(loader, left.call), *legal_tags(ports, loading.tags.get(text, ())))
            failed.append(Failure(text, left.fence, NOT_STORED, str(error), tags))
            results[text] = Result("unstored", payload, error=LoadError(loader.name, text, NOT_STORED, str(error)))
        else:
            results[text] = Result("conflict", payload, entry)
            written.append((entry, left.fence))
    if written:
        loader.load_times.note(load_time)
    hold_off_for = loader.policy.hold_off_for or (REPLICA_HOLD_OFF if loading.reads_replica else 0.0)
    yield from write(ports, loader, written, failed, snapshot, pending, results, hold_off_for, began_at)
