"""Green threads: under gevent and eventlet a store that hangs costs one timeout, and nobody else is held up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cacheworkers.testing import FaultProxy, Valkey

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}
READER = """
import asyncio, json, sys, threading, time
from cacheworkers import Cache, Config

cache = Cache(Config(redis_url=sys.argv[1], namespace="green", store_timeout=1.0, l1_entries=0))
loads = []

@cache.loader(fresh_for=300, wait_for=30.0)
def number(load, n: int) -> int:
    loads.append(n)
    time.sleep(0.1)
    return n * 10

@cache.loader(fresh_for=300, wait_for=30.0)
async def later(load, n: int) -> int:
    await asyncio.sleep(0)
    return n * 100

ticks, stop = [0], threading.Event()
def tick():
    while not stop.is_set():
        ticks[0] += 1
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()

def report(value):
    before = ticks[0]
    print(json.dumps({"value": value(), "ticks": ticks[0] - before}), flush=True)

def together():
    values = []
    threads = [threading.Thread(target=lambda: values.append(number.get(2))) for _ in range(10)]
    for each in threads: each.start()
    for each in threads: each.join()
    return [values, loads.count(2)]

report(lambda: [number.get(1), later.get(1)])
report(together)
while line := sys.stdin.readline().strip():
    report(lambda: number.get(int(line)))
stop.set()
cache.close()
"""

#: As `gunicorn --preload -k gevent` does it: the application is imported, the process forks, and the child patches.
LATE = """
import os, sys
from cacheworkers import Cache, Config

cache = Cache(Config(redis_url=sys.argv[1], namespace="late", store_timeout=1.0))

@cache.loader(fresh_for=300, wait_for=30.0)
def number(load, n: int) -> int:
    return n * 10

number.get(1)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
exec(sys.argv[2])
import threading
values = []
threads = [threading.Thread(target=lambda n=n: values.append(number.get(n // 2))) for n in range(2, 22)]
for each in threads: each.start()
for each in threads: each.join()
print(*sorted(values), flush=True)
os._exit(0)
"""

FORKS = """
from gevent import monkey; monkey.patch_all()
import json, os, sys, time
from cacheworkers import Cache, Config

events = []
cache = Cache(Config(redis_url=sys.argv[1], namespace="green", store_timeout=5.0), hook=events.append)

@cache.loader(fresh_for=300)
def number(load, n: int) -> int:
    return n

def count(name):
    return sum(type(each).__name__ == name for each in events)

def wait_for_pings(times):
    answered = count("ListenerLag") + times
    while number.read(1).tier != "l1" or count("ListenerLag") < answered:
        time.sleep(0.01)

wait_for_pings(1)
child = os.fork()
wait_for_pings(3)
print(json.dumps(count("ListenerDown")), flush=True)
if child:
    os.waitpid(child, 0)
os._exit(0)
"""


class Child:
    """A reader in a process whose standard library is patched first."""

    def __init__(self, how: str, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PATCH[how] + READER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def report(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the reader has ended"
        return json.loads(line)

    def read(self, n: int) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{n}\n")
        self._process.stdin.flush()
        return self.report()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def child_of(how: str, url: str) -> Iterator[Child]:
    child = Child(how, url)
    yield child
    child.close()


@pytest.mark.parametrize("how", PATCH)
@pytest.mark.parametrize("trouble", ["held", "frozen"])
def test_a_store_that_hangs_costs_a_green_thread_its_timeout(how: str, trouble: str) -> None:
    """Reads, shared loads and async loads work; other green threads run while one waits for a store that hangs."""
    with Valkey() as server, FaultProxy(server.url) as proxy, child_of(how, proxy.url) as child:
        assert child.report()["value"] == [10, 100]
        values, loads = child.report()["value"]
        assert values == [20] * 10
        assert loads == 1
        if trouble == "held":
            proxy.hold_replies()
        else:
            server.pause()

        found = child.read(7)

        assert found["value"] == 70
        assert found["ticks"] > 10
        server.resume()


def test_a_fork_takes_no_messages_of_its_parent_s_listener() -> None:
    """Green threads go on in a fork.  The listener's would read from the parent's connection there, and break both."""
    with Valkey() as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORKS, server.url], capture_output=True, text=True, timeout=60
        )

    assert done.stdout.split() == ["0", "0"], done.stderr[-1000:]


@pytest.mark.parametrize("how", PATCH)
def test_a_process_that_is_patched_after_its_fork_reads_and_loads(how: str) -> None:
    """What the fork has made again are locks of native threads: a green thread that waits for one waits for ever."""
    with Valkey() as server:
        words = [sys.executable, "-W", "ignore", "-c", LATE, server.url, PATCH[how]]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)

    assert done.stdout.split() == [str(n // 2 * 10) for n in range(2, 22)], done.stderr[-1000:]
