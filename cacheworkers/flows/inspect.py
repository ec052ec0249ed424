"""Inspect: the consistency meter.  Samples live entries, loads them again, and compares after a grace.

A difference alone proves nothing: the row may have been changed a moment ago, and its invalidation be under way.  It
counts only if, after a grace, the very same entry is still there, fresh, and still differs from a second load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from cacheworkers.core.driver import Flow, Step
from cacheworkers.core.entry import Entry, Freshness
from cacheworkers.core.entry_state import entry_state
from cacheworkers.core.signature import Call, loader_name_of
from cacheworkers.errors import CacheworkersError, CallError, ConfigError
from cacheworkers.flows.ports import LoaderSpec, Loading, Ports
from cacheworkers.flows.run_loader import run_loader

#: The sample is chosen from this many times as many entries.
STRETCH = 20
_Compared = tuple[Entry, bytes | None] | BaseException | None


class Difference(msgspec.Struct, frozen=True):
    """An entry that is served as fresh and is not what its loader returns.

    Attributes:
        age: seconds since its load began.
        stored, loaded: JSON, the first 500 bytes of each.
    """

    call: str
    age: float
    tags: tuple[str, ...]
    seq: int
    stored: str
    loaded: str


class Inspection(msgspec.Struct, frozen=True):
    """What an inspection found.

    Attributes:
        sampled: entries that were compared.
        skipped: keys that were not: of unknown loaders, not fresh, or unreadable.
        differences: evidence of each violation.
        failed: entries that were not compared because their load failed: nothing is known of them.
        failure: why the first of these failed; empty for none.
    """

    sampled: int
    skipped: int
    differences: tuple[Difference, ...]
    failed: int = 0
    failure: str = ""

    @property
    def per_million(self) -> float:
        """Violations in a million entries."""
        return 1e6 * len(self.differences) / self.sampled if self.sampled else 0.0


def inspect(
    ports: Ports,
    loaders: Mapping[str, LoaderSpec],
    sample: int,
    grace: float,
    pause: Callable[[float], Step],
    rate: float,
) -> Flow[Inspection]:
    """Compare up to `sample` entries, at most `rate` loads a second.

    Args:
        grace: seconds between finding a difference and looking again.
        pause: makes the step that waits a number of seconds.

    Raises:
        ConfigError: `sample`, `grace` or `rate` is out of bounds.
    """
    if sample < 1:
        raise ConfigError(f"sample must be at least 1 entry, got {sample!r}")
    if not grace >= 0:
        raise ConfigError(f"grace must be 0 seconds or more, got {grace!r}")
    if not rate > 0:
        raise ConfigError(f"rate must be more than 0 loads a second, got {rate!r}")
    calls = yield from _sampled(ports, sample)
    compared, skipped, suspects = 0, 0, []
    failures: list[str] = []
    for text in calls:
        yield pause(1 / rate)
        found = yield from _compare(ports, loaders, text)
        if found is None:
            skipped += 1
            continue
        if isinstance(found, BaseException):
            failures.append(f"{text}: {type(found).__name__}: {found}")
            continue
        compared += 1
        if found[1] is not None:
            suspects.append((text, found[0].write_id))
    differences = []
    if suspects:
        yield pause(grace)
    for text, version in suspects:
        yield pause(1 / rate)
        again = yield from _compare(ports, loaders, text)
        if again is None or isinstance(again, BaseException) or again[0].write_id != version or again[1] is None:
            continue
        entry, loaded = again[0], again[1] or b""
        age = ports.clock.now() - entry.created
        stored = entry.payload[:500].decode(errors="replace")
        differences.append(Difference(text, age, entry.tags, entry.seq, stored, loaded[:500].decode(errors="replace")))
    return Inspection(compared, skipped, tuple(differences), len(failures), failures[0] if failures else "")


def _sampled(ports: Ports, sample: int) -> Flow[list[str]]:
    """Return calls of live entries, chosen at random from a stretch of the keyspace that begins anywhere in it."""
    pattern = ports.store.keys.entries_prefix + "*"
    found: dict[str, None] = {}
    for cursor in (_anywhere(ports), 0):  # to the end, and if that is not enough, from the beginning
        while len(found) < STRETCH * sample:
            cursor, keys = yield ports.store.scan(cursor, pattern)
            for key in keys:
                call = ports.store.keys.call_of(key.encode())
                if call is not None:
                    found[call] = None
            if cursor == 0:
                break
    return sorted(found, key=lambda _: ports.chance())[:sample]


def _anywhere(ports: Ports) -> int:
    """Return a cursor of any master's SCAN: it walks by the bits of hashes, and takes any that it is given."""
    master = int(ports.chance() * len(ports.store.link.masters))
    return master << 64 | int(ports.chance() * 2**48)


def _compare(ports: Ports, loaders: Mapping[str, LoaderSpec], text: str) -> Flow[_Compared]:
    """Return the entry, and what was loaded instead if that differs; None if it cannot be compared, or the error."""
    loader = loaders.get(loader_name_of(text))
    if loader is None:
        return None
    try:
        call: Call = loader.signature.parse(text)
        raw = yield ports.store.get(text)
        found = entry_state(raw, text, ports.clock.now(), fingerprint=loader.fingerprint)
        if found.entry is None or found.freshness is not Freshness.FRESH:
            return None
        loading = Loading([call], {text: raw}, ports.clock.monotonic() + loader.load_for, 0)
        value = (yield from run_loader(ports, loader, loading, ports.worker))[text]
        if isinstance(value, BaseException):
            return value
        payload = loader.codec.encode(value)
        return found.entry, None if payload == found.entry.payload else payload
    except CallError:
        return None
    except CacheworkersError as error:
        return error
