"""A cache that does nothing by itself: the same steps make the same world, however busy the machine is.

Its clock and the store's stand still until a test advances them.  What the store pushes is received when a test says,
in the test's own thread.  Chance is always the same, and keys are walked through in the order of their names.
"""

from __future__ import annotations

import collections
import math
import threading
import time
from typing import Any

import hiredis
import pytest
from mutation import script

from cacheworkers import Cache
from cacheworkers.flows.ports import RecentRequests
from cacheworkers.local.clock import StoreClock
from cacheworkers.local.rate_limiter import RateLimiter
from cacheworkers.store.commands import scripts
from cacheworkers.store.commands.scripts import Script

#: When everything begins, milliseconds: later than it is, so that the store lets nothing expire by its real clock.
BEGINS_AT_MS = 4_000_000_000_000
STEP_MS = 10
_TIME = 'redis.call("TIME")'
_MARKER = b"all that was pushed before"


class ByHand:
    """A cache, and what happens to it besides its flows."""

    def __init__(self, cache: Cache, patch: pytest.MonkeyPatch) -> None:
        self._ports = ports = cache._ports
        self._specs = cache._loaders
        self._client = ports.store.link.client()
        self._time = StillTime(patch, cache)
        ports.chance = lambda: 0.5
        ports.store.scan = lambda cursor, pattern: _Names(self._client, pattern)  # type: ignore[assignment,return-value]
        # Immediately instead of in a thread.
        ports.release_soon = lambda call, token: ports.store.release([(call, token)]).run()
        self._listen()

    def _listen(self) -> None:
        listener = self._ports.listener
        listener._thread = threading.current_thread()  # begins none of its own
        listener._connect()
        [self._connection] = listener.connections
        self._connection.collect_for = math.inf  # what is made after the ping is sent when the test says so
        self._receive = self._connection.messages
        self._arrived: collections.deque[Any] = collections.deque()
        self._connection.messages = lambda: [self._arrived.popleft()]  # type: ignore[method-assign]
        listener.barrier = lambda timeout: _Barrier(self)  # type: ignore[assignment,return-value]

    def begin(self) -> None:
        """Begin again: nothing is left of what was, neither in the store nor here."""
        ports = self._ports
        for key in self._client.scan_iter(f"{ports.store.keys.namespace}:*", count=10_000):
            self._client.unlink(key)
        self._time.begin()
        self.receive()
        ports.l1.clear()
        ports.waiters.reset()
        ports.access_counter.reset()
        ports.forecasts.clear()
        ports.recent_requests = RecentRequests()
        ports.revalidations = RateLimiter(ports.config.revalidate_rate)
        for spec in self._specs.values():
            spec.load_times.load_time = None

    def go_on(self) -> None:
        """Let a little time pass."""
        self._time.go_on()

    def receive_and_go_on(self) -> None:
        """Process all that the store has pushed so far, and let a little time pass: one exchange instead of two."""
        self.receive(self._time.tick())

    def receive(self, *commands: tuple[str | int, ...]) -> None:
        """Process all that the store has pushed so far, and have it execute commands whose replies nobody needs."""
        self._connection.flush()
        packed = map(hiredis.pack_command, (*commands, ("ECHO", _MARKER)))
        self._connection.socket.sendall(b"".join(packed))
        while _MARKER not in self._arrived:
            self._arrived += self._receive()
        at = self._arrived.index(_MARKER)
        for _ in range(len(commands) + 1):  # executed together: nothing comes between their replies
            del self._arrived[at - len(commands)]
        while self._arrived:
            self._ports.listener._process(self._connection)
        self._ports.listener._prove()


class StillTime:
    """One clock for caches and their store, which goes on when the test says so.

    With a clock each, chance decides which of two instants within a millisecond was the first.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *caches: Cache) -> None:
        self._clock = _Clock()
        store = caches[0]._ports.store
        self._client, self._key = store.link.client(), f"{store.keys.namespace}:clock"
        for cache in caches:
            cache._ports.clock = self._clock
        for name, found in list(vars(scripts).items()):
            if isinstance(found, Script) and _TIME.encode() in found.source:
                script(name, _TIME, f'redis.call("HMGET", "{self._key}", "seconds", "micros")')(patch)
        self.begin()

    def begin(self) -> None:
        """Begin again."""
        self._clock.begin()
        self.go_on()

    def go_on(self) -> None:
        """Let a little time pass."""
        self._client.execute_command(*self.tick())

    def tick(self) -> tuple[str | int, ...]:
        """Let a little time pass here; return the command by which it passes in the store."""
        self._clock.now_ms += STEP_MS
        seconds, millis = divmod(self._clock.now_ms, 1000)
        return "HSET", self._key, "seconds", seconds, "micros", millis * 1000


class _Clock(StoreClock):
    __slots__ = ("_began_at", "now_ms")

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.now_ms = BEGINS_AT_MS
        # What is measured by the real clock all the same, such as what L1 may answer until, has hours.
        self._began_at = time.monotonic()

    def now(self) -> float:
        return self.now_ms / 1000

    def monotonic(self) -> float:
        return self._began_at + (self.now_ms - BEGINS_AT_MS) / 1000

    def measure(self, server_now: float, sent: float, received: float) -> None:
        pass  # it is the same clock


class _Names:
    """A step: all keys that match, in one go.  Where SCAN stops depends on other keys, and on the server's mood."""

    def __init__(self, client: Any, pattern: str) -> None:
        self._client = client
        self._pattern = pattern

    def __repr__(self) -> str:
        return "scan"

    def run(self) -> tuple[int, list[str]]:
        return 0, sorted(key if isinstance(key, str) else key.decode() for key in self._client.keys(self._pattern))


class _Barrier:
    """A step: receive everything."""

    def __init__(self, by_hand: ByHand) -> None:
        self._by_hand = by_hand

    def __repr__(self) -> str:
        return "barrier"

    def run(self) -> bool:
        self._by_hand.receive()
        return True
