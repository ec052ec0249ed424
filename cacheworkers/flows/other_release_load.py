"""Two releases side by side: what the store has from the other one, this one loads and keeps for itself.

The entry is neither overwritten nor asked for again while it is fresh: both releases would do so in turn, at each read.
What was loaded is kept by the version of that entry, so that whatever deletes, softens or replaces the entry ends it,
and its own tags are registered, so that an invalidation of any of them deletes the entry:

    here: finds another release's entry, snapshot, load, register, keep under its version
    there: invalidates a tag that only this release's value has; without the registration the entry, and with it what
           is kept here, would stay
"""

from __future__ import annotations

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.errors import LoadTimeout, StoreError
from cacheworkers.events import Loaded, OtherRelease
from cacheworkers.flows.load_failure import as_load_error
from cacheworkers.flows.local_load import SharedLoad
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports
from cacheworkers.flows.read_state import ReadState, wait_for_push
from cacheworkers.flows.write_loaded import entry_of_value


def read_own_entry(ports: Ports, loader: LoaderSpec, state: ReadState, theirs: Entry) -> Flow[Read]:
    """Load a call of which the store has another release's fresh entry; the reads of this process share the load.

    Raises:
        LoadTimeout: readers of this loader may not load, or it took too long.
        LoadError: the load failed.
    """
    if loader.policy.on_timeout == "raise":
        raise LoadTimeout(
            f'{state.call.text} has an entry of another release only, and on_timeout is "raise"; it is read when that '
            "entry is no longer fresh, or once `version` is raised"
        )
    flight, started, decode = state.waiter.flight, state.started, state.options.decode
    give_up_at = started + loader.load_for
    while True:
        own = ports.other_release_entries.get(theirs, ports.clock.now())
        if own is not None:
            now = ports.clock.now()
            waited = ports.clock.monotonic() - started
            state.payload = own.payload
            return Read.of(now, own, decode(own.payload), Freshness.FRESH, "store", waited)
        shared = flight.shared
        if isinstance(shared, SharedLoad) and shared.began_at >= started:
            if state.crowd is not None:
                state.crowd.began_before = shared.began_at
            break
        if not flight.is_loading:
            state.cover()
            shared = yield from _load_for_all(ports, loader, state, theirs)
            break
        if ports.clock.monotonic() >= give_up_at:
            raise LoadTimeout(f"{state.call.text} has no value after {loader.load_for:g} s")
        state.waiter.rearm()
        yield from wait_for_push(ports, state.waiter, give_up_at)
    if shared.error is not None:
        raise shared.error
    state.payload = shared.payload
    waited = ports.clock.monotonic() - started
    return Read(decode(shared.payload), Freshness.FRESH, "load", 0.0, 0, waited)


def _load_for_all(ports: Ports, loader: LoaderSpec, state: ReadState, theirs: Entry) -> Flow[SharedLoad]:
    flight, call = state.waiter.flight, state.call
    flight.is_loading = True
    began_at = ports.clock.monotonic()
    shared: SharedLoad | None = None
    try:
        ports.emit(OtherRelease(loader.name, call.text))
        ports.note_other_release(loader.name, ports.clock.now() - theirs.created)
        snapshot = yield ports.store.snapshot()
        loading = Loading([call], {call.text: None}, began_at + loader.load_for, snapshot.seq)
        values = yield from state.strategy.run(ports, loader, loading)
        value = values[call.text]
        if isinstance(value, BaseException):
            raise value
        shared = SharedLoad(began_at, loader.codec.encode(value))
        # No load time: nobody is to be asked early for what the next reader of this process loads here.
        own = entry_of_value(ports, loader, call, value, shared.payload, loading, snapshot, 0.0)
        if not own.is_unshared:
            lives = [(call.text, own.tags, own.expires_at - own.created)]
            [registered] = yield ports.store.register(lives, load_for=loader.load_for)
            if registered.newest <= snapshot.seq:
                ports.other_release_entries.keep(theirs, own)
    except LoadTimeout as error:
        shared = SharedLoad(began_at, error=error)
    except Exception as error:
        # What has been loaded is good for those who wait, though it may have no place here.
        if shared is None:
            if isinstance(error, StoreError):
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
