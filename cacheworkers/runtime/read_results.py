"""ReadResults: the value or the Read that a reader gets, of what the store or another reader has found."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from cacheworkers.core import envelope
from cacheworkers.core.entry import Freshness
from cacheworkers.core.read_result import Read
from cacheworkers.core.signature import Call
from cacheworkers.errors import CodecError
from cacheworkers.events import ReadFailed, Served
from cacheworkers.flows import read as reading
from cacheworkers.flows.load_failure import another
from cacheworkers.flows.loader_memory import LoaderMemory, as_is
from cacheworkers.flows.ports import LoaderSpec, Ports
from cacheworkers.flows.read_state import StoreResult
from cacheworkers.local.access_counter import TOGETHER
from cacheworkers.local.coalescing import Outcome
from cacheworkers.local.l1 import MISSING

Decode = Callable[[bytes], Any]
Arguments = tuple[Any, ...] | None


class ReadResults:
    """What reads of one loader come to where no flow is needed: each is counted, reported, and kept in L1."""

    def __init__(self, ports: Ports, spec: LoaderSpec, memory: LoaderMemory) -> None:
        self._ports = ports
        self._spec = spec
        self._memory = memory
        self._since = memory.since
        self._is_shareable = spec.codec.is_shareable
        self._decode = spec.codec.plain_decode
        self._load_times = envelope.load_times_before(spec.policy.early)
        self._fingerprint = spec.fingerprint

    def hit(self, call: Call, arguments: Arguments, decode: Decode, found: StoreResult, started: float) -> Read | None:
        """Return a fresh hit, and keep it in L1; None leaves what was found to the flow."""
        ports, text = self._ports, call.text
        fresh = found.raw and reading.fresh_hit(ports, self._spec, text, found.raw, self._since, decode)
        if not fresh:
            return None
        entry, value, now, l1_until = fresh
        at = monotonic()
        if found.is_coherent:
            self._memory.keep(arguments, decode is as_is, entry, value, found.guard, at + l1_until - now)
        age = now - entry.created
        ports.access_counter.count(text)
        if ports.has_hook:
            ports.emit(Served(self._spec.name, "fresh", "store", age, at - started))
        return Read(value, Freshness.FRESH, "store", age if age > 0 else 0.0, entry.seq, at - started, entry)

    def fresh_value(self, text: str, decode: Decode, raw: bytes) -> Any:
        """Return the value of a fresh envelope, in the fewest steps, and count the read; MISSING of any other."""
        ports = self._ports
        now = monotonic() + ports.clock.offset  # `clock.now()`, without a call
        payload = envelope.fresh_payload(raw, text, now, self._since, self._load_times, self._fingerprint)
        if payload is None:
            return MISSING
        decode = decode if decode is as_is else self._decode
        try:
            value = decode(payload)
        except Exception:  # the flow decodes it again, and says what is wrong with it
            return MISSING
        reads = ports.access_counter.reads
        reads.append(text)
        if len(reads) >= TOGETHER:
            ports.access_counter.count_noted()
        return value

    def shared(self, decode: Decode, outcome: Outcome, started: float, as_read: bool) -> Any:
        """Return what the leader of a crowd has found, value or Read, as this reader's own; MISSING: unreadable so.

        Raises:
            Exception: what the leader's read raised.
        """
        ports = self._ports
        if outcome.error is not None:
            if ports.has_hook:
                ports.emit(ReadFailed(self._spec.name, type(outcome.error).__name__, monotonic() - started))
            raise another(outcome.error)
        read = outcome.read
        assert read is not None and outcome.payload is not None
        value = read.value
        if not self._is_shareable or decode is as_is or type(value) is bytes:
            try:
                value = decode(outcome.payload)
            except CodecError:
                return MISSING
        if not as_read and not ports.has_hook:
            return value
        waited = monotonic() - started
        if ports.has_hook:
            ports.emit(Served(self._spec.name, read.freshness.value, read.tier, read.age, waited))
        return (
            Read(value, read.freshness, read.tier, read.age, read.seq, waited, read.entry, True) if as_read else value
        )
