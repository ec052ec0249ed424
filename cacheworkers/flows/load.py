"""Load calls under their leases: snapshot, run the loader, register, write; drop what an invalidation has overtaken.

The order is the protocol's (docs/explanation/protocol.md): nothing here may be swapped.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.calls import Call
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import LEAST_KEPT_FOR, Entry, Life, life_of
from cacheworkers.core.tags import check_tag
from cacheworkers.errors import (
    CacheworkersError,
    EntryTooLarge,
    LoadError,
    LoadTimeout,
    StoreError,
    StoreFull,
    TagError,
)
from cacheworkers.events import Loaded, LoadRefused, NotStored, Outcome, Poisoned
from cacheworkers.flows.invalidate import replicated
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports, Runner
from cacheworkers.store.commands.replies import Claimed, ForeignType, Snapshot

#: Kinds of failures that are none of the loader's.  Of what was loaded and had no room, or no place, in the store:
#: readers load it themselves, and keep nothing.
STORE_FULL = StoreFull.__name__
NOT_STORED = NotStored.__name__
#: Of what a worker of another release cannot load: readers load it themselves, and store it.
LOAD_REFUSED = LoadRefused.__name__
#: How long the refusal of a load is remembered, seconds; a reader who is woken by it loads at once.
REFUSED_FOR = 1.0


class Result(msgspec.Struct):
    """What became of one call.

    Attributes:
        outcome: "stored"; "refused" or "conflict", an invalidation overtook it: the value is good for the read that
            ran it only; "unstored", it outgrows a limit, and is good for that read too; "failed"; "left", the work is
            somebody else's.
        payload: JSON of what the loader returned, unless it failed.
        entry: what was stored, or would have been.
        error: why it failed.
    """

    outcome: Outcome
    payload: bytes = b""
    entry: Entry | None = None
    error: CacheworkersError | None = None


class _Pending(msgspec.Struct):
    """A call whose load is under way: its lease's fence, and how far it has got."""

    call: Call
    fence: str
    seen: bytes
    previous: bytes | None


def load(
    ports: Ports,
    loader: LoaderSpec,
    asks: Sequence[LoadRequest],
    runner: Runner,
    *,
    is_redelivered: bool = False,
    until: float = math.inf,
) -> Flow[dict[str, Result]]:
    """Load what the asks name, and return what became of each call.

    A batch loader loads them together, another one after the other.  A load that fails is recorded in the store and
    wakes whoever waits for it.

    Args:
        until: monotonic instant at which it ends, if that is before its leases do.

    Raises:
        StoreUnavailable: the store went away before the loader ran.
    """
    calls = {}
    for ask in asks:
        calls[ask.call] = (loader.signature.parse(ask.call), ask)
    groups = [list(calls.values())] if loader.is_batch else [[one] for one in calls.values()]
    results: dict[str, Result] = {}
    for group in groups:
        results.update((yield from _load_together(ports, loader, group, runner, is_redelivered, until)))
    return results


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
    pending: dict[str, _Pending] = {}
    attempts = 0
    try:
        yield from _begin(ports, loader, group, is_redelivered, pending, results)
        while pending and attempts < ports.config.load_attempts:
            attempts += 1
            yield from _attempt(ports, loader, runner, pending, results, deadline)
            if ports.clock.monotonic() >= deadline:
                break
    finally:
        # Out of attempts, out of time, or cancelled: give the leases back, so that the next reader need not wait.
        for text, left in pending.items():
            ports.release_soon(text, left.fence)
    took = ports.clock.monotonic() - started
    for text, result in results.items():
        error = result.error if result.outcome == "failed" else None
        ports.emit(Loaded(loader.name, text, result.outcome, took, attempts, runner.where, error))
    return results


def _begin(
    ports: Ports,
    loader: LoaderSpec,
    group: list[tuple[Call, LoadRequest]],
    is_redelivered: bool,
    pending: dict[str, _Pending],
    results: dict[str, Result],
) -> Flow[None]:
    """Begin under the leases that the asks name; a call whose workers keep dying becomes a cached failure."""
    fences = [secrets.token_hex(8) for _ in group]
    options = [
        (ask.call, ask.token, fence, bytes.fromhex(ask.seen)) for (_, ask), fence in zip(group, fences, strict=True)
    ]
    begun = yield ports.store.begin(options, load_for=loader.load_for, is_redelivered=is_redelivered)
    poisoned = []
    for (call, ask), fence, begin in zip(group, fences, begun, strict=True):
        if begin is None:
            results[call.text] = Result("left")
        elif begin.attempts > ports.config.poison_after:
            text = f"{begin.attempts - 1} loads ended with their worker and without a result"
            poisoned.append((call.text, fence, "Poisoned", text))
            results[call.text] = Result("failed", error=LoadError(loader.name, call.text, "Poisoned", text))
            ports.emit(Poisoned(loader.name, call.text, begin.attempts - 1))
        else:
            pending[call.text] = _Pending(call, fence, bytes.fromhex(ask.seen), begin.raw)
    if poisoned:
        yield from _fail(ports, poisoned)


def _attempt(
    ports: Ports,
    loader: LoaderSpec,
    runner: Runner,
    pending: dict[str, _Pending],
    results: dict[str, Result],
    deadline: float,
) -> Flow[None]:
    """Load all pending calls once; those that stay pending were overtaken and may be loaded again."""
    # The snapshot is taken before loading.  Taken after, an old row would be stored as current:
    #   worker: load (old row)   writer: commit, invalidate   worker: snapshot, register, write
    snapshot: Snapshot = yield ports.store.snapshot()
    began = ports.clock.monotonic()
    loading = Loading(
        [left.call for left in pending.values()],
        {text: left.previous for text, left in pending.items()},
        deadline,
        snapshot.seq,
    )
    # A new session and transaction for every attempt: a reload inside the old one would read the old rows again.
    values = yield runner.step(loader, loading)
    load_time = ports.clock.monotonic() - began

    written: list[tuple[Entry, str]] = []
    failed = []
    for text, value in values.items():
        left = pending[text]
        try:
            if isinstance(value, BaseException):
                raise value
            payload = loader.codec.encode(value)
        except Exception as error:
            failure = as_load_error(loader, text, error)
            failed.append((text, left.fence, failure.kind, failure.text))
            results[text] = Result("failed", error=failure)
            del pending[text]
            continue
        try:
            entry = entry_of_value(ports, loader, left.call, value, payload, loading, snapshot, load_time)
        except (TagError, EntryTooLarge) as error:
            # Reported as a failure is, so that those who wait are woken, and load for themselves.
            ports.emit(NotStored(loader.name, text, str(error)))
            failed.append((text, left.fence, NOT_STORED, str(error)))
            results[text] = Result("unstored", payload, error=LoadError(loader.name, text, NOT_STORED, str(error)))
            del pending[text]
        else:
            results[text] = Result("conflict", payload, entry)
            written.append((entry, left.fence))
    if failed:
        yield from _fail(ports, failed)
    if written:
        yield from _write(ports, loader, written, snapshot, pending, results)


def _write(
    ports: Ports,
    loader: LoaderSpec,
    written: list[tuple[Entry, str]],
    snapshot: Snapshot,
    pending: dict[str, _Pending],
    results: dict[str, Result],
) -> Flow[None]:
    """Register, compare, write."""
    try:
        # Registered before it is written.  The other way round an invalidation between the two finds nothing.
        registered = yield ports.store.register(
            [(entry.call, entry.tags, entry.expires_at - entry.created) for entry, _ in written],
            load_for=loader.load_for,
        )
        # Before the write.  After it, a failover between them could keep the entry and lose its tags.
        yield from replicated(ports)
        current: list[tuple[Entry, str]] = []
        newest = 0
        for (entry, fence), found in zip(written, registered, strict=True):
            if found.newest > snapshot.seq:
                newest = max(newest, found.newest)
                continue
            if loader.policy.hold_off_for and found.newest / 1000 > snapshot.now - loader.policy.hold_off_for:
                # A lagging replica may have given the old row: stored stale, so that it is soon loaded again.  By the
                # snapshot's time, not by the registration's: a slow load may have read at its very beginning.
                entry = entry.held_off()
                results[entry.call].entry = entry
            # The fence is the version, so that a write whose reply was late knows itself when it is sent again.
            current.append((msgspec.structs.replace(entry, write_id=bytes.fromhex(fence)), fence))
        if newest:
            # A failover may have lost increments; without this no load could ever be written again.
            yield ports.store.raise_seq(newest)
        stored = (yield ports.store.write(current)) if current else []
    except StoreError as error:
        # Full or gone: whoever waits here gets the value, uncached; the lease runs out or is given back.
        for entry, _ in written:
            results[entry.call].error = error
            del pending[entry.call]
        if isinstance(error, StoreFull | ForeignType):
            # Recorded as a failure is: others would wait in vain, and then load it one after the other.
            kind = STORE_FULL if isinstance(error, StoreFull) else NOT_STORED
            unstored = [(entry.call, fence, kind, str(error)) for entry, fence in written]
            if kind == NOT_STORED:
                for entry, _ in written:
                    ports.emit(NotStored(loader.name, entry.call, str(error)))
            yield from _fail(ports, unstored, most_for=ports.config.backoff_for)
            return
        for entry, fence in written:
            ports.release_soon(entry.call, fence)
        return
    for (entry, _), is_stored in zip(current, stored, strict=True):
        result = results[entry.call]
        if is_stored:
            result.outcome, result.entry = "stored", entry
            del pending[entry.call]
        else:
            result.outcome = "refused"
            yield from _claim_again(ports, loader, pending, entry.call)


def _claim_again(ports: Ports, loader: LoaderSpec, pending: dict[str, _Pending], text: str) -> Flow[None]:
    """A write was refused: claim anew and go on, or leave the call to whoever has claimed it."""
    left = pending.pop(text)
    token, fence = secrets.token_hex(8), secrets.token_hex(8)
    raw = yield ports.store.get(text)
    seen = envelope.version_of(raw)
    claim = yield ports.store.claim(text, token, lease_for=loader.load_for, seen=seen)
    if isinstance(claim, Claimed):
        [begun] = yield ports.store.begin([(text, token, fence, seen)], load_for=loader.load_for)
        if begun is not None:
            pending[text] = _Pending(left.call, fence, seen, begun.raw)


def entry_of_value(
    ports: Ports,
    loader: LoaderSpec,
    call: Call,
    value: Any,
    payload: bytes,
    loading: Loading,
    snapshot: Snapshot,
    load_time: float,
) -> Entry:
    """Return the entry of a loaded value.

    Raises:
        TagError, EntryTooLarge: it outgrows a limit, or has a tag that nothing could invalidate.
    """
    config = ports.config
    tags = dict.fromkeys(loader.templates.expand(call.arguments))
    for tag in loading.tags.get(call.text, ()):
        tags[check_tag(tag, config.max_tag_bytes)] = None
    if len(tags) > config.max_tags:
        raise TagError(f"an entry has at most {config.max_tags} tags, {call.text} got {len(tags)}")
    life: Life = life_of(
        loader.policy,
        created=snapshot.now,
        load_time=load_time,
        is_negative=value is None,
        fresh_for=loading.fresh_for.get(call.text),
        chance=ports.chance,
    )
    entry = Entry(
        call=call.text,
        tags=tuple(tags),
        payload=payload,
        created=life.created,
        fresh_until=life.fresh_until,
        stale_until=life.stale_until,
        expires_at=life.expires_at,
        stale_for=life.stale_for,
        load_time=life.load_time,
        seq=snapshot.seq,
        write_id=b"",
        digest=envelope.digest_of(payload),
        is_negative=value is None,
        shape=loader.shape,
    )
    if call.text in loading.unshared:
        entry = msgspec.structs.replace(
            entry,
            fresh_until=life.created,
            stale_until=life.created,
            expires_at=life.created + load_time + LEAST_KEPT_FOR,
            is_unshared=True,
        )
    size = len(payload) + len(call.text) + sum(map(len, tags))
    if size > config.max_entry_bytes:
        raise EntryTooLarge(f"an entry has at most {config.max_entry_bytes} bytes, {call.text} has {size}")
    return entry


def refuse_loads(ports: Ports, asks: Sequence[LoadRequest], reason: str) -> Flow[None]:
    """Tell the readers who wait for loads that no worker of this release can do them; each loads for itself.

    Raises:
        StoreError: the store did not answer; the leases run out.
    """
    fences = [secrets.token_hex(8) for _ in asks]
    options = [(ask.call, ask.token, fence, _version_in(ask.seen)) for ask, fence in zip(asks, fences, strict=True)]
    begun = yield ports.store.begin(options, load_for=REFUSED_FOR)
    failed = [
        (ask.call, fence, LOAD_REFUSED, reason)
        for ask, fence, begin in zip(asks, fences, begun, strict=True)
        if begin is not None
    ]
    if failed:
        ports.emit(LoadRefused(asks[0].loader, len(failed), reason))
        yield from _fail(ports, failed, most_for=REFUSED_FOR)


def _version_in(seen: str) -> bytes:
    """Return the version in a message's text; none where that is no hex, as another release may write it."""
    try:
        return bytes.fromhex(seen)
    except ValueError:
        return b""


def _fail(ports: Ports, failed: list[tuple[str, str, str, str]], *, most_for: float | None = None) -> Flow[None]:
    """Record failures; a store that cannot take them loses nothing but the backoff.

    Args:
        most_for: longest backoff, seconds, if not as long as the configuration says.
    """
    config = ports.config
    try:
        yield ports.store.fail(
            failed,
            first_for=config.backoff_for * (1 + 0.2 * ports.chance()),
            most_for=config.max_backoff_for if most_for is None else most_for,
        )
    except StoreError:
        for text, fence, _, _ in failed:
            ports.release_soon(text, fence)


def as_load_error(loader: LoaderSpec, text: str, error: Exception) -> LoadError:
    """Return the error that readers get, with what really happened as its cause."""
    if isinstance(error, LoadError) and error.call == text:
        return error
    if isinstance(error, LoadTimeout):
        failure = LoadError(loader.name, text, "LoadTimeout", str(error))
    else:
        failure = LoadError(loader.name, text, type(error).__name__, str(error)[:500])
    failure.__cause__ = error
    return failure
