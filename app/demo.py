"""`make demo`: a flash sale, cached beside uncached, against the stack that runs, or one started for it.

The same readers ask for the same few products, first through the cache and then straight from the database, while
prices change.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.load import Report, run, zipf_keys
from app.up import ROOT, Addresses, running

#: A sale's crowd wants the same things.
EXPONENT, PRODUCTS = 1.3, 200


@contextlib.contextmanager
def stack(console: Console) -> Iterator[Addresses]:
    """Yield the stack that runs in this checkout, or start one and end it."""
    there = running()
    if there is not None:
        console.print(f"using the stack at {there.web}")
        yield there
        return
    with tempfile.TemporaryDirectory(prefix="cacheworkers-demo-") as place:
        data_dir = Path(place)
        data_dir.chmod(0o711)
        log = data_dir / "up.log"
        words = [sys.executable, "-m", "app.up", "--data-dir", place, "--port", "8100", "--flower-port", "5655"]
        with console.status("starting servers, seeding 10,000 products"), open(log, "wb") as out:
            process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
            while running(data_dir) is None or not (data_dir / "up.json").exists():
                if process.poll() is not None:
                    last = "\n".join(log.read_text().splitlines()[-30:])
                    raise RuntimeError(f"the stack did not start; its last lines:\n{last}")
                time.sleep(0.1)
        try:
            here = running(data_dir)
            assert here is not None
            yield here
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def sale(here: Addresses, requests: int, *, writes: float, path: str) -> Report:
    """Replay the crowd's reads over HTTP."""
    ids = zipf_keys(requests, PRODUCTS, EXPONENT)
    return run(
        ids,
        url=here.web,
        path=path,
        processes=2,
        concurrency=16,
        writes=writes,
        database_url=here.database_url,
    )


def table(cached: Report, uncached: Report) -> Table:
    """Return both runs side by side."""
    made = Table(title="A flash sale: the same reads, cached and uncached")
    made.add_column("")
    made.add_column("cached", justify="right")
    made.add_column("uncached", justify="right")
    made.add_column("ratio", justify="right")

    def row(name: str, one: float, other: float, form: str) -> None:
        ratio = f"{other / one:,.1f}x" if one else "-"
        made.add_row(name, form.format(one), form.format(other), ratio)

    row("requests", cached.requests, uncached.requests, "{:,.0f}")
    row("database queries for products", cached.queries, uncached.queries, "{:,.0f}")
    a_thousand = [1000 * report.queries / report.requests for report in (cached, uncached)]
    row("queries for 1,000 requests", a_thousand[0], a_thousand[1], "{:,.1f}")
    row("p50, ms", cached.at(0.5) * 1000, uncached.at(0.5) * 1000, "{:.2f}")
    row("p99, ms", cached.at(0.99) * 1000, uncached.at(0.99) * 1000, "{:.2f}")
    made.add_row(
        "requests a second",
        f"{cached.requests / cached.took:,.0f}",
        f"{uncached.requests / uncached.took:,.0f}",
        f"{cached.requests / cached.took / (uncached.requests / uncached.took):,.1f}x",
    )
    row("prices changed meanwhile", cached.writes, uncached.writes, "{:,.0f}")
    stale = [str(len(report.stale_for)) for report in (cached, uncached)]
    made.add_row("reads older than an acknowledged change", *stale, "")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sale twice, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m app.demo", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--writes", type=float, default=5.0, help="prices to change a second meanwhile")
    options = parser.parse_args(arguments)
    console = Console()
    with stack(console) as here:
        os.environ["DATABASE_URL"] = here.database_url
        console.print(f"flash sale through the cache: {options.requests:,} reads of {PRODUCTS} products")
        cached = sale(here, options.requests, writes=options.writes, path="/products")
        console.print("the same reads, uncached")
        uncached = sale(here, options.requests, writes=options.writes, path="/uncached/products")
        console.print(table(cached, uncached))
    return 0


if __name__ == "__main__":
    sys.exit(main())
