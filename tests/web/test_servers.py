"""Each adapter on a real server, over sockets: granian with Starlette, and granian with Flask."""

from __future__ import annotations

import errno
import http.client
import importlib
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cacheworkers import Cache
from cacheworkers.testing import Valkey
from cacheworkers.testing.servers import Server, free_port, wait_until

HERE = Path(__file__).parent
_amounts = itertools.count(1)
ADAPTERS = {"starlette": ("asgi", "starlette_shop:app"), "flask": ("wsgi", "flask_shop:app")}


class Web(Server):
    """One server process."""

    def __init__(self, adapter: str, env: dict[str, str]) -> None:
        super().__init__(None)
        self.port = free_port()
        self._interface, self._app = ADAPTERS[adapter]
        self._env = env

    def command(self) -> tuple[list[str], dict[str, Any]]:
        words = [sys.executable, "-m", "granian", "--interface", self._interface, "--host", "127.0.0.1"]
        words += ["--port", str(self.port), "--workers", "1", self._app]
        return words, {"cwd": HERE, "env": {**os.environ, **self._env}}

    def is_ready(self) -> bool:
        try:
            return ask(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5), "/")[0] == 404
        except OSError:
            return False


class Shop:
    """A server, one connection to it, its prices, and its cache as another process has it."""

    def __init__(self, web: Web, prices: Path, module: Any) -> None:
        self.web = web
        self.prices = prices
        self.cache: Cache = module.cache
        self.loader = module.product
        self.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        return ask(self.connection, path, method, **headers)

    def status(self, path: str) -> str:
        """Return what Cache-Status says of a path now."""
        return self.get(path)[1]["cache-status"]

    def change(self, product_id: int, amount: str) -> None:
        (self.prices / str(product_id)).write_text(amount)

    def empty(self) -> None:
        """Leave nothing of what other tests have done: no price, nothing stored, nothing in memory."""
        # The server has what it has in memory until it has received the push: product 0 shows whether it has.
        wait_until(lambda: self.status("/products/0").endswith("detail=l1"))
        for price in self.prices.iterdir():
            price.unlink()
        amount = next(_amounts)
        self.change(0, str(amount))
        self.cache._ports.store.link.client().flushall()
        self.cache._ports.l1.clear()
        wait_until(lambda: msgspec.json.decode(self.get("/products/0")[2]).get("amount") == amount)


def ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Send one request on a connection that is kept, and return status, headers and body."""
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    names = [name.lower() for name, _ in answer.getheaders()]
    assert len(names) == len(set(names)), names
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


@pytest.fixture(scope="module", params=ADAPTERS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One server of each adapter, for all tests."""
    prices = tmp_path_factory.mktemp("prices")
    with Valkey() as valkey, pytest.MonkeyPatch.context() as patch:
        env = {"REDIS_URL": valkey.url, "PRICES": str(prices)}
        for name, value in env.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(HERE))
        patch.delitem(sys.modules, "shop", raising=False)
        module = importlib.import_module("shop")
        try:
            with Web(request.param, env) as web:
                made = Shop(web, prices, module)
                yield made
                made.connection.close()
        finally:
            module.cache.close()
            patch.delitem(sys.modules, "shop")


@pytest.fixture
def shop(served: Shop) -> Shop:
    served.empty()
    served.change(42, "1900")
    return served


def test_a_miss_then_hits_with_the_loaders_own_bytes(shop: Shop) -> None:
    """The body is the loader's JSON, byte by byte; headers say how long it is good for, and where it came from."""
    status, first, body = shop.get("/products/42")
    _, second, again = shop.get("/products/42")

    assert (status, first["content-type"]) == (200, "application/json")
    assert body == again == shop.loader.get_json(42)
    assert int(first["content-length"]) == len(body)
    assert re.match(r"cacheworkers; fwd=miss; stored; ttl=2\d\d; detail=", first["cache-status"])
    assert second["cache-status"].startswith("cacheworkers; hit; ttl=2")
    assert first["etag"] == second["etag"]
    assert first["surrogate-key"] == "product:42 oak%20tables"
    age = int(second["age"])
    assert second["cache-control"] == (f"private, max-age={age + 5}, stale-while-revalidate=30, stale-if-error=30")


def test_memory_answers_and_age_grows(shop: Shop) -> None:
    """Once the server receives pushes it answers from its memory, and says so; Age counts on."""
    first = int(shop.get("/products/42")[1]["age"])

    wait_until(lambda: shop.status("/products/42").endswith("detail=l1"))
    wait_until(lambda: int(shop.get("/products/42")[1]["age"]) > first)


def test_what_the_client_has_is_not_sent_again(shop: Shop) -> None:
    """304 without a body, and the connection goes on; a HEAD may be answered by it too."""
    _, first, body = shop.get("/products/42")

    status, second, nothing = shop.get("/products/42", If_None_Match=f'"other", W/{first["etag"]}')

    assert (status, nothing) == (304, b"")
    assert second["etag"] == first["etag"]
    assert {"cache-control", "age", "cache-status", "surrogate-key"} <= set(second)
    assert "content-type" not in second
    assert shop.get("/products/42", "HEAD", If_None_Match="*")[0] == 304
    assert shop.get("/products/42", If_None_Match='"other"')[2] == body


def test_if_match_is_asked_before_if_none_match(shop: Shop) -> None:
    """With the tag the answer is sent; with another, or the tag made weak, it is a 412."""
    _, first, body = shop.get("/products/42")
    tag = first["etag"]

    assert shop.get("/products/42", If_Match=f'"other", {tag}')[::2] == (200, body)
    assert shop.get("/products/42", If_Match=tag, If_None_Match=tag)[0] == 304
    assert shop.get("/products/42", If_Match='"other"', If_None_Match=tag)[0] == 412
    assert shop.get("/products/42", If_Match=f"W/{tag}")[0] == 412


def test_head_has_the_headers_and_no_body(shop: Shop) -> None:
    """The next answer on the connection is whole: not a byte of a body was sent before it."""
    _, first, body = shop.get("/products/42")

    status, headers, nothing = shop.get("/products/42", "HEAD")

    assert (status, nothing) == (200, b"")
    for name in ("content-length", "content-type", "etag", "surrogate-key"):
        assert headers[name] == first[name]
    assert shop.get("/products/42")[2] == body


def test_a_new_price_has_a_new_tag(shop: Shop) -> None:
    """After an invalidation in another process the client's tag matches no more, and the new bytes are sent."""
    _, first, _ = shop.get("/products/42")
    shop.change(42, "2100")
    shop.cache.invalidate("product:42")

    wait_until(lambda: shop.get("/products/42", If_None_Match=first["etag"])[0] == 200)
    _, second, body = shop.get("/products/42")

    assert second["etag"] != first["etag"]
    assert msgspec.json.decode(body)["amount"] == 2100


def test_a_stale_entry_says_that_it_is(shop: Shop) -> None:
    """A soft invalidation makes it stale: served once more, with nothing left of max-age, until it is loaded again."""
    shop.get("/products/42")
    shop.cache.invalidate("product:42", mode="soft")
    seen: list[dict[str, str]] = []

    def is_stale() -> bool:
        seen.append(shop.get("/products/42")[1])
        return "ttl=-" in seen[-1]["cache-status"]

    wait_until(is_stale)
    stale = seen[-1]
    wait_until(lambda: "hit; ttl=2" in shop.status("/products/42"))

    assert stale["cache-status"].startswith("cacheworkers; hit; ttl=-")
    assert f"max-age={stale['age']}, stale-while-revalidate=30" in stale["cache-control"]


def test_nothing_there_is_a_404(shop: Shop) -> None:
    """None is a 404 with problem details, and kept like anything else."""
    status, headers, body = shop.get("/products/7")

    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert headers["cache-control"].startswith("private, max-age=")
    assert msgspec.json.decode(body)["detail"] == "there is nothing at /products/7"
    assert shop.get("/products/7", "HEAD")[::2] == (404, b"")


def test_a_failed_load_is_a_503_until_its_backoff_ends(shop: Shop) -> None:
    """Retry-After is what is left of the backoff; what the load said is not shown."""
    shop.change(13, "a secret")
    shop.get("/products/13")

    status, headers, body = shop.get("/products/13")

    assert (status, headers["content-type"]) == (503, "application/problem+json")
    assert 3 < int(headers["retry-after"]) <= 24
    assert headers["cache-control"] == "no-store"
    assert b"secret" not in body


def is_written(pipe: Path, text: str) -> bool:
    """Return whether a load reads the pipe, and has been given a text; it may have been ended, and asked for again."""
    try:
        end = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return False
    os.write(end, text.encode())
    os.close(end)
    return True


def test_a_load_that_takes_too_long_is_a_503(shop: Shop) -> None:
    """Retry-After is the policy's; when the load is done, the value is there."""
    os.mkfifo(shop.prices / "pipe")

    status, headers, body = shop.get("/slow")

    assert (status, headers["retry-after"]) == (503, "3")
    assert headers["cache-status"] == "cacheworkers; fwd=miss; detail=LoadTimeout"
    assert msgspec.json.decode(body)["status"] == 503
    wait_until(lambda: shop.get("/slow")[0] == 503 and is_written(shop.prices / "pipe", "7"))
    wait_until(lambda: shop.get("/slow")[::2] == (200, b"7"))


def test_importing_the_core_imports_no_framework() -> None:
    """Only an adapter needs its framework."""
    code = "import sys, cacheworkers.web, cacheworkers.web.asgi; print({'starlette', 'flask'} & set(sys.modules))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"
