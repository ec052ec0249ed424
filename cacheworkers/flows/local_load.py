"""Loads in the reader's own process: under a lease that no worker has honoured, or shared by its reads without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CodecError, LoadError, LoadTimeout
from cacheworkers.events import Loaded, UnreadableEntry
from cacheworkers.flows.load_failure import another, as_load_error
from cacheworkers.flows.ports import LoaderSpec, Loading, LoadRequest, Ports
from cacheworkers.flows.read_state import ReadState, wait_for_push
from cacheworkers.local.coherence import NEVER
from cacheworkers.local.l1 import Slot


class SharedLoad(msgspec.Struct, frozen=True):
    """The outcome of one load that stored no entry; good for every read that had begun before it."""

    began_at: float
    payload: bytes = b""
    error: LoadError | LoadTimeout | None = None


def load_under_lease(ports: Ports, loader: LoaderSpec, state: ReadState, request: LoadRequest) -> Flow[Read | None]:
    """Load a call whose lease this read holds, and store it; None where another process has it: look again."""
    state.cover()
    result = yield from state.strategy.load(ports, loader, request)
    waited = ports.clock.monotonic() - state.started
    if result.outcome == "left":
        return None
    if result.outcome == "unstored":
        state.payload = result.payload
        return Read(state.options.decode(result.payload), Freshness.FRESH, "load", 0.0, 0, waited)
    if result.outcome == "failed" and result.entry is None:
        assert result.error is not None
        raise result.error
    # Refused and conflicting values go to reads that had begun before the invalidation that overtook them: marked.
    assert result.entry is not None
    state.payload = result.payload
    if result.entry.is_unshared:
        return Read(state.options.decode(result.payload), Freshness.FRESH, "load", 0.0, result.entry.seq, waited)
    value = state.options.decode(result.entry.payload)
    is_overtaken = result.outcome in ("refused", "conflict") and result.error is None
    freshness = Freshness.STALE if is_overtaken else Freshness.FRESH
    return Read.of(ports.clock.now(), result.entry, value, freshness, "load", waited)


def kept(ports: Ports, call: Call, decode: Callable[[bytes], Any], since: int) -> Read | None:
    """Return what L1 kept of a call while the store is gone: until it lapses, and for a bounded time.

    Not once the store has answered since, or where another server may have become the master: what others have
    invalidated there was not reported here.
    """
    if not ports.listener.memory_may_answer(call.text):
        return None
    slot = ports.l1.get(call.text)
    now = ports.clock.now()
    if slot is None or slot.entry.seq < since or now >= slot.entry.stale_until:
        return None
    lost_at = ports.coherence.lost_at
    if not ports.coherence.is_coherent and (
        lost_at == NEVER or ports.clock.monotonic() - lost_at > ports.config.l1_on_loss_for
    ):
        return None
    try:
        value = decode(slot.entry.payload)
    except CodecError as error:
        drop_unreadable(ports, slot, error)
        return None
    slot.reads += 1
    return Read.of(now, slot.entry, value, slot.entry.freshness(now), "l1", 0.0)


def drop_unreadable(ports: Ports, slot: Slot, error: CodecError) -> None:
    """Drop from L1 what does not decode: it may have been kept by a read of its JSON, which is never decoded."""
    ports.l1.drop(slot.call)
    ports.emit(UnreadableEntry(slot.call, str(error)))


def load_without_store(ports: Ports, loader: LoaderSpec, state: ReadState) -> Flow[Read]:
    """Load a call without lease or entry; the reads of this process share a load that began after they did."""

    def load(began_at: float) -> Flow[bytes]:
        loading = Loading([state.call], {state.call.text: None}, began_at + loader.load_for, 0)
        return loader.codec.encode((yield from run_once(ports, loader, state, loading)))

    return (yield from share_load(ports, loader, state, load))


def share_load(
    ports: Ports,
    loader: LoaderSpec,
    state: ReadState,
    load: Callable[[float], Flow[bytes]],
    *,
    kept: Callable[[], Read | None] = lambda: None,
    passes_on: tuple[type[Exception], ...] = (),
) -> Flow[Read]:
    """Return what a load without an entry brings: one load serves all reads of this process that began before it.

    Args:
        load: returns the value's JSON; called with the monotonic instant at which the load begins.
        kept: returns what an earlier load has left, if that may be served.
        passes_on: what `load` may raise that is no failure of the loader, and is raised to this reader alone.
    """
    flight = state.waiter.flight
    give_up_at = state.started + loader.load_for
    while True:
        found = kept()
        if found is not None:
            return found
        shared = flight.shared
        if isinstance(shared, SharedLoad) and shared.began_at >= state.started:
            if state.crowd is not None:
                state.crowd.began_before = shared.began_at
            break
        if not flight.is_loading:
            state.cover()
            shared = yield from _load_for_all(ports, loader, state, load, passes_on)
            break
        if ports.clock.monotonic() >= give_up_at:
            raise LoadTimeout(f"{state.call.text} has no value after {loader.load_for:g} s, and none can be stored")
        state.waiter.rearm()
        yield from wait_for_push(ports, state.waiter, give_up_at)
    if shared.error is not None:
        raise another(shared.error)
    state.payload = shared.payload
    waited = ports.clock.monotonic() - state.started
    return Read(state.options.decode(shared.payload), Freshness.FRESH, "load", 0.0, 0, waited)


def run_once(ports: Ports, loader: LoaderSpec, state: ReadState, loading: Loading) -> Flow[Any]:
    """Run the loader for the call of a read; return its value, or raise what it raised."""
    values = yield from state.strategy.run(ports, loader, loading)
    value = values[state.call.text]
    if isinstance(value, BaseException):
        raise value
    return value


def _load_for_all(
    ports: Ports,
    loader: LoaderSpec,
    state: ReadState,
    load: Callable[[float], Flow[bytes]],
    passes_on: tuple[type[Exception], ...],
) -> Flow[SharedLoad]:
    flight, call = state.waiter.flight, state.call
    flight.is_loading = True
    began_at = ports.clock.monotonic()
    shared: SharedLoad | None = None
    try:
        shared = SharedLoad(began_at, (yield from load(began_at)))
    except LoadTimeout as error:
        shared = SharedLoad(began_at, error=error)
    except Exception as error:
        if isinstance(error, passes_on):
            raise
        failure = as_load_error(loader, call.text, error)
        shared = SharedLoad(began_at, error=failure)
        took = ports.clock.monotonic() - began_at
        ports.emit(Loaded(loader.name, call.text, "failed", took, 1, ports.reader.where, failure))
    finally:
        flight.is_loading = False
        flight.shared = shared
        ports.waiters.wake_flight(flight)
    return shared
