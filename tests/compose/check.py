"""The containers under load, killed one after the other: `make compose-check`.

Starts docker-compose.yml as it is, reads over HTTP while prices change, and kills the first process of each container
with SIGKILL from outside, which is what the kernel does to one that is out of memory.  Each must come back by itself;
no read may show a price older than an acknowledged change; and when all is over a price that is set must show.

Needs root (to kill what is in containers) and a Docker engine with Compose.  With --standins the base images are made
from Debian's packages, where none can be pulled.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from app import load
from tests.compose import standins

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "cacheworkers-check"
URL = "http://127.0.0.1:8000"
KILLED = ("web", "page", "miss", "rest", "beat", "drain", "exporter", "broker", "valkey", "postgres")
BACK_WITHIN = 120.0
PRODUCTS = 10_000


class Compose:
    """The stack."""

    def __init__(self, env: dict[str, str]) -> None:
        self._env = env
        known = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self._words = ["docker", "compose"] if known else ["docker-compose"]

    def __call__(self, *words: str) -> str:
        """Run a command of Compose, and return what it prints."""
        command = [*self._words, "-p", PROJECT, "-f", str(ROOT / "docker-compose.yml"), *words]
        done = subprocess.run(command, env=self._env, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout

    def container(self, service: str) -> str:
        """Return the id of a service's container, running or not."""
        return self("ps", "-q", service).split()[0]

    def state(self, service: str) -> tuple[int, str]:
        """Return (pid, health) of a service's container; pid 0 while it is down, health "" where none is checked."""
        found = subprocess.run(
            ["docker", "inspect", "-f", "{{json .State}}", self.container(service)],
            capture_output=True,
            text=True,
            check=True,
        )
        state = json.loads(found.stdout)
        return int(state["Pid"]), state.get("Health", {}).get("Status", "")

    def kill(self, service: str) -> float:
        """Kill a container's first process; return after how many seconds it was healthy again.

        Raises:
            AssertionError: it did not come back.
        """
        pid, _ = self.state(service)
        began = time.monotonic()
        os.kill(pid, 9)

        def is_back() -> bool:
            now, health = self.state(service)
            return now not in (0, pid) and health in ("healthy", "")

        _wait(is_back, service)
        return time.monotonic() - began


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + BACK_WITHIN
    while not condition():
        assert time.monotonic() < end, f"{what} is not back after {BACK_WITHIN:g} s"
        time.sleep(0.2)


def _answers() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/products/1", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _put(product: int, amount: int) -> None:
    body = json.dumps({"amount": amount}).encode()
    request = urllib.request.Request(f"{URL}/products/{product}/price", data=body, method="PUT")
    urllib.request.urlopen(request, timeout=30).read()


def check(compose: Compose) -> dict[str, float]:
    """Kill container by container under load; return service -> seconds until it was back.

    Raises:
        AssertionError: one did not come back, a read was too old, or a new price does not show in the end.
    """
    compose("up", "--detach", "--build")
    _wait(_answers, "web")
    _wait(lambda: all(compose.state(name)[1] in ("healthy", "") for name in KILLED), "a container")
    stale, reads, stop = [0], [0], threading.Event()

    def read() -> None:
        ids = load.product_ids(load.zipf_keys(2000, 500, 0.9), PRODUCTS)
        while not stop.is_set():
            report = load.run(
                ids, url=URL, path="/products", processes=1, concurrency=8, writes=5.0, rate=200.0, count_queries=False
            )
            stale[0] += len(report.stale_for)
            reads[0] += report.requests

    reader = threading.Thread(target=read)
    reader.start()
    took = {}
    try:
        for service in KILLED:
            took[service] = compose.kill(service)
            _wait(_answers, "web")
            print(f"{service:<10} back after {took[service]:5.1f} s", flush=True)
    finally:
        stop.set()
        reader.join()
    _put(1, 4_000_000_001)
    with urllib.request.urlopen(f"{URL}/products/1", timeout=30) as answer:
        assert json.load(answer)["amount"] == 4_000_000_001
    print(f"{reads[0]:,} reads, {stale[0]} older than an acknowledged change")
    assert stale[0] == 0
    return took


def main() -> int:
    """Check, and take everything down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--standins", action="store_true", help="make base images from Debian's packages first")
    options = parser.parse_args()
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        print("Error: no Docker engine answers; start it, or name it in DOCKER_HOST", file=sys.stderr)
        return 1
    env = dict(os.environ)
    if options.standins:
        standins.main()
        env |= standins.environment()
    secret = ROOT / ".secrets" / "postgres_password"
    if not secret.exists():
        secret.parent.mkdir(mode=0o700, exist_ok=True)
        secret.write_text(secrets.token_hex(16))
    compose = Compose(env)
    try:
        check(compose)
    finally:
        compose("down", "--volumes", "--timeout", "5")
    return 0


if __name__ == "__main__":
    sys.exit(main())
