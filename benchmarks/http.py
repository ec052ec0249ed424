"""What the cache costs a web server, beside constant bytes from the same server: `python -m benchmarks.http`.

Needs wrk.  Servers have one worker each; each is asked for one product in its memory over 32 connections, in turns, so
that a busy machine slows all of them.  The processor's time is the server's alone, and the steadier figure of the two.

Constant bytes are as many as the product's, with two headers, type and length: the least that an application can send.
The product's answer has four more, and the row with them as constants says how much of the difference the server takes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import free_port, wait_until

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = "/products/7"
CONSTANT = "/constant/7"
TITLE = "one product in memory over HTTP, wrk -t1 -c32, one worker"
HEADS = ("", "requests/s", "of constant", "server CPU us", "of constant")
#: Headers that the server adds by itself.
SERVERS_OWN = {"connection", "date", "server"}
#: Name -> granian's interface and the application.
SERVERS = {
    "constant": ("asgi", "benchmarks.websites:constant"),
    "whole": ("asgi", "benchmarks.websites:constant_answer"),
    "api": ("asgi", "app.api:app"),
    "starlette": ("asgi", "benchmarks.websites:by_starlette"),
    "flask": ("wsgi", "benchmarks.websites:by_flask"),
}


@dataclass
class Row:
    """One line of the table: requests a second and microseconds of the server's processor time, of each round."""

    name: str
    server: str
    path: str
    base: str
    headers: tuple[str, ...] = ()
    rates: list[float] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)


class Ratio(NamedTuple):
    """Medians of a row, requests a second and microseconds of CPU a request, each with its ratio to its base."""

    name: str
    rate: float
    of_rate: float
    cost: float
    of_cost: float


@dataclass
class Site:
    """A server that runs."""

    process: psutil.Process
    url: str

    def cpu(self) -> float:
        """Return the processor time of all its processes, seconds."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(each.cpu_times().user + each.cpu_times().system for each in processes)


@contextlib.contextmanager
def site(interface: str, app: str, env: dict[str, str]) -> Iterator[Site]:
    """Start a server, and end it."""
    port = free_port()
    words = [sys.executable, "-m", "granian", "--interface", interface, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--workers", "1", "--loop", "asyncio", app]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            made = Site(psutil.Process(process.pid), f"http://127.0.0.1:{port}")
            wait_until(lambda: _fetch(made.url + PRODUCT))
            yield made
        finally:
            process.terminate()
            process.wait()


def ask(row: Row, running: Site, seconds: int) -> None:
    """Send one round of requests, and note what it came to.

    Raises:
        RuntimeError: some answers were errors.
    """
    words = ["wrk", "-t1", "-c32", f"-d{seconds}s", *row.headers, running.url + row.path]
    before = running.cpu()
    report = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    total, rate = re.search(r"(\d+) requests in", report), re.search(r"Requests/sec:\s+([\d.]+)", report)
    if "Non-2xx" in report or total is None or rate is None:
        raise RuntimeError(f"{row.name} did not answer all requests:\n{report}")
    row.costs.append((running.cpu() - before) / int(total[1]) * 1e6)
    row.rates.append(float(rate[1]))


def _fetch(url: str) -> tuple[dict[str, str], bytes] | None:
    """Return the headers, without the server's own, and the body at a URL; None if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return {name: headers[name] for name in headers if name not in SERVERS_OWN}, answer.read()
    except OSError:
        return None


def ratios(rows: list[Row]) -> list[Ratio]:
    """Return medians over rounds, and ratios, each with its base in the same round."""
    by_name = {row.name: row for row in rows}
    found = []
    for row in rows:
        base = by_name[row.base]
        rate = statistics.median(own / other for own, other in zip(row.rates, base.rates, strict=True))
        cost = statistics.median(own / other for own, other in zip(row.costs, base.costs, strict=True))
        found.append(Ratio(row.name, statistics.median(row.rates), rate, statistics.median(row.costs), cost))
    return found


def measured(rounds: int, seconds: int) -> list[Ratio]:
    """Ask each server so often, for so long.

    Raises:
        FileNotFoundError: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise FileNotFoundError("wrk is not installed: apt-get install wrk")
    with Valkey() as valkey, Postgres() as postgres, contextlib.ExitStack() as stack:
        urls = {"REDIS_URL": valkey.url, "BROKER_URL": valkey.url, "DATABASE_URL": postgres.create_database("bench")}
        env = {**os.environ, **urls}
        subprocess.run([sys.executable, "-m", "app.seed", "--products", "100"], cwd=ROOT, env=env, check=True)
        api = stack.enter_context(site(*SERVERS["api"], env))
        headers, body = _fetch(api.url + PRODUCT) or ({}, b"")
        tag = headers.get("etag", "")
        env |= {"BODY_BYTES": str(len(body)), "ANSWER_HEADERS": json.dumps(headers)}
        sites = {name: stack.enter_context(site(*server, env)) for name, server in SERVERS.items() if name != "api"} | {
            "api": api
        }
        rows = [
            Row("constant bytes, ASGI", "constant", PRODUCT, "constant bytes, ASGI"),
            Row("product API", "api", PRODUCT, "constant bytes, ASGI"),
            Row("product API, 304", "api", PRODUCT, "constant bytes, ASGI", ("-H", f"If-None-Match: {tag}")),
            Row("constant bytes, Starlette", "starlette", CONSTANT, "constant bytes, Starlette"),
            Row("product by Starlette", "starlette", PRODUCT, "constant bytes, Starlette"),
            Row("constant bytes, Flask", "flask", CONSTANT, "constant bytes, Flask"),
            Row("product by Flask", "flask", PRODUCT, "constant bytes, Flask"),
            Row("constant answer, ASGI", "whole", PRODUCT, "constant bytes, ASGI"),
        ]
        for _ in range(rounds):
            for row in rows:
                ask(row, sites[row.server], seconds)
    return ratios(rows)


def cells(ratio: Ratio) -> tuple[str, ...]:
    """Return a row of the table."""
    costs = (f"{ratio.cost:.1f}", f"{ratio.of_cost:.2f}x")
    return (ratio.name, f"{ratio.rate:,.0f}", f"{ratio.of_rate:.2f}x", *costs)


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    try:
        found = measured(options.rounds, options.seconds)
    except FileNotFoundError as error:
        parser.error(str(error))
    table = Table(title=TITLE)
    for head in HEADS:
        table.add_column(head, justify="left" if not head else "right")
    for ratio in found:
        table.add_row(*cells(ratio))
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
