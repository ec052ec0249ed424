"""A loader's view of L1: what it may answer of the loader's calls, and what is kept for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from cacheworkers.core.entry import Entry
from cacheworkers.core.signature import Call
from cacheworkers.errors import CodecError
from cacheworkers.flows.local_load import drop_unreadable
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.flows.read_state import ReadOptions
from cacheworkers.local.l1 import MISSING, Slot


def as_is(payload: bytes) -> bytes:
    """Return a payload undecoded: what a read of JSON does instead of decoding."""
    return payload


class LoaderMemory:
    """L1 as one loader uses it, or a view of the loader that takes nothing loaded before an invalidation.

    Attributes:
        since: least sequence number of what it answers with.
        keeps_for: how long L1 may answer without proof that it is coherent, seconds; 0 keeps nothing.
        index: raw positional arguments -> slot: the hit path asks nothing else.
    """

    def __init__(self, ports: Ports, spec: LoaderSpec, since: int = 0) -> None:
        self._ports = ports
        self._spec = spec
        self.since = since
        l1_for = spec.policy.l1_for
        self.keeps_for = ports.config.l1_for if l1_for is None else l1_for
        if not ports.config.l1_entries:
            self.keeps_for = 0.0  # nothing is kept, so nothing needs to be looked for
        self.index: dict[Any, Slot] = {}

    def call_of(self, key: Any) -> Call:
        """Return the call with one argument."""
        return self._spec.signature.bind((key,), {})

    def value(self, slot: Slot) -> Any:
        """Return a slot's value: shared if nobody can spoil it, else decoded for this caller alone.

        MISSING if its payload is no value of this loader, as another version's may be, which a read of JSON has kept:
        the slot is gone then, and the store to be asked.
        """
        value = slot.value
        if value is not MISSING:
            return value
        try:
            value = self._spec.codec.decode(slot.payload)
        except CodecError as error:
            slot.reads -= 1
            drop_unreadable(self._ports, slot, error)
            return MISSING
        if self._spec.codec.is_shareable:
            self._ports.l1.keep_value(slot, value)
        return value

    def values_of(self, texts: Mapping[Any, str]) -> tuple[dict[Any, Any], Mapping[Any, str]]:
        """Return key -> value of what L1 may answer now, and key -> text of the rest.

        Not for loads and dirty transactions.  Coherence is judged once for all: what a push drops from here on is
        not served, since its slot's time is over.
        """
        if not self.keeps_for:
            return {}, texts
        coherence, now = self._ports.coherence, monotonic()
        if now - coherence.proven_at >= self.keeps_for:
            return {}, texts
        slots, since = self._ports.l1.slots, self.since
        values: dict[Any, Any] = {}
        missing: dict[Any, str] = {}
        for key, text in texts.items():
            slot = slots.get(text)
            if slot is not None and now < slot.until and slot.entry.seq >= since:
                slot.reads += 1
                value = slot.value
                if value is MISSING:
                    value = self.value(slot)
                if value is not MISSING:
                    values[key] = value
                    continue
            missing[key] = text
        return values, missing

    def options(
        self, call: Call, arguments: tuple[Any, ...] | None, decode: Callable[[bytes], Any] | None = None
    ) -> ReadOptions:
        """Return what a read of one call asks for."""
        wanted = self._spec.codec.decode if decode is None else decode

        def keep(entry: Entry, value: Any, guard: int, until: float) -> None:
            self.keep(arguments, wanted is as_is, entry, value, guard, until)

        return ReadOptions(
            wanted, self.since, self._spec.policy.wait_for, keep if self.keeps_for else None, self._spec.fingerprint
        )

    def keep(
        self, arguments: tuple[Any, ...] | None, is_payload: bool, entry: Entry, value: Any, guard: int, until: float
    ) -> None:
        """Keep an entry until a monotonic instant, under a guard that was taken before the store was asked."""
        if not self._ports.listener.track(entry.call, entry):
            return  # its changes would not be reported
        self._ports.l1.fill(
            entry.call,
            entry=entry,
            value=value if self._spec.codec.is_shareable and not is_payload else MISSING,
            until=until,
            guard=guard,
            index=self.index if arguments is not None and self._spec.signature.positional_keys else None,
            arguments=arguments,
        )

    def keep_each(self, hits: list[tuple[Any, Entry, float, int]], values: list[Any]) -> None:
        """Keep many keys' entries: (key, entry, monotonic instant until which, guard) and value of each."""
        is_shareable = self._spec.codec.is_shareable
        slots = [
            Slot(entry.call, entry, value if is_shareable else MISSING, until, (key,))
            for (key, entry, until, _), value in zip(hits, values, strict=True)
        ]
        track = self._ports.listener.track
        if not all([track(entry.call, entry) for _, entry, _, _ in hits]):
            return
        index = self.index if self._spec.signature.positional_keys else None
        self._ports.l1.fill_each(slots, [guard for _, _, _, guard in hits], index)
