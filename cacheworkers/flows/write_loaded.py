"""Write what was loaded: register, compare with invalidations, write the entry; give back what cannot be written.

The order is the protocol's (docs/explanation/protocol.md): nothing here may be swapped.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import Any, TypeVar

import msgspec

from cacheworkers.core import envelope
from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import CLOCK_MARGIN, MIN_KEPT_FOR, Entry, life_of
from cacheworkers.core.signature import Call
from cacheworkers.core.tag_templates import check_tag
from cacheworkers.core.tokens import new_token
from cacheworkers.errors import CacheworkersError, EntryTooLarge, StoreError, StoreFull, TagError
from cacheworkers.events import NotStored, Outcome
from cacheworkers.flows.invalidate import replicated
from cacheworkers.flows.load_failure import NOT_STORED, STORE_FULL, Failure, record_failures
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports
from cacheworkers.store.commands.replies import Claimed, ForeignType, Registered, Snapshot
from cacheworkers.store.commands.steps import Exchange

_T = TypeVar("_T")
#: How long a value that an invalidation has overtaken is left to readers that had begun before its load, seconds.
OFFERED_FOR = 2.0


class Result(msgspec.Struct):
    """What became of one call.

    Attributes:
        outcome: "stored"; "refused" or "conflict", an invalidation overtook it: the value is good for the read that
            ran it only; "unstored", it outgrows a limit, and is good for that read too; "failed"; "left", the work is
            another process's.
        payload: JSON of what the loader returned, unless it failed.
        entry: what was stored, or would have been.
        error: why it failed.
        is_offered: the overtaken value was left to readers of other processes.
    """

    outcome: Outcome
    payload: bytes = b""
    entry: Entry | None = None
    error: CacheworkersError | None = None
    is_offered: bool = False


class Pending(msgspec.Struct):
    """A call whose load is under way: its lease's fence, and how far it has got."""

    call: Call
    fence: str
    seen: bytes
    previous: bytes | None


def write(
    ports: Ports,
    loader: LoaderSpec,
    written: list[tuple[Entry, str]],
    failed: list[Failure],
    snapshot: Snapshot,
    pending: dict[str, Pending],
    results: dict[str, Result],
    hold_off_for: float,
    began_at: float,
) -> Flow[None]:
    """Register, compare, write; failures and absences as entries, for an invalidation ends them too.

    Values that are not stored are left to the readers that had begun before the load, which began at `began_at`.
    """
    is_joint = ports.store.has_one_slot and not (failed or hold_off_for or ports.config.replicas)
    current: list[tuple[Entry, str]] = []
    try:
        # Registered before it is written.  The other way round an invalidation between the two finds nothing.
        if is_joint:
            current = [(_versioned(entry, fence), fence) for entry, fence in written]
            registered, stored = yield ports.store.register_write(current, snapshot.seq, load_for=loader.load_for)
        else:
            registered = yield registration(ports, loader, [entry for entry, _ in written], failed)
            # Before the write.  After it, a failover between them could keep the entry and lose its tags.
            if written:
                yield from replicated(ports)
        # A lagging replica may have given the old row: stored stale, so that it is soon loaded again.  By the time of
        # the snapshot, not of the registration: a slow load may have read at its very beginning.
        lagging_at = snapshot.now - hold_off_for if hold_off_for else math.inf
        may_lag = [found.newest / 1000 > lagging_at for found in registered]
        overtaken = [found.newest > snapshot.seq for found in registered]
        if is_joint:
            current, stored = _without(current, overtaken), _without(stored, overtaken)
        else:
            for (entry, fence), is_overtaken, is_held_off in zip(written, overtaken, may_lag, strict=False):
                if is_overtaken:
                    continue
                if is_held_off:
                    entry = entry.held_off()
                    results[entry.call].entry = entry
                current.append((_versioned(entry, fence), fence))
        # What an overtaken load failed of may be mended: it stays pending.
        rest = slice(len(written), None)
        flags = list(zip(failed, overtaken[rest], may_lag[rest], strict=True))
        settled = [failure for failure, is_overtaken, is_held_off in flags if not is_overtaken and not is_held_off]
        brief = [failure for failure, is_overtaken, is_held_off in flags if not is_overtaken and is_held_off]
        newest = max((found.newest for found in itertools.compress(registered, overtaken)), default=0)
        if newest:
            # A failover may have lost increments; without this no load could ever be written again.
            yield ports.store.raise_seq(newest)
        if not is_joint:
            stored = (yield ports.store.write(current)) if current else []
    except StoreError as error:
        checked_at = yield from _current_at(ports, written, snapshot, error)
        for entry, _ in written:
            results[entry.call].error = error
        # Before anything is recorded: whoever that wakes would find no value here, and load once more.
        yield from offer(ports, results, began_at if checked_at is None else checked_at)
        yield from _write_nothing(ports, loader, written, failed, error, pending)
        return
    for failures, most_for in ((settled, None), (brief, ports.config.backoff_for)):
        for failure in failures:
            del pending[failure.call]
        yield from record_failures(ports, failures, most_for=most_for)
    for (entry, _), is_stored in zip(current, stored, strict=True):
        result = results[entry.call]
        if is_stored:
            result.outcome, result.entry = "stored", entry
            del pending[entry.call]
        else:
            result.outcome = "refused"
            yield from _claim_again(ports, loader, pending, entry.call)
    yield from offer(ports, results, began_at)


def _versioned(entry: Entry, fence: str) -> Entry:
    """Return an entry whose version is its fence: a write whose reply was late knows itself when it is sent again."""
    return msgspec.structs.replace(entry, write_id=bytes.fromhex(fence))


def _without(items: list[_T], are_out: list[bool]) -> list[_T]:
    return [item for item, is_out in zip(items, are_out, strict=True) if not is_out]


def _current_at(
    ports: Ports, written: list[tuple[Entry, str]], snapshot: Snapshot, error: StoreError
) -> Flow[float | None]:
    """Return an instant, monotonic, after which values were current that have no room; None if that is not known.

    Readers that began before it may share them, though they began after the load: what was invalidated between the two
    has left its number, or has broken the lease.  Without this they would all load again.
    """
    if not isinstance(error, StoreFull) or not written:
        return None
    now = ports.clock.monotonic()
    try:
        newest, holders = yield ports.store.overtaken([(entry.call, entry.tags) for entry, _ in written])
    except StoreError:
        return None
    return now if newest <= snapshot.seq and holders == [fence for _, fence in written] else None


def _write_nothing(
    ports: Ports,
    loader: LoaderSpec,
    written: list[tuple[Entry, str]],
    failed: list[Failure],
    error: StoreError,
    pending: dict[str, Pending],
) -> Flow[None]:
    """The store is full or away: whoever waits here gets the value, uncached; leases are given back."""
    for text in (*(entry.call for entry, _ in written), *(failure.call for failure in failed)):
        del pending[text]
    # Not registered, so that no invalidation would find it: kept for the shortest time.
    yield from record_failures(ports, failed, most_for=ports.config.backoff_for)
    if isinstance(error, StoreFull | ForeignType):
        # Recorded as a failure is: others would wait in vain, and then load it one after the other.
        kind = STORE_FULL if isinstance(error, StoreFull) else NOT_STORED
        if kind == NOT_STORED:
            for entry, _ in written:
                ports.emit(NotStored(loader.name, entry.call, str(error)))
        unstored = [Failure(entry.call, fence, kind, str(error)) for entry, fence in written]
        yield from record_failures(ports, unstored, most_for=ports.config.backoff_for)
        return
    for entry, fence in written:
        ports.release_soon(entry.call, fence)


def offer(ports: Ports, results: dict[str, Result], began_at: float) -> Flow[None]:
    """Leave values that are not stored to the readers that had begun before their load."""
    for result in results.values():
        if result.outcome in ("conflict", "refused") and result.entry is not None and not result.is_offered:
            result.is_offered = True
            # With an error it is the store that took no writes: nothing has overtaken the value.
            ports.waiters.offer(result.entry.call, began_at, result.entry, is_overtaken=result.error is None)
            with contextlib.suppress(StoreError):  # full or away: then they wait for the next load
                yield ports.store.offer(result.entry, OFFERED_FOR)


def registration(
    ports: Ports, loader: LoaderSpec, entries: list[Entry], failed: list[Failure]
) -> Exchange[list[Registered]]:
    """Return the step that puts calls into their tags' sets."""
    kept_for = ports.config.max_backoff_for
    return ports.store.register(
        [(entry.call, entry.tags, entry.expires_at - entry.created) for entry in entries]
        + [(failure.call, failure.tags, kept_for) for failure in failed],
        load_for=loader.load_for,
    )


def _claim_again(ports: Ports, loader: LoaderSpec, pending: dict[str, Pending], text: str) -> Flow[None]:
    """A write was refused: claim again and go on, or leave the call to whoever has claimed it."""
    left = pending.pop(text)
    token, fence = new_token(), new_token()
    raw = yield ports.store.get(text)
    seen = envelope.version_of(raw)
    try:
        claim = yield ports.store.claim(text, token, lease_for=loader.load_for, seen=seen)
    except BaseException:
        ports.release_soon(text, token)
        raise
    ports.release_soon(text, left.fence)  # it no longer holds a lease: one less that is running
    if isinstance(claim, Claimed):
        try:
            [begun] = yield ports.store.begin([(text, token, fence, seen)], load_for=loader.load_for)
        except BaseException:
            ports.release_soon(text, fence)
            ports.release_soon(text, token)
            raise
        if begun is not None:
            pending[text] = Pending(left.call, fence, seen, begun.raw)


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
        raise TagError(f"an entry may have at most {config.max_tags} tags, {call.text} got {len(tags)}")
    life = life_of(
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
        **msgspec.structs.asdict(life),
        seq=snapshot.seq,
        write_id=b"",
        digest=envelope.digest_of(payload),
        is_negative=value is None,
        fingerprint=loader.fingerprint,
    )
    if call.text in loading.unshared:
        # Over for every process, though its idea of the store's clock may be behind.
        over = life.created - CLOCK_MARGIN
        entry = msgspec.structs.replace(
            entry,
            fresh_until=over,
            stale_until=over,
            expires_at=life.created + load_time + MIN_KEPT_FOR,
            is_unshared=True,
        )
    size = len(payload) + len(call.text) + sum(map(len, tags))
    if size > config.max_entry_bytes:
        raise EntryTooLarge(f"an entry may have at most {config.max_entry_bytes} bytes, {call.text} has {size}")
    return entry
