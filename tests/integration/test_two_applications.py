"""Two applications under one namespace, each a process of its own: the later one may not use the store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import wait_until

APPLICATION = """
import os
from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from cacheworkers import Cache, Config, Load

app = Celery("any", broker=os.environ["STORE"])
cache = Cache(
    Config(redis_url=os.environ["STORE"], store_timeout=10.0),
    celery=None if os.environ.get("READS") else app,
    sessions=sessionmaker(create_engine(f"sqlite:///{os.environ['DATABASE']}")),
)

@cache.loader(fresh_for=300)
def product(load: Load, n: int) -> str:
    return os.environ["DATABASE"]
"""
READS = """
import sys
from importlib import import_module
from cacheworkers import CacheworkersError
from cacheworkers.ops.doctor import diagnose

module = import_module(sys.argv[1])
print(module.product.get(1))
try:
    print("invalidated", module.cache.invalidate("products").entries)
except CacheworkersError as error:
    print(error)
print(*(each.check for each in diagnose(module.cache, is_running=False) if "namespace" in each.check), flush=True)
sys.stdin.read()
"""


class Programs:
    def __init__(self, path: Path, store: str) -> None:
        self._path = path
        self._store = store
        self._running: list[subprocess.Popen[str]] = []
        for module in ("shop", "blog"):
            (path / f"{module}_loaders.py").write_text(APPLICATION)
        (path / "reads.py").write_text(READS)

    def start(self, *words: str, database: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=self._path,
            env={**os.environ, "STORE": self._store, "DATABASE": str(self._path / database), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def read(self, module: str, database: str) -> list[str]:
        """Have a process read, invalidate and diagnose, and stay; return the lines that it prints."""
        process = self.start("reads.py", module, database=database, READS="1")
        assert process.stdout is not None
        return [process.stdout.readline().strip() for _ in range(3)]

    def close(self) -> None:
        for each in self._running:
            each.kill()
            each.communicate()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    with Valkey() as server:
        made = Programs(tmp_path, server.url)
        yield made
        made.close()


def test_the_later_of_two_applications_is_refused(programs: Programs, tmp_path: Path) -> None:
    """It gets its own values, invalidates nothing of the other's, and takes none of its messages; doctor says why."""
    assert programs.read("shop_loaders", "shop.db") == [str(tmp_path / "shop.db"), "invalidated 0", "namespace-shared"]
    with redis.Redis.from_url(programs._store) as client:
        wait_until(lambda: client.hlen("cw:marks"))

    value, error, finding = programs.read("blog_loaders", "blog.db")
    words = ("-m", "celery", "-A", "blog_loaders", "worker", "-P", "solo", "-l", "warning")
    worker = programs.start(*words, database="blog.db")
    output = "".join(worker.communicate(timeout=120))

    assert value == str(tmp_path / "blog.db")
    for part in (
        "product of shop_loaders",
        "shop.db",
        "product of blog_loaders",
        "blog.db",
        "namespace=",
        "allow_shared",
    ):
        assert part in error
    assert finding == "namespace-taken"
    assert worker.returncode != 0 and "is used by another application" in output
