"""Loads beside another release: what the store has from that one, this one loads and keeps for itself.

The entry is neither overwritten nor asked for again while it is fresh: both releases would do so in turn, at each read.
What was loaded is kept by the version of that entry, so that whatever deletes, softens or replaces the entry ends it,
and its own tags are registered, so that an invalidation of any of them deletes the entry:

    here: finds another release's entry, snapshot, load, register, keep under its version
    there: invalidates a tag that only this release's value has; without the registration the entry, and with it what
           is kept here, would stay
"""

from __future__ import annotations

import contextlib

from cacheworkers.core.driver import Flow
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.errors import LoadTimeout, StoreError
from cacheworkers.events import OtherRelease
from cacheworkers.flows.local_load import run_once, share_load
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports
from cacheworkers.flows.read_state import ReadState
from cacheworkers.flows.write_loaded import entry_of_value


def load_beside_other_release(ports: Ports, loader: LoaderSpec, state: ReadState, theirs: Entry) -> Flow[Read]:
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

    def kept() -> Read | None:
        own = ports.other_release_entries.get(theirs, ports.clock.now())
        if own is None:
            return None
        waited, state.payload = ports.clock.monotonic() - state.started, own.payload
        value = state.options.decode(own.payload)
        return Read.of(ports.clock.now(), own, value, Freshness.FRESH, "store", waited)

    def load(began_at: float) -> Flow[bytes]:
        ports.emit(OtherRelease(loader.name, call.text))
        ports.note_other_release(loader.name, ports.clock.now() - theirs.created)
        snapshot = yield ports.store.snapshot()
        loading = Loading([call], {call.text: None}, began_at + loader.load_for, snapshot.seq)
        value = yield from run_once(ports, loader, state, loading)
        payload = loader.codec.encode(value)
        # What has been loaded is good for those who wait, though it may have no place here.
        with contextlib.suppress(Exception):
            # No load time: nobody is to be asked early for what the next reader of this process loads here.
            own = entry_of_value(ports, loader, call, value, payload, loading, snapshot, 0.0)
            if not own.is_unshared:
                lives = [(call.text, own.tags, own.expires_at - own.created)]
                [registered] = yield ports.store.register(lives, load_for=loader.load_for)
                if registered.newest <= snapshot.seq:
                    ports.other_release_entries.keep(theirs, own)
        return payload

    call = state.call
    return (yield from share_load(ports, loader, state, load, kept=kept, passes_on=(StoreError,)))
