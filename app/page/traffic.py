"""The crowd: one process that asks the API for products, through the cache and past it.

Orders come as JSON lines on stdin, a report goes out as a JSON line on stdout every half second; it ends with stdin.
In a sale, both sides get the same crowd in turns, so that neither takes the machine from the other.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from app.load import zipf_keys
from app.page.lines import read_lines, say

Mode = Literal["idle", "normal", "sale"]
REPORT_EVERY = 0.5
#: Shares of a report's time in which a sale's crowd asks each side.
TURNS = {"cached": 0.7, "uncached": 0.3}
PATHS = {"cached": "/products", "uncached": "/uncached/products"}
#: Connections: of a sale's crowd, and of normal traffic, where some wait for their answer.
CROWD, SHOPPERS = 16, 64
NORMAL_RATE = 200.0
TICK = 0.01
#: A sale's crowd wants few things, normal traffic all of them.
HOT_PRODUCTS, EXPONENT = 20, 1.3
#: How long a side whose turn is over may take for its last answers.
LAST_ANSWERS = 0.1


class Setting(msgspec.Struct, frozen=True):
    """What the crowd does from now on."""

    mode: Mode
    is_compared: bool


class SideReport(msgspec.Struct, frozen=True):
    """What one side answered since the last report.

    Attributes:
        seconds: for how long it was asked.
        p50, p99: milliseconds; None where nothing was answered.
        kinds: "l1", "store", "stale", "miss" -> answers, as the API's Cache-Status has it.
    """

    requests: int
    failed: int
    seconds: float
    p50: float | None
    p99: float | None
    kinds: dict[str, int]


class Report(msgspec.Struct, frozen=True):
    """Half a second of traffic."""

    mode: Mode
    cached: SideReport
    uncached: SideReport


def kind_of(status: bytes) -> str:
    """Return what a Cache-Status (RFC 9211) says: "l1", "store", "stale" or "miss"."""
    text = status.lower()
    if b"fwd=" in text:
        return "stale" if b"fwd=stale" in text else "miss"
    if b"ttl=-" in text:
        return "stale"
    return "l1" if b"detail=l1" in text else "store"


class Shopper(asyncio.Protocol):
    """One connection: asks for one product after the other."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._asked_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._side.is_free(self)

    def ask(self, request: bytes) -> None:
        """Send a request; the side counts the answer."""
        assert self._transport is not None
        self._asked_at = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        """Go home."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        head, found, body = buffer.partition(b"\r\n\r\n")
        if not found or len(body) < int(_field(head, b"content-length")):
            self._buffer = buffer
            return
        self._buffer = b""
        asked_at, self._asked_at = self._asked_at, None
        if asked_at is None:
            return
        took = time.perf_counter() - asked_at
        self._side.answered(head[9:12] == b"200", took, _field(head, b"cache-status"))
        self._side.is_free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._side.lost(self, was_asked=self._asked_at is not None)


class Side:
    """All who ask one side, and what they were answered since the last report."""

    def __init__(self, url: str, path: str, products: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or 80
        requests = {
            number: f"GET {path}/{number} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
            for number in range(1, products + 1)
        }

        def endless(most: int) -> Iterator[bytes]:
            return itertools.cycle([requests[key] for key in zipf_keys(50_000, most, EXPONENT)])

        self._all = endless(products)
        self._hot = endless(min(HOT_PRODUCTS, products))
        self._free: collections.deque[Shopper] = collections.deque()
        self._everybody: set[Shopper] = set()
        self._is_open = False
        self._all_free = asyncio.Event()
        self._reset()

    def _reset(self) -> None:
        self._latencies: list[float] = []
        self._failed = 0
        self._statuses: collections.Counter[bytes] = collections.Counter()
        self._seconds = 0.0

    async def fill(self) -> None:
        """Connect as many shoppers as are missing; none while nobody listens."""
        with contextlib.suppress(OSError):
            while len(self._everybody) < SHOPPERS:
                _, shopper = await asyncio.get_running_loop().create_connection(
                    lambda: Shopper(self), self._host, self._port
                )
                self._everybody.add(shopper)

    def is_free(self, shopper: Shopper) -> None:
        """Have a shopper ask on in a rush, or wait to be sent."""
        if self._is_open:
            shopper.ask(next(self._hot))
            return
        self._free.append(shopper)
        if len(self._free) >= len(self._everybody):
            self._all_free.set()

    def answered(self, is_well: bool, took: float, status: bytes) -> None:
        """Count an answer; what it means is looked up once for each kind, in the report."""
        self._latencies.append(took)
        if not is_well:
            self._failed += 1
        elif status:
            self._statuses[status] += 1

    def lost(self, shopper: Shopper, *, was_asked: bool) -> None:
        """Forget a shopper whose connection has ended."""
        self._failed += was_asked
        self._everybody.discard(shopper)
        with contextlib.suppress(ValueError):
            self._free.remove(shopper)

    async def rush(self, seconds: float) -> None:
        """Have everybody ask as fast as they can."""
        begun = time.perf_counter()
        self._is_open = True
        self._all_free.clear()
        for _ in range(min(CROWD, len(self._free))):
            self._free.popleft().ask(next(self._hot))
        await asyncio.sleep(seconds)
        self._is_open = False
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._all_free.wait(), LAST_ANSWERS)
        self._seconds += time.perf_counter() - begun

    async def stroll(self, seconds: float) -> None:
        """Ask for any product, `NORMAL_RATE` times a second, whether or not the answers keep up."""
        begun = last = time.perf_counter()
        owed = 0.0
        while (now := time.perf_counter()) - begun < seconds:
            owed = min(owed + (now - last) * NORMAL_RATE, SHOPPERS)
            last = now
            while owed >= 1 and self._free:
                self._free.popleft().ask(next(self._all))
                owed -= 1
            await asyncio.sleep(TICK)
        self._seconds += time.perf_counter() - begun

    def report(self) -> SideReport:
        """Return what there was since the last report."""
        latencies = sorted(self._latencies)
        kinds: collections.Counter[str] = collections.Counter()
        for status, count in self._statuses.items():
            kinds[kind_of(status)] += count
        made = SideReport(
            requests=len(latencies),
            failed=self._failed,
            seconds=self._seconds,
            p50=_at(latencies, 0.5),
            p99=_at(latencies, 0.99),
            kinds=dict(kinds),
        )
        self._reset()
        return made


class Crowd:
    """Both sides, and what they are to do."""

    def __init__(self, url: str, products: int) -> None:
        self.setting = Setting("idle", True)
        self._sides = {name: Side(url, path, products) for name, path in PATHS.items()}

    async def shop(self) -> None:
        """Do what the setting says, and report, until cancelled."""
        while True:
            setting = self.setting
            sides = self._sides if setting.is_compared else {"cached": self._sides["cached"]}
            match setting.mode:
                case "idle":
                    await asyncio.sleep(REPORT_EVERY)
                case "normal":
                    await asyncio.gather(*(self._stroll(side) for side in sides.values()))
                case "sale":
                    for name, side in sides.items():
                        await side.fill()
                        await side.rush(REPORT_EVERY * (TURNS[name] if setting.is_compared else 1.0))
            say(Report(setting.mode, *(side.report() for side in self._sides.values())))

    async def _stroll(self, side: Side) -> None:
        await side.fill()
        await side.stroll(REPORT_EVERY)


def _at(latencies: list[float], share: float) -> float | None:
    """Return a percentile of sorted seconds, milliseconds."""
    if not latencies:
        return None
    return 1000 * latencies[min(int(len(latencies) * share), len(latencies) - 1)]


def _field(head: bytes, name: bytes) -> bytes:
    """Return a header's value; empty if there is none.  The API writes its header names in small letters."""
    begun = head.find(b"\r\n" + name + b":")
    if begun < 0:
        return b""
    begun += len(name) + 3
    end = head.find(b"\r\n", begun)
    return head[begun : end if end >= 0 else len(head)].strip()


async def main() -> None:
    """Shop at WEB_URL, as stdin says, until it ends: `python -m app.page.traffic PRODUCTS`."""
    os.nice(5)  # a real crowd has machines of its own: this one takes no time from what it asks
    crowd = Crowd(os.environ["WEB_URL"], int(sys.argv[1]))
    shopping = asyncio.create_task(crowd.shop())
    async for setting in read_lines(sys.stdin, Setting):
        crowd.setting = setting
    shopping.cancel()


if __name__ == "__main__":
    asyncio.run(main())
