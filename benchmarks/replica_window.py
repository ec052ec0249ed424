"""What `Config(replicas=1)` of two leaves of a failover: `python -m benchmarks.replica_window --failovers 20`.

A replica is promoted while its master still takes invalidations, and the other replica acknowledges them: the promoted
one has never seen them.  One process invalidates one entry after the other through planned failovers of Sentinel; then
the new master is asked for those that were acknowledged and are there all the same.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from rich.console import Console

from benchmarks import report
from benchmarks.replicated_faults import deployed
from cacheworkers import Cache, CacheworkersError, Config, Load
from cacheworkers.testing.servers import wait_until

HEADS = ("failovers", "with a loss", "acknowledged after the promotion", "lost", "last after, median ms", "most ms")
ENTRIES = 2000
#: How long invalidations go on before the failover begins, and after another is the master, seconds.
BEFORE, AFTER = 0.3, 3.0


class Window(NamedTuple):
    """One failover.

    Attributes:
        acknowledged: how many invalidations were acknowledged after the promotion.
        lost: seconds from the promotion to the acknowledgement of each that the new master does not have.
    """

    acknowledged: int
    lost: list[float]


def measure(failovers: int, replicas: int = 1) -> Iterator[Window]:
    """Yield what each failover loses."""
    with deployed("sentinel") as store:
        config = Config(redis_url=store.url, namespace="window", replicas=replicas, store_timeout=1.0, l1_entries=0)
        cache = Cache(config)

        @cache.loader(tags=("n:{n}",), fresh_for=600)
        def number(load: Load, n: int) -> int:
            return n

        try:
            for _ in range(failovers):
                wait_until(lambda: _is_settled(store), within=150.0)
                number.get_many(range(ENTRIES))
                yield _one(store, cache, number)
        finally:
            cache.close()


def _one(store: Any, cache: Cache, number: Any) -> Window:
    acknowledged: dict[int, float] = {}
    done = threading.Event()

    def invalidate() -> None:
        for n in range(ENTRIES):
            if done.is_set():
                return
            try:
                cache.invalidate(f"n:{n}")
            except CacheworkersError:
                time.sleep(0.001)
            else:
                acknowledged[n] = time.monotonic()

    old = next(node for node in store.nodes if node.is_master())
    others = [node for node in store.nodes if node is not old]
    thread = threading.Thread(target=invalidate)
    thread.start()
    time.sleep(BEFORE)
    store.sentinels[0].ask("SENTINEL", "FAILOVER", "shop")
    while not any(node.is_master() for node in others):
        pass
    promoted = time.monotonic()
    done.wait(AFTER)
    done.set()
    thread.join()
    wait_until(lambda: _is_settled(store) and not old.is_master(), within=150.0)
    wait_until(lambda: _answers(number))
    kept = {n for n in acknowledged if number.peek(n) is not None}
    lost = [acknowledged[n] - promoted for n in sorted(kept)]
    return Window(sum(at > promoted for at in acknowledged.values()), lost)


def _is_settled(store: Any) -> bool:
    replicas = [node for node in store.nodes if not node.is_master()]
    return len(replicas) == len(store.nodes) - 1 and all(map(store.has_link, replicas))


def _answers(number: Any) -> bool:
    try:
        number.peek(0)
    except CacheworkersError:
        return False
    return True


def row_of(windows: list[Window]) -> tuple[str, ...]:
    """Return the table's row."""
    lasts = sorted(max(window.lost) * 1e3 for window in windows if window.lost)
    median = f"{lasts[len(lasts) // 2]:,.0f}" if lasts else ""
    most = f"{lasts[-1]:,.0f}" if lasts else ""
    acknowledged = sum(window.acknowledged for window in windows)
    lost = sum(len(window.lost) for window in windows)
    return str(len(windows)), str(len(lasts)), f"{acknowledged:,}", f"{lost:,}", median, most


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failovers", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=1, choices=[0, 1, 2])
    options = parser.parse_args()
    windows = []
    with report.progress() as bar:
        task = bar.add_task("failovers", total=options.failovers)
        for window in measure(options.failovers, options.replicas):
            windows.append(window)
            bar.advance(task)
    Console(width=120).print(report.table(f"replicas={options.replicas}, two there are", HEADS, [row_of(windows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
