"""One process of the load generator: sends its share of the requests, and finds reads that are too old."""

from __future__ import annotations

import asyncio
import collections
import itertools
import multiprocessing
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

#: What is counted as failed, of whatever kind.
FAILED = "failed"
#: A connection whose requests fail so often in a row gives up: the server is gone.
GIVES_UP_AFTER = 50
#: After a failure, seconds.
PAUSE = 0.1


def loopback(url: str) -> tuple[str, int]:
    """Return host and port of a URL of this machine.

    Raises:
        ValueError: it is another machine's: this is a load generator.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise ValueError(f"--url must be on this machine (127.0.0.1, localhost), got {url}")
    return parts.hostname, parts.port or 80


class Changes:
    """The last acknowledged change of each product's price, seen by all processes.

    Prices only rise, so that the older of two is known.
    """

    def __init__(self, products: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._amounts = context.Array("q", products + 1, lock=False)
        self._at = context.Array("d", products + 1, lock=False)

    def acknowledged(self, product_id: int, amount: int) -> None:
        """Note that a change has returned to its writer."""
        self._at[product_id] = time.monotonic()
        self._amounts[product_id] = amount

    def before(self, product_id: int) -> tuple[int, float]:
        """Return what a read that begins now must see at least, and since when; 0 for no change."""
        return self._amounts[product_id], self._at[product_id]


class HttpClient:
    """One connection, kept alive; made again after a failure."""

    def __init__(self, url: str) -> None:
        self._host, self._port = loopback(url)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def get(self, path: str) -> tuple[str, bytes]:
        """Return status and body.

        Raises:
            OSError, EOFError: the server is not there, or went away; the next request connects again.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            body = await reader.readexactly(int(length.split(b":")[1]))
        except BaseException:
            self.close()
            raise
        return head.split(b" ", 2)[1].decode(), body

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def replay(
    ids: list[int],
    url: str,
    path: str,
    concurrency: int,
    changes: Changes,
    done: Any,
    results: Any,
    rate: float | None = None,
) -> None:
    """Send one process's share of the requests; report latencies, hit kinds and stale reads.

    Args:
        rate: requests a second that are due, whether or not those before have been answered: a late answer counts from
            when its request was due.  None sends each as soon as a connection is free.
    """
    kinds: collections.Counter[str] = collections.Counter()
    latencies: list[float] = []
    stale_for: list[float] = []
    stream = iter(ids)
    started = time.perf_counter()
    sent = itertools.count()

    async def until_due() -> float:
        """Return when the next request is due: now, or at its place in the rate."""
        if rate is None:
            return time.perf_counter()
        due = started + next(sent) / rate
        if (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left)
        return due

    async def over_http() -> None:
        client = HttpClient(url)
        failures = 0
        while failures < GIVES_UP_AFTER and (number := next(stream, None)) is not None:
            begun = await until_due()
            least, since = changes.before(number)
            asked = time.monotonic()
            try:
                status, body = await client.get(f"{path}/{number}")
            except (OSError, EOFError) as error:
                failures += 1
                note(begun, f"{FAILED}: {type(error).__name__}")
                await asyncio.sleep(PAUSE)
                continue
            failures = 0
            note(begun, status)
            if least and status == "200" and msgspec.json.decode(body)["amount"] < least:
                stale_for.append(asked - since)
        client.close()

    async def through_library() -> None:
        from app.shop import product

        for number in stream:
            begun = await until_due()
            least, since = changes.before(number)
            asked = time.monotonic()
            found = await product.aread(number)
            note(begun, f"{found.freshness.value} {found.tier}")
            if least and found.value is not None and found.value.amount < least:
                stale_for.append(asked - since)

    def note(begun: float, kind: str) -> None:
        latencies.append(time.perf_counter() - begun)
        kinds[kind] += 1
        if len(latencies) % 100 == 0:
            with done.get_lock():
                done.value += 100

    async def everybody() -> None:
        work: Callable[[], Any] = over_http if url else through_library
        await asyncio.gather(*(work() for _ in range(concurrency)))

    asyncio.run(everybody())
    results.put((latencies, dict(kinds), stale_for))


def write(
    url: str, changes: Changes, ids: Sequence[int], rate: float, stop: threading.Event, written: list[int]
) -> None:
    """Change `rate` prices a second, of products that are being read, until `stop` is set."""
    chance = random.Random(1)
    for amount in itertools.count(10**9):
        if stop.wait(1 / rate):
            return
        number = chance.choice(ids)
        if url:
            body = msgspec.json.encode({"amount": amount})
            request = urllib.request.Request(f"{url}/products/{number}/price", data=body, method="PUT")
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    answer.read()
            except OSError:  # not acknowledged: no reader need see it
                continue
        else:
            from app.shop import set_price

            set_price(number, amount)
        changes.acknowledged(number, amount)
        written.append(number)
