"""One product API, cached by each peer in turn, and one table: `make bench-apps`, or `python -m benchmarks.apps`.

FastAPI on granian with two processes, Postgres, 10,000 products; reads by Zipf (0.9), one write in a hundred requests.
First at a fixed rate, where a late answer counts from when its request was due; then as fast as answers come; then a
price is changed and two hundred clients ask for that product in the same moment: the start of a sale.

Each peer has the machine to itself and the same requests; every product is read once before.  All peers run once, then
all of them again: a machine that slows down for a minute does so for one round of some of them, and a row has the
median of its rounds.  "old reads" are reads that began after a write was acknowledged, and showed the price before it.

At this rate of writes few loads are overtaken by one; `python -m benchmarks.race` makes it happen for each peer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
from rich.console import Console

from app import load, replay
from benchmarks import readme, report
from benchmarks.apps.peers import LABELS
from cacheworkers.testing import Postgres, Valkey
from cacheworkers.testing.servers import end_with_parent, free_port, wait_until

ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = 10_000
PROCESSES = 2
#: The clients of the sale's start, and how often it is repeated, each time for another product.
CLIENTS, STARTS = 200, 5
HEADS = (
    "",
    "requests/s",
    "p50 ms at the rate",
    "p99 ms at the rate",
    "queries a request",
    "queries at a sale's start",
    "last answer ms",
    "old reads",
    "MB a process",
)
PAGE = ROOT / "docs" / "explanation" / "apps.md"


@dataclass(frozen=True)
class Result:
    """What one peer came to; None where it could not run, with the reason."""

    label: str
    speed: float = 0.0
    p50: float = 0.0
    p99: float = 0.0
    queries: float = 0.0
    start_queries: float = 0.0
    start_last: float = 0.0
    old: int = 0
    requests: int = 0
    memory: float = 0.0
    why_not: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row."""
        if self.why_not:
            return (self.label, *("-" for _ in HEADS[1:]))
        return (
            self.label,
            f"{self.speed:,.0f}",
            f"{self.p50 * 1e3:.1f}",
            f"{self.p99 * 1e3:.1f}",
            f"{self.queries:.3f}",
            f"{self.start_queries:g}",
            f"{self.start_last * 1e3:.0f}",
            f"{self.old:,} of {self.requests:,}",
            f"{self.memory:.0f}",
        )


@dataclass(frozen=True)
class Site:
    """An API that runs."""

    url: str
    process: psutil.Process

    def memory(self) -> float:
        """Return the resident memory of a process that serves, MB."""
        sizes = sorted(each.memory_info().rss / 1e6 for each in self.process.children(recursive=True))
        return statistics.mean(sizes[-PROCESSES:])

    def get(self, path: str) -> bytes:
        """Return the body at a path."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return bytes(answer.read())

    def put_price(self, product: int, amount: int) -> None:
        """Change a price."""
        body = msgspec.json.encode({"amount": amount})
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.url}/products/{product}/price", body, headers, method="PUT")
        urllib.request.urlopen(request, timeout=30).read()


@contextlib.contextmanager
def site(peer: str, env: dict[str, str]) -> Iterator[Site]:
    """Start a peer's API, and for this library a worker; end them.

    Raises:
        RuntimeError: it does not start; with the last line that it has said.
    """
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as logs:
        port = free_port()
        words = ["-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--workers", str(PROCESSES), "--loop", "asyncio", "--no-ws", "benchmarks.apps.api:app"]
        if peer == "cacheworkers":
            queues = ",".join(f"cw.{name}" for name in ("miss", "revalidate", "warm", "upkeep"))
            pool = ["-m", "celery", "-A", "benchmarks.apps.worker", "worker", "-c", "2", "-Q", queues]
            log = Path(logs) / "worker"
            worker = stack.enter_context(
                _process([*pool, "-l", "INFO", "--without-mingle", "--without-gossip"], env, log)
            )
            wait_until(lambda: " ready." in log.read_text() or worker.poll() is not None)
        log = Path(logs) / "api"
        server = stack.enter_context(_process(words, {**env, "PEER": peer}, log))
        made = Site(f"http://127.0.0.1:{port}", psutil.Process(server.pid))
        wait_until(lambda: _answers(made) or _last_error(log) or server.poll() is not None)
        if not _answers(made):
            raise RuntimeError(_last_error(log) or "it does not start")
        yield made


def _answers(made: Site) -> bool:
    try:
        made.get("/products/1")
    except OSError:
        return False
    return True


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if "Error: " in line]
    return lines[-1].rpartition("Error: ")[2] if lines else ""


@contextlib.contextmanager
def _process(words: list[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=env, stdout=out, stderr=out, preexec_fn=end_with_parent()
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measured(peer: str, urls: dict[str, str], rate: float, seconds: float) -> Result:
    """Run one peer through all three parts."""
    env = {**os.environ, **urls, "PYTHONPATH": str(ROOT)}
    label, database = LABELS[peer], urls["DATABASE_URL"]
    try:
        with site(peer, env) as running:
            ids = load.product_ids(load.zipf_keys(int(rate * seconds), PRODUCTS, 0.9), PRODUCTS)
            read = functools.partial(
                load.run, url=running.url, path="/products", processes=1, concurrency=32, database_url=database
            )
            read(list(range(1, PRODUCTS + 1)))
            paced = read(ids, writes=rate / 100, rate=rate)
            more = load.product_ids(load.zipf_keys(int(60 * rate), PRODUCTS, 0.9), PRODUCTS)
            fast = read(more, writes=rate / 100)
            starts = [sale(running, database, product) for product in range(1, STARTS + 1)]
            return Result(
                label,
                fast.requests / fast.took,
                paced.at(0.5),
                paced.at(0.99),
                (paced.queries + fast.queries) / (paced.requests + fast.requests),
                statistics.median(queries for queries, _ in starts),
                statistics.median(last for _, last in starts),
                len(paced.stale_for) + len(fast.stale_for),
                paced.requests + fast.requests,
                running.memory(),
            )
    except (RuntimeError, AssertionError) as error:
        return Result(label, why_not=str(error))


def median(rounds: Sequence[Result]) -> Result:
    """Return the median of a peer's rounds, with all their old reads; of those that could not run, why."""
    ran = [result for result in rounds if not result.why_not]
    if not ran:
        return rounds[0]
    columns = ("speed", "p50", "p99", "queries", "start_queries", "start_last", "memory")
    return Result(
        ran[0].label,
        old=sum(result.old for result in ran),
        requests=sum(result.requests for result in ran),
        **{column: statistics.median(getattr(result, column) for result in ran) for column in columns},
    )


def sale(running: Site, database: str, product: int) -> tuple[int, float]:
    """Change a price, ask for it from all clients in the same moment; return queries, and when the last had it."""

    async def everybody() -> tuple[float, int]:
        clients = [replay.HttpClient(running.url) for _ in range(CLIENTS)]
        await asyncio.gather(*(client.get("/products/9000") for client in clients))
        running.put_price(product, 2 * 10**9 + product)
        before = load.loads_counted(database)
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(client.get(f"/products/{product}") for client in clients))
        took = asyncio.get_running_loop().time() - began
        for client in clients:
            client.close()
        return took, before

    took, before = asyncio.run(everybody())
    return load.loads_counted(database) - before, took


def main(words: Sequence[str] | None = None) -> int:
    """Measure every peer, print the table, and write the docs' page and the README's row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=LABELS, default=list(LABELS))
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second of the first part")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the first part takes")
    parser.add_argument("--rounds", type=int, default=3, help="how often each peer runs, in turns")
    parser.add_argument(
        "--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}, and its row of the README"
    )
    options = parser.parse_args(words)
    found: dict[str, list[Result]] = {peer: [] for peer in options.only}
    with report.progress() as bar:
        task = bar.add_task("peers", total=options.rounds * len(options.only))
        for peer in options.rounds * options.only:
            bar.update(task, description=LABELS[peer])
            with Valkey() as valkey, Postgres() as postgres:
                urls = {
                    "REDIS_URL": valkey.url,
                    "BROKER_URL": valkey.url,
                    "DATABASE_URL": postgres.create_database("b"),
                }
                seed = [sys.executable, "-m", "app.seed", "--products", str(PRODUCTS)]
                subprocess.run(seed, cwd=ROOT, env={**os.environ, **urls}, check=True, capture_output=True)
                found[peer].append(measured(peer, urls, options.rate, options.seconds))
            bar.advance(task)
    results = [median(rounds) for rounds in found.values()]
    rows = [result.cells for result in results]
    if options.rounds > 1:
        for each in range(options.rounds):
            cells = [rounds[each].cells for rounds in found.values()]
            Console(width=report.WIDTH).print(report.table(f"Round {each + 1}", HEADS, cells))
    notes = [f"{result.label} could not run: {result.why_not}." for result in results if result.why_not]
    Console(width=report.WIDTH).print(report.table("One product API, by who caches it", HEADS, rows), *notes, sep="\n")
    if options.write:
        command = f"python -m benchmarks.apps --rate {options.rate:g} --seconds {options.seconds:g}"
        command += f" --rounds {options.rounds}"
        on = f"`{command}` on {os.cpu_count()} cores, with the load generator, the database and the store on them.\n"
        intro = (__doc__ or "").partition("\n\n")[2]
        table = report.markdown(HEADS, rows) + "".join(f"\n{note}\n" for note in notes)
        PAGE.write_text(f"# One product API, by who caches it\n\n{on}\n{table}\n{intro}")
        readme.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
